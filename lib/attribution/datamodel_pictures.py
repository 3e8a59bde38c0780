"""The figures and table rows of notebook 43: each function takes results and returns a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib import drawings, figures
from lib.attribution import datamodel_studies as studies
from lib.attribution.datamodel_studies import Alphas, Score, Study
from lib.figures import DASHES, MARKERS, ROLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROLES = {"LASSO": "main", "ridge": "second", "empirical influence": "third"}
LINES = ("main", "second", "third")  # of the targets that are shown
# as read off the published figure (specification section 6.1): models -> score
PUBLISHED = {
    "LASSO": ((500, 2500, 10_000, 25_000, 50_000), (0.06, 0.20, 0.39, 0.48, 0.54)),
    "empirical influence": ((500, 2500, 10_000, 25_000), (0.05, 0.10, 0.19, 0.28)),
}
N_SHOWN = 5  # training images on either side of `examples`
LICENSED = ("digits-mlp",)  # settings whose images a stored figure may show


def outputs(study: Study, targets: Sequence[int]) -> Figure:
    """Left: margins over subsets of some targets; right: spread by data against by seed."""
    fig, (left, right) = figures.panels(1, 2, height=2.4)
    means = study.judged.mean
    for k, t in enumerate(targets):
        color = ROLE[LINES[k]]
        word = study.names[int(study.setting.targets.y[t])]
        values = means[:, t].numpy()
        left.hist(values, bins=25, alpha=0.6, color=color, label=f"target {t} ({word})")
    left.axvline(0, color="black", linestyle=":", linewidth=1)
    left.set(
        xlabel="margin, mean over seeds (above 0: right)",
        ylabel="subsets",
        title="which half is seen decides",
    )
    data, seeds = studies.spreads(study.judged)
    right.scatter(seeds, data, s=8, color=ROLE["main"], alpha=0.6, linewidth=0)
    right.axline((0, 0), slope=1, color=ROLE["control"], linestyle=":")
    right.set(
        xlim=(0, 1.05 * seeds.max().item()),
        ylim=(0, 1.05 * data.max().item()),
        xlabel="sd of the margin over seeds",
        ylabel="sd over subsets",
        title="data against seed, a dot a target",
    )
    return fig


def path(score: Score, targets: Sequence[int]) -> Figure:
    """Held-out error, relative to predicting the mean, and number of weights along the L1 path."""
    fig, (left, right) = figures.panels(1, 2, height=2.4)
    found = score.model.path
    assert found is not None  # of a method that chooses its penalty
    share = (found.penalties / found.penalties[0])[:, 0]
    error = found.error / found.error[0]  # where the path starts all weights are zero
    for axis, values in ((left, error), (right, found.n_weights)):
        low, middle, high = values.nanquantile(torch.tensor([0.25, 0.5, 0.75]).double(), dim=1)
        axis.plot(share, middle, color="black", label="median target")
        axis.fill_between(share, low, high, color="black", alpha=0.12, linewidth=0)
        for k, t in enumerate(targets):
            color, line = ROLE[LINES[k]], DASHES[k + 1]
            axis.plot(share, values[:, t], color=color, linestyle=line, label=f"target {t}")
            best = int(found.error[:, t].nan_to_num(torch.inf).argmin())
            axis.plot(share[best], values[best, t], marker=MARKERS[k], color=color)
        axis.set_xscale("log")
        axis.invert_xaxis()
        axis.set_xticks([1, 0.1, 0.01], ["1", "0.1", "0.01"])
        axis.set_xlabel("penalty λ / smallest λ with no weight")
    left.set(ylabel="held-out error, mean = 1", title="the choice of λ")
    right.set(ylabel="weights that are not zero", title="how many rows it takes")
    return fig


def prediction(study: Study, score: Score, targets: Sequence[int]) -> Figure:
    """Predicted against observed margins of held-out subsets: all targets, and some of them."""
    fig, axes = figures.panels(1, 1 + len(targets), height=2.0)
    guess, seen = score.model.predict(study.judged.subsets), study.judged.mean.double()
    z = [(a - seen.mean(0)) / seen.std(0) for a in (guess, seen)]
    axes[0].hexbin(
        z[0].flatten(), z[1].flatten(), gridsize=28, bins="log", extent=(-4, 4, -4, 4), mincnt=1
    )
    axes[0].set(xlim=(-4, 4), ylim=(-4, 4), title="all margins, in sd")
    axes[0].set_ylabel("observed")
    _diagonal(axes[0])
    for axis, t in zip(axes[1:], targets, strict=True):
        axis.scatter(guess[:, t], seen[:, t], s=6, color=ROLE["main"], alpha=0.6, linewidth=0)
        word = study.names[int(study.setting.targets.y[t])]
        r = score.evaluation.pearson[t].item()
        found = "no weight" if isnan(r) else f"r = {r:.2f}"
        axis.set_title(f"target {t}: {word}\n{found}")
        axis.set_xlabel("predicted")
        _diagonal(axis)
    axes[0].set_xlabel("predicted")
    return fig


def scaling(curves: Mapping[str, Sequence[Score]], ceiling: float) -> Figure:
    """Score against the number of networks, ours and the published ones."""
    fig, (left, right) = figures.panels(1, 2, height=2.6, sharey=True)
    for k, (method, scores) in enumerate(curves.items()):
        x = [s.m for s in scores]
        color, marker, line = ROLE[ROLES[method]], MARKERS[k], DASHES[k]
        means = [s.lds.mean for s in scores]
        left.plot(x, means, color=color, marker=marker, linestyle=line, label=method)
        ends = torch.tensor([s.interval.subsets for s in scores])
        left.fill_between(x, ends[:, 0], ends[:, 1], color=color, alpha=0.18, linewidth=0)
        if method in PUBLISHED:
            right.plot(*PUBLISHED[method], color=color, marker=marker, linestyle=line)
    left.axhline(ceiling, color=ROLE["control"], linestyle=":", label="ceiling by seeds")
    left.set(title="ours", ylabel="LDS", ylim=(0, 1))
    right.set(title="published: CIFAR-10, as read off")
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xlabel("networks trained")
    _plain(left, [s.m for s in next(iter(curves.values()))])
    _plain(right, [500, 2500, 10_000, 50_000])
    return fig


def examples(study: Study, score: Score, targets: Sequence[int]) -> Figure:
    """Each row a target, the rows that raise its margin most, and those that lower it most.

    Images whose licence is not known to allow it are not drawn: their row numbers stand instead.
    """
    columns = 1 + 2 * N_SHOWN
    fig, axes = figures.panels(len(targets), columns, height=0.95)
    for k, t in enumerate(targets):
        row = axes[k * columns : (k + 1) * columns]
        _row(study, score.model.tau[:, t], t, row, drawn=study.setting.name in LICENSED)
    axes[0].set_title("target", loc="center")
    axes[1].set_title("raise its margin")
    axes[1 + N_SHOWN].set_title("lower its margin")
    return fig


def alphas(found: Alphas) -> Figure:
    """Left: size of marginal effects; right: who predicts whom."""
    fig, (left, right) = figures.panels(1, 2, height=2.5)
    shares = [f"{alpha:.0%}" for alpha in found.alphas]
    places = list(range(len(shares)))
    bars = (found.effect[:, None] - found.interval).abs().T
    left.errorbar(places, found.effect, bars, color=ROLE["main"], marker="o", capsize=3)
    left.set(
        xticks=places,
        xticklabels=shares,
        xlim=(-0.5, len(shares) - 0.5),
        xlabel="share of the rows in a subset, α",
        ylabel="norm of a target's effects",
        title="effects",
    )
    left.set_ylim(bottom=0)
    image = right.imshow(found.correlation, vmin=0, vmax=1)
    for i in places:
        for j in places:
            value = found.correlation[i, j].item()
            right.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=8,
                       color="black" if value > 0.6 else "white")  # fmt: skip
    right.set(
        xticks=places,
        xticklabels=shares,
        yticks=places,
        yticklabels=shares,
        xlabel="α of the networks predicted",
        ylabel="α of the networks fitted on",
        title="correlation with single networks",
    )
    fig.colorbar(image, ax=right, shrink=0.8)
    return fig


def one_target(study: Study, score: Score, t: int) -> Figure:
    """Prediction and examples of one target, for the explore cell."""
    import matplotlib.pyplot as plt

    fig = plt.figure(figsize=(figures.TWO_COLUMN, 2.2))
    whole, parts = fig.subfigures(1, 2, width_ratios=(1, 2), squeeze=False)[0]
    axis = whole.add_subplot()
    guess, seen = score.model.predict(study.judged.subsets)[:, t], study.judged.mean[:, t]
    axis.scatter(guess, seen, s=6, color=ROLE["main"], alpha=0.6, linewidth=0)
    _diagonal(axis)
    r = score.evaluation.pearson[t].item()
    axis.set(title=f"{score.method}, r = {r:.2f}", xlabel="predicted margin", ylabel="observed")
    columns = 1 + N_SHOWN
    places = [k for k in range(1, 2 * columns + 1) if k != columns + 1]
    grid = [parts.add_subplot(2, columns, k) for k in places]
    _row(study, score.model.tau[:, t], t, grid)
    grid[0].set_title("target", loc="center")
    return fig


def rows(study: Study, curves: Mapping[str, Sequence[Score]]) -> list[dict[str, object]]:
    """The methods at their largest number of networks, for a table; no correlation counts as 0."""
    found: list[dict[str, object]] = []
    for scores in curves.values():
        s = scores[-1]
        low, high = s.interval.subsets
        explained = (s.evaluation.error / s.evaluation.baseline).mean().item()
        found.append(
            {
                "method": s.method,
                "networks": s.m,
                "LDS": f"{s.lds.mean:.3f} [{low:.3f}, {high:.3f}]",
                "Pearson": f"{s.evaluation.pearson.nan_to_num(0.0).mean().item():.3f}",
                "error / variance": f"{explained:.3f}",
                "weights not zero (median)": f"{s.n_weights.double().median().item():.0f}",
            }
        )
    return found


def _row(study: Study, tau: Tensor, t: int, axes: Sequence[Axes], *, drawn: bool = True) -> None:
    """A target's image, the rows with the largest weights, and those with the smallest."""
    order = tau.argsort(descending=True)
    shown = [*order[:N_SHOWN].tolist(), *order.flip(0)[:N_SHOWN].tolist()]
    data, targets = study.setting.train, study.setting.targets
    number = None if drawn else t
    drawings.thumbnail(axes[0], targets.x[t], study.names[int(targets.y[t])], instead=number)
    for axis, i in zip(axes[1:], shown, strict=True):
        words = f"{study.names[int(data.y[i])]}: {tau[i].item():+.2f}"
        drawings.thumbnail(axis, data.x[i], words, instead=None if drawn else i)


def _diagonal(axis: Axes) -> None:
    ends = axis.get_xlim(), axis.get_ylim()
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    axis.plot([low, high], [low, high], color="black", linestyle=":", linewidth=1)
    axis.set(xlim=(low, high), ylim=(low, high))


def _plain(axis: Axes, ticks: Sequence[int]) -> None:
    """Numbers of networks in full."""
    from matplotlib.ticker import NullLocator

    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(ticks, [f"{m:,}" for m in ticks])
