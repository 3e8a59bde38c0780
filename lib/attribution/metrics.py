"""How well attributions predict: the linear datamodeling score, its ceiling, and older scores.

Document 4, evaluating data attribution; specification section 2.1. An attribution `tau` `[n, T]`
predicts that a network trained on the subset S outputs `tau[S, t].sum()` plus a constant at target
t; the score compares the ranks of prediction and truth over subsets, target by target.

Public names: `lds`, `LDS`, `bootstrap`, `Interval`, `ceiling`, `Ceiling`, `loo_correlation`,
`mislabel_auc`, `reciprocal_rank`, `recall_at`, `spearman`, `pearson`, `predicted`,
`refuse_nan`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.attribution.subsets import membership

CHUNK = 25  # resamples at once in `bootstrap`
ROUND_OFF = 1e-12  # a prediction that varies by less, relative to its terms, is constant


@dataclass(frozen=True)
class LDS:
    """The linear datamodeling score of an attribution."""

    per_target: Tensor  # float64 [T]; 0 where prediction or truth is constant over subsets
    constant: Tensor  # bool [T]: those targets, whose correlation is not defined

    @property
    def mean(self) -> float:
        """The score: the mean over all targets."""
        return self.per_target.mean().item()

    @property
    def n_constant(self) -> int:
        """How many targets have no correlation and count as 0."""
        return int(self.constant.sum())


@dataclass(frozen=True)
class Interval:
    """95% bootstrap intervals of a score, resampling one thing at a time."""

    targets: tuple[float, float]
    subsets: tuple[float, float]


@dataclass(frozen=True)
class Ceiling:
    """What seeds alone allow."""

    single: float  # rank correlation of two networks of the same subset, over subsets
    repeated: float  # reliability of the mean over the R seeds
    lds: float  # the highest score that a perfect prediction is expected to reach


def predicted(tau: Tensor, subsets: Tensor) -> Tensor:
    """Additive predictions `[m, T]`: sums of `tau` `[n, T]` over each subset `[m, k]`."""
    refuse_nan(tau, "tau", "training example")
    if tau.ndim != 2:
        raise ValueError(f"want tau [n, T], got {list(tau.shape)}; one column a target")
    return membership(subsets, len(tau)) @ tau.double().cpu()


def lds(tau: Tensor, subsets: Tensor, outputs: Tensor) -> LDS:
    """Spearman correlation over subsets of predicted and true outputs, for every target.

    Args:
        tau: attribution `[n, T]`; positive where an example raises the output.
        subsets: held-out subsets of equal size, int64 `[m, k]`: none that `tau` was fitted on.
        outputs: their mean outputs over seeds, `[m, T]`.

    Raises:
        ValueError: shapes that disagree, fewer than 3 subsets, NaN, or subsets that are no sets.

    Source: specification section 2.1; average ranks for ties. A constant column has no
    correlation; it is counted and enters the mean as 0, since leaving it out raises the score.
    """
    g, f = _paired(tau, subsets, outputs)
    flat = _flat(tau, g) | (f == f[0]).all(0)
    return LDS(spearman(f, g).masked_fill(flat, 0.0), flat)


def bootstrap(
    tau: Tensor, subsets: Tensor, outputs: Tensor, *, n_resamples: int = 1000, seed: int = 0
) -> Interval:
    """95% intervals of `lds`, over targets and over subsets; arguments as there.

    Source: specification section 2.1, step 5.
    """
    score = lds(tau, subsets, outputs)
    generator = torch.Generator().manual_seed(seed)
    m, n_targets = outputs.shape
    pick = torch.randint(n_targets, (n_resamples, n_targets), generator=generator)
    over_targets = score.per_target[pick].mean(1)
    g, f = _paired(tau, subsets, outputs)
    g = torch.where(_flat(tau, g), g[:1], g)
    ranks_of = [_WeightedRanks(g), _WeightedRanks(f)]
    over_subsets = []
    for part in torch.ones(n_resamples).split(CHUNK):
        pick = torch.randint(m, (len(part), m), generator=generator)
        counts = torch.zeros(len(part), m, dtype=torch.float64)
        counts.scatter_add_(1, pick, torch.ones_like(pick, dtype=torch.float64))
        a, b = (ranks(counts) - (m + 1) / 2 for ranks in ranks_of)  # [B, m, T], mean rank off
        weight = counts[..., None]
        norm = ((weight * a * a).sum(1) * (weight * b * b).sum(1)).sqrt()
        r = (weight * a * b).sum(1) / norm
        over_subsets.append(r.nan_to_num(0.0).mean(1))
    return Interval(_middle(over_targets), _middle(torch.cat(over_subsets)))


def ceiling(outputs: Tensor) -> Ceiling:
    """The score that seeds allow, from outputs `[m, R, T]` of R >= 2 networks a subset.

    Source: specification section 2.1: rho_1 is the mean rank correlation over pairs of seeds and
    over targets, rho_R = R rho_1 / (1 + (R - 1) rho_1), and the ceiling is sqrt(rho_R).
    """
    if outputs.ndim != 3 or outputs.shape[1] < 2 or len(outputs) < 3:
        raise ValueError(
            f"want outputs [m, R, T] with m >= 3 and R >= 2, got {list(outputs.shape)}; a single "
            "network a subset does not show how much seeds change"
        )
    refuse_nan(outputs, "outputs", "subset")
    columns = outputs.double().cpu().unbind(1)
    r = len(columns)
    pairs = [
        spearman(columns[i], columns[j]).nan_to_num(0.0).mean() for i in range(r) for j in range(i)
    ]
    single = max(torch.stack(pairs).mean().item(), 0.0)
    repeated = r * single / (1 + (r - 1) * single)
    return Ceiling(single, repeated, repeated**0.5)


def loo_correlation(tau: Tensor, effects: Tensor) -> Tensor:
    """Pearson correlation `[T]` over training examples of attributed and true single effects.

    Args:
        tau: attributions of the examples that were left out, `[n', T]`.
        effects: output with the example minus output without it, `[n', T]`.

    Source: specification section 2.1. A single removal is below the noise of seeds for networks.
    """
    refuse_nan(tau, "tau", "training example")
    refuse_nan(effects, "effects", "training example")
    if tau.shape != effects.shape or tau.ndim != 2 or len(tau) < 3:
        raise ValueError(
            f"want tau and effects of the same shape [n', T] with n' >= 3, got "
            f"{list(tau.shape)} and {list(effects.shape)}; select the rows that were left out"
        )
    return pearson(tau.double().cpu(), effects.double().cpu())


def mislabel_auc(scores: Tensor, flipped: Tensor) -> float:
    """Chance that a flipped label scores above a right one; ties count half.

    Args:
        scores: `[n]`, high where a label looks wrong.
        flipped: bool `[n]`.
    """
    refuse_nan(scores, "scores", "training example")
    n_flipped = int(flipped.sum())
    if scores.shape != flipped.shape or scores.ndim != 1 or not 0 < n_flipped < len(scores):
        raise ValueError(
            f"want scores [n] and flipped [n] with both kinds of rows, got {list(scores.shape)} "
            f"and {list(flipped.shape)} with {n_flipped} flipped"
        )
    ranks = _ranks(scores.double().cpu()[:, None])[:, 0]
    total = ranks[flipped.bool().cpu()].sum().item() - n_flipped * (n_flipped + 1) / 2
    return total / (n_flipped * (len(scores) - n_flipped))


def reciprocal_rank(scores: Tensor, relevant: Tensor) -> Tensor:
    """1 / rank `[Q]` of the first relevant row of each query; its mean is the MRR.

    Args:
        scores: `[n, Q]`; among equal scores a relevant row counts as last, so that a constant
            score earns nothing.
        relevant: bool `[n, Q]`, at least one row a query.
    """
    best, order = _checked_retrieval(scores, relevant)
    wrong = order.masked_fill(relevant, float("-inf"))
    return 1.0 / (1 + (wrong >= best).sum(0).double())


def recall_at(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Share `[Q]` of the relevant rows among the k highest scores; ties as in `reciprocal_rank`."""
    _, order = _checked_retrieval(scores, relevant)
    if not 1 <= k <= len(order):
        raise ValueError(f"want k in 1..{len(order)}, got {k}")
    # relevant rows last among equals: sort by relevance first, then stably by score
    first = relevant.long().argsort(dim=0, stable=True)
    second = order.gather(0, first).argsort(dim=0, descending=True, stable=True)
    top = first.gather(0, second)[:k]
    return relevant.gather(0, top).sum(0).double() / relevant.sum(0)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation `[T]` of the columns of two `[m, T]`, average ranks; NaN if constant."""
    return pearson(_ranks(a), _ranks(b))


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation `[T]` of the columns of two `[m, T]`; NaN where one is constant."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / (a.square().sum(0) * b.square().sum(0)).sqrt()


class _WeightedRanks:
    """Average ranks of the rows of `[m, T]` when row j is present `counts[j]` times."""

    def __init__(self, values: Tensor) -> None:
        m = len(values)
        ordered, self.order = values.sort(0)
        new = torch.ones_like(ordered, dtype=torch.bool)
        new[1:] = ordered[1:] != ordered[:-1]
        place = torch.arange(m)[:, None].expand_as(ordered)
        # of each place in the order: the first of its group of ties, and the first after it
        first = torch.where(new, place, 0).cummax(0).values
        after = torch.where(new, place, m).roll(-1, 0)
        after[-1] = m
        after = after.flip(0).cummin(0).values.flip(0)
        back = self.order.argsort(0)
        self.first, self.after = first.gather(0, back), after.gather(0, back)

    def __call__(self, counts: Tensor) -> Tensor:
        """Ranks `[B, m, T]` from counts `[B, m]`."""
        before = counts[:, self.order].cumsum(1)  # [B, m, T]
        before = torch.cat([torch.zeros_like(before[:, :1]), before], 1)
        size = (len(counts), *self.first.shape)
        below = before.gather(1, self.first.expand(size))
        return (below + before.gather(1, self.after.expand(size)) + 1) / 2


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1 of each column of `[m, T]`, ties sharing their average."""
    return _WeightedRanks(values)(torch.ones(1, len(values), dtype=torch.float64))[0]


