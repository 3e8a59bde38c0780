"""Positions of 6x6 chess: games of a player that takes what it can, hundreds at a time.

Each game has its own share of random moves; the others win the most material at once. A network
can learn the value of such positions, and the rules label every concept in them.

Public names: `Positions`, `play_games`, `fetch_positions`, `held_out`, `balanced`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib import cache
from lib.backprop.chess import rules6
from lib.backprop.chess.boards import VALUES, Boards, Flags, Numbers, concatenate, from_chess
from lib.backprop.chess.moves import legal_moves, quiet_value

SHARES_RANDOM = (0.2, 0.5, 1.0)
KEPT, FIRST_PLY = 0.35, 4
AT_ONCE, LONGEST, NO_PROGRESS = 400, 80, 20
SCALE = 6.0  # pawns at which tanh(value) bends


@dataclass(frozen=True)
class Positions:
    """Positions with the game they come from and their value to the mover."""

    boards: Boards
    game: Tensor  # [n] int64
    value: Tensor  # [n] float32, tanh(quiet material / 6)

    def __len__(self) -> int:
        return len(self.boards)

    def __getitem__(self, rows: Numbers) -> Positions:
        return Positions(self.boards[rows], self.game[rows], self.value[rows])

    @property
    def white(self) -> Tensor:
        """Whether White moves, `[n]` bool."""
        return torch.from_numpy(self.boards.white.copy())


def play_games(n: int, *, seed: int) -> Positions:
    """Play until there are n different positions.

    Each game draws its share of random moves from 0.2, 0.5 and 1; its other moves win the most
    material at once, ties by lot. From the fourth ply on a position is kept with probability 0.35,
    if that piece placement with that side to move is new. A game ends by mate, stalemate, after 20
    plies without capture or pawn move, or after 80.

    Source: specification of document 5, section 5.4, local data.
    """
    if n < 1:
        raise ValueError(f"want at least one position, got n = {n}")
    draw = np.random.default_rng(seed)
    state = _Table(draw)
    kept: list[Boards] = []
    games: list[Numbers] = []
    seen: set[bytes] = set()
    while len(seen) < n:
        take = (state.ply >= FIRST_PLY) & (draw.random(AT_ONCE) < KEPT)
        keys = state.boards.identities()
        rows = []
        for row in take.nonzero()[0].tolist():
            if keys[row] not in seen and len(seen) < n:
                seen.add(keys[row])
                rows.append(row)
        kept.append(state.boards[np.array(rows, int)])
        games.append(state.game[rows])
        state.advance()
    boards = concatenate(kept)
    value = np.concatenate([
        np.tanh(quiet_value(boards[k : k + 4096]) / SCALE) for k in range(0, n, 4096)
    ])  # fmt: skip
    game = torch.from_numpy(np.concatenate(games))
    return Positions(boards, game, torch.from_numpy(value).float())


class _Table:
    """Games going on side by side."""

    def __init__(self, draw: np.random.Generator) -> None:
        self.draw = draw
        self.first = from_chess([rules6.start()], 6)
        self.boards = self.first[np.zeros(AT_ONCE, int)]
        self.game, self.next = np.arange(AT_ONCE), AT_ONCE
        self.ply, self.idle = np.zeros(AT_ONCE, int), np.zeros(AT_ONCE, int)
        self.random = draw.choice(SHARES_RANDOM, AT_ONCE)

    def advance(self) -> None:
        """One move in every game; games that are over start anew."""
        moves = legal_moves(self.boards)
        gain = -moves.after.material() - self.boards.material()[moves.board]
        chance = self.draw.random(len(moves))
        blind = self.draw.random(AT_ONCE) < self.random
        wish = np.where(blind[moves.board], 0, gain) + chance
        order = np.lexsort((wish, moves.board))  # the last of each board is its best
        best = order[np.append(np.diff(moves.board) > 0, True)]
        rows = moves.board[best]
        progress = (gain[best] != 0) | (moves.piece[best] == 0)
        own, other = self.boards.own.copy(), self.boards.other.copy()
        white = self.boards.white.copy()
        after = moves.after[best]
        own[rows], other[rows], white[rows] = after.own, after.other, after.white
        self.ply[rows] += 1
        self.idle[rows] = np.where(progress, 0, self.idle[rows] + 1)
        over = np.ones(AT_ONCE, bool)
        over[rows] = (self.ply[rows] >= LONGEST) | (self.idle[rows] >= NO_PROGRESS)
        own[over], other[over], white[over] = self.first.own, self.first.other, True
        count = int(over.sum())
        self.game = np.where(over, 0, self.game)
        self.game[over] = self.next + np.arange(count)
        self.next += count
        self.ply[over] = self.idle[over] = 0
        self.random[over] = self.draw.choice(SHARES_RANDOM, count)
        self.boards = Boards(own, other, white, 6)


def fetch_positions(n: int, *, seed: int) -> Positions:
    """`play_games` through the cache."""

    def build() -> dict[str, Tensor]:
        made = play_games(n, seed=seed)
        pieces = np.concatenate([made.boards.own, made.boards.other], 1).view(np.int64)
        return {
            "pieces": torch.from_numpy(pieces),
            "white": made.white,
            "game": made.game,
            "value": made.value,
        }

    code: list[Callable[..., object]] = [play_games, _Table, Positions]
    found = cache.fetch("positions6", {"n": n, "seed": seed, "values": VALUES}, build, code=code)
    pieces = found["pieces"].numpy().view(np.uint64)
    boards = Boards(pieces[:, :6].copy(), pieces[:, 6:].copy(), found["white"].numpy(), 6)
    return Positions(boards, found["game"], found["value"])


def held_out(positions: Positions, share: float) -> tuple[Positions, Positions]:
    """Positions of the first games, and of that share of the games which came last."""
    games = positions.game.unique()
    last = (positions.game >= games[-int(share * len(games))]).numpy()
    return positions[(~last).nonzero()[0]], positions[last.nonzero()[0]]


def balanced(label: Flags, n: int, *, seed: int, among: Flags | None = None) -> Numbers:
    """Rows of as many positives as negatives, at most n in all, in random order.

    Args:
        label: `[n_positions]`.
        among: `[n_positions]`; negatives are drawn from these alone, for instance those that meet
            a trivial rule, so that the rule says nothing.

    Raises:
        ValueError: a class has no row.
    """
    draw = np.random.default_rng(seed)
    wanted = [label, ~label if among is None else ~label & among]
    pools = [draw.permutation(x.nonzero()[0]) for x in wanted]
    half = min(n // 2, *map(len, pools))
    if half == 0:
        raise ValueError(
            f"{len(pools[0])} positives and {len(pools[1])} negatives to draw from; "
            "generate more positions or choose another concept"
        )
    return draw.permutation(np.concatenate([pool[:half] for pool in pools]))
