"""Downloads from a small HTTP server: good, truncated, wrong, absent, cut, killed, stopped."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from lib.data import cifar10, download
from lib.data.base import Expected

ROOT = Path(__file__).resolve().parents[2]
BODY = bytes(range(256)) * 1024  # 256 KiB
MD5 = f"md5:{hashlib.md5(BODY).hexdigest()}"


@dataclass
class Server:
    """What is served, how badly, and what was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)  # path -> answers still to be cut short
    busy: dict[str, int] = field(default_factory=dict)  # path -> answers still to be 503
    stalls: set[str] = field(default_factory=set)  # paths whose answer stops half-way
    asked: list[str] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            body = state.files.get(self.path)
            if body is None:
                return self.send_error(404)
            if state.busy.get(self.path, 0):
                state.busy[self.path] -= 1
                return self.send_error(503)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            half = len(body) // 2
            self.wfile.write(body[:half])
            self.wfile.flush()
            if self.path in state.stalls:
                state.release.wait(30)
            elif state.cuts.get(self.path, 0):
                state.cuts[self.path] -= 1
            else:
                self.wfile.write(body[half:])

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_port}"
    yield state
    state.release.set()
    http.shutdown()
    http.server_close()
    thread.join()


def fetch(server: Server, target: Path, path: str = "/file", digest: str = MD5, **kwargs) -> None:
    download.fetch([server.url + path], target, digest, wait=0.01, **kwargs)


