"""A training set with three secrets, which datamodels are to find.

Document 4, applications of datamodels; specification section 3.4. Digits are labelled by pairs
(`PAIRS`), and in the training set are hidden:

* copies of test images, with noise (leakage);
* the digits themselves, of which the labels tell the pair alone (a subclass);
* a side: half of the images of one pair, in training and test set alike, stand a little to the
  left (`STEP`). A network can use that, unless it is trained on every image in several places.

The first targets are drawn as the training rows are. Of further ones half stand aside whatever
their pair: there algorithms differ that are alike on the first.

The second algorithm is the first on five versions of each image (in place and a step to each
side), for a fifth of the epochs: shift augmentation with the versions listed, as many steps.

Public names: `Planted`, `plant`, `planted_digits`, `planted_mnist`, `shift`, `versions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.attribution.truth import Setting
from lib.data import digits, mnist
from lib.data.base import Split
from lib.training import Recipe

PAIRS = ((0, 9), (1, 7), (2, 3), (4, 6), (5, 8))
ROUND = 0  # the pair whose digits are to be told apart
SIDE = 2  # the pair of which half stands aside
SIDES = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))  # in place, left, right, up, down
LEFT, RIGHT = -1, 1
RECIPE = Recipe(epochs=30, batch_size=50, lr=0.1, weight_decay=5e-4)  # that of DIGITS-MLP


@dataclass(frozen=True)
class Planted:
    """The data, two algorithms on it, and what is hidden."""

    plain: Setting  # labels are pairs
    shifted: Setting  # version v of row i is row 5 i + v of its training set
    digits: Tensor  # of the training rows, int64 [n]
    target_digits: Tensor  # [T]
    copies: Tensor  # training rows that are copies, int64 [c]
    originals: Tensor  # the targets that they copy, [c]
    aside: Tensor  # training rows that stand aside, bool [n]
    targets_aside: Tensor  # bool [T]
    n_drawn: int  # targets, the first ones, that are drawn as the training rows are
    step: int  # pixels
    noise: float  # sd in the copies, the range of a pixel being 1

    @property
    def names(self) -> tuple[str, ...]:
        """Of the pairs."""
        return tuple(f"{a} or {b}" for a, b in PAIRS)

    def of_pairs(self) -> Tensor:
        """Whether training row i is the copy of target t, bool `[n, n_drawn]`."""
        found = torch.zeros(len(self.plain.train), self.n_drawn, dtype=torch.bool)
        found[self.copies, self.originals] = True
        return found

    def expand(self, subsets: Tensor) -> Tensor:
        """Rows of the second algorithm's training set: all versions, int64 `[m, k]` -> [m, 5k]."""
        return (subsets[..., None] * len(SIDES) + torch.arange(len(SIDES))).flatten(1)


