"""The figures and table rows of notebook 46: each function takes results and returns a figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from lib import drawings, figures
from lib.attribution.brittleness import paired_difference
from lib.attribution.datamodel_pictures import LICENSED
from lib.attribution.fact_studies import PROPONENTS, Tracing
from lib.attribution.fact_studies import Removal as FactRemoval
from lib.attribution.gallery_studies import Gallery
from lib.attribution.pair_studies import COSINE, MARGIN, NEIGHBOURS, TRAK, Removal, Study
from lib.attribution.retrieval import Retrieval
from lib.figures import MARKERS, ROLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROLES = {
    "TRAK": "main",
    MARGIN: "second",
    COSINE: "seventh",
    "TracIn": "second",
    "TracIn, cosines": "fourth",
    "TracIn + embedding": "sixth",
    "embedding": "third",
    NEIGHBOURS: "third",
    "BM25": "fifth",
    PROPONENTS: "sixth",
    "random": "random",
}
# as read in the published table (specification section 7.3): MRR in [0, 1]; two TracIns: of the
# fine-tuned and of the pretrained model
PUBLISHED = {
    "BM25": ((0.776,), 0.609),
    "TracIn": ((0.486, 0.624), 0.575),
    "embedding": ((0.643,), 0.579),
    "TracIn + embedding": ((0.585,), 0.617),
}
N_SHOWN = 5


def pairs(study: Study, columns: int = 6) -> Figure:
    """Targets with their captions, and the pair that TRAK ranks first for each, below."""
    columns = min(columns, len(study.targets))
    fig, axes = figures.panels(2, columns, height=1.25)
    for k, row in enumerate(study.targets[:columns].tolist()):
        best = int(study.scores[TRAK][:, k].argmax())
        _pair(axes[k], study, row)
        _pair(axes[columns + k], study, best)
    axes[0].set_title("held-out targets")
    axes[columns].set_title("TRAK's first training pair for each")
    return fig


def alignment(removal: Removal) -> Figure:
    """Left: mean drop of the cosine against pairs removed; right: each target at the largest k."""
    fig, (left, right) = figures.panels(1, 2, height=2.5)
    for order, method in enumerate(removal.after):
        found = removal.interval(method)
        bars = (found[:, 1:] - found[:, :1]).abs().T
        color, marker = ROLE[ROLES[method]], MARKERS[order]
        left.errorbar(
            removal.ks, found[:, 0], bars, capsize=2, color=color, marker=marker, label=method
        )
        drop = removal.drop(method)[-1]
        right.scatter([order] * len(drop), drop, s=14, alpha=0.8, color=color, marker=marker)
        right.plot([order - 0.25, order + 0.25], [drop.mean().item()] * 2, color=color)
    left.axhline(0, color="black", linestyle=":", linewidth=1)
    right.axhline(0, color="black", linestyle=":", linewidth=1)
    left.set(
        xlabel="pairs removed, k",
        ylabel="drop of the target's cosine",
        title="the more goes, the worse",
        xticks=removal.ks,
    )
    names = list(removal.after)
    right.set(
        xticks=range(len(names)),
        xticklabels=[name.replace(" of the ", "\nof the ") for name in names],
        ylabel="drop of its cosine",
        title=f"each target, k = {removal.ks[-1]}",
        xlim=(-0.5, len(names) - 0.5),
    )
    figures.legend(fig, left)
    return fig


def one_pair(study: Study, method: str, target: int) -> Figure:
    """A target and the pairs that a method ranks highest, for the explore cell."""
    fig, axes = figures.panels(1, 1 + N_SHOWN, height=1.3)
    _pair(axes[0], study, int(study.targets[target]))
    axes[0].set_title("target")
    best = study.scores[method][:, target].topk(N_SHOWN).indices.tolist()
    for axis, row in zip(axes[1:], best, strict=True):
        _pair(axis, study, row)
    axes[1].set_title(f"{method}: highest")
    return fig


def retrieval(found: Mapping[str, Retrieval]) -> Figure:
    """MRR and recall of all methods with intervals over facts, published MRR beside."""
    fig, (left, right) = figures.panels(1, 2, height=2.5, sharey=True)
    names = list(found)
    for place, method in enumerate(names):
        color = ROLE[ROLES[method]]
        for axis, values in ((left, found[method].reciprocal_rank), (right, found[method].recall)):
            mean, low, high = paired_difference(values, torch.zeros_like(values))
            axis.barh(place, mean, color=color, height=0.6)
            axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color="black",
                          linewidth=1, capsize=2)  # fmt: skip
        if method in PUBLISHED:
            ranks, recall = PUBLISHED[method]
            _published(left, ranks, place)
            _published(right, (recall,), place)
    _published(left, (), 0, label="published")
    left.set(yticks=range(len(names)), yticklabels=names, xlabel="MRR", xlim=(0, 1))
    left.invert_yaxis()
    left.set_title("first proponent")
    right.set(xlabel="recall at 10", xlim=(0, 1), title="all proponents")
    left.legend(loc="lower right")
    return fig


def _published(axis: Axes, values: Sequence[float], place: int, label: str | None = None) -> None:
    axis.scatter(values, [place] * len(values), s=26, marker="D", facecolor="white",
                 edgecolor="black", zorder=3, label=label)  # fmt: skip


def table(found: Mapping[str, Retrieval]) -> list[dict[str, object]]:
    """MRR, recall and precision, ours with half of the 95% interval and as published."""
    rows: list[dict[str, object]] = []
    for method, of in found.items():
        row: dict[str, object] = {"method": method}
        for name, values in (
            ("MRR", of.reciprocal_rank),
            ("recall at 10", of.recall),
            ("precision at 10", of.precision),
        ):
            mean, low, high = paired_difference(values, torch.zeros_like(values))
            row[name] = (mean, (high - low) / 2)
        ranks, recall = PUBLISHED.get(method, ((), None))
        row["published MRR"] = " / ".join(f"{value:.3f}" for value in ranks) or "-"
        row["published recall"] = "-" if recall is None else f"{recall:.3f}"
        rows.append(row)
    return rows


def removal(found: FactRemoval) -> Figure:
    """Fall of right answers and of margins without each method's rows, with intervals."""
    fig, (left, right) = figures.panels(1, 2, height=2.6, sharey=True)
    arms = sorted(found.after, key=lambda arm: (-arm[1], arm[0] == "random"))
    for place, (method, k) in enumerate(arms):
        for axis, fall in (
            (left, found.fall(method, k)),
            (right, found.margin_fall(method, k)),
        ):
            mean, low, high = paired_difference(fall, torch.zeros_like(fall))
            axis.barh(place, mean, color=ROLE[ROLES[method]], height=0.6)
            axis.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color="black",
                          linewidth=1, capsize=2)  # fmt: skip
    left.set(yticks=range(len(arms)), yticklabels=[f"{m}, {k} rows" for m, k in arms])
    left.invert_yaxis()
    left.set(xlabel="fall of the share of right answers", title="answers")
    right.set(xlabel="fall of the margin", title="margins")
    return fig


