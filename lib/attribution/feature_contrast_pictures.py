"""The figures and table rows of notebook 47 on smallest changes and on concepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from lib import figures
from lib.attribution.feature_contrasts import LEVEL, Changes, ConceptTests
from lib.attribution.feature_pictures import show_image, show_map
from lib.attribution.feature_studies import interval
from lib.attribution.feature_subjects import Subject
from lib.figures import ROLE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VISIBLE = 0.01  # share of the pixel range from which on a feature counts as changed


def changes(subject: Subject, found: Changes, n: int = 4) -> Figure:
    """Images, their smallest changes in L2 and L1, the changed images, and a real example.

    Where the licence lets no image be shown, the changes alone, beside the image's number.
    """
    titles = ["image", "change, L2", "change, L1"]
    if subject.is_shown:
        titles[2:2] = ["changed by L2"]
        titles += ["changed by L1", "nearest real (L2)"]
    fig, axes = figures.panels(n, len(titles), height=1.05)
    for k in range(n):
        row = dict(zip(titles, axes[len(titles) * k :], strict=False))
        show_image(row["image"], subject, k)
        wanted = subject.names[int(found.target[k])]
        away = f"{found.real['L2'][k].item():.2g}"
        label = f"to: {wanted}" if subject.is_shown else f"to: {wanted}; nearest real one: {away}"
        row["image"].set_xlabel(label, fontsize=6, labelpad=1)
        for norm in ("L2", "L1"):
            axis, result = row[f"change, {norm}"], found.found[norm]
            delta = result.delta[k].nan_to_num(0.0)
            show_map(axis, delta, max(delta.abs().max().item(), 1e-12))
            axis.set_xlabel(f"length {result.length[k].item():.2g}", fontsize=6, labelpad=1)
            if subject.is_shown:
                show_image(row[f"changed by {norm}"], subject, k, subject.x[k] + result.delta[k])
        if subject.is_shown:
            show_image(row["nearest real (L2)"], subject, k, found.nearest[k])
            row["nearest real (L2)"].set_xlabel(f"length {away}", fontsize=6, labelpad=1)
    for axis, title in zip(axes[: len(titles)], titles, strict=True):
        axis.set_title(title, fontsize=7, loc="center", fontweight="normal")
    return fig


def change_rows(subject: Subject, found: Changes) -> list[dict[str, object]]:
    """Lengths of the smallest changes beside the way to a real example."""
    rows: list[dict[str, object]] = []
    for norm, result in found.found.items():
        delta = result.delta[result.found].flatten(1).abs()
        visible = (delta > VISIBLE * (subject.high - subject.low)).double().mean(1)
        both = result.found & found.real[norm].isfinite()
        rows.append(
            {
                "norm": norm,
                "found": f"{int(result.found.sum())} of {len(result.found)}",
                "length, median": result.length[result.found].median().item(),
                "to the nearest real example": found.real[norm][both].median().item(),
                "ratio": interval(found.ratio(norm), median=True),
                "share of values changed, median": visible.median().item(),
                "cosine with the gradient": result.alignment[result.found].median().item(),
            }
        )
    return rows


def concept_rows(tested: Sequence[ConceptTests]) -> list[dict[str, object]]:
    """By layer: expected pairs that are found, and random concepts that pass, by either test."""
    return [
        {
            "layer": t.concepts.layer,
            "expected pairs": len(t.concepts.expected),
            "found, usual test": t.share_found(),
            "found, as one draw": t.share_found(as_one=True),
            "random concepts passing, usual test": interval(t.false_t),
            "random concepts passing, as one draw": interval(t.false_one),
        }
        for t in tested
    ]


def concepts(tested: ConceptTests, names: tuple[str, ...]) -> Figure:
    """TCAV scores by concept and class against random concepts, and how many of those pass.

    Args:
        names: of the classes of the data set.
    """
    shown = list(tested.tests)
    columns = min(len(shown) + 1, 4)
    n_rows = -(-(len(shown) + 1) // columns)
    fig, axes = figures.panels(n_rows, columns, height=2.3)
    classes = tested.concepts.classes
    places = torch.arange(len(classes))
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    low, high = tested.null.mean(1).quantile(ends, dim=0)
    for axis, name in zip(axes, shown, strict=False):
        test = tested.tests[name]
        axis.bar(places, high - low, 0.8, bottom=low, color=ROLE["random"], alpha=0.35,
                 label="random concepts, 95%")  # fmt: skip
        usual, alone = tested.adjusted[name] < LEVEL, tested.adjusted_one[name] < LEVEL
        kinds = (
            (~usual, "fourth", "o", "white", "not significant"),
            (usual & ~alone, "second", "s", None, "usual test"),
            (alone, "main", "D", None, "also as one draw"),
        )
        for picked, role, marker, face, label in kinds:
            axis.errorbar(
                places[picked],
                test.score[picked],
                test.spread[picked],
                color=ROLE[role],
                marker=marker,
                markerfacecolor=face or ROLE[role],
                linestyle="",
                elinewidth=0.7,
                label=label,
            )
        expected = [places[k].item() for k, c in enumerate(classes)
                    if (name, c) in tested.concepts.expected]  # fmt: skip
        if expected:
            axis.plot(expected, [-0.13] * len(expected), "^", color="black", markersize=3,
                      label="expected")  # fmt: skip
        words = [names[c].replace(" ", "\n") for c in classes]
        axis.set_xticks(places, words, rotation=90 if len(words[0]) > 1 else 0, fontsize=6)
        axis.set(title=name, ylim=(-0.2, 1.1))
    for axis in axes[::columns][:n_rows]:
        axis.set_ylabel("TCAV score")
    handles, labels = axes[0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper left", ncols=len(labels), columnspacing=1.0)
    last = axes[len(shown)]
    for k, (values, role) in enumerate(((tested.false_t, "second"), (tested.false_one, "main"))):
        mean, half = interval(values)
        last.bar(k, mean, 0.7, yerr=half, color=ROLE[role])
    last.axhline(LEVEL, color="black", linestyle=":", linewidth=1)
    last.set_xticks([0, 1], ["usual\ntest", "as one\ndraw"])
    last.set_ylabel("share called significant")
    last.set(title="random concepts", ylim=(0, 1))
    for axis in axes[len(shown) + 1 :]:
        axis.set_visible(False)
    return fig
