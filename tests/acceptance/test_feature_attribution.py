"""The recap's methods on the digits network and on planted images, seeds of their own.

Networks come from the cache where notebook 47 has trained them.
"""

from __future__ import annotations

import pytest
import torch

from lib import config
from lib.attribution import coalitions, feature_checks, feature_methods, feature_subjects
from lib.attribution.feature_axioms import completeness_gap
from lib.attribution.feature_methods import Options, attribute, outputs

SEED = 11


@pytest.fixture(scope="module")
def digits() -> feature_subjects.Subject:
    return feature_subjects.load(
        config.resolve("47_feature_attribution_recap", "quick", 0, "cpu", n_images=6)
    )


@pytest.fixture(scope="module")
def exact(digits) -> torch.Tensor:
    return coalitions.exact_shapley(
        digits.model, digits.x, digits.y, baseline=digits.baseline, groups=digits.groups
    )


def test_explained_classes_are_predicted_rightly(digits) -> None:
    assert digits.accuracy > 0.95
    assert torch.equal(digits.model(digits.x).argmax(1), digits.y)


def test_exact_values_sum_to_the_rise_of_the_output(digits, exact) -> None:
    nothing = torch.full_like(digits.x, digits.baseline)
    rise = outputs(digits.model, digits.x, digits.y) - outputs(digits.model, nothing, digits.y)
    torch.testing.assert_close(exact.sum(1), rise.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["KernelSHAP", "Shapley sampling"])
def test_estimates_come_nearer_to_the_exact_values_with_more_work(method, digits, exact) -> None:
    errors = []
    for n in (40, 400):
        options = Options(groups=digits.groups, n_samples=n, n_orders=n // 8, chunk=256)
        maps = attribute(
            method,
            digits.model,
            digits.x,
            digits.y,
            baseline=digits.baseline,
            options=options,
            seed=SEED,
        )
        sums = coalitions.group_sums(maps, digits.groups).double()
        errors.append(((sums - exact).norm(dim=1) / exact.norm(dim=1)).mean())
    assert errors[1] < 0.6 * errors[0]  # ten times the work: a third of a sampling error


def test_the_path_of_integrated_gradients_closes_with_more_steps(digits) -> None:
    nothing = torch.full_like(digits.x, digits.baseline)
    rise = outputs(digits.model, digits.x, digits.y) - outputs(digits.model, nothing, digits.y)
    gaps = []
    for n_steps in (10, 1000):
        options = Options(n_steps=n_steps, chunk=2000)
        maps = attribute(
            "integrated gradients",
            digits.model,
            digits.x,
            digits.y,
            baseline=digits.baseline,
            options=options,
        )
        gaps.append(completeness_gap(maps, rise).median())
    assert gaps[1] < gaps[0] / 3


def test_exact_values_beat_a_random_map_at_deletion_and_insertion(digits, exact) -> None:
    sizes = torch.bincount(digits.groups.flatten())
    maps = (exact / sizes)[:, digits.groups.flatten()].reshape(digits.x.shape).float()
    noise = feature_methods.control("random", digits.x, baseline=digits.baseline, seed=SEED)
    gaps = [
        feature_checks.perturbation_curves(
            digits.model, digits.x, digits.y, m, baseline=digits.baseline
        ).gap
        for m in (maps, noise)
    ]
    assert (gaps[0] - gaps[1]).mean() > 0.2
