"""What the studies of notebook 42 refuse: one ValueError each, and its sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from lib import models
from lib.attribution import convex, mislabels, mismatch, poisoning, pools, refits
from lib.data.base import MissingData, Provenance, Split

RNG = torch.Generator().manual_seed(0)
GREY = torch.randint(0, 17, (120, 4, 4), generator=RNG).float()
DIGIT = torch.arange(120) % 10
POOL = pools.Pool("toy", GREY, DIGIT, 16, Provenance("toy", "a generator", "none", "0" * 64, 120))
BOTTOM = poisoning.Bottom(models.build("mlp", RNG, widths=(16, 8, 2)).double(), 16, (16,))
VICTIM = poisoning.victim(BOTTOM, POOL, torch.arange(60), 0.01)
TARGETS = Split(GREY[60:62].double(), POOL.y[60:62])
X = torch.randn(20, 3, generator=RNG)
FIT = convex.fit_logistic(X, torch.arange(20) % 2, lam=0.1)
RIDGE = convex.fit_ridge(X, X[:, 0], lam=0.1)
ROWS = torch.tensor([[0], [1]])
SWEEP = {"side": 4, "lam": 0.1, "flips": (0.1,), "checks": (0.1,), "n_seeds": 1}
MISMATCH = {"side": 4, "lam": 0.1, "n_draws": 1}
ATTACK = {"counts": (1,), "max_iterations": 1}
BARE = {"n": 50, "n_test": 10, "n_targets": 5, "lam": 0.1}

CASES: dict[str, tuple[Callable[[], object], str]] = {
    "unknown data": (lambda: pools.pool("letters", Path()), "data is digits or mnist"),
    "side that does not divide": (lambda: POOL.inputs(3), "side that divides 4, got 3"),
    "more rows than there are": (lambda: POOL.draw((100, 50), 0), "add up to at most 120"),
    "no rows": (lambda: POOL.draw((0, 50), 0), "sizes from 1"),
    "no flips": (lambda: mislabels.flip(DIGIT, 0.001, 10, 0), "flips some but not all"),
    "all flips": (lambda: mislabels.flip(DIGIT, 1.0, 10, 0), "flips some but not all"),
    "class unknown": (lambda: mislabels.flip(DIGIT, 0.1, 9, 0), "below n_classes = 9"),
    "real labels": (lambda: mislabels.flip(GREY[:, 0, 0], 0.1, 17, 0), "want integer labels"),
    "sweep too large": (
        lambda: mislabels.sweep(POOL, n=100, n_test=50, **SWEEP),
        "add up to at most 120",
    ),
    "odd n": (lambda: mismatch.study(POOL, n=101, n_test=5, **MISMATCH), "want an even n"),
    "subgroup does not fit": (
        lambda: mismatch.study(POOL, n=90, n_test=5, **MISMATCH),
        "at least 96, got 90",
    ),
    "pool too small": (
        lambda: mismatch.study(POOL, n=100, n_test=50, **MISMATCH),
        "want 50 odd and 100 even rows",
    ),
    "nobody is wrong": (
        lambda: mismatch.Mismatch(100, 5, 0.1, (_harmless(),)).median(),
        "no member is predicted wrongly",
    ),
    "labels of another length": (
        lambda: refits.relabelled(FIT, torch.zeros(2, 19)),
        r"want labels \[m, 20\] in \{0, 1\}, got \[2, 19\]",
    ),
    "labels beyond two": (
        lambda: refits.relabelled(FIT, torch.full((2, 20), 2)),
        r"want labels \[m, 20\]",
    ),
    "relabelled ridge": (
        lambda: refits.relabelled(RIDGE, torch.zeros(1, 20)),
        "want a fit of `fit_logistic`",
    ),
    "replaced ridge": (
        lambda: refits.replaced(RIDGE, ROWS, RIDGE.a[ROWS]),
        "want a fit of `fit_logistic`",
    ),
    "inputs without bias": (
        lambda: refits.replaced(FIT, ROWS, X[ROWS]),
        r"inputs \[m, K, 4\], got \[2, 1\] and \[2, 1, 3\]",
    ),
    "row beyond the data": (
        lambda: refits.replaced(FIT, ROWS + 19, FIT.a[ROWS]),
        "rows in 0 .. 19",
    ),
    "no linear layer on top": (
        lambda: poisoning.Bottom(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), 16, (4,)),
        "ends in a linear layer",
    ),
    "rows of other targets": (
        lambda: poisoning.attack(VICTIM, TARGETS, ROWS[:1]),
        r"want rows \[2, K\], half > 0 and step > 0, got \[1, 1\]",
    ),
    "empty box": (lambda: poisoning.attack(VICTIM, TARGETS, ROWS, half=0.0), "half > 0"),
    "boxes without half a level": (
        lambda: poisoning.study(VICTIM, TARGETS, 1.0, boxes=(1.0,), wide=1.0, **ATTACK),
        "want 0.5 and wide = 1.0 among the boxes",
    ),
    "unknown features": (
        lambda: poisoning.prepare(POOL, {"kind": "learned"}, **BARE),
        "bottom is random or trained, got 'learned'",
    ),
}


def _harmless() -> mismatch.Draw:
    none, zero = torch.zeros(5, dtype=torch.bool), torch.zeros(0)
    return mismatch.Draw(
        none, none, none, zero, zero, zero, zero, zero, none[:0], 0.0, 1, zero, 0.0
    )


@pytest.mark.parametrize("name", CASES)
def test_refusal(name: str) -> None:
    call, sentence = CASES[name]
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_absent_mnist_is_said_and_not_replaced(tmp_path) -> None:
    with pytest.raises(MissingData, match="MNIST"):
        pools.pool("mnist", tmp_path)
