"""The networks: the authors' 6x6 tower and legality checker, and small ones of the same kind.

`Tower` is the playing network: a convolution, residual blocks of two convolutions, a value head
and, in the authors', a policy head. Its layers are called as they stand in depth order
(`layers`), each with its ReLU. `Checker` says how illegal a board looks. Both read the published
planes (`planes.published_planes`).

Public names: `Tower`, `Checker`, `layers`, `official_tower`, `official_checker`, `train_tower`,
`fetch_tower`, `fetch_checker`, `corrupted`, `policy_indices`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import cache, models
from lib.backprop.chess.boards import Boards, Numbers, concatenate
from lib.backprop.chess.moves import Moves, is_legal
from lib.backprop.chess.planes import mover_planes, published_pieces, published_planes
from lib.backprop.chess.positions import Positions
from lib.training.loop import Recipe, optimise

SIDE, N_MOVES, MID = 6, 63, 16
RECIPE = Recipe(
    epochs=5, batch_size=128, lr=1e-3, optimizer="adam", schedule="constant", loss="mse"
)
FOCUS = 2.0  # of the focal loss

Net = TypeVar("Net", bound=nn.Module)


class Outputs(NamedTuple):
    """What a tower says of n boards."""

    value: Tensor  # [n], in (-1, 1), to the mover
    policy: Tensor | None  # [n, 36 * 63] logits, or None without that head


def _conv(fan_in: int, fan_out: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(fan_in, fan_out, kernel, padding=kernel // 2), nn.ReLU())


class Block(nn.Module):
    """Two convolutions with ReLU, the input added, ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _conv(width, width, 3), _conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class Tower(nn.Module):
    """The playing network (specification of document 5, section 5.1)."""

    def __init__(self, width: int = 64, n_blocks: int = 3, *, policy: bool = True) -> None:
        super().__init__()
        self.stem = _conv(19, width, 3)
        names = {f"block{k + 1}": Block(width) for k in range(n_blocks)}
        self.blocks = nn.Sequential()
        for name, block in names.items():
            self.blocks.add_module(name, block)
        self.value_conv = _conv(width, MID, 1)
        self.value = nn.Sequential(
            nn.Linear(MID * SIDE * SIDE, 32), nn.ReLU(), nn.Linear(32, 1), nn.Tanh()
        )
        self.policy1 = _conv(width, width, 1) if policy else None
        self.policy2 = nn.Conv2d(width, N_MOVES, 1) if policy else None

    def forward(self, x: Tensor) -> Outputs:
        h = self.blocks(self.stem(x))
        value = self.value(_flat(self.value_conv(h)))[:, 0]
        if self.policy1 is None or self.policy2 is None:
            return Outputs(value, None)
        return Outputs(value, _flat(self.policy2(self.policy1(h))))


