"""The chess experiments on tiny networks: every number of notebook 53 has the right meaning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lib import claims
from lib.backprop.chess import (
    depth,
    layer_maps,
    moves,
    outcomes,
    pictures,
    planes,
    quality,
    studies,
    verdicts,
)
from lib.backprop.chess.detection import Guard, detect
from lib.backprop.chess.reading import Reader
from tests.planted_boards import board, reader_of

SIZES = {
    "n_positions": 3000,
    "n_train": 300,
    "width": 4,
    "epochs": 1,
    "n_checker": 100,
    "checkpoints": (1,),
}


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> studies.Bed:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIR", str(folder))
        return studies.prepare("own", Path("nowhere"), seed=0, **SIZES)


@pytest.fixture(scope="module")
def reader(bed: studies.Bed) -> Reader:
    return studies.reader(bed, 400, Guard(("stem",), n_edited=200), seed=0)


def queen_on_c3() -> Reader:
    weight = torch.zeros(12, 6, 6)
    weight[4, 2, 2] = 8.0
    return reader_of(weight)


def test_games_of_held_out_positions_are_others(bed: studies.Bed) -> None:
    assert not set(bed.positions.game.tolist()) & set(bed.held.game.tolist())
    assert len(bed.positions) + len(bed.held) == SIZES["n_positions"]
    assert list(bed.checkpoints) == ["random", "epoch 1"]
    assert bed.untrained is not bed.network


def test_boards_to_explain_lack_the_concept_and_are_read_low(
    bed: studies.Bed, reader: Reader
) -> None:
    chosen = studies.to_explain(bed, reader, 5)
    assert len(chosen) == 5
    assert not studies.CONCEPTS[studies.CONCEPT](chosen).any()
    assert (torch.sigmoid(reader.logits(chosen)) < 0.27).all()
    with pytest.raises(ValueError, match="play more"):
        studies.to_explain(bed, reader, 5000)


def test_squares_that_are_not_needed_are_counted() -> None:
    before = board("8/8/k7/8/8/8/8/5K2 w")
    probe = queen_on_c3()
    exact = outcomes.outcome("a", probe, before, board("8/8/k7/8/8/2Q5/8/5K2 w"), 0.9, **EMPTY)
    wasteful = outcomes.outcome(
        "b", probe, before, board("8/8/k7/5n2/8/2Q5/4p3/5K2 w"), 0.9, **EMPTY
    )
    assert outcomes.irrelevant_squares(probe, exact) == 0
    assert outcomes.irrelevant_squares(probe, wasteful) == pytest.approx(2 / 3)
    assert exact.reached.tolist() == [True]
    missed = outcomes.outcome("c", probe, before, before, 0.9, **EMPTY)
    assert np.isnan(outcomes.irrelevant_squares(probe, missed))


EMPTY = {"edits": None, "evaluations": 0.0, "seconds": 0.0}


def test_truth_is_asked_of_legal_boards_only() -> None:
    before, probe = board("8/8/k7/8/8/8/8/5K2 w"), queen_on_c3()
    threatened = board("8/8/k7/8/1p6/2Q5/8/5K2 w")
    found = outcomes.outcome("a", probe, before, threatened, 0.9, **EMPTY)
    assert found.truth.tolist() == [True]
    no_king = board("8/8/8/8/1p6/2Q5/8/5K2 w")
    found = outcomes.outcome("a", probe, before, no_king, 0.9, **EMPTY)
    assert found.truth.tolist() == [False]
    assert found.legal.tolist() == [False]


def test_the_whole_experiment_gives_every_claim_its_number(
    bed: studies.Bed, reader: Reader
) -> None:
    names = ("threat_opp_queen", "threat_my_queen", "random")
    maps = layer_maps.detection_maps(bed, names, 200, seed=0)
    assert maps["threat_opp_queen"].score.shape == (2, 8)
    assert maps["random"].score.shape == (1, 8)
    data = bed.sample(studies.CONCEPT, 300, seed=0)
    _, report = detect(bed.network, bed.untrained, "stem", data, seed=0, penalties=(100.0,))
    few = studies.to_explain(bed, reader, 4)
    found = studies.compare(bed, reader, few, bop_steps=12, ste_steps=4, tau=0.6)
    by_name = {o.method: o for o in found}
    assert set(by_name) >= {"relaxed, bop", "relaxed, ste", "beam", "greedy", "random edits"}
    for name, o in by_name.items():
        assert "relaxed" in name or moves.is_legal(o.after).all()
        assert o.legal.tolist() == moves.is_legal(o.after).tolist(), name  # never P alone
        assert o.truth.shape == o.logit.shape == (4,), name
        assert not (o.truth & ~o.legal).any(), name
    swept = studies.sweep(bed, reader, few[:2], (0.0, 1.0), 8)
    checked = studies.checker_faults(bed, 30, seed=0)
    assert [x["boards"] for x in checked[:2]] == ["legal", "illegal"]
    beam = by_name["beam"]
    kinds = {"bop": by_name["relaxed, bop"], "beam": beam, "all": beam, "sure": beam}
    values = verdicts.measured(reader, maps, report, kinds, (0.0, 1.0), swept, checked)
    modes = quality.modes(bed, reader, beam, names=quality.MODES, n=3)
    counted = quality.certified(reader, beam, n=2, budget=900, further=0)
    values |= quality.measured(bed, modes, beam, counted, [])
    mine = {k for k, claim in claims.ledger().items() if claim.notebook == "53_chess"}
    assert set(values) == mine
    assert values["P5-44"] == 0.0
    assert list(modes) == ["beam", *quality.MODES]
    assert all(moves.is_legal(o.after).all() and len(o.after) == 3 for o in modes.values())
    assert len(quality.mode_rows(bed, modes)) == 4
    assert sum(row["positions"] for row in quality.certificate_rows(beam, counted)) == 2
    rows = pictures.comparison_rows(reader, found)
    assert len(rows) == len(found)
    assert len(pictures.reader_rows({("guarded", 0.6): beam}, {"guarded": reader})) == 1
    assert len(pictures.probe_rows({"stem": report})) == 1
    assert len(pictures.detection_rows(maps)) == 3


def test_what_is_known_is_not_found_again(bed: studies.Bed, reader: Reader) -> None:
    few = studies.to_explain(bed, reader, 3)
    alone = {"bop_steps": 6, "ste_steps": 0, "tau": 0.6, "variants": ("beam",)}
    bop, beam, _ = studies.compare(bed, reader, few, **alone)
    kept = studies.compare(bed, reader, few[:2], **alone, known=[beam])[1]
    assert kept.answers == beam.answers[:2]
    assert kept.after.identities() == beam.after[:2].identities()
    assert len(kept.logit) == len(kept.legal) == len(kept.truth) == len(kept.edits) == 2
    start = outcomes.first(bop, 2)
    assert start.after.identities() == bop.after[:2].identities()
    assert start.relaxed is not None
    assert start.relaxed.bits_on.shape == (6, 2)
    plain, shared = (
        studies.sweep(bed, reader, few[:2], (0.0, 1.0), 4, known) for known in (None, bop)
    )
    for a, b in zip(plain, shared, strict=True):
        assert a.after.identities() == b.after.identities()
        assert a.evaluations == b.evaluations == 4
    for wrong in (
        lambda: studies.compare(bed, reader, few[1:], **alone, known=[beam]),
        lambda: studies.sweep(bed, reader, few[1:], (1.0,), 4, bop),
    ):
        with pytest.raises(ValueError, match="began with other boards"):
            wrong()


def test_modes_that_there_are_not_are_refused(bed: studies.Bed, reader: Reader) -> None:
    beam = studies.searched(reader, studies.to_explain(bed, reader, 1), "greedy", [0.6])[0.6]
    with pytest.raises(ValueError, match=r"modes are with recolouring, .*; got wild"):
        quality.modes(bed, reader, beam, names=("wild",), n=1)


def test_the_trace_is_that_of_a_relaxed_run(bed: studies.Bed, reader: Reader) -> None:
    import matplotlib.pyplot as plt

    few = studies.to_explain(bed, reader, 2)
    made = studies.relaxed(bed, reader, few, 0.9, kind="bop", steps=6, legality=1.0)
    assert made.relaxed is not None
    assert made.relaxed.bits_on.shape == (6, 2)
    figure = pictures.trace(made, 0)
    assert figure.axes[0].lines[0].get_ydata()[1] == 468
    plt.close(figure)
    with pytest.raises(ValueError, match="keeps no trace"):
        pictures.trace(replace(made, relaxed=None), 0)


def test_a_flat_sweep_correlates_with_nothing() -> None:
    probe, before = queen_on_c3(), board("8/8/k7/8/8/8/8/5K2 w")
    same = [outcomes.outcome("a", probe, before, before, 0.9, **EMPTY) for _ in range(3)]
    assert verdicts.rise_with_weight((0, 1, 2), same) == (0, 0)
    broken = outcomes.outcome("a", probe, before, board("8/8/8/8/8/8/8/5K2 w"), 0.9, **EMPTY)
    assert verdicts.rise_with_weight((0, 1, 2), [broken, broken, same[0]])[0] > 0.5


def test_differences_have_their_errors() -> None:
    a, b = np.array([True] * 9 + [False]), np.array([True] * 4 + [False] * 6)
    assert verdicts.difference(a, b)[0] == pytest.approx(0.5)
    assert verdicts.difference(a, a) == (0.0, 0.0)


def test_published_positions_are_named_with_their_faults() -> None:
    assert pictures.n_legal_published() == 0
    assert [pictures.faults(b) for b in pictures.published().values()] == [
        [], ["other side in check"], [], ["other side in check"],
    ]  # fmt: skip


def test_changed_squares_are_tinted() -> None:
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots()
    before, after = board("8/8/k7/8/8/8/8/5K2 w"), board("8/8/k7/8/8/2Q5/8/5K2 w")
    pictures.draw_board(axis, after, "title", before=before)
    tinted = [p for p in axis.patches if p.get_facecolor()[:3] == plt.matplotlib.colors.to_rgb(
        pictures.TINT)]  # fmt: skip
    assert [p.get_xy() for p in tinted] == [(1.5, 1.5)]
    assert len(axis.texts) == int(planes.mover_planes(after).sum())
    plt.close(figure)


def test_unknown_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="own or official"):
        studies.prepare("theirs", Path("nowhere"), seed=0, **SIZES)


def test_the_median_of_equal_edits_has_no_spread_and_of_two_kinds_has_one() -> None:
    assert verdicts.middle(torch.full((9,), 2)) == (2.0, 0.0)
    value, half = verdicts.middle(torch.tensor([1, 3] * 20))
    assert value in (1.0, 3.0)
    assert half == 1.0


def test_towers_of_each_depth_are_trained_read_and_searched(bed: studies.Bed) -> None:
    found = depth.study(
        bed, blocks=(1, 2), width=4, n_train=200, epochs=1, n_probe=400, n_edited=100,
        n_boards=3, seed=0,
    )  # fmt: skip
    assert [d.n_blocks for d in found] == [1, 2]
    # a block is two convolutions of 3x3 from four filters to four
    assert found[1].n_weights - found[0].n_weights == 2 * (4 * 4 * 9 + 4)
    assert all(d.made.legal.all() and len(d.made.answers) == 3 for d in found)
    gap = found[1].made.truth.mean() - found[0].made.truth.mean()
    scales = depth.scales(found)
    assert scales is not None
    assert scales[0] == pytest.approx(gap)
    assert depth.scales(found[:1]) is None


def test_a_tower_fails_by_its_probe_its_search_or_what_the_probe_means(bed: studies.Bed) -> None:
    made = depth.study(
        bed, blocks=(1,), width=4, n_train=200, epochs=1, n_probe=400, n_edited=100, n_boards=3,
        seed=0,
    )[0].made  # fmt: skip
    none, all_of_them = np.zeros(3, bool), np.ones(3, bool)
    high, low = torch.full((3,), 9.0), torch.full((3,), -9.0)

    def fails(score: float, logit: torch.Tensor, truth: np.ndarray) -> str:
        return depth.Depth(1, 1, score, replace(made, logit=logit, truth=truth)).failure

    assert fails(0.1, low, all_of_them) == ""
    assert fails(0.4, high, none) == "weak probe"
    assert fails(0.6, low, none) == "not reached"
    assert fails(0.6, high, none) == "probe is not the concept"
