"""The networks that the notebooks train: MLP, small CNN, ResNets, MobileNetV2, two for text.

`build` makes one by name with every weight drawn from the given generator, so that a seed means
the same network alone, in a stack, or on another device. Layers carry the names that papers use
(`hidden1`, `layer2.0.conv1`), for `lib.features`.

Sources: ResNet-18 and -20 follow the CIFAR variants of residual networks (3x3 stem, no pooling;
ResNet-20 with parameter-free shortcuts); ResNet-9 follows the description of the network of the
TRAK and datamodels studies (document 4; specification section 7.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.alignment import Alignment
from lib.mobilenet import MobileNetV2
from lib.transformer import MaskedWord, Transformer

ACTIVATIONS = {"relu": nn.ReLU, "selu": nn.SELU}


def build(
    name: str,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    **spec: object,
) -> nn.Module:
    """A network with weights drawn from `generator`, in train mode on `device`.

    Args:
        name: a key of `NETWORKS`.
        generator: on the CPU, so that a seed gives the same weights on every device.
        **spec: arguments of the network's class, for instance `widths` of "mlp".

    Raises:
        ValueError: unknown name.
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(NETWORKS)}")
    with torch.device("meta"):  # the constructors would draw from the global generator
        model = NETWORKS[name](**spec)
    return initialise(model.to_empty(device="cpu"), generator).to(device)


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw all weights anew: He's normal initialisation, zero biases.

    LeCun's, of half the variance, where units keep their scale by themselves (SELU, layer
    normalisation); word embeddings are drawn small, so that training gives them their meaning.
    """
    gain = 1.0 if any(isinstance(m, (nn.SELU, nn.LayerNorm)) for m in model.modules()) else 2.0
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_in = module.weight[0].numel()
            module.weight.normal_(0.0, (gain / fan_in) ** 0.5, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0.0, 0.1, generator=generator)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            module.reset_parameters()
    return model


class MLP(nn.Sequential):
    """Fully connected network; `hidden<i>` gives the i-th hidden activation, `out` the output."""

    def __init__(self, widths: Sequence[int], activation: str = "relu") -> None:
        super().__init__()
        if len(widths) < 2 or activation not in ACTIVATIONS:
            raise ValueError(
                f"want at least 2 widths and an activation of {sorted(ACTIVATIONS)}, "
                f"got {tuple(widths)} and {activation!r}"
            )
        for i, (fan_in, fan_out) in enumerate(pairwise(widths[:-1]), 1):
            hidden = nn.Sequential(nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]())
            self.add_module(f"hidden{i}", hidden)
        self.add_module("out", nn.Linear(widths[-2], widths[-1]))


class SmallCNN(nn.Sequential):
    """Two 3x3 convolutions with group normalisation, then a linear layer: no running statistics."""

    def __init__(
        self,
        in_channels: int = 1,
        size: int = 8,
        channels: Sequence[int] = (8, 16),
        n_out: int = 10,
    ) -> None:
        super().__init__()
        side, fan_in = size, in_channels
        for i, width in enumerate(channels, 1):
            self.add_module(
                f"conv{i}",
                nn.Sequential(
                    nn.Conv2d(fan_in, width, 3, padding=1),
                    nn.GroupNorm(2, width),
                    nn.ReLU(),
                ),
            )
            self.add_module(f"pool{i}", nn.MaxPool2d(2))
            side, fan_in = side // 2, width
        self.add_module("flatten", nn.Flatten())
        self.add_module("out", nn.Linear(fan_in * side * side, n_out))


def _conv_bn(i: int, o: int, k: int = 3, stride: int = 1, padding: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(i, o, k, stride, padding, bias=False), nn.BatchNorm2d(o), nn.ReLU()
    )


class _Sum(nn.Module):
    """`x + body(x)`."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class _GlobalMax(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=(2, 3))