class Checker(nn.Module):
    """Logit of "an illegal position", `[n]`, from the twelve published piece planes."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(12, width, 3, padding=1), nn.ELU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ELU(),
        )  # fmt: skip
        self.out = nn.Linear(width * SIDE * SIDE, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(_flat(self.features(x)))[:, 0]


def _flat(x: Tensor) -> Tensor:
    """Squares first, channels last, as Keras flattens."""
    return x.permute(0, 2, 3, 1).flatten(1)


def layers(tower: Tower) -> list[str]:
    """Names of the convolutions that are probed, in depth order."""
    blocks = [f"blocks.{name}" for name, _ in tower.blocks.named_children()]
    convolutions = [f"{block}.{part}" for block in blocks for part in ("first", "second")]
    heads = ["policy1", "policy2"] if tower.policy1 is not None else ["value_conv"]
    return ["stem", *convolutions, *heads]


def official_tower(weights: Mapping[str, Tensor]) -> Tower:
    """The authors' network from its arrays (`lib.data.chess.load_minichess(...).at(epoch)`).

    Raises:
        ValueError: an array is absent or has another shape.
    """
    tower = Tower()
    pairs = {"stem.0": "res_block_output_base", "policy1.0": "conv2d_6", "policy2": "conv2d_7"}
    for k in range(3):
        pairs[f"blocks.block{k + 1}.first.0"] = f"conv2d_{2 * k}" if k else "conv2d"
        pairs[f"blocks.block{k + 1}.second.0"] = f"conv2d_{2 * k + 1}"
    pairs |= {"value_conv.0": "value_conv", "value.0": "dense", "value.2": "value_output"}
    return _filled(tower, weights, pairs)


def official_checker(weights: Mapping[str, Tensor]) -> Checker:
    """The authors' legality checker from its arrays (`lib.data.chess.load_checker`).

    Raises:
        ValueError: an array is absent or has another shape.
    """
    pairs = {"features.0": "conv2d", "features.2": "conv2d_1", "out": "dense"}
    return _filled(Checker(), weights, pairs)


def _filled(network: Net, weights: Mapping[str, Tensor], pairs: Mapping[str, str]) -> Net:
    state = {}
    for ours, theirs in pairs.items():
        kernel, bias = weights.get(f"{theirs}.kernel"), weights.get(f"{theirs}.bias")
        if kernel is None or bias is None:
            raise ValueError(f"the arrays lack {theirs}; they hold {', '.join(sorted(weights))}")
        turned = kernel.permute(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T
        state[f"{ours}.weight"], state[f"{ours}.bias"] = turned.contiguous(), bias
    wanted = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    came = {name: tuple(x.shape) for name, x in state.items()}
    if wanted != came:
        wrong = sorted(n for n in wanted if wanted[n] != came.get(n))
        raise ValueError(f"arrays of another shape for {', '.join(wrong)}; want the 6x6 network's")
    network.load_state_dict(state)
    return network.eval()


def policy_indices(moves: Moves, policy_moves: Tensor) -> Numbers:
    """Where each move stands in the authors' policy output, `[m]`.

    Raises:
        ValueError: a move that the table lacks.

    Source: the authors' environment: (row * 6 + column) * 63 + kind. The square is that of the
    board as it stands, White at the bottom; the step is negated for Black.
    """
    table = {tuple(row): k for k, row in reversed(list(enumerate(policy_moves.tolist())))}
    found = []
    for source, target, promotion, is_white in zip(
        moves.source, moves.target, moves.promotion, ~moves.after.white, strict=True
    ):
        rank, file = divmod(int(source), 8)
        up, across = int(target) // 8 - rank, int(target) % 8 - file
        row, across = (SIDE - 1 - rank, across) if is_white else (rank, -across)
        kind = table.get((-up, across, max(int(promotion), 0)))
        if kind is None:
            raise ValueError(f"the table has no move of ({-up}, {across}), promotion {promotion}")
        found.append((row * SIDE + file) * N_MOVES + kind)
    return np.array(found, np.int64)


def train_tower(
    positions: Positions, width: int, recipe: Recipe, *, seed: int, n_blocks: int = 3
) -> list[dict[str, Tensor]]:
    """Train a tower on the value of positions; its weights before and after each epoch.

    Source: specification of document 5, section 5.4: the authors' tower with fewer filters, value
    head alone.
    """
    generator = torch.Generator().manual_seed(seed)
    tower = models.initialise(Tower(width, n_blocks, policy=False), generator)
    tower = tower.to(memory_format=torch.channels_last).train()
    x = published_planes(mover_planes(positions.boards), positions.white)
    states: list[dict[str, Tensor]] = []

    def keep() -> None:
        states.append({name: v.detach().clone() for name, v in tower.state_dict().items()})

    def watched(epochs: range) -> Iterator[int]:
        for epoch in epochs:
            keep()
            yield epoch

    def batches() -> Iterator[Tensor]:
        yield from torch.randperm(len(x), generator=generator).split(recipe.batch_size)

    def loss_of(rows: Tensor) -> Tensor:
        batch = x[rows].contiguous(memory_format=torch.channels_last)
        return F.mse_loss(tower(batch).value, positions.value[rows])

    optimise(list(tower.parameters()), len(x), recipe, batches, loss_of, watched)
    keep()
    return states


def fetch_tower(
    positions: Positions,
    *,
    width: int,
    seed: int,
    recipe: Recipe = RECIPE,
    n_blocks: int = 3,
) -> list[Tower]:
    """`train_tower` through the cache: towers before and after each epoch, in order."""
    config = {
        "width": width,
        "n_blocks": n_blocks,
        "seed": seed,
        "recipe": asdict(recipe),
        "data": cache.state_hash({"value": positions.value, "game": positions.game}),
    }

    def build() -> dict[str, Tensor]:
        made = train_tower(positions, width, recipe, seed=seed, n_blocks=n_blocks)
        return {f"{k}/{n}": v for k, state in enumerate(made) for n, v in state.items()}

    code: list[Callable[..., object]] = [train_tower, Tower, Block]
    found = cache.fetch("tower6", config, build, code=code)
    towers = []
    for k in range(recipe.epochs + 1):
        tower = Tower(width, n_blocks, policy=False)
        tower.load_state_dict(
            {n.partition("/")[2]: v for n, v in found.items() if n.startswith(f"{k}/")}
        )
        towers.append(tower.eval())
    return towers


def corrupted(boards: Boards, *, seed: int) -> Boards:
    """The same boards made illegal, as the authors did for their checker.

    A king removed, pawns on the end ranks, and pieces added and removed at random until a rule
    is broken; what stays legal after 20 tries is left out.

    Source: the authors' notebook by way of specification 5.1.
    """
    draw = np.random.default_rng(seed)
    squares = np.array([8 * r + f for r in range(SIDE) for f in range(SIDE)])
    kept, todo = [], boards
    for _ in range(20):
        pieces = np.concatenate([todo.own, todo.other], 1)
        rows = np.arange(len(todo))
        for _ in range(2):
            at = np.uint64(1) << draw.choice(squares, len(todo)).astype(np.uint64)
            kind = draw.choice([0, 0, 1, 3, 4, 5, 6, 6, 7, 9, 10, 11], len(todo))
            adds = draw.random(len(todo)) < 0.6
            pieces &= ~at[:, None]
            pieces[rows[adds], kind[adds]] |= at[adds]
        lost = draw.random(len(todo)) < 0.1
        pieces[rows[lost], draw.choice([5, 11], int(lost.sum()))] = 0
        tried = Boards(pieces[:, :6].copy(), pieces[:, 6:].copy(), todo.white, todo.side)
        wrong = ~is_legal(tried)
        kept.append(tried[wrong])
        todo = todo[~wrong]
        if not len(todo):
            break
    return concatenate(kept)


def train_checker(boards: Boards, width: int, recipe: Recipe, *, seed: int) -> Checker:
    """Train a checker to tell legal boards from the same boards corrupted (focal loss)."""
    generator = torch.Generator().manual_seed(seed)
    checker = Checker(width)
    models.initialise(checker, generator).train()
    wrong = corrupted(boards, seed=seed)
    both = concatenate([boards, wrong])
    x = published_pieces(mover_planes(both), torch.from_numpy(both.white.copy()))
    sign = torch.cat([-torch.ones(len(boards)), torch.ones(len(wrong))])

    def batches() -> Iterator[Tensor]:
        yield from torch.randperm(len(x), generator=generator).split(recipe.batch_size)

    def loss_of(rows: Tensor) -> Tensor:
        margin = checker(x[rows]) * sign[rows]
        return (torch.sigmoid(-margin) ** FOCUS * F.softplus(-margin)).mean()

    optimise(list(checker.parameters()), len(x), recipe, batches, loss_of)
    checker.eval()
    return checker


def fetch_checker(boards: Boards, *, width: int, seed: int, recipe: Recipe = RECIPE) -> Checker:
    """`train_checker` through the cache."""
    planes = mover_planes(boards).to(torch.uint8)
    config = {
        "width": width,
        "seed": seed,
        "recipe": asdict(recipe),
        "data": cache.state_hash({"planes": planes}),
    }

    def build() -> dict[str, Tensor]:
        return dict(train_checker(boards, width, recipe, seed=seed).state_dict())

    checker = Checker(width)
    code: list[Callable[..., object]] = [train_checker, Checker]
    checker.load_state_dict(cache.fetch("checker6", config, build, code=code))
    return checker.eval()
