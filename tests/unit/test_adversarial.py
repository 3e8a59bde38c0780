"""The attack against its closed form for a linear network, its box, and what it may touch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from lib import models, training
from lib.training import Recipe
from lib.training.adversarial import EVALUATION, TRAINING, Attack, attacked, robustness

EPS = 8 / 255


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 40) -> tuple[Tensor, Tensor]:
    # with plenty at the very edges of the range
    x = (torch.rand(n, 3, 8, 8, generator=generator()) * 1.4 - 0.2).clamp(0, 1)
    return x, torch.arange(n) % 2


def small(seed: int = 1, size: int = 8) -> nn.Module:
    return models.build("cnn", generator(seed), in_channels=3, size=size, n_out=2)


@pytest.mark.parametrize("n_restarts", [1, 3])
def test_the_attack_on_a_linear_network_is_its_closed_form(n_restarts: int):
    x, y = images()
    weight = torch.randn(3 * 64, generator=generator(4))

    def classify(pixels: Tensor) -> Tensor:
        margin = pixels.flatten(1) @ weight
        return torch.stack([-margin / 2, margin / 2], 1)

    attack = Attack(eps=EPS, step=2 / 255, n_steps=9, n_restarts=n_restarts)
    found = attacked(classify, x, y, attack, generator=generator())
    sign = (2 * y - 1)[:, None, None, None] * weight.view(3, 8, 8).sign()
    assert_close(found, (x - EPS * sign).clamp(0, 1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("attack", [TRAINING, Attack(n_steps=5, n_restarts=2, spare_fooled=True)])
def test_the_attack_stays_in_its_box_and_raises_the_loss(attack: Attack):
    x, y = images()
    model = small().eval()
    found = attacked(model, x, y, attack, generator=generator())
    assert (found - x).abs().max() <= EPS + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    before = F.cross_entropy(model(x), y, reduction="none")
    after = F.cross_entropy(model(found), y, reduction="none")
    # an image that is wrong to begin with is not attacked where those are spared
    counted = (model(x).argmax(1) == y) | torch.tensor(not attack.spare_fooled)
    assert (after >= before)[counted].float().mean() >= 0.95
    assert counted.sum() >= 10
    assert not found.requires_grad


def test_the_attack_leaves_no_gradient_and_no_mode_behind():
    x, y = images()
    model = small().train()
    attacked(model, x, y, TRAINING, generator=generator())
    assert all(p.grad is None for p in model.parameters())
    assert model.training


def test_more_restarts_never_lower_the_loss_of_an_image():
    x, y = images()
    model = small().eval()

    def loss(n_restarts: int) -> Tensor:
        attack = Attack(n_steps=2, n_restarts=n_restarts)
        found = attacked(model, x, y, attack, generator=generator())
        return F.cross_entropy(model(found), y, reduction="none").detach()

    # the first restart of four is the only one of one
    assert (loss(4) >= loss(1) - 1e-6).all()


def test_images_once_fooled_are_left_alone():
    x, y = images()
    seen: list[int] = []

    def always_wrong(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return F.one_hot(1 - y[: len(pixels)], 2) * 1.0 + 0 * pixels.sum()

    attack = Attack(n_steps=5, spare_fooled=True)
    attacked(always_wrong, x, y, attack, generator=generator())
    assert seen == [len(x)]  # one look, and nobody was left to attack


def test_robust_accuracy_of_a_linear_network_is_the_share_with_a_wide_margin():
    x, y = images(200)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with torch.no_grad():
        model[1].weight.normal_(0, 0.05, generator=generator(2))
        model[1].bias.zero_()
        w = model[1].weight
        clean = model(x)
        sign = (w[1 - y] - w[y]).view(-1, 3, 8, 8).sign()
        worst = model((x + EPS * sign).clamp(0, 1))
    attack = Attack(n_steps=12, n_restarts=2, spare_fooled=True)
    found = robustness(model, x, y, attack, seed=0, chunk=64)
    assert torch.equal(found.clean, clean.argmax(1) == y)
    assert torch.equal(found.attacked, worst.argmax(1) == y)
    assert 0 < found.attacked_accuracy < found.clean_accuracy


def test_normalisation_changes_nothing_but_what_the_network_reads():
    x, y = images()
    raw = (x * 255).round().to(torch.uint8)
    model = small()

    class Shifted(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return inner((pixels - 0.5) / 0.25)

    inner = model
    shifted = Shifted()
    shifted.inner = model
    options = {"seed": 1, "attack": Attack(n_steps=2), "chunk": 16}
    whole = robustness(shifted, raw / 255, y, **options)
    split = robustness(
        model, raw, y, pixels=lambda r: r / 255, normalise=lambda p: (p - 0.5) / 0.25, **options
    )
    assert torch.equal(whole.attacked, split.attacked)


def test_adversarial_training_sees_attacked_batches_and_ordinary_training_does_not():
    x, y = images(32)
    recipe = Recipe(1, 16, 0.01, schedule="constant")
    seen: list[Tensor] = []

    def watch(pixels: Tensor) -> Tensor:
        seen.append(pixels.detach().clone())
        return pixels

    for attack, passes in ((None, 1), (Attack(n_steps=3), 4)):
        seen.clear()
        training.train_checkpointed(
            small(),
            x,
            y,
            recipe,
            keep=[1],
            generator=generator(),
            normalise=watch,
            attack=attack,
        )
        assert len(seen) == 2 * passes  # two batches
        order = torch.randperm(32, generator=generator())[:16]
        change = (seen[passes - 1] - x[order]).abs().amax()
        assert change == 0 if attack is None else 0.9 * EPS < change <= EPS + 1e-6


def test_the_published_attacks_are_those_of_the_recipe():
    assert (TRAINING.n_steps, TRAINING.n_restarts, TRAINING.spare_fooled) == (7, 1, False)
    assert (EVALUATION.n_steps, EVALUATION.n_restarts, EVALUATION.spare_fooled) == (50, 10, True)
    assert EVALUATION.eps == TRAINING.eps == EPS
    assert TRAINING.step == EVALUATION.step == 2 / 255


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x, y: Attack(eps=0), "want eps, step > 0"),
        (
            lambda x, y: attacked(small(), x * 2 - 1, y, TRAINING, generator=generator()),
            r"pixels in \[0, 1\], got -1 to 1; normalise inside",
        ),
        (
            lambda x, y: attacked(small(), x, y[1:], TRAINING, generator=generator()),
            "as many images as labels, at least one, got 40, 39",
        ),
    ],
)
def test_what_cannot_be_attacked_is_refused(call, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        call(*images())
