"""What training refuses: recipes, data and losses that cannot be, one sentence each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lib import models, training
from lib.training import Recipe

SPEC = {"widths": (4, 3)}
X = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(10) % 3
HOW = Recipe(1, 5, 0.1)
NAN, INF = X.clone(), X.clone()
NAN[7, 2], INF[3, 0] = float("nan"), float("inf")


def train(x: torch.Tensor = X, y: torch.Tensor = Y, how: Recipe = HOW) -> object:
    model = models.build("mlp", torch.Generator().manual_seed(0), **SPEC)
    return training.train(model, x, y, how, generator=torch.Generator())


def stack(x: torch.Tensor = X, y: torch.Tensor = Y, how: Recipe = HOW, **kw: object) -> object:
    return training.train_stacked("mlp", SPEC, x, y, how, **{"seeds": [0, 1], **kw})  # type: ignore[arg-type]


HOT = Recipe(3, 5, 1e38, schedule="constant")
CASES: dict[str, tuple[Callable[[], object], str]] = {
    "optimizer": (lambda: Recipe(1, 1, 0.1, optimizer="lion"), "one of sgd, adam; got 'lion'"),
    "schedule": (
        lambda: Recipe(1, 1, 0.1, schedule="step"),
        "schedule is one of constant, linear, cosine, triangular, milestones; got 'step'",
    ),
    "loss": (lambda: Recipe(1, 1, 0.1, loss="hinge"), "loss is one of cross_entropy, mse"),
    "augment": (lambda: Recipe(1, 1, 0.1, augment="mixup"), "augment is one of none, flip_crop"),
    "precision": (lambda: Recipe(1, 1, 0.1, precision="half"), "one of float32, bfloat16"),
    "epochs": (lambda: Recipe(0, 1, 0.1), "want epochs and batch_size >= 1, lr > 0"),
    "batch": (lambda: Recipe(1, 0, 0.1), "want epochs and batch_size >= 1, lr > 0"),
    "lr": (lambda: Recipe(1, 1, float("nan")), "want epochs and batch_size >= 1, lr > 0"),
    "peak": (lambda: Recipe(1, 1, 0.1, peak=1.0), "0 < peak < 1"),
    "rows": (lambda: train(y=Y[:-1]), "want as many rows as labels and at least one, got 10, 9"),
    "no rows": (lambda: train(x=X[:0], y=Y[:0]), "at least one, got 0, 0"),
    "NaN": (lambda: train(x=NAN), "x holds NaN or infinity, first in row 7"),
    "infinity": (lambda: train(x=INF), "x holds NaN or infinity, first in row 3"),
    "loss not finite": (lambda: train(how=HOT), r"the loss is (nan|inf) after epoch \d; lower"),
    "stack rows": (lambda: stack(y=Y[:-1]), "want as many rows as labels"),
    "stack NaN": (lambda: stack(x=NAN), "x holds NaN or infinity, first in row 7"),
    "stack loss": (lambda: stack(how=HOT), r"the loss is (nan|inf) after epoch \d; lower the lr"),
    "one subset": (lambda: stack(subsets=torch.arange(5)), r"want subsets \[N, m\] and labels"),
    "subsets": (
        lambda: stack(subsets=torch.zeros(3, 5).long()),
        r"for N = 2 seeds, got \(3, 5\) and \(10,\); group subsets of equal size",
    ),
    "label rows": (lambda: stack(y=Y.expand(3, -1)), r"N = 2 seeds, got \(2, 10\) and \(3, 10\)"),
    "index": (lambda: stack(subsets=torch.full((2, 5), 10)), r"index 10 rows, got 10\.\.10"),
    "negative": (lambda: stack(subsets=torch.full((2, 5), -1)), r"index 10 rows, got -1\.\.-1"),
    "layer": (
        lambda: training.forward_stacked(
            "mlp", SPEC, training.initial_stack("mlp", SPEC, [0]), X, ["hidden1"]
        ),
        "no layer hidden1 in this model; it has out",
    ),
}


@pytest.mark.parametrize(("call", "sentence"), CASES.values(), ids=CASES)
def test_what_cannot_be_trained_is_refused_in_one_sentence(
    call: Callable[[], object], sentence: str
):
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
