"""The figures and table rows of notebook 45: each function takes results and returns a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from lib import drawings, figures
from lib.attribution.ground import Ground, Point
from lib.attribution.pareto import front
from lib.figures import DASHES, MARKERS, ROLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# method: colour of its family, marker within it
LOOK = {
    "TRAK": ("main", "o"),
    "datamodel, LASSO": ("second", "s"),
    "datamodel, ridge": ("second", "^"),
    "empirical influence": ("second", "v"),
    "influence (Koh and Liang)": ("third", "v"),
    "influence, CG": ("third", "D"),
    "influence, LiSSA": ("third", "P"),
    "influence, Arnoldi": ("third", "X"),
    "K-FAC": ("fourth", "o"),
    "EK-FAC": ("fourth", "s"),
    "Grad-Dot": ("fifth", "o"),
    "Grad-Cos": ("fifth", "s"),
    "TracIn": ("fifth", "^"),
    "GAS": ("fifth", "v"),
    "representation": ("sixth", "o"),
    "representer points": ("sixth", "s"),
    "KNN-Shapley": ("seventh", "o"),
    "Data Shapley": ("seventh", "s"),
    "random": ("random", "<"),
}
# as read off the published figure (specification section 6.1): minutes of one A100 and score
PUBLISHED: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {
    "CIFAR-10, ResNet-9": {
        "TRAK": ((1, 0.06), (5, 0.12), (20, 0.27), (100, 0.40), (1000, 0.54)),
        "datamodel, LASSO": (
            (500, 0.06),
            (2500, 0.20),
            (10_000, 0.39),
            (25_000, 0.48),
            (50_000, 0.54),
        ),
        "empirical influence": ((500, 0.05), (2500, 0.10), (10_000, 0.19), (25_000, 0.28)),
        "influence (Koh and Liang)": ((25_000, 0.04),),
        "influence, Arnoldi": ((120, 0.02),),
        "representation": ((50, 0.03),),
        "GAS": ((31, 0.05),),
        "TracIn": ((14, 0.06), (280, 0.06)),
    },
    "QNLI, BERT-base": {
        "TRAK": ((64, 0.18), (640, 0.42), (6400, 0.59)),
        "datamodel, LASSO": ((43_000, 0.18), (86_000, 0.26), (176_000, 0.34)),
        "empirical influence": ((43_000, 0.17), (86_000, 0.20), (176_000, 0.22)),
        "influence (Koh and Liang)": ((18_000, 0.11), (90_000, 0.16)),
        "representation": ((90, 0.05), (180, 0.05)),
        "GAS": ((290, 0.08),),
        "TracIn": ((285, 0.07),),
    },
}
N_SHOWN = 6  # training images on either side in `neighbours`


def choices(
    by_k: Mapping[float, Sequence[tuple[int, float]]],
    by_ridge: Sequence[tuple[float, float]],
    weighted: Sequence[tuple[int, float, float]],
) -> Figure:
    """Score against k, with and without a ridge; against the ridge; with and without Q.

    Args:
        by_k: ridge -> (k, score).
        by_ridge: (ridge, score).
        weighted: (networks, score with Q, score without).
    """
    fig, (left, middle, right) = figures.panels(1, 3, height=2.3, sharey=True)
    for order, (ridge, pairs) in enumerate(by_k.items()):
        label = f"ridge {ridge:g}" if ridge else "no ridge"
        left.plot(*zip(*pairs, strict=True), DASHES[order], marker=MARKERS[order], label=label)
    left.set_xscale("log", base=2)
    left.set(xlabel="numbers a gradient, k", ylabel="LDS", title="projection")
    left.set_xticks([k for k, _ in next(iter(by_k.values()))])
    left.xaxis.set_major_formatter("{x:.0f}")
    middle.plot(*zip(*by_ridge, strict=True), marker="o")
    middle.set_xscale("symlog", linthresh=0.01, linscale=0.4)
    middle.set(xlabel="ridge / mean diagonal", title="ridge")
    middle.set_xticks([x for x, _ in by_ridge], [f"{x:g}" for x, _ in by_ridge])
    sizes, ours, without = zip(*weighted, strict=True)
    right.plot(sizes, ours, marker=MARKERS[0], label="with Q")
    right.plot(sizes, without, DASHES[1], marker=MARKERS[1], label="without Q")
    right.set_xscale("log")
    right.set_xticks(sizes, [str(m) for m in sizes], minor=False)
    right.minorticks_off()
    right.set(xlabel="networks averaged", title="ensemble and weights", ylim=(0, None))
    for axis in (left, right):
        axis.legend(loc="lower right")
    return fig


def pareto(points: Sequence[Point], ceiling: float) -> Figure:
    """Score against compute with the front, and against the number of trained networks."""
    fig, (left, right) = figures.panels(1, 2, height=3.6, sharey=True)
    for axis, of in ((left, "compute"), (right, "n_models")):
        _points(axis, points, of)
        _ceiling(axis, ceiling)
    best = [q for q in front(points) if q.compute > 0]
    left.step(
        [q.compute for q in best],
        [q.score for q in best],
        where="post",
        color="#bbbbbb",
        linewidth=3,
        zorder=0,
    )
    left.set(xlabel="compute, in training runs of one network", ylabel="LDS")
    left.set_ylim(-0.03, min(1.02, ceiling + 0.06))
    right.set(xlabel="networks trained")
    left.set_title("best of every budget in grey")
    right.set_title("counted in networks")
    _legend(fig, left)
    return fig


def language(points: Sequence[Point], ceiling: float, name: str) -> Figure:
    """The published panels, and ours for the setting `name`, each on its own axes."""
    fig, (left, middle, right) = figures.panels(1, 3, height=3.0)
    for axis, (panel, series) in zip((left, right), PUBLISHED.items(), strict=True):
        for method, pairs in series.items():
            role, marker = LOOK[method]
            label = method if axis is left else None
            axis.plot(
                *zip(*pairs, strict=True), marker=marker, color=ROLE[role], label=label, linewidth=1
            )
        axis.set_xscale("log")
        axis.set(xlabel="minutes of one A100", ylim=(-0.03, 0.65))
        axis.set_title(f"{panel}: as read off\nthe published figure")
    _points(middle, points, "compute")
    _ceiling(middle, ceiling)
    middle.set(xlabel="compute, in training runs", title=f"ours:\n{name}")
    middle.set_ylim(-0.03, max(0.65, ceiling + 0.05))
    left.set_ylabel("LDS")
    _legend(fig, left, middle)
    return fig


def _ceiling(axis: Axes, level: float) -> None:
    axis.axhline(level, color="black", linestyle=":", linewidth=1)
    axis.text(0.02, level + 0.01, "ceiling", transform=axis.get_yaxis_transform(), fontsize=6)


def _legend(fig: Figure, *axes: Axes) -> None:
    """One legend for the methods of some panels, each once."""
    named = {
        label: handle
        for axis in axes
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    order = [name for name in LOOK if name in named]
    handles = [named[name] for name in order]
    fig.legend(
        handles,
        order,
        loc="outside upper center",
        ncols=5,
        columnspacing=1.2,
        handlelength=1.5,
    )


def _points(axis: Axes, points: Sequence[Point], of: str) -> None:
    """Each method a line over its sizes, with its interval over targets."""
    for method, (role, marker) in LOOK.items():
        mine = [q for q in points if q.method == method and getattr(q, of) > 0]
        if mine:
            axis.errorbar(
                [getattr(q, of) for q in mine],
                [q.score for q in mine],
                [[q.score - q.low for q in mine], [q.high - q.score for q in mine]],
                color=ROLE[role],
                marker=marker,
                label=method,
                linewidth=1,
                elinewidth=0.7,
            )
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter("")  # at less than a decade they would overlap


def rows(points: Sequence[Point]) -> list[dict[str, object]]:
    """Every method at its best, from the highest score down."""
    best = {}
    for point in sorted(points, key=lambda q: q.score):
        best[point.method] = point
    return [
        {
            "method": q.method,
            "networks": q.n_models,
            "compute, runs": round(q.compute, 1),
            "LDS": (q.score, q.spread),
            "constant targets": q.n_constant,
        }
        for q in sorted(best.values(), key=lambda q: q.score, reverse=True)
    ]


def neighbours(g: Ground, tau: Tensor, target: int, title: str) -> Figure:
    """A target, the training images that raise its margin most, and those that lower it most."""
    fig, axes = figures.panels(2, 1 + N_SHOWN, height=1.0)
    order = tau[:, target].argsort(descending=True)
    for row, picks, word in ((0, order[:N_SHOWN], "raise"), (1, order.flip(0)[:N_SHOWN], "lower")):
        line = axes[row * (1 + N_SHOWN) : (row + 1) * (1 + N_SHOWN)]
        line[0].set_axis_off()
        line[1].set_title(f"{word} its margin")
        for axis, i in zip(line[1:], picks.tolist(), strict=True):
            drawings.thumbnail(axis, g.setting.train.x[i], f"label {int(g.setting.train.y[i])}")
    label = int(g.setting.targets.y[target])
    drawings.thumbnail(axes[0], g.setting.targets.x[target], f"label {label}")
    axes[0].set_axis_on()
    axes[0].set_title(f"{title}: target")
    return fig
