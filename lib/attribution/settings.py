"""The settings on which attribution methods are compared: data, network, recipe, targets.

Specification sections 7.1 (sizes for a processor) and 6.2 (the published MNIST benchmark).

Public names: `digits_mlp`, `digits_cnn`, `digits_deep`, `cifar2_mini`, `cifar10_mini`,
`cifar_pixels`, `mnist_lr`, `mnist_mlp`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.attribution.truth import Setting
from lib.data import cifar10, digits, mnist
from lib.data.base import Split
from lib.training import Recipe

N_DIGIT_TARGETS = 200
CAT, DOG = 3, 5
N_CIFAR2, N_CIFAR2_TARGETS = 2000, 300
N_CIFAR10, N_CIFAR10_TEST = 5000, 2000
N_MNIST, N_MNIST_TARGETS = 5000, 500
MNIST_MEAN, MNIST_SD = 0.1307, 0.3081  # of the training pixels


def digits_mlp() -> Setting:
    """DIGITS-MLP: 1,000 digits, a network 64-64-10 of 4,810 weights, the next 200 as targets.

    Source: specification section 7.1.
    """
    train, targets = _digits()
    recipe = Recipe(epochs=30, batch_size=50, lr=0.1, weight_decay=5e-4)
    return Setting("digits-mlp", "mlp", {"widths": (64, 64, 10)}, recipe, train, targets)


def digits_cnn() -> Setting:
    """DIGITS-CNN: the same rows as 8x8 images, two convolutions of 8 and 16 channels.

    Source: specification section 7.1, which leaves the recipe open: 20 epochs of the same.
    """
    train, targets = (Split(s.x.unflatten(1, (1, 8, 8)), s.y) for s in _digits())
    recipe = Recipe(epochs=20, batch_size=50, lr=0.1, weight_decay=5e-4)
    return Setting("digits-cnn", "cnn", {"channels": (8, 16)}, recipe, train, targets, stack=1)


def cifar2_mini(root: Path | None = None) -> Setting:
    """CIFAR-2-mini: 2,000 cats and dogs of 16x16 pixels, 300 test images as targets.

    A network of three convolutions with group normalisation and 19,538 weights, 10 epochs.

    Args:
        root: where CIFAR-10 is; default DATA_ROOT.

    Source: specification section 7.1, which leaves the recipe open. Both classes have the same
    number of rows: the first of each in the official order.
    """
    data = cifar10.load(root)
    recipe = Recipe(10, batch_size=50, lr=0.1, weight_decay=5e-4, schedule="triangular")
    return Setting(
        "cifar2-mini",
        "cnn",
        {"in_channels": 3, "size": 16, "channels": (16, 32, 48), "n_out": 2},
        recipe,
        _cats_and_dogs(data.train, N_CIFAR2),
        _cats_and_dogs(data.test, N_CIFAR2_TARGETS),
        stack=1,
    )


def digits_deep(first_target: int = 0) -> Setting:
    """The networks of document 1's part: 1,000 digits, 64-32-32-10, the last 397 as targets.

    Args:
        first_target: leave out the targets before it, which another use has.

    Source: specification of document 1, section 2.
    """
    data = digits.load(seed=0)
    recipe = Recipe(epochs=30, batch_size=50, lr=0.1, weight_decay=5e-4)
    spec = {"widths": (64, 32, 32, 10)}
    targets = Split(data.test.x[first_target:], data.test.y[first_target:])
    return Setting("digits-deep", "mlp", spec, recipe, data.train, targets)


def cifar10_mini(root: Path | None = None) -> Setting:
    """CIFAR-10-mini: 5,000 images of 16x16 pixels, ten classes, 2,000 test images as targets.

    The network of `cifar2_mini` with ten outputs; the first 500 images of each class.

    Args:
        root: where CIFAR-10 is; default DATA_ROOT.

    Source: specification of document 1, section 7 (CIFAR-10 5k subset, 16x16 network).
    """
    data = cifar10.load(root)
    train, classes = data.train, range(10)
    rows = torch.cat([(train.y == c).nonzero()[: N_CIFAR10 // 10, 0] for c in classes])
    rows = rows.sort().values
    recipe = Recipe(10, batch_size=50, lr=0.1, weight_decay=5e-4, schedule="triangular")
    test = data.test
    return Setting(
        "cifar10-mini",
        "cnn",
        {"in_channels": 3, "size": 16, "channels": (16, 32, 48), "n_out": 10},
        recipe,
        Split(cifar_pixels(train.x[rows]), train.y[rows]),
        Split(cifar_pixels(test.x[:N_CIFAR10_TEST]), test.y[:N_CIFAR10_TEST]),
        stack=1,
    )


def cifar_pixels(images: Tensor) -> Tensor:
    """CIFAR images `[n, 3, 32, 32]` standardised, 2x2 pixels averaged: `[n, 3, 16, 16]`."""
    return F.avg_pool2d(cifar10.standardise(images), 2)


def mnist_lr(root: Path | None = None) -> Setting:
    """Multinomial logistic regression on 5,000 MNIST digits, 500 targets.

    Source: specification section 6.2; the batch of 64 is that of the published benchmark. Its
    "7,840 weights" leave out the ten biases.
    """
    recipe = Recipe(epochs=20, batch_size=64, lr=0.01, momentum=0.0, schedule="constant")
    return _mnist("mnist-lr", (784, 10), recipe, root)


def mnist_mlp(root: Path | None = None) -> Setting:
    """A network 784-128-64-10 of 109,386 weights on 5,000 MNIST digits, 500 targets.

    Source: specification section 6.2; the batch of 64 is that of the published benchmark.
    """
    recipe = Recipe(epochs=50, batch_size=64, lr=0.01, momentum=0.9, schedule="constant")
    return _mnist("mnist-mlp", (784, 128, 64, 10), recipe, root)


def _digits() -> tuple[Split, Split]:
    data = digits.load(seed=0)
    probe = data.probe
    return data.train, Split(probe.x[:N_DIGIT_TARGETS], probe.y[:N_DIGIT_TARGETS])


def _cats_and_dogs(images: Split, n: int) -> Split:
    """The first n/2 of each, standardised, 2x2 pixels averaged; cats are class 0."""
    rows = torch.cat([(images.y == label).nonzero()[: n // 2, 0] for label in (CAT, DOG)])
    rows = rows.sort().values
    return Split(cifar_pixels(images.x[rows]), (images.y[rows] == DOG).long())


def _mnist(name: str, widths: tuple[int, ...], recipe: Recipe, root: Path | None) -> Setting:
    data = mnist.load(root)
    train, targets = _pixels(data.train, N_MNIST), _pixels(data.test, N_MNIST_TARGETS)
    return Setting(name, "mlp", {"widths": widths}, recipe, train, targets)


def _pixels(images: Split, n: int) -> Split:
    """The first n images as standardised rows."""
    return Split((images.x[:n].flatten(1) / 255 - MNIST_MEAN) / MNIST_SD, images.y[:n])
