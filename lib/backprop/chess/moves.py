"""Attacks, exact legality and legal moves of many boards at once.

Two sources of truth stand beside this one in the tests: python-chess through `rules6`, and a slow
checker that walks over squares.

Public names: `attacked`, `in_check`, `violations`, `is_legal`, `Moves`, `legal_moves`, `play`,
`perft`, `reached`, `promotions`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from lib.backprop.chess.boards import (
    BISHOP,
    KING,
    KNIGHT,
    PAWN,
    PIECES,
    QUEEN,
    ROOK,
    Bits,
    Boards,
    Flags,
    Numbers,
    bits,
    window,
)

STRAIGHT = ((0, 1), (1, 0), (0, -1), (-1, 0))  # (file, rank)
DIAGONAL = ((1, 1), (1, -1), (-1, -1), (-1, 1))
JUMPS = ((1, 2), (2, 1), (2, -1), (1, -2), (-1, -2), (-2, -1), (-2, 1), (-1, 2))
SMALL = 6


@cache
def _landing(side: int, file: int, rank: int) -> np.uint64:
    """Squares that a step of (file, rank) can end on."""
    inside = range(side)
    squares = (
        8 * y + x for y in inside for x in inside if x - file in inside and y - rank in inside
    )
    return np.uint64(sum(1 << s for s in squares))


def step(x: Bits, side: int, file: int, rank: int) -> Bits:
    """Move every bit by (file, rank); those that leave the board vanish."""
    by = file + 8 * rank
    moved = x << np.uint64(by) if by >= 0 else x >> np.uint64(-by)
    return moved & _landing(side, file, rank)


def _slide(x: Bits, empty: Bits, side: int, file: int, rank: int) -> Bits:
    """Squares reached along one direction, the first occupied one included."""
    reached = np.zeros_like(x)
    for _ in range(side - 1):
        x = step(x, side, file, rank)
        reached |= x
        x = x & empty
    return reached


def _rays(
    x: Bits, empty: Bits, side: int, directions: tuple[tuple[int, int], ...] = STRAIGHT
) -> Bits:
    return np.bitwise_or.reduce([_slide(x, empty, side, *d) for d in directions])


def _steps(x: Bits, side: int, directions: tuple[tuple[int, int], ...]) -> Bits:
    return np.bitwise_or.reduce([step(x, side, *d) for d in directions])


def attacked(boards: Boards, by: str = "other") -> Bits:
    """Squares that one side's pieces attack, `[n]`; `by` is "own" or "other"."""
    pieces, side, empty = getattr(boards, by), boards.side, ~boards.occupied
    forward = 1 if by == "own" else -1
    found = _steps(pieces[:, PAWN], side, ((1, forward), (-1, forward)))
    found |= _steps(pieces[:, KNIGHT], side, JUMPS)
    found |= _steps(pieces[:, KING], side, STRAIGHT + DIAGONAL)
    found |= _rays(pieces[:, ROOK] | pieces[:, QUEEN], empty, side)
    return found | _rays(pieces[:, BISHOP] | pieces[:, QUEEN], empty, side, DIAGONAL)


def checkers(boards: Boards) -> Bits:
    """The other side's pieces that attack the mover's king, `[n]` (the king left out)."""
    king, side, empty = boards.own[:, KING], boards.side, ~boards.occupied
    other = boards.other
    found = _steps(king, side, ((1, 1), (-1, 1))) & other[:, PAWN]
    found |= _steps(king, side, JUMPS) & other[:, KNIGHT]
    found |= _rays(king, empty, side) & (other[:, ROOK] | other[:, QUEEN])
    return found | (_rays(king, empty, side, DIAGONAL) & (other[:, BISHOP] | other[:, QUEEN]))


def in_check(boards: Boards) -> Flags:
    """Whether the mover's king is attacked, `[n]`."""
    return (attacked(boards) & boards.own[:, KING]) != 0


