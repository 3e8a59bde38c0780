"""Figures and table rows of notebook 44 on data support and counterfactuals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib import drawings, figures
from lib.attribution import application_studies as studies
from lib.attribution.application_studies import Example, Group, Removals, Study
from lib.attribution.datamodel_pictures import LICENSED
from lib.figures import DASHES, MARKERS, ROLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROLES = {
    "datamodel": "main",
    "TRAK": "second",
    "influence (EK-FAC)": "third",
    "similar representation": "fifth",
    "random": "random",
}
N_REMOVED = 10  # rows of the example that are shown
N_SHOWN = 6  # training rows on either side in the explore cell
GRID = 81  # places at which the curve of supports is drawn
ALL_AT_ONCE = 12  # classes up to which all have a bar


def support(study: Study, removals: Removals) -> Figure:
    """Left: share of targets that k rows suffice to turn; right: what is left of the margin."""
    fig, (left, right) = figures.panels(1, 2, height=2.6)
    found = studies.supports(study, removals)
    n, last = len(study.setting.train), study.ks[-1]
    x = torch.linspace(0, last, GRID, dtype=torch.float64)
    for place, (name, values) in enumerate(found.items()):
        look = {"color": ROLE[ROLES[name]], "linestyle": DASHES[place]}
        left.plot(x, (values[:, None] <= x).double().mean(0), **look)  # type: ignore[arg-type]
        inside = (values[:, None] <= torch.tensor(study.ks)).double()
        # one row a target: random sets of a target are one observation
        share = inside.unflatten(0, (-1, len(study.targets))).mean(0)
        _points(left, study.ks, share, place, name)
        margins = removals.random.mean(1) if name == studies.RANDOM else removals.highest[name]
        rest = torch.cat([study.margins[None], margins.mean(-1)])
        _points(right, (0, *study.ks), rest.T.double(), place, name, line=True)
    left.set(
        xlabel=f"rows removed, k of {n:,}",
        ylabel="share of targets that k rows turn",
        title="data support (upper bound)",
        ylim=(-0.03, 1.03),
    )
    right.axhline(0, color="black", linestyle=":", linewidth=1)
    right.set(
        xlabel=f"rows removed, k of {n:,}",
        ylabel="margin, mean over targets",
        title="below 0 the prediction is wrong",
    )
    return fig


def _points(
    axis: Axes, ks: Sequence[int], values: Tensor, place: int, name: str, *, line: bool = False
) -> None:
    """Means of `[Q, K]` over targets with their 95% interval, a little apart for each method."""
    ends = torch.stack([studies.interval(column) for column in values.T], 1)
    means = values.mean(0)
    shift = (place - 2) * 0.008 * max(ks)
    axis.errorbar(
        [k + shift for k in ks],
        means,
        (ends - means).abs(),
        color=ROLE[ROLES[name]],
        marker=MARKERS[place],
        linestyle=DASHES[place] if line else "none",
        capsize=2,
        elinewidth=0.8,
        label=name,
    )


def table(study: Study, removals: Removals) -> list[dict[str, object]]:
    """Share of targets that turn wrong at each number of rows, by method, with half an interval."""
    n = len(study.setting.train)
    return [
        {
            "rows named by": name,
            **{
                f"k = {k} ({k / n:.1%})": studies.share_wrong(wrong[i])
                for i, k in enumerate(study.ks)
            },
        }
        for name, wrong in studies.wrong_at(study, removals).items()
    ]


def example(study: Study, found: Example) -> Figure:
    """A target, the rows whose removal turns it, and its class probabilities before and after."""
    import matplotlib.pyplot as plt

    fig = plt.figure(figsize=(figures.TWO_COLUMN, 2.3))
    left, right = fig.subfigures(1, 2, width_ratios=(1.35, 1), squeeze=False)[0]
    columns = 1 + N_REMOVED // 2
    places = [k for k in range(1, 2 * columns + 1) if k != columns + 1]
    axes = [left.add_subplot(2, columns, k) for k in places]
    target, train = study.setting.targets, study.setting.train
    is_drawn = study.setting.name in LICENSED
    words, number = study.names[found.label], None if is_drawn else found.target
    drawings.thumbnail(axes[0], target.x[found.target], words, instead=number)
    for axis in axes[1:]:
        axis.set_axis_off()
    for axis, row in zip(axes[1:], found.removed.tolist(), strict=False):
        axis.set_axis_on()
        words, number = study.names[int(train.y[row])], None if is_drawn else row
        drawings.thumbnail(axis, train.x[row], words, instead=number)
    n_shown = min(N_REMOVED, len(found.removed))
    words = f"target {found.target}, and {n_shown} of the {len(found.removed)} rows removed"
    left.suptitle(words, fontsize=7, x=0.02, ha="left")
    _probabilities(right.add_subplot(), study, found)
    return fig


def _probabilities(axis: Axes, study: Study, found: Example) -> None:
    """Mean class probabilities with sd over networks; with many classes the likeliest alone."""
    means = found.before.mean(0) + found.after.mean(0)
    shown = means.topk(min(ALL_AT_ONCE, len(means))).indices.sort().values.tolist()
    parts = (("all rows", found.before, "main", -0.2), ("rows removed", found.after, "second", 0.2))
    for label, values, role, shift in parts:
        axis.bar(
            [k + shift for k in range(len(shown))],
            values.mean(0)[shown],
            0.38,
            yerr=values.std(0)[shown],
            color=ROLE[role],
            hatch=None if role == "main" else "///",
            edgecolor="white",
            error_kw={"elinewidth": 0.8, "capsize": 2},
            label=label,
        )
    axis.set(
        xticks=range(len(shown)),
        xticklabels=[study.names[c] for c in shown],
        ylim=(0, 1.05),
        xlabel=f"class (the label is {study.names[found.label]})",
        ylabel="probability",
    )
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, 1.2), ncols=2)


def counterfactuals(groups: Sequence[Group]) -> Figure:
    """Predicted against actual change of the mean margin, a panel for each kind of rows."""
    fig, axes = figures.panels(1, len(groups), height=2.1)
    for axis, group in zip(axes, groups, strict=True):
        guess, seen = group.predicted.flatten(), group.actual.flatten()
        axis.scatter(guess, seen, s=5, color=ROLE["main"], alpha=0.45, linewidth=0)
        low = min(guess.min().item(), seen.min().item())
        high = max(guess.max().item(), seen.max().item())
        room = 0.06 * (high - low)
        ends = (low - room, high + room)
        axis.plot(ends, ends, color="black", linestyle=":", linewidth=1)
        axis.set(xlim=ends, ylim=ends, xlabel="predicted change")
        found = studies.agreement([group])
        r, slope = found.pearson[0], found.slope[0]
        axis.set_title(f"{group.kind}\nr = {r:.2f}, slope {slope:.2f}")
        # how far seeds alone move a point, up and down
        corner = low + 0.93 * (high - low), ends[0] + 1.15 * group.noise
        axis.errorbar(*corner, yerr=group.noise, color=ROLE["control"], capsize=2)
    axes[0].set_ylabel("actual change of margin")
    return fig


def counterfactual_rows(groups: Sequence[Group]) -> list[dict[str, object]]:
    """Agreement by kind of removed rows, and of all together."""
    found: list[dict[str, object]] = []
    for kind, part in [*((g.kind, [g]) for g in groups), ("all", list(groups))]:
        fit = studies.agreement(part)
        seen = torch.cat([g.actual.flatten() for g in part])
        found.append(
            {
                "rows removed": kind,
                "points": len(seen),
                "Pearson": fit.pearson,
                "slope": fit.slope,
                "sd of actual change": seen.std().item(),
                "of it by seeds": part[0].noise,
            }
        )
    return found


def one_target(study: Study, removals: Removals, method: str, place: int) -> Figure:
    """A target's rows by one method, and its margin as rows go, for the explore cell."""
    import matplotlib.pyplot as plt

    fig = plt.figure(figsize=(figures.TWO_COLUMN, 2.3))
    left, right = fig.subfigures(1, 2, width_ratios=(2, 1), squeeze=False)[0]
    columns = 1 + N_SHOWN
    places = [k for k in range(1, 2 * columns + 1) if k != columns + 1]
    axes = [left.add_subplot(2, columns, k) for k in places]
    t, train, targets = study.targets[place], study.setting.train, study.setting.targets
    tau = study.scores[method][:, place]
    order = tau.argsort(descending=True)
    rows = [*order[:N_SHOWN].tolist(), *order.flip(0)[:N_SHOWN].tolist()]
    drawings.thumbnail(axes[0], targets.x[t], study.names[int(targets.y[t])])
    for axis, row in zip(axes[1:], rows, strict=True):
        words = f"{study.names[int(train.y[row])]}: {tau[row].item():+.2g}"
        drawings.thumbnail(axis, train.x[row], words)
    words = f"target {t}, its rows of highest score (above) and lowest, by {method}"
    left.suptitle(words, fontsize=7, x=0.02, ha="left")
    axis = right.add_subplot()
    for k, (name, margins) in enumerate(removals.highest.items()):
        means = torch.cat([study.margins[place][None], margins[:, place].mean(-1)])
        look = {"color": ROLE[ROLES[name]], "marker": MARKERS[k], "linestyle": DASHES[k]}
        axis.plot((0, *study.ks), means, label=name, **look)
    axis.axhline(0, color="black", linestyle=":", linewidth=1)
    axis.set(xlabel="rows removed", ylabel="margin", title="support curve")
    right.legend(loc="outside lower center", ncols=2, fontsize=5)
    return fig


def said(found: Example, names: Sequence[str]) -> str:
    """The example in a sentence."""
    confidence = found.before[:, found.label].mean().item()
    after = found.after.mean(0)[found.becomes].item()
    return (
        f"target {found.target}, a {names[found.label]} at {confidence:.0%} confidence (right in "
        f"{found.right(found.before):.0%} of {len(found.before)} networks), without "
        f"{len(found.removed)} rows: {names[found.becomes]} at {after:.0%}, right in "
        f"{found.right(found.after):.0%}"
    )


def support_words(study: Study, removals: Removals) -> str:
    """Median data support by method, "> k" where fewer than half of the targets turn."""
    medians = {k: v.median().item() for k, v in studies.supports(study, removals).items()}
    return ", ".join(
        f"{name} {m:.0f}" if m < torch.inf else f"{name} > {study.ks[-1]}"
        for name, m in medians.items()
    )
