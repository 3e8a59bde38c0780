"""The figures of notebook 22 that only it has: growth and spread, cuts, the second probing set.

Each returns the figure without writing it; the notebook adds the provenance and saves it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lib import bootstrap, drawings, figures
from lib.figures import DASHES, MARKERS, ROLE
from lib.monitoring import cases, measures
from lib.monitoring import standard_studies as studies
from lib.monitoring.case_pictures import NAMES, mosaic, top_images
from lib.monitoring.cases import LAST
from lib.monitoring.standard_studies import Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

ROLES = ("main", "second", "third")


def band(draws: measures.Statistic, n: int, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Value over all n units `[E]` and its 95% bootstrap interval `[2, E]`.

    Args:
        draws: rows of units to values at E checkpoints.
        centred: about the value, see `bootstrap.interval`.
    """
    value = draws(torch.arange(n)[None])[:, 0]
    generator = torch.Generator().manual_seed(0)
    return value, bootstrap.interval(draws, n, generator=generator, n_draws=400, centred=centred)


def _interval(
    axis: Axes,
    x: Sequence[int],
    found: tuple[Tensor, Tensor],
    order: int,
    label: str,
) -> None:
    """A line with a band."""
    value, (low, high) = found
    colour = ROLE[ROLES[order]]
    axis.plot(x, value, color=colour, marker=MARKERS[order], linestyle=DASHES[order], label=label)
    axis.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _shares(units: Tensor) -> measures.Statistic:
    """Share of units at each checkpoint, from bool as float64 `[E, M]`."""
    return lambda rows: units[:, rows].mean(-1)


def trends(study: Study) -> Figure:
    """Interpretable units without colour, S1 and S2 of the last layer by epoch, and accuracy."""
    fig, axes = figures.panels(1, 3, height=2.3)
    epochs = study.epochs
    concepts, space = study.at.concepts, study.at.space
    for order, name in enumerate(cases.DETECTORS):
        trace, blind = (r.trace(name, LAST) for r in (study.record, study.chance))
        plain = measures.counted(trace, concepts).double()
        null = measures.counted(blind, concepts).double().mean(1)
        drawn = band(_shares(plain), plain.shape[1], centred=False)
        _interval(axes[0], epochs, drawn, order, NAMES[name])
        axes[0].plot(epochs, null, color=ROLE[ROLES[order]], linestyle=":", linewidth=1)
        if name == "net_dissection":
            continue  # its scores are so small that Eq. 1 gives the plain mean of five words
        for axis, which in ((axes[1], 0), (axes[2], 1)):
            *both, n = measures.spreads(trace, space)
            drawn = band(both[which], n, centred=True)
            _interval(axis, epochs, drawn, order, NAMES[name])
            *both, n = measures.spreads(blind, space)
            line = both[which](torch.arange(n)[None])[:, 0]
            axis.plot(epochs, line, color=ROLE[ROLES[order]], linestyle=":", linewidth=1)
    axes[0].plot(
        epochs, [study.accuracy[e] for e in epochs], color="black", marker="x", label="accuracy"
    )
    axes[0].set(title="interpretable, not colour", ylabel="share of units; accuracy")
    axes[1].axhline(5**-0.5, color=ROLE["control"], linewidth=0.8)
    axes[1].set(title="relative spread S1", ylabel="distance, in that of words")
    axes[2].set(title="effective concepts S2", ylabel="number of words")
    for axis in axes:
        axis.set_xlabel("completed epochs")
    figures.legend(fig, axes[0])
    return fig


def cuts(study: Study) -> Figure:
    """Interpretable units without colour by epoch, a line for each cut of the attainment."""
    fig, axes = figures.panels(1, 2, height=2.1, sharey=True)
    colours = figures.sequence(len(studies.CUTS))
    for axis, name in zip(axes, studies.WORDS, strict=True):
        trace = study.record.trace(name, LAST)
        found = studies.sweep(trace, study.rules[name, LAST], study.at.concepts)
        for k, (cut, line) in enumerate(zip(studies.CUTS, found, strict=True)):
            axis.plot(study.epochs, line, color=colours[k], marker=MARKERS[k], label=f"{cut:g}")
        axis.set(title=NAMES[name], xlabel="completed epochs")
    axes[0].set_ylabel(f"units of {trace.label.shape[1]}, not colour")
    figures.legend(fig, axes[0], title="attainment above")
    return fig


def two_sets(study: Study, detector: str = "clip", *, n_units: int = 6) -> Figure:
    """Units whose thing the second set lacks, then others: top images and word on both sets."""
    found, _ = studies.measure_other_set(study, detector, n_draws=1)
    trace = study.record.trace(detector, LAST)
    numbers = trace.interpretable[-1].nonzero()[:, 0]
    order = torch.cat([found.absent.nonzero()[:, 0], (~found.absent).nonzero()[:, 0]])[:n_units]
    last = {study.epochs[-1]: study.checkpoints[study.epochs[-1]]}
    fig, axes = figures.panels(2, len(order), height=1.4)
    words = study.at.concepts.words
    for row, (at, labels) in enumerate(((study.at, found.before), (study.other_at, found.after))):
        tops: Tensor = top_images(at, study.task, last)[study.epochs[-1]]
        for column, k in enumerate(order.tolist()):
            axis = axes[row * len(order) + column]
            axis.imshow(mosaic(at.world.images[tops[numbers[k]]]).permute(1, 2, 0))
            drawings.without_frame(axis, words[int(labels[k])])
            if row == 0:
                axis.set_title(f"unit {int(numbers[k])}", fontsize=7)
        axes[row * len(order)].set_ylabel(("first set", "second set")[row], fontsize=7)
    return fig
