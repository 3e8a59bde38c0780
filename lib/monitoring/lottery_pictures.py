"""The figures of notebook 23: accuracy, interpretable units after rewinding, controls, retention.

Each returns the figure without writing it; the notebook adds the provenance and saves it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lib import bootstrap, figures
from lib.figures import DASHES, MARKERS, ROLE
from lib.monitoring import lottery_studies as studies
from lib.monitoring.case_pictures import NAMES, draw_bars
from lib.monitoring.lottery_studies import PERCENTS, Study
from lib.monitoring.measures import Statistic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

ROLES = ("main", "second", "third")


def stage_axis(axis: Axes, study: Study) -> None:
    """Ticks at the stages, by the share of weights left."""
    axis.set_xticks(range(len(study.left)))
    axis.set_xticklabels([f"{100 * left:.3g}" for left in study.left])
    axis.set_xlabel("weights left, %")


def _line(
    axis: Axes, x: Sequence[float], statistic: Statistic, n: int, *, order: int, label: str
) -> None:
    """A statistic `[len(x), b]` of rows drawn from n, with its 95% interval."""
    generator = torch.Generator().manual_seed(0)
    low, high = bootstrap.interval(statistic, n, generator=generator, n_draws=400)
    colour = ROLE[ROLES[order]]
    axis.plot(
        x,
        statistic(torch.arange(n)[None])[:, 0],
        color=colour,
        marker=MARKERS[order],
        linestyle=DASHES[order],
        label=label,
    )
    axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def draw_shares(axis: Axes, values: Tensor, *, order: int, label: str) -> None:
    """Means over the columns of float64 `[stages, n]` by stage, with 95% bands."""
    stages, n = values.shape
    _line(axis, range(stages), lambda rows: values[:, rows].mean(-1), n, order=order, label=label)


def accuracy(study: Study) -> Figure:
    """Accuracy of trained networks by stage, a line an arm."""
    fig, (axis,) = figures.panels(1, 1, width=figures.ONE_COLUMN * 1.4, height=2.4)
    for order, rewind in enumerate(study.rewinds):
        label = f"rewound to epoch {rewind}"
        draw_shares(axis, study.right[rewind].double(), order=order, label=label)
    stage_axis(axis, study)
    axis.set_ylabel("accuracy")
    figures.legend(fig, axis)
    return fig


def after_rewinding(study: Study) -> Figure:
    """Interpretable units without colour by stage: rewound and trained, rows of detectors."""
    fig, axes = figures.panels(2, 2, height=2.0, sharex=True, sharey="row")
    cells = [(name, state) for name in study.detectors for state in studies.STATES]
    for axis, (name, state) in zip(axes, cells, strict=True):
        for order, rewind in enumerate(study.rewinds):
            units = studies.shares_after_rewinding(study, state, rewind, name).double()
            draw_shares(axis, units, order=order, label=f"rewound to epoch {rewind}")
        if name == study.detectors[0]:
            axis.set_title("after rewinding" if state == "rewound" else "after training")
        if state == studies.STATES[0]:
            axis.set_ylabel(f"{NAMES[name]}\nshare of units")
        if name == study.detectors[-1]:
            stage_axis(axis, study)
    figures.legend(fig, axes[0])
    return fig


def controls(study: Study) -> Figure:
    """At the last stage, rewound to the start: the learned mask and what else has a mask."""
    fig, axes = figures.panels(2, 2, height=1.9, sharex=True, sharey="row")
    start, concepts = study.rewinds[0], study.at.concepts
    names = ("no mask", "learned\nmask", "random\nmasks", "learned mask,\nother weights")
    columns = (("", "batch norms as they are"), ("re-estimated ", "batch norms estimated again"))
    cells = itertools.product(studies.COUNTS.items(), columns)
    for axis, ((words, counted), (prefix, title)) in zip(axes, cells, strict=True):
        for order, detector in enumerate(study.detectors):
            own = study.trace("re-estimated" if prefix else "rewound", start, detector)
            learned = counted(own, concepts).double().mean(1)
            drawn = [
                counted(study.control(prefix + name, detector), concepts).double().mean(1)
                for name in ("random", "other")
            ]
            groups = (learned[:1], learned[-1:], *drawn)
            axis.scatter(
                [x + 0.2 * (order - 0.5) for x, group in enumerate(groups) for _ in group],
                torch.cat(groups),
                color=ROLE[ROLES[order]],
                marker=MARKERS[order],
                s=18,
                label=NAMES[detector],
            )
        axis.set(xticks=range(len(names)), xticklabels=names, xlim=(-0.5, len(names) - 0.4))
        axis.tick_params(axis="x", labelsize=6)
        if words == next(iter(studies.COUNTS)):
            axis.set_title(title)
        if not prefix:
            axis.set_ylabel(f"share of units,\n{words}")
    figures.legend(fig, axes[0])
    return fig


def retention(study: Study) -> Figure:
    """R(x) of each arm, for trained and for rewound networks of later stages."""
    fig, axes = figures.panels(1, 2, height=2.3, sharey=True)
    for axis, state in zip(axes, ("trained", "rewound"), strict=True):
        for order, rewind in enumerate(study.rewinds):
            statistic, m = studies.curves(study, rewind, state)
            label = f"rewound to epoch {rewind}"
            _line(axis, PERCENTS, statistic, m, order=order, label=label)
        axis.set(
            title=f"later stages {state}", xlabel="most interpretable units, %", ylim=(-0.04, 1.04)
        )
    axes[0].set_ylabel("share that keeps its word")
    figures.legend(fig, axes[0])
    return fig


def categories(study: Study, state: str = "rewound", detector: str | None = None) -> Figure:
    """Shares of interpretable units by category and stage, a panel an arm."""
    fig, axes = figures.panels(1, len(study.rewinds), height=2.1, sharey=True)
    for axis, rewind in zip(axes, study.rewinds, strict=True):
        draw_bars(axis, study.trace(state, rewind, detector), study.at.concepts)
        axis.set(title=f"rewound to epoch {rewind}", xlabel="stage")
    axes[0].set_ylabel("share of units")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=6)
    return fig
