"""The idx format of MNIST and Fashion-MNIST, and the loader that both share.

A file holds a magic number (two zero bytes, 8 for uint8, the number of axes), one big-endian
32-bit length per axis, then the bytes. Below DATA_ROOT each set is in torchvision's layout,
``<set>/raw/train-images-idx3-ubyte`` and three more, each gzipped or unpacked.

Public names: `official`, `locate`, `load`, `read`.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Mapping, Sequence
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
    Provenance,
    Split,
    missing,
    sha256_of,
    verify_file,
    verify_labels,
)

PREFIXES = {"train": "train", "test": "t10k"}


@dataclass(frozen=True)
class IdxSet:
    """What distinguishes one idx set from the other."""

    name: str
    folder: str  # below DATA_ROOT, also the name of torchvision's class
    source: str
    licence: str
    classes: tuple[str, ...]
    unpacked: Mapping[str, str]  # file name -> "md5:..." of the unpacked files
    train: tuple[int, ...]  # rows per class
    test: tuple[int, ...]


def official(about: IdxSet) -> Expected:
    """The published set: torchvision's md5 of each archive, and ours of each unpacked file."""
    from torchvision import datasets

    archives = getattr(datasets, about.folder).resources
    checksums = {name: f"md5:{md5}" for name, md5 in archives} | dict(about.unpacked)
    return Expected(checksums, about.train, about.test)


def locate(
    about: IdxSet, root: Path | None = None, *, expected: Expected | None = None
) -> dict[str, Path]:
    """Find the four files, gzipped or not, and verify them.

    Returns:
        ``{train,test}-{images,labels}`` -> path.

    Raises:
        MissingData: a file is not there.
        DamagedData: a file's checksum is wrong.
    """
    root, expected = root or config.data_root(), expected or official(about)
    found = {}
    for part, prefix in PREFIXES.items():
        for what, axes in (("images", 3), ("labels", 1)):
            name = f"{prefix}-{what}-idx{axes}-ubyte"
            wanted = [f"{about.folder}/raw/{name}.gz", f"{about.folder}/raw/{name}"]
            present = [root / path for path in wanted if (root / path).is_file()]
            if not present:
                raise missing(about.name, root, wanted)
            verify_file(present[0], expected.checksums[present[0].name])
            found[f"{part}-{what}"] = present[0]
    return found


def load(about: IdxSet, root: Path | None = None, *, expected: Expected | None = None) -> ImageSet:
    """Load the set; x uint8 ``[n, 28, 28]``, y int64 ``[n]``.

    Raises:
        MissingData: a file is not there.
        DamagedData: a checksum, a shape or the label balance is wrong.
    """
    expected = expected or official(about)
    paths = locate(about, root, expected=expected)
    parts = []
    for part, counts in (("train", expected.train), ("test", expected.test)):
        x, y = read(paths[f"{part}-images"]), read(paths[f"{part}-labels"]).long()
        if x.shape != (sum(counts), 28, 28) or y.shape != x.shape[:1]:
            raise DamagedData(
                f"{about.name} {part}: wanted [{sum(counts)}, 28, 28] and [{sum(counts)}], got "
                f"{list(x.shape)} and {list(y.shape)}; delete {about.folder}/ and run `make data`"
            )
        verify_labels(y, counts, f"{about.name} {part}")
        parts.append(Split(x, y))
    train, test = parts
    provenance = Provenance(
        name=about.name,
        source=about.source,
        licence=about.licence,
        sha256=sha256_of(train.x, train.y, test.x, test.y),
        n=len(train) + len(test),
    )
    return ImageSet(train, test, about.classes, provenance)


def read(path: Path) -> Tensor:
    """Read one idx file of bytes, gzipped if its name ends in ``.gz``.

    Returns:
        uint8, with the axes that the file states.

    Raises:
        DamagedData: truncated, or not an idx file of bytes.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DamagedData(f"{path} is not a whole gzip file ({error}); fetch it again") from error
    if len(raw) < 4 or raw[:3] != b"\x00\x00\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DamagedData(f"{path} is not an idx file of bytes; fetch it again")
    shape: Sequence[int] = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    start = 4 + 4 * raw[3]
    if len(raw) - start != int(np.prod(shape)):
        raise DamagedData(
            f"{path} states {list(shape)} bytes of data and holds {len(raw) - start}; "
            "fetch it again"
        )
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=start).reshape(shape).copy())
