"""Bootstrap: percentile intervals of whatever is computed from rows drawn with replacement.

The statistic is a function of the numbers of the rows that were drawn, so that a mean, a median,
a ratio of means or a correlation take the same few lines.

Public name: `interval`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Numbers drawn at once; the draws, and so the interval, do not depend on it.
BLOCK = 2**21


def interval(
    statistic: Callable[[Tensor], Tensor],
    n: int,
    *,
    generator: torch.Generator,
    n_draws: int = 1000,
    level: float = 0.95,
    centred: bool = False,
) -> Tensor:
    """Percentile interval of a statistic over resamples of n rows.

    Args:
        statistic: of rows drawn, int64 `[b, n]` on the generator's device, one resample a row:
            its value for each resample, `[..., b]`.
        n: rows to draw from, and rows drawn.
        generator: source of the resamples.
        n_draws: number of resamples.
        level: coverage aimed at.
        centred: shift it so that the mean of the resamples is the value over all rows. For what
            repeated rows bias, as they do a number of different things: resamples hold fewer, so
            that the whole percentile interval may lie below the value (and a reflected one above).

    Returns:
        Lower and upper end, `[2, ...]`, in the dtype of the statistic.

    Raises:
        ValueError: no rows, no resamples, or a level outside (0, 1).
    """
    if n < 1 or n_draws < 1 or not 0 < level < 1:
        raise ValueError(
            f"want level in (0, 1), n_draws >= 1 and at least one row, got {level}, {n_draws} "
            f"and {n}"
        )
    block = max(1, BLOCK // n)
    found = []
    for first in range(0, n_draws, block):
        shape = min(block, n_draws - first), n
        found.append(
            statistic(torch.randint(n, shape, generator=generator, device=generator.device))
        )
    values = torch.cat(found, dim=-1)
    tails = [(1 - level) / 2, (1 + level) / 2]
    ends = values.quantile(torch.tensor(tails, dtype=values.dtype, device=values.device), dim=-1)
    if not centred:
        return ends
    value = statistic(torch.arange(n, device=generator.device)[None])[..., 0]
    return ends - values.mean(-1) + value
