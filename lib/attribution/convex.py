"""Influence and leave-one-out of convex models, exact to rounding.

Document 4, influence functions; specification 1.1 and 1.2. Ridge, binary logistic and multinomial
logistic regression are one family here: `C` linear outputs of the inputs `a` (bias appended),
minimising `J(theta) = mean_i loss_i(theta) + lam/2 |theta|^2`. Its per-example gradient is
`r_i (x) a_i` and its Hessian `H = mean_i W_i (x) a_i a_i' + lam I`, with `r_i [C]` and `W_i [C, C]`
the loss's derivatives in the outputs. Everything below follows from `r`, `W` and one Cholesky
factor of `H`. Leaving points out keeps the 1/n and the lam of the full objective.

Sign: `tau [n, T]` is what including example i adds to output t, so that leaving it out changes
the output by `-tau`.

In reading order: `Fit`, `fit_ridge`, `fit_logistic`, `fit_multinomial`, `output_gradients`,
`influence`, `influence_corrected`, `leverage`, `self_influence`, `relative_influence`. What leaving
out really does is in `refits.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Product = Callable[[Tensor], Tensor]  # [p] -> [p], or [p, q] -> [p, q]
Output = Callable[[Tensor], Tensor]  # outputs [T, C] -> one number a target [T]
_BLOCK = 2**22  # numbers in the largest temporary of a block of examples


@dataclass(frozen=True)
class Loss:
    """A convex loss of `C` linear outputs: its value and its derivatives in them."""

    value: Callable[[Tensor, Tensor], Tensor]  # ([..., n, C], [n]) -> [..., n]
    residual: Callable[[Tensor, Tensor], Tensor]  # -> [..., n, C]
    curvature: Callable[[Tensor], Tensor]  # [..., n, C] -> [..., n, C, C]


def _squared(out: Tensor, y: Tensor) -> Tensor:
    return (out[..., 0] - y).square() / 2


def _logistic(out: Tensor, y: Tensor) -> Tensor:
    return F.softplus((1 - 2 * y) * out[..., 0])


def _logistic_residual(out: Tensor, y: Tensor) -> Tensor:
    # sigmoid of the wrong side, not p - y: points far on the right side keep their digits
    sign = (2 * y - 1)[:, None]
    return -sign * torch.sigmoid(-sign * out)


def _multinomial(out: Tensor, y: Tensor) -> Tensor:
    chosen = y.expand(out.shape[:-1])[..., None]
    return out.logsumexp(-1) - out.gather(-1, chosen)[..., 0]


def _softmax_curvature(out: Tensor) -> Tensor:
    p = out.softmax(-1)
    return torch.diag_embed(p) - p[..., :, None] * p[..., None, :]


SQUARED = Loss(
    _squared,
    lambda out, y: out - y[:, None],
    lambda out: torch.ones_like(out)[..., None],
)
LOGISTIC = Loss(
    _logistic,
    _logistic_residual,
    lambda out: (torch.sigmoid(out) * torch.sigmoid(-out))[..., None],
)
MULTINOMIAL = Loss(
    _multinomial,
    lambda out, y: out.softmax(-1) - F.one_hot(y, out.shape[-1]),
    _softmax_curvature,
)


@dataclass(frozen=True)
class Fit:
    """A model at its optimum, with what its influence functions need; all float64."""

    a: Tensor  # [n, D] inputs, the bias column last
    y: Tensor  # [n]
    theta: Tensor  # [C, D]
    lam: float  # on every parameter, the bias too
    loss: Loss
    residual: Tensor  # [n, C] derivative of each loss in the outputs
    curvature: Tensor  # [n, C, C] second derivative
    factor: Tensor  # [C D, C D] lower Cholesky factor of the Hessian

    def solve(self, right: Tensor) -> Tensor:
        """`H^-1` times each of `right [k, C, D]`."""
        flat = right.reshape(len(right), -1)
        return torch.cholesky_solve(flat.mT, self.factor).mT.reshape(right.shape)

    def out(self, x: Tensor) -> Tensor:
        """Outputs `[T, C]` for raw inputs `x [T, d]`."""
        return design(x) @ self.theta.mT


def design(x: Tensor) -> Tensor:
    """`x [n, d]` in float64 with a column of ones behind it."""
    return torch.cat([x.double(), torch.ones_like(x[:, :1], dtype=torch.float64)], 1)


def fit_ridge(x: Tensor, y: Tensor, *, lam: float) -> Fit:
    """Ridge regression, `loss = (out - y)^2 / 2`; see `fit_multinomial` for the rest."""
    return _fit(SQUARED, x, y.double(), 1, lam)


def fit_logistic(x: Tensor, y: Tensor, *, lam: float) -> Fit:
    """Binary logistic regression on labels in {0, 1}; see `fit_multinomial` for the rest."""
    if not ((y == 0) | (y == 1)).all() or y.unique().numel() < 2:
        raise ValueError("want labels in {0, 1} with both present; code the two classes so")
    return _fit(LOGISTIC, x, y.double(), 1, lam)


def fit_multinomial(x: Tensor, y: Tensor, *, lam: float, n_classes: int | None = None) -> Fit:
    """Multinomial logistic regression by Newton's method in float64.

    Args:
        x: inputs `[n, d]`; a bias column is appended, and penalised like the rest.
        y: labels `[n]` in 0 .. C-1.
        lam: penalty > 0 (equal shifts of all classes are otherwise free).
        n_classes: C; default the largest label plus one.

    Returns:
        The optimum, its gradient at most 1e-10 in every coordinate.

    Raises:
        ValueError: shapes disagree, NaN in a row (named), `lam` not positive, or Newton's method
            stalls above the tolerance.

    Source: document 4, the convex checks of influence functions; specification 1.2.
    """
    if y.is_floating_point() or (len(y) and int(y.min()) < 0):
        raise ValueError(f"want integer labels from 0 on, got {y.dtype}; pass class numbers")
    return _fit(MULTINOMIAL, x, y, n_classes or int(y.max()) + 1, lam)


def _fit(loss: Loss, x: Tensor, y: Tensor, n_outputs: int, lam: float) -> Fit:
    if x.ndim != 2 or y.shape != x.shape[:1] or len(x) == 0:
        raise ValueError(f"want x [n, d] and y [n], got {tuple(x.shape)} and {tuple(y.shape)}")
    bad = ~torch.isfinite(x).all(1) | ~torch.isfinite(y)
    if bad.any():
        raise ValueError(f"row {int(bad.nonzero()[0])} holds NaN or infinity; clean or drop it")
    if not lam > 0:
        raise ValueError(f"want lam > 0, got {lam}; without it the optimum is not unique")
    a = design(x)
    theta = a.new_zeros(n_outputs, a.shape[1])
    theta = minimise(loss, a, y, lam, theta, a.new_ones(len(a)))
    out = a @ theta.mT
    curvature = loss.curvature(out)
    factor = cholesky(hessian_of(a, curvature, lam))
    return Fit(a, y, theta, lam, loss, loss.residual(out, y), curvature, factor)


def product(fit: Fit, rows: Tensor | None = None) -> Product:
    """Products with the Hessian of `fit`'s objective over `rows` (default all), penalty included.

    For `lib.attribution.solvers`; vectors `[C D]` or several as columns `[C D, q]`.
    """
    a, curvature = (fit.a, fit.curvature) if rows is None else (fit.a[rows], fit.curvature[rows])

    def times(v: Tensor) -> Tensor:
        columns = v.reshape(*fit.theta.shape, -1)
        out = torch.einsum("nd,cdq->nqc", a, columns) @ curvature
        image = torch.einsum("nqc,nd->cdq", out, a) / len(a) + fit.lam * columns
        return image.reshape(v.shape)

    return times


def hessian_of(a: Tensor, curvature: Tensor, lam: float) -> Tensor:
    """`mean_i W_i (x) a_i a_i' + lam I`, `[C D, C D]`, from weighted `curvature [n, C, C]`."""
    n, d = a.shape
    c = curvature.shape[-1]
    hessian = a.new_empty(c, d, c, d)
    for j in range(c):
        for k in range(j + 1):
            block = a.mT @ (a * curvature[:, j, k, None]) / n
            hessian[j, :, k] = hessian[k, :, j] = block
    hessian = hessian.reshape(c * d, c * d)
    hessian.diagonal().add_(lam)
    return hessian


def cholesky(hessian: Tensor) -> Tensor:
    """Lower factor of a Hessian; one sentence if there is none."""
    factor, failed = torch.linalg.cholesky_ex(hessian)
    if failed:
        raise ValueError("the Hessian is singular in float64; raise lam")
    return factor


def minimise(
    loss: Loss,
    a: Tensor,
    y: Tensor,
    lam: float,
    theta: Tensor,
    weights: Tensor,
    tol: float = 1e-10,
    max_steps: int = 100,
) -> Tensor:
    """Newton's method on `sum_i w_i loss_i / n + lam/2 |theta|^2` from `theta [C, D]`."""
    n = len(a)

    def objective(theta: Tensor) -> float:
        data = weights @ loss.value(a @ theta.mT, y) / n
        return float(data + lam / 2 * theta.square().sum())

    base = objective(theta)
    for _ in range(max_steps):
        out = a @ theta.mT
        gradient = (weights[:, None] * loss.residual(out, y)).mT @ a / n + lam * theta
        if gradient.abs().max() <= tol:
            return theta
        factor = cholesky(hessian_of(a, weights[:, None, None] * loss.curvature(out), lam))
        step = torch.cholesky_solve(gradient.reshape(-1, 1), factor).reshape(theta.shape)
        decrease = float((step * gradient).sum())
        length = 1.0
        # the slack is the rounding of the sum: near the optimum a full step gains less than that
        while length > 1e-10 and not (
            (tried := objective(theta - length * step))
            <= base - 1e-4 * length * decrease + 1e-12 * abs(base)
        ):
            length /= 2
        theta, base = theta - length * step, tried
    worst = float(gradient.abs().max())
    raise ValueError(f"Newton's method stalls at gradient {worst:.1e}, want {tol:.0e}; raise lam")


