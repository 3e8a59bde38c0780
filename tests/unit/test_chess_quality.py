"""The fewest edits, boards like played ones, recoloured pieces, and work that is shared."""

from __future__ import annotations

from math import factorial, log

import chess
import numpy as np
import pytest
import torch

from lib.backprop.chess import boards, moves, networks, positions, quality, relaxed, search, typical
from lib.backprop.chess import edits as edits_of
from lib.backprop.chess.boards import Boards
from lib.backprop.chess.certificates import certify, certify_all
from lib.backprop.chess.outcomes import Outcome, answered
from lib.backprop.chess.reading import Reader
from lib.models import initialise
from lib.probes import Probe
from lib.shares import share
from tests.planted_boards import BARE, board, planted

TAU = 0.9


@pytest.fixture(scope="module")
def played() -> Boards:
    return positions.play_games(600, seed=21).boards


def legal_neighbours(some: Boards, kinds: tuple[str, ...] = edits_of.KINDS) -> Boards:
    after = edits_of.apply(some, edits_of.all_edits(some, kinds))
    return after[moves.is_legal(after).nonzero()[0]]


def exhaustive(
    reader: Reader, start: Boards, kinds: tuple[str, ...]
) -> tuple[int | None, set[bytes]]:
    """Fewest edits by reading everything within two, and all boards that need no more."""
    goal, front = log(TAU / (1 - TAU)), start
    for n_edits in (1, 2):
        front = legal_neighbours(front, kinds)
        there = front[(reader.logits(front).numpy() >= goal).nonzero()[0]]
        if len(there):
            return n_edits, set(there.identities())
    return None, set()


FEW = "8/8/k2n4/8/2R5/1P6/8/5K2 w"
WISHES = {
    "one edit": ((3, "c2", 8.0), (7, "b5", 8.0), (0, "b2", 1.0)),
    "two edits": ((3, "c2", 3.5), (7, "b5", 3.5), (0, "b4", 3.0), (6, "b3", 3.0), (1, "d6", 1.0)),
    "three edits": ((3, "c2", 2.5), (7, "b5", 2.5), (0, "b4", 2.5)),
    "none": (),
}


@pytest.mark.parametrize("wish", WISHES)
def test_the_certificate_is_what_exhaustive_search_finds(wish: str) -> None:
    reader, start, kinds = planted(*WISHES[wish]), board(FEW), ("remove", "move", "recolour")
    n_edits, answers = exhaustive(reader, start, kinds)
    found = certify(reader, start, TAU, budget=10**6, further=10**6, kinds=kinds)
    assert found.decided
    assert found.n_edits == n_edits == {"one edit": 1, "two edits": 2}.get(wish)
    assert found.complete
    assert found.n_answers == len(answers)
    if answers:
        assert found.answers is not None
        assert set(found.answers.identities()) == answers
    short = certify(reader, start, TAU, budget=10**6, kinds=kinds)
    assert short.n_edits == n_edits
    assert short.evaluations <= found.evaluations


APART = ((4, "c3", 3.5), (7, "b5", 3.5), (0, "d3", 0.1))  # two pieces that a bare board lacks


def test_a_first_order_estimate_that_is_exact_finds_two_edits_at_once() -> None:
    reader = planted(*APART)
    ordered = certify(reader, board(BARE), TAU)
    near = 1 + len(legal_neighbours(board(BARE)))
    assert ordered.n_edits == 2
    assert ordered.evaluations <= near + 512  # the first boards of two edits that are read


def test_a_spent_budget_decides_nothing_unless_an_answer_was_read() -> None:
    start = board(BARE)
    spent = certify(planted(), start, TAU, budget=1000)
    assert (spent.n_edits, spent.decided, spent.n_answers) == (None, False, 0)
    assert spent.evaluations <= 1000
    assert certify(planted((4, "c3", 8.0)), start, TAU, budget=1).n_edits == 1
    assert certify(planted(bias=4.0), start, TAU).n_edits == 0


def test_certificates_refuse_what_is_no_start() -> None:
    with pytest.raises(ValueError, match=r"budget of boards; got 1, 0\.9, 0"):
        certify(planted(), board(BARE), TAU, budget=0)
    with pytest.raises(ValueError, match="illegal"):
        certify(planted(), board("8/8/k7/8/8/8/8/R4K2 w"), TAU)


