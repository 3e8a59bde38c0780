"""Captions that name only what is visible.

Long captions follow a small grammar; short ones are one or two bare concept words. A caption is
assembled from uniform numbers drawn beforehand, so that a set is a pure function of its seed.

Source: specification of document 2, section 4.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lib.data.scenes.painting import (
    BACKGROUNDS,
    COL,
    MAT,
    OBJ,
    PART,
    REGIONS,
    SIDE,
    SLOTS,
    TEX,
    Painted,
)
from lib.data.scenes.vocabulary import (
    KINDS,
    MAIN,
    MAX_PARTS,
    NAMES,
    SCENE_NAMES,
    THING_NAMES,
    THINGS,
    WORDS,
    floors,
    value,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Bools = NDArray[np.bool_]

P_SHORT, P_TWO_WORDS = 0.4, 0.5
P_COLOUR, P_SURFACE, P_PART, P_SCENE, P_STUFF = 0.7, 0.8, 0.5, 0.8, 0.5
DRAWS = 24  # uniform numbers a caption
WEIGHTS = (1.0, 2.0, 3.0, 1.5, 1.0, 4.0)  # of the categories in short captions
OPENINGS = ("a photo of ", "a picture of ", "")
GRAMMAR = "a an the of in with and photo picture close-up surface texture colour some"
SEPARATOR = ","


@dataclass(frozen=True)
class Captions:
    """Captions of n images, and what they may name."""

    texts: tuple[str, ...]
    short: NDArray[np.int16]  # [n, 2] label values of a short caption's words, 0: none; long: 0, 0
    coverage: Floats  # [n, 74] share of the image's pixels; a scene: 1


def coverage_of(painted: Painted) -> tuple[Floats, NDArray[np.int64]]:
    """Coverage of each concept `[n, 74]`, and visible pixels of each region `[n, REGIONS]`."""
    n = len(painted.kind)
    index = painted.region.reshape(n, -1) + (np.arange(n) * REGIONS)[:, None]
    pixels = np.bincount(index.ravel(), minlength=n * REGIONS).reshape(n, REGIONS)
    total = np.zeros((n, len(WORDS) + 1))
    rows = np.arange(n)[:, None]
    for column in range(5):
        np.add.at(total, (rows, painted.table[:, :, column]), pixels)
    total /= SIDE * SIDE
    scene = painted.scene > 0
    total[scene, value(SCENE_NAMES[0]) - 1 + painted.scene[scene]] = 1.0
    return total[:, 1:].astype(np.float32), pixels


def visible_in(coverage: Floats) -> Bools:
    """Whether each concept's coverage reaches its floor, `[n, 74]`."""
    return coverage >= np.array(floors(), np.float32)


def write(painted: Painted, rng: np.random.Generator) -> Captions:
    """Captions of painted images."""
    coverage, pixels = coverage_of(painted)
    n = len(coverage)
    visible = visible_in(coverage)
    short = _short(visible, rng)
    draws = rng.random((n, DRAWS)).tolist()
    shown = (pixels >= floors()[value("window") - 1] * SIDE * SIDE).tolist()
    table, things = painted.table.tolist(), painted.things.tolist()
    kind, scene, words = painted.kind.tolist(), painted.scene.tolist(), short.tolist()
    texts = []
    for i in range(n):
        first, second = words[i]
        if first:
            texts.append(WORDS[first - 1] + (f" {WORDS[second - 1]}" if second else ""))
        else:
            image = _Image(table[i], shown[i], things[i], iter(draws[i]))
            texts.append(LONG[KINDS[kind[i]]](image, scene[i]))
    return Captions(tuple(texts), short, coverage)


def _short(visible: Bools, rng: np.random.Generator) -> NDArray[np.int16]:
    """Label values of one or two visible words, or 0: `[n, 2]`."""
    n = len(visible)
    weight = np.repeat(WEIGHTS, [len(names) for names in NAMES])
    # the largest of log weight + Gumbel noise is a draw in proportion to the weights
    key = np.where(visible, np.log(weight) + rng.gumbel(size=visible.shape), -np.inf)
    best = np.argsort(-key, axis=1)[:, :2]
    found = np.where(np.take_along_axis(visible, best, 1), best + 1, 0)
    found[rng.random(n) >= P_TWO_WORDS, 1] = 0
    found[rng.random(n) >= P_SHORT] = 0
    return found.astype(np.int16)


