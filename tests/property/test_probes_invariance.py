"""What must not change a probe: batching, order, units, blocks, dtype."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib import probes
from lib.probes import Probe

RULES = ("mean_difference", "l1_path", "dense_weight", "mutual_information")
FITS: dict[str, Callable[..., Probe]] = {
    "logistic": lambda z, y: probes.fit_logistic(z, y),
    "logistic grid": lambda z, y: probes.fit_logistic(z, y, C=[0.1, 10.0]),
    "ridge": lambda z, y: probes.fit_ridge(z, y, l2=2.0),
    "ridge grid": lambda z, y: probes.fit_ridge(z, y, l2=[0.1, 10.0]),
}


def several(m: int, n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(m, n, d, generator=generator, dtype=torch.float64) + 1
    noise = torch.randn(m, n, generator=generator, dtype=torch.float64)
    return z, (z[..., 0] - 0.5 * z[..., 1] + noise > 0.5).long()


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
@pytest.mark.parametrize(("n", "d"), [(50, 6), (20, 30)])
def test_batch_equals_one_by_one(fit: Callable[..., Probe], n: int, d: int):
    z, y = several(3, n, d)
    cases = [
        (fit(z, y), [fit(z[i], y[i]) for i in range(3)]),
        (fit(z, y[0]), [fit(z[i], y[0]) for i in range(3)]),
        (fit(z[0], y), [fit(z[0], y[i]) for i in range(3)]),
    ]
    for batch, single in cases:
        assert_close(batch.weight, torch.stack([p.weight for p in single], dim=-2))
        assert_close(batch.bias, torch.stack([p.bias for p in single], dim=-1))
        assert batch.converged.shape == batch.bias.shape
    batch, single = cases[0]
    scores = torch.stack([p.score(z[i]) for i, p in enumerate(single)], dim=-2)
    assert_close(batch.score(z), scores)
    on_one = torch.stack([p.score(z[0]) for p in single], dim=-2)
    assert_close(batch.score(z[0]), on_one)


def test_weights_batch_over_one_set_of_rows():
    z, y = several(1, 40, 4)
    weights = torch.rand(3, 40, generator=torch.Generator().manual_seed(1)) + 0.1
    batch = probes.fit_logistic(z[0], y[0], weights=weights)
    single = [probes.fit_logistic(z[0], y[0], weights=w).weight for w in weights]
    assert_close(batch.weight, torch.stack(single))


def test_weights_count_rows():
    z, y = several(1, 40, 4)
    counts = torch.randint(0, 3, (40,), generator=torch.Generator().manual_seed(2))
    repeated = z[0].repeat_interleave(counts, 0), y[0].repeat_interleave(counts)
    weighted = probes.fit_logistic(z[0], y[0], weights=counts)
    assert_close(weighted.weight, probes.fit_logistic(*repeated).weight)


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_order_of_rows_and_channels_does_not_matter(fit: Callable[..., Probe]):
    z, y = several(1, 50, 6)
    z, y = z[0], y[0]
    generator = torch.Generator().manual_seed(1)
    rows, channels = torch.randperm(50, generator=generator), torch.randperm(6, generator=generator)
    moved = fit(z[rows][:, channels], y[rows])
    assert_close(moved.weight, fit(z, y).weight[..., channels])


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_units_of_the_channels_do_not_change_scores(fit: Callable[..., Probe]):
    z, y = several(1, 50, 6)
    units = z[0] * torch.tensor([1e-3, 1, 5, 1e4, 2, -1], dtype=torch.float64) + 7
    assert_close(fit(units, y[0]).score(units), fit(z[0], y[0]).score(z[0]))


@pytest.mark.parametrize("fit", FITS.values(), ids=FITS)
def test_swapping_the_classes_flips_the_score(fit: Callable[..., Probe]):
    z, y = several(1, 50, 6)
    assert_close(fit(z[0], 1 - y[0]).score(z[0]), -fit(z[0], y[0]).score(z[0]))


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000])
def test_chunk_does_not_change_the_result(chunk: int):
    z, y = several(2, 50, 6)
    assert_close(probes.fit_logistic(z, y, chunk=chunk).weight, probes.fit_logistic(z, y).weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("label_dtype", [torch.bool, torch.int64, torch.float32])
def test_result_has_the_dtype_of_z(dtype: torch.dtype, label_dtype: torch.dtype):
    z, y = several(2, 50, 6)
    z = z.half()  # so that every dtype holds the same numbers
    for name, fit in FITS.items():
        probe = fit(z.to(dtype), y.to(label_dtype))
        assert probe.weight.dtype == probe.bias.dtype == dtype, name
        assert probe.score(z.to(dtype)).dtype == dtype
        # solved in float64 whatever came in: the result differs by its last rounding alone
        assert_close(probe.weight, fit(z.double(), y).weight.to(dtype), atol=1e-12, rtol=0)
    order = probes.rank_channels(z.to(dtype), y.to(label_dtype))
    assert probes.fit_sparse(z.to(dtype), y.to(label_dtype), order, 2).weight.dtype == dtype


def test_inputs_are_left_alone():
    z, y = several(2, 30, 4)
    before = z.clone(), y.clone()
    order = probes.rank_channels(z, y)
    probes.fit_sparse(z, y, order, [1, 4])
    probes.fit_logistic(z, y)
    probes.fit_ridge(z, y, l2=1.0)
    assert torch.equal(z, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize("rule", RULES)
def test_ranking_is_the_same_in_a_batch_and_in_other_units(rule: str):
    z, y = several(3, 60, 5)
    order = probes.rank_channels(z, y, rule)
    assert torch.equal(
        order, torch.stack([probes.rank_channels(z[i], y[i], rule) for i in (0, 1, 2)])
    )
    units = z * torch.tensor([1e-2, 1, 5, 100, 2], dtype=torch.float64) + 7
    assert torch.equal(order, probes.rank_channels(units, y, rule))
    channels = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(channels[probes.rank_channels(z[..., channels], y, rule)], order)


def test_sparse_batch_equals_one_by_one():
    z, y = several(3, 60, 5)
    order = probes.rank_channels(z, y)
    batch = probes.fit_sparse(z, y, order, [1, 3])
    assert batch.weight.shape == (2, 3, 5)
    for j, k in enumerate([1, 3]):
        for i in range(3):
            single = probes.fit_sparse(z[i], y[i], order[i], k)
            assert_close(batch.weight[j, i], single.weight)
            assert_close(batch.bias[j, i], single.bias)


def test_measures_batch_over_leading_axes():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 40, generator=generator)
    y = (torch.rand(40, generator=generator) > 0.5).long()
    for measure in (probes.accuracy, probes.roc_auc, probes.ece, probes.r2):
        values = measure(scores, y)
        assert values.shape == (2, 3)
        assert_close(values[1, 2], measure(scores[1, 2], y))


def test_shared_resamples_do_not_depend_on_the_batch():
    values = torch.rand(3, 50, generator=torch.Generator().manual_seed(0))
    low, high = probes.bootstrap_interval(values, generator=torch.Generator().manual_seed(1))
    one = probes.bootstrap_interval(values[2], generator=torch.Generator().manual_seed(1))
    assert_close(torch.stack([low[2], high[2]]), torch.stack(one))
