"""Loaders on tiny folders in the true on-disk formats, and on the embedded digits."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lib.data import cifar10, digits, fashion_mnist, idx, mnist
from lib.data.base import Expected, Provenance


def md5(path: Path) -> str:
    return f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"


def colour_images(n: int, seed: int) -> np.ndarray:
    """Smooth images, so that JPEG keeps them nearly as they are: [n, 32, 32, 3] uint8."""
    corners = np.random.default_rng(seed).integers(40, 216, (n, 1, 1, 3))
    ramp = np.linspace(0, 30, 32)[None, :, None, None]
    return np.broadcast_to(corners + ramp, (n, 32, 32, 3)).astype(np.uint8)


def write_jpeg_layout(root: Path, n_train: int = 6, n_test: int = 3) -> Expected:
    arrays = {"class_names": np.array(cifar10.NAMES)}
    for part, n, seed in (("train", n_train, 0), ("test", n_test, 1)):
        files = []
        for image in colour_images(n, seed):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "JPEG", quality=75)
            files.append(buffer.getvalue())
        arrays[f"{part}_jpeg"] = np.frombuffer(b"".join(files), np.uint8)
        arrays[f"{part}_offsets"] = np.cumsum([0, *map(len, files)])
        arrays[f"{part}_labels"] = (np.arange(n) % 3).astype(np.uint8)
    path = root / cifar10.JPEG
    path.parent.mkdir(parents=True)
    np.savez(path, **arrays)
    return Expected({cifar10.JPEG: md5(path)}, train=(2, 2, 2), test=(1, 1, 1))


def write_batches(root: Path) -> Expected:
    """Five training batches of two images and a test batch, pickled as the published ones are."""
    folder = root / cifar10.BATCHES
    folder.mkdir(parents=True)
    images = colour_images(12, 0).transpose(0, 3, 1, 2).reshape(12, -1)
    labels = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2]
    checksums = {}
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        rows = slice(2 * k, 2 * k + 2)
        batch = {b"data": images[rows], b"labels": labels[rows], b"batch_label": name.encode()}
        (folder / name).write_bytes(pickle.dumps({k.decode(): v for k, v in batch.items()}, 2))
        checksums[f"{cifar10.BATCHES}/{name}"] = md5(folder / name)
    return Expected(checksums, train=(4, 3, 3), test=(0, 1, 1))


def write_idx(folder: Path, *, packed: bool, n_train: int = 6, n_test: int = 3) -> Expected:
    folder.mkdir(parents=True)
    checksums = {}
    for prefix, n in (("train", n_train), ("t10k", n_test)):
        pixels = (np.arange(n * 28 * 28) % 251).astype(np.uint8)
        contents = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">4I", 0x803, n, 28, 28) + pixels.tobytes(),
            f"{prefix}-labels-idx1-ubyte": struct.pack(">2I", 0x801, n)
            + bytes(k % 3 for k in range(n)),
        }
        for name, raw in contents.items():
            path = folder / (name + ".gz" if packed else name)
            path.write_bytes(gzip.compress(raw) if packed else raw)
            checksums[path.name] = md5(path)
    return Expected(checksums, train=(2, 2, 2), test=(1, 1, 1))


def test_digits_have_the_stated_splits_and_scale() -> None:
    data = digits.load()
    assert [len(s) for s in (data.train, data.probe, data.test)] == [1000, 400, 397]
    x = torch.cat([data.train.x, data.probe.x, data.test.x])
    assert x.dtype == torch.float32
    assert x.shape == (1797, 64)
    torch.testing.assert_close(x.min(), torch.tensor(-0.3))
    torch.testing.assert_close(x.max(), torch.tensor(0.7))


def test_digits_split_depends_on_the_seed_alone() -> None:
    first, again, other = digits.load(3), digits.load(3), digits.load(4)
    assert torch.equal(first.train.x, again.train.x)
    assert first.provenance == again.provenance
    assert not torch.equal(first.train.x, other.train.x)
    assert first.provenance.sha256 != other.provenance.sha256


def test_cifar_reads_the_jpeg_layout_and_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    expected = write_jpeg_layout(tmp_path)
    data = cifar10.load(tmp_path, expected=expected)
    assert data.train.x.shape == (6, 3, 32, 32)
    assert data.train.x.dtype == torch.uint8
    assert data.train.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.train.y.dtype == torch.int64
    wanted = torch.from_numpy(colour_images(6, 0).transpose(0, 3, 1, 2).copy())
    # quality 75 quantises: a few grey levels on a smooth image
    assert (data.train.x.int() - wanted.int()).abs().float().mean() < 4
    assert "JPEG pixels" in str(data.provenance)


def test_cifar_decodes_an_archive_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    expected = write_jpeg_layout(tmp_path)
    first = cifar10.load(tmp_path, expected=expected)
    again = cifar10.load(tmp_path, expected=expected)
    assert torch.equal(first.test.x, again.test.x)
    assert first.provenance == again.provenance
    assert (tmp_path / "cache.log").read_text().count("built cifar10 ") == 1


def test_cifar_prefers_the_original_pixels(tmp_path) -> None:
    write_jpeg_layout(tmp_path)
    data = cifar10.load(tmp_path, expected=write_batches(tmp_path))
    wanted = torch.from_numpy(colour_images(12, 0).transpose(0, 3, 1, 2).copy())
    assert torch.equal(data.train.x, wanted[:10])
    assert torch.equal(data.test.x, wanted[10:])
    assert data.test.y.tolist() == [1, 2]
    assert "original pixels" in str(data.provenance)


def test_cifar_reads_the_lossless_rows(tmp_path) -> None:
    path = tmp_path / cifar10.LOSSLESS
    path.parent.mkdir()
    images = colour_images(4, 2)
    np.savez(path, images=images, labels=np.array([0, 1, 1, 2], np.uint8))
    expected = Expected({cifar10.LOSSLESS: md5(path)}, train=(1, 2, 1))
    sample = cifar10.load_lossless(tmp_path, expected=expected)
    assert torch.equal(sample.x, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    assert sample.y.tolist() == [0, 1, 1, 2]
    assert sample.provenance.n == 4


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("module", [mnist, fashion_mnist])
def test_idx_sets_read_gzipped_and_unpacked_files_alike(tmp_path, module, packed) -> None:
    expected = write_idx(tmp_path / module.ABOUT.folder / "raw", packed=packed)
    data = module.load(tmp_path, expected=expected)
    assert data.train.x.shape == (6, 28, 28)
    assert data.train.x.dtype == torch.uint8
    assert data.train.x.flatten()[:260].tolist() == [k % 251 for k in range(260)]
    assert data.test.y.tolist() == [0, 1, 2]
    assert data.provenance.n == 9
    assert len(data.names) == 10


def test_official_tables_cover_every_file_and_class() -> None:
    for module in (mnist, fashion_mnist):
        expected = idx.official(module.ABOUT)
        assert len(expected.checksums) == 8
        assert (sum(expected.train), sum(expected.test)) == (60_000, 10_000)
    expected = cifar10.official()
    assert sorted(expected.checksums)[:1] == ["cifar-10-batches-py/data_batch_1"]
    assert len(expected.checksums) == 7
    assert (sum(expected.train), sum(expected.test)) == (50_000, 10_000)
    assert sum(cifar10.FIRST_4000.train) == cifar10.N_LOSSLESS


def test_provenance_is_one_line_without_a_path() -> None:
    line = str(Provenance("set", "a place", "MIT", "0123456789abcdef" * 4, 1234, "a note"))
    assert line == ("set: 1,234 rows from a place; licence: MIT; sha256 0123456789abcdef; a note")
    assert "\n" not in str(digits.load().provenance)
