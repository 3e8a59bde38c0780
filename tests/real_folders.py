"""Data folders in their true formats with a few tiny images, for tests of what reads them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from lib.data import cifar10, concept_images, imagenet
from lib.data.base import Expected

Colour = tuple[int, int, int]
RED, WHITE, BLUE, YELLOW = (217, 26, 31), (242, 242, 242), (38, 77, 217), (242, 224, 51)


def jpegs(images: Sequence[Colour | np.ndarray], side: int) -> dict[str, np.ndarray]:
    """Images, plain colours or uint8 [side, side, 3], as the archives store them."""
    files = []
    for image in images:
        data = io.BytesIO()
        whole = isinstance(image, np.ndarray)
        picture = Image.fromarray(image) if whole else Image.new("RGB", (side, side), image)
        picture.save(data, "JPEG", quality=98)
        files.append(data.getvalue())
    ends = np.cumsum([0, *(len(f) for f in files)])
    return {"jpeg": np.frombuffer(b"".join(files), np.uint8), "offsets": ends}


def write_concept_images(root: Path, n: int, side: int = 16) -> None:
    """`n` images of each of the three archives of `lib.data.concept_images`.

    Street scenes are red, road (a growing part, from below) under sky; clothing is blue, a coat
    (a growing part, from the left) and skin elsewhere; textures are banded and dotted in turn, two
    yellow, then two white.
    """
    (root / "concept_images").mkdir(exist_ok=True)
    road, worn = np.ones((n, side, side), np.uint8), np.ones((n, side, side), np.uint8)
    for k in range(n):
        part = 1 + k % (side - 1)
        road[k, side - part :], worn[k, :, :part] = 2, 2
    np.savez(
        root / concept_images.CAMVID,
        **jpegs([RED] * n, side),
        masks=road,
        label_names=np.array(["unlabelled", "sky", "road"]),
        source=np.array([f"street {k}" for k in range(n)]),
    )
    np.savez(
        root / concept_images.CLOTHING,
        **jpegs([BLUE] * n, side),
        masks=worn,
        label_names=np.array(["null", "skin", "coat"]),
        source=np.array([f"person {k}" for k in range(n)]),
    )
    np.savez(
        root / imagenet.TEXTURES,
        **jpegs([(YELLOW, WHITE)[k // 2 % 2] for k in range(n)], side),
        label=(np.arange(n) % 2).astype(np.uint8),
        class_names=np.array(["banded", "dotted"]),
    )


def write_imagenet_sample(root: Path, n: int, side: int = 16) -> None:
    """`n` images of as many classes, in four colours in turn."""
    (root / imagenet.SAMPLE).parent.mkdir(exist_ok=True)
    np.savez(
        root / imagenet.SAMPLE,
        **jpegs([(BLUE, RED, WHITE, YELLOW)[k % 4] for k in range(n)], side),
        label=np.arange(n).astype(np.int64),
        name=np.array([f"class {k}" for k in range(n)]),
    )


def write_cifar10(root: Path, per_class: int, test_per_class: int) -> Expected:
    """CIFAR-10's JPEG layout: noise around a grey of each class; what to verify it against."""
    draw = np.random.default_rng(0)
    (root / cifar10.JPEG).parent.mkdir(exist_ok=True)
    arrays = {}
    for part, n in (("train", per_class), ("test", test_per_class)):
        labels = np.arange(10 * n) % 10
        noise = draw.integers(0, 30, (10 * n, 32, 32, 3))
        images = (20 * labels[:, None, None, None] + noise).astype(np.uint8)
        stored = jpegs(list(images), 32)
        arrays |= {f"{part}_{name}": array for name, array in stored.items()}
        arrays[f"{part}_labels"] = labels
    np.savez(root / cifar10.JPEG, **arrays)
    digest = hashlib.sha256((root / cifar10.JPEG).read_bytes()).hexdigest()
    counts = {"train": (per_class,) * 10, "test": (test_per_class,) * 10}
    return Expected({cifar10.JPEG: f"sha256:{digest}"}, **counts)
