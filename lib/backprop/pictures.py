"""Figures and tables of the tabular experiment (specification of document 5, F4 to F6, F17, T1).

Each function takes results and returns a figure, or the rows of a table; the look and the files
are those of `lib.figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib import figures
from lib.backprop import tabular
from lib.backprop.entanglement import ENTANGLED, Study, predicted_leak
from lib.backprop.tabular import Bed, Edit
from lib.data import housing
from lib.figures import CYCLE, MARKERS, ROLE
from lib.probes import ProbeReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HATCHES = ("", "//", "..", "xx")
PERCENT = (0.025, 0.975)


def ratio_histograms(beds: Mapping[str, Bed]) -> Figure:
    """The concept on test rows, one panel a table, with its median and 95% quantile."""
    fig, axes = figures.panels(1, len(beds), height=1.9, sharey=True)
    for axis, bed in zip(axes, beds.values(), strict=True):
        edges = torch.linspace(0, 3, 61).tolist()
        axis.hist(bed.ratio.cpu().numpy(), bins=edges, color=ROLE["seventh"])
        median = bed.ratio.median().item()
        axis.axvline(median, color="black")
        axis.axvline(bed.target, color="black", linestyle=":")
        where = f"line: median {median:.2f}\ndots: 95% below {bed.target:.2f}"
        axis.set_title(f"{bed.name}, n = {len(bed.ratio):,}")
        axis.set_xlabel(f"r, bedrooms over occupancy\n{where}")
    axes[0].set_ylabel("test rows")
    return fig


def probe_rows(
    bed: Bed, recipe_r2: Tensor, reports: Sequence[ProbeReport], coins: Tensor
) -> list[dict[str, object]]:
    """R2 of both probes and of every control, mean and sd over networks; is ridge admissible?"""
    over = tabular.over_networks
    row: dict[str, object] = {"table": bed.name, "authors' recipe": over(recipe_r2)}
    row["ridge"] = over(torch.tensor([x.score for x in reports]))
    low, high = (torch.tensor([x.ci[k] for x in reports]).mean().item() for k in (0, 1))
    row["95% over rows"] = f"{low:.3f} to {high:.3f}"
    names = {
        "random_network": "random network",
        "raw_input": "raw input",
        "trivial": "trivial rule",
        "shuffled": "shuffled",
    }
    for key, words in names.items():
        row[words] = over(torch.tensor([x.controls[key] for x in reports]))
    admissible = sum(bool(x.admissible) for x in reports)
    return [row | {"coin per age": over(coins), "admissible": f"{admissible} of {len(reports)}"}]


def house_rows(edits: Mapping[str, Edit], index: int) -> list[dict[str, object]]:
    """One house before and after each kind of edit, physical units.

    Median over networks and, in brackets, the middle half of them: a mean says nothing about a
    quotient whose denominator may come near zero.
    """
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    first = next(iter(edits.values()))
    before = first.before[index]
    rows: list[dict[str, object]] = []

    def add(words: str, original: float, after: Sequence[Tensor]) -> None:
        row: dict[str, object] = {"quantity": words, "original": original}
        for kind, x in zip(edits, after, strict=True):
            low, middle, high = x.double().cpu().quantile(shares).tolist()
            row[kind] = f"{middle:.3g} ({low:.3g} to {high:.3g})"
        rows.append(row)

    for k, name in enumerate(housing.FEATURES):
        words = f"{name} ({housing.UNITS[k]})"
        add(words, before[k].item(), [e.after[:, index, k] for e in edits.values()])
    for words, ratio in (
        ("bedrooms per person", housing.bedrooms_per_person),
        ("rooms per person", housing.rooms_per_person),
    ):
        after = [ratio(e.after[:, index]) for e in edits.values()]
        add(words, ratio(before).item(), after)
    truth = [e.ratio_after[:, index] for e in edits.values()]
    add("true r", first.ratio_before[index].item(), truth)
    probe = [e.probe_after[:, index] for e in edits.values()]
    add("probe's r", first.probe_before[:, index].mean().item(), probe)
    return rows


def change_bars(edits: Mapping[str, Edit], seed: int) -> Figure:
    """Mean change of every feature in train sd, a bar a kind of edit, 95% intervals."""
    fig, (axis,) = figures.panels(height=2.6)
    generator = torch.Generator().manual_seed(seed)
    wide = 0.8 / len(edits)
    for k, (words, edit) in enumerate(edits.items()):
        mean, low, high = tabular.interval(edit.delta_sd.cpu(), generator=generator)
        at = torch.arange(6) + wide * (k - (len(edits) - 1) / 2)
        error = torch.stack([mean - low, high - mean]).clamp_min(0)
        axis.bar(
            at,
            mean,
            wide * 0.9,
            yerr=error,
            color=CYCLE[k],
            hatch=HATCHES[k % len(HATCHES)],
            edgecolor="white",
            error_kw={"elinewidth": 0.8},
            label=words,
        )
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set(xticks=range(6), ylabel="mean change, train sd")
    axis.set_xticklabels(housing.FEATURES)
    return fig


def truth_and_rooms(
    truths: Mapping[str, Edit], worlds: Mapping[str, Edit], high: float
) -> tuple[Figure, list[Axes]]:
    """True concept against probe value; rooms per person against bedrooms per person."""
    fig, axes = figures.panels(1, 2, height=2.7)
    left, right = axes
    for k, (words, edit) in enumerate(truths.items()):
        _cloud(left, edit.probe_after, edit.ratio_after, words, k)
    left.plot([0, high], [0, high], color="black", linestyle=":", label="probe is right")
    left.set(xlim=(0, high), ylim=(0, high), xlabel="what the probe reads", ylabel="true r")
    for k, (words, edit) in enumerate(worlds.items()):
        _cloud(right, edit.log_bedrooms_per_person, edit.log_rooms_per_person, words, k)
    right.axhline(0, color="black", linewidth=0.6)
    right.set(xlabel="change of log(bedrooms per person)", ylabel="change of log(rooms per person)")
    for axis in axes:
        axis.legend()
    return fig, axes


def _cloud(axis: Axes, x: Tensor, y: Tensor, words: str, k: int) -> None:
    """A point a house: median over networks; a cross: median house, middle half of networks."""
    shares = torch.tensor([0.25, 0.5, 0.75], dtype=x.dtype)
    (x0, x1, x2), (y0, y1, y2) = (v.cpu().nanquantile(shares, dim=0) for v in (x, y))
    axis.scatter(x1, y1, s=7, alpha=0.45, linewidths=0, color=CYCLE[k], marker=MARKERS[k])
    middle = [v.nanmedian().item() for v in (x0, x1, x2, y0, y1, y2)]
    axis.errorbar(
        middle[1],
        middle[4],
        xerr=[[middle[1] - middle[0]], [middle[2] - middle[1]]],
        yerr=[[middle[4] - middle[3]], [middle[5] - middle[4]]],
        markersize=6,
        markeredgecolor="black",
        ecolor="black",
        capsize=2,
        linestyle="none",
        zorder=5,
        label=words,
        color=CYCLE[k],
        marker=MARKERS[k],
    )


def rise_parts(worlds: Mapping[str, Mapping[str, Edit]], seed: int) -> Figure:
    """The rise of log(rooms per person) as rooms plus occupancy, a panel a table."""
    fig, axes = figures.panels(1, len(worlds), height=2.3, sharey=True)
    generator = torch.Generator().manual_seed(seed)
    for axis, (name, edits) in zip(axes, worlds.items(), strict=True):
        for k, edit in enumerate(edits.values()):
            rooms, people = edit.log_rooms.nanmean().item(), edit.log_occupancy.nanmean().item()
            words = "change of log rooms", "minus change of log occupancy"
            said = [name if k == 0 else None for name in words]  # once in the legend
            axis.bar(k, people, 0.7, color=ROLE["seventh"], label=said[1])
            # parts of the same sign stand on one another, others on the axis
            base = people if rooms * people > 0 else 0.0
            axis.bar(k, rooms, 0.7, base, color=ROLE["second"], hatch="//", label=said[0])
            whole = edit.log_rooms_per_person.cpu()
            mean, low, high = tabular.interval(whole, generator=generator)
            error = torch.stack([mean - low, high - mean]).clamp_min(0)[:, None]
            label = "their sum" if k == 0 else None
            axis.errorbar(k, mean, error, fmt="o", color="black", capsize=2, label=label)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set(title=name, xticks=range(len(edits)))
        axis.set_xticklabels(edits)
    axes[0].set_ylabel("change of log(rooms per person)")
    return fig


def leak_panels(study: Study, alpha: float) -> tuple[Figure, list[Axes]]:
    """Leak against correlation before and after the probe is refitted, with the theory line."""
    fig, axes = figures.panels(1, 2, height=2.6, sharey=True)
    kinds = [(w, k) for w in ("separate", "merged", "product") for k in ("linear", "network")]
    world, kind = study.world, study.kind
    for axis, leak in zip(axes, (study.observed, study.intervened), strict=True):
        for j, (w, k) in enumerate(kinds):
            mine = torch.tensor([a == w and b == k for a, b in zip(world, kind, strict=True)])
            if mine.any():
                rhos = study.rho[mine].unique()
                of = [leak[mine & (study.rho == rho)] for rho in rhos]
                mean, sd = torch.stack([x.mean() for x in of]), torch.stack([x.std() for x in of])
                axis.errorbar(
                    rhos + 0.008 * (j - 2),
                    mean,
                    sd,
                    fmt=MARKERS[j],
                    color=CYCLE[j],
                    linestyle="none",
                    elinewidth=0.8,
                    capsize=2,
                    label=f"{w}, {k}",
                )
        axis.axhline(ENTANGLED, color=ROLE["control"], linewidth=0.8, label="decision")
        axis.set(xlabel="correlation of A and B, ρ")
    x = torch.linspace(0, float(study.rho.max()), 50)
    axes[0].plot(
        x, predicted_leak(x, alpha), color="black", linestyle=":", label="theory, separate"
    )
    axes[0].set(title="probe fitted where A and B correlate", ylabel="leak |δ_B| / |δ_A|")
    axes[1].set(title="probe refitted where they do not")
    figures.legend(fig, axes[0])
    return fig, axes


def path_step(
    path: Mapping[tuple[float, float], Edit], weights: Sequence[float], target: float, step: int
) -> Figure:
    """Changes, probe and truth at one weight of a path; `step` counts from 1, smallest weight."""
    fig, (left, right) = figures.panels(1, 2, height=2.3)
    weight = weights[step - 1]
    edit = path[weight, target]
    left.bar(range(6), edit.delta_sd.mean((0, 1)).cpu(), color=ROLE["main"])
    left.axhline(0, color="black", linewidth=0.6)
    left.set(title=f"λ₂ = {weight:.2g}, target r = {target:.2f}", xticks=range(6))
    left.set_xticklabels(housing.FEATURES, rotation=30)
    left.set_ylabel("mean change, train sd")
    for k, (words, values) in enumerate(
        (
            ("probe's r", [path[w, target].probe_after.mean().item() for w in weights]),
            ("true r", [path[w, target].ratio_after.median().item() for w in weights]),
        )
    ):
        right.plot(weights, values, marker=MARKERS[k], color=CYCLE[k], label=words)
    right.axvline(weight, color="black", linewidth=0.6)
    right.axhline(target, color="black", linestyle=":", label="target")
    right.set(xscale="log", xlabel="λ₂", title="mean probe value, median truth")
    right.legend()
    return fig
