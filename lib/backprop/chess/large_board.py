"""The 8x8 board: the experiments of `studies` on Maia, a second network that nobody made for this.

Maia plays as people of one rating do; three ratings and the same network with random weights take
the place of the checkpoints of one training run. Positions come from real games where Maia's
weights are there, else from random ones, so that the whole runs without any file. There is no
checker of legality for this board: edits are searched, not relaxed.

Positions stand alone here: Maia reads them without castling rights and without their history.

Public names: `prepare_large`, `random_games`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import chess
import numpy as np
import torch
from torch import nn

from lib import models
from lib.backprop.chess import maia
from lib.backprop.chess.boards import from_chess
from lib.backprop.chess.planes import maia_planes
from lib.backprop.chess.positions import SCALE, Positions, held_out
from lib.backprop.chess.studies import HELD_OUT, Bed
from lib.data import chess as stored

SIDE, FIRST_PLY, LONGEST = 8, 12, 100


def random_games(n_games: int, *, seed: int) -> tuple[list[chess.Board], list[int]]:
    """Positions of games in which every move is drawn by lot, and the game each is from.

    From ply 12 on, every second ply, to the end of the game or ply 100.

    Raises:
        ValueError: fewer than one game.
    """
    if n_games < 1:
        raise ValueError(f"want at least one game, got {n_games}")
    draw = np.random.default_rng(seed)
    boards, game = [], []
    for number in range(n_games):
        board = chess.Board()
        for ply in range(LONGEST):
            legal = list(board.legal_moves)
            if not legal:
                break
            if ply >= FIRST_PLY and ply % 2:
                boards.append(board.copy(stack=False))
                game.append(number)
            board.push(legal[draw.integers(len(legal))])
    return boards, game


def prepare_large(
    root: Path,
    *,
    seed: int,
    n_games: int,
    ratings: Sequence[int],
    layers: Sequence[str],
    width: int,
) -> Bed:
    """Positions of the 8x8 board, Maia of each rating, and an untrained network of its kind.

    Args:
        ratings: of the networks below `root`, the last being the one that is explained; none
            leaves the untrained network alone, with random games.
        width: filters of the untrained network (64 in Maia).

    Raises:
        ValueError, MissingData, DamagedData: as `lib.data.chess.load_maia` and `load_games`.
    """
    if ratings:
        real = stored.load_games(n_games, root, every=2, first_ply=FIRST_PLY)
        boards, game, about = list(real.boards), real.game.tolist(), str(real.provenance)
    else:
        boards, game = random_games(n_games, seed=seed)
        about = f"{len(boards):,} positions of {n_games} games with moves by lot"
    whole = _positions(boards, game)
    fit, rest = held_out(whole, HELD_OUT)
    blank = maia.Maia(width)
    models.initialise(blank, torch.Generator().manual_seed(seed)).eval()
    networks: dict[str, nn.Module] = {"random": blank}
    networks |= {f"rating {r}": maia.load(root, rating=r) for r in ratings}
    source = f"{', '.join(networks)} (Maia's architecture, {width} filters); {about}"
    return Bed("8x8", fit, rest, networks, None, source, tuple(layers), maia_planes)


def _positions(boards: Sequence[chess.Board], game: Sequence[int]) -> Positions:
    """Different positions in the order in which they came; value is tanh(material / 6)."""
    whole = from_chess(boards, SIDE)
    first = dict(reversed(list(zip(whole.identities(), range(len(whole)), strict=True))))
    rows = np.sort(np.array(list(first.values())))
    kept = whole[rows]
    value = torch.from_numpy(np.tanh(kept.material() / SCALE)).float()
    return Positions(kept, torch.tensor(game)[torch.from_numpy(rows)], value)
