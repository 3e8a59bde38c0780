"""Where each region of an image is: backgrounds and things, painted one over the other.

Every image has a plane of region numbers and a table that says what each region is, so painting
writes one plane and the five label planes are read from the table: masks are exact by
construction and always refer to the visible surface. All images that draw the same thing in the
same place of the order are painted together.

Source: specification of document 2, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lib.data.scenes import vocabulary
from lib.data.scenes.shapes import covered
from lib.data.scenes.vocabulary import (
    ANY,
    KINDS,
    MATERIALS,
    MAX_PARTS,
    SCENES,
    TEXTURES,
    THING_NAMES,
    THINGS,
    value,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Labels = NDArray[np.uint8]

SIDE = 48  # pixels
SLOTS = 3  # things an image may have
BACKGROUNDS = 3  # regions 0 to 2: above the horizon (or all), a band, below
REGIONS = BACKGROUNDS + SLOTS * MAX_PARTS
COL, MAT, TEX, OBJ, PART = range(5)  # columns of the table
P_TEXTURED, P_MATERIAL, P_TYPICAL = 0.45, 0.6, 0.75


@dataclass(frozen=True)
class Painted:
    """What n images show."""

    region: Labels  # [n, SIDE, SIDE] region numbers
    table: Labels  # [n, REGIONS, 5] label values of each region: colour, material, ...
    kind: Labels  # [n] place in KINDS
    scene: Labels  # [n] place in SCENES, plus one; 0: none
    things: NDArray[np.int8]  # [n, SLOTS] place in THINGS, front-most last; -1: none


def paint(
    kind: Labels, scenes: tuple[int, ...], things: tuple[int, ...], rng: np.random.Generator
) -> Painted:
    """Draw what each image of the given kinds (places in KINDS, `[n]`) shows, and paint it."""
    n = len(kind)
    region = np.zeros((n, SIDE, SIDE), np.uint8)
    table = np.zeros((n, REGIONS, 5), np.uint8)
    scene = np.zeros(n, np.uint8)
    is_scene = kind == KINDS.index("scene")
    scene[is_scene] = rng.choice(np.array(scenes), int(is_scene.sum())) + 1
    _paint_swatches(kind, table, rng)
    horizon = (rng.uniform(0.35, 0.60, n) * SIDE).round()
    _paint_backgrounds(scene, horizon, region, table, rng)
    close = kind == KINDS.index("close-up")
    table[close, 0, OBJ] = value("wall")
    drawn, x, y, radius = _place(scene, close, horizon, scenes, things, rng)
    flip = rng.choice(np.array([-1.0, 1.0], np.float32), (n, SLOTS))
    turn = rng.uniform(0, np.pi, (n, SLOTS)).astype(np.float32)
    for slot in range(SLOTS):
        for thing in np.unique(drawn[:, slot][drawn[:, slot] >= 0]):
            rows = np.flatnonzero(drawn[:, slot] == thing)
            place = (x[rows, slot], y[rows, slot], radius[rows, slot] * flip[rows, slot])
            _paint_thing(int(thing), slot, rows, place, turn[rows, slot], region, table, rng)
    _paint_walls(close, table, rng)
    return Painted(region, table, kind, scene, drawn)


def _paint_walls(close: NDArray[np.bool_], table: Labels, rng: np.random.Generator) -> None:
    """Give close-ups a wall of a colour that their thing does not have, or it would not be seen."""
    rows = np.flatnonzero(close)
    colours = np.array([value(name) for name in ANY], np.uint8)
    chance = rng.random((len(rows), len(colours)))
    used = (table[rows, BACKGROUNDS:, COL][:, :, None] == colours).any(1)
    table[rows, 0, COL] = colours[np.where(used, -1.0, chance).argmax(1)]


def _choose(words: tuple[str, ...], n: int, rng: np.random.Generator) -> Labels:
    """Label values of n words drawn with equal chances."""
    return rng.choice(np.array([value(w) for w in words], np.uint8), n)


def _paint_swatches(kind: Labels, table: Labels, rng: np.random.Generator) -> None:
    rows = np.flatnonzero((kind == KINDS.index("texture")) | (kind == KINDS.index("colour")))
    table[rows, 0, COL] = _choose(ANY, len(rows), rng)
    rows = np.flatnonzero(kind == KINDS.index("texture"))
    table[rows, 0, TEX] = _choose(TEXTURES, len(rows), rng)
    rows = np.flatnonzero(kind == KINDS.index("material"))
    chosen = rng.integers(len(MATERIALS), size=len(rows))
    for k, (name, colours) in enumerate(MATERIALS):
        part = rows[chosen == k]
        table[part, 0, MAT] = value(name)
        table[part, 0, COL] = _choose(colours, len(part), rng)


def _paint_backgrounds(
    scene: Labels,
    horizon: NDArray[np.float64],
    region: Labels,
    table: Labels,
    rng: np.random.Generator,
) -> None:
    height = np.arange(SIDE)[None, :]
    for k, (_, colours, above, band, below, _) in enumerate(SCENES):
        rows = np.flatnonzero(scene == k + 1)
        if not len(rows):
            continue
        edge = horizon[rows, None]
        if not above:  # water everywhere, a strip of ground at the bottom
            edge = SIDE - 0.4 * edge
            table[rows, 0, MAT] = value("water")
            table[rows, 0, COL] = _choose(_colours("water"), len(rows), rng)
        else:
            table[rows, 0, OBJ] = value(above)
            table[rows, 0, COL] = _choose(colours, len(rows), rng)
        if above == "wall":
            textured = rows[rng.random(len(rows)) < 0.5]
            table[textured, 0, TEX] = _choose(TEXTURES, len(textured), rng)
        lower = (height >= edge).astype(np.uint8) * 2
        if band:
            thick = rng.uniform(5, 11, (len(rows), 1))
            lower[(height >= edge) & (height < edge + thick)] = 1
            table[rows, 1, MAT] = value(band)
            table[rows, 1, COL] = _choose(_colours(band), len(rows), rng)
            table[rows, 1, OBJ] = value("wall") if band == "brick" else 0
        region[rows] = lower[:, :, None]
        table[rows, 2, MAT] = value(below)
        table[rows, 2, COL] = _choose(_colours(below), len(rows), rng)
        table[rows, 2, OBJ] = value("ground")


def _colours(material: str) -> tuple[str, ...]:
    return dict(MATERIALS)[material]


def _place(
    scene: Labels,
    close: NDArray[np.bool_],
    horizon: NDArray[np.float64],
    scenes: tuple[int, ...],
    things: tuple[int, ...],
    rng: np.random.Generator,
) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Which things, their centres and half sizes in pixels, all `[n, SLOTS]`; far ones first."""
    n = len(scene)
    drawn = rng.choice(np.array(things), (n, SLOTS)).astype(np.int8)
    typical = rng.random((n, SLOTS)) < P_TYPICAL
    for k in scenes:
        usual = [THING_NAMES.index(word) for word in SCENES[k][-1]]
        usual = [thing for thing in usual if thing in things]
        at = np.nonzero(typical & (scene == k + 1)[:, None])
        if usual:
            drawn[at] = rng.choice(np.array(usual), len(at[0]))
    many = rng.integers(1, SLOTS + 1, n)
    drawn[np.arange(SLOTS) >= many[:, None]] = -1
    drawn[scene == 0] = -1
    drawn[close, 0] = rng.choice(np.array(things), int(close.sum()))
    radius = rng.uniform(7, 17, (n, SLOTS))
    base = horizon[:, None] + rng.random((n, SLOTS)) * 0.45 * (SIDE - horizon[:, None]) + 1
    radius = np.minimum(radius, base / 2)
    x = rng.uniform(6, SIDE - 6, (n, SLOTS))
    y = base - radius
    swims = (drawn == THING_NAMES.index("fish")) | (scene == 1 + UNDERWATER)[:, None]
    y = np.where(swims, rng.uniform(10, SIDE - 10, (n, SLOTS)), y)
    near = rng.uniform(16, 30, n)
    free = np.maximum(SIDE / 2 - 0.8 * near, 0)[:, None] + 3
    middle = SIDE / 2 + (2 * rng.random((n, 2)) - 1) * free
    radius[close, 0] = near[close]
    x[close, 0], y[close, 0] = middle[close].T
    order = np.where(drawn < 0, np.inf, y + radius).argsort(1, kind="stable")
    placed = [np.take_along_axis(a, order, 1) for a in (drawn, x, y, radius)]
    return placed[0], *(a.astype(np.float32) for a in placed[1:])  # type: ignore[return-value]


