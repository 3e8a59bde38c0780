"""Images and networks of which one knows what a prediction rests on.

Document 4 lists saliency maps without a way to tell a good one; here the answer is planted. An
image (16x16, grey is 0) holds one glyph of 4x4 cells that gives its class, one glyph of no class,
strokes, and a little noise. Cells are -1/2 or +1/2 and sum to 0 in each row and column of a glyph,
so that straight strokes look like nothing to a glyph's detector.

`GlyphNetwork` is built, not trained: one convolution whose filters are the glyphs, a threshold,
and a sum. Its output for a class depends on the pixels below the active places of that class's
filter and on no others: `relevant` reads them off, and on these images they are the glyph. The
trained network has learned the same task and may look at anything; that it does not look outside
the glyph is checked by replacing all the rest (`kept_without_rest`).

Public names: `Planted`, `draw`, `glyphs`, `GlyphNetwork`, `relevant`, `trained`,
`kept_without_rest`, `localisation`, `SIDE`, `N_CLASSES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import cache, probes, training
from lib.training import Recipe

SIDE, CELLS = 16, 4
N_CLASSES, N_OTHER = 4, 2  # glyphs that are classes, glyphs that are not
LEVEL = 0.5  # of a cell, from grey
NOISE = 0.05
N_STROKES = 3
BORDER = (1, 2, 1, 2)  # of grey around an image: one place a pixel
SHARE = 0.75  # of a full match that a detector asks for
RECIPE = Recipe(epochs=8, batch_size=50, lr=0.03, weight_decay=1e-5, schedule="triangular")
SPEC = {"size": SIDE, "channels": (16, 32, 32), "n_out": N_CLASSES}


@dataclass(frozen=True)
class Planted:
    """Images with the pixels that matter."""

    x: Tensor  # float32 [n, 1, 16, 16], from -1 to 1, grey 0
    y: Tensor  # int64 [n]
    mask: Tensor  # bool [n, 16, 16]: the glyph of the class
    other: Tensor  # bool [n, 16, 16]: the glyph of no class


def glyphs() -> Tensor:
    """The glyphs `[N_CLASSES + N_OTHER, 4, 4]` in {-1, 1}: the six that resemble one another least.

    Of the 90 patterns whose rows and columns sum to 0, chosen one by one so that the largest match
    with those before, at any shift, and with itself, at any but none, stays smallest.
    """
    lines = [row for row in product((-1.0, 1.0), repeat=CELLS) if sum(row) == 0]
    squares = torch.tensor(list(product(lines, repeat=CELLS)))
    squares = squares[(squares.sum(1) == 0).all(1)]
    match = F.conv2d(squares[:, None], squares[:, None], padding=CELLS - 1)  # [90, 90, 7, 7]
    at_any = match.amax((2, 3))
    match[:, :, CELLS - 1, CELLS - 1] = 0
    shifted = match.diagonal().amax((0, 1))  # of each with itself
    calm = (shifted == shifted.min()).nonzero()[:, 0].tolist()
    best = min(combinations(calm, 2), key=lambda pair: at_any[pair].item())
    chosen = list(best)
    while len(chosen) < N_CLASSES + N_OTHER:
        left = [k for k in range(len(squares)) if k not in chosen]
        cost = torch.stack([torch.maximum(at_any[chosen, k].max(), shifted[k]) for k in left])
        chosen.append(left[int(cost.argmin())])
    return squares[chosen]


def draw(n: int, generator: torch.Generator) -> Planted:
    """n images; classes are drawn evenly."""
    shapes = glyphs() * LEVEL
    x = NOISE * torch.randn(n, SIDE, SIDE, generator=generator)
    y = torch.randint(N_CLASSES, (n,), generator=generator)
    mask, other = (torch.zeros(n, SIDE, SIDE, dtype=torch.bool) for _ in range(2))

    def some(high: int) -> int:
        return int(torch.randint(high, (), generator=generator))

    for i in range(n):
        for _ in range(N_STROKES):
            at, sign = some(SIDE), LEVEL * (2 * some(2) - 1)
            line = x[i, at] if some(2) else x[i, :, at]
            line += sign
        places = [(some(SIDE - CELLS + 1), some(SIDE - CELLS + 1))]
        while len(places) < 2:
            row, column = some(SIDE - CELLS + 1), some(SIDE - CELLS + 1)
            # one free pixel between the two glyphs
            if max(abs(row - places[0][0]), abs(column - places[0][1])) > CELLS:
                places.append((row, column))
        kinds = int(y[i]), N_CLASSES + some(N_OTHER)
        for (row, column), kind, where in zip(places, kinds, (mask, other), strict=True):
            where[i, row : row + CELLS, column : column + CELLS] = True
            noise = NOISE * torch.randn(CELLS, CELLS, generator=generator)
            x[i, row : row + CELLS, column : column + CELLS] = shapes[kind] + noise
    return Planted(x[:, None], y, mask, other)


class GlyphNetwork(nn.Module):
    """Logit k: sum over places of `relu(match with glyph k - threshold)`; nothing is learned.

    `detect` is the convolution with its threshold and ReLU, on grey ground; `pool` averages its
    maps over 4x4 places, the coarse maps that Grad-CAM wants.
    """

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(1, N_CLASSES, CELLS)
        with torch.no_grad():
            conv.weight.copy_(glyphs()[:N_CLASSES, None])
            conv.bias.fill_(-SHARE * LEVEL * CELLS**2)  # type: ignore[union-attr]
        self.detect = nn.Sequential(nn.ZeroPad2d(BORDER), conv, nn.ReLU())
        self.pool = nn.AvgPool2d(CELLS)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.detect(x)).sum((2, 3)) * CELLS**2


@torch.no_grad()
def relevant(network: GlyphNetwork, x: Tensor, y: Tensor) -> Tensor:
    """The pixels that the output of class y depends on, bool `[n, 16, 16]`: exact."""
    active = network.detect(x)[torch.arange(len(x)), y, None] > 0
    seen = F.conv_transpose2d(active.float(), torch.ones(1, 1, CELLS, CELLS))
    return seen[:, 0, 1 : 1 + SIDE, 1 : 1 + SIDE] > 0


def trained(n: int, *, seed: int) -> nn.Module:
    """A small convolutional network that has learned the classes from n images, by the cache."""

    def load() -> tuple[Tensor, Tensor]:
        rows = draw(n, torch.Generator().manual_seed(seed))
        return rows.x, rows.y

    key = cache.key_of("planted", {"n": n, "seed": seed}, [draw])
    return training.fetch_model("cnn", SPEC, load, RECIPE, seed=seed, data_hash=key)


@torch.no_grad()
def kept_without_rest(model: nn.Module, rows: Planted, generator: torch.Generator) -> float:
    """Share of predictions that stay when all but the class glyph is another image's.

    The donor holds its own class glyph, which would answer too; it is painted over with grey.
    """
    donor = torch.randperm(len(rows.x), generator=generator)
    ground = rows.x[donor].masked_fill(rows.mask[donor][:, None], 0.0)
    mixed = torch.where(rows.mask[:, None], rows.x, ground)
    before, after = (model(x).argmax(1) for x in (rows.x, mixed))
    return (before == after).double().mean().item()


def localisation(maps: Tensor, mask: Tensor) -> Tensor:
    """Area under the ROC curve of the size of a map for the masked pixels, `[n]`.

    Args:
        maps: `[n, c, h, w]`; channels are summed first.
        mask: bool `[n, h, w]`.
    """
    return probes.roc_auc(maps.sum(1).abs().flatten(1), mask.flatten(1).long())
