"""Groups of examples in activations: planted clusters and factors, and what chance passes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib.npeff import baselines

N, D, K = 300, 8, 4


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def planted() -> tuple[Tensor, Tensor]:
    group = torch.arange(N) % K
    z = torch.randn(N, D, generator=draw(0)) * 0.3
    z[torch.arange(N), group] += 5
    return z, group


def test_planted_clusters_are_found_up_to_their_names(planted) -> None:
    z, group = planted
    found = baselines.cluster(z, K, seed=0)
    for j in range(K):
        assert len(group[found.members(j)].unique()) == 1
        centre = z[group == group[found.members(j)[0]]].double().mean(0)
        torch.testing.assert_close(found.centroids[j], centre)
    assert torch.equal(found.sizes, torch.full((K,), N // K))


def test_members_are_ranked_by_distance_and_the_top_begins_with_them(planted) -> None:
    found = baselines.cluster(planted[0], K, seed=0)
    top = found.top(N // K + 5)
    for j in range(K):
        members = found.members(j)
        assert torch.equal(top[j, : len(members)], members)
        assert (found.distances[members, j].diff() >= 0).all()
        rest = top[j, len(members) :]
        assert (found.assigned[rest] != j).all()
        assert (found.distances[rest, j].diff() >= 0).all()
        others = found.distances[found.assigned != j, j].sort().values[:5]
        torch.testing.assert_close(found.distances[rest, j], others)


def test_same_seed_same_bytes() -> None:
    z = torch.randn(N, D, generator=draw(1))
    a, b = (baselines.cluster(z, 12, seed=3) for _ in range(2))
    assert torch.equal(a.centroids, b.centroids)
    assert torch.equal(a.assigned, b.assigned)


def test_bad_activations_are_refused(planted) -> None:
    z = planted[0]
    with pytest.raises(ValueError, match="NaN"):
        baselines.cluster(z / 0, K, seed=0)
    with pytest.raises(ValueError, match="pool"):
        baselines.cluster(z[:, :, None], K, seed=0)
    with pytest.raises(ValueError, match="distinct"):
        baselines.cluster(torch.ones(10, 2), 2, seed=0)
    with pytest.raises(ValueError, match="top examples"):
        baselines.cluster(z, K, seed=0).top(N + 1)
    with pytest.raises(ValueError, match="negative"):
        baselines.factorise_activations(z, K, seed=0)
    with pytest.raises(ValueError, match="components"):
        baselines.factorise_activations(z.abs(), D + 1, seed=0)


def test_planted_factors_of_activations_are_found() -> None:
    g = draw(2)
    h = torch.zeros(3, 9, dtype=torch.float64)
    for k in range(3):
        h[k, 3 * k : 3 * k + 3] = torch.rand(3, generator=g) + 0.5
    w = torch.rand(200, 3, generator=g, dtype=torch.float64) ** 3
    found = baselines.factorise_activations(w @ h, 3, seed=0, max_iterations=2000)
    assert found.explained > 0.9999
    torch.testing.assert_close(found.components.norm(dim=1), torch.ones(3).double())
    cosines = found.components @ (h / h.norm(dim=1, keepdim=True)).T
    assert (cosines.amax(1) > 0.999).all()
    assert sorted(cosines.argmax(1).tolist()) == [0, 1, 2]
    assert not baselines.factorise_activations(w @ h, 2, seed=0, max_iterations=1).converged


# concept tests


@pytest.fixture(scope="module")
def layer() -> tuple[Tensor, Tensor]:
    """Activations without structure, and logits of which one rises along unit 0."""
    z = torch.randn(400, D, generator=draw(3), dtype=torch.float64)
    slopes = torch.randn(2, 60, D, generator=draw(4), dtype=torch.float64)
    slopes[0, :, 0] += 2
    return z, slopes


def results(top: Tensor, layer, **options) -> baselines.ConceptTests:
    settings = {"generator": draw(5), "n_runs": 8, "n_random": 12} | options
    return baselines.concept_tests(top, *layer, **settings)


def test_group_that_moves_a_class_passes_both_tests(layer) -> None:
    top = layer[0][:, 0].argsort(descending=True)[:40][None]
    found = results(top, layer)
    assert found.passes().all()
    assert found.p[0, 0] < 1e-3
    assert found.p_rank().item() == pytest.approx(1 / 13)  # beyond all 12 random sets
    assert found.score[0, 0] > 0.9


def test_random_sets_pass_too_often_by_welch_and_not_by_rank() -> None:
    """Without any relation; the runs of one set share its examples."""
    z = torch.randn(400, D, generator=draw(6), dtype=torch.float64)
    slopes = torch.randn(2, 200, D, generator=draw(7), dtype=torch.float64) + 0.3
    top = torch.stack([torch.randperm(400, generator=draw(s))[:40] for s in range(10)])
    found = results(top, (z, slopes), n_random=20, n_runs=10)
    assert found.passes().sum() > (found.p_rank() < 0.05).sum()
    assert (found.p_rank() < 0.05).sum() <= 3
    assert found.random_passes().sum() > 2


def test_correction_is_bonferronis_over_groups_and_classes(layer) -> None:
    top = layer[0][:, 0].argsort()[:40].view(1, 40)
    once = results(top, layer)
    twice = results(torch.cat([top, top]), layer)
    torch.testing.assert_close(twice.p[0], (2 * once.p[0]).clamp(max=1))
    torch.testing.assert_close(twice.p_random, (2 * once.p_random).clamp(max=1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda top, z, s: (top + 400, z, s), "indices"),
        (lambda top, z, s: (top, z * torch.nan, s), "NaN"),
        (lambda top, z, s: (top, z, s[:, :, :3]), "slopes"),
        (lambda top, z, s: (top, z, s / 0), "NaN"),
        (lambda top, z, s: (top, z, s[:, :1].expand_as(s)), "before the last"),
        (lambda top, z, s: (top, z[:60], s), "pool of 2 x 40"),
    ],
)
def test_bad_requests_are_refused(layer, change, words) -> None:
    top, z, slopes = change(torch.arange(40)[None], *layer)
    with pytest.raises(ValueError, match=words):
        results(top, (z, slopes))


def test_too_few_random_sets_are_refused(layer) -> None:
    with pytest.raises(ValueError, match="at least 3"):
        results(torch.arange(40)[None], layer, n_random=2)
