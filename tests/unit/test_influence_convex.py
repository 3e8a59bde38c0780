"""Influence of convex models against closed forms, retraining and finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib.attribution import convex, refits


def data(n: int = 40, d: int = 5, classes: int = 0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(inputs [n, d], labels [n], targets [7, d]); `classes` 0 for a real target."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    signal = x @ torch.randn(d, max(classes, 1), generator=generator, dtype=torch.float64)
    noisy = signal + torch.randn(signal.shape, generator=generator, dtype=torch.float64)
    targets = torch.randn(7, d, generator=generator, dtype=torch.float64)
    if classes == 0:
        return x, noisy[:, 0], targets
    return x, (noisy[:, 0] > 0).long() if classes == 2 else noisy.argmax(1), targets


def first(out: Tensor) -> Tensor:
    return out[:, 0]


def fits() -> dict[str, convex.Fit]:
    return {
        "ridge": convex.fit_ridge(*data()[:2], lam=0.1),
        "logistic": convex.fit_logistic(*data(classes=2)[:2], lam=0.1),
        "multinomial": convex.fit_multinomial(*data(classes=3)[:2], lam=0.1),
    }


KINDS = pytest.mark.parametrize("kind", ["ridge", "logistic", "multinomial"])


def objective(fit: convex.Fit, theta: Tensor, weights: Tensor) -> Tensor:
    value = fit.loss.value(fit.a @ theta.mT, fit.y)
    return weights @ value / len(fit.a) + fit.lam / 2 * theta.square().sum()


@KINDS
def test_derivatives_of_the_loss_agree_with_autograd(kind: str) -> None:
    fit = fits()[kind]
    out = (fit.a @ fit.theta.mT + 0.3).requires_grad_()
    (slope,) = torch.autograd.grad(fit.loss.value(out, fit.y).sum(), out, create_graph=True)
    assert_close(slope.detach(), fit.loss.residual(out.detach(), fit.y))
    rows = [
        torch.autograd.grad(slope[:, c].sum(), out, retain_graph=True)[0]
        for c in range(slope.shape[1])
    ]
    assert_close(torch.stack(rows, 1), fit.loss.curvature(out.detach()))


@KINDS
def test_fit_has_no_gradient_left_and_the_factor_is_the_hessians(kind: str) -> None:
    fit = fits()[kind]
    theta = fit.theta.clone().requires_grad_()
    whole = torch.ones(len(fit.a), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(objective(fit, theta, whole), theta)
    assert gradient.abs().max() <= 1e-10
    size = fit.theta.numel()
    hessian = torch.autograd.functional.hessian(lambda t: objective(fit, t, whole), fit.theta)
    assert_close(fit.factor @ fit.factor.mT, hessian.reshape(size, size))


@KINDS
def test_product_is_that_of_the_hessian_over_any_rows(kind: str) -> None:
    fit = fits()[kind]
    v = torch.randn(fit.theta.numel(), 2, generator=torch.Generator().manual_seed(2)).double()
    whole = fit.factor @ fit.factor.mT
    assert_close(convex.product(fit)(v), whole @ v)
    assert_close(convex.product(fit)(v[:, 0]), whole @ v[:, 0])
    rows = torch.tensor([3, 3, 8])
    part = convex.hessian_of(fit.a[rows], fit.curvature[rows], fit.lam)
    assert_close(convex.product(fit, rows)(v), part @ v)


@KINDS
def test_influence_is_the_derivative_in_an_examples_weight(kind: str) -> None:
    fit = fits()[kind]
    targets = data()[2]
    gradients = convex.output_gradients(fit, targets, first)
    tau = convex.influence(fit, gradients)
    eps, i = 1e-4, 3
    moved = []
    for sign in (1, -1):
        weights = fit.a.new_ones(len(fit.a))
        weights[i] += sign * eps
        moved.append(convex.minimise(fit.loss, fit.a, fit.y, fit.lam, fit.theta, weights, 1e-13))
    slope = first(convex.design(targets) @ (moved[0] - moved[1]).mT) / (2 * eps)
    assert_close(tau[i], slope, rtol=1e-6, atol=1e-9)


def test_ridge_influence_over_one_minus_leverage_is_leave_one_out() -> None:
    x, y, targets = data()
    fit = convex.fit_ridge(x, y, lam=0.1)
    gradients = convex.output_gradients(fit, targets, first)
    corrected = convex.influence_corrected(fit, gradients)
    assert_close(
        corrected,
        convex.influence(fit, gradients) / (1 - convex.leverage(fit))[:, None],
    )
    a, n = convex.design(x), len(x)
    for i in range(n):  # brute force from the normal equations, normaliser n and lam kept
        keep = torch.arange(n) != i
        hessian = a[keep].mT @ a[keep] / n + 0.1 * torch.eye(a.shape[1], dtype=a.dtype)
        theta = torch.linalg.solve(hessian, a[keep].mT @ y[keep] / n)
        change = convex.design(targets) @ theta - first(fit.out(targets))
        assert_close(-corrected[i], change, rtol=0, atol=1e-12)


@KINDS
def test_corrected_influence_is_one_newton_step_without_the_example(kind: str) -> None:
    fit = fits()[kind]
    targets = data()[2]
    corrected = convex.influence_corrected(fit, convex.output_gradients(fit, targets, first))
    groups = [torch.tensor([i]) for i in range(len(fit.a))]
    step = refits.outputs(refits.group_newton(fit, groups), targets, first)
    assert_close(-corrected, step - first(fit.out(targets)))


@KINDS
def test_leave_one_out_is_newtons_optimum_without_the_example(kind: str) -> None:
    fit = fits()[kind]
    rows = torch.tensor([5, 0, 39])
    fast = refits.leave_one_out(fit, rows)
    plain = refits.leave_out(fit, list(rows[:, None]))
    assert_close(fast, plain, rtol=0, atol=1e-8)  # plain Newton stops at gradient 1e-10, lam 0.1
    assert (fast - fit.theta).abs().amax() > 1e-3  # and it is another model


def test_leverage_lies_between_zero_and_one_and_grows_as_lam_falls() -> None:
    x, y, _ = data(classes=3)
    high, low = (convex.leverage(convex.fit_multinomial(x, y, lam=lam)) for lam in (1.0, 0.01))
    assert (high >= 0).all()
    assert (low < 1).all()
    assert (low.mean() > 2 * high.mean()).item()


@KINDS
def test_self_influence_is_the_examples_influence_on_its_own_loss(kind: str) -> None:
    fit = fits()[kind]
    gradients = fit.residual[:, :, None] * fit.a[:, None, :]
    own = -convex.influence(fit, gradients).diagonal() * len(fit.a)
    assert_close(convex.self_influence(fit), own)
    assert (own > 0).all()


def test_relative_influence_forgets_how_far_an_example_moves_the_model() -> None:
    fit = fits()["logistic"]
    gradients = convex.output_gradients(fit, data()[2], first)
    relative = convex.relative_influence(fit, gradients)
    solved = fit.solve(fit.residual[:, :, None] * fit.a[:, None, :])
    cosine = torch.nn.functional.cosine_similarity(
        solved.flatten(1)[:, None], gradients.flatten(1)[None], dim=-1
    )
    scale = gradients.flatten(1).norm(dim=1) / len(fit.a)
    assert_close(relative, -cosine * scale)


def test_a_copy_of_a_surprising_target_helps_it_most() -> None:
    # a wrong label: a target that the model already fits has no residual, and nothing to copy
    x, y, _ = data(classes=3)
    wrong = (y[:1] + 1) % 3
    fit = convex.fit_multinomial(torch.cat([x, x[:1]]), torch.cat([y, wrong]), lam=0.1)
    label = int(wrong)
    gradients = convex.output_gradients(fit, x[:1], lambda out: out.log_softmax(1)[:, label])
    for find in (convex.influence, convex.influence_corrected, convex.relative_influence):
        tau = find(fit, gradients)[:, 0]
        assert tau.argmax() == len(x)
        assert tau[-1] > 0


@KINDS
def test_permuting_the_examples_permutes_their_influence(kind: str) -> None:
    fit = fits()[kind]
    order = torch.randperm(len(fit.a), generator=torch.Generator().manual_seed(1))
    maker = getattr(convex, f"fit_{kind}")
    other = maker(fit.a[order, :-1], fit.y[order], lam=fit.lam)
    targets = data()[2]
    tau, moved = (
        convex.influence(f, convex.output_gradients(f, targets, first)) for f in (fit, other)
    )
    assert_close(moved, tau[order], rtol=1e-7, atol=1e-9)


def test_group_of_everything_is_the_sum_and_newton_beats_it_on_large_groups() -> None:
    fit = fits()["logistic"]
    targets = data()[2]
    tau = convex.influence(fit, convex.output_gradients(fit, targets, first))
    group = [torch.arange(12)]
    added = refits.group_influence(tau, group)
    assert_close(added[0], tau[:12].sum(0))
    base = first(fit.out(targets))
    actual = refits.outputs(refits.leave_out(fit, group), targets, first) - base
    newton = refits.outputs(refits.group_newton(fit, group), targets, first) - base
    assert (newton - actual).norm() < 0.2 * (-added - actual).norm()
