"""The rules of 6x6 chess: many boards at once against python-chess and a walk over squares."""

from __future__ import annotations

import chess
import numpy as np
import pytest
import torch

from lib.backprop.chess import boards, concepts, moves, positions, rules6
from tests.planted_boards import board

PUBLISHED = {
    "8/8/1K2NR2/R1P5/P1p2P2/Pp1P4/2Nk4/r7 w": True,
    "8/8/1K2NR2/R1P2P2/P1p5/Pp1PQ3/2Nk4/r3Q3 w": False,
    "8/8/8/3p4/3k4/1r1P1p2/8/2K5 w": True,
    "8/8/2Q2r2/3p4/3kr3/1rQP1p2/2Pr4/2K5 w": False,
}


@pytest.fixture(scope="module")
def played() -> positions.Positions:
    return positions.play_games(1500, seed=3)


def test_perft_from_the_start() -> None:
    start = boards.from_chess([rules6.start()], 6)
    assert [moves.perft(start, d) for d in (1, 2, 3, 4, 5)] == [10, 100, 1212, 14332, 191846]
    assert [rules6.perft6(rules6.start(), d) for d in (1, 2, 3, 4)] == [10, 100, 1212, 14332]


def test_legal_moves_are_those_of_python_chess(played: positions.Positions) -> None:
    some = played.boards[:400]
    found = moves.legal_moves(some)
    after = [b.fen().split()[0] for b in boards.to_chess(found.after)]
    for row, b in enumerate(boards.to_chess(some)):
        wanted = []
        for move in rules6.legal6(b):
            rules6.push6(b, move)
            wanted.append(b.fen().split()[0])
            b.pop()
        assert sorted(after[k] for k in (found.board == row).nonzero()[0]) == sorted(wanted)


def test_a_pawn_promotes_to_three_pieces_on_either_end() -> None:
    white = board("8/8/4k3/P7/8/8/8/K7 w")
    black = board("8/8/4k3/8/8/8/p7/4K3 b")
    for b in (white, black):
        found = moves.legal_moves(b)
        assert sorted(found.promotion[found.promotion >= 0]) == [1, 3, 4]
        ours = boards.to_chess(b)[0]
        assert sum(m.promotion is not None for m in rules6.legal6(ours)) == 3


