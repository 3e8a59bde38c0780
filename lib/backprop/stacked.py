"""Concept maximisation in many networks at once: a stack of models and of their probes.

Rows of a batch are ordered network by network, `[N * n, ...]`, and each network reads its own n
rows; since `maximise` treats every row on its own, one call then explains N networks. Weights are
buffers, so that they are seen to be frozen.

Public names: `StackedPrefix`, `StackedProbe`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lib.features import recorded
from lib.training.stacked import build_skeleton


class StackedPrefix(nn.Module):
    """Every network of a stack up to a named layer: inputs `[N * n, ...]` -> `[N * n, d]`."""

    def __init__(
        self, name: str, spec: Mapping[str, object], state: Mapping[str, Tensor], layer: str
    ) -> None:
        super().__init__()
        self.layer = layer
        self.names = list(state)
        for i, key in enumerate(self.names):
            self.register_buffer(f"weight{i}", state[key].detach())
        skeleton = build_skeleton(name, spec)
        with recorded(skeleton, [layer]):  # refuses an unknown layer now rather than later
            pass
        self._skeleton = (skeleton,)  # in a tuple: it has no weights to show as ours
        self.n_models = len(state[self.names[0]])
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        skeleton = self._skeleton[0]

        def one(weights: dict[str, Tensor], rows: Tensor) -> Tensor:
            with recorded(skeleton, [self.layer]) as seen:
                functional_call(skeleton, weights, (rows,))
                return seen[self.layer].flatten(1)

        state = {key: self.get_buffer(f"weight{i}") for i, key in enumerate(self.names)}
        return vmap(one)(state, x.unflatten(0, (self.n_models, -1))).flatten(0, 1)


class StackedProbe(nn.Module):
    """One linear probe a network: activations `[N * n, d]` -> pre-activations `[N * n]`."""

    weight: Tensor  # [N, d]
    bias: Tensor  # [N]

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(
                f"want weight [N, d] and bias [N], got {tuple(weight.shape)}, {tuple(bias.shape)}"
            )
        self.register_buffer("weight", weight.detach())
        self.register_buffer("bias", bias.detach())
        self.eval()

    def forward(self, h: Tensor) -> Tensor:
        stacked = h.unflatten(0, (len(self.weight), -1))
        scores = torch.einsum("mnd,md->mn", stacked, self.weight) + self.bias[:, None]
        return scores.flatten()
