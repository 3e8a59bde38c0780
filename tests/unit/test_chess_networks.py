"""Chess networks: shapes, layouts, training; the authors' own where their arrays are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import chess
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lib import config
from lib.backprop.chess import boards, maia, moves, networks, planes, positions, rules6
from lib.data import chess as stored
from lib.data.base import DamagedData, MissingData
from lib.training.loop import Recipe

REAL = config.data_root() / stored.FOLDER
needs_data = pytest.mark.skipif(
    not (REAL / stored.NETWORK).is_file(), reason="no chess networks below DATA_ROOT"
)
SHORT = Recipe(epochs=2, batch_size=64, lr=1e-3, optimizer="adam", schedule="constant", loss="mse")


@pytest.fixture(scope="module")
def played() -> positions.Positions:
    return positions.play_games(600, seed=7)


def keras_like(seed: int = 0) -> dict[str, torch.Tensor]:
    """Arrays of the authors' names and shapes, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"res_block_output_base": (3, 3, 19, 64), "conv2d": (3, 3, 64, 64)}
    shapes |= {f"conv2d_{k}": (3, 3, 64, 64) for k in range(1, 6)}
    shapes |= {"conv2d_6": (1, 1, 64, 64), "conv2d_7": (1, 1, 64, 63)}
    shapes |= {"value_conv": (1, 1, 64, 16), "dense": (576, 32), "value_output": (32, 1)}
    found = {}
    for name, shape in shapes.items():
        found[f"{name}.kernel"] = 0.1 * torch.randn(shape, generator=generator)
        found[f"{name}.bias"] = 0.1 * torch.randn(shape[-1], generator=generator)
    return found


def test_the_forward_pass_is_that_of_the_keras_arrays(played: positions.Positions) -> None:
    w = {name: x.double() for name, x in keras_like().items()}
    few = played[np.arange(5)]
    x = planes.published_planes(planes.mover_planes(few.boards), few.white).double()
    tower = networks.official_tower(keras_like()).double()
    out = tower(x)

    def conv(h: torch.Tensor, name: str) -> torch.Tensor:  # channels last, written out
        kernel = w[f"{name}.kernel"]
        edge = kernel.shape[0] // 2
        padded = F.pad(h, (0, 0, edge, edge, edge, edge))
        total = torch.zeros(*h.shape[:3], kernel.shape[3], dtype=h.dtype)
        for i in range(kernel.shape[0]):
            for j in range(kernel.shape[1]):
                total += padded[:, i : i + 6, j : j + 6] @ kernel[i, j]
        return total + w[f"{name}.bias"]

    h = conv(x.permute(0, 2, 3, 1), "res_block_output_base").relu()
    for a, b in (("conv2d", "conv2d_1"), ("conv2d_2", "conv2d_3"), ("conv2d_4", "conv2d_5")):
        h = (h + conv(conv(h, a).relu(), b).relu()).relu()
    policy = conv(conv(h, "conv2d_6").relu(), "conv2d_7").flatten(1)
    dense = (conv(h, "value_conv").relu().flatten(1) @ w["dense.kernel"] + w["dense.bias"]).relu()
    value = (dense @ w["value_output.kernel"] + w["value_output.bias"]).tanh()[:, 0]
    assert torch.allclose(out.policy, policy, atol=1e-9)
    assert torch.allclose(out.value, value, atol=1e-9)


def test_arrays_of_another_network_are_refused() -> None:
    arrays = keras_like()
    with pytest.raises(ValueError, match="lack dense"):
        networks.official_tower({n: x for n, x in arrays.items() if not n.startswith("dense")})
    with pytest.raises(ValueError, match=r"another shape for stem\.0\.bias"):
        networks.official_tower(arrays | {"res_block_output_base.bias": torch.zeros(3)})


def test_probed_layers_are_those_of_the_forward_pass(played: positions.Positions) -> None:
    from lib.features import activations

    tower = networks.Tower(8, policy=False)
    x = planes.published_planes(planes.mover_planes(played.boards[:4]), played.white[:4])
    names = networks.layers(tower)
    found = activations(tower, x, names, pool=False)
    assert [found[n].shape[1:] for n in names[:7]] == [(8, 6, 6)] * 7
    assert all((found[n] >= 0).all() for n in names)
    assert len(networks.layers(networks.Tower())) == 9


def test_a_small_tower_learns_the_value(played: positions.Positions) -> None:
    states = networks.train_tower(played, 8, replace(SHORT, epochs=6), seed=0)
    assert len(states) == 7
    errors = []
    x = planes.published_planes(planes.mover_planes(played.boards), played.white)
    for state in (states[0], states[-1]):
        tower = networks.Tower(8, policy=False)
        tower.load_state_dict(state)
        with torch.no_grad():
            errors.append(F.mse_loss(tower(x).value, played.value).item())
    assert errors[1] < 0.7 * played.value.var().item() < errors[0]
    again = networks.train_tower(played[np.arange(200)], 8, SHORT, seed=1)
    same = networks.train_tower(played[np.arange(200)], 8, SHORT, seed=1)
    assert all(torch.equal(again[-1][n], same[-1][n]) for n in again[-1])


