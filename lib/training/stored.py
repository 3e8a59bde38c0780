"""Trained networks through the cache: one entry for a network, or for a stack of small ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import torch
from torch import Tensor, nn

from lib import cache, models
from lib.training.loop import LOSSES, SCHEDULES, Prepare, Progress, Recipe, train
from lib.training.stacked import build_skeleton, train_stacked


def fetch_model(
    name: str,
    spec: Mapping[str, object],
    load: Callable[[], tuple[Tensor, Tensor]],
    recipe: Recipe,
    *,
    seed: int,
    data_hash: str,
    prepare: Prepare | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> nn.Module:
    """The network that `recipe` makes of `seed` on this data, trained at most once.

    Args:
        load: returns (x, y); called only if the network has to be trained.
        data_hash: of the data that `load` returns; part of the key.
        prepare: a function of `lib` (its source is part of the key).

    Returns:
        The network on `device`, in evaluation mode.
    """

    def build() -> dict[str, Tensor]:
        x, y = load()
        generator = torch.Generator().manual_seed(seed)
        model = models.build(name, generator, device, **spec)
        train(model, x, y, recipe, generator=generator, prepare=prepare, progress=progress)
        return dict(model.state_dict())

    config = {**_config(name, spec, recipe), "seed": seed, "data": data_hash}
    code = [train, *_parts(name, recipe), *([prepare] if prepare else [])]
    state = cache.fetch(f"model-{name}", config, build, code=code)
    model = build_skeleton(name, spec).to_empty(device=device)
    model.load_state_dict(state)
    return model


def fetch_stack(
    name: str,
    spec: Mapping[str, object],
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    subsets: Tensor | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """`train_stacked` through the cache; returns the stacked state on `x`'s device."""
    data = {"x": x, "y": y} if subsets is None else {"x": x, "y": y, "subsets": subsets}
    config = {
        **_config(name, spec, recipe),
        "seeds": [int(seed) for seed in seeds],
        "data": cache.state_hash(data),
    }

    def build() -> dict[str, Tensor]:
        return train_stacked(
            name, spec, x, y, recipe, seeds=seeds, subsets=subsets, progress=progress
        )

    code = [train_stacked, *_parts(name, recipe)]
    state = cache.fetch(f"stack-{name}", config, build, code=code)
    return {k: v.to(x.device) for k, v in state.items()}


def _config(name: str, spec: Mapping[str, object], recipe: Recipe) -> dict[str, object]:
    return {"network": name, "spec": dict(spec), "recipe": asdict(recipe)}


def _parts(name: str, recipe: Recipe) -> list[Callable[..., object]]:
    """What tables of names point to, which following the source does not find."""
    return [
        models.build,
        models.NETWORKS[name],
        LOSSES[recipe.loss],
        SCHEDULES[recipe.schedule],
    ]
