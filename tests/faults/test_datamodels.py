"""What datamodels refuse, in one sentence that says what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lib.attribution import brittleness, datamodels
from lib.attribution.settings import digits_mlp
from lib.attribution.subsets import sample_subsets

N, M, T = 20, 50, 3
FITS = (datamodels.fit_lasso, datamodels.fit_ridge, datamodels.empirical_influence)
Fit = Callable[..., datamodels.Datamodel]


@pytest.fixture
def case() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return sample_subsets(N, M, 0.5, seed=0), torch.randn(M, T, generator=generator)


@pytest.mark.parametrize("fit", FITS)
def test_a_target_that_never_changes_is_named(case, fit: Fit):
    subsets, outputs = case
    outputs[:, 1] = 2.0
    with pytest.raises(ValueError, match=r"1 targets have the same output .*\(target 1\)"):
        fit(subsets, outputs, N)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("fit", FITS)
def test_nan_is_refused_and_named_by_its_subset(case, fit: Fit, value: float):
    subsets, outputs = case
    outputs[7, 2] = value
    with pytest.raises(ValueError, match="first for subset 7"):
        fit(subsets, outputs, N)


@pytest.mark.parametrize("fit", FITS)
def test_subsets_of_unequal_size_are_refused(case, fit: Fit):
    subsets, outputs = case
    with pytest.raises(ValueError, match="unequal size"):
        fit([row[: 5 + k % 3] for k, row in enumerate(subsets)], outputs, N)


@pytest.mark.parametrize("fit", FITS)
def test_shapes_that_disagree_are_refused(case, fit: Fit):
    subsets, outputs = case
    for wrong in (outputs[:-1], outputs[:, :1].squeeze(1), outputs[:, None]):
        with pytest.raises(ValueError, match=r"want outputs \[m, T\] with m = 50"):
            fit(subsets, wrong, N)
    with pytest.raises(ValueError, match="index 10 rows"):
        fit(subsets, outputs, 10)


@pytest.mark.parametrize("fit", FITS[:2])
def test_too_few_subsets_to_choose_a_penalty(case, fit: Fit):
    subsets, outputs = case
    with pytest.raises(ValueError, match="20 subsets leave 2 to choose"):
        fit(subsets[:20], outputs[:20], N)


def test_too_few_subsets_at_all(case):
    subsets, outputs = case
    with pytest.raises(ValueError, match="at least 3 subsets, got 2"):
        datamodels.ridge(subsets[:2], outputs[:2], N, penalty=1.0)


def test_a_row_that_is_never_left_out_has_no_marginal_effect(case):
    subsets, outputs = case
    always = torch.cat([torch.zeros(M, 1, dtype=torch.int64), subsets[:, 1:].clamp(min=1)], 1)
    kept = (always.diff(dim=1) > 0).all(1)
    with pytest.raises(ValueError, match="row 0 is in all or none"):
        datamodels.empirical_influence(always[kept], outputs[kept], N)


def test_penalties_that_are_none(case):
    subsets, outputs = case
    for penalty in (torch.zeros(T), torch.ones(T + 1)):
        with pytest.raises(ValueError, match="one positive penalty a target"):
            datamodels.lasso(subsets, outputs, N, penalty=penalty)
    with pytest.raises(ValueError, match="positive ridge penalty"):
        datamodels.ridge(subsets, outputs, N, penalty=0.0)


def test_a_fit_that_does_not_converge_names_its_target(case, monkeypatch: pytest.MonkeyPatch):
    subsets, outputs = case
    monkeypatch.setattr(datamodels, "STEPS", 1)
    monkeypatch.setattr(datamodels, "ROUNDS", 2)
    with pytest.raises(ValueError, match="did not converge in 2 steps, the first is target 0"):
        datamodels.lasso(subsets, outputs, N, penalty=torch.full((T,), 1e-4), tol=1e-14)


def test_impossible_removals_are_refused():
    setting = digits_mlp()
    with pytest.raises(ValueError, match="one column a target"):
        brittleness.margins_without(setting, torch.zeros(10, 1), [0], [5])
    for ks in ([], [0], [5, 5], [20, 10], [1000]):
        with pytest.raises(ValueError, match="rising numbers"):
            brittleness.margins_without(setting, torch.zeros(1000, 1), [0], ks)
    with pytest.raises(ValueError, match="right before"):
        brittleness.data_support(torch.zeros(1, 2, 3), torch.tensor([1.0, -1.0]), [5])
    with pytest.raises(ValueError, match="same targets"):
        brittleness.paired_difference(torch.zeros(3), torch.zeros(4))
