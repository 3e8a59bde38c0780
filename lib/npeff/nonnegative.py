"""Non-negative least squares for many right-hand sides at once.

Minimises ``w^T Q w - 2 b^T w`` over ``w >= 0`` for every row b of a matrix, exactly: two sweeps
of coordinate descent over all rows guess which entries are zero, then rows solve for the others
and exchange what is wrong until the conditions of optimality hold (block principal pivoting).
Rows are worked on together, in batches of about equal numbers of entries that are not zero; small
systems are eliminated for all rows at once, since a library's call for each costs more than it
computes.

Public names: `solve`, `multiplicative`, `sweep`.

Source: specification 4.1. Pivoting after Kim and Park (2011), "Fast nonnegative matrix
factorization: an active-set-like method and comparisons", SIAM J. Sci. Comput. 33; single
exchanges by Murty's rule make it end.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

SWEEPS = 2  # of coordinate descent for the first guess: more cost what they save in exchanges
PATIENCE = 3  # full exchanges that may fail to help before one entry is exchanged at a time
MAX_EXCHANGES = 10_000
RIDGE = 1e-10  # of a unit diagonal, where components depend on each other
BATCH_NUMBERS = 2**19  # of the systems that are solved together
SMALL, MANY = 8, 256  # systems of at most so many entries, for at least so many rows: eliminated
FEW_NUMBERS = 2**15  # of whole systems r x r that cost less than to choose their parts


def solve(q: Tensor, b: Tensor, *, tol: float = 1e-11) -> Tensor:
    """The minimisers of ``w^T q w - 2 b_i^T w`` over ``w >= 0``.

    Args:
        q: `[r, r]`, symmetric and positive semi-definite.
        b: `[n, r]`.
        tol: how far below zero an entry or a slope may be, relative to the row's largest.

    Returns:
        `[n, r]`, float64. Unique if q is definite; else one of the minimisers, nearly.

    Cost, 2,000 rows of r = 32 on one core: about 8 ms, of which sweeps take 1.1, finding and
    gathering the small systems 2.4, solving them 1.5, checks and exchanges the rest. No part
    stands out: the kernels of a single exchange alone are 3 ms.

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
    b[:, size == 0] = -1.0
    guess = b.float().T.contiguous()  # only which entries are not zero matters
    passive = (sweep(q.float(), guess, torch.zeros_like(guess), SWEEPS) > 0).T.contiguous()
    w = torch.zeros_like(b)
    slack = b.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(b.dtype).tiny).mul_(-tol)
    open_rows = torch.arange(len(b), device=b.device)
    best = torch.full((len(b),), b.shape[1] + 1, device=b.device)
    patience = torch.full((len(b),), PATIENCE, device=b.device)
    for _ in range(MAX_EXCHANGES):
        found = _solve_passive(q, b, passive)
        slope = torch.addmm(b, found, q, beta=-1).mul_(~passive)
        wrong = torch.minimum(found, slope) < slack  # an entry is 0 in one of the two
        n_wrong = wrong.sum(1)
        w.index_copy_(0, open_rows, found.clamp_(min=0))
        still = n_wrong.nonzero()[:, 0]
        if not len(still):
            break
        open_rows, b, slack, passive, wrong, n_wrong, best, patience = (
            x.index_select(0, still)
            for x in (open_rows, b, slack, passive, wrong, n_wrong, best, patience)
        )
        patience = torch.where(n_wrong < best, PATIENCE, patience - 1).clamp_(min=-1)
        best = torch.minimum(best, n_wrong)
        last = torch.zeros_like(wrong)
        index = wrong.shape[1] - 1 - wrong.flip(1).to(torch.uint8).argmax(1, keepdim=True)
        last.scatter_(1, index, True)
        passive = passive ^ torch.where((patience >= 0)[:, None], wrong, last)
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
    # a sum of finite numbers may overflow: then look again
    if not all(bool(x.sum().isfinite()) or bool(x.isfinite().all()) for x in (q, b)):
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
    """Unconstrained minimisers over each row's own set of entries; zero elsewhere.

    Args:
        q: `[r, r]`, of unit diagonal.
    """
    n, r = b.shape
    if n * r * r <= FEW_NUMBERS:  # the last exchanges are of a handful of rows
        inside = passive.T[:, None] & passive.T
        one = torch.eye(r, dtype=q.dtype, device=q.device)[..., None]
        return _factored(torch.where(inside, q[..., None], one), b.T * passive.T).T
    counts = passive.sum(1)
    row, column = passive.nonzero().unbind(1)
    rank = torch.arange(len(row), device=b.device) - (counts.cumsum(0) - counts)[row]
    # [entries, rows]: what all rows do with one entry lies together; r stands for none
    chosen = torch.full((max(1, int(counts.max())), n), r, device=b.device)
    chosen.view(-1).scatter_(0, rank.mul_(n).add_(row), column)
    table, right = pad(q, (0, 1, 0, 1)).flatten(), pad(b.T, (0, 0, 0, 1)).flatten()
    w = torch.zeros_like(right)
    kinds = (counts + SMALL - 1).div_(SMALL, rounding_mode="floor")
    kinds, order = kinds.sort(stable=True)
    kinds, lengths = kinds.unique_consecutive(return_counts=True)
    for kind, like in zip(kinds.tolist(), order.split(lengths.tolist()), strict=True):
        width = min(SMALL * kind, len(chosen))
        for rows in like.split(max(64, BATCH_NUMBERS // width**2)) if kind else ():
            mine = chosen[:width].index_select(1, rows)
            place = (mine * n).add_(rows).flatten()
            target = right.index_select(0, place).view(mine.shape)
            is_small = kind == 1 and len(like) >= MANY
            found = _eliminated(_systems(table, mine, r), target.clone()) if is_small else None
            if found is None:
                found = _factored(_systems(table, mine, r), target)
            w.scatter_(0, place, found.flatten())
    return w.view(r + 1, n)[:r].T.contiguous()


def _systems(table: Tensor, chosen: Tensor, r: int) -> Tensor:
    """The parts `[k, k, n]` of q, of unit diagonal also where an index stands for none."""
    at = (chosen * (r + 1))[:, None] + chosen
    made = table.index_select(0, at.flatten()).view(at.shape)
    made.diagonal().fill_(1)
    return made


def _eliminated(systems: Tensor, target: Tensor) -> Tensor | None:
    """Solutions `[k, n]` of n systems `[k, k, n]`, in place; None if one is not definite."""
    k = len(systems)
    for i in range(k - 1):
        share = systems[i + 1 :, i] / systems[i, i]
        systems[i + 1 :, i + 1 :].addcmul_(share[:, None], systems[i, i + 1 :], value=-1)
        target[i + 1 :].addcmul_(share, target[i], value=-1)
    pivots = systems.diagonal()  # [n, k]
    if not bool((pivots > 0).all()):
        return None
    for i in range(k - 1, -1, -1):
        target[i] /= pivots[:, i]
        target[:i].addcmul_(systems[:i, i], target[i], value=-1)
    return target


def _factored(systems: Tensor, target: Tensor) -> Tensor:
    """Solutions `[k, n]` of n systems `[k, k, n]`, with a ridge where one is not definite."""
    whole = systems.permute(2, 0, 1).contiguous()
    factor, failed = torch.linalg.cholesky_ex(whole)
    if bool(failed.any()):
        whole[failed > 0] += RIDGE * torch.eye(len(target), dtype=whole.dtype, device=whole.device)
        factor = torch.linalg.cholesky(whole)
    return torch.cholesky_solve(target.T[..., None], factor)[..., 0].T
