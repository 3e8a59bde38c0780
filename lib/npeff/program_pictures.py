"""The figures and table rows of notebook 33: the program, pure components, where components lie.

Each function takes results and returns a figure or rows; the notebook adds the provenance and
saves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from lib import figures
from lib.figures import DASHES, MARKERS, ROLE
from lib.npeff.concept_search import LIMITS, Search, conjunction, purity_curve
from lib.npeff.decomposition import Decomposition
from lib.npeff.program.location import Mass
from lib.npeff.program_studies import ClauseFound, Placement, SizeCount

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from lib.npeff.program.compiler import Compiled
    from lib.npeff.program.inference import Examples
    from lib.npeff.store import Fishers

ROLES = ("main", "second", "third", "fourth", "fifth")  # of what is searched, in order
ARROW = {"arrowstyle": "-|>", "color": "#555555"}
LEVELS = tuple(0.8 + 0.01 * i for i in range(21))
# of the document, section 3.2: components that are pure in a concept, of how many
DOCUMENT = {32: 30, 128: 92}


def diagram(compiled: Compiled) -> Figure:
    """The toy's program, from words to label: groups of variables and the layers that hold them."""
    layers = compiled.layer_of
    names = list(layers)

    def held(label: str, *parts: str) -> str:
        found = sorted({layers[name] for name in parts})
        span = f"layer {found[0]}" if len(found) == 1 else f"layers {found[0]}–{found[-1]}"
        return f"{label}\n{span}"

    tests = [name for name in names if name[:2] in ("s_", "v_", "q_") and "&" not in name]
    clauses = [name for name in names if "&" in name]
    trees = [name for name in names if name.startswith(("entail", "contradict"))]
    boxes = {
        "words": (0.7, 1.0, "8 words:\npremise,\nhypothesis"),
        "prem": (2.1, 1.0, held("premise's\nword", "prem")),
        "rel": (3.55, 1.0, held("relation of\nthe words", "rel")),
        "qpair": (5.35, 2.2, held("quantifiers", "qpair")),
        "subject": (5.35, 1.0, held("adjective, noun", "arel", "nrel")),
        "verb": (5.35, -0.2, held("verb", "vrel")),
        "subj": (7.25, 1.0, held("subject", "subj")),
        "tests": (9.0, 1.0, held(f"{len(tests)} tests\nq, s, v", *tests)),
        "clauses": (10.75, 1.0, held(f"{len(clauses)} ANDs,\n12 are clauses", *clauses)),
        "trees": (12.5, 1.0, held(f"{len(trees)} ORs: entail,\ncontradict", *trees)),
        "label": (14.1, 1.0, held("label", "label")),
    }
    fig, (axis,) = figures.panels(width=figures.TWO_COLUMN, height=1.9)
    axis.set(xlim=(0, 14.7), ylim=(-0.75, 2.75))
    axis.axis("off")
    drawn = {}
    for key, (x, y, words) in boxes.items():
        style = {"boxstyle": "round,pad=0.35", "facecolor": "#f2f2f2", "edgecolor": "#555555"}
        drawn[key] = axis.text(x, y, words, ha="center", va="center", fontsize=6, bbox=style)
    links = ["words prem", "prem rel", "rel qpair", "rel subject", "rel verb", "subject subj"]
    links += ["subj tests", "qpair tests", "verb tests", "tests clauses", "clauses trees"]
    for link in [*links, "trees label"]:
        start, end = link.split()
        arrow = {**ARROW, "patchA": drawn[start].get_bbox_patch(), "shrinkA": 1, "shrinkB": 1}
        arrow["patchB"] = drawn[end].get_bbox_patch()
        axis.annotate("", boxes[end][:2], boxes[start][:2], arrowprops=arrow)
    return fig


