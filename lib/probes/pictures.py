"""The figures of notebook 11: one function a figure, a panel a concept.

Each returns the figure without writing it; the notebook adds the provenance and saves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from lib import drawings, figures
from lib.figures import ROLE
from lib.probes import presence
from lib.probes.evaluate import reliability_curve
from lib.probes.presence import Presence
from lib.probes.testbeds import Testbed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROLES = ("main", "second", "third", "fourth")
ACCURACY = "accuracy on concept images"


def _panels(results: Mapping[str, Presence], height: float = 2.4) -> tuple[Figure, list[Axes]]:
    return figures.panels(1, len(results), sharey=True, height=height)


def _title(name: str, r: Presence, more: str = "") -> str:
    return f"{name}{more}, n = {len(r.concept.test_y)}"


def concept_means(bed: Testbed) -> Figure:
    """Mean positive minus mean negative test image of each concept."""
    fig, axes = figures.panels(1, len(bed.concepts), height=1.9)
    for axis, (name, concept) in zip(axes, bed.concepts.items(), strict=True):
        drawings.class_difference(axis, concept.test_x, concept.test_y)
        axis.set_title(f"{name}, n = {len(concept.test_y)}")
    return fig


def layers(results: Mapping[str, Presence]) -> Figure:
    """Accuracy of dense probes by layer, with the controls."""
    fig, axes = _panels(results)
    for axis, (name, r) in zip(axes, results.items(), strict=True):
        x = list(range(len(r.layers)))
        lines = (
            ("trained", r.dense, "main"),
            ("random weights", r.random_network, "control"),
            ("control task", r.control_task, "fifth"),
            ("shuffled labels", r.shuffled, "second"),
        )
        for order, (label, values, role) in enumerate(lines):
            figures.band(axis, x, values.T, label=label, role=role, order=order)
        axis.axhline(r.raw_input, color=ROLE["third"], linestyle=":", label="raw input")
        axis.set(title=_title(name, r), xlabel="layer", xticks=x)
        axis.set_xticklabels([layer.replace(".conv", "\n.conv") for layer in r.layers])
    axes[0].set_ylabel(ACCURACY)
    figures.legend(fig, axes[0])
    return fig


def sparsity(results: Mapping[str, Presence]) -> Figure:
    """Accuracy of sparse probes by number of units, a line a layer."""
    fig, axes = _panels(results)
    for axis, (name, r) in zip(axes, results.items(), strict=True):
        for i, layer in enumerate(r.layers):
            values = r.sparse[layer].T
            figures.band(axis, r.sizes[layer], values, label=layer, role=ROLES[i], order=i)
        axis.axhline(r.best_control, color=ROLE["control"], linestyle=":", label="best control")
        axis.set_title(_title(name, r))
        figures.units_axis(axis)
    axes[0].set_ylabel(ACCURACY)
    figures.legend(fig, axes[0])
    return fig


def rules(bed: Testbed, results: Mapping[str, Presence]) -> Figure:
    """Accuracy by number of units for each rule of choosing them, at each concept's best layer."""
    fig, axes = _panels(results)
    for axis, (name, r) in zip(axes, results.items(), strict=True):
        layer = r.layers[r.best_layer]
        for i, (rule, values) in enumerate(presence.rule_comparison(bed, r, layer).items()):
            words = rule.replace("_", " ")
            figures.band(axis, r.sizes[layer], values.T, label=words, role=ROLES[i], order=i)
        axis.set_title(_title(name, r, f", {layer}"))
        figures.units_axis(axis)
    axes[0].set_ylabel(ACCURACY)
    figures.legend(fig, axes[0])
    return fig


def consistency(
    results: Mapping[str, Presence],
    overlaps: Mapping[str, tuple[Tensor, list[float]]],
    pairs: Mapping[str, Tensor],
    controls: Mapping[str, Tensor],
) -> Figure:
    """Left: overlap of chosen units on new images; right: correlation of logits of networks.

    Args:
        overlaps: concept -> what `presence.stability` returns at its best layer.
        pairs, controls: concept -> correlations `[L, pairs]` of trained and of random networks.
    """
    fig, (left, right) = figures.panels(1, 2, height=2.8)
    for i, (name, r) in enumerate(results.items()):
        overlap, chance = overlaps[name]
        sizes, x, color = r.sizes[r.layers[r.best_layer]][:-1], range(len(r.layers)), ROLE[ROLES[i]]
        figures.band(left, sizes, overlap.T, label=name, role=ROLES[i], order=i)
        left.plot(sizes, chance, color=color, linestyle=":", linewidth=1)
        figures.band(right, list(x), pairs[name].T, label=name, role=ROLES[i], order=i)
        right.plot(x, controls[name].mean(1), color=color, linestyle=":", linewidth=1)
        right.set(xticks=x, xticklabels=r.layers)
    figures.units_axis(left, "units chosen, k")
    left.set(title="same units on new images", ylabel="Jaccard overlap", ylim=(0, 1.02))
    right.set(title="same ranking in another network", ylabel="correlation of logits")
    figures.legend(fig, left)
    return fig


def calibration(results: Mapping[str, Presence]) -> Figure:
    """Reliability of the dense probes at each concept's best layer."""
    fig, axes = _panels(results, height=2.3)
    for axis, (name, r) in zip(axes, results.items(), strict=True):
        layer = r.layers[r.best_layer]
        curve = reliability_curve(r.logits[layer][-1], r.concept.test_y)
        axis.plot([0, 1], [0, 1], color=ROLE["control"], linestyle=":")
        axis.plot(curve.predicted.T, curve.observed.T, color=ROLE["main"], alpha=0.15)
        axis.plot(curve.predicted.nanmean(0), curve.observed.nanmean(0), "o-", color="black")
        axis.set(title=_title(name, r, f", {layer}"), xlabel="probability the probe gives")
    axes[0].set_ylabel("share that has the concept")
    return fig
