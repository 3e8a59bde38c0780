"""MNIST: 60,000 training and 10,000 test images of handwritten digits, 28x28 grey.

Layout below DATA_ROOT: ``MNIST/raw/``, torchvision's, gzipped or unpacked.
"""

from __future__ import annotations

from pathlib import Path

from lib.data import idx
from lib.data.base import Expected, ImageSet

ABOUT = idx.IdxSet(
    name="MNIST",
    folder="MNIST",
    source="Y. LeCun, C. Cortes and C. Burges",
    licence="none stated by the authors",
    classes=tuple(str(k) for k in range(10)),
    unpacked={
        "train-images-idx3-ubyte": "md5:6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "md5:a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "md5:2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "md5:27ae3e4e09519cfbb04c329615203637",
    },
    train=(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    test=(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
)


def load(root: Path | None = None, *, expected: Expected | None = None) -> ImageSet:
    """Load MNIST from ``root`` (default DATA_ROOT); see `idx.load`."""
    return idx.load(ABOUT, root, expected=expected)
