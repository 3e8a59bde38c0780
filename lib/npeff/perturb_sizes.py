"""Steps of several sizes along low-rank components, and how well equation 5 foretells them.

The divergence of an example is predicted twice: from the components, and from the example's own
Fisher. Where both fail the step is too long for a quadratic form; where the first alone fails
the decomposition does not say enough.

Public names: `sweep`, `Sweep`, `quadratic`, `rank_correlation`, `predicted_share`, `ratios_at`,
`by_size`, `accuracy_on_and_off`, `middle_one`, `SIZES`.

Source: document 3, equations 2 and 5; specification 5.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.features import Progress
from lib.npeff import selectivity, store
from lib.npeff.components import Components
from lib.npeff.divergence import FORWARD, Reference
from lib.npeff.perturb import Directions
from lib.npeff.perturb_studies import CHUNK, directions_of, keep, subject
from lib.npeff.products import Sparse, multiply
from lib.npeff.store import Fishers

SIZES = (0.01, 0.03, 0.1, 0.3)  # this project's; the document's is the third
LOW, HIGH = 0.25, 0.75


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
    signed = torch.tensor(sorted(s for a in sizes for s in (-a, a)), dtype=torch.float64)
    kept = keep(
        found,
        "steps",
        signed.tolist(),
        lambda: _walked(found, ways, signed, progress),
        code=[_walked],
    )
    made = found.decomposition
    by_components = selectivity.predicted_kl(
        found.held_out, found.norms, made.components, ways.unit
    )
    return Sweep(
        signed,
        kept["kl"],
        kept["right"],
        by_components,
        quadratic(fishers, ways),
        found.top[used],
    )


def _walked(
    found: Components, ways: Directions, signed: Tensor, progress: Progress | None
) -> dict[str, Tensor]:
    """Divergences `[k, s, n]`, KL(original || moved), and whether right, of steps `[s]`."""
    model, data = subject(found)
    rows = torch.arange(len(data[1]))
    before = Reference.of(model, data, rows, CHUNK)
    kl, right = [], []
    for j in progress(range(len(ways))) if progress else range(len(ways)):
        change = ways.change(j, 1.0).double()
        here, correct = before.after(model, signed[:, None] * change, ways.parameters, rows, CHUNK)
        kl.append(here[:, FORWARD])
        right.append(correct[1:].bool())
    return {"kl": torch.stack(kl), "right": torch.stack(right)}


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


def middle_one(values: Tensor) -> int:
    """Which component has the median value."""
    return int(values.argsort()[(len(values) - 1) // 2])
