"""The cache under kills, races, damaged files and folders that cannot be written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from torch import Tensor
from torch.testing import assert_close

from lib import cache
from lib.config import ROOT

CODE = [cache.state_hash]
KEY = cache.key_of("toy", {"n": 1}, CODE)
VALUE = torch.arange(50.0)

# A process that leaves a mark when it builds, and ends building once there is a file `go`.
SCRIPT = """
import os, sys, time
import filelock, safetensors.torch, torch
from lib import cache
cache.WAIT_SECONDS = 0.3

def build():
    open({marks!r} + "/built." + str(os.getpid()), "w").close()
    while not os.path.exists({marks!r} + "/go"):
        time.sleep(0.02)
    return {{"x": torch.arange(50.0)}}

print("ready", flush=True)
sys.stdin.readline()
got = cache.fetch("toy", {{"n": 1}}, build, code=[cache.state_hash])
print(got["x"].sum().item(), flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test alone."""
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "build" / "cache"))
    monkeypatch.delenv("CACHE_USE_LOG", raising=False)
    return tmp_path / "build" / "cache"


def fetch(build: Callable[[], dict[str, Tensor]] | None = None) -> Tensor:
    """The toy entry."""
    return cache.fetch("toy", {"n": 1}, build or (lambda: {"x": VALUE}), code=CODE)["x"]


def entry(folder: Path) -> Path:
    return folder / f"toy-{KEY}.safetensors"


def built(folder: Path) -> int:
    """Lines of the log."""
    log = folder.parent / "cache.log"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def start(folder: Path) -> subprocess.Popen[str]:
    """A process ready to fetch the toy entry; a line on its stdin lets it go."""
    script = textwrap.dedent(SCRIPT.format(marks=str(folder.parent.parent)))
    return subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def release(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()


def until(condition: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_two_processes_build_once_and_the_waiting_one_names_the_other(folder: Path):
    marks = folder.parent.parent
    first, second = start(folder), start(folder)
    release(first)
    until(lambda: list(marks.glob("built.*")))
    release(second)
    assert second.stderr is not None
    said = second.stderr.readline()  # the first goes on building until the second has spoken
    assert said == f"waiting for process {first.pid}, which is building toy {KEY}\n"
    (marks / "go").touch()
    out, err = second.communicate(timeout=60)
    first_out, first_err = first.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert out == first_out == "1225.0\n"
    assert (first_err, err) == ("", "")
    assert len(list(marks.glob("built.*"))) == 1
    assert built(folder) == 1


def test_a_process_killed_while_it_builds_leaves_nothing_in_the_way(
    folder: Path, capsys: pytest.CaptureFixture[str]
):
    process = start(folder)
    release(process)
    until(lambda: list(folder.parent.parent.glob("built.*")))
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert not entry(folder).exists()
    assert built(folder) == 0
    assert_close(fetch(), VALUE)
    assert built(folder) == 1
    assert capsys.readouterr().err == ""  # the lock died with its owner: nobody to wait for
    assert not list(folder.glob("*.pid"))


def test_a_kill_between_file_and_log_line_is_made_good_without_building(folder: Path):
    fetch()
    log = folder.parent / "cache.log"
    log.unlink()
    assert_close(fetch(pytest.fail), VALUE)  # type: ignore[arg-type]
    assert built(folder) == 1
    assert_close(fetch(pytest.fail), VALUE)  # type: ignore[arg-type]
    assert built(folder) == 1


def test_a_half_written_file_is_never_read_and_goes(folder: Path):
    folder.mkdir(parents=True)
    part = entry(folder).with_suffix(".4194305.part")  # above the largest process id
    part.write_bytes(b"half")
    assert_close(fetch(), VALUE)
    assert not part.exists()
    assert built(folder) == 1


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-10] ^= 1
    path.write_bytes(bytes(data))


def foreign(path: Path) -> None:
    path.write_bytes(b"not a tensor in sight " * 20)


def unsigned(path: Path) -> None:
    """A sound safetensors file that the cache did not write."""
    from safetensors.torch import save_file

    save_file({"x": VALUE}, path)


def exchanged(path: Path) -> None:
    """The sound entry of another key under this name."""
    cache.fetch("toy", {"n": 2}, lambda: {"x": -VALUE}, code=CODE)
    other = path.with_name(f"toy-{cache.key_of('toy', {'n': 2}, CODE)}.safetensors")
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (truncate, "cannot be read"),
        (empty, "cannot be read"),
        (flip, "does not match its checksum"),
        (foreign, "cannot be read"),
        (unsigned, "does not match its checksum"),
        (exchanged, "holds another entry"),
    ],
)
def test_a_bad_file_is_reported_kept_and_rebuilt(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    sentence: str,
):
    fetch()
    damage(entry(folder))
    spoilt, lines = entry(folder).read_bytes(), built(folder)
    assert_close(fetch(), VALUE)
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert sentence in err
    bad = entry(folder).with_suffix(".bad")
    assert err.endswith(f"kept as {bad.name}, building it again\n")
    assert bad.read_bytes() == spoilt
    assert built(folder) == lines  # one line a key, however often it was built
    assert_close(fetch(pytest.fail), VALUE)  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""


def test_a_bad_file_is_touched_only_by_the_owner_of_its_lock(folder: Path):
    """Or a process that read it while another rebuilt it would set the sound file aside."""
    fetch()
    sound = entry(folder).read_bytes()
    flip(entry(folder))
    lock = FileLock(entry(folder).with_suffix(".lock"))
    with lock:
        process = start(folder)
        release(process)
        assert process.stderr is not None
        assert process.stderr.readline().startswith("waiting for process ")
        assert entry(folder).is_file()
        assert not entry(folder).with_suffix(".bad").exists()
        entry(folder).write_bytes(sound)  # rebuilt by us
    assert process.communicate(timeout=60) == ("1225.0\n", "")
    assert not list(folder.parent.parent.glob("built.*"))
    assert not entry(folder).with_suffix(".bad").exists()


def test_a_failing_build_says_its_own_error_and_can_be_tried_again(folder: Path):
    def fails() -> dict[str, Tensor]:
        raise FileNotFoundError("no such image")

    with pytest.raises(FileNotFoundError, match="no such image"):
        fetch(fails)
    assert built(folder) == 0
    assert_close(fetch(), VALUE)
    assert built(folder) == 1


def test_a_folder_that_is_a_file_is_one_sentence(folder: Path):
    folder.parent.mkdir()
    folder.write_text("in the way")
    with pytest.raises(OSError, match="set CACHE_DIR to a folder that can be written") as caught:
        fetch()
    assert str(caught.value).startswith(f"cannot write the cache entry toy-{KEY} in {folder}: ")
    assert "\n" not in str(caught.value)


def test_a_full_disk_is_one_sentence_and_leaves_no_part(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "replace", full)
        with pytest.raises(OSError, match="No space left on device; free some space"):
            fetch()
    assert [p.suffix for p in folder.iterdir() if p.suffix != ".lock"] == []
    assert built(folder) == 0
    assert_close(fetch(), VALUE)


def test_a_cache_that_holds_the_entry_needs_no_writing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    fetch()
    before = {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache.os, "replace", refused)
    monkeypatch.setattr(Path, "write_text", refused)
    monkeypatch.setattr(Path, "mkdir", refused)
    assert_close(fetch(pytest.fail), VALUE)  # type: ignore[arg-type]
    assert {p.name: p.stat().st_mtime_ns for p in folder.iterdir()} == before