def test_agreement_counts_answers_with_the_fewest_edits() -> None:
    start = board(BARE)[np.zeros(2, int)]
    reader = planted(*APART)
    counted = certify_all(reader, start, TAU)

    def made(beam: search.Beam) -> Outcome:
        return answered(
            "beam", reader, start, TAU, search.maximise_boards(reader, start, TAU, beam)
        )

    for beam, right in ((search.Beam(), True), (search.Beam(depth=1), False)):
        assert quality.agreement(made(beam), counted) == share(np.full(2, right))
    rows = quality.certificate_rows(made(search.Beam()), counted)
    assert [(r["fewest edits"], r["positions"], r["beam has as many"]) for r in rows] == [
        ("2", 2, 2)
    ]
    undecided = certify_all(planted(), start, TAU, budget=1)
    assert quality.agreement(made(search.Beam()), undecided) is None


def test_recolouring_is_one_edit_and_can_be_taken_back() -> None:
    one = board("8/8/k7/8/2n5/8/3P4/5K2 w")
    edits = edits_of.all_edits(one, ("recolour",))
    after = edits_of.apply(one, edits)
    fens = {b.fen().split()[0] for b in boards.to_chess(after)}
    assert fens == {"8/8/k7/8/2N5/8/3P4/5K2", "8/8/k7/8/2n5/8/3p4/5K2"}
    assert (edits_of.changed_cells(one[np.zeros(2, int)], after) == 1).all()
    back = edits_of.Edits(np.arange(2), edits.becomes, edits.target, edits.source)
    assert set(edits_of.apply(after, back).identities()) == set(one.identities())
    assert {edits_of.describe(edits[[k]]) for k in range(2)} == {"nc4=N", "Pd2=p"}
    assert len(edits_of.all_edits(one, edits_of.ALL_KINDS)) == len(edits_of.all_edits(one)) + 2


def test_the_beam_recolours_where_that_is_shorter() -> None:
    reader = planted((1, "c4", 4.0), (7, "c4", -4.0))
    start = board("8/8/k7/8/2n5/8/3P4/5K2 w")
    plain = search.maximise_board(reader, start, 0.45)
    also = search.maximise_board(reader, start, 0.45, search.Beam(kinds=edits_of.ALL_KINDS))
    assert len(plain.edits) == 2
    assert also.words() == ["nc4=N"]
    assert also.irrelevant == 0


def test_the_density_after_one_board_is_its_closed_form() -> None:
    seen = board("8/8/k7/8/8/8/N1N5/5K2 w")
    fit = typical.fit_typical(seen, pseudo=1.0)
    kinds = {1: 2, 5: 1, 11: 1}  # two knights, both kings
    counts = sum(log((1 + 1) / (1 + 37)) for _ in range(12))
    whole = log((1 + np.exp(counts)) / (1 + 1))
    placed = sum(m * log((1 + 1) / (m + 36)) + log(factorial(m)) for m in kinds.values())
    assert fit.log_density(seen)[0] == pytest.approx(whole + placed)
    moved = board("8/8/k7/8/8/N7/N7/5K2 w")
    assert fit.log_density(seen)[0] - fit.log_density(moved)[0] == pytest.approx(log(2))


def test_played_boards_are_more_typical_than_boards_with_pieces_thrown_on(played: Boards) -> None:
    fit = typical.fit_typical(played[:400])
    rest = played[400:500]
    thrown = edits_of.random_edits(rest, 3, seed=0)
    gap = fit.log_density(rest) - fit.log_density(thrown)
    assert (gap > 0).mean() > 0.8
    assert np.isfinite(fit.log_density(thrown)).all()


def test_between_equal_answers_a_price_on_oddness_takes_the_played_one(played: Boards) -> None:
    def oddness(some: Boards) -> np.ndarray:
        return ((some.own[:, 4] >> np.uint64(18)) & np.uint64(1)).astype(float)  # queen on c3

    reader, start = planted((4, "c3", 8.0), (4, "d2", 7.5)), board(BARE)
    assert search.maximise_board(reader, start, TAU).words() == ["+Qc3"]
    assert search.maximise_board(reader, start, TAU, cost=oddness).words() == ["+Qd2"]
    free = search.maximise_boards(reader, played[:3], TAU, cost=lambda b: np.zeros(len(b)))
    plain = search.maximise_boards(reader, played[:3], TAU)
    assert [a.words() for a in free] == [a.words() for a in plain]