def output_gradients(fit: Fit, x: Tensor, output: Output) -> Tensor:
    """Gradients in theta of `output` at targets.

    Args:
        x: raw inputs of the targets `[T, d]`.
        output: the model's outputs `[T, C]` -> one number a target `[T]`, for instance
            `lambda out: out[:, 0]` or a margin.

    Returns:
        `[T, C, D]`.
    """
    a = design(x)
    with torch.enable_grad():
        out = (a @ fit.theta.mT).requires_grad_()
        (slope,) = torch.autograd.grad(output(out).sum(), out)
    return slope[:, :, None] * a[:, None, :]


def influence(fit: Fit, gradients: Tensor) -> Tensor:
    """First-order influence of every training example on any functionals of theta.

    Args:
        gradients: of the functionals F_t at the optimum, `[T, C, D]` (see `output_gradients`).

    Returns:
        `tau [n, T] = -(1/n) dF_t' H^-1 g_i`; leaving i out changes F_t by about `-tau[i, t]`.

    Source: specification 1.1.
    """
    return _spread(fit, fit.residual, fit.solve(_checked(fit, gradients)))


def influence_corrected(fit: Fit, gradients: Tensor) -> Tensor:
    """`influence` with each example's own curvature taken out of the Hessian.

    One Newton step on the objective without the example: exact leave-one-out for ridge, and the
    first-order value over `1 - h_i` where there is a single output (specification 1.2).
    """
    residual = torch.cat([
        torch.linalg.solve(
            torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device) - weight,
            fit.residual[rows][..., None],
        )[..., 0]
        for rows, weight in _leverage_blocks(fit)
    ])  # fmt: skip
    return _spread(fit, residual, fit.solve(_checked(fit, gradients)))


