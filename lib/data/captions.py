"""Digits with captions: images whose every property a template puts into words.

A digit is drawn in one of four colours, small or large, at one of the four sides of a black canvas,
clean or with noise, and its caption names all of it in one of two wordings. What a pair must be
learnt from is therefore known: pairs that share words share what is seen. Digits are those of
scikit-learn (embedded) or of MNIST.

Captions are rows of word numbers for an open_clip text tower: five words and an end, which has the
highest number because that tower reads its output there.

Public names: `load`, `Pairs`, `VOCABULARY`, `LENGTH`, `END`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.data import digits, mnist
from lib.data.base import Provenance, sha256_of

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}
SIZES = ("small", "large")
PLACES = {"left": (0.5, 0), "right": (0.5, 1), "top": (0, 0.5), "bottom": (1, 0.5)}
NOISES = ("clean", "noisy")
PROPERTIES = (DIGITS, tuple(COLOURS), SIZES, tuple(PLACES), NOISES)
NAMES = ("digit", "colour", "size", "place", "noise")
WORDINGS = (
    ("size", "colour", "digit", "place", "noise"),
    ("noise", "place", "digit", "colour", "size"),
)
VOCABULARY = (*(word for kind in PROPERTIES for word in kind), "<end>")
END = len(VOCABULARY) - 1
LENGTH = len(NAMES) + 1
NOISE_SD = 0.3
SHARES = (0.5, 2 / 3)  # side of a small and of a large digit, of the canvas
LARGEST = {"digits": 1797, "mnist": 60_000}


@dataclass(frozen=True)
class Pairs:
    """Images with captions."""

    images: Tensor  # float32 [n, 3, side, side], 0 is black and 1 the full colour, plus noise
    texts: Tensor  # int64 [n, LENGTH]
    properties: Tensor  # int64 [n, 5], numbers in PROPERTIES
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.texts)

    def caption(self, row: int) -> str:
        """The words of a pair."""
        return " ".join(VOCABULARY[k] for k in self.texts[row].tolist() if k != END)


def load(
    n: int, *, source: str = "digits", side: int = 12, seed: int = 0, root: Path | None = None
) -> Pairs:
    """The first n digits of a shuffled source, each drawn once, with its caption.

    Args:
        n: pairs; the first ones do not depend on it.
        source: digits (embedded) or mnist (training images below `root`).
        side: of the canvas in pixels, a multiple of 6.
        seed: of the choice of digits, of properties and noise.
        root: default DATA_ROOT.

    Raises:
        ValueError: another source, more pairs than it has digits, or an odd side.
        MissingData: MNIST is not there.
    """
    if source not in LARGEST or not 1 <= n <= LARGEST[source] or side < 6 or side % 6:
        raise ValueError(
            f"want a source of {', '.join(LARGEST)} with as many digits as pairs and a side that "
            f"is a multiple of 6, got {n} of {source!r} and {side}; lower n or change the side"
        )
    grey, labels, provenance = _digits(root) if source == "digits" else _mnist(root)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)[:n]
    images, texts, properties = [], [], []
    for image, label in zip(grey[order], labels[order].tolist(), strict=True):
        kinds = [label]
        kinds += [int(torch.randint(len(k), (), generator=generator)) for k in PROPERTIES[1:]]
        wording = int(torch.randint(len(WORDINGS), (), generator=generator))
        noise = torch.randn(3, side, side, generator=generator)
        images.append(_draw(image, kinds, side) + NOISE_SD * noise * kinds[4])
        texts.append(_words(kinds, wording))
        properties.append(kinds)
    x, t = torch.stack(images), torch.tensor(texts)
    note = f"{n} of them drawn with captions on {side}x{side} pixels, seed {seed}"
    made = Provenance(
        provenance.name, provenance.source, provenance.licence, sha256_of(x, t), n, note
    )
    return Pairs(x, t, torch.tensor(properties), made)


def _draw(image: Tensor, kinds: list[int], side: int) -> Tensor:
    """A digit `[h, w]` in 0..1 in its colour, size and corner, `[3, side, side]`."""
    size = round(SHARES[kinds[2]] * side)
    small = F.interpolate(image[None, None], (size, size), mode="area")[0, 0]
    top, left = (round(share * (side - size)) for share in list(PLACES.values())[kinds[3]])
    canvas = torch.zeros(3, side, side)
    colour = torch.tensor(list(COLOURS.values())[kinds[1]], dtype=torch.float32)
    canvas[:, top : top + size, left : left + size] = colour[:, None, None] * small
    return canvas


def _words(kinds: list[int], wording: int) -> list[int]:
    said = {name: words[k] for name, words, k in zip(NAMES, PROPERTIES, kinds, strict=True)}
    return [*(VOCABULARY.index(said[name]) for name in WORDINGS[wording]), END]


def _digits(root: Path | None) -> tuple[Tensor, Tensor, Provenance]:
    data = digits.load(seed=0)
    parts = (data.train, data.probe, data.test)
    x = torch.cat([part.x for part in parts]) + 0.3
    return x.unflatten(1, (8, 8)), torch.cat([part.y for part in parts]), data.provenance


def _mnist(root: Path | None) -> tuple[Tensor, Tensor, Provenance]:
    data = mnist.load(root)
    return data.train.x.reshape(-1, 28, 28).float() / 255, data.train.y, data.provenance
