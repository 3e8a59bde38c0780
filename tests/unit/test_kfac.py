"""K-FAC and EK-FAC against Fisher matrices that are written down."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from lib import gradients, models
from lib.attribution import kfac

FITS = pytest.mark.parametrize("fit", [kfac.fit_kfac, kfac.fit_ekfac])


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(n: int = 60, seed: int = 0) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 6, generator=rng(seed), dtype=torch.float64)
    return x, torch.randint(3, (n,), generator=rng(seed + 1))


def network(seed: int = 0) -> nn.Module:
    return models.build("mlp", rng(seed), widths=(6, 5, 3)).double().eval()


def half_square(out: Tensor, y: Tensor) -> Tensor:
    return (out[..., 0] - y).square() / 2


def gaussian(out: Tensor, generator: torch.Generator) -> Tensor:
    return out[:, 0] + torch.randn(len(out), generator=generator, dtype=out.dtype)


@FITS
def test_one_output_regression_has_the_fisher_matrix_of_its_inputs(fit) -> None:
    n = 100_000
    x = torch.randn(n, 6, generator=rng(), dtype=torch.float64) * torch.arange(1, 7)
    model = nn.Linear(6, 1).double()
    curvature = fit(model, x, generator=rng(1), loss=half_square, sample=gaussian, chunk=10_000)
    right = torch.randn(4, 7, generator=rng(2), dtype=torch.float64)
    found = kfac.solve(curvature, model, right, damping=0.0)
    a = torch.cat([x, torch.ones(n, 1, dtype=x.dtype)], 1)
    exact = torch.linalg.solve(a.mT @ a / n, right.mT).mT
    assert ((found - exact).norm(dim=1) <= 0.02 * exact.norm(dim=1)).all()  # sampled labels


@FITS
def test_a_convolution_with_one_position_is_the_linear_layer(fit) -> None:
    x, y = batch()
    dense, conv = nn.Linear(6, 3).double(), nn.Conv2d(6, 3, 1).double()
    conv.weight.data, conv.bias.data = dense.weight.data[:, :, None, None], dense.bias.data
    square = nn.Sequential(conv, nn.Flatten())
    spread = x[:, :, None, None]
    found = [
        kfac.influence(fit(m, z, generator=rng()), m, (z, y), (z, y))
        for m, z in ((nn.Sequential(dense), x), (square, spread))
    ]
    assert_close(*found, rtol=1e-5, atol=0)


@FITS
def test_a_1x1_convolution_is_the_linear_layer_at_every_position(fit) -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 3).double()

        def forward(self, x: Tensor) -> Tensor:  # [n, 6, 2, 2]
            return self.layer(x.flatten(2).mT).square().mean(1)

    class Image(nn.Module):
        def __init__(self, layer: nn.Linear) -> None:
            super().__init__()
            self.layer = nn.Conv2d(6, 3, 1).double()
            self.layer.weight.data = layer.weight.data[:, :, None, None]
            self.layer.bias.data = layer.bias.data

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).square().mean((2, 3))

    sequence = Positions()
    x = torch.randn(40, 6, 2, 2, generator=rng(), dtype=torch.float64)
    y = torch.randint(3, (40,), generator=rng(1))
    found = [
        kfac.influence(fit(m, x, generator=rng()), m, (x, y), (x, y))
        for m in (sequence, Image(sequence.layer))
    ]
    assert_close(*found, rtol=1e-5, atol=0)


def fishers(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Each layer's Fisher matrix over (o, i), the bias the last input, same labels as the fits."""
    labels = kfac.categorical(model(x), rng())
    found = {}
    for part in gradients.factors(model, (x, labels), gradients.cross_entropy, chunk=len(x)):
        for name, factor in part.items():
            g = (factor.d.mT @ factor.a).flatten(1)
            found[name] = g.mT @ g / len(x)
    return found


def matrix(layer: kfac.Layer) -> Tensor:
    basis = torch.kron(layer.outputs, layer.inputs)
    return (basis * layer.values.flatten()) @ basis.mT


def test_measured_eigenvalues_bring_the_fisher_matrix_nearer() -> None:
    model, (x, _) = network(), batch(200)
    truth = fishers(model, x)
    product = kfac.fit_kfac(model, x, generator=rng())
    measured = kfac.fit_ekfac(model, x, generator=rng())
    for name, fisher in truth.items():
        errors = [(matrix(c.layers[name]) - fisher).norm() for c in (product, measured)]
        assert errors[1] < 0.95 * errors[0]
        assert_close(matrix(measured.layers[name]).trace(), fisher.trace())


