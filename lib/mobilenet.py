"""MobileNetV2 without batch normalisation: what is left when it is folded into the convolutions.

A network that is published for small machines comes so, and is fine-tuned so: batch statistics
would undo what its biases say. Every convolution has a bias; layers carry torchvision's names
(`features.18`, `features.14.conv.0`); convolutions of stride 2 pad below and on the right alone,
as the authors' software does for sides that 32 divides.

Public names: `MobileNetV2`, `folded`.

Source: Sandler et al. 2018, table 2 (arXiv 1801.04381).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# factor of the expansion, channels, blocks, stride of the first block
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, LAST = 32, 1280  # channels of the first and of the last convolution
SIDES = 32  # five halvings


class _Conv(nn.Conv2d):
    """A convolution that keeps the resolution, or halves it with zeros below and on the right."""

    def __init__(self, fan_in: int, fan_out: int, side: int, stride: int, groups: int = 1) -> None:
        padding = side // 2 if stride == 1 else 0
        super().__init__(fan_in, fan_out, side, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)) if self.stride == (2, 2) else x)


class _Block(nn.Module):
    """Expansion, one filter a channel, projection without activation; shortcut where it fits."""

    def __init__(self, fan_in: int, fan_out: int, stride: int, factor: int) -> None:
        super().__init__()
        width = factor * fan_in
        parts: list[nn.Module] = []
        if factor > 1:
            parts.append(nn.Sequential(_Conv(fan_in, width, 1, 1), nn.ReLU6()))
        parts.append(nn.Sequential(_Conv(width, width, 3, stride, groups=width), nn.ReLU6()))
        parts.append(_Conv(width, fan_out, 1, 1))
        self.conv = nn.Sequential(*parts)
        self.adds = stride == 1 and fan_in == fan_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.adds else self.conv(x)


class MobileNetV2(nn.Module):
    """Images `[n, 3, h, w]` from -1 to 1, with sides that 32 divides, to `[n, n_out]` logits."""

    def __init__(self, n_out: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Sequential(_Conv(3, STEM, 3, 2), nn.ReLU6())]
        fan_in = STEM
        for factor, width, n_blocks, first in STAGES:
            for k in range(n_blocks):
                layers.append(_Block(fan_in, width, first if k == 0 else 1, factor))
                fan_in = width
        layers.append(nn.Sequential(_Conv(fan_in, LAST, 1, 1), nn.ReLU6()))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(LAST, n_out)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[2] % SIDES or x.shape[3] % SIDES:
            raise ValueError(
                f"want images [n, 3, h, w] with sides that {SIDES} divides, got {list(x.shape)}; "
                "resize them"
            )
        x = x.contiguous(memory_format=torch.channels_last)  # twice as fast on a processor
        return self.classifier(self.features(x).mean((2, 3)))


@torch.no_grad()
def folded(model: nn.Module) -> dict[str, Tensor]:
    """The state of `MobileNetV2` that computes what torchvision's does in evaluation mode.

    Args:
        model: torchvision's `mobilenet_v2`, or the same with other padding and activations, as
            `lib.data.imagenet.load_network` gives it.

    Raises:
        ValueError: another network.
    """
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    last = [m for m in model.modules() if isinstance(m, nn.Linear)]
    with torch.device("meta"):
        own = MobileNetV2(last[0].out_features if last else 1)
    names = [name for name, m in own.named_modules() if isinstance(m, nn.Conv2d)]
    if not len(names) == len(convs) == len(norms) or len(last) != 1:
        raise ValueError(
            f"want a MobileNetV2 of {len(names)} convolutions with a batch norm each and one "
            f"linear layer, got {len(convs)}, {len(norms)} and {len(last)}"
        )
    state = {"classifier.weight": last[0].weight, "classifier.bias": last[0].bias}
    for name, conv, norm in zip(names, convs, norms, strict=True):
        assert norm.running_mean is not None  # it keeps statistics
        assert norm.running_var is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        state[f"{name}.weight"] = conv.weight * scale[:, None, None, None]
        state[f"{name}.bias"] = norm.bias - norm.running_mean * scale
    wanted = own.state_dict()
    differ = [name for name, value in state.items() if value.shape != wanted[name].shape]
    if differ:
        raise ValueError(f"{differ[0]} has another shape than that of a MobileNetV2 of width 1")
    return {name: state[name].detach().clone().contiguous() for name in wanted}
