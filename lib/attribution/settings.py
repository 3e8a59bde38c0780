"""The settings on which attribution methods are compared: data, network, recipe, targets.

Specification sections 7.1 (sizes for a processor) and 6.2 (the published MNIST benchmark).

Public names: `digits_mlp`, `digits_cnn`, `cifar2_mini`, `mnist_lr`, `mnist_mlp`.
"""

from __future__ import annotations

from lib.attribution.truth import Setting
from lib.data import digits
from lib.data.base import Split
from lib.training import Recipe

N_DIGIT_TARGETS = 200


def digits_mlp() -> Setting:
    """DIGITS-MLP: 1,000 digits, a network 64-64-10 of 4,810 weights, the next 200 as targets.

    Source: specification section 7.1.
    """
    train, targets = _digits()
    recipe = Recipe(epochs=30, batch_size=50, lr=0.1, weight_decay=5e-4)
    return Setting("digits-mlp", "mlp", {"widths": (64, 64, 10)}, recipe, train, targets)


def _digits() -> tuple[Split, Split]:
    data = digits.load(seed=0)
    probe = data.probe
    return data.train, Split(probe.x[:N_DIGIT_TARGETS], probe.y[:N_DIGIT_TARGETS])
