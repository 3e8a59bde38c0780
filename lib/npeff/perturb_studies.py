"""What notebook 32 measures: how selective perturbations are, and how well equation 5 foretells it.

A network is moved along each of its components, in float64, and the change of its predictions on
the component's top held-out examples is compared with that on all of them.

Public names: `moved_low_rank`, `moved_diagonal`, `Moved`, `sweep`, `Sweep`, `ratio_rows`,
`variant_rows`, `guard_rows`, `accuracy_on_and_off`; for the claims `share_above`,
`share_above_random`, `shift`, `median_of`, `ratio_of_medians`, `rank_correlation`.

Source: document 3, sections 2.3, 3.1.2 and 3.3 (D against LRM); specification sections 5 and 7.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lib.features import Progress
from lib.npeff import perturb, selectivity, store
from lib.npeff.component_studies import share_of
from lib.npeff.components import Components
from lib.npeff.divergence import FORWARD, REVERSE, Data, Reference
from lib.npeff.perturb import SEQUENTIAL, TAU, Directions
from lib.npeff.perturb_diagonal import (
    FLOOR,
    DiagonalSelectivity,
    dataset_fisher,
    measure_diagonal,
)
from lib.npeff.products import Sparse, multiply
from lib.npeff.selectivity import Selectivity
from lib.npeff.store import Fishers

NORM = 0.1  # of a perturbation, the document's
SIZES = (0.01, 0.03, 0.1, 0.3)  # of `sweep`, this project's; the document's is the third
N_RESAMPLED = 2000  # components drawn with replacement, for the spread of a median
LOW, HIGH = 0.25, 0.75
CHUNK = 128  # examples of a float64 pass: 2.4 times as fast as 1,500 at once on a processor


@dataclass(frozen=True)
class Moved:
    """A network moved along each component that is not zero."""

    used: Tensor  # int64 [k], these components
    ways: Directions  # of low-rank components, or the diagonal ones at unit length
    measured: Selectivity
    norm: Tensor  # float64 [k], PEF-norm ratios
    random: Tensor  # float64 [k, draws], KL-ratios of random directions, the better sign of each
    lengths: Tensor  # float64 [k], L2 of each change
    in_range: int  # searches that ended in the range wanted; k where there is no search

    @property
    def kl(self) -> Tensor:
        """KL-ratio of the better sign, float64 `[k]`."""
        return self.measured.ratio(FORWARD)


def subject(found: Components) -> tuple[nn.Module, Data]:
    """A float64 copy of the network, and its held-out examples.

    Divergences of a float32 network are noise below about 1e-6 nats, which many of ours are.
    """
    x = found.bed.held_out.x
    model = copy.deepcopy(found.bed.model).double()
    return model, (x.double() if x.is_floating_point() else x, found.bed.held_out.y)


def directions_of(
    found: Components, *, tau: float | None = TAU, rejection: str = SEQUENTIAL
) -> tuple[Tensor, Directions]:
    """Components that are not zero, int64 `[k]`, and their directions."""
    made = found.decomposition
    used = made.components.norm(dim=1).nonzero()[:, 0]
    g = made.components[used]
    return used, perturb.directions(g, made.kept, made.parameters, tau=tau, rejection=rejection)


def moved_low_rank(
    found: Components,
    *,
    n_draws: int,
    seed: int,
    norm: float = NORM,
    tau: float | None = TAU,
    rejection: str = SEQUENTIAL,
    progress: Progress | None = None,
) -> Moved:
    """Move along low-rank components, both ways, as in section 2.3.

    Args:
        n_draws: random directions of the same norm on the same parameters.
        seed: of these directions.
        progress: wraps the range of components.
    """
    used, ways = directions_of(found, tau=tau, rejection=rejection)
    model, data = subject(found)
    top, everything = found.top[used], torch.arange(len(data[1]))
    measured = selectivity.measure(
        model, data, ways, norm=norm, top=top, baseline=everything, chunk=CHUNK, progress=progress
    )
    random = _random(model, data, ways, norm, top, n_draws, seed)
    ratios = selectivity.norm_ratios(found.norms, top, everything)
    lengths = torch.full((len(used),), norm, dtype=torch.float64)
    return Moved(used, ways, measured, ratios, random, lengths, len(used))


def moved_diagonal(
    found: Components,
    *,
    n_draws: int,
    seed: int,
    guard: str = FLOOR,
    progress: Progress | None = None,
) -> Moved:
    """Move along diagonal components by Fisher-weighted averages (specification 5.5).

    Lengths differ between components: each change is sized by its effect on the top examples.
    Random directions have the median length and lie on the parameters of all components together,
    where the components' own supports differ.

    Args:
        seed: of the searches' starts and of the random directions.
        progress: wraps the range of components.
    """
    used, ways = directions_of(found, tau=None)
    model, data = subject(found)
    top, everything = found.top[used], torch.arange(len(data[1]))
    done = _searched(model, data, found, used, guard, seed, progress)
    widest = replace(ways, unit=torch.ones_like(ways.unit))  # the support is all that is read
    length = float(done.norms.median())
    random = _random(model, data, widest, length, top, n_draws, seed)
    ratios = selectivity.norm_ratios(found.norms, top, everything)
    ended = sum(end.in_range for end in done.found)
    return Moved(used, ways, done.selectivity, ratios, random, done.norms, ended)


def _searched(
    model: nn.Module,
    data: Data,
    found: Components,
    used: Tensor,
    guard: str,
    seed: int,
    progress: Progress | None,
) -> DiagonalSelectivity:
    made = found.decomposition
    fit = found.bed.fit
    x = fit.x.double() if fit.x.is_floating_point() else fit.x
    return measure_diagonal(
        model,
        data,
        made.components[used],
        made.kept,
        made.parameters,
        dataset_fisher(model, (x, fit.y), made.parameters),
        top=found.top[used],
        baseline=torch.arange(len(data[1])),
        generator=torch.Generator().manual_seed(seed),
        guard=guard,
        chunk=CHUNK,
        progress=progress,
    )


def _random(
    model: nn.Module,
    data: Data,
    ways: Directions,
    norm: float,
    top: Tensor,
    n_draws: int,
    seed: int,
) -> Tensor:
    return selectivity.random_ratios(
        model,
        data,
        ways,
        norm=norm,
        top=top,
        baseline=torch.arange(len(data[1])),
        n_draws=n_draws,
        generator=torch.Generator().manual_seed(seed),
        chunk=CHUNK,
    )


@dataclass(frozen=True)
class Sweep:
    """Divergences and accuracy along every component, for steps of several sizes, both ways."""

    sizes: Tensor  # float64 [s], signed, ascending
    kl: Tensor  # float64 [k, s, n], nats, KL(original || moved)
    right: Tensor  # bool [k, s, n]
    components: Tensor  # float64 [k, n], delta' F delta / 2 at size 1 by equation 5
    fisher: Tensor  # float64 [k, n], the same by each example's own PEF
    top: Tensor  # int64 [k, T]

    def predicted(self, size: float, own: bool = False) -> Tensor:
        """Divergence predicted for a step, by components or by the example's PEF, `[k, n]`."""
        return size**2 * (self.fisher if own else self.components)

    def at(self, size: float) -> Tensor:
        """Measured divergence of a step of this size, `[k, n]`."""
        return self.kl[:, int((self.sizes - size).abs().argmin())]

    def is_top(self, j: int) -> Tensor:
        """Whether an example is one of the component's top ones, bool `[n]`."""
        mask = torch.zeros(self.kl.shape[2], dtype=torch.bool)
        mask[self.top[j]] = True
        return mask


