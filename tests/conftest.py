"""Fixtures that several folders of tests share. The environment is set in the root's conftest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Two threads wait for each other on tiny tensors: on busy cores six times slower."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture
def figures_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A figures folder of this test alone."""
    folder = tmp_path / "figures"
    monkeypatch.setenv("FIGURES_DIR", str(folder))
    return folder
