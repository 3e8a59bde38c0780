"""TRAK against closed forms on linear models, and its two forms against one another."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from lib import gradients, models
from lib.attribution import convex, surrogate, trak
from lib.gradients import margin

N, D, C = 40, 5, 3


def rows(n: int, *, seed: int = 0, classes: int = C) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=generator)


def network(seed: int = 0, *, dtype: torch.dtype = torch.float64) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return models.build("mlp", generator, widths=(D, 6, C)).to(dtype).eval()


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer in float64 with given weights `[C, D]`."""
    layer = nn.Linear(D, len(weight)).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    return layer


def signed(out: Tensor, y: Tensor) -> Tensor:
    """The margin of one logit with labels in {0, 1}."""
    return out.squeeze(-1) * (2 * y - 1)


def residual(out: Tensor, y: Tensor) -> Tensor:
    return out.squeeze(-1) - y


TRAIN, TARGETS = rows(N), rows(7, seed=1)


def test_scores_are_the_written_formula():
    generator = torch.Generator().manual_seed(0)
    phi, target = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (30, 4))
    bend = torch.rand(30, generator=generator, dtype=torch.float64)
    matrix = phi.T @ torch.diag(bend) @ phi
    inverse = torch.linalg.inv(matrix + 0.3 * matrix.diagonal().mean() * torch.eye(6))
    wanted = phi @ inverse @ target.T
    assert_close(surrogate.scores(phi, target, ridge=0.3, curvature=bend), wanted)
    h = bend * (phi @ inverse @ phi.T).diagonal()
    found = surrogate.scores(phi, target, ridge=0.3, curvature=bend, leverage=True)
    assert_close(found, wanted / (1 - h)[:, None])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("leverage", [False, True])
@pytest.mark.parametrize("k", [6, 50])  # fewer and more than examples
def test_dual_form_equals_primal_form(weighted: bool, leverage: bool, k: int):
    generator = torch.Generator().manual_seed(0)
    phi, target = (torch.randn(n, k, generator=generator, dtype=torch.float64) for n in (30, 4))
    bend = torch.rand(30, generator=generator, dtype=torch.float64) if weighted else None
    size = (surrogate.gram(phi, bend)).trace()  # of both: the ridges are shares of its mean
    primal = surrogate.scores(
        phi, target, ridge=float(2 * k / size), curvature=bend, leverage=leverage
    )
    dual = surrogate.kernel_scores(
        phi @ phi.T, phi @ target.T, ridge=float(2 * 30 / size), curvature=bend, leverage=leverage
    )
    assert_close(dual, primal, rtol=1e-6, atol=1e-9)


def test_gram_does_not_depend_on_the_chunk():
    phi = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    assert_close(surrogate.gram(phi, chunk=7), surrogate.gram(phi))


