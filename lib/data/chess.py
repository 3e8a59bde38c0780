"""Trained chess networks and real games: the authors' 6x6 network, its legality checker, Maia.

Layout below DATA_ROOT: ``chess/minichess6x6_checkpoints.npz`` (14 checkpoints of one training run;
the last is document 5's network), ``chess/minichess6x6_legality_checker.npz``,
``chess/maia-<rating>.npz`` and ``chess/otb_carlsen_anand.pgn.gz``. The arrays come as their makers
stored them; `lib.backprop.chess` turns them into networks.

Public names: `Checkpoints`, `load_minichess`, `load_checker`, `load_maia`, `load_games`, `KNOWN`.
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import chess
import chess.pgn
import numpy as np
import torch
from torch import Tensor

from lib import config
from lib.data.base import DamagedData, Provenance, missing, open_archive, sha256_of, verify_file

FOLDER = "chess"
NETWORK, CHECKER = "minichess6x6_checkpoints.npz", "minichess6x6_legality_checker.npz"
GAMES = "otb_carlsen_anand.pgn.gz"
RATINGS = (1100, 1500, 1900)
KNOWN: Mapping[str, str] = {
    NETWORK: "sha256:21e7037659a2595a861cd6866b410298471757c0319e8056ee222a6965d39f26",
    CHECKER: "sha256:24bbdeea0735eb75bc85a8fcf8c7809eaa68c481b8382683eacf34f47bd690bf",
    "maia-1100.npz": "sha256:97922d3687f0c70c0304082613fd823086334c48543b48d4aac784aac6858180",
    "maia-1500.npz": "sha256:f5efda2c9ce81d92a749205fbf57f5fe958fb27956085b960c7fdf7b55bdb617",
    "maia-1900.npz": "sha256:154981ca3672d5045932703607bf9648b7c3d7bb74b039db59c36bb46a98cc69",
    GAMES: "sha256:77c91d161de976b821b35077ad20be767c2aa9065133928a7a1bcd19a84a043e",
}


@dataclass(frozen=True)
class Checkpoints:
    """One training run: the weights after some of its epochs."""

    epochs: tuple[int, ...]
    weights: Mapping[str, Tensor]  # name -> [n_checkpoints, ...], Keras order
    policy_moves: Tensor  # [63, 3]: row step, column step, promotion piece or 0
    provenance: Provenance

    def at(self, epoch: int) -> dict[str, Tensor]:
        """The arrays after one epoch.

        Raises:
            ValueError: no checkpoint of that epoch (it lists those there are).
        """
        if epoch not in self.epochs:
            known = ", ".join(map(str, self.epochs))
            raise ValueError(f"no checkpoint of epoch {epoch}; there are {known}")
        return {name: x[self.epochs.index(epoch)] for name, x in self.weights.items()}


def load_minichess(root: Path | None = None, *, known: Mapping[str, str] = KNOWN) -> Checkpoints:
    """The authors' 6x6 network after 14 epochs of its training.

    Raises:
        MissingData: no such file below `root` (default DATA_ROOT).
        DamagedData: checksum or arrays are not the known ones.
    """
    arrays = _arrays(NETWORK, root, known)
    epochs = tuple(int(e) for e in arrays.pop("training_epoch"))
    moves = torch.from_numpy(arrays.pop("policy_moves").astype(np.int64))
    weights = {name: torch.from_numpy(x) for name, x in arrays.items()}
    if any(len(x) != len(epochs) for x in weights.values()):
        raise DamagedData(f"{NETWORK}: arrays and epochs differ in length; fetch it again")
    about = _provenance(
        "6x6 chess network", "patrik-ha/explainable-minichess", "none stated", weights, len(epochs)
    )
    return Checkpoints(epochs, weights, moves, about)


def load_checker(
    root: Path | None = None, *, known: Mapping[str, str] = KNOWN
) -> dict[str, Tensor]:
    """The authors' classifier of legal against corrupted 6x6 positions, Keras order.

    Raises:
        MissingData, DamagedData: as for `load_minichess`.
    """
    return {name: torch.from_numpy(x) for name, x in _arrays(CHECKER, root, known).items()}


def load_maia(
    root: Path | None = None, *, rating: int = 1500, known: Mapping[str, str] = KNOWN
) -> dict[str, Tensor]:
    """Maia, trained on human games of one rating; PyTorch order, batch norm apart.

    Raises:
        ValueError: a rating without a network.
        MissingData, DamagedData: as for `load_minichess`.
    """
    if rating not in RATINGS:
        raise ValueError(f"Maia's rating is one of {', '.join(map(str, RATINGS))}; got {rating}")
    return {n: torch.from_numpy(x) for n, x in _arrays(f"maia-{rating}.npz", root, known).items()}


@dataclass(frozen=True)
class RealGames:
    """Positions of tournament games."""

    boards: tuple[chess.Board, ...]  # with castling rights, without their history
    game: Tensor  # [n] int64
    played: tuple[chess.Move, ...]  # what the player did
    provenance: Provenance


def load_games(
    n_games: int,
    root: Path | None = None,
    *,
    every: int = 3,
    first_ply: int = 8,
    known: Mapping[str, str] = KNOWN,
) -> RealGames:
    """Positions of the first `n_games` games of two world champions, every third ply.

    Raises:
        ValueError: fewer than one game asked for.
        MissingData, DamagedData: as for `load_minichess`; or the file has fewer games.
    """
    if n_games < 1:
        raise ValueError(f"want at least one game, got {n_games}")
    path = _verified(GAMES, root, known)
    boards, game, played = [], [], []
    with gzip.open(path, "rt", encoding="utf8", errors="replace") as file:
        for number in range(n_games):
            read = chess.pgn.read_game(file)
            if read is None:
                raise DamagedData(f"{GAMES} holds {number} games, wanted {n_games}; ask for fewer")
            board = read.board()
            for ply, move in enumerate(read.mainline_moves()):
                if ply >= first_ply and ply % every == 0:
                    boards.append(board.copy(stack=False))
                    game.append(number)
                    played.append(move)
                board.push(move)
    ids = torch.tensor(game, dtype=torch.int64)
    words = torch.tensor([list(b.fen().ljust(96).encode()[:96]) for b in boards])
    about = Provenance(
        "games of Carlsen and Anand",
        "texium/pgnlearn",
        "none stated",
        sha256_of(words, ids),
        len(boards),
        f"every {every}rd ply of {n_games} games" if every == 3 else f"{n_games} games",
    )
    return RealGames(tuple(boards), ids, tuple(played), about)


def _arrays(name: str, root: Path | None, known: Mapping[str, str]) -> dict[str, np.ndarray]:
    path = _verified(name, root, known)
    with np.load(path, allow_pickle=False) as archive:
        names = list(archive.files)
    found = open_archive(path, names)
    for key, x in found.items():
        if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
            raise DamagedData(f"{path}: {key} holds NaN or infinity; fetch it again")
    return dict(found)


def _verified(name: str, root: Path | None, known: Mapping[str, str]) -> Path:
    folder = config.data_root() if root is None else root
    path = folder / FOLDER / name
    if not path.is_file():
        raise missing("chess data", folder, [f"{FOLDER}/{name}"], public=False)
    if name in known:
        verify_file(path, known[name])
    return path


def _provenance(
    name: str, source: str, licence: str, weights: Mapping[str, Tensor], n: int
) -> Provenance:
    digest = sha256_of(*(weights[k] for k in sorted(weights)))
    return Provenance(name, source, licence, digest, n, "checkpoints of one training run")
