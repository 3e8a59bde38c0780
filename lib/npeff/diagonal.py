"""Factorisation of diagonal Fishers: non-negative matrix factorisation of a sparse matrix.

``X ~ W H`` with ``W, H >= 0``, where row i of X is the diagonal of example i's Fisher. X stays
sparse and ``W H`` is never formed. The default is coordinate descent on one component at a time
(HALS) with a few sweeps over W and over H for each pair of sparse products, which cost most;
``step="mu"`` is the published multiplicative rule. Either goes through blocks of columns, and the
products for the next update of W are taken while a block of H is at hand.

Public names: `decompose_diagonal`.

Source: document 3, section 2.3; specification section 3. Repeated sweeps after Gillis and Glineur
(2012), "Accelerated multiplicative updates and hierarchical ALS algorithms for nonnegative matrix
factorization", Neural Computation 24.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lib import cache
from lib.npeff import alternating, nonnegative, store
from lib.npeff.alternating import REFRESH, Checkpoint, Progress, Run
from lib.npeff.decomposition import Decomposition, Option
from lib.npeff.factorise import check, result
from lib.npeff.factors import Factors, factors_of
from lib.npeff.products import Alone, Block, Group, multiply
from lib.npeff.store import Fishers

EPSILON = 1e-8  # of the multiplicative rule
SWEEPS_W, SWEEPS_H = 4, 2  # of HALS for one pair of sparse products


class Positive:
    """Components H `[r, m']` by blocks of columns, and what a step needs of them."""

    def __init__(self, blocks: Sequence[Block], h: Tensor, group: Group) -> None:
        first = blocks[0].lo
        self.blocks, self.group = blocks, group
        self.n, self.r = blocks[0].n_rows, len(h)
        self.parts = [h[:, x.lo - first : x.hi - first].contiguous() for x in blocks]

    def products(self) -> tuple[Tensor, Tensor]:
        """``X H^T [n, r]`` and ``H H^T [r, r]``."""
        xh, hh = self._zeros()
        for block, h in zip(self.blocks, self.parts, strict=True):
            self._add(block, h, xh, hh)
        self.group.sum(xh, hh)
        return xh, hh

    def update(self, w: Tensor, step: str) -> tuple[Tensor, Tensor]:
        """Update H for these coefficients; returns the new products."""
        xh, hh = self._zeros()
        v = w.T @ w
        for i, block in enumerate(self.blocks):
            h, wx = self.parts[i], multiply(block.by_column, w).T.contiguous()
            if step == "mu":
                h = h * wx / (v @ h + EPSILON)
            else:
                h = nonnegative.sweep(v, wx, h, SWEEPS_H)
            self.parts[i] = h
            self._add(block, h, xh, hh)
        self.group.sum(xh, hh)
        return xh, hh

    def components(self) -> Tensor:
        """H `[r, m']`, all processes' columns."""
        return self.state()["h"].T.contiguous()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return {"h": self.group.gather(torch.cat(self.parts, dim=1).T.contiguous())}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        for i, block in enumerate(self.blocks):
            mine = state["h"][block.lo : block.hi].to(self.parts[i].device)
            self.parts[i] = mine.T.contiguous()

    def _zeros(self) -> tuple[Tensor, Tensor]:
        like = self.parts[0]
        return like.new_zeros(self.n, self.r), like.new_zeros(self.r, self.r)

    @staticmethod
    def _add(block: Block, h: Tensor, xh: Tensor, hh: Tensor) -> None:
        xh += multiply(block.by_row, h.T.contiguous())
        hh += h @ h.T


