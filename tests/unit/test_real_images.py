"""Real images as a probing set: what is unknown is neither there nor absent."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lib.data.annotations import CATEGORIES, Annotations, Concept
from lib.data.base import Expected, MissingData, Provenance
from lib.monitoring import real_images
from lib.monitoring.activations import LayerActivations
from lib.monitoring.detectors import clip_dissect
from lib.monitoring.dissection import NetworkDissection
from lib.monitoring.real_images import ProbingImages
from tests.real_folders import write_concept_images, write_imagenet_sample

NOWHERE = Provenance("planted", "here", "none", "0", 4)


def planted(**options: int) -> ProbingImages:
    """Two street scenes and two pictures of clothing, 4x4 pixels: red above, road or coat below.

    Road: the last row of the first two images. Coat: the lower half of the third. Hat: one pixel
    of the fourth.
    """
    words = (("red", "color"), ("road", "object"), ("coat", "object"), ("hat", "object"))
    concepts = tuple(Concept(k, word, word, kind) for k, (word, kind) in enumerate(words, 1))
    planes = torch.zeros(4, 2, 4, 4, dtype=torch.int16)
    planes[:, 0, 0], planes[0, 0, 1] = 1, 1
    planes[:2, 1, 3], planes[2, 1, 2:], planes[3, 1, 0, 0] = 2, 3, 4
    annotated = torch.zeros(4, len(CATEGORIES), dtype=torch.bool)
    annotated[:, :2] = True  # color, object
    labels = Annotations(concepts, planes, torch.zeros(4, 1, dtype=torch.int32), annotated)
    images = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    groups = ["street", "street", "clothing", "clothing"]
    return real_images.of(images, labels, groups, NOWHERE, **{"fewest": 1, **options})


def lower_halves() -> LayerActivations:
    """A unit that is high in the lower halves of the first and third image."""
    maps = -torch.arange(1.0, 65.0).view(4, 1, 4, 4)
    maps[0, 0, 2:] += 1000
    maps[2, 0, 2:] += 1000
    return LayerActivations("layer", torch.arange(4), maps.mean((2, 3)), maps)


def test_a_source_knows_its_own_words_and_colours() -> None:
    real = planted()
    yes, no = True, False
    assert real.sources == ("street", "clothing")
    assert real.known.tolist() == [[yes, yes, no, no]] * 2 + [[yes, no, yes, yes]] * 2
    assert real.concepts.categories == ("color", "object", "object", "object")


def test_similarity_is_standardised_where_a_word_is_known_and_nothing_elsewhere() -> None:
    p = planted().similarities()
    red = torch.tensor([8.0, 4, 4, 4]) / 16
    expected = (red - red.mean()) / red.std(correction=0)
    torch.testing.assert_close(p[:, 0], expected)
    assert p[:, 1].tolist() == [0, 0, 0, 0]  # both street scenes have as much road
    torch.testing.assert_close(p[:, 2], torch.tensor([0.0, 0, 1, -1]))
    torch.testing.assert_close(p[:, 3], torch.tensor([0.0, 0, -1, 1]))


def test_preferring_a_source_speaks_for_none_of_its_words() -> None:
    real = planted()
    p = real.similarities()
    for k in range(2):
        assert p[real.source == k][:, 1:].mean(0).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("denominator", "road", "coat"),
    [
        # road: 4 of 8 labelled pixels are activated; 8 pixels in street scenes, 16 in all
        ("annotated", 4 / 12, 1.0),
        ("lite", 4 / 12, 1.0),
        ("all", 4 / 20, 8 / 16),
    ],
)
def test_a_word_is_tallied_over_the_source_that_knows_it(
    denominator: str, road: float, coat: float
) -> None:
    real = planted()
    detector = real.dissection(denominator, quantile=0.25)
    found = detector.detect(lower_halves()).h
    assert len(detector.views) == 2
    torch.testing.assert_close(found, torch.tensor([[0.0, road, coat, 0.0]]))
    if denominator == "annotated":  # the plain detector counts the coat's image against the road
        plain = NetworkDissection(real.annotations, real.ids, quantile=0.25)
        assert plain.detect(lower_halves()).h[0, 1].item() == pytest.approx(4 / 20)


def test_one_source_alone_is_plain_network_dissection() -> None:
    real = planted().take(torch.tensor([0, 1]))
    maps = lower_halves().maps[:2]
    acts = LayerActivations("layer", real.ids, maps.mean((2, 3)), maps)
    for denominator in ("annotated", "lite", "all"):
        plain = NetworkDissection(
            real.annotations, real.ids, denominator=denominator, quantile=0.25
        )
        found = real.dissection(denominator, quantile=0.25).detect(acts).h
        torch.testing.assert_close(found[:, :2], plain.detect(acts).h[:, :2])


def test_other_images_and_flat_layers_are_refused() -> None:
    detector = planted().dissection()
    flat = LayerActivations("fc", torch.arange(4), torch.rand(4, 2))
    with pytest.raises(ValueError, match="maps=True"):
        detector.detect(flat)
    with pytest.raises(ValueError, match="another order"):
        detector.detect(LayerActivations("fc", torch.arange(4).flip(0), torch.rand(4, 2)))


def test_rare_words_are_left_out_and_the_others_renumbered() -> None:
    real = planted(fewest=2)
    assert real.annotations.words == ("red", "road")
    assert real.annotations.planes[:, 1].unique().tolist() == [0, 2]
    assert not real.known[2:, 1].any()
    with pytest.raises(ValueError, match="lower `fewest`"):
        planted(fewest=5)


def test_the_null_moves_images_within_their_source() -> None:
    source = torch.tensor([0, 1] * 50)
    real = planted()
    many = ProbingImages(
        torch.zeros(100, 2, 2, 3, dtype=torch.uint8),
        real.annotations.take(torch.zeros(100, dtype=torch.int64)),
        source,
        real.sources,
        real.known[:1].expand(100, -1),
        torch.arange(100),
        NOWHERE,
    )
    order = many.shuffled(3)
    assert order.sort().values.tolist() == list(range(100))
    assert source[order].equal(source)
    assert (order == torch.arange(100)).sum() < 20
    assert order.equal(many.shuffled(3))


def test_the_archives_are_one_set_at_the_side_asked_for(tmp_path: Path) -> None:
    write_concept_images(tmp_path, 6)
    real = real_images.load(8, tmp_path, fewest=2, expected=Expected({}, train=(3, 3)))
    assert real.images.shape == (18, 8, 8, 3)
    assert real.annotations.planes.shape == (18, 2, 8, 8)
    assert real.sources == ("camvid", "clothing", "dtd")
    kinds = dict(zip(real.annotations.words, real.concepts.categories, strict=True))
    assert kinds == {
        **dict.fromkeys(("blue", "red", "white", "yellow"), "color"),
        **dict.fromkeys(("sky", "road", "coat"), "object"),
        "skin": "part",
        **dict.fromkeys(("banded", "dotted"), "texture"),
    }
    number = real.annotations.words.index
    coverage = real.annotations.coverage()
    assert coverage[:, number("red")].tolist() == [1.0] * 6 + [0.0] * 12
    # the last k + 1 of 16 rows are road; every second row is labelled
    rows = [(k + 1) // 2 for k in range(6)]
    assert coverage[:6, number("road")].tolist() == [r / 8 for r in rows]
    assert real.known[:, number("road")].tolist() == [True] * 6 + [False] * 12
    assert real.known[:, number("banded")].tolist() == [False] * 12 + [True] * 6
    assert real.known[:, number("red")].all()


def test_planted_units_are_named_by_the_oracle(tmp_path: Path) -> None:
    write_concept_images(tmp_path, 40)
    real = real_images.load(8, tmp_path, expected=Expected({}, train=(20, 20)))
    words = ("road", "coat", "dotted")
    number = [real.annotations.words.index(word) for word in words]
    acts = real.annotations.coverage()[:, number]
    noise = torch.rand(acts.shape, generator=torch.Generator().manual_seed(0))
    layer = LayerActivations("planted", real.ids, acts + 0.01 * noise)
    detector = clip_dissect(real.similarities(), ids=real.ids, similarity="soft_wpmi_z")
    found = detector.detect(layer)
    assert [real.annotations.words[k] for k in found.label.tolist()] == list(words)
    assert (found.attainment.gather(1, found.label.long()[:, None]) > 0.9).all()


def test_the_second_set_has_colours_alone(tmp_path: Path) -> None:
    write_imagenet_sample(tmp_path, 8)
    real = real_images.load_second(8, tmp_path, fewest=2, expected=Expected({}, train=(1,) * 8))
    assert real.annotations.words == ("blue", "red", "white", "yellow")
    assert real.annotations.coverage().equal(torch.eye(4).repeat(2, 1))
    assert real.images.shape == (8, 8, 8, 3)
    assert len(real.dissection().views) == 1


def test_an_absent_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"camvid.npz.*set DATA_ROOT"):
        real_images.load(32, tmp_path)
    with pytest.raises(MissingData, match="imagenet_sample"):
        real_images.load_second(32, tmp_path)


def test_images_without_a_source_are_refused() -> None:
    real = planted()
    with pytest.raises(ValueError, match="3 sources"):
        real_images.of(real.images, real.annotations, ["a"] * 3, NOWHERE)
