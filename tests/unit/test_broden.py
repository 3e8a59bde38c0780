"""Broden's format: a folder of three images, and scenes written and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib.data import broden, scenes
from lib.data.annotations import CATEGORIES
from lib.data.base import DamagedData, MissingData
from lib.monitoring.dissection import NetworkDissection

INDEX = "image,split,ih,iw,sh,sw,color,object,part,material,scene,texture\n"
LABELS = """number,name,category,frequency,coverage,syns
0,-,,0,0,
1,red-c,color(2),2,1.0,
2,car,object(2);part(1),2,0.5,automobile
3,wheel,part(1),1,0.1,
300,door,part(1),1,0.1,
7,palm_beach-s,scene(1),1,1.0,
"""


def plane(path: Path, numbers: list[list[int]]) -> None:
    n = np.array(numbers)
    rgb = np.stack([n % 256, n // 256, 0 * n + 9], -1).astype(np.uint8)  # blue is not used
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgb, "RGB").save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images of 8x8 with planes of 4x4: a scene, two planes of parts, empty cells."""
    images = tmp_path / "images"
    red = [[1] * 4] * 4
    for name in "abc":
        plane(images / f"d/{name}_color.png", red)
        Image.new("RGB", (8, 8), (200, 0, 0)).save(images / f"d/{name}.jpg")
    plane(images / "d/b_object.png", [[2, 2, 0, 0]] * 4)
    plane(images / "d/b_part_1.png", [[300, 0, 0, 0]] * 4)
    plane(images / "d/b_part_2.png", [[3, 3, 0, 0]] + [[0] * 4] * 3)
    plane(images / "d/left.png", red)  # a file that the index does not name
    (tmp_path / "index.csv").write_text(
        INDEX
        + "d/a.jpg,train,8,8,4,4,d/a_color.png,,,,7,\n"
        + "d/b.jpg,val,8,8,4,4,d/b_color.png,d/b_object.png,d/b_part_1.png;d/b_part_2.png,,,\n"
        + "d/c.jpg,train,8,8,4,4,,,,,,\n"
    )
    (tmp_path / "category.csv").write_text("name\ncolor\nobject\npart\nscene\n")
    (tmp_path / "label.csv").write_text(LABELS)
    (tmp_path / "c_object.csv").write_text("code,number,name,frequency,coverage\n1,2,car,2,0.4\n")
    (tmp_path / "c_part.csv").write_text("code,number,name,frequency,coverage\n1,2,car,1,0.1\n")
    return tmp_path


def test_planes_scalars_and_flags_are_read_as_they_are(root: Path) -> None:
    found = broden.load(root)
    assert found.ids == ("d/a.jpg", "d/b.jpg")  # c has no label
    assert found.categories == ("color", "object", "part", "scene")
    assert [(c.number, c.word, c.category) for c in found.concepts] == [
        (1, "red", "color"),
        (2, "car", "object"),  # it covers more as an object than as a part
        (3, "wheel", "part"),
        (300, "door", "part"),
        (7, "palm beach", "scene"),
    ]
    labels = found.annotations()
    assert labels.planes.shape == (2, 4, 4, 4)  # color, object, part, part
    assert labels.planes[1, 0].eq(1).all()
    assert labels.planes[1, 1].tolist() == [[2, 2, 0, 0]] * 4
    assert labels.planes[1, 2].tolist() == [[4, 0, 0, 0]] * 4  # number 300 needs the green byte
    assert labels.planes[1, 3].tolist() == [[3, 3, 0, 0]] + [[0] * 4] * 3
    assert labels.planes[0, 1:].eq(0).all()
    assert labels.whole.tolist() == [[5], [0]]
    flags = {name: labels.annotated[:, k].tolist() for k, name in enumerate(CATEGORIES)}
    assert flags == {
        "color": [True, True],
        "object": [False, True],
        "part": [False, True],
        "material": [False, False],
        "scene": [True, False],
        "texture": [False, False],
    }


def test_a_pixel_may_have_two_parts(root: Path) -> None:
    coverage = broden.load(root).annotations().coverage()
    assert coverage[1].tolist() == [1.0, 0.5, 2 / 16, 4 / 16, 0.0]


