"""Scores of a network's units, and maps, through the cache.

The key names the weights themselves, the images, the layers and each detector's own hash, so that
a second checkpoint of a network never gets the first one's scores (the reference's cache goes by
file names, and then it does).

Public names: `fetch_scores`, `fetch_basis`, `code_of`, `hash_of`.

Source: specification section 6.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lib import cache
from lib.monitoring import pointwise, similarity
from lib.monitoring.detectors import ClipDissect, Detector
from lib.monitoring.record import Probe, Top, scores_of
from lib.monitoring.space import Basis, Space, fit_basis

NAMES = ("h", "concepts", "attainment", "dead")
FEW = 8  # images that show what a probe's `prepare` does


def fetch_scores(
    model: nn.Module,
    probe: Probe,
    layers: Sequence[str],
    detectors: Sequence[Detector],
    k: int = 5,
) -> dict[tuple[str, str], Top]:
    """`record.scores_of` through the cache, one entry a network; arguments as there."""
    config = {
        "weights": cache.state_hash(dict(model.state_dict())),
        "network": str(model),  # equal weights may still be used otherwise
        "probe": hash_of(probe),
        "pooling": probe.pooling,
        "layers": list(layers),
        "detectors": [[d.name, d.digest] for d in detectors],
        "k": k,
    }

    def build() -> dict[str, Tensor]:
        found = scores_of(model, probe, layers, detectors, k)
        return {
            f"{detector}/{layer}/{name}": getattr(top, name)
            for (detector, layer), top in found.items()
            for name in NAMES
        }

    entry = cache.fetch("concepts", config, build, code=code_of(model, probe, detectors))
    return {
        (d.name, layer): Top(*(entry[f"{d.name}/{layer}/{name}"] for name in NAMES))
        for d in detectors
        for layer in layers
    }


def fetch_basis(space: Space, kind: str = "umap-bary", *, seed: int = 0) -> Basis:
    """`space.fit_basis` through the cache: fitting a UMAP starts with compiling it."""

    def build() -> dict[str, Tensor]:
        basis = fit_basis(space, kind, seed=seed)
        text = json.dumps([basis.kind, basis.settings]).encode()
        return {"points": basis.points, "text": torch.tensor(list(text), dtype=torch.uint8)}

    config = {"space": space.digest, "kind": kind, "seed": seed}
    entry = cache.fetch("concept-map", config, build, code=[fit_basis])
    made, settings = json.loads(bytes(entry["text"].tolist()))
    words, vectors = space.concepts.words, space.vectors
    return Basis(made, space.digest, words, vectors, entry["points"], settings)


def hash_of(probe: Probe, **more: Tensor) -> str:
    """Hash of what a network is shown, for the config of `cache.fetch`.

    Images, ids, and the first images as `prepare` leaves them: a lambda, a closure or a partial has
    no source in `code_of`, and its settings no name.

    Args:
        more: tensors that belong to the images, for instance each one's source.
    """
    few = probe.x[:FEW].clone()  # `prepare` may work in place
    shown = probe.prepare(few) if probe.prepare else few
    return cache.state_hash({"x": probe.x, "ids": probe.ids, "prepared": shown, **more})


def code_of(
    model: nn.Module, probe: Probe, detectors: Sequence[Detector]
) -> list[Callable[..., object]]:
    """What scores depend on, for `cache.fetch`; of other people's code only the names count."""
    scores: list[Callable[..., object]] = [
        pointwise.wpmi,
        pointwise.score_sets,
        pointwise.standardise_sets,
        pointwise.membership,
        pointwise.reference,
        pointwise.matched,
        similarity.cosine,
        similarity.cosine_cubed,
        similarity.rank_reorder,
    ]
    kinds = {type(detector) for detector in detectors}
    used = scores if ClipDissect in kinds else []
    ours: list[Callable[..., object]] = [
        item
        for item in (type(model), probe.prepare)
        if isinstance(item, (type, types.FunctionType)) and item.__module__.startswith("lib.")
    ]
    return [scores_of, *used, *sorted(kinds, key=lambda kind: kind.__qualname__), *ours]
