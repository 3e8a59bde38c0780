"""Activations of any named layers of any module, in one pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Progress = Callable[[range], Iterator[int]]


@torch.no_grad()
def activations(
    model: nn.Module,
    x: Tensor,
    layers: Sequence[str],
    *,
    chunk: int = 512,
    pool: bool = True,
    dtype: torch.dtype | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Outputs of `layers` for every row of `x`, in evaluation mode, on `x`'s device.

    Args:
        model: any module; its mode is restored afterwards.
        x: inputs, `[n, ...]`; each chunk is moved to the model's device.
        layers: names as in `model.named_modules()`.
        chunk: rows per pass; the result does not depend on it beyond round-off.
        pool: average feature maps `[n, c, h, w]` over positions to `[n, c]`, so that a unit is a
            channel (the convention of the specification of document 1, section 2).
        dtype: store in this precision, for instance `torch.float16` for half the memory.
        prepare: applied to each chunk first, for instance normalisation of raw pixels.
        progress: wraps the range of chunk starts, for instance `tqdm.auto.tqdm`.

    Returns:
        layer name -> activations `[n, d]` (pooled or already flat) or `[n, ...]`.

    Raises:
        ValueError: no rows, no layers, an unknown layer, or one that the forward pass skips.
        TypeError: a layer's output is not one tensor.
    """
    if len(x) == 0 or not layers:
        raise ValueError(f"want at least one row and one layer, got {len(x)} and {len(layers)}")
    first = next(model.parameters(), None)
    device = x.device if first is None else first.device
    starts = range(0, len(x), chunk)
    out: dict[str, Tensor] = {}
    with recorded(model, layers) as seen, evaluating(model):
        for start in progress(starts) if progress else starts:
            rows = x[start : start + chunk].to(device)
            model(prepare(rows) if prepare else rows)
            for name in layers:
                if name not in seen:
                    raise ValueError(f"the forward pass does not reach layer {name!r}")
                h = seen[name]
                h = h.mean(dim=(2, 3)) if pool and h.ndim == 4 else h
                if name not in out:
                    shape = (len(x), *h.shape[1:])
                    out[name] = torch.empty(shape, dtype=dtype or h.dtype, device=x.device)
                out[name][start : start + len(h)] = h
            seen.clear()
    return out


@contextmanager
def recorded(model: nn.Module, layers: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within the context, each forward pass leaves the outputs of `layers` in the dictionary."""
    modules = dict(model.named_modules())
    unknown = [name for name in layers if name not in modules]
    if unknown:
        known = ", ".join(name for name in modules if name)
        raise ValueError(f"no layer {', '.join(unknown)} in this model; it has {known}")
    seen: dict[str, Tensor] = {}

    def record(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                kind = type(output).__name__
                raise TypeError(f"layer {name!r} returns a {kind}, want one tensor")
            seen[name] = output.clone()  # a later ReLU(inplace=True) would overwrite it

        return hook

    handles = [modules[name].register_forward_hook(record(name)) for name in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within, each module's own mode restored after."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
