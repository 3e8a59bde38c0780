"""Two-class problems drawn from a data set of digits: the ground of notebook 42.

Images are kept as they are stored, in whole grey levels, because one study asks which changes a
stored image cannot hold. Public names: `pool`, `Pool`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.data import digits, mnist
from lib.data.base import Provenance, Split

DIGIT_LEVELS, MNIST_LEVELS = 16, 255  # the largest grey level; the smallest is 0
SHIFT = 0.3  # inputs are grey / largest - .3, as everywhere in this project


@dataclass(frozen=True)
class Pool:
    """Images in stored grey levels, with labels 0 (even digit) and 1 (odd digit)."""

    name: str
    grey: Tensor  # float32 [n, side, side], whole numbers in 0 .. top
    digit: Tensor  # int64 [n], the digit itself
    top: int
    provenance: Provenance

    @property
    def y(self) -> Tensor:
        """Odd or even, int64 `[n]`."""
        return self.digit % 2

    @property
    def side(self) -> int:
        return self.grey.shape[-1]

    def inputs(self, side: int) -> Tensor:
        """Flat inputs float32 `[n, side * side]`, blocks of pixels averaged, shifted to -.3 .. .7.

        Raises:
            ValueError: `side` does not divide the images' own.
        """
        if side < 1 or self.side % side:
            raise ValueError(f"want a side that divides {self.side}, got {side}")
        blocks = F.avg_pool2d(self.grey[:, None], self.side // side)
        return blocks.flatten(1) / self.top - SHIFT

    def draw(self, sizes: Sequence[int], seed: int) -> list[Tensor]:
        """Disjoint random rows of the given numbers.

        Raises:
            ValueError: the sizes ask for more rows than there are, or for none.
        """
        n = len(self.digit)
        if min(sizes) < 1 or sum(sizes) > n:
            raise ValueError(
                f"want sizes from 1 that add up to at most {n} rows, got {list(sizes)}"
            )
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        return list(order[: sum(sizes)].split(list(sizes)))

    def split(self, side: int, rows: Tensor) -> Split:
        """Inputs and odd/even labels of some rows."""
        return Split(self.inputs(side)[rows], self.y[rows])


def pool(name: str, root: Path, *, limit: int | None = None) -> Pool:
    """All rows of "digits" (8x8, 1,797 of them) or of "mnist" (28x28, the training set).

    Args:
        root: folder of the real data.
        limit: the first rows alone.
    """
    if name == "digits":
        data = digits.load(0)
        parts = data.train, data.probe, data.test
        x, y = torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts])
        # undoes the loader's scaling; whole numbers again
        grey, top, side = ((x + SHIFT) * DIGIT_LEVELS).round(), DIGIT_LEVELS, 8
        provenance = data.provenance
    elif name == "mnist":
        images = mnist.load(root)
        grey, y = images.train.x.float(), images.train.y
        top, side, provenance = MNIST_LEVELS, 28, images.provenance
    else:
        raise ValueError(f"data is digits or mnist, got {name!r}")
    return Pool(name, grey.view(-1, side, side)[:limit], y[:limit], top, provenance)
