"""What loaders say when data is absent, damaged or not what it claims to be: one sentence."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from lib.data import base, cifar10, digits, fashion_mnist, idx, mnist
from lib.data.base import DamagedData, Expected, MissingData


def md5(path: Path) -> str:
    return f"md5:{hashlib.md5(path.read_bytes()).hexdigest()}"


@pytest.mark.parametrize(
    ("load", "wanted"),
    [
        (cifar10.load, "wanted cifar-10-batches-py/ or cifar10/cifar10_jpeg.npz"),
        (mnist.load, "wanted MNIST/raw/train-images-idx3-ubyte.gz or"),
        (fashion_mnist.load, "wanted FashionMNIST/raw/train-images-idx3-ubyte.gz or"),
    ],
)
def test_absent_set_is_named_with_what_to_do(tmp_path, load, wanted) -> None:
    with pytest.raises(MissingData) as raised:
        load(tmp_path)
    text = str(raised.value)
    assert wanted in text
    assert str(tmp_path) in text
    assert "run `make data` or set DATA_ROOT" in text
    assert "\n" not in text


def test_absent_set_is_looked_for_in_data_root(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(MissingData, match="nowhere"):
        cifar10.load()


def test_absent_lossless_rows_do_not_send_to_make_data(tmp_path) -> None:
    with pytest.raises(MissingData) as raised:
        cifar10.load_lossless(tmp_path)
    assert "make data" not in str(raised.value)
    assert "set DATA_ROOT" in str(raised.value)


def test_incomplete_batches_name_the_absent_file(tmp_path) -> None:
    (tmp_path / cifar10.BATCHES).mkdir()
    with pytest.raises(MissingData, match="data_batch_1"):
        cifar10.load(tmp_path)


def test_altered_file_is_refused_before_it_is_read(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / cifar10.BATCHES / "data_batch_1"
    path.parent.mkdir()
    path.write_bytes(b"cos\nsystem\n(S'touch unpickled'\ntR.")  # a pickle that would run a command
    expected = Expected({f"{cifar10.BATCHES}/data_batch_1": "md5:" + "0" * 32}, train=(1,))
    with pytest.raises(DamagedData, match=r"wanted md5 0{32}, got [0-9a-f]{32}; delete it"):
        cifar10.load(tmp_path, expected=expected)
    assert not Path("unpickled").exists()


def test_wrong_label_balance_is_refused() -> None:
    with pytest.raises(DamagedData, match=r"wanted \[2, 1\] rows per class, got \[1, 2\]"):
        base.verify_labels(torch.tensor([0, 1, 1]), (2, 1), "a set")
    with pytest.raises(DamagedData, match=r"got \[1, 1, 1\]"):
        base.verify_labels(torch.tensor([0, 1, 2]), (2, 1), "a set")


def test_truncated_archive_is_refused(tmp_path) -> None:
    path = tmp_path / cifar10.LOSSLESS
    path.parent.mkdir()
    np.savez(path, images=np.zeros((4, 32, 32, 3), np.uint8), labels=np.zeros(4, np.uint8))
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DamagedData, match="not a whole npz file"):
        cifar10.load_lossless(tmp_path, expected=Expected({cifar10.LOSSLESS: md5(path)}, (4,)))


def test_archive_without_an_array_is_refused(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", images=np.zeros(3))
    with pytest.raises(DamagedData, match=r"lacks the arrays \['labels'\]"):
        base.open_archive(tmp_path / "a.npz", ["images", "labels"])


def test_archive_of_objects_is_not_unpickled(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", images=np.array([{}], dtype=object))
    with pytest.raises(DamagedData, match="not a whole npz file"):
        base.open_archive(tmp_path / "a.npz", ["images"])


@pytest.mark.parametrize("offsets", [[0, 5], [1, 10], [0, 6, 6, 10], [0]])
def test_offsets_that_do_not_fit_are_refused(offsets) -> None:
    with pytest.raises(DamagedData, match="do not divide 10 bytes"):
        base.decode_images(np.zeros(10, np.uint8), np.array(offsets))


def test_undecodable_image_is_named() -> None:
    with pytest.raises(DamagedData, match="image 0 of the archive cannot be decoded"):
        base.decode_images(np.zeros(10, np.uint8), np.array([0, 10]))


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("a", b"\x00\x00\x0d\x01\x00\x00\x00\x00", "not an idx file of bytes"),
        ("a", b"\x00\x00", "not an idx file of bytes"),
        ("a", b"\x00\x00\x08\x03\x00\x00", "not an idx file of bytes"),
        ("a", struct.pack(">2I", 0x801, 5) + b"1234", r"states \[5\] bytes of data and holds 4"),
        ("a.gz", gzip.compress(b"x" * 100)[:-9], "not a whole gzip file"),
        ("a.gz", b"plain text", "not a whole gzip file"),
    ],
)
def test_bad_idx_file_is_refused(tmp_path, name, raw, says) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(DamagedData, match=says):
        idx.read(tmp_path / name)


def test_other_digits_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(digits, "GREY_SUM", digits.GREY_SUM + 1)
    with pytest.raises(DamagedData, match="install the scikit-learn"):
        digits.load()
