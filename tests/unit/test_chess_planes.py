"""Feature planes: one square of python-chess at a time gives the same."""

from __future__ import annotations

import chess
import pytest
import torch

from lib.backprop.chess import boards, planes, positions


@pytest.fixture(scope="module")
def played() -> positions.Positions:
    return positions.play_games(300, seed=5)


def by_squares(b: chess.Board, side: int) -> torch.Tensor:
    found = torch.zeros(12, side, side)
    for square, piece in b.piece_map().items():
        file, rank = square % 8, square // 8
        rank = rank if b.turn else side - 1 - rank
        found[piece.piece_type - 1 + 6 * (piece.color != b.turn), rank, file] = 1
    return found


def test_planes_of_small_boards(played: positions.Positions) -> None:
    found = planes.mover_planes(played.boards)
    wanted = torch.stack([by_squares(b, 6) for b in boards.to_chess(played.boards)])
    assert torch.equal(found, wanted)
    assert set(played.boards.white.tolist()) == {True, False}


def test_planes_of_large_boards() -> None:
    games = []
    b = chess.Board()
    for move in ("e4", "c5", "Nf3", "d6", "d4", "cxd4", "Nxd4"):
        b.push_san(move)
        games.append(b.copy())
    found = planes.mover_planes(boards.from_chess(games, 8))
    assert torch.equal(found, torch.stack([by_squares(b, 8) for b in games]))


def test_boards_come_back_from_their_planes(played: positions.Positions) -> None:
    back = planes.from_planes(planes.mover_planes(played.boards), played.white)
    assert back.identities() == played.boards.identities()
    again = boards.from_chess(boards.to_chess(played.boards), 6)
    assert again.identities() == played.boards.identities()


def test_published_planes_follow_their_description(played: positions.Positions) -> None:
    found = planes.published_planes(planes.mover_planes(played.boards), played.white)
    assert found.shape == (300, 19, 6, 6)
    for x, b in zip(found, boards.to_chess(played.boards), strict=True):
        wanted = torch.zeros(19, 6, 6)
        for square, piece in b.piece_map().items():
            plane = piece.piece_type - 1 + 6 * piece.color  # Black's pieces come first
            wanted[plane, 5 - square // 8, square % 8] = 1  # top rank first
        wanted[18] = float(b.turn)
        assert torch.equal(x, wanted if b.turn else torch.rot90(wanted, 2, (1, 2)))


def test_gradients_pass_through_every_encoding(played: positions.Positions) -> None:
    x = planes.mover_planes(played.boards).requires_grad_()
    weight = torch.randn(19, 6, 6, generator=torch.Generator().manual_seed(0))
    (planes.published_planes(x, played.white) * weight).sum().backward()
    moved = planes.published_pieces(x.grad, played.white)
    assert torch.allclose(moved, weight[:12].expand(300, -1, -1, -1))


def test_maia_planes_of_the_start() -> None:
    start = boards.from_chess([chess.Board()], 8)
    x = planes.maia_planes(
        planes.mover_planes(start), torch.tensor([True]), torch.ones(1, 4), repeat=False
    )
    assert x.shape == (1, 112, 8, 8)
    assert x[0, :13].sum() == 32
    assert x[0, 104:108].mean() == 1
    assert x[0, 108:111].sum() == 0
    assert x[0, 111].mean() == 1


def test_what_is_no_board_is_refused() -> None:
    white = torch.ones(1, dtype=torch.bool)
    with pytest.raises(ValueError, match="round them first"):
        planes.from_planes(torch.full((1, 12, 6, 6), 0.5), white)
    with pytest.raises(ValueError, match=r"want planes \[n, 12"):
        planes.from_planes(torch.zeros(1, 13, 6, 6), white)
