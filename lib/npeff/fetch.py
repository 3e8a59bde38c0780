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
from lib.npeff.factorise import decompose
from lib.npeff.store import Fishers

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
    """`decompose` with exact steps through the cache; unit components, the most used one first.

    Args:
        fishers: prepared low-rank PEFs; raw ones are factorised as they are.
        r: components.
        seed: of the start.
        steps: joint steps; the components alone take a tenth of that before.
        restarts: starts, of which the lowest loss is kept.
        progress: wraps the range of steps, if there is anything to do.

    Raises:
        ValueError: as `decompose`.
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

    def build() -> dict[str, Tensor]:
        made = decompose(
            fishers,
            r,
            seed=seed,
            component_steps=steps // 10,
            steps=steps,
            restarts=restarts,
            raw=not fishers.normalised,
            progress=progress,
        )
        return {name: getattr(unit(made), name) for name in TENSORS}

    entry = cache.fetch("npeff", config, build, code=[decompose, unit])
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
        options={"steps": steps, "restarts": restarts},
    )
