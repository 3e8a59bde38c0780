"""The figures of notebook 36: where a network errs, which components see it, what moving them does.

Each takes plain numbers and returns the figure without writing it; the notebook adds the
provenance and saves it.

Public names: `accuracy_by_rule`, `mispredicted_shares`, `gains_by_component`, `bounded_repairs`,
`pairs_card`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lib import figures
from lib.figures import DASHES, MARKERS, ROLE
from lib.npeff.repair_within import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED = {"expanded": 0.41, "general": 0.043}  # at least 8 of 16 mispredicted, section 3.5


def accuracy_by_rule(found: Mapping[str, Tensor], rules: Sequence[str], left_out: str) -> Figure:
    """Accuracy on each rule's pairs, of two networks or more; the rule left out is marked.

    Args:
        found: network -> accuracy ``[rules]``.
    """
    fig, (axis,) = figures.panels(height=2.4)
    roles = ("main", "second", "third")
    width = 0.8 / len(found)
    for k, (words, values) in enumerate(found.items()):
        at = [i + width * (k - (len(found) - 1) / 2) for i in range(len(rules))]
        hatch = "" if k == 0 else "///"
        axis.bar(
            at,
            values.numpy(),
            width,
            color=ROLE[roles[k]],
            hatch=hatch,
            edgecolor="white",
            linewidth=0,
            label=words,
        )
    axis.set_xticks(range(len(rules)), rules, rotation=35, ha="right", rotation_mode="anchor")
    axis.get_xticklabels()[rules.index(left_out)].set_fontweight("bold")
    axis.set(ylim=(0, 1.02), ylabel="accuracy")
    figures.legend(fig, axis)
    return fig


def mispredicted_shares(shares: Mapping[str, Tensor], least: int) -> Figure:
    """Share of components with so many mispredicted top examples or more, a curve a kind.

    Args:
        shares: "expanded", "general" and "random sets" -> share ``[17]``, for 0 to 16 examples.
        least: the document's criterion, marked with its two numbers.
    """
    fig, (axis,) = figures.panels(width=figures.ONE_COLUMN * 1.35, height=2.6)
    roles = ("main", "second", "control")
    for k, (words, values) in enumerate(shares.items()):
        axis.step(
            range(len(values)),
            values.numpy(),
            where="mid",
            color=ROLE[roles[k]],
            linestyle=DASHES[k],
            label=words,
        )
        if words in PUBLISHED:
            axis.plot(
                [least],
                [PUBLISHED[words]],
                marker=MARKERS[k],
                markerfacecolor="none",
                color=ROLE[roles[k]],
                markersize=7,
                linestyle="none",
                label=f"document, {words}",
            )
    axis.axvline(least, color="black", linestyle=":", linewidth=1)
    axis.set(xlim=(0, len(next(iter(shares.values()))) - 1), ylim=(-0.02, 1.02))
    axis.set(
        xlabel="mispredicted among the 16 top examples, at least", ylabel="share of components"
    )
    handles, labels = axis.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=3)
    return fig


def gains_by_component(
    gains: Tensor, random: Tensor, names: Sequence[str], chosen: Tensor, least: float
) -> Figure:
    """Accuracy gained by moving along each candidate, beside a random direction of its length.

    Args:
        gains, random: ``[k]``, in points of one; chosen: bool ``[k]``, named in bold.
        least: the gain that counts, marked.
    """
    fig, (axis,) = figures.panels(height=2.3)
    kinds = ((gains, "component", "main"), (random, "random direction", "control"))
    for k, (values, words, role) in enumerate(kinds):
        axis.plot(
            range(len(values)),
            (100 * values).tolist(),
            linestyle="none",
            marker="so"[k],
            color=ROLE[role],
            label=words,
        )
    axis.axhline(0, color="black", linewidth=0.6)
    axis.axhline(100 * least, color="black", linestyle=":", linewidth=1, label="gain that counts")
    axis.set_xticks(range(len(names)), names)
    for label, bold in zip(axis.get_xticklabels(), chosen.tolist(), strict=True):
        label.set_fontweight("bold" if bold else "normal")
    axis.set(xlabel="component", ylabel="gain in accuracy (points)")
    figures.legend(fig, axis)
    return fig


def bounded_repairs(found: Mapping[str, Outcome], allowed: float) -> Figure:
    """What each method's best bounded repair gains and costs; bars are standard errors."""
    fig, (left, right) = figures.panels(1, 2, height=0.9 + 0.32 * len(found), sharey=True)
    names = list(found)
    for k, (axis, words) in enumerate(((left, "counter-examples"), (right, "elsewhere"))):
        values = [100 * float(o.gain[k]) for o in found.values()]
        errors = [100 * float(o.spread[k]) for o in found.values()]
        axis.barh(range(len(names)), values, 0.55, color=ROLE["main" if k == 0 else "second"])
        axis.errorbar(
            values, range(len(names)), xerr=errors, fmt="none", ecolor="black", elinewidth=1
        )
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set(title=words, xlabel="change of accuracy (points)")
    right.axvline(-100 * allowed, color="black", linestyle=":", linewidth=1)
    for row, outcome in enumerate(found.values()):
        if outcome.size == 0:
            left.text(0, row, " none mends any within the bound", va="center", fontsize=6)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    return fig


def pairs_card(rows: Sequence[Mapping[str, object]], title: str) -> Figure:
    """Sentence pairs of a component as text, mispredicted ones marked by a cross."""
    fig, (axis,) = figures.panels(height=0.5 + 0.36 * len(rows))
    axis.set_axis_off()
    axis.set_title(title)
    for k, row in enumerate(rows):
        right = row["label"] == row["prediction"]
        verdict = f"{row['rule']}: {row['label']}, predicted {row['prediction']}"
        y = 1 - (k + 0.5) / len(rows)
        axis.text(0.0, y, "✓" if right else "✗", color=ROLE["third" if right else "second"])
        axis.text(0.03, y, f"{row['premise']}\n→ {row['hypothesis']}", va="center", fontsize=6.5)
        axis.text(0.62, y, verdict, va="center", fontsize=6.5)
    return fig