def test_densities_refuse_what_they_were_not_fitted_on(played: Boards) -> None:
    fit = typical.fit_typical(played)
    with pytest.raises(ValueError, match="side 6, asked of side 8"):
        fit.log_density(boards.from_chess([chess.Board()], 8))
    with pytest.raises(ValueError, match="kappa >= 0"):
        fit.cost(-1.0)
    with pytest.raises(ValueError, match="above 0"):
        typical.fit_typical(played, pseudo=0.0)


@pytest.fixture(scope="module")
def stem() -> Reader:
    tower = networks.Tower(8, 1, policy=False)
    initialise(tower, torch.Generator().manual_seed(0)).eval()
    probe = Probe(
        torch.randn(288, generator=torch.Generator().manual_seed(1)),
        torch.tensor(-6.0), 0, torch.tensor(True),
    )  # fmt: skip
    return Reader(tower, ["stem"], [probe])


def test_boards_searched_together_are_answered_as_alone(stem: Reader, played: Boards) -> None:
    some = played[:4]
    for beam in (*search.VARIANTS.values(), search.Beam(n_tried=4, width=2, depth=3)):
        together = search.maximise_boards(stem, some, TAU, beam, seed=5)
        for k, answer in enumerate(together):
            alone = search.maximise_board(stem, some[[k]], TAU, beam, seed=5 + k)
            assert alone.words() == answer.words()
            assert alone.evaluations == answer.evaluations
            assert alone.board.identities() == answer.board.identities()


def test_a_search_that_goes_on_to_a_larger_tau_is_the_search_for_it(
    stem: Reader, played: Boards
) -> None:
    some = played[7:12]
    found = search.maximise_at(stem, some, (0.99, 0.6))
    for tau in (0.6, 0.99):
        alone = search.maximise_boards(stem, some, tau)
        assert [a.words() for a in found[tau]] == [a.words() for a in alone]
        assert [a.evaluations for a in found[tau]] == [a.evaluations for a in alone]


def test_the_first_legal_edits_are_those_of_judging_all(played: Boards) -> None:
    some = played[30:36]
    edits = edits_of.all_edits(some)
    edits = edits[np.lexsort((np.random.default_rng(0).random(len(edits)), edits.board))]
    legal = moves.is_legal(edits_of.apply(some, edits))
    wanted = np.array([0, 1, 5, 40, 300, 10**6])
    rows = edits_of.first_legal(some, edits, wanted)
    slow = [
        row
        for b in range(6)
        for row in ((edits.board == b) & legal).nonzero()[0][: wanted[b]].tolist()
    ]
    assert rows.tolist() == slow


def test_the_authors_run_at_several_weights_and_its_beginning_need_no_run_of_their_own(
    stem: Reader, played: Boards
) -> None:
    checker = initialise(networks.Checker(4), torch.Generator().manual_seed(2)).eval()
    some, weights = played[:2], (0.0, 1.0, 10.0)
    every = some[np.tile([0, 1], 3)]
    whole = relaxed.relaxed_bop(
        stem, checker, every, steps=40, legality=torch.tensor(weights).repeat_interleave(2)
    )
    for k, weight in enumerate(weights):
        alone = relaxed.relaxed_bop(stem, checker, some, steps=40, legality=weight)
        part = relaxed.part_of(whole, 2 * k, 2 * k + 2)
        assert part.boards.identities() == alone.boards.identities()
        assert torch.equal(part.bits_on, alone.bits_on)
        short = relaxed.relaxed_bop(stem, checker, some[[0]], steps=7, legality=weight)
        start = relaxed.after_fewer_steps(stem, checker, some, alone, 1, 7)
        assert start.boards.identities() == short.boards.identities()
        assert torch.equal(start.bits_on, short.bits_on)
        assert start.evaluations == 7
    with pytest.raises(ValueError, match="at least 1 boards and 41 steps, got 40 steps on 2"):
        relaxed.after_fewer_steps(stem, checker, some, alone, 1, 41)