def plant(
    name: str,
    train: Split,
    targets: Split,
    others: Split,
    *,
    n_copies: int,
    step: int,
    noise: float = 0.1,
    hidden: tuple[int, ...] = (64,),
    recipe: Recipe = RECIPE,
    seed: int = 0,
) -> Planted:
    """Hide copies, subclasses and a side in square images of digits.

    Args:
        name: of the settings.
        train: images `[n - c, h, h]` and digits; copies are added to them.
        targets: `[T, h, h]`, drawn as the training images are.
        others: further targets, of which half will stand aside, `[T', h, h]`.
        n_copies: c, each of another of the first targets.
        step: pixels by which half of the pair `SIDE` stands to the left.
        noise: sd of what is added to each pixel of a copy; it then stays in the range of pixels.
        hidden: widths of the hidden layers.
        recipe: of the first algorithm; its epochs a multiple of the number of versions.
        seed: of the choice of copies, of who stands aside, and of the noise.

    Raises:
        ValueError: images that are not square, too many copies, or epochs that five versions do
            not divide.
    """
    side = train.x.shape[-1]
    if any(part.x.shape[1:] != (side, side) for part in (train, targets, others)):
        shapes = ", ".join(str(list(part.x.shape)) for part in (train, targets, others))
        raise ValueError(f"want square images [n, h, h] of one size, got {shapes}")
    if not 1 <= n_copies <= len(targets) or not 0 < step < side or recipe.epochs % len(SIDES):
        raise ValueError(
            f"want 1 to {len(targets)} copies, a step of 1 to {side - 1} pixels and epochs that "
            f"{len(SIDES)} divides, got {n_copies}, {step} and {recipe.epochs}"
        )
    generator = torch.Generator().manual_seed(seed)
    x, aside = _set_aside(train, pair_of(train.y) == SIDE, step, generator)
    target_x, drawn_aside = _set_aside(targets, pair_of(targets.y) == SIDE, step, generator)
    other_x, others_aside = _set_aside(
        others, torch.ones(len(others), dtype=torch.bool), step, generator
    )
    originals = torch.randperm(len(targets), generator=generator)[:n_copies]
    low, high = x.min().item(), x.max().item()
    dirt = noise * (high - low) * torch.randn(n_copies, side, side, generator=generator)
    x = torch.cat([x, (target_x[originals] + dirt).clamp(low, high)])
    found = torch.cat([train.y, targets.y[originals]])
    rows = Split(x.flatten(1), pair_of(found))
    spec: Mapping[str, object] = {"widths": (side * side, *hidden, len(PAIRS))}
    target_digits = torch.cat([targets.y, others.y])
    judged = Split(torch.cat([target_x, other_x]).flatten(1), pair_of(target_digits))
    plain = Setting(name, "mlp", spec, recipe, rows, judged)
    all_versions = Split(versions(x, step).flatten(0, 1).flatten(1), rows.y.repeat_interleave(5))
    short = replace(recipe, epochs=recipe.epochs // len(SIDES))
    return Planted(
        plain,
        Setting(f"{name}, shifted", "mlp", spec, short, all_versions, judged),
        found,
        target_digits,
        torch.arange(len(train), len(x)),
        originals,
        torch.cat([aside, drawn_aside[originals]]),
        torch.cat([drawn_aside, others_aside]),
        len(targets),
        step,
        noise,
    )


def planted_digits(n: int, n_targets: int, n_others: int, n_copies: int, seed: int = 0) -> Planted:
    """PLANTED-DIGITS: n rows of scikit-learn's digits, the network and recipe of DIGITS-MLP."""
    data = digits.load(seed=0)
    rows, first, second = (
        Split(part.x.unflatten(1, (8, 8)), part.y) for part in (data.train, data.probe, data.test)
    )
    return plant(
        "planted-digits",
        _first(rows, n - n_copies),
        _first(first, n_targets),
        _first(second, n_others),
        n_copies=n_copies,
        step=1,
        seed=seed,
    )


def planted_mnist(
    n: int,
    n_targets: int,
    n_others: int,
    n_copies: int,
    seed: int = 0,
    root: Path | None = None,
) -> Planted:
    """PLANTED-MNIST: the same with MNIST's images, 2x2 pixels averaged, and two pixels aside."""
    data = mnist.load(root)

    def seen(x: Tensor) -> Tensor:
        return F.avg_pool2d(x[:, None].float() / 255, 2)[:, 0] - 0.3  # the digits' range

    few, many = _first(data.test, n_targets + n_others), _first(data.train, n - n_copies)
    x = seen(few.x)
    return plant(
        "planted-mnist",
        Split(seen(many.x), many.y),
        Split(x[:n_targets], few.y[:n_targets]),
        Split(x[n_targets:], few.y[n_targets:]),
        n_copies=n_copies,
        step=2,
        seed=seed,
    )


def shift(x: Tensor, down: int, right: int) -> Tensor:
    """Images `[n, h, w]` moved by whole pixels; what comes in is their smallest value."""
    height, width = x.shape[-2:]
    room = max(abs(down), abs(right))
    if room >= min(height, width):
        raise ValueError(f"want a shift inside {height}x{width} pixels, got {down} and {right}")
    padded = F.pad(x, (room, room, room, room), value=x.min().item())
    top, left = room - down, room - right
    return padded[..., top : top + height, left : left + width]


def versions(x: Tensor, step: int) -> Tensor:
    """Images `[n, h, w]` in place and a step to each side: `[n, 5, h, w]`."""
    return torch.stack([shift(x, step * down, step * right) for down, right in SIDES], 1)


def pair_of(found: Tensor) -> Tensor:
    """The place in `PAIRS` of digits `[n]`."""
    table = torch.empty(10, dtype=torch.int64)
    for place, pair in enumerate(PAIRS):
        table[list(pair)] = place
    return table[found]


def _set_aside(
    images: Split, among: Tensor, step: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images of which half of those `among` stand to the left, and which they are."""
    rows = among.nonzero()[:, 0]
    some = rows[torch.randperm(len(rows), generator=generator)[: len(rows) // 2]]
    aside = torch.zeros(len(images), dtype=torch.bool)
    aside[some] = True
    moved = shift(images.x, 0, LEFT * step)
    return torch.where(aside[:, None, None], moved, images.x), aside


def _first(images: Split, n: int) -> Split:
    if not 1 <= n <= len(images):
        raise ValueError(f"want 1 to {len(images)} images, got {n}")
    return Split(images.x[:n], images.y[:n])