class ResNet9(nn.Sequential):
    """Nine-layer network for 32x32 images; 2,274,880 parameters with 10 classes."""

    def __init__(self, n_out: int = 10, logit_scale: float = 0.2) -> None:
        super().__init__()
        self.add_module("stem", _conv_bn(3, 64))
        self.add_module("down1", _conv_bn(64, 128, k=5, stride=2, padding=2))
        self.add_module("res1", _Sum(nn.Sequential(_conv_bn(128, 128), _conv_bn(128, 128))))
        self.add_module("down2", nn.Sequential(_conv_bn(128, 256), nn.MaxPool2d(2)))
        self.add_module("res2", _Sum(nn.Sequential(_conv_bn(256, 256), _conv_bn(256, 256))))
        self.add_module("head", nn.Sequential(_conv_bn(256, 128, padding=0), _GlobalMax()))
        self.add_module("out", nn.Linear(128, n_out, bias=False))
        self.logit_scale = logit_scale

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.logit_scale


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut.

    The shortcut keeps every second pixel and adds zero channels (`padded`, ResNet-20) or is a 1x1
    convolution (ResNet-18).
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int, padded: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(fan_in, fan_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.conv2 = nn.Conv2d(fan_out, fan_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(fan_out)
        self.stride, self.n_new = stride, fan_out - fan_in
        self.shortcut: nn.Module = nn.Identity()
        if (stride != 1 or self.n_new) and not padded:
            self.shortcut = nn.Sequential(
                nn.Conv2d(fan_in, fan_out, 1, stride, bias=False),
                nn.BatchNorm2d(fan_out),
            )
            self.stride, self.n_new = 1, 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = self.shortcut(x)[:, :, :: self.stride, :: self.stride]
        half = self.n_new // 2
        return F.relu(h + F.pad(x, (0, 0, 0, 0, half, self.n_new - half)))


class _CifarResNet(nn.Module):
    def __init__(self, widths: Sequence[int], n_blocks: int, padded: bool, n_out: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.n_stages = len(widths)
        fan_in = widths[0]
        for i, width in enumerate(widths, 1):
            blocks = []
            for k in range(n_blocks):
                stride = 2 if i > 1 and k == 0 else 1
                blocks.append(_Block(fan_in, width, stride, padded))
                fan_in = width
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
        self.fc = nn.Linear(fan_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(1, self.n_stages + 1):
            x = self.get_submodule(f"layer{i}")(x)
        return self.fc(x.mean(dim=(2, 3)))


class ResNet20(_CifarResNet):
    """CIFAR ResNet-20: three stages of three blocks with 16, 32 and 64 channels."""

    def __init__(self, n_out: int = 10) -> None:
        super().__init__((16, 32, 64), n_blocks=3, padded=True, n_out=n_out)


class ResNet18(_CifarResNet):
    """CIFAR ResNet-18: four stages of two blocks with 64 to 512 channels."""

    def __init__(self, n_out: int = 10) -> None:
        super().__init__((64, 128, 256, 512), n_blocks=2, padded=False, n_out=n_out)


class SceneResNet(nn.Module):
    """Residual network for 48x48 images: one block a stage, 16, 32, 64 and 96 channels.

    The last stage keeps the resolution of the one before, 6x6; 224 thousand parameters with ten
    classes (specification of document 2, section 4.6).
    """

    def __init__(self, n_out: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 5, 2, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _Block(16, 16, 1, padded=False)
        self.layer2 = _Block(16, 32, 2, padded=False)
        self.layer3 = _Block(32, 64, 2, padded=False)
        self.layer4 = _Block(64, 96, 1, padded=False)
        self.fc = nn.Linear(96, n_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean(dim=(2, 3)))


NETWORKS: dict[str, type[nn.Module]] = {
    "mlp": MLP,
    "cnn": SmallCNN,
    "resnet9": ResNet9,
    "resnet18": ResNet18,
    "resnet20": ResNet20,
    "scene_resnet": SceneResNet,
    "mobilenet_v2": MobileNetV2,
    "transformer": Transformer,
    "alignment": Alignment,
    "masked_word": MaskedWord,
}


def n_parameters(model: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
