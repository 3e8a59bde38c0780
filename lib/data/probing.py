"""Probing sets and case-study sets of document 2 in their published layouts.

Real images that are at hand, with labels of pixels:
    `concept_images`   street scenes (CamVid), clothing and body parts, ten textures (DTD): one
                       annotated set with objects, parts, textures, and colours from pixels
Layouts of sets that are not (each says what is missing, where, how to get it, which licence):
    `cifar100`         torchvision's `cifar-100-python/`
    `places365`        torchvision's small Places365; `subset` draws so many rows a class and
                       `write_list` notes which
    `aptos`            APTOS 2019, a csv of grades and a folder of images
    `retina`           RetinaMNIST, an open stand-in for APTOS
No set stands in for another silently.

Source: document 2, case studies and appendix D; specification section 5 of document 2.
"""

from __future__ import annotations

import csv
import os
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lib import config
from lib.data.base import (
    DamagedData,
    Expected,
    ImageSet,
    MissingData,
    Progress,
    Provenance,
    Split,
    open_archive,
    sha256_of,
    verify_file,
    verify_labels,
)
from lib.files import write_whole

CIFAR100 = "cifar-100-python"
PLACES_CLASSES, PLACES_LIST = "categories_places365.txt", "places365_train_standard.txt"
PLACES_IMAGES = "data_256_standard"
APTOS_LIST, APTOS_IMAGES = "aptos2019/train.csv", "aptos2019/train_images"
RETINA = "retinamnist.npz"
GRADES = ("no", "mild", "moderate", "severe", "proliferative")
APTOS_COUNTS = (1805, 370, 999, 193, 295)  # 3,662 images
RETINA_COUNTS = (("train", 1080), ("val", 120), ("test", 400))


@dataclass(frozen=True)
class Files:
    """A labelled set as a list of files, for images that do not fit in memory together."""

    files: tuple[Path, ...]
    y: Tensor  # int64 [n]
    names: tuple[str, ...]
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.files)

    def take(self, rows: Tensor | Sequence[int]) -> Files:
        """Some rows, `[m]`."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        files = tuple(self.files[k] for k in rows.tolist())
        return Files(files, self.y[rows], self.names, self.provenance)

    def images(
        self, side: int, rows: Sequence[int] | None = None, *, progress: Progress | None = None
    ) -> Tensor:
        """Pixels of some rows (default all): shorter side to `side`, central square.

        Returns:
            uint8 `[m, side, side, 3]`.

        Raises:
            MissingData: a listed file is not there.
            DamagedData: a file is not an image.
        """
        chosen = range(len(self)) if rows is None else list(rows)
        out = torch.empty(len(chosen), side, side, 3, dtype=torch.uint8)
        steps = range(len(chosen))
        for k in progress(steps) if progress else steps:
            out[k] = _square(self.files[chosen[k]], side)
        return out


def _square(path: Path, side: int) -> Tensor:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            square = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC)
            return torch.from_numpy(np.array(square))
    except FileNotFoundError as error:
        raise MissingData(f"{path} is listed but not there; unpack the set again") from error
    except OSError as error:
        raise DamagedData(f"{path} cannot be decoded ({error}); fetch it again") from error


def absent(name: str, path: Path, size: str, how: str, licence: str) -> MissingData:
    """The error for an absent set in one sentence: what, where, how much, how, which licence."""
    return MissingData(
        f"{name} not found: wanted {path} ({size}); get it with `{how}` (licence: {licence}), or "
        "set DATA_ROOT to a folder that has it"
    )


def _first(root: Path, places: Sequence[str]) -> Path:
    """The first of some places that exists, else the first of all."""
    found = [root / place for place in places if (root / place).exists()]
    return found[0] if found else root / places[0]


def cifar100_official() -> Expected:
    """The published set: torchvision's checksums and label counts."""
    from torchvision.datasets import CIFAR100 as Set

    lists = [*Set.train_list, *Set.test_list, [Set.meta["filename"], Set.meta["md5"]]]
    checksums = {name: f"md5:{md5}" for name, md5 in lists}
    return Expected(checksums, train=(500,) * 100, test=(100,) * 100)


