"""The figures of notebook 12: a diagram, score curves, galleries, consistency, validity.

Each returns the figure without writing it; the notebook adds the provenance and saves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from lib import drawings, figures
from lib.attribution.concept_cases import Study
from lib.attribution.concept_studies import Agreement, Validity, class_shares
from lib.attribution.concepts import ConceptAttribution
from lib.figures import ROLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROLES = {"frozen": "main", "refit": "second", "null": "random"}
WORDS = {"frozen": "probe frozen", "refit": "probe follows", "null": "random direction"}
N_SHOWN = 10
ARROW = {"arrowstyle": "-|>", "color": "#555555"}


def diagram() -> Figure:
    """How a concept's logit is attributed: forward to the probe, back to the training examples."""
    fig, (axis,) = figures.panels(width=figures.TWO_COLUMN, height=2.5)
    axis.set(xlim=(0, 10), ylim=(-1.75, 1.5))
    axis.axis("off")
    stages = [(0.8, "concept\nimage x"), (3.1, "layers up to i\nθ≤i"), (5.5, "activations\nh(x)")]
    stages += [(7.5, "probe\nw, b"), (9.3, "signed logit\nc (w·h + b)")]
    for place, words in stages:
        drawings.box(axis, place, 0.7, words)
    gaps = ((1.45, 2.2), (4.0, 4.75), (6.25, 7.0), (8.0, 8.45))
    for a, b in gaps:
        axis.annotate("", (b, 0.7), (a, 0.7), arrowprops=ARROW)
    drawings.box(axis, 3.1, -1.1, "gradient ψ\nin θ≤i")
    drawings.box(axis, 6.1, -1.1, "score of example j\nψ (ΦᵀΦ + λ)⁻¹ φⱼ Qⱼ")
    drawings.box(axis, 9.1, -1.1, "gradients φⱼ of the\ntraining margins")
    axis.plot([9.3, 9.3, 3.1], [0.3, -0.25, -0.25], color=ROLE["main"])
    back = {"arrowstyle": "-|>", "color": ROLE["main"], "shrinkA": 0}
    axis.annotate("", (3.1, -0.72), (3.1, -0.25), arrowprops=back)
    axis.text(6.3, -0.18, "back", color=ROLE["main"], fontsize=7, ha="center", va="bottom")
    follow = {"arrowstyle": "-|>", "color": ROLE["second"], "linestyle": "--"}
    axis.plot([3.1, 3.1, 7.5], [1.1, 1.45, 1.45], color=ROLE["second"], linestyle="--")
    axis.annotate("", (7.5, 1.08), (7.5, 1.48), arrowprops=follow)
    words = "probe follows: w, b are fitted to h, which θ moves"
    axis.text(5.3, 1.5, words, color=ROLE["second"], fontsize=7, ha="center", va="bottom")
    axis.set_ylim(-1.6, 1.75)
    axis.annotate("", (4.85, -1.1), (3.75, -1.1), arrowprops=ARROW)
    axis.annotate("", (7.35, -1.1), (8.05, -1.1), arrowprops=ARROW)
    return fig


def curves(found: Mapping[str, ConceptAttribution]) -> Figure:
    """Sorted positive mean scores against rank, every layer a panel, every concept a row."""
    layers = next(iter(found.values())).layers
    fig, axes = figures.panels(len(found), len(layers), height=2.1, sharex=True, sharey="row")
    for row, (name, attribution) in enumerate(found.items()):
        top = 0.0
        for column, layer in enumerate(layers):
            axis = axes[row * len(layers) + column]
            for order, version in enumerate(attribution.versions):
                score = attribution.mean(version, layer).sort(descending=True).values
                kept = score[score > 0]
                top = max(top, kept[0].item())
                axis.loglog(
                    torch.arange(1, len(kept) + 1),
                    kept,
                    color=ROLE[ROLES[version]],
                    linestyle=figures.DASHES[order],
                    label=WORDS[version],
                )
            axis.set_title(f"{name}, {layer}")
            if row == len(found) - 1:
                axis.set_xlabel("rank of the training image")
        axis.set_ylim(top * 1e-6, top * 2)
        axes[row * len(layers)].set_ylabel("mean score, if positive")
    figures.legend(fig, axes[0])
    return fig


def gallery(
    study: Study, found: Mapping[str, ConceptAttribution], version: str, layer: str, *, drawn: bool
) -> Figure:
    """For each concept the training images of highest and of lowest mean score.

    Args:
        drawn: show the images; where they may not be shown, the row's number stands for each.
    """
    train = study.setting.train
    fig, axes = figures.panels(2 * len(found), N_SHOWN, height=0.78)
    for index, (name, attribution) in enumerate(found.items()):
        order = attribution.mean(version, layer).argsort(descending=True)
        for half, (rows, word) in enumerate(
            ((order[:N_SHOWN], "raise"), (order.flip(0)[:N_SHOWN], "lower"))
        ):
            line = axes[(2 * index + half) * N_SHOWN :][:N_SHOWN]
            for axis, i in zip(line, rows.tolist(), strict=True):
                words = study.class_names[int(train.y[i])]
                drawings.thumbnail(axis, train.x[i], words, instead=None if drawn else i)
            line[0].set_title(" ")  # its height only: a long title pushes the next image away
            words = f"{name}: {word} its logit at {layer}"
            title = line[0].text(0, 1.12, words, transform=line[0].transAxes)
            title.set(fontsize=8, fontweight="bold", in_layout=False)
    return fig


