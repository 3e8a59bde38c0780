"""What gradients refuse: one ValueError each, and its sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lib import gradients, models
from lib.gradients import SJLT, CachedSigns, RandomFactors, cross_entropy, margin

G = torch.Generator().manual_seed(0)
MODEL = models.build("mlp", G, widths=(4, 3, 2))
X, Y = torch.randn(6, 4, generator=G), torch.arange(6) % 2
P = gradients.size(gradients.select(MODEL))
NAN_ROW = X.clone()
NAN_ROW[4, 2] = float("nan")
NAN_WEIGHT = copy.deepcopy(MODEL)
with torch.no_grad():
    NAN_WEIGHT.out.weight[1, 1] = float("nan")
ROWS = torch.ones(2, P)


def vector_output(out: Tensor, y: Tensor) -> Tensor:
    return out


def stream(model: nn.Module = MODEL, data: object = (X, Y), **options: object) -> list[Tensor]:
    return list(gradients.stream(model, data, margin, **options))  # type: ignore[arg-type]


CASES: dict[str, tuple[Callable[[], object], str]] = {
    "NaN weight": (lambda: stream(NAN_WEIGHT), "gradient of example 0 holds NaN"),
    "NaN row": (lambda: stream(data=(NAN_ROW, Y)), "gradient of example 4 holds NaN"),
    "NaN row in a later chunk": (
        lambda: stream(data=(NAN_ROW, Y), chunk=2),
        "gradient of example 4 holds NaN",
    ),
    "NaN row by vmap": (
        lambda: list(gradients.per_example_vmap(MODEL, (NAN_ROW, Y), margin, chunk=3)),
        "gradient of example 4 holds NaN",
    ),
    "NaN row in factors": (
        lambda: list(gradients.factors(MODEL, (NAN_ROW, Y), margin, chunk=3)),
        "of example 4 holds NaN",
    ),
    "NaN row in the kernel": (
        lambda: gradients.kernel(MODEL, (NAN_ROW, Y), None, margin, chunk=3),
        "of example 4 holds NaN",
    ),
    "NaN row in features": (
        lambda: gradients.projected(MODEL, (NAN_ROW, Y), margin, SJLT(P, 2, seed=0)),
        "gradient of example 4 holds NaN",
    ),
    "NaN functional": (
        lambda: (
            gradients.functional_gradient(lambda w: sum(v.sum() for v in w.values()), NAN_WEIGHT)
            * gradients.functional_gradient(lambda w: w["out.weight"].square().sum(), NAN_WEIGHT)
        ),
        "functional's gradient holds NaN",
    ),
    "unknown block": (lambda: stream(block=["outt"]), "'outt'; known parameters: hidden1.0.weight"),
    "half a name": (lambda: stream(block=["ou"]), "no parameter or module 'ou'"),
    "empty block": (lambda: stream(block=[]), "block is empty"),
    "no parameters": (lambda: stream(nn.ReLU()), "want a model with parameters"),
    "one tensor": (lambda: stream(data=X), "want data"),
    "no data": (lambda: stream(data=()), "want data"),
    "lengths": (lambda: stream(data=(X, Y[:-1])), r"got lengths \[6, 5\]"),
    "no rows": (lambda: stream(data=(X[:0], Y[:0])), r"n >= 1 as data, got lengths \[0, 0\]"),
    "chunk": (lambda: stream(chunk=0), "want chunk >= 1, got 0"),
    "several outputs": (
        lambda: gradients.per_example(MODEL, (X, Y), vector_output),
        r"want one output an example, shape \(6,\), got \(6, 2\)",
    ),
    "several outputs by vmap": (
        lambda: list(gradients.per_example_vmap(MODEL, (X, Y), vector_output)),
        r"want one output an example, a scalar, got \(2,\)",
    ),
    "one class": (lambda: margin(X[:, :1], Y), "at least 2 classes"),
    "matrix functional": (
        lambda: gradients.functional_gradient(lambda w: w["out.weight"], MODEL),
        r"want a scalar or \[q\] functional",
    ),
    "no such layer": (
        lambda: list(gradients.factors(MODEL, (X, Y), margin, layers=["hidden1.1"])),
        "no linear or ungrouped convolution layer 'hidden1.1'; known: hidden1.0, out",
    ),
    "no layer at all": (
        lambda: list(gradients.factors(nn.LayerNorm(4), (X, Y), margin)),
        "no linear or ungrouped convolution layer to factor",
    ),
    "vector of another model": (
        lambda: gradients.hessian_product(MODEL, (X, Y), cross_entropy)(torch.ones(P + 1)),
        rf"want a vector \[{P}\]",
    ),
    "negative l2": (
        lambda: gradients.ggn_product(MODEL, (X, Y), cross_entropy, l2=-1.0),
        "want l2 >= 0",
    ),
    "NaN l2": (
        lambda: gradients.hessian_product(MODEL, (X, Y), cross_entropy, l2=float("nan")),
        "want l2 >= 0",
    ),
    "p": (lambda: SJLT(0, 2, seed=0), "want p >= 1 weights and k >= 1 features, got p = 0"),
    "k": (lambda: CachedSigns(5, 0, seed=0), "k >= 1 features, got p = 5, k = 0"),
    "s": (lambda: SJLT(9, 2, seed=0, s=3), "want 1 <= s <= k = 2 buckets a weight, got s = 3"),
    "no s": (lambda: SJLT(9, 2, seed=0, s=0), "got s = 0"),
    "ki": (lambda: RandomFactors(MODEL, ki=0, ko=2, seed=0), "want ki >= 1 and ko >= 1"),
    "block of factors": (
        lambda: gradients.projected(
            MODEL, (X, Y), margin, RandomFactors(MODEL, ki=2, ko=2, seed=0), block=["out"]
        ),
        "own choice of layers",
    ),
}
for name, wrong in {
    "sjlt": SJLT(P + 1, 2, seed=0),
    "signs": CachedSigns(P + 1, 2, seed=0),
    "factors": RandomFactors(nn.Linear(2, 2), ki=2, ko=2, seed=0),
}.items():
    CASES[f"width, {name}"] = (
        lambda wrong=wrong: wrong.project(ROWS, 0),  # type: ignore[misc]
        "make the projector for the model",
    )
    CASES[f"axes, {name}"] = (
        lambda wrong=wrong: wrong.project(ROWS[0], 0),  # type: ignore[misc]
        "want gradients",
    )


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str) -> None:
    attempt, sentence = CASES[name]
    with pytest.raises(ValueError, match=sentence):
        attempt()


def test_a_refused_model_keeps_its_mode_and_has_no_hooks() -> None:
    with pytest.raises(ValueError):
        stream(NAN_WEIGHT.train())
    assert all(module.training for module in NAN_WEIGHT.modules())
    assert not any(module._forward_hooks for module in NAN_WEIGHT.modules())
