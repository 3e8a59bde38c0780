"""Applications of datamodels on trained networks: directions that must hold, none fitted to a run.

The studies of notebook 44 at small sizes. Specification section 9, check 10 (brittleness) is in
`test_datamodels.py`, on more targets.
"""

from __future__ import annotations

import pytest
import torch

from lib import config
from lib.attribution import application_studies, planted_studies
from lib.attribution.planted_studies import PAIRS, Study

SIZES = {
    "data": "digits",
    "n": 120,
    "n_targets": 200,
    "n_others": 100,
    "n_copies": 15,
    "m": 400,
    "n_trak": 2,
    "n_networks": 5,
}


@pytest.fixture(scope="module")
def study() -> Study:
    run = config.resolve("44_datamodel_applications", "quick", 0, "cpu", planted=SIZES)
    return planted_studies.prepare(run)


def test_copies_rank_high_and_chance_does_not(study: Study):
    found = planted_studies.leakage(study)
    for method in ("datamodel", "TRAK", "cosine of pixels", "cosine of features"):
        assert found[method].auc[0] - found[method].auc[1] > 0.5, method
    low, high = (found["random"].auc[0] + k * found["random"].auc[1] for k in (-2, 2))
    assert low < 0.5 < high


def test_more_networks_find_copies_better(study: Study):
    found = planted_studies.growth(study, (100, 800))
    assert found[800].auc[0] > found[100].auc[0]
    whole = planted_studies.leakage(study)["datamodel"]
    assert torch.equal(found[800].pairs, whole.pairs)  # the same datamodel of all networks


def test_clusters_by_pixels_show_the_digit_where_pixels_do(study: Study):
    found = planted_studies.clusters(study)
    assert len(found) == 4 * (len(PAIRS) + 1)
    by_pixels = {c.pair: c for c in found if c.method == "pixels"}
    assert by_pixels[0].rand > by_pixels[0].chance  # 0 against 9


def test_a_shift_to_the_planted_side_fools_the_network_without_shifts_alone(study: Study):
    shares = planted_studies.turned(study).mean(2)
    as_they_are, planted_side, other_side = shares.T
    assert planted_side[0] > max(as_they_are[0], other_side[0], planted_side[1])


def test_same_seed_same_study():
    run = config.resolve("44_datamodel_applications", "quick", 0, "cpu", planted=SIZES)
    one, two = planted_studies.prepare(run), planted_studies.prepare(run)
    assert torch.equal(one.datamodel, two.datamodel)
    assert torch.equal(one.trak, two.trak)


def test_the_example_is_measured_by_networks_of_its_own():
    run = config.resolve(
        "44_datamodel_applications", "quick", 0, "cpu", n_targets=3, ks=(10,), n_before=10
    )
    study = application_studies.prepare(run)
    removals = application_studies.remove(study, 1)
    found = application_studies.example(study, removals)
    place = study.targets.index(found.target)
    assert removals.highest["datamodel"][0].mean(-1).argmin() == place
    assert len(found.removed) == 10
    assert found.before.shape == found.after.shape == (10, 10)
    torch.testing.assert_close(found.after.sum(1), torch.ones(10))
    # removing helpful rows cannot make it more often right
    assert found.right(found.after) <= found.right(found.before)
