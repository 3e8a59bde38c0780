"""Figures and tables of notebook 42: functions of results, giving figures or rows of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lib import figures, shares
from lib.attribution import poisoning
from lib.attribution.influence_pictures import mean_and_sd
from lib.attribution.mislabels import NetworkOrders, Sweep
from lib.attribution.mismatch import Mismatch
from lib.attribution.poisoning import HALF, Attack, Study
from lib.figures import DASHES, MARKERS, ROLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ROLES = {
    "self-influence": "main",
    "EK-FAC self-influence": "main",
    "training loss": "second",
    "Grad-Dot with itself": "third",
    "TracIn with itself": "fourth",
    "random": "random",
}
PUBLISHED_FOUND = {0.1: 0.80, 0.2: 0.97}  # kronfluence, CIFAR-10, ResNet-9, 10% flipped
PUBLISHED_FLIPS = {1: 335 / 591, 2: 0.77, 10: 590 / 591}  # as reported, dog against fish
PUBLISHED_PROMINENCE = (30.0, 40.0)  # as reported, the four children
LICENSED = ("digits",)  # data whose images a stored figure may show
N_CHANGED = 3  # training images drawn for one attack


def percent(values: Sequence[float] | Tensor) -> list[float]:
    return [100 * float(v) for v in values]


# --- mislabels


def checks(sweep: Sweep, shares: Sequence[float]) -> Figure:
    """Left: flips found at the first of `shares` flipped; then test accuracy at each of them."""
    fig, axes = figures.panels(1, 1 + len(shares), height=2.4)
    k = sweep.flips.index(shares[0])
    _lines(axes[0], sweep, 100 * sweep.found[:, k], spreads=1.0)
    perfect = [min(1.0, c / shares[0]) for c in sweep.checks]
    axes[0].plot(percent(sweep.checks), percent(perfect), color="black", lw=0.8, ls=":")
    axes[0].text(29, 103, "dotted: a perfect order", fontsize=6, ha="right", va="bottom")
    axes[0].set(ylabel="flipped labels found (%)", ylim=(-3, 112))
    axes[0].set_title(f"{shares[0]:.0%} flipped: found")
    for axis, share in zip(axes[1:], shares, strict=True):
        less = sweep.accuracy[:, sweep.flips.index(share)] - sweep.clean
        # of the mean: draws differ in how hard they are, which `less` takes off
        _lines(axis, sweep, 100 * less, spreads=2 / less.shape[-1] ** 0.5)
        axis.axhline(0, color="black", lw=0.8, ls=":")
        axis.set_title(f"{share:.0%} flipped: accuracy")
        axis.set_ylabel("less that without flips (points)")
    for axis in axes:
        axis.set_xlabel("points checked (%)")
    return fig


def _lines(axis: Axes, sweep: Sweep, values: Tensor, spreads: float) -> None:
    """Mean over seeds of `[orders, checks, K]`, with a band of some sd."""
    for order, name in enumerate(sweep.orders):
        color, x = ROLE[ROLES[name]], percent(sweep.checks)
        mean, sd = values[order].mean(1), spreads * values[order].std(1)
        axis.plot(x, mean, color=color, marker=MARKERS[order], ls=DASHES[order], label=name)
        axis.fill_between(x, mean - sd, mean + sd, color=color, alpha=0.15, linewidth=0)


def sweep_rows(sweeps: Sequence[Sweep], checked: float) -> list[dict[str, object]]:
    """One row a penalty and share of flips: what they cost, and what checking wins back."""
    rows: list[dict[str, object]] = []
    for sweep in sweeps:
        for k, flips in enumerate(sweep.flips):
            row: dict[str, object] = {"λ": f"{sweep.lam:g}", "flipped": f"{flips:.0%}"}
            row |= {f"AUC, {name}": mean_and_sd(sweep.auc[j, k]) for j, name in _known(sweep)}
            row["lost"] = shares.average(100 * sweep.regained("random", flips, checked)[1])
            for name in sweep.orders:
                won = 100 * sweep.regained(name, flips, checked)[0]
                row[f"won back, {name}"] = shares.average(won)
            rows.append(row)
    return rows


def _known(sweep: Sweep) -> list[tuple[int, str]]:
    """Orders that know something."""
    return [(j, name) for j, name in enumerate(sweep.orders) if name != "random"]


def network_checks(studies: Sequence[NetworkOrders]) -> Figure:
    """Flips found by each order, a panel a setting, beside the published points; why they tie."""
    fig, axes = figures.panels(1, 1 + len(studies), height=2.6)
    for axis, study in zip(axes, studies, strict=False):
        for k, (name, values) in enumerate(study.found.items()):
            x, color = percent(study.shares), ROLE[ROLES[name]]
            mean, sd = 100 * values.mean(1), 100 * values.std(1)
            axis.plot(x, mean, color=color, marker=MARKERS[k], ls=DASHES[k], label=name)
            axis.fill_between(x, mean - sd, mean + sd, color=color, alpha=0.15, linewidth=0)
        stars = percent(list(PUBLISHED_FOUND)), percent(list(PUBLISHED_FOUND.values()))
        axis.plot(*stars, color="black", marker="*", markersize=8, ls="", label="published, EK-FAC")
        axis.set(title=study.setting, xlabel="training points checked (%)", ylim=(-3, 105))
    axes[0].set_ylabel("flipped labels found (%)")
    own, loss, wrong = studies[0].shown
    for k, (flipped, name, color) in enumerate(((0, "right", "random"), (1, "flipped", "fourth"))):
        mask = wrong == flipped
        axes[-1].scatter(
            loss[mask], own[mask], s=5, marker=MARKERS[k], color=ROLE[color], alpha=0.5,
            linewidths=0, label=name, rasterized=True,
        )  # fmt: skip
    axes[-1].set(xscale="log", yscale="log", title=f"{studies[0].setting}, one network")
    axes[-1].set(xlabel="training loss (nats)", ylabel="EK-FAC self-influence")
    axes[-1].set_ylim(bottom=own[loss > 0].min().item() / 2)  # losses that round to 0 are not drawn
    axes[-1].legend(loc="lower right", markerscale=2)
    return fig


def network_rows(studies: Sequence[NetworkOrders]) -> list[dict[str, object]]:
    """Each order of each setting: AUC and what is found in the first tenth and fifth."""
    return [
        {
            "network": study.setting,
            "order": name,
            "AUC": mean_and_sd(auc),
            "found in 10%": study.at(name, 0.1),
            "found in 20%": study.at(name, 0.2),
        }
        for study in studies
        for name, auc in study.auc.items()
    ]


# --- domain mismatch


def mismatch_panels(found: Mismatch, draw: int) -> Figure:
    """Left: the largest influences on one wrong member; right: how far members stand out."""
    fig, (left, right) = figures.panels(1, 2, height=2.6)
    shown = found.draws[draw]
    for kind, name, color in ((True, "the four members", "fourth"), (False, "others", "random")):
        places = (shown.member == kind).nonzero()[:, 0]
        left.bar(places + 1, shown.influence[places], color=ROLE[color], label=name, width=0.7)
    left.axhline(0, color="black", linewidth=0.6)
    left.set_title("one wrong prediction")
    left.set_xlabel("training points, largest influence first")
    left.set_ylabel("influence on log-odds of “even”")
    left.legend(loc="lower right")
    kinds = (("prominence", "skewed"), ("prominence_before", "not skewed"),
             ("prominence_chance", "four others"))  # fmt: skip
    right.axhspan(*PUBLISHED_PROMINENCE, color="black", alpha=0.2, linewidth=0)
    low = PUBLISHED_PROMINENCE[0]
    right.text(2.5, 0.8 * low, "as reported", fontsize=6, ha="right", va="top")
    for k, (what, _) in enumerate(kinds):
        values = found.over_wrong(what)
        jitter = torch.rand(len(values), generator=torch.Generator().manual_seed(k)) - 0.5
        color = ROLE[("fourth", "main", "random")[k]]
        right.scatter(
            k + 0.6 * jitter, values, s=4, color=color, alpha=0.3, linewidth=0, rasterized=True
        )  # fmt: skip
        right.plot([k - 0.35, k + 0.35], [values.median()] * 2, color="black", linewidth=1.5)
    right.axhline(1, color="black", linewidth=0.8, linestyle=":")
    right.set_yscale("log")
    right.set(xticks=range(3), xticklabels=[words for _, words in kinds], xlim=(-0.6, 2.6))
    right.set_title("every wrong prediction; bar: median")
    right.set_ylabel("least of the four / largest other")
    return fig


def mismatch_rows(studies: Sequence[Mismatch]) -> list[dict[str, object]]:
    """One row a size of the images: errors, influence and coefficients."""
    rows: list[dict[str, object]] = []
    for study in studies:
        hits = study.over_wrong("hits").double()
        chance = 16 / (study.n - 20)
        rank = torch.tensor([draw.rank for draw in study.draws]).double()
        own = torch.stack([draw.leverage.mean() for draw in study.draws]).mean().item()
        other = sum(draw.typical for draw in study.draws) / len(study.draws)
        rows.append(
            {
                "rows a weight": f"{study.n / study.n_weights:.0f}",
                "marked even digits read as odd": study.share("wrong"),
                "the same, nothing dropped": study.share("wrong_before"),
                "the same, marker off": study.share("wrong_unmarked"),
                "least of four / largest other": study.median(),
                "nothing dropped": study.median("prominence_before"),
                "four others": study.median("prominence_chance"),
                "of the 4 largest, members": f"{hits.mean().item():.2f} (chance {chance:.2g})",
                "leverage, members : others": f"{own:.2g} : {other:.2g}",
                "rank of the marker's coefficient": f"{rank.median().item():.0f} "
                f"of {study.n_weights - 1}",
            }
        )
    return rows


# --- attacks


def attacks(study: Study, wide: float) -> Figure:
    """Share flipped by number of images and by box; predicted against actual moves."""
    fig, (left, middle, right) = figures.panels(1, 3, height=2.6)
    boxes = ((HALF, "main"), (wide, "second"))
    for k, (half, color) in enumerate(boxes):
        _shares(left, study.line(half), ROLE[color], k, f"± {half:g} grey levels")
    _shares(left, study.line(wide, 1), ROLE["random"], 2, f"random signs, ± {wide:g}")
    left.plot(
        list(PUBLISHED_FLIPS), percent(list(PUBLISHED_FLIPS.values())), color="black", marker="*",
        markersize=9, linestyle="", label="reported: ± 0.5, Inception",
    )  # fmt: skip
    left.set(xticks=study.counts, ylim=(-4, 106), title="by number of images")
    left.set(xlabel="training images changed", ylabel="predictions flipped (%)")
    count = min(study.counts)
    for k, (control, words, color) in enumerate(
        ((0, "signs of influence", "main"), (1, "random signs", "random"))
    ):
        found = study.column(count, control)
        moved = torch.stack([(a.before - a.after).abs() for a in found.values()])
        low, mid, high = moved.quantile(torch.tensor([0.25, 0.5, 0.75]).double(), dim=1)
        middle.plot(list(found), mid, color=ROLE[color], marker=MARKERS[2 * k], ls=DASHES[2 * k])
        middle.fill_between(list(found), low, high, color=ROLE[color], alpha=0.2, linewidth=0)
        # above the upper band; bands rise to the right, so that the corner below them is free
        above = (study.boxes[-1], 1.7 * mid[-1].item()), "data"
        place, of = (above, ((0.98, 0.03), "axes fraction"))[k]
        middle.annotate(
            words, place, xycoords=of, fontsize=6, color=ROLE[color], ha="right", va="bottom"
        )
    margin = study.done[count, HALF][0].before.median().item()
    middle.axhline(margin, color="black", linewidth=0.8, linestyle=":")
    middle.text(study.boxes[0], margin * 1.15, "median margin before", fontsize=6, va="bottom")
    middle.set_xscale("log", base=2)
    middle.set_yscale("log")
    middle.set_ylim(top=4 * margin)
    middle.set_xticks(study.boxes, [f"{h:g}" for h in study.boxes])
    middle.xaxis.minorticks_off()
    middle.set(xlabel="half-width of the box (levels)", ylabel="size of the margin's change")
    middle.set_title(f"by box, {count} image")
    for k, (number, color) in enumerate(((count, "main"), (max(study.counts), "third"))):
        done = study.done[number, HALF][0]
        guess = poisoning.predicted(study.victim, study.targets, done)
        right.scatter(
            guess, done.after - done.before, s=7, marker=MARKERS[k], color=ROLE[color],
            alpha=0.6, linewidths=0, label=f"{number} image{'s' * (number > 1)}",
        )  # fmt: skip
    right.axline((0, 0), slope=1, color="black", linewidth=0.8, linestyle="--")
    right.set(xlabel="change of the margin, predicted", ylabel="actual, retrained")
    right.set_title(f"moves at ± {HALF:g}")
    right.legend(loc="upper left")
    return fig


def _shares(axis: Axes, found: Mapping[int, Attack], color: str, k: int, label: str) -> None:
    """Percent flipped with Wilson's 95% interval."""
    share = torch.tensor([attack.share[0] for attack in found.values()])
    ends = torch.tensor([shares.interval(attack.flipped) for attack in found.values()])
    bars = [percent(side) for side in (ends - share[:, None]).abs().T]
    axis.errorbar(
        list(found), percent(share), bars, color=color, marker=MARKERS[k], linestyle=DASHES[k],
        capsize=2, label=label,
    )  # fmt: skip