def sweep(
    found: Components,
    fishers: Fishers,
    *,
    sizes: Sequence[float] = SIZES,
    progress: Progress | None = None,
) -> Sweep:
    """Take steps of several sizes along each low-rank component.

    Args:
        fishers: raw PEFs of the held-out examples, for what is lost to the decomposition alone.
        sizes: lengths above 0; every one is taken both ways.
        progress: wraps the range of components.

    Source: document 3, equations 2 and 5.
    """
    used, ways = directions_of(found)
    model, data = subject(found)
    rows = torch.arange(len(data[1]))
    signed = torch.tensor(sorted(s for a in sizes for s in (-a, a)), dtype=torch.float64)
    before = Reference.of(model, data, rows, CHUNK)
    kl, right = [], []
    for j in progress(range(len(used))) if progress else range(len(used)):
        change = ways.change(j, 1.0).double()
        here, correct = before.after(model, signed[:, None] * change, ways.parameters, rows, CHUNK)
        kl.append(here[:, FORWARD])
        right.append(correct[1:].bool())
    made = found.decomposition
    by_components = selectivity.predicted_kl(
        found.held_out, found.norms, made.components, ways.unit
    )
    return Sweep(
        signed,
        torch.stack(kl),
        torch.stack(right),
        by_components,
        quadratic(fishers, ways),
        found.top[used],
    )


