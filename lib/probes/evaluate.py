"""How good a probe is: accuracy, ranking, calibration, and intervals by bootstrap.

Documents 1 and 5. Every measure takes scores ``[..., n]`` (``probe.score(z)``) and labels or
targets ``[n]`` or of the scores' shape, and returns one number for each leading index, in float64.

In reading order: ``accuracy``, ``detection_score``, ``roc_auc``, ``r2``, ``reliability_curve``,
``ece``, ``bootstrap_interval``, ``bootstrap_r2``, ``score_agreement``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib import bootstrap


@dataclass(frozen=True)
class Reliability:
    """Predicted probability against observed frequency, in bins of equal width over [0, 1]."""

    predicted: Tensor  # [..., bins] mean predicted probability; NaN in an empty bin
    observed: Tensor  # [..., bins] share of positives; NaN in an empty bin
    count: Tensor  # [..., bins] examples


def accuracy(scores: Tensor, y: Tensor) -> Tensor:
    """Share of examples on the right side of 0, ``[...]``; labels in {0, 1}."""
    scores, label = _pair(scores, y, labels=True)
    return ((scores > 0) == (label == 1)).double().mean(-1)


def detection_score(scores: Tensor, y: Tensor) -> Tensor:
    """``S = 2 accuracy - 1``, ``[...]``: 0 at chance on balanced data, 1 perfect (document 5)."""
    return 2 * accuracy(scores, y) - 1


def roc_auc(scores: Tensor, y: Tensor) -> Tensor:
    """Probability that a positive outscores a negative, ties counting one half, ``[...]``.

    Raises:
        ValueError: shapes disagree, NaN, labels outside {0, 1}, or a class is absent.
    """
    scores, label = _pair(scores, y, labels=True)
    n_positive = label.sum(-1)
    n_negative = label.shape[-1] - n_positive
    if (n_positive == 0).any() or (n_negative == 0).any():
        raise ValueError("y holds one class only; the ROC curve needs both")
    ordered = scores.sort(dim=-1).values.contiguous()
    below = torch.searchsorted(ordered, scores.contiguous())
    upto = torch.searchsorted(ordered, scores.contiguous(), right=True)
    ranks = (below + upto + 1).double() / 2  # from 1, ties share their mean
    above = (ranks * label).sum(-1) - n_positive * (n_positive + 1) / 2
    return above / (n_positive * n_negative)


def r2(predictions: Tensor, targets: Tensor) -> Tensor:
    """Share of the targets' variance explained, ``[...]``; 0 for their mean, negative if worse.

    Raises:
        ValueError: shapes disagree, NaN, or the targets are constant.
    """
    predictions, target = _pair(predictions, targets, labels=False)
    if (target == target[..., :1]).all(-1).any():
        raise ValueError("the targets are constant; R2 is undefined")
    residual = (target - predictions).square().sum(-1)
    return 1 - residual / (target - target.mean(-1, keepdim=True)).square().sum(-1)


def reliability_curve(scores: Tensor, y: Tensor, *, bins: int = 15) -> Reliability:
    """Compare predicted probabilities with frequencies, bin by bin.

    Args:
        scores: logits, ``[..., n]``; the probability is their sigmoid. The scores of a ridge probe
            are no logits and have no calibration in this sense.
        y: labels in {0, 1}, ``[n]`` or ``[..., n]``.
        bins: number of bins of equal width.

    Returns:
        The curve of the positive class.

    Raises:
        ValueError: shapes disagree, NaN, labels outside {0, 1}, or ``bins`` below 1.
    """
    if bins < 1:
        raise ValueError(f"want at least 1 bin, got {bins}")
    scores, label = _pair(scores, y, labels=True)
    probability = torch.sigmoid(scores)
    where = (probability * bins).long().clamp_max(bins - 1)
    empty = torch.zeros(*scores.shape[:-1], bins, dtype=torch.float64, device=scores.device)
    count = empty.scatter_add(-1, where, torch.ones_like(probability))
    predicted = empty.scatter_add(-1, where, probability) / count
    observed = empty.scatter_add(-1, where, label) / count
    return Reliability(predicted, observed, count)


def ece(scores: Tensor, y: Tensor, *, bins: int = 15) -> Tensor:
    """Expected calibration error of the positive class, ``[...]``, in [0, 1].

    Mean over examples of |predicted - observed| of their bin (see ``reliability_curve``, which
    also says what is raised). Source: document 5's protocol, 15 bins.
    """
    curve = reliability_curve(scores, y, bins=bins)
    gap = (curve.predicted - curve.observed).abs().nan_to_num()
    return (gap * curve.count).sum(-1) / curve.count.sum(-1)


def bootstrap_interval(
    values: Tensor,
    *,
    generator: torch.Generator,
    groups: Tensor | None = None,
    level: float = 0.95,
    n_draws: int = 2000,
) -> tuple[Tensor, Tensor]:
    """Percentile interval of a mean over examples.

    For the accuracy give ``(scores > 0) == y``; for ``S`` the same times 2 minus 1.

    Args:
        values: one number an example, ``[..., n]``; all leading indices share the resamples.
        generator: source of the resamples.
        groups: group id of each example, ``[n]``; whole groups are then drawn, which is right
            when the examples of a group resemble one another.
        level: coverage aimed at.
        n_draws: number of resamples.

    Returns:
        Lower and upper end, each ``[...]``, float64.

    Raises:
        ValueError: NaN, shapes disagree, fewer than 2 examples or groups, ``level`` outside
            (0, 1) or ``n_draws`` below 1.
    """
    value = values.double()
    sums = torch.stack([value, torch.ones_like(value)])
    return _interval(sums, lambda s: s[0] / s[1], generator, groups, level, n_draws)


def bootstrap_r2(
    predictions: Tensor,
    targets: Tensor,
    *,
    generator: torch.Generator,
    groups: Tensor | None = None,
    level: float = 0.95,
    n_draws: int = 2000,
) -> tuple[Tensor, Tensor]:
    """Percentile interval of R2; arguments, result and errors as in ``bootstrap_interval``."""
    predictions, target = _pair(predictions, targets, labels=False)
    target = target - target.mean(-1, keepdim=True)  # R2 is unchanged, the sums keep their digits
    residual = (_pair(predictions, targets, labels=False)[1] - predictions).square()
    sums = torch.stack([residual, target.square(), target, torch.ones_like(target)])

    def statistic(s: Tensor) -> Tensor:
        return 1 - s[0] / (s[1] - s[2].square() / s[3])

    return _interval(sums, statistic, generator, groups, level, n_draws)


def score_agreement(scores: Tensor) -> Tensor:
    """Correlate the concept scores of different models on the same inputs.

    Directions of different seeds have no common basis, so their cosine says nothing; scores of the
    same inputs do compare.

    Args:
        scores: ``[m, n]``, one row a model, the same inputs in the same order.

    Returns:
        Pearson correlations, ``[m, m]``.

    Raises:
        ValueError: not ``[m, n]`` with n >= 2, NaN, or a model's scores are constant.

    Source: document 1, consistency across runs.
    """
    if scores.ndim != 2 or scores.shape[1] < 2 or not torch.isfinite(scores).all():
        raise ValueError(f"want finite scores [m, n] with n >= 2, got {tuple(scores.shape)}")
    centred = scores.double() - scores.double().mean(-1, keepdim=True)
    norm = centred.norm(dim=-1, keepdim=True)
    if (scores == scores[:, :1]).all(-1).any():
        raise ValueError("a model scores all inputs alike; it has no correlation")
    unit = centred / norm
    return unit @ unit.mT


def _pair(scores: Tensor, y: Tensor, *, labels: bool) -> tuple[Tensor, Tensor]:
    """Check scores and labels once; both float64 and of the same shape."""
    fits = scores.ndim >= 1 and scores.numel() > 0 and y.shape in (scores.shape, scores.shape[-1:])
    if not fits:
        raise ValueError(
            f"want scores [..., n] and y [n] or of the same shape, "
            f"got {tuple(scores.shape)} and {tuple(y.shape)}"
        )
    score, target = scores.double(), y.to(device=scores.device, dtype=torch.float64)
    if not torch.isfinite(score).all() or not torch.isfinite(target).all():
        raise ValueError("scores or y hold NaN or infinity; see which input made them")
    if labels and not ((target == 0) | (target == 1)).all():
        raise ValueError("want labels in {0, 1}; recode them")
    return score, target.expand_as(score)


def _interval(
    sums: Tensor,
    statistic: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    groups: Tensor | None,
    level: float,
    n_draws: int,
) -> tuple[Tensor, Tensor]:
    """Percentile interval of a function of sums over examples, ``sums [q, ..., n]``."""
    n = sums.shape[-1]
    if not torch.isfinite(sums).all():
        raise ValueError("values hold NaN or infinity; drop those examples")
    if not 0 < level < 1 or n_draws < 1:
        raise ValueError(f"want level in (0, 1) and n_draws >= 1, got {level} and {n_draws}")
    if groups is not None:
        if groups.shape != (n,):
            raise ValueError(f"want groups [{n}], one id an example, got {tuple(groups.shape)}")
        names, member = groups.to(sums.device).unique(return_inverse=True)
        empty = torch.zeros(*sums.shape[:-1], len(names), dtype=sums.dtype, device=sums.device)
        sums = empty.index_add(-1, member, sums)
    units = sums.shape[-1]
    if units < 2:
        raise ValueError(f"want at least 2 examples or groups to resample, got {units}")

    def resampled(drawn: Tensor) -> Tensor:
        counts = torch.zeros(drawn.shape, dtype=sums.dtype, device=sums.device)
        counts.scatter_add_(1, drawn.to(sums.device), torch.ones_like(counts))
        return statistic(sums @ counts.T)

    low, high = bootstrap.interval(
        resampled, units, generator=generator, n_draws=n_draws, level=level
    )
    return low, high
