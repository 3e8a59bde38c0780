"""Coefficients of new examples, and new components beside frozen ones.

Given components, each example's coefficients solve a problem of their own: non-negative least
squares with ``N[i, j] = <F_i, H_j>`` and ``Q2[j, k] = <H_j, H_k>``. `fit_coefficients` solves it
exactly for all examples; `fit_multiplicative` by the published rule. `expand` adds components that
explain what frozen ones leave, such as the examples a model gets wrong. All take PEFs in memory or
in the blocks of a folder, cut at the components' positions
(``out_of_core.write_blocks(..., kept=decomposition.kept)``).

Public names: `fit_coefficients`, `fit_multiplicative`, `expand`.

Source: document 3, sections 2.4 and 3.5; specification section 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from lib import cache
from lib.npeff import alternating, nonnegative, store
from lib.npeff.alternating import Checkpoint, Progress, Stage
from lib.npeff.decomposition import Decomposition, Option
from lib.npeff.factorise import check, result
from lib.npeff.factors import Factors, factors_of
from lib.npeff.products import Alone, Columns, Sparse, multiply
from lib.npeff.store import Fishers

EPSILON = {store.LOW_RANK: 1e-9, store.DIAGONAL: 1e-7}  # of the published rule (4.1)


def fit_coefficients(
    decomposition: Decomposition, fishers: Fishers | Factors, *, chunk: int = 4096
) -> Tensor:
    """The best coefficients of examples for the components of a decomposition.

    Args:
        fishers: PEFs of the same model and block, made with the same K and norm; entries on
            parameters that the components do not have are dropped. Those of a folder must be cut
            at the positions of the components.
        chunk: examples at a time, of PEFs in memory; the result does not depend on it.

    Returns:
        W `[n, r]` in the dtype of the components, not negative. Unique unless components depend
        on each other.

    Raises:
        ValueError: PEFs of another kind, model, K or norm, not finite, or in blocks of other
            positions or another precision.
    """
    n, q = _products(decomposition, fishers, chunk)
    return nonnegative.solve(q, n).to(decomposition.components.dtype)


def fit_multiplicative(
    decomposition: Decomposition,
    fishers: Fishers | Factors,
    *,
    seed: int,
    tol: float = 1e-4,
    max_steps: int = 1000,
    chunk: int = 4096,
) -> Tensor:
    """The same coefficients by the published rule, from a random start; to about `tol`."""
    n, q = _products(decomposition, fishers, chunk)
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(n.shape, generator=generator, dtype=torch.float64).to(n.device)
    w = nonnegative.multiplicative(
        q, n, start, epsilon=EPSILON[decomposition.kind], tol=tol, max_steps=max_steps
    )
    return w.to(decomposition.components.dtype)


def expand(
    decomposition: Decomposition,
    fishers: Fishers | Factors,
    n_new: int,
    *,
    seed: int,
    component_steps: int = 50,
    new_steps: int = 0,
    steps: int = 700,
    log_every: int = 10,
    blocks: int | None = None,
    raw: bool = False,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> Decomposition:
    """Fit new components beside the frozen ones of a low-rank decomposition.

    Args:
        fishers: PEFs that the new components shall explain, of the same model and block, in memory
            or in a folder, as in `fit_coefficients`.
        n_new: r_e, at most n; 0 only fits coefficients.
        component_steps: T_G, steps on the new components alone.
        new_steps: T_x, steps on the new components and their coefficients.
        steps: T, steps on all coefficients and the new components.

    Returns:
        A decomposition of `fishers` with the new components first, then the frozen ones, bit for
        bit as they were (`frozen` counts them). New components start as N(0, 2 / (r m')) with r
        of both kinds, coefficients as U(0, 1) for new ones and at the best fit for frozen ones.

    Raises:
        ValueError, FloatingPointError: as in `factorise.decompose` and `fit_coefficients`.

    Source: document 3, section 3.5; specification 4.2. The paper gives no numbers of steps.
    """
    if n_new < 0:
        raise ValueError(f"want n_new >= 0, got {n_new}")
    check(factors_of(fishers), store.LOW_RANK, max(1, n_new), raw)
    before = fit_coefficients(decomposition, fishers).double()
    if isinstance(fishers, Fishers):
        fishers = store.select_columns(fishers, decomposition.kept)
    frozen = decomposition.components
    data = factors_of(fishers)
    r, m, device = n_new + len(frozen), len(data.kept), frozen.device
    generator = torch.Generator().manual_seed(seed)
    start = torch.rand(len(data), n_new, generator=generator, dtype=torch.float64)
    g = torch.randn(m, n_new, generator=generator, dtype=frozen.dtype).mul_(math.sqrt(2 / (r * m)))
    parts = data.blocks(blocks, r, device, first=0, last=m)
    space = Columns(parts, torch.cat([g.to(device), frozen.T], dim=1), Alone())
    problem = alternating.problem_of(data, n_new, device)
    options: dict[str, Option] = {
        "step": "exact",
        "n_new": n_new,
        "component_steps": component_steps,
        "new_steps": new_steps,
        "steps": steps,
        "log_every": log_every,
    }
    key = None
    if checkpoint is not None:
        fixed = cache.state_hash({"frozen": frozen, "coefficients": before})
        whole = {**options, "blocks": len(parts), "frozen": fixed}
        key = Checkpoint(checkpoint, alternating.key_of(data, r, seed, whole))
    if n_new:
        stages = [Stage(component_steps, 0), Stage(new_steps, n_new), Stage(steps, r)]
    else:
        stages = [Stage(0, 0)]  # the fit above is the best already
    run = alternating.fit(
        problem, space, torch.cat([start.to(device), before], dim=1), stages, step="exact",
        rate=math.nan, log_every=log_every, snapshot_every=None, checkpoint=key, progress=progress,
    )  # fmt: skip
    return result(data, run, space.components(), problem.energy, seed, options, frozen=len(frozen))


def _products(
    decomposition: Decomposition, fishers: Fishers | Factors, chunk: int
) -> tuple[Tensor, Tensor]:
    """``<F_i, H_j> [n, r]`` and ``<H_j, H_k> [r, r]``, float64, as H is stored."""
    _check_alike(decomposition, fishers)
    g = decomposition.components.T.contiguous()
    low_rank = decomposition.kind == store.LOW_RANK
    n = torch.zeros(len(fishers), g.shape[1], dtype=torch.float64, device=g.device)
    if isinstance(fishers, Fishers):
        found = _by_examples(fishers, decomposition.kept, g, chunk)
    else:
        found = iter([(fishers.example, _by_blocks(fishers, decomposition.kept, g))])
    for example, b in found:
        n.index_add_(0, example.to(n.device), b.square() if low_rank else b)
    q = (g.T @ g).double()
    return n, q.square() if low_rank else q


def _by_examples(
    fishers: Fishers, kept: Tensor, g: Tensor, chunk: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Whose each row is, and ``A G^T``, float64, of `chunk` examples after the other."""
    fishers = store.select_columns(fishers, kept)
    for first in range(0, len(fishers), chunk):
        ends = torch.tensor([first, first + chunk], device=fishers.example.device)
        lo, hi = torch.searchsorted(fishers.example, ends).tolist()
        a, b = fishers.offsets[[lo, hi]].tolist()
        rows = Sparse(
            (fishers.offsets[lo : hi + 1] - a).int(),
            fishers.columns[a:b].int(),
            fishers.values[a:b].to(g.dtype),
            len(g),
        )
        yield fishers.example[lo:hi], multiply(rows, g).double()


def _by_blocks(data: Factors, kept: Tensor, g: Tensor) -> Tensor:
    """``A G^T [R, r]``, float64, one block of columns after the other."""
    if not torch.equal(data.kept, kept.to(data.kept.device)) or data.dtype != g.dtype:
        raise ValueError(
            f"want blocks on the {len(kept):,} positions of the components and in {g.dtype}, got "
            f"{len(data.kept):,} positions in {data.dtype}; write them anew with "
            "kept=decomposition.kept"
        )
    blocks = data.blocks(None, g.shape[1], g.device, first=0, last=len(g))
    return Columns(blocks, g, Alone()).products()[0]


def _check_alike(decomposition: Decomposition, fishers: Fishers | Factors) -> None:
    """Refuse PEFs that the components are not made of."""
    if fishers.kind != decomposition.kind or fishers.parameters != decomposition.parameters:
        raise ValueError(
            f"want {decomposition.kind} PEFs of the model and block of the decomposition, got "
            f"{fishers.kind} ones of {len(fishers.parameters)} parameter tensors"
        )
    if fishers.k != decomposition.k:
        raise ValueError(
            f"want PEFs of K = {decomposition.k:,} entries as the components were made of, got "
            f"K = {fishers.k:,}; make them with that K, or store.truncate more of them"
        )
    raw = bool(decomposition.options.get("raw", False))
    if fishers.normalised == raw:
        words = ("raw", "normalised") if raw else ("normalised", "raw")
        raise ValueError(
            f"want {words[0]} PEFs, as the components were made of, got {words[1]} ones; their "
            "coefficients would be on another scale"
        )
    finite = (
        bool(fishers.values.isfinite().all())
        if isinstance(fishers, Fishers)
        else math.isfinite(fishers.total)
    )
    if not finite:
        raise ValueError("the PEFs hold values that are not finite; drop these examples")
