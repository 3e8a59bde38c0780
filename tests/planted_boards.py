"""Boards from a line of text and probes planted by hand, for the tests of chess."""

from __future__ import annotations

import chess
import torch
from torch import Tensor, nn

from lib.backprop.chess import boards
from lib.backprop.chess.boards import Boards
from lib.backprop.chess.reading import Encode, Reader
from lib.probes import Probe

BARE = "8/8/k7/8/8/8/8/5K2 w"  # two kings
Wish = tuple[int, str, float]  # piece plane, square, what it adds


def board(fen: str, side: int = 6) -> Boards:
    """One position; on the small board in the window a1 to f6 of the large one."""
    return boards.from_chess([chess.Board(f"{fen} - - 0 1")], side)


class Planes(nn.Module):
    """A network whose one layer, "same", is its input."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.same(x)


def mover_only(x: Tensor, white: Tensor) -> Tensor:
    """The mover's planes as they are."""
    return x


def reader_of(weight: Tensor, bias: float = -4.0, encode: Encode = mover_only) -> Reader:
    """A probe of the planes themselves with these weights `[12, 6, 6]`."""
    probe = Probe(weight.flatten(), torch.tensor(bias), 0, torch.tensor(True))
    return Reader(Planes().eval(), ["same"], [probe], encode)


def planted(*wishes: Wish, bias: float = -4.0) -> Reader:
    """A probe of the planes themselves that adds so much for each (piece plane, square)."""
    weight = torch.zeros(12, 6, 6)
    for plane, square, worth in wishes:
        s = chess.parse_square(square)
        weight[plane, s // 8, s % 8] = worth
    return reader_of(weight, bias)
