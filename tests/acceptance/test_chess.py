"""Acceptance of the search over legal edits (specification of document 5, 5.5 and 9.2).

On an untrained tower, whose random filters keep the board readable: the probes are fitted here,
nothing is trained. Notebook 53 measures the same with trained networks.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lib import probes
from lib.backprop import weights_hash
from lib.backprop.chess import concepts, detection, moves, networks, positions, reading, search
from lib.backprop.chess import edits as edits_of
from lib.backprop.chess.boards import concatenate
from lib.backprop.chess.relaxed import relaxed_bop
from lib.models import initialise

CONCEPT, TAU, N = concepts.threat_my_queen, 0.9, 12


@pytest.fixture(scope="module")
def setting():
    played = positions.play_games(9000, seed=4)
    last = int(played.game.unique()[-100])
    fit, held = (played[np.nonzero(x)[0]] for x in (played.game.numpy() < last,
                                                    played.game.numpy() >= last))  # fmt: skip
    tower = initialise(networks.Tower(16, 2, policy=False), torch.Generator().manual_seed(0)).eval()
    data = detection.sample(fit, CONCEPT, 1400, seed=0)
    guard = detection.Guard(("stem",), n_edited=1400)
    reader = detection.fit_reader(tower, data, fit.boards, CONCEPT, guard, seed=0)
    rows = detection.candidates(reader, held.boards, CONCEPT)[:N]
    return reader, held.boards[rows]


def test_beam_is_legal_reaches_the_probe_and_prunes(setting) -> None:
    reader, boards = setting
    found = search.maximise_boards(reader, boards, TAU)
    after = concatenate([a.board for a in found])
    assert len(found) == N
    assert moves.is_legal(after).all()
    assert np.mean([a.reached for a in found]) >= 0.95
    assert all(a.irrelevant == 0 for a in found if a.reached)
    assert np.median([len(a.edits) for a in found]) <= 3
    one = [a for a in found if len(a.edits) == 1 and a.reached]
    every = search.VARIANTS["one edit, all read"]
    short = [search.maximise_boards(reader, boards[[k]], TAU, every)[0].reached for k in range(N)]
    assert sum(short) - len(one) <= 0.05 * N  # what one edit can do, the beam finds


def test_gradient_order_reads_fewer_boards_than_all(setting) -> None:
    reader, boards = setting
    guided = search.maximise_board(reader, boards[[0]], TAU, search.VARIANTS["greedy"])
    every = search.maximise_board(reader, boards[[0]], TAU, search.VARIANTS["one edit, all read"])
    assert guided.evaluations < 0.2 * every.evaluations


def test_search_answers_where_the_authors_procedure_does_not_and_with_half_the_squares(
    setting,
) -> None:
    reader, boards = setting
    few = boards[:6]
    games = positions.play_games(1000, seed=6)
    recipe = replace(networks.RECIPE, epochs=2)
    checker = networks.train_checker(games.boards, 8, recipe, seed=0).eval()
    steps = relaxed_bop(reader, checker, few, steps=300)  # notebook 53: 1,000
    found = search.maximise_boards(reader, few, TAU)
    after = concatenate([a.board for a in found])
    goal = np.log(TAU / (1 - TAU))
    joint = [
        np.mean(moves.is_legal(b) & (reader.logits(b).numpy() >= goal))
        for b in (after, steps.boards)
    ]
    assert joint[0] >= joint[1] + 0.5
    squares = edits_of.changed_cells(few, steps.boards)
    assert np.mean([len(a.edits) for a in found]) <= 0.5 * squares.mean()


def test_no_search_changes_the_network_or_its_probes(setting) -> None:
    reader, boards = setting
    network, probe = weights_hash(reader.network), reader.probes[0].weight.clone()
    search.maximise_board(reader, boards[[0]], TAU)
    assert weights_hash(reader.network) == network
    assert torch.equal(reader.probes[0].weight, probe)


def test_shuffled_labels_are_not_read_from_a_layer(setting) -> None:
    """|S| <= .05 (specification 9.2): nine shuffles of about 800 held-out rows give .012."""
    reader, _ = setting
    played = positions.play_games(9000, seed=5)
    data = detection.sample(played, concepts.material_advantage, 4000, seed=0, matched=False)
    z = reading.features(reader.network, data.boards, "stem")
    _, report = probes.validate_penalty(
        z, torch.from_numpy(data.label).long(), generator=torch.Generator().manual_seed(0),
        groups=data.game, penalties=(100.0,), n_shuffles=9, fit=probes.fit_wide,
    )  # fmt: skip
    assert abs(report.controls["shuffled"]) <= 0.05
    assert report.ci[0] > 0.05  # the labels themselves are read
