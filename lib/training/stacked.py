"""Stacked ensembles: N networks of one architecture trained as one batched computation.

Each network has its own initial weights, its own subset of the rows and its own order of them,
all drawn from its own seed, so that a network of a stack is the network trained alone with that
seed, up to round-off. The forward pass is `torch.func.vmap` over the stacked weights (a batched
matrix product where the module has a linear layer), the losses are summed, and since they share
no weight the gradient of the sum holds each network's own gradient.

Small networks leave a processor idle between tiny operations; a stack fills it. Works for any
architecture of `lib.models` on any device; batch normalisation keeps running statistics per
network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.func import functional_call, stack_module_state, vmap

from lib import models
from lib.features import recorded
from lib.training.loop import Progress, Recipe, check_rows, flip_crop, optimise


def train_stacked(
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
    """Train one network a seed, all at once, on `x`'s device.

    Args:
        name, spec: the network, as for `lib.models.build`.
        x: inputs `[n, ...]`, y: labels or targets `[n]`, shared by all networks; or `[N, n]`,
            one row of labels a network (shuffled-label controls).
        seeds: N seeds.
        subsets: row indices `[N, m]`, network k trains on `subsets[k]`; None for all rows.
        progress: wraps the range of epochs.

    Returns:
        The stacked state: each tensor of a network's state with a leading axis N.

    Raises:
        ValueError: shapes that disagree, an index out of range, or a loss that is not finite.
    """
    labels = y.expand(len(seeds), -1) if y.ndim == 1 else y
    check_rows(x, labels[0])
    rows = torch.arange(len(x)).expand(len(seeds), -1) if subsets is None else subsets.cpu()
    if rows.ndim != 2 or len(rows) != len(seeds) or len(labels) != len(seeds):
        raise ValueError(
            f"want subsets [N, m] and labels [n] or [N, n] for N = {len(seeds)} seeds, got "
            f"{tuple(rows.shape)} and {tuple(y.shape)}; group subsets of equal size"
        )
    if rows.min() < 0 or rows.max() >= len(x):
        raise ValueError(f"subsets index {len(x)} rows, got {int(rows.min())}..{int(rows.max())}")
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    members = [models.build(name, g, x.device, **spec) for g in generators]
    parameters, buffers = stack_module_state(members)
    skeleton = members[0].to("meta").train()

    labels = labels.to(x.device)

    def loss_of(batch: Tensor) -> Tensor:
        batch = batch.to(x.device)
        # one flat index_select: indexing by a matrix of rows is five times slower
        inputs = x.index_select(0, batch.reshape(-1)).unflatten(0, batch.shape)
        if recipe.augment == "flip_crop":
            shifted = [flip_crop(a, g) for a, g in zip(inputs, generators, strict=True)]
            inputs = torch.stack(shifted)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
            out = _outputs(skeleton, parameters, buffers, inputs)
        out = out.float() if out.dtype == torch.bfloat16 else out
        return SUMMED[recipe.loss](out, labels.gather(1, batch))

    def batches() -> Iterator[Tensor]:
        order = torch.stack([torch.randperm(rows.shape[1], generator=g) for g in generators])
        yield from rows.gather(1, order).split(recipe.batch_size, dim=1)

    optimise(list(parameters.values()), rows.shape[1], recipe, batches, loss_of, progress)
    return {k: v.detach() for k, v in {**parameters, **buffers}.items()}


def initial_stack(
    name: str, spec: Mapping[str, object], seeds: Sequence[int], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """The stacked state before any training: the random-weight control of the same seeds."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    members = [models.build(name, g, device, **spec) for g in generators]
    parameters, buffers = stack_module_state(members)
    return {k: v.detach() for k, v in {**parameters, **buffers}.items()}


def _outputs(
    skeleton: nn.Module,
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor],
    inputs: Tensor,
) -> Tensor:
    """Outputs `[N, b, k]` of each network on its own rows `[N, b, ...]`."""
    if isinstance(skeleton, models.MLP):  # vmap of it costs half as much again (measured)
        h = inputs
        for name, layer in skeleton.named_children():
            prefix, activation = name, None
            if isinstance(layer, nn.Sequential):  # linear, activation
                prefix, activation = f"{name}.0", layer[1]
            weight, bias = parameters[f"{prefix}.weight"], parameters[f"{prefix}.bias"]
            h = torch.baddbmm(bias[:, None], h, weight.mT)
            h = activation(h) if activation else h
        return h

    def one(weights: dict[str, Tensor], state: dict[str, Tensor], rows: Tensor) -> Tensor:
        return functional_call(skeleton, (weights, state), (rows,))

    return vmap(one)(parameters, buffers, inputs)


class _CrossEntropy(torch.autograd.Function):
    """Sum over networks of the mean cross-entropy: logits `[N, b, k]`, labels `[N, b]`.

    The library's own works along a short last axis in an order that is slow for many small rows;
    this computes loss and gradient together (a third of the time, measured).
    """

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, labels: Tensor) -> Tensor:
        shifted = logits - logits.amax(-1, keepdim=True)
        picked = shifted.gather(-1, labels[..., None])
        gradient = shifted.exp_()
        total = gradient.sum(-1, keepdim=True)
        n = logits.shape[-2]
        loss = (total.log() - picked).sum() / n
        gradient /= total
        gradient.scatter_add_(-1, labels[..., None], torch.full_like(total, -1.0))
        ctx.save_for_backward(gradient.div_(n))
        return loss

    @staticmethod
    def backward(ctx: FunctionCtx, scale: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return gradient * scale, None


def _squared_error(out: Tensor, y: Tensor) -> Tensor:
    """Sum over networks of the mean squared error: outputs `[N, b, 1]`, targets `[N, b]`."""
    return (out.squeeze(-1) - y).square().mean(-1).sum()


SUMMED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": _CrossEntropy.apply,
    "mse": _squared_error,
}


@torch.no_grad()
def forward_stacked(
    name: str,
    spec: Mapping[str, object],
    state: Mapping[str, Tensor],
    x: Tensor,
    layers: Sequence[str] = (),
) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs of every network of a stack on the same rows, and activations of `layers`.

    Returns:
        Outputs `[N, n, k]`, and layer name -> activations `[N, n, ...]`.

    Raises:
        ValueError: an unknown layer.
    """
    skeleton = build_skeleton(name, spec)

    def one(weights: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        with recorded(skeleton, layers) as seen:
            out = functional_call(skeleton, weights, (x,))
            return out, dict(seen)

    return vmap(one)(dict(state))


def unstack(
    name: str, spec: Mapping[str, object], state: Mapping[str, Tensor], index: int
) -> nn.Module:
    """Network `index` of a stack as a module of its own, in evaluation mode."""
    model = build_skeleton(name, spec).to_empty(device=next(iter(state.values())).device)
    model.load_state_dict({k: v[index] for k, v in state.items()})
    return model


def build_skeleton(name: str, spec: Mapping[str, object]) -> nn.Module:
    """The network without weights, in evaluation mode."""
    with torch.device("meta"):
        return models.NETWORKS[name](**spec).eval()
