"""What `make figures` runs again, and why: decided from file times alone."""

from __future__ import annotations

import os
import time
from pathlib import Path

ALL = ["11_first", "12_second", "21_third"]


def touch(path: Path) -> None:
    """Make a file newer than everything."""
    now = time.time() + 0.01
    os.utime(path, (now, now))


def test_only_what_is_stale_runs_and_the_reason_is_said(toy):
    status, output = toy.make("figures")
    assert (status, toy.ran(output)) == (0, ALL)
    assert "never run" in output
    assert "gallery written" in output

    status, output = toy.make("figures")
    assert (status, toy.ran(output)) == (0, [])
    assert "nothing to do" in output
    assert "gallery written" not in output

    touch(toy.root / "notebooks" / "12_second.ipynb")
    status, output = toy.make("figures")
    assert (status, toy.ran(output)) == (0, ["12_second"])
    assert "12_second (quick): notebooks/12_second.ipynb changed" in output

    touch(toy.root / "lib" / "deeper.py")  # imported inside a function of an imported file
    status, output = toy.make("figures")
    assert (status, toy.ran(output)) == (0, ["11_first"])
    assert "11_first (quick): lib/deeper.py changed" in output

    toy.write("lib/no_one_imports_me.py", "N = 3\n")
    touch(toy.root / "lib" / "claims.py")  # lib, but no notebook imports it
    assert toy.ran(toy.make("figures")[1]) == []

    status, output = toy.make("figures", "ONLY=21", "DEVICE=cpu")
    assert (status, toy.ran(output)) == (0, ["21_third"])
    assert "21_third (quick): parameters changed" in output

    toy.write("lib/ledger/part2.toml", "")
    status, output = toy.make("figures", "ONLY=2", "DEVICE=cpu")
    assert (status, toy.ran(output)) == (0, ["21_third"])
    assert "lib/ledger/part2.toml changed" in output

    touch(toy.root / "requirements.txt")
    status, output = toy.make("figures", "ONLY=12")
    assert (status, toy.ran(output)) == (0, ["12_second"])
    assert "requirements.txt changed" in output


def test_an_edit_during_a_run_makes_it_stale(toy):
    toy.notebook("12_second", "import time; time.sleep(2)")
    process = toy.start("figures", "ONLY=12")
    running = toy.root / "build/quick/12_second.running.ipynb"
    while not running.exists():
        time.sleep(0.05)
    touch(toy.root / "notebooks" / "12_second.ipynb")
    assert process.wait(60) == 0
    assert toy.ran(toy.make("figures", "ONLY=12")[1]) == ["12_second"]


def test_a_deleted_figure_makes_its_notebook_stale(toy):
    save = "import os, pathlib\nf = pathlib.Path(os.environ['FIGURES_DIR'], 'quick/12_second')"
    toy.notebook(
        "12_second", save + "\nf.mkdir(parents=True, exist_ok=True); (f / 'a.csv').touch()"
    )
    assert toy.make("figures", "ONLY=12")[0] == 0
    (toy.root / "figures" / "quick" / "12_second" / "a.csv").unlink()
    status, output = toy.make("figures", "ONLY=12")
    assert (status, toy.ran(output)) == (0, ["12_second"])
    assert "a figure or table of it is missing" in output
    assert toy.ran(toy.make("figures", "ONLY=12")[1]) == []


def test_two_notebooks_run_at_once_with_j2(toy):
    stamp = "import time\nprint(time.time()); time.sleep(1.5); print(time.time())"
    toy.notebook("11_first", stamp)
    toy.notebook("12_second", stamp)
    status, output = toy.make("-j2", "figures", "ONLY=1")
    assert (status, toy.ran(output)) == (0, ALL[:2])
    spans = []
    for name in ALL[:2]:
        log = (toy.root / "build/quick" / f"{name}.log").read_text().split()
        times = [float(word) for word in log if word.replace(".", "", 1).isdigit() and "." in word]
        spans.append((min(times), max(times)))
    assert max(spans[0][0], spans[1][0]) < min(spans[0][1], spans[1][1])
