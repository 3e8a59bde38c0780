"""Decompositions through the cache: the same PEFs, components, steps and seed are fitted once.

Public names: `fetch_decomposition`.

Source: document 3, section 2.3; how results are kept is this project's.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lib import cache
from lib.npeff import store
from lib.npeff.alternating import Progress
from lib.npeff.decomposition import Decomposition, unit
from lib.npeff.diagonal import decompose_diagonal
from lib.npeff.factorise import decompose
from lib.npeff.store import DIAGONAL, Fishers

TENSORS = ("coefficients", "components", "losses", "loss_steps")


def fetch_decomposition(
    fishers: Fishers,
    r: int,
    *,
    seed: int,
    steps: int,
    restarts: int = 1,
    progress: Progress | None = None,
) -> Decomposition:
    """A decomposition through the cache; unit components, the most used one first.

    Args:
        fishers: prepared PEFs, for `decompose` with exact steps or `decompose_diagonal`, by their
            kind; raw ones are factorised as they are.
        r: components.
        seed: of the start.
        steps: joint steps; low-rank components alone take a tenth of that before.
        restarts: starts, of which the lowest loss is kept.
        progress: wraps the range of steps, if there is anything to do.

    Raises:
        ValueError: as these two.
    """
    arrays = {
        name: getattr(fishers, name) for name in ("values", "columns", "offsets", "example", "kept")
    }
    config: Mapping[str, object] = {
        "data": cache.state_hash(arrays),
        "kind": fishers.kind,
        "normalised": fishers.normalised,
        "r": r,
        "seed": seed,
        "steps": steps,
        "restarts": restarts,
    }

    raw = not fishers.normalised

    def build() -> dict[str, Tensor]:
        if fishers.kind == DIAGONAL:
            made = decompose_diagonal(
                fishers, r, seed=seed, steps=steps, restarts=restarts, raw=raw, progress=progress
            )
        else:
            made = decompose(
                fishers,
                r,
                seed=seed,
                component_steps=steps // 10,
                steps=steps,
                restarts=restarts,
                raw=raw,
                progress=progress,
            )
        return {name: getattr(unit(made), name) for name in TENSORS}

    method = decompose_diagonal if fishers.kind == DIAGONAL else decompose
    entry = cache.fetch("npeff", config, build, code=[method, unit])
    return Decomposition(
        fishers.kind,
        entry["coefficients"],
        entry["components"],
        losses=entry["losses"],
        loss_steps=entry["loss_steps"],
        kept=fishers.kept,
        parameters=fishers.parameters,
        k=fishers.k,
        energy=store.energy(fishers),
        seed=seed,
        options={"steps": steps, "restarts": restarts, "raw": raw},
    )
