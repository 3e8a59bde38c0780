"""A board to edit by hand: click a square, choose one of its edits, watch the probe move.

Only legal edits are offered, each with what the probe would read after it, so that one sees which
pieces the probe follows and where the rules disagree with it. The functions that read and draw
need no widgets; `edit_board` puts buttons around them.

Public names: `edits_on`, `best_square`, `said`, `board_svg`, `edit_board`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

import chess
import numpy as np
import torch

from lib.backprop.chess.boards import Boards, Flags, Numbers
from lib.backprop.chess.edits import NOWHERE, Edits, all_edits, apply, describe
from lib.backprop.chess.moves import is_legal
from lib.backprop.chess.pictures import DARK, LIGHT, MINE, THEIRS, TINT
from lib.backprop.chess.planes import mover_planes
from lib.backprop.chess.reading import Reader

if TYPE_CHECKING:
    import ipywidgets

Concept = Callable[[Boards], Flags]
CELL, N_LINES = 36, 9  # pixels a square; edits listed beside the still picture
PROMPT = "choose an edit"


def edits_on(reader: Reader, board: Boards, square: str) -> list[tuple[str, float, Boards]]:
    """The legal edits on one square, the probe's favourite first.

    On an empty square a piece can be added; a piece can be removed or moved to an empty square.

    Args:
        board: one legal position.
        square: its name, seen with the mover at the bottom ("a1" is the mover's left corner).

    Returns:
        What is done in words, the probe's P afterwards, the board afterwards; empty if nothing on
        that square is legal (a king that has no other square to stand on).

    Raises:
        ValueError: not one board, an illegal one, or no square of it.
    """
    _require_one(board)
    names = [chess.square_name(8 * y + x) for y in range(board.side) for x in range(board.side)]
    if square not in names:
        raise ValueError(f"want a square from a1 to {names[-1]}, got {square!r}")
    edits, p, after = _readings(reader, board, chess.parse_square(square))
    order = sorted(range(len(p)), key=lambda k: -p[k])
    return [(describe(edits[np.array([k])]), p[k], after[[k]]) for k in order]


def best_square(reader: Reader, board: Boards) -> str:
    """The square that holds the one legal edit which raises the probe most.

    Raises:
        ValueError: not one board, or an illegal one.
    """
    _require_one(board)
    edits, p, _ = _readings(reader, board)
    return chess.square_name(int(_squares(edits)[int(np.argmax(p))]))


def said(reader: Reader, board: Boards, concept: Concept) -> str:
    """What the probe reads of one board, and what the rules say."""
    p = torch.sigmoid(reader.logits(board)[0]).item()
    return f"probe: P = {p:.2f}; rules: {'yes' if concept(board)[0] else 'no'}"


def board_svg(
    board: Boards, *, before: Boards, chosen: str, lines: Sequence[str] = (), alt: str = ""
) -> str:
    """One board as SVG text, the mover at the bottom.

    Args:
        board: `[1]`.
        before: squares that differ from it are tinted.
        chosen: name of the square to outline.
        lines: words beside the board.
        alt: what the picture shows, for those who cannot see it.
    """
    planes, side = mover_planes(board)[0], board.side
    changed = (planes != mover_planes(before)[0]).any(0)
    size, wide = side * CELL, side * CELL + (6 * CELL if lines else 0)
    parts = []
    for rank in range(side):
        for file in range(side):
            x, y = file * CELL, size - (rank + 1) * CELL
            colour = TINT if changed[rank, file] else LIGHT if (rank + file) % 2 else DARK
            edge = ' stroke="black"' if chess.square_name(8 * rank + file) == chosen else ""
            place = f'x="{x + 1}" y="{y + 1}" width="{CELL - 2}" height="{CELL - 2}"'
            parts.append(f'<rect {place} fill="{colour}"{edge}/>')
    text = 'font-family="DejaVu Sans, sans-serif"'
    for piece, rank, file in planes.nonzero().tolist():
        x, y = file * CELL + CELL // 2, size - rank * CELL - CELL // 4
        middle = f'x="{x}" y="{y}" text-anchor="middle" font-size="{2 * CELL // 3}"'
        parts.append(f"<text {middle} {text}>{(MINE + THEIRS)[piece]}</text>")
    for k, line in enumerate(lines):
        at = f'x="{size + CELL // 2}" y="{CELL // 2 + 22 * k}" font-size="13"'
        parts.append(f"<text {at} {text}>{escape(line)}</text>")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{size}" role="img"'
    return "\n".join([f'{head} aria-label="{escape(alt)}">', *parts, "</svg>"])


def edit_board(reader: Reader, start: Boards, concept: Concept) -> ipywidgets.HBox:
    """A board of buttons: a square's edits, the probe after each, and the board as edited so far.

    Args:
        start: one legal position.
        concept: what the rules are asked.

    Returns:
        The box of controls; end a notebook cell with it. A still picture of the start, with the
        edits of `best_square`, is an ordinary output above it for where widgets do not run.

    Raises:
        ValueError: not one board, or an illegal one.
    """
    import ipywidgets
    from IPython.display import SVG, display

    path, at = [start], [best_square(reader, start)]
    cell = ipywidgets.Layout(width=f"{CELL}px", height=f"{CELL}px", margin="1px", padding="0")
    ranks = reversed(range(start.side))
    names = [chess.square_name(8 * y + x) for y in ranks for x in range(start.side)]
    cells = {name: ipywidgets.Button(layout=cell, tooltip=name) for name in names}
    menu = ipywidgets.Select(options=[(PROMPT, None)], rows=12)
    undo = ipywidgets.Button(description="take back")
    picture, words = ipywidgets.HTML(), ipywidgets.Label()

    def show() -> list[str]:
        board = path[-1]
        for name, button in cells.items():
            button.description = _glyph(board, name)
            button.button_style = "info" if name == at[0] else ""
        found = edits_on(reader, board, at[0])
        listed = [f"{done}   P = {p:.2f}" for done, p, _ in found]
        menu.options = [(PROMPT, None), *zip(listed, (b for _, _, b in found), strict=True)]
        picture.value = board_svg(board, before=start, chosen=at[0])
        words.value = f"{at[0]}, {len(path) - 1} edits. {said(reader, board, concept)}"
        return [said(reader, board, concept), f"{at[0]}:", *listed[: N_LINES - 2]]

    def click(name: str) -> None:
        at[0] = name
        show()

    def choose(change: dict[str, Boards | None]) -> None:
        if change["new"] is not None:
            path.append(change["new"])
            show()

    def take_back(_: object) -> None:
        del path[max(1, len(path) - 1) :]
        show()

    for name, button in cells.items():
        button.on_click(lambda _, name=name: click(name))
    menu.observe(choose, names="value")
    undo.on_click(take_back)
    lines = show()
    alt = f"A position, and the edits of square {at[0]} with what the probe reads after each."
    display(SVG(board_svg(start, before=start, chosen=at[0], lines=lines, alt=alt)))
    grid = ipywidgets.GridBox(
        list(cells.values()),
        layout=ipywidgets.Layout(grid_template_columns=f"repeat({start.side}, {CELL + 4}px)"),
    )
    return ipywidgets.HBox([grid, ipywidgets.VBox([words, menu, undo]), picture])


def _require_one(board: Boards) -> None:
    if len(board) != 1 or not is_legal(board)[0]:
        raise ValueError(f"want one legal board to edit, got {len(board)} (`moves.violations`)")


def _readings(
    reader: Reader, board: Boards, square: int | None = None
) -> tuple[Edits, list[float], Boards]:
    """Every legal edit of a board (or of one square), P after it, and the board after it."""
    edits = all_edits(board)
    if square is not None:
        edits = edits[_squares(edits) == square]
    after = apply(board, edits)
    legal = is_legal(after).nonzero()[0]
    p = torch.sigmoid(reader.logits(after[legal])).tolist() if len(legal) else []
    return edits[legal], p, after[legal]


def _squares(edits: Edits) -> Numbers:
    """The square that each edit belongs to: where its piece stands, or where it is put."""
    return np.where(edits.source == NOWHERE, edits.target, edits.source)


def _glyph(board: Boards, name: str) -> str:
    square = chess.parse_square(name)
    here = mover_planes(board)[0, :, square // 8, square % 8].nonzero().flatten().tolist()
    return (MINE + THEIRS)[here[0]] if here else ""