def leverage(fit: Fit) -> Tensor:
    """`h_i [n]`, in [0, 1): the largest eigenvalue of `W_i A_i' H^-1 A_i / n` (one for C = 1)."""
    parts = [
        torch.linalg.eigvals(weight).real.amax(-1) if weight.shape[-1] > 1 else weight[:, 0, 0]
        for _, weight in _leverage_blocks(fit)
    ]
    return torch.cat(parts)


def self_influence(fit: Fit) -> Tensor:
    """`g_i' H^-1 g_i`, `[n]`: large for examples that the model can only memorise."""
    return torch.cat([(g * s).sum((1, 2)) for g, s in _solved_gradients(fit)])


def relative_influence(fit: Fit, gradients: Tensor) -> Tensor:
    """`influence` over the parameter change that each example causes, `|H^-1 g_i|`, `[n, T]`.

    Outliers move everything; this asks for examples that matter to the target in particular.
    """
    moved = torch.cat([s.square().sum((1, 2)).sqrt() for _, s in _solved_gradients(fit)])
    return influence(fit, gradients) / moved[:, None]


def _checked(fit: Fit, gradients: Tensor) -> Tensor:
    if gradients.ndim != 3 or gradients.shape[1:] != fit.theta.shape:
        want = ["T", *fit.theta.shape]
        raise ValueError(f"want gradients {want}, got {list(gradients.shape)}")
    if not torch.isfinite(gradients).all():
        bad = int((~torch.isfinite(gradients)).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"the gradient of target {bad} holds NaN or infinity; drop that target")
    return gradients.double()