def cifar100(root: Path | None = None, *, expected: Expected | None = None) -> ImageSet:
    """CIFAR-100 with its 100 fine labels: x uint8 `[n, 3, 32, 32]`.

    Args:
        root: default DATA_ROOT; the folder is looked for in it and in its `cifar/`.
        expected: what to verify against; default the published set.

    Raises:
        MissingData: no such folder, or a file of it is not there.
        DamagedData: a checksum, shape or label count is wrong.
    """
    root, expected = root or config.data_root(), expected or cifar100_official()
    folder = _first(root, [f"cifar/{CIFAR100}", CIFAR100])
    how = (
        "python -c \"import torchvision as t; t.datasets.CIFAR100('DATA_ROOT/cifar', "
        'download=True)"'
    )
    for name in ("train", "test", "meta"):
        path = folder / name
        if not path.is_file():
            raise absent("CIFAR-100", path, "60,000 images, 169 MB", how, "none stated")
        if name in expected.checksums:
            verify_file(path, expected.checksums[name])  # before it is read: unpickling runs code
    names = tuple(str(x) for x in _unpickled(folder / "meta")["fine_label_names"])
    parts = []
    for name, counts in (("train", expected.train), ("test", expected.test)):
        batch = _unpickled(folder / name)
        y = torch.tensor(batch["fine_labels"])
        x = torch.from_numpy(np.asarray(batch["data"], np.uint8)).reshape(-1, 3, 32, 32)
        if len(x) != len(y):
            raise DamagedData(f"CIFAR-100 {name}: {len(x)} images, {len(y)} labels; fetch it again")
        verify_labels(y, counts, f"CIFAR-100 {name}")
        parts.append(Split(x, y))
    train, test = parts
    hashed = sha256_of(train.x, train.y, test.x, test.y)
    source = "the University of Toronto (Krizhevsky 2009)"
    n = len(train) + len(test)
    return ImageSet(train, test, names, Provenance("CIFAR-100", source, "none stated", hashed, n))


def _unpickled(path: Path) -> dict[str, list[object]]:
    with open(path, "rb") as file:
        return pickle.load(file, encoding="latin1")


def places365(root: Path | None = None, *, n_classes: int = 365) -> Files:
    """The training images of Places365 at 256 pixels, as a list of files.

    Args:
        root: default DATA_ROOT; looked for in it and in its `places365/`.
        n_classes: that the list of classes must have.

    Raises:
        MissingData: a list or the folder of images is not there.
        DamagedData: a list is not in the published form.
    """
    root = root or config.data_root()
    folder = _first(root, [f"places365/{PLACES_CLASSES}", PLACES_CLASSES]).parent
    licence = "that of its images' owners, for research and teaching"
    for name in (PLACES_CLASSES, PLACES_LIST, PLACES_IMAGES):
        if not (folder / name).exists():
            how = (
                "python -c \"import torchvision as t; t.datasets.Places365('DATA_ROOT/places365', "
                "split='train-standard', small=True, download=True)\""
            )
            raise absent("Places365", folder / name, "1.8 million images, 24 GB", how, licence)
    classes = _pairs(folder / PLACES_CLASSES)
    if len(classes) != n_classes or [k for _, k in classes] != list(range(n_classes)):
        raise DamagedData(
            f"{PLACES_CLASSES}: want {n_classes} lines numbered from 0, got {len(classes)}"
        )
    rows = _pairs(folder / PLACES_LIST)
    y = torch.tensor([label for _, label in rows])
    if not rows or not 0 <= int(y.min()) <= int(y.max()) < n_classes:
        raise DamagedData(f"{PLACES_LIST}: want labels 0..{n_classes - 1} and at least one line")
    files = tuple(folder / PLACES_IMAGES / name.lstrip("/") for name, _ in rows)
    provenance = Provenance(
        "Places365", "MIT CSAIL (Zhou et al. 2017)", licence, sha256_of(y), len(y), "256 pixels"
    )
    return Files(files, y, tuple(name for name, _ in classes), provenance)


def _pairs(path: Path) -> list[tuple[str, int]]:
    """Lines of a name and a number."""
    found = []
    for k, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        name, _, number = line.rpartition(" ")
        if not name or not number.isdigit():
            raise DamagedData(f"{path.name}, line {k}: want a name and a number, got {line!r}")
        found.append((name, int(number)))
    return found


