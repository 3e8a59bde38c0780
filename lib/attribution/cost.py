"""What a method of attribution costs, in floating-point operations by formula.

Seconds depend on the machine and on what else runs on it; a Pareto figure needs an axis that two
runs agree on to the last digit. Here every step has its leading term, a multiplication and an
addition counted as two, as in the specification's cost model (document 4, TRAK: the figure of the
score against compute; specification section 4.2). Element-wise operations are not counted.

The unit of the figure, "training runs", is `training` of one network on half of the rows: divide
by it.

Public names: `forward`, `training`, `gradients`, `hessian_products`, `sparse_projection`,
`dense_projection`, `gram`, `solve`, `scores`, `kernel`, `kronecker`, `lasso`, `ridge`,
`marginal_means`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lib.features import evaluating

BACKWARD = 2.0  # a backward pass costs about two forward passes
PRODUCT = 2.0  # a Hessian-vector product costs about two gradients


def forward(model: nn.Module, x: Tensor) -> float:
    """Operations of one forward pass of one example, from the shapes of its matrix products.

    Args:
        model: any module.
        x: inputs `[n, ...]`; the first row is passed through.
    """
    with FlopCounterMode(display=False) as counter, evaluating(model), torch.no_grad():
        model(x[:1])
    return float(counter.get_total_flops())


def training(forward_flop: float, n: int, epochs: int) -> float:
    """One network trained on `n` rows for `epochs`."""
    return gradients(forward_flop, n) * epochs


def gradients(forward_flop: float, n: int) -> float:
    """Gradients of `n` examples, together or one by one: a forward and a backward pass each."""
    return (1.0 + BACKWARD) * forward_flop * n


def hessian_products(forward_flop: float, n: int, count: float) -> float:
    """`count` products of a vector with the Hessian over `n` examples."""
    return PRODUCT * gradients(forward_flop, n) * count


def sparse_projection(n: int, p: int, s: int = 1) -> float:
    """Gradients `[n, p]` times a matrix with `s` entries a row, whatever its width."""
    return 2.0 * n * p * s


def dense_projection(n: int, p: int, k: int) -> float:
    """Gradients `[n, p]` times a matrix `[p, k]`; drawing it is not counted."""
    return 2.0 * n * p * k


def gram(n: int, k: int) -> float:
    """The matrix `[k, k]` of inner products of the columns of features `[n, k]`."""
    return 2.0 * n * k * k


def solve(k: int, columns: int) -> float:
    """A Cholesky factor of a matrix `[k, k]` and two triangular solves a column."""
    return k**3 / 3.0 + 2.0 * k * k * columns


def scores(n: int, k: int, n_targets: int) -> float:
    """Features `[n, k]` times solved target features `[k, T]`."""
    return 2.0 * n * k * n_targets


def kernel(n: int, m: int, widths: int) -> float:
    """Inner products of the gradients of `n` with those of `m` examples, layer by layer.

    Args:
        widths: sum of the fan-in and fan-out of the layers, each used once an example.
    """
    return 2.0 * n * m * widths


def kronecker(n: int, n_targets: int, layers: list[tuple[int, int]]) -> float:
    """K-FAC or EK-FAC: factors, eigenvectors, rotations and scores.

    Args:
        n: training rows; T target rows are rotated as well.
        layers: fan-in (with bias) and fan-out of each layer.
    """
    total = 0.0
    for i, o in layers:
        factors = 2.0 * n * (i * i + o * o)
        eigenvectors = 9.0 * (i**3 + o**3)  # tridiagonal form and accumulated rotations
        rotations = 2.0 * (n + n_targets) * (i * i + o * o)
        total += factors + eigenvectors + rotations + 2.0 * n * n_targets * i * o
    return total


def lasso(m: int, n: int, n_targets: int, steps: float) -> float:
    """`steps` proximal steps of all targets on one Gram matrix of `m` subsets of `n` rows."""
    return gram(m, n) + 2.0 * m * n * n_targets + 2.0 * n * n * n_targets * steps


def ridge(m: int, n: int, n_targets: int, penalties: int = 1) -> float:
    """Ridge regressions of all targets, one factorisation a penalty tried."""
    return gram(m, n) + 2.0 * m * n * n_targets + penalties * solve(n, n_targets)


def marginal_means(m: int, n: int, n_targets: int) -> float:
    """Empirical influence: mean outputs with and without each row."""
    return 2.0 * m * n * n_targets