def violations(boards: Boards) -> dict[str, Flags]:
    """Which rules of static legality each position breaks; rule -> `[n]`.

    Kings (one a side), bishops (none on the small board), pawns (at most one a file's worth, none
    on the end ranks), promotions (more pieces than the missing pawns can have become), the side
    not to move in check, and checks that no move can give (three checkers, or two without a
    slider).

    Source: specification of document 5, section 5.4 (`status6`). On the large board the count of
    promotions keeps bishops of each square colour apart; python-chess's `status` tests more there
    (castling, aligned double checks).
    """
    side = boards.side
    last = np.uint64(0xFF | 0xFF << (8 * side - 8))  # ranks 1 and `side`
    count = {name: np.bitwise_count(getattr(boards, name)).astype(int) for name in ("own", "other")}
    both = count.values()
    giving = checkers(boards)
    n_checkers = np.bitwise_count(giving)
    sliders = boards.other[:, ROOK] | boards.other[:, QUEEN] | boards.other[:, BISHOP]
    beyond = [_promoted(boards, name) > side - count[name][:, PAWN] for name in count]
    pawns = boards.own[:, PAWN] | boards.other[:, PAWN]
    return {
        "kings": np.any([c[:, KING] != 1 for c in both], 0),
        "bishops": np.any([(c[:, BISHOP] > 0) & (side == SMALL) for c in both], 0),
        "pawns": np.any([c[:, PAWN] > side for c in both], 0),
        "pawn on end rank": (pawns & last) != 0,
        "promotions": np.any(beyond, 0),
        "other side in check": (attacked(boards, "own") & boards.other[:, KING]) != 0,
        "impossible check": (n_checkers > 2) | ((n_checkers == 2) & ((giving & sliders) == 0)),
    }


def _promoted(boards: Boards, name: str) -> Numbers:
    """Pieces beyond those of the start position, `[n]`."""
    pieces = getattr(boards, name)
    light = np.uint64(0x55AA55AA55AA55AA)
    count = np.bitwise_count(pieces).astype(int)
    bishops = (np.bitwise_count(pieces[:, BISHOP] & x).astype(int) for x in (light, ~light))
    extra = [count[:, QUEEN] - 1, count[:, ROOK] - 2, count[:, KNIGHT] - 2]
    extra += [b - 1 for b in bishops] if boards.side != SMALL else []
    return np.sum([x.clip(0) for x in extra], 0)


def is_legal(boards: Boards) -> Flags:
    """Whether a position breaks none of the rules of `violations`, `[n]`."""
    return ~np.any(list(violations(boards).values()), 0)


@dataclass(frozen=True)
class Moves:
    """m legal moves and what the boards look like after them (turn passed)."""

    board: Numbers  # [m], row of the board they belong to, ascending
    piece: Numbers  # [m]
    source: Numbers  # [m], square, seen by the mover
    target: Numbers  # [m]
    promotion: Numbers  # [m], piece that a pawn becomes; -1 for other moves
    after: Boards  # [m], the other side to move

    def __len__(self) -> int:
        return len(self.board)


def promotions(side: int) -> tuple[int, ...]:
    """What a pawn can become; there are no bishops on the small board."""
    return (QUEEN, ROOK, KNIGHT) if side == SMALL else (QUEEN, ROOK, BISHOP, KNIGHT)


def legal_moves(boards: Boards, targets: Bits | None = None) -> Moves:
    """All legal moves of all boards that a position without history shows.

    No castling and no en passant, as boards keep no rights; double steps of pawns on the large
    board alone.

    Args:
        targets: `[n]`, squares that moves must end on; all by default.

    Source: specification of document 5, section 5.4 (`legal6`).
    """
    allowed = ~np.bitwise_or.reduce(boards.own, 1) & window(boards.side)
    allowed = allowed if targets is None else allowed & targets
    kinds = (PAWN, KNIGHT, ROOK, QUEEN, KING) if boards.side == SMALL else range(len(PIECES))
    parts = [_moves_of(boards, piece, allowed) for piece in kinds]
    board, piece, source, target, promotion = (np.concatenate(x) for x in zip(*parts, strict=True))
    order = np.argsort(board, kind="stable")
    board, piece, source, target, promotion = (
        x[order] for x in (board, piece, source, target, promotion)
    )
    moved = play(boards, board, piece, source, target, promotion)
    kept = ~in_check(moved)
    return Moves(
        board[kept],
        piece[kept],
        source[kept],
        target[kept],
        promotion[kept],
        moved[kept].turned(),
    )


