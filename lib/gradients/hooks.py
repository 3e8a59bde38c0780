"""Per-example gradients by hooks, from one forward and one backward pass of the batch.

The weight gradient of a linear layer is ``sum_t d_t a_t^T`` with the inputs a and the gradients d
at its outputs; a convolution is a linear layer on unfolded patches; norms and embeddings scale and
pick. `per_example_hooks` is the public name.

Source: specification section 5.1, per-example gradients by hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from lib.gradients.flat import (
    Data,
    batches,
    check_finite,
    chunk_size,
    evaluating,
    select,
    size,
    slices,
)
from lib.gradients.outputs import Output

# Weights from which on a processor is faster with one example's convolution at a time than with all
# their patches (measured: a fifth of the time of a ResNet-9).
LARGE = 2**15

Calls = dict[str, list[tuple[Tensor, Tensor]]]  # layer: its inputs and output gradients, per call


class UnsupportedLayer(ValueError):
    """The hooks cannot give the gradients of this model; `torch.func` can."""


@dataclass(frozen=True)
class Recorded:
    """One forward pass whose gradients can be read at several outputs."""

    out: Tensor  # what the model returned, with its graph
    seen: dict[str, list[tuple[Tensor, Tensor]]]  # layer: inputs, zeros added to the outputs

    def calls(self, values: Tensor, cotangent: Tensor, *, last: bool = True) -> Calls:
        """Inputs of the layers and gradients of ``(values * cotangent).sum()`` at their outputs.

        Args:
            values: computed from `out`.
            last: whether the graph may be freed.
        """
        probes = [probe for calls in self.seen.values() for _, probe in calls]
        found = torch.autograd.grad(
            values, probes, cotangent, allow_unused=True, retain_graph=not last
        )
        grads = iter(
            torch.zeros_like(p) if g is None else g for p, g in zip(probes, found, strict=True)
        )
        return {name: [(x, next(grads)) for x, _ in calls] for name, calls in self.seen.items()}


def record(model: nn.Module, x: Tensor, layers: dict[str, nn.Module]) -> Recorded:
    """Run a model, in eval mode, on one batch and remember what some layers read.

    Raises:
        UnsupportedLayer: a layer was not called, or not with the batch as first axis.
    """
    n = len(x)
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add_probe(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
            # The gradient at a zero that is added is the gradient at the output, also where the
            # next layer overwrites that output.
            probe = torch.zeros_like(out, requires_grad=True)
            seen[name].append((inputs[0].detach(), probe))
            return out + probe

        return add_probe

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        with evaluating(model), torch.enable_grad():
            out = model(x)
    finally:
        for handle in handles:
            handle.remove()
    for name, calls in seen.items():
        axes = 1 if isinstance(layers[name], nn.Embedding) else 2
        if not calls or any(a.ndim < axes or {len(a), len(d)} != {n} for a, d in calls):
            raise UnsupportedLayer(
                f"layer {name!r} was not called with the {n} examples as first axis"
            )
    return Recorded(out, seen)


def layer_calls(
    model: nn.Module, batch: Sequence[Tensor], output: Output, layers: dict[str, nn.Module]
) -> Calls:
    """Inputs of some layers and the gradients at their outputs, for one batch.

    Raises:
        UnsupportedLayer: a layer was not called, or not with the batch as first axis.
        ValueError: ``output`` is not one number an example.
    """
    recorded = record(model, batch[0], layers)
    with torch.enable_grad():
        values = output(recorded.out, *batch[1:])
    if values.shape != (len(batch[0]),):
        raise ValueError(
            f"want one output an example, shape {(len(batch[0]),)}, got {tuple(values.shape)}"
        )
    return recorded.calls(values, torch.ones_like(values))


def patches(layer: nn.Module, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs ``[b, T, i]`` and output gradients ``[b, T, o]`` of a linear or convolution layer."""
    return input_rows(layer, x), output_rows(layer, d)


def input_rows(layer: nn.Module, x: Tensor) -> Tensor:
    """What a linear or convolution layer multiplies its weight with, ``[b, T, i]``."""
    if isinstance(layer, nn.Conv2d):
        assert not isinstance(layer.padding, str)  # see has_factors
        return F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT
    return x.reshape(len(x), -1, x.shape[-1])


