"""Percentile intervals over resampled rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib import bootstrap


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    x = torch.randn(400, generator=generator(1), dtype=torch.float64)
    low, high = bootstrap.interval(
        lambda rows: x[rows].mean(1), 400, generator=generator(), n_draws=20_000
    )
    error = x.std() / 400**0.5
    # the 97.5% quantile of 20,000 normal draws has an sd of .02; five of them
    assert_close(torch.stack([low, high]), x.mean() + 1.96 * error * torch.tensor([-1, 1]),
                 rtol=0, atol=0.1 * error.item())  # fmt: skip


def test_it_covers_the_truth_as_often_as_it_says():
    draws = torch.randn(300, 50, generator=generator(2), dtype=torch.float64)
    low, high = bootstrap.interval(
        lambda rows: draws[:, rows].mean(-1), 50, generator=generator(), level=0.8
    )
    share = ((low < 0) & (high > 0)).double().mean().item()
    assert share == pytest.approx(0.8, abs=0.1)  # four sd of 300 coins


def test_rows_that_are_all_alike_leave_no_width():
    low, high = bootstrap.interval(
        lambda rows: torch.full((7,), 2.5)[rows].mean(1), 7, generator=generator()
    )
    assert low == high == 2.5


def test_the_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch: pytest.MonkeyPatch):
    x = torch.randn(3, 11, generator=generator(3))
    sizes = []

    def statistic(rows: Tensor) -> Tensor:
        sizes.append(len(rows))
        return x[:, rows].median(-1).values

    whole = bootstrap.interval(statistic, 11, generator=generator(), n_draws=100)
    monkeypatch.setattr(bootstrap, "BLOCK", 11 * 7)
    parts = bootstrap.interval(statistic, 11, generator=generator(), n_draws=100)
    assert sizes == [100, *[7] * 14, 2]
    assert whole.shape == (2, 3)
    assert torch.equal(whole, parts)


@pytest.mark.parametrize(("n", "n_draws", "level"), [(0, 10, 0.9), (3, 0, 0.9), (3, 10, 1.0)])
def test_no_rows_no_draws_and_no_level_are_refused(n: int, n_draws: int, level: float):
    with pytest.raises(ValueError, match="want level"):
        bootstrap.interval(
            lambda rows: rows.sum(1), n, generator=generator(), n_draws=n_draws, level=level
        )


def test_a_centred_interval_is_about_the_value_and_as_wide():
    labels = torch.randint(60, (80,), generator=generator(4))

    def different(rows: Tensor) -> Tensor:
        return torch.tensor([len(labels[row].unique()) for row in rows], dtype=torch.float64)

    value = different(torch.arange(80)[None])[0]
    found = [
        bootstrap.interval(different, 80, generator=generator(), centred=centred)
        for centred in (False, True)
    ]
    assert found[0][1] < value
    assert found[1][0] < value < found[1][1]
    assert_close(found[0].diff(), found[1].diff())
