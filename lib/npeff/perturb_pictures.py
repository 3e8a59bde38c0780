"""The figures of perturbations, repairs and baselines of components.

Each takes plain numbers and returns the figure without writing it; the notebook adds the
provenance and saves it.

Public names: `ratio_histograms`, `predicted_against_measured`, `accuracy_against_size`,
`curves_by_size`, `repair_outcomes`, `tests_and_cosines`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lib import figures
from lib.figures import DASHES, MARKERS, ROLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_BINS = 24
Ratios = tuple[Tensor, Tensor, Tensor]  # KL [r], PEF norm [r], random directions [r, draws]


def ratio_histograms(found: Mapping[str, Ratios]) -> Figure:
    """Ratios of top examples to the baseline, a panel a model, on a scale of doublings.

    Two overlaid histograms over components, of KL divergences and of PEF norms, and the outline of
    random directions of equal norm, whose draws share a component's weight. Lines are medians;
    ratios that are not finite and above 0 are left out and counted.

    Source: document 3, figure 3; the random directions are this project's.
    """
    rows = 1 + (len(found) - 1) // 3  # more than three side by side would be too narrow
    columns = -(-len(found) // rows)
    fig, axes = figures.panels(rows, columns, height=2.5 if rows == 1 else 2.1, sharey=True)
    for spare in axes[len(found) :]:
        spare.set_axis_off()
    for axis, (name, (kl, norm, random)) in zip(axes[: len(found)], found.items(), strict=True):
        kinds = [_log2(kl), _log2(norm), _log2(random.flatten())]
        everything = torch.cat(kinds)
        low, high = float(everything.min()), float(everything.max())
        edges = torch.linspace(low, max(high, low + 1e-3), N_BINS + 1).tolist()
        styles: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("KL divergence", "main", {"alpha": 0.65}),
            ("PEF norm", "second", {"alpha": 0.65, "hatch": "///", "edgecolor": "white"}),
            ("KL, random direction", "control", {"histtype": "step", "linewidth": 1.3}),
        )
        for order, (values, (words, role, look)) in enumerate(zip(kinds, styles, strict=True)):
            share = len(kl) / max(len(values), 1) if order == 2 else 1.0
            axis.hist(
                values.numpy(),
                bins=edges,
                weights=torch.full_like(values, share).numpy(),
                color=ROLE[role],
                label=words,
                **look,
            )
            middle = float(values.quantile(0.5))
            axis.axvline(middle, color="white", linewidth=2.4)
            axis.axvline(middle, color=ROLE[role], linestyle=DASHES[order], linewidth=1.4)
            axis.annotate(
                f"{2**middle:.2g}×",
                (middle, 1.0 + 0.075 * (2 - order)),
                xycoords=("data", "axes fraction"),
                ha="center",
                va="bottom",
                fontsize=6,
                color=ROLE[role],
            )
        axis.axvline(0, color="black", linewidth=0.6)
        left = len(kl) - len(kinds[0])
        words = f"{name}, {len(kl)} components" + (f", {left} undefined" if left else "")
        axis.set_title(words, pad=22)
    for k, axis in enumerate(axes[: len(found)]):
        if k + columns >= len(found):
            axis.set_xlabel("log₂ of the mean on top examples\nover the mean on random ones")
        if k % columns == 0:
            axis.set_ylabel("components")
    figures.legend(fig, axes[0])
    return fig


def predicted_against_measured(
    predicted: Tensor, measured: Tensor, is_top: Tensor, *, least: float = 1e-8
) -> Figure:
    """Measured divergence against equation 5's, an example a point, doubly logarithmic.

    Args:
        predicted, measured: ``[n]``, nats; is_top: bool ``[n]``, whether of the top examples of
            the component that the model is moved along.
        least: smaller divergences are drawn there, for zero has no logarithm.
    """
    from scipy.stats import spearmanr

    fig, (axis,) = figures.panels(width=figures.ONE_COLUMN * 1.25, height=3.0)
    x, y = (t.double().cpu().clamp_min(least) for t in (predicted, measured))
    low, high = float(torch.cat([x, y]).min()), float(torch.cat([x, y]).max())
    axis.plot([low, high], [low, high], color="black", linestyle=":", label="equal")
    kinds = ((~is_top, "other examples", "control", 5), (is_top, "top examples", "main", 12))
    for order, (chosen, words, role, size) in enumerate(kinds):
        axis.scatter(
            x[chosen],
            y[chosen],
            s=size,
            marker=MARKERS[order],
            color=ROLE[role],
            alpha=0.7,
            linewidths=0,
            rasterized=True,
            label=f"{words}, n = {int(chosen.sum()):,}",
        )
    rank = float(spearmanr(x, y).statistic)
    axis.set(xscale="log", yscale="log", title=f"rank correlation {rank:.2f}")
    axis.set(xlabel="predicted divergence (nats)", ylabel="measured divergence (nats)")
    axis.legend(loc="upper left")
    return fig


def accuracy_against_size(
    sizes: Tensor, curves: Mapping[str, Tensor], counts: Sequence[int], chosen: float | None = None
) -> Figure:
    """Accuracy along one direction: on what the component is about, and elsewhere.

    Args:
        sizes: ``[s]`` signed lengths of the perturbation, in any order.
        curves: two names, of what is on the component and off it, -> accuracy ``[s]``.
        counts: examples behind each curve; bands are two standard errors of a share.
        chosen: a size to mark.
    """
    fig, (axis,) = figures.panels(width=figures.ONE_COLUMN * 1.25, height=2.5)
    order = sizes.argsort()
    x = sizes[order].double().cpu()
    roles = ("main", "second")
    for k, ((words, values), n) in enumerate(zip(curves.items(), counts, strict=True)):
        y = values[order].double().cpu()
        half = 2 * (y * (1 - y) / n).sqrt()
        axis.fill_between(x, y - half, y + half, color=ROLE[roles[k]], alpha=0.18, linewidth=0)
        axis.plot(
            x,
            y,
            color=ROLE[roles[k]],
            marker=MARKERS[k],
            linestyle=DASHES[k],
            label=f"{words}, n = {n:,}",
        )
    axis.axvline(0, color="black", linewidth=0.6)
    if chosen is not None:
        axis.axvline(chosen, color="black", linestyle=":", linewidth=1)
        axis.annotate(
            f"chosen: {chosen:+.3g}",
            (chosen, 0.02),
            (3, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            fontsize=6,
            rotation=90,
        )
    least = float(x[x != 0].abs().min())
    axis.set_xscale("symlog", linthresh=least, linscale=0.5)
    axis.set_xlim(min(1.2 * float(x.min()), -least / 3), max(1.2 * float(x.max()), least / 3))
    axis.set(xlabel="size of the perturbation, L2, signed", ylabel="accuracy")
    figures.legend(fig, axis)
    return fig


def curves_by_size(
    sizes: Sequence[float], found: Mapping[str, tuple[str, Mapping[str, Tensor]]], chosen: float
) -> Figure:
    """What depends on the size of a step, a panel a quantity; bands are quartiles of components.

    Args:
        sizes: ``[s]``, above 0.
        found: title -> label of the axis, and curve -> quartiles ``[s, 3]``. Ratios, whose label
            says so by a slash or the word, are drawn on a logarithmic axis.
        chosen: the size that the other figures use, marked.
    """
    from matplotlib.ticker import FuncFormatter

    fig, axes = figures.panels(1, len(found), height=2.3)
    roles = ("main", "second")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    for axis, (title, (label, curves)) in zip(axes, found.items(), strict=True):
        for k, (words, quartiles) in enumerate(curves.items()):
            low, middle, high = quartiles.unbind(1)
            axis.fill_between(sizes, low, high, color=ROLE[roles[k]], alpha=0.18, linewidth=0)
            axis.plot(
                sizes,
                middle,
                color=ROLE[roles[k]],
                marker=MARKERS[k],
                linestyle=DASHES[k],
                label=words,
            )
        axis.axvline(chosen, color="black", linestyle=":", linewidth=1)
        if "/" in label or "ratio" in label:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(plain)
            axis.yaxis.set_minor_formatter(plain)
            axis.axhline(1, color="black", linewidth=0.6)
        axis.set(xscale="log", title=title, xlabel="size of the step, L2", ylabel=label)
    figures.legend(fig, axes[0])
    return fig


def repair_outcomes(
    candidates: Tensor, random: Tensor, gradient: Tensor, tuned: Tensor, best: int
) -> Figure:
    """Accuracy gained on counter-examples against what is lost elsewhere, a point a change.

    Args:
        candidates, random: ``[k, 2]`` gains of test accuracy, counter-examples and elsewhere.
        gradient, tuned: ``[2]``, the controls; best: the candidate that the selection set picked.
    """
    fig, (axis,) = figures.panels(width=figures.ONE_COLUMN * 1.25, height=2.8)
    axis.axhline(0, color="black", linewidth=0.6)
    axis.axvline(0, color="black", linewidth=0.6)
    points = (
        (random, "random direction", "control", "o", 14),
        (candidates, "component", "main", "s", 16),
        (gradient[None], "one gradient step", "second", "^", 45),
        (tuned[None], "fine-tuning", "third", "D", 36),
    )
    for values, words, role, marker, size in points:
        axis.scatter(
            values[:, 1],
            values[:, 0],
            s=size,
            marker=marker,
            color=ROLE[role],
            alpha=0.75,
            label=words,
        )
    mark = candidates[best]
    axis.scatter(
        mark[1], mark[0], s=90, facecolors="none", edgecolors="black", label="selected component"
    )
    axis.set(xlabel="change of accuracy elsewhere", ylabel="change on counter-examples")
    handles, labels = axis.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=3)
    return fig


def tests_and_cosines(
    tests: Mapping[str, tuple[float, float, int]], cosines: Mapping[str, tuple[float, float]]
) -> Figure:
    """Clusters and components: which of them a concept test passes, and how alike they are.

    Args:
        tests: groups -> share that passes Welch's test, share that passes as one draw (NaN where
            there is none), groups.
        cosines: direction, "k-means to components" say -> mean largest cosine, and that of a
            permutation of examples.
    """
    fig, (left, right) = figures.panels(
        1, 2, height=0.7 + 0.36 * max(len(tests), len(cosines)), width_ratios=(1.3, 1)
    )
    kinds = (("sets as independent runs", "main", ""), ("set as one draw", "seventh", "///"))
    for k, (words, role, hatch) in enumerate(kinds):
        shares = [row[k] for row in tests.values()]
        places = [i + 0.19 * (2 * k - 1) for i in range(len(tests))]
        left.barh(
            places, shares, 0.36, color=ROLE[role], hatch=hatch, edgecolor="white", label=words
        )
        for place, share in zip(places, shares, strict=True):
            if not math.isnan(share):
                left.text(share + 0.02, place, f"{share:.0%}", va="center", fontsize=6)
    _rows(left, [f"{name}, n = {row[2]}" for name, row in tests.items()])
    left.set(xlim=(0, 1.15), xlabel="share significant for any class", xticks=(0, 0.5, 1))
    for i, (value, null) in enumerate(cosines.values()):
        right.barh(i, value, 0.5, color=ROLE["third"], label="found" if i == 0 else "_")
        right.plot(
            [null, null],
            [i - 0.32, i + 0.32],
            color="black",
            label="examples permuted" if i == 0 else "_",
        )
        right.text(max(value, null) + 0.02, i, f"{value:.2f}", va="center", fontsize=6)
    _rows(right, list(cosines))
    right.set(xlim=(0, 1.05), xlabel="mean largest cosine")
    handles, labels = (
        a + b
        for a, b in zip(
            left.get_legend_handles_labels(), right.get_legend_handles_labels(), strict=True
        )
    )
    fig.legend(handles, labels, loc="outside upper center", ncols=4)
    return fig


def _rows(axis: Axes, words: Sequence[str]) -> None:
    axis.set_yticks(range(len(words)), words)
    axis.invert_yaxis()


def _log2(ratios: Tensor) -> Tensor:
    """Of those that have a logarithm."""
    ratios = ratios.double().cpu()
    usable = ratios[ratios.isfinite() & (ratios > 0)]
    if not len(usable):
        raise ValueError("no ratio is finite and above 0; raise the norm of the perturbations")
    return usable.log2()
