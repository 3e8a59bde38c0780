"""Figures and tables of notebook 53: boards, detection maps, comparisons.

Boards are drawn with the mover at the bottom, in outlined pieces; squares that changed are tinted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import chess
import numpy as np
import torch

from lib import figures, shares
from lib.backprop.chess.boards import Boards, from_chess
from lib.backprop.chess.concepts import CONCEPTS
from lib.backprop.chess.edits import apply
from lib.backprop.chess.layer_maps import Detection
from lib.backprop.chess.moves import violations
from lib.backprop.chess.outcomes import CONCEPT, Outcome, irrelevant_squares
from lib.backprop.chess.planes import mover_planes
from lib.backprop.chess.reading import Reader
from lib.figures import DASHES, MARKERS, ROLE
from lib.probes import ProbeReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

MINE, THEIRS = "♙♘♗♖♕♔", "♟♞♝♜♛♚"
LIGHT, DARK, TINT = "#f5f1e6", "#d9d0bd", "#8fc1e3"
PUBLISHED = {
    "stored case, before": "8/8/1K2NR2/R1P5/P1p2P2/Pp1P4/2Nk4/r7 w",
    "stored case, after": "8/8/1K2NR2/R1P2P2/P1p5/Pp1PQ3/2Nk4/r3Q3 w",
    "headline, before": "8/8/8/3p4/3k4/1r1P1p2/8/2K5 w",
    "headline, after": "8/8/2Q2r2/3p4/3kr3/1rQP1p2/2Pr4/2K5 w",
}


def published() -> dict[str, Boards]:
    """The two positions that the document shows, before and after, by name."""
    return {name: from_chess([chess.Board(f"{fen} - - 0 1")], 6) for name, fen in PUBLISHED.items()}


def n_legal_published() -> int:
    """How many of the two maximised positions that are shown break no rule."""
    after = [b for name, b in published().items() if name.endswith("after")]
    return sum(not faults(b) for b in after)


def faults(board: Boards) -> list[str]:
    """The rules that one board breaks."""
    return [rule for rule, broken in violations(board).items() if broken[0]]


def draw_board(axis: Axes, board: Boards, title: str, *, before: Boards | None = None) -> None:
    """One board; squares that differ from `before` are tinted."""
    planes, side = mover_planes(board)[0], board.side
    old = planes if before is None else mover_planes(before)[0]
    changed = (planes != old).any(0)
    for rank in range(side):
        for file in range(side):
            plain = LIGHT if (rank + file) % 2 else DARK
            colour = TINT if changed[rank, file] else plain
            axis.add_patch(_square(file, rank, colour))
    for piece, rank, file in planes.nonzero().tolist():
        glyph = MINE[piece] if piece < 6 else THEIRS[piece - 6]
        drawn = axis.text(
            file, rank - 0.04, glyph, ha="center", va="center", size=12, family="DejaVu Sans"
        )
        drawn.set_in_layout(False)  # inside the board: measuring it takes most of the drawing
    axis.set_xticks([])
    axis.set_yticks([])
    axis.set_xlim(-0.5, side - 0.5)
    axis.set_ylim(-0.5, side - 0.5)
    axis.set_aspect("equal")
    axis.axis("off")
    axis.set_title(title, fontsize=6.5, fontweight="normal", loc="center", pad=3)


def _square(file: int, rank: int, colour: str) -> Rectangle:
    from matplotlib.patches import Rectangle

    return Rectangle((file - 0.5, rank - 0.5), 1, 1, facecolor=colour, linewidth=0)


def published_boards() -> Figure:
    """What the document shows, with the rules that are broken."""
    fig, axes = figures.panels(1, 4, height=2.1)
    shown = published()
    for axis, (name, board) in zip(axes, shown.items(), strict=True):
        before = shown[name.replace("after", "before")] if name.endswith("after") else None
        words = ", ".join(faults(board)) or "legal"
        draw_board(axis, board, f"{name}\n{words}", before=before)
    return fig


def detection_panels(maps: Mapping[str, Detection]) -> Figure:
    """Left: the first concept by checkpoint and layer. Right: all of them after training."""
    opening = next(iter(maps.values()))
    fig, axes = figures.panels(1, 2, height=2.9, width_ratios=(1.1, 1))
    short = [_short(layer) for layer in opening.layers]
    grid = axes[0].imshow(opening.score, vmin=0, vmax=0.8, aspect="auto")
    for (row, column), value in np.ndenumerate(opening.score.numpy()):
        colour = "white" if value < 0.45 else "black"
        axes[0].text(column, row, f"{value:.2f}"[1:] if 0 <= value < 1 else f"{value:.2f}",
                     ha="center", va="center", color=colour, fontsize=5.5)  # fmt: skip
    axes[0].set_yticks(range(len(opening.checkpoints)), opening.checkpoints)
    axes[0].set_xticks(range(len(short)), short, rotation=45, ha="right")
    axes[0].set_title(f"S of {opening.concept}")
    fig.colorbar(grid, ax=axes[0], shrink=0.8)
    for k, (name, found) in enumerate(maps.items()):
        role = "control" if name == "random" else list(ROLE)[k]
        axes[1].errorbar(
            range(len(short)), found.score[-1], yerr=found.half[-1], label=name, color=ROLE[role],
            marker=MARKERS[k % len(MARKERS)], linestyle=DASHES[k % len(DASHES)], capsize=2,
        )  # fmt: skip
    axes[1].axhline(0, color="black", linewidth=0.6)
    axes[1].set_xticks(range(len(short)), short, rotation=45, ha="right")
    axes[1].set_ylabel("S = 2 accuracy - 1")
    axes[1].set_title(f"all concepts, network: {opening.checkpoints[-1]}")
    figures.legend(fig, axes[1])
    return fig


def _short(layer: str) -> str:
    return layer.replace("blocks.block", "").replace(".first", "a").replace(".second", "b")


def detection_rows(maps: Mapping[str, Detection]) -> list[dict[str, object]]:
    """S of each concept in the trained network, and of a rule that needs none."""
    return [
        {
            "concept": name,
            "best layer": _short(x.layers[int(x.score[-1].argmax())]),
            "S": round(x.score[-1].max().item(), 3),
            "S, last layer": round(x.score[-1][-1].item(), 3),
            "rule: a side owns a queen": round(x.rule, 3),
        }
        for name, x in maps.items()
    ]


def reader_rows(
    made: Mapping[tuple[str, float], Outcome], readers: Mapping[str, Reader]
) -> list[dict[str, object]]:
    """The beam with each reader at each tau.

    A board exploits its probe where the probe reads the concept and the rules deny it; the share
    is over the boards read so.
    """
    keep = ("both", "confirmed by the rules", "edits (median)", "squares not needed")
    rows: list[dict[str, object]] = []
    for (name, tau), o in made.items():
        found = comparison_rows(readers[name], [o])[0]
        wrong = ~o.truth[o.reached]
        row = {"reader": name, "tau": tau} | {k: found[k] for k in keep}
        rows.append(row | {"exploits the probe": shares.share(wrong) if len(wrong) else ""})
    return rows


def probe_rows(reports: Mapping[str, ProbeReport]) -> list[dict[str, object]]:
    """Quality of each probe beside its controls."""
    return [
        {
            "probe": name,
            "S": round(x.score, 3),
            "95% interval": f"{x.ci[0]:.2f} to {x.ci[1]:.2f}",
            "AUC": round(x.auc or 0.0, 3),
            "untrained network": round(x.controls["random_network"], 3),
            "raw planes": round(x.controls["raw_input"], 3),
            "shuffled": round(x.controls["shuffled"], 3),
            "owns a queen": round(x.controls["trivial"], 3),
            "control task": round(x.controls["control_task"], 3),
            "admissible": "yes" if x.admissible else "no",
        }
        for name, x in reports.items()
    ]


def comparison_rows(probe: Reader, outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """Every method on the same boards."""
    rows: list[dict[str, object]] = []
    for o in outcomes:
        extra = irrelevant_squares(probe, o)
        rows.append(
            {
                "method": o.method,
                f"P >= {o.tau:g}": round(float(o.reached.mean()), 3),
                "legal": round(float(o.legal.mean()), 3),
                "both": round(float((o.reached & o.legal).mean()), 3),
                "confirmed by the rules": round(float(o.truth.mean()), 3),
                "changed squares": round(o.cells.double().mean().item(), 2),
                "edits (median)": "" if o.edits is None else o.edits.double().median().item(),
                "squares not needed": "" if np.isnan(extra) else round(extra, 3),
                "boards read": round(o.evaluations),
            }
        )
    return rows


def before_and_after(outcomes: Mapping[str, Outcome], rows: Sequence[int]) -> Figure:
    """Some boards, one column each: the original, then each method's answer."""
    fig, axes = figures.panels(len(outcomes) + 1, len(rows), height=1.65)
    first = next(iter(outcomes.values()))
    for column, k in enumerate(rows):
        draw_board(axes[column], first.before[[k]], "original")
        for line, (name, o) in enumerate(outcomes.items(), 1):
            words = "legal" if o.legal[k] else "illegal"
            words += ", queen threatened" if o.truth[k] else ", no threat"
            p = torch.sigmoid(o.logit[k]).item()
            axis = axes[line * len(rows) + column]
            title = f"{name}: P {p:.2f}\n{words}"
            draw_board(axis, o.after[[k]], title, before=o.before[[k]])
    return fig


