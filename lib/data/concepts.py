"""Concept data sets for part 1: images with a label that the base network was never given.

`hilo_patches`    synthetic: high frequency on one side, low on the other, labels exact.
`hilo_natural`    natural images ranked by how differently their two sides are textured.
`class_group`     two groups of classes of a labelled set, balanced.

Source: document 1 probes for an object concept (snakes) and a perceptual one (high-low
frequency). Its concept images are not public to us; these are the substitutes of the
specification of document 1, section 3. All randomness comes from the generator given.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def hilo_patches(n: int, generator: torch.Generator, size: int = 8) -> tuple[Tensor, Tensor]:
    """Patches that are textured finely on one side and flat on the other, and other patches.

    A positive joins a fine texture (rows, columns or a checkerboard of period 2 pixels, or white
    noise, equally likely) and a flat half along a line of random direction through the centre. A
    negative is fine everywhere, flat everywhere, or a positive blurred. Contrasts come from one
    range, the mean is the same for every patch, and negatives are scaled so that both classes
    have the same mean square: brightness tells nothing, the best threshold on contrast 80% of the
    labels (a positive's contrast is intermediate), and a linear probe of the pixels 56% (all flat
    patches are one point to it).

    The specification names the ingredients and leaves the textures open; these four give the
    difficulty of its table (section 4), which other readings miss in either direction.

    Args:
        n: number of patches, half of them positive.
        generator: on the CPU.
        size: pixels a side.

    Returns:
        x float32 `[n, size, size]` of mean 0.2 (mid-grey in the scale of `lib.data.digits`),
        y int64 `[n]` in {0, 1}, in random order.
    """
    y = torch.arange(n) % 2
    texture = _texture(n, size, generator)
    contrast = 0.15 + 0.3 * torch.rand(n, 1, 1, generator=generator)
    row, column = _grid(size)
    angle = torch.rand(n, 1, 1, generator=generator) * 2 * torch.pi
    side = (torch.cos(angle) * column + torch.sin(angle) * row > 0).float()
    half = texture * side
    kind = torch.randint(0, 3, (n, 1, 1), generator=generator)
    flat = torch.zeros_like(texture)
    negative = torch.where(kind == 0, texture, torch.where(kind == 1, flat, _blur(half)))
    scale = (half.square().mean() / negative.square().mean()).sqrt()
    x = torch.where(y[:, None, None] == 1, half, negative * scale) * contrast
    x = x - x.mean(dim=(1, 2), keepdim=True) + 0.2
    order = torch.randperm(n, generator=generator)
    return x[order], y[order]


def hilo_scores(images: Tensor) -> Tensor:
    """How differently textured the two sides of each image are, in [0, 1].

    The energy of a side is the mean square of the grey image minus its 3x3 blur; the score is
    the largest |difference| / sum over four dividing lines (upright, level, both diagonals).

    Args:
        images: uint8 or float `[n, c, h, w]`.
    """
    grey = images.float().mean(dim=1)
    fine = (grey - _blur(grey)).square()
    row, column = _grid(images.shape[-1])
    scores = []
    for line in (column, row, row + column, row - column):
        first, second = (
            (fine * mask).sum(dim=(1, 2)) / mask.sum() for mask in ((line > 0), (line < 0))
        )
        scores.append((first - second).abs() / (first + second).clamp_min(1e-9))
    return torch.stack(scores).amax(dim=0)


def hilo_natural(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows of the most and of middling `hilo_scores`: the top 5% against as many of 40-60%.

    Returns:
        rows int64 `[2k]` into `images`, labels `[2k]`, in random order.
    """
    order = hilo_scores(images).argsort()
    n = len(order)
    high = order[round(0.95 * n) :]
    middle = order[round(0.4 * n) : round(0.6 * n)]
    middle = middle[torch.randperm(len(middle), generator=generator)[: len(high)]]
    rows = torch.cat([high, middle])
    labels = torch.cat([torch.ones(len(high)), torch.zeros(len(middle))]).long()
    shuffled = torch.randperm(len(rows), generator=generator)
    return rows[shuffled], labels[shuffled]


def class_group(
    labels: Tensor, positive: Sequence[int], negative: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Rows of two groups of classes, as many of each, in random order.

    Args:
        labels: class of each row, `[n]`.
        positive, negative: classes of the concept and of its opposite.

    Returns:
        rows int64 `[2k]`, concept labels `[2k]`.

    Raises:
        ValueError: the groups overlap, or one has no rows.
    """
    if set(positive) & set(negative):
        raise ValueError(f"classes {set(positive) & set(negative)} are in both groups")
    groups = [
        torch.isin(labels, torch.tensor(list(g))).nonzero()[:, 0] for g in (negative, positive)
    ]
    k = min(len(g) for g in groups)
    if k == 0:
        raise ValueError(f"no rows of classes {list(positive)} or {list(negative)}")
    kept = [g[torch.randperm(len(g), generator=generator)[:k]] for g in groups]
    shuffled = torch.randperm(2 * k, generator=generator)
    return torch.cat(kept)[shuffled], (torch.arange(2 * k) // k)[shuffled]


def _grid(size: int) -> tuple[Tensor, Tensor]:
    """Row and column of each pixel, from the centre."""
    axis = torch.arange(size) - (size - 1) / 2
    return axis[:, None].expand(size, size), axis[None, :].expand(size, size)


def _texture(n: int, size: int, generator: torch.Generator) -> Tensor:
    """Unit-variance fine textures, equally likely: rows, columns, a checkerboard, white noise."""
    row, column = torch.arange(size)[:, None], torch.arange(size)[None, :]
    waves = [(row + 0 * column), (column + 0 * row), (row + column)]
    stripes = torch.stack([1.0 - 2.0 * (wave % 2) for wave in waves])
    kind = torch.randint(0, 4, (n,), generator=generator)
    sign = 1.0 - 2.0 * torch.randint(0, 2, (n, 1, 1), generator=generator)  # the phase
    noise = torch.randn(n, size, size, generator=generator)
    noise = noise / noise.std(dim=(1, 2), keepdim=True)
    return torch.where((kind == 3)[:, None, None], noise, stripes[kind.clamp_max(2)] * sign)


def _blur(x: Tensor) -> Tensor:
    """Mean over 3x3 pixels, edges repeated."""
    padded = torch.nn.functional.pad(x[:, None], (1, 1, 1, 1), mode="replicate")
    return torch.nn.functional.avg_pool2d(padded, 3, stride=1)[:, 0]
