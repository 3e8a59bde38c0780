"""Fashion-MNIST: 60,000 training and 10,000 test images of clothing, 28x28 grey.

Layout below DATA_ROOT: ``FashionMNIST/raw/``, torchvision's, gzipped or unpacked.
"""

from __future__ import annotations

from pathlib import Path

from lib.data import idx
from lib.data.base import Expected, ImageSet

ABOUT = idx.IdxSet(
    name="Fashion-MNIST",
    folder="FashionMNIST",
    source="Zalando Research (Xiao, Rasul and Vollgraf 2017)",
    licence="MIT",
    classes=(
        "T-shirt/top",
        "trouser",
        "pullover",
        "dress",
        "coat",
        "sandal",
        "shirt",
        "sneaker",
        "bag",
        "ankle boot",
    ),
    unpacked={
        "train-images-idx3-ubyte": "md5:f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "md5:9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "md5:8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "md5:15d484375f8d13e6eb1aabb0c3f46965",
    },
    train=(6000,) * 10,
    test=(1000,) * 10,
)


def load(root: Path | None = None, *, expected: Expected | None = None) -> ImageSet:
    """Load Fashion-MNIST from ``root`` (default DATA_ROOT); see `idx.load`."""
    return idx.load(ABOUT, root, expected=expected)