def attack_rows(study: Study) -> list[dict[str, object]]:
    """Every attack: share flipped, by influence and by random signs, and how far margins move."""
    return [
        {
            "images": count,
            "box (± levels)": f"{half:g}",
            "flipped": _share(ours),
            "flipped, random signs": _share(control),
            "margin before (median)": f"{ours.before.median().item():.2f}",
            "lowered by (median)": f"{(ours.before - ours.after).median().item():.3f}",
            "by random signs": f"{(control.before - control.after).median().item():.3f}",
        }
        for (count, half), (ours, control) in sorted(study.done.items())
    ]


def example(study: Study, name: str, t: int, count: int, half: float) -> Figure:
    """One attack: the test image, and training images as stored, their change, and stored again.

    Images whose licence is not known to allow it are not drawn: their row numbers stand instead.
    """
    done, drawn = study.done[count, half][0], name in LICENSED
    shown = min(count, N_CHANGED)
    fig, axes = figures.panels(1, 1 + 3 * shown, height=1.35)
    top = study.victim.bottom.top
    _picture(axes[0], study.targets.x[t], top, "test" if drawn else f"test {t}", drawn)
    before, after = done.before[t].item(), done.after[t].item()
    axes[0].set_xlabel(f"margin {before:+.2f}\n→ {after:+.2f}", fontsize=7)
    for k in range(shown):
        stored, image = study.victim.grey[done.rows[t, k]], done.images[t, k]
        a, b, c = axes[1 + 3 * k : 4 + 3 * k]
        row = int(done.rows[t, k])
        word = "odd" if study.victim.fit.y[row] == 1 else "even"
        _picture(a, stored, top, f"row {row}" if drawn else str(row), drawn)
        a.set_xlabel(f"trained on\nas “{word}”", fontsize=7)
        b.imshow(image - stored, cmap="vlag", vmin=-half, vmax=half)
        b.set_title("change")
        b.set_xlabel(f"± {(image - stored).abs().max().item():.2g}\nlevels", fontsize=7)
        _picture(c, image.round(), top, "stored" if drawn else str(row), drawn)
        n_changed = int((image.round() != stored).sum())
        c.set_xlabel(f"{n_changed} pixels\ndiffer", fontsize=7)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    return fig


