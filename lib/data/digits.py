"""scikit-learn's 8x8 handwritten digits: the embedded data of the `quick` profile.

Split and scaling are those of the project's digits experiments: a permutation by seed, then 1000
training rows for the network, 400 to train probes, 397 to test both; inputs are x/16 - 0.3.
scikit-learn ships the test part of the UCI set (optical recognition of handwritten digits).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from lib.data.base import (
    DamagedData,
    Provenance,
    Split,
    sha256_of,
    verify_labels,
)

N_TRAIN, N_PROBE = 1000, 400  # the other 397 are for testing
COUNTS = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
GREY_SUM = 561_718  # of all pixels, which are integers in 0..16


@dataclass(frozen=True)
class Digits:
    """The digits in three disjoint splits."""

    train: Split  # x float32 [1000, 64], y int64 [1000]
    probe: Split  # [400, 64], [400]
    test: Split  # [397, 64], [397]
    names: tuple[str, ...]
    provenance: Provenance


def load(seed: int = 0) -> Digits:
    """Load the digits, split by ``seed``.

    Raises:
        DamagedData: scikit-learn's file is not the known one.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    grey, y = (
        torch.tensor(pixels, dtype=torch.float32),
        torch.tensor(labels, dtype=torch.int64),
    )
    if grey.shape != (1797, 64) or int(grey.sum()) != GREY_SUM:
        raise DamagedData(
            f"digits: wanted [1797, 64] with pixel sum {GREY_SUM}, got {list(grey.shape)} with "
            f"{int(grey.sum())}; install the scikit-learn of requirements.txt"
        )
    verify_labels(y, COUNTS, "digits")
    # numpy's legacy generator, whose stream is frozen for good: the specification's seed 0 too
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(y)))
    x, y = grey[order] / 16 - 0.3, y[order]
    ends = (N_TRAIN, N_PROBE, len(y) - N_TRAIN - N_PROBE)
    parts = [Split(a, b) for a, b in zip(x.split(ends), y.split(ends), strict=True)]
    return Digits(
        train=parts[0],
        probe=parts[1],
        test=parts[2],
        names=tuple(str(k) for k in range(10)),
        provenance=Provenance(
            name="digits",
            source="scikit-learn load_digits (UCI, optical recognition of handwritten digits)",
            licence="CC BY 4.0",
            sha256=sha256_of(x, y),
            n=len(y),
            note=f"{' / '.join(map(str, ends))} train / probe / test, permutation seed {seed}",
        ),
    )
