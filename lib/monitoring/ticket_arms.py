"""Arms and controls of iterative magnitude pruning, whatever the images are.

One dense training is shared by arms that rewind to different epochs. Controls at the last stage of
the arm that rewinds to the start: random masks with each layer's own sparsity, the learned mask on
another initialisation; and networks with the batch norms' statistics estimated again.

Public names: `train_arms`, `arms_of`, `controls_of`, `reestimated`.

Source: document 2, section 4.1; specification section 3.2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from lib import cache, models, parallel, training
from lib.training import Recipe, pruning
from lib.training.checkpoints import Checkpoints, Stage
from lib.training.pruning import Masks, State

OTHER = 500_000  # seeds of the other initialisation and of random masks start here
# epochs to keep, seed, start and masks to checkpoints
Fetch = Callable[[Sequence[int], int, State | None, Masks | None], Checkpoints]


def train_arms(
    name: str,
    spec: Mapping[str, object],
    recipe: Recipe,
    size: SimpleNamespace,
    seed: int,
    fetch: Fetch,
    *,
    progress: Callable[[range], Iterator[int]] | None = None,
) -> dict[int, list[Stage]]:
    """The stages of all arms, by epoch rewound to.

    Every network is trained by one thread, the arms side by side.

    Args:
        name, spec: of the network.
        size: `rewinds`, `n_stages` and `amount` are read.
        fetch: gives the network after some epochs, through the cache.
        progress: wraps the range of all arms' stages.
    """
    rewinds = tuple(size.rewinds)

    def trained(rewind: int, start: State, masks: Masks, stage: int) -> State:
        own = 1000 * seed + 10 * rewind + stage  # an order of its own for every stage and arm
        return fetch([recipe.epochs], own, start, masks)[recipe.epochs]

    def dense(epochs: Sequence[int]) -> Checkpoints:
        return fetch(epochs, seed, None, None)

    (first,) = parallel.side_by_side(dense, [(*rewinds, recipe.epochs)])
    chains = {
        rewind: training.tickets(
            name,
            spec,
            first,
            recipe,
            rewind=rewind,
            n_stages=size.n_stages,
            amount=size.amount,
            train=functools.partial(trained, rewind),
        )
        for rewind in rewinds
    }
    return training.tickets_together(chains, size.n_stages, progress=progress)


def arms_of(stages: Mapping[int, list[Stage]]) -> dict[str, dict[int, State]]:
    """Arm -> stage -> state; "kept" starts at the trained dense network, then rewound ones."""
    found = {}
    for rewind, arm in stages.items():
        found[f"rewound {rewind}"] = {s.number: s.rewound for s in arm}
        found[f"trained {rewind}"] = {s.number: s.trained for s in arm}
        found[f"kept {rewind}"] = {s.number: s.rewound if s.number else s.trained for s in arm}
    return found


def controls_of(
    name: str,
    spec: Mapping[str, object],
    stages: Sequence[Stage],
    rewind: int,
    n_random: int,
    seed: int,
    again: Callable[[State], State],
) -> dict[str, dict[int, State]]:
    """What else could make a masked network at the start interpretable (at the last stage).

    Args:
        name, spec: of the network.
        stages: of the arm that rewinds to the start, epoch `rewind`.
        n_random: draws of each control.
        again: gives a network batch norms' statistics of its own.
    """
    last, start = stages[-1], stages[0].rewound
    drawn, others = {}, {}
    for k in range(n_random):
        generator = torch.Generator().manual_seed(OTHER + 1000 * seed + k)
        drawn[k] = pruning.masked(start, pruning.random_masks(last.masks, generator))
        generator = torch.Generator().manual_seed(2 * OTHER + 1000 * seed + k)
        model = models.build(name, generator, "cpu", **spec)
        others[k] = pruning.masked(dict(model.state_dict()), last.masks)
    plain = {"random": drawn, "other": others}
    masks = {str(rewind): {s.number: s.rewound for s in stages}} | plain
    estimated = {
        f"re-estimated {arm}": {k: again(state) for k, state in states.items()}
        for arm, states in masks.items()
    }
    return plain | estimated


def reestimated(
    model: nn.Module,
    digest: str,
    images: Callable[[], Tensor],
    prepare: Callable[[Tensor], Tensor],
    n_batches: int,
    seed: int,
) -> State:
    """The network with running statistics of its own, from training batches; cached.

    Args:
        model: changed in place where there is something to compute.
        digest: names the training images, which `images` gives.
    """
    config = {
        "state": cache.state_hash(dict(model.state_dict())),
        "task": digest,
        "n_batches": n_batches,
        "seed": seed,
    }

    def build() -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        pruning.reestimate_batch_norms(
            model, images(), generator=generator, prepare=prepare, n_batches=n_batches
        )
        return dict(model.state_dict())

    code: list[Callable[..., object]] = [pruning.reestimate_batch_norms, prepare]
    return cache.fetch("batch-norms", config, build, code=code)
