"""What is really in a picture, measured without any network (specification of document 5, 4.4).

A maximised picture must not be judged by the probe that made it. Loops are counted as holes of the
ink, artefacts as loose blobs, brightness from the pixels; a latent is judged by its distance to
the latents that the decoder was trained on.

Public names: `holes`, `blobs`, `bright_fraction`, `outside`, `spacing`, `neighbour_distance`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

INK = 0.5  # a pixel above this is ink
SMALL_HOLE, SMALL_BLOB = 3, 8  # pixels; smaller holes do not count, smaller pieces are blobs
BRIGHT, EMPTY = 0.7, 0.1  # of a pixel; a decoded pixel is never exactly 0
EVERYWHERE = np.ones((3, 3), int)  # neighbours along diagonals too


def holes(x: Tensor) -> Tensor:
    """Closed loops of the ink of each picture, `[n]` int64.

    Pieces of the background (joined along sides) that do not reach the frame, of at least 3
    pixels; ink itself is joined along diagonals too.

    Args:
        x: `[n, 1, h, w]`, grey values from 0 to 1.

    Source: specification 4.4, with a margin around the picture, so that a loop that touches the
    frame does not cut the background in two.
    """
    from scipy.ndimage import label

    found = []
    for paper in ~_ink(x):
        pieces, n = label(np.pad(paper, 1, constant_values=True))
        sizes = np.bincount(pieces.ravel(), minlength=n + 1)[1:]
        outer = pieces[0, 0] - 1
        found.append(int((np.delete(sizes, outer) >= SMALL_HOLE).sum()))
    return torch.tensor(found)


def blobs(x: Tensor) -> Tensor:
    """Pieces of ink of under 8 pixels in each picture, `[n]` int64: specks, not strokes."""
    from scipy.ndimage import label

    found = []
    for ink in _ink(x):
        pieces, n = label(ink, structure=EVERYWHERE)
        sizes = np.bincount(pieces.ravel(), minlength=n + 1)[1:]
        found.append(int((sizes < SMALL_BLOB).sum()))
    return torch.tensor(found)


def bright_fraction(x: Tensor, *, empty: float = 0.0) -> Tensor:
    """Pixels above .7 over pixels above `empty`, `[n]`; 0 for an empty picture.

    Args:
        x: `[n, 1, h, w]`.
        empty: 0 for original pictures (specification 4.3); .1 for decoded ones, whose background
            is never exactly 0: the value below which the authors draw nothing.
    """
    flat = x.flatten(1)
    return (flat > BRIGHT).sum(1) / (flat > empty).sum(1).clamp_min(1)


def outside(z: Tensor) -> Tensor:
    """Share of a latent's coordinates outside [0, 1], where no picture is encoded, `[n]`."""
    return ((z < 0) | (z > 1)).to(z.dtype).mean(1)


def spacing(latents: Tensor, *, n: int = 500) -> float:
    """Median distance of the first `n` training latents, `[m, k]`, to their nearest others."""
    distance = torch.cdist(latents[:n], latents)
    distance[torch.arange(len(distance)), torch.arange(len(distance))] = torch.inf
    return distance.amin(1).median().item()


def neighbour_distance(z: Tensor, latents: Tensor, *, chunk: int = 1024) -> Tensor:
    """Distance of each latent, `[n, k]`, to the nearest of the training latents `[m, k]`, `[n]`."""
    return torch.cat([torch.cdist(part, latents).amin(1) for part in z.split(chunk)])


def _ink(x: Tensor) -> np.ndarray:
    if x.ndim != 4 or x.shape[1] != 1:
        raise ValueError(f"want grey pictures [n, 1, h, w], got {tuple(x.shape)}")
    if not bool(torch.isfinite(x).all()):
        raise ValueError("the pictures hold NaN or infinite values")
    return (x[:, 0].detach().cpu() > INK).numpy()
