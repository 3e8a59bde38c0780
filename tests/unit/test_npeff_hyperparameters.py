"""How K, r and steps change components: planted answers and what chance gives."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from lib.npeff import hyperparameter_studies as studies
from lib.npeff import store


@pytest.fixture(scope="module")
def mixtures() -> store.Fishers:
    """Raw PEFs of 120 mixtures of four planted components."""
    generator = torch.Generator().manual_seed(0)
    g = torch.zeros(4, 24, dtype=torch.float64)
    for j in range(4):
        g[j, 6 * j : 6 * j + 6] = 0.5 + torch.rand(6, generator=generator, dtype=torch.float64)
    weight = torch.rand(120, 4, generator=generator, dtype=torch.float64).pow(8)
    rows = weight.sqrt()[..., None] * g
    return store.from_dense(rows)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))


def test_runs_with_fewer_entries_hold_less_of_the_norm_and_find_planted_components(mixtures):
    found = studies.at_k(mixtures, (24, 48, 96), 4, n=100, seeds=(0, 1), steps=300)
    assert [one.k for one in found] == [24, 48, 96]
    norms = [one.norm for one in found]
    assert norms == sorted(norms)
    assert norms[-1] == pytest.approx(1)
    assert found[-1].share == pytest.approx(1)
    assert found[0].coefficients[0].shape == (100, 4)
    assert studies.least_similar(found) > 0.9
    rows = studies.similarity_rows(found, seed=0)
    assert [row["document"] for row in rows] == list(studies.PAIRS)
    assert all(float(row["ours"]) > float(row["examples permuted"]) for row in rows)


def test_more_entries_than_the_fishers_hold_are_refused(mixtures):
    with pytest.raises(ValueError, match="the entries that were kept, got 1000000"):
        studies.at_k(mixtures, (24, 1_000_000), 4, n=100, seeds=(0,), steps=5)


def test_a_split_component_has_two_counterparts_and_a_missing_one_none():
    a, b, c = torch.eye(3).repeat_interleave(20, dim=0).T
    half = (torch.arange(60) % 2).float()
    larger = torch.stack([a * half, a * (1 - half), b, b + 0.1], dim=1)
    found = studies.counterparts(larger, torch.stack([a, b, c], dim=1), seed=0)
    assert found.parent.tolist() == [0, 0, 1, 1]
    assert found.covered.tolist() == [True, True, False]
    assert found.share == pytest.approx(2 / 3)
    assert found.null.shape == (studies.N_DRAWS,)


def test_splits_with_their_parents_concept_agree_beyond_chance():
    parent = torch.arange(40) % 8
    smaller = torch.arange(8)
    agree, null = studies.splits_agree(smaller[parent], smaller, parent, seed=0)
    assert agree == 1
    assert null < 0.5


def test_a_rate_that_is_too_large_is_halved_until_the_loss_falls(mixtures):
    scaled = studies.prepared(mixtures, 100)
    rate, tried = studies.stable_rate(scaled, 4, step="precond", seed=0, component_steps=10)
    assert tried[-1].falls
    assert tried[-1].rate == rate
    assert not any(trial.falls for trial in tried[:-1])
    assert all(b.rate == a.rate / 2 for a, b in pairwise(tried))


def test_a_descent_ends_at_itself_and_so_does_its_first_half(mixtures):
    part = studies.prepared(mixtures, 100)
    found = studies.descend(part, 4, step="exact", seed=0, steps=60)
    torch.testing.assert_close(found.mean[-1], torch.tensor(1.0, dtype=torch.float64))
    torch.testing.assert_close(found.halfway[-1], torch.ones(4, dtype=torch.float64))
    assert len(found.halfway) == 16
    assert found.steps.tolist() == list(range(0, 61, 2))
    assert bool((found.loss.diff() <= 1e-9).all())
    value, error = studies.after(found, 0.5)
    assert value == pytest.approx(float(found.mean[15]))
    assert error >= 0
    again = studies.descend(part, 4, step="exact", seed=0, steps=60)
    assert torch.equal(found.similarity, again.similarity)


def test_steps_that_snapshots_do_not_divide_are_refused(mixtures):
    with pytest.raises(ValueError, match="multiple of 30"):
        studies.descend(studies.prepared(mixtures, 100), 4, step="exact", seed=0, steps=50)
