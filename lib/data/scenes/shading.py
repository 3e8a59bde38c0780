"""Pixels from label planes: each image's palette, light, surfaces and noise.

A pixel is its colour, times the modulation of its texture or material, times the light, plus
noise; it depends on the planes and on the image's style alone, so that what a mask says is what
is seen. Surfaces are computed only where they are.

Source: specification of document 2, section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lib.data.scenes.vocabulary import COLOURS, MATERIALS, TEXTURES, value

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Planes = NDArray[np.uint8]

COARSE = 7  # knots a side of low-frequency noise
PALETTE_SD, PIXEL_SD = 0.035, 0.02


@dataclass(frozen=True)
class Style:
    """What all surfaces of an image share."""

    light: Array  # [n] factor
    palette: Array  # [n, 11, 3]
    cos: Array  # [n] of the textures' angle
    sin: Array
    frequency: Array  # [n] radians a pixel
    phase: Array  # [n, 2]
    coarse: Array  # [n, COARSE, COARSE] normal


def draw_style(n: int, rng: np.random.Generator) -> Style:
    """Styles of n images."""
    angle = rng.uniform(0, np.pi, n)
    base = np.array([rgb for _, rgb in COLOURS], np.float32)
    jitter = rng.standard_normal((n, len(COLOURS), 3), dtype=np.float32)
    return Style(
        rng.uniform(0.8, 1.15, n).astype(np.float32),
        base + PALETTE_SD * jitter,
        np.cos(angle).astype(np.float32),
        np.sin(angle).astype(np.float32),
        (2 * np.pi / rng.uniform(5, 9, n)).astype(np.float32),
        rng.uniform(0, 2 * np.pi, (n, 2)).astype(np.float32),
        rng.standard_normal((n, COARSE, COARSE), dtype=np.float32),
    )


def shade(
    colour: Planes, material: Planes, texture: Planes, style: Style, rng: np.random.Generator
) -> Planes:
    """Images uint8 `[n, h, w, 3]` of label planes uint8 `[n, h, w]`."""
    n, h, w = colour.shape
    lit = style.palette * style.light[:, None, None]
    index = (np.arange(n, dtype=np.int64) * len(COLOURS))[:, None, None] + colour - value("black")
    rgb = np.take(lit.reshape(-1, 3), index, axis=0)
    factor = np.ones(n * h * w, np.float32)
    for plane, names in ((texture, TEXTURES), (material, tuple(name for name, _ in MATERIALS))):
        flat = plane.reshape(-1)
        for name in names:
            at = np.flatnonzero(flat == value(name))
            if len(at):
                factor[at] = SURFACES[name](Pixels(at, h, w, style, rng))
    rgb *= factor.reshape(n, h, w, 1)
    rgb += PIXEL_SD * rng.standard_normal(rgb.shape, dtype=np.float32)
    np.clip(rgb, 0, 1, out=rgb)
    rgb *= 255
    rgb += 0.5
    return rgb.astype(np.uint8)


class Pixels:
    """The pixels of one surface, as flat arrays `[k]`."""

    def __init__(
        self, at: NDArray[np.int64], h: int, w: int, style: Style, rng: np.random.Generator
    ) -> None:
        self.image, within = np.divmod(at, h * w)
        rows, columns = np.divmod(within, w)
        self.row, self.column, self.style, self.rng = rows, columns, style, rng
        self.side = (h, w)
        self.x, self.y = columns.astype(np.float32), rows.astype(np.float32)

    def waves(self) -> tuple[Array, Array]:
        """Phases along and across the image's direction."""
        s = self.style
        c, d, f = (a[self.image] for a in (s.cos, s.sin, s.frequency))
        along = f * (c * self.x + d * self.y) + s.phase[self.image, 0]
        across = f * (c * self.y - d * self.x) + s.phase[self.image, 1]
        return along, across

    def noise(self) -> Array:
        """Low-frequency noise: coarse normal knots, bilinear between them."""
        fields = _enlarge(self.side[0]) @ self.style.coarse @ _enlarge(self.side[1]).T
        return fields.astype(np.float32)[self.image, self.row, self.column]

    def white(self, held: int = 1) -> Array:
        """White noise, the same for `held` rows in turn."""
        h, w = self.side
        if held == 1:
            return self.rng.standard_normal(len(self.x), dtype=np.float32)
        images = int(self.image[-1]) + 1
        field = self.rng.standard_normal((images, h // held + 1, w), dtype=np.float32)
        return field[self.image, self.row // held, self.column]


def _enlarge(size: int) -> Array:
    """Bilinear weights `[size, COARSE]`."""
    place = np.linspace(0, COARSE - 1, size)
    return np.clip(1 - np.abs(place[:, None] - np.arange(COARSE)), 0, 1).astype(np.float32)


def _dark(where: NDArray[np.bool_], factor: float) -> Array:
    return np.where(where, np.float32(factor), np.float32(1.0))


def striped(p: Pixels) -> Array:
    return _dark(np.sin(p.waves()[0]) > 0, 0.35)


def chequered(p: Pixels) -> Array:
    a, b = p.waves()
    return _dark(np.sin(a) * np.sin(b) > 0, 0.35)


def dotted(p: Pixels) -> Array:
    a, b = p.waves()
    return _dark((0.5 + 0.5 * np.sin(a)) * (0.5 + 0.5 * np.sin(b)) > 0.62, 0.25)


def grid(p: Pixels) -> Array:
    a, b = p.waves()
    return _dark((np.sin(a) > 0.75) | (np.sin(b) > 0.75), 0.3)


def zigzagged(p: Pixels) -> Array:
    a, b = p.waves()
    turn = np.float32(2 * np.pi)
    triangle = np.abs((b / turn / 1.5) % 1 - np.float32(0.5)) * 4 - 1  # longer than it is wide
    return _dark(np.sin(a + 2.2 * triangle) > 0, 0.35)


def marbled(p: Pixels) -> Array:
    wave: Array = np.sin(5.0 * p.noise() + 0.35 * p.waves()[0])
    return 0.65 + 0.35 * wave


def wood(p: Pixels) -> Array:
    grain: Array = np.sin(1.5 * p.y + 2.5 * p.noise())
    return 0.85 + 0.22 * grain


def brick(p: Pixels) -> Array:
    row = p.row // 4
    mortar = (p.row % 4 == 0) | ((p.column + 4 * (row % 2)) % 8 == 0)
    return np.where(mortar, np.float32(1.35), np.float32(0.85))


def metal(p: Pixels) -> Array:
    wave = np.sin((p.x + p.y) * np.float32(2 * np.pi / 16) + p.style.phase[p.image, 0])
    return 0.85 + 0.5 * np.maximum(wave, 0) ** 3


def water(p: Pixels) -> Array:
    bend = 1.4 * np.sin(p.x * np.float32(2 * np.pi / 13) + p.style.phase[p.image, 0])
    return 0.95 + 0.22 * np.sin((p.y + bend) * np.float32(2 * np.pi / 5))


def grass(p: Pixels) -> Array:
    return np.clip(0.9 + 0.26 * p.white(held=4), 0.3, 1.5)


def sand(p: Pixels) -> Array:
    return 1.0 + 0.14 * p.white()


def stone(p: Pixels) -> Array:
    return 0.95 + 0.25 * np.tanh(2.5 * p.noise())


def fabric(p: Pixels) -> Array:
    return np.where((p.row // 2 + p.column // 2) % 2 == 0, np.float32(1.08), np.float32(0.82))


SURFACES: dict[str, Callable[[Pixels], Array]] = {
    f.__name__: f
    for f in (
        *(striped, chequered, dotted, grid, zigzagged, marbled),
        *(wood, brick, metal, water, grass, sand, stone, fabric),
    )
}