def quadratic(fishers: Fishers, ways: Directions) -> Tensor:
    """``u' F_i u / 2`` for every direction and example, float64 `[k, n]` (equation 2).

    Args:
        fishers: raw low-rank PEFs of the directions' model and parameters.
    """
    if fishers.kind != store.LOW_RANK or fishers.parameters != ways.parameters:
        raise ValueError(f"want low-rank PEFs of the directions' model, got {fishers.kind} ones")
    fishers = store.select_columns(fishers, ways.kept)
    rows = Sparse(
        fishers.offsets.int(),
        fishers.columns.int(),
        fishers.values.double(),
        len(ways.kept),
    )
    along = multiply(rows, ways.unit.double().T.contiguous()).square()
    total = torch.zeros(len(fishers), len(ways), dtype=torch.float64)
    return total.index_add_(0, fishers.example, along).T / 2


def rank_correlation(swept: Sweep, size: float, *, own: bool = False) -> Tensor:
    """Spearman correlation over examples, predicted and measured, both signs' mean: `[k]`."""
    from scipy.stats import spearmanr

    predicted = swept.predicted(size, own)
    found = [
        [float(spearmanr(p, m).statistic) for p, m in zip(predicted, measured, strict=True)]
        for measured in (swept.at(size), swept.at(-size))
    ]
    return torch.tensor(found, dtype=torch.float64).mean(0)


def predicted_share(swept: Sweep, size: float, *, own: bool = False) -> Tensor:
    """Mean predicted divergence over the mean measured one, both signs' together, `[k]`."""
    measured = (swept.at(size) + swept.at(-size)).sum(1) / 2
    return swept.predicted(size, own).sum(1) / measured


def ratios_at(swept: Sweep, size: float) -> Tensor:
    """KL-ratio of the better sign at a size, float64 `[k]`."""
    both = [
        measured.gather(1, swept.top).mean(1) / measured.mean(1)
        for measured in (swept.at(size), swept.at(-size))
    ]
    return torch.stack(both).amax(0)


def by_size(swept: Sweep) -> dict[str, tuple[str, dict[str, Tensor]]]:
    """Panels of a figure: title -> axis label and curves, quartiles over components `[s, 3]`."""
    sizes = swept.sizes[swept.sizes > 0].tolist()
    levels = torch.tensor([LOW, 0.5, HIGH], dtype=torch.float64)

    def curve(values: list[Tensor]) -> Tensor:
        return torch.stack([v.quantile(levels) for v in values])

    kinds = {"by components, equation 5": False, "by the example's own Fisher": True}
    ranks = {w: curve([rank_correlation(swept, s, own=k) for s in sizes]) for w, k in kinds.items()}
    totals = {w: curve([predicted_share(swept, s, own=k) for s in sizes]) for w, k in kinds.items()}
    ratios = {"KL-ratio": curve([ratios_at(swept, s) for s in sizes])}
    return {
        "ranking of examples": ("rank correlation", ranks),
        "size of the change": ("predicted / measured", totals),
        "selectivity": ("KL-ratio", ratios),
    }


def accuracy_on_and_off(swept: Sweep, j: int) -> dict[str, Tensor]:
    """Accuracy at each size on the component's top examples, and on all others."""
    on = swept.is_top(j)
    right = swept.right[j].double()
    return {"top examples": right[:, on].mean(1), "other examples": right[:, ~on].mean(1)}


