"""Makes the environment, once: `python3 lib/engine/setup.py [folder] [lock file]`.

Steps: `python -m venv`, uv by pip, `uv pip sync` of the hash-pinned lock; then the stamp
`.complete`, last, so that a half-made folder is never taken for a good one. One process works at
a time. Whatever goes wrong ends in one sentence and exit code 1.

Standard library only, and no syntax or annotation newer than Python 3.6: an interpreter that is
too old must get as far as saying so.
"""

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import List

OLDEST = (3, 11)
GIB = 1 << 30
NEEDED_GIB = {"linux": 8, "darwin": 3}  # measured: 6.2 on Linux, where torch brings CUDA
STAMP = ".complete"
NO_NETWORK = re.compile(
    r"Failed to establish a new connection|Temporary failure in name resolution|Name or service "
    r"not known|nodename nor servname|Connection refused|Network is unreachable|dns error|"
    r"error sending request|tcp connect error|Connection reset|timed out|ConnectTimeout|"
    r"ProxyError|Failed to fetch|No matching distribution found",  # pip's last word when offline
    re.IGNORECASE,
)
NO_SPACE = re.compile(r"No space left on device|os error 28|Disk quota exceeded", re.IGNORECASE)
NO_HASH = re.compile(r"THESE PACKAGES DO NOT MATCH THE HASHES|Hash mismatch", re.IGNORECASE)
NO_VENV = re.compile(
    r"ensurepip is not available|No module named '?(venv|ensurepip)", re.IGNORECASE
)


class SetupError(Exception):
    """The environment cannot be made; the message is the sentence for the user."""