def test_images_are_those_of_the_index(root: Path) -> None:
    found = broden.load(root, split="val")
    assert found.ids == ("d/b.jpg",)
    pixels = found.images()
    assert pixels.shape == (1, 8, 8, 3)
    assert abs(int(pixels[0, 0, 0, 0]) - 200) < 4


def test_images_without_the_wanted_category_are_left_out(root: Path) -> None:
    found = broden.load(root, categories=["scene"])
    assert found.ids == ("d/a.jpg",)
    assert [c.word for c in found.concepts] == ["palm beach"]
    assert found.annotations().whole.tolist() == [[1]]


def test_rows_are_read_in_pieces(root: Path) -> None:
    found = broden.load(root)
    whole, part = found.annotations(), found.annotations([1])
    assert torch.equal(whole.planes[1:], part.planes)


def test_scenes_written_and_read_back_are_the_same(tmp_path: Path) -> None:
    world = scenes.make(24, 4)
    labels = world.annotations()
    broden.write(tmp_path, world.images, labels)
    found = broden.load(tmp_path)
    again = found.annotations()
    assert again.concepts == labels.concepts
    assert torch.equal(again.planes, labels.planes)
    assert torch.equal(again.whole, labels.whole)
    assert torch.equal(again.annotated, labels.annotated)
    assert torch.equal(found.images(), world.images)
    assert torch.equal(again.coverage(), labels.coverage())
    maps = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    one, other = (
        NetworkDissection(a, torch.arange(24)).overlap(lambda: iter([maps]))
        for a in (labels, again)
    )
    for name in ("intersection", "labelled", "activated"):  # of both, pixel for pixel
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_absent_set_says_what_where_how_and_licence(tmp_path: Path) -> None:
    with pytest.raises(MissingData) as caught:
        broden.load(tmp_path / "broden1_224")
    text = str(caught.value)
    for part in (str(tmp_path), "63,305", "1 GB", "curl -O", "licence"):
        assert part in text
    assert "\n" not in text


def test_absent_plane_is_named(root: Path) -> None:
    (root / "images/d/b_part_2.png").unlink()
    with pytest.raises(MissingData, match=r"b_part_2\.png is in index\.csv but not there"):
        broden.load(root).annotations()


def test_a_number_without_a_label_is_named_with_its_image_and_plane(root: Path) -> None:
    plane(root / "images/d/b_object.png", [[2, 2, 99, 0]] * 4)
    with pytest.raises(DamagedData, match=r"d/b\.jpg has label number 99 \(d/b_object\.png\)"):
        broden.load(root).annotations()


def test_a_plane_of_the_wrong_size_is_refused(root: Path) -> None:
    plane(root / "images/d/b_object.png", [[2, 2], [0, 0]])
    with pytest.raises(DamagedData, match=r"b_object\.png of d/b\.jpg is \(2, 2\).*\(4, 4\)"):
        broden.load(root).annotations()


def test_a_plane_with_a_palette_is_refused(root: Path) -> None:
    Image.new("P", (4, 4)).save(root / "images/d/b_object.png")
    with pytest.raises(DamagedData, match="colour mode P, want RGB"):
        broden.load(root).annotations()


def test_lists_that_lack_a_column_or_a_split_are_refused(root: Path) -> None:
    text = (root / "index.csv").read_text()
    (root / "index.csv").write_text(text.replace("val", "test"))
    with pytest.raises(DamagedData, match="split 'test'"):
        broden.load(root)
    (root / "index.csv").write_text(text.replace("scene,", "place,"))
    with pytest.raises(DamagedData, match=r"lacks the columns \['scene'\]"):
        broden.load(root)
    (root / "index.csv").write_text(text.replace("8,8,4,4", "8,8,4,x"))
    with pytest.raises(DamagedData, match="'x' where a number"):
        broden.load(root)


def test_unknown_categories_and_unequal_lengths_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mood"):
        broden.load(root, categories=["mood"])
    world = scenes.make(2, 0)
    with pytest.raises(ValueError, match="as many"):
        broden.write(tmp_path / "new", world.images[:1], world.annotations())