@FITS
def test_scores_are_the_inner_products_through_the_written_out_inverse(fit) -> None:
    model, train, targets = network(), batch(), batch(9, seed=5)
    curvature = fit(model, train[0], generator=rng())
    tau = kfac.influence(curvature, model, train, targets, damping=0.3)
    wanted = torch.zeros(9, 60, dtype=torch.float64)
    parts = [
        next(iter(gradients.factors(model, data, output, chunk=99)))
        for data, output in ((targets, gradients.margin), (train, gradients.cross_entropy))
    ]
    for name, layer in curvature.layers.items():
        damped = matrix(layer) + 0.3 * layer.values.mean() * torch.eye(layer.values.numel())
        left, right = ((p[name].d.mT @ p[name].a).flatten(1) for p in parts)
        wanted -= left @ torch.linalg.solve(damped, right.mT) / 60
    assert_close(tau, wanted.mT)
    flat = gradients.per_example(model, targets, gradients.margin)
    pull = gradients.per_example(model, train, gradients.cross_entropy)
    solved = kfac.solve(curvature, model, flat, damping=0.3)
    assert_close(tau, -pull @ solved.mT / 60)


def test_scores_do_not_depend_on_the_chunk_and_follow_a_permutation() -> None:
    model, train, targets = network(), batch(), batch(9, seed=5)
    curvature = kfac.fit_ekfac(model, train[0], generator=rng())
    tau = kfac.influence(curvature, model, train, targets)
    again = kfac.fit_ekfac(model, train[0], generator=rng(), chunk=7)
    assert_close(kfac.influence(again, model, train, targets, chunk=7), tau)
    order = torch.randperm(60, generator=rng(3))
    mixed = kfac.influence(curvature, model, (train[0][order], train[1][order]), targets)
    assert_close(mixed, tau[order])


def test_self_influence_is_influence_on_the_examples_own_loss() -> None:
    model, train = network(), batch()
    curvature = kfac.fit_ekfac(model, train[0], generator=rng())
    own = kfac.influence(curvature, model, train, train, output=gradients.cross_entropy)
    assert_close(kfac.self_influence(curvature, model, train), -60 * own.diagonal())


@FITS
def test_a_copy_of_a_surprising_target_helps_it_most(fit) -> None:
    model, (x, y) = network(), batch()
    wrong = model(x[:1]).argmin(1)
    train = torch.cat([x, x[:1]]), torch.cat([y, wrong])
    curvature = fit(model, train[0], generator=rng())
    tau = kfac.influence(curvature, model, train, (x[:1], wrong))[:, 0]
    best = tau[1:]  # example 0 has the target's input, and another label
    assert best.argmax() == len(best) - 1
    assert best[-1] > 0


def test_an_ensemble_is_the_mean_of_its_members() -> None:
    nets, train, targets = [network(0), network(1)], batch(), batch(9, seed=5)
    mean = kfac.ensemble(nets, train, targets, generator=rng())
    generator, parts = rng(), []
    for net in nets:
        curvature = kfac.fit_ekfac(net, train[0], generator=generator)
        parts.append(kfac.influence(curvature, net, train, targets))
    assert_close(mean, torch.stack(parts).mean(0))
    with pytest.raises(ValueError, match="at least one network"):
        kfac.ensemble([], train, targets, generator=rng())


def test_layers_without_factors_are_named_once_and_left_out() -> None:
    model = models.build("cnn", rng(), channels=(2, 4)).eval()
    x = torch.randn(20, 1, 8, 8, generator=rng())
    y = torch.randint(10, (20,), generator=rng())
    with pytest.warns(UserWarning, match=r"conv1\.1 \(GroupNorm\), conv2\.1 \(GroupNorm\)") as seen:
        curvature = kfac.fit_ekfac(model, x, generator=rng())
    assert len(seen) == 1
    assert len(curvature.skipped) == 2
    tau = kfac.influence(curvature, model, (x, y), (x, y))
    flat = gradients.per_example(model, (x, y), gradients.margin)
    solved = kfac.solve(curvature, model, flat)
    names = {n: p.numel() for n, p in model.named_parameters()}
    cut = dict(zip(names, solved.split(list(names.values()), 1), strict=True))
    assert (cut["conv1.1.weight"] == 0).all()
    assert (cut["conv1.0.weight"] != 0).any()
    pull = gradients.per_example(model, (x, y), gradients.cross_entropy)
    assert_close(tau, -pull @ solved.mT / 20, rtol=1e-4, atol=1e-6)


def test_a_plain_network_gives_no_warning_and_one_without_layers_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kfac.fit_kfac(network(), batch()[0], generator=rng())
    with pytest.raises(ValueError, match="want"), warnings.catch_warnings():
        kfac.fit_kfac(nn.LayerNorm(6).double(), batch()[0], generator=rng())


def test_labels_are_drawn_from_the_model() -> None:
    out = torch.tensor([[2.0, 0.0, -1.0]]).expand(20_000, -1)
    share = F.one_hot(kfac.categorical(out, rng())).double().mean(0)
    assert_close(share, out[0].double().softmax(0), rtol=0, atol=0.01)
