"""Subsets of training rows: exact sizes, sorted indices, indicators.

Specification section 2.1, step 1, and 2.2.

Public names: `sample_subsets`, `membership`, `check_subsets`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sample_subsets(n: int, m: int, alpha: float, *, seed: int) -> Tensor:
    """Draw m subsets of exactly `round(alpha n)` of n rows, without replacement.

    Returns:
        Sorted indices, int64 `[m, round(alpha n)]`; the first rows do not depend on m.

    Raises:
        ValueError: m < 1, or a size that leaves nothing in or nothing out.

    Source: specification section 2.1, step 1. A random size (each row by its own coin) would make
    size a confounder that raises every correlation.
    """
    size = round(alpha * n)
    if m < 1 or not 0 < size < n:
        raise ValueError(
            f"want m >= 1 subsets of 1 to {n - 1} of {n} rows, got m = {m} of {size} rows "
            f"(alpha = {alpha}); choose alpha inside (0, 1)"
        )
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randperm(n, generator=generator)[:size] for _ in range(m)]
    return torch.stack(rows).sort(1).values


def membership(subsets: Tensor, n: int) -> Tensor:
    """Indicators float64 `[m, n]`: 1 where a row is in the subset, from indices `[m, k]`."""
    check_subsets(subsets, n)
    return torch.zeros(len(subsets), n, dtype=torch.float64).scatter_(1, subsets, 1.0)


def check_subsets(subsets: Tensor, n: int) -> None:
    """Refuse what is not a set of row indices per row.

    Raises:
        ValueError: not int64 `[m, k]`, out of range, unsorted or with repetitions.
    """
    if not isinstance(subsets, Tensor) or subsets.ndim != 2 or subsets.dtype != torch.int64:
        came = type(subsets).__name__
        came = f"{subsets.dtype} {list(subsets.shape)}" if isinstance(subsets, Tensor) else came
        raise ValueError(
            f"want subsets as one int64 tensor [m, k], got {came}; subsets of unequal size cannot "
            "be compared, so draw them with sample_subsets"
        )
    if not subsets.numel():
        raise ValueError(f"want at least one row in one subset, got {list(subsets.shape)}")
    if subsets.min() < 0 or subsets.max() >= n:
        raise ValueError(
            f"subsets index {n} rows, got {int(subsets.min())}..{int(subsets.max())}; "
            "use the subsets of this training set"
        )
    wrong = (subsets.diff(dim=1) <= 0).any(1)
    if wrong.any():
        raise ValueError(
            f"subset {int(wrong.nonzero()[0])} is not sorted or names a row twice; sort each "
            "subset and keep each row once"
        )
