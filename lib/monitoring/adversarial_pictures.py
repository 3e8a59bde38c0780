"""The figures of notebook 24: accuracy, categories of both arms, cuts, units for classes.

Each returns the figure without writing it; the notebook adds the provenance and saves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from lib import drawings, figures
from lib.figures import MARKERS, ROLE
from lib.monitoring import adversarial_studies as studies
from lib.monitoring import cases
from lib.monitoring.adversarial_studies import ARMS, Study
from lib.monitoring.case_pictures import NAMES, draw_bars, mosaic, top_images
from lib.monitoring.cases import LAST, LAYERS

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from lib.monitoring.real_pairs import Pair

ROLES = {"standard": "main", "robust": "fourth"}


def attacks(study: Study, changes: Mapping[str, tuple[Tensor, Tensor, list[str]]]) -> Figure:
    """Left: accuracy of both arms, clean and attacked. Right: attacked images and their changes."""
    n = len(changes["robust"][2])
    fig, axes = figures.panels(len(ARMS), n + 1, height=1.3, width=figures.TWO_COLUMN)
    for row, arm in enumerate(ARMS):
        found = study.measured[arm]
        bars = axes[row * (n + 1)]
        values = [found.clean_accuracy, found.attacked_accuracy]
        bars.bar([0, 1], values, color=[ROLE["control"], ROLE[ROLES[arm]]], width=0.7)
        for x, value in enumerate(values):
            bars.text(x, value + 0.02, f"{value:.2f}", ha="center", fontsize=6)
        bars.set(
            title=arm,
            ylim=(0, 1.15),
            xticks=[0, 1],
            xticklabels=["clean", "attacked"],
            yticks=[0, 1],
        )
        images, change, read = changes[arm]
        largest = change.abs().amax()
        for k in range(n):
            axis = axes[row * (n + 1) + 1 + k]
            pair = torch.cat([images[k], 0.5 + change[k] / largest / 2], 2)
            axis.imshow(pair.permute(1, 2, 0))
            true = study.task.names[int(study.test.y[k])]
            drawings.without_frame(axis, f"{true}: {read[k]}")
    return fig


def categories(
    study: Study | Pair,
    *,
    detectors: Sequence[str] = ("clip", "oracle"),
    layers: Sequence[str] = LAYERS,
) -> Figure:
    """Shares of interpretable units by category, layer and epoch; the arms side by side."""
    fig, axes = figures.panels(len(detectors), len(layers), height=1.9, sharey="row", sharex=True)
    cells = [(name, layer) for name in detectors for layer in layers]
    for axis, (name, layer) in zip(axes, cells, strict=True):
        ticks: list[float] = []
        labels: list[str] = []
        for k, arm in enumerate(ARMS):
            trace = study.record.trace(name, layer, arm)
            at = [x + k * (len(trace.epochs) + 0.6) for x in range(len(trace.epochs))]
            draw_bars(axis, trace, study.at.concepts, at=at)
            null = study.chance.trace(name, layer, arm).interpretable.double().mean(1)
            label = "chance" if k == 0 else None
            axis.scatter(at, null, marker="_", s=60, color="black", zorder=3, label=label)
            ticks += at
            labels += [str(epoch) for epoch in trace.epochs]
        axis.set(xticks=ticks, xticklabels=labels)
        if name == detectors[0]:
            axis.set_title(f"{layer}: standard | robust")
        if name == detectors[-1]:
            axis.set_xlabel("completed epochs")
        if layer == layers[0]:
            axis.set_ylabel(f"{NAMES[name]}\nshare of units")
    handles, labels = axes[0].get_legend_handles_labels()
    kept = dict(zip(labels, handles, strict=True))  # each category once
    fig.legend(kept.values(), kept.keys(), loc="outside upper center", ncols=7, columnspacing=1.0)
    return fig


def contrasts(study: Study, *, n_draws: int = 1000) -> Figure:
    """Robust minus standard, in shares of units, by detector, with intervals; and the document."""
    fig, (axis,) = figures.panels(1, 1, height=3.2)
    keys = (*LAYERS, "color", "texture", "material", "classes")
    words = [studies.SAID.get(key, "named as a class" if key == "classes" else key) for key in keys]
    for order, (name, role) in enumerate(
        zip(cases.DETECTORS, ("main", "second", "third"), strict=True)
    ):
        found = studies.differences(study, name, n_draws=n_draws)
        for k, key in enumerate(keys):
            value, half = found[key] or (float("nan"), 0.0)
            axis.errorbar(
                value,
                k + 0.16 * (order - 1),
                xerr=half,
                marker=MARKERS[order],
                color=ROLE[role],
                label=NAMES[name] if k == 0 else None,
            )
    for k, key in enumerate(keys):
        if key in studies.PUBLISHED:
            standard, robust, n = studies.PUBLISHED[key]
            axis.scatter(
                (robust - standard) / n,
                k + 0.32,
                marker="*",
                color="black",
                s=30,
                label="document" if key == "layer3" else None,
                zorder=4,
            )
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(yticks=range(len(keys)), yticklabels=words, xlabel="share of units, robust − standard")
    axis.invert_yaxis()
    figures.legend(fig, axis)
    return fig


def cuts(study: Study) -> Figure:
    """Interpretable units of each layer and arm for each cut of the attainment."""
    fig, axes = figures.panels(1, len(LAYERS), height=2.1)
    found = studies.cut_counts(study)
    for axis, layer in zip(axes, LAYERS, strict=True):
        for order, arm in enumerate(ARMS):
            axis.plot(
                studies.CUTS,
                found[arm, layer],
                color=ROLE[ROLES[arm]],
                marker=MARKERS[order],
                label=arm,
            )
        m = study.record.trace("clip", layer, "robust").label.shape[1]
        axis.set(title=layer, xlabel="attainment above", ylim=(0, 1.08 * m))
    axes[0].set_ylabel("interpretable units")
    figures.legend(fig, axes[0])
    return fig


def class_examples(study: Study, *, n_units: int = 6) -> Figure:
    """The last layer's units with the best scores, in each arm: top images and word.

    In the standard arm those named as a class come first.
    """
    fig, axes = figures.panels(len(ARMS), n_units, height=1.55)
    concepts = study.at.concepts
    for row, arm in enumerate(ARMS):
        trace = study.record.trace("clip", LAST, arm)
        named = studies.class_units(study, arm) >= 0
        score = trace.attainment[-1] + 10 * named.float()
        score = score.masked_fill(~trace.interpretable[-1], -1.0)
        units = score.argsort(descending=True, stable=True)[:n_units].tolist()
        last = {study.epochs[-1]: study.checkpoints[arm][study.epochs[-1]]}
        tops = top_images(study.at, study.task, last)[study.epochs[-1]]
        for axis, unit in zip(axes[row * n_units :], units, strict=False):
            axis.imshow(mosaic(study.at.world.images[tops[unit]]).permute(1, 2, 0))
            word = concepts.words[int(trace.label[-1, unit])]
            mark = " (class)" if named[unit] else ""
            drawings.without_frame(axis, f"{word}{mark}")
            axis.set_title(f"unit {unit}", fontsize=7)
        axes[row * n_units].set_ylabel(arm, fontsize=7)
    return fig
