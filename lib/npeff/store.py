"""Sparse per-example Fishers: what they are, and how they are pruned, normalised and kept.

A per-example Fisher (PEF) is ``F_i = A_i^T A_i`` with a factor `A_i` of a few rows ("low-rank"),
or the diagonal of that matrix ("diagonal"). Only the entries of largest magnitude are kept, so the
factors of all examples, stacked, are one sparse matrix in row-compressed form. `Fishers` holds it
with everything that is needed to read it again: the norm of each dense PEF, the logits, and which
parameter a column is.

Order of work, as in the paper: `lib.npeff.fisher` makes them, `prune` drops unused columns,
`normalise` divides by the norms of the dense PEFs.

Public names: `Fishers`, `prune`, `normalise`, `sparse_norms`, `energy`, `select_columns`, `take`,
`truncate`, `concatenate`, `from_dense`, `Parameters`.

Source: document 3, sections 2.1 and 2.2 (sparsity, preprocessing); specification sections 0 and 1.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib.npeff.rows import largest, offsets_of, ranges

LOW_RANK, DIAGONAL = "low-rank", "diagonal"
BLOCK = 2**19  # numbers of a dense block: 4 MiB, memory that is used again and not mapped anew
GUARD = {LOW_RANK: 1e-12, DIAGONAL: 1e-9}  # of the norm, as the paper's code divides by it

Parameters = tuple[tuple[str, tuple[int, ...]], ...]  # names and shapes in the flat order


@dataclass(frozen=True)
class Fishers:
    """Per-example Fishers of n examples, with the K largest entries of each.

    Rows are example-major: the rows of example i are ``offsets_of(i)``; a diagonal PEF has one
    row, a low-rank one up to C. Entries of a row have ascending columns.
    """

    kind: str  # LOW_RANK (entries of A) or DIAGONAL (entries of f, not negative)
    values: Tensor  # [nnz]
    columns: Tensor  # int64 [nnz], in 0..n_columns - 1
    offsets: Tensor  # int64 [R + 1], where each row begins; the last is nnz
    example: Tensor  # int64 [R], ascending: whose row it is
    norms: Tensor  # float64 [n], Frobenius norms of the dense PEFs
    logits: Tensor  # [n, C]
    kept: Tensor  # int64 [n_columns], ascending: the parameter position that a column is
    parameters: Parameters
    k: int  # entries kept of an example at most
    normalised: bool = False  # whether values are divided by the norms

    def __post_init__(self) -> None:
        if self.kind not in GUARD:
            raise ValueError(f"want kind {LOW_RANK!r} or {DIAGONAL!r}, got {self.kind!r}")
        n_rows, nnz = len(self.example), len(self.values)
        if len(self.offsets) != n_rows + 1 or len(self.columns) != nnz:
            raise ValueError(
                f"want offsets [{n_rows + 1}] and columns [{nnz}] for {n_rows} rows with {nnz} "
                f"entries, got {len(self.offsets)} and {len(self.columns)}; the file is damaged"
            )
        if int(self.offsets[-1]) != nnz or len(self.norms) != len(self.logits):
            raise ValueError("rows, entries, norms and logits disagree; the file is damaged")

    def __len__(self) -> int:
        return len(self.norms)

    @property
    def n_columns(self) -> int:
        """m', the parameter positions that have a column."""
        return len(self.kept)

    @property
    def n_parameters(self) -> int:
        """m, the parameters of the block that the gradients were taken of."""
        return sum(torch.Size(shape).numel() for _, shape in self.parameters)

    @property
    def n_rows(self) -> int:
        """R, the rows of all factors together."""
        return len(self.example)

    def matrix(self) -> Tensor:
        """All factors stacked: a sparse CSR tensor ``[R, n_columns]``, without a copy."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
            return torch.sparse_csr_tensor(
                self.offsets,
                self.columns,
                self.values,
                (self.n_rows, self.n_columns),
                check_invariants=False,
            )

    def row_of_entry(self) -> Tensor:
        """The row of each entry, int64 `[nnz]`."""
        rows = torch.arange(self.n_rows, device=self.offsets.device)
        return rows.repeat_interleave(self.offsets.diff())

    def predicted(self) -> Tensor:
        """The class that the model predicts, int64 `[n]`."""
        return self.logits.argmax(1)


def prune(fishers: Fishers, min_nnz: int = 1) -> Fishers:
    """Keep the columns with at least `min_nnz` entries, counted over all rows.

    An example of C classes can count C times. The default drops only what no example uses, which
    changes nothing; norms are not computed anew. A row may lose all its entries and then stays.

    Source: specification 1.7.
    """
    if min_nnz < 1:
        raise ValueError(f"want min_nnz >= 1, got {min_nnz}")
    counts = torch.bincount(fishers.columns, minlength=fishers.n_columns)
    keep = (counts >= min_nnz).nonzero()[:, 0]
    if not len(keep):
        raise ValueError(
            f"no parameter is used by {min_nnz} rows (at most {int(counts.max())}); lower min_nnz"
        )
    return _with_columns(fishers, keep, fishers.kept[keep])


def select_columns(fishers: Fishers, kept: Tensor) -> Fishers:
    """The same PEFs on another set of parameter positions; entries elsewhere are dropped.

    Args:
        kept: int64 `[m']`, ascending positions, such as those of a decomposition to fit to.

    Source: specification 4.1: new data are read at the positions of the frozen components.
    """
    if kept.ndim != 1 or not len(kept) or bool((kept.diff() <= 0).any()):
        raise ValueError("want ascending parameter positions [m'], each once")
    if int(kept[0]) < 0 or int(kept[-1]) >= fishers.n_parameters:
        raise ValueError(
            f"want positions in 0..{fishers.n_parameters - 1}, got up to {int(kept[-1])}; "
            "they are of another model or block"
        )
    # positions that these PEFs never use get an empty column
    at = torch.searchsorted(fishers.kept, kept).clamp(max=fishers.n_columns - 1)
    present = fishers.kept[at] == kept
    old_to_new = torch.full((fishers.n_columns,), -1, device=kept.device)
    old_to_new[at[present]] = present.nonzero()[:, 0]
    return _mapped(fishers, old_to_new, kept)


def normalise(fishers: Fishers) -> Fishers:
    """Divide each example's PEF by the Frobenius norm of the dense one.

    A factor is divided by the norm's square root. An example whose PEF is zero (a saturated
    prediction) stays zero: it takes no part in a decomposition.

    Raises:
        ValueError: normalised already.

    Source: document 3, section 2.2, preprocessing; specification 1.6. The dense norm is used on
    purpose: what sparsification approximates badly ends up smaller than one.
    """
    if fishers.normalised:
        raise ValueError("these PEFs are normalised already; normalise the raw ones, once")
    guard = GUARD[fishers.kind]
    if fishers.kind == LOW_RANK:
        scale = fishers.norms.sqrt().clamp(min=guard).reciprocal()
    else:
        scale = (fishers.norms + guard).reciprocal()
    scale = torch.where(fishers.norms > 0, scale, 0.0).to(fishers.values.dtype)
    per_row = scale[fishers.example]
    values = fishers.values * per_row.repeat_interleave(fishers.offsets.diff())
    return replace(fishers, values=values, normalised=True)


def sparse_norms(fishers: Fishers) -> Tensor:
    """Frobenius norm of each PEF as it is stored, float64 `[n]`.

    Of normalised PEFs it is q in [0, 1], the share of the norm that the kept entries have.

    Source: specification 1.4 and 1.6.
    """
    if fishers.kind == DIAGONAL:
        entries = fishers.values.double().square()
        squares = torch.segment_reduce(entries, "sum", offsets=fishers.offsets)
        total = torch.zeros(len(fishers), dtype=torch.float64, device=squares.device)
        return total.index_add_(0, fishers.example, squares).sqrt()
    none = torch.zeros(0, dtype=torch.float64, device=fishers.values.device)
    found = (torch.linalg.matrix_norm(rows @ rows.mT) for rows in _blocks_of(fishers))
    return torch.cat([none, *found])


def energy(fishers: Fishers) -> float:
    """kappa, the sum of squared Frobenius norms of the stored PEFs.

    Source: specification 2.1; the paper's code counts diagonal terms more than once (section 11).
    """
    return float(sparse_norms(fishers).square().sum())


def take(fishers: Fishers, examples: Tensor) -> Fishers:
    """The PEFs of some examples, in the order given; columns stay.

    Args:
        examples: int64 `[n']`, each in 0..n - 1.
    """
    if examples.ndim != 1 or not len(examples):
        raise ValueError("want indices of examples [n'], at least one")
    if int(examples.min()) < 0 or int(examples.max()) >= len(fishers):
        raise ValueError(f"want examples in 0..{len(fishers) - 1}, got up to {int(examples.max())}")
    first = torch.searchsorted(fishers.example, examples)
    n_rows = torch.searchsorted(fishers.example, examples, right=True) - first
    rows = ranges(first, n_rows)
    lengths = fishers.offsets.diff()[rows]
    # an example's entries lie together: whole slices are copied faster than single entries
    ends = zip(*(fishers.offsets[at].tolist() for at in (first, first + n_rows)), strict=True)
    parts = [slice(a, b) for a, b in ends]
    return replace(
        fishers,
        values=torch.cat([fishers.values[part] for part in parts]),
        columns=torch.cat([fishers.columns[part] for part in parts]),
        offsets=offsets_of(lengths),
        example=torch.arange(len(examples), device=rows.device).repeat_interleave(n_rows),
        norms=fishers.norms[examples],
        logits=fishers.logits[examples],
    )


def truncate(fishers: Fishers, k: int) -> Fishers:
    """Keep the k largest entries of each example; norms and columns stay as they are.

    Source: specification 1.5, a smaller K from PEFs that were made with a larger one.
    """
    if not 1 <= k <= fishers.k:
        raise ValueError(f"want 1 <= k <= {fishers.k}, the entries that were kept, got {k}")
    example = fishers.example[fishers.row_of_entry()]
    order = fishers.values.abs().argsort(descending=True, stable=True)
    order = order[example[order].argsort(stable=True)]  # by example, then by magnitude
    counts = torch.bincount(example, minlength=len(fishers))
    rank = torch.arange(len(order), device=order.device) - (
        counts.cumsum(0) - counts
    ).repeat_interleave(counts)
    stay = torch.zeros_like(order, dtype=torch.bool)
    stay[order[rank < k]] = True
    lengths = torch.zeros(fishers.n_rows, dtype=torch.int64, device=order.device)
    lengths.index_add_(0, fishers.row_of_entry(), stay.long())
    return replace(
        fishers,
        values=fishers.values[stay],
        columns=fishers.columns[stay],
        offsets=offsets_of(lengths),
        k=k,
    )


def concatenate(parts: Sequence[Fishers]) -> Fishers:
    """PEFs of several sets of examples of one model, one after the other."""
    if not parts:
        raise ValueError("want at least one set of PEFs")
    check_together(parts)
    first, total, done = parts[0], [], 0
    for part in parts:
        total.append(part.example + done)
        done += len(part)
    return replace(
        first,
        values=torch.cat([part.values for part in parts]),
        columns=torch.cat([part.columns for part in parts]),
        offsets=offsets_of(torch.cat([part.offsets.diff() for part in parts])),
        example=torch.cat(total),
        norms=torch.cat([part.norms for part in parts]),
        logits=torch.cat([part.logits for part in parts]),
        k=max(part.k for part in parts),
    )


def check_together(parts: Sequence[Fishers]) -> None:
    """Refuse PEFs of different kinds, models or columns."""
    first = parts[0]
    same = (first.kind, first.parameters, first.normalised)
    for part in parts:
        if (part.kind, part.parameters, part.normalised) != same or not torch.equal(
            part.kept, first.kept
        ):
            raise ValueError("want PEFs of one kind, of one model and on the same columns")


def from_dense(
    rows: Tensor, *, kind: str = LOW_RANK, k: int | None = None, logits: Tensor | None = None
) -> Fishers:
    """Fishers from dense factors, for small problems and planted ones.

    Args:
        rows: ``[n, C, m]`` for low-rank ones, ``[n, m]`` for diagonal ones.
        k: entries kept an example; None keeps all that are not zero.

    Returns:
        Raw (not normalised) PEFs on all m positions, of one parameter called "planted".
    """
    if kind == DIAGONAL and rows.ndim == 2:
        rows = rows[:, None]
    if rows.ndim != 3 or not rows.isfinite().all():
        raise ValueError(f"want finite rows [n, C, m] or [n, m], got shape {tuple(rows.shape)}")
    n, c, m = rows.shape
    if k is not None and not 1 <= k <= c * m:
        raise ValueError(f"want 1 <= k <= {c * m}, the entries of an example, got {k}")
    dense = rows.double()
    norms = (
        torch.linalg.matrix_norm(dense @ dense.mT) if kind == LOW_RANK else dense.norm(dim=2)[:, 0]
    )
    keep = torch.zeros(n, c * m, dtype=torch.bool, device=rows.device)
    for row, best in zip(keep, largest(rows.flatten(1), c * m if k is None else k), strict=True):
        row[best] = True
    at = keep.view(n * c, m).nonzero()
    return Fishers(
        kind,
        rows.reshape(n * c, m)[at[:, 0], at[:, 1]],
        at[:, 1].contiguous(),
        offsets_of(torch.bincount(at[:, 0], minlength=n * c)),
        torch.arange(n, device=rows.device).repeat_interleave(c),
        norms,
        torch.zeros(n, c, device=rows.device) if logits is None else logits,
        torch.arange(m, device=rows.device),
        (("planted", (m,)),),
        c * m if k is None else k,
    )


def _with_columns(fishers: Fishers, chosen: Tensor, kept: Tensor) -> Fishers:
    old_to_new = torch.full((fishers.n_columns,), -1, device=chosen.device)
    old_to_new[chosen] = torch.arange(len(chosen), device=chosen.device)
    return _mapped(fishers, old_to_new, kept)


def _mapped(fishers: Fishers, old_to_new: Tensor, kept: Tensor) -> Fishers:
    columns = old_to_new[fishers.columns]
    stay = columns >= 0
    if bool(stay.all()):
        return replace(fishers, columns=columns, kept=kept)
    lengths = torch.zeros(fishers.n_rows, dtype=torch.int64, device=columns.device)
    lengths.index_add_(0, fishers.row_of_entry(), stay.long())
    return replace(
        fishers,
        values=fishers.values[stay],
        columns=columns[stay],
        offsets=offsets_of(lengths),
        kept=kept,
    )


def _blocks_of(fishers: Fishers) -> Iterator[Tensor]:
    """Factors of several examples, dense on the columns that these use: float64 `[b, C, m_b]`.

    An example with fewer rows has rows of zeros at its end.
    """
    at = fishers.example.device
    first = torch.searchsorted(fishers.example, torch.arange(len(fishers) + 1, device=at))
    n_rows = max(int(first.diff().max()), 1)
    # b examples use at most b k columns; a block takes at most BLOCK numbers
    narrow = BLOCK // (n_rows * max(fishers.n_columns, 1))
    wide = int((BLOCK / (n_rows * max(fishers.k, 1))) ** 0.5)
    step = max(narrow, wide, 1)
    for lo in range(0, len(fishers), step):
        hi = min(lo + step, len(fishers))
        rows = slice(int(first[lo]), int(first[hi]))
        ends = fishers.offsets[rows.start : rows.stop + 1]
        entries = slice(int(ends[0]), int(ends[-1]))
        used = torch.zeros(fishers.n_columns, dtype=torch.bool, device=at)
        used[fishers.columns[entries]] = True
        place = used.cumsum(0) - 1
        width = int(used.sum())
        example = fishers.example[rows]
        slot = (example - lo) * n_rows + torch.arange(rows.start, rows.stop, device=at)
        begin = (slot - first[example]) * width
        dense = torch.zeros((hi - lo) * n_rows * width, dtype=torch.float64, device=at)
        where = begin.repeat_interleave(ends.diff()) + place[fishers.columns[entries]]
        dense.scatter_(0, where, fishers.values[entries].double())
        yield dense.view(hi - lo, n_rows, width)
