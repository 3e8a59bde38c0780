"""Figures that the case studies share: units by category, the map of units, top images of units.

Each returns the figure without writing it; the notebook adds the provenance and saves it.

Public names: `category_bars`, `draw_bars`, `stack`, `map_of_units`, `mosaic`, `top_images`,
`histories`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib import cache, drawings, figures
from lib.data.annotations import CATEGORIES
from lib.figures import ROLE
from lib.monitoring import cases, measures
from lib.monitoring.activations import ConceptSet
from lib.monitoring.cases import LAST, Setting, Task
from lib.monitoring.record import Record, Trace
from lib.monitoring.similarity import top_images as most_activating
from lib.monitoring.stored import hash_of
from lib.training.pruning import State

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# high-level categories first, from the bottom of each bar; low-level ones are hatched
ORDER = ("scene", "object", "part", "material", "texture", "color")
LOOK = {
    "scene": (ROLE["main"], ""),
    "object": (ROLE["seventh"], ""),
    "part": (ROLE["third"], ""),
    "material": (ROLE["sixth"], "//"),
    "texture": (ROLE["second"], "//"),
    "color": ("#dddddd", "//"),
}
SHOWN = {"color": "colour"}
NAMES = {"clip": "trained encoder", "oracle": "oracle", "net_dissection": "Network Dissection"}
TOP = 4  # images shown of a unit
UNIT_ROLES = ("fifth", "fourth", "third", "main", "second")


def draw_bars(
    axis: Axes, trace: Trace, concepts: ConceptSet, *, at: Sequence[float] | None = None
) -> None:
    """A bar a checkpoint: shares of units by the category of their word, if interpretable."""
    kinds = measures.kinds(trace.label, concepts)
    m = kinds.shape[1]
    x = list(range(len(trace.epochs))) if at is None else list(at)
    stack(
        axis,
        x,
        {
            name: ((kinds == CATEGORIES.index(name)) & trace.interpretable).sum(1) / m
            for name in ORDER
        },
    )
    axis.set(xticks=x, xticklabels=[str(epoch) for epoch in trace.epochs])


def stack(axis: Axes, x: Sequence[float], shares: Mapping[str, Tensor]) -> None:
    """Bars at `x` of shares by category, each on the one before: category -> `[len(x)]`."""
    floor = torch.zeros(len(x))
    for name, share in shares.items():
        colour, hatch = LOOK[name]
        axis.bar(
            x,
            share,
            bottom=floor,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.4,
            label=SHOWN.get(name, name),
        )
        floor = floor + share


def category_bars(
    record: Record,
    chance: Record,
    concepts: ConceptSet,
    *,
    detectors: Sequence[str] = cases.DETECTORS,
    layers: Sequence[str] = cases.LAYERS,
    xlabel: str = "completed epochs",
) -> Figure:
    """Rows of detectors, columns of layers; a black tick a bar: what permuted images give."""
    fig, axes = figures.panels(len(detectors), len(layers), height=1.45, sharex=True, sharey="row")
    for axis, (name, layer) in zip(
        axes, ((name, layer) for name in detectors for layer in layers), strict=True
    ):
        trace = record.trace(name, layer)
        draw_bars(axis, trace, concepts)
        null = chance.trace(name, layer).interpretable.double().mean(1)
        axis.scatter(
            range(len(null)), null, marker="_", s=60, color="black", zorder=3, label="chance"
        )
        if name == detectors[0]:
            axis.set_title(f"{layer}, {trace.label.shape[1]} units")
        if name == detectors[-1]:
            axis.set_xlabel(xlabel)
        if layer == layers[0]:
            axis.set_ylabel(f"{NAMES[name]}\nshare of units")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=7, columnspacing=1.0)
    return fig


def map_of_units(
    record: Record,
    anchors: Sequence[str],
    *,
    epochs: Sequence[int],
    units: Sequence[int] = (),
    detector: str = "clip",
    layer: str = LAST,
    arm: str | None = None,
) -> Figure:
    """The embedding space at some checkpoints: units, anchors, and the way of chosen units.

    Args:
        units: drawn in colour with the way that they have come since the first checkpoint.
    """
    trace = record.trace(detector, layer, arm)
    concepts, points = record.space.concepts, record.basis.points
    fig, axes = figures.panels(1, len(epochs), height=2.6, sharex=True, sharey=True)
    generator = torch.Generator().manual_seed(0)
    for axis, epoch in zip(axes, epochs, strict=True):
        at = trace.epochs.index(epoch)
        # units that mean the same words lie on one point: a hair of jitter shows how many
        extent = (points.amax(0) - points.amin(0)).max()
        jitter = 0.012 * extent * torch.randn(trace.xy[at].shape, generator=generator)
        xy, clear = trace.xy[at] + jitter, trace.interpretable[at]
        axis.scatter(
            points[:, 0],
            points[:, 1],
            s=3,
            color="#cccccc",
            marker="x",
            linewidth=0.5,
            label="words",
        )
        for chosen, face, label in (
            (~clear, "none", "unit"),
            (clear, "#777777", "interpretable unit"),
        ):
            axis.scatter(
                xy[chosen, 0],
                xy[chosen, 1],
                s=9,
                facecolor=face,
                edgecolor="#777777",
                linewidth=0.5,
                label=label,
            )
        for anchor in anchors:
            x, y = points[concepts.number(anchor)].tolist()
            axis.scatter([x], [y], marker="*", s=45, color="#c00000", zorder=4)
            axis.annotate(
                anchor, (x, y), (2, 3), textcoords="offset points", fontsize=6, color="#c00000"
            )
        for unit, role in zip(units, UNIT_ROLES, strict=False):
            way = trace.xy[: at + 1, unit]
            axis.plot(*way.T, color=ROLE[role], linewidth=1, zorder=5)
            axis.scatter(
                way[-1:, 0], way[-1:, 1], color=ROLE[role], s=26, zorder=6, edgecolor="black"
            )
        axis.set(title=f"{epoch} epochs", xticks=[], yticks=[])
    handles, labels = axes[0].get_legend_handles_labels()
    for unit, role in zip(units, UNIT_ROLES, strict=False):
        handles.append(axes[0].scatter([], [], color=ROLE[role], edgecolor="black", s=26))
        labels.append(f"unit {unit}")
    fig.legend(handles, labels, loc="outside upper center", ncols=6)
    return fig


def mosaic(images: Tensor) -> Tensor:
    """Four images uint8 `[4, h, w, 3]` as one, two by two with a white gap: float `[3, H, W]`."""
    h, w = images.shape[1:3]
    out = torch.ones(3, 2 * h + 2, 2 * w + 2)
    for k, image in enumerate(images[:4]):
        down, right = (k // 2) * (h + 2), (k % 2) * (w + 2)
        out[:, down : down + h, right : right + w] = image.permute(2, 0, 1).float() / 255
    return out


def top_images(
    at: Setting, task: Task, checkpoints: Mapping[int, State], layer: str = LAST
) -> dict[int, Tensor]:
    """The most activating probing images of each unit, most first, `[M, TOP]`, by epoch; cached."""
    states = {str(epoch): cache.state_hash(state) for epoch, state in checkpoints.items()}
    config = {"states": states, "probe": hash_of(at.probe), "layer": layer}

    def build() -> dict[str, Tensor]:
        found = {}
        for epoch, state in checkpoints.items():
            model = cases.network(task, state)
            acts = at.probe.activations(model, [layer], maps=False)[layer]
            found[str(epoch)] = most_activating(acts.pooled, TOP)[1].int()
        return found

    entry = cache.fetch("top-images", config, build, code=[cases.network, most_activating])
    return {epoch: entry[str(epoch)].long() for epoch in checkpoints}


def histories(
    at: Setting,
    trace: Trace,
    tops: Mapping[int, Tensor],
    units: Sequence[int],
    epochs: Sequence[int],
) -> Figure:
    """A row a unit, a column an epoch: its most activating images, its word and attainment."""
    fig, axes = figures.panels(len(units), len(epochs), width=1.1 * len(epochs) + 0.6, height=1.35)
    cells = iter(axes)
    for unit in units:
        for epoch in epochs:
            step = trace.epochs.index(epoch)
            axis = next(cells)
            axis.imshow(mosaic(at.world.images[tops[epoch][unit]]).permute(1, 2, 0))
            word = at.concepts.words[int(trace.label[step, unit])]
            reached = float(trace.attainment[step, unit])
            mark = "" if trace.interpretable[step, unit] else " (no)"
            drawings.without_frame(axis, f"{word} {reached:.2f}{mark}")
            if unit == units[0]:
                axis.set_title(f"{epoch} epochs", fontsize=7)
            if epoch == epochs[0]:
                axis.set_ylabel(f"unit {unit}", fontsize=7)
    return fig
