"""Influence of networks: against convex models, finite differences and retraining."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lib import gradients, models
from lib.attribution import convex, influence, solvers

LAM = 0.05


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int = 50, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs with a bias column, so that a linear layer without bias is the convex model."""
    x = torch.randn(n, 4, generator=rng(seed), dtype=torch.float64)
    return convex.design(x), torch.randint(3, (n,), generator=rng(seed + 1))


def linear() -> tuple[nn.Module, convex.Fit, tuple[Tensor, Tensor]]:
    """A linear network at the optimum of multinomial regression, the fit, and its data."""
    x, y = batch()
    fit = convex.fit_multinomial(x[:, :-1], y, lam=LAM)
    model = nn.Linear(5, 3, bias=False).double()
    model.weight.data = fit.theta.clone()
    return model, fit, (x, y)


def network() -> nn.Module:
    return models.build("mlp", rng(), activation="selu", widths=(5, 6, 3)).double().eval()


def product(model: nn.Module, train: tuple[Tensor, Tensor], l2: float = LAM) -> solvers.Product:
    return gradients.hessian_product(model, train, gradients.cross_entropy, l2=l2)


def test_linear_network_has_the_influence_of_the_convex_model() -> None:
    model, fit, train = linear()
    targets = batch(6, seed=7)
    slopes = convex.output_gradients(
        fit, targets[0][:, :-1], lambda out: gradients.margin(out, targets[1])
    )
    exact = convex.influence(fit, slopes)
    h = product(model, train)
    ways = {
        "cg": lambda g: solvers.conjugate_gradient(h, g, tolerance=1e-12).x,
        "explicit": lambda g: solvers.spectrum(
            solvers.explicit(h, 15, dtype=torch.float64, device="cpu")
        ).solve(g),
    }
    for solve in ways.values():
        assert_close(influence.influence(model, train, targets, solve), exact)
        assert_close(influence.self_influence(model, train, solve), convex.self_influence(fit))
        relative = influence.relative_influence(model, train, targets, solve)
        assert_close(relative, convex.relative_influence(fit, slopes))


def test_lissa_over_batches_of_examples_agrees_with_the_exact_solution() -> None:
    model, _, (x, y) = linear()
    wanted = gradients.per_example(model, batch(2, seed=7), gradients.margin)
    exact = solvers.conjugate_gradient(product(model, (x, y)), wanted.mT, tolerance=1e-10)
    found = solvers.lissa(
        lambda rows: product(model, (x[rows], y[rows])),
        len(x),
        wanted.mT,
        generator=rng(),
        scale=4.0,
        depth=400,
        batch=25,
        repeats=2,
    )
    assert ((found.x - exact.x).norm(dim=0) <= 0.1 * exact.x.norm(dim=0)).all()


def test_arnoldi_projects_to_the_same_scores_as_its_inverse() -> None:
    model, train, targets = network(), batch(), batch(6, seed=7)
    p = models.n_parameters(model)
    h = gradients.ggn_product(model, train, gradients.cross_entropy, l2=LAM)
    pairs = solvers.arnoldi(h, p, generator=rng(), steps=20, rank=5, dtype=torch.float64)
    near = influence.arnoldi_influence(model, train, targets, pairs, damping=0.1)
    far = influence.influence(model, train, targets, lambda g: pairs.solve(g, damping=0.1))
    assert_close(near, far)


def test_arnoldi_of_full_rank_is_explicit_influence() -> None:
    model, train, targets = network(), batch(), batch(6, seed=7)
    p = models.n_parameters(model)
    h = gradients.ggn_product(model, train, gradients.cross_entropy, l2=LAM)
    pairs = solvers.arnoldi(h, p, generator=rng(), steps=p, rank=p, dtype=torch.float64)
    explicit = solvers.spectrum(solvers.explicit(h, p, dtype=torch.float64, device="cpu"))
    assert_close(
        influence.arnoldi_influence(model, train, targets, pairs),
        influence.influence(model, train, targets, explicit.solve),
        rtol=1e-5,
        atol=1e-8,
    )