def test_features_that_are_zero_for_every_example_carry_nothing():
    phi = torch.randn(30, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wide = torch.cat([phi, torch.zeros(30, 1, dtype=phi.dtype)], 1)
    target = wide[:4].clone()
    target[:, 6] = 5.0
    assert_close(surrogate.scores(wide, target, ridge=0), surrogate.scores(phi, phi[:4], ridge=0))


def test_leverage_makes_ridge_regression_exact_leave_one_out():
    x, lam = TRAIN[0], 0.05
    y = x[:, 0].sin() + TRAIN[1]
    fit = convex.fit_ridge(x, y, lam=lam)
    layer = linear(fit.theta[:, :-1], fit.theta[:, -1])
    share = lam * N / float((fit.a.T @ fit.a).diagonal().mean())
    target = (TARGETS[0], torch.zeros(7, dtype=x.dtype))
    found = trak.trak(
        [layer],
        (x, y),
        target,
        k=None,
        output=residual,
        loss=lambda e: e.square() / 2,
        ridge=share,
        leverage=True,
    ).tau
    a, at = fit.a, convex.design(TARGETS[0])
    for i in range(N):
        keep = torch.arange(N) != i  # the normaliser 1/n and lam stay as they were
        penalty = N * lam * torch.eye(D + 1, dtype=x.dtype)
        theta = torch.linalg.solve(a[keep].T @ a[keep] + penalty, a[keep].T @ y[keep])
        assert_close(found[i], fit.out(TARGETS[0])[:, 0] - at @ theta, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("form", [trak.trak, trak.trak_exact])
def test_curvature_and_ridge_make_logistic_regression_exact_influence(form):
    x, y = rows(N, classes=2)
    lam = 0.01
    fit = convex.fit_logistic(x, y, lam=lam)
    layer = linear(fit.theta[:, :-1], fit.theta[:, -1])
    weighted = fit.a.T @ (fit.curvature[:, 0] * fit.a)
    entries = D + 1 if form is trak.trak else N
    share = lam * N * entries / float(weighted.trace())
    options = {"k": None} if form is trak.trak else {}
    targets = (TARGETS[0], TARGETS[1] % 2)
    found = form(
        [layer], (x, y), targets, output=signed, ridge=share, curvature=True, **options
    ).tau
    hessian = weighted / N + lam * torch.eye(D + 1, dtype=x.dtype)
    step = torch.linalg.solve(hessian, -(fit.residual[:, 0, None] * fit.a).T) / N  # adding a row
    sign = 2 * targets[1] - 1
    assert_close(found, (convex.design(TARGETS[0]) * sign[:, None] @ step).T, rtol=1e-6, atol=1e-9)


def test_vector_form_is_exact_influence_on_a_softmax_model():
    lam = 0.02
    fit = convex.fit_multinomial(*TRAIN, lam=lam)
    layer = linear(fit.theta[:, :-1], fit.theta[:, -1])

    def loss(flat: Tensor) -> Tensor:
        theta = flat.view(C, D + 1)
        mean = gradients.cross_entropy(fit.a @ theta.T, TRAIN[1]).mean()
        return mean + lam / 2 * flat.square().sum()

    theta = fit.theta.flatten()
    hessian = torch.func.hessian(loss)(theta)
    weight = torch.diagonal(hessian - lam * torch.eye(len(theta))).sum() * N
    found = trak.trak_vector(
        [layer], TRAIN, TARGETS, k=None, ridge=float(lam * N * len(theta) / weight)
    )
    at = convex.design(TARGETS[0])

    def value(flat: Tensor, a: Tensor, y: Tensor) -> Tensor:
        return margin(flat.view(C, D + 1) @ a, y)

    target = torch.func.vmap(torch.func.grad(value), (None, 0, 0))(theta, at, TARGETS[1])

    def example(flat: Tensor, a: Tensor, y: Tensor) -> Tensor:
        return gradients.cross_entropy(flat.view(C, D + 1) @ a, y)

    acting = torch.func.vmap(torch.func.grad(example), (None, 0, 0))(theta, fit.a, TRAIN[1])
    wanted = -acting @ torch.linalg.solve(hessian, target.T) / N
    assert_close(found.tau, wanted, rtol=1e-6, atol=1e-9)


def test_averages_of_kernel_and_weights_are_taken_apart():
    pair = [network(0), network(1)]
    alone = [trak.trak([m], TRAIN, TARGETS, k=None) for m in pair]
    both = trak.trak(pair, TRAIN, TARGETS, k=None)
    assert_close(both.unweighted, (alone[0].unweighted + alone[1].unweighted) / 2)
    assert_close(both.weights, (alone[0].weights + alone[1].weights) / 2)
    assert_close(both.tau, both.unweighted * both.weights[:, None])
    assert not torch.allclose(both.tau, (alone[0].tau + alone[1].tau) / 2, rtol=1e-3)
    assert both.n_models == 2


def test_each_network_reports_the_attribution_so_far():
    seen: list[trak.Attribution] = []
    last = trak.trak(iter([network(0), network(1)]), TRAIN, TARGETS, k=20, each=seen.append)
    assert [a.n_models for a in seen] == [1, 2]
    assert_close(seen[0].tau, trak.trak([network(0)], TRAIN, TARGETS, k=20).tau)
    assert seen[1] is last


def test_weights_are_one_minus_the_probability_of_the_label():
    p = network()(TRAIN[0]).softmax(1)[torch.arange(N), TRAIN[1]]
    assert_close(trak.trak([network()], TRAIN, TARGETS, k=10).weights, 1 - p.detach())


def test_every_projection_and_every_network_has_its_own_matrix():
    one, two = (trak.trak([network()], TRAIN, TARGETS, k=10, seed=s).tau for s in (0, 1))
    assert not torch.allclose(one, two, rtol=1e-3)
    twice = trak.trak([network()] * 2, TRAIN, TARGETS, k=10).tau
    assert not torch.allclose(twice, one, rtol=1e-3)
    assert_close(trak.trak([network()], TRAIN, TARGETS, k=10, seed=0).tau, one)


@pytest.mark.parametrize("form", [trak.trak, trak.trak_exact, trak.trak_vector])
def test_a_copy_of_a_target_raises_it_most(form):
    x, y = (part.clone() for part in TRAIN)
    x[17], y[17] = TARGETS[0][2], TARGETS[1][2]
    assert form([network()], (x, y), TARGETS).tau[:, 2].argmax() == 17


@pytest.mark.parametrize("form", [trak.trak, trak.trak_exact, trak.trak_vector])
def test_targets_may_be_gradients_of_any_functional(form):
    def margins(model: nn.Module, block: trak.Block) -> Tensor:
        def value(weights: dict[str, Tensor]) -> Tensor:
            return margin(functional_call(model, weights, (TARGETS[0],)), TARGETS[1])

        return gradients.functional_gradient(value, model, block=block)

    wanted = form([network(0), network(1)], TRAIN, TARGETS).tau
    assert_close(form([network(0), network(1)], TRAIN, margins).tau, wanted)


def test_scores_per_layer_add_up():
    model = network()
    assert trak.layers(model) == (("hidden1.0",), ("out",))
    whole = trak.trak([model], TRAIN, TARGETS, k=None, blocks=trak.layers(model)).unweighted
    parts = [
        trak.trak([model], TRAIN, TARGETS, k=None, blocks=[block]).unweighted
        for block in trak.layers(model)
    ]
    assert_close(whole, parts[0] + parts[1])
    features = gradients.per_example(model, TRAIN, margin, block=("out",))
    target = gradients.per_example(model, TARGETS, margin, block=("out",))
    assert_close(parts[1], surrogate.scores(features, target))


@pytest.mark.parametrize("form", [trak.trak, trak.trak_exact, trak.trak_vector])
def test_result_depends_neither_on_the_chunk_nor_on_the_order_of_rows(form):
    wanted = form([network()], TRAIN, TARGETS).tau
    assert_close(form([network()], TRAIN, TARGETS, chunk=7).tau, wanted)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    shuffled = form([network()], (TRAIN[0][order], TRAIN[1][order]), TARGETS).tau
    assert_close(shuffled, wanted[order])


def test_the_network_is_left_as_it_was():
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trak.trak([model], TRAIN, TARGETS, k=10)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_soft_threshold_keeps_a_share_and_shrinks_towards_zero():
    tau = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    kept = trak.soft_threshold(tau, 0.2)
    assert ((kept != 0).sum(0) == 10).all()
    assert (kept * tau >= 0).all()
    largest = tau.abs().argmax(0)
    threshold = tau.abs().sort(0).values[39]
    columns = torch.arange(3)
    assert_close(kept[largest, columns].abs(), tau[largest, columns].abs() - threshold)
    assert_close(trak.soft_threshold(tau, 1.0), tau)


def test_threshold_is_chosen_by_the_score_on_held_out_subsets():
    generator = torch.Generator().manual_seed(0)
    true = torch.zeros(60, 4)
    true[:3] = 10.0
    subsets = torch.stack([torch.randperm(60, generator=generator)[:30] for _ in range(80)])
    subsets = subsets.sort(1).values
    outputs = torch.stack([true[rows].sum(0) for rows in subsets])
    noisy = true + torch.randn(60, 4, generator=generator)
    shrunk, keep = trak.choose_threshold(noisy, subsets, outputs)
    assert keep == 0.05
    assert_close(shrunk, trak.soft_threshold(noisy, 0.05))
