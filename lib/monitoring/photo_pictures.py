"""The figure of notebook 21 on photographs: units by layer and category, and CLIP's words as a map.

No photograph is shown: licences of most of them are not stated.

Public names: `side_by_side`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from lib import figures
from lib.data.annotations import CATEGORIES
from lib.figures import ROLE
from lib.monitoring.case_pictures import NAMES, stack
from lib.monitoring.photo_studies import LAYERS
from lib.monitoring.photographs import CHANCE, DETECTORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from lib.monitoring.photo_studies import Named, PhotoStudy

KINDS = ("object", "part", "texture", "color")  # that the photographs are labelled for
ANCHORS = ("car (automobile)", "street sign", "dress", "shoe", "hat")  # words of the images
FAR = ("dog", "pizza", "guitar", "sofa")  # names that no label of the images has


def side_by_side(study: PhotoStudy, named: Named) -> Figure:
    """Shares of units by category, layer and detector; right, the last layer among CLIP's names."""
    fig, axes = figures.panels(1, 3, height=2.7, gridspec_kw={"width_ratios": [1, 1, 2]})
    for axis, name in zip(axes[:2], DETECTORS, strict=True):
        _bars(axis, study, name)
    axes[0].set_ylabel("share of units")
    top = max(axis.get_ylim()[1] for axis in axes[:2])
    for axis in axes[:2]:
        axis.set_ylim(0, top)
    _map(axes[2], named)
    handles, labels = axes[0].get_legend_handles_labels()
    more, words = axes[2].get_legend_handles_labels()
    fig.legend(
        handles + more,
        labels + words,
        loc="outside upper center",
        ncols=len(labels + words),
        columnspacing=0.9,
        handletextpad=0.4,
    )
    return fig


def _bars(axis: Axes, study: PhotoStudy, name: str) -> None:
    kinds = torch.tensor([CATEGORIES.index(kind) for kind in study.concepts.category()])
    x = list(range(len(LAYERS)))
    passes = [study.interpretable(name, layer) for layer in LAYERS]
    labels = [kinds[study.scores[name, layer].label.long()] for layer in LAYERS]
    both = list(zip(passes, labels, strict=True))
    stack(
        axis,
        x,
        {
            kind: torch.stack(
                [(ok & (label == CATEGORIES.index(kind))).float().mean() for ok, label in both]
            )
            for kind in KINDS
        },
    )
    chance = [study.interpretable(CHANCE + name, layer).float().mean() for layer in LAYERS]
    axis.scatter(x, chance, marker="_", s=60, color="black", zorder=3, label="chance")
    axis.set_xticks(x, [layer.split(".")[1] for layer in LAYERS])
    axis.set(title=NAMES[name], xlabel="layer (features.*)")


def _map(axis: Axes, named: Named) -> None:
    points = named.basis.points
    axis.scatter(
        points[:, 0], points[:, 1], s=2, color="#cccccc", marker="x", linewidth=0.4, label="names"
    )
    extent = (points.amax(0) - points.amin(0)).max()
    noise = torch.randn(named.xy.shape, generator=torch.Generator().manual_seed(0))
    xy = (named.xy + 0.006 * extent * noise)[named.interpretable]  # units of one word lie apart
    axis.scatter(
        xy[:, 0],
        xy[:, 1],
        s=7,
        facecolor="none",
        edgecolor=ROLE["main"],
        linewidth=0.5,
        label="units",
    )
    for words, colour, label in (
        (ANCHORS, "#c00000", "anchor"),
        (FAR, "#777777", "anchor not in the images"),
    ):
        shown = [word for word in words if word in named.space.concepts.words]
        for k, word in enumerate(shown):
            x, y = points[named.space.concepts.number(word)].tolist()
            axis.scatter(
                [x], [y], marker="*", s=40, color=colour, zorder=4, label=None if k else label
            )
            axis.annotate(
                word.split(" (")[0],
                (x, y),
                (2, 3),
                textcoords="offset points",
                fontsize=6,
                color=colour,
            )
    axis.set(xticks=[], yticks=[], title="features.18 among CLIP's names")
