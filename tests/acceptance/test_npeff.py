"""Planted per-example Fishers at the size where a start can lose a component."""

from __future__ import annotations

import pytest
import torch

from lib.npeff.component_studies import planted
from lib.npeff.decomposition import Decomposition, explained
from lib.npeff.factorise import decompose

N_SEEDS, N_RESTARTS = 5, 3
COMPONENT_STEPS, STEPS, PLAIN_STEPS = 100, 500, 1500
SIZES = (80, 200)  # parameters; with few of them components overlap more
PLANTED = {m: planted(0, n=1000, r=20, m=m, n_used=20) for m in SIZES}


def cosines(found: Decomposition, m: int) -> torch.Tensor:
    """Of each found component with each planted one, without sign, `[r, r]`."""
    fishers, g, _ = PLANTED[m]
    return (torch.nn.functional.normalize(found.components) @ g[:, fishers.kept].T).abs()


def is_recovered(found: Decomposition, m: int) -> bool:
    """Directions and coefficients of all came back, and nothing is left to explain."""
    best = cosines(found, m).max(0)
    w = found.coefficients[:, best.indices]
    columns = torch.nn.functional.cosine_similarity(w, PLANTED[m][2], dim=0)
    same = bool(((best.values > 0.9999) & (columns > 0.9999)).all())
    return same and 1 - explained(found) < 1e-7


@pytest.fixture(scope="module", params=SIZES)
def starts(request: pytest.FixtureRequest) -> tuple[int, list[Decomposition]]:
    """What the starts of five runs with three restarts end at; a run's starts are its seed on."""
    m, n = request.param, N_SEEDS + N_RESTARTS - 1
    options = {"component_steps": COMPONENT_STEPS, "steps": STEPS}
    return m, [decompose(PLANTED[m][0], 20, seed=seed, **options) for seed in range(n)]


def test_twenty_planted_components_come_back_from_four_of_five_starts(
    starts: tuple[int, list[Decomposition]],
) -> None:
    """A start may end in a local optimum with one component lost (specification, check 6)."""
    m, found = starts
    assert sum(is_recovered(one, m) for one in found[:N_SEEDS]) >= 4


def test_with_three_restarts_they_come_back_from_all_five_seeds(
    starts: tuple[int, list[Decomposition]],
) -> None:
    """The least loss of `decompose` with restarts, without fitting a start three times."""
    m, found = starts
    for seed in range(N_SEEDS):
        kept = min(found[seed : seed + N_RESTARTS], key=lambda one: one.loss)
        assert is_recovered(kept, m)


def test_plain_descent_loses_one_from_a_start_where_the_exact_step_does_not() -> None:
    """After all the steps that the specification gives it (check 6), and the exact one a third."""
    m, seed = 80, 1
    plain, exact = (
        decompose(
            PLANTED[m][0], 20, seed=seed, step=step, component_steps=COMPONENT_STEPS, steps=steps
        )
        for step, steps in (("gd", PLAIN_STEPS), ("exact", STEPS))
    )
    assert is_recovered(exact, m)
    assert int((cosines(plain, m).amax(0) > 0.99).sum()) == 19
    assert 1 - explained(plain) > 0.01