def _spread(fit: Fit, residual: Tensor, solved: Tensor) -> Tensor:
    """`-(1/n) <solved_t, residual_i (x) a_i>`, `[n, T]`, one product an output."""
    tau = fit.a.new_zeros(len(fit.a), len(solved))
    for c in range(solved.shape[1]):
        tau.addcmul_(residual[:, c, None], fit.a @ solved[:, c].mT)
    return tau.div_(-len(fit.a))


def solved_columns(fit: Fit, rows: Tensor) -> Tensor:
    """`H^-1 (e_k (x) a_i)` for each output k, `[b, C, C, D]`."""
    c, d = fit.theta.shape
    unit = torch.eye(c, dtype=fit.a.dtype, device=fit.a.device)
    right = unit[None, :, :, None] * fit.a[rows][:, None, None, :]  # [b, k, C, D]
    return fit.solve(right.reshape(-1, c, d)).reshape(len(rows), c, c, d)


def own_block(fit: Fit, rows: Tensor) -> Tensor:
    """`K_i = A_i' H^-1 A_i`, `[b, C, C]`."""
    return torch.einsum("bkcd,bd->bck", solved_columns(fit, rows), fit.a[rows])


def _blocks(fit: Fit) -> Iterator[Tensor]:
    c, d = fit.theta.shape
    yield from torch.arange(len(fit.a), device=fit.a.device).split(max(1, _BLOCK // (c * c * d)))


def _leverage_blocks(fit: Fit) -> Iterator[tuple[Tensor, Tensor]]:
    """(rows, `W_i K_i / n [b, C, C]`) block by block."""
    for rows in _blocks(fit):
        yield rows, fit.curvature[rows] @ own_block(fit, rows) / len(fit.a)


def _solved_gradients(fit: Fit) -> Iterator[tuple[Tensor, Tensor]]:
    """(`g_i`, `H^-1 g_i`), both `[b, C, D]`, block by block."""
    for rows in _blocks(fit):
        gradient = fit.residual[rows][:, :, None] * fit.a[rows][:, None, :]
        yield gradient, fit.solve(gradient)
