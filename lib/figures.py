"""The look of every figure and table, and the only place that writes them.

`use_style` once per notebook; `save` and `table` write files below `run.figures_dir` and return
an object that a notebook shows. Same data, same bytes: files carry no dates.

Palette: seaborn `colorblind`, fixed by role (`ROLE`), `viridis` for sequences, `vlag` for
differences around zero. Text is 8 pt; widths are `ONE_COLUMN` and `TWO_COLUMN` inches.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib.config import Run
from lib.files import write_result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

ONE_COLUMN = 3.4
TWO_COLUMN = 7.0
SCREEN_DPI = 200
NOTEBOOK_DPI = 100
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<")
DASHES = (
    "-",
    "--",
    "-.",
    ":",
    (0, (5, 1)),
    (0, (1, 1)),
    (0, (3, 1, 1, 1)),
    (0, (8, 3)),
)

# seaborn's "colorblind" palette, by meaning
ROLE: dict[str, str] = {
    "main": "#0173b2",
    "second": "#de8f05",
    "third": "#029e73",
    "fourth": "#d55e00",
    "fifth": "#cc78bc",
    "sixth": "#ca9161",
    "seventh": "#56b4e9",
    "random": "#949494",
    "control": "#949494",
    "document": "#000000",
    "faithful": "#d55e00",
    "sound": "#0173b2",
    "trak": "#0173b2",
}
CYCLE = [ROLE[k] for k in ("main", "second", "third", "fourth", "fifth", "sixth", "seventh")]


@dataclass(frozen=True)
class Picture:
    """A saved figure, shown in a notebook with its alt text."""

    name: str
    alt: str
    png: bytes

    def __repr__(self) -> str:
        return f"{self.name}: {self.alt}"

    def _repr_mimebundle_(
        self, include: object = None, exclude: object = None
    ) -> tuple[dict[str, object], dict[str, object]]:
        return (
            {"image/png": self.png, "text/plain": repr(self)},
            {"image/png": {"alt": self.alt}},
        )


@dataclass(frozen=True)
class Table:
    """Rows written as csv, shown in a notebook as markdown."""

    name: str
    caption: str
    markdown: str

    def __repr__(self) -> str:
        return f"{self.name}: {self.caption}"

    def _repr_markdown_(self) -> str:
        return f"{self.markdown}\n\n*{self.caption}*"


def use_style() -> None:
    """Set the look for this process."""
    import matplotlib as mpl
    import seaborn as sns
    from cycler import cycler

    sns.set_theme(context="paper", style="ticks", palette="colorblind")
    mpl.rcParams.update(
        {
            "font.size": 8,
            "axes.labelsize": 8,
            "axes.titlesize": 8,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "xtick.labelsize": 7,
            "ytick.labelsize": 7,
            "legend.fontsize": 7,
            "legend.title_fontsize": 7,
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=CYCLE),
            "lines.linewidth": 1.3,
            "lines.markersize": 4,
            "figure.dpi": NOTEBOOK_DPI,
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "reference-companion",
            "svg.fonttype": "path",
            "image.cmap": "viridis",
        }
    )


def panels(
    rows: int = 1,
    columns: int = 1,
    *,
    width: float = TWO_COLUMN,
    height: float = 2.4,
    **kw: object,
) -> tuple[Figure, list[Axes]]:
    """A figure and the flat list of its axes, row by row; `height` is inches per row."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(rows, columns, figsize=(width, height * rows), squeeze=False, **kw)  # type: ignore[call-overload]
    return fig, list(axes.flat)


def provenance(fig: Figure, run: Run, text: str) -> None:
    """Print data, profile, n and what the uncertainty is, small, at the figure's foot."""
    fig.supxlabel(f"{run.profile} profile · {text}", fontsize=6, color="#555555")