def stamp_text(folder: str, lock_file: str) -> str:
    """What a finished environment says of itself: of which lock, where, with which Python."""
    with open(lock_file, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    with open(os.path.join(folder, "pyvenv.cfg")) as file:
        made_with = " ".join(line.strip() for line in file if line.startswith(("home", "version")))
    return "{}\n{}\n{}\n".format(digest, os.path.realpath(folder), made_with)


def state(folder: str, lock_file: str) -> str:
    """One of "ready", "outdated" (another lock), "unfinished" (made anew) and "absent"."""
    if not os.path.isdir(folder) or not os.listdir(folder):
        return "absent"
    try:
        with open(os.path.join(folder, STAMP)) as file:
            stored = file.read()
        wanted = stamp_text(folder, lock_file)
    except OSError:
        return "unfinished"
    python_works = os.path.exists(interpreter(folder))  # a dangling link once its Python is gone
    if stored.split("\n")[1:] != wanted.split("\n")[1:] or not python_works:
        return "unfinished"
    return "ready" if stored == wanted else "outdated"


def interpreter(folder: str) -> str:
    """The environment's own Python."""
    return os.path.join(folder, "bin", "python")


def explain(output: str) -> str:
    """The sentence for a failed command, from what it printed."""
    if NO_SPACE.search(output):
        return "the disk is full; free some space and run the same command again"
    if NO_VENV.search(output):
        return (
            "this Python has no venv module; install it (on Debian and Ubuntu the package "
            "python3-venv) and run the same command again"
        )
    if NO_HASH.search(output):
        return (
            "a downloaded package does not match its hash in the lock, so it was not installed; "
            "run the same command again, and if it recurs look at your package index"
        )
    if NO_NETWORK.search(output):
        return (
            "the packages could not be downloaded; connect to the network (or set PIP_INDEX_URL "
            "and UV_DEFAULT_INDEX to an index that can be reached) and run the same command again"
        )
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return "a command failed, saying: {}".format(lines[-1] if lines else "nothing")


def check_python() -> None:
    """Refuse an interpreter that the lock has no packages for."""
    if sys.version_info[:2] < OLDEST:
        raise SetupError(
            "Python {}.{} or newer is needed, and {} is {}.{}; name another one, for example "
            "`make figures PYTHON=python3.12`".format(
                OLDEST[0], OLDEST[1], sys.executable, sys.version_info[0], sys.version_info[1]
            )
        )


def check_space(folder: str, needed: float = NEEDED_GIB.get(sys.platform, 8)) -> None:
    """Refuse to start what cannot be finished."""
    parent = os.path.dirname(os.path.abspath(folder))
    free = shutil.disk_usage(parent).free
    if free < needed * GIB:
        raise SetupError(
            "the disk is full: the environment needs {} GiB in {}, where {:.1f} GiB are free; free "
            "some space and run the same command again".format(needed, parent, free / float(GIB))
        )


def check_ours(folder: str) -> None:
    """Only a folder of this project is ever cleared."""
    root = os.path.realpath(os.path.join(os.path.dirname(__file__), "..", ".."))
    if os.path.dirname(os.path.realpath(folder)) != root:
        raise SetupError(
            "{} holds no finished environment of this lock, and is not this project's to clear; "
            "name a new folder, or leave VENV away".format(folder)
        )


class Lock:
    """Exclusive right to work on one environment; the commands it starts hold it too."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "a+")  # noqa: SIM115  held as long as this process lives

    def acquire(self) -> None:
        """Wait for the owner, naming it."""
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.file.seek(0)
            alive = [pid for pid in self.file.read().split() if _is_alive(pid)]
            say("waiting for process {}, which is making it".format((alive or ["unknown"])[-1]))
            fcntl.flock(self.file, fcntl.LOCK_EX)
        self.note(os.getpid())

    def note(self, *pids: int) -> None:
        """Say who holds the lock."""
        self.file.seek(0)
        self.file.truncate()
        self.file.write(" ".join(str(pid) for pid in pids))
        self.file.flush()

    def call(self, *command: str) -> None:
        """Run a command that keeps the lock even if this process is killed."""
        with tempfile.TemporaryFile() as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=(self.file.fileno(),),
            )
            self.note(os.getpid(), process.pid)
            try:
                status = process.wait()
            except BaseException:
                process.terminate()
                process.wait()
                raise
            output.seek(0)
            text = output.read().decode("utf-8", "replace")
        if status != 0:
            raise SetupError(explain(text))


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (OSError, ValueError):
        return False
    return True


def say(text: str) -> None:
    """One line on the terminal."""
    print("setup  {}".format(text), flush=True)


def pinned(lock_file: str, name: str) -> str:
    """The lines of the lock that pin one package, hashes included."""
    with open(lock_file) as file:
        block = re.search(
            r"^{}==(?:.*\\\n)*.*\n?".format(re.escape(name)), file.read(), re.MULTILINE
        )
    if block is None:
        raise SetupError("{} does not pin {}; compile it again".format(lock_file, name))
    return block.group(0)


def install(folder: str, lock_file: str, lock: Lock) -> None:
    """Bring an environment to what the lock says, and stamp it."""
    python = interpreter(folder)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(pinned(lock_file, "uv"))
        file.flush()
        pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        lock.call(*pip, "--require-hashes", "--no-deps", "-r", file.name)
    uv = (python, "-m", "uv", "pip", "sync", "--quiet", "--require-hashes")
    lock.call(*uv, "--python", python, lock_file)
    text = stamp_text(folder, lock_file)
    temporary = os.path.join(folder, STAMP + ".part")
    with open(temporary, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, os.path.join(folder, STAMP))


def make(folder: str, lock_file: str) -> None:
    """Make or renew the environment, unless another process has done so meanwhile."""
    check_python()
    if not os.path.isdir(folder):  # the lock lies beside it, so the parent must be there
        os.makedirs(os.path.dirname(os.path.abspath(folder)), exist_ok=True)
    lock = Lock(folder.rstrip("/") + ".lock")
    lock.acquire()
    found, started = state(folder, lock_file), time.time()
    if found == "ready":
        return
    if found == "outdated":
        say("{} is renewed: {} changed".format(folder, lock_file))
        os.unlink(os.path.join(folder, STAMP))
    else:
        if found == "unfinished":
            check_ours(folder)
            say("{} was not finished or has moved; it is made again".format(folder))
            shutil.rmtree(folder)
        check_space(folder)
        say("making {} (once; a minute or more, most of it the download)".format(folder))
        lock.call(sys.executable, "-m", "venv", "--clear", folder)
    install(folder, lock_file, lock)
    say("done in {:.0f} s".format(time.time() - started))


def main(arguments: List[str]) -> int:
    """Exit code: 0 ready, 1 impossible, 130 interrupted."""
    folder = arguments[0] if arguments else ".venv"
    lock_file = arguments[1] if len(arguments) > 1 else "requirements.txt"
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        is_conda = os.path.isdir(os.path.join(folder, "conda-meta"))  # made by environment.yml
        if not is_conda and state(folder, lock_file) != "ready":
            make(folder, lock_file)
    except SetupError as error:
        print("setup: {}".format(error), file=sys.stderr)
        return 1
    except OSError as error:
        print("setup: {}".format(explain("{}: {}".format(folder, error))), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; the same command starts again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
