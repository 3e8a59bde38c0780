"""Pictures: padding rules, holes and blobs, probes by recipe, and edits of a small frozen bed."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch

from lib.backprop import (
    L1,
    DecodedMSE,
    FaithfulRecipe,
    Objective,
    image_edits,
    image_pictures,
    images,
    maximise_faithful,
    maximise_to,
    weights_hash,
)
from lib.backprop.autoencoders import (
    Autoencoder,
    ConvSame,
    ConvTransposeSame,
    PictureClassifier,
    ReadThrough,
    initialise,
)
from lib.backprop.picture_measures import (
    blobs,
    bright_fraction,
    holes,
    neighbour_distance,
    outside,
    spacing,
)
from lib.backprop.recipe_probes import fit_by_recipe
from lib.data.base import Provenance, Split

N, LATENT = 6, 5


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def bed():
    """Random weights in float64: enough for what must hold of any network."""
    autoencoder = initialise(Autoencoder(2, LATENT), generator(1)).double().eval()
    autoencoder.requires_grad_(False)
    blank = initialise(PictureClassifier(), generator(2)).double().requires_grad_(False)
    network = ReadThrough(autoencoder, blank).eval()
    x = torch.rand(N, 1, 28, 28, generator=generator(3), dtype=torch.float64)
    part = Split(x, torch.arange(N))
    about = Provenance("noise", "a generator", "none", "0" * 64, N)
    latents = autoencoder.encoder(torch.rand(40, 1, 28, 28, generator=generator(4)).double())
    return images.Bed(
        images.Pictures("noise", part, part, part, about),
        autoencoder, autoencoder, network, network, latents, spacing(latents), 1.0, 0.0, 0.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def probe():
    weight = torch.randn(LATENT, generator=generator(5), dtype=torch.float64)
    return images.LinearProbe(weight, torch.tensor(-1.0, dtype=torch.float64))


def test_padding_is_below_and_right_alone():
    conv = ConvSame(1, 1)
    with torch.no_grad():
        conv.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
        conv.bias.zero_()
    corner = torch.zeros(1, 1, 28, 28)
    corner[..., 0, 0] = 1
    out = conv(corner)
    assert out.shape == (1, 1, 14, 14)
    assert out[0, 0, 0, 0] == 0.0  # the first weight meets the first pixel: nothing is above it
    last = torch.zeros(1, 1, 28, 28)
    last[..., 27, 27] = 1
    assert conv(last)[0, 0, 13, 13] == 4.0  # the centre weight: one row and column are added


def test_transposed_convolution_is_the_adjoint_of_the_convolution():
    down, up = ConvSame(2, 3).double(), ConvTransposeSame(3, 2).double()
    with torch.no_grad():
        up.weight.copy_(down.weight)
        up.bias.zero_()
        down.bias.zero_()
    x = torch.randn(1, 2, 14, 14, generator=generator(), dtype=torch.float64)
    y = torch.randn(1, 3, 7, 7, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close((down(x) * y).sum(), (x * up(y)).sum())


def test_sides_follow_the_specification(bed):
    x = bed.pictures.explain.x
    sides = [x.shape[-1]]
    for layer in bed.autoencoder.encoder[:6]:
        x = layer(x)
        sides.append(x.shape[-1])
    assert sides == [28, 14, 14, 7, 7, 7, 4]
    z = bed.autoencoder.encoder(bed.pictures.explain.x)
    assert z.shape == (N, LATENT)
    assert ((z > 0) & (z < 1)).all()
    y, sides = z, []
    for layer in bed.autoencoder.decoder:
        y = layer(y)
        sides.append(y.shape[-1])
    assert [sides[k] for k in (2, 3, 5, 7, 9, 11)] == [4, 7, 14, 28, 28, 28]
    assert y.shape == (N, 1, 28, 28)
    assert images.bright(bed).read(bed.pictures.explain.x).shape == (N, 256)


def test_training_output_is_the_logit_of_the_reconstruction(bed):
    x = bed.pictures.explain.x
    torch.testing.assert_close(torch.sigmoid(bed.autoencoder(x)), bed.autoencoder.reconstruct(x))


def ring(top=8, left=8, size=10):
    x = torch.zeros(1, 1, 28, 28)
    x[..., top : top + size, left : left + size] = 1
    x[..., top + 2 : top + size - 2, left + 2 : left + size - 2] = 0
    return x


def test_holes_are_counted():
    opened, eight, tiny, corner = ring(), ring(top=1), ring(), ring(top=0, left=0)
    opened[..., 8:11, 12] = 0
    eight = torch.maximum(eight, ring(top=14))
    tiny[..., 10:16, 10:16] = 1
    tiny[..., 12, 12:14] = 0  # two pixels: too small
    full = torch.ones(1, 1, 28, 28)
    x = torch.cat([ring(), opened, eight, tiny, corner, torch.zeros(1, 1, 28, 28), full])
    assert holes(x).tolist() == [1, 0, 2, 0, 1, 0, 0]


def test_ink_that_touches_along_a_diagonal_closes_a_loop():
    x = ring()
    x[..., 8:10, 8:18] = 0
    for k in range(10):  # a staircase in place of the upper side
        x[..., 9 - k % 2, 8 + k] = 1
    assert holes(x).item() == 1


def test_blobs_are_small_pieces_alone():
    x = ring()
    x[..., 1, 1] = 1
    x[..., 25:27, 2:5] = 1
    x[..., 2:5, 20:24] = 1  # 12 pixels
    assert blobs(x).item() == 2


def test_bright_fraction_is_over_drawn_pixels():
    x = torch.zeros(2, 1, 28, 28)
    x[0, 0, 0, :4] = torch.tensor([0.9, 0.8, 0.3, 0.05])
    assert bright_fraction(x).tolist() == [0.5, 0.0]
    torch.testing.assert_close(bright_fraction(x, empty=0.1)[0], torch.tensor(2 / 3))


def test_pictures_with_nan_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        holes(torch.full((1, 1, 28, 28), torch.nan))
    with pytest.raises(ValueError, match=r"\[n, 1, h, w\]"):
        blobs(torch.zeros(3, 28, 28))


def test_latent_measures():
    z = torch.tensor([[0.5, 1.5], [-0.1, 2.0], [0.0, 1.0]])
    assert outside(z).tolist() == [0.5, 1.0, 0.0]
    grid = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]])
    assert spacing(grid) == 3.0
    assert neighbour_distance(torch.tensor([[3.0, 5.0]]), grid).tolist() == [1.0]


def test_straight_change_is_the_closed_form(bed, probe):
    rows = torch.arange(N)
    edit = image_edits.straight(bed, images.loop(bed), probe, rows)
    w, z = probe.weight, edit.latent_before
    gap = (torch.logit(torch.tensor(0.9, dtype=torch.float64)) - probe(z)).clamp_min(0)
    torch.testing.assert_close(edit.latent - z, gap[:, None] * w / (w @ w), rtol=1e-4, atol=1e-6)


def test_batch_equals_one_by_one_and_weights_stay(bed, probe):
    site, before = images.loop(bed), weights_hash(bed.network, probe)
    whole = image_edits.sound(bed, site, probe, torch.arange(3))
    alone = [image_edits.sound(bed, site, probe, torch.tensor([k])) for k in range(3)]
    torch.testing.assert_close(
        whole.latent, torch.cat([one.latent for one in alone]), rtol=1e-4, atol=1e-6
    )
    assert weights_hash(bed.network, probe) == before


def test_rows_that_are_done_may_be_left_out(bed, probe):
    z = bed.autoencoder.encoder(bed.pictures.explain.x)
    z = z * torch.linspace(0.1, 3, N)[:, None]  # some meet the target at once, others late
    decoder = bed.autoencoder.decoder
    terms = [(torch.linspace(0.5, 2, N).double(), DecodedMSE(decoder, z, decoder(z))), (0.01, L1())]
    every = Objective(lambda h: h * 1.0, probe, terms, link="sigmoid")
    found = [maximise_to(o, z, 0.7) for o in (every, replace(every, any_rows=True))]
    assert len(set(found[0].steps.tolist())) > 1
    torch.testing.assert_close(found[0].delta, found[1].delta, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found[0].distance_history[-1], found[1].distance_history[-1])


def test_bright_site_reads_the_decoded_picture_through_the_autoencoder_again(bed):
    site, rows = images.bright(bed), torch.arange(2)
    weight = torch.randn(256, generator=generator(6), dtype=torch.float64)
    probe = images.LinearProbe(weight, torch.tensor(0.0, dtype=torch.float64))
    edit = image_edits.random_change(bed, site, probe, rows, _still(bed, rows), seed=0)
    twice = bed.autoencoder.reconstruct(bed.autoencoder.reconstruct(bed.pictures.explain.x[rows]))
    first = torch.nn.Sequential(*list(bed.network.classifier)[:5])  # conv3, before its pool
    h = first(twice).flatten(1)
    torch.testing.assert_close(edit.probe_before, probe(h))


def _still(bed, rows):
    z = bed.autoencoder.encoder(bed.pictures.explain.x[rows])
    x = bed.autoencoder.decoder(z)
    p = torch.zeros(len(rows))
    return image_edits.Edit(x, x, z, z, p, p, p, p)


def test_random_change_is_as_long(bed, probe):
    rows = torch.arange(N)
    site = images.loop(bed)
    edit = image_edits.straight(bed, site, probe, rows)
    drawn = image_edits.random_change(bed, site, probe, rows, edit, seed=0)
    torch.testing.assert_close(drawn.length(), edit.length())
    assert not torch.allclose(drawn.latent, edit.latent)


def test_faithful_start_and_travel_in_the_latent(bed, probe):
    """Specification 1.3: a = sqrt(6 / (1 + n)), and at most twice the rate a step."""
    x = bed.pictures.explain.x.repeat(30, 1, 1, 1)
    site = images.loop(bed)
    objective = Objective(site.layer, probe, [(0.01, L1())], site.operator, "sigmoid", "bce")
    runs = [
        maximise_faithful(objective, x, 1.0, FaithfulRecipe(steps=n), generator=generator())
        for n in (0, 40)
    ]
    reach = (6 / (1 + LATENT)) ** 0.5
    assert runs[0].delta.abs().max() <= reach
    assert runs[0].delta.abs().max() > 0.95 * reach
    travel = (runs[1].delta - runs[0].delta).abs()
    assert travel.max() <= 2 * 1e-3 * 40 * 1.01
    assert travel.median() > 1e-3 * 40  # twice the rate, not once


def test_recipe_probe_learns_and_its_penalty_pulls_down():
    z = torch.randn(1, 400, 3, generator=generator())
    y = (z[0, :, 0] > 0).float()
    read = {}
    for activity in (0.0, 0.5):
        weight, bias = fit_by_recipe(
            z, y, "sigmoid, bce", activity=activity, epochs=40, generator=generator(1)
        )
        p = torch.sigmoid(z[0] @ weight[0] + bias[0])
        read[activity] = p.mean().item()
        assert ((p > 0.5) == (y == 1))[z[0, :, 0].abs() > 1].float().mean() > 0.9 or activity
    assert read[0.5] < read[0.0] - 0.03


def test_recipe_probe_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="kind is one of"):
        fit_by_recipe(
            torch.zeros(1, 4, 2), torch.zeros(4), "tanh", activity=0.1, epochs=1,
            generator=generator(),
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"want z \[N, n, d\]"):
        fit_by_recipe(
            torch.zeros(4, 2), torch.zeros(4), "sigmoid, bce", activity=0.1, epochs=1,
            generator=generator(),
        )  # fmt: skip


def test_unknown_pictures_are_refused(tmp_path):
    with pytest.raises(ValueError, match="digits, mnist or fashion"):
        images.load("cats", tmp_path, seed=0, n_train=10)


def test_figure_of_one_and_many_shows_the_displayed_row_once_and_every_row_asked_for():
    def edits(n, p):
        x, value = torch.rand(n, 1, 28, 28, generator=generator()), torch.full((n,), p)
        latent, steps = torch.zeros(n, 2), torch.zeros(n)
        return image_edits.Edit(x, x, latent, latent, value / 2, value, value, steps)

    many = {"sound": edits(6, 0.75), "faithful": edits(6, 0.75)}
    one = {name: edits(1, 0.25) for name in many}
    fig = image_pictures.one_and_many(one, many, [5, 0, 3])
    words = [axis.get_xlabel() for axis in fig.axes if axis.images]
    assert len(words) == 3 * (1 + 3)
    assert words.count("0.25, 0.25") == 2
    assert words.count("0.75, 0.75") == 2 * 3
    assert words.count("0.38") == 3
    plt.close(fig)
