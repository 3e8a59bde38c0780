"""Smallest changes: closed forms of linear models, with and without a box, and networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lib import models
from lib.attribution import counterfactuals, feature_contrasts
from lib.attribution.counterfactuals import linear_step, margin, search

REACH = 1e-3


def problem(n: int = 6, d: int = 7, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slopes, needs within reach of the box, and the box as changes."""
    g = torch.Generator().manual_seed(seed)
    slope = torch.randn(n, d, generator=g, dtype=torch.float64)
    low = -torch.rand(n, d, generator=g, dtype=torch.float64)
    high = torch.rand(n, d, generator=g, dtype=torch.float64)
    most = (slope * torch.where(slope > 0, high, low)).sum(1)
    return slope, 0.6 * most, low, high


def test_l1_step_is_the_linear_programme() -> None:
    from scipy.optimize import linprog

    slope, need, low, high = problem()
    found = linear_step(slope, need, low, high, "L1")
    for i in range(len(slope)):
        # delta = up - down, both non-negative
        a = np.concatenate([-slope[i], slope[i]])[None]
        bounds = [(0, float(v)) for v in high[i]] + [(0, float(-v)) for v in low[i]]
        best = linprog(np.ones(2 * slope.shape[1]), a, [-float(need[i])], bounds=bounds)
        assert found[i].abs().sum().item() == pytest.approx(best.fun, rel=1e-7)
        assert (slope[i] @ found[i]).item() == pytest.approx(need[i].item(), rel=1e-9)


def test_l2_step_is_the_quadratic_programme() -> None:
    from scipy.optimize import minimize

    slope, need, low, high = problem(seed=1)
    found = linear_step(slope, need, low, high, "L2")
    for i in range(len(slope)):
        w, enough = slope[i].numpy(), need[i].item()
        best = minimize(
            lambda d: 0.5 * d @ d,
            np.zeros(len(w)),
            jac=lambda d: d,
            method="SLSQP",
            bounds=list(zip(low[i].tolist(), high[i].tolist(), strict=True)),
            constraints={
                "type": "ineq",
                "fun": lambda d, w=w, e=enough: w @ d - e,
                "jac": lambda d, w=w: w,
            },
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert np.abs(found[i].numpy() - best.x).max() < 1e-5


@pytest.mark.parametrize("norm", counterfactuals.NORMS)
def test_steps_stay_in_the_box_and_do_nothing_where_nothing_is_needed(norm: str) -> None:
    slope, need, low, high = problem()
    d = linear_step(slope, 10 * need.abs(), low, high, norm)
    corner = torch.where(slope > 0, high, low)
    torch.testing.assert_close(d, corner)  # out of reach: as far as the box goes
    assert (linear_step(slope, -need.abs(), low, high, norm) == 0).all()


def test_search_finds_the_closed_form_of_linear_models() -> None:
    for seed in range(3):
        for error in feature_contrasts.linear_check(seed=seed).values():
            assert error < 2 * REACH  # the margin asked for beyond the boundary


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return models.build("mlp", torch.Generator().manual_seed(0), widths=(6, 16, 3)).double().eval()


@pytest.mark.parametrize("norm", counterfactuals.NORMS)
def test_search_changes_a_network_inside_the_box(norm: str, network) -> None:
    x = torch.rand(20, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    target = network(x).topk(2).indices[:, 1]
    found = search(network, x, target, norm=norm, low=-2.0, high=3.0, n_steps=40)
    moved = (x + found.delta)[found.found]
    assert found.found.double().mean() > 0.9
    assert (network(moved).argmax(1) == target[found.found]).all()
    assert moved.min() >= -2 - 1e-9
    assert moved.max() <= 3 + 1e-9
    size = found.delta.abs().sum(1) if norm == "L1" else found.delta.norm(dim=1)
    torch.testing.assert_close(found.length[found.found], size[found.found])


def test_changes_along_random_directions_are_hardly_ever_shorter(network) -> None:
    """A local search may miss a nearer boundary: 2,000 directions find one for one row in 15."""
    g = torch.Generator().manual_seed(1)
    x = torch.rand(15, 6, generator=g, dtype=torch.float64)
    target = network(x).topk(2).indices[:, 1]
    found = search(network, x, target, norm="L2", low=-5.0, high=5.0)
    assert found.found.all()
    ways = torch.randn(2000, 6, generator=g, dtype=torch.float64)
    ways = ways / ways.norm(dim=1, keepdim=True)
    missed = 0
    for i in range(15):
        reach = torch.linspace(0, 0.98, 15, dtype=torch.float64) * found.length[i]
        tried = x[i] + (reach[:, None, None] * ways).reshape(-1, 6)
        missed += int((margin(network(tried), target[i].expand(len(tried))) >= 0).any())
    assert missed <= 2
    # at a smallest change the margin's gradient points along it
    assert found.alignment.median() > 0.99


def test_a_start_that_wins_is_improved_upon_and_never_lost(network) -> None:
    g = torch.Generator().manual_seed(4)
    x = torch.rand(12, 6, generator=g, dtype=torch.float64)
    target = network(x).topk(2).indices[:, 1]
    pool = 6 * torch.rand(4000, 6, generator=g, dtype=torch.float64) - 3
    classes = network(pool).argmax(1)
    start = torch.stack([pool[classes == t][0] for t in target])
    for norm in counterfactuals.NORMS:
        found = search(network, x, target, norm=norm, low=-3, high=3, n_steps=1, start=start)
        way = (start - x).abs().sum(1) if norm == "L1" else (start - x).norm(dim=1)
        assert found.found.all()
        assert (found.length <= way + 1e-9).all()


def test_where_the_box_is_too_small_nothing_is_found(network) -> None:
    x = torch.full((2, 6), 0.5, dtype=torch.float64)
    target = network(x).argmin(1)
    found = search(network, x, target, norm="L2", low=0.5 - 1e-9, high=0.5 + 1e-9, n_steps=5)
    assert not found.found.any()
    assert found.delta.isnan().all()
    assert found.length.isinf().all()
