"""How much like a played position a board looks: a density that searches can be asked to keep.

A legal board can still be odd: three queens, a king in the far corner. The density knows two
things of the data, which pieces there are and where each kind of piece stands:

    log q(board) = log p(material) + sum over kinds of (log m! + sum of log f(square | kind))

where the material is the number m of pieces of each of the twelve kinds. Squares are taken as
independent, so this is a measure of oddness, not a model of chess.

Public names: `Typical`, `fit_typical`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import lgamma

import numpy as np
from numpy.typing import NDArray

from lib.backprop.chess.boards import Boards, bits

Values = NDArray[np.float64]
MOST = 64  # pieces of a kind


@dataclass(frozen=True)
class Typical:
    """Frequencies of played positions; kinds are the mover's six, then the other side's."""

    squares: Values  # [12, 64], log f(square | kind)
    counts: Values  # [12, 65], log share of boards with so many pieces of the kind
    signatures: dict[bytes, int]  # material -> boards that had it
    n_boards: int
    pseudo: float  # boards' worth of material with independent counts
    side: int

    def log_density(self, boards: Boards) -> Values:
        """log q of each board in nats, `[n]`.

        Raises:
            ValueError: boards of another side than the data's.
        """
        if boards.side != self.side:
            raise ValueError(f"fitted on boards of side {self.side}, asked of side {boards.side}")
        pieces = np.concatenate([boards.own, boards.other], 1)
        material = np.bitwise_count(pieces)
        alone = np.take_along_axis(self.counts.T, material.astype(np.int64), 0).sum(1)
        seen = np.array([self.signatures.get(row.tobytes(), 0) for row in material], float)
        whole = np.log(seen + self.pseudo * np.exp(alone)) - np.log(self.n_boards + self.pseudo)
        row, kind, square = bits(pieces).nonzero()
        placed = np.bincount(row, self.squares[kind, square], minlength=len(boards))
        return whole + placed + _LOG_FACTORIAL[material].sum(1)

    def cost(self, kappa: float) -> Callable[[Boards], Values]:
        """kappa times -log q, as `search.maximise_boards` takes it off a board's logit.

        Raises:
            ValueError: a negative kappa.

        Source: specification of document 5, section 5.5, the "typical" mode. It adds the term to
        what is minimised and leaves its weight open; ours is in logits a nat.
        """
        if kappa < 0:
            raise ValueError(f"want kappa >= 0 (logits a nat), got {kappa}")
        return lambda boards: -kappa * self.log_density(boards)


_LOG_FACTORIAL = np.array([lgamma(m + 1) for m in range(MOST + 1)])


def fit_typical(boards: Boards, *, pseudo: float = 1.0) -> Typical:
    """Count materials and squares of played positions.

    Every square of every kind counts `pseudo` pieces more than were seen, every number of pieces
    of a kind `pseudo` boards more, and material `pseudo` boards that draw the number of each kind
    alone: nothing legal has density 0.

    Raises:
        ValueError: no board, or a pseudo count that is not above 0.
    """
    if not len(boards) or pseudo <= 0:
        raise ValueError(f"want boards and a pseudo count above 0, got {len(boards)} and {pseudo}")
    pieces = np.concatenate([boards.own, boards.other], 1)
    side, n = boards.side, len(boards)
    inside = bits(pieces).sum(0).astype(float).reshape(12, 8, 8)[:, :side, :side] + pseudo
    squares = np.full((12, 8, 8), -np.inf)
    squares[:, :side, :side] = np.log(inside / inside.sum((1, 2), keepdims=True))
    material = np.bitwise_count(pieces)
    most = side * side + 1  # numbers of pieces that there can be
    counts = np.full((12, MOST + 1), -np.inf)
    for kind in range(12):
        seen = np.bincount(material[:, kind], minlength=most)
        counts[kind, :most] = np.log((seen + pseudo) / (n + pseudo * most))
    signatures: dict[bytes, int] = {}
    for row in material:
        signatures[row.tobytes()] = signatures.get(row.tobytes(), 0) + 1
    return Typical(squares.reshape(12, 64), counts, signatures, n, pseudo, side)
