"""Iterative magnitude pruning with rewinding: masks, rewound states, and their controls.

A stage trains a network, removes a share of the weights that are left, those of least magnitude
over all layers together, and resets the rest to what they were early in the first stage's
training. `lib.training.checkpoints.tickets` chains such stages; here are its parts.

Only convolutions' weights are pruned, and not the first one's; biases, batch norms and the last
linear layer stay dense. A rewound state has the batch norms' buffers of its epoch too, and every
tensor that is not masked is that of the snapshot bit for bit.

Controls: a random mask with each layer's own sparsity, the mask on another initialisation, and
batch norms whose running statistics are estimated again, since a mask changes the scale of what
they normalise.

Public names: `State`, `Masks`, `prunable`, `dense_masks`, `prune`, `random_masks`, `masked`,
`apply_masks`, `share_left`, `reestimate_batch_norms`.

Source: document 2, section 4.1 and appendix A; specification section 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

State = dict[str, Tensor]
Masks = dict[str, Tensor]  # name of a weight -> bool, True where it is kept
Prepare = Callable[[Tensor], Tensor]


def prunable(model: nn.Module) -> list[str]:
    """Names of the weights that pruning may remove: of all convolutions but the first.

    Raises:
        ValueError: fewer than two convolutions.
    """
    names = [f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    if len(names) < 2:
        raise ValueError(
            f"want a network with at least two convolutions, got {len(names)}: the first is never "
            "pruned and linear layers are not"
        )
    return names[1:]


def dense_masks(model: nn.Module) -> Masks:
    """Masks that keep every prunable weight."""
    state = model.state_dict()
    return {name: torch.ones_like(state[name], dtype=torch.bool) for name in prunable(model)}


def prune(state: Mapping[str, Tensor], masks: Masks, amount: float) -> Masks:
    """Masks without the share `amount` of the weights left that are smallest, over all layers.

    The number removed is rounded at every stage, as the reference does; of equal magnitudes those
    that come first go first.

    Args:
        state: trained weights.
        masks: of the stage before.
        amount: in (0, 1), of what is left.

    Raises:
        ValueError: an amount outside (0, 1), or masks of other weights.
    """
    if not 0 < amount < 1:
        raise ValueError(f"want an amount in (0, 1), got {amount}")
    _check(state, masks)
    flat = torch.cat([state[name].abs().flatten() for name in masks])
    kept = torch.cat([mask.flatten() for mask in masks.values()])
    left = kept.nonzero()[:, 0]
    goes = left[flat[left].argsort(stable=True)[: round(amount * len(left))]]
    kept = kept.clone()
    kept[goes] = False
    parts = kept.split([mask.numel() for mask in masks.values()])
    return {name: part.view_as(masks[name]) for name, part in zip(masks, parts, strict=True)}


def random_masks(masks: Masks, generator: torch.Generator) -> Masks:
    """Masks that keep as many weights of each layer, anywhere."""
    found = {}
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        flat = torch.zeros(mask.numel(), dtype=torch.bool, device=mask.device)
        flat[order[: int(mask.sum())]] = True
        found[name] = flat.view_as(mask)
    return found


def share_left(masks: Masks) -> float:
    """Share of the prunable weights that are kept."""
    return sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())


def masked(state: Mapping[str, Tensor], masks: Masks) -> State:
    """A copy of a state in which the weights that are not kept are zero."""
    _check(state, masks)
    return {
        name: torch.where(masks[name], value, torch.zeros_like(value))
        if name in masks
        else value.clone()
        for name, value in state.items()
    }


@torch.no_grad()
def apply_masks(model: nn.Module, masks: Masks) -> None:
    """Set the weights that are not kept to zero, in place."""
    for name, mask in masks.items():
        model.get_parameter(name).masked_fill_(~mask, 0.0)


@torch.no_grad()
def reestimate_batch_norms(
    model: nn.Module,
    x: Tensor,
    *,
    generator: torch.Generator,
    prepare: Prepare | None = None,
    n_batches: int = 50,
    batch_size: int = 128,
) -> nn.Module:
    """Running means and variances anew, as plain means over training batches; in place.

    Nothing else changes, and modes and momenta are restored.

    Args:
        x: training inputs `[n, ...]`, drawn in an order from the generator, again from the start
            where there are fewer than `n_batches` batches; what is left over after the whole
            batches of an order is not used.

    Raises:
        ValueError: no inputs.
    """
    if len(x) == 0:
        raise ValueError("want at least one training input, got none")
    device = next(model.parameters()).device
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    modes, momenta = {m: m.training for m in model.modules()}, [m.momentum for m in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over batches
    model.train()
    try:
        for rows in _orders(len(x), batch_size, n_batches, generator):
            batch = x[rows].to(device)
            model(prepare(batch) if prepare else batch)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return model


def _orders(n: int, size: int, count: int, generator: torch.Generator) -> Sequence[Tensor]:
    found: list[Tensor] = []
    while len(found) < count:
        # a last batch that is not whole would count for as much as a whole one
        found += torch.randperm(n, generator=generator).split(size)[: max(1, n // size)]
    return found[:count]


def _check(state: Mapping[str, Tensor], masks: Masks) -> None:
    if not masks:
        raise ValueError("want a mask for at least one weight, got none")
    for name, mask in masks.items():
        if name not in state or state[name].shape != mask.shape:
            found = tuple(state[name].shape) if name in state else "no such weight"
            raise ValueError(
                f"mask {name} has shape {tuple(mask.shape)}, the network has {found}; take masks "
                "of the same network"
            )