def subset(data: Files, per_class: int, *, seed: int) -> Files:
    """`per_class` rows of each class, drawn by a permutation within the class, in order of rows.

    Document 2 trains on 1,000 images a class of Places365.

    Raises:
        ValueError: a class has fewer rows.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for label, name in enumerate(data.names):
        rows = (data.y == label).nonzero()[:, 0]
        if len(rows) < per_class or per_class < 1:
            raise ValueError(
                f"class {name!r} has {len(rows)} rows, {per_class} were asked for; want 1 or more "
                "and no more than there are"
            )
        kept.append(rows[torch.randperm(len(rows), generator=generator)[:per_class]])
    return data.take(torch.cat(kept).sort().values)


def write_list(data: Files, path: Path) -> None:
    """Write which rows a set has, a line each: file from the list's own folder, and label."""
    lines = [
        f"{Path(os.path.relpath(file, path.parent)).as_posix()} {label}"
        for file, label in zip(data.files, data.y.tolist(), strict=True)
    ]
    write_whole(path, "\n".join(lines) + "\n")


def aptos(root: Path | None = None, *, counts: tuple[int, ...] = APTOS_COUNTS) -> Files:
    """The training part of APTOS 2019: retina images with a grade from 0 to 4.

    Args:
        root: default DATA_ROOT.
        counts: images of each grade that there must be.

    Raises:
        MissingData: the list or the folder is not there.
        DamagedData: the list is not as published.
    """
    root = root or config.data_root()
    path, folder = root / APTOS_LIST, root / APTOS_IMAGES
    licence = "the competition's rules, for its participants; an account is needed"
    for wanted in (path, folder):
        if not wanted.exists():
            how = "kaggle competitions download -c aptos2019-blindness-detection"
            raise absent("APTOS 2019", wanted, "3,662 images, 10 GB", how, licence)
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not {"id_code", "diagnosis"} <= set(reader.fieldnames or []):
            raise DamagedData(
                f"{path} lacks the columns id_code and diagnosis; it has {reader.fieldnames}"
            )
        rows = list(reader)
    grades = [row["diagnosis"] for row in rows]
    if not all(g in "01234" and g for g in grades):
        raise DamagedData(f"{path}: grades are 0 to 4; got {sorted(set(grades) - set('01234'))}")
    y = torch.tensor([int(g) for g in grades])
    verify_labels(y, counts, "APTOS 2019")
    files = tuple(folder / f"{row['id_code']}.png" for row in rows)
    source = "APTOS 2019 Blindness Detection (Aravind Eye Hospital)"
    return Files(files, y, GRADES, Provenance("APTOS 2019", source, licence, sha256_of(y), len(y)))


def retina(
    root: Path | None = None, *, counts: tuple[tuple[str, int], ...] = RETINA_COUNTS
) -> dict[str, Split]:
    """RetinaMNIST: 28x28 retina images with five grades; train, val and test.

    An open stand-in for APTOS, not the document's data: say so where it is used.

    Args:
        root: default DATA_ROOT; then `~/.medmnist`.
        counts: rows of each split that there must be.

    Returns:
        Splits with x uint8 `[n, 28, 28, 3]`, y int64 `[n]`.

    Raises:
        MissingData: the file is nowhere.
        DamagedData: not this set.
    """
    places = [root or config.data_root(), *([] if root else [Path.home() / ".medmnist"])]
    found = [place / RETINA for place in places if (place / RETINA).is_file()]
    if not found:
        how = "python -c \"from medmnist import RetinaMNIST as R; R(split='train', download=True)\""
        raise absent("RetinaMNIST", places[0] / RETINA, "1,600 images, 3 MB", how, "CC BY 4.0")
    names = [f"{part}_{kind}" for part, _ in counts for kind in ("images", "labels")]
    arrays = open_archive(found[0], names)
    splits = {}
    for part, n in counts:
        x = torch.from_numpy(np.asarray(arrays[f"{part}_images"], np.uint8))
        y = torch.from_numpy(np.asarray(arrays[f"{part}_labels"], np.int64)).reshape(-1)
        if x.shape[:1] != y.shape or len(x) != n or x.shape[1:] != (28, 28, 3):
            raise DamagedData(
                f"RetinaMNIST {part}: want [{n}, 28, 28, 3] with as many labels, got "
                f"{list(x.shape)} and {len(y)}; fetch it again"
            )
        if int(y.min()) < 0 or int(y.max()) > 4:
            raise DamagedData(f"RetinaMNIST {part}: grades are 0 to 4, got up to {int(y.max())}")
        splits[part] = Split(x, y)
    return splits
