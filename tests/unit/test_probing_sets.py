"""Probing sets and case-study sets, on tiny folders in their true layouts."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib.data import clip_text, concept_images, imagenet, probing
from lib.data.annotations import CATEGORIES
from lib.data.base import DamagedData, Expected, MissingData
from lib.data.scenes.vocabulary import COLOURS
from tests.real_folders import jpegs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "concept_images").mkdir()
    road = np.zeros((2, 8, 8), np.uint8)
    road[0, :4], road[1] = 1, 2  # road below sky; all unlabelled
    np.savez(
        tmp_path / concept_images.CAMVID,
        **jpegs([(217, 26, 31), (242, 242, 242)], 8),
        masks=road,
        label_names=np.array(["sky", "road", "unlabelled"]),
        source=np.array(["a", "a"]),
    )
    worn = np.full((1, 8, 8), 3, np.uint8)
    worn[0, 0] = 1
    np.savez(
        tmp_path / concept_images.CLOTHING,
        **jpegs([(38, 77, 217)], 8),
        masks=worn,
        label_names=np.array(["null", "skin", "cape", "coat"]),  # no pixel is a cape
        source=np.array(["b"]),
    )
    np.savez(
        tmp_path / imagenet.TEXTURES,
        **jpegs([(242, 224, 51)], 8),
        label=np.array([0], np.uint8),
        class_names=np.array(["banded"]),
    )
    return tmp_path


def test_concept_images_are_one_annotated_set(root: Path) -> None:
    found = concept_images.load(root, expected=Expected({}, train=(1,)))
    labels = found.annotations
    words = [(c.category, c.word) for c in labels.concepts]
    assert words[:11] == [("color", name) for name, _ in COLOURS]
    assert words[11:] == [
        ("object", "sky"),
        ("object", "road"),
        ("object", "coat"),
        ("part", "skin"),
        ("texture", "banded"),
    ]
    assert found.images.shape == (4, 8, 8, 3)
    assert labels.planes.shape == (4, 2, 4, 4)
    assert labels.planes[0, 1].tolist() == [[13] * 4] * 2 + [[12] * 4] * 2
    assert labels.planes[1, 1].eq(0).all()
    assert labels.planes[2, 1].tolist() == [[15] * 4] + [[14] * 4] * 3
    colours = [c.word for c in labels.concepts[:11]]
    seen = [colours[labels.planes[k, 0, 0, 0] - 1] for k in range(4)]
    assert seen == ["red", "white", "blue", "yellow"]
    assert labels.whole.tolist() == [[0], [0], [0], [16]]
    flags = {name: labels.annotated[:, k].tolist() for k, name in enumerate(CATEGORIES)}
    yes, no = True, False
    assert flags["color"] == [yes] * 4
    assert flags["object"] == [yes, yes, yes, no]
    assert flags["part"] == [no, no, yes, no]
    assert flags["texture"] == [no, no, no, yes]
    assert flags["scene"] == flags["material"] == [no] * 4
    assert found.groups[:3] == ("camvid/a", "camvid/a", "clothing/b")
    assert len(set(found.ids)) == 4


def test_every_palette_colour_is_nearest_to_itself() -> None:
    rgb = torch.tensor([c for _, c in COLOURS])
    images = (rgb * 255).round().to(torch.uint8)[:, None, None].expand(-1, 2, 2, -1)
    assert concept_images.nearest_colours(images).flatten().tolist() == list(range(1, 12))


def test_masks_that_do_not_fit_are_refused(root: Path) -> None:
    arrays = dict(np.load(root / concept_images.CAMVID))
    arrays["masks"] = arrays["masks"][:, :4]
    np.savez(root / concept_images.CAMVID, **arrays)
    with pytest.raises(DamagedData, match=r"masks \[2, 4, 8\]"):
        concept_images.load(root, expected=Expected({}, train=(1,)))


@pytest.fixture
def cifar(tmp_path: Path) -> tuple[Path, Expected]:
    folder = tmp_path / "cifar" / probing.CIFAR100
    folder.mkdir(parents=True)
    for name, n in (("train", 4), ("test", 2)):
        data = np.arange(n * 3072).reshape(n, 3072).astype(np.uint8)
        batch = {"data": data, "fine_labels": [k % 2 for k in range(n)], "coarse_labels": [0] * n}
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple", "bear"]}))
    return tmp_path, Expected({}, train=(2, 2), test=(1, 1))


def test_cifar100_is_read_with_its_fine_labels(cifar: tuple[Path, Expected]) -> None:
    found = probing.cifar100(cifar[0], expected=cifar[1])
    assert found.train.x.shape == (4, 3, 32, 32)
    assert found.train.x[0, 0, 0, :3].tolist() == [0, 1, 2]  # a row of the red channel first
    assert found.train.y.tolist() == [0, 1, 0, 1]
    assert found.names == ("apple", "bear")


def test_an_altered_cifar100_is_refused_before_it_is_unpickled(
    cifar: tuple[Path, Expected],
) -> None:
    root, counts = cifar
    evil = root / "cifar" / probing.CIFAR100 / "train"
    evil.write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(DamagedData, match="damaged"):
        probing.cifar100(root, expected=Expected({"train": "md5:0"}, counts.train, counts.test))


@pytest.fixture
def places(tmp_path: Path) -> Path:
    folder = tmp_path / "places365"
    images = folder / probing.PLACES_IMAGES
    lines = []
    for k, name in enumerate(("abbey", "beach")):
        (images / name[0] / name).mkdir(parents=True)
        for j in range(3):
            file = f"/{name[0]}/{name}/{j:08d}.jpg"
            Image.new("RGB", (40, 20), (100 * k, 50, 10 * j)).save(images / file[1:], quality=95)
            lines.append(f"{file} {k}")
    (folder / probing.PLACES_CLASSES).write_text("/a/abbey 0\n/b/beach 1\n")
    (folder / probing.PLACES_LIST).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_places_is_listed_and_a_subset_drawn_within_classes(places: Path) -> None:
    found = probing.places365(places, n_classes=2)
    assert len(found) == 6
    part = probing.subset(found, 2, seed=1)
    assert part.y.tolist() == [0, 0, 1, 1]
    assert part.files == probing.subset(found, 2, seed=1).files
    pixels = part.images(16)
    assert pixels.shape == (4, 16, 16, 3)
    assert abs(int(pixels[3, 8, 8, 0]) - 100) < 4
    probing.write_list(part, places / "places365" / "places_subset.txt")
    lines = (places / "places365" / "places_subset.txt").read_text().splitlines()
    assert len(lines) == 4
    assert lines[3].startswith(f"{probing.PLACES_IMAGES}/b/beach/")
    assert lines[3].endswith(".jpg 1")
    with pytest.raises(ValueError, match="'/a/abbey' has 3 rows, 4 were"):
        probing.subset(found, 4, seed=1)


def test_a_listed_image_that_is_not_there_is_named(places: Path) -> None:
    found = probing.places365(places, n_classes=2)
    found.files[2].unlink()
    with pytest.raises(MissingData, match=r"00000002\.jpg is listed but not there"):
        found.images(16)


def test_a_places_list_in_another_form_is_refused(places: Path) -> None:
    (places / "places365" / probing.PLACES_LIST).write_text("/a/abbey/0.jpg\n")
    with pytest.raises(DamagedData, match="line 1: want a name and a number"):
        probing.places365(places, n_classes=2)
    with pytest.raises(DamagedData, match="want 365 lines"):
        probing.places365(places)


@pytest.fixture
def retinas(tmp_path: Path) -> Path:
    (tmp_path / probing.APTOS_IMAGES).mkdir(parents=True)
    with open(tmp_path / probing.APTOS_LIST, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id_code", "diagnosis"])
        for k, grade in enumerate((0, 4, 2)):
            writer.writerow([f"x{k}", grade])
            Image.new("RGB", (30, 20), (90, 30, 20)).save(
                tmp_path / probing.APTOS_IMAGES / f"x{k}.png"
            )
    return tmp_path


def test_aptos_is_read_with_its_grades(retinas: Path) -> None:
    found = probing.aptos(retinas, counts=(1, 0, 1, 0, 1))
    assert found.y.tolist() == [0, 4, 2]
    assert found.images(8, [1]).shape == (1, 8, 8, 3)
    with pytest.raises(DamagedData, match="1805"):
        probing.aptos(retinas)
    text = (retinas / probing.APTOS_LIST).read_text()
    (retinas / probing.APTOS_LIST).write_text(text.replace("x1,4", "x1,5"))
    with pytest.raises(DamagedData, match=r"grades are 0 to 4; got \['5'\]"):
        probing.aptos(retinas)


def test_retina_mnist_is_read_in_three_splits(tmp_path: Path) -> None:
    counts = (("train", 2), ("val", 1), ("test", 1))
    arrays = {}
    for part, n in counts:
        arrays[f"{part}_images"] = np.full((n, 28, 28, 3), 7, np.uint8)
        arrays[f"{part}_labels"] = np.full((n, 1), 3, np.uint8)
    np.savez(tmp_path / probing.RETINA, **arrays)
    found = probing.retina(tmp_path, counts=counts)
    assert found["train"].x.shape == (2, 28, 28, 3)
    assert found["val"].y.tolist() == [3]
    with pytest.raises(DamagedData, match=r"want \[1080, 28, 28, 3\]"):
        probing.retina(tmp_path)


def test_stored_text_embeddings_are_unit_vectors_by_name(tmp_path: Path) -> None:
    (tmp_path / "clip_text").mkdir()
    np.savez(
        tmp_path / clip_text.FILE,
        embeddings=np.array([[3, 4], [0, 2]], np.float16),
        names=np.array(["air_mattress", "cat"]),
    )
    found = clip_text.load(tmp_path, expected=Expected({}, train=(2,)))
    assert found.words == ("air mattress", "cat")
    torch.testing.assert_close(found.of(["cat", "air mattress"])[1], torch.tensor([0.6, 0.8]))
    with pytest.raises(ValueError, match="no stored CLIP embedding of 'dog'"):
        found.of(["dog"])
    with pytest.raises(DamagedData, match="want 1203"):
        clip_text.load(tmp_path, expected=Expected({}, train=(1203,)))


@pytest.mark.parametrize(
    ("load", "parts"),
    [
        (concept_images.load, ["camvid.npz", "21 MiB", "CC BY-NC"]),
        (probing.cifar100, ["cifar-100-python", "169 MB", "torchvision", "licence: none stated"]),
        (probing.places365, ["categories_places365.txt", "24 GB", "torchvision", "licence"]),
        (
            probing.aptos,
            ["aptos2019/train.csv", "3,662", "kaggle competitions", "licence"],
        ),
        (probing.retina, ["retinamnist.npz", "1,600", "medmnist", "licence: CC BY 4.0"]),
        (clip_text.load, ["clip_text/", "DATA_ROOT"]),
    ],
)
def test_an_absent_set_says_what_where_how_and_licence(load, parts, tmp_path: Path) -> None:
    with pytest.raises(MissingData) as caught:
        load(tmp_path)
    text = str(caught.value)
    assert str(tmp_path) in text
    assert "\n" not in text
    for part in parts:
        assert part in text
