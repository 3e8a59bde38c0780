"""The figures of notebook 25: the task, units by category, lines of categories, the best units.

Each returns the figure without writing it; the notebook adds the provenance and saves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from lib import bootstrap, drawings, figures
from lib.data.scenes.companions import GRADES
from lib.figures import DASHES, MARKERS, ROLE
from lib.monitoring import cases
from lib.monitoring import fine_tuning_studies as studies
from lib.monitoring.case_pictures import NAMES, draw_bars, mosaic
from lib.monitoring.cases import LAST
from lib.monitoring.fine_tuning_studies import Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

LINES = (
    ("object", "seventh"),
    ("scene", "main"),
    ("material", "sixth"),
    ("texture", "second"),
    ("color", "control"),
)


def task(study: Study) -> Figure:
    """An image of each grade, and the accuracy after each epoch with its 95% interval."""
    fig, axes = figures.panels(
        1, len(GRADES) + 1, height=1.6, gridspec_kw={"width_ratios": [1] * len(GRADES) + [2]}
    )
    for grade, axis in enumerate(axes[:-1]):
        row = int((study.test.y == grade).nonzero()[0, 0])
        axis.imshow(study.test.x[row])
        drawings.without_frame(axis, GRADES[grade])
    line = axes[-1]
    low, high, mean = [], [], []
    for epoch in study.epochs:
        right = study.right[epoch].double()
        generator = torch.Generator().manual_seed(0)
        ends = bootstrap.interval(
            lambda rows, right=right: right[rows].mean(-1),  # type: ignore[misc]
            len(right),
            generator=generator,
            n_draws=400,
        )
        mean.append(float(right.mean()))
        low.append(float(ends[0]))
        high.append(float(ends[1]))
    line.plot(study.epochs, mean, marker="o", color=ROLE["main"])
    line.fill_between(study.epochs, low, high, color=ROLE["main"], alpha=0.18, linewidth=0)
    line.axhline(study.majority, color=ROLE["control"], linestyle=":")
    line.annotate(
        "most frequent grade",
        (study.epochs[-1], study.majority),
        (0, 3),
        textcoords="offset points",
        ha="right",
        fontsize=6,
        color="#555555",
    )
    line.set(xlabel="epochs of fine-tuning", ylabel="accuracy", ylim=(0, 1))
    return fig


def categories(study: Study) -> Figure:
    """Shares of the last layer's interpretable units by category and epoch, three detectors."""
    fig, axes = figures.panels(1, len(cases.DETECTORS), height=2.2)
    for axis, name in zip(axes, cases.DETECTORS, strict=True):
        draw_bars(axis, study.record.trace(name, LAST), study.at.concepts)
        null = study.chance.trace(name, LAST).interpretable.double().mean(1)
        axis.scatter(
            range(len(null)), null, marker="_", s=60, color="black", zorder=3, label="chance"
        )
        axis.set(title=NAMES[name], xlabel="epochs of fine-tuning")
    axes[0].set_ylabel("share of units")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=7, columnspacing=1.0)
    return fig


def lines(study: Study) -> Figure:
    """Units with a word of each category by epoch: trained encoder and oracle, 95% intervals."""
    fig, axes = figures.panels(1, 2, height=2.3, sharey=True)
    for axis, name in zip(axes, ("clip", "oracle"), strict=True):
        trace = study.record.trace(name, LAST)
        for order, (kind, role) in enumerate(LINES):
            units = studies.shares(trace, study.at.concepts, kind).double()
            generator = torch.Generator().manual_seed(0)
            low, high = bootstrap.interval(
                lambda rows, units=units: units[:, rows].mean(-1),  # type: ignore[misc]
                units.shape[1],
                generator=generator,
                n_draws=400,
            )
            axis.plot(
                study.epochs,
                units.mean(1),
                color=ROLE[role],
                marker=MARKERS[order],
                linestyle=DASHES[order],
                label="colour" if kind == "color" else kind,
            )
            axis.fill_between(study.epochs, low, high, color=ROLE[role], alpha=0.15, linewidth=0)
        axis.set(title=NAMES[name], xlabel="epochs of fine-tuning")
    axes[0].set_ylabel("share of units")
    figures.legend(fig, axes[0])
    return fig


def best(study: Study, tops: Mapping[int, Tensor]) -> Figure:
    """The five most interpretable units before and after: top images and words."""
    epochs = (study.epochs[0], study.epochs[-1])
    fig, axes = figures.panels(len(epochs), studies.BEST, height=1.45, width=6.0)
    trace = study.record.trace("clip", LAST)
    for row, epoch in enumerate(epochs):
        at = trace.epochs.index(epoch)
        for column, unit in enumerate(studies.best_units(trace, at).tolist()):
            axis = axes[row * studies.BEST + column]
            axis.imshow(mosaic(study.at.world.images[tops[epoch][unit]]).permute(1, 2, 0))
            word = study.at.concepts.words[int(trace.label[at, unit])]
            drawings.without_frame(axis, f"unit {unit}: {word}")
        axes[row * studies.BEST].set_ylabel("before" if row == 0 else "after", fontsize=7)
    return fig
