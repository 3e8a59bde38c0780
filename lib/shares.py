"""Means and shares with their standard error; that of a share is never zero.

The usual sqrt(p (1 - p) / n) is 0 where all or none are so, as if fifteen of fifteen left no doubt
about the next one. Wilson's interval keeps it.

Public names: `average`, `gap`, `interval`, `share`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Z = 1.96  # half a 95% interval of a normal distribution, in standard deviations


def share(flags: Tensor | npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Share of flags `[n]` that are true, and its standard error: half `interval`, over 1.96.

    Raises:
        ValueError: no flags, or they are not bool `[n]`.
    """
    low, high = interval(flags)
    return float(np.asarray(flags).mean()), (high - low) / (2 * Z)


def average(values: Tensor) -> tuple[float, float]:
    """Mean of values `[n]` and its standard error, NaN if n is 1; of flags their `share`.

    Raises:
        ValueError: no values, or they are not `[n]`.
    """
    if values.ndim != 1 or not len(values):
        raise ValueError(f"want values [n], n >= 1, got {list(values.shape)}")
    if values.dtype == torch.bool:
        return share(values)
    wide = values.double()
    return wide.mean().item(), wide.std().item() / len(wide) ** 0.5


def gap(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    """Difference of two means that do not depend on each other, and its standard error."""
    return a[0] - b[0], math.hypot(a[1], b[1])


def interval(flags: Tensor | npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Wilson's 95% interval of the share of flags `[n]` that are true.

    Raises:
        ValueError: no flags, or they are not bool `[n]`.
    """
    from scipy.stats import binomtest

    found = np.asarray(flags)
    if found.dtype != np.bool_ or found.ndim != 1 or not found.size:
        raise ValueError(f"want bool flags [n], n >= 1, got {found.dtype} {list(found.shape)}")
    ends = binomtest(int(found.sum()), found.size).proportion_ci(0.95, "wilson")
    return float(ends.low), float(ends.high)