UNDERWATER = vocabulary.SCENE_NAMES.index("underwater")


def _paint_thing(
    thing: int,
    slot: int,
    rows: Ints,
    place: tuple[NDArray[np.float32], ...],
    turn: NDArray[np.float32],
    region: Labels,
    table: Labels,
    rng: np.random.Generator,
) -> None:
    name, parts = THINGS[thing]
    x, y, radius = (a[:, None, None] for a in place)  # a negative radius mirrors
    axis = np.arange(SIDE, dtype=np.float32) + 0.5
    u = ((axis[None, None, :] - x) / radius).astype(np.float32)
    v = ((axis[None, :, None] - y) / np.abs(radius)).astype(np.float32)
    here = region[rows]
    for k, (part, colours, materials, textured, shapes) in enumerate(parts):
        number = BACKGROUNDS + slot * MAX_PARTS + k
        here[covered(shapes, u, v, turn[:, None, None])] = number
        table[rows, number] = _surface(part, name, colours, materials, textured, len(rows), rng)
    region[rows] = here


def _surface(
    part: str,
    thing: str,
    colours: tuple[str, ...],
    materials: tuple[str, ...],
    textured: bool,
    n: int,
    rng: np.random.Generator,
) -> Labels:
    """Label values `[n, 5]` of one part of n things: a texture, a material, or neither."""
    found = np.zeros((n, 5), np.uint8)
    found[:, OBJ], found[:, PART] = value(thing), value(part)
    found[:, COL] = _choose(colours, n, rng)
    is_textured = (rng.random(n) < P_TEXTURED) & textured
    rows = np.flatnonzero(is_textured)
    found[rows, TEX] = _choose(TEXTURES, len(rows), rng)
    if materials:
        rows = np.flatnonzero(~is_textured & (rng.random(n) < P_MATERIAL))
        chosen = rng.integers(len(materials), size=len(rows))
        for k, material in enumerate(materials):
            some = rows[chosen == k]
            both = tuple(c for c in colours if c in _colours(material)) or _colours(material)
            found[some, MAT] = value(material)
            found[some, COL] = _choose(both, len(some), rng)
    return found
