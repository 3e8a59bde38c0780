"""Concept images: balanced, without a giveaway, and scored as a planted texture says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib import probes
from lib.data import concepts


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_patches_are_half_positive_equally_bright_and_drawn_from_the_seed():
    x, y = concepts.hilo_patches(400, generator(), size=8)
    assert x.shape == (400, 8, 8)
    assert y.sum() == 200
    assert 0.3 < y[:200].double().mean() < 0.7  # mixed: not one class after the other
    assert_close(x.mean(dim=(1, 2)), torch.full((400,), 0.2))
    again, y_again = concepts.hilo_patches(400, generator(), size=8)
    assert_close((again, y_again), (x, y), rtol=0, atol=0)
    assert not torch.equal(concepts.hilo_patches(400, generator(1))[0], x)


@pytest.mark.parametrize("seed", range(3))
def test_both_classes_have_the_same_mean_square(seed: int):
    x, y = concepts.hilo_patches(4000, generator(seed))
    square = x.square().mean(dim=(1, 2))
    error = (square[y == 1].var() / 2000 + square[y == 0].var() / 2000).sqrt()
    # scaled before the contrasts are drawn and the mean is taken out: equal up to their draw
    assert abs(square[y == 1].mean() - square[y == 0].mean()) < 4 * error


def test_no_pixel_gives_a_patch_away_but_the_two_sides_do():
    """Directions are random: beyond the flat patches, which are one point, pixels say nothing."""
    x, y = concepts.hilo_patches(4000, generator())
    pixels, test = x.flatten(1).double(), slice(2000, None)
    probe = probes.fit_logistic(pixels[:2000], y[:2000])
    score, textured = probe.score(pixels[test]), x[test].std(dim=(1, 2)) > 1e-6
    assert 0.1 < 1 - textured.double().mean() < 0.23  # a third of the negatives
    sd = (1 / 12 * (1 / 1000 + 1 / 667)) ** 0.5  # of the area under a random ranking
    assert abs(probes.roc_auc(score[textured], y[test][textured]).item() - 0.5) < 4 * sd
    assert probes.roc_auc(concepts.hilo_scores(x[:, None]), y) > 0.9


def test_contrast_alone_tells_the_label_only_in_part():
    x, y = concepts.hilo_patches(4000, generator())
    order = x.var(dim=(1, 2)).argsort()
    below = (y[order] == 0).cumsum(0) + (y == 1).sum() - (y[order] == 1).cumsum(0)
    right = below.double() / len(y)  # of "positive above this patch's contrast"
    assert max(right.max().item(), (1 - right).max().item()) < 0.82


def planted(side: str) -> Tensor:
    """White noise on one side of a grey image, for each of three channels."""
    noise = torch.randn(1, 1, 16, 16, generator=generator(), dtype=torch.float64)
    row = torch.arange(16)[:, None].expand(16, 16)
    inside = {
        "left": row.T < 8,
        "top": row < 8,
        "corner": row + row.T < 15,
        "other corner": row > row.T,
        "everywhere": row >= 0,
        "nowhere": row < 0,
    }[side]
    return (0.5 + 0.1 * noise * inside).expand(1, 3, 16, 16)


def test_scores_are_high_for_images_textured_on_one_side_only():
    for side in ("left", "top", "corner", "other corner"):
        assert concepts.hilo_scores(planted(side)).item() > 0.9, side
    assert concepts.hilo_scores(planted("everywhere")).item() < 0.4
    assert concepts.hilo_scores(planted("nowhere")).item() < 1e-6


def test_scores_do_not_depend_on_side_turn_contrast_or_brightness():
    images = torch.rand(20, 3, 12, 12, generator=generator(), dtype=torch.float64)
    score = concepts.hilo_scores(images)
    assert ((score >= 0) & (score <= 1)).all()
    assert score.std() > 0.01  # they do differ between images
    turned = [images.flip(-1), images.flip(-2), images.transpose(-1, -2), images * 7 + 3]
    for other in turned:  # scored in float32
        assert_close(concepts.hilo_scores(other), score, rtol=1e-3, atol=1e-4)


def test_whole_numbers_score_as_real_ones():
    pixels = torch.randint(0, 256, (5, 3, 8, 8), generator=generator(), dtype=torch.uint8)
    assert_close(concepts.hilo_scores(pixels), concepts.hilo_scores(pixels.float()))


def test_natural_rows_are_the_top_scores_and_middling_ones():
    images = torch.rand(200, 3, 8, 8, generator=generator())
    rows, labels = concepts.hilo_natural(images, generator())
    rank = concepts.hilo_scores(images).argsort().argsort()
    assert labels.sum() == 10
    assert len(rows) == len(rows.unique()) == 20
    assert sorted(rank[rows[labels == 1]].tolist()) == list(range(190, 200))
    middle = rank[rows[labels == 0]]
    assert middle.min() >= 80
    assert middle.max() < 120
    assert_close(concepts.hilo_natural(images, generator()), (rows, labels))


def test_class_groups_are_balanced_disjoint_and_right():
    classes = torch.randint(0, 6, (300,), generator=generator())
    rows, label = concepts.class_group(classes, [0, 1, 2], [5], generator())
    assert 2 * label.sum() == len(label) == 2 * (classes == 5).sum()
    assert len(rows.unique()) == len(rows)
    assert set(classes[rows[label == 1]].tolist()) == {0, 1, 2}
    assert set(classes[rows[label == 0]].tolist()) == {5}
    assert not torch.equal(label, label.sort().values)  # in random order
    again = concepts.class_group(classes, [0, 1, 2], [5], generator())
    assert_close(again, (rows, label))


def test_class_groups_that_overlap_or_are_empty_are_refused():
    classes = torch.arange(4)
    with pytest.raises(ValueError, match=r"classes \{2\} are in both groups"):
        concepts.class_group(classes, [1, 2], [2, 3], generator())
    with pytest.raises(ValueError, match=r"no rows of classes \[7\] or \[1\]"):
        concepts.class_group(classes, [7], [1], generator())
