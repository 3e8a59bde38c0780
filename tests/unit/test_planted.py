"""The planted training set: what is where, and how lists of pairs are judged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib.attribution import datamodels, metrics, planted, planted_studies
from lib.attribution.planted import LEFT, PAIRS, SIDE, SIDES
from lib.attribution.subsets import membership, sample_subsets
from lib.data.base import Split
from lib.training import Recipe

N_ROWS, N_TARGETS, N_OTHERS, N_COPIES, SIZE = 90, 40, 30, 6, 5


def images(n: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, SIZE, SIZE, generator=generator)
    return Split(x, torch.arange(n) % 10)


def planting(seed: int = 0, noise: float = 0.0) -> planted.Planted:
    return planted.plant(
        "tiny",
        images(N_ROWS, 1),
        images(N_TARGETS, 2),
        images(N_OTHERS, 3),
        n_copies=N_COPIES,
        noise=noise,
        step=1,
        hidden=(4,),
        recipe=Recipe(epochs=5, batch_size=10, lr=0.1),
        seed=seed,
    )


def test_a_shift_moves_pixels_and_brings_in_background():
    x = torch.tensor([[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]])
    assert planted.shift(x, 0, -1)[0].tolist() == [[2, 3, 1], [5, 6, 1], [8, 9, 1]]
    assert planted.shift(x, 1, 0)[0].tolist() == [[1, 1, 1], [1, 2, 3], [4, 5, 6]]
    torch.testing.assert_close(planted.shift(x, 0, 0), x)


def test_versions_are_the_shifts_in_the_order_of_sides():
    x = images(4, 0).x
    found = planted.versions(x, 2)
    assert found.shape == (4, len(SIDES), SIZE, SIZE)
    for place, (down, right) in enumerate(SIDES):
        assert torch.equal(found[:, place], planted.shift(x, 2 * down, 2 * right))


def test_pairs_cover_every_digit_once():
    assert sorted(d for pair in PAIRS for d in pair) == list(range(10))
    places = planted.pair_of(torch.arange(10))
    assert all(places[a] == places[b] == k for k, (a, b) in enumerate(PAIRS))


def test_copies_without_noise_are_their_originals():
    found = planting()
    train, targets = found.plain.train, found.plain.targets
    assert torch.equal(train.x[found.copies], targets.x[found.originals])
    assert torch.equal(train.y[found.copies], targets.y[found.originals])
    assert torch.equal(found.digits[found.copies], found.target_digits[found.originals])
    assert len(set(found.originals.tolist())) == N_COPIES
    assert found.of_pairs().sum() == N_COPIES
    assert found.of_pairs()[found.copies, found.originals].all()


def test_noise_stays_in_the_range_of_pixels():
    clean, dirty = planting(), planting(noise=0.5)
    train = dirty.plain.train.x
    assert not torch.equal(train[dirty.copies], clean.plain.train.x[clean.copies])
    assert train.min() >= clean.plain.train.x.min()
    assert train.max() <= clean.plain.train.x.max()


def test_half_of_one_pair_stands_aside_in_both_sets():
    found = planting()
    for split, aside, original in (
        (found.plain.train, found.aside, images(N_ROWS, 1)),
        (found.plain.targets, found.targets_aside, images(N_TARGETS, 2)),
    ):
        n = len(original)
        of_pair = split.y[:n] == SIDE
        assert int(aside[:n].sum()) == int(of_pair.sum()) // 2
        assert not (aside[:n] & ~of_pair).any()
        moved = planted.shift(original.x, 0, LEFT).flatten(1)
        assert torch.equal(split.x[:n][aside[:n]], moved[aside[:n]])
        assert torch.equal(split.x[:n][~aside[:n]], original.x.flatten(1)[~aside[:n]])


def test_half_of_the_further_targets_stand_aside_whatever_their_pair():
    found = planting()
    aside = found.targets_aside[found.n_drawn :]
    assert len(aside) == N_OTHERS
    assert int(aside.sum()) == N_OTHERS // 2
    assert len(found.plain.targets.y[found.n_drawn :][aside].unique()) > 1
    original = images(N_OTHERS, 3).x
    moved = torch.where(aside[:, None, None], planted.shift(original, 0, LEFT), original)
    assert torch.equal(found.plain.targets.x[found.n_drawn :], moved.flatten(1))


def test_the_second_algorithm_sees_all_versions_of_the_same_rows():
    found = planting()
    subsets = sample_subsets(N_ROWS + N_COPIES, 3, 0.5, seed=0)
    wide = found.expand(subsets)
    for rows, many in zip(subsets, wide, strict=True):
        square = found.plain.train.x[rows].unflatten(1, (SIZE, SIZE))
        versions = planted.versions(found.plain.train.x.unflatten(1, (SIZE, SIZE)), 1)[rows]
        assert torch.equal(found.shifted.train.x[many], versions.flatten(0, 1).flatten(1))
        assert torch.equal(found.shifted.train.x[many][:: len(SIDES)], square.flatten(1))
        assert torch.equal(found.shifted.train.y[many][:: len(SIDES)], found.plain.train.y[rows])
    assert (wide.diff(dim=1) > 0).all()
    steps = [s.recipe.epochs * len(s.train) for s in (found.plain, found.shifted)]
    assert steps[0] == steps[1]


def test_same_seed_same_bytes_and_another_seed_another_set():
    a, b, c = planting(0, 0.1), planting(0, 0.1), planting(1, 0.1)
    assert a.plain.data_hash == b.plain.data_hash != c.plain.data_hash


def score_of(truth: Tensor) -> Tensor:
    return truth.double() + 0.01 * torch.rand(
        truth.shape, generator=torch.Generator().manual_seed(0)
    )


def test_a_perfect_score_finds_all_copies_and_its_negative_none():
    truth = planting().of_pairs()
    best = planted_studies.find("best", score_of(truth), truth, n_ranks=20)
    assert (best.recall[0], best.auc[0], best.first) == (1, 1, 1)
    assert best.found.tolist() == [True] * N_COPIES + [False] * (20 - N_COPIES)
    assert best.precision[N_COPIES - 1] == 1
    assert best.precision[19] == pytest.approx(N_COPIES / 20)
    worst = planted_studies.find("worst", -score_of(truth), truth, n_ranks=20)
    assert (worst.recall[0], worst.auc[0], worst.first) == (0, 0, 0)


def test_the_auc_of_pairs_is_that_of_all_pairs_with_ties():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(4, (30, 12), generator=generator).double()
    truth = torch.rand(30, 12, generator=generator) < 0.1
    found = planted_studies.find("ties", scores, truth)
    assert found.auc[0] == pytest.approx(metrics.mislabel_auc(scores.flatten(), truth.flatten()))


def test_a_copy_is_the_largest_weight_of_a_datamodel_with_the_common_sign():
    """Outputs that rise with the copy alone: sign errors would put it last (pitfall 1)."""
    found = planting()
    truth = found.of_pairs()
    n = len(truth)
    subsets = sample_subsets(n, 400, 0.5, seed=1)
    generator = torch.Generator().manual_seed(2)
    outputs = membership(subsets, n) @ truth.double()
    outputs = outputs + 0.1 * torch.randn(outputs.shape, generator=generator)
    model = datamodels.fit_ridge(subsets, outputs, n)
    assert planted_studies.find("datamodel", model.tau, truth).recall[0] == 1
