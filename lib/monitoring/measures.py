"""Numbers of the case studies, each with half a 95% bootstrap interval over units.

A measure is a function of rows of units, so that a share, a difference of shares, a spread or a
correlation over checkpoints resample in the same way. A pair (value, half width) is what
`lib.claims.judge` takes; a measure without any unit to measure is None, "not run".

Public names: `Measured`, `measured`, `mean`, `over_seeds`, `kinds`, `counted`, `high_level`,
`share_gain`, `share_difference`, `depth`, `spreads`, `correlation`.

Source: specification section 2.3, 2.4 and 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib import bootstrap
from lib.attribution import metrics
from lib.data.annotations import CATEGORIES
from lib.monitoring.activations import ConceptSet
from lib.monitoring.record import Trace
from lib.monitoring.space import Space
from lib.monitoring.statistics import HIGH

Measured = tuple[float, float] | None
Statistic = Callable[[Tensor], Tensor]  # rows of units [b, n] -> values [b]
COLOUR = CATEGORIES.index("color")
SEED = 0  # of the resamples


def measured(statistic: Statistic, n: int, *, n_draws: int = 1000) -> Measured:
    """The value over all n units and half its interval; None if it is not defined."""
    if n == 0:
        return None
    value = float(statistic(torch.arange(n)[None])[0])
    if math.isnan(value):
        return None
    generator = torch.Generator().manual_seed(SEED)
    low, high = bootstrap.interval(
        lambda rows: statistic(rows).nan_to_num(0.0), n, generator=generator, n_draws=n_draws
    )
    return value, float(high - low) / 2


def mean(values: Tensor, *, n_draws: int = 1000) -> Measured:
    """The mean over units of `[n]`."""
    return measured(lambda rows: values[rows].mean(-1), len(values), n_draws=n_draws)


def over_seeds(found: Sequence[Measured]) -> Measured:
    """One run's own pair, or mean and standard deviation of several runs; None counts as absent."""
    there = [pair for pair in found if pair is not None]
    if len(there) < 2:
        return there[0] if there else None
    values = torch.tensor([value for value, _ in there], dtype=torch.float64)
    return float(values.mean()), float(values.std())


def kinds(labels: Tensor, concepts: ConceptSet) -> Tensor:
    """Category of each label as its place in CATEGORIES, int64, same shape."""
    numbers = torch.tensor([CATEGORIES.index(name) for name in concepts.category()])
    return numbers[labels.long()]


def counted(trace: Trace, concepts: ConceptSet) -> Tensor:
    """Interpretable units whose word is not a colour, bool `[E, M]`."""
    return trace.interpretable & (kinds(trace.label, concepts) != COLOUR)


def high_level(trace: Trace, concepts: ConceptSet) -> Tensor:
    """Interpretable units whose word is a scene, an object or a part, bool `[E, M]`."""
    high = torch.tensor([CATEGORIES.index(name) for name in HIGH])
    return trace.interpretable & torch.isin(kinds(trace.label, concepts), high)


def share_gain(units: Tensor, *, n_draws: int = 1000) -> Measured:
    """Share at the last checkpoint minus share at the first, the same units drawn at both.

    Args:
        units: bool `[E, M]`.
    """
    return mean(units[-1].double() - units[0].double(), n_draws=n_draws)


def share_difference(a: Tensor, b: Tensor, *, n_draws: int = 1000) -> Measured:
    """Share of units of network a minus share of network b, units of each drawn for themselves.

    Args:
        a, b: bool `[M]` of two networks with as many units.
    """
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"want as many units of both, got {tuple(a.shape)} and {tuple(b.shape)}")
    if len(a) == 0:
        return None
    value = float(a.double().mean() - b.double().mean())
    generator = torch.Generator().manual_seed(SEED)
    # rows of a and of b are drawn together, 2M numbers a resample
    m = len(a)

    def statistic(rows: Tensor) -> Tensor:
        first, second = (rows % m).split(m, dim=1)
        return a.double()[first].mean(1) - b.double()[second].mean(1)

    low, high = bootstrap.interval(statistic, 2 * m, generator=generator, n_draws=n_draws)
    return value, float(high - low) / 2


def depth(traces: Sequence[Trace], concepts: ConceptSet, *, n_draws: int = 1000) -> Measured:
    """Share of high-level words among interpretable units, last layer minus mean of the others.

    At the last checkpoint; layers from shallow to deep, units drawn over all layers together.
    """
    high = torch.cat([high_level(t, concepts)[-1] for t in traces]).double()
    passes = torch.cat([t.interpretable[-1] for t in traces]).double()
    layer = torch.cat([torch.full((t.label.shape[1],), k) for k, t in enumerate(traces)])

    def statistic(rows: Tensor) -> Tensor:
        shares = []
        for k in range(len(traces)):
            mine = (layer == k).double()
            units = (mine * passes)[rows].sum(1)
            shares.append((mine * high)[rows].sum(1) / units)  # NaN where there is none
        return shares[-1] - torch.stack(shares[:-1]).mean(0)

    return measured(statistic, len(layer), n_draws=n_draws)


def spreads(trace: Trace, space: Space) -> tuple[Statistic, Statistic, int]:
    """S1 and S2 at all checkpoints for resampled units, and how many units there are.

    Both take rows `[b, n]` of the units that are alive throughout and give `[E, b]`: the mean
    distance of two units in that of two concepts, and the effective number of concepts. Pairs of
    a unit with itself do not count.
    """
    alive = ~trace.dead.any(0)
    u = trace.u[:, alive].float()
    n, c = int(alive.sum()), len(space.concepts)
    apart = (torch.cdist(u, u) / torch.pdist(space.vectors).mean()).double()
    used = torch.zeros(len(u), n, c)
    used.scatter_add_(2, trace.concepts[:, alive].long(), trace.weights[:, alive])

    def weights(rows: Tensor) -> Tensor:
        found = torch.zeros(len(rows), n, dtype=torch.float64)
        return found.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float64))

    def relative(rows: Tensor) -> Tensor:
        w = weights(rows)
        pairs = (w.sum(1) ** 2 - w.square().sum(1)).clamp_min(1)
        return torch.stack([((w @ a) * w).sum(1) / pairs for a in apart])

    def effective(rows: Tensor) -> Tensor:
        p = torch.stack([weights(rows) @ one.double() / n for one in used])
        return torch.special.entr(p).sum(-1).exp()

    return relative, effective, n


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of the columns of two `[n, b]`, NaN where one is constant.

    `b` may be one column `[n]` for all.
    """
    b = b[:, None].expand_as(a) if b.ndim == 1 else b
    return metrics.spearman(a.double(), b.double())
