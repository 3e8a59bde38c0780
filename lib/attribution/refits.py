"""Retraining convex models on changed data: the truth that influence approximates.

Specification 1.2: every objective keeps the full data's 1/n and lam, and every refit starts at the
full optimum. Public names: `leave_one_out`, `leave_out`, `group_influence`, `group_newton`,
`relabelled`, `replaced`, `outputs`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lib.attribution.convex import (
    LOGISTIC,
    Fit,
    Output,
    cholesky,
    design,
    hessian_of,
    minimise,
    own_block,
    solved_columns,
)

_BLOCK = 2**22  # numbers in the largest temporary of a block of refits


def leave_one_out(fit: Fit, rows: Tensor | None = None, *, tol: float = 1e-12) -> Tensor:
    """Retrain without each of `rows` (default: all), to the optimum.

    Newton steps from theta with a fixed matrix, the Hessian at theta without the example; they
    shrink the gradient of the true objective a hundredfold each, and one batch of them costs two
    matrix products. What has not converged after 50 is given to plain Newton.

    Args:
        tol: largest coordinate of the gradient at the end.

    Returns:
        parameters `[len(rows), C, D]`.
    """
    n, (c, d) = len(fit.a), fit.theta.shape
    rows = torch.arange(n, device=fit.a.device) if rows is None else _checked(fit, rows)
    found = []
    for block in rows.split(max(1, _BLOCK // max(n * c, c * c * d))):
        theta = fit.theta.repeat(len(block), 1, 1)
        columns, weight = solved_columns(fit, block), _weights(fit, block)
        spot = torch.arange(len(block), device=block.device)
        for _ in range(50):
            residual = fit.loss.residual(fit.a @ theta.mT, fit.y)  # [b, n, C]
            residual[spot, block] = 0
            gradient = residual.mT @ fit.a / n + fit.lam * theta
            active = gradient.abs().amax((1, 2)) > tol
            if not active.any():
                break
            step = fit.solve(gradient)
            # Woodbury: the example's own curvature leaves the Hessian
            own = (weight @ (step @ fit.a[block][..., None]))[..., 0]  # [b, C]
            step = step + torch.einsum("bkcd,bk->bcd", columns, own) / n
            theta = theta - torch.where(active[:, None, None], step, 0.0)
        for k in active.nonzero()[:, 0].tolist():
            keep = fit.a.new_ones(n)
            keep[block[k]] = 0
            theta[k] = minimise(fit.loss, fit.a, fit.y, fit.lam, fit.theta, keep)
        found.append(theta)
    return torch.cat(found)


def leave_out(fit: Fit, groups: Sequence[Tensor]) -> Tensor:
    """Retrain without each group of rows, by Newton's method from theta: `[len(groups), C, D]`."""
    found = []
    for group in groups:
        keep = fit.a.new_ones(len(fit.a))
        keep[_checked(fit, group)] = 0
        found.append(minimise(fit.loss, fit.a, fit.y, fit.lam, fit.theta, keep))
    return torch.stack(found)