def output_rows(layer: nn.Module, d: Tensor) -> Tensor:
    """Gradients at the layer's outputs, ``[b, T, o]``."""
    if isinstance(layer, nn.Conv2d):
        return d.flatten(2).mT
    return d.reshape(len(d), -1, d.shape[-1])


def has_factors(layer: nn.Module) -> bool:
    """Whether the layer's weight gradient is a sum of outer products that `factors` gives."""
    if type(layer) is nn.Conv2d:
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        return layer.groups == 1 and plain
    return type(layer) is nn.Linear


def supports(layer: nn.Module) -> bool:
    """Whether `per_example_hooks` has the gradients of the layer's own parameters."""
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return layer.running_mean is not None
    if type(layer) is nn.Embedding:
        return layer.max_norm is None and not layer.scale_grad_by_freq
    return has_factors(layer) or type(layer) in (nn.LayerNorm, nn.GroupNorm)


def layers_of(model: nn.Module, block: Sequence[str] | None) -> dict[str, nn.Module]:
    """The layers that hold the block's parameters.

    Raises:
        UnsupportedLayer: a parameter lies in a layer that the hooks do not know.
    """
    weights = select(model, block)
    layers = {}
    for name, layer in model.named_modules():
        own = {full for _, full in own_names(name, layer)}
        if own & set(weights):
            if not supports(layer):
                raise UnsupportedLayer(f"no hooks for {type(layer).__name__} {name!r}")
            layers[name] = layer
    chosen = {id(p) for name, p in model.named_parameters() if name in weights}
    holders = [id(p) for m in model.modules() for p in m.parameters(recurse=False)]
    if sum(holder in chosen for holder in holders) > len(chosen):
        raise UnsupportedLayer("two layers share a parameter of the block")
    return layers


def per_example_hooks(
    model: nn.Module,
    data: Data,
    output: Output,
    *,
    block: Sequence[str] | None = None,
    chunk: int | None = None,
) -> Iterator[Tensor]:
    """Per-example gradients of layers that hooks know: arguments and result of `stream`.

    Known are Linear (also on sequences), Conv2d without groups, BatchNorm in eval mode, GroupNorm,
    LayerNorm and Embedding, called with the examples as first axis, any number of times.

    Raises:
        UnsupportedLayer: a parameter of the block lies elsewhere, or the model uses a weight
            outside its layer's own call; `per_example_vmap` then has the gradients.
    """
    layers, weights = layers_of(model, block), select(model, block)
    where, p, sample = slices(weights), size(weights), next(iter(weights.values()))
    first = 0
    for batch in batches(data, chunk_size(model, chunk)):
        calls = layer_calls(model, batch, output, layers)
        flat = sample.new_empty(len(batch[0]), p)
        for name, layer in layers.items():
            views = {
                own: flat[:, where[full]].view(-1, *weights[full].shape)
                for own, full in own_names(name, layer)
                if full in where
            }
            write_gradients(layer, calls.pop(name), views)
        check_finite(flat, first)
        if first == 0:
            _check_sum(model, batch, output, flat, weights)
        yield flat
        del flat  # before the next chunk takes its memory
        first += len(batch[0])


def write_gradients(
    layer: nn.Module, calls: list[tuple[Tensor, Tensor]], views: dict[str, Tensor]
) -> None:
    """Write a layer's per-example gradients, summed over its calls, into views ``[b, *shape]``."""
    _write_call(layer, *calls[0], views)
    for x, d in calls[1:]:
        more = {own: torch.empty_like(view) for own, view in views.items()}
        _write_call(layer, x, d, more)
        for own, view in views.items():
            view += more[own]


def write_products(a: Tensor, d: Tensor, views: dict[str, Tensor]) -> None:
    """Write the gradients of a layer with factors: ``sum_t d_t a_t^T`` and ``sum_t d_t``.

    Args:
        a, d: `input_rows` and `output_rows`.
    """
    if (weight := views.get("weight")) is not None:
        weight = weight.view(*weight.shape[:2], -1)
        # An outer product is ten times faster than a matrix product of inner length 1.
        product = torch.mul if a.shape[1] == 1 else torch.bmm
        product(d.mT, a, out=weight)
    if (bias := views.get("bias")) is not None:
        torch.sum(d, 1, out=bias)


