"""The parameters before each of several layers, and projections of gradients in them.

Document 1, method: a concept read at a layer depends on the parameters up to that layer alone.
One backward pass a checkpoint serves every layer: parameters are grouped by the layers that
depend on them, and each group has its own projection.

Public names: `depends`, `Prefixes`, `Reader`, `leaves`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lib import features, gradients
from lib.attribution.trak import Projection


def depends(model: nn.Module, x: Tensor, layer: str) -> list[str]:
    """Names of the parameters that the output of `layer` depends on, in the flat order.

    Found by a backward pass of the rows `x`, whatever the network looks like.
    """
    with features.recorded(model, [layer]) as seen, leaves(model) as own:
        functional_call(model, own, (x,))
        total = seen[layer].sum()
        if not total.requires_grad:
            raise ValueError(f"layer {layer!r} depends on no parameter; choose a later one")
        found = torch.autograd.grad(total, list(own.values()), allow_unused=True)
    return [name for name, slope in zip(own, found, strict=True) if slope is not None]


class Prefixes:
    """Projections of gradients with respect to the parameters before each of several layers.

    Parameters are grouped by the set of layers that depend on them; a group has a projection of
    its own to k numbers, and the features of a layer are the sum over its groups. So features of
    all layers come from the gradients of one backward pass, and each equals a projection of the
    layer's whole prefix, with one and the same matrix for training examples and concept images.
    """

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        layers: Sequence[str],
        *,
        k: int | None,
        seed: int,
        projection: Projection = gradients.SJLT,
        block: Sequence[str] | None = None,
    ) -> None:
        """Find the groups.

        Args:
            model, x: a network of the architecture and a few rows of input.
            layers: names of modules.
            k: features; None keeps gradients as they are.
            seed: of the projections; each group and checkpoint has its own.
            projection: called as `projection(p, k, seed=..., device=...)`.
            block: names of parameters or modules that serve every layer alike, `("",)` for all
                parameters; None is each layer's own prefix.
        """
        if not layers:
            raise ValueError("want at least one layer to read concepts from, got none")
        own = {
            layer: list(gradients.select(model, block)) if block else depends(model, x[:2], layer)
            for layer in layers
        }
        known = gradients.select(model)
        self.names = [name for name in known if any(name in names for names in own.values())]
        chosen = {name: known[name] for name in self.names}
        columns: dict[tuple[str, ...], list[slice]] = {}
        for name, where in gradients.slices(chosen).items():
            readers = tuple(layer for layer in layers if name in own[layer])
            columns.setdefault(readers, []).append(where)
        self.layers, self.k = tuple(layers), k
        self.sizes = {x: sum(chosen[name].numel() for name in own[x]) for x in layers}
        device = next(iter(chosen.values())).device
        self._groups = []
        for number, (readers, parts) in enumerate(columns.items()):
            p = sum(part.stop - part.start for part in parts)
            how = projection(p, k, seed=seed + 7919 * number, device=device) if k else None
            self._groups.append((readers, parts, how))

    def project(self, grads: Tensor, model_id: int) -> dict[str, Tensor]:
        """Features `[b, k]` of every layer from gradients `[b, p]` of `names`, in their order."""
        parts: dict[str, list[Tensor]] = {layer: [] for layer in self.layers}
        for readers, columns, projector in self._groups:
            own = torch.cat([grads[:, c] for c in columns], 1)
            part = own if projector is None else projector.project(own, model_id)
            for layer in readers:
                parts[layer].append(part)
        join = torch.cat if self.k is None else _total
        return {layer: join(found, 1) for layer, found in parts.items()}


class Reader(nn.Module):
    """A network that returns the pooled activations of one of its layers."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        with features.recorded(self.model, [self.layer]) as seen:
            self.model(x)
        h = seen[self.layer]
        return h.mean(dim=(2, 3)) if h.ndim == 4 else h


@contextmanager
def leaves(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The parameters as leaves of a new graph, with the model in evaluation mode."""
    with features.evaluating(model), torch.enable_grad():
        yield {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}


def _total(parts: Sequence[Tensor], _: int) -> Tensor:
    return reduce(torch.add, parts)
