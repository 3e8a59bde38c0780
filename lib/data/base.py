"""What all data sets share: provenance, splits, and verification of what was read.

A loader returns a frozen dataclass with its splits, the class names and a `Provenance`. It checks
files by checksum, and shapes and label counts after reading, against an `Expected` table whose
default is the official data set. It never replaces missing data by other data: it raises.

Public names: `Provenance`, `Split`, `ImageSet`, `Sample`, `Expected`, `MissingData`,
`DamagedData`, `missing`, `verify_file`, `verify_labels`, `sha256_of`, `open_archive`,
`decode_images`.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

Progress = Callable[[range], Iterable[int]]  # tqdm.auto.tqdm, or any like it


class MissingData(FileNotFoundError):
    """A data set that is not below DATA_ROOT."""


class DamagedData(ValueError):
    """A file whose checksum, shape or contents are not those of the data set."""


@dataclass(frozen=True)
class Provenance:
    """Where rows come from; ``str()`` is the one line that a notebook prints (no path in it)."""

    name: str
    source: str
    licence: str
    sha256: str  # over the arrays as the loader returns them, see `sha256_of`
    n: int  # rows in all splits together
    note: str = ""

    def __str__(self) -> str:
        facts = [
            f"{self.name}: {self.n:,} rows from {self.source}",
            f"licence: {self.licence}",
            f"sha256 {self.sha256[:16]}",
        ]
        return "; ".join(facts + [self.note] * bool(self.note))


@dataclass(frozen=True)
class Split:
    """Inputs and targets of some rows."""

    x: Tensor  # [n, ...]
    y: Tensor  # [n]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class ImageSet:
    """A labelled image set with the published train and test split."""

    train: Split  # x uint8 [n, ...], y int64 [n]
    test: Split
    names: tuple[str, ...]  # of the classes
    provenance: Provenance


@dataclass(frozen=True)
class Sample:
    """Some labelled rows that have no split of their own."""

    x: Tensor  # [n, ...]
    y: Tensor  # [n]
    names: tuple[str, ...]
    provenance: Provenance


@dataclass(frozen=True)
class Expected:
    """What verification asks of a data set: file checksums, and rows per class after reading."""

    checksums: Mapping[str, str]  # file name -> "md5:..." or "sha256:..."
    train: tuple[int, ...]  # rows of class 0, 1, ...
    test: tuple[int, ...] = ()


def missing(name: str, root: Path, wanted: Sequence[str], *, public: bool = True) -> MissingData:
    """The error for an absent data set: what was wanted, where, and what to do."""
    how = "run `make data` or " if public else ""
    return MissingData(
        f"{name} not found under DATA_ROOT ({root}): wanted {' or '.join(wanted)}; "
        f"{how}set DATA_ROOT to a folder that has it"
    )


def verify_file(path: Path, digest: str) -> None:
    """Compare a file with its checksum.

    Args:
        path: an existing file.
        digest: ``"md5:<hex>"`` or ``"sha256:<hex>"``.

    Raises:
        DamagedData: the file is another one, or damaged.
    """
    kind, _, wanted = digest.partition(":")
    with open(path, "rb") as file:
        came = hashlib.file_digest(file, kind).hexdigest()
    if came != wanted:
        raise DamagedData(
            f"{path} is damaged or another version: wanted {kind} {wanted}, got {came}; "
            "delete it and fetch it again (`make data` fetches what is public)"
        )


def verify_labels(y: Tensor, counts: Sequence[int], what: str) -> None:
    """Check that class k has ``counts[k]`` rows and that there is no other class.

    Raises:
        DamagedData: the balance of the labels is not the published one.
    """
    came = torch.bincount(y, minlength=len(counts)).tolist() if len(y) else [0] * len(counts)
    if came != list(counts):
        raise DamagedData(
            f"{what}: wanted {list(counts)} rows per class, got {came}; "
            "the labels are not those of the published set, so fetch it again"
        )


def sha256_of(*tensors: Tensor) -> str:
    """SHA-256 over dtypes, shapes and bytes of tensors in order: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


def open_archive(path: Path, names: Sequence[str]) -> dict[str, NDArray[np.generic]]:
    """Read the named arrays of an npz file, without unpickling anything.

    Raises:
        DamagedData: not an npz file, or an array is absent.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in names if name in archive.files}
            present = archive.files
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise DamagedData(f"{path} is not a whole npz file ({error}); fetch it again") from error
    absent = [name for name in names if name not in found]
    if absent:
        raise DamagedData(f"{path} lacks the arrays {absent}; it has {present}; fetch it again")
    return found


def decode_images(
    jpeg: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    *,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """Decode images of equal size that are stored end to end.

    Args:
        jpeg: the bytes of all files, ``[bytes]`` uint8.
        offsets: where each file begins, and the end of the last, ``[n + 1]``.
        progress: wraps the loop over images, such as ``tqdm``.

    Returns:
        ``[n, height, width, 3]`` uint8.

    Raises:
        DamagedData: offsets do not fit the bytes, or an image cannot be decoded.
    """
    from PIL import Image

    n = len(offsets) - 1
    if n < 1 or offsets[0] != 0 or offsets[-1] != len(jpeg) or (np.diff(offsets) <= 0).any():
        raise DamagedData(
            f"image archive: {len(offsets)} offsets do not divide {len(jpeg)} bytes; fetch it again"
        )
    raw = jpeg.tobytes()
    images: NDArray[np.uint8] | None = None
    for i in progress(range(n)) if progress else range(n):
        try:
            with Image.open(io.BytesIO(raw[offsets[i] : offsets[i + 1]])) as image:
                pixels = np.asarray(image.convert("RGB"))
        except OSError as error:
            raise DamagedData(f"image {i} of the archive cannot be decoded ({error})") from error
        if images is None:
            images = np.empty((n, *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise DamagedData(
                f"image {i} is {pixels.shape}, the first one {images.shape[1:]}; want equal sizes"
            )
        images[i] = pixels
    assert images is not None  # n >= 1
    return images
