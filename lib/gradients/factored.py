"""Gradients as factors: what K-FAC, the dual form and factored projections read.

`factors` gives the inputs a and output gradients d of linear and convolution layers, whose
gradients are ``sum_t d_t a_t^T``. `kernel` is the exact Gram matrix of gradients: a layer that
reads one vector an example has ``<J_i, J_j> = <a_i, a_j> <d_i, d_j>``, so that its gradients are
never formed; those of convolutions, layers on sequences and norms are, a chunk at a time.

Source: specification section 5.1; the kernel is the empirical tangent kernel of document 4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from lib.gradients.flat import Block, Data, batches, check_data, check_finite, chunk_size, select
from lib.gradients.hooks import (
    UnsupportedLayer,
    has_factors,
    layer_calls,
    layers_of,
    own_names,
    patches,
    per_example_hooks,
    write_gradients,
)
from lib.gradients.outputs import Output
from lib.gradients.per_example import per_example_vmap


@dataclass(frozen=True)
class Factor:
    """Gradients of one layer: example b's is ``sum_t d[b, t, :, None] * a[b, t, None, :]``."""

    a: Tensor  # [b, T, i], inputs or patches; a last column of ones where the layer has a bias
    d: Tensor  # [b, T, o], gradients of the output at the layer's outputs


def factors(
    model: nn.Module,
    data: Data,
    output: Output,
    *,
    layers: Sequence[str] | None = None,
    chunk: int | None = None,
    verify: bool = True,
) -> Iterator[dict[str, Factor]]:
    """Factored per-example gradients of linear and convolution layers, a chunk at a time.

    Args:
        model, data, output: as for `stream`.
        layers: names of modules; None is every layer that has factors.
        chunk: examples at a time, as for `stream`.
        verify: compare the first chunk with autograd. Leave out only where the same model, or one
            of the same code, passed before: a weight used outside its layer goes unseen then.

    Yields:
        Layer name to `Factor`; a layer called several times has its calls along T.

    Raises:
        ValueError: a name is no layer with factors, or the hooks cannot see all of a layer's
            use (UnsupportedLayer); see also `stream`.
    """
    chosen = factored_layers(model, layers)
    first = 0
    for batch in batches(data, chunk_size(model, chunk)):
        if verify and first == 0:
            next(per_example_hooks(model, [t[:2] for t in batch], output, block=list(chosen)))
        calls = layer_calls(model, batch, output, chosen)
        found = {name: _factor(layer, calls.pop(name)) for name, layer in chosen.items()}
        for factor in found.values():
            check_finite(factor.a, first, "activation")
            check_finite(factor.d, first)
        yield found
        first += len(batch[0])


def factored_layers(model: nn.Module, layers: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """The named linear and ungrouped convolution layers; None is all of them.

    Raises:
        ValueError: a name is no such layer, or there is none.
    """
    known = {name: m for name, m in model.named_modules() if has_factors(m)}
    names = list(known) if layers is None else list(layers)
    for name in names:
        if name not in known:
            raise ValueError(
                f"no linear or ungrouped convolution layer {name!r}; known: {', '.join(known)}"
            )
    if not names:
        raise ValueError("the model has no linear or ungrouped convolution layer to factor")
    return {name: known[name] for name in names}


def kernel(
    model: nn.Module,
    data_a: Data,
    data_b: Data | None,
    output: Output,
    *,
    block: Block = None,
    chunk: int = 256,
) -> Tensor:
    """Inner products of per-example gradients, ``J_a J_b^T``.

    Args:
        model, output, block: as for `stream`.
        data_a, data_b: tensors of one length each; None for ``data_b`` is ``data_a``.
        chunk: examples of either side at a time; does not change the result.

    Returns:
        ``[n_a, n_b]``.

    Raises:
        ValueError: as for `stream`.
    """
    symmetric = data_b is None
    right = data_a if data_b is None else data_b
    gram: Tensor | None = None
    row = 0
    for left in _parts(model, data_a, output, block, chunk, 0):
        column = row if symmetric else 0
        for other in _parts(model, right, output, block, chunk, column):
            part = reduce(torch.add, map(_inner, left, other))
            if gram is None:
                gram = part.new_empty(check_data(data_a), check_data(right))
            gram[row : row + len(part), column : column + part.shape[1]] = part
            if symmetric:
                gram[column : column + part.shape[1], row : row + len(part)] = part.mT
            column += part.shape[1]
        row += len(part)
    assert gram is not None
    return gram


def _parts(
    model: nn.Module, data: Data, output: Output, block: Block, chunk: int, start: int
) -> Iterator[list[Factor | Tensor]]:
    """For every chunk from row ``start`` on, the layers' factors or gradients ``[b, q]``."""
    check_data(data, chunk)
    rest = [t[start:] for t in data]
    try:
        layers = layers_of(model, block)
        next(per_example_hooks(model, [t[:2] for t in rest], output, block=block))  # verifies
    except UnsupportedLayer:
        for flat in per_example_vmap(model, rest, output, block=block, chunk=chunk):
            yield [flat]
        return
    weights = select(model, block)
    for batch in batches(rest, chunk):
        calls = layer_calls(model, batch, output, layers)
        found: list[Factor | Tensor] = []
        for name, layer in layers.items():
            own = {n: weights[full] for n, full in own_names(name, layer) if full in weights}
            factor = _factor(layer, calls[name]) if _is_outer(layer, calls[name], own) else None
            if factor is not None:
                check_finite(factor.a, start, "activation")
                check_finite(factor.d, start)
                found.append(factor)
                continue
            sizes = {n: weight.numel() for n, weight in own.items()}
            flat = next(iter(own.values())).new_empty(len(batch[0]), sum(sizes.values()))
            cut = flat.split(list(sizes.values()), dim=1)
            views = {n: c.view(-1, *own[n].shape) for n, c in zip(own, cut, strict=True)}
            write_gradients(layer, calls[name], views)
            check_finite(flat, start)
            found.append(flat)
        yield found
        start += len(batch[0])


def _is_outer(layer: nn.Module, calls: list[tuple[Tensor, Tensor]], own: dict[str, Tensor]) -> bool:
    """Whether the whole layer's gradient of an example is one outer product."""
    whole = len(own) == len(list(layer.parameters(recurse=False)))
    return isinstance(layer, nn.Linear) and whole and len(calls) == 1 and calls[0][0].ndim == 2


def _inner(left: Factor | Tensor, right: Factor | Tensor) -> Tensor:
    if isinstance(left, Factor) and isinstance(right, Factor):
        return (left.a[:, 0] @ right.a[:, 0].mT) * (left.d[:, 0] @ right.d[:, 0].mT)
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left @ right.mT
    raise UnsupportedLayer("a layer reads vectors in one data set and sequences in the other")


def _factor(layer: nn.Module, calls: list[tuple[Tensor, Tensor]]) -> Factor:
    parts = [patches(layer, x, d) for x, d in calls]
    a, d = torch.cat([a for a, _ in parts], 1), torch.cat([d for _, d in parts], 1)
    if layer.bias is not None:
        a = torch.cat([a, a.new_ones(*a.shape[:2], 1)], dim=-1)
    return Factor(a, d)
