"""Sparse probes on planted channels, and how stable a selection is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib import probes

RULES = ("mean_difference", "l1_path", "dense_weight", "mutual_information")


def planted(n: int = 400, d: int = 12) -> tuple[Tensor, Tensor]:
    """A concept on channels 7, 2 and 4, in falling strength."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)
    return z, (2.0 * z[:, 7] - 1.2 * z[:, 2] + 0.8 * z[:, 4] + noise > 0).long()


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_finds_the_planted_channels_in_order(rule: str):
    z, y = planted(n=1000)
    order = probes.rank_channels(z, y, rule)
    assert order[:3].tolist() == [7, 2, 4]
    assert order.sort().values.tolist() == list(range(12))


def test_rules_differ_where_they_should():
    """A channel that tells the class by its spread is seen by mutual information alone."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 2
    z = torch.randn(400, 6, generator=generator, dtype=torch.float64)
    z[:, 5] *= 1 + 9 * y
    z[:, 0] += 0.3 * y
    assert probes.rank_channels(z, y, "mutual_information")[0] == 5
    assert probes.rank_channels(z, y, "mean_difference")[0] == 0


@pytest.mark.parametrize("rule", RULES)
def test_constant_and_repeated_channels_rank_without_error(rule: str):
    z, y = planted(60, 12)
    z[:, 0], z[:, 1] = 0.1, z[:, 7]
    order = probes.rank_channels(z, y, rule)
    assert order.sort().values.tolist() == list(range(12))
    # Nothing said of y: it comes last, but where the lasso left the copy of 7 out as well.
    assert order[-2:].tolist().count(0) == 1


def test_mutual_information_sees_relu_zeros_as_one_bin():
    z, y = planted()
    relu = z.clamp_min(0)
    assert probes.rank_channels(relu, y, "mutual_information")[0] == 7


def test_sparse_probe_reads_k_channels_and_the_dense_one_at_d():
    z, y = planted()
    order = probes.rank_channels(z, y)
    grid = probes.fit_sparse(z, y, order, [1, 3, 12])
    assert (grid.weight != 0).sum(-1).tolist() == [1, 3, 12]
    assert grid.weight[0].nonzero().flatten().tolist() == [7]
    dense = probes.fit_logistic(z, y)
    assert_close(grid.weight[2], dense.weight)
    assert_close(grid.bias[2], dense.bias)
    refit = probes.fit_logistic(z[:, order[:3]], y)
    assert_close(grid.weight[1][order[:3]], refit.weight)


def test_accuracy_grows_with_the_channels_read():
    z, y = planted(n=1000)
    order = probes.rank_channels(z[:500], y[:500])
    grid = probes.fit_sparse(z[:500], y[:500], order, [1, 2, 3])
    score = probes.accuracy(grid.score(z[500:]), y[500:])
    assert (score.diff() > 0).all()


def test_one_order_serves_several_models():
    z, y = planted(60)
    order = probes.rank_channels(z, y)
    both = probes.fit_sparse(z.expand(2, -1, -1), y, order, 2)
    assert both.weight.shape == (2, 12)
    assert_close(both.weight[0], probes.fit_sparse(z, y, order, 2).weight)


def test_selection_is_stable_for_a_planted_concept_and_not_for_noise():
    z, y = planted()
    generator = torch.Generator().manual_seed(0)
    real = probes.selection_stability(z, y, 3, generator=generator)
    shuffled = probes.shuffled_labels(y, 1, generator=generator)[0]
    noise = probes.selection_stability(z, shuffled, 3, generator=generator)
    assert real.jaccard > 0.9
    assert real.chance < noise.jaccard < 0.6  # resamples share rows, so noise is above chance
    assert_close(real.frequency.sum(), torch.tensor(3.0, dtype=torch.float64))
    both = probes.selection_stability(z.expand(2, -1, -1), y, 3, generator=generator, n_draws=3)
    assert both.jaccard.shape == (2,)


@pytest.mark.parametrize(("k", "d"), [(1, 5), (3, 10), (7, 10), (4, 4)])
def test_chance_jaccard_equals_simulation(k: int, d: int):
    keys = torch.rand(20_000, d, generator=torch.Generator().manual_seed(0))
    drawn = keys.argsort(1)[:, :k]
    shared = (drawn < k).sum(1).double()  # against the set {0, .., k - 1}
    simulated = (shared / (2 * k - shared)).mean().item()
    assert math.isclose(probes.chance_jaccard(k, d), simulated, abs_tol=0.01)