def play(
    boards: Boards,
    board: Numbers,
    piece: Numbers,
    source: Numbers,
    target: Numbers,
    promotion: Numbers,
) -> Boards:
    """The boards after each move, the turn not yet passed."""
    own, other = boards.own[board], boards.other[board]
    rows, one = np.arange(len(board)), np.uint64(1)
    to = one << target.astype(np.uint64)
    own[rows, piece] &= ~(one << source.astype(np.uint64))
    own[rows, np.where(promotion >= 0, promotion, piece)] |= to
    other &= ~to[:, None]
    return Boards(own, other, boards.white[board], boards.side)


def reached(piece: int, x: Bits, empty: Bits, side: int) -> Bits:
    """Squares that a piece other than a pawn goes to from each square, `[n]`.

    Along a line the first square that is not empty is the last that is reached.
    """
    if piece in (KNIGHT, KING):
        return _steps(x, side, JUMPS if piece == KNIGHT else STRAIGHT + DIAGONAL)
    lines = {ROOK: STRAIGHT, BISHOP: DIAGONAL, QUEEN: STRAIGHT + DIAGONAL}
    return _rays(x, empty, side, lines[piece])


def _moves_of(
    boards: Boards, piece: int, allowed: Bits
) -> tuple[Numbers, Numbers, Numbers, Numbers, Numbers]:
    """Moves of one kind of piece that may leave the king in check."""
    board, source = bits(boards.own[:, piece]).nonzero()
    x, side = np.uint64(1) << source.astype(np.uint64), boards.side
    occupied = boards.occupied[board]
    if piece == PAWN:
        enemies = np.bitwise_or.reduce(boards.other, 1)[board]
        reach = step(x, side, 0, 1) & ~occupied
        if side != SMALL:  # from the second rank, over an empty square
            reach |= step(reach & np.uint64(0xFF << 16), side, 0, 1) & ~occupied
        reach |= _steps(x, side, ((1, 1), (-1, 1))) & enemies
    else:
        reach = reached(piece, x, ~occupied, side)
    which, target = bits(reach & allowed[board]).nonzero()
    board, source = board[which], source[which]
    promotion = np.full(len(board), -1)
    if piece == PAWN:
        become = np.array(promotions(side))
        times = np.where(target // 8 == side - 1, len(become), 1)
        first = np.repeat(times.cumsum() - times, times)
        turn = np.arange(times.sum()) - first
        board, source, target, times = (np.repeat(v, times) for v in (board, source, target, times))
        promotion = np.where(times > 1, become[turn], -1)
    return board, np.full(len(board), piece), source, target, promotion


def perft(boards: Boards, depth: int) -> int:
    """Number of sequences of `depth` legal moves from the positions together."""
    moves = legal_moves(boards)
    return len(moves) if depth == 1 else perft(moves.after, depth - 1)


def captures(boards: Boards) -> Moves:
    """Legal moves that take a piece."""
    return legal_moves(boards, np.bitwise_or.reduce(boards.other, 1))


def quiet_value(boards: Boards, depth: int = 3) -> NDArray[np.float64]:
    """Material for the mover after the best sequence of captures, either side free to stop, `[n]`.

    Source: specification of document 5, section 5.4 (capture-only quiescence search).
    """
    value = boards.material().astype(np.float64)
    if depth == 0 or len(boards) == 0:
        return value
    taken = captures(boards)
    np.maximum.at(value, taken.board, -quiet_value(taken.after, depth - 1))
    return value
