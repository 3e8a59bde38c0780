"""Figures and tables: the same data give the same bytes, and say what they show."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from matplotlib.colors import is_color_like

from lib import config, drawings, figures
from lib.config import ROOT, Run

ALT = "A line that rises from the lower left to the upper right."

SCRIPT = f"""
import torch
from lib import config, figures
run = config.resolve("00_start_here", "quick", device="cpu")
figures.use_style()
fig, (left, right) = figures.panels(1, 2)
x = torch.arange(5.0)
values = torch.stack([x, x + 1, x * 2])
figures.band(left, x, values, label="ours", role="main")
figures.band(right, x, -values, label="chance", role="random", order=1)
left.legend()
figures.provenance(fig, run, "three seeds, band one sd")
figures.save(fig, run, "line", {ALT!r})
"""


@pytest.fixture
def run(figures_dir: Path) -> Run:
    return config.resolve("00_start_here", "quick", device="cpu")


@pytest.fixture(autouse=True)
def _style():
    with mpl.rc_context():
        figures.use_style()
        yield


def line(slope: float = 1.0) -> mpl.figure.Figure:
    fig, (axis,) = figures.panels(width=figures.ONE_COLUMN)
    axis.plot([0, 1], [0, slope])
    return fig


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_two_processes_write_the_same_bytes(tmp_path: Path):
    written = []
    for k in range(2):
        env = {**os.environ, "FIGURES_DIR": str(tmp_path / str(k)), "PYTHONHASHSEED": str(k)}
        subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, env=env, check=True, timeout=120)
        written.append(contents(tmp_path / str(k) / "quick" / "00_start_here"))
    assert set(written[0]) == {"line.png", "line.svg", "line.txt"}
    assert written[0] == written[1]


def test_a_figure_is_saved_for_screen_print_and_ears(run: Run):
    picture = figures.save(line(), run, "line", ALT)
    found = contents(run.figures_dir)
    assert found["line.png"].startswith(b"\x89PNG")
    assert b"<svg" in found["line.svg"]
    assert b"<dc:date>" not in found["line.svg"]
    assert found["line.txt"].decode() == ALT + "\n"
    assert mpl.pyplot.get_fignums() == []
    data, metadata = picture._repr_mimebundle_()
    assert data["text/plain"] == f"line: {ALT}"
    assert metadata["image/png"] == {"alt": ALT}
    assert data["image/png"] == picture.png


def test_the_same_figure_again_leaves_its_files_alone_and_another_does_not(run: Run):
    figures.save(line(), run, "line", ALT)
    before, stamps = contents(run.figures_dir), {}
    for path in run.figures_dir.iterdir():
        os.utime(path, ns=(10**18, 10**18))
        stamps[path.name] = path.stat().st_mtime_ns
    figures.save(line(), run, "line", ALT)
    assert {p.name: p.stat().st_mtime_ns for p in run.figures_dir.iterdir()} == stamps
    figures.save(line(slope=-1.0), run, "line", ALT)
    after = contents(run.figures_dir)
    assert {name for name in after if after[name] != before[name]} == {"line.png", "line.svg"}
    assert set(after) == set(before)  # nothing temporary is left


def test_band_draws_the_mean_and_one_sd():
    values = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 4.0]])
    fig, (axis,) = figures.panels()
    figures.band(axis, [0.0, 1.0], values, label="ours", role="main")
    assert axis.lines[0].get_ydata().tolist() == [3.0, 4.0]
    corners = axis.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(1.0)  # 3 - 2
    assert corners[:, 1].max() == pytest.approx(6.0)  # 4 + 2
    mpl.pyplot.close(fig)


def test_panels_are_a_flat_list_row_by_row():
    fig, axes = figures.panels(2, 3, width=6.0, height=2.0)
    assert len(axes) == 6
    assert fig.get_size_inches().tolist() == [6.0, 4.0]
    fig.canvas.draw()
    assert axes[1].get_position().x0 > axes[0].get_position().x0
    assert axes[3].get_position().y0 < axes[0].get_position().y0
    mpl.pyplot.close(fig)


@pytest.mark.parametrize("x", [torch.arange(9.0), torch.arange(9.0).view(1, 3, 3)])
def test_a_thumbnail_spans_its_own_range_and_has_no_frame(x: torch.Tensor):
    _, (axis,) = figures.panels()
    drawings.thumbnail(axis, x, "three")
    (image,) = axis.get_images()
    assert image.get_array().squeeze().tolist() == (torch.arange(9.0) / 8).view(3, 3).tolist()
    assert axis.get_xlabel() == "three"
    assert not any(side.get_visible() for side in axis.spines.values())


def test_a_picture_that_may_not_be_shown_leaves_its_number_alone():
    _, (axis,) = figures.panels()
    drawings.thumbnail(axis, torch.arange(9.0), "three", instead=17)
    assert not axis.get_images()
    assert [text.get_text() for text in axis.texts] == ["17"]
    assert axis.get_xlabel() == "three"


def test_every_role_is_a_colour_and_the_cycle_repeats_none():
    assert all(is_color_like(colour) for colour in figures.ROLE.values())
    assert len(set(figures.CYCLE)) == len(figures.CYCLE)
    assert len(figures.MARKERS) >= len(figures.CYCLE)  # never by colour alone
    assert len(figures.DASHES) >= len(figures.CYCLE)


ROWS: list[dict[str, object]] = [
    {"layer": "hidden1", "accuracy": 0.123456, "overlap": (0.5, 0.0123), "n": 3},
    {"layer": 'hidden2, the "last"', "accuracy": 1e-7, "overlap": (2.0, 0.1), "n": 10_000},
]


def test_a_table_shows_what_its_csv_holds(run: Run):
    table = figures.table(ROWS, run, "layers", "Accuracy by layer.")
    with open(run.figures_dir / "layers.csv", newline="") as file:
        stored = list(csv.reader(file))
    assert stored == [
        ["layer", "accuracy", "overlap", "n"],
        ["hidden1", "0.1235", "0.5 ± 0.012", "3"],
        ['hidden2, the "last"', "1e-07", "2 ± 0.1", "10000"],
    ]
    shown = [row.strip("| ").split(" | ") for row in table.markdown.splitlines()]
    assert shown[1] == ["---"] * 4
    assert [shown[0], *shown[2:]] == stored
    assert (run.figures_dir / "layers.txt").read_text() == "Accuracy by layer.\n"
    assert table._repr_markdown_().endswith("*Accuracy by layer.*")
    assert repr(table) == "layers: Accuracy by layer."


def test_a_bar_or_a_new_line_in_a_cell_does_not_break_the_markdown(run: Run):
    table = figures.table([{"a|b": "|x|\ny", "c": 1}], run, "bars", "Bars.")
    assert table.markdown.splitlines() == ["| a\\|b | c |", "| --- | --- |", "| \\|x\\| y | 1 |"]
    with open(run.figures_dir / "bars.csv", newline="") as file:
        assert list(csv.reader(file)) == [["a|b", "c"], ["|x|\ny", "1"]]
