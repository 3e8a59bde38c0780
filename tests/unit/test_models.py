"""Networks: sizes in closed form, weights from the seed alone, the published initialisation."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lib import models
from lib.cache import state_hash

SPECS: dict[str, dict[str, object]] = {
    "mlp": {"widths": (64, 32, 32, 10)},
    "cnn": {},
    "resnet9": {},
    "resnet18": {},
    "resnet20": {},
}


def built(name: str, seed: int = 0, **spec: object) -> nn.Module:
    return models.build(name, torch.Generator().manual_seed(seed), **{**SPECS[name], **spec})


def resnet_parameters(widths: tuple[int, ...], n_blocks: int, *, projected: bool) -> int:
    """Stem, blocks of two 3x3 convolutions with two numbers a batch-normed channel, head."""
    total, fan_in = 3 * widths[0] * 9 + 2 * widths[0], widths[0]
    for width in widths:
        for _ in range(n_blocks):
            total += 9 * width * (fan_in + width) + 4 * width
            total += (fan_in * width + 2 * width) if projected and fan_in != width else 0
            fan_in = width
    return total + widths[-1] * 10 + 10


@pytest.mark.parametrize(
    ("name", "closed_form", "published"),
    [
        ("mlp", 65 * 32 + 33 * 32 + 33 * 10, 3_466),
        ("cnn", (9 + 1) * 8 + 16 + (72 + 1) * 16 + 32 + (16 * 4 + 1) * 10, 1_946),
        ("resnet20", resnet_parameters((16, 32, 64), 3, projected=False), 269_722),
        ("resnet18", resnet_parameters((64, 128, 256, 512), 2, projected=True), 11_173_962),
        (
            "resnet9",
            27 * 64
            + 25 * 64 * 128
            + 9 * (2 * 128**2 + 128 * 256 + 2 * 256**2 + 256 * 128)
            + 2 * (64 + 128 + 2 * 128 + 256 + 2 * 256 + 128)
            + 128 * 10,
            2_274_880,
        ),
    ],
)
def test_number_of_parameters(name: str, closed_form: int, published: int):
    assert models.n_parameters(built(name)) == closed_form == published


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet20"])
def test_the_seed_gives_the_weights_and_the_global_generator_is_left_alone(name: str):
    before = torch.get_rng_state()
    first = built(name, seed=3)
    assert_close(torch.get_rng_state(), before)
    torch.manual_seed(99)  # no part of it
    assert state_hash(built(name, seed=3).state_dict()) == state_hash(first.state_dict())
    assert state_hash(built(name, seed=4).state_dict()) != state_hash(first.state_dict())
    assert first.training
    torch.set_rng_state(before)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("mlp", (3, 64)),
        ("cnn", (3, 1, 8, 8)),
        ("resnet9", (2, 3, 32, 32)),
        ("resnet18", (2, 3, 32, 32)),
        ("resnet20", (2, 3, 32, 32)),
    ],
)
def test_ten_finite_logits_an_image(name: str, shape: tuple[int, ...]):
    model = built(name).eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        out = model(x)
    assert out.shape == (shape[0], 10)
    assert torch.isfinite(out).all()
    assert (out.std(0) > 0).all()  # the image matters


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2.0), ("selu", 1.0)])
def test_weights_are_normal_with_the_variance_of_he_and_lecun(activation: str, gain: float):
    model = built("mlp", widths=(300, 400, 10), activation=activation)
    weight = model.get_submodule("hidden1.0").weight
    # 120,000 draws: the variance is known to sqrt(2 / n) = 0.4%, its mean to sd / sqrt(n)
    assert weight.var().item() == pytest.approx(gain / 300, rel=0.02)
    assert abs(weight.mean().item()) < 4 * (gain / 300 / weight.numel()) ** 0.5
    kurtosis = ((weight - weight.mean()) / weight.std()).pow(4).mean().item()
    assert kurtosis == pytest.approx(3.0, abs=0.1)  # of a uniform: 1.8
    assert not model.get_submodule("hidden1.0").bias.any()


def test_convolutions_count_their_window_in_the_fan_in():
    model = built("resnet20")
    weight = model.get_submodule("layer3.2.conv2").weight  # 36,864 draws: 0.7%
    assert weight.var().item() == pytest.approx(2.0 / (64 * 9), rel=0.04)


def test_norms_start_as_the_identity_with_fresh_statistics():
    state = built("resnet20").state_dict()
    for name, value in state.items():
        if name.endswith(("bn1.weight", "bn2.weight", "running_var")):
            assert (value == 1).all(), name
        if name.endswith(("bn1.bias", "bn2.bias", "running_mean", "num_batches_tracked")):
            assert (value == 0).all(), name


def test_mlp_layers_have_the_papers_names():
    model = built("mlp", widths=(5, 4, 3, 2))
    assert [name for name, _ in model.named_children()] == ["hidden1", "hidden2", "out"]
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    assert model.get_submodule("hidden1")(x).min() == 0  # the activation, not before it
    assert model.get_submodule("out").out_features == 2


def test_the_padded_shortcut_keeps_every_second_pixel_and_adds_empty_channels():
    """With its convolutions at zero a block is its shortcut."""
    block = built("resnet20").eval().get_submodule("layer2.0")
    with torch.no_grad():
        for norm in (block.bn1, block.bn2):
            norm.weight.zero_()
        x = torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
        out = block(x)
    assert out.shape == (2, 32, 4, 4)
    assert_close(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown network 'vgg'; known: mlp, cnn, resnet9"):
        models.build("vgg", torch.Generator())
    with pytest.raises(ValueError, match="at least 2 widths and an activation of"):
        built("mlp", widths=(4,))
    with pytest.raises(ValueError, match=r"\['relu', 'selu'\], got \(4, 2\) and 'tanh'"):
        built("mlp", widths=(4, 2), activation="tanh")
