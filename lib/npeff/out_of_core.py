"""Factors in files: factorisations of PEFs that memory cannot hold.

`write_blocks` goes twice through the PEFs, a part in memory at a time: first it counts the entries
of each column, then it cuts the columns that are used into blocks of equally many entries and
writes each block by row and by column. `open_blocks` gives what `decompose` and
`decompose_diagonal` take in place of `Fishers`, and, of blocks that are cut at the positions of a
decomposition (`kept`), `fit_coefficients` and `expand`. A step reads every block once by row and
once by column, and one matrix of a block is in memory at a time. The entries then need no memory,
whatever the number of examples; what grows with it are coefficients and products, r numbers a row.

Public names: `write_blocks`, `open_blocks`, `Stored`, `StoredBlock`.

Source: specification 2.8 (column blocks, for out-of-core A) and 9 (memory-mapped long runs).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from lib.files import write_whole
from lib.npeff import store
from lib.npeff.archive import read_array, read_manifest
from lib.npeff.factors import Factors
from lib.npeff.products import Block, Sparse, turned
from lib.npeff.store import Fishers, Parameters

MANIFEST = "blocks.json"  # written last: a folder without it is not read
ENTRIES = 2**22  # of a block: 32 MB by row and as much by column
ROWS, COLUMNS = "by_row", "by_column"
INDEX = "int32"  # of columns, rows and offsets within a block


def write_blocks(
    folder: Path,
    parts: Callable[[], Iterable[Fishers]],
    *,
    kept: Tensor | None = None,
    raw: bool = False,
    min_nnz: int = 1,
    entries: int = ENTRIES,
) -> None:
    """Prune, normalise and cut PEFs into blocks of columns, in files below a folder.

    Args:
        parts: called twice, gives the same raw PEFs in parts each time:
            ``lambda: archive.read_parts(source)``, or `archive.fetch_parts` through the cache.
        kept: instead of pruning, the columns of these positions, int64 `[m']`: those of a
            decomposition whose components stay (`fit_coefficients`, `expand`). Entries elsewhere
            are dropped, and a position without entries is a column of zeros.
        raw: leave the PEFs as they are, not normalised.
        min_nnz: columns with fewer entries are dropped, as in `store.prune`.
        entries: of a block, about.

    Raises:
        ValueError: no parts, parts that do not belong together or are normalised already, a
            folder that holds blocks, no column with so many entries, or positions of another
            model.
    """
    if (folder / MANIFEST).exists():
        raise ValueError(f"{folder.name} holds blocks already; name another folder or remove it")
    if min_nnz < 1 or entries < 1:
        raise ValueError(f"want min_nnz and entries of at least 1, got {min_nnz} and {entries}")
    if kept is not None and min_nnz > 1:
        raise ValueError(f"kept says which columns there are; leave min_nnz = {min_nnz} out")
    first, counts = _counted(parts())
    if kept is None:
        keep = (counts >= min_nnz).nonzero()[:, 0]
        if not len(keep):
            raise ValueError(f"no parameter is used by {min_nnz} rows; lower min_nnz")
        kept, counts = first.kept[keep], counts[keep]
    else:
        kept = kept.cpu()
        store.select_columns(first, kept)  # refuses positions of another model
        at = torch.searchsorted(first.kept, kept).clamp(max=first.n_columns - 1)
        counts = torch.where(first.kept[at] == kept, counts[at], 0)
    bounds = _bounds(counts, entries)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob("*.bin"):  # of a run that was killed
        stale.unlink()
    totals = _written(folder, parts(), first, kept, bounds, raw)
    arrays: dict[str, tuple[str, int]] = {}
    for i, (lo, hi) in enumerate(pairwise(bounds)):
        arrays |= _finished(folder, i, hi - lo, _dtype(first.values))
    for name, array in (("kept", kept), ("example", totals.example)):
        arrays[name] = _append(folder, name, array)
    note = {
        "kind": first.kind,
        "parameters": first.parameters,
        "k": totals.k,
        "normalised": first.normalised or not raw,
        "n": totals.n,
        "dtype": _dtype(first.values),
        "bounds": bounds,
        # json has no NaN that other readers know
        "least": repr(totals.least),
        "total": repr(totals.total),
        "energy": repr(totals.energy),
        "digest": totals.digest,
        "arrays": arrays,
    }
    write_whole(folder / MANIFEST, json.dumps(note, indent=1))


def open_blocks(folder: Path) -> Factors:
    """What `write_blocks` wrote, to be factorised; entries are read when they are used.

    Raises:
        FileNotFoundError: no finished blocks there.
        ValueError: an array file of another length than was written.
    """
    return Stored(folder, read_manifest(folder, MANIFEST, "blocks"))


@dataclass(frozen=True)
class StoredBlock:
    """Columns lo to hi - 1 in files; every access reads the matrix anew."""

    folder: Path
    number: int
    lo: int
    hi: int
    n_rows: int
    n_entries: int
    dtype: str

    @property
    def by_row(self) -> Sparse:
        """`[R, hi - lo]`."""
        return self._read(ROWS, self.n_rows, self.hi - self.lo)

    @property
    def by_column(self) -> Sparse:
        """`[hi - lo, R]`."""
        return self._read(COLUMNS, self.hi - self.lo, self.n_rows)

    def _read(self, way: str, n_rows: int, n_columns: int) -> Sparse:
        def array(name: str, dtype: str, count: int) -> Tensor:
            return read_array(self.folder / f"{self.number}.{way}.{name}.bin", dtype, count)

        offsets = array("offsets", INDEX, n_rows + 1)
        columns = array("columns", INDEX, self.n_entries)
        return Sparse(offsets, columns, array("values", self.dtype, self.n_entries), n_columns)


class Stored:
    """`Factors` of a folder."""

    def __init__(self, folder: Path, manifest: dict) -> None:
        self.folder, self.manifest = folder, manifest
        self.kind: str = manifest["kind"]
        self.k: int = manifest["k"]
        self.normalised: bool = manifest["normalised"]
        self.digest: str = manifest["digest"]
        self.parameters: Parameters = tuple((n, tuple(s)) for n, s in manifest["parameters"])
        self.least, self.total, self.energy = (
            float(manifest[name]) for name in ("least", "total", "energy")
        )
        self.dtype: torch.dtype = getattr(torch, manifest["dtype"])
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return self.manifest["n"]

    @cached_property
    def example(self) -> Tensor:
        """See `Factors`."""
        return self._whole("example")

    @cached_property
    def kept(self) -> Tensor:
        """See `Factors`."""
        return self._whole("kept")

    def _whole(self, name: str) -> Tensor:
        return read_array(self.folder / f"{name}.bin", *self.manifest["arrays"][name])

    def blocks(
        self, count: int | None, r: int, device: torch.device, *, first: int, last: int
    ) -> Sequence[Block]:
        """The blocks as they were cut, all of them.

        Raises:
            ValueError: other blocks, or a share of the columns, are asked for.
        """
        bounds = self.manifest["bounds"]
        if count not in (None, len(bounds) - 1) or (first, last) != (0, len(self.kept)):
            raise ValueError(
                f"want all {len(bounds) - 1} blocks of {self.folder.name} in one process; write "
                "the PEFs anew with another number of entries, or factorise them in memory"
            )
        made = []
        for i, (lo, hi) in enumerate(pairwise(bounds)):
            n_entries = self.manifest["arrays"][f"{i}.{ROWS}.values"][1]
            dtype = self.manifest["dtype"]
            made.append(StoredBlock(self.folder, i, lo, hi, len(self.example), n_entries, dtype))
        return made


@dataclass(frozen=True)
class _Totals:
    """What one pass over all entries says."""

    n: int
    k: int
    example: Tensor
    least: float
    total: float
    energy: float
    digest: str


def _counted(parts: Iterable[Fishers]) -> tuple[Fishers, Tensor]:
    """The first example, for its form, and how many entries each column has, int64 `[m]`."""
    first: Fishers | None = None
    for part in parts:
        if first is None:
            first = store.take(part, torch.tensor([0]))
            counts = torch.zeros(part.n_columns, dtype=torch.int64)
        store.check_together([first, part])
        counts += torch.bincount(part.columns, minlength=part.n_columns)
    if first is None:
        raise ValueError("want at least one set of PEFs, got none")
    return first, counts


def _bounds(counts: Tensor, entries: int) -> list[int]:
    """Where blocks of about equally many entries begin, and the end."""
    done = counts.cumsum(0)
    n_blocks = max(1, min(len(counts), math.ceil(int(done[-1]) / entries)))
    goals = done[-1] * torch.arange(1, n_blocks) / n_blocks
    inner = torch.searchsorted(done.double(), goals.double()) + 1
    return sorted({0, len(counts), *inner.clamp(max=len(counts)).tolist()})


def _written(
    folder: Path,
    parts: Iterable[Fishers],
    first: Fishers,
    kept: Tensor,
    bounds: list[int],
    raw: bool,
) -> _Totals:
    """Append every part's entries to the files of their blocks, by row."""
    digest, inner = hashlib.sha256(), torch.tensor(bounds[1:-1])
    n_blocks = len(bounds) - 1
    n = k = 0
    example, least, total, energy = [], math.inf, 0.0, 0.0
    for part in parts:
        store.check_together([first, part])
        here = store.select_columns(part if raw else store.normalise(part), kept)
        example.append(here.example + n)
        n, k = n + len(here), max(k, here.k)
        if len(here.values):
            least = min(least, float(here.values.min()))  # NaN shows in the total
        total += float(here.values.double().sum())
        energy += store.energy(here) if math.isfinite(total) else math.nan
        for array in (here.values, here.columns, here.offsets, here.example):
            digest.update(array.numpy().tobytes())
        block = torch.bucketize(here.columns, inner, right=True)
        order = block.argsort(stable=True)  # by block, and in the order of rows within
        cell = block * here.n_rows + here.row_of_entry()
        lengths = torch.bincount(cell, minlength=n_blocks * here.n_rows).view(n_blocks, -1)
        sizes = lengths.sum(1).tolist()
        columns, values = here.columns[order].split(sizes), here.values[order].split(sizes)
        for i, (of, value) in enumerate(zip(columns, values, strict=True)):
            _append(folder, f"{i}.{ROWS}.lengths", lengths[i].int())
            _append(folder, f"{i}.{ROWS}.columns", (of - bounds[i]).int())
            _append(folder, f"{i}.{ROWS}.values", value)
    digest.update(kept.numpy().tobytes())
    least = 0.0 if math.isinf(least) else least
    return _Totals(n, k, torch.cat(example), least, total, energy, digest.hexdigest())


