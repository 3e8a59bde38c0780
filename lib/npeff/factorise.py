"""Low-rank factorisation: ``F_i`` is about ``sum_j W[i, j] g_j g_j^T`` with ``W >= 0``.

A step updates the coefficients W by a multiplicative rule and the components G by a gradient
step, both from the same products ``B = A G^T`` and ``Q = G G^T``; no matrix of m x m numbers is
ever formed. The loss along a direction is a polynomial of degree four in the step length, so the
default takes the best length at every step and needs no rate; the published rule, a constant
rate, is ``step="gd"``. B and Q are updated along the step and computed anew every 50 steps.

Public names: `decompose`, `Decomposition`, `unit`, `explained`, `save`, `load` (the last five from
`lib.npeff.decomposition`), and for other fits of this kind `check`, `result`.

Source: document 3, section 2.3; specification section 2.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from lib.npeff import alternating, store
from lib.npeff.alternating import Checkpoint, Progress, Run, Stage
from lib.npeff.decomposition import Decomposition, Option, explained, load, save, unit
from lib.npeff.factors import Factors, factors_of
from lib.npeff.products import Alone, Columns, Group
from lib.npeff.store import Fishers

__all__ = ["Decomposition", "decompose", "explained", "load", "save", "unit"]

RATES = {"gd": 1e-3, "precond": 0.25, "exact": math.nan}  # eta (2.4) and t (2.5)


def decompose(
    fishers: Fishers | Factors,
    r: int,
    *,
    seed: int,
    step: str = "exact",
    component_steps: int = 100,
    steps: int = 700,
    rate: float | None = None,
    restarts: int = 1,
    pull: float = 0.0,
    log_every: int = 10,
    snapshot_every: int | None = None,
    blocks: int | None = None,
    device: torch.device | None = None,
    group: Group | None = None,
    raw: bool = False,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Decomposition:
    """Factorise low-rank PEFs into r components.

    Args:
        fishers: normalised low-rank PEFs, pruned; of examples with any number of rows. Those of
            `out_of_core.open_blocks` stay in their folder.
        r: components, at most n.
        seed: restart k draws its start with ``seed + k``: W from U(0, 1), G from
            N(0, 2 / (r m')).
        step: "exact" takes the best length along the preconditioned direction, "precond" a constant
            `rate` along it, "gd" a constant `rate` along the gradient, as published.
        component_steps: T_G, steps on G alone with W at its start.
        steps: T, joint steps.
        rate: eta of "gd" (1e-3 if None) or t of "precond" (0.25 if None).
        restarts: runs from different starts; the one with the lowest loss is returned.
        pull: beta of the pull of ``G G^T`` towards ``(2 / r) I``; the losses leave it out.
        log_every: steps between two entries of the loss curve.
        snapshot_every: keep W every so many joint steps, the start and the end.
        blocks: of columns that are worked on one after the other; None takes what is fastest, or
            the blocks of a folder.
        device: of the components; None is that of the PEFs. PEFs that stay elsewhere are copied
            block by block at each use: choose enough `blocks` for what does not fit.
        group: processes that share the columns; see `lib.npeff.distributed`.
        raw: accept PEFs that are not normalised (they are dominated by outliers).
        checkpoint: a file to go on from; written every 50 steps, one a restart. A run that goes on
            gives the same bytes as one without a break.
        progress: wraps the range of steps of a run.

    Returns:
        W and G in the dtype of the PEFs, as they come out of the fit; see `unit`. An example whose
        PEF is zero has coefficients 0.

    Raises:
        ValueError: not finite, not low-rank, not normalised; ``r > n``; a checkpoint of another
            decomposition.
        FloatingPointError: the loss of "gd" or "precond" is not finite; the sentence names the
            rate.

    Source: document 3, section 2.3; specification 2.1 to 2.10. The paper gives no rate and no
    number of steps for most experiments; defaults of T_G and T are ours (section 8 there).
    """
    data = factors_of(fishers)
    check(data, store.LOW_RANK, r, raw)
    if step not in RATES:
        raise ValueError(f"want step {', '.join(RATES)}, got {step!r}")
    if step == "exact" and rate is not None:
        raise ValueError("the exact step finds its own length; leave rate out, or ask for precond")
    if component_steps < 0 or steps < 0 or restarts < 1 or log_every < 1:
        raise ValueError("want steps of 0 or more, and at least 1 restart and 1 for log_every")
    rate = RATES[step] if rate is None else rate
    if not (step == "exact" or 0 < rate < math.inf) or not 0 <= pull < math.inf:
        raise ValueError(f"want rate > 0 and pull >= 0, both finite, got {rate} and {pull}")
    group, m = group or Alone(), len(data.kept)
    options: dict[str, Option] = {
        "step": step,
        "raw": not data.normalised,
        "component_steps": component_steps,
        "steps": steps,
        "rate": None if step == "exact" else rate,
        "pull": pull,
        "log_every": log_every,
        "snapshot_every": snapshot_every,
    }
    device = device or data.device
    lo, hi = (m * (group.rank + i) // group.size for i in (0, 1))
    matrix = data.blocks(blocks, r, device, first=lo, last=hi)
    problem = alternating.problem_of(data, r, device, pull=pull, pull_to=2 / r)
    stages = [Stage(component_steps, 0), Stage(steps, r)]
    best: Decomposition | None = None
    for k in range(restarts):
        generator = torch.Generator().manual_seed(seed + k)
        w = torch.rand(len(data), r, generator=generator, dtype=torch.float64)
        g = torch.randn(m, r, generator=generator, dtype=data.dtype)
        g = g[lo:hi].mul_(math.sqrt(2 / (r * m))).to(device)
        space = Columns(matrix, g, group)
        key = None
        if checkpoint is not None:
            path = checkpoint.with_name(f"{checkpoint.name}.{k}") if k else checkpoint
            whole = {**options, "blocks": len(matrix)}
            key = Checkpoint(path, alternating.key_of(data, r, seed + k, whole))
        found = alternating.fit(
            problem, space, w.to(device), stages, step=step, rate=rate, log_every=log_every,
            snapshot_every=snapshot_every, checkpoint=key, progress=progress,
        )  # fmt: skip
        made = result(data, found, space.components(), problem.energy, seed + k, options)
        if best is None or made.loss < best.loss:
            best = made
    assert best is not None
    return best


def check(data: Factors, kind: str, r: int, raw: bool) -> None:
    """Refuse what cannot be factorised.

    Raises:
        ValueError: as said in `decompose`.
    """
    if data.kind != kind:
        raise ValueError(f"want {kind} PEFs, got {data.kind} ones; make them anew")
    if not 1 <= r <= len(data):
        raise ValueError(
            f"want 1 <= r <= n = {len(data)} components, got {r}; lower r or take more examples"
        )
    if not math.isfinite(data.total):
        raise ValueError(
            "the PEFs hold values that are not finite; look at the model's gradients, or drop "
            "these examples"
        )
    if not (data.normalised or raw):
        raise ValueError(
            "want normalised PEFs (store.normalise); raw ones are dominated by few examples, "
            "ask for them with raw=True"
        )


def result(
    data: Factors,
    run: Run,
    components: Tensor,
    energy: float,
    seed: int,
    options: dict[str, Option],
    frozen: int = 0,
) -> Decomposition:
    """Put a finished fit into a `Decomposition`."""
    dtype = data.dtype
    return Decomposition(
        kind=data.kind,
        coefficients=run.w.to(dtype),
        components=components,
        kept=data.kept,
        parameters=data.parameters,
        k=data.k,
        losses=torch.tensor(run.losses, dtype=torch.float64),
        loss_steps=torch.tensor(run.loss_steps),
        energy=energy,
        seed=seed,
        options=options,
        snapshots=torch.stack(run.snapshots).to(dtype) if run.snapshots else None,
        snapshot_steps=torch.tensor(run.snapshot_steps) if run.snapshots else None,
        frozen=frozen,
    )
