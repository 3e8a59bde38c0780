"""The figures and table rows of notebook 47 on maps: results in, a figure out.

Colours tell families of methods apart, markers their members. Maps are red where a pixel raises
the output, blue where it lowers it, each scaled by its own largest values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from lib import figures
from lib.attribution import feature_checks
from lib.attribution.feature_axioms import AXIOMS, Guarantees
from lib.attribution.feature_studies import IN_OUTPUT_UNITS, Known, Study, interval
from lib.attribution.feature_subjects import Subject
from lib.figures import DASHES, ROLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# method or control: colour of its family, marker within it, line
LOOK = {
    "gradient": ("main", "o", 0),
    "input x gradient": ("main", "s", 1),
    "SmoothGrad": ("main", "^", 2),
    "guided backpropagation": ("fourth", "v", 1),
    "Grad-CAM": ("third", "D", 0),
    "integrated gradients": ("second", "P", 0),
    "LIME": ("fifth", "X", 0),
    "KernelSHAP": ("sixth", "o", 2),
    "Shapley sampling": ("seventh", "s", 3),
    "random": ("random", "<", 3),
    "input": ("control", ">", 2),
    "edges": ("control", "d", 1),
}
WORDS = {"input": "size of the input", "edges": "edge filter", "random": "random map"}
SHORT = {
    "gradient": "gradient",
    "input x gradient": "input x\ngradient",
    "SmoothGrad": "Smooth-\nGrad",
    "guided backpropagation": "guided\nbackprop.",
    "Grad-CAM": "Grad-\nCAM",
    "integrated gradients": "integr.\ngradients",
    "LIME": "LIME",
    "KernelSHAP": "Kernel-\nSHAP",
    "Shapley sampling": "Shapley\nsampling",
}
CURVES = ("integrated gradients", "gradient", "Grad-CAM", "KernelSHAP", "edges", "random")
SIDE_SHOWN = 56  # pixels a side that a map is averaged down to


def gallery(study: Study, n: int = 4) -> Figure:
    """Some images, each with the maps of every method."""
    subject = study.subject
    fig, axes = figures.panels(n, 1 + len(study.maps), height=0.78)
    for i in range(n):
        row = axes[i * (1 + len(study.maps)) : (i + 1) * (1 + len(study.maps))]
        show_image(row[0], subject, i)
        for axis, maps in zip(row[1:], study.maps.values(), strict=True):
            show_map(axis, maps[i])
    for axis, name in zip(axes[1 : 1 + len(study.maps)], study.maps, strict=True):
        axis.set_title(SHORT[name], fontsize=6, loc="center", fontweight="normal")
    return fig


def show_image(axis: Axes, subject: Subject, i: int, x: Tensor | None = None) -> None:
    """An image in grey, or where its licence does not allow it, its number and class."""
    word = subject.names[int(subject.y[i])]
    bare(axis)
    if not subject.is_shown:
        label = f"no. {subject.rows[i]}\n" + word.replace(" ", "\n")
        axis.text(0.5, 0.5, label, ha="center", va="center", fontsize=6)
        return
    image = (subject.x[i] if x is None else x)[0].cpu()
    axis.imshow(image, cmap="gray_r", vmin=subject.low, vmax=subject.high)


def show_map(axis: Axes, m: Tensor, scale: float | None = None) -> None:
    """A map `[c, h, w]`, channels summed, red where positive."""
    flat = m.detach().cpu().float().sum(0)
    if flat.shape[-1] > SIDE_SHOWN:
        flat = F.avg_pool2d(flat[None], flat.shape[-1] // SIDE_SHOWN)[0]
    top = scale or max(flat.abs().flatten().quantile(0.995).item(), 1e-12)
    axis.imshow(flat, cmap="vlag", vmin=-top, vmax=top)
    bare(axis)


def bare(axis: Axes) -> None:
    """No ticks, no frame."""
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)


def planted(known: Known, n: int = 3) -> Figure:
    """Images with a known answer, the answer, and the trained network's maps."""
    maps = known.maps["trained"]
    fig, axes = figures.panels(n, 2 + len(maps), height=0.72)
    for i in range(n):
        row = axes[i * (2 + len(maps)) : (i + 1) * (2 + len(maps))]
        row[0].imshow(known.rows.x[i, 0], cmap="gray", vmin=-1, vmax=1)
        row[1].imshow(known.rows.mask[i], cmap="gray_r")
        for axis, m in zip(row[2:], maps.values(), strict=True):
            show_map(axis, m[i])
        for axis in row[:2]:
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set_visible(True)
                side.set_linewidth(0.5)
    titles = ["image", "answer", *(SHORT[name] for name in maps)]
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(title, fontsize=6, loc="center", fontweight="normal")
    return fig