def _finished(folder: Path, i: int, width: int, dtype: str) -> dict[str, tuple[str, int]]:
    """Offsets of a block's rows, and the block by column; what its files hold."""
    path = folder / f"{i}.{ROWS}.lengths.bin"
    lengths = read_array(path, INDEX, -1)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0).int()])
    n_entries = int(offsets[-1])
    names = {name: f"{i}.{ROWS}.{name}" for name in ("columns", "values")}
    columns = read_array(folder / f"{names['columns']}.bin", INDEX, n_entries)
    values = read_array(folder / f"{names['values']}.bin", dtype, n_entries)
    across = turned(Sparse(offsets, columns, values, width))
    path.unlink()
    made = {names["columns"]: (INDEX, n_entries), names["values"]: (dtype, n_entries)}
    made[f"{i}.{ROWS}.offsets"] = _append(folder, f"{i}.{ROWS}.offsets", offsets)
    for name in ("offsets", "columns", "values"):
        made[f"{i}.{COLUMNS}.{name}"] = _append(
            folder, f"{i}.{COLUMNS}.{name}", getattr(across, name)
        )
    return made


def _append(folder: Path, name: str, array: Tensor) -> tuple[str, int]:
    """Write at the end of an array file; the type and the number of what was written."""
    with (folder / f"{name}.bin").open("ab") as file:
        file.write(array.contiguous().numpy().tobytes())
    return _dtype(array), array.numel()


def _dtype(array: Tensor) -> str:
    return str(array.dtype).removeprefix("torch.")
