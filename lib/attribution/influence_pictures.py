"""Figures and tables of notebook 41: functions of results, giving figures or rows of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from scipy.stats import spearmanr
from torch import Tensor

from lib import figures
from lib.attribution.influence_studies import (
    Comparison,
    Groups,
    LeaveOneOut,
    Neighbours,
    columns,
)
from lib.figures import CYCLE, MARKERS, ROLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 3000  # points of a cloud


def mean_and_sd(values: Tensor) -> tuple[float, float]:
    """Over targets or test images, as a claim wants them."""
    return values.mean().item(), values.std().item()


def spearman(comparison: Comparison) -> float:
    """Rank correlation of predicted and actual changes."""
    return float(spearmanr(comparison.predicted, comparison.actual).statistic)


def median_ratio(comparison: Comparison) -> float:
    """Median of actual over predicted."""
    return (comparison.actual / comparison.predicted).median().item()


def leave_one_out_rows(studies: Sequence[LeaveOneOut]) -> list[dict[str, object]]:
    """One row a penalty: how well, and how much, predictions follow retraining."""
    rows: list[dict[str, object]] = []
    for study in studies:
        row: dict[str, object] = {"λ": f"{study.lam:g}", "test accuracy": study.accuracy}
        for words, predicted in (
            ("first order", study.first_order),
            ("over 1 − h", study.corrected),
        ):
            r, slope = columns(predicted, study.actual)
            row[f"{words}: Pearson"] = f"{r.mean():.4f} (worst {r.min():.4f})"
            row[f"{words}: slope"] = mean_and_sd(slope)
        rows.append(row | {"largest leverage": study.leverage})
    return rows


def leave_one_out_panels(study: LeaveOneOut) -> Figure:
    """Actual against predicted changes of the logit, first order and corrected."""
    fig, axes = figures.panels(1, 2, height=2.7, sharey=True, sharex=True)
    step = max(1, study.actual.numel() // SHOWN)
    for axis, predicted, words in zip(
        axes,
        (study.first_order, study.corrected),
        ("influence", "influence / (1 − leverage)"),
        strict=True,
    ):
        r, slope = columns(predicted, study.actual)
        cloud(axis, predicted.flatten()[::step], study.actual.flatten()[::step])
        axis.set_title(f"{words}: r = {r.mean():.4f}, slope {slope.mean():.3f}")
        axis.set_xlabel("predicted change of the logit")
    axes[0].set_ylabel("actual change")
    return fig


def comparison_panels(found: Mapping[str, Comparison], what: str, *, equal: bool = True) -> Figure:
    """Actual against predicted changes, one panel a way of predicting, the diagonal drawn."""
    fig, axes = figures.panels(1, len(found), height=2.5, sharey=True, sharex=equal)
    for axis, (words, comparison) in zip(axes, found.items(), strict=True):
        cloud(axis, comparison.predicted, comparison.actual, size=9)
        axis.set_title(f"{words}\nr = {comparison.pearson:.3f}, slope {comparison.slope:.2f}")
        axis.set_xlabel(f"predicted change of {what}")
    axes[0].set_ylabel("actual change, retrained")
    return fig


def cloud(axis: Axes, predicted: Tensor, actual: Tensor, size: float = 3) -> None:
    """Points, and the diagonal."""
    diagonal(axis)
    axis.scatter(
        predicted, actual, s=size, color=ROLE["main"], alpha=0.6, linewidths=0, rasterized=True
    )
    axis.locator_params(nbins=5)


def diagonal(axis: Axes) -> None:
    """Where predicted is actual; does not widen the axes."""
    axis.axline((0, 0), slope=1, color=ROLE["document"], linewidth=0.8, linestyle="--")


def group_panels(groups: Sequence[Groups], what: str) -> Figure:
    """Actual against predicted changes of groups of several sizes."""
    fig, axes = figures.panels(1, 3, height=2.6)
    kinds = (
        ("random, first order", [g.random for g in groups]),
        ("most helpful, first order", [g.coherent for g in groups]),
        ("most helpful, Newton step", [g.coherent_newton for g in groups]),
    )
    for axis, (words, found) in zip(axes, kinds, strict=True):
        for k, (group, comparison) in enumerate(zip(groups, found, strict=True)):
            step = max(1, len(comparison.actual) // 300)
            axis.scatter(
                comparison.predicted[::step],
                comparison.actual[::step],
                s=8,
                marker=MARKERS[k],
                color=CYCLE[k],
                alpha=0.7,
                linewidths=0,
                label=f"{group.share:.0%} of the points",
                rasterized=True,
            )
        diagonal(axis)
        axis.set_title(words)
        axis.set_xlabel(f"predicted change of {what}")
    axes[0].set_ylabel("actual change, retrained")
    return fig


def group_rows(groups: Mapping[str, Sequence[Groups]]) -> list[dict[str, object]]:
    """Rank correlation and size of the error, output by output and size by size."""
    rows: list[dict[str, object]] = []
    for output, sizes in groups.items():
        for group in sizes:
            rows.append(
                {
                    "output": output,
                    "removed": f"{group.share:.0%}",
                    "random: Spearman": spearman(group.random),
                    "slope": group.random.slope,
                    "slope, Newton": group.random_newton.slope,
                    "most helpful: Spearman": spearman(group.coherent),
                    "actual / predicted": median_ratio(group.coherent),
                    "the same, Newton": median_ratio(group.coherent_newton),
                }
            )
    return rows


def distance_panels(found: Neighbours, target: int) -> Figure:
    """Influence on one test image against distance to it, one panel a model."""
    fig, axes = figures.panels(1, len(found.influence), height=2.5, sharex=True)
    for axis, (words, tau) in zip(axes, found.influence.items(), strict=True):
        for k, (name, mask) in enumerate(
            (("same class", found.same[:, target]), ("other class", ~found.same[:, target]))
        ):
            axis.scatter(
                found.distance[mask, target],
                1000 * tau[mask, target],
                s=10,
                marker=MARKERS[k],
                color=CYCLE[k],
                alpha=0.7,
                linewidths=0,
                label=name,
            )
        axis.axhline(0, color=ROLE["document"], linewidth=0.6)
        axis.set_title(words)
        axis.set_xlabel("Euclidean distance of the images")
    axes[0].set_ylabel("influence on its margin × 1000")
    return fig


def neighbour_rows(found: Neighbours) -> list[dict[str, object]]:
    """Where the influence sits, mean ± sd over test images."""
    rows: list[dict[str, object]] = []
    for name in found.influence:
        near, other = found.near_share(name), found.other_share(name)
        rows.append(
            {
                "model": name,
                "|influence| on the nearest tenth": mean_and_sd(near),
                "helpful influence of the other class": mean_and_sd(other),
            }
        )
    return rows
