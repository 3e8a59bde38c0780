"""Fixtures that several folders of tests share. The environment is set in the root's conftest."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def figures_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A figures folder of this test alone."""
    folder = tmp_path / "figures"
    monkeypatch.setenv("FIGURES_DIR", str(folder))
    return folder
