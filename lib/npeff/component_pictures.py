"""The figures of notebook 31. Each returns the figure; the notebook adds the provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib import drawings, figures
from lib.figures import ROLE
from lib.npeff.component_studies import LEVELS, KeptShare, Recovery
from lib.npeff.components import Components, Tuning
from lib.npeff.concept_search import RuleMatch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_IMAGES = 8  # of a component's gallery, as in the document's second figure


def metric(reach: float = 1.6, side: int = 81) -> Figure:
    """Two examples of a network with two parameters: divergence, and what the Fisher makes of it.

    Logits are ``(a x, b x, 0)`` for the example x, at a = 1.2 and b = -0.4.
    """
    start = torch.tensor([1.2, -0.4], dtype=torch.float64)
    steps = torch.linspace(-reach, reach, side, dtype=torch.float64)
    da, db = torch.meshgrid(steps, steps, indexing="xy")
    fig, axes = figures.panels(1, 2, width=5.2, height=2.9, sharey=True)
    levels = (0.02, 0.08, 0.18, 0.32)
    for axis, x in zip(axes, (1.0, -1.5), strict=True):
        divergence, quadratic = _divergence(start, da, db, x)
        axis.contourf(da, db, divergence, levels=(0, *levels), cmap="Blues", extend="max")
        axis.contour(da, db, quadratic, levels=levels, colors=ROLE["second"], linestyles="--")
        axis.plot(0, 0, marker="+", color="black")
        axis.set(title=f"example x = {x:g}", xlabel="change of parameter a", aspect="equal")
    axes[0].set_ylabel("change of parameter b")
    axes[0].plot(
        [], [], color=ROLE["second"], linestyle="--", label="½ δᵀF(x)δ, levels of the fill"
    )
    axes[0].fill_between([], [], color="#6baed6", label="KL divergence of the prediction")
    figures.legend(fig, axes[0])
    return fig


def _divergence(start: Tensor, da: Tensor, db: Tensor, x: float) -> tuple[Tensor, Tensor]:
    def log_p(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([a * x, b * x, torch.zeros_like(a)], -1).log_softmax(-1)

    before = log_p(start[0], start[1])
    p = before.exp()
    after = log_p(start[0] + da, start[1] + db)
    divergence = (p * (before - after)).sum(-1)
    delta = torch.stack([da * x, db * x, torch.zeros_like(da)], -1)  # change of the logits
    mean = (p * delta).sum(-1, keepdim=True)
    return divergence, (p * (delta - mean).square()).sum(-1) / 2


def sparsity(found: Mapping[str, KeptShare], chosen: Mapping[str, int]) -> Figure:
    """What the largest entries hold, and how many parameters any example uses, against K.

    Args:
        chosen: the K of the run, by the same names.
    """
    fig, axes = figures.panels(1, 2, height=2.4)
    for order, (name, share) in enumerate(found.items()):
        color, marker = figures.CYCLE[order], figures.MARKERS[order]
        low, middle, high = share.quantiles.T
        axes[0].plot(share.k, middle, color=color, marker=marker, label=name)
        axes[0].fill_between(share.k, low, high, color=color, alpha=0.18, linewidth=0)
        axes[1].plot(share.k, share.positions, color=color, marker=marker, label=name)
        at = share.k.index(chosen[name])
        for axis, value in ((axes[0], middle[at]), (axes[1], share.positions[at])):
            axis.plot(chosen[name], value, "o", mfc="none", mec="black", ms=9)
    for axis in axes:
        axis.set(xlabel="entries kept of an example, K")
        axis.set_xscale("log", base=2)
    axes[0].set(ylabel="share q of the PEF's norm", ylim=(0, 1.08))
    axes[0].set_title(f"median, {LEVELS[0]:.0%} to {LEVELS[-1]:.0%} of examples")
    axes[1].set(ylabel="parameters used, m'", ylim=(0, None))
    axes[1].set_title("circle: the K of this run")
    figures.legend(fig, axes[0])
    return fig


def recovered(found: Mapping[str, Recovery]) -> Figure:
    """Cosine of every planted component with the nearest one found, each start a line."""
    fig, axes = figures.panels(1, len(found), height=2.3, sharey=True)
    for axis, (name, recovery), color in zip(axes, found.items(), figures.CYCLE, strict=False):
        r = recovery.cosine.shape[1]
        for line in recovery.cosine:
            axis.plot(range(1, r + 1), line, color=color, alpha=0.7, marker=".", ms=3)
        counts = ", ".join(str(int(n)) for n in recovery.found())
        axis.set(title=f"{name}\nfound by start: {counts} of {r}", xlabel="planted, by cosine")
        axis.axhline(0.99, color=ROLE["control"], linestyle=":")
        axis.set_xticks([1, *range(5, r + 1, 5)])
    axes[0].set(ylabel="|cosine| with the nearest", ylim=(0, 1.03))
    return fig


def order_of(tuning: Tuning) -> list[int]:
    """Components by the concept of most of their top examples, the purest first."""
    places = range(len(tuning.share))
    return sorted(places, key=lambda j: (int(tuning.concept[j]), -float(tuning.share[j])))


def rules(
    precision: Tensor, names: Sequence[str], tuning: Tuning, classes: Sequence[str]
) -> Figure:
    """Share of each rule among the top examples of each component, sorted by rule.

    Args:
        precision: `[r, rules]`; names: of the rules; classes: of the label that each rule makes.
    """
    order = order_of(tuning)
    fig, (axis,) = figures.panels(height=max(2.2, 0.6 + 0.2 * len(names)))
    shown = axis.imshow(precision[order].T, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axis.set_yticks(range(len(names)), names)
    axis.set_xticks([])
    axis.set_xlabel("components, grouped by the rule of most of their top examples")
    for place, j in enumerate(order):
        if tuning.tuned[j]:
            beyond = tuning.share[j] > tuning.null_one_prediction
            face = "black" if beyond else "white"
            axis.plot(place, -0.95, "o", ms=3, mfc=face, mec="black", mew=0.6, clip_on=False)
    axis.set_ylim(len(names) - 0.5, -0.5)
    for k in range(1, len(names)):
        if classes[k] != classes[k - 1]:
            axis.axhline(k - 0.5, color="white", linewidth=1.5)
    fig.colorbar(shown, ax=axis, label="share of the top examples", shrink=0.9)
    return fig


def images(
    components: Components, picks: Sequence[int], names: Sequence[str], *, drawn: bool = True
) -> Figure:
    """Held-out images with the largest coefficients, a row a component.

    Args:
        picks: components.
        names: of the classes.
        drawn: show the images; where they may not be shown, the row's number stands for each.
    """
    fig, axes = figures.panels(len(picks), N_IMAGES, height=0.82)
    for row, j in enumerate(picks):
        for place, i in enumerate(components.top[j, :N_IMAGES].tolist()):
            axis = axes[row * N_IMAGES + place]
            words = names[int(components.bed.held_out.y[i])]
            if drawn:
                drawings.thumbnail(axis, components.bed.held_out.x[i], words)
            else:
                axis.text(0.5, 0.5, f"#{i}", ha="center", va="center", transform=axis.transAxes)
                drawings.without_frame(axis, words)
            if place == 0:
                axis.set_ylabel(f"no. {j}", fontsize=7)
    return fig


def outliers(norms: Tensor, found: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """Effective number of examples of each component, and where its top examples' norms lie.

    Args:
        norms: of the dense PEFs of the fit examples, `[n]`.
        found: name -> (effective number of examples `[r]`, top fit examples int64 `[r, T]`).
    """
    rank = norms.argsort().argsort().double() / len(norms)
    fig, (axis,) = figures.panels(width=figures.ONE_COLUMN * 1.5, height=2.6)
    for order, (name, (n_examples, top)) in enumerate(found.items()):
        axis.plot(
            n_examples,
            rank[top].median(1).values,
            figures.MARKERS[order],
            color=figures.CYCLE[order],
            alpha=0.8,
            label=name,
        )
    axis.set_xscale("log")
    axis.set(
        xlabel="effective number of examples of a component",
        ylabel="norm of its top examples\n(rank, median)",
        ylim=(0, 1.03),
    )
    axis.legend(loc="lower left")
    return fig


def places(names: Sequence[str], mass: Tensor, order: Sequence[int], least: float = 0.05) -> Figure:
    """Share of each component's squared length in each parameter of the network.

    Args:
        mass: `[r, parameters]`; order: of the components, as in `rules`.
        least: parameters that hold less of every component are shown together.
    """
    large = mass.amax(0) >= least
    shown = torch.cat([mass[:, large], mass[:, ~large].sum(1, keepdim=True)], 1)
    words = [name for name, kept in zip(names, large, strict=True) if kept]
    words += [f"{int((~large).sum())} others together"]
    fig, (axis,) = figures.panels(height=0.6 + 0.19 * len(words))
    image = axis.imshow(shown[list(order)].T, cmap="viridis", aspect="auto", vmin=0)
    axis.set_yticks(range(len(words)), words)
    axis.set_xticks([])
    axis.set_xlabel("components, in the order of figure 4")
    fig.colorbar(image, ax=axis, label="share of squared length", shrink=0.9)
    return fig


def repeated(pairs: Mapping[str, Tensor], null: float) -> Figure:
    """Largest cosine of each component with those of another start, sorted, each pair a line."""
    fig, (axis,) = figures.panels(width=figures.ONE_COLUMN * 1.5, height=2.3)
    for order, (name, best) in enumerate(pairs.items()):
        _curve(axis, best, name, order)
    axis.axhline(null, color=ROLE["random"], linestyle=":", label="rows of one run permuted")
    axis.set(xlabel="component of either run, by cosine", ylim=(0, 1.03))
    axis.set_ylabel("largest cosine of coefficients")
    axis.legend(loc=(0.02, null + 0.06))
    return fig


def _curve(axis: Axes, values: Tensor, name: str, order: int) -> None:
    axis.plot(
        range(1, len(values) + 1),
        values.sort(descending=True).values,
        color=figures.CYCLE[order],
        linestyle=figures.DASHES[order],
        label=name,
    )


def sentence_card(found: Components, match: RuleMatch, j: int, n: int = 6) -> Figure:
    """One component: how well it ranks each concept, and the pairs that use it most."""
    bed = found.bed
    fig, (left, right) = figures.panels(1, 2, height=2.6, width_ratios=(1, 1.9))
    color = [
        ROLE["main" if k == int(match.best[j]) else "control"] for k in range(len(bed.concepts))
    ]
    left.barh(range(len(bed.concepts)), match.average_precision[j], color=color)
    left.set_yticks(range(len(bed.concepts)), bed.concepts, fontsize=6)
    left.invert_yaxis()
    left.set(xlabel="average precision", xlim=(0, 1))
    left.set_title(f"component {j}")
    right.axis("off")
    for row, i in enumerate(found.top[j, :n].tolist()):
        premise, hypothesis = bed.held_out.text[i] if bed.held_out.text else ("", f"#{i}")
        words = f"{premise}\n   → {hypothesis}  ({bed.classes[int(found.predicted[i])]})"
        right.text(0, 1 - row / n, words, fontsize=6, va="top", transform=right.transAxes)
    return fig
