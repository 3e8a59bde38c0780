"""The figures of notebook 21. Each returns the figure; the notebook adds the provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from lib import drawings, figures
from lib.data.annotations import CATEGORIES
from lib.figures import ROLE
from lib.monitoring.activations import ConceptScores, ConceptSet
from lib.monitoring.calibration import Null, Rule
from lib.monitoring.detector_studies import Compared
from lib.monitoring.planted_units import Named
from lib.monitoring.record import Record

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STEPS = {
    "images": (0.08, 0.72, "probing\nimages"),
    "words": (0.08, 0.2, "concept\nwords"),
    "model": (0.29, 0.72, "network after\nepoch t"),
    "text": (0.29, 0.2, "text encoder"),
    "detector": (0.52, 0.72, "concept detector\nscore of each word\nfor each unit"),
    "space": (0.52, 0.2, "word vectors,\nfrozen map"),
    "units": (0.75, 0.46, "unit = weighted mean\nof its 5 best words"),
    "results": (0.97, 0.46, "counts,\npaths,\nspread"),
}
ARROWS = (
    ("images", "model"),
    ("model", "detector"),
    ("words", "text"),
    ("text", "space"),
    ("detector", "units"),
    ("space", "units"),
    ("units", "results"),
)


def schematic() -> Figure:
    """Our own diagram of the method: what is made once, and what for every checkpoint."""
    fig, (axis,) = figures.panels(height=2.3)
    axis.set(xlim=(-0.02, 1.03), ylim=(0, 1))
    axis.axis("off")
    for start, end in ARROWS:
        (x0, y0, _), (x1, y1, _) = STEPS[start], STEPS[end]
        shrink = (32, 16) if end == "results" else (26, 30)  # of a wide box, and of a narrow one
        arrow = {"arrowstyle": "->", "color": "#555555", "shrinkA": shrink[0], "shrinkB": shrink[1]}
        axis.annotate("", (x1, y1), (x0, y0), arrowprops=arrow)
    for x, y, words in STEPS.values():
        drawings.box(axis, x, y, words)
    axis.text(0.29, 0.98, "for every checkpoint", ha="center", color=ROLE["main"], fontsize=8)
    axis.text(0.29, 0.0, "once: nothing here is trained", ha="center", color=ROLE["second"])
    return fig


def planted(found: Sequence[Named], best: Named, concepts: ConceptSet, chosen: str) -> Figure:
    """Share of planted units named right: by similarity, and by category for the chosen one.

    Args:
        best: what nothing that reads the same units can exceed; a line and crosses.
    """
    encoders = list(dict.fromkeys(one.encoder for one in found))
    variants = list(dict.fromkeys(one.variant for one in found))
    fig, axes = figures.panels(1, 2, height=2.6, gridspec_kw={"width_ratios": (1.25, 1)})
    for order, name in enumerate(encoders):
        color, marker = figures.CYCLE[order], figures.MARKERS[order]
        shift = 0.12 * (2 * order - 1)
        pairs = [next(x for x in found if (x.variant, x.encoder) == (v, name)) for v in variants]
        values, sds = zip(*(one.share for one in pairs), strict=True)
        y = [k + shift for k in range(len(variants))]
        axes[0].errorbar(values, y, xerr=sds, fmt=marker, color=color, label=name)
        one = pairs[variants.index(chosen)]
        shares = one.by_category(concepts)
        axes[1].plot(
            list(shares.values()),
            [k + shift for k in range(len(CATEGORIES))],
            marker,
            color=color,
        )
    color, most = ROLE["third"], list(best.by_category(concepts).values())
    axes[0].axvline(best.share[0], linestyle="--", color=color, label=best.variant)
    axes[1].plot(most, range(len(CATEGORIES)), "x", color=color)
    axes[0].set_yticks(range(len(variants)), variants)
    axes[1].set_yticks(range(len(CATEGORIES)), [k.replace("color", "colour") for k in CATEGORIES])
    for axis in axes:
        axis.axvline(1 / len(concepts), color=ROLE["control"], linestyle=":")
        axis.set(xlim=(-0.03, 1.05), xlabel="planted units named right")
        axis.invert_yaxis()
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_title("by similarity function")
    axes[1].set_title(f"{chosen}\nby category")
    figures.legend(fig, axes[0])
    return fig


def thresholds(
    scores: Mapping[str, ConceptScores], nulls: Mapping[str, Null], rules: Mapping[str, Rule]
) -> Figure:
    """Best score and its attainment for each unit, beside the same with images permuted."""
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    fig, axes = figures.panels(1, len(scores), height=2.6, sharey=True)
    for axis, (name, found) in zip(axes, scores.items(), strict=True):
        null, rule = nulls[name], rules[name]
        best, label = found.top(1)
        assert found.attainment is not None
        reached = found.attainment.gather(1, label.long())[:, 0]
        axis.plot(
            null.best.flatten(), null.attainment.flatten(), ".", ms=1.5, alpha=0.4,
            color=ROLE["control"], label="images permuted", rasterized=True,
        )  # fmt: skip
        axis.plot(best[:, 0], reached, "o", ms=3, mfc="none", color=ROLE["main"], label="units")
        axis.axvline(rule.tau, color=ROLE["second"], linestyle="--", label="99% of permuted")
        if rule.attainment is not None:
            axis.axhline(rule.attainment, color=ROLE["third"], linestyle=":", label="attainment .5")
        n = int(rule.interpretable(found).sum())
        axis.set_title(f"{name}: {n} of {len(found.dead)} units pass both")
        axis.set(xlabel="best score h")
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0].set(ylabel="attainment of the best word")
    figures.legend(fig, axes[0])
    return fig


def agreement_map(masks: ConceptScores, words: ConceptScores, concepts: ConceptSet) -> Figure:
    """Units by category of Network Dissection's label and of the word."""
    kinds = torch.tensor([CATEGORIES.index(name) for name in concepts.category()])
    chosen = masks.best > 0.04
    pairs = kinds[masks.label.long()] * len(CATEGORIES) + kinds[words.label.long()]
    side = len(CATEGORIES)
    counts = torch.bincount(pairs[chosen], minlength=side**2).view(side, side)
    fig, (axis,) = figures.panels(width=figures.ONE_COLUMN * 1.1, height=2.9)
    shown = axis.imshow(counts, cmap="viridis")
    names = [name.replace("color", "colour") for name in CATEGORIES]
    axis.set_xticks(range(side), names, rotation=45, ha="right")
    axis.set_yticks(range(side), names)
    for row in range(side):
        for column in range(side):
            n = int(counts[row, column])
            dark = n < 0.6 * int(counts.max())
            color = "white" if dark else "black"
            axis.text(column, row, f"{n}", ha="center", va="center", fontsize=7, color=color)
    axis.set(xlabel="word by CLIP-Dissect", ylabel="label by Network Dissection")
    fig.colorbar(shown, ax=axis, shrink=0.7, label="units")
    return fig