def decompose_diagonal(
    fishers: Fishers | Factors,
    r: int,
    *,
    seed: int,
    step: str = "hals",
    steps: int = 200,
    restarts: int = 1,
    start: tuple[Tensor, Tensor] | None = None,
    log_every: int = 10,
    snapshot_every: int | None = None,
    blocks: int | None = None,
    device: torch.device | None = None,
    group: Group | None = None,
    raw: bool = False,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Decomposition:
    """Factorise diagonal PEFs into r components that are nowhere negative.

    Args:
        fishers: normalised diagonal PEFs, pruned; in memory, or of `out_of_core.open_blocks`.
        r: components, at most n.
        seed: restart k draws W and H from U(0, s) with ``seed + k`` and ``s^2 = mean(X) / r``.
        step: "hals", or "mu", the published rule: W first, then H with the new W.
        steps: iterations.
        start: W `[n, r]` and H `[r, m']` to start from, in place of random ones.
        log_every, snapshot_every, restarts, blocks, device, group, raw, checkpoint, progress: as
            in `factorise.decompose`.

    Returns:
        W and H; losses are ``||X - WH||_F^2`` (the published programs log the square root).

    Raises:
        ValueError: negative or not finite values, low-rank PEFs, not normalised, ``r > n``; a
            start of another shape, or negative; a checkpoint of another decomposition.

    Source: specification section 3. The published start is U(0, 1), which for a matrix of mostly
    zeros only costs the first iterations; ours is scaled. The number of iterations is ours.
    """
    data = factors_of(fishers)
    check(data, store.DIAGONAL, r, raw)
    if data.least < 0:
        raise ValueError("want diagonals that are nowhere negative; these are no Fishers")
    if step not in ("hals", "mu"):
        raise ValueError(f"want step hals or mu, got {step!r}")
    if steps < 0 or restarts < 1 or log_every < 1:
        raise ValueError("want steps of 0 or more, and at least 1 restart and 1 for log_every")
    group, m, dtype = group or Alone(), len(data.kept), data.dtype
    device = device or data.device
    lo, hi = (m * (group.rank + i) // group.size for i in (0, 1))
    matrix = data.blocks(blocks, r, device, first=lo, last=hi)
    options: dict[str, Option] = {
        "step": step,
        "raw": not data.normalised,
        "steps": steps,
        "start": cache.state_hash(dict(zip("wh", start, strict=True))) if start else "random",
        "log_every": log_every,
        "snapshot_every": snapshot_every,
    }
    best: Decomposition | None = None
    for k in range(restarts):
        w, h = _random_start(data, r, seed + k) if start is None else _given(start, data, r)
        space = Positive(matrix, h[:, lo:hi].to(device, dtype), group)
        key = None
        if checkpoint is not None:
            path = checkpoint.with_name(f"{checkpoint.name}.{k}") if k else checkpoint
            whole = {**options, "blocks": len(matrix)}
            key = Checkpoint(path, alternating.key_of(data, r, seed + k, whole))
        run = _fit(
            space, Run(w.to(device, dtype)), data.energy, steps, step, log_every, snapshot_every,
            key, progress,
        )  # fmt: skip
        made = result(data, run, space.components(), data.energy, seed + k, options)
        if best is None or made.loss < best.loss:
            best = made
    assert best is not None
    return best


def _fit(
    space: Positive,
    run: Run,
    energy: float,
    total: int,
    step: str,
    log_every: int,
    snapshot_every: int | None,
    checkpoint: Checkpoint | None,
    progress: Progress | None,
) -> Run:
    """Iterate from a start; `space` ends at the components."""
    space.group.same(run.w)
    if checkpoint is not None:
        checkpoint.read(run, space)
    xh, hh = space.products()
    steps: Iterable[int] = range(run.done, total)
    for i in progress(steps) if progress else steps:
        if i % REFRESH == 0 and i > run.done:
            run.done = i
            space.group.same(run.w)
            if checkpoint is not None:
                checkpoint.write(run, space)
        if i % log_every == 0:
            _log(run, energy, xh, hh, i)
        if snapshot_every and i % snapshot_every == 0:
            run.snapshots.append(run.w.clone())
            run.snapshot_steps.append(i)
        if step == "mu":
            run.w = run.w * xh / (run.w @ hh + EPSILON)
        else:
            turned = xh.T.contiguous(), run.w.T.contiguous()
            run.w = nonnegative.sweep(hh, *turned, SWEEPS_W).T.contiguous()
        xh, hh = space.update(run.w, step)
    if run.done < total or not run.losses:
        run.done = total
        _log(run, energy, xh, hh, total)
        if snapshot_every:
            run.snapshots.append(run.w.clone())
            run.snapshot_steps.append(total)
        if checkpoint is not None:
            checkpoint.write(run, space)
    return run


def _log(run: Run, energy: float, xh: Tensor, hh: Tensor, i: int) -> None:
    w = run.w.double()
    cross, square = (w * xh).sum(), ((w.T @ w) * hh).sum()
    run.losses.append(energy - 2 * float(cross) + float(square))
    run.loss_steps.append(i)


def _random_start(data: Factors, r: int, seed: int) -> tuple[Tensor, Tensor]:
    n, m = len(data), len(data.kept)
    mean = data.total / (n * m)
    generator = torch.Generator().manual_seed(seed)
    scale = math.sqrt(mean / r) if mean > 0 else 1.0
    w, h = (torch.rand(*shape, generator=generator) * scale for shape in ((n, r), (r, m)))
    return w, h


def _given(start: tuple[Tensor, Tensor], data: Factors, r: int) -> tuple[Tensor, Tensor]:
    w, h = start
    want = ((len(data), r), (r, len(data.kept)))
    if (tuple(w.shape), tuple(h.shape)) != want:
        raise ValueError(f"want a start {want}, got {tuple(w.shape)} and {tuple(h.shape)}")
    if not all(bool(((t >= 0) & t.isfinite()).all()) for t in start):
        raise ValueError("want a start that is finite and nowhere negative")
    return w, h
