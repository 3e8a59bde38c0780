"""Case study IV on traces planted by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lib.monitoring import fine_tuning_studies as studies
from lib.monitoring.record import Record
from tests.planted_traces import CONCEPTS, SPACE, trace

BEFORE = ["tree", "boat", "fish", "lamp", "tree", "red", "wood", "beach", "roof", "striped"]
AFTER = ["wood", "striped", "red", "lamp", "wood", "red", "wood", "beach", "roof", "striped"]


@pytest.fixture
def study() -> SimpleNamespace:
    """Ten units, the first five the most interpretable; three of four objects are lost."""
    scores = torch.linspace(9, 5, 10).expand(3, 10)
    passes = [[1] * 10, [1] * 10, [1] * 4 + [0] + [1] * 5]
    traces = [
        trace([BEFORE, BEFORE, AFTER], passes, scores=scores, detector=name, epochs=[0, 2, 8])
        for name in ("clip", "oracle", "net_dissection")
    ]
    basis = SimpleNamespace(points=torch.zeros(10, 2), digest=SPACE.digest)
    right = torch.arange(100)
    return SimpleNamespace(
        at=SimpleNamespace(concepts=CONCEPTS, space=SPACE),
        record=Record(tuple(traces), SPACE, basis),
        right={0: right < 20, 2: right < 50, 8: right < 70},
        majority=0.25,
        epochs=[0, 2, 8],
    )


def test_claims_are_what_was_planted(study: SimpleNamespace):
    found = {name: pair[0] for name, pair in studies.claims_of([study], n_draws=50).items()}
    assert found == pytest.approx(
        {
            "P2-60": 0.4,  # five objects before, one after
            "P2-61": 0.1,  # one wood more; the other is not interpretable
            "P2-62": 4 / 5,  # wood, striped, red, and red in place of the one that dropped out
            "P2-63": 0.45,
        }
    )


def test_the_best_units_are_interpretable_ones(study: SimpleNamespace):
    found = study.record.trace("clip", "layer4")
    assert studies.best_units(found, 0).tolist() == [0, 1, 2, 3, 4]
    assert studies.best_units(found, 2).tolist() == [0, 1, 2, 3, 5]


def test_rows_count_categories_and_name_the_best(study: SimpleNamespace):
    rows = studies.epoch_rows(study)
    assert rows[0]["clip"] == "5 1 1 1 1 1"
    assert rows[-1]["clip"] == "1 1 1 2 2 2"
    assert rows[-1]["five best"] == "wood, striped, red, lamp, red"
    assert [row["accuracy"] for row in rows] == pytest.approx([0.2, 0.5, 0.7])