def is_large(layer: nn.Module, device: torch.device) -> bool:
    """Whether one example's convolution at a time is faster than all patches (see `LARGE`)."""
    return type(layer) is nn.Conv2d and layer.weight.numel() >= LARGE and device.type == "cpu"


def _write_call(layer: nn.Module, x: Tensor, d: Tensor, views: dict[str, Tensor]) -> None:
    weight, bias = views.get("weight"), views.get("bias")
    if isinstance(layer, nn.Conv2d) and is_large(layer, x.device):
        if weight is not None:
            assert not isinstance(layer.padding, str)  # see has_factors
            size, side = layer.weight.shape, (layer.stride, layer.padding, layer.dilation)
            for row, one, of in zip(weight, x[:, None], d[:, None], strict=True):
                row.copy_(conv2d_weight(one, size, of, *side))
        if bias is not None:
            torch.sum(d, (2, 3), out=bias)
    elif has_factors(layer):
        write_products(*patches(layer, x, d), views)
    elif isinstance(layer, nn.Embedding):
        if weight is not None:
            at = x.reshape(len(x), -1)
            example = torch.arange(len(x), device=x.device)[:, None].expand_as(at)
            kept = torch.ones_like(at, dtype=torch.bool)
            if layer.padding_idx is not None:
                kept = at != layer.padding_idx
            rows = d.reshape(*at.shape, -1)[kept]
            weight.zero_().index_put_((example[kept], at[kept]), rows, accumulate=True)
    else:
        normal, shape, axis = _normalised(layer, x)
        if weight is not None:
            torch.sum((normal * d).reshape(shape), axis, out=weight)
        if bias is not None:
            torch.sum(d.reshape(shape), axis, out=bias)


def _normalised(layer: nn.Module, x: Tensor) -> tuple[Tensor, tuple[int, ...], int]:
    """What a norm layer scales, the shape that splits it, and the axis that a gain spans."""
    if isinstance(layer, nn.LayerNorm):
        normal = F.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        return normal, (len(x), -1, *layer.normalized_shape), 1
    if isinstance(layer, nn.GroupNorm):
        normal = F.group_norm(x, layer.num_groups, eps=layer.eps)
    else:
        assert isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))
        normal = F.batch_norm(x, layer.running_mean, layer.running_var, eps=layer.eps)
    return normal, (*x.shape[:2], -1), 2


def own_names(name: str, layer: nn.Module) -> list[tuple[str, str]]:
    """Names of a layer's own parameters, in the layer and in the model."""
    own = [n for n, _ in layer.named_parameters(recurse=False)]
    return [(n, f"{name}.{n}" if name else n) for n in own]


def _check_sum(
    model: nn.Module,
    batch: tuple[Tensor, ...],
    output: Output,
    flat: Tensor,
    weights: dict[str, Tensor],
) -> None:
    """Compare two examples' weighted sum with autograd: a weight may also be used elsewhere."""
    pair = tuple(t[:2] for t in batch)
    share = torch.arange(1, 1 + len(pair[0]), device=flat.device, dtype=flat.dtype)
    named = dict(model.named_parameters())
    frozen = [w for w in named.values() if not w.requires_grad]
    for w in frozen:
        w.requires_grad_(True)
    try:
        with evaluating(model), torch.enable_grad():
            total = (output(model(pair[0]), *pair[1:]) * share).sum()
            truth = torch.autograd.grad(
                total, [named[n] for n in weights], allow_unused=True, materialize_grads=True
            )
    finally:
        for w in frozen:
            w.requires_grad_(False)
    # A use that the hooks do not see is of the gradient's own size; TF32 and bfloat16 are not.
    eps = torch.finfo(flat.dtype).eps
    share_of, floor = max(0.02, 16 * eps), 16 * eps * flat[:2].norm()
    for (name, where), want in zip(slices(weights).items(), truth, strict=True):
        got = share @ flat[: len(share), where]
        if (got - want.flatten()).norm() > share_of * want.norm() + floor:
            raise UnsupportedLayer(f"parameter {name!r} is used outside its layer's own call")
