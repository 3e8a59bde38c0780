"""Closed forms of specification 9.1, and what each mode promises (document 5)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib import backprop
from lib.backprop import L1, L2, DecodedMSE, Hamming, L2Sq, Mahalanobis, Objective, Term

N, D, WIDTH = 5, 6, 8
CLOSE = {"rtol": 1e-4, "atol": 1e-9}  # relative tolerance of specification 9.1


@pytest.fixture
def linear():
    """A linear layer and probe in float64, samples, and the direction g = A^T w."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a, bias, w, s = draw(WIDTH, D), draw(WIDTH), draw(WIDTH), draw(N, D)
    return (lambda x: x @ a.T + bias), (lambda h: h @ w + 0.3), s, w @ a


def off_target(layer, probe, s, target):
    return target - probe(layer(s))


def test_exact_constraint_under_squared_l2(linear):
    layer, probe, s, g = linear
    found = backprop.maximise_to(Objective(layer, probe, [(1.0, L2Sq())]), s, 4.0, at_least=False)
    want = off_target(layer, probe, s, 4.0)[:, None] * g / (g @ g)
    assert found.converged.all()
    torch.testing.assert_close(found.delta, want, **CLOSE)


def test_exact_constraint_under_plain_l2_is_the_same_point(linear):
    layer, probe, s, g = linear
    found = backprop.maximise_to(Objective(layer, probe, [(1.0, L2())]), s, 4.0, at_least=False)
    want = off_target(layer, probe, s, 4.0)[:, None] * g / (g @ g)
    torch.testing.assert_close(found.delta, want, **CLOSE)


def test_exact_constraint_under_l1_moves_the_steepest_coordinate(linear):
    layer, probe, s, g = linear
    found = backprop.maximise_to(Objective(layer, probe, [(1.0, L1())]), s, 4.0, at_least=False)
    j = g.abs().argmax()
    want = torch.zeros_like(s)
    want[:, j] = off_target(layer, probe, s, 4.0) / g[j]
    torch.testing.assert_close(found.delta, want, **CLOSE)


@pytest.mark.parametrize("weight", [0.01, 0.25, 10.0])
def test_penalty_under_squared_l2(linear, weight):
    layer, probe, s, g = linear
    objective = Objective(layer, probe, [(weight, L2Sq())], loss_weight=2.0)
    found = backprop.maximise(objective, s, 4.0)
    r = off_target(layer, probe, s, 4.0)
    want = 2.0 * r[:, None] * g / (weight + 2.0 * g @ g)
    torch.testing.assert_close(found.delta, want, **CLOSE)


@pytest.mark.parametrize("weight", [0.01, 0.25, 5.0, 1000.0])
def test_penalty_under_l1_moves_one_coordinate_and_leaves_exact_zeros(linear, weight):
    layer, probe, s, g = linear
    found = backprop.maximise(Objective(layer, probe, [(weight, L1())]), s, 4.0)
    r, j = off_target(layer, probe, s, 4.0), g.abs().argmax()
    size = (r.abs() - weight / (2 * g[j].abs())).clamp_min(0) / g[j].abs()
    want = torch.zeros_like(s)
    want[:, j] = (r * g[j]).sign() * size
    torch.testing.assert_close(found.delta, want, **CLOSE)
    assert (found.delta[:, torch.arange(D) != j] == 0).all()  # zero, not small
    assert found.converged.all()


