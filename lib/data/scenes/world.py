"""The world itself: `make` draws images with masks and captions from a seed.

Source: specification of document 2, section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.data.annotations import CATEGORIES, Annotations
from lib.data.scenes import captions, painting, shading
from lib.data.scenes.painting import COL, MAT, OBJ, PART, SIDE, TEX
from lib.data.scenes.vocabulary import (
    KINDS,
    SCENE_NAMES,
    THING_NAMES,
    concepts,
    value,
)

CHUNK = 512  # images that one generator draws
SPAN = 1_000_000  # seeds of a role: its first one to this many more
ROLES = ("encoder", "probe", "classifier-train", "classifier-test", "probe-b", "fundus")
SEEDS = {role: k * SPAN for k, role in enumerate(ROLES)}  # where each role's range begins
PROBE_MIX = (
    ("scene", 0.60),
    ("texture", 0.12),
    ("material", 0.12),
    ("colour", 0.04),
    ("close-up", 0.12),
)
PLANES = (COL, OBJ, PART, MAT, TEX)  # in the order of CATEGORIES, which has scene before texture
LABEL_SIDE = SIDE // 2  # Broden's label planes have half the image's side


@dataclass(frozen=True)
class World:
    """n images with their labels."""

    images: Tensor  # uint8 [n, 48, 48, 3]
    planes: Tensor  # uint8 [n, 5, 48, 48]: colour, object, part, material, texture; 0: none
    scene: Tensor  # int64 [n], 0..9, -1: none
    kind: Tensor  # int64 [n], place in KINDS
    things: Tensor  # int64 [n, 3], place in THING_NAMES, far ones first, -1: none
    light: Tensor  # float32 [n], factor on all pixels
    coverage: Tensor  # float32 [n, 74] share of the image's pixels, 1 for its scene
    captions: tuple[str, ...]
    short: Tensor  # int64 [n, 2]: a short caption's words as label values, 0: none; long: 0, 0

    def __len__(self) -> int:
        return len(self.images)

    def visible(self) -> Tensor:
        """Whether a concept's coverage reaches its category's floor, bool `[n, 74]`."""
        return torch.from_numpy(captions.visible_in(self.coverage.numpy()))

    def annotations(self) -> Annotations:
        """Labels at half the image's resolution, as Broden has them.

        Colour is annotated everywhere, objects in scenes and close-ups, the scene in scenes; a
        texture, material or part where at least one pixel of the small planes is labelled.
        """
        planes = self.planes[:, :, ::2, ::2].to(torch.int16)
        kinds = [KINDS.index("scene"), KINDS.index("close-up")]
        whole = torch.where(self.scene >= 0, self.scene + value(SCENE_NAMES[0]), 0)
        annotated = torch.zeros(len(self), len(CATEGORIES), dtype=torch.bool)
        for k, category in enumerate(c for c in CATEGORIES if c != "scene"):
            some = planes[:, k].flatten(1).any(1)
            annotated[:, CATEGORIES.index(category)] = some
        annotated[:, CATEGORIES.index("object")] |= torch.isin(self.kind, torch.tensor(kinds))
        annotated[:, CATEGORIES.index("scene")] = self.scene >= 0
        return Annotations(concepts(), planes, whole[:, None].to(torch.int32), annotated)


def make(
    n: int,
    seed: int,
    *,
    kinds: Mapping[str, float] | tuple[tuple[str, float], ...] = PROBE_MIX,
    exclude: tuple[str, ...] = (),
) -> World:
    """Draw n images; the same arguments give the same bytes.

    Args:
        seed: non-negative; take it from the role's range of `SEEDS`.
        kinds: share of each kind, a name in `KINDS`; drawn image by image.
        exclude: things and scenes that never appear.

    Raises:
        ValueError: no images, an unknown kind or name, shares that are negative or all zero, or
            nothing left to draw.
    """
    parts = list(chunks(n, seed, kinds=kinds, exclude=exclude))
    tensors = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in World.__dataclass_fields__
        if name != "captions"
    }
    return World(captions=tuple(text for part in parts for text in part.captions), **tensors)


def chunks(
    n: int,
    seed: int,
    *,
    kinds: Mapping[str, float] | tuple[tuple[str, float], ...] = PROBE_MIX,
    exclude: tuple[str, ...] = (),
) -> Iterator[World]:
    """The images of `make` in pieces of at most `CHUNK`, so that a large set needs little memory.

    Piece k has a generator of its own, made of the seed and k.
    """
    shares = dict(kinds)
    if n < 1 or seed < 0:
        raise ValueError(f"want n >= 1 images and a seed >= 0, got {n} and {seed}")
    unknown = [k for k in shares if k not in KINDS] + [
        word for word in exclude if word not in SCENE_NAMES + THING_NAMES
    ]
    if unknown:
        raise ValueError(
            f"no kind, scene or thing {', '.join(map(repr, unknown))}; kinds are "
            f"{', '.join(KINDS)}, the others are in lib.data.scenes.vocabulary"
        )
    weight = np.array([shares.get(kind, 0.0) for kind in KINDS], dtype=np.float64)
    scenes = tuple(k for k, name in enumerate(SCENE_NAMES) if name not in exclude)
    things = tuple(k for k, name in enumerate(THING_NAMES) if name not in exclude)
    if (weight < 0).any() or not weight.sum() > 0 or not scenes or not things:
        raise ValueError(
            f"want shares >= 0 that are not all zero, and things and scenes left over;"
            f" got {shares} without {', '.join(exclude) or 'nothing'}"
        )
    for k, start in enumerate(range(0, n, CHUNK)):
        size = min(CHUNK, n - start)
        yield _chunk(size, weight / weight.sum(), scenes, things, np.random.default_rng((seed, k)))


def _chunk(
    n: int,
    shares: np.typing.NDArray[np.float64],
    scenes: tuple[int, ...],
    things: tuple[int, ...],
    rng: np.random.Generator,
) -> World:
    kind = rng.choice(len(KINDS), n, p=shares).astype(np.uint8)
    painted = painting.paint(kind, scenes, things, rng)
    said = captions.write(painted, rng)
    style = shading.draw_style(n, rng)
    index = painted.region + (np.arange(n) * painting.REGIONS)[:, None, None]
    col, obj, part, mat, tex = (
        painted.table[:, :, column].reshape(-1).take(index) for column in PLANES
    )
    images = shading.shade(col, mat, tex, style, rng)
    return World(
        images=torch.from_numpy(images),
        planes=torch.from_numpy(np.stack([col, obj, part, mat, tex], 1)),
        scene=torch.from_numpy(painted.scene.astype(np.int64)) - 1,
        kind=torch.from_numpy(kind.astype(np.int64)),
        things=torch.from_numpy(painted.things.astype(np.int64)),
        light=torch.from_numpy(style.light),
        coverage=torch.from_numpy(said.coverage),
        captions=said.texts,
        short=torch.from_numpy(said.short.astype(np.int64)),
    )


def prepare(pixels: Tensor) -> Tensor:
    """Images uint8 `[n, 48, 48, 3]` as networks want them: float32 `[n, 3, 48, 48]`, -2 to 2."""
    return (pixels.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
