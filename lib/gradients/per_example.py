"""Per-example gradients of any output of a model, chunk by chunk, and of any functional.

`stream` chooses between hooks (one batched pass; `lib.gradients.hooks`) and ``torch.func``
(any layer).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev, vmap

from lib.gradients.flat import Data, batches, check_finite, chunk_size, evaluating, flatten, select
from lib.gradients.hooks import UnsupportedLayer, per_example_hooks
from lib.gradients.outputs import Output


def stream(
    model: nn.Module,
    data: Data,
    output: Output,
    *,
    block: Sequence[str] | None = None,
    chunk: int | None = None,
) -> Iterator[Tensor]:
    """Gradients of ``output(model(x), y, ...)`` with respect to the weights, example by example.

    Hooks are used where every parameter of the block lies in layers that they know
    (`per_example_hooks`), which the first chunk verifies against autograd; ``torch.func``
    (`per_example_vmap`) otherwise, ten and more times slower for convolutions on a CPU.

    Args:
        model: any module; taken in eval mode, and left in the mode it was in.
        data: ``(x [n, ...], y [n], ...)``, tensors of one length.
        output: maps model outputs and the rest of the data to one number an example, with and
            without the axis of examples (`margin`).
        block: names of parameters or modules; None is every parameter.
        chunk: examples at a time; bounds the memory and does not change the result. None chooses
            by the model's size (`chunk_size`).

    Yields:
        ``[b, p]`` in the model's dtype, rows in the order of the data, columns in the order of
        ``model.named_parameters()``, each flattened.

    Raises:
        ValueError: the data or the block are refused, or an example's gradient is not finite.
    """
    hooks = per_example_hooks(model, data, output, block=block, chunk=chunk)
    try:
        first = next(hooks)
    except UnsupportedLayer:
        yield from per_example_vmap(model, data, output, block=block, chunk=chunk)
        return
    yield first
    del first
    yield from hooks


def per_example(
    model: nn.Module,
    data: Data,
    output: Output,
    *,
    block: Sequence[str] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """All per-example gradients ``[n, p]`` at once: `stream`, concatenated."""
    return torch.cat(list(stream(model, data, output, block=block, chunk=chunk)))


def per_example_vmap(
    model: nn.Module,
    data: Data,
    output: Output,
    *,
    block: Sequence[str] | None = None,
    chunk: int | None = None,
) -> Iterator[Tensor]:
    """Per-example gradients of any model by ``vmap(grad)``: arguments and result of `stream`."""

    def value(weights: dict[str, Tensor], x: Tensor, *rest: Tensor) -> Tensor:
        found = output(functional_call(model, weights, (x[None],))[0], *rest)
        if found.ndim:
            raise ValueError(f"want one output an example, a scalar, got {tuple(found.shape)}")
        return found

    return _functional_stream(value, model, data, block, chunk)


def functional_gradients(
    functional: Callable[..., Tensor],
    model: nn.Module,
    data: Data,
    *,
    block: Sequence[str] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Per-example gradients of any functional of the weights, by ``torch.func``.

    Args:
        functional: ``F(weights, *example)`` -> scalar, where ``weights`` maps every parameter's
            name to its value (for ``functional_call``) and an example has no axis of examples.
        model: whose weights; its buffers are constants. Taken in eval mode.
        data: tensors of one length; their rows are the examples.
        block, chunk: as for `stream`.

    Returns:
        ``[n, p]``.
    """
    return torch.cat(list(_functional_stream(functional, model, data, block, chunk)))


def functional_gradient(
    functional: Callable[[dict[str, Tensor]], Tensor],
    model: nn.Module,
    *,
    block: Sequence[str] | None = None,
) -> Tensor:
    """Gradient of a functional of the weights alone, ``F(weights)`` -> scalar or ``[q]``.

    Returns:
        ``[q, p]``, one row for a scalar.

    Raises:
        ValueError: F gives more than one axis, or a gradient that is not finite.
    """
    fixed, weights = select(model), select(model, block)

    def value(chosen: dict[str, Tensor]) -> Tensor:
        found = functional({**fixed, **chosen})
        if found.ndim > 1:
            raise ValueError(f"want a scalar or [q] functional, got {tuple(found.shape)}")
        return found.reshape(-1)

    with evaluating(model):
        rows = flatten(jacrev(value)(weights), leading=1)
    if not rows.isfinite().all():
        raise ValueError("the functional's gradient holds NaN or infinity; look at the weights")
    return rows


def _functional_stream(
    functional: Callable[..., Tensor],
    model: nn.Module,
    data: Data,
    block: Sequence[str] | None,
    chunk: int | None,
) -> Iterator[Tensor]:
    fixed, weights = select(model), select(model, block)

    def value(chosen: dict[str, Tensor], *example: Tensor) -> Tensor:
        return functional({**fixed, **chosen}, *example)

    gradients = vmap(grad(value), in_dims=(None, *(0 for _ in data)))
    first = 0
    for batch in batches(data, chunk_size(model, chunk)):
        with evaluating(model), torch.no_grad():
            flat = flatten(gradients(weights, *batch), leading=1)
        check_finite(flat, first)
        yield flat
        first += len(flat)
