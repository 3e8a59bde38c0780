"""Figures and tables of the open questions (specification of document 5, F13 to F16).

Each function takes results and returns a figure, or the rows of a table; the look and the files
are those of `lib.figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib import figures
from lib.backprop.language_studies import Outcome, Subject
from lib.backprop.probe_quality_studies import CHANCE, WORLDS
from lib.backprop.probe_quality_studies import Study as QualityStudy
from lib.backprop.scaling_studies import Configuration
from lib.backprop.weight_studies import Chosen, Front, Problem, decades, reached
from lib.figures import CYCLE, DASHES, MARKERS, ROLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUARTERS = (0.25, 0.5, 0.75)


def share(x: Tensor) -> tuple[float, float]:
    """Mean and its standard error."""
    wide = x.double()
    return wide.mean().item(), (wide.std() / max(len(wide), 1) ** 0.5).item()


def fronts(paths: Mapping[str, Front]) -> Figure:
    """Gain and truth against distance along each front: median and middle half of samples."""
    fig, axes = figures.panels(1, len(paths), height=2.4)
    for axis, (name, path) in zip(axes, paths.items(), strict=True):
        distance = path.distance.median(1).values
        for k, (words, y) in enumerate((("gain of the probe", path.gain), ("truth", path.truth))):
            low, middle, high = y.double().quantile(torch.tensor(QUARTERS).double(), dim=1)
            axis.plot(distance, middle, marker=MARKERS[k], color=CYCLE[k], label=words)
            axis.fill_between(distance, low, high, color=CYCLE[k], alpha=0.15, linewidth=0)
        far = 1 - path.near.double().mean(1)
        axis.plot(distance, far, color=ROLE["control"], linestyle=DASHES[1], label="far from data")
        axis.set(title=name, xlabel="median distance D, data units")
    axes[0].set_ylabel("share of the way, or of samples")
    figures.legend(fig, axes[0])
    return fig


def weight_boxes(chosen: Mapping[str, Chosen]) -> Figure:
    """lambda of every sample at which the probe just reads tau, a box a domain."""
    fig, (axis,) = figures.panels(width=figures.ONE_COLUMN * 1.4, height=0.7 + 0.45 * len(chosen))
    logs = [c.weight.double().log10().numpy() for c in chosen.values()]
    box = axis.boxplot(logs, orientation="horizontal", whis=(10, 90), widths=0.5, showfliers=False)
    for line in box["medians"]:
        line.set_color(CYCLE[1])
    axis.set_yticks(range(1, len(chosen) + 1), list(chosen))
    axis.set_xlabel("log10 of the weight λ₂ at which the probe just reads τ")
    return fig


def rule_rows(problem: Problem, chosen: Sequence[Chosen], path: Front) -> list[dict[str, object]]:
    """One row a rule: what it chose and what came of it (medians over samples)."""
    rows: list[dict[str, object]] = []
    for c in chosen:
        known = bool(torch.isfinite(c.weight).all())
        rows.append(
            {
                "domain": problem.name,
                "rule": c.rule,
                "λ₂, median": f"{c.weight.median():.2g}" if known else "-",
                "decades": round(decades(c), 2) if known else "-",
                "P": round(c.probe.median().item(), 3),
                "D": round(c.distance.median().item(), 3),
                "truth": round(c.truth.double().mean().item(), 3),
                "near the data": f"{c.near.double().mean():.0%}",
                "as asked": f"{reached(problem, c, path).double().mean():.0%}",
                "solves": c.solves,
            }
        )
    return rows


def language_bars(found: Mapping[str, Mapping[int, Outcome]]) -> tuple[Figure, list[Axes]]:
    """Where the edit goes, and what is left after rounding to words; trained and random models."""
    fig, axes = figures.panels(1, 2, height=2.4)
    places = ("det", "subject", "prep", "det", "attractor")
    names = [(kind, layers) for kind, of in found.items() for layers in of]
    wide = 0.8 / len(names)
    for k, (kind, layers) in enumerate(names):
        outcome = found[kind][layers]
        at = torch.arange(len(places)) + wide * (k - (len(names) - 1) / 2)
        color = CYCLE[k % len(found[kind])]
        hatch = "" if kind == "trained" else "///"
        error = outcome.mass.std(0) / len(outcome.mass) ** 0.5
        words = f"{kind}, {layers} layer{'s' if layers > 1 else ''}"
        axes[0].bar(
            at,
            outcome.mass.mean(0),
            wide * 0.9,
            yerr=error,
            color=color,
            hatch=hatch,
            edgecolor="white",
            label=words,
        )
        for j, value in enumerate((outcome.after, outcome.rounded, outcome.discrete)):
            mean, se = share(value)
            axes[1].bar(
                j + at[0].item(),
                mean,
                wide * 0.9,
                yerr=se,
                color=color,
                hatch=hatch,
                edgecolor="white",
            )
    axes[0].set(ylabel="share of the edit", title="embeddings: which word moves")
    axes[0].set_xticks(range(len(places)), places)
    axes[1].set(ylabel="P(plural)", title="what the probe reads")
    axes[1].set_xticks(range(3), ("embeddings", "rounded to\nwords", "one word\nreplaced"))
    figures.legend(fig, axes[0])
    return fig, axes


def language_rows(
    subjects: Mapping[str, Mapping[int, Subject]], found: Mapping[str, Mapping[int, Outcome]]
) -> list[dict[str, object]]:
    """One row a model."""
    return [
        {
            "model": f"{kind}, {layers} layer{'s' if layers > 1 else ''}",
            "excess loss, nats": round(subjects[kind][layers].excess, 3),
            "S": round(subjects[kind][layers].score, 3),
            "P, embeddings": share(o.after),
            "P, rounded": share(o.rounded),
            "edit on the subject": share(o.mass[:, 1]),
            "on the attractor": share(o.mass[:, 4]),
            "log-odds of plural verbs": share(o.behaviour),
            "one word: at the subject": share(o.place == 1),
            "one word: none reaches .9": share(o.place == -1),
            "grammatical": f"{o.grammatical.double().mean():.0%}",
        }
        for kind, of in found.items()
        for layers, o in of.items()
    ]


def quality_panels(study: QualityStudy, sizes: Sequence[Configuration]) -> Figure:
    """Q against S, a marker a world; and truth against size, a line an architecture."""
    fig, (left, right) = figures.panels(1, 2, height=2.6)
    for k, world in enumerate(WORLDS):
        mine = study.of(world)
        left.scatter(
            study.score[mine],
            study.quality[mine],
            s=14,
            alpha=0.7,
            linewidths=0,
            marker=MARKERS[k],
            color=CYCLE[k],
            label=world,
        )
    left.axhline(CHANCE, color=ROLE["control"], linestyle=DASHES[1], label="chance")
    left.set(xlabel="S of the probe", ylabel="Q, share on the true features")
    left.legend()
    for k, name in enumerate(sorted({c.architecture for c in sizes})):
        of = [c for c in sizes if c.architecture == name]
        x = [c.n_weights for c in of]
        for j, (words, values) in enumerate(
            (("truth", [c.truth for c in of]), ("probe reads .9", [c.success for c in of]))
        ):
            mean, error = zip(*(share(v) for v in values), strict=True)
            right.errorbar(
                x,
                mean,
                error,
                capsize=2,
                marker=MARKERS[k],
                color=CYCLE[k],
                linestyle=DASHES[j],
                label=f"{name}: {words}",
            )
    right.set(xscale="log", xlabel="weights", ylabel="share of rings", ylim=(-0.05, 1.05))
    right.legend()
    return fig


def threshold_rows(study: QualityStudy) -> list[dict[str, object]]:
    """Least S from which on every better probe of a world explains with Q of at least .8."""
    rows: list[dict[str, object]] = []
    for world in WORLDS:
        mine = study.of(world)
        row: dict[str, object] = {"world": world, "probes": int(mine.sum())}
        row["S"] = share(study.score[mine])
        row["selectivity"] = share(study.selectivity[mine])
        row["Q"] = share(study.quality[mine])
        row["truth"] = share(study.truth[mine])
        for words, values in (("S", study.score), ("selectivity", study.selectivity)):
            row[f"least {words} for Q ≥ .8"] = _least(values[mine], study.quality[mine])
        rows.append(row)
    return rows


def _least(x: Tensor, quality: Tensor) -> str:
    order = x.argsort(descending=True)
    good = quality[order] >= 0.8
    n = int(good.long().cumprod(0).sum())
    return "none" if n == 0 else f"{x[order][n - 1].item():.2f}"


def size_rows(sizes: Sequence[Configuration]) -> list[dict[str, object]]:
    """One row a network."""
    return [
        {
            "network": c.architecture,
            "weights": c.n_weights,
            "accuracy": round(c.accuracy, 3),
            "S": round(c.score, 3),
            "probe reads .9": share(c.success),
            "ring closed": share(c.truth),
            "edit on the gap": share(c.on_gap),
            "D over least": share(c.distance),
            "gradients": round(c.gradients, 1),
            "what fails": c.failure or "-",
        }
        for c in sizes
    ]
