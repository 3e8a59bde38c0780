"""Where a run's sizes, seed, device and folders come from.

Profiles are data: `lib.profiles` gives every size of every notebook for `quick` (embedded data,
two CPU threads, deterministic), `full` (real data) and `paper` (the documents' own, where known).
No other file asks which profile is running; it reads `run.size`.

Imports the standard library only, so that the engine can use it without loading torch.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from lib.profiles import NO_PAPER, SIZES

ROOT = Path(__file__).resolve().parents[1]
PROFILES = ("quick", "full", "paper")
THREADS_AT_QUICK = 2  # fixed, because sums over more threads round differently


@dataclass(frozen=True)
class Run:
    """One execution of one notebook: what to run, how large, where results go."""

    notebook: str
    profile: str
    seed: int
    device: str  # "cpu", "cuda" or "cuda:<k>"
    data_root: Path
    figures_dir: Path  # <FIGURES_DIR>/<profile>/<notebook>
    size: SimpleNamespace  # the sizes of this notebook at this profile, overrides applied

    def __str__(self) -> str:
        return f"{self.notebook}: profile {self.profile}, seed {self.seed}, device {self.device}"


def data_root() -> Path:
    """Folder of the real data: `DATA_ROOT`, else a per-user cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "reference-companion"
    return Path(os.environ.get("DATA_ROOT") or default).expanduser().resolve()


def cache_dir() -> Path:
    """Folder of trained models and other costly results: `CACHE_DIR`, else `build/cache`."""
    return Path(os.environ.get("CACHE_DIR") or ROOT / "build" / "cache").expanduser().resolve()


def figures_root() -> Path:
    """Folder that figures, tables and claims are written below: `FIGURES_DIR`, else `figures`."""
    return Path(os.environ.get("FIGURES_DIR") or ROOT / "figures").expanduser().resolve()


def resolve(
    notebook: str,
    profile: str = "auto",
    seed: int = 0,
    device: str = "auto",
    **overrides: object,
) -> Run:
    """Turn a notebook's parameters into a `Run`.

    Args:
        notebook: its file name without the suffix, as in `SIZES`.
        profile: quick, full or paper; auto reads the environment variable PROFILE, else quick.
        seed: base seed; run k of several uses seed + k.
        device: auto, cpu, cuda or cuda:<k>; auto reads DEVICE, else is the CPU at `quick` and a
            GPU, if there is one, otherwise.
        **overrides: sizes to replace; -1 and "" mean "as the profile says".

    Raises:
        ValueError: unknown notebook, profile, device or size; or a GPU asked for and absent.
    """
    profile = _choose(profile, "PROFILE", "quick")
    if profile not in PROFILES:
        raise ValueError(f"PROFILE is one of {', '.join(PROFILES)}; got {profile!r}")
    if notebook not in SIZES:
        raise ValueError(f"no sizes for notebook {notebook!r}; known: {', '.join(sorted(SIZES))}")
    if profile not in SIZES[notebook]:
        known = ", ".join(SIZES[notebook])
        why = f": {NO_PAPER[notebook]}" if profile == "paper" and notebook in NO_PAPER else ""
        raise ValueError(f"{notebook} has no profile {profile!r}{why}; it runs at {known}")
    size = dict(SIZES[notebook][profile])
    for name, value in overrides.items():
        if name not in size:
            raise ValueError(f"{notebook} has no size {name!r}; it has {', '.join(sorted(size))}")
        if value not in (-1, ""):
            size[name] = value
    return Run(
        notebook=notebook,
        profile=profile,
        seed=int(seed),
        device=_device(_choose(device, "DEVICE", "auto"), profile),
        data_root=data_root(),
        figures_dir=figures_root() / profile / notebook,
        size=SimpleNamespace(**size),
    )


def _choose(value: str, variable: str, default: str) -> str:
    return value if value != "auto" else os.environ.get(variable) or default


def _device(device: str, profile: str) -> str:
    import torch

    if profile == "quick":
        torch.set_num_threads(THREADS_AT_QUICK)
    if device == "auto":
        return "cuda" if profile != "quick" and torch.cuda.is_available() else "cpu"
    kind, _, index = device.partition(":")
    if kind not in ("cpu", "cuda") or (index and (kind == "cpu" or not index.isdigit())):
        raise ValueError(f"DEVICE is auto, cpu, cuda or cuda:<k>; got {device!r}")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(f"DEVICE={device} was asked for, but torch sees no such GPU; use cpu")
    return device


def machine() -> str:
    """The processor or GPU in words, for provenance: "AMD EPYC, 2 cores"."""
    model = "CPU"
    cpuinfo = Path("/proc/cpuinfo")
    if sys.platform == "linux" and cpuinfo.is_file():
        lines = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = lines[0].partition(":")[2].strip() if lines else model
    return f"{model}, {os.cpu_count()} cores"
