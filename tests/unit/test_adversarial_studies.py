"""Case study III on traces planted by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lib.monitoring import adversarial_studies as studies
from lib.monitoring.calibration import Rule
from lib.monitoring.record import Record
from lib.training.adversarial import Robustness
from tests.planted_traces import CONCEPTS, SPACE, trace

LAYERS = ("layer2", "layer3", "layer4")


def robustness(clean: int, attacked: int, n: int = 100) -> Robustness:
    return Robustness(torch.arange(n) < clean, torch.arange(n) < attacked)


@pytest.fixture
def study() -> SimpleNamespace:
    """Ten units a layer; the robust arm has colours where the other has textures and classes."""
    words = {
        "standard": ["striped", "striped", "wood", "tree", "boat", "red", "beach", "tree", "roof"],
        "robust": ["red", "red", "red", "red", "beach", "red", "beach", "tree", "roof"],
    }
    passes = {"standard": [1] * 9, "robust": [1, 1, 1, 1, 1, 0, 0, 0, 0]}
    traces = [
        trace([words[arm]], [passes[arm]], layer=layer, arm=arm, detector=detector, epochs=[4])
        for arm in studies.ARMS
        for layer in LAYERS
        for detector in ("clip", "oracle", "net_dissection")
    ]
    basis = SimpleNamespace(points=torch.zeros(10, 2), digest=SPACE.digest)
    return SimpleNamespace(
        at=SimpleNamespace(concepts=CONCEPTS, space=SPACE),
        task=SimpleNamespace(names=("tree", "boat", "fish")),
        record=Record(tuple(traces), SPACE, basis),
        rules={("clip", layer): Rule(1.0, 0.5) for layer in LAYERS},
        measured={"standard": robustness(95, 5), "robust": robustness(85, 60)},
        epochs=[4],
    )


def test_the_threshold_is_calibrated_with_the_seed_of_the_run(monkeypatch: pytest.MonkeyPatch):
    class Calibrated(Exception):
        pass

    def rules_of(at: object, model: object, *, seed: int = 0) -> None:
        raise Calibrated(seed)

    size = SimpleNamespace(
        n_train=8,
        n_test=4,
        n_probe=8,
        keep=[1],
        recipe={"epochs": 1, "batch_size": 4, "lr": 0.1},
        attack={"eps": 0.1, "step": 0.1, "n_steps": 1},
        evaluation={"eps": 0.1, "step": 0.1, "n_steps": 1},
    )
    monkeypatch.setattr(studies.cases, "fetch_run", lambda *args, **options: {1: {}})
    monkeypatch.setattr(studies.cases, "network", lambda *args: None)
    monkeypatch.setattr(studies.cases, "setting", lambda *args: None)
    monkeypatch.setattr(studies.cases, "permuted", lambda *args: None)
    monkeypatch.setattr(studies.cases, "rules_of", rules_of)
    monkeypatch.setattr(studies, "robustness", lambda *args, **options: None)
    with pytest.raises(Calibrated, match="2"):
        studies.fetch_study(size, 2)


def test_what_was_planted_is_counted(study: SimpleNamespace):
    standard, robust = (studies.counts_of(study, arm) for arm in studies.ARMS)
    assert {k: int(v.sum()) for k, v in standard.items()} == {
        "layer2": 9,
        "layer3": 9,
        "layer4": 9,
        "color": 3,
        "texture": 6,
        "material": 3,
        "classes": 3,
    }
    assert {k: int(v.sum()) for k, v in robust.items()} == {
        "layer2": 5,
        "layer3": 5,
        "layer4": 5,
        "color": 12,
        "texture": 0,
        "material": 0,
        "classes": 0,
    }
    assert len(standard["color"]) == 27
    assert len(standard["classes"]) == 9


def test_claims_have_the_signs_that_they_name(study: SimpleNamespace):
    found = {name: pair[0] for name, pair in studies.claims_of([study], n_draws=50).items()}
    assert found == pytest.approx(
        {
            "P2-50": 0.10,
            "P2-51": 0.55,
            "P2-52": 4 / 9,
            "P2-53": -4 / 9,
            "P2-54": -4 / 9,
            "P2-55": 9 / 27,
            "P2-56": 6 / 27,
            "P2-57": 3 / 27,
            "P2-58": 3 / 9,
        }
    )


def test_accuracies_are_compared_image_by_image(study: SimpleNamespace):
    value, half = studies.accuracy_difference(*(study.measured[a].clean for a in studies.ARMS))
    # ten images of a hundred differ, the others add nothing
    assert value == pytest.approx(0.1)
    assert half == pytest.approx(1.96 * (0.09 / 100) ** 0.5, rel=0.2)


def test_several_seeds_give_their_spread(study: SimpleNamespace):
    other = SimpleNamespace(**study.__dict__)
    other.measured = {"standard": robustness(95, 5), "robust": robustness(75, 60)}
    value, spread = studies.claims_of([study, other], n_draws=10)["P2-50"]
    assert (value, spread) == pytest.approx((0.15, 0.02**0.5 / 2))


def test_units_are_named_as_classes_only_where_they_are_interpretable(study: SimpleNamespace):
    assert studies.class_units(study, "standard").tolist() == [-1, -1, -1, 0, 1, -1, -1, 0, -1]
    assert studies.class_units(study, "robust").tolist() == [-1] * 9
    rows = {row["class"]: row["clip"] for row in studies.class_rows(study)}
    assert rows == {"tree": "2 / 0", "boat": "1 / 0", "fish": "0 / 0"}


def test_the_table_has_both_arms_and_the_document(study: SimpleNamespace):
    rows = {row["units"]: row for row in studies.arm_rows(study)}
    assert rows["layer4"]["clip"] == "9 / 5"
    assert rows["layer4"]["document"] == "293 / 215 of 512"
    assert rows["colour words"]["of"] == 27
    assert rows["layer2"]["document"] == ""


def test_cuts_never_raise_a_count(study: SimpleNamespace):
    found = studies.cut_counts(study)
    assert found["standard", "layer4"] == [9, 9, 9, 9]  # attainment .7, score 9 everywhere
    assert set(found) == {(arm, layer) for arm in studies.ARMS for layer in LAYERS}
