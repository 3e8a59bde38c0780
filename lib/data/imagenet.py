"""One ImageNet training image a class, and the MobileNetV2 that knows the 1,000 classes.

Layout below DATA_ROOT: ``imagenet_sample/imagenet_sample_1000.npz`` (JPEG, 224x224 after a
central crop) and ``imagenet_mobilenetv2/mobilenet_v2_1.0_224.npz`` (weights that were 8-bit
numbers, batch normalisation folded into the convolutions). The network was trained on such images,
so its accuracy on them flatters it. No licence is stated for the images: figures that are kept show
index and label in their place.

The whole of ImageNet's validation part and a ResNet-50 can be read from folders of one's own, see
`load_folder` and `load_resnet50`.

Public names: `load`, `load_network`, `prepare`, `SAMPLE`, `NETWORK`, `WHOLE`, `TEXTURES`,
`load_textures`, `load_folder`, `load_resnet50`, `standardise`, `FOLDER`, `RESNET50`.
"""

from __future__ import annotations

from collections.abc import Callable
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
FOLDER = "imagenet/val"  # one folder a class, named by its number in WordNet
RESNET50 = "imagenet_resnet50/resnet50.pth"  # a state dict of torchvision's network
SIDE, RESIZED = 224, 256
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


def load_folder(
    root: Path | None = None, *, n: int, n_classes: int = 1000, seed: int = 0, side: int = SIDE
) -> Sample:
    """`n` random images of a folder with one folder a class, e.g. ImageNet's validation part.

    The shorter side becomes 256 pixels, the central square of `side` = 224 is kept. Classes are
    numbered in the order of their folders' names, which is the standard order.

    Raises:
        MissingData: no folder `imagenet/val` below `root` (default DATA_ROOT), or one without
            `n_classes` folders.
        ValueError: fewer images than asked for.
        DamagedData: a file that is no image.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    root = root or config.data_root()
    classes = sorted(p.name for p in (root / FOLDER).glob("*") if p.is_dir())
    if len(classes) != n_classes:
        wanted = f"{FOLDER} with {n_classes:,} folders (there are {len(classes):,})"
        raise missing("ImageNet", root, [wanted], public=False)
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((root / FOLDER / name).iterdir())
    ]
    if not 1 <= n <= len(files):
        raise ValueError(f"want 1 to {len(files):,} images, as many as there are, got {n:,}")
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))[:n]
    x = torch.empty(n, 3, side, side, dtype=torch.uint8)
    resized = RESIZED * side // SIDE
    for i, k in enumerate(order.tolist()):
        path = files[k][0]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
                scale = resized / min(image.size)
                width, height = (max(resized, round(scale * v)) for v in image.size)
                image = image.resize((width, height), Image.Resampling.BILINEAR)
                left, upper = (width - side) // 2, (height - side) // 2
                image = image.crop((left, upper, left + side, upper + side))
                x[i] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        except (UnidentifiedImageError, OSError) as error:
            raise DamagedData(f"{path.name} is no image ({error}); fetch it again") from error
    y = torch.tensor([files[k][1] for k in order.tolist()])
    note = f"{n:,} of {len(files):,} images, seed {seed}, central {side} x {side}"
    provenance = Provenance("ImageNet", FOLDER, "terms of ImageNet", sha256_of(x, y), n, note)
    return Sample(x, y, tuple(classes), provenance)


def standardise(pixels: Tensor) -> Tensor:
    """Pixels 0 to 255 as torchvision's networks want them."""
    mean = torch.tensor([0.485, 0.456, 0.406], device=pixels.device)[:, None, None]
    spread = torch.tensor([0.229, 0.224, 0.225], device=pixels.device)[:, None, None]
    return (pixels.float() / 255 - mean) / spread


def load_resnet50(
    root: Path | None = None, *, build: Callable[[], nn.Module] | None = None
) -> nn.Module:
    """torchvision's ResNet-50 with the weights of a file, in evaluation mode.

    Args:
        build: makes the network; None is torchvision's.

    Raises:
        MissingData: no such file below `root` (default DATA_ROOT).
        DamagedData: the file holds no weights of this network.
    """
    path = _verified("ResNet-50", RESNET50, root, Expected({}, train=()))
    from torchvision.models import resnet50

    model = build() if build is not None else resnet50()
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise DamagedData(
            f"{path.name} holds no weights of a {type(model).__name__} ({error}); fetch it again"
        ) from error
    return model.eval()


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