def test_a_functional_of_the_weights_is_a_target_like_any_other() -> None:
    model, fit, train = linear()
    point = torch.ones(5, dtype=torch.float64)
    slope = gradients.functional_gradient(lambda w: (w["weight"] @ point)[:2], model)  # [2, p]
    h = product(model, train)
    solved = solvers.conjugate_gradient(h, slope.mT, tolerance=1e-12).x
    tau = influence.scores(model, train, solved.mT)
    eps, i = 1e-4, 11
    moved = []
    for sign in (1, -1):
        weights = fit.a.new_ones(len(fit.a))
        weights[i] += sign * eps
        moved.append(convex.minimise(fit.loss, fit.a, fit.y, LAM, fit.theta, weights, 1e-13))
    assert_close(tau[i], ((moved[0] - moved[1]) @ point)[:2] / (2 * eps), rtol=1e-5, atol=1e-8)


def test_a_block_of_weights_is_influence_with_the_rest_frozen() -> None:
    model, train, targets = network(), batch(), batch(6, seed=7)
    hidden = model.get_submodule("hidden1")(train[0]).detach()
    head = model.get_submodule("out")
    short = (hidden, train[1]), (model.get_submodule("hidden1")(targets[0]).detach(), targets[1])
    found = []
    for net, data, wanted, block in (
        (model, train, targets, ["out"]),
        (head, *short, None),
    ):
        h = gradients.ggn_product(net, data, gradients.cross_entropy, l2=LAM, block=block)
        solve = lambda g, h=h: solvers.conjugate_gradient(h, g, tolerance=1e-10).x  # noqa: E731
        found.append(influence.influence(net, data, wanted, solve, block=block))
    assert_close(*found)


def test_input_influence_is_what_moving_an_input_does_after_retraining() -> None:
    model, _, train = linear()
    target = batch(1, seed=7)
    slope = gradients.per_example(model, target, gradients.margin)
    direction = solvers.conjugate_gradient(product(model, train), slope[0], tolerance=1e-12).x
    found = influence.input_influence(model, train, direction, chunk=16)
    assert found.shape == train[0].shape
    eps = 1e-4
    for i, pixel in ((0, 0), (17, 3)):
        margins = []
        for sign in (1, -1):
            x = train[0][:, :-1].clone()
            x[i, pixel] += sign * eps
            again = convex.fit_multinomial(x, train[1], lam=LAM)
            margins.append(gradients.margin(target[0] @ again.theta.mT, target[1])[0])
        assert_close(found[i, pixel], (margins[0] - margins[1]) / (2 * eps), rtol=1e-3, atol=1e-7)


def test_influence_does_not_depend_on_the_chunk_and_follows_a_permutation() -> None:
    model, (x, y), targets = network(), batch(), batch(6, seed=7)
    h = gradients.ggn_product(model, (x, y), gradients.cross_entropy, l2=LAM)
    solve = lambda g: solvers.conjugate_gradient(h, g, tolerance=1e-10).x  # noqa: E731
    tau = influence.influence(model, (x, y), targets, solve)
    assert_close(influence.influence(model, (x, y), targets, solve, chunk=7), tau)
    order = torch.randperm(len(x), generator=rng(3))
    mixed = influence.influence(model, (x[order], y[order]), targets, solve)
    assert_close(mixed, tau[order])


def surprised(model: nn.Module) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training data that end with a copy of a target which the model gets wrong, and the target."""
    x, y = batch()
    wrong = model(x[:1]).argmin(1).detach()
    return (torch.cat([x[1:], x[:1]]), torch.cat([y[1:], wrong])), (x[:1], wrong)


@pytest.mark.parametrize("way", ["cg", "lissa", "explicit", "arnoldi"])
def test_a_copy_of_a_surprising_target_helps_it_most(way: str) -> None:
    model = network()
    (x, y), target = surprised(model)
    p = models.n_parameters(model)

    def ggn(rows: Tensor) -> solvers.Product:
        data = x[rows], y[rows]
        return gradients.ggn_product(model, data, gradients.cross_entropy, l2=LAM)

    h = ggn(torch.arange(len(x)))
    ways: dict[str, influence.Solve] = {
        "cg": lambda g: solvers.conjugate_gradient(h, g).x,
        "lissa": lambda g: (
            solvers.lissa(ggn, len(x), g, generator=rng(), scale=60.0, depth=200, batch=25).x
        ),
        "explicit": lambda g: solvers.spectrum(
            solvers.explicit(h, p, dtype=torch.float64, device="cpu")
        ).solve(g),
        "arnoldi": lambda g: solvers.arnoldi(
            h, p, generator=rng(), steps=40, rank=20, dtype=torch.float64
        ).solve(g),
    }
    tau = influence.influence(model, (x, y), target, ways[way])[:, 0]
    assert tau.argmax() == len(x) - 1
    assert tau[-1] > 0
