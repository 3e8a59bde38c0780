"""Invariances of concept maximisation: company of a row, order, chunking, dtype, repetition."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib import backprop
from lib.backprop import L1, L2, L2Sq, Objective

N, D = 6, 5


@pytest.fixture
def net():
    generator = torch.Generator().manual_seed(11)
    layer = nn.Sequential(nn.Linear(D, 12), nn.SELU(), nn.Linear(12, 8), nn.SELU()).double().eval()
    probe = nn.Linear(8, 1).double().eval()
    with torch.no_grad():
        for p in [*layer.parameters(), *probe.parameters()]:
            p.copy_(torch.randn(p.shape, generator=generator) * 0.5)
    s = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return layer, (lambda h: probe(h)[:, 0]), s, probe


def solve(mode, net, rows, weight=0.05):
    layer, probe, s, _ = net
    objective = Objective(layer, probe, [(weight, L1() if mode != "l2sq" else L2Sq())])
    if mode == "to":
        return backprop.maximise_to(objective, s[rows], 1.5, at_least=False, tolerance=1e-9)
    if mode == "faithful":
        generator = torch.Generator().manual_seed(0)
        recipe = backprop.FaithfulRecipe(steps=50)
        return backprop.maximise_faithful(objective, s[rows], 1.5, recipe, generator=generator)
    return backprop.maximise(objective, s[rows], 1.5)


@pytest.mark.parametrize("mode", ["l1", "l2sq", "to"])
def test_a_batch_equals_its_rows_one_by_one(net, mode):
    whole = solve(mode, net, slice(None))
    alone = [solve(mode, net, slice(i, i + 1)) for i in range(N)]
    # matrix products of different batch sizes round differently, nothing else differs; where the
    # optimum is flat, delta may differ by the root of what J differs by
    torch.testing.assert_close(
        whole.objective, torch.cat([x.objective for x in alone]), rtol=1e-5, atol=1e-9
    )
    torch.testing.assert_close(whole.delta, torch.cat([x.delta for x in alone]), rtol=0, atol=5e-5)


def test_faithful_rows_do_not_depend_on_the_rows_after_them(net):
    torch.testing.assert_close(
        solve("faithful", net, slice(0, 3)).delta, solve("faithful", net, slice(None)).delta[:3]
    )


@pytest.mark.parametrize("mode", ["l1", "to", "faithful"])
def test_repeating_gives_the_same_bits(net, mode):
    first, again = (solve(mode, net, slice(None)) for _ in range(2))
    assert torch.equal(first.delta, again.delta)
    assert torch.equal(first.objective_history, again.objective_history)


def test_order_of_rows_does_not_matter(net):
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    torch.testing.assert_close(
        solve("l1", net, order).delta,
        solve("l1", net, slice(None)).delta[order],
        rtol=1e-5,
        atol=1e-6,
    )


def test_weights_per_row_equal_separate_runs(net):
    layer, probe, s, _ = net
    weights = torch.tensor([0.0, 0.01, 0.05, 0.1, 0.5, 5.0], dtype=s.dtype)
    whole = backprop.maximise(Objective(layer, probe, [(weights, L1())]), s, 1.5)
    for i, weight in enumerate(weights.tolist()):
        alone = solve("l1", net, slice(i, i + 1), weight)
        torch.testing.assert_close(whole.delta[i : i + 1], alone.delta, rtol=1e-5, atol=1e-6)


def test_units_of_a_feature_do_not_matter_when_the_distance_has_its_scale(net):
    layer, probe, s, _ = net
    layer = layer[0]  # linear, so that there is one minimum to find
    unit = torch.tensor([1.0, 10.0, 0.1, 3.0, 0.5], dtype=s.dtype)
    read = lambda h: probe(h[:, :8])  # noqa: E731
    plain = backprop.maximise(Objective(layer, read, [(0.05, L2Sq())]), s, 1.5)
    other = backprop.maximise(
        Objective(lambda x: layer(x / unit), read, [(0.05, L2Sq(scale=unit))]), s * unit, 1.5
    )
    torch.testing.assert_close(other.delta / unit, plain.delta, rtol=1e-4, atol=1e-6)


def test_objective_never_rises_and_larger_weight_never_moves_further(net):
    steps = solve("l1", net, slice(None)).objective_history
    assert (steps[1:] <= steps[:-1]).all()
    far = [solve("l1", net, slice(None), w).distance for w in (0.01, 0.1, 1.0)]
    # exact for global minimisers; 5% is for local ones
    assert (far[0] >= 0.95 * far[1]).all()
    assert (far[1] >= 0.95 * far[2]).all()


def test_single_precision_reaches_the_same_objective(net):
    layer, probe_layer, s, module = net
    double = solve("l1", net, slice(None)).objective
    layer.float(), module.float()
    objective = Objective(layer, probe_layer, [(0.05, L1())])
    single = backprop.maximise(objective, s.float(), 1.5)
    assert single.converged.all()
    assert single.delta.dtype == torch.float32
    torch.testing.assert_close(single.objective.double(), double, rtol=1e-3, atol=1e-6)


def test_weights_stay_what_they_were_and_gather_no_gradient(net):
    layer, probe, s, module = net
    before = backprop.weights_hash(layer, module)
    for distance in (L1(), L2(), L2Sq()):
        backprop.maximise(Objective(layer, probe, [(0.1, distance)]), s, 1.5)
    assert backprop.weights_hash(layer, module) == before
    assert all(p.grad is None for p in [*layer.parameters(), *module.parameters()])