def ratio_rows(cases: Mapping[str, Moved], published: Sequence[str]) -> list[dict[str, object]]:
    """Rows of a table: medians of figure 3, beside the document's where it gives one."""
    rows: list[dict[str, object]] = []
    for (name, case), theirs in zip(cases.items(), published, strict=True):
        found = selectivity.summarise(case.kl, case.norm, case.random)
        median, spread = median_of(case.kl)
        top = case.measured.accuracy_top.mean(0)
        rows.append(
            {
                "network, flavour": name,
                "components": found.n,
                "median KL-ratio": f"{median:.2f} ± {spread:.2f}",
                "document": theirs,
                "PEF norm": f"{found.median_norm:.2f}",
                "random direction": f"{found.median_random:.2f}",
                "KL > norm": f"{found.share_above_norm:.0%}",
                "KL > random": f"{share_above_random(case)[0]:.0%}",
                "accuracy on top": f"{float(top[0]):.3f} to {float(top[1:].min()):.3f}",
            }
        )
    return rows


def variant_rows(cases: Mapping[str, Moved]) -> list[dict[str, object]]:
    """Rows of a table: ways to reject other components, and directions of the divergence."""
    rows: list[dict[str, object]] = []
    for words, case in cases.items():
        for kind, direction in ((FORWARD, "KL(before, after)"), (REVERSE, "KL(after, before)")):
            better, both = case.measured.ratio(kind), case.measured.ratios(kind)
            rows.append(
                {
                    "rejection": words,
                    "cosine with own": f"{float(case.ways.own.median()):.2f}",
                    "largest with rejected": f"{float(case.ways.worst.max()):.2f}",
                    "divergence": direction,
                    "better sign": f"{float(better.quantile(0.5)):.2f}",
                    "worse sign": f"{float(both.amin(1).quantile(0.5)):.2f}",
                    "KL > norm": f"{float((better > case.norm).double().mean()):.0%}",
                }
            )
    return rows


def guard_rows(cases: Mapping[str, Mapping[str, Moved]]) -> list[dict[str, object]]:
    """Rows of a table: readings of the guard of the data set's Fisher, network -> guard -> case."""
    rows: list[dict[str, object]] = []
    for name, guards in cases.items():
        for guard, case in guards.items():
            median, spread = median_of(case.kl)
            rows.append(
                {
                    "network": name,
                    "guard": guard,
                    "median KL-ratio": f"{median:.2f} ± {spread:.2f}",
                    "KL > norm": f"{share_above(case)[0]:.0%}",
                    "median length": f"{float(case.lengths.median()):.2g}",
                    "searches in range": f"{case.in_range} of {len(case.used)}",
                }
            )
    return rows


def share_above(case: Moved) -> tuple[float, float]:
    """Share of components with a KL-ratio above the PEF-norm ratio, and its standard error."""
    return share_of(case.kl > case.norm)


def share_above_random(case: Moved, level: float = 0.95) -> tuple[float, float]:
    """Share of components beyond this quantile of random directions, and its standard error."""
    return share_of(case.kl > case.random.quantile(level, dim=1))


def shift(case: Moved) -> float:
    """p of a paired Wilcoxon test, one-sided: KL-ratios above PEF-norm ratios, on logarithms."""
    from scipy.stats import wilcoxon

    differences = case.kl.log() - case.norm.log()
    return float(wilcoxon(differences.numpy(), alternative="greater").pvalue)


def median_of(values: Tensor, seed: int = 0) -> tuple[float, float]:
    """Median over components, and its spread when components are drawn with replacement."""
    return float(values.quantile(0.5)), float(_resampled(values, seed).std())


def ratio_of_medians(a: Tensor, b: Tensor, seed: int = 0) -> tuple[float, float]:
    """Ratio of two medians over components, and its spread, as `median_of`."""
    spread = (_resampled(a, seed) / _resampled(b, seed + 1)).std()
    return float(a.quantile(0.5) / b.quantile(0.5)), float(spread)


def _resampled(values: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(values), (N_RESAMPLED, len(values)), generator=generator)
    return values[rows].quantile(0.5, dim=1)


def middle_one(values: Tensor) -> int:
    """Which component has the median value."""
    return int(values.argsort()[(len(values) - 1) // 2])
