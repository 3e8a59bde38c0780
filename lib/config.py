"""Where a run's sizes, seed, device and folders come from.

Profiles are data: `SIZES` gives every size of every notebook for `quick` (embedded data, two CPU
threads, deterministic), `full` (real data) and `paper` (the documents' own sizes, where known).
No other file asks which profile is running; it reads `run.size`.

Imports the standard library only, so that the engine can use it without loading torch.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

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


# why a notebook cannot run at the document's own size
NO_PAPER: dict[str, str] = {
    "11_concept_presence": (
        "the document's networks, its 10% of ImageNet (ILSVRC 2012, by agreement with its owners) "
        "and its concept images are not published as files that could be loaded"
    ),
    "41_influence_functions": (
        "`full` is the studies' own data and protocol as far as they are published; the networks "
        "and the dog and fish images of the kernel comparison are not"
    ),
    "42_debugging_with_influence": (
        "the studies' spam, hospital and dog and fish data, and their Inception network, are not "
        "part of this project; their numbers stand beside ours"
    ),
    "43_datamodels": (
        "the document's study trains 300,000 networks on half of CIFAR-10; its stored outputs are "
        "not part of this project"
    ),
    "45_trak_and_lds": (
        "the studies' thousands of ResNet-9 and BERT trainings are hundreds of hours "
        "of a data-centre GPU; their published points stand in the figures"
    ),
    "51_tabular": "`full` already is the document's table at the document's size",
}

SIZES: dict[str, dict[str, dict[str, object]]] = {
    "00_start_here": {"quick": {}, "full": {}, "paper": {}},
    "11_concept_presence": {
        "quick": {
            "data": "digits",
            "network": "mlp",
            "n_models": 20,
            "epochs": 30,
            "batch_size": 50,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "schedule": "linear",
            "augment": "none",
            "precision": "float32",
            "layers": ("hidden1", "hidden2"),
            "concepts": ("round", "hilo-synthetic"),
            "grid": (1, 2, 4, 8, 16, 32),
            "n_control_seeds": 5,
            "n_resamples": 20,
        },
        "full": {
            "data": "cifar10",
            "network": "resnet20",
            "n_models": 5,
            "epochs": 4,
            "batch_size": 128,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "schedule": "triangular",
            "augment": "flip_crop",
            "precision": "bfloat16",
            "layers": ("layer1.0.conv2", "layer1", "layer2", "layer3"),
            "concepts": ("animal", "unseen-classes", "hilo-natural"),
            "grid": (1, 2, 4, 8, 16, 32, 64),
            "n_control_seeds": 5,
            "n_resamples": 20,
        },
    },
    "51_tabular": {
        "quick": {
            "worlds": ("shared", "independent"),
            "n_models": 4,
            "epochs": 20,
            "n_table": 6000,
            "rho": 0.7,
            "n_rows": 100,
            "lambdas": (0.01, 0.05, 0.25),
            "n_path_rows": 20,
            "study": {
                "rhos": (0.0, 0.3, 0.6, 0.9),
                "alpha": 0.5,
                "n_seeds": 3,
                "n": 800,
                "n_rows": 32,
                "epochs": 20,
            },
        },
        "full": {
            "worlds": ("real", "shared", "independent"),
            "n_models": 10,
            "epochs": 12,
            "n_table": 20640,
            "rho": 0.7,
            "n_rows": 200,
            "lambdas": (0.01, 0.05, 0.25),
            "n_path_rows": 40,
            "study": {
                "rhos": (0.0, 0.3, 0.6, 0.9),
                "alpha": 0.5,
                "n_seeds": 10,
                "n": 2000,
                "n_rows": 64,
                "epochs": 40,
            },
        },
    },
    "41_influence_functions": {
        "quick": {
            "data": "digits",
            "n_targets": 300,
            "lambdas": (0.01, 0.001, 0.0001),
            "multinomial": {"n": 1000, "lam": 0.01, "n_removed": 500},
            "lissa": {"scale": 10.0, "depth": 5000, "batch": 10, "repeats": 2},
            "network": {"n": 500, "channels": 8, "lam": 0.001, "damping": 0.01, "n_removed": 24},
            "hinge": {"classes": (1, 7), "lam": 0.01, "n_removed": 100},
            "temperatures": (0.0, 0.001, 0.1),
            "groups": {"lam": 0.001, "n_random": 30, "n_coherent": 20},
            "shares": (0.01, 0.1, 0.3, 0.5),
            "kernel": {"classes": (4, 9), "n_targets": 60},
        },
        "full": {
            "data": "mnist",
            "n_targets": 300,
            "lambdas": (0.01, 0.001, 0.0001),
            "multinomial": {"n": 5000, "lam": 0.01, "n_removed": 100},
            "lissa": {"scale": 50.0, "depth": 30000, "batch": 10, "repeats": 2},
            "network": {"n": 500, "channels": 8, "lam": 0.001, "damping": 0.01, "n_removed": 20},
            "hinge": {"classes": (1, 7), "lam": 0.01, "n_removed": 100},
            "temperatures": (0.0, 0.001, 0.1),
            "groups": {"lam": 0.001, "n_random": 30, "n_coherent": 20},
            "shares": (0.01, 0.1, 0.3, 0.5),
            "kernel": {"classes": (4, 9), "n_targets": 60},
        },
    },
    "42_debugging_with_influence": {
        "quick": {
            "data": "digits",
            "mislabels": {
                "side": 8,
                "n": 1000,
                "n_test": 797,
                "lam": 0.01,
                "flips": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
                "checks": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
                "n_seeds": 40,
            },
            "penalties": {"lambdas": (0.01, 0.001, 0.0001), "n_seeds": 10},
            "settings": ("digits_mlp",),
            "networks": {"n_networks": 8, "damping": 0.1},
            # rows a weight: 56; the published study has 157. sides: that of the claim first
            "mismatch": {"n": 1000, "n_test": 300, "lam": 1e-4, "n_draws": 20},
            "sides": (4, 8),
            "bottom": {"kind": "random", "n_features": 500},
            "top": {"n": 1000, "n_test": 797, "lam": 0.001, "n_targets": 100},
            # half-widths in grey levels of 16
            "attack": {
                "counts": (1, 2, 3, 5, 10),
                "boxes": (0.125, 0.5, 1.0, 2.0, 4.0),
                "wide": 2.0,
                "max_iterations": 3,
            },
        },
        "full": {
            "data": "mnist",
            "mislabels": {
                "side": 14,
                "n": 1000,
                "n_test": 5000,
                "lam": 0.01,
                "flips": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
                "checks": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3),
                "n_seeds": 40,
            },
            "penalties": {"lambdas": (0.01, 0.001, 0.0001), "n_seeds": 10},
            "settings": ("mnist_mlp", "cifar2_mini"),
            "networks": {"n_networks": 3, "damping": 0.1},
            "mismatch": {"n": 20000, "n_test": 2000, "lam": 1e-4, "n_draws": 10},
            "sides": (14, 7),
            "bottom": {"kind": "trained", "n_rows": 20000, "channels": (16, 32), "epochs": 3},
            "top": {"n": 1000, "n_test": 1000, "lam": 0.001, "n_targets": 100},
            # half-widths in grey levels of 255
            "attack": {
                "counts": (1, 2, 3, 5, 10),
                "boxes": (0.5, 2.0, 8.0, 16.0),
                "wide": 8.0,
                "max_iterations": 3,
            },
        },
    },
    "43_datamodels": {
        "quick": {
            "data": "digits",
            "m_truth": 200,
            "repeats": 5,
            "m_fit": 3000,
            "grid": (500, 1000, 2000, 3000),
            "alphas": (0.2, 0.5, 0.75),
            "m_alpha": 600,
        },
        "full": {
            "data": "cifar2_mini",
            "m_truth": 50,
            "repeats": 2,
            "m_fit": 400,
            "grid": (100, 200, 400),
            "alphas": (0.2, 0.5),
            "m_alpha": 400,
        },
    },
    "45_trak_and_lds": {
        "quick": {
            "setting": "digits_mlp",
            "m_truth": 200,
            "repeats": 5,
            "k": 256,
            "ridge": 0.1,
            "n_models": (1, 2, 5, 10, 20),
            "ks": (64, 128, 256, 512),
            "ridges": (0.0, 0.01, 0.1, 1.0, 10.0),
            "m_fit": (500, 1000, 2000, 3000),
            "n_solved": 200,
            "language": {
                "setting": "grammar_transformer",
                "m_truth": 50,
                "repeats": 2,
                "n_models": (1, 2, 5, 10),
                "k": 256,
                "m_fit": (60,),
            },
            "benchmark": (),
        },
        "full": {
            "setting": "cifar2_mini",
            "m_truth": 50,
            "repeats": 2,
            "k": 512,
            "ridge": 0.1,
            "n_models": (1, 2, 5, 10),
            "ks": (128, 256, 512),
            "ridges": (0.0, 0.01, 0.1, 1.0, 10.0),
            "m_fit": (100, 200, 400),
            "n_solved": 100,
            "language": {
                "setting": "snli_transformer",
                "m_truth": 50,
                "repeats": 2,
                "n_models": (1, 2, 5, 10),
                "k": 512,
                "m_fit": (60,),
            },
            "benchmark": ("mnist_lr",),
        },
    },
}