class _Image:
    """One image's regions, and the chances that its caption takes."""

    def __init__(
        self, table: list[list[int]], shown: list[bool], things: list[int], draws: object
    ) -> None:
        self.table, self.shown, self.things = table, shown, things
        self.draws = draws

    def chance(self, p: float) -> bool:
        return next(self.draws) < p  # type: ignore[call-overload]

    def pick(self, choices: tuple[str, ...]) -> str:
        return choices[int(next(self.draws) * len(choices))]  # type: ignore[call-overload]

    def attributes(self, region: int) -> str:
        """Colour and surface of a region, each said or not."""
        row = self.table[region]
        said = [WORDS[row[COL] - 1]] if self.chance(P_COLOUR) else []
        surface = row[TEX] or row[MAT]
        if surface and self.chance(P_SURFACE):
            said.append(WORDS[surface - 1])
        return " ".join(said)

    def noun(self, region: int, column: int) -> str:
        return f"{self.attributes(region)} {WORDS[self.table[region][column] - 1]}".strip()

    def thing(self, slot: int) -> str:
        """ "a red striped boat with a brown mast"; the thing's main part gives colour, surface."""
        number = self.things[slot]
        first = BACKGROUNDS + slot * MAX_PARTS
        main = first + part_numbers(number).index(MAIN[number])
        said = self.noun(main, OBJ) if self.shown[main] else THING_NAMES[number]
        parts = [
            r
            for r in range(first, first + len(part_numbers(number)))
            if self.shown[r] and r != main
        ]
        text = with_article(said)
        if parts and self.chance(P_PART):
            part = parts[int(next(self.draws) * len(parts))]  # type: ignore[call-overload]
            text += f" with {with_article(self.noun(part, PART))}"
        return text


def part_numbers(thing: int) -> tuple[str, ...]:
    """Names of a thing's parts, in painter order."""
    return tuple(part[0] for part in THINGS[thing][1])


def with_article(text: str) -> str:
    """ "an orange boat", "a boat"."""
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def _scene(image: _Image, scene: int) -> str:
    floor = 2  # parts of a thing that must be visible for it to be named: one is enough
    slots = [
        s
        for s in range(SLOTS)
        if image.things[s] >= 0
        and any(image.shown[BACKGROUNDS + s * MAX_PARTS : BACKGROUNDS + (s + 1) * MAX_PARTS])
    ]
    text = image.pick(OPENINGS)
    text += " and ".join(image.thing(s) for s in reversed(slots[-floor:]))
    if image.chance(P_SCENE) or not slots:
        place = with_article(SCENE_NAMES[scene - 1])
        text += f" in {place}" if slots else place
    if image.chance(P_STUFF):
        stuff = [r for r in range(BACKGROUNDS) if image.shown[r]]
        region = stuff[int(next(image.draws) * len(stuff))]  # type: ignore[call-overload]
        row = image.table[region]
        column = OBJ if row[OBJ] else MAT
        if column == OBJ:
            text += f" {SEPARATOR} {image.noun(region, OBJ)}"
        else:  # water that is no object: its colour and its name
            text += f" {SEPARATOR} {WORDS[row[COL] - 1]} {WORDS[row[MAT] - 1]}"
    return text


def _texture(image: _Image, scene: int) -> str:
    row = image.table[0]
    noun = image.pick(("surface", "texture"))
    colour = f"{WORDS[row[COL] - 1]} " if image.chance(P_COLOUR) else ""
    return image.pick(("a ", "")) + f"{colour}{WORDS[row[TEX] - 1]} {noun}"


def _material(image: _Image, scene: int) -> str:
    row = image.table[0]
    colour = f"{WORDS[row[COL] - 1]} " if image.chance(P_COLOUR) else ""
    return image.pick(("some ", "", "")) + f"{colour}{WORDS[row[MAT] - 1]}"


def _colour(image: _Image, scene: int) -> str:
    word = WORDS[image.table[0][COL] - 1]
    return image.pick(("the colour {}", "{} surface", "a {} surface")).format(word)


def _close_up(image: _Image, scene: int) -> str:
    number = image.things[0]
    shown = [
        BACKGROUNDS + k for k in range(len(part_numbers(number))) if image.shown[BACKGROUNDS + k]
    ]
    if image.chance(0.5) and shown:
        region = shown[int(next(image.draws) * len(shown))]  # type: ignore[call-overload]
        whole = with_article(THING_NAMES[number])
        return f"a close-up of the {image.noun(region, PART)} of {whole}"
    return image.thing(0)


LONG = {
    "scene": _scene,
    "texture": _texture,
    "material": _material,
    "colour": _colour,
    "close-up": _close_up,
}
