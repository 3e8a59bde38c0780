"""Products of the stacked factors with components: where a factorisation spends its time.

All factors are one sparse matrix A `[R, m']`, cut into contiguous blocks of columns. A block is
kept by row and by column, so that both ``A G^T`` and ``A^T M`` read their entries in order.
Components are held transposed, `[m_b, r]` for a block: an entry of A then meets r numbers that
lie together. A block whose components fit a core's second-level cache is fastest on CPUs (9.7
against 14.3 ms for 8 million entries and r = 32), and blocks are also how the work is
split over processes, or made to fit a device.

`Columns` is the state of the components with everything that a step needs of them; `Alone` is
the group of one process (`lib.npeff.distributed` has that of several).

Public names: `Sparse`, `Block`, `Held`, `blocks_of`, `n_blocks_for`, `turned`, `multiply`,
`Columns`, `Group`, `Alone`.

Source: specification 2.7 (cost) and 2.8 (sharding by columns).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from lib.npeff.store import Fishers

CACHE_BYTES = 2**20  # of a core's second-level cache
MIN_ENTRIES = 16  # of a row in a block: below, starting a row costs more than its entries


class Group(Protocol):
    """Processes that share the columns: each has some and all have the same coefficients."""

    rank: int
    size: int

    def sum(self, *tensors: Tensor) -> None:
        """Add up over processes, in place."""

    def same(self, *tensors: Tensor) -> None:
        """Take the values of process 0, in place."""

    def gather(self, mine: Tensor) -> Tensor:
        """All processes' rows, one after the other."""


class Alone:
    """A group of one process."""

    rank = 0
    size = 1

    def sum(self, *tensors: Tensor) -> None:
        """Nothing to add."""

    def same(self, *tensors: Tensor) -> None:
        """Nothing to take."""

    def gather(self, mine: Tensor) -> Tensor:
        """What there is."""
        return mine


@dataclass(frozen=True)
class Sparse:
    """A row-compressed matrix; indices are int32 where they fit, for speed."""

    offsets: Tensor  # [rows + 1]
    columns: Tensor  # [nnz]
    values: Tensor  # [nnz]
    n_columns: int

    def to(self, device: torch.device) -> Sparse:
        """The same matrix elsewhere."""
        return Sparse(
            self.offsets.to(device, non_blocking=True),
            self.columns.to(device, non_blocking=True),
            self.values.to(device, non_blocking=True),
            self.n_columns,
        )


def multiply(a: Sparse, x: Tensor) -> Tensor:
    """``a @ x`` for a dense x `[a.n_columns, r]`, on x's device.

    On CPUs in float32 a row is a weighted bag of rows of x: that kernel took 14 ms where
    the sparse product of the vendor's library took 38 (8 million entries, r = 32, two cores).
    """
    if a.values.device != x.device:
        a = a.to(x.device)
    if not len(a.values):
        return x.new_zeros(len(a.offsets) - 1, x.shape[1])
    if x.dtype == torch.float32 and x.device.type == "cpu":
        return embedding_bag(
            a.columns,
            x.contiguous(),
            a.offsets,
            mode="sum",
            per_sample_weights=a.values,
            include_last_offset=True,
        )
    return _csr(a.offsets, a.columns, a.values, (len(a.offsets) - 1, a.n_columns)) @ x


class Block(Protocol):
    """Columns lo to hi - 1 of all factors; asking for a matrix may read it from a disk."""

    @property
    def lo(self) -> int:
        """The first column."""

    @property
    def hi(self) -> int:
        """One after the last column."""

    @property
    def n_rows(self) -> int:
        """R."""

    @property
    def by_row(self) -> Sparse:
        """`[R, hi - lo]`."""

    @property
    def by_column(self) -> Sparse:
        """`[hi - lo, R]`."""


@dataclass(frozen=True)
class Held:
    """A block in memory."""

    lo: int
    hi: int
    n_rows: int
    by_row: Sparse
    by_column: Sparse