def localisation(known: Known) -> Figure:
    """How well each map points to the planted pixels: built and trained network, and controls."""
    fig, (axis,) = figures.panels(1, 1, height=3.1)
    names = [*known.maps["trained"], *known.maps["no network"]][::-1]
    looks = {"built": ("second", "s", 0.16), "trained": ("main", "o", -0.16)}
    for network, (role, marker, shift) in looks.items():
        for k, name in enumerate(names):
            if name in known.auc[network]:
                label = f"{network} network" if name == "gradient" else None
                _dot(axis, known.auc[network][name], k + shift, role, marker, label)
    for k, name in enumerate(names):
        if name in known.auc["no network"]:
            label = "no network asked" if name == "random" else None
            _dot(axis, known.auc["no network"][name], k, "control", "d", label)
    edges = known.auc["no network"]["edges"].mean().item()
    axis.axvline(edges, color=ROLE["control"], linestyle="--", linewidth=1)
    axis.axvline(0.5, color="black", linestyle=":", linewidth=1)
    axis.set_yticks(range(len(names)), [WORDS.get(name, name) for name in names])
    axis.set(xlabel="localisation: area under the ROC curve (dotted: chance; dashed: edge filter)")
    axis.legend(loc="upper left", bbox_to_anchor=(0.15, 1.0))
    return fig


def _dot(axis: Axes, values: Tensor, y: float, role: str, marker: str, label: str | None) -> None:
    mean, half = interval(values)
    axis.errorbar(mean, y, xerr=half, color=ROLE[role], marker=marker, linestyle="", label=label)


def shapley(study: Study) -> Figure:
    """Three estimates against the exact values of the patches, and what more work brings."""
    from matplotlib.ticker import LogLocator

    fig, axes = figures.panels(1, 4, height=2.1)
    exact = study.exact.flatten()
    for axis, name in zip(
        axes, ("input x gradient", "integrated gradients", "KernelSHAP"), strict=False
    ):
        role, marker, _ = LOOK[name]
        axis.plot(exact, study.of_patches[name].flatten(), marker, color=ROLE[role], alpha=0.5)
        axis.axline((0, 0), slope=1, color="black", linestyle=":", linewidth=1)
        axis.set_title(f"{name}\ndistance {study.distance(name).mean().item():.2f}")
        axis.set_xlabel("Shapley value")
    axes[0].set_ylabel("sum over the patch")
    last = axes[3]
    steps = study.gap_by_steps
    rows = [("integrated gradients", steps, "IG: gap"), *_by_samples(study)]
    for k, (name, found, label) in enumerate(rows):
        role, marker, _ = LOOK[name]
        mean = [v.double().median().item() for v in found.values()]
        last.plot(
            list(found), mean, marker=marker, color=ROLE[role], linestyle=DASHES[k], label=label
        )
    last.set(xscale="log", yscale="log", xlabel="evaluations an image", title="error, median")
    for side in (last.xaxis, last.yaxis):
        side.set_major_locator(LogLocator(subs=(1, 3)))
        side.set_major_formatter("{x:g}")
        side.set_minor_formatter("")
    last.tick_params(labelsize=6)
    last.legend(fontsize=6)
    return fig


def _by_samples(study: Study) -> list[tuple[str, Mapping[int, Tensor], str]]:
    words = {"KernelSHAP": "KernelSHAP", "Shapley sampling": "sampling"}
    return [(name, found, words[name]) for name, found in study.distance_by_samples.items()]


def faithfulness(study: Study) -> Figure:
    """Deletion and insertion curves, and how far methods agree."""
    fig, axes = figures.panels(1, 3, height=2.9, width_ratios=(1, 1, 1.3))
    for name in CURVES:
        role, marker, line = LOOK[name]
        curves = study.curves[name]
        for axis, values in zip(axes, (curves.deletion, curves.insertion), strict=False):
            axis.plot(
                curves.shares,
                values.mean(0),
                color=ROLE[role],
                marker=marker,
                markersize=3,
                linestyle=DASHES[line],
                label=WORDS.get(name, name),
            )
    for axis, word in zip(axes, ("deletion", "insertion"), strict=False):
        axis.set(xlabel="share of the pixels", title=word, ylim=(-0.02, 1.02))
    axes[0].set_ylabel("probability of the class")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=len(labels), columnspacing=1.0)
    names = list(study.maps)
    table = feature_checks.agreement(study.maps)
    axes[2].imshow(table, vmin=0, vmax=1)
    for i in range(len(names)):
        for j in range(len(names)):
            value = table[i, j].item()
            axes[2].text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=5,
                         color="black" if value > 0.6 else "white")  # fmt: skip
    words = [SHORT[name].replace("\n", " ").replace("- ", "") for name in names]
    axes[2].set_xticks(range(len(names)), words, rotation=90, fontsize=6)
    axes[2].set_yticks(range(len(names)), words, fontsize=6)
    axes[2].set_title("agreement")
    return fig