def configuration_rows(compiled: Compiled, n: int, rs: Sequence[int]) -> list[dict[str, object]]:
    """Table rows: the document's network beside ours."""
    return [
        {"": name, "document": theirs, "here": ours}
        for name, theirs, ours in (
            ("program and sentences", "in an appendix that is not public", "ours"),
            ("layers", "23", str(compiled.n_layers)),
            ("attention heads", "4", str(compiled.n_heads)),
            ("key size", "25 (called model dimension)", str(compiled.key_size)),
            ("residual width", "about 335 (from the parameters)", str(compiled.width)),
            ("hidden units", "1,320", f"{compiled.n_hidden:,}"),
            ("parameters", "23.5 M", f"{compiled.n_parameters / 1e6:.1f} M"),
            ("coldness of attention", "20 (100 over the root of 25)", f"{compiled.cold:g}"),
            ("examples", "1,616", f"{n:,}"),
            ("components", "32, 128", ", ".join(map(str, rs))),
        )
    ]


def sparsity_and_loss(fishers: Fishers, fits: Mapping[int, Decomposition]) -> Figure:
    """Non-zeros of each PEF beside K, and what each decomposition explains by steps."""
    fig, (left, right) = figures.panels(1, 2, height=2.1)
    rows = torch.bincount(fishers.example, fishers.offsets.diff().double())
    left.hist(rows.numpy() / 1e3, bins=30, color=ROLE["main"])
    left.axvline(fishers.k / 1e3, color=ROLE["random"], linestyle="--")
    left.annotate(
        f"K = {fishers.k:,}",
        (fishers.k / 1e3, 0.95),
        (-3, 0),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        fontsize=7,
        ha="right",
        va="top",
    )
    left.set(title="nothing is cut off", xlabel="non-zeros of a PEF, thousands", ylabel="examples")
    for i, (r, fit) in enumerate(fits.items()):
        share = 1 - fit.losses / fit.energy
        right.plot(
            fit.loss_steps,
            share,
            color=ROLE[ROLES[i]],
            linestyle=DASHES[i],
            marker=MARKERS[i],
            markevery=5,
            label=f"r = {r}",
        )
    right.set(title="decomposition", xlabel="steps", ylabel="1 − loss / energy", ylim=(-0.05, 1.02))
    right.legend(loc="lower right")
    return fig


def pure_rows(found: Mapping[str, Search]) -> list[dict[str, object]]:
    """Table rows: sets that meet each criterion, and in brackets how many random ones would."""
    rows = []
    for name, one in found.items():
        r = len(one.passes)
        row: dict[str, object] = {"top examples of": name}
        for criterion, (count, chance) in one.counts.items():
            row[criterion] = f"{count} of {r} ({chance:.2g})"
        row["document, any concept"] = f"{DOCUMENT[r]} of {r}" if r in DOCUMENT else "–"
        rows.append(row)
    return rows


def conjunction_rows(found: Search, *, limit: float = 1.0) -> list[dict[str, object]]:
    """Table rows: what each component's top examples have in common, in short form."""
    rows = []
    for j in range(len(found.share)):
        common = conjunction(found, j, limit=limit)
        rows.append(
            {
                "component": j,
                "top examples have in common": " and ".join(common.short) or "nothing",
                "share of all examples": common.prevalence,
                "concepts": len(common.concepts),
            }
        )
    return rows


