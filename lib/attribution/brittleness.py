"""Brittleness: how few training rows must go before a prediction turns wrong.

Document 4, applications of datamodels; specification section 3.4. For a target, remove the k rows
that a method ranks highest, retrain, and look at the target's mean margin. The smallest k that
makes it negative bounds the target's data support from above: another set might be smaller.

Public names: `margins_without`, `is_flipped`, `data_support`, `paired_difference`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib import bootstrap
from lib.attribution.metrics import refuse_nan
from lib.attribution.truth import Setting, subset_outputs
from lib.training.loop import Progress


def margins_without(
    setting: Setting,
    scores: Tensor,
    targets: Sequence[int],
    ks: Sequence[int],
    *,
    repeats: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Margins of targets after training without their k highest-scored rows.

    Args:
        setting: what is trained.
        scores: a column for each target, `[n, Q]`; high for rows whose removal should hurt.
        targets: indices of the Q targets in `setting.targets`.
        ks: numbers of rows to remove, rising.
        repeats: networks trained on what is left; the same seeds for every method.
        progress: wraps the range of stacks, once for each k.

    Returns:
        float32 `[K, Q, R]`.

    Raises:
        ValueError: shapes that disagree, NaN, or a k that leaves nothing.
    """
    n = len(setting.train)
    if scores.shape != (n, len(targets)):
        raise ValueError(
            f"want scores [n, Q] = [{n}, {len(targets)}], got {list(scores.shape)}; one column a "
            "target"
        )
    if not ks or list(ks) != sorted(set(ks)) or ks[0] < 1 or ks[-1] >= n:
        raise ValueError(f"want rising numbers of rows to remove in 1..{n - 1}, got {list(ks)}")
    refuse_nan(scores, "scores", "training row")
    order = scores.argsort(dim=0, descending=True, stable=True)
    found = []
    for k in ks:
        kept = order[k:].T.sort(1).values
        outputs = subset_outputs(setting, kept, repeats=repeats, seed=seed, progress=progress)
        found.append(outputs[torch.arange(len(targets)), :, torch.tensor(list(targets))])
    return torch.stack(found)


def is_flipped(margins: Tensor) -> Tensor:
    """Whether the mean margin over networks is negative: `[..., R]` -> bool `[...]`."""
    return margins.mean(-1) < 0


def data_support(margins: Tensor, before: Tensor, ks: Sequence[int]) -> Tensor:
    """Rows to remove until the mean margin is zero, `[Q]`; infinite where no k was enough.

    Args:
        margins: as `margins_without` gives them, `[K, Q, R]`.
        before: mean margins without removal, positive, `[Q]`.
        ks: the numbers of rows.

    Source: specification section 3.4: linear between the last k whose mean margin is not negative
    and the first whose is.
    """
    if margins.shape[:2] != (len(ks), len(before)) or not (before > 0).all():
        raise ValueError(
            f"want margins [{len(ks)}, {len(before)}, R] of targets that are right before, got "
            f"{list(margins.shape)} and smallest margin {before.min().item():g}"
        )
    means = torch.cat([before[None].double(), margins.double().mean(-1)])
    steps = torch.tensor([0, *ks], dtype=torch.float64)
    wrong = means < 0
    first = wrong.long().argmax(0).clamp(min=1)  # of targets that flip
    a = means.gather(0, first[None] - 1)[0]
    b = means.gather(0, first[None])[0]
    crossing = steps[first - 1] + (steps[first] - steps[first - 1]) * a / (a - b)
    return crossing.where(wrong.any(0), torch.inf)


def paired_difference(
    a: Tensor, b: Tensor, *, n_resamples: int = 10_000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean of `a - b` over targets `[Q]` and its 95% interval, resampling targets."""
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"want two [Q] of the same targets, got {list(a.shape)}, {list(b.shape)}")
    difference = a.double() - b.double()
    low, high = bootstrap.interval(
        lambda rows: difference[rows].mean(1),
        len(a),
        generator=torch.Generator().manual_seed(seed),
        n_draws=n_resamples,
    ).tolist()
    return difference.mean().item(), low, high
