"""Parameters that name nothing: one sentence each, with what is known."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from lib import config
from lib.config import ROOT

NOTEBOOK = "toy"
SMALL = {"n_models": 3, "data": "digits"}

CASES: dict[str, tuple[dict[str, object], str]] = {
    "profile": ({"profile": "fast"}, "PROFILE is one of quick, full, paper; got 'fast'"),
    "notebook": ({"notebook": "99"}, "no sizes for notebook '99'; known: 00_start_here, "),
    "profile of this notebook": (
        {"profile": "paper"},
        f"{NOTEBOOK} has no profile 'paper'; it runs at quick, full",
    ),
    "size": ({"n_model": 3}, f"{NOTEBOOK} has no size 'n_model'; it has data, n_models"),
    "device": ({"device": "gpu"}, "DEVICE is auto, cpu, cuda or cuda:<k>; got 'gpu'"),
    "device index": ({"device": "cuda:x"}, "DEVICE is auto, cpu, cuda or cuda:<k>; got 'cuda:x'"),
    "negative index": ({"device": "cuda:-1"}, "DEVICE is auto, cpu, cuda or cuda:<k>"),
    "CPU index": ({"device": "cpu:0"}, "DEVICE is auto, cpu, cuda or cuda:<k>; got 'cpu:0'"),
    "absent GPU": ({"device": "cuda"}, "DEVICE=cuda was asked for, but torch sees no such GPU"),
    "absent second": ({"device": "cuda:1"}, "DEVICE=cuda:1 was asked for, but torch sees no such"),
}


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(config.SIZES, NOTEBOOK, {"quick": SMALL, "full": SMALL})


@pytest.mark.parametrize(("parameters", "sentence"), CASES.values(), ids=CASES)
def test_an_unknown_name_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, object], sentence: str
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError) as caught:
        config.resolve(**{"notebook": NOTEBOOK, "profile": "quick", "device": "cpu", **parameters})  # type: ignore[arg-type]
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("variable", "value"), [("PROFILE", "fast"), ("DEVICE", "tpu")])
def test_the_environment_is_held_to_the_same_names(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"^{variable} is .*; got '{value}'$"):
        config.resolve(NOTEBOOK)


def test_the_engines_files_load_no_torch():
    """Staleness and verdicts are decided in a moment; torch takes seconds to load."""
    names = "lib.config, lib.claims, lib.cache, lib.engine"
    code = f"import sys, {names}; print({{'torch', 'papermill', 'numpy'}} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "set()\n")
