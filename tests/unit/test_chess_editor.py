"""The board that is edited by hand: what it offers, what it says, and that its buttons work."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import IPython.display
import pytest
import torch

from lib.backprop.chess import concepts, editor, moves
from lib.backprop.chess.boards import Boards, to_chess
from lib.backprop.chess.reading import Reader
from tests.planted_boards import BARE, board, reader_of

SVG = "{http://www.w3.org/2000/svg}"


def fen(b: Boards) -> str:
    return to_chess(b)[0].fen().split()[0]


def reader() -> Reader:
    """A probe that wants the mover's queen on c3, and a little a rook there."""
    weight = torch.zeros(12, 6, 6)
    weight[4, 2, 2], weight[3, 2, 2] = 8.0, 4.0
    return reader_of(weight)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[IPython.display.SVG]:
    found: list[IPython.display.SVG] = []
    monkeypatch.setattr(IPython.display, "display", found.append)
    return found


def test_an_empty_square_takes_every_legal_piece_and_the_probe_orders_them() -> None:
    found = editor.edits_on(reader(), board(BARE), "c3")
    assert [words for words, _, _ in found[:2]] == ["+Qc3", "+Rc3"]
    assert [p for _, p, _ in found[:2]] == pytest.approx([0.982, 0.5], abs=1e-3)
    assert {words for words, _, _ in found} == {f"+{x}c3" for x in "PNRQpnrq"}
    assert fen(found[0][2]) == "8/8/k7/8/8/2Q5/8/5K2"


def test_only_legal_edits_are_offered() -> None:
    words = [w for w, _, _ in editor.edits_on(reader(), board(BARE), "a1")]
    # no pawn on the first rank; a rook or queen there would check the king that is not to move
    assert sorted(words) == ["+Na1", "+na1", "+qa1", "+ra1"]
    for square in ("a1", "f1", "a6"):
        for _, _, after in editor.edits_on(reader(), board(BARE), square):
            assert moves.is_legal(after)[0]


def test_a_piece_can_be_removed_or_moved_and_a_king_only_moved() -> None:
    queen = board("8/8/k7/8/8/2Q5/8/5K2 w")
    words = [w for w, _, _ in editor.edits_on(reader(), queen, "c3")]
    assert "-Qc3" in words
    assert all(w == "-Qc3" or w.startswith("Qc3-") for w in words)
    assert all(w.startswith("Kf1-") for w, _, _ in editor.edits_on(reader(), queen, "f1"))


def test_the_best_square_holds_the_best_single_edit() -> None:
    assert editor.best_square(reader(), board(BARE)) == "c3"


def test_probe_and_rules_are_both_said() -> None:
    with_queen = board("8/8/k7/8/8/2Q5/8/5K2 w")
    assert editor.said(reader(), with_queen, concepts.owns_queen) == "probe: P = 0.98; rules: yes"
    threat = concepts.threat_my_queen
    assert editor.said(reader(), with_queen, threat) == "probe: P = 0.98; rules: no"


def test_the_picture_shows_every_piece_the_changed_square_and_its_description() -> None:
    before, after = board(BARE), board("8/8/k7/8/8/2Q5/8/5K2 w")
    text = editor.board_svg(after, before=before, chosen="f6", lines=["a < b"], alt="one & two")
    root = ET.fromstring(text)
    assert root.get("aria-label") == "one & two"
    squares, words = root.findall(f"{SVG}rect"), [x.text for x in root.findall(f"{SVG}text")]
    assert len(squares) == 36
    assert [x.get("fill") for x in squares].count(editor.TINT) == 1
    outlined = [x for x in squares if x.get("stroke")]
    assert [(x.get("x"), x.get("y")) for x in outlined] == [("181", "1")]  # upper right corner
    assert sorted(words) == sorted(["♔", "♕", "♚", "a < b"])


def test_a_click_lists_edits_a_choice_applies_one_and_it_can_be_taken_back(
    shown: list[IPython.display.SVG],
) -> None:
    grid, side, picture = editor.edit_board(reader(), board(BARE), concepts.owns_queen).children
    words, menu, undo = side.children
    cells = {button.tooltip: button for button in grid.children}
    assert len(cells) == 36
    assert cells["a6"].description == "♚"
    assert words.value.startswith("c3, 0 edits. probe: P = 0.02; rules: no")
    start = picture.value
    cells["d3"].click()
    assert "+Nd3   P = 0.02" in [label for label, _ in menu.options]
    cells["c3"].click()
    menu.index = 1
    assert words.value == "c3, 1 edits. probe: P = 0.98; rules: yes"
    assert cells["c3"].description == "♕"
    assert editor.TINT in picture.value
    assert menu.value is None  # the list is that of the new board
    undo.click()
    undo.click()  # nothing left to take back
    assert picture.value == start
    assert cells["c3"].description == ""


def test_a_still_picture_stands_where_widgets_do_not_run(shown: list[IPython.display.SVG]) -> None:
    editor.edit_board(reader(), board(BARE), concepts.owns_queen)
    (still,) = shown
    words = [x.text for x in ET.fromstring(still.data).findall(f"{SVG}text")]
    assert "+Qc3   P = 0.98" in words
    assert "probe: P = 0.02; rules: no" in words
    assert "edits of square c3" in ET.fromstring(still.data).get("aria-label")


def test_what_cannot_be_edited_is_refused(shown: list[IPython.display.SVG]) -> None:
    with pytest.raises(ValueError, match="want a square from a1 to f6, got 'h8'"):
        editor.edits_on(reader(), board(BARE), "h8")
    illegal = board("8/8/k7/8/8/8/8/R4K2 w")
    for ask in (
        lambda: editor.edits_on(reader(), illegal, "a1"),
        lambda: editor.edit_board(reader(), illegal, concepts.owns_queen),
        lambda: editor.best_square(reader(), board(BARE)[[0, 0]]),
    ):
        with pytest.raises(ValueError, match="want one legal board to edit"):
            ask()
    assert shown == []
