"""The comparison of methods: fronts and crossings by hand, and one small ground end to end."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from lib.attribution import ground, metrics, pareto, settings, trak_studies, truth
from lib.attribution.ground import Point
from lib.data.base import Split


def point(method: str, n_models: int, compute: float, score: float) -> Point:
    return Point(method, n_models, compute, score, score - 0.1, score + 0.1, 0)


def test_front_keeps_what_no_cheaper_point_reaches():
    points = [point("a", 1, 2.0, 0.5), point("b", 1, 1.0, 0.3), point("c", 1, 3.0, 0.4)]
    assert [q.method for q in pareto.front(points)] == ["b", "a"]


def test_crossing_is_interpolated_on_the_logarithm():
    assert pareto.crossing([10, 1000], [0.2, 0.4], 0.3) == pytest.approx(100)
    assert pareto.crossing([10, 1000], [0.2, 0.4], 0.1) == 10
    assert math.isinf(pareto.crossing([10, 1000], [0.2, 0.4], 0.5))


def test_saving_compares_with_the_better_datamodel_in_compute_and_with_ridge_in_networks():
    points = [
        point("TRAK", 10, 20.0, 0.5),
        point("datamodel, ridge", 100, 100.0, 0.1),
        point("datamodel, ridge", 10_000, 10_000.0, 0.9),
        point("datamodel, LASSO", 100, 400.0, 0.3),
        point("datamodel, LASSO", 10_000, 40_000.0, 0.7),
    ]
    compute, networks = pareto.saving(points, 10)
    # from LASSO's 0.3 at 400 to ridge's 0.9 at 10,000: a third of the way
    assert compute == pytest.approx(400 * 25 ** (1 / 3) / 20)
    assert networks == pytest.approx(100)


@pytest.fixture(scope="module")
def small() -> ground.Ground:
    whole = settings.digits_mlp()
    setting = replace(
        whole,
        recipe=replace(whole.recipe, epochs=6),
        train=Split(whole.train.x[:60], whole.train.y[:60]),
        targets=Split(whole.targets.x[:8], whole.targets.y[:8]),
    )
    judged = truth.measure(setting, 6, repeats=2, seed=0)
    path, rates = ground.trajectory(setting, 0)
    return ground.Ground(setting, judged, truth.checkpoints(setting, 2, seed=0), path, rates)


def test_checkpoints_of_a_run_end_at_its_end(small):
    assert len(small.path) == len(small.rates) == 6
    assert small.rates[-1] == 0  # a linear schedule
    assert small.rates == sorted(small.rates, reverse=True)
    weights = [model.get_parameter("out.weight") for model in small.path]
    assert not torch.equal(weights[0], weights[-1])


def test_every_method_gives_a_score_and_a_cost(small):
    steps = pareto.trak_steps(small, 2, k=32, ridge=0.1)
    fitting = truth.measure(small.setting, 40, seed=1000)
    points = [
        *pareto.trak_points(small, (1, 2), 32, steps),
        *pareto.kronecker_points(small, (1,), 0),
        *pareto.influence_points(small, 0, len(small.targets[0])),
        *pareto.similarity_points(small, 0),
        *pareto.valuation_points(small, 0),
        *pareto.datamodel_points(small, fitting, (40,), ("datamodel, ridge",)),
    ]
    for q in points:
        assert -1 <= q.low <= q.score <= q.high <= 1
        assert q.compute >= q.n_models
    assert {"influence, CG", "EK-FAC", "TracIn", "GAS", "Data Shapley"} <= {
        q.method for q in points
    }


def test_products_by_a_square_root_are_those_by_passes(small, monkeypatch):
    v = torch.randn(small.p, 3, generator=torch.Generator().manual_seed(0))
    some = torch.tensor([3, 5, 8])
    by_root = [pareto._curvature(small)(rows)(v) for rows in (None, some)]
    monkeypatch.setattr(pareto, "MOST_NUMBERS", 0)
    by_passes = [pareto._curvature(small)(rows)(v) for rows in (None, some)]
    for a, b in zip(by_root, by_passes, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_first_targets_are_judged_as_among_all(small):
    tau = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    few = small.first(3)
    assert len(few.targets[0]) == 3
    whole = metrics.lds(tau, small.truth.subsets, small.truth.mean).per_target
    assert few.lds(tau[:, :3]) == pytest.approx(whole[:3].mean().item())


def test_a_point_counts_training_and_what_follows(small):
    tau = torch.zeros(60, 8)
    found = small.point("none", tau, n_models=3, flop=small.training)
    assert found.compute == 4
    assert found.n_constant == 8
    assert found.score == 0


def test_published_rows_stand_beside_ours():
    rows = trak_studies.benchmark_rows({"mnist_lr": {"TRAK-1": (0.4, 0.415)}})
    assert rows == [{"setting": "mnist_lr", "method": "TRAK-1", "ours": 0.4, "published": 0.415}]


@pytest.mark.parametrize(("best", "compute", "networks"), [(0.4, None, None), (0.6, 30.0, 30.0)])
def test_a_saving_is_judged_only_where_datamodels_reach_trak(best, compute, networks):
    """TRAK with ten networks scores .5 at a cost of 10; ridge starts at its score at 300."""
    points = [
        point("TRAK", 5, 5.0, 0.3),
        point("TRAK", 10, 10.0, 0.5),
        point("EK-FAC", 10, 20.0, 0.5),
        point("Grad-Dot", 1, 2.0, 0.1),
        point("influence, CG", 1, 9.0, 0.2),
        point("datamodel, ridge", 300, 300.0, best),
    ]
    found = trak_studies.gaps(points)
    assert (found["compute"], found["networks"]) == (compute, networks)
    assert trak_studies.language_gaps(points)["networks"] == networks
    many = replace(points[-1], n_models=2000)
    bound = trak_studies.language_gaps([*points[:-1], many])["networks"]
    assert bound == (200.0 if best < 0.5 else pytest.approx(200.0))
