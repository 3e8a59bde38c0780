"""Measures of the case studies on traces planted by hand."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from lib.monitoring import measures, statistics
from tests.planted_traces import CONCEPTS, SPACE, trace


def test_units_are_counted_without_colours_and_only_if_interpretable():
    found = trace([["red", "tree", "striped", "tree"]], [[1, 1, 1, 0]])
    assert measures.counted(found, CONCEPTS).tolist() == [[False, True, True, False]]
    assert measures.high_level(found, CONCEPTS).tolist() == [[False, True, False, False]]


def test_a_gain_pairs_units_so_that_one_that_stays_adds_no_spread():
    units = torch.tensor([[True] * 50 + [False] * 50, [True] * 50 + [True] * 50])
    value, half = measures.share_gain(units)
    assert value == 0.5
    assert half == pytest.approx(1.96 * (0.25 / 100) ** 0.5, rel=0.2)
    assert measures.share_gain(torch.stack([units[0], units[0]])) == (0.0, 0.0)


def test_a_difference_between_networks_draws_units_of_each():
    a, b = torch.arange(100) < 70, torch.arange(100) < 40
    value, half = measures.share_difference(a, b)
    assert value == pytest.approx(0.3)
    assert half == pytest.approx(1.96 * ((0.21 + 0.24) / 100) ** 0.5, rel=0.2)
    # the same units in both: their own spread remains, unlike in a pair
    assert measures.share_difference(a, a)[1] > 0.1
    with pytest.raises(ValueError, match=r"as many units of both, got \(100,\) and \(3,\)"):
        measures.share_difference(a, b[:3])


def test_depth_is_the_share_of_high_words_of_the_last_layer_minus_the_others():
    layers = [
        trace([["red", "tree"] * 10]),  # half
        trace([["red", "red", "red", "tree"] * 5]),  # a quarter
        trace([["tree", "roof", "beach", "wood"] * 5], [[1, 1, 1, 0] * 5]),  # all that count
    ]
    value, half = measures.depth(layers, CONCEPTS)
    assert value == pytest.approx(1 - (0.5 + 0.25) / 2)
    assert 0 < half < 0.3


def test_a_share_of_no_units_is_not_run():
    layers = [trace([["red"] * 4], [[0] * 4]), trace([["tree"] * 4])]
    assert measures.depth(layers, CONCEPTS) is None
    assert measures.mean(torch.zeros(0)) is None


def test_spreads_are_those_of_the_record_statistics():
    generator = torch.Generator().manual_seed(1)
    words = [CONCEPTS.words[int(k)] for k in torch.randint(10, (30,), generator=generator)]
    found = trace([["tree"] * 30, words])
    relative, effective, n = measures.spreads(found, SPACE)
    rows = torch.arange(n)[None]
    for at, epoch in enumerate(found.epochs):
        wanted = statistics.spread(found, epoch, SPACE, torch.zeros(10, 2) + torch.eye(10)[:, :2])
        assert_close(float(relative(rows)[at, 0]), wanted.relative, rtol=1e-5, atol=1e-6)
        assert_close(float(effective(rows)[at, 0]), wanted.effective, rtol=1e-5, atol=1e-6)
    assert relative(rows)[0] < 1e-3 < relative(rows)[1]


def test_dead_units_do_not_spread():
    found = trace([["tree", "tree", "red"]] * 2)
    dead = found.dead.clone()
    dead[1, 2] = True
    *_, n = measures.spreads(type(found)(**{**found.__dict__, "dead": dead}), SPACE)
    assert n == 2


def test_correlation_of_columns_takes_one_column_for_all():
    a = torch.tensor([[1.0, 3.0], [2.0, 2.0], [5.0, 1.0]])
    assert measures.correlation(a, torch.tensor([0.1, 0.2, 0.3])).tolist() == pytest.approx([1, -1])
    assert measures.correlation(a, torch.ones(3)).isnan().all()


def test_several_runs_give_their_mean_and_deviation_and_one_its_own_interval():
    assert measures.over_seeds([(0.5, 0.1)]) == (0.5, 0.1)
    assert measures.over_seeds([None]) is None
    value, spread = measures.over_seeds([(0.2, 9.0), None, (0.4, 9.0)])
    assert (value, spread) == pytest.approx((0.3, 0.02**0.5))
