"""Networks of four architectures for one picture task, at any size (specification 7.2).

`mlp` and `cnn` are those of `lib.models`; `residual` is a convolution, a pooling, two blocks of two
convolutions and a pooling; `vit` cuts the picture into patches and is a transformer of them. Each
has a last hidden layer that a probe can read.

Public names: `ResidualCNN`, `PictureTransformer`, `NETWORKS`, `LAST_HIDDEN`, `fetch`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import cache
from lib.backprop.language import Block
from lib.models import MLP, SmallCNN, initialise
from lib.training import Recipe, train
from lib.training.loop import LOSSES, SCHEDULES


def _conv(fan_in: int, fan_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.GroupNorm(2, fan_out))


class _Residual(nn.Module):
    """Two normalised convolutions, the input added, ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _conv(width, width), _conv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class ResidualCNN(nn.Sequential):
    """Grey pictures `[n, 1, size, size]` to logits; about 36 width^2 weights, no running means."""

    def __init__(self, size: int, width: int, n_out: int) -> None:
        super().__init__()
        if size % 4 or width % 2 or min(size, width, n_out) < 1:
            raise ValueError(
                f"want a size that is a multiple of 4 and an even width, got {size} and {width}"
            )
        self.add_module("stem", nn.Sequential(_conv(1, width), nn.ReLU(), nn.MaxPool2d(2)))
        self.add_module("block1", _Residual(width))
        self.add_module("block2", _Residual(width))
        self.add_module("pool", nn.MaxPool2d(2))
        self.add_module("flatten", nn.Flatten())
        self.add_module("out", nn.Linear(width * (size // 4) ** 2, n_out))


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class PictureTransformer(nn.Module):
    """A vision transformer of grey pictures: patches, places, blocks, the mean over patches."""

    def __init__(
        self, size: int, width: int, n_layers: int, n_out: int, patch: int = 4, n_heads: int = 4
    ) -> None:
        super().__init__()
        if size % patch or width % n_heads or min(n_layers, width, n_out) < 1:
            raise ValueError(
                f"want a size that is a multiple of {patch}, a width that is one of {n_heads} and "
                f"n_layers >= 1, got {size}, {width} and {n_layers}"
            )
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.places = nn.Embedding((size // patch) ** 2, width)
        blocks = (Block(width, n_heads, is_causal=False) for _ in range(n_layers))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.pool = _Mean()
        self.out = nn.Linear(width, n_out)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patches(x).flatten(2).transpose(1, 2) + self.places.weight
        return self.out(self.pool(self.norm(self.blocks(h))))


NETWORKS: dict[str, type[nn.Module]] = {
    "mlp": MLP,
    "cnn": SmallCNN,
    "residual": ResidualCNN,
    "vit": PictureTransformer,
}
LAST_HIDDEN = {"mlp": "hidden2", "cnn": "pool2", "residual": "pool", "vit": "pool"}


def fetch(
    name: str,
    spec: Mapping[str, object],
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    *,
    seed: int,
    data_hash: str,
) -> nn.Module:
    """The network that `recipe` makes of `seed` on this data, trained at most once; frozen.

    Args:
        name: a key of `NETWORKS`; a "mlp" reads pictures laid out flat.
        data_hash: of x and y, or of what they are made from; part of the key.

    Raises:
        ValueError: unknown name.
    """
    if name not in NETWORKS:
        raise ValueError(f"networks are {', '.join(NETWORKS)}; got {name!r}")
    config = {"network": name, "spec": dict(spec), "recipe": asdict(recipe), "seed": seed,
              "data": data_hash}  # fmt: skip

    def blank() -> nn.Module:
        with torch.device("meta"):  # the constructors would draw from the global generator
            network = NETWORKS[name](**spec)
        return network.to_empty(device="cpu")

    def build() -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        trained = train(initialise(blank(), generator), x, y, recipe, generator=generator)
        return {k: v.contiguous() for k, v in trained.state_dict().items()}

    code: list[Callable[..., object]] = [
        NETWORKS[name], initialise, train, LOSSES[recipe.loss], SCHEDULES[recipe.schedule],
    ]  # fmt: skip
    network = blank()  # training leaves another memory layout, whose sums round differently
    network.load_state_dict(cache.fetch(f"picture-{name}", config, build, code=code))
    return network.eval().requires_grad_(False)