def sanity(study: Study) -> Figure:
    """Likeness to the trained network's maps as the network forgets from the output down."""
    found = study.sanity
    fig, (axis,) = figures.panels(1, 1, height=2.7)
    places = torch.arange(len(found.stages))
    for name, values in found.correlation.items():
        role, marker, line = LOOK[name]
        middle, half = zip(*(interval(v) for v in values), strict=True)
        axis.errorbar(
            places,
            middle,
            half,
            color=ROLE[role],
            marker=marker,
            linestyle=DASHES[line],
            elinewidth=0.7,
            label=name,
        )
        axis.plot(len(places) - 0.35, found.null[name].mean().item(), marker, color=ROLE[role],
                  markerfacecolor="white")  # fmt: skip
    axis.axhline(0, color="black", linestyle=":", linewidth=1)
    axis.set_xticks(
        [*places.tolist(), len(places) - 0.35],
        ["trained", *found.stages[1:], "another\nimage"],
        rotation=30 if len(places) > 5 else 0,
    )
    axis.set(
        xlabel="randomised, from the output down to this layer",
        ylabel="rank correlation of |map|\nwith the trained network's",
    )
    axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return fig


def sanity_maps(study: Study) -> Figure:
    """One image's maps, stage by stage."""
    found = study.sanity
    wide = 1 + len(found.stages)
    width = min(figures.TWO_COLUMN, 0.85 * wide)
    fig, axes = figures.panels(len(found.examples), wide, width=width, height=0.75)
    for k, (name, maps) in enumerate(found.examples.items()):
        row = axes[k * wide : (k + 1) * wide]
        bare(row[0])
        row[0].text(1.0, 0.5, SHORT[name], ha="right", va="center", fontsize=7)
        for axis, m in zip(row[1:], maps, strict=True):
            show_map(axis, m)
    for axis, stage in zip(axes[1:wide], ("trained", *found.stages[1:]), strict=True):
        axis.set_title(stage.replace("-", "\n-"), fontsize=6, loc="center", fontweight="normal")
    return fig


def method_rows(study: Study) -> list[dict[str, object]]:
    """Every method and control by the criteria on the classifier."""
    rows: list[dict[str, object]] = []
    for name in (*study.maps, *study.controls):
        has_units = name in IN_OUTPUT_UNITS
        is_sensitive = name in study.stability
        rows.append(
            {
                "method": WORDS.get(name, name),
                "order of the patches": interval(study.order(name)),
                "distance from Shapley": interval(study.distance(name)) if has_units else "",
                "completeness gap": study.completeness(name).median().item() if has_units else "",
                "insertion - deletion": interval(study.curves[name].gap),
                "change of map / of output": interval(study.stability[name], median=True)
                if is_sensitive
                else "",
            }
        )
    return rows


def guarantee_rows(found: Sequence[Guarantees]) -> list[dict[str, object]]:
    """Mean violations of the axioms, 0 where kept."""
    return [
        {
            "method": g.method,
            **{name: round(getattr(g, name).mean().item(), 4) for name in AXIOMS},
            "distance from Shapley": round(g.distance.mean().item(), 3),
            "change of attribution / of output": round(g.stability.mean().item(), 2),
        }
        for g in found
    ]


def one_map(study: Study, method: str, image: int) -> Figure:
    """One image, one method's map, and its sums over the patches beside the Shapley values."""
    fig, axes = figures.panels(1, 3, height=2.2, width_ratios=(1, 1, 2))
    show_image(axes[0], study.subject, image)
    show_map(axes[1], study.maps[method][image])
    axes[1].set_title(method)
    places = torch.arange(study.exact.shape[1])
    pairs = ((study.of_patches[method][image], "main", method), (study.exact[image], "control", ""))
    for shift, (values, role, label) in zip((-0.2, 0.2), pairs, strict=True):
        size = values / values.abs().max().clamp_min(1e-12)
        axes[2].bar(places + shift, size, 0.4, color=ROLE[role], label=label or "exact Shapley")
    axes[2].axhline(0, color="black", linewidth=0.8)
    axes[2].set(xlabel="patch, row by row", ylabel="share of the largest", xticks=places)
    axes[2].legend()
    return fig
