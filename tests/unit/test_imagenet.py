"""The ImageNet sample and its network, on tiny files in the true format."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lib.attribution.feature_methods import attribute
from lib.data import imagenet
from lib.data.base import DamagedData, Expected, MissingData

TINY = Expected({}, train=(1, 1, 1))


def write_images(path: Path, labels: list[int], names: str, words: list[str]) -> None:
    path.parent.mkdir(parents=True)
    files = []
    for k in labels:
        data = io.BytesIO()
        Image.new("RGB", (16, 16), (80 * k, 10, 20)).save(data, "JPEG", quality=95)
        files.append(data.getvalue())
    ends = np.cumsum([0, *(len(f) for f in files)])
    jpeg = np.frombuffer(b"".join(files), np.uint8)
    np.savez(path, jpeg=jpeg, offsets=ends, label=np.array(labels, np.int16), **{names: words})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_images(tmp_path / imagenet.SAMPLE, [0, 1, 2], "name", ["tench", "goldfish", "shark"])
    write_images(tmp_path / imagenet.TEXTURES, [0, 1, 2], "class_names", ["a", "b", "c"])
    return tmp_path


def test_images_labels_and_names_are_read(root: Path) -> None:
    found = imagenet.load(root, expected=TINY)
    assert found.x.shape == (3, 3, 16, 16)
    assert found.x.dtype == torch.uint8
    assert found.names == ("tench", "goldfish", "shark")
    assert abs(found.x[2, 0].float().mean() - 160) < 3
    assert str(root) not in str(found.provenance)
    assert imagenet.load_textures(root, expected=TINY).names == ("a", "b", "c")


def test_pixels_are_scaled_and_small_images_enlarged() -> None:
    pixels = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 112, 112)
    x = imagenet.prepare(pixels)
    assert x.shape == (2, 3, 224, 224)
    assert x[0].max() == -1
    assert x[1].min() == 1


@pytest.mark.parametrize("load", [imagenet.load, imagenet.load_textures, imagenet.load_network])
def test_absent_files_are_named_and_nothing_stands_in(load, tmp_path: Path) -> None:
    with pytest.raises(MissingData, match=r"wanted (imagenet|concept_images)") as caught:
        load(tmp_path)
    assert "make data" not in str(caught.value)  # it is not public


def test_damaged_files_are_refused(root: Path) -> None:
    with pytest.raises(DamagedData, match="wanted sha256"):
        imagenet.load(root)
    with pytest.raises(DamagedData, match="rows per class"):
        imagenet.load(root, expected=Expected({}, train=(1, 2)))


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, nn.Module]:
    """torchvision's MobileNetV2 with random weights, and the same weights through the loader."""
    from torchvision.models import mobilenet_v2

    generator = torch.Generator().manual_seed(0)
    plain = mobilenet_v2(weights=None).eval()
    state = {k: v for k, v in plain.state_dict().items() if not k.endswith("tracked")}
    for name, value in state.items():
        if value.ndim == 4:
            value.normal_(0, (2 / value[0].numel()) ** 0.5, generator=generator)
        elif name.endswith("bias"):
            value.normal_(0, 0.1, generator=generator)
    folder = tmp_path_factory.mktemp("network")
    (folder / imagenet.NETWORK).parent.mkdir()
    np.savez(folder / imagenet.NETWORK, **{k: v.numpy() for k, v in state.items()})
    return plain, imagenet.load_network(folder, expected=Expected({}, train=()))


def test_network_computes_the_same_with_padding_below_and_on_the_right(network) -> None:
    plain, ours = network
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    def pad_first(module, inputs):
        return (nn.functional.pad(inputs[0], (0, 1, 0, 1)),)

    handles = []
    for module in plain.modules():
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.padding = (0, 0)
            handles.append(module.register_forward_pre_hook(pad_first))
    assert len(handles) == 5
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-3, atol=1e-4)


def test_guided_backpropagation_reaches_every_activation(network) -> None:
    """With `nn.ReLU6` captum would return the plain gradient and say nothing."""
    _, ours = network
    assert not any(isinstance(m, nn.ReLU6) for m in ours.modules())
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    plain, guided = (
        attribute(m, ours, x, 3, baseline=0.0) for m in ("gradient", "guided backpropagation")
    )
    assert not torch.allclose(plain, guided)


def test_other_arrays_are_refused(tmp_path: Path) -> None:
    (tmp_path / imagenet.NETWORK).parent.mkdir()
    np.savez(tmp_path / imagenet.NETWORK, weight=np.zeros(3))
    with pytest.raises(DamagedData, match="lacks the arrays"):
        imagenet.load_network(tmp_path, expected=Expected({}, train=()))
