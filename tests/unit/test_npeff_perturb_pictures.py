"""The figures of perturbations show the numbers they are given."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
import torch

from lib import figures
from lib.npeff import perturb_pictures as pictures


@pytest.fixture(autouse=True)
def _style():
    figures.use_style()
    yield
    plt.close("all")


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_component_is_in_the_histograms_and_medians_are_named() -> None:
    kl = torch.tensor([2.0, 4.0, 8.0, torch.nan])
    norm = torch.tensor([1.0, 1.0, 2.0, 1.0])
    random = torch.full((4, 5), 0.5)
    axis = pictures.ratio_histograms({"digits": (kl, norm, random)}).axes[0]
    bars = [sum(bar.get_height() for bar in box.patches) for box in axis.containers[:2]]
    assert bars == [3, 4]
    words = [text.get_text() for text in axis.texts]
    assert words == ["4×", "1×", "0.5×"]
    assert "1 undefined" in axis.get_title(loc="left")


def test_ratios_without_a_logarithm_are_refused() -> None:
    bad = torch.zeros(3)
    with pytest.raises(ValueError, match="raise the norm"):
        pictures.ratio_histograms({"digits": (bad, bad, bad[:, None])})


def test_scatter_shows_all_examples_and_their_rank_correlation() -> None:
    x = torch.arange(1.0, 21)
    axis = pictures.predicted_against_measured(x, x**2, x > 15).axes[0]
    assert sum(len(points.get_offsets()) for points in axis.collections) == 20
    assert "1.00" in axis.get_title(loc="left")


def test_curve_is_drawn_in_order_of_size() -> None:
    sizes = torch.tensor([0.0, 0.3, -0.3])
    curves = {"counter-examples": torch.tensor([0.2, 0.5, 0.1]), "elsewhere": torch.ones(3)}
    axis = pictures.accuracy_against_size(sizes, curves, (30, 100), chosen=0.3).axes[0]
    line = axis.get_lines()[0]
    assert line.get_xdata().tolist() == pytest.approx([-0.3, 0.0, 0.3])
    assert line.get_ydata().tolist() == pytest.approx([0.1, 0.2, 0.5])
    assert "+0.3" in axis.texts[0].get_text()


def test_outcomes_show_every_change_once_and_mark_the_selected() -> None:
    candidates = torch.randn(6, 2, generator=draw(0))
    fig = pictures.repair_outcomes(candidates, candidates, torch.zeros(2), torch.ones(2), 4)
    counts = [len(points.get_offsets()) for points in fig.axes[0].collections]
    assert counts == [6, 6, 1, 1, 1]
    marked = fig.axes[0].collections[-1].get_offsets()[0].tolist()
    assert marked == pytest.approx(candidates[4].flip(0).tolist())


def test_tests_and_cosines_are_bars_of_their_values() -> None:
    tests = {"k-means": (1.0, 0.5, 8), "random sets": (0.4, 0.0, 20)}
    fig = pictures.tests_and_cosines(tests, {"k-means to components": (0.2, 0.1)})
    left, right = fig.axes
    assert [bar.get_width() for bar in left.patches] == [1.0, 0.4, 0.5, 0.0]
    assert [bar.get_width() for bar in right.patches] == [0.2]