def nothing_left(folder: Path) -> bool:
    return not [p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock")]


def sentence(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_good_file_arrives_whole_and_is_not_fetched_twice(server, tmp_path) -> None:
    server.files["/file"] = BODY
    fetch(server, tmp_path / "sub" / "file")
    fetch(server, tmp_path / "sub" / "file")
    assert (tmp_path / "sub" / "file").read_bytes() == BODY
    assert server.asked == ["/file"]
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["file"]


def test_damaged_file_is_replaced(server, tmp_path) -> None:
    server.files["/file"] = BODY
    (tmp_path / "file").write_bytes(BODY[:-1])
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY


def test_connection_that_is_always_cut_leaves_nothing(server, tmp_path) -> None:
    server.files["/file"], server.cuts["/file"] = BODY, 99
    with pytest.raises(download.DownloadError) as raised:
        fetch(server, tmp_path / "file")
    assert "file: truncated, the connection to http://127.0.0.1" in sentence(raised.value)
    assert len(server.asked) == 3
    assert nothing_left(tmp_path)


def test_failed_download_keeps_the_file_it_would_replace(server, tmp_path) -> None:
    server.files["/file"], server.cuts["/file"] = BODY, 99
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(download.DownloadError):
        fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"


def test_connection_cut_twice_is_mended_by_the_third_attempt(server, tmp_path) -> None:
    server.files["/file"], server.cuts["/file"] = BODY, 1
    server.busy["/file"] = 1
    fetch(server, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == BODY
    assert len(server.asked) == 3


@pytest.mark.parametrize("served", [BODY[:1000], b"<html>sign in</html>"])
def test_wrong_content_is_refused_at_once(server, tmp_path, served) -> None:
    server.files["/file"] = served
    with pytest.raises(download.DownloadError) as raised:
        fetch(server, tmp_path / "file")
    assert f"({len(served):,} bytes) is truncated or another version" in sentence(raised.value)
    assert len(server.asked) == 1
    assert nothing_left(tmp_path)


def test_absent_file_is_refused_at_once(server, tmp_path) -> None:
    with pytest.raises(download.DownloadError) as raised:
        fetch(server, tmp_path / "file")
    assert "file: the server answered 404 for http://127.0.0.1" in sentence(raised.value)
    assert len(server.asked) == 1
    assert nothing_left(tmp_path)


def test_second_address_is_tried_when_the_first_fails(server, tmp_path) -> None:
    server.files["/file"] = BODY
    urls = [f"{server.url}/elsewhere", f"{server.url}/file"]
    download.fetch(urls, tmp_path / "file", MD5, wait=0.01)
    assert (tmp_path / "file").read_bytes() == BODY


def test_no_network_is_said_with_what_to_do(tmp_path) -> None:
    with socket.socket() as free:  # a port that nobody listens on
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(download.DownloadError) as raised:
        download.fetch([f"http://127.0.0.1:{port}/file"], tmp_path / "file", MD5, wait=0.01)
    assert "cannot reach http://127.0.0.1" in sentence(raised.value)
    assert "check the network, or set DATA_MIRROR" in sentence(raised.value)
    assert nothing_left(tmp_path)


def test_silent_server_is_given_up(server, tmp_path) -> None:
    server.files["/file"] = BODY
    server.stalls.add("/file")
    with pytest.raises(download.DownloadError, match="truncated"):
        fetch(server, tmp_path / "file", attempts=1, timeout=(1.0, 0.2))
    assert nothing_left(tmp_path)


def test_killed_download_is_never_a_file_and_is_cleared_by_the_next(server, tmp_path) -> None:
    server.files["/file"] = BODY
    server.stalls.add("/file")
    target = tmp_path / "file"
    code = (
        "import sys; from pathlib import Path; from lib.data import download; "
        "download.fetch([sys.argv[1]], Path(sys.argv[2]), sys.argv[3])"
    )
    command = [sys.executable, "-c", code, f"{server.url}/file", str(target), MD5]
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        wait_for(lambda: any(p.stat().st_size for p in tmp_path.glob("file.*.part")))
    finally:
        process.kill()
        process.wait()
    assert not target.exists()
    assert len(list(tmp_path.iterdir())) == 1  # half a file, under its temporary name
    server.stalls.clear()
    fetch(server, target)
    assert target.read_bytes() == BODY
    assert list(tmp_path.iterdir()) == [target]


def wait_for(happened, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_archive_that_writes_outside_its_folder_is_refused(tmp_path) -> None:
    (tmp_path / "in").mkdir()
    archive = tmp_path / "in" / "a.tar.gz"
    archive.write_bytes(tar_of({"member/good": b"1", "../../evil": b"2"}))
    with pytest.raises(download.DownloadError, match="cannot be unpacked"):
        download.unpack(archive, "member", tmp_path / "in" / "member")
    assert not (tmp_path / "evil").exists()
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["a.tar.gz"]


@pytest.mark.parametrize("content", [b"not a tar", tar_of({"m/x": BODY})[:-300]])
def test_damaged_archive_is_refused(tmp_path, content) -> None:
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(download.DownloadError, match="cannot be unpacked"):
        download.unpack(tmp_path / "a.tar.gz", "m", tmp_path / "m")
    assert [p.name for p in tmp_path.iterdir()] == ["a.tar.gz"]


def test_archive_without_its_folder_is_refused(tmp_path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(tar_of({"other/x": b""}))
    with pytest.raises(download.DownloadError, match="holds no folder m"):
        download.unpack(tmp_path / "a.tar.gz", "m", tmp_path / "m")


@pytest.fixture
def tiny_sets(server, monkeypatch) -> tuple[download.PublicSet, ...]:
    """The four public sets with tiny contents, on the server; checksums patched where they are."""
    from sklearn.datasets import _california_housing as california
    from torchvision import datasets

    batches = {
        f"{cifar10.BATCHES}/{name}": pickle.dumps({"data": np.zeros((1, 3072)), "labels": [0]})
        for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]
    }
    archive = tar_of(batches)
    server.files["/cifar-10-python.tar.gz"] = archive
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(archive).hexdigest())
    md5s = {name: f"md5:{hashlib.md5(raw).hexdigest()}" for name, raw in batches.items()}
    monkeypatch.setattr(cifar10, "official", lambda: Expected(md5s, train=(5,), test=(1,)))
    for source in (datasets.MNIST, datasets.FashionMNIST):
        resources = []
        for name, _ in source.resources:
            raw = gzip.compress(struct.pack(">2I", 0x801, 1) + source.__name__.encode()[:1])
            server.files[f"/{source.__name__}/raw/{name}"] = raw
            resources.append((name, hashlib.md5(raw).hexdigest()))
        monkeypatch.setattr(source, "resources", resources)
    rows = "\n".join(",".join(["-122.0", "37.0", *"234567", f"{k}e5"]) for k in range(1, 4))
    table = tar_of({"CaliforniaHousing/cal_housing.data": rows.encode()})
    server.files["/cal_housing.tgz"] = table
    changed = california.ARCHIVE._replace(checksum=hashlib.sha256(table).hexdigest())
    monkeypatch.setattr(california, "ARCHIVE", changed)
    *others, housing = download.public_sets()
    return (*others, replace(housing, check=check_tiny_housing))


def check_tiny_housing(root: Path) -> str:
    from sklearn.datasets import fetch_california_housing

    try:
        return str(len(fetch_california_housing(data_home=root, download_if_missing=False).target))
    except OSError as error:
        raise download.MissingData("no housing") from error


def outcomes(root: Path, sets: tuple[download.PublicSet, ...], url: str) -> list[tuple[bool, str]]:
    found = download.fetch_sets(root, sets, mirror=url, wait=0.01)
    return [(outcome.ok, outcome.text) for outcome in found]


def test_public_sets_arrive_in_the_standard_layout_and_once(server, tiny_sets, tmp_path) -> None:
    root = tmp_path / "data"
    assert outcomes(root, tiny_sets, server.url + "/") == [
        (True, "downloaded and verified (original pixels)"),
        (True, "downloaded and verified (4 files)"),
        (True, "downloaded and verified (4 files)"),
        (True, "downloaded and verified (3)"),
    ]
    visible = sorted(p.name for p in root.iterdir() if not p.name.startswith("."))
    assert visible == ["FashionMNIST", "MNIST", "cal_housing_py3.pkz", "cifar-10-batches-py"]
    n_asked = len(server.asked)
    again = outcomes(root, tiny_sets, server.url)
    assert all(ok and text.startswith("already there and verified") for ok, text in again)
    assert len(server.asked) == n_asked == 10


def test_failing_set_does_not_stop_the_others(server, tiny_sets, tmp_path) -> None:
    del server.files["/cifar-10-python.tar.gz"]
    server.files["/MNIST/raw/t10k-labels-idx1-ubyte.gz"] += b"x"
    cifar, digits, fashion, housing = outcomes(tmp_path, tiny_sets, server.url)
    assert not cifar[0]
    assert "cifar-10-python.tar.gz: the server answered 404" in cifar[1]
    assert not digits[0]
    assert "t10k-labels-idx1-ubyte.gz: what" in digits[1]
    assert fashion[0]
    assert housing[0]


def test_set_that_another_process_fetches_is_left_to_it(server, tiny_sets, tmp_path) -> None:
    from filelock import FileLock

    with FileLock(tmp_path / f".{tiny_sets[0].name}.lock"):
        (found,) = outcomes(tmp_path, tiny_sets[:1], server.url)
    assert found == (False, "another process is fetching this set; wait for it")


def test_data_root_that_is_a_file_is_said(server, tiny_sets, tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for ok, text in outcomes(tmp_path / "file", tiny_sets[1:3], server.url):
        assert not ok
        assert text.startswith(f"cannot write in DATA_ROOT ({tmp_path / 'file'}): ")


def run_module(root: Path, mirror: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lib.data"],
        cwd=ROOT,
        env=os.environ | {"DATA_ROOT": str(root), "DATA_MIRROR": mirror},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_command_exits_1_with_one_sentence_per_failed_set(server, tmp_path) -> None:
    process = run_module(tmp_path, server.url)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" not in out + err
    lines = out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"FAIL  {name}" for name in ("CIFAR-10", "MNIST", "Fashion-MNIST", "California housing")
    ]
    assert all("the server answered 404" in line for line in lines)


def test_interrupted_command_exits_130_and_leaves_nothing(server, tmp_path) -> None:
    server.files["/cifar-10-python.tar.gz"] = BODY
    server.stalls.add("/cifar-10-python.tar.gz")
    process = run_module(tmp_path, server.url)
    try:
        wait_for(lambda: any(p.stat().st_size for p in tmp_path.glob("*.part")))
    finally:
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    assert "interrupted; what was whole is kept" in err
    assert nothing_left(tmp_path)
