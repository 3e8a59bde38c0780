"""Edits of boards: add a piece, remove one, move one to an empty square, or change its colour.

Each costs one. Legality is no part of an edit: who walks edits asks the rules (`first_legal`).

Public names: `KINDS`, `ALL_KINDS`, `Edits`, `all_edits`, `apply`, `first_legal`, `random_edits`,
`changed_cells`, `describe`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import chess
import numpy as np

from lib.backprop.chess.boards import KING, Bits, Boards, Flags, Numbers, bits, window
from lib.backprop.chess.moves import is_legal

KINDS = ("add", "remove", "move")
ALL_KINDS = (*KINDS, "recolour")
ADDED = {6: (0, 1, 3, 4), 8: (0, 1, 2, 3, 4)}  # no bishops on the small board, never a king
NOWHERE = -1

Legal = Callable[[Boards], Flags]


@dataclass(frozen=True)
class Edits:
    """m edits of boards.

    Square `NOWHERE` (-1) as source means added, as target removed; one square as both means that
    the piece there goes over to the other side.
    """

    board: Numbers  # [m]
    piece: Numbers  # [m], 0..5 the mover's, 6..11 the other side's
    source: Numbers  # [m]
    target: Numbers  # [m]

    def __len__(self) -> int:
        return len(self.board)

    def __getitem__(self, rows: Numbers) -> Edits:
        return Edits(self.board[rows], self.piece[rows], self.source[rows], self.target[rows])

    @property
    def becomes(self) -> Numbers:
        """What stands on the target afterwards, `[m]`."""
        return np.where(self.source == self.target, (self.piece + 6) % 12, self.piece)


def all_edits(boards: Boards, kinds: Sequence[str] = KINDS) -> Edits:
    """Every edit of every board, legal or not; kings are moved, and nothing else befalls them.

    Source: specification of document 5, section 5.5; recolouring is its option.
    """
    pieces = np.concatenate([boards.own, boards.other], 1)
    at, kind, square = bits(pieces).nonzero()
    free = bits(~boards.occupied & window(boards.side)).astype(bool)
    can = kind % 6 != KING
    parts: list[tuple[Numbers, Numbers, Numbers, Numbers]] = []
    if "add" in kinds:
        row, to = free.nonzero()
        for piece in (c + p for c in (0, 6) for p in ADDED[boards.side]):
            parts.append((row, np.full(len(row), piece), np.full(len(row), NOWHERE), to))
    if "remove" in kinds:
        parts.append((at[can], kind[can], square[can], np.full(int(can.sum()), NOWHERE)))
    if "move" in kinds:
        which, to = free[at].nonzero()
        parts.append((at[which], kind[which], square[which], to))
    if "recolour" in kinds:
        parts.append((at[can], kind[can], square[can], square[can]))
    return Edits(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def apply(boards: Boards, edits: Edits) -> Boards:
    """The boards after one edit each, `[m]`."""
    pieces = np.concatenate([boards.own, boards.other], 1)[edits.board]
    rows = np.arange(len(edits))

    def bit(square: Numbers) -> Bits:
        one = np.uint64(1) << square.clip(0).astype(np.uint64)
        return np.where(square == NOWHERE, np.uint64(0), one)

    pieces[rows, edits.piece] &= ~bit(edits.source)
    pieces[rows, edits.becomes] |= bit(edits.target)
    white = boards.white[edits.board]
    return Boards(pieces[:, :6].copy(), pieces[:, 6:].copy(), white, boards.side)


def first_legal(
    boards: Boards, edits: Edits, n: Sequence[int] | Numbers, legal: Legal = is_legal
) -> Numbers:
    """Rows of the first legal edits of each board, in order: no more is judged than is needed.

    Args:
        edits: ascending by board.
        n: `[n_boards]`, how many are wanted of each board; fewer come where there are fewer.
    """
    starts = np.searchsorted(edits.board, np.arange(len(boards) + 1))
    next_, end, missing = starts[:-1].copy(), starts[1:], np.array(n, np.int64)
    good = np.zeros(len(edits), bool)
    while len(short := ((missing > 0) & (next_ < end)).nonzero()[0]):
        count = np.minimum(missing[short] + missing[short] // 2 + 2, end[short] - next_[short])
        first = np.repeat(next_[short] - count.cumsum() + count, count)
        rows = first + np.arange(count.sum())
        good[rows] = legal(apply(boards, edits[rows]))
        next_[short] += count
        missing -= np.bincount(edits.board[rows[good[rows]]], minlength=len(boards))
    rows = good.nonzero()[0]
    before = np.searchsorted(rows, starts[:-1])[edits.board[rows]]
    return rows[np.arange(len(rows)) - before < np.array(n)[edits.board[rows]]]


def random_edits(boards: Boards, n_edits: int, *, seed: int, legal: Legal = is_legal) -> Boards:
    """Each board after so many random edits that keep it legal: the control without a probe."""
    draw = np.random.default_rng(seed)
    for _ in range(n_edits):
        edits = all_edits(boards)
        edits = edits[draw.permutation(len(edits))]
        edits = edits[np.argsort(edits.board, kind="stable")]
        rows = first_legal(boards, edits, np.ones(len(boards), int), legal)
        boards = apply(boards, edits[rows])
    return boards


def changed_cells(before: Boards, after: Boards) -> Numbers:
    """Squares on which two boards differ, `[n]`."""
    different = np.zeros(len(before), np.uint64)
    for name in ("own", "other"):
        different |= np.bitwise_or.reduce(getattr(before, name) ^ getattr(after, name), 1)
    return np.bitwise_count(different).astype(np.int64)


def describe(edit: Edits) -> str:
    """One edit in words; the mover's pieces are upper case."""
    piece = int(edit.piece[0])
    name = "PNBRQK"[piece] if piece < 6 else "pnbrqk"[piece - 6]
    squares = ["" if s == NOWHERE else chess.square_name(int(s)) for s in
               (edit.source[0], edit.target[0])]  # fmt: skip
    if not squares[0]:
        return f"+{name}{squares[1]}"
    if squares[0] == squares[1]:
        return f"{name}{squares[0]}={name.swapcase()}"
    return f"{name}{squares[0]}-{squares[1]}" if squares[1] else f"-{name}{squares[0]}"
