"""Moves taken back on the small board, and moves of the large one."""

from __future__ import annotations

import chess
import numpy as np
import pytest

from lib.backprop.chess import boards, concepts, large_board, moves, positions, rules6, unmoves
from lib.backprop.chess import edits as edits_of
from lib.backprop.chess.boards import Boards
from tests.planted_boards import board


@pytest.fixture(scope="module")
def played() -> Boards:
    return positions.play_games(300, seed=4).boards


def test_what_was_played_has_a_board_before_it_and_the_one_it_came_from_is_found(
    played: Boards,
) -> None:
    assert unmoves.has_predecessor(played).all()
    next_ones = moves.legal_moves(played[:20])
    row, before = unmoves.predecessors(next_ones.after)
    found = list(zip(row.tolist(), before.identities(), strict=True))
    parents = played[next_ones.board].identities()
    assert set(enumerate(parents)) <= set(found)


def test_every_board_before_leads_there_by_a_legal_move(played: Boards) -> None:
    some = played[40:60]
    row, before = unmoves.predecessors(some)
    assert len(row) > 100
    after = moves.legal_moves(before)
    leads = [set() for _ in range(len(before))]
    for k, key in zip(after.board.tolist(), after.after.identities(), strict=True):
        leads[k].add(key)
    wanted = some.identities()
    assert all(wanted[r] in reached for r, reached in zip(row.tolist(), leads, strict=True))
    assert len(set(zip(row.tolist(), before.identities(), strict=True))) == len(row)


def slowly_has_predecessor(after: chess.Board) -> bool:
    """By python-chess: put each piece of who moved last on each square, and play it back."""
    mover = not after.turn
    wanted = after.board_fen()
    for target in chess.scan_forward(after.occupied_co[mover]):
        piece = after.piece_at(target)
        last = rules6.ENDS & chess.BB_SQUARES[target]
        promoted = last and piece.piece_type != chess.KING
        kinds = {piece.piece_type} | ({chess.PAWN} if promoted else set())
        for source in chess.scan_forward(rules6.WINDOW & ~after.occupied):
            for kind in kinds:
                for taken in (None, chess.PAWN, chess.KNIGHT, chess.ROOK, chess.QUEEN):
                    before = after.copy(stack=False)
                    before.turn = mover
                    before.remove_piece_at(target)
                    before.set_piece_at(source, chess.Piece(kind, mover))
                    if taken:
                        before.set_piece_at(target, chess.Piece(taken, not mover))
                    if rules6.status6(before):
                        continue
                    for move in list(rules6.legal6(before)):
                        if move.to_square == target and move.from_square == source:
                            rules6.push6(before, move)
                            if before.board_fen() == wanted:
                                return True
                            before.pop()
    return False


def test_a_slow_walk_over_all_moves_taken_back_agrees(played: Boards) -> None:
    edited = edits_of.random_edits(played, 3, seed=0)
    fast = unmoves.has_predecessor(edited)
    without, others = (~fast).nonzero()[0], fast.nonzero()[0]
    assert len(without) >= 5
    rows = np.concatenate([without[:5], others[:10]])
    slow = [slowly_has_predecessor(b) for b in boards.to_chess(edited[rows])]
    assert slow == fast[rows].tolist()


# the side that is not to move cannot have moved: king and pawn have no square to come from
BOXED = "8/8/kN6/pN6/8/8/8/5K2 w"
TWO_ROOKS = "8/8/r7/8/3k4/8/8/K4r2 w"  # no one move gives both checks at once
ONE_ROOK = "8/8/r7/8/3k4/8/8/K7 w"


@pytest.mark.parametrize(
    ("fen", "has_one"),
    [
        (BOXED, False),
        (BOXED.replace("8/8/kN6", "8/8/k7"), True),  # the king can have come from b6
        (TWO_ROOKS, False),
        (ONE_ROOK, True),
    ],
)
def test_a_statically_legal_board_may_have_no_board_before_it(fen: str, has_one: bool) -> None:
    one = board(fen)
    assert moves.is_legal(one)[0]
    assert unmoves.has_predecessor(one)[0] == has_one
    assert unmoves.is_legal_with_history(one)[0] == has_one


def test_a_promotion_and_a_capture_are_taken_back() -> None:
    # the knight on a1 is boxed in: it was a pawn on a2 or, taking, on b2
    row, before = unmoves.predecessors(board("8/8/kN6/pN6/8/2P5/8/n4K2 w"))
    assert set(row) == {0}
    words = {b.fen().split()[0] for b in boards.to_chess(before)}
    assert "8/8/kN6/pN6/8/2P5/p7/5K2" in words
    assert "8/8/kN6/pN6/8/2P5/1p6/R4K2" in words
    assert not any(w.startswith("8/8/1k") for w in words)


def test_the_search_never_leaves_positions_that_somebody_can_have_moved_to(played: Boards) -> None:
    rows = unmoves.is_legal_with_history(played[:5])
    assert rows.all()
    after = edits_of.random_edits(played[:5], 2, seed=1, legal=unmoves.is_legal_with_history)
    assert unmoves.is_legal_with_history(after).all()


def test_illegal_boards_have_no_history_and_the_large_board_is_refused() -> None:
    assert not unmoves.is_legal_with_history(board("8/8/k7/8/8/8/8/R4K2 w"))[0]
    with pytest.raises(ValueError, match="6x6 game are taken back; the boards have side 8"):
        unmoves.has_predecessor(board(BOXED, 8))


def test_moves_of_the_large_board_are_those_of_python_chess() -> None:
    first = boards.from_chess([chess.Board()], 8)
    assert [moves.perft(first, d) for d in (1, 2, 3)] == [20, 400, 8902]
    games, _ = large_board.random_games(6, seed=3)
    plain = boards.to_chess(boards.from_chess(games, 8))  # without castling and en passant
    found = moves.legal_moves(boards.from_chess(games, 8))
    count = np.bincount(found.board, minlength=len(games))
    assert count.tolist() == [b.legal_moves.count() for b in plain]
    assert len(games) > 100


def mates(b: chess.Board) -> bool:
    for move in list(b.legal_moves):
        b.push(move)
        over = b.is_checkmate()
        b.pop()
        if over:
            return True
    return False


def test_a_mating_move_of_the_large_board_is_seen() -> None:
    fools = "rnbqkbnr/pppp1ppp/8/4p3/6P1/5P2/PPPPP2P/RNBQKBNR b"
    back_rank = "6k1/5ppp/8/8/8/8/8/R3K3 w"
    free = back_rank.replace("5ppp", "5pp1")
    asked = boards.concatenate([board(fen, 8) for fen in (fools, back_rank, free)])
    assert concepts.has_mate_threat(asked).tolist() == [True, True, False]
    games, _ = large_board.random_games(8, seed=5)
    late = boards.from_chess(games, 8)
    assert concepts.has_mate_threat(late).tolist() == [mates(b) for b in boards.to_chess(late)]
