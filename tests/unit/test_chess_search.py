"""Edits, beam search, relaxed optimisers and guarded probes on 6x6 boards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lib.backprop.chess import (
    boards,
    concepts,
    detection,
    moves,
    networks,
    planes,
    positions,
    reading,
    relaxed,
    search,
)
from lib.backprop.chess import edits as edits_of
from lib.backprop.chess.reading import Reader
from lib.models import initialise
from lib.probes import Probe
from tests.planted_boards import BARE, Planes, board, mover_only, planted


class Further(Planes):
    """The same with a second named layer, and one behind it that must not be reached."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Identity()
        self.n_passed = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.twice(2 * self.same(x))
        self.n_passed += 1
        return y


@pytest.fixture(scope="module")
def played() -> positions.Positions:
    return positions.play_games(4000, seed=11)


@pytest.fixture(scope="module")
def network() -> networks.Tower:
    tower = networks.Tower(8, 1, policy=False)
    return initialise(tower, torch.Generator().manual_seed(0)).eval()


def test_edits_are_counted_exactly() -> None:
    edits = edits_of.all_edits(board("8/8/k7/8/2n5/8/8/5K2 w"))
    free = 33
    counts = [(edits.source < 0).sum(), (edits.target < 0).sum()]
    assert counts == [8 * free, 1]  # P N R Q of either side; the knight
    assert len(edits) == 8 * free + 1 + 3 * free
    kings = edits.piece % 6 == 5
    assert (edits.source[kings] >= 0).all()
    assert (edits.target[kings] >= 0).all()


def test_an_edit_changes_what_it_says_and_can_be_taken_back(played: positions.Positions) -> None:
    one = played.boards[[5]]
    edits = edits_of.all_edits(one)
    after = edits_of.apply(one, edits)
    cells = edits_of.changed_cells(one[np.zeros(len(after), int)], after)
    moved = (edits.source >= 0) & (edits.target >= 0)
    assert (cells == 1 + moved).all()
    assert len(set(after.identities())) == len(edits)
    back = edits_of.Edits(np.arange(len(edits)), edits.piece, edits.target, edits.source)
    assert set(edits_of.apply(after, back).identities()) == set(one.identities())


def test_the_gradient_is_the_probes_weight_on_planes() -> None:
    reader = planted((4, "c3", 2.5), (9, "a1", -1.0))
    slope = reader.gradient(board(BARE))[0]
    assert slope[4, 2, 2] == 2.5
    assert slope[9, 0, 0] == -1.0
    assert slope.abs().sum() == 3.5


def test_beam_finds_the_planted_edit_and_no_other() -> None:
    reader = planted((4, "c3", 8.0), (0, "b2", 1.0))
    found = search.maximise_board(reader, board(BARE), 0.9)
    assert found.reached
    assert found.words() == ["+Qc3"]
    assert found.after == pytest.approx(4.0)
    assert found.before == pytest.approx(-4.0)
    assert found.irrelevant == 0


def test_beam_finds_two_edits_where_one_is_not_enough() -> None:
    reader = planted((4, "c3", 3.5), (7, "b5", 3.5), (0, "d3", 0.1))
    found = search.maximise_board(reader, board(BARE), 0.9)
    assert sorted(found.words()) == ["+Qc3", "+nb5"]


def test_beam_never_leaves_the_legal_positions(played: positions.Positions) -> None:
    generator = torch.Generator().manual_seed(0)
    probe = Probe(torch.randn(432, generator=generator) * 2, torch.tensor(-12.0), 0,
                  torch.tensor(True))  # fmt: skip
    reader = Reader(Planes().eval(), ["same"], [probe], mover_only)
    for name, beam in search.VARIANTS.items():
        found = search.maximise_boards(reader, played.boards[:4], 0.99, beam)
        after = boards.concatenate([a.board for a in found])
        assert moves.is_legal(after).all(), name
        assert all(a.irrelevant == 0 for a in found), name


def test_exhaustive_search_certifies_one_edit_answers(played: positions.Positions) -> None:
    reader = planted((4, "c3", 5.5), (4, "d4", 6.0), (10, "e5", 7.0))
    certified = 0
    for k in range(8):
        beam, every = (
            search.maximise_board(reader, played.boards[[k]], 0.6, search.VARIANTS[name])
            for name in ("beam", "one edit, all read")
        )
        assert every.reached == (beam.reached and len(beam.edits) == 1)
        certified += every.reached
    assert certified >= 4


def test_illegal_wishes_are_not_granted() -> None:
    # a rook on a1 would attack the other side's king while it is not to move
    reader = planted((3, "a1", 8.0), (4, "c3", 3.0), (1, "f4", 3.0))
    found = search.maximise_board(reader, board(BARE), 0.8)
    assert found.words() != ["+Ra1"]
    assert found.reached
    assert moves.is_legal(found.board)[0]


