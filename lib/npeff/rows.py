"""Rows of sparse matrices in compressed form, and the largest entries of dense ones.

Public names: `offsets_of`, `ranges`, `largest`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

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
        For each row ascending indices, int64, at most k of them.

    A processor sorts long rows slowly, so a threshold is guessed from a sample of the row and only
    what passes is sorted; where the guess lets too few pass, the row is sorted after all.
    """
    magnitude = entries.abs()
    step = magnitude.shape[1] // SAMPLE
    if magnitude.is_cuda or step < 2 or magnitude.shape[1] < 8 * k:
        guess = magnitude.new_zeros(len(magnitude))
    else:
        sample = magnitude[:, :: step | 1]  # an odd step meets all columns of even widths
        rank = min(sample.shape[1], int(1.3 * k / step) + 8)
        guess = sample.topk(rank, dim=1, sorted=False).values.amin(1)
    passes = (magnitude >= guess[:, None]) & (magnitude > 0)
    found = []
    for row, passing in zip(magnitude, passes, strict=True):
        at = _where(passing)
        if len(at) < k:
            at = _where(row > 0)
        if len(at) > k:
            at = at[row[at].topk(k, sorted=False).indices].sort().values
        found.append(at)
    return found


def _where(mask: Tensor) -> Tensor:
    if mask.is_cuda:
        return mask.nonzero()[:, 0]
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # twice as fast as torch's (measured)
