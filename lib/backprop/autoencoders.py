"""The autoencoder and the classifier of document 5's image experiments, for 28x28 grey pictures.

The autoencoder takes a picture to `latent` numbers in (0, 1) and back; concepts are maximised in
that space, so that a change stays a picture. The classifier only ever sees reconstructions.

In reading order: `Autoencoder`, `PictureClassifier`, `ReadThrough` (classifier behind the
autoencoder), `initialise`, `fetch_autoencoder` and `fetch_classifier` (trained at most once).

Source: the authors' notebooks by way of specification 4.1 and 4.2. Their framework's "same"
padding is kept to the pixel: with stride 2 it adds a row below and a column to the right (none
above or left), a transposed convolution drops the same row and column, and pooling a side of 7
gives 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import cache
from lib.training import Recipe, train
from lib.training.loop import LOSSES, SCHEDULES

SIDE = 28  # pixels
SPAN = 4 * 4 * 16  # the widest dense layer of the decoder is read as 16 channels of 4x4

Network = TypeVar("Network", bound=nn.Module)


class ConvSame(nn.Conv2d):
    """A 3x3 convolution of stride 2 that halves an even side: padded below and right only."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__(fan_in, fan_out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class ConvTransposeSame(nn.ConvTranspose2d):
    """The adjoint of `ConvSame`: doubles a side."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__(fan_in, fan_out, 3, stride=2)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return super().forward(x)[..., :-1, :-1]


class _Decoder(nn.Sequential):
    def __init__(self, channels: int, latent: int) -> None:
        c = channels
        super().__init__(
            nn.Linear(latent, SPAN),
            nn.SELU(),
            nn.Unflatten(1, (16, 4, 4)),
            nn.ConvTranspose2d(16, c, 4),
            nn.SELU(),
            ConvTransposeSame(c, c),
            nn.SELU(),
            nn.ConvTranspose2d(c, c, 2, stride=2),
            nn.SELU(),
            nn.ConvTranspose2d(c, c, 3, padding=1),
            nn.SELU(),
            nn.Conv2d(c, 1, 3, padding=1),
        )

    def logits(self, z: Tensor) -> Tensor:
        return super().forward(z)

    def forward(self, z: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(z))


class Autoencoder(nn.Module):
    """Pictures `[n, 1, 28, 28]` in [0, 1] to `latent` numbers in (0, 1), and back."""

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        if min(channels, latent) < 1:
            raise ValueError(f"want channels and latent >= 1, got {channels} and {latent}")
        c = channels
        self.latent = latent
        self.encoder = nn.Sequential(
            ConvSame(1, c),
            nn.SELU(),
            nn.MaxPool2d(2),
            nn.Conv2d(c, c, 3, padding=1),
            nn.SELU(),
            nn.MaxPool2d(2, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(16 * c, SPAN),
            nn.SELU(),
            nn.Linear(SPAN, latent),
            nn.Sigmoid(),
        )
        self.decoder = _Decoder(c, latent)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the reconstructed pixels, `[n, 1, 28, 28]`: what training compares."""
        return self.decoder.logits(self.encoder(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """The reconstructed picture, pixels in (0, 1)."""
        return self.decoder(self.encoder(x))


class PictureClassifier(nn.Sequential):
    """Three 3x3 convolutions of 16 channels; `conv3` has 256 units, the probed layer."""

    def __init__(self, n_out: int = 10) -> None:
        super().__init__()
        self.add_module("conv1", nn.Sequential(ConvSame(1, 16), nn.SELU()))
        self.add_module("pool1", nn.MaxPool2d(2))
        self.add_module("conv2", nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.SELU()))
        self.add_module("pool2", nn.MaxPool2d(2, ceil_mode=True))
        self.add_module("conv3", nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.SELU()))
        self.add_module("pool3", nn.MaxPool2d(2))
        self.add_module("flatten", nn.Flatten())
        # a SELU on the outputs, as in the authors' notebook
        self.add_module("out", nn.Sequential(nn.Linear(64, n_out), nn.SELU()))


class ReadThrough(nn.Module):
    """The classifier as it is used: on the autoencoder's reconstruction of its input."""

    def __init__(self, autoencoder: Autoencoder, classifier: PictureClassifier) -> None:
        super().__init__()
        self.autoencoder, self.classifier = autoencoder, classifier
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.autoencoder.reconstruct(x))


@torch.no_grad()
def initialise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw all weights anew as the authors' framework does: Glorot's uniform, zero biases."""
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            a, b = module.weight.shape[:2]
            reach = (6.0 / ((a + b) * module.weight[0, 0].numel())) ** 0.5
            module.weight.uniform_(-reach, reach, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
    return model


def fetch_autoencoder(
    x: Tensor, recipe: Recipe, *, channels: int, latent: int, seed: int, device: str = "cpu"
) -> Autoencoder:
    """Train an autoencoder on pictures `[n, 1, 28, 28]`, or take it from the cache.

    Returns:
        The network on `device`, in evaluation mode, its weights frozen.
    """
    model = Autoencoder(channels, latent)
    config = {"channels": channels, "latent": latent}
    return _fetched(model, config, x, x, recipe, seed, device)


def fetch_classifier(
    x: Tensor, y: Tensor, recipe: Recipe, *, seed: int, device: str = "cpu"
) -> PictureClassifier:
    """Train the classifier on reconstructions `x`, or take it from the cache; frozen."""
    return _fetched(PictureClassifier(), {}, x, y, recipe, seed, device)


def _fetched(
    model: Network,
    spec: Mapping[str, object],
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    seed: int,
    device: str,
) -> Network:
    config = {
        **spec,
        "recipe": asdict(recipe),
        "seed": seed,
        "data": cache.state_hash({"x": x, "y": y}),
    }

    def build() -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        initialise(model.cpu(), generator)
        model.to(device)
        train(model, x, y, recipe, generator=generator)
        return {name: weight.contiguous() for name, weight in model.state_dict().items()}

    parts: list[Callable[..., object]] = [
        type(model),
        initialise,
        train,
        LOSSES[recipe.loss],
        SCHEDULES[recipe.schedule],
    ]
    state = cache.fetch(f"model-{type(model).__name__.lower()}", config, build, code=parts)
    model.load_state_dict(state)
    return model.to(device).eval().requires_grad_(False)
