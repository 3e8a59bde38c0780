"""The linear model that TRAK solves in place of a network, from features or from their kernel.

Features of training examples are rows of Phi; the model is a generalised linear one with them as
inputs. Everything is solved by a Cholesky factor in float64, nothing is inverted.

Source: document 4, TRAK; specification sections 4.1 (steps 4 and 5), 5.1 (dual form), 5.3.

Public names: `scores`, `kernel_scores`, `gram`, `factor`.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_CURVATURE = 1e-12  # of an example in the kernel form, which divides by it


def scores(
    features: Tensor,
    target_features: Tensor,
    *,
    ridge: float = 0.1,
    curvature: Tensor | None = None,
    leverage: bool = False,
) -> Tensor:
    """`phi_t (Phi^T R Phi + lambda)^-1 phi_i` from features, by a Cholesky factor in float64.

    Args:
        features: Phi `[n, k]`.
        target_features: `[T, k]`.
        ridge: lambda as a share of the mean diagonal of `Phi^T R Phi`.
        curvature: the diagonal of R `[n]`; None for ones.
        leverage: divide row i by `1 - r_i phi_i (...)^-1 phi_i`.

    Returns:
        `[n, T]` in the dtype of the features.

    Raises:
        ValueError: shapes that disagree; k > n, or a singular matrix, without a ridge.
    """
    if features.ndim != 2 or target_features.shape[1:] != features.shape[1:]:
        raise ValueError(
            f"want features [n, k] and target features [T, k], got {list(features.shape)} and "
            f"{list(target_features.shape)}; project both alike"
        )
    lower = factor(gram(features, curvature), len(features), ridge)
    solved = torch.cholesky_solve(target_features.double().T, lower)
    out = features @ solved.to(features.dtype)
    if leverage:
        half = torch.linalg.solve_triangular(lower, features.double().T, upper=False)
        out /= _remainder(half.square().sum(0) * _ones(curvature, features))[:, None]
    return out


def kernel_scores(
    kernel: Tensor,
    target_kernel: Tensor,
    *,
    ridge: float = 0.1,
    curvature: Tensor | None = None,
    leverage: bool = False,
) -> Tensor:
    """`scores` from inner products of features: `[n, n]` of training, `[n, T]` with targets.

    Args:
        ridge: lambda as a share of the mean diagonal of `R^1/2 kernel R^1/2`.
        (others): as for `scores`.

    Raises:
        ValueError: shapes that disagree; a singular matrix without a ridge.
    """
    n = len(kernel)
    if kernel.shape != (n, n) or target_kernel.shape[:1] != (n,) or target_kernel.ndim != 2:
        raise ValueError(
            f"want a kernel [n, n] and one with the targets [n, T], got {list(kernel.shape)} and "
            f"{list(target_kernel.shape)}"
        )
    root = _ones(curvature, kernel).double().clamp(min=LEAST_CURVATURE).sqrt()
    weighted = root[:, None] * kernel.double() * root
    lower = factor(weighted, n, ridge, precision=kernel.dtype)
    out = torch.cholesky_solve(root[:, None] * target_kernel.double(), lower) / root[:, None]
    if leverage:
        out /= _remainder(torch.cholesky_solve(weighted, lower).diagonal())[:, None]
    return out.to(kernel.dtype)


def gram(features: Tensor, curvature: Tensor | None = None, *, chunk: int = 8192) -> Tensor:
    """`Phi^T R Phi` of features `[n, k]` in float64, `[k, k]`."""
    total = features.new_zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for start in range(0, len(features), chunk):
        rows = features[start : start + chunk].double()
        right = (
            rows if curvature is None else rows * curvature[start : start + chunk, None].double()
        )
        total.addmm_(rows.T, right)
    return total


def factor(
    matrix: Tensor, n_rows: int, ridge: float, *, precision: torch.dtype = torch.float64
) -> Tensor:
    """Lower Cholesky factor of a Gram matrix plus `ridge` times its mean diagonal, in float64.

    Args:
        matrix: float64 `[k, k]`.
        n_rows: that it is a sum over; without a ridge, k may not exceed it.
        ridge: a share of the mean diagonal.
        precision: that the matrix was computed in: pivots below it are no pivots.

    Raises:
        ValueError: a negative ridge, or none for a matrix without an inverse.
    """
    k = len(matrix)
    if not ridge >= 0:
        raise ValueError(f"want ridge >= 0, got {ridge}; it is a share of the mean diagonal")
    if ridge == 0 and k > n_rows:
        raise ValueError(
            f"{k} numbers a gradient and {n_rows} examples leave the Gram matrix singular; choose "
            "a ridge > 0 (a tenth, say) or a smaller k"
        )
    matrix = matrix.clone()
    diagonal = matrix.diagonal()
    empty = diagonal == 0  # zero for every example: a sparse projection of inputs that are zero
    diagonal += ridge * diagonal.mean()
    diagonal[empty] = 1
    lower, failed = torch.linalg.cholesky_ex(matrix)
    noise = k * torch.finfo(precision).eps * diagonal.max()
    if failed or (ridge == 0 and lower.diagonal().min() ** 2 <= noise):
        raise ValueError(
            "the Gram matrix of the features is singular: some of them follow from the others; "
            "choose a ridge > 0 (a tenth, say)"
        )
    return lower


def _ones(curvature: Tensor | None, like: Tensor) -> Tensor:
    return like.new_ones(len(like)) if curvature is None else curvature


def _remainder(leverage: Tensor) -> Tensor:
    rest = 1 - leverage
    if (rest <= 0).any():
        worst = int(rest.argmin())
        raise ValueError(
            f"training example {worst} has leverage 1: the fit follows it alone; raise the ridge "
            "or leave `leverage` out"
        )
    return rest
