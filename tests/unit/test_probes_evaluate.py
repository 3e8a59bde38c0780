"""Measures, intervals and controls against closed forms, scikit-learn and simulation."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import r2_score, roc_auc_score
from torch import Tensor
from torch.testing import assert_close

from lib import probes


def random_scores(n: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(n, generator=generator) < 0.3).long()
    return torch.randn(n, generator=generator, dtype=torch.float64) + y, y


def test_detection_score_is_0_at_chance_and_1_when_perfect():
    y = torch.tensor([0, 1, 0, 1])
    assert probes.detection_score(torch.tensor([-1.0, 1, -1, 1]), y) == 1
    assert probes.detection_score(torch.tensor([1.0, 1, 1, 1]), y) == 0


@pytest.mark.parametrize("decimals", [6, 0])
def test_auc_equals_scikit_learn_also_with_ties(decimals: int):
    scores, y = random_scores()
    scores = scores.round(decimals=decimals)
    expected = torch.tensor(roc_auc_score(y, scores), dtype=torch.float64)
    assert_close(probes.roc_auc(scores, y), expected)


def test_auc_depends_on_the_order_alone():
    scores, y = random_scores()
    assert_close(probes.roc_auc(scores.exp(), y), probes.roc_auc(scores, y))
    assert_close(probes.roc_auc(-scores, y), 1 - probes.roc_auc(scores, y))


def test_r2_equals_scikit_learn():
    scores, y = random_scores()
    target = scores.sin() + y
    expected = torch.tensor(r2_score(target, scores), dtype=torch.float64)
    assert_close(probes.r2(scores, target), expected)


def test_calibrated_scores_have_small_ece_and_overconfident_ones_the_known_one():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(100_000, generator=generator, dtype=torch.float64)
    y = (torch.rand(100_000, generator=generator, dtype=torch.float64) < p).long()
    # Expected |gap| of a bin is about .8 sqrt(p(1-p)/6667) <= .005.
    assert probes.ece(p.logit(), y) < 0.005
    # Says .9 or .1 where the truth is .7 or .3: the gap is .2 everywhere.
    truth = torch.where(p > 0.5, 0.7, 0.3)
    said = torch.where(p > 0.5, 0.9, 0.1).double()
    y = (torch.rand(100_000, generator=generator) < truth).long()
    assert_close(probes.ece(said.logit(), y).item(), 0.2, atol=0.01, rtol=0)


def test_reliability_curve_bins_by_probability():
    p = torch.tensor([0.01, 0.02, 0.5, 0.99, 1 - 1e-17], dtype=torch.float64)
    curve = probes.reliability_curve(p.clamp_max(1 - 1e-15).logit(), torch.tensor([0, 1, 1, 1, 1]))
    assert curve.count.tolist() == [2, *[0] * 6, 1, *[0] * 6, 2]
    assert curve.observed[0] == 0.5
    assert curve.observed[1].isnan()
    assert_close(curve.predicted[7].item(), 0.5)


def test_bootstrap_covers_a_known_proportion():
    """600 binomial samples of 80 at .8; a 95% percentile interval at n = 80 covers .92 to .96."""
    generator = torch.Generator().manual_seed(0)
    values = (torch.rand(600, 80, generator=generator) < 0.8).double()
    low, high = probes.bootstrap_interval(values, generator=generator, n_draws=1000)
    covered = ((low <= 0.8) & (high >= 0.8)).double().mean()
    assert 0.90 < covered < 0.98
    width = (high - low).mean().item()
    assert_close(width, 2 * 1.96 * (0.8 * 0.2 / 80) ** 0.5, rtol=0.05, atol=0)


def test_grouped_bootstrap_widens_when_groups_agree():
    generator = torch.Generator().manual_seed(0)
    groups = torch.arange(400) // 20
    values = (torch.rand(20, generator=generator) < 0.5).double()[groups]
    low, high = probes.bootstrap_interval(values, generator=generator)
    wide_low, wide_high = probes.bootstrap_interval(values, generator=generator, groups=groups)
    # The effective number is 20, not 400: wider by sqrt(20) = 4.5.
    ratio = ((wide_high - wide_low) / (high - low)).item()
    assert 3.5 < ratio < 5.5


def test_bootstrap_of_r2_equals_resampling_by_hand():
    scores, y = random_scores(60)
    target = 100 + scores.sin() + y
    generator = torch.Generator().manual_seed(0)
    low, high = probes.bootstrap_r2(100 + scores, target, generator=generator, n_draws=500)
    drawn = torch.randint(60, (500, 60), generator=torch.Generator().manual_seed(0))
    by_hand = probes.r2((100 + scores)[drawn], target[drawn])
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    assert_close(torch.stack([low, high]), by_hand.quantile(tails))


def test_score_agreement_ignores_the_basis_of_each_model():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(100, 5, generator=generator, dtype=torch.float64)
    y = (z[:, 0] > 0).long()
    turn = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))[0]
    models = torch.stack([z, z @ turn])
    fit = probes.fit_ridge(models, y, l2=1e-6)
    direction = probes.concept_direction(fit)
    assert (direction[0] @ direction[1]).abs() < 0.9  # no common basis
    agreement = probes.score_agreement(fit.score(models))
    assert_close(agreement, torch.ones(2, 2, dtype=torch.float64), atol=1e-6, rtol=0)


def test_shuffled_labels_are_at_chance_on_average():
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(400, 8, generator=generator, dtype=torch.float64)
    y = (z[:, 0] > 0).long()
    shuffled = probes.shuffled_labels(y, 60, generator=generator)
    assert (shuffled.sum(1) == y.sum()).all()
    probe = probes.fit_logistic(z[:200], shuffled[:, :200])
    accuracy = probes.accuracy(probe.score(z[200:]), shuffled[:, 200:])
    # one accuracy of 200 rows has sd .035; the mean of 60, .0046
    assert abs(accuracy.mean() - 0.5) < 0.015


def test_control_task_is_a_fixed_fair_coin_of_the_group():
    groups = torch.arange(4000) // 2
    coins = probes.control_task(groups, seed=0)
    assert (coins[::2] == coins[1::2]).all()
    assert abs(coins.double().mean() - 0.5) < 0.04  # sd .011
    assert torch.equal(probes.control_task(groups.tolist(), seed=0), coins)
    # written down, so that a machine or version that hashes otherwise is noticed
    assert probes.control_task(list("abcdef"), seed=0).tolist() == GOLDEN


def test_control_task_labels_a_group_alike_whatever_else_is_in_the_call():
    """Fit rows and test rows are labelled in separate calls, with other groups and counts."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        fit = torch.randint(0, 12, (100,), generator=generator)
        test = torch.randint(0, 9, (30,), generator=generator)
        fit_labels = probes.control_task(fit, seed=seed)
        test_labels = probes.control_task(test, seed=seed)
        whole = probes.control_task(torch.cat([fit, test]), seed=seed)
        assert torch.equal(torch.cat([fit_labels, test_labels]), whole)


def test_even_seed_balances_few_groups():
    groups = torch.arange(600) % 8
    labels = probes.control_task(groups, seed=probes.even_seed(groups))
    assert labels.double().mean() == 0.5


def test_control_task_labels_of_different_seeds_are_unrelated():
    groups = torch.arange(2000)
    labels = torch.stack([probes.control_task(groups, seed=s) for s in (0, 1)])
    assert abs((labels[0] == labels[1]).double().mean() - 0.5) < 0.05  # sd .011


def test_selectivity_is_the_difference():
    assert probes.selectivity(0.75, 0.5) == 0.25


GOLDEN = [1, 0, 0, 0, 1, 1]
