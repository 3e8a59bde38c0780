"""The toy project as a fixture."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.toy import Toy


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Toy]:
    """Two notebooks of part 1 and one of part 2; no process of it outlives a test."""
    made = Toy(tmp_path / "toy")
    made.notebook("11_first", "from lib.shared import deep\nprint(deep(), K, SEED)")
    made.notebook("12_second", "print('second')")
    made.notebook("21_third", "import lib.unused")
    yield made
    for process in made.started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
