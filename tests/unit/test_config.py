"""Who decides a run's profile, device, sizes and folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from lib import config

NOTEBOOK = "toy"
SMALL = {"n_models": 3, "data": "digits", "epochs": 2, "layers": ("hidden1",), "lr": 0.1}


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROFILE", "DEVICE", "DATA_ROOT", "CACHE_DIR", "FIGURES_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    sizes = {"quick": SMALL, "full": {**SMALL, "epochs": 20}}
    monkeypatch.setitem(config.SIZES, NOTEBOOK, sizes)


def gpus(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Let torch see n GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)


@pytest.mark.parametrize(
    ("parameter", "variable", "profile"),
    [
        ("auto", None, "quick"),
        ("auto", "", "quick"),
        ("auto", "full", "full"),
        ("quick", "full", "quick"),
        ("full", None, "full"),
    ],
)
def test_a_parameter_beats_the_environment_which_beats_quick(
    monkeypatch: pytest.MonkeyPatch, parameter: str, variable: str | None, profile: str
):
    if variable is not None:
        monkeypatch.setenv("PROFILE", variable)
    run = config.resolve(NOTEBOOK, parameter, device="cpu")
    assert run.profile == profile
    assert vars(run.size) == config.SIZES[NOTEBOOK][profile]


@pytest.mark.parametrize(
    ("parameter", "variable", "profile", "n_gpus", "device"),
    [
        ("auto", None, "quick", 1, "cpu"),  # quick is the CPU even beside a GPU
        ("auto", "auto", "quick", 1, "cpu"),
        ("auto", None, "full", 1, "cuda"),
        ("auto", None, "full", 0, "cpu"),
        ("auto", "cuda:1", "quick", 2, "cuda:1"),
        ("cpu", "cuda", "full", 1, "cpu"),
        ("cuda:0", None, "quick", 1, "cuda:0"),
    ],
)
def test_device(
    monkeypatch: pytest.MonkeyPatch,
    parameter: str,
    variable: str | None,
    profile: str,
    n_gpus: int,
    device: str,
):
    gpus(monkeypatch, n_gpus)
    if variable is not None:
        monkeypatch.setenv("DEVICE", variable)
    assert config.resolve(NOTEBOOK, profile, device=parameter).device == device


def test_quick_fixes_the_number_of_threads(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    config.resolve(NOTEBOOK, "full", device="cpu")
    assert asked == []
    config.resolve(NOTEBOOK, "quick", device="cpu")
    assert asked == [2]


def test_overrides_replace_a_size_and_minus_one_or_nothing_keeps_it():
    stored = dict(SMALL)
    run = config.resolve(
        NOTEBOOK, "quick", n_models=-1, data="", epochs=0, layers=("hidden2",), lr=0.5
    )
    changed = {"epochs": 0, "layers": ("hidden2",), "lr": 0.5}
    assert vars(run.size) == {**stored, **changed}
    assert config.SIZES[NOTEBOOK]["quick"] == stored  # the table itself is left alone


def test_folders_follow_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("DATA_ROOT", "CACHE_DIR", "FIGURES_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "x" / ".." / name))
    run = config.resolve(NOTEBOOK, "full", device="cpu")
    assert run.figures_dir == tmp_path.resolve() / "FIGURES_DIR" / "full" / NOTEBOOK
    assert run.data_root == tmp_path.resolve() / "DATA_ROOT"
    assert config.cache_dir() == tmp_path.resolve() / "CACHE_DIR"
    assert list(tmp_path.iterdir()) == []  # naming a folder does not make it


def test_folders_without_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config.figures_root() == config.ROOT / "figures"
    assert config.cache_dir() == config.ROOT / "build" / "cache"
    assert config.data_root() == tmp_path.resolve() / ".cache" / "reference-companion"
    monkeypatch.setenv("DATA_ROOT", "~/sets")
    assert config.data_root() == tmp_path.resolve() / "sets"
    assert (config.ROOT / "lib" / "config.py").is_file()


def test_a_run_is_frozen_and_says_what_it_is():
    run = config.resolve(NOTEBOOK, "quick", seed=7, device="cpu")
    assert str(run) == f"{NOTEBOOK}: profile quick, seed 7, device cpu"
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.seed = 8  # type: ignore[misc]


def test_profiles_of_a_notebook_name_the_same_sizes():
    """Or a notebook would run at one profile and stop at another with an attribute error."""
    for notebook, profiles in config.SIZES.items():
        names = [set(sizes) for sizes in profiles.values()]
        assert all(found == names[0] for found in names), notebook
        assert set(profiles) <= set(config.PROFILES), notebook