def test_an_unreachable_goal_is_said_to_be() -> None:
    found = search.maximise_board(planted(bias=-4.0), board(BARE), 0.9)
    assert not found.reached
    assert found.edits == ()


def test_a_board_that_shows_the_concept_is_left_alone() -> None:
    found = search.maximise_board(planted(bias=4.0), board(BARE), 0.9)
    assert found.reached
    assert found.evaluations == 1
    assert found.edits == ()


def test_a_pass_ends_at_the_last_layer_that_is_read_and_says_the_same():
    here, deeper = planted((0, "a2", 1.0), (5, "f1", 2.0)).probes[0], planted((1, "b1", 1.0))
    network, some = Further().eval(), board(BARE)
    both = Reader(network, ["same", "twice"], [here, deeper.probes[0]], mover_only)
    alone = [
        Reader(Further().eval(), [layer], [probe], mover_only).logits(some)
        for layer, probe in zip(both.layers, both.probes, strict=True)
    ]
    assert torch.equal(both.logits(some), torch.minimum(*alone))
    assert network.n_passed == 0
    slope = Reader(network, ["twice"], [here], mover_only).gradient(some)
    assert torch.equal(slope.flatten(), 2 * here.weight)  # and a gradient still comes through
    network(torch.zeros(1, 12, 6, 6))
    assert network.n_passed == 1  # no hook stays


def test_bad_input_gets_its_sentence(network: networks.Tower) -> None:
    reader, illegal = planted(), board("8/8/k7/8/8/8/8/R4K2 w")
    with pytest.raises(ValueError, match="board to start from is illegal"):
        search.maximise_board(reader, illegal, 0.9)
    with pytest.raises(ValueError, match=r"tau in \(0, 1\)"):
        search.maximise_board(reader, board(BARE), 1.0)
    with pytest.raises(ValueError, match="sizes >= 1"):
        search.Beam(width=0)
    with pytest.raises(ValueError, match="gradient or random"):
        search.Beam(order="best")
    with pytest.raises(ValueError, match="another layer or network"):
        Reader(network, ["stem"], [reader.probes[0]]).logits(board(BARE))
    with pytest.raises(ValueError, match="one layer a probe"):
        Reader(network, ["stem"], [])
    with pytest.raises(ValueError, match="no layer"):
        Reader(network, ["steam"], [reader.probes[0]]).logits(board(BARE))


def test_several_probes_are_read_as_the_least_convinced() -> None:
    a, b = planted((4, "c3", 8.0)), planted((4, "d3", 6.0))
    both = Reader(a.network, ["same", "same"], [a.probes[0], b.probes[0]], mover_only)
    few = boards.concatenate([board("8/8/k7/8/8/2Q5/8/5K2 w"), board(BARE)])
    assert both.logits(few).tolist() == [-4.0, -4.0]


def test_random_edits_stay_legal(played: positions.Positions) -> None:
    after = edits_of.random_edits(played.boards[:50], 2, seed=0)
    assert moves.is_legal(after).all()
    cells = edits_of.changed_cells(played.boards[:50], after)
    assert (cells <= 4).all()
    assert (cells > 0).mean() > 0.9


def test_bop_turns_all_on_and_then_only_off() -> None:
    bop = relaxed.Bop((2, 5))
    assert bop.on.sum() == 0
    bop.step(torch.tensor([[2.0, 0.0, -1.0, 0.5, 0.0]] * 2))
    assert bop.on.sum() == 10
    bop.step(torch.zeros(2, 5))
    assert bop.on[:, 0].sum() == 0  # the first gradient alone exceeded 1
    history = []
    for _ in range(350):
        bop.step(torch.full((2, 5), 0.005))
        history.append(bop.on.sum().item())
    assert history == sorted(history, reverse=True)
    assert history[-1] == 2
    assert bop.on[0, 2] == 1  # helpful at first: it has 2 / 0.005 steps


def test_an_isolated_bit_drops_after_two_hundred_steps() -> None:
    bop = relaxed.Bop((1,))
    steps = 0
    bop.step(torch.full((1,), 0.005))
    while bop.on[0]:
        steps += 1
        bop.step(torch.full((1,), 0.005))
    assert steps in (200, 201)


