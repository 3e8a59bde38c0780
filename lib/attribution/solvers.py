"""Applying the inverse of a Hessian that is too large to write down.

Document 4, influence functions; specification 1.3. A `Product` multiplies vectors by a symmetric
matrix, one `[p]` or several as columns `[p, q]` (see `lib.gradients.hessian_product` and
`ggn_product`). Four ways to its damped inverse:

`explicit`              the whole matrix and its eigenvalues: small p, the reference for the rest;
`conjugate_gradient`    exact in p steps, useful in far fewer; wants positive curvature;
`lissa`                 a stochastic series, one small batch of examples a term;
`arnoldi`               the few eigenpairs of largest absolute eigenvalue, everything else dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.features import Progress

Product = Callable[[Tensor], Tensor]  # [p] -> [p], [p, q] -> [p, q]


class NegativeCurvature(ValueError):
    """The matrix is not positive definite along a direction that a solver came across."""


@dataclass(frozen=True)
class Solution:
    """Solutions of several systems at once, and how the solver got there."""

    x: Tensor  # [p, q], or [p] for a single right-hand side
    residual: Tensor  # [q] |right - matrix x| / |right|; of LiSSA: not known, NaN
    steps: int
    trace: Tensor  # [steps, q] relative residuals; of LiSSA: norms of the iterate

    @property
    def drift(self) -> Tensor:
        """Change of the trace over its last tenth, relative, `[q]`: near 0 once LiSSA settled."""
        tail = self.trace[-max(2, len(self.trace) // 10) :]
        return (tail[-1] - tail[0]).abs() / tail[-1].clamp_min(torch.finfo(tail.dtype).tiny)


@dataclass(frozen=True)
class Spectrum:
    """Eigenpairs of a symmetric matrix, largest absolute eigenvalue first."""

    values: Tensor  # [r]
    vectors: Tensor  # [p, r]

    def solve(self, right: Tensor, *, damping: float = 0.0) -> Tensor:
        """`(Q diag(values + damping) Q')^+ right` within the span of the eigenvectors.

        Args:
            right: `[p]` or `[p, q]`.
            damping: added to each eigenvalue.

        Raises:
            NegativeCurvature: an eigenvalue is zero after damping.
        """
        shifted = self.values + damping
        if (shifted == 0).any():
            raise NegativeCurvature("an eigenvalue plus the damping is 0; choose another damping")
        inner = self.vectors.mT @ right
        return self.vectors @ (inner / (shifted if right.ndim == 1 else shifted[:, None]))


def explicit(product: Product, p: int, *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """The matrix behind `product`, `[p, p]`, symmetrised: for small p."""
    matrix = product(torch.eye(p, dtype=dtype, device=device))
    return (matrix + matrix.mT) / 2


def spectrum(matrix: Tensor) -> Spectrum:
    """All eigenpairs of an explicit symmetric matrix `[p, p]`, in float64."""
    values, vectors = torch.linalg.eigh(matrix.double())
    order = values.abs().argsort(descending=True)
    return Spectrum(values[order].to(matrix.dtype), vectors[:, order].to(matrix.dtype))


def conjugate_gradient(
    product: Product,
    right: Tensor,
    *,
    damping: float = 0.0,
    tolerance: float = 1e-4,
    max_steps: int = 100,
    progress: Progress | None = None,
) -> Solution:
    """Solve `(matrix + damping I) x = right` for several right-hand sides at once.

    Args:
        product: of the matrix, without the damping.
        right: `[p]` or `[p, q]`.
        tolerance: a system stops at this relative residual.
        progress: wraps the range of steps.

    Returns:
        The solution; `residual` says what was reached, since 100 steps may end above `tolerance`.

    Raises:
        ValueError: `right` holds NaN (the system is named), or a setting is out of range.
        NegativeCurvature: a direction of the search has none or negative curvature.

    Source: specification 1.3, damped CG; its defaults.
    """
    _check(right, damping)
    if not tolerance > 0 or max_steps < 1:
        raise ValueError(f"want tolerance > 0 and max_steps >= 1, got {tolerance}, {max_steps}")
    b = right[:, None] if right.ndim == 1 else right
    norm = b.norm(dim=0).clamp_min(torch.finfo(b.dtype).tiny)
    x, rest = torch.zeros_like(b), b.clone()
    direction, size = rest.clone(), rest.square().sum(0)
    trace: list[Tensor] = []
    steps = range(max_steps)
    for _ in progress(steps) if progress else steps:
        active = size.sqrt() > tolerance * norm
        if not active.any():
            break
        image = product(direction) + damping * direction
        curve = (direction * image).sum(0)
        if (active & ~(curve > 0)).any():
            worst = (curve / direction.square().sum(0))[active].min().item()
            raise NegativeCurvature(
                f"curvature {worst:.2e} after {len(trace)} steps; use the Gauss-Newton product "
                "(ggn_product), or a damping above the most negative eigenvalue"
            )
        length = torch.where(active, size / curve, 0.0)
        x += length * direction
        rest -= length * image
        grown = rest.square().sum(0)
        direction = torch.where(active, rest + grown / size * direction, direction)
        size = torch.where(active, grown, size)
        trace.append(size.sqrt() / norm)
    reached = size.sqrt() / norm
    steps_taken = torch.stack(trace) if trace else reached[None][:0]
    return Solution(x[:, 0] if right.ndim == 1 else x, reached, len(trace), steps_taken)


def lissa(
    product_of: Callable[[Tensor], Product],
    n: int,
    right: Tensor,
    *,
    generator: torch.Generator,
    scale: float = 10.0,
    damping: float = 0.0,
    depth: int = 5000,
    batch: int = 10,
    repeats: int = 2,
    progress: Progress | None = None,
) -> Solution:
    """The stochastic series `u <- right + (1 - damping) u - H_batch u / scale`, over `scale`.

    Too small a scale diverges (refused), too large a one has not arrived after `depth` terms
    (see `Solution.drift`). The damping is that of the published recursion: it adds
    `damping * scale` to the matrix.

    Args:
        product_of: rows `[batch]` -> product of the Hessian of those examples, penalty included.
        n: number of examples, from which batches are drawn with replacement.
        right: `[p]` or `[p, q]`.
        generator: on the CPU; draws the batches.
        scale: above the largest eigenvalue of every batch's Hessian.
        repeats: independent series, averaged.
        progress: wraps the range of all terms.

    Raises:
        ValueError: `right` holds NaN, a setting is out of range, or the series grows faster than
            a matrix between 0 and `scale` can make it: `|u_j| > (j + 1) |right|`.

    Source: specification 1.3, LiSSA.
    """
    _check(right, damping)
    if not scale > 0 or min(n, depth, batch, repeats) < 1 or damping >= 1:
        raise ValueError(
            "want scale > 0, damping < 1 and n, depth, batch, repeats >= 1; got "
            f"{scale}, {damping}, {n}, {depth}, {batch}, {repeats}"
        )
    b = right[:, None] if right.ndim == 1 else right
    norm = b.norm(dim=0)
    total, traces = torch.zeros_like(b), b.new_zeros(repeats, depth, b.shape[1])
    u, terms = b, range(repeats * depth)
    for k in progress(terms) if progress else terms:
        repeat, j = divmod(k, depth)
        u = b if j == 0 else u
        rows = torch.randint(n, (batch,), generator=generator).to(b.device)
        u = b + (1 - damping) * u - product_of(rows)(u) / scale
        traces[repeat, j] = u.norm(dim=0)
        if not (traces[repeat, j] <= 1.01 * (j + 2) * norm).all():
            raise ValueError(
                f"LiSSA diverges (term {j + 1}): a batch's Hessian has an eigenvalue above the "
                f"scale {scale}, or below 0; raise scale, enlarge batch, or use ggn_product"
            )
        if j == depth - 1:
            total += u / (scale * repeats)
    unknown = torch.full_like(norm, torch.nan)
    x = total[:, 0] if right.ndim == 1 else total
    return Solution(x, unknown, repeats * depth, traces.mean(0))


def arnoldi(
    product: Product,
    p: int,
    *,
    generator: torch.Generator,
    steps: int = 100,
    rank: int = 20,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Spectrum:
    """The eigenpairs of largest absolute eigenvalue, from one random start vector.

    Every new vector is made orthogonal to all former ones, twice: without that, found eigenvalues
    come back as ghosts.

    Args:
        product: of a symmetric matrix `[p, p]`.
        generator: on the CPU; draws the start.
        steps: size of the subspace; it ends early when it is invariant.
        rank: eigenpairs kept, at most `steps`.

    Returns:
        The kept pairs; their number is below `rank` when the subspace ended early.

    Source: specification 1.3, Arnoldi.
    """
    if not 1 <= rank <= steps or p < 1:
        raise ValueError(f"want 1 <= rank <= steps and p >= 1, got {rank}, {steps}, {p}")
    start = torch.randn(p, generator=generator, dtype=torch.float64).to(device, dtype)
    basis = start.new_zeros(min(steps, p), p)
    small = basis.new_zeros(len(basis), len(basis))
    basis[0], size = start / start.norm(), 1
    rounds = range(len(basis))
    for j in progress(rounds) if progress else rounds:
        image = product(basis[j])
        rest, length = image, image.norm()
        for _ in range(2):
            inner = basis[: j + 1] @ rest
            small[: j + 1, j] += inner
            rest = rest - inner @ basis[: j + 1]
        size = j + 1
        if size == len(basis) or rest.norm() <= 100 * torch.finfo(dtype).eps * length:
            break
        basis[j + 1] = rest / rest.norm()
    # symmetric in exact arithmetic, where the upper triangle says it all; so does its mean
    inner = small[:size, :size].triu()
    pairs = spectrum(inner + inner.triu(1).mT)
    return Spectrum(pairs.values[:rank], basis[:size].mT @ pairs.vectors[:, :rank])


def _check(right: Tensor, damping: float) -> None:
    if right.ndim not in (1, 2) or not right.is_floating_point():
        raise ValueError(f"want right-hand sides [p] or [p, q], got {list(right.shape)}")
    if not torch.isfinite(right).all():
        bad = ~torch.isfinite(right).reshape(len(right), -1).all(0)
        raise ValueError(
            f"right-hand side {int(bad.nonzero()[0])} holds NaN or infinity; drop that target"
        )
    if damping < 0:
        raise ValueError(f"want damping >= 0, got {damping}")
