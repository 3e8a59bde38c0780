"""What every gradient function shares: the flat order of weights, chunks of data, eval mode."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Data = Sequence[Tensor]  # (x [n, ...], y [n], ...): rows are examples
Block = Sequence[str] | None  # prefixes of parameter names; None is every parameter


def select(model: nn.Module, block: Block = None) -> dict[str, Tensor]:
    """The weights of a block, in the flat order: ``named_parameters()``, each flattened.

    Args:
        model: any module.
        block: names of parameters or of modules that hold them (``"layer3"``, ``"out.bias"``).

    Returns:
        Name to detached weight; p is the sum of their sizes.

    Raises:
        ValueError: the model has no parameters, or a name of ``block`` is none of its.
    """
    known = {name: weight.detach() for name, weight in model.named_parameters()}
    if not known:
        raise ValueError("want a model with parameters, got one without any")
    if block is None:
        return known
    wanted = [block] if isinstance(block, str) else list(block)
    for name in wanted:
        if not any(_within(parameter, name) for parameter in known):
            raise ValueError(
                f"no parameter or module {name!r}; known parameters: {', '.join(known)}"
            )
    if not wanted:
        raise ValueError("block is empty; name parameters or modules, or give None for all")
    return {n: w for n, w in known.items() if any(_within(n, name) for name in wanted)}


def size(weights: dict[str, Tensor]) -> int:
    """p, the number of weights."""
    return sum(weight.numel() for weight in weights.values())


def slices(weights: dict[str, Tensor]) -> dict[str, slice]:
    """Where each parameter lies in a flat gradient."""
    found, start = {}, 0
    for name, weight in weights.items():
        found[name] = slice(start, start + weight.numel())
        start += weight.numel()
    return found


def flatten(tensors: dict[str, Tensor], leading: int = 0) -> Tensor:
    """Concatenate tensors in their order, keeping ``leading`` axes: ``[..., p]``."""
    return torch.cat([tensor.flatten(leading) for tensor in tensors.values()], dim=-1)


def unflatten(flat: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Cut a flat vector ``[p]`` into tensors of the shapes of ``weights``."""
    return {name: flat[where].view_as(weights[name]) for name, where in slices(weights).items()}


def batches(data: Data, chunk: int) -> Iterator[tuple[Tensor, ...]]:
    """Rows of every tensor of ``data``, ``chunk`` at a time.

    Raises:
        ValueError: ``data`` is not tensors of one length n >= 1, or ``chunk`` < 1.
    """
    n = check_data(data, chunk)
    return (tuple(t[i : i + chunk] for t in data) for i in range(0, n, chunk))


def chunk_size(model: nn.Module, chunk: int | None) -> int:
    """``chunk`` itself, or for None 16 to 512 examples: about 2^21 numbers of the model's size.

    Fewer examples of a small model spend their time between operations, and more of a large one
    gain nothing (measured).
    """
    return min(512, max(16, 2**21 // size(select(model)))) if chunk is None else chunk


def check_data(data: Data, chunk: int = 1) -> int:
    """The number of examples of ``data``; refuses what is not tensors of one length."""
    if isinstance(data, Tensor) or not data or not all(isinstance(t, Tensor) for t in data):
        raise ValueError("want data (x [n, ...], y [n], ...), a tuple of tensors")
    lengths = [len(t) if t.ndim else 0 for t in data]
    if len(set(lengths)) > 1 or lengths[0] < 1:
        raise ValueError(f"want tensors of one length n >= 1 as data, got lengths {lengths}")
    if chunk < 1:
        raise ValueError(f"want chunk >= 1, got {chunk}")
    return lengths[0]


def check_finite(gradients: Tensor, first: int, what: str = "gradient") -> None:
    """Refuse rows ``[b, ...]`` with NaN or infinity, naming the first by its index in the data."""
    totals = gradients.flatten(1).sum(1)
    if not totals.isfinite().all():  # a sum of finite numbers may overflow: look again
        bad = ~gradients.flatten(1).isfinite().all(1)
        if bad.any():
            raise ValueError(
                f"the {what} of example {first + int(bad.nonzero()[0])} holds NaN or infinity; "
                "look at its input and at the model's weights"
            )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside (dropout off, batch norm by its running statistics), then as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _within(parameter: str, name: str) -> bool:
    return name in ("", parameter) or parameter.startswith(f"{name}.")  # "" is the model itself