def purity_curves(found: Mapping[str, Search], levels: Sequence[float] = LEVELS) -> Figure:
    """Share of sets whose purest concept reaches a purity, by how common concepts may be.

    The grey band is where as many random sets would be in 95 of 100 cases (binomial, two standard
    deviations), from the null of the first search.
    """
    fig, axes = figures.panels(1, len(LIMITS), height=2.3, sharey=True)
    first = next(iter(found.values()))
    null = purity_curve(first.null_purity, levels)
    r = len(first.purity)
    sd = (null * (1 - null) / r).sqrt()
    for i, (axis, limit) in enumerate(zip(axes, LIMITS, strict=True)):
        low, high = (null - 2 * sd)[:, i].clamp(min=0), (null + 2 * sd)[:, i].clamp(max=1)
        axis.fill_between(levels, low, high, color=ROLE["random"], alpha=0.3, linewidth=0)
        axis.plot(levels, null[:, i], color=ROLE["random"], linestyle=":", label="random sets")
        for order, (name, one) in enumerate(found.items()):
            axis.plot(
                levels,
                purity_curve(one.purity, levels)[:, i],
                color=ROLE[ROLES[order % len(ROLES)]],
                linestyle=DASHES[order % len(DASHES)],
                marker=MARKERS[order % len(MARKERS)],
                markevery=5,
                label=name,
            )
        words = "all concepts" if limit == 1 else f"concepts of ≤ {limit:.0%} of the data"
        axis.set(title=words, xlabel="share that has the concept", ylim=(-0.03, 1.03))
    axes[0].set_ylabel("share of sets that reach it")
    figures.legend(fig, axes[0])
    return fig


def clause_rows(
    found: Sequence[ClauseFound], others: Sequence[ClauseFound]
) -> list[dict[str, object]]:
    """Table rows: for each clause the component that singles its examples out best.

    Args:
        others: the same of clusters, of which the average precision is shown.
    """
    return [
        {
            "clause": one.clause,
            "examples": one.n,
            "best component": one.component,
            "average precision": one.average_precision,
            "beyond chance": "yes" if one.beyond else "no",
            "best cluster's": other.average_precision,
            "precision of the top": one.precision,
            "precision possible": one.most,
            "recall of the top": one.recall,
        }
        for one, other in zip(found, others, strict=True)
    ]


def size_curves(found: Mapping[int, Sequence[SizeCount]]) -> Figure:
    """Share of pure components by the number of top examples, and how many concepts can fill it.

    Args:
        found: number of components r -> counts, for the same sizes.
    """
    fig, (*axes, last) = figures.panels(1, len(found) + 1, height=2.4)
    sizes = [one.n_top for one in next(iter(found.values()))]
    for axis, (r, counts) in zip(axes, found.items(), strict=True):
        for i, words in enumerate(("all concepts", "≤ 50% of the data", "≤ 25%", "two of ≤ 50%")):
            share = [one.two_rare if i == 3 else one.share[i] for one in counts]
            axis.plot(sizes, share, color=ROLE[ROLES[i]], marker=MARKERS[i], label=words)
            if i < 3:
                null = [one.null[i] for one in counts]
                (line,) = axis.plot(sizes, null, ":", color=ROLE[ROLES[i]], alpha=0.6)
                line.set(marker=MARKERS[i], markerfacecolor="white")
        axis.set(title=f"pure of {r} components", ylabel="share", ylim=(-0.03, 1.03))
    figures.legend(fig, axes[0])
    possible = [one.possible for one in next(iter(found.values()))]
    last.plot(sizes, possible, color=ROLE["main"], marker=MARKERS[0])
    last.set(title="concepts possible", ylabel="concepts", ylim=(0, 1.1 * max(possible)))
    for axis in (*axes, last):
        axis.set_xscale("log", base=2)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.set_xlabel("top examples")
    return fig


def placement_dots(found: Mapping[str, Placement]) -> Figure:
    """How much more of a component than of the others lies where its concepts are computed."""
    from matplotlib.ticker import MaxNLocator

    fig, axes = figures.panels(1, len(found), height=2.3, sharey=True)
    for axis, (words, one) in zip(axes, found.items(), strict=True):
        ratio = one.ratio.log2().sort().values
        x = range(1, len(ratio) + 1)
        colours = [ROLE["main"] if value > 0 else ROLE["second"] for value in ratio.tolist()]
        axis.axhline(0, color=ROLE["random"], linewidth=0.8)
        axis.scatter(x, ratio, c=colours, s=14)
        low, high = one.null.quantile(torch.tensor([0.025, 0.975], dtype=one.null.dtype)).tolist()
        by_chance = f"at random {low:.2f} to {high:.2f}"
        axis.set_title(f"{words}: {one.share:.2f} above 0\n({by_chance})")
        axis.set_xlabel("pure components, sorted")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("log2 of own mass over\nthe others' (median)")
    return fig


