"""The procedural world: its masks are what is seen, its captions say what is there."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from lib.cache import state_hash
from lib.data import scenes
from lib.data.annotations import CATEGORIES
from lib.data.scenes import captions, companions
from lib.data.scenes.vocabulary import (
    COLOURS,
    KINDS,
    MAIN,
    MATERIALS,
    MAX_PARTS,
    SCENE_NAMES,
    THING_NAMES,
    THINGS,
    WORDS,
    concepts,
    value,
)


@pytest.fixture(scope="module")
def world() -> scenes.World:
    return scenes.make(4096, 11)


def tensors(world: scenes.World) -> dict[str, Tensor]:
    return {k: v for k, v in vars(world).items() if isinstance(v, Tensor)}


def test_the_vocabulary_has_74_words_each_in_one_category() -> None:
    assert len(WORDS) == len(set(WORDS)) == 74
    counts = [sum(c.category == name for c in concepts()) for name in CATEGORIES]
    assert counts == [11, 15, 24, 8, 10, 6]
    assert [c.number for c in concepts()] == list(range(1, 75))
    assert len(MAIN) == len(THINGS)
    for (_, parts), main in zip(THINGS, MAIN, strict=True):
        assert main in [part[0] for part in parts]
        assert len(parts) <= MAX_PARTS


def test_a_plain_region_has_the_colour_that_its_mask_says(world: scenes.World) -> None:
    palette = torch.tensor([rgb for _, rgb in COLOURS])
    checked, right = 0, 0
    for i in range(600):
        colour, _, _, material, texture = world.planes[i].long()
        plain = (material == 0) & (texture == 0)
        for c in colour[plain].unique().tolist():
            region = world.images[i][plain & (colour == c)].float() / 255
            if len(region) < 30:
                continue
            seen = region.median(0).values / world.light[i]
            checked += 1
            right += int((palette - seen).norm(dim=1).argmin()) + value("black") == c
    assert checked > 500
    assert right / checked > 0.99  # the palette itself varies by .035 a channel


def test_surfaces_of_a_material_have_a_colour_it_comes_in(world: scenes.World) -> None:
    for name, colours in MATERIALS:
        at = world.planes[:, 3] == value(name)
        assert at.any()
        assert set(world.planes[:, 0][at].unique().tolist()) <= {value(c) for c in colours}


def test_a_surface_is_of_a_material_or_textured_never_both(world: scenes.World) -> None:
    assert not ((world.planes[:, 3] > 0) & (world.planes[:, 4] > 0)).any()
    assert (world.planes[:, 0] > 0).all()
    part, thing = world.planes[:, 2] > 0, world.planes[:, 1] > value("wall")
    assert torch.equal(part, thing)  # every pixel of a thing is one of its parts


def test_textures_change_the_pixels_of_their_mask_alone() -> None:
    world = scenes.make(512, 3, kinds={"texture": 1.0})
    for name in ("striped", "chequered", "dotted", "grid", "zigzagged"):
        colour, texture = world.planes[:, 0, 0, 0], world.planes[:, 4, 0, 0]
        rows = (texture == value(name)) & (colour == value("white"))
        grey = world.images[rows].float().mean(3).flatten(1) / 255
        low, high = grey.quantile(0.03, dim=1), grey.quantile(0.97, dim=1)
        assert (high > 2 * low).all()  # a bright and a dark phase, both common


def test_coverage_is_the_share_of_pixels(world: scenes.World) -> None:
    for k in (0, 1, 2, 3, 4):
        for v in world.planes[:64, k].unique().tolist():
            if v:
                share = (world.planes[:64, k] == v).flatten(1).float().mean(1)
                torch.testing.assert_close(world.coverage[:64, v - 1], share)
    first = value(SCENE_NAMES[0]) - 1
    of_scene = world.coverage[:, first : first + len(SCENE_NAMES)]
    assert torch.equal(of_scene.sum(1), (world.scene >= 0).float())
    rows = (world.scene >= 0).nonzero()[:, 0]
    assert torch.equal(of_scene.argmax(1)[rows], world.scene[rows])


def test_captions_name_only_what_can_be_seen(world: scenes.World) -> None:
    allowed = set(WORDS) | set(captions.GRAMMAR.split()) | {captions.SEPARATOR}
    for i, text in enumerate(world.captions):
        words = text.split()
        assert words
        assert set(words) <= allowed
        named = [WORDS.index(word) for word in words if word in WORDS]
        assert (world.coverage[i, named] > 0).all(), text


def test_short_captions_hold_one_or_two_words_above_their_floors(world: scenes.World) -> None:
    visible = world.visible()
    is_short = world.short[:, 0] > 0
    assert abs(is_short.float().mean() - 0.4) < 0.05
    for i in is_short.nonzero()[:, 0].tolist():
        named = [v - 1 for v in world.short[i].tolist() if v]
        assert world.captions[i] == " ".join(WORDS[k] for k in named)
        assert visible[i, named].all()


def test_attributes_belong_to_the_thing_they_stand_before(world: scenes.World) -> None:
    colours = [name for name, _ in COLOURS]
    checked = 0
    for i in (world.kind == KINDS.index("close-up")).nonzero()[:, 0].tolist():
        words = world.captions[i].split()
        if words[0] in ("a", "an") and len(words) > 2 and words[1] in colours:
            thing = int(world.things[i, 0])
            if THING_NAMES[thing] not in words:
                continue
            main = world.planes[i, 2] == value(MAIN[thing])
            assert (world.planes[i, 0][main] == value(words[1])).all()
            checked += 1
    assert checked > 20


def test_the_mix_of_kinds_is_the_one_asked_for(world: scenes.World) -> None:
    shares = torch.bincount(world.kind, minlength=5) / len(world)
    wanted = torch.tensor([dict(scenes.PROBE_MIX)[kind] for kind in KINDS])
    torch.testing.assert_close(shares, wanted, atol=0.02, rtol=0)
    assert ((world.scene >= 0) == (world.kind == 0)).all()
    assert (world.coverage > 0).any(0).all()  # every concept occurs


def test_a_seed_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "from lib.data import scenes; from lib.cache import state_hash; from torch import Tensor;"
        "w = scenes.make(600, 5); print(hash(''), state_hash({k: v for k, v in vars(w).items() if "
        "isinstance(v, Tensor)}), w.captions[-1])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split(maxsplit=2)
    world = scenes.make(600, 5)
    assert found[1] == state_hash(tensors(world))
    assert found[2].strip() == world.captions[-1]


def test_pieces_are_the_set_and_seeds_do_not_share_pieces() -> None:
    whole = scenes.make(600, 5)
    parts = list(scenes.chunks(600, 5))
    assert [len(p) for p in parts] == [512, 88]
    assert torch.equal(torch.cat([p.images for p in parts]), whole.images)
    other = scenes.make(512, 6)
    assert not torch.equal(other.images[:88], whole.images[512:])  # a seed's second piece


def test_ranges_of_seeds_are_disjoint() -> None:
    starts = sorted(scenes.SEEDS.values())
    assert min(np.diff(starts)) >= 1_000_000


def test_small_planes_are_every_second_pixel_with_their_flags(world: scenes.World) -> None:
    found = world.annotations()
    assert found.planes.shape == (4096, 5, 24, 24)
    assert torch.equal(found.planes[:, 1].long(), world.planes[:, 1, ::2, ::2].long())
    flags = {name: found.annotated[:, k] for k, name in enumerate(CATEGORIES)}
    assert flags["color"].all()
    is_scene, is_close = (world.kind == KINDS.index(k) for k in ("scene", "close-up"))
    assert torch.equal(flags["object"], is_scene | is_close)
    assert torch.equal(flags["scene"], is_scene)
    assert torch.equal(flags["texture"], (found.planes[:, 4] > 0).flatten(1).any(1))
    assert found.words == WORDS


def test_the_second_probing_set_lacks_what_it_should() -> None:
    world = scenes.probe_b(1024, 0)
    absent = [value(word) - 1 for word in companions.ABSENT_B]
    assert (world.coverage[:, absent] == 0).all()
    assert {WORDS[k] for k in (world.coverage == 0).all(0).nonzero()[:, 0]} >= set(
        companions.ABSENT_B
    )


def test_labels_of_the_classifiers_are_what_the_images_show() -> None:
    data = scenes.objects(64, 0)
    assert len(data.names) == 12
    same = scenes.make(64, scenes.SEEDS["classifier-train"], kinds={"close-up": 1.0})
    shown = same.planes[:, 1].flatten(1).max(1).values.long()  # things come after the wall
    assert torch.equal(shown, data.y + value(THING_NAMES[0]))
    assert not torch.equal(scenes.objects(64, 0, test=True).x, data.x)
    assert len(scenes.scenes(64, 0).names) == 10


def test_the_grade_of_a_fundus_image_is_its_number_of_dark_dots() -> None:
    data = scenes.fundus(200, 0)
    for x, y in zip(data.x, data.y.tolist(), strict=True):
        dark = (x.float().mean(2) < 32).numpy()
        row, column = np.mgrid[:48, :48]
        # every dot is a plus of 5 pixels, alone; those of the black rim touch many others
        plus = (
            dark[1:-1, 1:-1] & dark[:-2, 1:-1] & dark[2:, 1:-1] & dark[1:-1, :-2] & dark[1:-1, 2:]
        )
        corner = dark[:-2, :-2] | dark[2:, 2:] | dark[:-2, 2:] | dark[2:, :-2]
        inside = np.hypot(row - 23.5, column - 23.5)[1:-1, 1:-1] < 22
        low, high = companions.DOTS[y]
        assert low <= (plus & ~corner & inside).sum() <= high


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"n": 0, "seed": 0}, "n >= 1"),
        ({"n": 1, "seed": -1}, "seed >= 0"),
        ({"n": 1, "seed": 0, "kinds": {"movie": 1.0}}, "no kind.*'movie'"),
        ({"n": 1, "seed": 0, "exclude": ("unicorn",)}, "'unicorn'"),
        ({"n": 1, "seed": 0, "kinds": {"scene": 0.0}}, "not all zero"),
        ({"n": 1, "seed": 0, "exclude": SCENE_NAMES}, "left over"),
    ],
)
def test_a_set_that_cannot_be_drawn_is_refused(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        scenes.make(**arguments)
