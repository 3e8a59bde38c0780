"""The ImageNet network's file in its true format, random weights, for tests of what reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from lib.data import imagenet


def write_mobilenet(root: Path) -> None:
    """The weights of `lib.data.imagenet.NETWORK`, drawn at random; batch norms that only add."""
    from torchvision.models import mobilenet_v2

    generator = torch.Generator().manual_seed(0)
    arrays = {}
    for name, value in mobilenet_v2(weights=None).state_dict().items():
        if value.ndim == 4:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        if not name.endswith("num_batches_tracked"):
            arrays[name] = value.numpy()
    (root / imagenet.NETWORK).parent.mkdir(exist_ok=True)
    np.savez(root / imagenet.NETWORK, **arrays)
