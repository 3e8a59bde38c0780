"""What feature attribution refuses: one ValueError each, and its sentence."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib import models
from lib.attribution import (
    coalitions,
    counterfactuals,
    feature_checks,
    feature_methods,
    feature_subjects,
    tcav,
)
from lib.attribution.feature_methods import Options, attribute

G = torch.Generator().manual_seed(0)
MODEL = models.build("mlp", G, widths=(4, 5, 3)).eval()
CNN = models.build("cnn", G, size=4, channels=(2, 4)).eval()
X = torch.randn(3, 4, generator=G)
IMAGES = torch.randn(3, 1, 4, 4, generator=G)
BROKEN = X.clone()
BROKEN[1, 2] = float("nan")
SMOOTH = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
WIDE = torch.zeros(1, 11)


def with_options(**options: object) -> object:
    return attribute("KernelSHAP", MODEL, X, 0, baseline=0.0, options=Options(**options))


CASES: dict[str, tuple[Callable[[], object], str]] = {
    "unknown method": (
        lambda: attribute("saliency", MODEL, X, 0, baseline=0.0),
        "unknown method 'saliency'; known: gradient, input x gradient, SmoothGrad",
    ),
    "NaN": (lambda: attribute("gradient", MODEL, BROKEN, 0, baseline=0.0), "first in row 1"),
    "target": (
        lambda: attribute("gradient", MODEL, X, 3, baseline=0.0),
        r"outputs 0\.\.2, got targets 3\.\.3",
    ),
    "negative target": (
        lambda: attribute("gradient", MODEL, X, torch.tensor([0, -1, 2]), baseline=0.0),
        r"outputs 0\.\.2, got targets -1\.\.2",
    ),
    "targets of other rows": (
        lambda: attribute("gradient", MODEL, X, torch.tensor([0, 1]), baseline=0.0),
        r"int64 \[3\]",
    ),
    "baseline": (
        lambda: attribute("gradient", MODEL, X, 0, baseline=torch.zeros(3)),
        "want a baseline of one number or of the shape",
    ),
    "integers": (
        lambda: attribute("gradient", MODEL, X.long(), 0, baseline=0.0),
        "float, n >= 1",
    ),
    "no rows": (lambda: attribute("gradient", MODEL, X[:0], 0, baseline=0.0), "n >= 1"),
    "no rectifier": (
        lambda: attribute("guided backpropagation", SMOOTH, X, 0, baseline=0.0),
        "this model has none",
    ),
    "Grad-CAM of rows": (
        lambda: attribute("Grad-CAM", MODEL, X, 0, baseline=0.0),
        "Grad-CAM wants images",
    ),
    "Grad-CAM of an unknown layer": (
        lambda: attribute("Grad-CAM", CNN, IMAGES, 0, baseline=0.0, options=Options(layer="c9")),
        "the model has conv1",
    ),
    "Grad-CAM of a flat layer": (
        lambda: attribute(
            "Grad-CAM", CNN, IMAGES, 0, baseline=0.0, options=Options(layer="flatten")
        ),
        "name an earlier one",
    ),
    "groups of another shape": (lambda: with_options(groups=torch.zeros(3).long()), "of a row"),
    "groups with a gap": (
        lambda: with_options(groups=torch.tensor([0, 2, 2, 0])),
        "without gaps; renumber",
    ),
    "too many patches": (
        lambda: feature_methods.patches((1, 8, 8), 9, 2),
        "has no 9 x 2 patches",
    ),
    "control": (
        lambda: feature_methods.control("sobel", IMAGES, baseline=0.0),
        "known: random, input, edges",
    ),
    "edges of rows": (
        lambda: feature_methods.control("edges", X, baseline=0.0),
        "an edge filter wants images",
    ),
    "too many features": (
        lambda: coalitions.exact_shapley(nn.Linear(11, 1), WIDE, 0, baseline=0.0),
        "1 to 10 features, got 11",
    ),
    "values of no game": (lambda: coalitions.shapley(torch.zeros(6)), r"want 2\^d values"),
    "value NaN": (
        lambda: coalitions.shapley(torch.tensor([0.0, float("nan")])),
        "the game is not defined",
    ),
    "unknown layer to randomise": (
        lambda: feature_checks.shuffled_layers(MODEL, ["hidden7"], G),
        "no layer hidden7 in this model; it has hidden1",
    ),
    "norm": (
        lambda: counterfactuals.search(
            MODEL, X, torch.zeros(3).long(), norm="L0", low=-9.0, high=9.0
        ),
        "norm is one of L1, L2",
    ),
    "outside the box": (
        lambda: counterfactuals.search(MODEL, X, torch.zeros(3).long(), low=0.0, high=0.1),
        "widen the box",
    ),
    "NaN row": (
        lambda: counterfactuals.search(MODEL, BROKEN, torch.zeros(3).long(), low=-9.0, high=9.0),
        "want finite x",
    ),
    "one output": (
        lambda: counterfactuals.search(
            nn.Linear(4, 1), X, torch.zeros(3).long(), low=-9.0, high=9.0
        ),
        "k >= 2",
    ),
    "class that is not there": (
        lambda: counterfactuals.search(MODEL, X, torch.tensor([0, 1, 3]), low=-9.0, high=9.0),
        r"want a target of 0\.\.2 for each of 3 rows",
    ),
    "layer without a name": (
        lambda: tcav.slopes(MODEL, X, 0, "hidden9"),
        "no layer 'hidden9' in this model",
    ),
    "class of slopes": (lambda: tcav.slopes(MODEL, X, 5, "hidden1"), r"outputs 0\.\.2, got 5"),
    "concept of another layer": (
        lambda: tcav.directions(X, torch.zeros(2, 3, 5)),
        "read the same layer",
    ),
    "one random set": (
        lambda: tcav.concept_scores(X, X, torch.zeros(1, 2, 4), n_runs=1, generator=G),
        "want at least 2 random sets",
    ),
    "small pool": (
        lambda: tcav.null_scores(3, X, torch.zeros(1, 2, 4), n_runs=2, n_random=2, generator=G),
        "a pool of 2 x 3 rows; got 2 and 3 rows",
    ),
    "unknown data": (
        lambda: feature_subjects.load(SimpleNamespace(size=SimpleNamespace(data="coco"))),
        "data is one of digits, imagenet; got 'coco'",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_in_one_sentence(name: str) -> None:
    call, sentence = CASES[name]
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_hooks_are_gone_after_a_refusal() -> None:
    with pytest.raises(ValueError, match="outputs"):
        tcav.slopes(MODEL, X, 5, "hidden1")
    assert not MODEL.hidden1._forward_hooks
