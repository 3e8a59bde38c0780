"""Figures without words, ragged tables, and a figures folder that cannot be written."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from lib import config, figures, files
from lib.config import Run

ALT = "A line that rises from left to right."


@pytest.fixture
def run(figures_dir: Path) -> Run:
    return config.resolve("00_start_here", "quick", device="cpu")


@pytest.fixture
def fig():
    made, axis = plt.subplots(figsize=(1, 1))
    axis.plot([0, 1])
    yield made
    plt.close(made)


@pytest.mark.parametrize("alt", ["", "   ", "a figure", "fig3 layer presence by depth"[:22]])
def test_a_figure_without_a_description_is_refused(run: Run, fig: Figure, alt: str):
    with pytest.raises(ValueError, match="figure line needs alt text that describes it"):
        figures.save(fig, run, "line", alt)
    assert not run.figures_dir.exists()


@pytest.mark.parametrize(
    "rows",
    [[], [{"a": 1}, {"b": 1}], [{"a": 1, "b": 2}, {"a": 1}], [{"a": 1, "b": 2}, {"b": 2, "a": 1}]],
)
def test_a_ragged_table_is_refused(run: Run, rows: list[dict[str, object]]):
    with pytest.raises(ValueError, match="table t needs at least one row and the same columns"):
        figures.table(rows, run, "t", "Caption.")
    assert not run.figures_dir.exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(run: Run, fig: Figure, figures_dir: Path):
    figures_dir.write_text("a file where the folder should be")
    sentence = r"^cannot write line\.png in .*; make the folder writable or set FIGURES_DIR to ano"
    with pytest.raises(OSError, match=sentence) as caught:
        figures.save(fig, run, "line", ALT)
    assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match=r"^cannot write t\.csv in "):
        figures.table([{"a": 1}], run, "t", "Caption.")


def test_a_full_disk_keeps_the_old_file_whole(
    run: Run, fig: Figure, monkeypatch: pytest.MonkeyPatch
):
    figures.table([{"a": 1}], run, "t", "Caption.")
    before = (run.figures_dir / "t.csv").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left on device; make the folder"):
        figures.table([{"a": 2}], run, "t", "Caption.")
    assert (run.figures_dir / "t.csv").read_bytes() == before
