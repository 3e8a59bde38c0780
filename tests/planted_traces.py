"""Traces with words planted by hand, for the tests of the case studies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lib.monitoring.activations import ConceptSet
from lib.monitoring.record import Trace
from lib.monitoring.space import Space, concept_weights

CONCEPTS = ConceptSet(
    ("red", "striped", "wood", "tree", "roof", "beach", "windmill", "lamp", "boat", "fish"),
    (
        *("color", "texture", "material", "object", "part", "scene"),
        *("object", "object", "object", "object"),
    ),
)
SPACE = Space.of(CONCEPTS, torch.eye(len(CONCEPTS)))


def trace(
    labels: Sequence[Sequence[str]],
    interpretable: Sequence[Sequence[int]] | None = None,
    *,
    epochs: Sequence[int] | None = None,
    scores: Tensor | None = None,
    layer: str = "layer4",
    detector: str = "clip",
    arm: str = "standard",
    space: Space = SPACE,
) -> Trace:
    """A trace whose best concepts are the given words, a row a checkpoint; k = 2."""
    concepts = space.concepts
    first = torch.tensor([[concepts.number(word) for word in row] for row in labels])
    second = (first + 1) % len(concepts)
    numbers = torch.stack([first, second], -1).int()
    e, m = first.shape
    best = torch.full((e, m), 9.0) if scores is None else scores.float()
    h = torch.stack([best, torch.zeros(e, m)], -1)
    weights = concept_weights(h)
    passes = torch.ones(e, m) if interpretable is None else torch.tensor(interpretable)
    return Trace(
        run="run",
        arm=arm,
        detector=detector,
        layer=layer,
        epochs=tuple(epochs or range(e)),
        concepts=numbers,
        h=h,
        weights=weights,
        attainment=torch.full((e, m), 0.7),
        interpretable=passes.bool(),
        dead=torch.zeros(e, m, dtype=torch.bool),
        u=space.place(numbers, weights).half(),
        xy=torch.zeros(e, m, 2),
    )
