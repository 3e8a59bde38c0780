"""Many chess boards at once, as bitboards, seen by the side to move.

A `Boards` holds n positions in twelve 64-bit numbers each: the mover's six kinds of piece and the
other side's. Squares are numbered as python-chess numbers them (a1 = 0, h8 = 63), after turning
the board over for Black, so that the mover's pawns always go up. Small boards are the window
a1..f6 of the large one: rays between two squares of the window never leave it.

Public names: `Boards`, `PIECES`, `VALUES`, `window`, `bits`, `from_chess`, `to_chess`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import chess
import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint64]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]

PIECES = "PNBRQK"
VALUES = (1, 2, 2, 4, 9, 0)  # of document 5's authors, in the order of PIECES
PAWN, KNIGHT, BISHOP, ROOK, QUEEN, KING = range(6)
SIDES = (6, 8)


@cache
def window(side: int) -> np.uint64:
    """The squares of a board of `side` by `side`, as bits.

    Raises:
        ValueError: a side other than 6 or 8.
    """
    if side not in SIDES:
        raise ValueError(f"want a board of side {' or '.join(map(str, SIDES))}, got {side}")
    return np.uint64(sum(((1 << side) - 1) << (8 * rank) for rank in range(side)))


@dataclass(frozen=True)
class Boards:
    """n positions; see the module's docstring."""

    own: Bits  # [n, 6], the mover's pawns, knights, bishops, rooks, queens, kings
    other: Bits  # [n, 6]
    white: Flags  # [n], whether the mover is White
    side: int  # 6 or 8

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, rows: NDArray[np.generic] | slice | list[int]) -> Boards:
        return Boards(self.own[rows], self.other[rows], self.white[rows], self.side)

    @property
    def occupied(self) -> Bits:
        """Squares with a piece, `[n]`."""
        return np.bitwise_or.reduce(self.own, 1) | np.bitwise_or.reduce(self.other, 1)

    def turned(self) -> Boards:
        """The same pieces with the other side to move (which passes the turn)."""
        own, other = (mirrored(x, self.side) for x in (self.other, self.own))
        return Boards(own, other, ~self.white, self.side)

    def identities(self) -> list[bytes]:
        """One key a position: equal keys mean the same pieces and the same mover."""
        rows = np.concatenate([self.own, self.other, self.white[:, None].astype(np.uint64)], 1)
        return [row.tobytes() for row in rows]

    def material(self) -> Numbers:
        """Value of the mover's pieces minus that of the other side's, `[n]`."""
        values = np.array(VALUES)
        count = np.bitwise_count(self.own).astype(np.int64)
        return (count - np.bitwise_count(self.other)) @ values


def concatenate(parts: Sequence[Boards]) -> Boards:
    """All positions of several, in order."""
    own, other, white = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("own", "other", "white")
    )
    return Boards(own, other, white, parts[0].side)


def mirrored(x: Bits, side: int) -> Bits:
    """Ranks in the opposite order."""
    return np.ascontiguousarray(x).byteswap() >> np.uint64(8 * (8 - side))


def bits(x: Bits) -> NDArray[np.uint8]:
    """The 64 squares of each number as 0 and 1, `[..., 64]`."""
    raw = np.ascontiguousarray(x)[..., None].view(np.uint8)
    return np.unpackbits(raw, axis=-1, bitorder="little")


def from_chess(boards: Iterable[chess.Board], side: int) -> Boards:
    """Positions of python-chess; castling rights and en passant squares are not kept.

    Raises:
        ValueError: no board, or a piece outside the window (it names the first such board).
    """
    numbers = array("Q")
    for b in boards:
        black, white = b.occupied_co
        kinds = (b.pawns, b.knights, b.bishops, b.rooks, b.queens, b.kings)
        numbers.extend((*kinds, black, white, b.turn))
    if not numbers:
        raise ValueError("want at least one board, got none")
    table = np.frombuffer(numbers, np.uint64).reshape(-1, 9)
    piece, colour, mover = table[:, :6], table[:, 6:8], table[:, 8] != 0
    outside = (colour & ~window(side)).any(1)
    if outside.any():
        first = int(outside.argmax())
        raise ValueError(f"board {first} has a piece outside the {side}x{side} squares a1 to "
                         f"{chess.FILE_NAMES[side - 1]}{side}; use the corner at a1")  # fmt: skip
    by_colour = [piece & colour[:, k : k + 1] for k in (1, 0)]  # occupied_co: [black, white]
    own = np.where(mover[:, None], by_colour[0], mirrored(by_colour[1], side))
    other = np.where(mover[:, None], by_colour[1], mirrored(by_colour[0], side))
    return Boards(own, other, mover, side)


def to_chess(boards: Boards) -> list[chess.Board]:
    """The same positions as boards of python-chess, without castling rights."""
    seen = [(boards.own, boards.other), (boards.other, boards.own)]
    white, black = (
        np.where(boards.white[:, None], mine, mirrored(theirs, boards.side))
        for mine, theirs in seen
    )
    return [_chess(*row) for row in zip(white.tolist(), black.tolist(), boards.white, strict=True)]


def _chess(white: Sequence[int], black: Sequence[int], turn: bool) -> chess.Board:
    board = chess.Board(None)
    board.pawns, board.knights, board.bishops, board.rooks, board.queens, board.kings = (
        a | b for a, b in zip(white, black, strict=True)
    )
    board.occupied_co[chess.WHITE] = sum(white)
    board.occupied_co[chess.BLACK] = sum(black)
    board.occupied = sum(white) | sum(black)
    board.turn = bool(turn)
    return board
