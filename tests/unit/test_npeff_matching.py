"""Comparing decompositions by their coefficients."""

from __future__ import annotations

import pytest
import torch

from lib.npeff import matching


def coefficients(n: int, r: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, r, generator=torch.Generator().manual_seed(seed)).pow(4)


def test_the_same_components_in_another_order_and_scale_match_exactly():
    w = coefficients(50, 6)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    other = w[:, order] * torch.rand(6, generator=torch.Generator().manual_seed(2))
    assert matching.max_cosine(w, other) == pytest.approx(1, abs=1e-6)
    assert torch.equal(matching.assign(w, other), order.argsort())


def test_cosines_are_those_of_the_columns():
    a = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    b = torch.tensor([[0.0, 2.0, 0.0], [0.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    half = 0.5**0.5
    expected = torch.tensor([[0, 1, 0], [0, half, 0]], dtype=torch.float64)
    torch.testing.assert_close(matching.cosines(a, b), expected)
    # the directions differ: b's first column has no counterpart, a's all have one
    assert matching.max_cosine(a, b) == pytest.approx((1 + half) / 2)
    assert matching.max_cosine(b, a) == pytest.approx(1 / 3)


def test_shuffled_examples_match_less():
    w = coefficients(500, 6)
    null = matching.shuffled_max_cosine(w, w, seed=0)
    assert null.shape == (20,)
    assert float(null.max()) < 0.6 < matching.max_cosine(w, w)
    assert torch.equal(null, matching.shuffled_max_cosine(w, w, seed=0))


def test_convergence_ends_at_one():
    final = coefficients(100, 4)
    noise = coefficients(100, 4, seed=1)
    curve = matching.convergence(torch.stack([final + s * noise for s in (2.0, 1.0, 0.1, 0.0)]))
    assert curve.shape == (4, 4)
    assert (curve.diff(dim=0) > 0).all()
    assert curve[-1].tolist() == pytest.approx([1] * 4)


def test_other_examples_are_refused():
    with pytest.raises(ValueError, match="same examples"):
        matching.cosines(torch.rand(4, 2), torch.rand(5, 2))
    with pytest.raises(ValueError, match="larger run first"):
        matching.assign(torch.rand(4, 2), torch.rand(4, 3))
    with pytest.raises(ValueError, match="finite"):
        matching.max_cosine(torch.full((4, 2), torch.nan), torch.rand(4, 2))
    with pytest.raises(ValueError, match="snapshots"):
        matching.convergence(torch.rand(4, 2))