def _picture(axis: Axes, image: Tensor, top: int, title: str, drawn: bool) -> None:
    if drawn:
        axis.imshow(image, cmap="gray_r", vmin=0, vmax=top)
        axis.set_title(title)
        return
    axis.text(0.5, 0.5, title, ha="center", va="center", fontsize=7)
    axis.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")


def _share(attack: Attack) -> str:
    return f"{attack.flipped.double().mean().item():.0%} ({int(attack.flipped.sum())})"


# --- beside the published numbers


def published_rows(
    sweep: Sweep, network: NetworkOrders, mismatch: Mismatch, study: Study
) -> list[dict[str, object]]:
    """What the papers report, and ours."""
    k = sweep.flips.index(0.1)
    auc = ", ".join(
        f"{name} {sweep.auc[j, k].mean().item():.3f}" for j, name in enumerate(sweep.orders)
    )
    found = [
        f"{network.at('EK-FAC self-influence', c)[0]:.0%} and "
        f"{network.at('training loss', c)[0]:.0%} by loss"
        for c in PUBLISHED_FOUND
    ]
    n = len(study.targets.y)
    flips = {c: f"{_share(a)} of {n}" for c, a in study.line(HALF).items()}
    ratio, none = mismatch.median()[0], mismatch.median("prominence_before")[0]
    return [
        _row("spam, flips found", "curves only", "paper", f"AUC {auc}"),
        _row("network, found in first 10%", "about 80%", "its README", found[0]),
        _row("network, found in first 20%", "about 97%", "its README", found[1]),
        _row(
            "four children against the next patient",
            "30 to 40 times",
            "as reported",
            f"{ratio:.2g} times ({none:.2g} without the skew)",
        ),
        _row(
            "test images read rightly", "591 of 600", "as reported", f"{study.accuracy:.1%} of them"
        ),
        _row("flipped by 1 image", "335 of 591 (57%)", "as reported", flips.get(1, "not run")),
        _row("flipped by 2 images", "77%", "as reported", flips.get(2, "not run")),
        _row("flipped by 10 images", "590 of 591", "as reported", flips.get(10, "not run")),
    ]


def _row(item: str, published: str, source: str, ours: str) -> dict[str, object]:
    return {"item": item, "published": published, "known from": source, "ours": ours}
