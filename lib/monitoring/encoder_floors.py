"""How good an image-text encoder is on the probing world, against floors fixed beforehand.

Below a floor, what a concept detector reports says more about the encoder than about the network:
a notebook then says "encoder too weak", not "network uninterpretable".

Public names: `Quality`, `Measured`, `measure`, `roc_auc`.

Source: specification of document 2, section 4.4.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.data.annotations import CATEGORIES
from lib.data.scenes.vocabulary import (
    ANY,
    KINDS,
    MATERIALS,
    NAMES,
    SCENE_NAMES,
    TEXTURES,
    THING_NAMES,
    WORDS,
    value,
)
from lib.data.scenes.world import World
from lib.monitoring.encoder import Encoder

MATERIAL_NAMES = tuple(name for name, _ in MATERIALS)
# task: kind of image, words to choose from, floor of the share that is right
ZERO_SHOT = (
    ("colour swatch", "colour", ANY, 0.95),
    ("material swatch", "material", MATERIAL_NAMES, 0.80),
    ("texture swatch", "texture", TEXTURES, 0.50),
    ("object close-up", "close-up", THING_NAMES, 0.50),
    ("scene", "scene", SCENE_NAMES, 0.85),
)
AUC_FLOORS = (0.90, 0.90, 0.85, 0.90, 0.95, 0.85)  # mean over concepts, in the order of CATEGORIES


@dataclass(frozen=True)
class Measured:
    """One number and its floor."""

    task: str
    value: float  # share right, or mean area under the curve
    floor: float
    n: int  # images, or concepts
    lowest: float = float("nan")  # of the concepts

    @property
    def holds(self) -> bool:
        """Whether the floor is reached."""
        return self.value >= self.floor


@dataclass(frozen=True)
class Quality:
    """All of them."""

    zero_shot: tuple[Measured, ...]
    auc: tuple[Measured, ...]
    areas: Tensor  # float32 [74], NaN for a concept that no image, or every image, shows

    @property
    def is_good_enough(self) -> bool:
        """Whether every floor is reached."""
        return all(m.holds for m in self.zero_shot + self.auc)

    def __str__(self) -> str:
        low = [m.task for m in self.zero_shot + self.auc if not m.holds]
        return f"encoder too weak for {', '.join(low)}" if low else "encoder above all floors"


def measure(encoder: Encoder, world: World) -> Quality:
    """Zero-shot accuracy with bare words, and areas under the ROC curve, on a probing set."""
    return measure_similarities(encoder.similarities(world.images, WORDS), world)


def measure_similarities(similarity: Tensor, world: World) -> Quality:
    """The same from similarities `[n, 74]` of the images and `WORDS`.

    Raises:
        ValueError: another shape.
    """
    if similarity.shape != (len(world), len(WORDS)):
        raise ValueError(
            f"want similarities [{len(world)}, {len(WORDS)}], got {list(similarity.shape)}"
        )
    areas = roc_auc(similarity, world.visible())
    zero_shot = tuple(
        _zero_shot(similarity, world, task, kind, words, floor)
        for task, kind, words, floor in ZERO_SHOT
    )
    auc = []
    first = 0
    for category, names, floor in zip(CATEGORIES, NAMES, AUC_FLOORS, strict=True):
        some = areas[first : first + len(names)]
        some = some[some.isfinite()]
        first += len(names)
        lowest = float(some.min()) if len(some) else float("nan")
        auc.append(Measured(category, float(some.mean()), floor, len(some), lowest))
    return Quality(zero_shot, tuple(auc), areas)


def _zero_shot(
    similarity: Tensor, world: World, task: str, kind: str, words: tuple[str, ...], floor: float
) -> Measured:
    rows = (world.kind == KINDS.index(kind)).nonzero()[:, 0]
    columns = torch.tensor([value(word) - 1 for word in words])
    chosen = similarity[rows][:, columns].argmax(1)
    truth = _truth(world, kind)[rows]
    return Measured(task, (chosen == truth).float().mean().item(), floor, len(rows))


def _truth(world: World, kind: str) -> Tensor:
    """Place of the right word among the task's words, `[n]`."""
    if kind == "scene":
        return world.scene
    if kind == "close-up":
        return world.things[:, 0]
    plane, first = {"colour": (0, ANY[0]), "material": (3, "wood"), "texture": (4, "striped")}[kind]
    return world.planes[:, plane, 0, 0].long() - value(first)  # a swatch is the same all over


def roc_auc(scores: Tensor, positive: Tensor) -> Tensor:
    """Area under each column's ROC curve, `[c]`; NaN where a column has one class only.

    Args:
        scores: `[n, c]`; equal scores count half.
        positive: bool `[n, c]`.
    """
    areas = torch.full((scores.shape[1],), float("nan"))
    for k in range(scores.shape[1]):
        yes, no = scores[positive[:, k], k], scores[~positive[:, k], k].sort().values
        if len(yes) and len(no):
            below = torch.searchsorted(no, yes).double()
            upto = torch.searchsorted(no, yes, right=True).double()
            areas[k] = ((below + upto).mean() / 2 / len(no)).float()
    return areas
