"""Figures and table rows of notebook 44 on the training set with planted secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lib import drawings, figures
from lib.attribution import embedding
from lib.attribution.planted import PAIRS, SIDE
from lib.attribution.planted_studies import Cluster, Difference, Leakage, Study
from lib.figures import DASHES, MARKERS, ROLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

LICENSED = ("planted-digits",)  # settings whose images a stored figure may show
ROLES = {
    "datamodel": "main",
    "datamodel, by target": "seventh",
    "TRAK": "second",
    "features": "fifth",
    "cosine of features": "fifth",
    "pixels": "third",
    "cosine of pixels": "third",
    "random": "random",
}
PAIR_ROLES = ("main", "second", "third", "fourth", "fifth")
N_PAIRS = 10  # of the list of leaked pairs
N_EXTREME = 4  # targets at either end of a component
N_COMPONENTS = 4
N_HIDDEN = 10  # columns of the figure of what is planted
N_ROWS = 12  # training rows along the direction between algorithms
WHAT = ("as they are", "to the planted side", "to the other side")


def hidden(study: Study) -> Figure:
    """What is planted: copies above their originals, and images aside above others in place."""
    planted = study.planted
    fig, axes = figures.panels(2, N_HIDDEN, height=0.75)
    train, targets, side = planted.plain.train, planted.plain.targets, N_HIDDEN // 2
    is_drawn = planted.plain.name in LICENSED
    in_place = (train.y == SIDE) & ~planted.aside
    for k in range(side):
        row, target = int(planted.copies[k]), int(planted.originals[k])
        _thumbnail(axes[k], train.x, row, "copy", is_drawn)
        _thumbnail(axes[N_HIDDEN + k], targets.x, target, "test image", is_drawn)
        for line, rows, word in ((0, planted.aside, "aside"), (1, in_place, "in place")):
            row = int(rows.nonzero()[k])
            words = f"{int(planted.digits[row])}, {word}"
            _thumbnail(axes[line * N_HIDDEN + side + k], train.x, row, words, is_drawn)
    return fig


def leaks(study: Study, found: Mapping[str, Leakage], growth: Mapping[int, Leakage]) -> Figure:
    """Left: precision along each list; middle: by number of networks; right: the first pairs."""
    import matplotlib.pyplot as plt

    fig = plt.figure(figsize=(figures.TWO_COLUMN, 2.9))
    parts = fig.subfigures(1, 3, width_ratios=(1, 0.95, 1.1), squeeze=False)[0]
    axis = parts[0].add_subplot()
    for k, (name, one) in enumerate(found.items()):
        ranks = range(1, len(one.found) + 1)
        color, line = ROLE[ROLES[name]], DASHES[k]
        axis.plot(ranks, one.precision, color=color, linestyle=line, label=name)
    n_copies = len(study.planted.copies)
    axis.axvline(n_copies, color="black", linestyle=":", linewidth=0.8)
    axis.set(
        xscale="log",
        xlabel=f"pairs from the top of the list (dotted: {n_copies})",
        ylabel="share that are copies",
        ylim=(-0.03, 1.03),
    )
    axis.set_xticks([1, 10, 100], ["1", "10", "100"])
    fig.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=6)
    _growth(parts[1].add_subplot(), growth)
    _pairs(parts[2], study, found["datamodel"])
    return fig


def _growth(axis: Axes, growth: Mapping[int, Leakage]) -> None:
    """What more networks buy: AUC, recall, and copies that come first for their target."""
    from matplotlib.ticker import NullLocator

    sizes = list(growth)
    lines = (
        ("AUC", [g.auc[0] for g in growth.values()]),
        ("copies first of target", [g.first for g in growth.values()]),
        ("recall", [g.recall[0] for g in growth.values()]),
    )
    for k, (name, values) in enumerate(lines):
        color, marker, line = ROLE["main"], MARKERS[k], DASHES[k]
        axis.plot(sizes, values, color=color, marker=marker, linestyle=line, label=name)
    axis.set(xscale="log", ylim=(-0.03, 1.45), xlabel="networks", ylabel="datamodel: AUC, share")
    axis.set_yticks([0, 0.5, 1])
    axis.legend(loc="upper left", fontsize=6)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(sizes, [f"{m:,}" for m in sizes])


def _pairs(figure: SubFigure, study: Study, found: Leakage) -> None:
    """Training rows above their targets, two lines of pairs."""
    columns = N_PAIRS // 2
    axes = figure.subplots(4, columns)
    plain = study.planted.plain
    is_drawn = plain.name in LICENSED
    for k, (row, target) in enumerate(found.pairs[:N_PAIRS].tolist()):
        above, below = (axes[2 * (k // columns) + j][k % columns] for j in (0, 1))
        _thumbnail(above, plain.train.x, row, "", is_drawn)
        word = "copy" if found.found[k] else "other"
        _thumbnail(below, plain.targets.x, target, word, is_drawn)
    figure.suptitle("datamodel's first pairs (target below)", fontsize=7, x=0.02, ha="left")


def leak_rows(found: Mapping[str, Leakage]) -> list[dict[str, object]]:
    """How every list finds the planted copies."""
    return [
        {
            "ranked by": name,
            "recall": one.recall,
            "AUC": one.auc,
            "copy is its target's first row": f"{one.first:.2f}",
        }
        for name, one in found.items()
    ]


def space(study: Study) -> Figure:
    """Targets in the space of datamodels: two components, and the ends of the first four."""
    import matplotlib.pyplot as plt

    fig = plt.figure(figsize=(figures.TWO_COLUMN, 3.1))
    left, right = fig.subfigures(1, 2, width_ratios=(1, 1.1), squeeze=False)[0]
    planted, targets = study.planted, study.drawn
    drawn_digits = planted.target_digits[: planted.n_drawn]
    found = embedding.components(F.normalize(study.datamodel.T, dim=1), N_COMPONENTS)
    axis = left.add_subplot()
    for pair, (digits, role) in enumerate(zip(PAIRS, PAIR_ROLES, strict=True)):
        for digit, marker in zip(digits, ("o", "x"), strict=True):
            mine = drawn_digits == digit
            axis.scatter(
                *found.places[mine, :2].T,
                s=14 if marker == "x" else 9,
                marker=marker,
                color=ROLE[role],
                linewidth=0.8 if marker == "x" else 0,
                alpha=0.8,
                label=f"{digit}, labelled {planted.names[pair]}",
            )
    a, b = (f"{share:.0%}" for share in found.shares[:2])
    axis.set(xlabel=f"first component ({a} of variance)", ylabel=f"second component ({b})")
    left.legend(loc="outside upper center", ncols=2, fontsize=6, handletextpad=0.1)
    axes = right.subplots(N_COMPONENTS, 2 * N_EXTREME)
    for k in range(N_COMPONENTS):
        order = found.places[:, k].argsort().tolist()
        ends = [*order[:N_EXTREME], *order[-N_EXTREME:]]
        for axis, t in zip(axes[k], ends, strict=True):
            word = str(int(planted.target_digits[t]))
            _thumbnail(axis, targets.x, t, word, planted.plain.name in LICENSED)
        axes[k][0].set_ylabel(f"{k + 1}", rotation=0, ha="right", va="center")
    words = f"the {N_EXTREME} lowest targets on components 1 to {N_COMPONENTS}, and the highest"
    right.suptitle(words, fontsize=7, x=0.05, ha="left")
    return fig


def clusters(study: Study, found: Sequence[Cluster]) -> Figure:
    """Agreement of two clusters with the digits of each pair, by what targets are compared."""
    planted = study.planted
    fig, (axis,) = figures.panels(1, 1, height=2.4)
    methods = list(dict.fromkeys(c.method for c in found))
    for k, method in enumerate(methods):
        mine = [c for c in found if c.method == method]
        places = [c.pair + (k - 1.5) * 0.14 for c in mine]
        middle = torch.tensor([c.rand for c in mine])
        ends = torch.tensor([c.ends for c in mine]).T
        axis.errorbar(
            places,
            middle,
            (ends - middle).abs(),
            color=ROLE[ROLES[method]],
            marker=MARKERS[k],
            linestyle="none",
            capsize=2,
            label=method,
        )
        chance = [c.chance for c in mine]
        label = "95th percentile of chance" if k == 0 else None
        axis.plot(places, chance, "_", color=ROLE["control"], markersize=9, label=label)
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set(
        xticks=range(len(PAIRS) + 1),
        xticklabels=[*(f"{a} against {b}" for a, b in PAIRS), f"{planted.names[SIDE]}: side"],
        xlabel="digits that share a label in training (last: aside against in place)",
        ylabel="adjusted Rand index",
        ylim=(-0.15, 1.08),
    )
    return fig


def difference(study: Study, main: Difference, null: Difference) -> Figure:
    """Shares of variance along the residual directions, the null, and whose rows they name."""
    fig, (left, middle, right) = figures.panels(1, 3, height=2.3)
    for axis, one, words in (
        (left, main, ("without shifts", "with shifts")),
        (middle, null, ("without shifts", "without, again")),
    ):
        x = torch.arange(len(one.first))
        looks = (("main", -0.2, None), ("second", 0.2, "///"))
        for values, word, (role, shift, hatch) in zip(
            (one.first, one.second), words, looks, strict=True
        ):
            axis.bar(
                x + shift,
                values,
                0.38,
                color=ROLE[role],
                hatch=hatch,
                edgecolor="white",
                label=word,
            )
        axis.set(xticks=x, xticklabels=[str(k + 1) for k in x.tolist()], xlabel="direction")
        axis.legend(loc="upper right")
    top = 1.35 * max(one.first.max().item() for one in (main, null))
    top = max(top, 1.35 * max(one.second.max().item() for one in (main, null)))
    left.set(ylabel="share of variance", title="two algorithms", ylim=(0, top))
    middle.set(title="null: the same one twice", ylim=(0, top))
    planted = study.planted
    weight = oriented(study, main)
    of_pair = planted.plain.train.y == SIDE
    groups = (
        ("aside", planted.aside, "fourth"),
        (f"other {planted.names[SIDE]}", of_pair & ~planted.aside, "main"),
        ("all others", ~of_pair, "random"),
    )
    ends = weight.min().item(), weight.max().item()
    for name, rows, role in groups:
        right.hist(weight[rows].tolist(), bins=16, range=ends, density=True, histtype="step",
                   color=ROLE[role], label=name)  # fmt: skip
    right.set(xlabel="weight in the first direction", ylabel="density", title="training rows")
    right.set_ylim(top=1.5 * right.get_ylim()[1])  # room for the legend
    right.legend(loc="upper right")
    return fig


def comparison_rows(
    study: Study, found: Mapping[str, tuple[Difference, Difference]]
) -> list[dict[str, object]]:
    """Two algorithms and the null, at targets of which half stand aside and at those as drawn.

    Args:
        found: what is compared -> at the former, at the latter.
    """
    rows: list[dict[str, object]] = []
    aside = study.planted.aside
    share = aside.double().mean().item()
    for name, pair in found.items():
        for where, one in zip(("half aside", "as drawn"), pair, strict=True):
            rows.append(
                {
                    "compared": name,
                    "targets": where,
                    "ratio of first direction": one.ratio(),
                    "cosine of the halves' directions": one.agreement,
                    f"weight on rows aside ({share:.0%} of rows)": one.weight_on(aside),
                }
            )
    return rows


def transformation(study: Study, main: Difference, shares: Tensor) -> Figure:
    """The training rows at the end of the direction, and what a shift of test images does."""
    import matplotlib.pyplot as plt

    fig = plt.figure(figsize=(figures.TWO_COLUMN, 2.2))
    left, right = fig.subfigures(1, 2, width_ratios=(1.1, 1), squeeze=False)[0]
    axes = left.subplots(2, N_ROWS // 2).flat
    planted = study.planted
    order = oriented(study, main).argsort(descending=True)[:N_ROWS].tolist()
    for axis, row in zip(axes, order, strict=True):
        word = "aside" if planted.aside[row] else "in place"
        words = f"{int(planted.digits[row])}, {word}"
        _thumbnail(axis, planted.plain.train.x, row, words, planted.plain.name in LICENSED)
    left.suptitle(f"the {N_ROWS} highest rows of the direction", fontsize=7, x=0.02, ha="left")
    _bars(right.add_subplot(), shares, planted.names[SIDE])
    return fig


def _bars(axis: Axes, shares: Tensor, pair: str) -> None:
    words = ("without shifts", "with shifts")
    looks = (("main", -0.2, None), ("second", 0.2, "///"))
    for values, word, (role, shift, hatch) in zip(shares, words, looks, strict=True):
        axis.bar(
            torch.arange(len(WHAT)) + shift,
            values.mean(1),
            0.38,
            yerr=values.std(1),
            color=ROLE[role],
            hatch=hatch,
            edgecolor="white",
            error_kw={"elinewidth": 0.8, "capsize": 2},
            label=f"trained {word}",
        )
    axis.set(
        xticks=range(len(WHAT)),
        xticklabels=[w.replace(" ", "\n", 1) for w in WHAT],
        ylabel=f"taken for {pair}",
        title="test images of the other classes, shifted",
    )
    axis.set_ylim(top=1.3 * (shares.mean(2) + shares.std(2)).max().item())
    axis.legend(loc="upper right")


def oriented(study: Study, main: Difference) -> Tensor:
    """The first direction `[n]`, its sign such that rows that stand aside are on its high side."""
    direction, aside = main.direction, study.planted.aside
    gap = direction[aside].mean() - direction[~aside].mean()
    return direction * (1.0 if gap >= 0 else -1.0)


def _thumbnail(axis: Axes, x: Tensor, row: int, words: str, is_drawn: bool) -> None:
    """Row `row` of `[n, d]`, or its number."""
    drawings.thumbnail(axis, x[row], words, instead=None if is_drawn else row)
