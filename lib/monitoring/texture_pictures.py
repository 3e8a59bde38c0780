"""The figure of fine-tuning on photographs: accuracy, units by category, lines of categories.

No photograph is shown: licences of most of them are not stated. The figure is returned without
writing it; the notebook adds the provenance and saves it.

Public names: `overview`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lib import bootstrap, figures
from lib.figures import DASHES, MARKERS, ROLE
from lib.monitoring.case_pictures import NAMES, SHOWN, draw_bars
from lib.monitoring.photographs import CHANCE, DETECTORS
from lib.monitoring.texture_studies import CONTROL, KINDS, TUNED, UNTRAINED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from lib.monitoring.texture_studies import TextureStudy

LINES = (("object", "seventh"), ("texture", "second"), ("color", "control"))
WORDS = {CONTROL: "permuted", UNTRAINED: "random"}
GAP = 0.6  # between the network that learns textures and the others


def overview(study: TextureStudy) -> Figure:
    """Accuracy by epochs; bars of categories and lines of three of them, two detectors each."""
    fig, axes = figures.panels(1, 4, height=2.5, gridspec_kw={"width_ratios": [1, 1.55, 1.55, 1.3]})
    _accuracy(axes[0], study)
    for axis, name in zip(axes[1:3], DETECTORS, strict=True):
        _bars(axis, study, name)
    axes[1].set_ylabel("share of units")
    top = max(axis.get_ylim()[1] for axis in axes[1:3])
    for axis in axes[1:3]:
        axis.set_ylim(0, 1.06 * top)
    for k, name in enumerate(DETECTORS):
        _lines(axes[3], study, name, k)
    axes[3].set(xlabel="epochs", ylabel="share of units", title="before and after")
    for axis in (axes[0], axes[3]):
        axis.set_xticks(study.epochs)
    axes[3].set_ylim(bottom=0)
    handles, labels = axes[1].get_legend_handles_labels()
    wanted = [SHOWN.get(kind, kind) for kind in KINDS] + ["chance"]
    shown = {label: handle for handle, label in zip(handles, labels, strict=True)}
    for handle, label in zip(*axes[3].get_legend_handles_labels(), strict=True):
        shown[label] = handle
        wanted.append(label)
    fig.legend(
        [shown[label] for label in wanted],
        wanted,
        loc="outside upper center",
        ncols=len(wanted),
        columnspacing=1.0,
    )
    return fig


def _accuracy(axis: Axes, study: TextureStudy) -> None:
    epochs = study.epochs[1:]
    mean, low, high = zip(
        *(_interval(study.right[TUNED][e].double()[None]) for e in epochs), strict=True
    )
    axis.plot(epochs, mean, marker="o", color=ROLE["main"])
    axis.fill_between(epochs, low, high, color=ROLE["main"], alpha=0.18, linewidth=0)
    control = float(study.right[CONTROL][study.epochs[-1]].double().mean())
    axis.scatter([study.epochs[-1]], [control], marker="s", color=ROLE["control"], s=16)
    axis.annotate(
        "labels permuted",
        (study.epochs[-1], control),
        (0, 5),
        textcoords="offset points",
        ha="right",
        fontsize=6,
        color="#555555",
    )
    axis.axhline(study.majority, color=ROLE["control"], linestyle=":")
    axis.set(xlabel="epochs", ylabel="accuracy", ylim=(0, 1), title="textures")


def _interval(units: Tensor) -> tuple[float, float, float]:
    """Mean of `[1, n]` with the ends of its 95% interval."""
    generator = torch.Generator().manual_seed(0)
    low, high = bootstrap.interval(
        lambda rows: units[0][rows].mean(-1), units.shape[1], generator=generator, n_draws=400
    )
    return float(units.mean()), float(low), float(high)


def _bars(axis: Axes, study: TextureStudy, name: str) -> None:
    """A bar an epoch, then the two networks beside; a black tick: images permuted."""
    x: list[float] = []
    words: list[str] = []
    for arm in (TUNED, CONTROL, UNTRAINED):
        trace = study.trace(name, arm)
        start = len(x) + (GAP if arm != TUNED else 0.0)
        at = [start + k for k in range(len(trace.epochs))]
        draw_bars(axis, trace, study.concepts, at=at)
        null = study.trace(CHANCE + name, arm).interpretable.double().mean(1)
        axis.scatter(at, null, marker="_", s=50, color="black", zorder=3, label="chance")
        x += at
        words += [WORDS.get(arm, str(epoch)) for epoch in trace.epochs]
    axis.set(xticks=x, title=NAMES[name], xlabel="epochs, two controls")
    axis.set_xticklabels(words, fontsize=6, rotation=0)
    for label in axis.get_xticklabels()[-2:]:
        label.set(rotation=90)


def _lines(axis: Axes, study: TextureStudy, name: str, order: int) -> None:
    look: dict[str, Any] = {"marker": MARKERS[order], "linestyle": DASHES[order]}
    axis.plot([], [], color="black", label=NAMES[name], **look)  # the legend's, of no category
    for kind, role in LINES:
        each = study.units(name, kind).double()
        mean, low, high = zip(*(_interval(row[None]) for row in each), strict=True)
        axis.plot(
            study.epochs,
            mean,
            color=ROLE[role],
            **look,
        )
        axis.fill_between(study.epochs, low, high, color=ROLE[role], alpha=0.15, linewidth=0)
