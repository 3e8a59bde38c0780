"""L-BFGS probes are the Newton probes, for wide layers."""

from __future__ import annotations

import pytest
import torch

from lib import probes


def planted(n: int = 400, d: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.logspace(-2, 2, d)
    z[:, 3] = 5.0
    logit = z[:, 0] * 100 + 0.5 * torch.randn(n, generator=generator, dtype=torch.float64)
    return z, (logit > 0.3).long()


def test_the_optimum_is_that_of_newton() -> None:
    z, y = planted()
    for c in (0.01, 1.0):
        newton = probes.fit_logistic(z, y, C=c)
        wide = probes.fit_wide(z, y, C=c, tol=1e-9, max_steps=2000)
        assert torch.allclose(newton.score(z), wide.score(z), atol=2e-3)
        assert wide.weight[3] == 0
        assert bool(wide.converged)


def test_several_penalties_give_several_probes() -> None:
    z, y = planted()
    many = probes.fit_wide(z, y, C=[0.01, 1.0], tol=1e-9, max_steps=2000)
    assert many.weight.shape == (2, 30)
    one = probes.fit_wide(z, y, C=1.0, tol=1e-9, max_steps=2000)
    assert torch.allclose(many.score(z)[1], one.score(z), atol=2e-3)


def test_weight_two_is_a_row_twice_at_equal_standardisation() -> None:
    z, y = planted()
    z = torch.cat([z, z])  # every row twice: mean and spread stay
    y = torch.cat([y, y])
    half = torch.cat([torch.full((400,), 2.0), torch.zeros(400)])
    a = probes.fit_wide(z, y, tol=1e-9, max_steps=2000)
    b = probes.fit_wide(z, y, weights=half, tol=1e-9, max_steps=2000)
    assert torch.allclose(a.score(z), b.score(z), atol=2e-3)


def test_the_protocol_takes_it() -> None:
    z, y = planted(600)
    reports = []
    for fit in (probes.fit_logistic, probes.fit_wide):
        generator = torch.Generator().manual_seed(0)
        rival = torch.randn(600, 30, generator=generator, dtype=torch.float64)
        _, report = probes.validate_penalty(
            z, y, generator=generator, penalties=(1.0, 10.0), random_network=rival,
            n_shuffles=1, fit=fit,
        )  # fmt: skip
        reports.append(report)
    assert reports[0].penalty == reports[1].penalty
    assert abs(reports[0].score - reports[1].score) < 0.03
    assert reports[1].n_nonzero == 29


def test_several_networks_are_refused() -> None:
    z, y = planted()
    with pytest.raises(ValueError, match=r"one z \[n, d\]"):
        probes.fit_wide(torch.stack([z, z]), y)
    with pytest.raises(ValueError, match="tol > 0"):
        probes.fit_wide(z, y, tol=0)
