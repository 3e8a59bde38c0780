"""The data of a factorisation: stacked factors of examples, cut into blocks of columns.

A factorisation reads the entries of its PEFs only block by block: `Factors` says what it needs,
`InMemory` gives it for a set of `Fishers`, `lib.npeff.out_of_core` for a folder. The loops of
`factorise` and `diagonal` do not know which of them they have.

Public names: `Factors`, `InMemory`, `factors_of`.

Source: specification 2.8, blocks of columns, also for out-of-core data.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from lib import cache
from lib.npeff import store
from lib.npeff.products import Block, blocks_of, n_blocks_for
from lib.npeff.store import Fishers, Parameters

HASHED = ("values", "columns", "offsets", "example", "kept")


class Factors(Protocol):
    """PEFs of n examples as a factorisation reads them."""

    @property
    def kind(self) -> str:
        """LOW_RANK or DIAGONAL."""

    @property
    def example(self) -> Tensor:
        """Whose row each row is, int64 `[R]`, ascending."""

    @property
    def kept(self) -> Tensor:
        """The parameter position that a column is, int64 `[m']`."""

    @property
    def parameters(self) -> Parameters:
        """Names and shapes in the flat order."""

    @property
    def k(self) -> int:
        """Entries kept of an example at most."""

    @property
    def normalised(self) -> bool:
        """Whether values are divided by the norms."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the entries."""

    @property
    def device(self) -> torch.device:
        """Where components go unless it is said otherwise."""

    @property
    def least(self) -> float:
        """The smallest entry, 0 if there is none; NaN or infinite if an entry is."""

    @property
    def total(self) -> float:
        """The sum of all entries; NaN or infinite if an entry is."""

    @property
    def energy(self) -> float:
        """kappa, see `store.energy`."""

    @property
    def digest(self) -> str:
        """A hash of everything that decides a factorisation."""

    def __len__(self) -> int:
        """n."""

    def blocks(
        self, count: int | None, r: int, device: torch.device, *, first: int, last: int
    ) -> Sequence[Block]:
        """Columns `first` to `last` - 1 in contiguous blocks.

        Args:
            count: of blocks; None takes what is fastest for r components on a device.
        """


class InMemory:
    """`Factors` of PEFs that are all in memory."""

    def __init__(self, fishers: Fishers) -> None:
        self.fishers = fishers
        self.kind, self.k, self.normalised = fishers.kind, fishers.k, fishers.normalised
        self.example, self.kept = fishers.example, fishers.kept
        self.parameters = fishers.parameters
        self.dtype, self.device = fishers.values.dtype, fishers.values.device

    def __len__(self) -> int:
        return len(self.fishers)

    @cached_property
    def least(self) -> float:
        """See `Factors`."""
        return float(self.fishers.values.min()) if len(self.fishers.values) else 0.0

    @cached_property
    def total(self) -> float:
        """See `Factors`."""
        return float(self.fishers.values.double().sum())

    @cached_property
    def energy(self) -> float:
        """See `Factors`."""
        return store.energy(self.fishers)

    @cached_property
    def digest(self) -> str:
        """See `Factors`."""
        return cache.state_hash({name: getattr(self.fishers, name) for name in HASHED})

    def blocks(
        self, count: int | None, r: int, device: torch.device, *, first: int, last: int
    ) -> Sequence[Block]:
        """See `Factors`."""
        count = count or n_blocks_for(self.fishers, last - first, r, device)
        return blocks_of(self.fishers, count, first=first, last=last)


def factors_of(data: Fishers | Factors) -> Factors:
    """PEFs in memory as `Factors`; `Factors` as they are."""
    return InMemory(data) if isinstance(data, Fishers) else data
