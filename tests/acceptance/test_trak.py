"""TRAK on digits against the specification's bands (section 9, checks 5, 6, 7 and 9).

Data, network and truth are the specification's; subsets, networks and projections have seeds of
their own here. Half-data checkpoints; truth of 200 subsets with 5 networks each.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from lib import gradients
from lib.attribution import baselines, convex, metrics, settings, surrogate, trak, truth
from lib.attribution.trak import Attribution, Data
from lib.attribution.traker import traker

K = 256
RIDGE = 0.1


@dataclass(frozen=True)
class Digits:
    """The truth and ten networks to attribute with."""

    truth: truth.Truth
    networks: list[nn.Module]
    train: Data
    targets: Data

    def lds(self, tau: Tensor) -> float:
        return metrics.lds(tau, self.truth.subsets, self.truth.mean).mean


@pytest.fixture(scope="module")
def found() -> Digits:
    setting = settings.digits_mlp()
    return Digits(
        truth.measure(setting, 200, repeats=5, seed=0),
        truth.checkpoints(setting, 10, seed=0),
        (setting.train.x, setting.train.y),
        (setting.targets.x, setting.targets.y),
    )


@pytest.fixture(scope="module")
def path(found: Digits) -> list[Attribution]:
    """The attribution after each of ten networks."""
    seen: list[Attribution] = []
    trak.trak(found.networks, found.train, found.targets, k=K, ridge=RIDGE, each=seen.append)
    return seen


@pytest.mark.parametrize(("n_models", "low", "high"), [(5, 0.58, 0.70), (10, 0.64, 0.75)])
def test_score_of_trak_is_in_the_band(found, path, n_models: int, low: float, high: float):
    assert low <= found.lds(path[n_models - 1].tau) <= high


def test_score_rises_with_the_number_of_networks(found, path):
    values = [found.lds(path[m - 1].tau) for m in (1, 2, 5, 10)]
    assert all(b > a - 0.01 for a, b in pairwise(values))
    assert values[-1] > values[0] + 0.1


def test_weights_are_worth_eight_points(found, path):
    assert found.lds(path[4].tau) - found.lds(path[4].unweighted) >= 0.08


def test_score_of_grad_dot_is_in_the_band(found):
    setting = settings.digits_mlp()
    (whole,) = truth.checkpoints(setting, 1, share=1.0, seed=0)
    assert 0.22 <= found.lds(baselines.grad_dot(whole, found.train, found.targets)) <= 0.37


def test_kernel_form_equals_primal_form_without_projection(found):
    model = found.networks[0].to(torch.float64)
    train, targets = (
        (x[:n].double(), y[:n]) for (x, y), n in ((found.train, 300), (found.targets, 50))
    )
    phi, target = (
        gradients.per_example(model, data, gradients.margin) for data in (train, targets)
    )
    model.float()
    size = float(phi.square().sum())
    primal = surrogate.scores(phi, target, ridge=0.1)
    dual = surrogate.kernel_scores(
        phi @ phi.T, phi @ target.T, ridge=0.1 * (size / phi.shape[1]) / (size / 300)
    )
    assert (dual - primal).norm() <= 1e-6 * primal.norm()


def test_curvature_and_ridge_make_trak_exact_influence():
    """Check 6 on odd against even digits; without either, the specification saw worse scores."""
    lam = 1e-3
    setting = settings.digits_mlp()
    x, y = setting.train.x.double(), setting.train.y % 2
    tx, ty = setting.targets.x.double(), setting.targets.y % 2
    fit = convex.fit_logistic(x, y, lam=lam)
    sign, target_sign = 2 * y - 1, 2 * ty - 1
    phi, target = fit.a * sign[:, None], convex.design(tx) * target_sign[:, None]
    bend = fit.curvature.reshape(-1)
    weights = torch.sigmoid(-(fit.out(x)[:, 0] * sign))
    share = lam * len(x) / float(surrogate.gram(phi, bend).diagonal().mean())
    tau = weights[:, None] * surrogate.scores(phi, target, ridge=share, curvature=bend)
    exact = convex.influence(fit, convex.output_gradients(fit, tx, signed_by(target_sign)))
    assert metrics.pearson(tau, exact).min() >= 0.9999
    plain = weights[:, None] * surrogate.scores(phi, target, ridge=1e-3)
    assert metrics.pearson(plain, exact).mean() < 0.99


def signed_by(sign: Tensor) -> convex.Output:
    """The margin of one logit, for targets with these signs."""
    return lambda out: out[:, 0] * sign


def test_sparse_and_dense_projections_score_alike(found, path):
    dense = trak.trak(
        found.networks,
        found.train,
        found.targets,
        k=K,
        ridge=RIDGE,
        projection=gradients.CachedSigns,
    )
    assert abs(found.lds(path[-1].tau) - found.lds(dense.tau)) <= 0.02


@pytest.mark.parametrize("projection", [gradients.SJLT, gradients.CachedSigns])
def test_projected_gram_is_unbiased_over_200_seeds(found, projection):
    g = gradients.per_example(
        found.networks[0], (found.train[0][:12], found.train[1][:12]), gradients.margin
    )
    g = g / g.norm(dim=1, keepdim=True)
    p = g.shape[1]
    projected = (projection(p, 64, seed=seed).project(g, 0) for seed in range(200))
    grams = torch.stack([phi @ phi.T for phi in projected])
    error = (grams.mean(0) - g @ g.T) / (grams.std(0) / 200**0.5)
    assert error.abs().max() < 4.5  # 78 entries, in standard errors
    assert error.square().mean() < 1.6


@pytest.mark.parametrize("n_models", [1, 3])
def test_scores_follow_the_official_software(found, n_models: int):
    p = sum(weight.numel() for weight in found.networks[0].parameters())
    networks = found.networks[:n_models]
    ours = trak.trak(
        networks, found.train, found.targets, k=128, ridge=0, projection=gradients.CachedSigns
    )
    theirs = traker(
        networks, found.train, found.targets, projector=gradients.CachedSigns(p, 128, seed=0)
    )
    assert metrics.spearman(ours.tau, theirs).min() >= 0.99
