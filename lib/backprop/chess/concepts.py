"""Concepts that the rules of chess decide, for many boards at once.

Each takes `Boards` and returns `[n]` bool; `CONCEPTS` lists them by the names of document 5's
authors. They are the truth that a probe is held against.

Public names: `CONCEPTS`, one function a concept, `owns_queen`.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from lib.backprop.chess.boards import PAWN, QUEEN, ROOK, Boards, Flags
from lib.backprop.chess.moves import attacked, in_check, legal_moves

WINNING = 3  # pawns ahead


def owns_queen(boards: Boards) -> Flags:
    """The mover has a queen: the trivial rule for `threat_my_queen`."""
    return boards.own[:, QUEEN] != 0


def threat_my_queen(boards: Boards) -> Flags:
    """If the turn passed, the other side could legally take one of the mover's queens.

    Where the mover is in check passing is no move, and an attack counts, legal or not. On the
    large board it always does (a pinned attacker is then taken for a threat).

    Source: specification of document 5, sections 5.2 and 9.4.
    """
    found = (attacked(boards) & boards.own[:, QUEEN]) != 0
    if boards.side != 6:
        return found
    ask = (found & ~in_check(boards)).nonzero()[0]
    if len(ask):
        waiting = boards[ask].turned()
        found[ask] = _can_move(waiting, waiting.other[:, QUEEN])
    return found


def threat_opp_queen(boards: Boards) -> Flags:
    """The mover can legally take a queen (the authors look at the first queen only).

    On the large board an attack counts, legal or not.
    """
    queens = boards.other[:, QUEEN]
    found = (attacked(boards, "own") & queens) != 0
    ask = found.nonzero()[0]
    if boards.side == 6 and len(ask):
        found[ask] = _can_move(boards[ask], queens[ask])
    return found


def has_mate_threat(boards: Boards) -> Flags:
    """A legal move mates."""
    found = np.zeros(len(boards), bool)
    moves = legal_moves(boards)
    checks = in_check(moves.after).nonzero()[0]
    if len(checks):
        after = moves.after[checks]
        replies = legal_moves(after).board
        mates = np.bincount(replies, minlength=len(after)) == 0
        found[moves.board[checks[mates]]] = True
    return found


def material_advantage(boards: Boards) -> Flags:
    """The mover is at least three pawns ahead (values P1 N2 B2 R4 Q9)."""
    return boards.material() >= WINNING


def has_contested_open_file(boards: Boards) -> Flags:
    """A file without pawns on which both sides have a rook or a queen.

    Source: named in specification 5.2 without a definition; this one is ours.
    """
    heavy = [x[:, ROOK] | x[:, QUEEN] for x in (boards.own, boards.other)]
    pawns = boards.own[:, PAWN] | boards.other[:, PAWN]
    files = [np.uint64(0x0101010101010101 << k) for k in range(boards.side)]
    open_ = [(pawns & f) == 0 for f in files]
    both = [(heavy[0] & f != 0) & (heavy[1] & f != 0) for f in files]
    return np.any([a & b for a, b in zip(open_, both, strict=True)], 0)


def coin(boards: Boards) -> Flags:
    """A fixed coin a position: the concept that no probe can find."""
    return np.array([blake2b(k, digest_size=1).digest()[0] & 1 for k in boards.identities()], bool)


def _can_move(boards: Boards, targets: np.ndarray) -> Flags:
    return np.bincount(legal_moves(boards, targets).board, minlength=len(boards)) > 0


CONCEPTS: dict[str, Callable[[Boards], Flags]] = {
    "threat_my_queen": threat_my_queen,
    "threat_opp_queen": threat_opp_queen,
    "in_check": in_check,
    "has_mate_threat": has_mate_threat,
    "material_advantage": material_advantage,
    "has_contested_open_file": has_contested_open_file,
    "random": coin,
}
