"""Rows of `make bench` for chess boards."""

from __future__ import annotations

from collections.abc import Callable

import chess
import torch
from torch import Tensor

from lib.backprop.chess import boards, planes, positions
from tests.benchmarks.row import Row

N = 5000


def feature_planes() -> Row:
    """Planes of python-chess boards: all at once against a walk over squares.

    Both start from the same board objects and end in one float32 tensor.
    """
    games = boards.to_chess(positions.play_games(N, seed=0).boards)
    squares = [chess.square(file, rank) for rank in range(6) for file in range(6)]

    def peer() -> Tensor:
        found = torch.zeros(len(games), 12, 6, 6)
        rows = found.numpy()
        for k, board in enumerate(games):
            for square in squares:
                piece = board.piece_at(square)
                if piece is None:
                    continue
                rank = square // 8 if board.turn else 5 - square // 8
                plane = piece.piece_type - 1 + 6 * (piece.color != board.turn)
                rows[k, plane, rank, square % 8] = 1.0
        return found

    def agree(a: Tensor, b: Tensor) -> tuple[bool, str]:
        return torch.equal(a, b), f"{int((a != b).sum())} numbers differ"

    return Row(
        ours=lambda: planes.mover_planes(boards.from_chess(games, 6)),
        peer=peer,
        agree=agree,
        peer_name="python-chess, square by square",
        target=10.0,
        sizes=f"{N:,} positions of 6x6 chess, 12 planes",
    )


ROWS: dict[str, Callable[[], Row]] = {"chess/planes": feature_planes}
