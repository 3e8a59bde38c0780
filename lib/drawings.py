"""Particular pictures: diagrams of the tour, and small plots that several cells share.

The look and the files are `lib.figures`'; here a function draws one thing and returns it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from lib import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from lib.claims import Claim


def thumbnail(axis: Axes, x: Tensor, words: str = "", *, instead: int | None = None) -> None:
    """A small picture with a word below it.

    Args:
        x: a square grey image laid out flat `[h * h]`, or `[c, h, w]`; shown over its own range.
        instead: the number of its row, drawn in place of a picture that may not be shown.
    """
    if instead is None:
        x = x.float().cpu()
        x = x.unflatten(0, (round(len(x) ** 0.5), -1)) if x.ndim == 1 else x.permute(1, 2, 0)
        axis.imshow((x - x.min()) / (x.max() - x.min()), cmap="gray_r")
    else:
        axis.set(xlim=(0, 1), ylim=(0, 1), facecolor="#eeeeee", aspect="equal")
        axis.text(0.5, 0.5, f"{instead}", ha="center", va="center", fontsize=6)
    without_frame(axis, words)


def without_frame(axis: Axes, words: str) -> None:
    """No ticks and no frame, and a word below."""
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)
    axis.set_xlabel(words, fontsize=6, labelpad=1)


def class_difference(axis: Axes, x: Tensor, y: Tensor) -> None:
    """Mean image of the rows with y = 1 minus that of y = 0, in sd of a pixel, red to blue.

    Args:
        x: images `[n, c, h, w]`, or square grey ones laid out flat `[n, h * h]`.
    """
    grey = (
        x.float().mean(1) if x.ndim == 4 else x.float().unflatten(1, (round(x.shape[1] ** 0.5), -1))
    )
    difference = (grey[y == 1].mean(0) - grey[y == 0].mean(0)) / grey.std()
    shown = axis.imshow(difference, cmap="vlag", vmin=-1, vmax=1)
    axis.set(xticks=[], yticks=[])
    axis.figure.colorbar(shown, ax=axis, shrink=0.8, ticks=[-1, 0, 1], label="sd of a pixel")


def logit_histogram(
    logits: Tensor, sizes: Sequence[int], y: Tensor, step: int, layer: str
) -> Figure:
    """Logits of the first network's probe of `sizes[step - 1]` units, by concept label.

    Args:
        logits: `[K, M, n]`, y: labels `[n]`; `step` counts from 1 and stops at the last size.
    """
    at = min(step, len(sizes)) - 1
    scores = logits[at, 0]
    fig, (axis,) = figures.panels(width=figures.ONE_COLUMN * 1.5, height=2.2)
    edges = [scores.min().item() + i * (scores.max() - scores.min()).item() / 30 for i in range(31)]
    for label, role, words in ((0, "control", "concept absent"), (1, "main", "concept present")):
        axis.hist(
            scores[y == label].numpy(), bins=edges, color=figures.ROLE[role], alpha=0.7, label=words
        )
    axis.axvline(0, color="black", linestyle=":")
    right = ((scores > 0) == (y == 1)).double().mean().item()
    axis.set(title=f"{layer}, {sizes[at]} units: accuracy {right:.3f}", xlabel="logit of the probe")
    axis.set_ylabel("test images")
    axis.legend()
    return fig


def lenses(parts: Mapping[int, tuple[str, str]]) -> Figure:
    """A diagram: how a network comes to an answer, and where each document looks.

    Args:
        parts: number -> (lens, question), of the five documents.
    """
    fig, (axis,) = figures.panels(width=figures.TWO_COLUMN, height=3.0)
    axis.set(xlim=(0, 10), ylim=(-2.3, 2.6))
    axis.axis("off")
    stages = ("training\nexamples", "parameters", "units", "answer")
    places = (0.95, 3.65, 6.35, 9.05)
    for x, words in zip(places, stages, strict=True):
        box(axis, x, 0.0, words)
    box(axis, places[2], -1.65, "input")
    for a, b in pairwise(places):
        axis.annotate(
            "", (b - 0.8, 0), (a + 0.8, 0), arrowprops={"arrowstyle": "-|>", "color": "#555555"}
        )
    axis.annotate(
        "", (6.35, -0.4), (6.35, -1.3), arrowprops={"arrowstyle": "-|>", "color": "#555555"}
    )
    spots = {1: (6.35, 1.75), 2: (8.6, -1.0), 3: (3.65, -1.35), 4: (0.95, 1.6), 5: (8.6, -2.1)}
    targets = {1: (6.35, 0.4), 2: (6.9, -0.25), 3: (3.65, -0.4), 4: (0.95, 0.55), 5: (6.9, -1.75)}
    for i, (number, (lens, question)) in enumerate(parts.items()):
        color = figures.CYCLE[i]
        text = f"{number}  {lens}\n{_wrapped(question, 26)}"
        axis.annotate(
            text,
            targets[number],
            spots[number],
            ha="center",
            va="center",
            fontsize=7,
            color=color,
            arrowprops={"arrowstyle": "->", "color": color, "lw": 1, "shrinkB": 2},
        )
    return fig


def box(axis: Axes, x: float, y: float, words: str) -> None:
    """Words in a rounded box of a diagram."""
    style = {"boxstyle": "round,pad=0.5", "facecolor": "#f2f2f2", "edgecolor": "#555555"}
    axis.text(x, y, words, ha="center", va="center", fontsize=8, bbox=style)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, width))


def sections(
    names: Sequence[str], claims: Iterable[Claim], stands: Callable[[str], bool]
) -> Figure:
    """Claims per notebook of a part; hatched where the notebook is still to come."""
    notebooks = [claim.notebook for claim in claims]
    counts = [notebooks.count(name) for name in names]
    fig, (axis,) = figures.panels(width=figures.ONE_COLUMN * 1.5, height=0.4 + 0.28 * len(names))
    for i, (name, count) in enumerate(zip(names, counts, strict=True)):
        hatch, words = ("", f"{count} claims") if stands(name) else ("////", "to come")
        axis.barh(i, max(count, 0.2), color=figures.ROLE["main"], alpha=0.8, hatch=hatch)
        axis.text(max(count, 0.2) + 0.2, i, words, va="center", fontsize=7)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.set(xlim=(0, max([*counts, 5]) + 2), xlabel="claims in the ledger")
    return fig
