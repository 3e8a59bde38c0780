"""What is labelled in a set of images, pixel by pixel, whatever format it came in.

`Concept`      a label: its number in its source, its raw name, its word and its category.
`Annotations`  label planes, labels of whole images, and which categories were annotated at all.

Both the procedural world (`lib.data.scenes`) and a folder in Broden's format (`lib.data.broden`)
give this, so a detector does not ask where its probing images are from.

Source: document 2 probes with Broden; specification of document 2, section 1.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CATEGORIES = ("color", "object", "part", "material", "scene", "texture")  # Broden's names
SUFFIXES = ("-s", "-c")  # of scene and colour labels in Broden
COVERAGE_CHUNK = 256  # images counted at a time


@dataclass(frozen=True)
class Concept:
    """One label of an annotated set."""

    number: int  # in its source
    raw: str  # name in its source, the key
    word: str  # for a text encoder: without "-s" or "-c", spaces for underscores
    category: str  # the primary one, a name in CATEGORIES


@dataclass(frozen=True)
class Annotations:
    """Labels of n images; a label value v > 0 means `concepts[v - 1]`, 0 means none."""

    concepts: tuple[Concept, ...]
    planes: Tensor  # int16 or int32 [n, p, h, w] label values; several planes an image
    whole: Tensor  # int32 [n, s] labels of the whole image
    annotated: Tensor  # bool [n, 6]: category (in the order of CATEGORIES) annotated in the image

    def __post_init__(self) -> None:
        n = len(self.planes)
        if (
            self.planes.ndim != 4
            or self.whole.ndim != 2
            or self.annotated.shape != (n, len(CATEGORIES))
            or len(self.whole) != n
        ):
            raise ValueError(
                "want planes [n, p, h, w], whole [n, s] and annotated [n, 6], got "
                f"{list(self.planes.shape)}, {list(self.whole.shape)}, {list(self.annotated.shape)}"
            )
        unknown = {c.category for c in self.concepts} - set(CATEGORIES)
        if unknown:
            raise ValueError(f"categories are {', '.join(CATEGORIES)}; got {sorted(unknown)}")
        for name, values in (("planes", self.planes), ("whole", self.whole)):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) <= self.n:
                raise ValueError(
                    f"{name} holds label values {int(values.min())}..{int(values.max())}, but "
                    f"there are {self.n} concepts; want 0 (none) to {self.n}"
                )

    def __len__(self) -> int:
        return len(self.planes)

    @property
    def n(self) -> int:
        """Number of concepts."""
        return len(self.concepts)

    @property
    def words(self) -> tuple[str, ...]:
        """The concepts' words, in order."""
        return tuple(c.word for c in self.concepts)

    @property
    def categories(self) -> Tensor:
        """Category of each concept as its place in CATEGORIES, int64 `[C]`."""
        return torch.tensor([CATEGORIES.index(c.category) for c in self.concepts])

    def take(self, rows: Tensor | Sequence[int]) -> Annotations:
        """The annotations of some images, `rows` int64 `[m]`."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        return Annotations(self.concepts, self.planes[rows], self.whole[rows], self.annotated[rows])

    def coverage(self) -> Tensor:
        """Share of each image's pixels that carry each concept, float32 `[n, C]` in [0, 1].

        1 for a label of the whole image; a pixel that two planes give the same label counts once.
        """
        n, p, h, w = self.planes.shape
        out = torch.zeros(n, self.n + 1)
        for start in range(0, n, COVERAGE_CHUNK):
            values = self.planes[start : start + COVERAGE_CHUNK].long().flatten(2)
            for k in range(1, p):
                repeated = (values[:, :k] == values[:, k : k + 1]).any(1)
                values[:, k].masked_fill_(repeated, 0)
            values = values.flatten(1)
            part = torch.zeros(len(values), self.n + 1)
            part.scatter_add_(1, values, torch.ones(1).expand_as(values))
            out[start : start + COVERAGE_CHUNK] = part / (h * w)
        out.scatter_(1, self.whole.long(), 1.0)
        return out[:, 1:]


def word_of(raw: str) -> str:
    """A raw label as a text encoder should read it: "palm_tree-s" becomes "palm tree"."""
    for suffix in SUFFIXES:
        raw = raw.removesuffix(suffix)
    return raw.replace("_", " ")
