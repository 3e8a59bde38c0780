"""A stronger tier of legality on the small board: somebody can have moved to get there.

Static legality (`moves.is_legal`) looks at one position. A position of a game also has one before
it, unless it is the first: the side that is not to move has just moved. Here that move is taken
back in every way there is, and a position passes if one of the boards so found is legal by the
static rules. It goes back one move and no further, so a position that passes may still have no
whole game behind it.

Public names: `predecessors`, `has_predecessor`, `is_legal_with_history`.
"""

from __future__ import annotations

import numpy as np

from lib.backprop.chess.boards import (
    KING,
    KNIGHT,
    PAWN,
    QUEEN,
    ROOK,
    Bits,
    Boards,
    Flags,
    Numbers,
    bits,
)
from lib.backprop.chess.moves import SMALL, is_legal, promotions, reached, step

NOTHING = -1
TAKEN = (PAWN, KNIGHT, ROOK, QUEEN)  # what a move can have taken on the small board
CHUNK = 512


def predecessors(
    boards: Boards, taken: tuple[int, ...] = (NOTHING, *TAKEN)
) -> tuple[Numbers, Boards]:
    """Every board from which one legal move of the other side leads to each of these.

    A piece of the other side goes back to an empty square it can have come from, a promoted one
    as a pawn; where it stood, one of the mover's pieces may have been taken. Kept is what is
    legal by the static rules. That the move was legal then follows, as `boards` are legal: the
    squares between are empty in both, and the king of who moved is not left in check.

    Args:
        boards: `[n]`, legal by the static rules.
        taken: which pieces the move can have taken; `NOTHING` (-1) for a move that took none.

    Returns:
        Row of the board that each belongs to, `[m]`, and the boards `[m]`, the other side to move.

    Raises:
        ValueError: boards of another side than 6.

    Source: specification of document 5, section 5.4, the optional stronger tier.
    """
    if boards.side != SMALL:
        raise ValueError(
            f"moves of the 6x6 game are taken back; the boards have side {boards.side}"
        )
    parts = [
        _taken_back(boards, piece, was, captured)
        for piece in (PAWN, KNIGHT, ROOK, QUEEN, KING)
        for was in ((piece, PAWN) if piece in promotions(SMALL) else (piece,))
        for captured in taken
    ]
    row, own, other = (np.concatenate(x) for x in zip(*parts, strict=True))
    before = Boards(own, other, boards.white[row], SMALL).turned()
    kept = is_legal(before).nonzero()[0]
    kept = kept[np.argsort(row[kept], kind="stable")]
    return row[kept], before[kept]


def has_predecessor(boards: Boards) -> Flags:
    """Whether some legal move leads to each position, `[n]`; see `predecessors`."""
    found = np.zeros(len(boards), bool)
    for first in range(0, len(boards), CHUNK):
        part = np.arange(first, min(first + CHUNK, len(boards)))
        for taken in ((NOTHING,), TAKEN):  # most positions need no capture
            ask = part[~found[part]]
            row, _ = predecessors(boards[ask], taken)
            found[ask[row]] = True
    return found


def is_legal_with_history(boards: Boards) -> Flags:
    """Legal by the static rules and with a move that leads there, `[n]`."""
    found = is_legal(boards)
    ask = found.nonzero()[0]
    found[ask] = has_predecessor(boards[ask])
    return found


def _taken_back(boards: Boards, piece: int, was: int, captured: int) -> tuple[Numbers, Bits, Bits]:
    """Boards before the other side's `piece`, then a `was`, moved to where it stands.

    Seen by who is to move now, so that pawns of the other side came from above.
    """
    row, square = bits(boards.other[:, piece]).nonzero()
    if was != piece:  # promoted
        row, square = row[square < 8], square[square < 8]
    x, empty = np.uint64(1) << square.astype(np.uint64), ~boards.occupied[row]
    if was != PAWN:
        came = reached(was, x, empty, SMALL)
    elif captured == NOTHING:
        came = step(x, SMALL, 0, 1)
    else:
        came = step(x, SMALL, 1, 1) | step(x, SMALL, -1, 1)
    which, source = bits(came & empty).nonzero()
    row, at = row[which], x[which]
    own, other = boards.own[row], boards.other[row]
    other[:, piece] &= ~at
    other[:, was] |= np.uint64(1) << source.astype(np.uint64)
    if captured != NOTHING:
        own[:, captured] |= at
    return row, own, other
