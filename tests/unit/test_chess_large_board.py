"""The 8x8 board: the same experiments on Maia's architecture, with and without its weights."""

from __future__ import annotations

from pathlib import Path

import chess
import numpy as np
import pytest
import torch
from torch import nn

from lib import config, shares
from lib.backprop.chess import concepts, large_board, layer_maps, moves, pictures, search, studies
from lib.backprop.chess.boards import concatenate, from_chess, to_chess
from lib.backprop.chess.detection import Guard
from lib.backprop.chess.outcomes import outcome
from lib.backprop.chess.reading import Reader, features_by_layer
from lib.data import chess as stored
from lib.data.base import MissingData
from lib.probes import Probe

LAYERS = ("stem", "blocks.block6.first")
needs_data = pytest.mark.skipif(
    not (config.data_root() / stored.FOLDER / "maia-1500.npz").is_file(),
    reason="no Maia below DATA_ROOT",
)


@pytest.fixture(scope="module")
def bed() -> studies.Bed:
    return large_board.prepare_large(
        Path("nowhere"), seed=0, n_games=40, ratings=(), layers=LAYERS, width=4
    )


def test_without_weights_the_bed_needs_no_file_and_says_what_it_is(bed: studies.Bed) -> None:
    assert list(bed.checkpoints) == ["random"]
    assert bed.source.endswith("40 games with moves by lot")
    assert bed.checker is None


def test_with_weights_it_asks_for_them(tmp_path: Path) -> None:
    with pytest.raises(MissingData, match="chess data not found under DATA_ROOT"):
        large_board.prepare_large(
            tmp_path, seed=0, n_games=1, ratings=(1500,), layers=LAYERS, width=4
        )


def test_games_are_legal_different_repeatable_and_kept_apart(bed: studies.Bed) -> None:
    every = [*bed.positions.boards.identities(), *bed.held.boards.identities()]
    assert len(set(every)) == len(every)
    assert moves.is_legal(bed.positions.boards).all()
    assert not set(bed.positions.game.tolist()) & set(bed.held.game.tolist())
    again = large_board.random_games(3, seed=1)
    assert [b.fen() for b in again[0]] == [b.fen() for b in large_board.random_games(3, seed=1)[0]]
    assert set(again[1]) == {0, 1, 2}
    with pytest.raises(ValueError, match="at least one game"):
        large_board.random_games(0, seed=0)


def test_concepts_of_the_large_board_are_those_of_python_chess(bed: studies.Bed) -> None:
    some = bed.positions.boards[:400]
    mine, theirs = concepts.threat_my_queen(some), concepts.threat_opp_queen(some)
    check = concepts.in_check(some)
    for k, b in enumerate(to_chess(some)):
        for colour, found in ((b.turn, mine), (not b.turn, theirs)):
            hit = [b.is_attacked_by(not colour, s) for s in b.pieces(chess.QUEEN, colour)]
            assert found[k] == any(hit)
        assert check[k] == b.is_check()
    assert 0 < mine.sum() < 400
    assert 0 < check.sum() < 400


def test_the_search_uses_all_eight_ranks_and_stays_legal() -> None:
    weight = torch.zeros(12, 8, 8)
    weight[4, 7, 6] = 8.0  # the mover's queen on g8
    probe = Probe(weight.flatten(), torch.tensor(-4.0), 0, torch.tensor(True))
    net = nn.Sequential(nn.Identity()).eval()
    reader = Reader(net, ["0"], [probe], lambda planes, white: planes)
    start = from_chess([chess.Board("8/7p/8/8/8/k7/8/5K2 w - - 0 1")], 8)
    found = search.maximise_board(reader, start, 0.9)
    assert found.reached
    assert found.words() == ["+Qg8"]
    assert moves.is_legal(found.board)[0]


def test_layers_and_answers_of_the_large_board(bed: studies.Bed) -> None:
    found = layer_maps.detection_maps(bed, ("threat_opp_queen", "random"), 200, seed=0)
    assert found["threat_opp_queen"].layers == LAYERS
    assert found["threat_opp_queen"].score.shape == (1, 2)
    readers = {"raw": studies.reader(bed, 300, Guard(("stem",)), seed=0)}
    made = studies.answers(bed, readers, 2, {0.6: tuple(readers)})
    assert list(made) == [("raw", 0.6)]
    assert moves.is_legal(made["raw", 0.6].after).all()
    assert made["raw", 0.6].before.side == 8


@needs_data
def test_real_games_and_maia_make_a_bed() -> None:
    bed = large_board.prepare_large(
        config.data_root(), seed=0, n_games=6, ratings=(1500,), layers=LAYERS, width=64
    )
    assert list(bed.checkpoints) == ["random", "rating 1500"]
    assert moves.is_legal(bed.positions.boards).all()
    assert "Carlsen and Anand" in bed.source
    some = bed.sample("random", 40, seed=0, matched=False).boards
    found = features_by_layer(bed.network, some, LAYERS, bed.encode)
    assert all(z.shape == (40, 64 * 64) and z.isfinite().all() for z in found.values())


def test_a_board_that_the_rules_deny_exploits_its_probe() -> None:
    weight = torch.zeros(12, 6, 6)
    weight[4, 2, 2] = 8.0
    probe = Probe(weight.flatten(), torch.tensor(-4.0), 0, torch.tensor(True))
    net = nn.Sequential(nn.Identity()).eval()
    reader = Reader(net, ["0"], [probe], lambda planes, white: planes)
    fens = ("8/8/k7/8/8/8/8/5K2", "8/8/k7/8/8/2Q5/8/5K2", "8/8/k7/8/1p6/2Q5/8/5K2")
    bare, free, threatened = (from_chess([chess.Board(f"{f} w - - 0 1")], 6) for f in fens)
    rest = {"edits": torch.ones(3), "evaluations": 0.0, "seconds": 0.0}
    after = concatenate([bare, free, threatened])
    made = outcome("beam", reader, bare[[0, 0, 0]], after, 0.9, **rest)
    (row,) = pictures.reader_rows({("raw", 0.9): made}, {"raw": reader})
    assert row["exploits the probe"] == shares.share(np.array([True, False]))  # of two reached
    none = outcome("beam", reader, bare[[0, 0, 0]], bare[[0, 0, 0]], 0.9, **rest)
    (row,) = pictures.reader_rows({("raw", 0.9): none}, {"raw": reader})
    assert row["exploits the probe"] == ""