def group_influence(tau: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """What each group adds to each output, to first order: sums of `tau [n, T]`, `[G, T]`."""
    return torch.stack([tau[group].sum(0) for group in groups])


def group_newton(fit: Fit, groups: Sequence[Tensor]) -> Tensor:
    """Parameters after one Newton step without each group, `[G, C, D]` (specification 1.1)."""
    n, found = len(fit.a), []
    for group in groups:
        keep = fit.a.new_ones(n)
        keep[_checked(fit, group)] = 0
        factor = cholesky(hessian_of(fit.a, keep[:, None, None] * fit.curvature, fit.lam))
        pull = fit.residual[group].mT @ fit.a[group] / n
        step = torch.cholesky_solve(pull.reshape(-1, 1), factor)
        found.append(fit.theta + step.reshape(fit.theta.shape))
    return torch.stack(found)


def relabelled(fit: Fit, labels: Tensor, *, tol: float = 1e-8) -> Tensor:
    """Retrain binary logistic regression with other labels, many sets of them at once.

    Args:
        labels: in {0, 1}, `[m, n]`, one set of labels a row.
        tol: largest coordinate of the gradient at the end.

    Returns:
        parameters `[m, 1, D]`; how they are reached: see `_settle`.
    """
    n = len(fit.a)
    if fit.loss is not LOGISTIC:
        raise ValueError("want a fit of `fit_logistic`; other labels are for two classes only")
    if labels.ndim != 2 or labels.shape[1] != n or not ((labels == 0) | (labels == 1)).all():
        raise ValueError(f"want labels [m, {n}] in {{0, 1}}, got {list(labels.shape)}")
    labels = labels.to(fit.y)

    def gradient(theta: Tensor, k: Tensor) -> Tensor:
        return _residual(theta @ fit.a.mT, labels[k]) @ fit.a / n + fit.lam * theta

    def step(slope: Tensor, theta: Tensor, k: Tensor) -> Tensor:
        return fit.solve(slope[:, None])[:, 0]

    start = fit.theta[0].expand(len(labels), -1)
    return _settle(fit, start, gradient, step, lambda k: (fit.a, labels[k]), tol)


def replaced(
    fit: Fit, rows: Tensor, inputs: Tensor, start: Tensor | None = None, *, tol: float = 1e-8
) -> Tensor:
    """Retrain binary logistic regression with some inputs replaced, many times at once.

    Args:
        rows: the K rows that change in each of m retrainings, `[m, K]`, none twice in a row.
        inputs: what stands there instead, the bias column included, `[m, K, D]`; labels stay.
        start: parameters `[m, 1, D]`; default theta.
        tol: largest coordinate of the gradient at the end.

    Returns:
        parameters `[m, 1, D]`; how they are reached: see `_settle`.
    """
    n = len(fit.a)
    if fit.loss is not LOGISTIC:
        raise ValueError("want a fit of `fit_logistic`; inputs are replaced for two classes only")
    if inputs.shape != (*_checked(fit, rows.flatten()).view_as(rows).shape, fit.a.shape[1]):
        raise ValueError(
            f"want rows [m, K] and inputs [m, K, {fit.a.shape[1]}], got {list(rows.shape)} and "
            f"{list(inputs.shape)}"
        )
    labels = fit.y[rows]
    columns = fit.solve(inputs.reshape(-1, 1, inputs.shape[-1])).view_as(inputs)  # H^-1 a
    overlap = inputs @ columns.mT  # [m, K, K]

    def gradient(theta: Tensor, k: Tensor) -> Tensor:
        residual = _residual(theta @ fit.a.mT, fit.y).scatter(1, rows[k], 0.0)
        own = _residual((inputs[k] @ theta[..., None])[..., 0], labels[k])
        return (residual @ fit.a + (own[:, None] @ inputs[k])[:, 0]) / n + fit.lam * theta

    def step(slope: Tensor, theta: Tensor, k: Tensor) -> Tensor:
        # Woodbury: the curvature of what is new joins the Hessian; that of the old inputs stays
        # in it, which only makes steps shorter
        p = torch.sigmoid((inputs[k] @ theta[..., None])[..., 0])
        inner = overlap[k] + torch.diag_embed(n / (p * (1 - p)).clamp_min(1e-12))
        plain = fit.solve(slope[:, None])[:, 0]
        along = (inputs[k] @ plain[..., None])[..., 0]
        return plain - (torch.linalg.solve(inner, along)[:, None] @ columns[k])[:, 0]

    def data(k: int) -> tuple[Tensor, Tensor]:
        return fit.a.index_copy(0, rows[k], inputs[k]), fit.y

    theta = fit.theta.expand(len(rows), -1, -1) if start is None else start
    return _settle(fit, theta[:, 0], gradient, step, data, tol)


def outputs(theta: Tensor, x: Tensor, output: Output) -> Tensor:
    """`output` of each of several models, `theta [b, C, D]`, at targets `x [T, d]`: `[b, T]`."""
    a = design(x)
    return torch.stack([output(a @ one.mT) for one in theta])


def _residual(out: Tensor, y: Tensor) -> Tensor:
    """Slope of the logistic loss in `out [m, n]`, for labels `[n]` or `[m, n]`."""
    sign = 2 * y - 1
    return -sign * torch.sigmoid(-sign * out)


def _settle(
    fit: Fit,
    start: Tensor,
    gradient: Callable[[Tensor, Tensor], Tensor],
    step: Callable[[Tensor, Tensor, Tensor], Tensor],
    data: Callable[[int], tuple[Tensor, Tensor]],
    tol: float,
    max_steps: int = 200,
) -> Tensor:
    """Minimise many objectives that resemble that of `fit`, from `start [m, D]` to `[m, 1, D]`.

    Steps with the one inverse Hessian that is at hand: more of them than Newton would need, each a
    hundredth of the work. Where a step makes the gradient larger (in the norm of that inverse), the
    next ones are half as long. What has not converged after `max_steps` is given to Newton.

    Args:
        gradient: of objectives k at `[b, D]`; step: downhill, from gradients, place and k.
        data: inputs and labels of objective k, for Newton.
    """
    theta, live = start.clone(), torch.arange(len(start), device=start.device)
    length, last = theta.new_ones(len(theta)), theta.new_full((len(theta),), torch.inf)
    for _ in range(max_steps):
        slope = gradient(theta[live], live)
        active = ~(slope.abs().amax(1) <= tol)  # NaN counts as active
        live, slope = live[active], slope[active]
        if len(live) == 0:
            return theta[:, None]
        move = step(slope, theta[live], live)
        size = (slope * move).sum(1)
        length[live] = torch.where(size < last[live], length[live], length[live] / 2)
        last[live] = size
        theta[live] = theta[live] - length[live, None] * move
    for k in live.tolist():
        a, y = data(k)
        theta[k] = minimise(fit.loss, a, y, fit.lam, fit.theta, a.new_ones(len(a)), tol)[0]
    return theta[:, None]


def _checked(fit: Fit, rows: Tensor) -> Tensor:
    n = len(fit.a)
    if rows.is_floating_point() or (len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < n):
        raise ValueError(f"want integer rows in 0 .. {n - 1}, got {rows.tolist()[:5]}")
    return rows


def _weights(fit: Fit, rows: Tensor) -> Tensor:
    """`(I - W_i K_i / n)^-1 W_i`, `[b, C, C]`, with `K_i = A_i' H^-1 A_i`."""
    w = fit.curvature[rows]
    gain = w @ own_block(fit, rows) / len(fit.a)
    unit = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
    return torch.linalg.solve(unit - gain, w)
