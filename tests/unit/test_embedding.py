"""Attributions as vectors, against closed forms and planted structure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib.attribution import embedding

T, N = 60, 40


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def blocks(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows around two orthogonal directions, and which is which."""
    labels = torch.arange(T) % 2
    rows = torch.zeros(T, N)
    rows[labels == 0, 0], rows[labels == 1, 1] = 1.0, 1.0
    return rows + 0.02 * torch.randn(T, N, generator=generator), labels


def test_cosines_do_not_see_the_length_of_rows(generator):
    rows = torch.randn(T, N, generator=generator)
    scaled = rows * (1 + torch.rand(T, 1, generator=generator))
    torch.testing.assert_close(
        embedding.cosines(rows), embedding.cosines(scaled), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(embedding.cosines(rows).diagonal(), torch.ones(T).double())


def test_a_row_of_zeros_is_like_nothing():
    rows = torch.eye(4)
    rows[2] = 0
    assert embedding.cosines(rows)[2].abs().sum() == 0


def test_spectral_clusters_find_planted_blocks_in_any_order(generator):
    rows, labels = blocks(generator)
    order = torch.randperm(T, generator=generator)
    for place in (torch.arange(T), order):
        found = embedding.spectral_clusters(embedding.cosines(rows[place]))
        assert embedding.rand_index(found, labels[place]) == 1


def test_rand_index_is_that_of_scikit_learn(generator):
    from sklearn.metrics import adjusted_rand_score

    a, b = torch.randint(3, (2, 20, T), generator=generator)
    found = embedding.rand_index(a, b)  # all at once
    expected = [adjusted_rand_score(x.numpy(), y.numpy()) for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert embedding.rand_index(torch.zeros(5).long(), torch.zeros(5).long()) == 1


def test_rand_index_is_one_for_renamed_labels_and_about_zero_for_chance(generator):
    labels = torch.arange(T) % 2
    assert embedding.rand_index(1 - labels, labels) == 1
    order = torch.rand(2000, T, generator=generator).argsort(1)
    values = embedding.rand_index(labels[order], labels.expand(2000, -1))
    # adjusted for chance: the mean over draws is 0 within four standard errors
    assert values.mean().abs() < 4 * values.std() / 2000**0.5
    bound = embedding.chance_rand(labels, labels)
    assert 0 < bound < 0.3
    assert bound == embedding.chance_rand(labels, labels)


def test_components_of_a_line_are_the_line(generator):
    direction = torch.zeros(N).double()
    direction[[3, 7]] = torch.tensor([-0.6, 0.8]).double()
    places = torch.randn(T, generator=generator).double()
    rows = places[:, None] * direction + 5.0
    found = embedding.components(rows, 2)
    torch.testing.assert_close(found.shares, torch.tensor([1.0, 0.0]).double())
    torch.testing.assert_close(found.directions[:, 0], direction)  # its largest entry is positive
    torch.testing.assert_close(found.places[:, 0], places - places.mean())


def test_shares_along_a_whole_basis_sum_to_one(generator):
    rows = torch.randn(T, N, generator=generator)
    basis = torch.linalg.qr(torch.randn(N, N, generator=generator).double()).Q
    assert embedding.share_along(rows, basis).sum() == pytest.approx(1)


def test_residuals_are_orthogonal_to_the_second_algorithm(generator):
    first, second = torch.randn(2, T, N, generator=generator).double()
    found = embedding.residuals(first, second)
    assert ((found * second).sum(1).abs() < 1e-12).all()
    # the length is the sine of the angle between the two rows
    cosine = torch.nn.functional.cosine_similarity(first, second, dim=1)
    torch.testing.assert_close(found.norm(dim=1), (1 - cosine.square()).sqrt())
    assert embedding.residuals(first, 3 * first).abs().max() < 1e-12


def noisy(base: Tensor, generator: torch.Generator) -> Tensor:
    return base + 0.3 * torch.randn(base.shape, generator=generator)


def test_contrast_finds_what_one_algorithm_alone_uses(generator):
    base = torch.randn(T, N, generator=generator)
    used = torch.zeros(N)
    used[:5] = 1 / 5**0.5
    relies = torch.randn(T, 1, generator=generator)
    first = base + 6 * relies * used
    pairs = [(noisy(first, generator), noisy(base, generator)) for _ in range(2)]
    found = embedding.contrast(pairs[0], pairs[1:], 3)
    assert (found.directions[:, 0] @ used.double()).abs() > 0.95
    assert found.ratio > 5


def test_contrast_of_one_algorithm_with_itself_is_one_only_on_other_networks(generator):
    """Judged by the networks that gave the direction, noise alone makes a difference."""
    fresh, same = [], []
    for _ in range(20):
        base = torch.randn(T, N, generator=generator)
        pairs = [(noisy(base, generator), noisy(base, generator)) for _ in range(2)]
        fresh.append(embedding.contrast(pairs[0], pairs[1:], 1).ratio)
        same.append(embedding.contrast(pairs[0], None, 1).ratio)
    assert torch.tensor(fresh).mean() == pytest.approx(1, abs=0.15)
    assert torch.tensor(same).mean() > torch.tensor(fresh).mean() + 0.2
