"""A toy project: the real Makefile and engine over notebooks that import no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "Makefile",
    "requirements.txt",
    "lib/__init__.py",
    "lib/config.py",
    "lib/claims.py",
    "lib/files.py",
)
FROM_MAKE = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "MAKEOVERRIDES", "FIGURES_DIR", "P", "ONLY")
FROM_MAKE += ("PROFILE", "DEVICE", "SEED", "DATA_ROOT", "CACHE_DIR")
GALLERY = """from lib.config import figures_root

figures_root().mkdir(parents=True, exist_ok=True)
(figures_root() / "index.html").write_text("<p>page</p>")
print("gallery written")
"""
PARAMETERS = 'PROFILE: str = "auto"\nSEED: int = 0\nDEVICE: str = "auto"\nK: int = 3  # how many'
SETUP = "import sys\nsys.path.insert(0, '..')"


class Toy:
    """One toy project in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in COPIED:
            self.write(name, (ROOT / name).read_text())
        for name in ("engine", "profiles"):
            shutil.copytree(
                ROOT / "lib" / name, root / "lib" / name, ignore=lambda *_: ["__pycache__"]
            )
        self.write("lib/engine/gallery.py", GALLERY)
        self.write(
            "lib/shared.py", "def deep():\n    from lib import deeper\n    return deeper.N\n"
        )
        self.write("lib/deeper.py", "N = 1\n")
        self.write("lib/unused.py", "N = 2\n")
        (root / "notebooks").mkdir()
        self.started: list[subprocess.Popen[str]] = []

    def write(self, name: str, text: str) -> Path:
        """Write a file of the toy."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def notebook(self, name: str, *sources: str, parameters: str = PARAMETERS) -> Path:
        """Write a notebook: parameters, setup, then `sources` as code cells."""
        tags = {parameters: ["parameters"]}
        cells = [
            {
                "cell_type": "code",
                "id": f"cell{i}",
                "metadata": {"tags": tags.get(source, [])},
                "source": source,
                "outputs": [],
                "execution_count": None,
            }
            for i, source in enumerate([parameters, SETUP, *sources])
        ]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        whole = {"cells": cells, "metadata": {"kernelspec": kernel}}
        text = json.dumps(whole | {"nbformat": 4, "nbformat_minor": 5})
        return self.write(f"notebooks/{name}.ipynb", text)

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start make in a process group of its own."""
        clean = {k: v for k, v in os.environ.items() if k not in FROM_MAKE} | environment
        command = ["make", f"PYTHON={sys.executable}", f"VENV={sys.prefix}", *words]
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=clean,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def make(self, *words: str, **environment: str) -> tuple[int, str]:
        """Run make to its end: exit code, what it printed. It never shows a traceback."""
        return finish(self.start(*words, **environment))

    def executed(self, name: str, run: str = "build/quick") -> Path:
        """The executed notebook, which exists only if it ran to its end."""
        return self.root / run / f"{name}.ipynb"

    def ran(self, output: str) -> list[str]:
        """Names of the notebooks that a call of make has started, sorted."""
        lines = [line.split() for line in output.splitlines() if line.startswith("run ")]
        return sorted(words[1] for words in lines)


def finish(process: subprocess.Popen[str], timeout: float = 90) -> tuple[int, str]:
    """Wait for a process: exit code, what it printed."""
    output, _ = process.communicate(timeout=timeout)
    assert "Traceback" not in output, output
    return process.returncode, output


def until(condition: Callable[[], object], seconds: float = 40, why: str = "") -> None:
    """Wait until something is so."""
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, why or "waited in vain"
        time.sleep(0.05)


def kernel_of(toy: Toy, name: str) -> psutil.Process:
    """The kernel that runs a notebook of the toy, once it runs."""
    owner = toy.root / "build" / "quick" / name / "owner.json"

    def read() -> int:
        try:
            return int(json.loads(owner.read_text()).get("kernel", 0))
        except (OSError, ValueError):
            return 0

    until(read, why="no kernel was started")
    return psutil.Process(read())