def test_composition_follows_the_operator() -> None:
    x = planes.mover_planes(board("8/8/k7/8/2n5/8/8/5K2 w"))
    delete, add = torch.zeros(1, 6, 6), torch.zeros(1, 12, 6, 6)
    assert torch.equal(relaxed.compose(x, delete, add), x)
    delete[0, 3, 2] = 1  # c4
    add[0, 4, 2, 2] = 1  # own queen on c3
    add[0, 4, 0, 5] = 1  # on the king's square: has no effect
    add[0, 0, 0, 0] = 1  # a pawn on the first rank: not allowed
    add[0, 3, 4, 4] = add[0, 1, 4, 4] = 1  # two pieces on e5: emptied
    y = relaxed.compose(x, delete, add)
    after = boards.to_chess(planes.from_planes(y, torch.tensor([True])))[0]
    assert after.fen().split()[0] == "8/8/k7/8/8/2Q5/8/5K2"


def test_all_bits_on_empty_the_board() -> None:
    x = planes.mover_planes(board(BARE))
    assert relaxed.compose(x, torch.ones(1, 6, 6), torch.ones(1, 12, 6, 6)).sum() == 0


def test_relaxed_runs_report_what_they_return(
    played: positions.Positions, network: networks.Tower
) -> None:
    probe = Probe(torch.randn(288, generator=torch.Generator().manual_seed(1)),
                  torch.tensor(-2.0), 0, torch.tensor(True))  # fmt: skip
    reader = Reader(network, ["stem"], [probe])
    checker = initialise(networks.Checker(4), torch.Generator().manual_seed(2)).eval()
    few = played.boards[:3]
    before = {n: v.clone() for n, v in network.state_dict().items()}
    for run, steps in ((relaxed.relaxed_bop, 30), (relaxed.relaxed_ste, 10)):
        found = run(reader, checker, few, steps=steps)
        assert len(found.boards) == 3
        assert torch.equal(found.after, reader.logits(found.boards))
        assert found.bits_on.shape == (steps, 3)
        alone = run(reader, checker, few[[1]], steps=steps)
        assert alone.boards.identities() == found.boards[[1]].identities()
    bits = relaxed.relaxed_bop(reader, checker, few, steps=30).bits_on
    assert (bits[1] == 468).all()
    assert (bits[1:].diff(dim=0) <= 0).all()
    assert all(torch.equal(before[n], v) for n, v in network.state_dict().items())


def test_a_guarded_probe_raises_fewer_false_alarms(
    played: positions.Positions, network: networks.Tower
) -> None:
    data = detection.sample(played, concepts.threat_my_queen, 600, seed=0)
    rates = []
    for guard in (detection.Guard(("stem",)), detection.Guard(("stem",), n_edited=1200)):
        reader = detection.fit_reader(
            network, data, played.boards[:3000], concepts.threat_my_queen, guard, seed=0
        )
        rates.append(
            detection.false_alarms(reader, played.boards[-800:], concepts.threat_my_queen, 0.7)
        )
    assert rates[1] < rates[0]


def test_mining_adds_what_the_search_got_wrong(
    played: positions.Positions, network: networks.Tower
) -> None:
    data = detection.sample(played, concepts.threat_my_queen, 300, seed=0)
    guard = detection.Guard(("stem",), n_mined=4, rounds=1)
    reader = detection.fit_reader(
        network, data, played.boards[:3000], concepts.threat_my_queen, guard, seed=0
    )
    plain = detection.fit_reader(
        network,
        data,
        played.boards[:3000],
        concepts.threat_my_queen,
        detection.Guard(("stem",)),
        seed=0,
    )
    assert not torch.equal(reader.probes[0].weight, plain.probes[0].weight)


def test_detection_with_controls(played: positions.Positions, network: networks.Tower) -> None:
    data = detection.sample(played, concepts.threat_my_queen, 500, seed=0)
    other = initialise(networks.Tower(8, 1, policy=False), torch.Generator().manual_seed(3)).eval()
    _, report = detection.detect(network, other, "stem", data, seed=0, penalties=(100.0,))
    assert set(report.controls) >= {
        "random_network", "raw_input", "trivial", "shuffled", "control_task", "selectivity",
    }  # fmt: skip
    assert abs(report.controls["trivial"]) < 0.25  # matched: the queen says nothing
    z = reading.features(network, data.boards, "stem")
    score, half = detection.quick_score(z, data, seed=0)
    assert -1 <= score <= 1
    assert 0 < half < 0.5


def test_a_coin_is_not_detected(played: positions.Positions, network: networks.Tower) -> None:
    data = detection.sample(played, concepts.coin, 2000, seed=0, matched=False)
    z = reading.features(network, data.boards, "stem")
    score, half = detection.quick_score(z, data, seed=0)
    assert abs(score) < 2.5 * half


def test_features_are_square_by_square(
    played: positions.Positions, network: networks.Tower
) -> None:
    z = reading.features(network, played.boards[:3], "blocks.block1.first")
    assert z.shape == (3, 8 * 36)
