import numpy as np
import pytest
import torch

from lib import shares


def test_the_interval_is_wilsons_own_example():
    # Brown, Cai and DasGupta's closed form, by hand for 9 of 10 with z = 1.96
    n, p, z = 10, 0.9, 1.96
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    got = shares.interval(torch.arange(n) > 0)
    assert got == pytest.approx((middle - half, middle + half), abs=1e-5)


@pytest.mark.parametrize("all_are", [True, False])
def test_fifteen_of_fifteen_leave_doubt(all_are: bool):
    value, error = shares.share(np.full(15, all_are))
    assert value == float(all_are)
    assert error == pytest.approx(1.96 / (1 + 1.96**2 / 15) / (2 * 15), abs=1e-5)


def test_of_many_it_is_the_usual_standard_error():
    flags = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) < 0.3
    value, error = shares.share(flags)
    assert error == pytest.approx((value * (1 - value) / len(flags)) ** 0.5, rel=1e-3)


def test_the_interval_covers_what_it_should():
    generator = torch.Generator().manual_seed(1)
    inside = []
    for flags in torch.rand(2000, 40, generator=generator) < 0.97:
        low, high = shares.interval(flags)
        inside.append(low <= 0.97 <= high)
    assert 0.92 < np.mean(inside) < 0.99


@pytest.mark.parametrize("bad", [torch.ones(3), torch.ones(0, dtype=torch.bool)])
def test_what_is_no_flag_is_refused(bad: torch.Tensor):
    with pytest.raises(ValueError, match="want bool flags"):
        shares.share(bad)


@pytest.mark.parametrize("bad", [torch.ones(1, 3), torch.ones(0)])
def test_an_average_is_over_one_axis(bad: torch.Tensor):
    with pytest.raises(ValueError, match="want values"):
        shares.average(bad)


def test_the_average_of_flags_is_their_share_and_of_numbers_their_mean():
    flags = torch.tensor([True, True, False])
    assert shares.average(flags) == shares.share(flags)
    assert shares.average(torch.tensor([1.0, 3.0])) == pytest.approx((2.0, 1.0))
    assert shares.average(torch.tensor([1, 3])) == pytest.approx((2.0, 1.0))


def test_errors_of_a_gap_add_by_squares():
    assert shares.gap((0.9, 0.3), (0.5, 0.4)) == pytest.approx((0.4, 0.5))