def trace(made: Outcome, k: int) -> Figure:
    """One relaxed run: bits that are on, and what probe and checker say on the way."""
    run = made.relaxed
    if run is None:
        raise ValueError(f"{made.method} keeps no trace; give a relaxed outcome")
    fig, axes = figures.panels(1, 2, height=1.9)
    axes[0].plot(run.bits_on[:, k], color=ROLE["faithful"])
    axes[0].set_ylabel("bits on, of 468")
    axes[1].plot(torch.sigmoid(run.probe_history[:, k]), color=ROLE["main"], label="P of the probe")
    axes[1].plot(
        run.checker_history[:, k], color=ROLE["second"], linestyle="--", label="P(illegal), checker"
    )
    axes[1].set_ylim(-0.03, 1.03)
    for axis in axes:
        axis.set_xlabel("step")
    return fig


def sweep_panel(weights: Sequence[float], outcomes: Sequence[Outcome], final: Outcome) -> Figure:
    """Shares of boards against the weight of the learned checker, and the beam's beside them.

    Bars are Wilson's 95% intervals.
    """
    fig, axes = figures.panels(1, 1, width=4.6, height=2.2)
    kinds = {
        "P >= .9": ([o.reached for o in outcomes], final.reached),
        "legal": ([o.legal for o in outcomes], final.legal),
        "confirmed": ([o.truth for o in outcomes], final.truth),
    }
    places = range(len(weights) + 1)
    for k, (name, (found, beam)) in enumerate(kinds.items()):
        p = np.array([x.mean() for x in (*found, beam)])
        ends = np.array([shares.interval(x) for x in (*found, beam)])
        bars = np.abs(ends - p[:, None]).T
        role = list(ROLE)[k]
        axes[0].errorbar(
            [x + 0.06 * (k - 1) for x in places], p, yerr=bars, label=name, color=ROLE[role],
            marker=MARKERS[k], linestyle="none", capsize=2,
        )  # fmt: skip
        axes[0].plot(list(places)[:-1], p[:-1], color=ROLE[role], linestyle=DASHES[k], linewidth=1)
    axes[0].axvline(len(weights) - 0.5, color="#aaaaaa", linewidth=0.6)
    axes[0].set_xticks(places, [f"{w:g}" for w in weights] + ["beam"])
    axes[0].set_xlabel("weight of the learned checker (1 in the authors' notebook)")
    axes[0].set_ylabel("share of boards")
    axes[0].set_ylim(-0.05, 1.05)
    return fig


