"""What notebook 32 measures: how selective perturbations along components are.

A network is moved along each of its components, in float64, and the change of its predictions on
the component's top held-out examples is compared with that on all of them.

`lib.npeff.perturb_sizes` takes steps of several sizes. What was measured is kept in the cache: a
network, its examples and its components are moved once.

Public names: `moved_low_rank`, `moved_diagonal`, `Moved`, `subject`, `directions_of`, `keep`,
`ratio_rows`,
`variant_rows`, `guard_rows`; for the claims `share_above`, `share_above_all`, `shift`,
`median_of`, `ratio_of_medians`.

Source: document 3, sections 2.3, 3.1.2 and 3.3 (D against LRM); specification sections 5 and 7.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lib import cache
from lib.features import Progress
from lib.npeff import perturb, selectivity
from lib.npeff.components import Components
from lib.npeff.divergence import FORWARD, REVERSE, Data
from lib.npeff.perturb import SEQUENTIAL, TAU, Directions
from lib.npeff.perturb_diagonal import (
    FLOOR,
    DiagonalSelectivity,
    dataset_fisher,
    measure_diagonal,
)
from lib.npeff.selectivity import Selectivity
from lib.shares import share
from lib.training import predict

NORM = 0.1  # of a perturbation, the document's
N_RESAMPLED = 2000  # components drawn with replacement, for the spread of a median
MEASURED = ("kl_top", "kl_baseline", "accuracy_top", "accuracy_baseline")  # of a Selectivity
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
    top, everything = found.top[used], torch.arange(len(found.bed.held_out.y))

    def build() -> dict[str, Tensor]:
        model, data = subject(found)
        measured = selectivity.measure(
            model,
            data,
            ways,
            norm=norm,
            top=top,
            baseline=everything,
            chunk=CHUNK,
            progress=progress,
        )
        return _arrays(measured) | {"random": _random(model, data, ways, norm, top, n_draws, seed)}

    options = [norm, tau, rejection, n_draws, seed]
    kept = keep(found, "low-rank moves", options, build, code=[subject, _arrays, _random])
    ratios = selectivity.norm_ratios(found.norms, top, everything)
    lengths = torch.full((len(used),), norm, dtype=torch.float64)
    measured = _measured(kept, top, everything)
    return Moved(used, ways, measured, ratios, kept["random"], lengths, len(used))


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
    top, everything = found.top[used], torch.arange(len(found.bed.held_out.y))

    def build() -> dict[str, Tensor]:
        model, data = subject(found)
        done = _searched(model, data, found, used, guard, seed, progress)
        widest = replace(ways, unit=torch.ones_like(ways.unit))  # the support is all that is read
        length = float(done.norms.median())
        ended = torch.tensor([end.in_range for end in done.found])
        return _arrays(done.selectivity) | {
            "random": _random(model, data, widest, length, top, n_draws, seed),
            "lengths": done.norms,
            "in_range": ended,
        }

    options = [guard, n_draws, seed]
    kept = keep(
        found, "diagonal moves", options, build, code=[subject, _arrays, _searched, _random]
    )
    ratios = selectivity.norm_ratios(found.norms, top, everything)
    measured, ended = _measured(kept, top, everything), int(kept["in_range"].sum())
    return Moved(used, ways, measured, ratios, kept["random"], kept["lengths"], ended)


def keep(
    found: Components,
    what: str,
    options: Sequence[object],
    build: Callable[[], Mapping[str, Tensor]],
    *,
    code: Sequence[Callable[..., object]],
) -> dict[str, Tensor]:
    """`build()` through the cache, for these components of this network on its own examples.

    Args:
        what: is measured.
        options: that it depends on, as JSON values.
        build, code: as `lib.cache.fetch` takes them.
    """
    bed, made = found.bed, found.decomposition
    arrays = {"fit": bed.fit.x, "fit labels": bed.fit.y, "x": bed.held_out.x, "y": bed.held_out.y}
    arrays |= {"components": made.components, "kept": made.kept, "top": found.top}
    arrays |= {"W": found.held_out, "norms": found.norms, "logits": found.logits}
    config = {
        "what": what,
        "network": cache.state_hash(dict(bed.model.state_dict())),
        "arrays": cache.state_hash(arrays),
        "options": list(options),
    }
    return cache.fetch("npeff-moves", config, build, code=[directions_of, *code])


def _arrays(measured: Selectivity) -> dict[str, Tensor]:
    return {name: getattr(measured, name).contiguous() for name in MEASURED}


def _measured(kept: Mapping[str, Tensor], top: Tensor, baseline: Tensor) -> Selectivity:
    return Selectivity(top, baseline, **{name: kept[name] for name in MEASURED})


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
    return measure_diagonal(
        model,
        data,
        made.components[used],
        made.kept,
        made.parameters,
        _fit_fisher(model, found),
        top=found.top[used],
        baseline=torch.arange(len(data[1])),
        generator=torch.Generator().manual_seed(seed),
        guard=guard,
        chunk=CHUNK,
        progress=progress,
    )


def _fit_fisher(model: nn.Module, found: Components) -> Tensor:
    """`dataset_fisher` of the fit examples through the cache: both guards read the same."""
    fit, parameters = found.bed.fit, found.decomposition.parameters
    x = fit.x.double() if fit.x.is_floating_point() else fit.x
    config = {
        "model": cache.state_hash(dict(model.state_dict())),
        # equal weights may still compute something else
        "data": cache.state_hash({"x": x, "logits": predict(model, x)}),
        "parameters": [name for name, _ in parameters],
    }

    def build() -> dict[str, Tensor]:
        return {"fisher": dataset_fisher(model, (x, fit.y), parameters)}

    return cache.fetch("dataset-fisher", config, build, code=[dataset_fisher])["fisher"]


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
                "KL > norm": f"{share_above(case)[0]:.0%}",
                f"KL > all of {case.random.shape[1]} random": f"{share_above_all(case)[0]:.0%}",
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
    return share(case.kl > case.norm)


def share_above_all(case: Moved) -> tuple[float, float]:
    """Share of components with a KL-ratio above all their random ones, and its standard error.

    Of n draws and one more the one more is above all n with probability 1 / (n + 1).
    """
    return share(case.kl > case.random.amax(1))


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