def one_fact(tracing: Tracing, method: str, fact: int) -> Figure:
    """A question and the sentences that a method ranks highest, proponents in bold."""
    fig, (axis,) = figures.panels(1, 1, height=2.0)
    axis.set_axis_off()
    corpus, scores = tracing.corpus, tracing.scores[method][:, fact]
    axis.set_title(f"{corpus.question(fact)}   by {method}")
    for place, row in enumerate(scores.topk(2 * N_SHOWN).indices.tolist()):
        states = int(corpus.stated[row]) == fact
        words = f"{place + 1:2d}  {corpus.sentence(row)}{'   (states it)' if states else ''}"
        weight = "bold" if states else "normal"
        axis.text(0, 1 - (place + 1) / 11, words, fontsize=7, weight=weight,
                  transform=axis.transAxes)  # fmt: skip
    return fig


def gallery(found: Gallery, targets: Sequence[int]) -> Figure:
    """Each row a target, the images that raise its margin most by TRAK, and those that lower it.

    Images whose licence is not known to allow it are not drawn: their row numbers stand instead.
    """
    columns = 1 + 2 * N_SHOWN
    fig, axes = figures.panels(len(targets), columns, height=0.95)
    drawn = found.setting.name in LICENSED
    data, asked = found.setting.train, found.setting.targets
    for k, t in enumerate(targets):
        line = axes[k * columns : (k + 1) * columns]
        order = found.tau[:, t].argsort(descending=True).tolist()
        number = None if drawn else t
        drawings.thumbnail(line[0], asked.x[t], found.names[int(asked.y[t])], instead=number)
        rows = [*order[:N_SHOWN], *order[: -N_SHOWN - 1 : -1]]
        for axis, i in zip(line[1:], rows, strict=True):
            number = None if drawn else i
            drawings.thumbnail(axis, data.x[i], found.names[int(data.y[i])], instead=number)
    axes[0].set_title("target", loc="center")
    axes[1].set_title("raise its margin")
    axes[1 + N_SHOWN].set_title("lower its margin")
    return fig


def agreement(found: Gallery) -> Figure:
    """Left: share of the target's class high and low in the gallery; right: datamodel overlap."""
    fig, (left, right) = figures.panels(1, 2, height=2.3)
    high, low = found.same_class
    bins = torch.linspace(-0.05, 1.05, 12).tolist()
    left.hist([high, low], bins=bins, color=[ROLE["main"], ROLE["fourth"]],
              label=["10 highest", "10 lowest"])  # fmt: skip
    y = found.setting.train.y
    chance = (y[:, None] == found.setting.targets.y).double().mean().item()
    left.axvline(chance, color=ROLE["random"], linestyle="--", label="chance")
    left.set(xlabel="share of the target's class", ylabel="targets", title="class of the images")
    left.plot([], [], color="black", label="mean, right")
    right.hist(found.shared, bins=20, color=ROLE["main"])
    right.axvline(1, color=ROLE["random"], linestyle="--")
    right.axvline(found.shared.mean().item(), color="black")
    right.set(
        xlabel="images shared with the datamodel / chance",
        ylabel="targets",
        title="20 highest of both",
    )
    figures.legend(fig, left)
    return fig


def _pair(axis: Axes, study: Study, row: int) -> None:
    axis.imshow(study.pairs.images[row].permute(1, 2, 0).clamp(0, 1).numpy())
    words = study.pairs.caption(row).split()
    axis.set_xlabel(" ".join(words[:3]) + "\n" + " ".join(words[3:]), fontsize=6, labelpad=2)
    axis.set(xticks=[], yticks=[])
