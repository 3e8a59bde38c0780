"""The fewest edits there can be: A* by number of edits, as a check of what the beam answers.

The beam reads a few boards of many. Here every legal board one edit away is read, and, where none
of them shows the concept, the legal boards two edits away in the order of a first-order estimate.
Each node costs its number of edits and needs at least one more, so no node of three edits is worth
a look before the last of two. Three things can come out: the fewest edits are known, there is no
answer within two, or the budget was spent and nothing is decided.

Public names: `Certificate`, `certify`, `certify_all`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lib.backprop.chess.boards import Boards, Numbers, concatenate
from lib.backprop.chess.edits import KINDS, Edits, Legal, all_edits, apply
from lib.backprop.chess.moves import is_legal
from lib.backprop.chess.reading import Reader
from lib.backprop.chess.search import first_order_gain

Progress = Callable[[range], Iterator[int]]
BUDGET, CHUNK = 20_000, 512


@dataclass(frozen=True)
class Certificate:
    """What reading everything, or what the budget allowed, says of one board."""

    n_edits: int | None  # fewest edits of an answer, 0 to 2; None: none within two, or undecided
    decided: bool
    answers: Boards | None  # different boards that reach tau with so many edits, of those read
    complete: bool  # whether all boards of that many edits were read, so that these are all
    evaluations: int  # boards whose logit was read

    @property
    def n_answers(self) -> int:
        """Different answers with the fewest edits, a lower bound unless `complete`."""
        return 0 if self.answers is None else len(self.answers)


def certify(
    reader: Reader,
    board: Boards,
    tau: float,
    *,
    budget: int = BUDGET,
    further: int = 0,
    kinds: Sequence[str] = KINDS,
    legal: Legal = is_legal,
) -> Certificate:
    """The fewest legal edits, every step legal, after which `P >= tau`: 0, 1, 2 or more.

    Boards two edits away are read in the order of the exact logit after the first edit plus the
    first-order gain of the second, until one reaches tau. That order affects the cost alone, never
    the number of edits.

    Args:
        board: one legal position.
        budget: boards that may be read; one edit away all are read, whatever it is.
        further: boards of two edits that are read after the first that reaches tau, to find more
            answers like it, within the budget; 0 stops at the first `CHUNK` that holds one.

    Raises:
        ValueError: not one legal board, a tau outside (0, 1) or a budget below 1.

    Source: specification of document 5, section 5.5 ("A* by edit count for two-edit
    certificates"). The bound "at least one edit more" is the only one that holds for any network.
    """
    if len(board) != 1 or not 0 < tau < 1 or budget < 1:
        raise ValueError(
            f"want one board, tau in (0, 1) and a budget of boards; got {len(board)}, {tau}, "
            f"{budget}"
        )
    if not legal(board)[0]:
        raise ValueError("the board to start from is illegal (`moves.violations` says why)")
    goal = float(np.log(tau / (1 - tau)))
    if reader.logits(board)[0].item() >= goal:
        return Certificate(0, True, board, True, 1)
    once = apply(board, edits := all_edits(board, kinds))
    once = once[_different(once, set(board.identities()))]
    once = once[legal(once).nonzero()[0]]
    if not len(once):
        return Certificate(None, True, None, True, 1)
    value = reader.logits(once).double().numpy()
    count = 1 + len(once)
    there = (value >= goal).nonzero()[0]
    if len(there):
        return Certificate(1, True, once[there], True, count)
    seen = {*board.identities(), *once.identities()}
    edits, order = _estimated(reader, once, value, kinds)
    found: list[Boards] = []
    limit, complete = budget, True
    for first in range(0, len(order), CHUNK):
        twice = apply(once, edits[order[first : first + CHUNK]])
        twice = twice[_different(twice, seen)]
        twice = twice[legal(twice).nonzero()[0]]
        if count + len(twice) > limit:
            twice, complete = twice[: max(limit - count, 0)], False
        count += len(twice)
        if len(twice):
            there = (reader.logits(twice).numpy() >= goal).nonzero()[0]
            if len(there) and not found:
                limit = min(budget, count + further)
            found += [twice[there]] if len(there) else []
        if not complete:
            break
    if found:
        return Certificate(2, True, concatenate(found), complete, count)
    return Certificate(None, complete, None, complete, count)


def certify_all(
    reader: Reader,
    boards: Boards,
    tau: float,
    *,
    budget: int = BUDGET,
    further: int = 0,
    progress: Progress | None = None,
) -> list[Certificate]:
    """`certify` for each board."""
    rows = range(len(boards))
    return [
        certify(reader, boards[[k]], tau, budget=budget, further=further)
        for k in (progress(rows) if progress else rows)
    ]


def _estimated(
    reader: Reader, once: Boards, value: NDArray[np.float64], kinds: Sequence[str]
) -> tuple[Edits, Numbers]:
    """All edits of all boards one edit away, and their order: the best estimate first."""
    parts, guesses = [], []
    for first in range(0, len(once), CHUNK):
        rows = np.arange(first, min(first + CHUNK, len(once)))
        edits = all_edits(once[rows], kinds)
        guesses.append(value[rows][edits.board] + first_order_gain(reader, once[rows], edits))
        parts.append(Edits(rows[edits.board], edits.piece, edits.source, edits.target))
    names = ("board", "piece", "source", "target")
    whole = Edits(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))
    return whole, np.argsort(-np.concatenate(guesses), kind="stable")


def _different(boards: Boards, seen: set[bytes]) -> Numbers:
    """Rows of boards that are new, which become known."""
    rows = []
    for row, key in enumerate(boards.identities()):
        if key not in seen:
            seen.add(key)
            rows.append(row)
    return np.array(rows, int)
