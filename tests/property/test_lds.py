"""What the linear datamodeling score must not change with, and what must turn its sign."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib.attribution import metrics
from lib.attribution.subsets import sample_subsets

N, M, T = 40, 30, 5


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tau = torch.randn(N, T, generator=generator, dtype=torch.float64)
    subsets = sample_subsets(N, M, 0.5, seed=0)
    noise = torch.randn(M, T, generator=generator, dtype=torch.float64)
    return tau, subsets, metrics.predicted(tau, subsets) + 3 * noise


def score(tau: Tensor, subsets: Tensor, outputs: Tensor) -> Tensor:
    return metrics.lds(tau, subsets, outputs).per_target


def test_turning_the_sign_of_tau_turns_the_score(case):
    tau, subsets, outputs = case
    assert_close(score(-tau, subsets, outputs), -score(*case))
    assert score(*case).min() > 0.2


def test_a_constant_added_to_tau_changes_nothing(case):
    tau, subsets, outputs = case
    assert_close(score(tau + 3.7, subsets, outputs), score(*case))


def test_scale_and_monotone_outputs_change_nothing(case):
    tau, subsets, outputs = case
    assert_close(score(0.01 * tau, subsets, outputs.exp()), score(*case))


def test_renaming_the_training_rows_changes_nothing(case):
    tau, subsets, outputs = case
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    renamed = order.argsort()[subsets].sort(1).values
    assert_close(score(tau[order], renamed, outputs), score(*case))


def test_the_order_of_subsets_and_of_targets_changes_nothing(case):
    tau, subsets, outputs = case
    rows = torch.randperm(M, generator=torch.Generator().manual_seed(2))
    columns = torch.randperm(T, generator=torch.Generator().manual_seed(3))
    found = score(tau[:, columns], subsets[rows], outputs[rows][:, columns])
    assert_close(found, score(*case)[columns])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_precision_of_the_attribution_hardly_matters(case, dtype: torch.dtype):
    tau, subsets, outputs = case
    assert_close(score(tau.to(dtype), subsets, outputs), score(*case), atol=0.02, rtol=0)


def test_intervals_do_not_depend_on_the_chunk(case, monkeypatch: pytest.MonkeyPatch):
    found = metrics.bootstrap(*case, n_resamples=50)
    monkeypatch.setattr(metrics, "CHUNK", 50)
    assert metrics.bootstrap(*case, n_resamples=50) == found
