"""Acceptance of the search over legal edits (specification of document 5, section 5.5).

On an untrained tower, whose random filters keep the board readable: the probes are fitted here,
nothing is trained. Notebook 53 measures the same with trained networks.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lib.backprop.chess import concepts, detection, moves, networks, positions, search
from lib.backprop.chess.boards import concatenate
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