def _paired(tau: Tensor, subsets: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Predictions and outputs, float64 `[m, T]`, of shapes that agree."""
    g = predicted(tau, subsets)
    if outputs.shape != g.shape or len(g) < 3:
        raise ValueError(
            f"want outputs [m, T] = {list(g.shape)} of m >= 3 subsets, got {list(outputs.shape)}; "
            "average over seeds first and use the targets that tau has"
        )
    refuse_nan(outputs, "outputs", "subset")
    return g, outputs.double().cpu()


def _flat(tau: Tensor, g: Tensor) -> Tensor:
    """Columns `[T]` of predictions that vary by no more than round-off."""
    largest = tau.double().cpu().abs().amax(0) * len(tau)
    return g.amax(0) - g.amin(0) <= ROUND_OFF * largest


def _checked_retrieval(scores: Tensor, relevant: Tensor) -> tuple[Tensor, Tensor]:
    """The highest relevant score `[Q]`, and all scores in float64."""
    refuse_nan(scores, "scores", "training example")
    if scores.shape != relevant.shape or scores.ndim != 2 or relevant.dtype != torch.bool:
        raise ValueError(
            f"want scores and bool relevant [n, Q], got {list(scores.shape)} and "
            f"{relevant.dtype} {list(relevant.shape)}"
        )
    without = ~relevant.any(0)
    if without.any():
        raise ValueError(f"query {int(without.nonzero()[0])} has no relevant row; leave it out")
    order = scores.double()
    return order.masked_fill(~relevant, float("-inf")).amax(0), order


def refuse_nan(values: Tensor, what: str, row: str) -> None:
    """Raise a ValueError that names the first row of `values` `[n, ...]` with NaN or infinity."""
    bad = ~torch.isfinite(values).flatten(1).all(1) if values.ndim > 1 else ~values.isfinite()
    if bad.any():
        raise ValueError(
            f"{what} holds NaN or infinity, first for {row} {int(bad.nonzero()[0])}; find out "
            "why before scoring"
        )


def _middle(values: Tensor) -> tuple[float, float]:
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high