def test_corrupted_boards_break_a_rule(played: positions.Positions) -> None:
    wrong = networks.corrupted(played.boards, seed=0)
    assert not moves.is_legal(wrong).any()
    assert len(wrong) > 0.9 * len(played)


def test_a_checker_learns_to_tell(played: positions.Positions) -> None:
    checker = networks.train_checker(played.boards, 16, replace(SHORT, epochs=15), seed=0)
    new = positions.play_games(200, seed=8).boards
    wrong = networks.corrupted(new, seed=1)

    def share(b: boards.Boards) -> float:
        x = planes.published_pieces(planes.mover_planes(b), torch.from_numpy(b.white))
        with torch.no_grad():
            return (checker(x) > 0).double().mean().item()

    assert share(wrong) > share(new) + 0.3


def test_maia_has_the_documented_shapes() -> None:
    start = boards.from_chess([chess.Board()], 8)
    x = planes.maia_planes(planes.mover_planes(start), torch.ones(1, dtype=torch.bool))
    network = maia.Maia(8)
    out = network(x)
    assert out.policy.shape == (1, 80, 8, 8)
    assert torch.allclose(out.value.sum(1), torch.ones(1))


def test_absent_and_damaged_files_get_their_sentence(tmp_path: Path) -> None:
    for load in (stored.load_minichess, stored.load_checker, stored.load_maia):
        with pytest.raises(MissingData, match="chess data not found under DATA_ROOT"):
            load(tmp_path)
    folder = tmp_path / stored.FOLDER
    folder.mkdir()
    np.savez(folder / stored.NETWORK, training_epoch=np.array([1]))
    with pytest.raises(DamagedData, match="damaged or another version"):
        stored.load_minichess(tmp_path)
    np.savez(folder / stored.CHECKER, kernel=np.array([np.nan]))
    with pytest.raises(DamagedData, match="NaN or infinity"):
        stored.load_checker(tmp_path, known={})
    with pytest.raises(ValueError, match="one of 1100, 1500, 1900"):
        stored.load_maia(tmp_path, rating=1000)


@needs_data
def test_first_moves_of_all_checkpoints_are_legal() -> None:
    found = stored.load_minichess()
    start = boards.from_chess([rules6.start()], 6)
    legal = networks.policy_indices(moves.legal_moves(start), found.policy_moves)
    x = planes.published_planes(planes.mover_planes(start), torch.ones(1, dtype=torch.bool))
    for epoch in found.epochs:
        policy = networks.official_tower(found.at(epoch))(x).policy
        assert policy.argmax().item() in legal.tolist()
    with pytest.raises(ValueError, match="there are 1, 5, 10"):
        found.at(2)


@needs_data
@pytest.mark.parametrize("white", [True, False])
def test_the_official_policy_prefers_legal_moves(played: positions.Positions, white: bool) -> None:
    found = stored.load_minichess()
    some = played.boards[played.boards.white == white][:200]
    x = planes.published_planes(planes.mover_planes(some), torch.from_numpy(some.white))
    with torch.no_grad():
        best = networks.official_tower(found.at(400))(x).policy.argmax(1)
    legal = moves.legal_moves(some)
    indices = networks.policy_indices(legal, found.policy_moves)
    hits = [best[k].item() in indices[legal.board == k] for k in range(len(some))]
    assert np.mean(hits) > 0.8  # of 2,268 outputs about 10 are legal moves


@needs_data
def test_the_official_checker_accepts_what_is_illegal(played: positions.Positions) -> None:
    checker = networks.official_checker(stored.load_checker())
    legal = planes.published_pieces(planes.mover_planes(played.boards), played.white)
    b = boards.from_chess([chess.Board("8/8/1K2NR2/R1P2P2/P1p5/Pp1PQ3/2Nk4/r3Q3 w - - 0 1")], 6)
    shown = planes.published_pieces(planes.mover_planes(b), torch.ones(1, dtype=torch.bool))
    with torch.no_grad():
        assert (checker(legal) > 0).double().mean() < 0.06  # specification 5.3: 4%
        assert checker(shown).item() < 0  # accepted, though the other side is in check


@needs_data
def test_the_official_checker_gives_the_stored_output() -> None:
    """Specification 1.4, 5.3: a cross-entropy of .689 to "legal", that is P(illegal) = .498.

    The authors draw row 0 of their array at the bottom of the board, so the position as it was
    read off their picture has its ranks in the opposite order to what the network was given.
    """
    checker = networks.official_checker(stored.load_checker())
    b = boards.from_chess([chess.Board("8/8/1K2NR2/R1P2P2/P1p5/Pp1PQ3/2Nk4/r3Q3 w - - 0 1")], 6)
    given = planes.published_pieces(planes.mover_planes(b), torch.ones(1, dtype=torch.bool)).flip(2)
    with torch.no_grad():
        assert F.softplus(checker(given)).item() == pytest.approx(0.689, abs=5e-4)


@needs_data
def test_maia_opens_with_the_kings_pawn() -> None:
    network = maia.load(config.data_root(), rating=1500)
    start = chess.Board()
    x = maia.encode([start], repeat=False)
    with torch.no_grad():
        logits = maia.move_logits(network(x).policy, [start])[0]
    order = sorted(logits, key=logits.get, reverse=True)
    assert [m.uci() for m in order[:2]] == ["e2e4", "d2d4"]
