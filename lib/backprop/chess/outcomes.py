"""What a method did to some boards, judged by the probe and by the rules.

Public names: `CONCEPT`, `TAU`, `Outcome`, `outcome`, `answered`, `first`,
`require_same_start`, `irrelevant_squares`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lib.backprop.chess.boards import Boards, Flags, concatenate
from lib.backprop.chess.concepts import CONCEPTS
from lib.backprop.chess.edits import changed_cells
from lib.backprop.chess.moves import is_legal
from lib.backprop.chess.planes import from_planes, mover_planes
from lib.backprop.chess.reading import Reader
from lib.backprop.chess.relaxed import Relaxed, part_of
from lib.backprop.chess.search import Answer

CONCEPT = "threat_my_queen"
TAU = 0.9


@dataclass(frozen=True)
class Outcome:
    """One method on n boards."""

    method: str
    before: Boards
    after: Boards
    logit: Tensor  # [n], the probe's, afterwards
    tau: float
    legal: Flags  # [n]
    truth: Flags  # [n], the rules confirm the concept
    edits: Tensor | None  # [n], or None where a method makes none
    evaluations: float  # boards read, or gradients taken, a board
    seconds: float  # a board
    answers: tuple[Answer, ...] = ()
    relaxed: Relaxed | None = None

    @property
    def reached(self) -> Flags:
        """Whether the probe reads at least tau, `[n]`."""
        return self.logit.numpy() >= np.log(self.tau / (1 - self.tau))

    @property
    def cells(self) -> Tensor:
        """Squares that changed, `[n]`."""
        return torch.from_numpy(changed_cells(self.before, self.after))


def outcome(
    method: str, probe: Reader, before: Boards, after: Boards, tau: float, **more: object
) -> Outcome:
    """Judge boards by the probe and by the rules."""
    legal = is_legal(after)
    truth = np.zeros(len(after), bool)
    ask = legal.nonzero()[0]
    if len(ask):
        truth[ask] = CONCEPTS[CONCEPT](after[ask])
    return Outcome(method, before, after, probe.logits(after), tau, legal, truth, **more)  # type: ignore[arg-type]


def answered(
    method: str, probe: Reader, boards: Boards, tau: float, made: Sequence[Answer]
) -> Outcome:
    """Judge what a search answered."""
    return outcome(
        method,
        probe,
        boards,
        concatenate([a.board for a in made]),
        tau,
        edits=torch.tensor([len(a.edits) for a in made]),
        evaluations=float(np.mean([a.evaluations for a in made])),
        seconds=float(np.mean([a.seconds for a in made])),
        answers=tuple(made),
    )


def first(made: Outcome, n: int) -> Outcome:
    """The same method on the first n boards alone."""
    rows, some = slice(0, n), made.answers[:n]
    return replace(
        made,
        before=made.before[rows],
        after=made.after[rows],
        logit=made.logit[rows],
        legal=made.legal[rows],
        truth=made.truth[rows],
        edits=None if made.edits is None else made.edits[rows],
        evaluations=float(np.mean([a.evaluations for a in some])) if some else made.evaluations,
        answers=some,
        relaxed=None if made.relaxed is None else part_of(made.relaxed, 0, n),
    )


def require_same_start(made: Outcome, boards: Boards) -> None:
    """Refuse an outcome whose first boards are others.

    Raises:
        ValueError: they are.
    """
    if made.before[: len(boards)].identities() != boards.identities():
        raise ValueError(f"the known outcome of {made.method} began with other boards than these")


def irrelevant_squares(probe: Reader, made: Outcome) -> float:
    """Share of the changed squares that can be put back alone while the probe still reads tau.

    Over boards that reached it; NaN if none did.
    """
    goal = float(np.log(made.tau / (1 - made.tau)))
    before, after = mover_planes(made.before), mover_planes(made.after)
    parts, whites = [], []
    for k in made.reached.nonzero()[0]:
        different = (before[k] != after[k]).any(0)
        for row, column in different.nonzero().tolist():
            back = after[k].clone()
            back[:, row, column] = before[k][:, row, column]
            parts.append(back)
            whites.append(bool(made.before.white[k]))
    if not parts:
        return float("nan")
    boards = from_planes(torch.stack(parts), torch.tensor(whites))
    return (probe.logits(boards) >= goal).double().mean().item()
