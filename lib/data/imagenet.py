"""One ImageNet training image a class, and the MobileNetV2 that knows the 1,000 classes.

Layout below DATA_ROOT: ``imagenet_sample/imagenet_sample_1000.npz`` (JPEG, 224x224 after a
central crop) and ``imagenet_mobilenetv2/mobilenet_v2_1.0_224.npz`` (weights that were 8-bit
numbers, batch normalisation folded into the convolutions). The network was trained on such images,
so its accuracy on them flatters it. No licence is stated for the images: figures that are kept show
index and label in their place.

Public names: `load`, `load_network`, `prepare`, `SAMPLE`, `NETWORK`, `WHOLE`, `TEXTURES`,
`load_textures`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import config
from lib.data.base import (
    DamagedData,
    Expected,
    Progress,
    Provenance,
    Sample,
    decode_images,
    missing,
    open_archive,
    sha256_of,
    verify_file,
    verify_labels,
)

SAMPLE = "imagenet_sample/imagenet_sample_1000.npz"
NETWORK = "imagenet_mobilenetv2/mobilenet_v2_1.0_224.npz"
TEXTURES = "concept_images/dtd_textures.npz"
WHOLE = Expected(
    {
        SAMPLE: "sha256:9acbf0ad242c9fac162314be374e79d987d74664d40fa175a608d081e3c0374f",
        NETWORK: "sha256:04cbb6b7b8448f81fbdc24f44ab5bf749e20831fa799edea502f4f596c6e1654",
    },
    train=(1,) * 1000,
)
DTD = Expected(
    {TEXTURES: "sha256:0465839d9abb6366bcf898915d5aa229a8eb0a5461ecc0212baaec4e93143203"},
    train=(120,) * 10,
)


def load(
    root: Path | None = None,
    *,
    expected: Expected = WHOLE,
    progress: Progress | None = None,
) -> Sample:
    """The sample: uint8 `[n, 3, h, w]`, labels, names of the classes.

    Raises:
        MissingData: no such file below `root` (default DATA_ROOT).
        DamagedData: checksum or labels are not the known ones.
    """
    return _images(
        "ImageNet sample",
        SAMPLE,
        "name",
        root,
        expected,
        progress,
        "EliSchwartz/imagenet-sample-images (ImageNet, training part)",
        note="one image a class, centre crop, JPEG",
    )


def load_textures(
    root: Path | None = None, *, expected: Expected = DTD, progress: Progress | None = None
) -> Sample:
    """Ten of the 47 classes of the Describable Textures Dataset: uint8 `[n, 3, 112, 112]`.

    Raises:
        MissingData, DamagedData: as for `load`.
    """
    return _images(
        "DTD",
        TEXTURES,
        "class_names",
        root,
        expected,
        progress,
        "pan8915/DeepTexture (Describable Textures Dataset)",
        note="10 of 47 classes, centre square, JPEG",
    )


def _images(
    what: str,
    file: str,
    names: str,
    root: Path | None,
    expected: Expected,
    progress: Progress | None,
    source: str,
    note: str,
) -> Sample:
    arrays = open_archive(
        _verified(what, file, root, expected), ["jpeg", "offsets", "label", names]
    )
    y = torch.from_numpy(arrays["label"].astype("int64"))
    verify_labels(y, expected.train, what)
    pixels = decode_images(arrays["jpeg"], arrays["offsets"], progress=progress)  # type: ignore[arg-type]
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    if len(x) != len(y):
        raise DamagedData(f"{what}: {len(x)} images and {len(y)} labels; fetch it again")
    return Sample(
        x,
        y,
        tuple(str(name) for name in arrays[names]),
        Provenance(what, source, "none stated", sha256_of(x, y), len(y), note),
    )


def _verified(what: str, file: str, root: Path | None, expected: Expected) -> Path:
    root = root or config.data_root()
    path = root / file
    if not path.is_file():
        raise missing(what, root, [file], public=False)
    if file in expected.checksums:
        verify_file(path, expected.checksums[file])
    return path


def prepare(pixels: Tensor) -> Tensor:
    """Pixels 0 to 255 as the network wants them: float32 from -1 to 1, at least 224 a side."""
    x = pixels.float() / 127.5 - 1
    if x.shape[-1] < 224:
        x = F.interpolate(x, size=(224, 224), mode="bilinear", align_corners=False)
    return x


def load_network(root: Path | None = None, *, expected: Expected = WHOLE) -> nn.Module:
    """The MobileNetV2 in evaluation mode, `[n, 3, 224, 224]` to 1,000 logits.

    As its authors' software computes it: convolutions of stride 2 pad below and on the right
    alone. And as explanations need it: every activation `min(max(x, 0), 6)` is an `nn.ReLU` and a
    cut at 6, because methods that change the gradient of rectifiers know `nn.ReLU` only and would
    silently leave `nn.ReLU6` as it is.

    Raises:
        MissingData: no such file below `root` (default DATA_ROOT).
        DamagedData: another checksum, or arrays that are not this network's.
    """
    from torchvision.models import mobilenet_v2

    path = _verified("MobileNetV2", NETWORK, root, expected)
    model = mobilenet_v2(weights=None)
    wanted = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    arrays = open_archive(path, wanted)
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    wrong = [name for name in wanted if state[name].shape != shapes[name]]
    if wrong:
        raise DamagedData(f"{path} has other shapes for {wrong[:3]}; fetch it again")
    model.load_state_dict(state, strict=False)
    _replace(model)
    return model.to(memory_format=torch.channels_last).eval()  # twice as fast on a processor


class _UpToSix(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(max=6.0)


def _replace(module: nn.Module) -> None:
    """Put in the padding and the activations that `load_network` describes."""
    for name, child in module.named_children():
        if isinstance(child, nn.ReLU6):
            setattr(module, name, nn.Sequential(nn.ReLU(), _UpToSix()))
        elif isinstance(child, nn.Conv2d) and child.stride == (2, 2):
            child.padding = (0, 0)  # all of them are 3x3: one row below, one column on the right
            setattr(module, name, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), child))
        else:
            _replace(child)