def two_spaces(found: Compared) -> Figure:
    """How far units move in the learned space and in ours, sorted."""
    fig, (axis,) = figures.panels(width=figures.ONE_COLUMN * 1.5, height=2.5)
    lines = {
        "learned, another probing set": found.units_probe,
        "learned, half of the images": found.units_half,
        "learned, another start": found.units_again,
        "ours, another probing set": found.ours_probe,
    }
    for order, (name, values) in enumerate(lines.items()):
        share = torch.arange(1, len(values) + 1) / len(values)
        axis.plot(
            values.sort().values,
            share,
            color=figures.CYCLE[order],
            linestyle=figures.DASHES[order],
            label=name,
        )
    axis.set(xlabel="move, in mean distances of units", ylabel="share of units", ylim=(0, 1.02))
    axis.set_xlim(0, None)
    axis.legend(loc="lower right")
    return fig


def anchored(record: Record, detector: str, layer: str, word: str, epoch: int) -> Figure:
    """Units of a layer on the map at one checkpoint, coloured by their nearness to a word."""
    trace, space = record.trace(detector, layer), record.space
    at = trace.epochs.index(epoch)
    anchor = space.concepts.number(word)
    u = F.normalize(trace.u[at].float(), dim=1)
    cosine = u @ F.normalize(space.vectors[anchor], dim=0)
    fig, (axis,) = figures.panels(width=4.6, height=3.4)
    points = record.basis.points
    axis.plot(*points.T, ".", color="#cccccc", ms=3)
    xy = trace.xy[at]
    shown = axis.scatter(xy[:, 0], xy[:, 1], c=cosine, cmap="viridis", s=14, vmin=0, vmax=1)
    axis.plot(*points[anchor], marker="*", ms=13, color=ROLE["second"], mec="black")
    axis.annotate(word, tuple(points[anchor].tolist()), xytext=(5, 5), textcoords="offset points")
    _plain(axis)
    axis.set_title(f"{layer}, epoch {epoch}: {int((cosine > 0.7).sum())} units near “{word}”")
    fig.colorbar(shown, ax=axis, label="cosine with the word")
    return fig


def _plain(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[], xlabel="map, first axis", ylabel="map, second axis")
