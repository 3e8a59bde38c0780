"""The parts of notebook 41's experiments, on problems with known answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib import gradients
from lib.attribution import influence_network as network
from lib.attribution import influence_studies as studies
from lib.attribution import solvers
from lib.data.base import Split


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def binary(n: int = 60, d: int = 4, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    a = torch.randn(n, d, generator=rng(), dtype=torch.float64)
    sign = torch.sign(a[:, 0] + noise * torch.randn(n, generator=rng(1), dtype=torch.float64))
    return a, sign


def images(n: int = 40) -> Split:
    x = torch.randn(n, 1, 8, 8, generator=rng(), dtype=torch.float64)
    return Split(x, torch.randint(3, (n,), generator=rng(1)))


def test_comparison_says_order_size_and_error() -> None:
    predicted = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    found = studies.Comparison(predicted, 2 * predicted + 1)
    assert found.pearson == pytest.approx(1)
    assert found.slope == pytest.approx(2)
    assert found.error == pytest.approx((14 / 3) ** 0.5)
    assert studies.Comparison(predicted, -predicted).pearson == pytest.approx(-1)


def test_hinge_machine_is_at_its_optimum() -> None:
    a, sign = binary()
    theta, lam = studies.hinge_fit(a, sign, 0.1, 60), 0.1
    short = 1 - sign * (a @ theta)
    # lam theta = sum_i alpha_i s_i a_i / n with alpha in [0, 1], 1 inside and 0 beyond the margin
    on = short.abs() < 1e-5
    rest = lam * theta * 60 - (sign * (short > 1e-5)) @ a
    alpha = torch.linalg.lstsq((sign[on, None] * a[on]).mT, rest).solution
    assert ((alpha > -1e-4) & (alpha < 1 + 1e-4)).all()
    assert_close((sign[on, None] * a[on]).mT @ alpha, rest, rtol=0, atol=1e-3)
    assert on.sum() <= 4 < (short > 1e-5).sum()


def test_smoothed_hinge_influence_is_the_derivative_in_an_examples_weight() -> None:
    a, sign = binary()
    t, lam, weights = 0.5, 0.1, torch.ones(60, dtype=torch.float64)

    def optimum(weights: Tensor) -> Tensor:
        theta = torch.zeros(4, dtype=torch.float64)
        for _ in range(50):  # Newton's method, from a start where it converges
            short = (1 - sign * (a @ theta)) / t
            pull, back = torch.sigmoid(short), torch.sigmoid(-short)
            slope = -(a.mT * weights) @ (sign * pull) / 60 + lam * theta
            curvature = weights * pull * back / t
            hessian = (a.mT * curvature) @ a / 60 + lam * torch.eye(4, dtype=a.dtype)
            theta = theta - torch.linalg.solve(hessian, slope)
        return theta

    slopes = torch.eye(4, dtype=torch.float64)
    tau = studies.hinge_influence(a, sign, optimum(weights), slopes, lam=lam, t=t)
    for i in (0, 31):
        step = torch.zeros_like(weights)
        step[i] = 1e-4
        moved = (optimum(weights + step) - optimum(weights - step)) / 2e-4
        assert_close(tau[i], moved, rtol=1e-5, atol=1e-8)


def test_plain_hinge_has_no_curvature_but_the_penalty() -> None:
    a, sign = binary()
    theta = torch.full((4,), 0.1, dtype=torch.float64)
    tau = studies.hinge_influence(a, sign, theta, a[:3], lam=0.2, t=0.0)
    short = 1 - sign * (a @ theta) > 0
    assert_close(tau, (sign * short)[:, None] * (a @ a[:3].mT) / (60 * 0.2))


def test_hinge_study_counts_its_points_and_keeps_them_over_temperatures() -> None:
    a, sign = binary()
    split = Split(a, (sign > 0).long())
    found = studies.hinge(
        split, split, classes=(0, 1), lam=0.1, n_removed=20, temperatures=(0.0, 1e-3, 0.1)
    )
    assert found.n == 60
    assert 0 < found.n_inside < 60
    actual = [comparison.actual for comparison in found.found.values()]
    assert all(torch.equal(actual[0], other) for other in actual)
    assert found.found[0.1].pearson > 0.8  # many points inside: their pull is known


def test_shares_of_neighbours_by_hand() -> None:
    distance = torch.arange(10.0)[:, None]
    same = (torch.arange(10) < 5)[:, None]
    tau = torch.tensor([4.0, 1, 0, 0, 0, -2, 0, 0, 3, 0])[:, None]
    found = studies.Neighbours(distance, same, {"model": tau})
    assert_close(found.near_share("model"), torch.tensor([0.4]))
    assert_close(found.other_share("model"), torch.tensor([0.375]))


def test_a_group_of_one_is_leave_one_out() -> None:
    train, rest = studies.load("digits", Path(), n=200)
    targets = Split(rest.x[:20], rest.y[:20])
    single = studies.leave_one_out(train, targets, 1e-2)
    (groups,) = studies.groups(
        train,
        targets,
        lam=1e-2,
        shares=[1 / 200],
        n_random=3,
        n_coherent=2,
        output="margin",
        seed=0,
    )
    order = rng()
    drawn = [torch.randperm(200, generator=order)[0] for _ in range(3)]
    sign = 2 * (targets.y % 2) - 1
    predicted = sign * single.first_order[torch.stack(drawn)]
    assert_close(groups.random.predicted.view(3, 20), predicted)
    assert_close(
        groups.random.actual.view(3, 20),
        sign * single.actual[torch.stack(drawn)],
        atol=1e-7,
        rtol=0,
    )
    assert (groups.coherent.predicted < 0).all()  # what helped most is gone


def test_both_solvers_predict_leaving_out_a_digit() -> None:
    train, test = studies.load("digits", Path(), n=200)
    lissa = {"scale": 10.0, "depth": 1500, "batch": 10, "repeats": 1}
    found, row, series = studies.multinomial(
        train, test, lam=0.05, n_removed=30, lissa=lissa, seed=0
    )
    assert found["conjugate gradients"].pearson > 0.99
    assert found["LiSSA"].pearson > 0.95
    assert series.drift.max() < 0.1
    assert 0 <= row < len(test)


def test_gauss_newton_matrix_is_that_of_the_product() -> None:
    data, model = images(), network.build(2, 0)
    p = sum(w.numel() for w in model.parameters())
    g = gradients.ggn_product(model, (data.x, data.y), gradients.cross_entropy, l2=0.1)
    explicit = solvers.explicit(g, p, dtype=torch.float64, device="cpu")
    assert_close(network.matrix(model, data, 0.1), explicit)


def test_training_ends_at_a_small_gradient_and_retraining_forgets_the_point() -> None:
    data, l2 = images(), 0.02
    early, model = network.train(data, 2, l2, seed=0, tols=(1e-4, 1e-5))

    def gradient(net: torch.nn.Module, rows: Tensor) -> Tensor:
        losses = gradients.cross_entropy(net(data.x[rows]), data.y[rows]).sum() / len(data)
        penalty = l2 / 2 * sum(w.square().sum() for w in net.parameters())
        return torch.cat(
            [g.flatten() for g in torch.autograd.grad(losses + penalty, list(net.parameters()))]
        )

    everything = torch.arange(len(data))
    assert 1e-5 < gradient(early, everything).abs().max() <= 1e-4
    assert gradient(model, everything).abs().max() <= 1e-5
    factor = torch.linalg.cholesky(network.matrix(model, data, 2 * l2))
    found = network.retrain(model, data, l2, factor, 7, tol=1e-6, max_steps=200)
    assert gradient(found, everything[everything != 7]).abs().max() <= 1e-6
    assert gradient(model, everything).abs().max() <= 1e-5  # the model itself is untouched
