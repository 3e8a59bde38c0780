"""Exact Shapley values of a few features: every coalition is evaluated.

Document 4, recap: SHAP methods based on cooperative game theory. Features are players, a coalition
keeps its features and sets the others to the baseline, its value is the model's output. With d
features there are 2^d coalitions, all in one batch, so that d is at most `MAX_FEATURES`; features
of an image are groups of pixels (`feature_methods.patches`). The values judge the estimates of
`feature_methods`; nothing here samples.

Public names: `MAX_FEATURES`, `coalitions`, `shapley`, `exact_shapley`, `group_sums`.
"""

from __future__ import annotations

from math import factorial

import torch
from torch import Tensor, nn

from lib.attribution.feature_methods import outputs

MAX_FEATURES = 10


def coalitions(d: int) -> Tensor:
    """All subsets of d features, bool `[2^d, d]`; row r holds feature i if bit i of r is set.

    Raises:
        ValueError: more than `MAX_FEATURES` features, or none.
    """
    if not 1 <= d <= MAX_FEATURES:
        raise ValueError(
            f"exact Shapley values want 1 to {MAX_FEATURES} features, got {d}, which have 2^{d} "
            "coalitions; group features, or estimate with KernelSHAP"
        )
    return (torch.arange(2**d)[:, None] >> torch.arange(d)) & 1 == 1


def shapley(values: Tensor) -> Tensor:
    """Shapley values of a game given by the value of every coalition.

    Args:
        values: `[..., 2^d]` in the order of `coalitions(d)`.

    Returns:
        `[..., d]` float64: the mean over orders of the features of what a feature adds to those
        before it. They sum to `values[..., -1] - values[..., 0]`.

    Raises:
        ValueError: a number of values that is not a power of two, too many features, or NaN.
    """
    d = values.shape[-1].bit_length() - 1
    if values.shape[-1] != 2**d:
        raise ValueError(f"want 2^d values, one a coalition, got {values.shape[-1]}")
    if not torch.isfinite(values).all():
        raise ValueError("a coalition has the value NaN or infinity; the game is not defined")
    member = coalitions(d)
    size = member.sum(1)
    # a coalition of size s before the feature comes: s! (d - s - 1)! of the d! orders
    weight = torch.tensor(
        [factorial(s) * factorial(d - s - 1) / factorial(d) for s in range(d)] + [0.0],
        dtype=torch.float64,
    )
    with_it, without = weight[(size - 1).clamp(min=0)], weight[size]
    signed = torch.where(member, with_it[:, None], -without[:, None])  # [2^d, d]
    return values.double().cpu() @ signed


def exact_shapley(
    model: nn.Module,
    x: Tensor,
    target: Tensor | int,
    *,
    baseline: Tensor | float,
    groups: Tensor | None = None,
    chunk: int = 512,
) -> Tensor:
    """Shapley values of the groups of features of each row for one output of a model.

    Args:
        model, x, target, baseline: as for `feature_methods.attribute`.
        groups: int64, of the shape of a row, numbered from 0; default: each feature by itself.
        chunk: rows a forward pass.

    Returns:
        `[n, d]` float64, d the number of groups.

    Raises:
        ValueError: more than `MAX_FEATURES` groups.
    """
    own = torch.arange(x[0].numel()).reshape(x.shape[1:]) if groups is None else groups
    member = coalitions(int(own.max()) + 1).to(x.device)
    kept = member[:, own.to(x.device)]  # [2^d, ...]
    base = torch.as_tensor(baseline, dtype=x.dtype, device=x.device)
    wanted = torch.as_tensor(target, device=x.device).expand(len(x))
    rows = []
    for row, label in zip(x, wanted, strict=True):
        rows.append(outputs(model, torch.where(kept, row, base), label, chunk=chunk))
    return shapley(torch.stack(rows))


def group_sums(maps: Tensor, groups: Tensor) -> Tensor:
    """Sum of each row's map over each group: `[n, ...]` to `[n, d]`."""
    flat = maps.flatten(1)
    ids = groups.flatten().to(maps.device).expand(len(flat), -1)
    sums = torch.zeros(len(flat), int(groups.max()) + 1, dtype=flat.dtype, device=flat.device)
    return sums.scatter_add_(1, ids, flat)
