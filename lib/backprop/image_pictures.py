"""Figures and tables of the image experiments (specification of document 5, F2, F3, F7 to F9, T1).

Each function takes results and returns a figure, or the rows of a table; the look and the files
are those of `lib.figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib import drawings, figures
from lib.backprop.image_edits import Edit
from lib.backprop.images import Bed
from lib.backprop.picture_measures import EMPTY, bright_fraction
from lib.figures import CYCLE, MARKERS
from lib.probes import ProbeReport
from lib.shares import average

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CELL = 0.72  # inches of a small picture with its words


def picture(axis: Axes, x: Tensor, words: str = "") -> None:
    """A grey picture `[1, h, w]` in [0, 1]; values below .1 are not drawn, as by the authors."""
    axis.imshow(x[0].cpu().clamp(EMPTY, 1), cmap="gray", vmin=EMPTY, vmax=1)
    drawings.without_frame(axis, words)


def sites() -> Figure:
    """Where the two probes sit: on the autoencoder's latent, and inside the classifier."""
    fig, (top, bottom) = figures.panels(2, 1, height=1.15)
    chain = ("picture x", "encoder", "latent z\n+ δ", "decoder", "picture\nD(z + δ)")
    for axis in (top, bottom):
        axis.set(xlim=(-0.6, 9.2), ylim=(-1.2, 1.2))
        axis.axis("off")
    _chain(top, chain, probe_at=2, label="probe: loop")
    _chain(
        bottom,
        (*chain, "auto-\nencoder", "conv 1, 2", "conv 3\n256 units", "classes"),
        probe_at=7,
        label="probe: bright",
    )
    top.set_title("digits: the probe reads the latent itself, no classifier takes part")
    bottom.set_title("garments: the probe reads a classifier that sees reconstructions only")
    return fig


def _chain(axis: Axes, words: Sequence[str], probe_at: int, label: str) -> None:
    step = 1.07
    for k, text in enumerate(words):
        drawings.box(axis, k * step, -0.3, text)
        if k:
            arrow = {"arrowstyle": "-|>", "color": "#555555"}
            axis.annotate("", (k * step - 0.42, -0.3), (k * step - 0.65, -0.3), arrowprops=arrow)
    axis.annotate(
        label,
        (probe_at * step, 0.12),
        (probe_at * step, 0.95),
        ha="center",
        color=CYCLE[0],
        fontsize=8,
        arrowprops={"arrowstyle": "->", "color": CYCLE[0]},
    )


def reconstructions(beds: Mapping[str, Bed], n: int = 6) -> Figure:
    """Held-out pictures above what the autoencoder makes of them, a row of pairs a set."""
    fig, axes = figures.panels(2 * len(beds), n, height=CELL)
    for k, (name, bed) in enumerate(beds.items()):
        x = bed.pictures.explain.x[:n].to(bed.latents.device)
        with torch.no_grad():
            seen = bed.autoencoder.reconstruct(x)
        for j in range(n):
            above, below = axes[2 * k * n + j], axes[(2 * k + 1) * n + j]
            picture(above, x[j])
            picture(below, seen[j])
        axes[2 * k * n].set_ylabel(name, fontsize=7)
        axes[(2 * k + 1) * n].set_ylabel("again", fontsize=7)
    return fig


def pair(bed: Bed, edit: Edit, at: int, name: str) -> Figure:
    """One picture and its edit, side by side: the document's headline (F2, left half)."""
    fig, axes = figures.panels(1, 3, width=figures.ONE_COLUMN * 1.3, height=1.6)
    change = (edit.after - edit.before)[at, 0].cpu()
    picture(axes[0], edit.before[at], f"decoded, P = {edit.probe_before[at]:.2f}")
    picture(axes[1], edit.after[at], f"{name}, P = {edit.probe_after[at]:.2f}")
    axes[2].imshow(change, cmap="vlag", vmin=-1, vmax=1)
    drawings.without_frame(axes[2], "difference")
    return fig


def grid(edits: Mapping[str, Edit], at: Sequence[int], what: str = "hole") -> Figure:
    """Pictures in columns, kinds of edit in rows; below each: P, P read again, what is there."""
    fig, axes = figures.panels(len(edits) + 1, len(at), height=CELL + 0.12)
    first = next(iter(edits.values()))
    for j, row in enumerate(at):
        picture(
            axes[j],
            first.before[row],
            _words(
                first.probe_before[row], first.probe_before[row], _share(first, row, False, what)
            ),
        )
    axes[0].set_ylabel("decoded", fontsize=6)
    for k, (name, edit) in enumerate(edits.items(), 1):
        for j, row in enumerate(at):
            picture(
                axes[k * len(at) + j],
                edit.after[row],
                _words(edit.probe_after[row], edit.reread[row], _share(edit, row, True, what)),
            )
        axes[k * len(at)].set_ylabel(name, fontsize=6)
    return fig