def blocks_of(
    fishers: Fishers, n_blocks: int, *, first: int = 0, last: int | None = None
) -> list[Held]:
    """Cut columns `first` to `last` - 1 of the stacked factors into contiguous blocks."""
    last = fishers.n_columns if last is None else last
    bounds = [first + (last - first) * i // n_blocks for i in range(n_blocks + 1)]
    index = torch.int32 if max(len(fishers.values), fishers.n_rows, last) < 2**31 else torch.int64
    columns = fishers.columns.to(index)
    across = turned(Sparse(fishers.offsets.to(index), columns, fishers.values, fishers.n_columns))
    found = []
    for lo, hi in pairwise(bounds):
        start, stop = int(across.offsets[lo]), int(across.offsets[hi])
        part = Sparse(
            (across.offsets[lo : hi + 1] - start).to(index),
            across.columns[start:stop],
            across.values[start:stop],
            fishers.n_rows,
        )
        # turned back: faster than to look for a block's columns among all entries
        found.append(Held(lo, hi, fishers.n_rows, turned(part), part))
    return found


def turned(a: Sparse) -> Sparse:
    """The transposed matrix; a column's entries are in the order of rows."""
    n_rows = len(a.offsets) - 1
    if a.values.device.type == "cpu":  # scipy counts, which is faster than to sort
        from scipy.sparse import csr_matrix

        parts = a.values.numpy(), a.columns.numpy(), a.offsets.numpy()
        made = csr_matrix(parts, shape=(n_rows, a.n_columns)).tocsc()
        offsets, rows, values = (
            torch.from_numpy(x) for x in (made.indptr, made.indices, made.data)
        )
        return Sparse(offsets, rows.to(a.columns.dtype), values, n_rows)
    order = a.columns.argsort(stable=True)
    numbers = torch.arange(n_rows, device=order.device, dtype=a.columns.dtype)
    rows = numbers.repeat_interleave(a.offsets.diff().long())
    offsets = _offsets(torch.bincount(a.columns, minlength=a.n_columns), torch.int64)
    return Sparse(offsets, rows[order], a.values[order], n_rows)


def _offsets(lengths: Tensor, index: torch.dtype) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(index)


def n_blocks_for(fishers: Fishers, n_columns: int, r: int, device: torch.device) -> int:
    """How many blocks are fastest: on a CPU their components fill a core's own cache."""
    if device.type != "cpu":
        return 1
    fitting = math.ceil(n_columns * r * fishers.values.element_size() / CACHE_BYTES)
    filled = len(fishers.values) // max(1, fishers.n_rows * MIN_ENTRIES)
    return max(1, min(fitting, filled, n_columns))


class Columns:
    """Components in the space of parameters: ``G^T`` by blocks of rows, and a step's direction.

    Args:
        blocks: the factors, one or more blocks of columns.
        g: ``G^T [n_columns, r]`` of these blocks; copied.
        group: who has the other columns.
    """

    def __init__(self, blocks: Sequence[Block], g: Tensor, group: Group) -> None:
        first = blocks[0].lo
        self.blocks, self.group = blocks, group
        self.n_rows = blocks[0].n_rows
        self.g = g.clone()
        self.parts = [self.g[x.lo - first : x.hi - first] for x in blocks]
        self.direction: list[Tensor] = []

    def products(self) -> tuple[Tensor, Tensor]:
        """``B = A G^T [R, r]`` and ``Q = G G^T [r, r]``, float64."""
        r = self.g.shape[1]
        b, q = self.g.new_zeros(self.n_rows, r), self.g.new_zeros(r, r)
        for block, part in zip(self.blocks, self.parts, strict=True):
            b += multiply(block.by_row, part)
            q += part.T @ part
        self.group.sum(b, q)
        return b.double(), q.double()

    def turn(self, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Set the direction ``D^T = G^T x - A^T m`` for the first f components.

        Args:
            x: `[r, f]`; m: `[R, f]`, both float64.

        Returns:
            ``A D^T [R, f]``, ``G D^T [r, f]`` and ``D D^T [f, f]``, float64.
        """
        x, m = x.to(self.g.dtype), m.to(self.g.dtype)
        r, f = x.shape
        e, gd, dd = self.g.new_zeros(self.n_rows, f), x.new_zeros(r, f), x.new_zeros(f, f)
        self.direction = []
        for block, part in zip(self.blocks, self.parts, strict=True):
            d = part @ x
            d -= multiply(block.by_column, m)
            e += multiply(block.by_row, d)
            gd += part.T @ d
            dd += d.T @ d
            self.direction.append(d)
        self.group.sum(e, gd, dd)
        return e.double(), gd.double(), dd.double()

    def move(self, t: float) -> None:
        """``G <- G - t D``."""
        for part, d in zip(self.parts, self.direction, strict=True):
            part[:, : d.shape[1]].sub_(d, alpha=t)

    def components(self) -> Tensor:
        """G `[r, m']`, all processes' columns."""
        return self.group.gather(self.g).T.contiguous()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds."""
        return {"g": self.group.gather(self.g)}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from a checkpoint."""
        first, last = self.blocks[0].lo, self.blocks[-1].hi
        self.g.copy_(state["g"][first:last])


def _csr(offsets: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():  # one that says that CSR tensors are new, in every process
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(offsets, columns, values, shape, check_invariants=False)
