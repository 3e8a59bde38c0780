"""Newton's method for a batch of L2 logistic problems, and the products that it needs.

``minimise`` is the solver behind ``linear.fit_logistic``. Throughout, ``x`` is ``[b, n, d]`` where
``b`` is 1 (all fits read the same rows) or ``m`` (one set of rows a fit), so that many concepts
or shuffles of one model need no copy of its activations.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

_HALVINGS = 40


def minimise(
    x: Tensor,
    y: Tensor,
    cost: Tensor,
    start: tuple[Tensor, Tensor | None],
    max_steps: int,
    tol: float,
    chunk: int,
) -> tuple[Tensor, Tensor, int, Tensor]:
    """Minimise ``0.5 |w|^2 + sum cost * logistic loss`` for ``x [b, n, d]`` and ``y [m, n]``."""
    sign = 2 * y - 1
    weight, bias = start
    if bias is None:  # the optimum for w = 0: the log odds of the two classes
        bias = ((cost * y).sum(-1) / (cost * (1 - y)).sum(-1)).log()
    logit = push(x, weight) + bias[:, None]
    done = torch.zeros_like(bias, dtype=torch.bool)
    stuck = done.clone()
    steps = 0
    while steps < max_steps and not (done | stuck).all():
        # sigmoid of the wrong side, not p - y: separable data keep their digits.
        slope = -cost * sign * torch.sigmoid(-sign * logit)
        curve = cost * torch.sigmoid(logit) * torch.sigmoid(-logit)
        total = curve.sum(-1).clamp_min(torch.finfo(curve.dtype).tiny)
        grad_w, grad_b = weight + pull(x, slope), slope.sum(-1)
        # Eliminating the bias centres x at its curvature-weighted mean; what is left is >= I.
        centre = pull(x, curve) / total[:, None]
        hessian = _hessian(x, centre, curve, chunk)
        step_w = -solve(hessian, grad_w - grad_b[:, None] * centre)
        step_b = -grad_b / total - (centre * step_w).sum(-1)
        decrement = -((grad_w * step_w).sum(-1) + grad_b * step_b)
        step_logit = push(x, step_w) + step_b[:, None]

        def loss(t: Tensor) -> Tensor:
            moved = logit + t[:, None] * step_logit  # noqa: B023 (called within this step only)
            data = -(cost * logsigmoid(sign * moved)).sum(-1)
            return data + 0.5 * (weight + t[:, None] * step_w).square().sum(-1)  # noqa: B023

        length = _step_length(loss, decrement)
        length = torch.where(done | stuck, 0.0, length)
        weight = weight + length[:, None] * step_w
        bias = bias + length * step_b
        logit = logit + length[:, None] * step_logit
        stuck = stuck | ((length == 0) & ~done)
        done = done | ((decrement.clamp_min(0).sqrt() <= tol) & ~stuck)
        steps += 1
    return weight, bias, steps, done


def _step_length(loss: Callable[[Tensor], Tensor], decrement: Tensor) -> Tensor:
    """Halve each fit's step until its loss falls enough; 0 where no length is found."""
    length = torch.ones_like(decrement)
    base = loss(torch.zeros_like(length))
    for _ in range(_HALVINGS):
        # The slack is the rounding of the sum; without it the last Newton steps are refused.
        bad = ~(loss(length) <= base - 1e-4 * length * decrement + 1e-12 * base)
        if not bad.any():
            return length
        length = torch.where(bad, length / 2, length)
    return torch.where(bad, 0.0, length)


def _hessian(x: Tensor, centre: Tensor, curve: Tensor, chunk: int) -> Tensor:
    """``I + sum_i curve_i (x_i - centre)(x_i - centre)'``, ``[m, d, d]``, in blocks of rows."""
    d = x.shape[-1]
    hessian = torch.eye(d, dtype=x.dtype, device=x.device).repeat(len(curve), 1, 1)
    root = curve.sqrt()
    for i in range(0, x.shape[1], chunk):
        block = (x[:, i : i + chunk] - centre[:, None]).mul_(root[:, i : i + chunk, None])
        hessian.baddbmm_(block.mT, block)
    return hessian


def to_row_space(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Rotate to n coordinates when d > n: the penalised optimum lies in the span of the rows."""
    if x.shape[-1] <= x.shape[-2]:
        return x, lambda weight: weight
    basis, triangle = torch.linalg.qr(x.mT)  # x = triangle' basis', exact at any rank
    return triangle.mT.contiguous(), lambda weight: push(basis, weight)


def push(x: Tensor, weight: Tensor) -> Tensor:
    """``x [b, n, d]`` times ``weight [m, d]``: ``[m, n]``; ``b`` is 1 or ``m``."""
    return weight @ x[0].mT if x.shape[0] == 1 else (x @ weight[..., None])[..., 0]


def pull(x: Tensor, rows: Tensor) -> Tensor:
    """``x [b, n, d]`` transposed times ``rows [m, n]``: ``[m, d]``; ``b`` is 1 or ``m``."""
    return rows @ x[0] if x.shape[0] == 1 else (rows[:, None] @ x)[:, 0]


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve positive definite ``matrix [b, d, d]`` for ``right [m, d]``; ``b`` is 1 or ``m``."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed.any():
        raise ValueError(
            "the penalty vanishes in float64 beside collinear channels; raise l2 or lower C"
        )
    if factor.shape[0] == 1:
        return torch.cholesky_solve(right.mT, factor[0]).mT
    return torch.cholesky_solve(right[..., None], factor)[..., 0]
