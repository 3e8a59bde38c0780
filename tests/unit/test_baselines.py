"""Similarity baselines and the operation counts on cases where the answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from lib import gradients, models
from lib.attribution import baselines, convex, cost
from lib.gradients import cross_entropy

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(20, 4, generator=G, dtype=torch.float64), torch.arange(20) % 3
TX, TY = torch.randn(5, 4, generator=G, dtype=torch.float64), torch.arange(5) % 3


def network(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return models.build("mlp", generator, widths=(4, 6, 3)).double().eval()


def loss_gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    rows = []
    for a, label in zip(x, y, strict=True):
        loss = F.cross_entropy(model(a[None]), label[None])
        parts = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def test_grad_dot_and_grad_cos_are_those_of_the_gradients():
    model = network()
    g, gt = loss_gradients(model, X, Y), loss_gradients(model, TX, TY)
    assert_close(baselines.grad_dot(model, (X, Y), (TX, TY)), g @ gt.T)
    cosine = F.normalize(g, dim=1) @ F.normalize(gt, dim=1).T
    assert_close(baselines.grad_cos(model, (X, Y), (TX, TY)), cosine)


def test_tracin_follows_a_step_of_training():
    """With one small step on example i, the loss of target t falls by rate times the score."""
    model, rate = network(), 1e-6
    score = baselines.tracin([model], [rate], (X, Y), (TX, TY))
    step = loss_gradients(model, X[3:4], Y[3:4])[0]
    before = F.cross_entropy(model(TX), TY, reduction="none")
    with torch.no_grad():
        start = 0
        for weight in model.parameters():
            weight -= rate * step[start : start + weight.numel()].view_as(weight)
            start += weight.numel()
    after = F.cross_entropy(model(TX), TY, reduction="none")
    assert_close(score[3], before - after, rtol=1e-3, atol=1e-11)


def test_tracin_weighs_checkpoints_by_their_rate_and_gas_weighs_them_alike():
    pair = [network(0), network(1)]
    dots = [baselines.grad_dot(m, (X, Y), (TX, TY)) for m in pair]
    found = baselines.tracin(pair, [0.1, 0.01], (X, Y), (TX, TY))
    assert_close(found, 0.1 * dots[0] + 0.01 * dots[1])
    cosines = [baselines.grad_cos(m, (X, Y), (TX, TY)) for m in pair]
    assert_close(baselines.gas(pair, (X, Y), (TX, TY)), (cosines[0] + cosines[1]) / 2)


def test_cosine_of_a_zero_gradient_is_zero():
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 3, bias=False)).double()
    x = X.clone()
    x[2] = -1.0  # the layer sees zeros, so nothing depends on its weights
    found = baselines.grad_cos(model, (x, Y), (TX, TY))
    assert (found[2] == 0).all()
    assert found.isfinite().all()


def test_representation_is_read_before_the_last_linear_layer():
    model = network()
    hidden = model.get_submodule("hidden1")
    a, b = hidden(X).detach(), hidden(TX).detach()
    assert_close(baselines.penultimate(model, X, chunk=7), a)
    assert_close(baselines.representation(model, (X, Y), (TX, TY), cosine=False), a @ b.T)
    cosine = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    assert_close(baselines.representation(model, (X, Y), (TX, TY)), cosine)
    signed = baselines.representation(model, (X, Y), (TX, TY), signed=True)
    same = Y[:, None] == TY
    assert_close(signed[same], cosine[same])
    assert_close(signed[~same], -cosine[~same])


def test_representer_points_add_up_to_the_logit():
    model, l2 = network(), 0.03
    hidden = model.get_submodule("hidden1")
    a, b = hidden(X).detach(), hidden(TX).detach()
    fit = convex.fit_multinomial(a, Y, lam=2 * l2)
    score = baselines.representer_points(model, (X, Y), (TX, TY), l2=l2)
    assert_close(score.sum(0), fit.out(b)[torch.arange(5), TY], atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(
    "score",
    [baselines.grad_dot, baselines.grad_cos, baselines.representer_points],
)
def test_a_copy_of_a_target_helps_it(score):
    x, y = X.clone(), Y.clone()
    x[7], y[7] = TX[2], TY[2]
    tau = score(network(), (x, y), (TX, TY))[:, 2]
    assert tau[7] > 0
    if score is baselines.grad_cos:  # the others also ask how large a gradient or residual is
        assert tau[7] == tau.max()


def test_random_scores_follow_their_generator():
    one, two, three = (
        baselines.random(6, 2, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_outputs_other_than_the_loss_are_taken():
    model = network()
    g = gradients.per_example(model, (X, Y), gradients.margin)
    gt = gradients.per_example(model, (TX, TY), gradients.margin)
    found = baselines.grad_dot(model, (X, Y), (TX, TY), output=gradients.margin)
    assert_close(found, g @ gt.T)
    assert not torch.allclose(found, baselines.grad_dot(model, (X, Y), (TX, TY)))
    assert cross_entropy(model(X), Y).shape == (20,)


def test_a_forward_pass_is_counted_from_its_shapes():
    assert cost.forward(network(), X) == 2 * (4 * 6 + 6 * 3)
    conv = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(75, 2))
    assert cost.forward(conv, torch.zeros(9, 2, 5, 5)) == 2 * (25 * 3 * 18 + 75 * 2)


def test_costs_grow_as_the_formulas_say():
    step = cost.gradients(100.0, 50)
    assert step == 3 * 100 * 50
    assert cost.training(100.0, 50, 30) == 30 * step
    assert cost.hessian_products(100.0, 50, 10) == 20 * step
    assert cost.dense_projection(50, 1000, 64) == 64 * cost.sparse_projection(50, 1000, 1)
    more = cost.ridge(100, 10, 4, penalties=3) - cost.ridge(100, 10, 4, penalties=1)
    assert more == pytest.approx(2 * cost.solve(10, 4))
    assert cost.lasso(100, 10, 4, steps=7) - cost.lasso(100, 10, 4, steps=0) == 7 * 2 * 100 * 4
    apart = cost.kronecker(10, 2, [(5, 3)]) + cost.kronecker(10, 2, [(4, 2)])
    assert cost.kronecker(10, 2, [(5, 3), (4, 2)]) == pytest.approx(apart)
