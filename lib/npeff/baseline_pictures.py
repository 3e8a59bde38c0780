"""The figures of notebook 35. Each returns the figure; the notebook adds the provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib import figures
from lib.figures import MARKERS, ROLE
from lib.npeff.baseline_studies import Finding, Grouping, Tested
from lib.npeff.concept_search import LEAST_PRECISION
from lib.npeff.testbeds import Testbed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROLES = ("main", "second", "third", "fifth")
REACH = 0.24  # how far methods stand apart within a rule's row


def who_finds(
    found: Mapping[str, Sequence[Finding]],
    label: Finding,
    told: Finding,
    names: Sequence[str],
    classes: Sequence[str],
) -> Figure:
    """Average precision of each rule's best group, method beside method.

    Args:
        found: method -> a finding for each seed; a point is their mean, the line their range.
        label: of the predicted label alone; told: of probes trained on the rules.
        names, classes: of the rules, and of the label that each makes.
    """
    fig, (axis,) = figures.panels(height=0.9 + 0.25 * len(names))
    rows = torch.arange(len(names))
    axis.plot(label.best, rows, "|", color=ROLE["random"], ms=12, mew=1.6, label="label alone")
    axis.plot(told.best, rows, "|", color="black", ms=12, mew=1.2, label="probe, told the rules")
    places = torch.linspace(-REACH, REACH, len(found)).tolist()
    for order, (place, (name, runs)) in enumerate(zip(places, found.items(), strict=True)):
        best = torch.stack([one.best for one in runs])
        color = ROLE[ROLES[order]]
        axis.hlines(rows + place, best.amin(0), best.amax(0), color=color, linewidth=1.2)
        axis.plot(best.mean(0), rows + place, MARKERS[order], color=color, label=name)
    for k in range(1, len(names)):
        if classes[k] != classes[k - 1]:
            axis.axhline(k - 0.5, color="#cccccc", linewidth=0.8)
    axis.axvline(LEAST_PRECISION, color="#cccccc", linestyle=":", zorder=0)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set(xlabel="average precision of the rule's best group", xlim=(0, 1.03))
    figures.legend(fig, axis)
    return fig


def strengths(tested: Tested) -> Figure:
    """How far the concept scores of each group lie from those of random sets, by method."""
    tests = tested.tests
    kinds = {name: tests.strength[rows] for name, rows in tested.rows.items()}
    kinds["random sets"] = tests.strength_random
    fig, (axis,) = figures.panels(width=figures.ONE_COLUMN * 1.6, height=2.3)
    for order, (name, values) in enumerate(kinds.items()):
        role = "random" if name == "random sets" else ROLES[order]
        level = torch.arange(1, len(values) + 1) / len(values)
        axis.step(
            values.sort().values,
            level,
            where="post",
            color=ROLE[role],
            linestyle=figures.DASHES[order],
            label=name,
        )
    top = float(tests.strength_random.quantile(1 - tests.level))
    axis.axvline(top, color="black", linewidth=0.8, linestyle=":", label="95% of random sets")
    axis.set(ylabel="share of groups up to here", ylim=(0, 1.02))
    axis.set_xlabel("distance of a group's scores from random sets, in their sd")
    axis.legend(loc="upper left", fontsize=6)
    return fig


def group_card(
    bed: Testbed, predicted: Tensor, groups: Grouping, found: Finding, j: int, n: int = 6
) -> Figure:
    """One group: how well it ranks each rule, and the pairs that belong to it most."""
    fig, (left, right) = figures.panels(1, 2, height=2.6, width_ratios=(1, 1.9))
    best = int(found.match.best[j])
    color = [ROLE["main" if k == best else "control"] for k in range(len(bed.concepts))]
    left.barh(range(len(bed.concepts)), found.match.average_precision[j], color=color)
    left.set_yticks(range(len(bed.concepts)), bed.concepts, fontsize=6)
    left.invert_yaxis()
    left.set(xlabel="average precision", xlim=(0, 1), title=f"group {j}")
    right.axis("off")
    for row, i in enumerate(groups.top[j, :n].tolist()):
        premise, hypothesis = bed.held_out.text[i]
        words = f"{premise}\n   → {hypothesis}  ({bed.classes[int(predicted[i])]})"
        right.text(0, 1 - row / n, words, fontsize=6, va="top", transform=right.transAxes)
    return fig
