"""Labelled sets for the case studies: scenes, objects, fundus images, and probing sets.

Source: specification of document 2, section 4.2, companion sets; document 2 trains on Places365,
CIFAR-10 and APTOS and probes with Broden and CIFAR-100, whose roles these have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from lib.data.base import Provenance, sha256_of
from lib.data.scenes import shading
from lib.data.scenes.painting import SIDE
from lib.data.scenes.vocabulary import SCENE_NAMES, THING_NAMES
from lib.data.scenes.world import CHUNK, SEEDS, World, make

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

SOURCE, LICENCE = "drawn by lib.data.scenes", "this project's"
ABSENT_B = ("windmill", "umbrella", "field", "beach")  # from the second probing set
GRADES = ("none", "mild", "moderate", "severe", "proliferative")
DOTS = ((0, 0), (1, 3), (4, 8), (9, 15), (16, 24))  # fewest and most dark dots of a grade
BLOTCHES = (0, 0, 3, 5, 8)  # most yellow ones of a grade; they say no more than the grade
VESSELS, STEPS = 5, 26
TINT = (0.5, 0.16, 0.08)


@dataclass(frozen=True)
class Labelled:
    """Images with one label each."""

    x: Tensor  # uint8 [n, 48, 48, 3]
    y: Tensor  # int64 [n]
    names: tuple[str, ...]
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.y)


def probe(n: int, seed: int) -> World:
    """The probing set number `seed` (0, 1, ...): every kind, never seen in any training."""
    return make(n, SEEDS["probe"] + seed)


def probe_b(n: int, seed: int) -> World:
    """The second probing set: without windmills, umbrellas, fields and beaches."""
    return make(n, SEEDS["probe-b"] + seed, exclude=ABSENT_B)


def scenes(n: int, seed: int, *, test: bool = False) -> Labelled:
    """Scene images with their scene, ten classes."""
    world = make(n, _seed(seed, test), kinds={"scene": 1.0})
    return _labelled("scenes", world.images, world.scene, SCENE_NAMES, seed)


def objects(n: int, seed: int, *, test: bool = False) -> Labelled:
    """Close-ups with their thing, twelve classes."""
    world = make(n, _seed(seed, test), kinds={"close-up": 1.0})
    return _labelled("objects", world.images, world.things[:, 0], THING_NAMES, seed)


def fundus(n: int, seed: int, *, test: bool = False) -> Labelled:
    """Images like a retina's with a grade 0 to 4, each as likely.

    A dark red disc on black with brighter vessels; the grade is the number of dark dots (none,
    1-3, 4-8, 9-15, 16 and more), whose place, and the yellow blotches that come with grades from
    2, say nothing more.

    Raises:
        ValueError: no images.
    """
    if n < 1 or seed < 0:
        raise ValueError(f"want n >= 1 images and a seed >= 0, got {n} and {seed}")
    first = SEEDS["fundus"] + seed + (SEEDS["probe"] // 2 if test else 0)
    images, grades = [], []
    for k, start in enumerate(range(0, n, CHUNK)):
        rng = np.random.default_rng((first, k))
        grade = rng.integers(len(GRADES), size=min(CHUNK, n - start))
        images.append(torch.from_numpy(_fundus(grade, rng)))
        grades.append(torch.from_numpy(grade))
    return _labelled("fundus", torch.cat(images), torch.cat(grades), GRADES, seed)


def _seed(seed: int, test: bool) -> int:
    return SEEDS["classifier-test" if test else "classifier-train"] + seed


def _labelled(name: str, x: Tensor, y: Tensor, names: tuple[str, ...], seed: int) -> Labelled:
    note = f"seed {seed}"
    provenance = Provenance(f"scenes/{name}", SOURCE, LICENCE, sha256_of(x, y), len(y), note)
    return Labelled(x, y, names, provenance)


def _fundus(grade: Ints, rng: np.random.Generator) -> NDArray[np.uint8]:
    n = len(grade)
    axis = np.arange(SIDE, dtype=np.float32) + 0.5
    centre = SIDE / 2 + rng.uniform(-1.5, 1.5, (n, 2))
    radius = rng.uniform(20, 23, n)
    dx = axis[None, None, :] - centre[:, 0, None, None]
    dy = axis[None, :, None] - centre[:, 1, None, None]
    far = np.hypot(dx, dy) / radius[:, None, None]
    disc = far <= 1
    tint = np.array(TINT) * rng.uniform(0.85, 1.15, (n, 1)) + rng.normal(0, 0.02, (n, 3))
    lit = tint[:, None, None] * (1.1 - 0.35 * far[..., None] ** 2)
    rgb = np.where(disc[..., None], lit, 0.02)
    vessel = _vessels(n, centre, radius, rng) & disc
    rgb[vessel] *= np.array([1.45, 1.7, 1.6])
    low, high = np.array(DOTS).T
    blots = rng.integers(0, np.array(BLOTCHES)[grade] + 1)
    _spots(rgb, centre, radius, blots, (0.85, 0.75, 0.3), 1.6, rng)
    _spots(
        rgb, centre, radius, rng.integers(low[grade], high[grade] + 1), (0.1, 0.02, 0.03), 1.1, rng
    )
    rgb += shading.PIXEL_SD * rng.standard_normal(rgb.shape)
    return (np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)


def _vessels(
    n: int,
    centre: Floats,
    radius: Floats,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Curves that start at one place of each disc and fork once: bool `[n, SIDE, SIDE]`."""
    found = np.zeros((n, SIDE, SIDE), bool)
    side = rng.choice(np.array([-1.0, 1.0]), n)
    start = centre + np.stack([0.5 * side * radius, rng.uniform(-3, 3, n)], 1)
    rows = np.arange(n)[:, None]
    heading = rng.uniform(0, 2 * np.pi, (n, VESSELS, 1))
    bend = rng.normal(0, 0.05, (n, VESSELS, 1))
    for fork in (-0.25, 0.25):
        steps = np.arange(STEPS)
        turned = heading + bend * steps + fork * np.maximum(steps - 8, 0) / 6
        path = np.cumsum(np.stack([np.cos(turned), np.sin(turned)], -1), 2) + start[:, None, None]
        at = np.clip(path.round().astype(int), 0, SIDE - 1).reshape(n, -1, 2)
        found[rows, at[..., 1], at[..., 0]] = True
    return found


def _spots(
    rgb: Floats,
    centre: Floats,
    radius: Floats,
    count: Ints,
    colour: tuple[float, float, float],
    size: float,
    rng: np.random.Generator,
) -> None:
    """Paint `count[i]` round spots inside the disc of image i, none touching another."""
    axis = np.arange(SIDE) + 0.5
    for i, many in enumerate(count.tolist()):
        places: list[Floats] = []
        while len(places) < many:
            angle, out = rng.uniform(0, 2 * np.pi), 0.88 * np.sqrt(rng.random())
            place = centre[i] + out * radius[i] * np.array([np.cos(angle), np.sin(angle)])
            place = np.floor(place) + 0.5  # on a pixel: every spot has the same pixels
            if all(np.abs(place - other).max() > 2 * size for other in places):
                places.append(place)
        for x, y in places:
            near = (axis[None, :] - x) ** 2 + (axis[:, None] - y) ** 2 <= size**2
            rgb[i][near] = colour
