"""Randomised weights, deletion and insertion, and rank correlations of maps."""

from __future__ import annotations

import pytest
import torch

from lib import models
from lib.attribution import feature_checks
from lib.attribution.feature_methods import attribute, control

G = torch.Generator().manual_seed(0)
MODEL = models.build("cnn", G, size=4, channels=(2, 4)).eval()
X = torch.randn(6, 1, 4, 4, generator=G)
Y = torch.arange(6)


def test_shuffling_keeps_values_of_the_named_layers_and_all_of_the_others() -> None:
    before = {k: v.clone() for k, v in MODEL.state_dict().items()}
    forgot = feature_checks.shuffled_layers(MODEL, ["out"], torch.Generator().manual_seed(1))
    for name, weight in forgot.state_dict().items():
        same = torch.equal(weight, before[name])
        assert same != (name == "out.weight")
        assert torch.equal(weight.flatten().sort().values, before[name].flatten().sort().values)
    assert all(torch.equal(v, before[k]) for k, v in MODEL.state_dict().items())


def test_cascade_starts_alike_and_keeps_what_is_forgotten_forgotten() -> None:
    seen = []

    def explain(model):
        seen.append({k: v.clone() for k, v in model.state_dict().items()})
        return {
            "gradient": attribute("gradient", model, X, Y, baseline=0.0),
            "input": control("input", X, baseline=0.0),
        }

    found = feature_checks.cascade(MODEL, X, explain, seed=3)
    assert found.stages == ("none", "out", "conv2", "conv1")
    assert torch.allclose(found.correlation["gradient"][0], torch.ones(6).double())
    # a map that does not ask the network never changes
    assert torch.allclose(found.correlation["input"], torch.ones(4, 6).double())
    assert found.correlation["gradient"][-1].mean() < 0.6
    assert torch.allclose(found.outputs[0], torch.ones(6).double())
    assert found.examples["gradient"].shape == (4, 1, 4, 4)
    trained, *stages = seen[1:]
    assert torch.equal(trained["out.weight"], MODEL.out.weight)
    for state in stages[1:]:
        assert torch.equal(state["out.weight"], stages[0]["out.weight"])
    assert torch.equal(stages[1]["conv1.0.weight"], trained["conv1.0.weight"])


def test_null_compares_a_row_with_the_next() -> None:
    maps = {"m": X}
    found = feature_checks.cascade(MODEL, X, lambda _: maps, seed=0)
    wanted = feature_checks.rank_correlation(X, X.roll(1, 0))
    assert torch.equal(found.null["m"], wanted)


def test_rank_correlation_ignores_scale_and_sign() -> None:
    ones = torch.ones(6).double()
    assert torch.allclose(feature_checks.rank_correlation(X, -3 * X), ones)
    assert torch.allclose(feature_checks.rank_correlation(X, -3 * X, signed=True), -ones)
    assert torch.equal(feature_checks.rank_correlation(X, torch.ones_like(X)), 0 * ones)


def test_agreement_is_symmetric_with_ones() -> None:
    table = feature_checks.agreement({"a": X, "b": X.square(), "c": torch.rand(X.shape)})
    assert torch.equal(table, table.T)
    assert torch.equal(table.diagonal(), torch.ones(3).double())
    assert table[0, 1] == pytest.approx(1.0)


def test_curves_run_between_the_image_and_the_baseline() -> None:
    maps = attribute("gradient", MODEL, X, Y, baseline=0.0)
    curves = feature_checks.perturbation_curves(MODEL, X, Y, maps, baseline=0.0, n_steps=4, chunk=3)
    full = MODEL(X).softmax(1)[range(6), Y]
    empty = MODEL(torch.zeros_like(X)).softmax(1)[range(6), Y]
    assert curves.shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    for start, end, values in ((full, empty, curves.deletion), (empty, full, curves.insertion)):
        torch.testing.assert_close(values[:, 0], start)
        torch.testing.assert_close(values[:, -1], end)


def test_the_right_order_beats_its_reverse() -> None:
    """A model that adds up pixels, weighed: its own weights are the best map."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    with torch.no_grad():
        model[1].weight[0] = torch.linspace(0, 1, 16)
        model[1].weight[1] = 0
        model[1].bias[:] = torch.tensor([-4.0, 0.0])
    x, y = torch.ones(1, 1, 4, 4), torch.tensor([0])
    maps = torch.linspace(0, 1, 16).reshape(1, 1, 4, 4)
    right, wrong = (
        feature_checks.perturbation_curves(model, x, y, m, baseline=0.0).gap for m in (maps, -maps)
    )
    assert right > 0.2
    assert wrong < -0.2
