"""The facts of a run (`run.json`): how long, when, of which code, with what, on which machine."""

from __future__ import annotations

import datetime
import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from lib.config import ROOT, cache_dir, machine

if TYPE_CHECKING:
    from lib.engine.run import Job

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "matplotlib", "papermill")
CODE = ("lib", "notebooks", "requirements.txt")


class CacheUse:
    """What a run takes from the cache, as `lib/cache.py` notes it in the file at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.unlink(missing_ok=True)
        self.before = _entries(cache_dir().with_name(cache_dir().name + ".log"))

    def saved_seconds(self) -> float:
        """Seconds that building the entries which were there already had taken."""
        used = _entries(self.path)
        return sum(seconds for key, seconds in used.items() if key in self.before)


def _entries(path: Path) -> dict[tuple[str, str], float]:
    """(kind, key) -> seconds, of lines "built <kind> <key> <seconds>"; half a line is left out."""
    if not path.is_file():
        return {}
    lines = [line.split() for line in path.read_text().splitlines()]
    return {(words[1], words[2]): float(words[3]) for words in lines if len(words) == 4}


def collect(job: Job, seconds: float, cold_seconds: float) -> dict[str, object]:
    """Everything a reader needs to judge or repeat the run; no path and no name of this machine."""
    request = job.request
    ledger = ROOT / "lib" / "ledger" / f"part{job.name[0]}.toml"
    return {
        "notebook": job.name,
        "profile": request.profile,
        "seed": request.seed,
        "params": dict(request.values),
        "seconds": round(seconds, 1),
        "cold_seconds": round(cold_seconds, 1),
        "date": datetime.date.today().isoformat(),
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--", *CODE)),
        "device": device(request.device, request.profile),
        "versions": versions(),
        "blobs": {"notebook": blob_id(job.source), "ledger": blob_id(ledger)},
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide results; absent ones are left out."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def device(asked: str, profile: str) -> str:
    """The processor or GPU that the notebook ran on, by the rule of `config.resolve`."""
    if asked == "cpu" or (asked == "auto" and profile == "quick"):
        return machine()
    import torch

    if not torch.cuda.is_available():
        return machine()
    index = int(asked.partition(":")[2] or 0)
    return f"{torch.cuda.get_device_name(index)}, {machine()}"


def blob_id(path: Path) -> str | None:
    """What git calls this content; None for an absent file."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _git(*arguments: str) -> str | None:
    """Output of a git command; None without git or outside a repository."""
    try:
        done = subprocess.run(
            ("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
