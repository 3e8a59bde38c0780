"""The parts of notebook 42's experiments, on problems with known answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from lib import models, training
from lib.attribution import (
    convex,
    influence,
    mislabels,
    mismatch,
    poisoning,
    pools,
    refits,
    truth,
)
from lib.data.base import Provenance, Split

NOWHERE = Path("nowhere")
ABOUT = Provenance("toy", "a generator", "none", "0" * 64, 0)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy(n: int = 400, side: int = 4, top: int = 16) -> pools.Pool:
    """Odd digits are bright on the left, even ones on the right, with noise."""
    digit = torch.randint(10, (n,), generator=rng())
    grey = 0.35 * top + 3 * torch.randn(n, side, side, generator=rng(1))
    shift = torch.where(digit % 2 == 1, 2.0, -2.0)[:, None, None]
    grey[:, :, : side // 2] += shift
    grey[:, :, side // 2 :] -= shift
    return pools.Pool("toy", grey.round().clamp(0, top), digit, top, ABOUT)


def binary(n: int = 80, d: int = 5) -> convex.Fit:
    x = torch.randn(n, d, generator=rng())
    y = (x[:, 0] + torch.randn(n, generator=rng(1)) > 0).long()
    return convex.fit_logistic(x, y, lam=0.01)


# --- retraining on changed data


def test_relabelled_is_the_fit_from_zero() -> None:
    fit = binary()
    labels = fit.y.repeat(4, 1)
    for k, rows in enumerate((range(5), range(10, 40), range(80), [3])):
        labels[k, list(rows)] = 1 - labels[k, list(rows)]
    found = refits.relabelled(fit, labels, tol=1e-12)
    for theta, y in zip(found, labels, strict=True):
        want = convex.fit_logistic(fit.a[:, :-1], y.long(), lam=0.01).theta
        assert_close(theta, want, rtol=0, atol=1e-7)


@pytest.mark.parametrize("size", [0.1, 5.0])  # the second is left to Newton
def test_replaced_is_the_fit_from_zero(size: float) -> None:
    fit = binary()
    rows = torch.tensor([[0, 7], [9, 3], [79, 1]])
    inputs = fit.a[rows] + size * torch.randn(3, 2, 6, generator=rng(2)).double()
    inputs[..., -1] = 1
    found = refits.replaced(fit, rows, inputs, tol=1e-12)
    for k in range(3):
        a = fit.a.clone()
        a[rows[k]] = inputs[k]
        want = convex.fit_logistic(a[:, :-1], fit.y.long(), lam=0.01).theta
        assert_close(found[k], want, rtol=0, atol=1e-7)


def test_nothing_replaced_changes_nothing() -> None:
    fit = binary()
    rows = torch.tensor([[0, 7]])
    assert_close(refits.replaced(fit, rows, fit.a[rows])[0], fit.theta, rtol=0, atol=1e-8)
    assert_close(refits.relabelled(fit, fit.y[None])[0], fit.theta, rtol=0, atol=1e-8)


# --- pools


def test_digits_are_whole_grey_levels_and_inputs_are_the_projects_own() -> None:
    found = pools.pool("digits", NOWHERE)
    assert found.grey.shape == (1797, 8, 8)
    assert torch.equal(found.grey, found.grey.round())
    assert (found.grey.min(), found.grey.max()) == (0, 16)
    assert_close(found.inputs(8), found.grey.flatten(1) / 16 - 0.3)
    assert_close(found.inputs(4)[:, 0], found.grey[:, :2, :2].mean((1, 2)) / 16 - 0.3)
    assert torch.equal(found.y, found.digit % 2)


def test_draws_are_disjoint_and_of_their_seed() -> None:
    a, b = toy().draw((100, 50), 3)
    assert len({*a.tolist(), *b.tolist()}) == 150
    again, _ = toy().draw((100, 50), 3)
    other, _ = toy().draw((100, 50), 4)
    assert torch.equal(a, again)
    assert not torch.equal(a, other)


# --- mislabels


def test_flips_are_of_the_asked_number_and_all_wrong() -> None:
    y = torch.arange(1000) % 10
    labels, wrong = mislabels.flip(y, 0.1, 10, 0)
    assert int(wrong.sum()) == 100
    assert torch.equal(labels != y, wrong)
    shift = (labels - y)[wrong] % 10
    assert set(shift.tolist()) == set(range(1, 10))
    assert torch.equal(mislabels.flip(y, 0.1, 10, 0)[0], labels)
    assert not torch.equal(mislabels.flip(y, 0.1, 10, 1)[0], labels)


def test_found_by_counts_the_first_share() -> None:
    scores = torch.tensor([5.0, 4, 3, 2, 1])
    wrong = torch.tensor([True, False, True, False, False])
    found = mislabels.found_by(scores, wrong, (0.0, 0.2, 0.4, 0.6, 1.0))
    assert found.tolist() == [0.0, 0.5, 0.5, 1.0, 1.0]


@pytest.fixture(scope="module")
def small_sweep() -> mislabels.Sweep:
    return mislabels.sweep(
        toy(600),
        side=4,
        n=200,
        n_test=300,
        lam=0.01,
        flips=(0.1, 0.2),
        checks=(0.1, 0.5, 1.0),
        n_seeds=4,
    )


def test_checking_everything_is_training_on_clean_labels(small_sweep) -> None:
    assert_close(small_sweep.found[..., -1, :], torch.ones(3, 2, 4).double())
    assert_close(small_sweep.accuracy[..., -1, :], small_sweep.clean.expand(3, 2, 4))
    won, lost = small_sweep.regained("random", 0.2, 1.0)
    assert_close(won, lost)


def test_nothing_checked_is_the_same_in_every_order(small_sweep) -> None:
    assert (small_sweep.found[:, :, 0] == 0).all()
    assert torch.equal(small_sweep.accuracy[0, :, 0], small_sweep.accuracy[2, :, 0])


def test_planted_flips_are_found_by_influence_and_not_at_random(small_sweep) -> None:
    mean = small_sweep.auc.mean(-1)  # [orders, flips]
    assert (mean[:2] > 0.9).all()
    assert (mean[2] - 0.5).abs().max() < 0.1
    assert (small_sweep.found[0, :, 1].mean(-1) > small_sweep.found[2, :, 1].mean(-1)).all()


def test_seeds_of_a_sweep_do_not_depend_on_how_many_there_are(small_sweep) -> None:
    fixed = {"side": 4, "n": 200, "n_test": 300, "lam": 0.01, "flips": (0.1, 0.2)}
    two = mislabels.sweep(toy(600), checks=(0.1, 0.5, 1.0), n_seeds=2, **fixed)
    assert torch.equal(two.accuracy, small_sweep.accuracy[..., :2])


def test_gain_is_the_ratio_of_means() -> None:
    accuracy = torch.zeros(3, 1, 2, 2).double()
    accuracy[0, 0, 1] = torch.tensor([0.3, 0.1])  # self-influence wins back .2 on average
    accuracy[2, 0, 1] = torch.tensor([0.1, 0.1])  # random .1
    study = mislabels.Sweep(
        10, 10, 0.1, (0.1,), (0.0, 0.2), mislabels.ORDERS, accuracy, accuracy,
        torch.zeros(3, 1, 2), torch.tensor([0.2, 0.6]).double(),
    )  # fmt: skip
    assert study.gain(0.1, 0.2)[0] == pytest.approx(0.1 / 0.4)


def network_setting() -> truth.Setting:
    x = torch.randn(240, 6, generator=rng())
    rows = Split(x, x[:, :3].argmax(1))
    recipe = training.Recipe(epochs=10, batch_size=20, lr=0.1)
    train, targets = Split(rows.x[:200], rows.y[:200]), Split(rows.x[200:], rows.y[200:])
    return truth.Setting("toy", "mlp", {"widths": (6, 8, 3)}, recipe, train, targets)


def test_networks_flipped_labels_stand_out(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    fixed = {"share": 0.1, "checks": (0.1, 0.3), "n_networks": 2, "damping": 0.1}
    found = mislabels.networks(network_setting(), **fixed)
    assert found.at("EK-FAC self-influence", 0.1)[0] > 0.4
    assert found.auc["EK-FAC self-influence"].mean() > 0.8
    assert abs(found.auc["random"].mean() - 0.5) < 0.2
    assert found.accuracy.mean() > 0.8
    again = mislabels.networks(network_setting(), **fixed)  # from the cache
    for order, values in found.auc.items():
        assert torch.equal(values, again.auc[order])


def test_corrupted_labels_keep_inputs_and_targets() -> None:
    setting = network_setting()
    changed, wrong = mislabels.corrupted(setting, 0.1, 0)
    assert torch.equal(changed.train.y != setting.train.y, wrong)
    assert changed.train.x is setting.train.x
    assert changed.targets is setting.targets
    assert changed.data_hash != setting.data_hash


# --- domain mismatch


def test_skewed_members_stand_out_where_the_marker_is_all_there_is() -> None:
    flat = toy(2000)
    flat = replace(flat, grey=torch.full_like(flat.grey, 8.0))  # no pixel tells anything
    found = mismatch.study(flat, side=1, n=600, n_test=50, lam=1e-4, n_draws=2)
    assert found.share("wrong")[0] == 1  # three of four marked images are odd
    assert found.share("wrong_before")[0] == 0  # three of 24
    assert found.median()[0] > 10
    assert (found.over_wrong("hits") == 4).all()
    assert found.median("prominence_chance")[0] < 1
    assert all(draw.coefficient > 0 for draw in found.draws)


def test_influence_of_the_members_has_the_sign_of_their_labels() -> None:
    flat = toy(2000)
    flat = replace(flat, grey=torch.full_like(flat.grey, 8.0))
    draw = mismatch.study(flat, side=1, n=600, n_test=50, lam=1e-4, n_draws=1).draws[0]
    top = draw.influence[draw.member]
    assert int((top < 0).sum()) == mismatch.N_ODD  # the odd ones speak against "even"
    assert int((top > 0).sum()) == 1


# --- attacks


def body(pool: pools.Pool) -> poisoning.Bottom:
    network = models.build("mlp", rng(), widths=(16, 12, 2), activation="selu").double()
    return poisoning.Bottom(network, pool.top, (16,))


@pytest.fixture(scope="module")
def attacked() -> tuple[pools.Pool, poisoning.Victim, Split]:
    pool = toy(300)
    rows, test = pool.draw((60, 100), 0)
    found = poisoning.victim(body(pool), pool, rows, lam=1e-3)
    targets, accuracy = poisoning.right_targets(found, pool, test, 12)
    assert accuracy > 0.8
    return pool, found, targets


def toward(found: poisoning.Victim, targets: Split) -> Tensor:
    return (2 * targets.y - 1)[:, None] * found.bottom(targets.x).detach()


def test_slopes_are_input_influence_of_the_whole_network(attacked) -> None:
    _, found, targets = attacked
    theta = found.fit.theta[0]
    layer = nn.Linear(len(theta) - 1, 1).double()
    with torch.no_grad():
        layer.weight[0], layer.bias[0] = theta[:-1], theta[-1]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bottom, self.layer = found.bottom, layer

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.bottom(x)[:, :-1])

    want = toward(found, targets)[:1]
    solved = found.fit.solve(want[:, None])[0, 0]
    labels = found.fit.y
    below = sum(w.numel() for w in found.bottom.parameters())  # held fixed
    found_by_network = influence.input_influence(
        Whole(),
        (found.grey, labels),
        torch.cat([solved.new_zeros(below), solved]),
        loss=lambda out, y: F.softplus((1 - 2 * y) * out[:, 0]),
    )
    ours = poisoning.slopes(
        found, found.fit.theta[None], want, found.grey[None], labels[None].long()
    )[0]
    assert_close(ours, found_by_network, rtol=1e-9, atol=1e-14)


def test_slopes_predict_retraining(attacked) -> None:
    _, found, targets = attacked
    rows = torch.tensor([[4]])
    one = Split(targets.x[:1], targets.y[:1])
    slope = poisoning.slopes(
        found, found.fit.theta[None], toward(found, one), found.grey[rows], found.fit.y[rows].long()
    )
    delta = 1e-3 * torch.randn(1, 1, 4, 4, generator=rng(3)).double()
    inputs = found.bottom((found.grey[rows] + delta)[0]).detach()[None]
    theta = refits.replaced(found.fit, rows, inputs, tol=1e-13)
    change = found.margin(theta, one) - found.margin(found.fit.theta[None], one)
    assert_close(change, (slope * delta).sum()[None], rtol=0.02, atol=1e-9)


def test_attack_stays_in_its_box_and_the_stored_image_stays(attacked) -> None:
    pool, found, targets = attacked
    rows = poisoning.choose(found, targets, 3, 0.5)
    done = poisoning.attack(found, targets, rows, half=0.5, max_iterations=5)
    assert torch.equal(done.images.round(), found.grey[rows])
    assert (done.images >= 0).all()
    assert (done.images <= pool.top).all()
    assert not torch.equal(done.images, found.grey[rows])
    wide = poisoning.attack(found, targets, rows, half=2.0, max_iterations=5)
    assert (wide.images - found.grey[rows]).abs().max() <= 2.0


def test_what_an_attack_reports_is_what_training_anew_gives(attacked) -> None:
    _, found, targets = attacked
    rows = poisoning.choose(found, targets, 2, 2.0)
    done = poisoning.attack(found, targets, rows, half=2.0, max_iterations=8)
    for t in range(3):
        grey = found.grey.clone()
        grey[rows[t]] = done.images[t]
        fit = convex.fit_logistic(found.bottom(grey)[:, :-1], found.fit.y.long(), lam=1e-3)
        one = Split(targets.x[t : t + 1], targets.y[t : t + 1])
        assert_close(
            found.margin(fit.theta[None], one), done.after[t : t + 1], rtol=1e-4, atol=1e-5
        )


def test_signs_of_influence_lower_the_margin_and_random_ones_do_not(attacked) -> None:
    _, found, targets = attacked
    rows = poisoning.choose(found, targets, 2, 0.5)
    ours = poisoning.attack(found, targets, rows, half=0.5, max_iterations=5)
    chance = poisoning.random_attack(found, targets, rows, half=0.5)
    assert (ours.after < ours.before).all()
    assert (ours.before - ours.after).mean() > 3 * (chance.before - chance.after).abs().mean()
    assert chance.images.sub(found.grey[rows]).abs().max() < 0.5


def test_more_images_and_wider_boxes_move_more(attacked) -> None:
    _, found, targets = attacked
    fixed = {"counts": (1, 3), "boxes": (0.25, 0.5, 1.0), "wide": 1.0, "max_iterations": 4}
    study = poisoning.study(found, targets, 1.0, **fixed)
    moved = {key: (a.before - a.after).mean() for key, (a, _) in study.done.items()}
    assert moved[3, 0.5] > moved[1, 0.5]
    assert moved[1, 1.0] > moved[1, 0.5] > moved[1, 0.25]
    assert list(study.line(1.0)) == [1, 3]
    assert list(study.column(1, 1)) == [0.25, 0.5, 1.0]
    assert torch.equal(study.line(0.5)[3].rows[:, 0], study.line(0.5)[1].rows[:, 0])


def test_influence_predicts_what_a_small_change_does(attacked) -> None:
    _, found, targets = attacked
    rows = poisoning.choose(found, targets, 1, 1e-3)  # too small to cross a kink
    done = poisoning.attack(found, targets, rows, half=1e-3, max_iterations=1)
    guess = poisoning.predicted(found, targets, done)
    assert_close(done.after - done.before, guess, rtol=0.02, atol=1e-6)


def test_choice_is_by_what_one_image_can_gain(attacked) -> None:
    _, found, targets = attacked
    rows = poisoning.choose(found, targets, 60, 1e-3)
    gain = []
    for t in (0, 1):
        one = Split(targets.x[t : t + 1].expand(60, -1, -1), targets.y[t : t + 1].expand(60))
        single = poisoning.attack(
            found, one, torch.arange(60)[:, None], half=1e-3, max_iterations=1
        )
        gain.append(single.before - single.after)
        assert torch.equal(gain[-1].argsort(descending=True)[:5], rows[t, :5])


def test_trained_bottom_is_what_the_last_layer_reads(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    pool = toy(200, side=8)
    found = poisoning.trained_bottom(pool, torch.arange(100), (4, 6), 1, 0)
    a = found(pool.grey[:3].double())
    assert a.shape == (3, 6 * 2 * 2 + 1)
    assert (a[:, -1] == 1).all()
    assert not any(w.requires_grad for w in found.parameters())
