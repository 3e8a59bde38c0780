"""Planted per-example Fishers at the size where a start can lose a component."""

from __future__ import annotations

import pytest
import torch

from lib.npeff.component_studies import planted
from lib.npeff.decomposition import Decomposition, explained
from lib.npeff.factorise import decompose

N_SEEDS, N_RESTARTS = 5, 3
STEPS = {"component_steps": 100, "steps": 300}
FISHERS, G, W = planted(0, n=1000, r=20, m=200, n_used=20)


def n_recovered(found: Decomposition) -> int:
    """Planted components whose direction and whose coefficients came back."""
    cosines = torch.nn.functional.normalize(found.components) @ G[:, FISHERS.kept].T
    best = cosines.abs().argmax(0)
    columns = torch.nn.functional.cosine_similarity(found.coefficients[:, best], W, dim=0)
    return int(((cosines.abs().amax(0) > 0.9999) & (columns > 0.9999)).sum())


def is_recovered(found: Decomposition) -> bool:
    """All of them, and nothing is left to explain."""
    return n_recovered(found) == len(G) and 1 - explained(found) < 1e-7


@pytest.fixture(scope="module")
def starts() -> list[Decomposition]:
    """What the starts of five runs with three restarts end at; a run's starts are its seed on."""
    n = N_SEEDS + N_RESTARTS - 1
    return [decompose(FISHERS, len(G), seed=seed, **STEPS) for seed in range(n)]


def test_twenty_planted_components_come_back_from_four_of_five_starts(
    starts: list[Decomposition],
) -> None:
    """A start may end in a local optimum with one component lost (specification, check 6)."""
    assert sum(is_recovered(found) for found in starts[:N_SEEDS]) >= 4


def test_with_three_restarts_they_come_back_from_all_five_seeds(
    starts: list[Decomposition],
) -> None:
    """The least loss of `decompose` with restarts, without fitting a start three times."""
    for seed in range(N_SEEDS):
        kept = min(starts[seed : seed + N_RESTARTS], key=lambda found: found.loss)
        assert is_recovered(kept)


def test_plain_descent_loses_one_from_a_start_where_the_exact_step_does_not(
    starts: list[Decomposition],
) -> None:
    seed = 2
    plain = decompose(FISHERS, len(G), seed=seed, step="gd", **STEPS)
    assert n_recovered(plain) < len(G) == n_recovered(starts[seed])
    assert 1 - explained(plain) > 0.01  # a component is missing, it is not slow to arrive
