"""The rules of 6x6 chess on top of python-chess: the slow, sure reference.

A board of python-chess whose pieces all stand on a1..f6 has correct attacks and checks. `legal6`
filters its moves, `status6` says whether a position can stand at all. `moves` does the same for
many boards at once and is compared with this file in the tests.

Public names: `START`, `start`, `legal6`, `push6`, `is_mate6`, `status6`, `perft6`.
"""

from __future__ import annotations

from collections.abc import Iterator

import chess

WINDOW = sum(chess.BB_RANKS[r] & sum(chess.BB_FILES[:6]) for r in range(6))
START = "8/8/rnqknr2/pppppp2/8/8/PPPPPP2/RNQKNR2 w - - 0 1"
PROMOTIONS = (chess.QUEEN, chess.ROOK, chess.KNIGHT)
ENDS = chess.BB_RANK_1 | chess.BB_RANK_6


def start() -> chess.Board:
    """The start position of Los Alamos chess."""
    return chess.Board(START)


def legal6(board: chess.Board) -> Iterator[chess.Move]:
    """Legal moves inside the window: no double steps, promotion on ranks 1 and 6 to Q, R or N.

    Source: specification of document 5, section 5.4. The authors' engine keeps double steps and
    en passant; Los Alamos chess has neither.
    """
    for move in board.generate_legal_moves(chess.BB_ALL, WINDOW):
        if not board.pawns & chess.BB_SQUARES[move.from_square]:
            yield move
        elif abs(move.to_square - move.from_square) == 16:
            continue
        elif not ENDS & chess.BB_SQUARES[move.to_square]:
            yield move
        elif move.promotion in (None, chess.QUEEN):  # none is given on rank 6, four on rank 1
            for piece in PROMOTIONS:
                yield chess.Move(move.from_square, move.to_square, piece)


def push6(board: chess.Board, move: chess.Move) -> None:
    """Play a move of `legal6` in place; the 6x6 game has no en passant square."""
    board.push(move)
    board.ep_square = None


def is_mate6(board: chess.Board) -> bool:
    """In check without a legal move (python-chess's own test would allow moves off the window)."""
    return board.is_check() and next(legal6(board), None) is None


def perft6(board: chess.Board, depth: int) -> int:
    """Number of sequences of `depth` legal moves."""
    count = 0
    for move in list(legal6(board)):
        if depth == 1:
            count += 1
            continue
        push6(board, move)
        count += perft6(board, depth - 1)
        board.pop()
    return count


def status6(board: chess.Board) -> tuple[str, ...]:
    """The rules of static legality that a position breaks; empty means legal.

    Source: specification of document 5, section 5.4.
    """
    found = [] if not board.occupied & ~WINDOW else ["outside"]
    for colour in chess.COLORS:
        count = {p: len(board.pieces(p, colour)) for p in chess.PIECE_TYPES}
        found += ["kings"] * (count[chess.KING] != 1)
        found += ["bishops"] * (count[chess.BISHOP] > 0)
        found += ["pawns"] * (count[chess.PAWN] > 6)
        spare = 6 - count[chess.PAWN]
        extra = max(0, count[chess.QUEEN] - 1)
        extra += sum(max(0, count[p] - 2) for p in (chess.ROOK, chess.KNIGHT))
        found += ["promotions"] * (extra > spare)
    found += ["pawn on end rank"] * bool(board.pawns & ENDS)
    mover, waiting = board.king(board.turn), board.king(not board.turn)
    if waiting is not None and board.is_attacked_by(board.turn, waiting):
        found.append("other side in check")
    if mover is not None:
        giving = board.attackers(not board.turn, mover) & ~board.kings
        sliding = giving & (board.rooks | board.queens | board.bishops)
        found += ["impossible check"] * (len(giving) > 2 or (len(giving) == 2 and not sliding))
    return tuple(dict.fromkeys(found))