def one_and_many(shown: Mapping[str, Edit], edits: Mapping[str, Edit], at: Sequence[int]) -> Figure:
    """The displayed picture at the left, and beside it a grid of others (specification F8).

    Args:
        shown: kind of edit -> the displayed picture alone, framed.
        edits: the same kinds -> pictures of which rows `at` are shown, in two blocks.
    """
    half = (len(at) + 1) // 2
    kinds, columns = ("decoded", *edits), half + 1
    fig, axes = figures.panels(2 * len(kinds), columns, height=CELL)
    for block in range(2):
        cells = [(shown, 0), *((edits, row) for row in at[block * half : (block + 1) * half])]
        if block:
            cells[0] = (edits, -1)  # the displayed picture stands once
        for j in range(columns):
            for k, name in enumerate(kinds):
                axis = axes[(block * len(kinds) + k) * columns + j]
                made, row = cells[j] if j < len(cells) else (edits, -1)
                if row < 0:
                    axis.axis("off")
                    continue
                edit = next(iter(made.values())) if name == "decoded" else made[name]
                _cell(axis, edit, row, after=name != "decoded")
                if j == 0 or (block and j == 1):
                    axis.set_ylabel(name, fontsize=6)
                if j == 0:
                    for side in axis.spines.values():
                        side.set(visible=True, color=CYCLE[1], linewidth=1.5)
    return fig


def _cell(axis: Axes, edit: Edit, row: int, *, after: bool) -> None:
    x, p = (edit.after, edit.probe_after) if after else (edit.before, edit.probe_before)
    hole = " hole" if after and bool(edit.gains_hole[row]) else ""
    again = f", {edit.reread[row]:.2f}" if after else ""
    picture(axis, x[row], f"{p[row]:.2f}{again}{hole}")


def _words(p: Tensor, again: Tensor, truth: str) -> str:
    return f"{p:.2f}, {again:.2f}{truth}"


def _share(edit: Edit, row: int, after: bool, what: str) -> str:
    if what == "hole":
        return " hole" if after and bool(edit.gains_hole[row]) else ""
    x = (edit.after if after else edit.before)[row : row + 1]
    return f" | {bright_fraction(x, empty=EMPTY).item():.2f}"


def measure_rows(bed: Bed, edits: Mapping[str, Edit], what: str) -> list[dict[str, object]]:
    """What each kind of edit did, means over pictures (± standard error)."""
    rows: list[dict[str, object]] = []
    for name, edit in edits.items():
        truth = edit.gains_hole if what == "hole" else edit.rises
        rows.append(
            {
                "edit": name,
                "n": len(edit.after),
                "probe": f"{edit.probe_before.mean():.2f} to {edit.probe_after.mean():.2f}",
                "read again": round(edit.reread.mean().item(), 2),
                {"hole": "gains a hole", "bright": "rise of bright share"}[what]: average(truth),
                "new blobs": average(edit.new_blobs),
                "pixel MSE": edit.pixel_mse.mean().item(),
                "outside [0, 1]": f"{edit.outside.mean():.1%}",
                "nearest latent": round(edit.away(bed).median().item(), 2),
                "stays near": f"{edit.stays_near(bed).double().mean():.0%}",
            }
        )
    return rows


def probe_rows(name: str, official: tuple[float, float], report: ProbeReport) -> dict[str, object]:
    """A probe beside its controls: S of labels, R2 of a real concept."""
    order = ("random_network", "raw_input", "shuffled")
    cells = {k.replace("_", " "): round(report.controls[k], 3) for k in order}
    return {
        "concept": name,
        "authors' recipe": round(official[0], 3),
        "its mean reading": round(official[1], 2),
        "validated": round(report.score, 3),
        "95% interval": f"{report.ci[0]:.2f} to {report.ci[1]:.2f}",
        **cells,
        "admissible": str(report.admissible),
    }


def target_curves(
    targets: Sequence[float], edits: Sequence[Edit], bed: Bed
) -> tuple[Figure, list[Axes]]:
    """Truth, re-reading and distance from the data against the probe value that is asked for."""
    fig, axes = figures.panels(1, 2, height=2.2)
    x = [torch.logit(torch.tensor(t)).item() for t in targets]
    lines = {
        "read again": [e.reread for e in edits],
        "gains a hole": [e.gains_hole for e in edits],
        "stays near the data": [e.stays_near(bed) for e in edits],
    }
    for k, (words, values) in enumerate(lines.items()):
        mean, error = zip(*(average(v) for v in values), strict=True)
        axes[0].errorbar(x, mean, error, marker=MARKERS[k], color=CYCLE[k], capsize=2, label=words)
    axes[0].set(ylabel="share of pictures, or mean P", ylim=(-0.05, 1.05))
    mean, error = zip(*(average(e.pixel_mse) for e in edits), strict=True)
    axes[1].errorbar(x, mean, error, marker="o", color=CYCLE[0], capsize=2)
    axes[1].set(ylabel="pixel MSE", ylim=(0, None))
    for axis in axes:
        axis.set(xlabel="probe value asked for")
        axis.set_xticks(x, [f"{t:g}" for t in targets])
    axes[0].legend()
    return fig, axes


def explore(edits: Mapping[float, Edit], row: int, target: float) -> Figure:
    """One picture at one target: before, after, difference, and the latent's change."""
    edit = edits[target]
    fig, axes = figures.panels(1, 4, height=1.7)
    words = f"P asked {target:g}, read again {edit.reread[row]:.2f}"
    picture(axes[0], edit.before[row], "decoded")
    picture(axes[1], edit.after[row], words)
    axes[2].imshow((edit.after - edit.before)[row, 0].cpu(), cmap="vlag", vmin=-1, vmax=1)
    drawings.without_frame(axes[2], "difference")
    change = (edit.latent - edit.latent_before)[row].cpu()
    axes[3].bar(range(len(change)), change, color=CYCLE[0])
    axes[3].set(xlabel="latent number", title="δ")
    return fig
