"""Figures and tables of notebook 42 say what the results say."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch

from lib import figures, models
from lib.attribution import debugging_pictures as pictures
from lib.attribution import mislabels, mismatch, poisoning, pools
from lib.data.base import Provenance

RNG = torch.Generator().manual_seed(0)
GREY = torch.randint(0, 17, (1200, 4, 4), generator=RNG).float()
ABOUT = Provenance("toy", "a generator", "none", "0" * 64, 1200)
POOL = pools.Pool("digits", GREY, torch.arange(1200) % 10, 16, ABOUT)


@pytest.fixture(autouse=True)
def _style():
    figures.use_style()
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def sweep() -> mislabels.Sweep:
    fixed = {"side": 4, "n": 100, "n_test": 50, "lam": 0.1, "n_seeds": 3}
    return mislabels.sweep(POOL, flips=(0.1, 0.3), checks=(0.1, 0.2), **fixed)


@pytest.fixture(scope="module")
def network() -> mislabels.NetworkOrders:
    found = {name: torch.rand(3, 2, generator=RNG) for name in ("EK-FAC self-influence", "random")}
    found["training loss"] = found["random"]
    auc = {name: torch.rand(2, generator=RNG) for name in found}
    shown = torch.rand(3, 20, generator=RNG)
    shown[2] = (shown[2] > 0.5).float()
    half = torch.full((2,), 0.5)
    return mislabels.NetworkOrders(
        "toy", 20, 0.1, (0.0, 0.1, 0.2), found, auc, half, half, (), shown
    )


@pytest.fixture(scope="module")
def skew() -> mismatch.Mismatch:
    return mismatch.study(POOL, side=4, n=400, n_test=60, lam=1e-4, n_draws=2)


@pytest.fixture(scope="module")
def study() -> poisoning.Study:
    bottom = poisoning.Bottom(models.build("mlp", RNG, widths=(16, 8, 2)).double(), 16, (16,))
    rows, test = POOL.draw((60, 60), 0)
    found = poisoning.victim(bottom, POOL, rows, 0.01)
    targets, right = poisoning.right_targets(found, POOL, test, 6)
    fixed = {"counts": (1, 2, 10), "boxes": (0.25, 0.5, 2.0), "wide": 2.0, "max_iterations": 2}
    return poisoning.study(found, targets, right, **fixed)


def test_checks_have_a_panel_for_found_and_one_for_each_share(sweep) -> None:
    fig = pictures.checks(sweep, (0.1, 0.3))
    assert len(fig.axes) == 3
    line = fig.axes[0].get_lines()[0]
    assert line.get_ydata() == pytest.approx(100 * sweep.found[0, 0].mean(1).numpy())
    lost = fig.axes[2].get_lines()[0].get_ydata()[0]
    assert lost == pytest.approx(-100 * sweep.regained("random", 0.3, 0.1)[1].mean().item())


def test_sweep_rows_are_one_a_penalty_and_share(sweep) -> None:
    rows = pictures.sweep_rows([sweep, replace(sweep, lam=1.0)], 0.2)
    assert [(row["λ"], row["flipped"]) for row in rows] == [
        ("0.1", "10%"), ("0.1", "30%"), ("1", "10%"), ("1", "30%"),
    ]  # fmt: skip
    won = 100 * sweep.regained("self-influence", 0.3, 0.2)[0]
    assert rows[1]["won back, self-influence"][0] == pytest.approx(won.mean().item())


def test_network_panels_and_rows(network) -> None:
    fig = pictures.network_checks([network, network])
    assert len(fig.axes) == 3
    stars = [line for line in fig.axes[0].get_lines() if line.get_marker() == "*"]
    assert list(stars[0].get_ydata()) == [80.0, 97.0]
    assert len(pictures.network_rows([network])) == 3


def test_mismatch_panels_and_rows(skew) -> None:
    fig = pictures.mismatch_panels(skew, 0)
    assert len(fig.axes) == 2
    (row,) = pictures.mismatch_rows([skew])
    assert row["marked even digits read as odd"] == skew.share("wrong")


def test_attack_panels_and_rows(study) -> None:
    fig = pictures.attacks(study, 2.0)
    assert len(fig.axes) == 3
    rows = pictures.attack_rows(study)
    assert len(rows) == len(study.done) == 7
    flipped = int(study.done[10, 2.0][0].flipped.sum())
    assert rows[-1]["flipped"].endswith(f"({flipped})")


def test_half_a_level_leaves_the_stored_image_in_the_picture(study) -> None:
    fig = pictures.example(study, "digits", 0, 2, 0.5)
    assert len(fig.axes) == 7
    assert [fig.axes[k].get_xlabel() for k in (3, 6)] == ["0 pixels\ndiffer"] * 2
    before, after = (fig.axes[k].images[0].get_array() for k in (1, 3))
    assert (before == after).all()


def test_images_without_a_known_licence_are_not_drawn(study) -> None:
    fig = pictures.example(study, "mnist", 0, 1, 0.5)
    assert [bool(axis.images) for axis in fig.axes] == [False, False, True, False]


def test_published_numbers_stand_beside_ours(sweep, network, skew, study) -> None:
    rows = pictures.published_rows(sweep, network, skew, study)
    known = {row["item"]: row for row in rows}
    assert known["flipped by 1 image"]["published"].startswith("335 of 591")
    assert known["flipped by 10 images"]["ours"].endswith("of 6")
    assert all(row["known from"] for row in rows)
