"""Dense probes against scikit-learn, planted directions and hard data."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.testing import assert_close

from lib import probes


def planted(n: int, d: int, *, seed: int = 0, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Activations of unequal scale and offset, and a noisy concept along the first channel."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = (x[:, 0] + noise * torch.randn(n, generator=generator, dtype=torch.float64) > 0).long()
    return x * torch.arange(1, d + 1) + 3, y


@pytest.mark.parametrize(("n", "d"), [(120, 9), (40, 70)])
@pytest.mark.parametrize("C", [1e-3, 1.0, 1e3])
def test_logistic_equals_scikit_learn(n: int, d: int, C: float):
    z, y = planted(n, d)
    scaler = StandardScaler().fit(z)
    peer = LogisticRegression(C=C, tol=1e-12, max_iter=10_000, solver="newton-cg")
    peer.fit(scaler.transform(z), y)
    weight = torch.from_numpy(peer.coef_[0] / scaler.scale_)
    bias = peer.intercept_[0] - (weight * torch.from_numpy(scaler.mean_)).sum()
    probe = probes.fit_logistic(z, y, C=C)
    assert probe.converged
    assert_close(probe.weight, weight, atol=1e-6, rtol=0)  # the peer's own tolerance
    assert_close(probe.bias, bias, atol=1e-6, rtol=0)


def test_weighted_logistic_equals_scikit_learn():
    z, y = planted(80, 5)
    weights = torch.rand(80, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scaler = StandardScaler().fit(z, sample_weight=weights)
    peer = LogisticRegression(tol=1e-12, max_iter=10_000, solver="newton-cg")
    peer.fit(scaler.transform(z), y, sample_weight=weights)
    probe = probes.fit_logistic(z, y, weights=weights)
    weight = torch.from_numpy(peer.coef_[0] / scaler.scale_)
    assert_close(probe.weight, weight, atol=1e-6, rtol=0)


def test_balanced_weights_equal_scikit_learns_class_weight():
    z, y = planted(90, 4)
    y[:40] = 0
    peer = LogisticRegression(class_weight="balanced", tol=1e-12, solver="newton-cg")
    weights = probes.balanced_weights(y)
    scaler = StandardScaler().fit(z, sample_weight=weights)
    peer.fit(scaler.transform(z), y)
    weight = torch.from_numpy(peer.coef_[0] / scaler.scale_)
    assert_close(probes.fit_logistic(z, y, weights=weights).weight, weight, atol=1e-6, rtol=0)
    assert_close(weights.sum(), torch.tensor(90.0, dtype=torch.float64))


@pytest.mark.parametrize(("n", "d"), [(120, 9), (40, 70)])
def test_ridge_equals_scikit_learn_for_labels_and_targets(n: int, d: int):
    z, y = planted(n, d)
    scaler = StandardScaler().fit(z)
    for target, coded in [(y, 2 * y - 1), (z[:, 1].sin() + y, z[:, 1].sin() + y)]:
        probe = probes.fit_ridge(z, target, l2=[0.1, 30.0])
        assert probe.weight.shape == (2, d)
        for i, l2 in enumerate([0.1, 30.0]):
            peer = Ridge(alpha=l2, solver="svd").fit(scaler.transform(z), coded)
            assert_close(probe.weight[i], torch.from_numpy(peer.coef_ / scaler.scale_))
            assert_close(probe.score(z)[i], torch.from_numpy(peer.predict(scaler.transform(z))))


def test_planted_direction_is_recovered():
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(6, generator=generator, dtype=torch.float64)
    direction /= direction.norm()
    z = torch.randn(2000, 6, generator=generator, dtype=torch.float64)
    noise = 0.1 * torch.randn(2000, generator=generator, dtype=torch.float64)
    y = (z @ direction + noise > 0).long()
    for probe in (probes.fit_logistic(z, y), probes.fit_ridge(z, y, l2=1.0)):
        assert probes.concept_direction(probe) @ direction > 0.99


@pytest.mark.parametrize("C", [1.0, 1e6])
def test_separable_data_converge(C: float):
    z, _ = planted(60, 3)
    y = (z[:, 0] > z[:, 0].median()).long()
    probe = probes.fit_logistic(z, y, C=C)
    assert probe.converged
    assert probe.steps < 50
    assert torch.isfinite(probe.weight).all()
    assert probes.accuracy(probe.score(z), y) > 0.95


def test_steps_that_run_out_are_reported():
    z, y = planted(60, 3)
    probe = probes.fit_logistic(z, y, max_steps=1)
    assert probe.steps == 1
    assert not probe.converged


@pytest.mark.parametrize("value", [0.0, 0.1, 1e8])
def test_constant_channel_has_weight_zero(value: float):
    z, y = planted(60, 3)
    wide = torch.cat([z, torch.full((60, 1), value, dtype=torch.float64)], dim=1)
    for fit in (probes.fit_logistic, lambda z, y: probes.fit_ridge(z, y, l2=1.0)):
        assert fit(wide, y).weight[-1] == 0
        assert_close(fit(wide, y).score(wide), fit(z, y).score(z))


def test_duplicate_channels_share_the_weight():
    z, y = planted(60, 3)
    probe = probes.fit_logistic(z[:, [0, 0, 1]], y)
    assert_close(probe.weight[0], probe.weight[1])


def test_direction_of_a_zero_probe_is_refused():
    flat = probes.Probe(torch.zeros(3), torch.tensor(0.0), 0, torch.tensor(True))
    with pytest.raises(ValueError, match="no direction"):
        probes.concept_direction(flat)
