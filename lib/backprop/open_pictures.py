"""Figures and tables of the open questions (specification of document 5, F13 to F16).

Each function takes results and returns a figure, or the rows of a table; the look and the files
are those of `lib.figures`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from lib import figures
from lib.backprop.language import CONCEPTS
from lib.backprop.language_studies import Outcome, Subject
from lib.backprop.probe_quality_studies import CHANCE, WORLDS
from lib.backprop.probe_quality_studies import Study as QualityStudy
from lib.backprop.scaling_studies import Configuration, slope, slope_over_networks
from lib.backprop.specificity_studies import Specificity
from lib.backprop.weight_studies import Chosen, Front, Problem, decades, reached
from lib.figures import CYCLE, DASHES, MARKERS, ROLE
from lib.shares import average

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

QUARTERS = (0.25, 0.5, 0.75)
Made = TypeVar("Made")


def over_models(made: Sequence[Made], read: Callable[[Made], Tensor]) -> tuple[float, float]:
    """Mean over models of a mean over inputs, and its standard error over models.

    Of a single model the standard error is that over its inputs.
    """
    if len(made) == 1:
        return average(read(made[0]))
    return average(torch.stack([read(one).double().mean() for one in made]))


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


def language_bars(
    found: Mapping[str, Mapping[int, Sequence[Outcome]]],
) -> tuple[Figure, list[Axes]]:
    """Where the edit goes, and what is left after rounding to words; trained and random models."""
    fig, axes = figures.panels(1, 2, height=2.4)
    places = ("det", "subject", "prep", "det", "attractor")
    names = [(kind, layers) for kind, of in found.items() for layers in of]
    wide = 0.8 / len(names)
    for k, (kind, layers) in enumerate(names):
        made = found[kind][layers]
        at = torch.arange(len(places)) + wide * (k - (len(names) - 1) / 2)
        look: dict[str, Any] = {
            "color": CYCLE[k % len(found[kind])],
            "hatch": "" if kind == "trained" else "///",
            "edgecolor": "white",
        }
        mass = [over_models(made, lambda o, j=j: o.mass[:, j]) for j in range(len(places))]  # type: ignore[misc]
        mean, error = zip(*mass, strict=True)
        axes[0].bar(at, mean, wide * 0.9, yerr=error, label=_model(kind, layers), **look)
        for j, field in enumerate(("after", "rounded", "discrete")):
            height, se = over_models(made, lambda o, f=field: getattr(o, f))  # type: ignore[misc]
            axes[1].bar(j + at[0].item(), height, wide * 0.9, yerr=se, **look)
    axes[0].set(ylabel="share of the edit", title="embeddings: which word moves")
    axes[0].set_xticks(range(len(places)), places)
    axes[1].set(ylabel="P(plural)", title="what the probe reads")
    axes[1].set_xticks(range(3), ("embeddings", "rounded to\nwords", "one word\nreplaced"))
    figures.legend(fig, axes[0])
    return fig, axes


def _model(kind: str, layers: int) -> str:
    return f"{kind}, {layers} layer{'s' if layers > 1 else ''}"


def language_rows(
    subjects: Mapping[str, Mapping[int, Sequence[Subject]]],
    found: Mapping[str, Mapping[int, Sequence[Outcome]]],
) -> list[dict[str, object]]:
    """One row a kind of model; mean and standard error over its seeds (of one seed, inputs)."""
    columns: dict[str, Callable[[Outcome], Tensor]] = {
        "P, embeddings": lambda o: o.after,
        "P, rounded": lambda o: o.rounded,
        "edit on the subject": lambda o: o.mass[:, 1],
        "on the attractor": lambda o: o.mass[:, 4],
        "log-odds of plural verbs": lambda o: o.behaviour,
        "one word: at the subject": lambda o: o.place == 1,
        "one word: none reaches .9": lambda o: o.place == -1,
        "grammatical": lambda o: o.grammatical,
    }
    return [
        {
            "model": _model(kind, layers),
            "models": len(made),
            "excess loss, nats": _average([x.excess for x in subjects[kind][layers]]),
            "S": _average([x.score for x in subjects[kind][layers]]),
            **{words: over_models(made, read) for words, read in columns.items()},
        }
        for kind, of in found.items()
        for layers, made in of.items()
    ]


def _signed(x: float) -> str:
    return f"{round(x, 2) + 0.0:+.2f}"  # no -0.00


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def leak_maps(made: Sequence[Specificity]) -> Figure:
    """What every probe reads more when a concept is asked for: mean over models, sd in small."""
    fig, axes = figures.panels(1, 2, height=2.7)
    titles = ("embeddings, brought to .9", "one word replaced")
    for axis, title, words in zip(axes, titles, (False, True), strict=True):
        change = torch.stack([o.change(words=words) for o in made])
        mean, sd = change.mean(0), change.std(0)
        image = axis.imshow(mean, cmap="vlag", vmin=-1, vmax=1)
        for a in range(len(CONCEPTS)):
            for b in range(len(CONCEPTS)):
                color = "white" if mean[a, b].abs() > 0.6 else "black"
                said = f"{_signed(mean[a, b].item())}\n± {sd[a, b]:.2f}"
                axis.text(b, a, said, ha="center", va="center", fontsize=6, color=color)
        names = [name.replace(" ", "\n") for name in CONCEPTS]
        axis.set_xticks(range(len(names)), names)
        axis.set_yticks(range(len(names)), names)
        axis.set(title=title, xlabel="probe that reads")
    axes[0].set_ylabel("concept asked for")
    fig.colorbar(image, ax=axes, label="change of P", shrink=0.8)
    return fig


def leak_rows(
    others: Mapping[str, Mapping[int, Sequence[Specificity]]],
) -> list[dict[str, object]]:
    """One row a concept and kind of weights; mean and standard error over models of all depths."""
    return [_leaks(kind, a, [o for m in of.values() for o in m]) for kind, of in others.items()
            for a in range(len(CONCEPTS))]  # fmt: skip


def _leaks(kind: str, a: int, made: Sequence[Specificity]) -> dict[str, object]:
    name, carrier = list(CONCEPTS.items())[a]
    rest = [b for b in range(len(CONCEPTS)) if b != a]
    return {
        "weights": kind,
        "concept": name,
        "S": over_models(made, lambda o: o.score[a]),
        "P, embeddings": over_models(made, lambda o: o.after[a, :, a]),
        "edit on its word": over_models(made, lambda o: o.mass[a]),
        "others move": over_models(made, lambda o: (o.after - o.before)[a][:, rest].abs()),
        "P, one word": over_models(made, lambda o: o.replaced[a, :, a]),
        "at its word": over_models(made, lambda o: o.place[a] == carrier),
        "others move, one word": over_models(
            made, lambda o: (o.replaced - o.before)[a][:, rest].abs()
        ),
        "grammatical": over_models(made, lambda o: o.grammatical[a]),
    }


def quality_panels(study: QualityStudy, sizes: Sequence[Configuration]) -> Figure:
    """Q against S, a marker a world; truth and success against size, a line an architecture."""
    fig, (left, *right) = figures.panels(1, 3, height=2.7)
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
    left.legend(handletextpad=0.2, borderpad=0.1)
    for axis, words, field in zip(
        right, ("the ring is closed", "the probe reads .9"), ("truth", "success"), strict=True
    ):
        for k, name in enumerate(dict.fromkeys(c.architecture for c in sizes)):
            of = [c for c in sizes if c.architecture == name]
            mean, error = zip(*(average(getattr(c, field)) for c in of), strict=True)
            x = [c.n_weights for c in of]
            axis.errorbar(
                x,
                mean,
                error,
                capsize=2,
                marker=MARKERS[k],
                color=CYCLE[k],
                linestyle=DASHES[k],
                label=name,
            )
        axis.set(xscale="log", xlabel="weights", title=words, ylim=(-0.05, 1.05))
    right[0].set_ylabel("share of rings")
    right[0].legend(ncols=2)
    return fig


def threshold_rows(study: QualityStudy) -> list[dict[str, object]]:
    """Least S from which on every better probe of a world explains with Q of at least .8."""
    rows: list[dict[str, object]] = []
    for world in WORLDS:
        mine = study.of(world)
        row: dict[str, object] = {"world": world, "probes": int(mine.sum())}
        row["S"] = average(study.score[mine])
        row["selectivity"] = average(study.selectivity[mine])
        row["Q"] = average(study.quality[mine])
        row["truth"] = average(study.truth[mine])
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
            "probe reads .9": average(c.success),
            "ring closed": average(c.truth),
            "edit on the gap": average(c.on_gap),
            "D over least": average(c.distance),
            "gradients": round(c.gradients.mean().item(), 1),
            "what fails": c.failure or "-",
        }
        for c in sizes
    ]


RINGS = {
    "ring closed": "truth",
    "probe reads .9": "success",
    "edit on the gap": "on_gap",
    "D over least": "distance",
    "gradients": "gradients",
}


def slope_rows(sizes: Sequence[Configuration], seed: int) -> list[dict[str, object]]:
    """One row a measure: its change for ten times as many weights, with 95% intervals."""
    names = list(dict.fromkeys(c.architecture for c in sizes))

    def words(slope: tuple[float, float, float]) -> str:
        middle, low, high = (_signed(x) for x in slope)
        return f"{middle} ({low} to {high})" if low != "+nan" else middle

    rows: list[dict[str, object]] = []
    for said, field in {"S": "score", **RINGS}.items():
        row: dict[str, object] = {"measure": said}
        row["all, other networks"] = words(slope_over_networks(sizes, field))
        row["all, other rings"] = "-" if field == "score" else words(slope(sizes, seed, field))
        for name in names:
            of = [c for c in sizes if c.architecture == name]
            one = slope_over_networks(of, field) if field == "score" else slope(of, seed, field)
            row[name] = words(one)
        rows.append(row)
    return rows


def front_rows(volumes: Mapping[str, tuple[float, Tensor, Tensor]]) -> list[dict[str, object]]:
    """One row a domain: its reach, and the hypervolumes of gain and of truth (`[n]` each)."""
    return [
        {
            "domain": name,
            "D that counts as 1": round(reach, 3),
            "hypervolume of gain": average(gain),
            "hypervolume of truth": average(truth),
        }
        for name, (reach, gain, truth) in volumes.items()
    ]
