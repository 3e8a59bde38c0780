"""The figures of notebook 34. Each returns the figure; the notebook adds the provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib import figures
from lib.figures import CYCLE, DASHES, MARKERS, ROLE
from lib.npeff import matching
from lib.npeff.components import Tuning
from lib.npeff.hyperparameter_studies import DOCUMENT_KS, PAIRS, Counterparts, Descent, Sparse

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WORDS = {
    "gd": "constant rate, as published",
    "precond": "constant rate, scaled by curvature",
    "exact": "best length, ours",
}
MARKS = ((700 / 1500, 0.95), (1100 / 1500, 0.99))  # of the document's figure 5
LEAST = 2e-4  # of L / kappa above the lowest, drawn on a logarithmic axis


def similar_at_k(found: Sequence[Sparse], null: float) -> Figure:
    """Largest cosines of components with those of a run with another K, and with another start.

    Args:
        null: mean largest cosine when the examples of one run are permuted.
    """
    fig, (axis,) = figures.panels(height=2.6)
    pairs = list(permutations(found, 2))
    names = [f"{a.k:,}\nto {b.k:,}" for a, b in pairs]
    for place, ((a, b), number) in enumerate(zip(pairs, PAIRS, strict=True)):
        best = matching.cosines(a.coefficients[0], b.coefficients[0]).amax(1)
        _strip(axis, place, best, "main", "another K" if place == 0 else None)
        axis.plot(
            [place - 0.3, place + 0.3],
            [number, number],
            color=ROLE["document"],
            linestyle="--",
            label="document's mean" if place == 0 else None,
        )
    for i, one in enumerate(found):
        best = torch.cat(
            [matching.cosines(one.coefficients[0], w).amax(1) for w in one.coefficients[1:]]
        )
        words = "same K, another start" if i == 0 else None
        _strip(axis, len(pairs) + i, best, "third", words)
        names.append(f"{one.k:,}\nrestarted")
    axis.axhline(null, color=ROLE["random"], linestyle=":", label="examples permuted, mean")
    axis.axvline(len(pairs) - 0.5, color="#cccccc", linewidth=0.8)
    axis.set_xticks(range(len(names)), names, fontsize=6)
    axis.set(ylabel="largest cosine of coefficients", ylim=(0, 1.03))
    figures.legend(fig, axis)
    return fig


def _strip(axis: Axes, place: int, values: Tensor, role: str, label: str | None) -> None:
    """A point a component, side by side in their order, and a bar at the mean."""
    across = torch.linspace(-0.25, 0.25, len(values)) + place
    axis.plot(across, values.sort().values, ".", color=ROLE[role], alpha=0.7, label=label)
    mean = float(values.mean())
    axis.plot([place - 0.3, place + 0.3], [mean, mean], color=ROLE[role], linewidth=2)


def ks_beside(found: Sequence[Sparse]) -> list[str]:
    """The document's K and ours, for a provenance line."""
    return [f"{ours.k:,} ({theirs:,})" for ours, theirs in zip(found, DOCUMENT_KS, strict=True)]


