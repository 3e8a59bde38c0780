"""The L1-penalised least squares of many targets at once, for `datamodels`.

Each column w of the weights minimises `w'Gw/2 - c'w + threshold |w|_1` with one Gram matrix G for
all: accelerated proximal steps find which rows have a weight, a linear system what it is.

Public names: `minimise`, `on_support`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHECK_EVERY = 10  # steps between looks at who has converged


def minimise(
    times: Callable[[Tensor], Tensor],
    cross: Tensor,
    threshold: Tensor,
    start: Tensor,
    step: float,
    limit: Tensor,
    n_steps: int,
) -> tuple[Tensor, Tensor, int]:
    """Minimise `w'Gw/2 - c'w + threshold |w|_1` for each column, by accelerated proximal steps.

    The momentum of a column starts anew where it points uphill; columns leave when they meet the
    optimality conditions to `limit`.

    Args:
        times: `w -> G w`, cross: `[n, T]`, threshold: `[T]`, start: `[n, T]`.
        step: at most 1 over the largest eigenvalue of G.

    Returns:
        Weights `[n, T]`, which columns met the conditions, and the steps of all columns together.
    """
    result, done = start.clone(), torch.zeros_like(threshold, dtype=torch.bool)
    columns = torch.arange(cross.shape[1])
    w, point = start, start
    momentum, spent = torch.ones_like(threshold), 0
    for k in range(1, n_steps + 1):
        spent += len(columns)
        moved = point - step * (times(point) - cross)
        new = moved - moved.clamp(-step * threshold, step * threshold)
        away = point - new
        change = new - w
        uphill = (away * change).sum(0) > 0
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        speed = torch.where(uphill, 0.0, (momentum - 1) / following)
        momentum = torch.where(uphill, 1.0, following)
        w, point = new, new + speed * change
        if k % CHECK_EVERY == 0:
            going = away.abs().amax(0) > step * limit
            if not going.all():
                result[:, columns[~going]] = w[:, ~going]
                done[columns[~going]] = True
                columns, limit, threshold = columns[going], limit[going], threshold[going]
                cross, w, point = cross[:, going], w[:, going], point[:, going]
                momentum = momentum[going]
                if not len(columns):
                    break
    result[:, columns] = w
    return result, done, spent


def on_support(
    gram: Tensor, cross: Tensor, threshold: Tensor, near: Tensor, limit: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve for the rows that have a weight in `near`, signs as there.

    Returns:
        Weights `[n, T]`, and in which columns they meet the conditions of the whole problem.
    """
    exact, signs = torch.zeros_like(near), near.sign()
    for t in range(near.shape[1]):
        rows = near[:, t].nonzero()[:, 0]
        factor, failed = torch.linalg.cholesky_ex(gram[rows][:, rows])
        if len(rows) and not failed:
            side = cross[rows, t] - threshold[t] * signs[rows, t]
            exact[rows, t] = torch.cholesky_solve(side[:, None], factor)[:, 0]
    slope = cross - gram @ exact
    off = torch.where(signs == 0, slope.abs() - threshold, (slope - threshold * signs).abs())
    return exact, (off <= limit).all(0) & (exact.sign() == signs).all(0)