def test_exact_constraint_under_mahalanobis(linear):
    layer, probe, s, g = linear
    root = torch.randn(D, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    covariance = root @ root.T + 0.1 * torch.eye(D, dtype=torch.float64)
    objective = Objective(layer, probe, [(1.0, Mahalanobis(covariance))])
    found = backprop.maximise_to(objective, s, 4.0, at_least=False)
    r = off_target(layer, probe, s, 4.0)
    want = r[:, None] * (covariance @ g) / (g @ covariance @ g)
    torch.testing.assert_close(found.delta, want, **CLOSE)


@pytest.mark.parametrize("weight", [0.05, 0.3, 100.0])
def test_logistic_probe_to_one_under_l1(linear, weight):
    layer, probe, s, g = linear
    objective = Objective(
        layer, lambda h: probe(h) / 5, [(weight, L1())], link="sigmoid", loss="bce"
    )
    found = backprop.maximise(objective, s, 1.0)
    start = probe(layer(s)) / 5
    steepest = g.abs().max() / 5
    if weight >= steepest:
        assert (found.delta == 0).all()
        return
    stop = torch.logit(1 - weight / steepest)
    torch.testing.assert_close(
        torch.logit(found.probe_after), torch.maximum(stop, start), rtol=1e-4, atol=1e-6
    )
    assert (found.delta[start >= stop] == 0).all()


def test_selu_net_that_stays_positive_obeys_the_linear_closed_form():
    generator = torch.Generator().manual_seed(3)
    first, second = nn.Linear(D, WIDTH).double(), nn.Linear(WIDTH, WIDTH).double()
    with torch.no_grad():
        for layer in (first, second):
            layer.weight.copy_(torch.rand(layer.weight.shape, generator=generator) * 0.2)
            layer.bias.fill_(5.0)  # far above zero, so that SELU is a multiplication
    net = nn.Sequential(first, nn.SELU(), second, nn.SELU()).eval()
    w = torch.rand(WIDTH, generator=generator, dtype=torch.float64)
    s = torch.rand(N, D, generator=generator, dtype=torch.float64)
    slope = 1.0507009873554805
    g = slope**2 * w @ second.weight.detach() @ first.weight.detach()
    before = net(s) @ w
    target = before.detach() + 0.5
    found = backprop.maximise(Objective(net, lambda h: h @ w, [(0.1, L2Sq())]), s, target)
    want = (0.5 * g / (0.1 + g @ g)).expand(N, D)
    torch.testing.assert_close(found.delta, want, **CLOSE)


def test_gradient_agrees_with_finite_differences_on_a_smooth_net():
    generator = torch.Generator().manual_seed(4)
    a = torch.randn(D, WIDTH, generator=generator, dtype=torch.float64)
    w = torch.randn(WIDTH, generator=generator, dtype=torch.float64)
    s = torch.randn(N, D, generator=generator, dtype=torch.float64)
    terms = [Term(0.3, L2Sq()), Term(0.2, Mahalanobis(torch.eye(D, dtype=torch.float64) * 2))]
    objective = Objective(
        lambda x: torch.tanh(x @ a), lambda h: h @ w, terms, link="sigmoid", loss="bce"
    )
    target = torch.full((N,), 0.9, dtype=torch.float64)

    def total(delta):
        p = objective.preactivation(s, delta)
        return objective.misfit(p, target) + objective.weighted(delta)

    delta = torch.randn(N, D, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(total, delta)


def test_constraint_leaves_samples_that_meet_it_alone(linear):
    layer, probe, s, _ = linear
    start = probe(layer(s))
    level = start.median()
    found = backprop.maximise_to(Objective(layer, probe, [(1.0, L1())]), s, level.item())
    assert (found.delta[start >= level] == 0).all()
    assert (found.probe_after >= level - 1e-5).all()


def test_constraint_on_a_sigmoid_reaches_its_level(linear):
    layer, probe, s, _ = linear
    objective = Objective(
        layer, lambda h: probe(h) - 9, [(1.0, L2Sq())], link="sigmoid", loss="bce"
    )
    found = backprop.maximise_to(objective, s, 0.9)
    want = found.probe_before.clamp_min(0.9)
    torch.testing.assert_close(found.probe_after, want, **CLOSE)


def test_a_level_out_of_reach_is_reported_as_not_converged():
    s = torch.zeros(2, 3, dtype=torch.float64)
    objective = Objective(torch.tanh, lambda h: h.sum(1), [(1.0, L2Sq())])
    found = backprop.maximise_to(objective, s, torch.tensor([1.0, 4.0]), max_steps=200)
    assert found.converged.tolist() == [True, False]


def test_relu_probe_below_zero_still_moves(linear):
    layer, probe, s, _ = linear
    objective = Objective(layer, lambda h: probe(h) - 50, [(0.001, L2Sq())], link="relu")
    found = backprop.maximise(objective, s, 1.0)
    assert (found.probe_before == 0).all()
    torch.testing.assert_close(found.probe_after, torch.ones(N, dtype=s.dtype), rtol=1e-3, atol=0)


@pytest.mark.parametrize("distance", [L1, L2, Hamming, L2Sq])
@pytest.mark.parametrize("scaled", [False, True])
def test_prox_is_no_worse_than_any_nearby_point(distance, scaled):
    generator = torch.Generator().manual_seed(5)
    scale = torch.rand(D, generator=generator, dtype=torch.float64) + 0.3 if scaled else 1.0
    term = distance(scale=scale)
    v = torch.randn(N, D, generator=generator, dtype=torch.float64)
    step = torch.tensor([0.0, 0.1, 0.5, 1.0, 10.0], dtype=torch.float64)

    def cost(u):
        return 0.5 * ((u - v) ** 2).sum(1) + step * term.value(u)

    best = term.prox(v, step)
    assert (best[0] == v[0]).all()
    for size in (1e-4, 1e-2, 1.0):
        for _ in range(50):
            noise = torch.randn(N, D, generator=generator, dtype=torch.float64)
            noise = noise * (torch.rand(N, D, generator=generator) < 0.5)
            assert (cost(best) <= cost(best + size * noise) + 1e-12).all()
    assert (cost(best) <= cost(torch.zeros_like(v)) + 1e-12).all()


def test_l2_shrinks_a_whole_row_to_zero():
    v = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    want = torch.tensor([[2.4, 3.2], [0.0, 0.0]])
    torch.testing.assert_close(L2().prox(v, torch.ones(2)), want)


def test_hamming_finds_the_one_useful_coordinate(linear):
    layer, probe, s, _ = linear
    objective = Objective(layer, probe, [(0.5, Hamming())])
    found = backprop.maximise(objective, s, 4.0)
    assert (found.distance <= 2).all()
    assert (found.objective <= (off_target(layer, probe, s, 4.0) ** 2)).all()


def test_decoding_operator_and_decoded_distance_work_in_the_latent_space():
    generator = torch.Generator().manual_seed(6)
    encoder, decoder = nn.Linear(9, 4).double().eval(), nn.Linear(4, 9).double().eval()
    for weight in [*encoder.parameters(), *decoder.parameters()]:
        weight.data.normal_(0, 0.5, generator=generator)
    w = torch.randn(9, generator=generator, dtype=torch.float64)
    s = torch.randn(N, 9, generator=generator, dtype=torch.float64)
    operator = backprop.decoding(encoder, decoder)
    z = encoder(s).detach()
    distance = DecodedMSE(decoder, z, decoder(z).detach())
    terms = [Term(0.25, distance), Term(0.01, L1())]
    objective = Objective(lambda x: x, lambda h: h @ w, terms, operator, link="sigmoid", loss="bce")
    found = backprop.maximise(objective, s, 1.0)
    assert found.delta.shape == (N, 4)
    assert found.result.shape == (N, 9)
    assert (found.probe_after >= found.probe_before).all()
    assert (found.probe_after > 0.9).any()
    assert not found.objective_history.requires_grad
    torch.testing.assert_close(found.result, decoder(z + found.delta))


def test_prefix_reads_a_named_layer():
    net = nn.Sequential()
    net.add_module("hidden", nn.Sequential(nn.Linear(D, 4), nn.SELU()))
    net.add_module("out", nn.Linear(4, 1))
    net.eval()
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(backprop.Prefix(net, "hidden")(x), net.hidden(x))


def test_faithful_start_lies_within_its_bounds_and_travel_is_limited(linear):
    layer, probe, s, _ = linear
    wide = s[:1].expand(2000, D).clone()
    objective = Objective(layer, probe, [(0.25, L1())], link="relu")
    recipe = backprop.FaithfulRecipe(steps=0)
    start = backprop.maximise_faithful(
        objective, wide, 1.0, recipe, generator=torch.Generator().manual_seed(0)
    )
    reach = (6 / 7) ** 0.5  # .926, specification 1.3
    assert start.delta.abs().max() <= reach
    assert start.delta.abs().max() > 0.99 * reach
    assert abs(start.delta.mean()) < 0.02
    moved = backprop.maximise_faithful(
        objective,
        wide,
        1.0,
        backprop.FaithfulRecipe(steps=50),
        generator=torch.Generator().manual_seed(0),
    )
    # Adam moves a parameter by about its rate a step, a little more when the gradient grows;
    # delta is two parameters
    assert (moved.delta - start.delta).abs().max() <= 2 * 1e-3 * 50 * 1.2
    assert (moved.delta - start.delta).abs().max() > 1e-3 * 50


def test_faithful_keeps_noise_in_a_coordinate_without_gradient():
    objective = Objective(lambda x: x[:, :1] * 1.0, lambda h: h[:, 0], [(0.0, L2Sq())])
    s = torch.zeros(3, 2)
    runs = [
        backprop.maximise_faithful(
            objective,
            s,
            1.0,
            backprop.FaithfulRecipe(steps=n),
            generator=torch.Generator().manual_seed(0),
        ).delta
        for n in (0, 20)
    ]
    assert torch.equal(runs[0][:, 1], runs[1][:, 1])
    assert not torch.equal(runs[0][:, 0], runs[1][:, 0])


def test_activity_penalty_works_against_the_goal(linear):
    layer, probe, s, _ = linear
    reached = [
        backprop.maximise_faithful(
            Objective(layer, probe, [(0.0, L2Sq())], link="sigmoid", loss="bce"),
            s,
            0.9,
            backprop.FaithfulRecipe(steps=300, lr=0.02, activity_penalty=penalty),
            generator=torch.Generator().manual_seed(0),
        ).probe_after.mean()
        for penalty in (0.0, 1.0)
    ]
    assert reached[1] < reached[0] - 0.1


def test_histories_start_at_the_sample_and_end_at_the_result(linear):
    layer, probe, s, _ = linear
    found = backprop.maximise(Objective(layer, probe, [(0.1, L1())]), s, 4.0)
    torch.testing.assert_close(found.probe_history[0], found.probe_before)
    assert (found.distance_history[0] == 0).all()
    torch.testing.assert_close(found.objective_history.min(0).values, found.objective)
    assert (found.steps < 50).all()