def splits(
    cosines: Tensor, parent: Tensor, larger: Sequence[str], smaller: Sequence[str]
) -> Figure:
    """Cosines of a larger run's components with a smaller run's, grouped by the nearest.

    Args:
        cosines: `[r_larger, r_smaller]`; parent: int64 `[r_larger]`.
        larger, smaller: words for the components.
    """
    order = sorted(range(len(parent)), key=lambda j: (int(parent[j]), larger[j]))
    fig, (axis,) = figures.panels(height=1.7 + 0.2 * len(smaller))
    shown = axis.imshow(cosines[order].T, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    axis.set_xticks(range(len(order)), [larger[j] for j in order], rotation=90, fontsize=6)
    axis.set_yticks(range(len(smaller)), smaller, fontsize=7)
    for k in range(len(smaller)):
        mine = [place for place, j in enumerate(order) if int(parent[j]) == k]
        if mine:
            x = [mine[0] - 0.5, mine[-1] + 0.5, mine[-1] + 0.5, mine[0] - 0.5, mine[0] - 0.5]
            y = [k - 0.47, k - 0.47, k + 0.47, k + 0.47, k - 0.47]
            axis.plot(x, y, color="white", linewidth=1.4)
    axis.set_ylabel(f"r = {len(smaller)}")
    axis.set_xlabel(f"components of r = {len(order)}, boxed with the nearest of r = {len(smaller)}")
    fig.colorbar(shown, ax=axis, label="cosine of coefficients", shrink=0.9)
    return fig


def counterpart_rows(pairs: Mapping[tuple[int, int], Counterparts]) -> list[dict[str, object]]:
    """Table rows: which components of the smaller run have a counterpart."""
    rows: list[dict[str, object]] = []
    for (a, b), found in pairs.items():
        sizes = torch.bincount(found.parent, minlength=a)
        rows.append(
            {
                "smaller r, larger r": f"{a}, {b}",
                "document (32, 128, 512)": "all",
                "ours": f"{int(found.covered.sum())} of {a}",
                "examples permuted, mean": f"{float(found.null.mean()) * a:.1f} of {a}",
                "counterparts of each, least to most": f"{int(sizes.min())} to {int(sizes.max())}",
                "mean cosine with the nearest": f"{float(found.cosine.mean()):.2f}",
            }
        )
    return rows


def settled(found: Mapping[str, Descent]) -> Figure:
    """Cosine of coefficients with their final value against the share of the steps done."""
    fig, (left, right) = figures.panels(1, 2, height=2.6, sharey=True)
    for order, (name, one) in enumerate(found.items()):
        share = one.steps / one.steps[-1]
        color, dash = CYCLE[order], DASHES[order]
        left.plot(share, one.mean, color=color, linestyle=dash, label=WORDS[name])
        if name == "gd":
            tenths = torch.tensor([0.1, 0.9], dtype=torch.float64)
            low, high = one.similarity.quantile(tenths, dim=1)
            left.fill_between(share, low, high, color=color, alpha=0.12, linewidth=0)
            right.plot(share, one.mean, color=color, label="_")
            half = torch.linspace(0, 1, len(one.halfway), dtype=torch.float64)
            words = f"{int(one.steps[-1]) // 2} steps, its own end"
            right.plot(half, one.halfway.mean(1), color=ROLE["second"], linestyle="--", label=words)
            right.lines[0].set_label(f"{int(one.steps[-1]):,} steps, its own end")
    for axis in (left, right):
        for order, (at, value) in enumerate(MARKS):
            words = "document: at least" if order == 0 else "_"
            axis.plot(at, value, "^", color=ROLE["document"], ms=5, label=words)
        axis.set(xlabel="share of the joint steps", ylim=(0.8, 1.005), xlim=(0, 1))
    left.set_ylabel("cosine with the final coefficients")
    left.legend(loc="lower right")
    right.set_title("constant rate, stopped earlier")
    right.legend(loc="lower right")
    left.set_title("means; band: 80% of components")
    return fig


def losses(found: Mapping[str, Descent]) -> Figure:
    """Loss above the lowest that any way reaches, by steps and by seconds."""
    least = min(float(one.loss[-1]) for one in found.values())
    fig, axes = figures.panels(1, 2, height=2.4, sharey=True)
    for order, (name, one) in enumerate(found.items()):
        above = (one.loss - least).clamp_min(LEAST)
        for axis, x in zip(axes, (one.loss_steps, one.loss_steps * one.seconds), strict=True):
            axis.plot(
                x,
                above,
                color=CYCLE[order],
                linestyle=DASHES[order],
                marker=MARKERS[order],
                markevery=(3 * order, 10),
                label=WORDS[name],
            )
    for axis in axes:
        axis.set_yscale("log")
    axes[0].set(xlabel="steps", ylabel=f"L / κ, above {least:.4f}")
    axes[1].set(xlabel="seconds, when it was run")
    figures.legend(fig, axes[0])
    return fig


def kinds(found: Mapping[str, Tuning]) -> Figure:
    """Share of the most frequent concept among each component's top examples, sorted."""
    fig, (axis,) = figures.panels(width=figures.ONE_COLUMN * 1.5, height=2.4)
    for order, (name, one) in enumerate(found.items()):
        values = one.share.sort(descending=True).values
        words = f"{name}: {int(one.tuned.sum())} of {len(values)} beyond chance"
        axis.plot(
            range(1, len(values) + 1),
            values,
            color=CYCLE[order],
            marker=MARKERS[order],
            linestyle=DASHES[order],
            label=words,
        )
        axis.axhline(
            one.null,
            color=ROLE["random"],
            linestyle=":",
            label="best of as many random sets, 95%" if order == 0 else "_",
        )
    axis.set(xlabel="component, by share", ylim=(0, 1.03))
    axis.set_ylabel("share of the commonest rule\namong the top examples")
    axis.legend(loc="upper right", bbox_to_anchor=(1.02, 1.06))
    return fig
