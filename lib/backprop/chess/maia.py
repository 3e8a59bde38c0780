"""Maia: a network for the 8x8 board that plays as people of one rating do.

A residual tower with squeeze-and-excitation; layers are called `stem`, `blocks.block1.first`, ...
as in `networks.Tower`. Batch norm is folded in as fixed scales and shifts.

Public names: `Maia`, `load`, `encode`, `move_logits`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import chess
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.backprop.chess.boards import from_chess
from lib.backprop.chess.planes import N_MAIA, maia_planes, mover_planes
from lib.data import chess as stored

EPSILON = 1e-5
N_KINDS, REDUCED, N_BLOCKS = 80, 8, 6
LINES = ((0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1))  # N, NE, ... NW
JUMPS = ((1, 2), (2, 1), (2, -1), (1, -2), (-1, -2), (-2, -1), (-2, 1), (-1, 2))
FIRST_JUMP = 56


class Outputs(NamedTuple):
    """What Maia says of n boards."""

    value: Tensor  # [n, 3], chances of win, draw, loss
    policy: Tensor  # [n, 80, 8, 8] logits: kind of move, square that the piece leaves


class Block(nn.Module):
    """Two convolutions, gains and biases per channel from the board's mean, the input added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.squeeze, self.excite = nn.Linear(width, REDUCED), nn.Linear(REDUCED, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.first(x))
        gain, bias = self.excite(F.relu(self.squeeze(h.mean((2, 3))))).chunk(2, 1)
        return F.relu(torch.sigmoid(gain)[..., None, None] * h + bias[..., None, None] + x)


class Maia(nn.Module):
    """112 planes of the mover's view to move logits and chances."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(N_MAIA, width, 3, padding=1), nn.ReLU())
        self.blocks = nn.Sequential()
        for k in range(N_BLOCKS):
            self.blocks.add_module(f"block{k + 1}", Block(width))
        self.policy1 = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU())
        self.policy2 = nn.Conv2d(width, N_KINDS, 3, padding=1)
        self.value_conv = nn.Sequential(nn.Conv2d(width, 32, 1), nn.ReLU())
        self.value = nn.Sequential(nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, 3))

    def forward(self, x: Tensor) -> Outputs:
        h = self.blocks(self.stem(x))
        value = self.value(self.value_conv(h).flatten(1)).softmax(1)
        return Outputs(value, self.policy2(self.policy1(h)))


def load(root: Path | None = None, *, rating: int = 1500) -> Maia:
    """Maia of one rating from its arrays, batch norm folded into the convolutions.

    Raises:
        ValueError, MissingData, DamagedData: as for `lib.data.chess.load_maia`.
    """
    w = stored.load_maia(root, rating=rating)
    network = Maia()
    state = _folded(w, "input", "stem.0") | _folded(w, "policy1", "policy1.0")
    state |= _folded(w, "value", "value_conv.0")
    for k in range(N_BLOCKS):
        ours, theirs = f"blocks.block{k + 1}", f"res{k}"
        state |= _folded(w, f"{theirs}.conv1", f"{ours}.first.0")
        state |= _folded(w, f"{theirs}.conv2", f"{ours}.second")
        for a, b in (("squeeze", "1"), ("excite", "2")):
            state[f"{ours}.{a}.weight"] = w[f"{theirs}.se.w{b}"]
            state[f"{ours}.{a}.bias"] = w[f"{theirs}.se.b{b}"]
    for a, b in (("policy2", "policy"), ("value.0", "value_fc1"), ("value.2", "value_fc2")):
        state[f"{a}.weight"], state[f"{a}.bias"] = w[f"{b}.weight"], w[f"{b}.bias"]
    network.load_state_dict(state)
    return network.eval()


def _folded(w: Mapping[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    scale = w[f"{theirs}.bn_gamma"] / (w[f"{theirs}.bn_var"] + EPSILON).sqrt()
    weight = w[f"{theirs}.weight"] * scale[:, None, None, None]
    bias = w[f"{theirs}.bn_beta"] - scale * w[f"{theirs}.bn_mean"]
    return {f"{ours}.weight": weight, f"{ours}.bias": bias}


def castling(boards: Sequence[chess.Board]) -> Tensor:
    """Castling rights as Maia reads them, `[n, 4]`."""
    rights = [
        [
            test(colour)
            for colour in (b.turn, not b.turn)
            for test in (b.has_queenside_castling_rights, b.has_kingside_castling_rights)
        ]
        for b in boards
    ]
    return torch.tensor(rights, dtype=torch.float32)


def encode(boards: Sequence[chess.Board], *, repeat: bool = True) -> Tensor:
    """Maia's input for boards of python-chess, `[n, 112, 8, 8]`, without their history.

    `repeat` as in `planes.maia_planes`: False for the start of a game. On 158 positions of real
    games Maia prefers a legal move in 98% and the move played in 42% with it (96%, 18% without).
    """
    found = from_chess(boards, 8)
    white = torch.from_numpy(found.white.copy())
    return maia_planes(mover_planes(found), white, castling(boards), repeat=repeat)


def move_logits(policy: Tensor, boards: Sequence[chess.Board]) -> list[dict[chess.Move, float]]:
    """The policy's logits for each board's legal moves, under-promotions left out."""
    found = []
    for logits, board in zip(policy, boards, strict=True):
        row = {}
        for move in board.legal_moves:
            if move.promotion not in (None, chess.QUEEN):
                continue
            a, b = move.from_square, move.to_square
            a, b = (a, b) if board.turn else (chess.square_mirror(a), chess.square_mirror(b))
            file, rank = b % 8 - a % 8, b // 8 - a // 8
            n = max(abs(file), abs(rank))
            if (file, rank) in JUMPS:
                kind = FIRST_JUMP + JUMPS.index((file, rank))
            else:
                kind = 7 * LINES.index((file // n, rank // n)) + n - 1
            row[move] = logits[kind, a // 8, a % 8].item()
        found.append(row)
    return found