def classes(study: Study, found: Mapping[str, ConceptAttribution], version: str) -> Figure:
    """Classes of the top 100, of the bottom 100 and of all training images, last layer."""
    labels, names = study.setting.train.y, study.class_names
    fig, axes = figures.panels(1, len(found), height=2.2, sharey=True)
    for axis, (name, attribution) in zip(axes, found.items(), strict=True):
        shares = class_shares(attribution.mean(version, attribution.layers[-1]), labels, len(names))
        x = torch.arange(len(names), dtype=torch.float64)
        bars = (("top 100", "main"), ("bottom 100", "second"), ("all", "random"))
        for k, (words, role) in enumerate(bars):
            axis.bar(x + 0.27 * (k - 1), shares[k], 0.27, color=ROLE[role], label=words)
        axis.set_xticks(x, names, rotation=45 if max(map(len, names)) > 2 else 0)
        shown = study.cases[name].classes
        for tick, label in enumerate(axis.get_xticklabels()):
            label.set_fontweight("bold" if tick in shown else "normal")
        axis.set(
            title=f"{name}, {attribution.layers[-1]}", xlabel="class (bold: shows the concept)"
        )
    axes[0].set_ylabel("share of the images")
    figures.legend(fig, axes[0])
    return fig


def consistency(
    agreements: Mapping[tuple[str, str], Agreement],
    nulls: Mapping[tuple[str, str], Agreement],
    names: Sequence[str],
    matrix: torch.Tensor,
) -> Figure:
    """Left: agreement of two halves of the networks; right: of concepts and layers.

    Args:
        agreements, nulls: (concept, layer) -> what `split_halves` gives for the scores, and for
            those of random directions.
        names, matrix: what `between` gives.
    """
    fig, (left, right) = figures.panels(1, 2, height=2.9, gridspec_kw={"width_ratios": (1.2, 1)})
    x = torch.arange(len(agreements), dtype=torch.float64)
    bars = (
        (agreements, "tenth", "top tenth in common", "main"),
        (nulls, "tenth", "the same, random directions", "random"),
        (agreements, "spearman", "rank correlation", "second"),
    )
    for k, (source, field, words, role) in enumerate(bars):
        values = torch.stack([getattr(a, field) for a in source.values()])
        mean, spread = values.mean(1), values.std(1)
        at = x + 0.27 * (k - 1)
        left.bar(at, mean, 0.26, yerr=spread, color=ROLE[role], label=words, capsize=2)
    left.axhline(0.1, color="black", linestyle=":", label="chance of the tenth")
    left.set_xticks(x, [_in_lines(*one) for one in agreements], fontsize=6)
    left.set(title="two halves of the networks", ylabel="agreement", ylim=(-0.1, 1))
    image = right.imshow(matrix, cmap="vlag", vmin=-1, vmax=1)
    ticks = range(len(names))
    right.set_xticks(ticks, names, rotation=90, fontsize=6)
    right.set_yticks(ticks, [n.replace("\n", " ") for n in names], fontsize=6)
    right.set_title("concepts and layers")
    right.figure.colorbar(image, ax=right, shrink=0.7, label="rank correlation")
    figures.legend(fig, left)
    return fig


def validity(rows: Sequence[Validity]) -> Figure:
    """LDS of single images and of their mean, with the ceilings that seeds allow."""
    fig, axes = figures.panels(1, 2, height=2.7, sharey=True)
    places = list(dict.fromkeys((r.concept, r.layer) for r in rows))
    for axis, kind in zip(axes, ("image", "mean"), strict=True):
        _validity(axis, rows, places, kind)
    axes[0].set(title="each concept image", ylabel="LDS")
    axes[1].set_title("their mean")
    figures.legend(fig, axes[0])
    return fig


def _validity(
    axis: Axes, rows: Sequence[Validity], places: Sequence[tuple[str, str]], kind: str
) -> None:
    versions = list(dict.fromkeys(r.version for r in rows))
    for k, version in enumerate(versions):
        chosen = [r for r in rows if r.version == version]
        value = torch.tensor([getattr(r, kind) for r in chosen])
        ends = torch.tensor([getattr(r, f"{kind}_interval") for r in chosen]).T
        at = torch.arange(len(places)) + 0.26 * (k - (len(versions) - 1) / 2)
        axis.errorbar(
            at,
            value,
            yerr=torch.stack([value - ends[0], ends[1] - value]).clamp(min=0),
            fmt=figures.MARKERS[k],
            color=ROLE[ROLES[version]],
            label=WORDS[version],
            capsize=2,
        )
    for place in range(len(places)):
        level = next(
            getattr(r, f"{kind}_ceiling") for r in rows if (r.concept, r.layer) == places[place]
        )
        words = "ceiling" if place == 0 else "_"
        axis.hlines(level, place - 0.4, place + 0.4, color="black", linestyle="--", label=words)
    axis.axhline(0, color=ROLE["random"], linewidth=0.8)
    axis.set_xticks(range(len(places)), [_in_lines(*one) for one in places], fontsize=6)


def _in_lines(concept: str, layer: str) -> str:
    """A tick label of two or three short lines."""
    return "\n".join([*concept.replace("-", "- ").split(), layer])
