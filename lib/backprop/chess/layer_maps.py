"""Which layer of which checkpoint holds a concept (document 5's companion on detection).

Public names: `Detection`, `detection_map`, `detection_maps`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.backprop.chess.concepts import owns_queen
from lib.backprop.chess.detection import quick_score
from lib.backprop.chess.reading import features_by_layer
from lib.backprop.chess.studies import Bed

Progress = Callable[[range], Iterator[int]]


@dataclass(frozen=True)
class Detection:
    """S of one concept; rows are checkpoints, columns layers."""

    concept: str
    checkpoints: tuple[str, ...]
    layers: tuple[str, ...]
    score: Tensor  # [checkpoints, layers]
    half: Tensor  # [checkpoints, layers], half the 95% interval
    rule: float  # S of the best trivial rule on the same sample


def detection_map(
    bed: Bed,
    concept: str,
    n: int,
    *,
    seed: int,
    checkpoints: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Detection:
    """S by layer and checkpoint, on balanced but unmatched positions as published.

    Trivial rule: a side owns a queen (that side for the threats; the better of both otherwise).
    """
    data = bed.sample(concept, n, seed=seed, matched=False)
    names = tuple(bed.checkpoints if checkpoints is None else checkpoints)
    found, todo = [], range(len(names))
    for row in progress(todo) if progress else todo:
        at = bed.checkpoints[names[row]]
        z = features_by_layer(at, data.boards, bed.layers, bed.encode)
        first = seed + row * len(bed.layers)
        found.append([
            quick_score(z[layer], data, seed=first + k) for k, layer in enumerate(bed.layers)
        ])  # fmt: skip
    grid = torch.tensor(found, dtype=torch.float64)
    queens = (owns_queen(data.boards), owns_queen(data.boards.turned()))
    rule = max(2 * float((q == data.label).mean()) - 1 for q in queens)
    return Detection(concept, names, bed.layers, grid[..., 0], grid[..., 1], max(rule, 0.0))


def detection_maps(
    bed: Bed, concepts: Sequence[str], n: int, *, seed: int, progress: Progress | None = None
) -> dict[str, Detection]:
    """The first concept in every checkpoint, the others in the trained network; by name."""
    last = list(bed.checkpoints)[-1:]
    found = {}
    for k, concept in enumerate(concepts):
        at = None if k == 0 else last
        found[concept] = detection_map(
            bed, concept, n, seed=seed + 1000 * k, checkpoints=at, progress=progress
        )
    return found
