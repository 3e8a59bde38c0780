"""What concept maximisation on boards refuses or says it cannot do, each with its sentence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lib.backprop.chess import (
    concepts,
    detection,
    networks,
    positions,
    relaxed,
    search,
    studies,
    unmoves,
)
from lib.backprop.chess.boards import Boards
from lib.backprop.chess.reading import Reader
from lib.models import initialise
from tests.planted_boards import BARE, board, mover_only, reader_of

IN_CHECK = "8/8/k7/8/8/8/8/R4K2 w"  # the side that is not to move stands in check
NO_KING = "8/8/k7/8/8/8/8/R7 w"


def rounded(x: Tensor, white: Tensor) -> Tensor:
    return (x > 0.5).float()


def planted(piece: int, encode=mover_only, bias: float = -4.0) -> Reader:
    """A probe of the planes themselves that wants one kind of piece, anywhere."""
    weight = torch.zeros(12, 6, 6)
    weight[piece] = 8.0
    return reader_of(weight, bias, encode)


def checker() -> networks.Checker:
    return initialise(networks.Checker(4), torch.Generator().manual_seed(0)).eval()


RELAXED = {"bop": relaxed.relaxed_bop, "ste": relaxed.relaxed_ste}


@pytest.mark.parametrize("fen", [IN_CHECK, NO_KING])
def test_an_illegal_start_is_refused_by_every_method(fen: str) -> None:
    reader = planted(4)
    with pytest.raises(ValueError, match="board to start from is illegal"):
        search.maximise_board(reader, board(fen), 0.9)
    rule = "kings" if fen == NO_KING else "other side in check"
    for run in RELAXED.values():
        with pytest.raises(ValueError, match=f"board 0 to start from is illegal: {rule}"):
            run(reader, checker(), board(fen), steps=1)


def test_a_layer_that_is_not_differentiable_is_refused_where_a_gradient_is_needed() -> None:
    reader = planted(4, rounded)
    with pytest.raises(ValueError, match="does not depend differentiably on the board"):
        search.maximise_board(reader, board(BARE), 0.9)
    for run in RELAXED.values():
        with pytest.raises(ValueError, match="does not depend differentiably on the board"):
            run(reader, checker(), board(BARE), steps=1)


def test_search_without_a_gradient_reads_such_a_layer() -> None:
    found = search.maximise_board(
        planted(4, rounded), board(BARE), 0.9, search.Beam(order="random")
    )
    assert found.reached
    assert concepts.owns_queen(found.board)[0]


def test_a_concept_that_the_board_cannot_show_is_not_reached_and_said_so() -> None:
    bishop = search.maximise_board(planted(2), board(BARE), 0.9)  # none on the small board
    assert not bishop.reached
    assert bishop.edits == ()
    assert bishop.after == bishop.before


def test_a_concept_that_no_position_shows_has_no_sample() -> None:
    played = positions.play_games(50, seed=0)

    def has_bishop(boards: Boards) -> np.ndarray:
        return boards.own[:, 2] != 0

    with pytest.raises(ValueError, match=r"0 positives and .* choose another concept"):
        detection.sample(played, has_bishop, 20, seed=0)


def test_moves_of_the_small_game_alone_are_taken_back() -> None:
    with pytest.raises(ValueError, match="moves of the 6x6 game are taken back; the boards have"):
        unmoves.is_legal_with_history(board(BARE, 8))


def test_an_unknown_concept_lists_those_there_are() -> None:
    played, blank = positions.play_games(50, seed=0), networks.Tower(4, 1, policy=False)
    bed = studies.Bed("own", played, played, {"random": blank}, None, "test", ("stem",))
    with pytest.raises(ValueError, match=r"concepts are threat_my_queen, .*; got 'fork'"):
        bed.sample("fork", 20, seed=0)


def test_the_authors_procedure_without_a_checker_is_refused() -> None:
    played, blank = positions.play_games(50, seed=0), networks.Tower(4, 1, policy=False)
    bed = studies.Bed("maia", played, played, {"random": blank}, None, "test", ("stem",))
    for run in (
        lambda: studies.relaxed(
            bed, planted(4), played.boards[:1], 0.9, kind="bop", steps=1, legality=1.0
        ),
        lambda: studies.checker_faults(bed, 3, seed=0),
    ):
        with pytest.raises(ValueError, match="the networks maia have no legality checker"):
            run()


def test_an_unreachable_target_is_refused_or_reported() -> None:
    with pytest.raises(ValueError, match=r"tau in \(0, 1\)"):
        search.maximise_board(planted(4), board(BARE), 1.0)
    far = search.maximise_board(planted(4, bias=-99.0), board(BARE), 0.9)
    assert not far.reached
    assert far.before < far.after < 0  # as near as three legal edits come
    assert len(far.edits) == 3


def test_a_probe_of_another_layer_is_refused_by_every_method() -> None:
    tower = initialise(networks.Tower(4, 1, policy=False), torch.Generator().manual_seed(0)).eval()
    stranger = Reader(tower, ["stem"], planted(4).probes)
    with pytest.raises(ValueError, match="fitted on another layer or network"):
        search.maximise_board(stranger, board(BARE), 0.9)
    for run in RELAXED.values():
        with pytest.raises(ValueError, match="fitted on another layer or network"):
            run(stranger, checker(), board(BARE), steps=1)