def component_card(found: Search, fit: Decomposition, examples: Examples, j: int) -> Figure:
    """One component: what its top examples share, and five of them."""
    common, n_words = conjunction(found, j), examples.ids.shape[1] // 2
    weights = fit.coefficients[:, j]
    best = weights.argsort(descending=True, stable=True)[:5].tolist()
    share = " and ".join(common.short) or "nothing"
    lines = [f"component {j}: top examples share {share}"]
    lines += [f"({common.prevalence:.0%} of all examples meet it)", ""]
    for i in best:
        words = examples.words(i)
        pair = " / ".join(" ".join(part) for part in (words[:n_words], words[n_words:]))
        lines.append(f"{weights[i]:.2f}  {pair}  → {decided(examples, i)}")
    fig, (axis,) = figures.panels(height=1.6)
    axis.axis("off")
    axis.text(0, 1, "\n".join(lines), va="top", fontsize=7, family="monospace", wrap=True)
    return fig


def decided(examples: Examples, i: int) -> str:
    """An example's label and the clause that decides it."""
    label = examples.classes[int(examples.labels[i])]
    name = examples.clause_names[int(examples.clauses[i])]
    return f"{label}, by no clause" if name == "none" else f"{label}, by {name}"


def mass_map(where: Mass, layer_of: Mapping[str, int], *, n_shown: int = 20) -> Figure:
    """Where components lie: share of squared length by layer, and by the variable computed.

    Args:
        where: of r components; they are shown in order of their mean layer.
        layer_of: from the compiled program.
        n_shown: variables with the largest shares; the rest, and padding, are drawn as "others".
    """
    depth = where.layer @ torch.arange(where.layer.shape[1], dtype=where.layer.dtype)
    order = depth.argsort(stable=True)
    shares = where.computes[order]
    most = shares[:, :-1].amax(0)
    ranked = most.argsort(descending=True, stable=True)[:n_shown].tolist()
    large = sorted(
        (i for i in ranked if most[i] > 0), key=lambda i: (layer_of[where.variables[i]], i)
    )
    rest = shares.sum(1) - shares[:, large].sum(1)
    columns = torch.cat([shares[:, large], rest[:, None].clamp(min=0)], 1)
    names = [f"{layer_of[where.variables[i]]}  {where.variables[i]}" for i in large]
    height = min(0.9 + 0.11 * len(order), 6.0) + 0.6
    ratios = [where.layer.shape[1], max(len(names) + 1, 6)]
    fig, (left, right) = figures.panels(1, 2, height=height, width_ratios=ratios)
    most_of_all = max(where.layer.max().item(), columns.max().item())
    _heat(left, where.layer[order], [str(i) for i in range(where.layer.shape[1])], most_of_all)
    image = _heat(right, columns, [*names, "others"], most_of_all)
    left.set(xlabel="layer", ylabel="component, by mean layer", title="by layer")
    left.tick_params(axis="x", rotation=0)
    right.set(xlabel="layer and variable computed there", title="by variable")
    step = max(1, len(order) // 16)
    left.set_yticks(range(0, len(order), step), [str(i) for i in order[::step].tolist()])
    right.set_yticks([])
    fig.colorbar(image, ax=right, label="share of squared length", shrink=0.8)
    return fig


def _heat(axis: Axes, values: torch.Tensor, names: Sequence[str], most: float) -> AxesImage:
    image = axis.imshow(values.numpy(), aspect="auto", vmin=0, vmax=most, interpolation="nearest")
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    return image
