"""Rows of sparse matrices in compressed form, and the largest entries of dense ones.

Public names: `offsets_of`, `ranges`, `largest`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

SAMPLE = 8192  # entries of a row that a threshold is guessed from


def offsets_of(lengths: Tensor) -> Tensor:
    """Where rows of these lengths begin, and where the last one ends: int64 `[R + 1]`."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def ranges(first: Tensor, lengths: Tensor) -> Tensor:
    """``first[i], first[i] + 1, ...``, ``lengths[i]`` numbers each, one after the other."""
    start = first - (lengths.cumsum(0) - lengths)
    return start.repeat_interleave(lengths) + torch.arange(int(lengths.sum()), device=first.device)


def largest(entries: Tensor, k: int) -> list[Tensor]:
    """Where the k entries of largest magnitude of each row are, zeros never among them.

    Args:
        entries: ``[b, N]``.

    Returns:
        For each row ascending indices, int64, at most k of them; among equal entries the first.

    A processor sorts long rows slowly, so a threshold is guessed from a sample of the row and only
    what passes is searched; where the guess lets too few pass, the whole row is searched after all.
    """
    magnitude = entries if bool(entries.amin() >= 0) else entries.abs()
    if magnitude.is_cuda:
        return [_largest_on_device(row, k) for row in magnitude]
    guesses, rows = _guess(magnitude, k), magnitude.numpy()
    found = []
    for row, guess in zip(rows, guesses, strict=True):
        at = np.flatnonzero(row >= guess) if guess > 0 else None
        if at is None or len(at) < k:
            found.append(_first_of_largest(row, k))
        else:
            found.append(at[_first_of_largest(row[at], k)])
    return [torch.from_numpy(at) for at in found]


def _guess(magnitude: Tensor, k: int) -> NDArray[np.floating]:
    """A threshold a row that likely lets a little more than k entries pass; 0 for no guess."""
    n = magnitude.shape[1]
    step = n // SAMPLE
    if step < 2 or n < 8 * k:
        return np.zeros(len(magnitude), dtype=np.float32)
    sample = magnitude[:, :: step | 1]  # an odd step meets all columns of even widths
    rank = min(sample.shape[1], int(1.3 * k / step) + 8)
    return sample.topk(rank, dim=1, sorted=False).values.amin(1).numpy()


def _first_of_largest(row: NDArray[np.floating], k: int) -> NDArray[np.int64]:
    """Ascending indices of the k largest numbers above zero, among equal ones the first."""
    if k >= len(row):
        return row.nonzero()[0]
    sorted_at = row.copy()
    sorted_at.partition(len(row) - k)
    least = sorted_at[len(row) - k]
    if least <= 0:
        return row.nonzero()[0]
    at = (row >= least).nonzero()[0]  # methods: of short rows the calls cost most
    if len(at) > k:  # some of the smallest are equal
        smallest = at[row[at] == least]
        at = np.setdiff1d(at, smallest[k - len(at) :], assume_unique=True)
    return at


def _largest_on_device(row: Tensor, k: int) -> Tensor:
    if k < len(row):
        least = row.topk(k, sorted=False).values.amin()
        at = ((row >= least) & (row > 0)).nonzero()[:, 0]
    else:
        at = row.nonzero()[:, 0]
    if len(at) > k:
        smallest = at[row[at] == least]
        at = at[~torch.isin(at, smallest[k - len(at) :])]
    return at
