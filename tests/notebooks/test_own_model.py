"""The lines that tell a reader how to use a model of their own do run, as printed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
MAX_LINES = 12  # "in ten lines", imports and comments not counted


def pages() -> dict[str, str]:
    """Page -> its text: the README, and the markdown of each notebook."""
    found = {"README": (ROOT / "README.md").read_text()}
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        words = ["".join(c["source"]) for c in cells if c["cell_type"] == "markdown"]
        found[path.stem] = "\n\n".join(words)
    return {name: text for name, text in found.items() if BLOCK.search(text)}


def test_every_section_has_such_lines() -> None:
    sections = {path.stem for path in (ROOT / "notebooks").glob("[1-6]*.ipynb")}
    assert sections <= set(pages())


@pytest.mark.parametrize("page", pages())
def test_the_printed_lines_run(page: str, tmp_path: Path) -> None:
    for code in BLOCK.findall(pages()[page]):
        counted = [
            x for x in code.splitlines() if x.strip() and not x.startswith(("import", "from"))
        ]
        assert len(counted) <= MAX_LINES
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip(), "the lines print nothing"