def edit_steps(probe: Reader, made: Outcome, k: int, n_edits: int) -> Figure:
    """One answer of the search after its first edits, and what the probe reads at each."""
    answer = made.answers[k]
    board, seen = made.before[[k]], [made.before[[k]]]
    for edit in answer.edits:
        board = apply(board, edit)
        seen.append(board)
    n_edits = min(n_edits, len(answer.edits))
    fig, axes = figures.panels(1, 2, width=5.4, height=2.3)
    shown = seen[n_edits]
    truth = "queen threatened" if CONCEPTS[CONCEPT](shown)[0] else "no threat"
    words = ", ".join(answer.words()[:n_edits]) or "original"
    draw_board(axes[0], shown, f"{words}\n{truth}", before=seen[0])
    p = [torch.sigmoid(probe.logits(b)[0]).item() for b in seen]
    colours = [ROLE["main"] if j <= n_edits else "#cccccc" for j in range(len(p))]
    axes[1].barh(range(len(p)), p, color=colours)
    axes[1].axvline(made.tau, color="black", linewidth=0.8, linestyle="--")
    axes[1].set_yticks(range(len(p)), ["original", *answer.words()])
    axes[1].invert_yaxis()
    axes[1].set_xlim(0, 1)
    axes[1].set_xlabel("P of the probe")
    return fig
