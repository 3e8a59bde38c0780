"""Non-negative least squares for many right-hand sides at once.

Minimises ``w^T Q w - 2 b^T w`` over ``w >= 0`` for every row b of a matrix, exactly: a few sweeps
of coordinate descent over all rows guess which entries are zero, then rows solve for the others
and exchange what is wrong until the conditions of optimality hold (block principal pivoting).
Rows are worked on together, in batches of equal numbers of entries that are not zero.

Public names: `solve`, `multiplicative`, `sweep`.

Source: specification 4.1. Pivoting after Kim and Park (2011), "Fast nonnegative matrix
factorization: an active-set-like method and comparisons", SIAM J. Sci. Comput. 33; single
exchanges by Murty's rule make it end.
"""

from __future__ import annotations

import torch
from torch import Tensor

SWEEPS = 6  # of coordinate descent for the first guess
PATIENCE = 3  # full exchanges that may fail to help before one entry is exchanged at a time
MAX_EXCHANGES = 10_000
RIDGE = 1e-10  # of a unit diagonal, where components depend on each other
BATCH_NUMBERS = 2**19  # of the systems that are solved together


def solve(q: Tensor, b: Tensor, *, tol: float = 1e-11) -> Tensor:
    """The minimisers of ``w^T q w - 2 b_i^T w`` over ``w >= 0``.

    Args:
        q: `[r, r]`, symmetric and positive semi-definite.
        b: `[n, r]`.
        tol: how far below zero an entry or a slope may be, relative to the row's largest.

    Returns:
        `[n, r]`, float64. Unique if q is definite; else one of the minimisers, nearly.

    Raises:
        ValueError: shapes disagree, or values are not finite.
        FloatingPointError: no end was found.
    """
    _check(q, b)
    q, b = q.double(), b.double()
    # of unit diagonal; a component that is zero can explain nothing and gets 0
    size = q.diagonal().sqrt()
    scale = torch.where(size > 0, size.reciprocal(), 0.0)
    q, b = q * scale * scale[:, None], b * scale
    q.diagonal().fill_(1)
    b = torch.where(size > 0, b, -1.0)
    guess = b.T.float().contiguous()  # only which entries are not zero matters
    passive = (sweep(q.float(), guess, torch.zeros_like(guess), SWEEPS) > 0).T.contiguous()
    w = torch.zeros_like(b)
    slack = tol * b.abs().amax(1, keepdim=True).clamp(min=torch.finfo(b.dtype).tiny)
    open_rows = torch.arange(len(b), device=b.device)
    best = torch.full((len(b),), b.shape[1] + 1, device=b.device)
    patience = torch.full((len(b),), PATIENCE, device=b.device)
    for _ in range(MAX_EXCHANGES):
        p, target = passive[open_rows], b[open_rows]
        found = _solve_passive(q, target, p)
        slope = found @ q - target
        wrong = torch.where(p, found, slope) < -slack[open_rows]
        n_wrong = wrong.sum(1)
        w[open_rows] = found.clamp(min=0)
        still = n_wrong > 0
        if not bool(still.any()):
            break
        open_rows, p, wrong, n_wrong = open_rows[still], p[still], wrong[still], n_wrong[still]
        better = n_wrong < best[open_rows]
        best[open_rows] = torch.where(better, n_wrong, best[open_rows])
        left = torch.where(better, PATIENCE, patience[open_rows] - 1)
        patience[open_rows] = left.clamp(min=-1)
        last = torch.zeros_like(wrong)
        index = wrong.shape[1] - 1 - wrong.flip(1).to(torch.uint8).argmax(1, keepdim=True)
        last.scatter_(1, index, True)
        passive[open_rows] = p ^ torch.where((left >= 0)[:, None], wrong, last)
    else:
        raise FloatingPointError(
            f"{len(open_rows)} rows did not settle in {MAX_EXCHANGES:,} exchanges; components are "
            "too much alike, take fewer"
        )
    return w * scale


def multiplicative(
    q: Tensor, b: Tensor, start: Tensor, *, epsilon: float, tol: float = 1e-4, max_steps: int = 1000
) -> Tensor:
    """The published rule for the same problem: ``w <- w * b / (w q + epsilon)``.

    Ends when no coefficient changes by more than `tol` of its row's largest, or after
    `max_steps`. Needs q and b that are nowhere negative; slow where components are alike.

    Source: specification 4.1; the number of steps there is our choice.
    """
    _check(q, b)
    w, q, b = start.double(), q.double(), b.double()
    for _ in range(max_steps):
        new = w * b / (w @ q + epsilon)
        change = (new - w).abs().amax(1)
        w = new
        if bool((change <= tol * w.amax(1)).all()):
            break
    return w


def _check(q: Tensor, b: Tensor) -> None:
    if b.ndim != 2 or q.shape != (b.shape[1], b.shape[1]):
        raise ValueError(f"want q [r, r] and b [n, r], got {tuple(q.shape)}, {tuple(b.shape)}")
    if not (bool(q.isfinite().all()) and bool(b.isfinite().all())):
        raise ValueError("want finite q and b; look for components or PEFs that are not finite")


def sweep(q: Tensor, b: Tensor, w: Tensor, n_sweeps: int) -> Tensor:
    """Coordinate descent, all problems at once; each sweep lowers every objective.

    Args:
        q: `[r, r]`; an entry whose diagonal is 0 keeps its value.
        b: `[r, n]`, transposed: one coordinate of all problems lies together.
        w: `[r, n]`, where to start; not negative.

    Returns:
        `[r, n]`.
    """
    size = q.diagonal()
    moves = size > 0
    inverse = torch.where(moves, size.reciprocal(), 0.0)
    others = q * inverse[:, None]
    others.diagonal().zero_()
    target = torch.where(moves[:, None], b * inverse[:, None], w)
    w = w.clone()
    new, turned = torch.empty_like(w[0]), w.T
    for _ in range(n_sweeps):
        for row, goal, other in zip(w.unbind(), target.unbind(), others.unbind(), strict=True):
            torch.addmv(goal, turned, other, alpha=-1, out=new)
            torch.clamp(new, min=0, out=row)
    return w


def _solve_passive(q: Tensor, b: Tensor, passive: Tensor) -> Tensor:
    """Unconstrained minimisers over each row's own set of entries; zero elsewhere."""
    w, flat = torch.zeros_like(b), q.flatten()
    counts, order = passive.sum(1).sort()
    widths, lengths = counts.unique_consecutive(return_counts=True)
    for width, like in zip(widths.tolist(), order.split(lengths.tolist()), strict=True):
        # rows of equally many entries go together: no system is padded
        for rows in like.split(max(64, BATCH_NUMBERS // max(1, width) ** 2)) if width else ():
            chosen = passive[rows].nonzero()[:, 1].view(-1, width)
            at = chosen[:, :, None] * len(q) + chosen[:, None, :]
            systems = flat.index_select(0, at.flatten()).view(at.shape)
            factor, failed = torch.linalg.cholesky_ex(systems)
            if bool(failed.any()):
                systems[failed > 0] += RIDGE * torch.eye(width, dtype=q.dtype, device=q.device)
                factor = torch.linalg.cholesky(systems)
            right = b[rows].gather(1, chosen)[..., None]
            w[rows[:, None], chosen] = torch.cholesky_solve(right, factor)[..., 0]
    return w
