"""Datamodels against closed forms, scikit-learn and a planted linear truth."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib.attribution import brittleness, datamodels
from lib.attribution.subsets import membership, sample_subsets

N, M, T = 40, 200, 6


@pytest.fixture
def planted() -> tuple[Tensor, Tensor, Tensor]:
    """Five rows matter for each target: subsets, noisy outputs `[m, T]`, true weights `[n, T]`."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.zeros(N, T, dtype=torch.float64)
    for t in range(T):
        rows = torch.randperm(N, generator=generator)[:5]
        weights[rows, t] = torch.randn(5, generator=generator, dtype=torch.float64).sign() * 2
    subsets = sample_subsets(N, M, 0.5, seed=1)
    noise = torch.randn(M, T, generator=generator, dtype=torch.float64)
    return subsets, membership(subsets, N) @ weights + 3.0 + 0.5 * noise, weights


def centred(subsets: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    z = membership(subsets, N)
    return z - z.mean(0), outputs - outputs.mean(0)


@pytest.mark.parametrize("m", [30, M])  # fewer and more subsets than rows
@pytest.mark.parametrize("penalty", [0.05, 0.4])
def test_lasso_is_that_of_scikit_learn_at_half_the_penalty(planted, m: int, penalty: float):
    from sklearn.linear_model import Lasso

    subsets, outputs = planted[0][:m], planted[1][:m]
    lambdas = torch.full((T,), penalty, dtype=torch.float64)
    found = datamodels.lasso(subsets, outputs, N, penalty=lambdas, tol=1e-11)
    x = membership(subsets, N).numpy()
    for t in range(T):
        peer = Lasso(alpha=penalty / 2, tol=1e-12, max_iter=200_000).fit(x, outputs[:, t].numpy())
        assert_close(found.tau[:, t], torch.from_numpy(peer.coef_), atol=1e-6, rtol=0)
        assert found.bias[t].item() == pytest.approx(peer.intercept_, abs=1e-6)


def test_lasso_does_not_depend_on_where_it_starts(planted):
    subsets, outputs, weights = planted
    penalty = torch.linspace(0.02, 0.3, T)
    a = datamodels.lasso(subsets, outputs, N, penalty=penalty, tol=1e-10)
    b = datamodels.lasso(subsets, outputs, N, penalty=penalty, start=-weights, tol=1e-10)
    assert_close(a.tau, b.tau, atol=1e-7, rtol=0)
    again = datamodels.lasso(subsets, outputs, N, penalty=penalty, start=a.tau, tol=1e-8)
    assert 0 < again.steps < a.steps


def test_the_path_starts_where_all_weights_are_zero_and_no_higher(planted):
    subsets, outputs, _ = planted
    path = datamodels.fit_lasso(subsets, outputs, N).path
    assert path.penalties.shape == path.error.shape == path.n_weights.shape == (25, T)
    assert (path.n_weights[0] == 0).all()
    assert (path.n_weights[3] > 0).all()
    fitting = int(0.9 * M)
    z, f = centred(subsets[:fitting], outputs[:fitting])
    assert_close(path.penalties[0], 2 * (z.T @ f / fitting).abs().amax(0))


def test_the_penalty_is_the_one_with_the_smallest_held_out_error(planted):
    subsets, outputs, _ = planted
    model = datamodels.fit_lasso(subsets, outputs, N, n_penalties=8)
    best = model.path.error.nan_to_num(torch.inf).argmin(0)
    assert_close(model.penalty, model.path.penalties.gather(0, best[None])[0])
    k, a = 5, int(0.9 * M)  # one point of the path, fitted by hand on the first 90%
    alone = datamodels.lasso(subsets[:a], outputs[:a], N, penalty=model.path.penalties[k])
    error = (alone.predict(subsets[a:]) - outputs[a:]).square().mean(0)
    assert_close(model.path.error[k], error, rtol=0.02, atol=0)  # the path stops early


def test_a_target_leaves_the_path_when_it_only_fits_noise():
    """No row matters: every weight is noise, so the error rises and the path ends early."""
    generator = torch.Generator().manual_seed(4)
    subsets = sample_subsets(N, 40, 0.5, seed=2)
    outputs = torch.randn(40, T, generator=generator)
    path = datamodels.fit_lasso(subsets, outputs, N, held_out=0.5).path
    left = path.error.isnan()
    assert left.any()
    assert not left[0].any()
    assert (left[1:] >= left[:-1]).all()  # nobody comes back
    smallest = path.error.nan_to_num(torch.inf).cummin(0).values
    stays = path.error[:-1] <= datamodels.GIVE_UP * smallest[:-1]
    assert torch.equal(stays, ~left[1:])


def test_lasso_recovers_a_planted_sparse_truth(planted):
    subsets, outputs, weights = planted
    model = datamodels.fit_lasso(subsets, outputs, N)
    assert_close(model.tau, weights, atol=0.35, rtol=0)
    for t in range(T):
        top = model.tau[:, t].abs().topk(5).indices
        assert set(top.tolist()) == set(weights[:, t].nonzero()[:, 0].tolist())
    assert (model.tau == 0).double().mean() > 0.4


def test_ridge_solves_the_normal_equations(planted):
    subsets, outputs, _ = planted
    z, f = centred(subsets, outputs)
    model = datamodels.ridge(subsets, outputs, N, penalty=7.0)
    wanted = torch.linalg.solve(z.T @ z + 7.0 * torch.eye(N, dtype=z.dtype), z.T @ f)
    assert_close(model.tau, wanted)
    assert_close(model.predict(subsets).mean(0), outputs.mean(0))


def test_ridge_chooses_among_all_its_penalties_on_held_out_subsets(planted):
    subsets, outputs, _ = planted
    grid, a = (0.01, 1.0, 1e6), int(0.9 * M)
    model = datamodels.fit_ridge(subsets, outputs, N, penalties=grid)
    for k, penalty in enumerate(grid):
        alone = datamodels.ridge(subsets[:a], outputs[:a], N, penalty=penalty)
        error = (alone.predict(subsets[a:]) - outputs[a:]).square().mean(0)
        assert_close(model.path.error[k], error)
    assert model.penalty[0] in (0.01, 1.0)
    assert (model.penalty == model.penalty[0]).all()


def test_empirical_influence_is_a_difference_of_means(planted):
    subsets, outputs, _ = planted
    tau = datamodels.empirical_influence(subsets, outputs, N).tau
    for i in (0, 17, N - 1):
        present = (subsets == i).any(1)
        assert_close(tau[i], outputs[present].mean(0) - outputs[~present].mean(0))


def test_without_noise_or_penalty_the_truth_comes_back_up_to_a_shift():
    """Subsets of one size fix weights up to a constant; the smallest ones sum to zero."""
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(N, T, generator=generator, dtype=torch.float64)
    subsets = sample_subsets(N, M, 0.5, seed=0)
    outputs = membership(subsets, N) @ weights
    tau = datamodels.ridge(subsets, outputs, N, penalty=1e-7).tau
    assert_close(tau, weights - weights.mean(0), atol=1e-6, rtol=0)


def test_evaluation_by_hand(planted):
    subsets, outputs, weights = planted
    zero = torch.zeros(T, dtype=torch.float64)
    model = datamodels.Datamodel(weights, zero + 3.0, zero)
    found = datamodels.evaluate(model, subsets, outputs)
    assert_close(found.error.mean().item(), 0.25, atol=0.03, rtol=0)  # the planted noise
    assert_close(found.baseline, outputs.var(0, correction=0))
    assert_close(found.pearson.square(), 1 - found.error / found.baseline, atol=0.02, rtol=0)
    assert (found.spearman > 0.9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_of_the_outputs_hardly_matters(planted, dtype: torch.dtype):
    subsets, outputs, _ = planted
    whole = datamodels.fit_lasso(subsets, outputs, N).tau
    assert_close(datamodels.fit_lasso(subsets, outputs.to(dtype), N).tau, whole, atol=1e-4, rtol=0)


def test_a_target_is_fitted_as_if_alone(planted):
    subsets, outputs, _ = planted
    penalty = torch.full((T,), 0.1)
    whole = datamodels.lasso(subsets, outputs, N, penalty=penalty, tol=1e-10).tau
    alone = datamodels.lasso(subsets, outputs[:, 2:3], N, penalty=penalty[:1], tol=1e-10).tau
    assert_close(whole[:, 2:3], alone, atol=1e-7, rtol=0)


def test_the_order_of_subsets_does_not_change_a_fit(planted):
    subsets, outputs, _ = planted
    order = torch.randperm(M, generator=torch.Generator().manual_seed(5))
    a = datamodels.ridge(subsets, outputs, N, penalty=3.0).tau
    b = datamodels.ridge(subsets[order], outputs[order], N, penalty=3.0).tau
    assert_close(a, b)


def test_paired_difference_covers_a_planted_one():
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(400, generator=generator)
    a, b = shared + 0.3, shared + 0.5 * torch.randn(400, generator=generator)
    mean, low, high = brittleness.paired_difference(a, b)
    assert low < 0.3 < high
    assert mean == pytest.approx(0.3, abs=0.1)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.2)  # the shared part is gone
