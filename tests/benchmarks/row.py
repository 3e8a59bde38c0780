"""What a row of `make bench` is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One comparison."""

    ours: Callable[[], object]
    peer: Callable[[], object]
    agree: Callable[[object, object], tuple[bool, str]]
    peer_name: str
    target: float  # how many times faster ours must be
    sizes: str
    peer_share: float = 1.0  # of the job that the peer does; its seconds are scaled up
    limit: float = math.inf  # seconds that ours may take
    memory: float | None = None  # the most that ours may take at its peak, of the peer's peak