def slow_faults(b: chess.Board) -> bool:
    """Whether a position cannot stand, by walking over squares; shares no code with the rules."""
    cells = {(s % 8, s // 8): p for s, p in b.piece_map().items()}
    if any(x > 5 or y > 5 for x, y in cells):
        return True
    for white in (True, False):
        names = [p.symbol().upper() for p in cells.values() if p.color == white]
        spare = 6 - names.count("P")
        extra = max(0, names.count("Q") - 1)
        extra += max(0, names.count("R") - 2) + max(0, names.count("N") - 2)
        if names.count("K") != 1 or "B" in names or spare < 0 or extra > spare:
            return True
    if any(p.symbol() in "pP" and y in (0, 5) for (_, y), p in cells.items()):
        return True
    king = {p.color: at for at, p in cells.items() if p.symbol() in "kK"}
    if attackers(cells, king[not b.turn], b.turn):
        return True
    giving = [cells[at].symbol().upper() for at in attackers(cells, king[b.turn], not b.turn)]
    giving = [name for name in giving if name != "K"]
    return len(giving) > 2 or (len(giving) == 2 and not set(giving) & set("QR"))


def attackers(cells: dict, at: tuple[int, int], by: bool) -> list[tuple[int, int]]:
    found = []
    for (x, y), piece in cells.items():
        if piece.color != by or (x, y) == at:
            continue
        dx, dy, name = at[0] - x, at[1] - y, piece.symbol().upper()
        if name == "P":
            hit = abs(dx) == 1 and dy == (1 if by else -1)
        elif name == "N":
            hit = sorted((abs(dx), abs(dy))) == [1, 2]
        elif name == "K":
            hit = max(abs(dx), abs(dy)) == 1
        else:
            straight, diagonal = dx == 0 or dy == 0, abs(dx) == abs(dy)
            hit = (straight and name in "RQ") or (diagonal and name in "BQ")
            n = max(abs(dx), abs(dy))
            step = (dx // n, dy // n) if hit else (0, 0)
            hit = hit and all((x + k * step[0], y + k * step[1]) not in cells for k in range(1, n))
        if hit:
            found.append((x, y))
    return found


def scrambled(played: positions.Positions, n: int) -> list[chess.Board]:
    """Positions with one to three squares set at random, kings included."""
    draw = np.random.default_rng(0)
    found = boards.to_chess(played.boards[draw.integers(len(played), size=n)])
    for b in found:
        for _ in range(draw.integers(1, 4)):
            square = int(draw.integers(6) + 8 * draw.integers(6))
            kind = int(draw.choice([0, 1, 1, 2, 3, 4, 4, 5, 5, 6], 1)[0])
            piece = chess.Piece(kind, bool(draw.integers(2))) if kind else None
            b.set_piece_at(square, piece)
    return found


def test_static_legality_is_what_a_slow_walk_finds(played: positions.Positions) -> None:
    edited = scrambled(played, 10_000)
    fast = moves.is_legal(boards.from_chess(edited, 6))
    slow = np.array([not slow_faults(b) for b in edited])
    assert (fast == slow).all()
    assert 0.1 < slow.mean() < 0.9
    for b, legal in zip(edited[:2000], slow, strict=False):
        assert bool(rules6.status6(b)) != legal


def test_games_hold_legal_positions_only(played: positions.Positions) -> None:
    assert moves.is_legal(played.boards).all()
    assert not np.any([rules6.status6(b) for b in boards.to_chess(played.boards[:200])])


def test_both_published_boards_are_flagged() -> None:
    for fen, legal in PUBLISHED.items():
        assert moves.is_legal(board(fen))[0] == legal, fen
        if not legal:
            assert moves.violations(board(fen))["other side in check"][0]
            assert chess.Board(f"{fen} - - 0 1").status() == chess.STATUS_OPPOSITE_CHECK


def test_the_published_boards_are_illegal_whichever_way_up_they_are_read() -> None:
    for fen, legal in PUBLISHED.items():
        ranks = fen.removesuffix(" w").split("/")
        turned = board("/".join(["8", "8", *ranks[:1:-1]]) + " w")
        assert moves.is_legal(turned)[0] == legal, fen


def test_mate_counts_moves_in_the_window_only() -> None:
    flight = chess.Board("8/8/k3R3/8/8/8/8/5K2 b - - 0 1")
    assert not rules6.is_mate6(flight)
    corner = chess.Board("8/8/k3R3/4R3/8/8/8/5K2 b - - 0 1")
    assert rules6.is_mate6(corner)  # a7 and b7 are off the board
    assert corner.is_checkmate() is False


def test_check_and_mate_threats_agree_with_python_chess(played: positions.Positions) -> None:
    some = played.boards[:400]
    slow = []
    for b in boards.to_chess(some):
        mates = []
        for move in list(rules6.legal6(b)):
            rules6.push6(b, move)
            mates.append(rules6.is_mate6(b))
            b.pop()
        slow.append((b.is_check(), any(mates)))
    assert np.array(slow)[:, 0].tolist() == concepts.in_check(some).tolist()
    assert np.array(slow)[:, 1].tolist() == concepts.has_mate_threat(some).tolist()


def test_queen_threats_agree_with_python_chess(played: positions.Positions) -> None:
    for b, mine, theirs in zip(
        boards.to_chess(played.boards),
        concepts.threat_my_queen(played.boards),
        concepts.threat_opp_queen(played.boards),
        strict=True,
    ):
        targets = {m.to_square for m in rules6.legal6(b)}
        assert theirs == bool(targets & set(b.pieces(chess.QUEEN, not b.turn)))
        if not b.is_check():
            queens = set(b.pieces(chess.QUEEN, b.turn))
            b.turn = not b.turn
            assert mine == bool({m.to_square for m in rules6.legal6(b)} & queens)


def test_a_pinned_attacker_is_no_threat() -> None:
    assert concepts.threat_my_queen(board("8/8/3k4/8/3r4/8/3Q4/K7 w"))[0]
    # the rook shields its king from another rook and may not leave the file
    assert not concepts.threat_my_queen(board("8/8/k7/8/r3Q3/8/R7/5K2 w"))[0]
    assert concepts.threat_my_queen(board("8/8/k7/8/r3Q3/8/1R6/5K2 w"))[0]


def test_material_and_open_files() -> None:
    ahead = board("8/8/k7/8/8/8/8/R4K2 w")
    assert concepts.material_advantage(ahead)[0]
    assert not concepts.material_advantage(ahead.turned())[0]
    facing = board("8/8/r3k3/8/8/8/8/R4K2 w")
    blocked = board("8/8/r3k3/8/P7/8/8/R4K2 w")
    assert concepts.has_contested_open_file(facing)[0]
    assert not concepts.has_contested_open_file(blocked)[0]


def test_the_same_pieces_turned_over_are_the_same_to_the_mover() -> None:
    white, black = board("8/8/k7/2q5/8/3P4/8/R3QK2 w"), board("8/8/r3qk2/8/3p4/8/2Q5/K7 b")
    assert (black.own == white.own).all()
    assert (black.other == white.other).all()
    twice = white.turned().turned()
    assert twice.identities() == white.identities() != black.identities()


def test_games_repeat_for_a_seed_and_differ_between_seeds() -> None:
    first, again, other = (positions.play_games(200, seed=s) for s in (1, 1, 2))
    assert first.boards.identities() == again.boards.identities()
    assert torch.equal(first.value, again.value)
    assert first.boards.identities() != other.boards.identities()
    assert len(set(first.boards.identities())) == 200


def test_quiet_value_takes_what_hangs() -> None:
    hanging = board("8/8/k7/8/8/3q4/8/K2R4 w")  # rook takes queen
    assert moves.quiet_value(hanging)[0] == 4
    guarded = board("8/8/k7/8/3q4/3p4/8/K2R4 w")  # the pawn is protected
    assert moves.quiet_value(guarded)[0] == 4 - 10


def test_balanced_rows_match_the_trivial_rule(played: positions.Positions) -> None:
    label = concepts.threat_my_queen(played.boards)
    queen = concepts.owns_queen(played.boards)
    rows = positions.balanced(label, 100, seed=0, among=queen)
    assert label[rows].sum() == 50
    assert queen[rows].all()
    with pytest.raises(ValueError, match="generate more positions"):
        positions.balanced(np.zeros(9, bool), 4, seed=0)


def test_bad_boards_are_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match="board 0 has a piece outside the 6x6"):
        boards.from_chess([chess.Board()], 6)
    with pytest.raises(ValueError, match="at least one board"):
        boards.from_chess([], 6)
    with pytest.raises(ValueError, match="side 6 or 8"):
        boards.window(7)