def legend(fig: Figure, axis: Axes, title: str | None = None) -> None:
    """One legend for all panels, above them, from the lines of `axis`."""
    handles, labels = axis.get_legend_handles_labels()
    rows = -(-len(labels) // 5)
    columns = -(-len(labels) // max(rows, 1))  # six make two rows of three, no row of one
    fig.legend(handles, labels, loc="outside upper center", ncols=columns, title=title)


def sequence(n: int) -> list[tuple[float, float, float, float]]:
    """Colours of n ordered steps, dark to light; the last is still legible on white."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * k / max(n - 1, 1)) for k in range(n)]


def units_axis(axis: Axes, label: str = "units the probe may read, k") -> None:
    """A horizontal axis of numbers of units: doubling steps, plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(LogLocator(base=2))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel(label)


def band(
    axis: Axes,
    x: Sequence[float] | Tensor,
    values: Tensor,
    *,
    label: str,
    role: str,
    order: int = 0,
) -> None:
    """Mean line over the first axis of `values` [m, len(x)] with a band of one sd, marked."""
    mean, spread = values.mean(0), values.std(0)
    axis.plot(
        x,
        mean,
        label=label,
        color=ROLE[role],
        marker=MARKERS[order],
        linestyle=DASHES[order],
    )
    axis.fill_between(x, mean - spread, mean + spread, color=ROLE[role], alpha=0.18, linewidth=0)


def save(fig: Figure, run: Run, name: str, alt: str) -> Picture:
    """Write `<name>.png`, `<name>.svg` and the alt text `<name>.txt`; close the figure.

    Args:
        alt: one or two sentences that say what the figure shows, for those who cannot see it.

    Raises:
        ValueError: the alt text is missing, or shorter than a sentence.
        OSError: the folder cannot be written, in one sentence.
    """
    import matplotlib.pyplot as plt
    from PIL import Image

    if len(alt.split()) < 5:
        raise ValueError(f"figure {name} needs alt text that describes it, got {alt!r}")
    screen, page, small = io.BytesIO(), io.BytesIO(), io.BytesIO()
    fig.savefig(screen, format="png", dpi=SCREEN_DPI, metadata={"Software": None})
    fig.savefig(page, format="svg", metadata={"Date": None, "Creator": None})
    fig.savefig(small, format="png", dpi=NOTEBOOK_DPI, metadata={"Software": None})
    plt.close(fig)
    stored = io.BytesIO()  # a palette of 128 colours: a third of the bytes in the notebook
    Image.open(small).convert("RGB").quantize(128).save(stored, format="png", optimize=True)
    write_result(run.figures_dir / f"{name}.png", screen.getvalue())
    write_result(run.figures_dir / f"{name}.svg", page.getvalue())
    write_result(run.figures_dir / f"{name}.txt", (alt + "\n").encode())
    return Picture(name, alt, stored.getvalue())


def table(rows: Sequence[Mapping[str, object]], run: Run, name: str, caption: str) -> Table:
    """Write `<name>.csv` and its caption `<name>.txt`; show the same rows as markdown.

    Args:
        rows: one mapping a row, the same keys in each; floats are written with 4 significant
            digits, a pair (value, spread) as "value ± spread".

    Raises:
        ValueError: no rows, or rows whose keys differ.
    """
    if not rows or any(list(row) != list(rows[0]) for row in rows):
        raise ValueError(f"table {name} needs at least one row and the same columns in each row")
    head = list(rows[0])
    body = [[_cell(row[column]) for column in head] for row in rows]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *body])
    write_result(run.figures_dir / f"{name}.csv", text.getvalue().encode())
    write_result(run.figures_dir / f"{name}.txt", (caption + "\n").encode())
    shown = [[_escaped(cell) for cell in row] for row in (head, *body)]
    lines = ["| " + " | ".join(row) + " |" for row in (shown[0], ["---"] * len(head), *shown[1:])]
    return Table(name, caption, "\n".join(lines))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple) and len(value) == 2:
        return f"{value[0]:.4g} ± {value[1]:.2g}"
    return str(value)


def _escaped(cell: str) -> str:
    """A cell of a markdown table: a bar or a new line in it would end it."""
    return cell.replace("|", "\\|").replace("\n", " ")
