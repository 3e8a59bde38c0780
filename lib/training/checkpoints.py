"""Training that is watched: the network after chosen epochs, with masks or under attack.

`train_checkpointed` runs the loop of `lib.training.loop` and keeps the whole state after the
epochs that are asked for; epoch 0 is the initialisation and epoch e what e completed epochs
leave. The same function trains a pruned network (weights outside the mask stay zero) and an
adversarially robust one (each batch is attacked first), so the paradigms differ in nothing else.

`fetch_checkpoints` does it through the cache; `tickets` chains such trainings into iterative
magnitude pruning; `with_new_head` starts fine-tuning.

Public names: `Checkpoints`, `train_checkpointed`, `fetch_checkpoints`, `network_of`, `Stage`,
`tickets`, `tickets_together`, `with_new_head`.

Source: specification of document 2, section 3.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from lib import cache, models, parallel
from lib.training.adversarial import Attack, attacked
from lib.training.loop import (
    LOSSES,
    SCHEDULES,
    Prepare,
    Progress,
    Recipe,
    check_rows,
    flip_crop,
    optimise,
)
from lib.training.pruning import Masks, State, apply_masks, dense_masks, masked, prune
from lib.training.stacked import build_skeleton

Checkpoints = dict[int, State]  # completed epochs -> state on the CPU


def train_checkpointed(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    *,
    keep: Sequence[int],
    generator: torch.Generator,
    pixels: Prepare | None = None,
    normalise: Prepare | None = None,
    masks: Masks | None = None,
    attack: Attack | None = None,
    progress: Progress | None = None,
) -> Checkpoints:
    """Train `model` in place; the states after the epochs in `keep`.

    Args:
        x: inputs `[n, ...]`, y: labels `[n]`.
        keep: completed epochs, 0 to `recipe.epochs`.
        generator: on the CPU; order of rows, augmentation and starts of the attack.
        pixels: from raw inputs to images in [0, 1]; augmentation and attack come after it.
        normalise: from there to what the network reads.
        masks: weights that stay zero; the mask is applied before the first step and after each.
        attack: of each batch, in train mode; None for clean training.
        progress: wraps the range of epochs.

    Raises:
        ValueError: bad rows (see `lib.training.train`), an epoch that is not trained.
    """
    check_rows(x, y)
    if not keep or not all(0 <= epoch <= recipe.epochs for epoch in keep):
        raise ValueError(
            f"want checkpoints after 0 to {recipe.epochs} epochs, got {sorted(keep)}; train longer "
            "or keep others"
        )
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last)  # of convolutions; others keep theirs
    found: Checkpoints = {}

    def restore() -> None:
        if masks is not None:
            apply_masks(model, masks)

    def note(epoch: int) -> None:
        restore()  # the last step of the epoch may have moved masked weights
        if epoch in keep:
            found[epoch] = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

    def classify(images: Tensor) -> Tensor:
        images = normalise(images) if normalise else images
        if images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return model(images)

    def loss_of(rows: Tensor) -> Tensor:
        restore()  # what the step before has moved
        rows = rows.to(x.device)
        batch, target = x[rows].to(device), y[rows].to(device)
        batch = pixels(batch) if pixels else batch
        if recipe.augment == "flip_crop":
            batch = flip_crop(batch, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            if attack is not None:
                batch = attacked(classify, batch, target, attack, generator=generator)
            return LOSSES[recipe.loss](classify(batch).float(), target)

    def batches() -> Iterator[Tensor]:
        yield from torch.randperm(len(x), generator=generator).split(recipe.batch_size)

    def watched(epochs: range) -> Iterator[int]:
        note(0)
        for epoch in progress(epochs) if progress else epochs:
            yield epoch
            note(epoch + 1)

    model.train()
    optimise(list(model.parameters()), len(x), recipe, batches, loss_of, watched)
    model.eval()
    return found


def fetch_checkpoints(
    name: str,
    spec: Mapping[str, object],
    load: Callable[[], tuple[Tensor, Tensor]],
    recipe: Recipe,
    *,
    keep: Sequence[int],
    seed: int,
    data_hash: str,
    pixels: Prepare | None = None,
    normalise: Prepare | None = None,
    start: State | None = None,
    masks: Masks | None = None,
    attack: Attack | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Checkpoints:
    """`train_checkpointed` at most once, from `start` or from the weights that `seed` draws.

    Args:
        load: returns (x, y); called only if there is something to train.
        data_hash: of the data that `load` returns; part of the key, as are start and masks.
        pixels, normalise: functions of `lib` (their source is part of the key).
    """

    def build() -> dict[str, Tensor]:
        x, y = load()
        generator = torch.Generator().manual_seed(seed)
        model = models.build(name, generator, device, **spec)
        if start is not None:
            model.load_state_dict(start)
        on = None if masks is None else {k: v.to(device) for k, v in masks.items()}
        found = train_checkpointed(
            model,
            x,
            y,
            recipe,
            keep=keep,
            generator=generator,
            pixels=pixels,
            normalise=normalise,
            masks=on,
            attack=attack,
            progress=progress,
        )
        return {f"{epoch}/{k}": v for epoch, state in found.items() for k, v in state.items()}

    config = {
        "network": name,
        "spec": dict(spec),
        "recipe": asdict(recipe),
        "keep": sorted(keep),
        "seed": seed,
        "data": data_hash,
        "start": "" if start is None else cache.state_hash(start),
        "masks": "" if masks is None else cache.state_hash(masks),
        "attack": None if attack is None else asdict(attack),
    }
    code: list[Callable[..., object]] = [
        train_checkpointed,
        models.build,
        models.NETWORKS[name],
        LOSSES[recipe.loss],
        SCHEDULES[recipe.schedule],
        *(f for f in (pixels, normalise) if f is not None),
    ]
    entry = cache.fetch(f"checkpoints-{name}", config, build, code=code)
    found: Checkpoints = {epoch: {} for epoch in sorted(keep)}
    for key, value in entry.items():
        epoch, _, parameter = key.partition("/")
        found[int(epoch)][parameter] = value
    return found


def network_of(name: str, spec: Mapping[str, object], state: State) -> nn.Module:
    """A network with these weights, in evaluation mode on the CPU."""
    model = build_skeleton(name, spec).to_empty(device="cpu")
    model.load_state_dict(state)
    return model.eval()


@dataclass(frozen=True)
class Stage:
    """One stage of iterative magnitude pruning."""

    number: int  # prunings before it
    masks: Masks
    rewound: State  # before its training
    trained: State


def tickets(
    name: str,
    spec: Mapping[str, object],
    first: Checkpoints,
    recipe: Recipe,
    *,
    rewind: int,
    n_stages: int,
    amount: float,
    train: Callable[[State, Masks, int], State],
) -> Iterator[Stage]:
    """The stages of one arm, the dense one first.

    Args:
        first: checkpoints of the dense training, with epoch `rewind` and the last one; shared by
            all arms.
        recipe: of every stage; optimiser and schedule start anew in each.
        rewind: completed epochs of dense training that weights return to.
        n_stages: trainings, the dense one included: seven prunings are eight stages.
        amount: share of what is left that a pruning removes.
        train: (rewound state, masks, stage) to the trained state, for instance through
            `fetch_checkpoints`.

    Raises:
        ValueError: a checkpoint is missing, or no stages.
    """
    if rewind not in first or recipe.epochs not in first or n_stages < 1:
        raise ValueError(
            f"want checkpoints after {rewind} and {recipe.epochs} epochs and n_stages >= 1, got "
            f"{sorted(first)} and {n_stages}"
        )
    masks = dense_masks(network_of(name, spec, first[recipe.epochs]))
    stage = Stage(0, masks, first[rewind], first[recipe.epochs])
    yield stage
    for number in range(1, n_stages):
        masks = prune(stage.trained, masks, amount)
        rewound = masked(first[rewind], masks)
        stage = Stage(number, masks, rewound, train(rewound, masks, number))
        yield stage


def tickets_together(
    arms: Mapping[int, Iterator[Stage]], n_stages: int, *, progress: Progress | None = None
) -> dict[int, list[Stage]]:
    """All stages of several arms, as many trainings at a time as torch may use threads.

    A stage waits for the one before it of its own arm alone, so that three arms keep two
    processors busy to the last stage. Each training computes with one thread: its weights do not
    depend on how many run beside it.

    Args:
        arms: epoch rewound to -> its stages not yet computed, as `tickets` gives them.
        n_stages: of each arm.
        progress: wraps the range of all stages.

    Returns:
        Epoch rewound to -> its stages.
    """
    found: dict[int, list[Stage]] = {rewind: [] for rewind in arms}
    turns = list(arms) * n_stages  # all first stages, all second ones, ...
    locks = {rewind: threading.Lock() for rewind in arms}

    def advance(rewind: int) -> None:
        with locks[rewind]:
            found[rewind].append(next(arms[rewind]))

    bar = progress(range(len(turns))) if progress else range(len(turns))
    for _ in zip(bar, parallel.side_by_side(advance, turns), strict=True):
        pass
    return found


def with_new_head(
    name: str, spec: Mapping[str, object], state: State, *, head: str, generator: torch.Generator
) -> State:
    """The weights of a trained network with a new last layer, for a task with other outputs.

    Args:
        spec: of the new network; all layers but `head` have the old one's shapes.
        head: name of the last layer, for instance "fc".

    Raises:
        ValueError: another layer differs in shape.
    """
    fresh = dict(models.build(name, generator, "cpu", **spec).state_dict())
    for key, value in state.items():
        if key.startswith(f"{head}."):
            continue
        if key not in fresh or fresh[key].shape != value.shape:
            raise ValueError(f"{key} does not fit the new network; only {head} may differ")
        fresh[key] = value.clone()
    return {k: v.detach() for k, v in fresh.items()}
