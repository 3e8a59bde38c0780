"""What a frozen network's probes say of boards, and which way they would like them changed.

Public names: `Reader`, `features`, `features_by_layer`, `require_slope`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.backprop.chess.boards import Boards
from lib.backprop.chess.planes import mover_planes, published_planes
from lib.features import activations, recorded
from lib.probes import Probe

Encode = Callable[[Tensor, Tensor], Tensor]
CHUNK = 512


@dataclass(frozen=True)
class Reader:
    """A network, and one probe or several, each on a layer of it.

    Several probes are read together: the concept counts as present as far as the least convinced
    of them says so (specification of document 5, section 5.5, remedy b).

    Raises:
        ValueError: no probe, or not one layer a probe.
    """

    network: nn.Module
    layers: Sequence[str]  # of each probe
    probes: Sequence[Probe]
    encode: Encode = published_planes  # mover's planes and "White moves" to the network's input

    def __post_init__(self) -> None:
        if not self.probes or len(self.layers) != len(self.probes):
            raise ValueError(
                f"want one layer a probe and at least one of them, got {len(self.layers)} layers "
                f"and {len(self.probes)} probes"
            )

    def each(self, planes: Tensor, white: Tensor) -> Tensor:
        """Logits of all probes for boards given as mover's planes, `[n, k]`; differentiable.

        Raises:
            ValueError: a probe of another layer or width.
        """
        names = list(dict.fromkeys(self.layers))
        with recorded(self.network, names) as seen, _ended_at(self.network, names, seen):
            self.network(self.encode(planes, white))
        found = []
        for layer, probe in zip(self.layers, self.probes, strict=True):
            z = seen[layer].flatten(1)
            if z.shape[1] != probe.weight.shape[-1]:
                raise ValueError(
                    f"layer {layer} has {z.shape[1]} units, the probe {probe.weight.shape[-1]}; "
                    "it was fitted on another layer or network"
                )
            found.append(probe.score(z))
        return torch.stack(found, 1)

    @torch.no_grad()
    def logits(self, boards: Boards) -> Tensor:
        """The least convinced probe's logit, `[n]`."""
        x, white = mover_planes(boards), torch.from_numpy(boards.white.copy())
        parts = zip(x.split(CHUNK), white.split(CHUNK), strict=True)
        return torch.cat([self.each(*part).amin(1) for part in parts])

    def gradient(self, boards: Boards) -> Tensor:
        """Slope of that logit with respect to the mover's planes, `[n, 12, side, side]`.

        Raises:
            ValueError: the logit does not depend differentiably on the planes.
        """
        x = mover_planes(boards).requires_grad_()
        white = torch.from_numpy(boards.white.copy())
        with torch.enable_grad():
            logit = self.each(x, white).amin(1)
            require_slope(logit, self.layers)
            (slope,) = torch.autograd.grad(logit.sum(), x)
        return slope


class _Seen(Exception):
    """All layers that a probe reads have answered: what follows them is not needed."""


@contextmanager
def _ended_at(
    network: nn.Module, names: Sequence[str], seen: Mapping[str, Tensor]
) -> Iterator[None]:
    """Within the context a forward pass ends as soon as `seen` holds all the named layers."""

    def end(module: nn.Module, inputs: object, output: object) -> None:
        if len(seen) == len(names):
            raise _Seen

    handles = [network.get_submodule(name).register_forward_hook(end) for name in names]
    try:
        yield
    except _Seen:
        pass
    finally:
        for handle in handles:
            handle.remove()


def require_slope(logit: Tensor, layers: Sequence[str]) -> None:
    """Refuse a logit that no gradient of the board reaches.

    Raises:
        ValueError: the logit does not require a gradient.
    """
    if not logit.requires_grad:
        raise ValueError(
            f"the probe on {', '.join(dict.fromkeys(layers))} does not depend differentiably on "
            "the board: something before it detaches or rounds. Probe another layer, or search "
            'without a gradient: Beam(order="random")'
        )


def features(
    network: nn.Module, boards: Boards, layer: str, encode: Encode = published_planes
) -> Tensor:
    """Activations of one layer, square by square, `[n, channels * squares]`."""
    return features_by_layer(network, boards, [layer], encode)[layer]


def features_by_layer(
    network: nn.Module, boards: Boards, layers: Sequence[str], encode: Encode = published_planes
) -> dict[str, Tensor]:
    """`features` of several layers from one pass."""
    x = encode(mover_planes(boards), torch.from_numpy(boards.white.copy()))
    found = activations(network, x, layers, pool=False)
    return {layer: z.flatten(1) for layer, z in found.items()}
