"""Making the environment: whatever goes wrong is one sentence, and nothing half-made stays."""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lib.engine import setup

ROOT = Path(__file__).resolve().parents[2]
CLOSED = "http://127.0.0.1:9/simple"  # the discard port: nobody answers
OFFLINE = {
    "PIP_INDEX_URL": CLOSED,
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_RETRIES": "0",
    "UV_DEFAULT_INDEX": CLOSED,
    "UV_HTTP_RETRIES": "0",
    "UV_NO_CACHE": "1",
    "UV_NO_CONFIG": "1",
}
NOT_INHERITED = ("MAKEFLAGS", "MAKELEVEL", "PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "UV_INDEX")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The Makefile, the lock and setup.py, without an environment."""
    root = tmp_path / "project"
    (root / "lib" / "engine").mkdir(parents=True)
    for name in ("Makefile", "requirements.txt", "lib/engine/setup.py"):
        shutil.copy(ROOT / name, root / name)
    return root


def make(project: Path, *words: str, **environment: str) -> tuple[int, str]:
    """Run `make figures`; exit code and what it printed, which is never a traceback."""
    kept = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
    done = subprocess.run(
        ["make", "figures", *words],
        cwd=project,
        env=kept | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stdout, done.stdout
    return done.returncode, done.stdout


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def finished(folder: Path, lock_file: Path) -> None:
    """Give a folder everything by which a finished environment is known."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "bin" / "python").touch()
    (folder / "pyvenv.cfg").write_text("home = /somewhere\nversion = 3.11.0\n")
    (folder / setup.STAMP).write_text(setup.stamp_text(str(folder), str(lock_file)))


def test_setup_parses_under_an_old_python():
    ast.parse((ROOT / "lib/engine/setup.py").read_text(), feature_version=(3, 6))


def test_an_old_python_is_named(project):
    pretend = f"""#!{sys.executable}
import runpy, sys
sys.version_info = (3, 8, 10, "final", 0)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    old = script(project / "python3.8", pretend)
    status, output = make(project, f"PYTHON={old}")
    assert status == 2
    assert "setup: Python 3.11 or newer is needed, and " in output
    assert " is 3.8; name another one" in output
    assert not (project / ".venv").exists()


def test_no_python_at_all_is_one_sentence(project):
    status, output = make(project, "PYTHON=python-nowhere")
    assert status == 2
    assert "setup: there is no python-nowhere; install Python 3.11 or newer" in output


def test_no_venv_module_is_one_sentence(project):
    bare = f"""#!/bin/sh
case "$*" in
  "-m venv"*) echo "The environment was not created: ensurepip is not available." >&2; exit 1;;
  *) exec {sys.executable} "$@";;
esac
"""
    pretend = f"""#!{sys.executable}
import runpy, sys
sys.executable = {str(script(project / "bare", bare))!r}
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    status, output = make(project, f"PYTHON={script(project / 'python3', pretend)}")
    assert status == 2
    assert "setup: this Python has no venv module; install it" in output


def test_no_network_is_one_sentence_and_what_is_half_made_is_made_again(project):
    words = [f"PYTHON={sys.executable}"]
    status, output = make(project, *words, **OFFLINE)
    assert status == 2
    assert "setup: the packages could not be downloaded; connect to the network" in output
    assert (project / ".venv" / "bin" / "python").exists()
    assert not (project / ".venv" / setup.STAMP).exists()
    status, output = make(project, *words, **OFFLINE)
    assert status == 2
    assert "setup  .venv was not finished or has moved; it is made again" in output


def test_uv_without_network_is_the_same_sentence(tmp_path, monkeypatch):
    for name, value in OFFLINE.items():
        monkeypatch.setenv(name, value)
    lock = setup.Lock(str(tmp_path / "lock"))
    lock.acquire()
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("tqdm==4.67.1\n")
    uv = (sys.executable, "-m", "uv", "pip", "install", "--target", str(tmp_path / "target"))
    with pytest.raises(setup.SetupError, match="the packages could not be downloaded"):
        lock.call(*uv, "-r", str(wanted))


def test_too_little_space_is_found_before_anything_is_written(project):
    (project / "disk").mkdir()
    words = f"PYTHON={sys.executable} VENV=disk/.venv"
    inner = f"mount -t tmpfs -o size=8m none disk && make figures {words}"
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine allows no private mount, so no small disk can be made")
    kept = {k: v for k, v in os.environ.items() if k not in NOT_INHERITED}
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", inner],
        cwd=project,
        env=kept,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert "setup: the disk is full: the environment needs " in done.stderr
    assert "where 0.0 GiB are free" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_disk_that_fills_up_midway_is_the_same_sentence(tmp_path):
    lock = setup.Lock(str(tmp_path / "lock"))
    lock.acquire()
    with pytest.raises(setup.SetupError, match="the disk is full; free some space"):
        lock.call("bash", "-c", "echo package > /dev/full")


def test_a_folder_that_is_not_ours_is_never_cleared(project, tmp_path):
    precious = tmp_path / "other"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    status, output = make(project, f"PYTHON={sys.executable}", f"VENV={precious}")
    assert status == 2
    assert "is not this project's to clear; name a new folder, or leave VENV away" in output
    assert (precious / "thesis.txt").exists()


def test_only_a_matching_stamp_counts_as_ready(tmp_path):
    folder, lock_file = tmp_path / ".venv", tmp_path / "requirements.txt"
    lock_file.write_text("uv==1\n")
    names = (str(folder), str(lock_file))
    assert setup.state(*names) == "absent"
    finished(folder, lock_file)
    assert setup.state(*names) == "ready"

    lock_file.write_text("uv==2\n")
    assert setup.state(*names) == "outdated"
    (folder / setup.STAMP).unlink()
    assert setup.state(*names) == "unfinished"

    finished(folder, lock_file)
    (folder / "bin" / "python").unlink()  # as when the Python it was made with is removed
    assert setup.state(*names) == "unfinished"

    finished(folder, lock_file)
    moved = folder.rename(tmp_path / "moved")
    assert setup.state(str(moved), str(lock_file)) == "unfinished"


def test_a_finished_environment_is_recognised_without_starting_anything(tmp_path, monkeypatch):
    folder, lock_file = tmp_path / ".venv", tmp_path / "requirements.txt"
    shutil.copy(ROOT / "requirements.txt", lock_file)
    finished(folder, lock_file)
    for name in ("run", "Popen"):
        monkeypatch.setattr(subprocess, name, lambda *a, **k: pytest.fail(f"started {a}"))
    assert setup.main([str(folder), str(lock_file)]) == 0


HOLDER = """
import sys, time
from lib.engine import setup
lock = setup.Lock(sys.argv[1] + ".lock")
lock.acquire()
print("held", flush=True)
lock.call("sleep", sys.argv[2])
"""


def hold(folder: Path, seconds: float) -> subprocess.Popen[str]:
    """Another process that works on the environment for a while."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), str(seconds)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def wait_for(folder: Path) -> tuple[float, str]:
    """Take the lock that `hold` holds: seconds it took, what was said."""
    code = "import sys; from lib.engine import setup; setup.Lock(sys.argv[1]).acquire()"
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, f"{folder}.lock"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    return time.monotonic() - started, done.stdout


def test_a_live_owner_is_named_and_waited_for(tmp_path):
    folder = tmp_path / ".venv"
    process = hold(folder, 2)
    while len(Path(f"{folder}.lock").read_text().split()) < 2:
        time.sleep(0.02)
    pids = Path(f"{folder}.lock").read_text().split()
    seconds, said = wait_for(folder)
    assert seconds > 0.5
    assert said == f"setup  waiting for process {pids[-1]}, which is making it\n"
    process.wait()
    assert wait_for(folder)[1] == ""


def test_what_a_killed_setup_has_started_keeps_the_lock(tmp_path):
    folder = tmp_path / ".venv"
    process = hold(folder, 2)
    while len(Path(f"{folder}.lock").read_text().split()) < 2:
        time.sleep(0.02)
    child = Path(f"{folder}.lock").read_text().split()[1]
    process.send_signal(signal.SIGKILL)
    process.wait()
    seconds, said = wait_for(folder)
    assert seconds > 0.3
    assert f"waiting for process {child}" in said


def test_an_interrupt_is_one_sentence(project):
    slow = script(
        project / "slow", f'#!/bin/sh\n[ "$1" = -m ] && exec sleep 60\nexec {sys.executable} "$@"\n'
    )
    code = f"import sys; sys.executable = {str(slow)!r}; "
    code += "sys.path.insert(0, 'lib/engine'); import setup; "
    process = subprocess.Popen(
        [sys.executable, "-c", code + "sys.exit(setup.main([]))"],
        cwd=project,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    while " " not in (lock.read_text() if (lock := project / ".venv.lock").exists() else ""):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "setup: interrupted; the same command starts again" in output
    assert "Traceback" not in output


def test_the_lock_names_neither_an_index_nor_a_path():
    text = (ROOT / "requirements.txt").read_text()
    assert "://" not in text
    assert not any(line.startswith(("-", "/", ".")) for line in text.splitlines())
    pins = [line for line in text.splitlines() if "==" in line and not line.startswith((" ", "#"))]
    assert len(pins) > 100
    assert text.count("--hash=sha256:") >= len(pins)
