"""The figures of notebook 13: what is left of a concept when training images are removed.

Each returns the figure without writing it; the notebook adds the provenance and saves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib import figures
from lib.attribution.concept_cases import Study
from lib.attribution.concept_retraining import Readings, Removal
from lib.attribution.concept_studies import equivalence
from lib.figures import ROLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROLES = {"frozen": "main", "refit": "second"}
WORDS = {"frozen": "probe frozen", "refit": "probe follows"}
MARGIN = 0.02
OWN = "accuracy on the own task"


def effects(found: Mapping[str, Removal], rankings: Sequence[str]) -> Figure:
    """A row a concept: its detection, its signed logit, the networks' own task, against T.

    Bottom and class-matched sets are those of the first ranking.
    """
    fig, axes = figures.panels(len(found), 3, height=2.3, sharex="row")
    for row, (name, removal) in enumerate(found.items()):
        at = name, removal.layer
        kinds = (
            (f"{name}, {removal.layer}: accuracy", lambda r, at=at: r.accuracy[at]),
            ("signed logit, attributed images", lambda r, at=at: r.logits[at].mean(1)),
            (OWN, lambda r: r.task),
        )
        for axis, (title, value) in zip(axes[3 * row : 3 * row + 3], kinds, strict=True):
            x = (0, *removal.counts)
            for order, (words, role, key) in enumerate(_lines(rankings)):
                stages = [removal.whole, *(removal.after[*key, t] for t in removal.counts)]
                _line(axis, x, torch.stack([value(r) for r in stages], 1), words, role, order)
            if removal.concept and title != OWN:  # whose classes would be gone
                count, gone, _ = removal.concept
                mean = value(gone).mean().item()
                axis.plot(count, mean, "k*", markersize=7)
                words = "the whole concept"
                axis.annotate(
                    words, (count, mean), (-5, 3), "data", "offset points", ha="right", fontsize=6
                )
            axis.set(title=title, xlabel="training images removed, T")
    figures.legend(fig, axes[0])
    return fig


def _lines(rankings: Sequence[str]) -> list[tuple[str, str, tuple[str, str]]]:
    lines = [("random", "random", ("", "random"))]
    for name in rankings:
        lines.append((f"top, {WORDS[name]}", ROLES[name], (name, "top")))
    name = rankings[0]
    lines.append(("random, classes of the top", "third", (name, "class-matched")))
    lines.append(("bottom", "fifth", (name, "bottom")))
    return lines


def _line(
    axis: Axes, x: Sequence[float], values: Tensor, words: str, role: str, order: int
) -> None:
    """Mean over networks with two standard errors."""
    axis.errorbar(
        x,
        values.mean(0),
        yerr=2 * values.std(0) / len(values) ** 0.5,
        color=ROLE[role],
        marker=figures.MARKERS[order],
        linestyle=figures.DASHES[order],
        label=words,
        capsize=2,
    )


def sparsity(found: Removal, rankings: Sequence[str], sizes: Sequence[int]) -> Figure:
    """Accuracy by number of units the probe may read (`sizes`): a panel a ranking, a line a T."""
    at = found.case.name, found.layer
    fig, axes = figures.panels(1, len(rankings) + 1, height=2.5, sharey=True)
    panels = [("random", "", "random"), *((WORDS[name], name, "top") for name in rankings)]
    colors = figures.sequence(len(found.counts) + 1)
    for axis, (words, name, design) in zip(axes, panels, strict=True):
        for k, count in enumerate((0, *found.counts)):
            readings = found.after[name, design, count] if count else found.whole
            values = readings.sparse[at]
            axis.errorbar(
                sizes,
                values.mean(0),
                yerr=2 * values.std(0) / len(values) ** 0.5,
                color=colors[k],
                marker=figures.MARKERS[k],
                label=f"T = {count:,}",
                capsize=1,
            )
        title = f"{design}, {words}" if name else words
        axis.set_title(f"{title} removed")
        figures.units_axis(axis, "units, k")
    axes[0].set_ylabel(f"{found.case.name}, {found.layer}: accuracy")
    figures.legend(fig, axes[0])
    return fig


def layers(found: Removal, study: Study, rankings: Sequence[str]) -> Figure:
    """Accuracy by layer: a panel a ranking, a line a T."""
    fig, axes = figures.panels(1, len(rankings) + 1, height=2.3, sharey=True)
    panels = [("random", "", "random"), *((WORDS[name], name, "top") for name in rankings)]
    colors = figures.sequence(len(found.counts) + 1)
    x = range(len(study.layers))
    for axis, (words, name, design) in zip(axes, panels, strict=True):
        for k, count in enumerate((0, *found.counts)):
            readings = found.after[name, design, count] if count else found.whole
            values = _by_layer(readings, study, found.case.name)
            axis.errorbar(
                x,
                values.mean(1),
                yerr=2 * values.std(1) / values.shape[1] ** 0.5,
                color=colors[k],
                marker=figures.MARKERS[k],
                label=f"T = {count:,}",
                capsize=2,
            )
        axis.set(title=f"{words} removed" if not name else f"{design}, {words} removed")
        axis.set(xticks=x, xticklabels=study.layers, xlim=(-0.3, len(x) - 0.7))
    axes[0].set_ylabel(f"{found.case.name}: accuracy")
    figures.legend(fig, axes[0])
    return fig


def _by_layer(readings: Readings, study: Study, name: str) -> Tensor:
    return torch.stack([readings.accuracy[name, layer] for layer in study.layers])


def equivalences(found: Mapping[str, Removal], rankings: Sequence[str]) -> Figure:
    """Accuracy after removing the top minus after removing random rows, with the margin."""
    fig, axes = figures.panels(1, len(found), height=2.6, sharex=True)
    for axis, (name, removal) in zip(axes, found.items(), strict=True):
        axis.axvspan(-MARGIN, MARGIN, color=ROLE["random"], alpha=0.2, linewidth=0, label="margin")
        axis.axvline(0, color="black", linewidth=0.8)
        for k, ranking in enumerate(rankings):
            for row, count in enumerate(removal.counts):
                e = equivalence(removal.difference(ranking, count), MARGIN)
                axis.errorbar(
                    e.mean,
                    row + 0.22 * (k - (len(rankings) - 1) / 2),
                    xerr=[[e.mean - e.low], [e.high - e.mean]],
                    fmt=figures.MARKERS[k],
                    color=ROLE[ROLES[ranking]],
                    label=WORDS[ranking] if row == 0 else "_",
                    capsize=2,
                )
        n = len(removal.whole.task)
        axis.set_yticks(range(len(removal.counts)), [f"T = {t:,}" for t in removal.counts])
        axis.invert_yaxis()
        axis.set(title=f"{name}, {removal.layer}, {n} pairs", xlabel="accuracy, top minus random")
    figures.legend(fig, axes[0])
    return fig


def one_removal(found: Removal, ranking: str, count: int) -> Figure:
    """Every network's concept accuracy and own-task accuracy, top against random, paired."""
    fig, axes = figures.panels(1, 2, height=2.3)
    top, other = found.after[ranking, "top", count], found.after["", "random", count]
    at = found.case.name, found.layer
    pairs = ((top.accuracy[at], other.accuracy[at], "concept"), (top.task, other.task, "own task"))
    for axis, (a, b, words) in zip(axes, pairs, strict=True):
        axis.scatter(b, a, s=10, color=ROLE[ROLES[ranking]])
        low, high = min(a.min(), b.min()).item(), max(a.max(), b.max()).item()
        axis.plot([low, high], [low, high], color="black", linestyle=":")
        title = f"{words}: mean difference {(a - b).mean():+.4f}"
        axis.set(title=title, xlabel=f"{count} random removed", ylabel=f"top {count} removed")
    return fig
