"""The fewest legal edits of a board after which a probe reads the concept: beam search.

An edit adds a piece, removes one, or moves one to an empty square. Every board the search looks at
passes the exact rules of static legality, so what it returns is a position that can stand on a
board, unlike the relaxed optimisers' (`relaxed`).

Public names: `Beam`, `VARIANTS`, `Answer`, `Edits`, `all_edits`, `apply`, `maximise_board`,
`maximise_boards`, `random_edits`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import chess
import numpy as np
import torch

from lib.backprop.chess.boards import KING, Bits, Boards, Flags, Numbers, bits, concatenate, window
from lib.backprop.chess.moves import is_legal
from lib.backprop.chess.reading import Reader

KINDS = ("add", "remove", "move")
ADDED = {6: (0, 1, 3, 4), 8: (0, 1, 2, 3, 4)}  # no bishops on the small board, never a king
NOWHERE = -1

Legal = Callable[[Boards], Flags]
Progress = Callable[[range], Iterator[int]]


@dataclass(frozen=True)
class Beam:
    """How to search (specification of document 5, section 5.5).

    Raises:
        ValueError: a size below 1, a kind of edit or an order that there is not.
    """

    n_tried: int | None = 64  # edits read exactly, for each board of the beam; None: all
    width: int = 8
    depth: int = 3
    order: str = "gradient"  # or "random"
    kinds: tuple[str, ...] = KINDS

    def __post_init__(self) -> None:
        sizes = (self.width, self.depth, 1 if self.n_tried is None else self.n_tried)
        if min(sizes) < 1 or not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"want sizes >= 1 and edits among {', '.join(KINDS)}; got {self}")
        if self.order not in ("gradient", "random"):
            raise ValueError(f"order is gradient or random; got {self.order!r}")


VARIANTS: dict[str, Beam] = {
    "beam": Beam(),
    "greedy": Beam(n_tried=8, width=1),
    "random order": Beam(order="random"),
    "moves only": Beam(kinds=("move",)),
    "one edit, all read": Beam(n_tried=None, depth=1),
}


@dataclass(frozen=True)
class Edits:
    """m edits of boards; square `NOWHERE` (-1) as source means added, as target removed."""

    board: Numbers  # [m]
    piece: Numbers  # [m], 0..5 the mover's, 6..11 the other side's
    source: Numbers  # [m]
    target: Numbers  # [m]

    def __len__(self) -> int:
        return len(self.board)

    def __getitem__(self, rows: Numbers) -> Edits:
        return Edits(self.board[rows], self.piece[rows], self.source[rows], self.target[rows])


def all_edits(boards: Boards, kinds: Sequence[str] = KINDS) -> Edits:
    """Every edit of every board, legal or not; kings are moved, never added or removed."""
    pieces = np.concatenate([boards.own, boards.other], 1)
    at, kind, square = bits(pieces).nonzero()
    free = bits(~boards.occupied & window(boards.side)).astype(bool)
    parts: list[tuple[Numbers, Numbers, Numbers, Numbers]] = []
    if "add" in kinds:
        row, to = free.nonzero()
        for piece in (c + p for c in (0, 6) for p in ADDED[boards.side]):
            parts.append((row, np.full(len(row), piece), np.full(len(row), NOWHERE), to))
    if "remove" in kinds:
        can = kind % 6 != KING
        parts.append((at[can], kind[can], square[can], np.full(int(can.sum()), NOWHERE)))
    if "move" in kinds:
        which, to = free[at].nonzero()
        parts.append((at[which], kind[which], square[which], to))
    return Edits(*(np.concatenate(x) for x in zip(*parts, strict=True)))


def apply(boards: Boards, edits: Edits) -> Boards:
    """The boards after one edit each, `[m]`."""
    pieces = np.concatenate([boards.own, boards.other], 1)[edits.board]
    rows = np.arange(len(edits))

    def bit(square: Numbers) -> Bits:
        one = np.uint64(1) << square.clip(0).astype(np.uint64)
        return np.where(square == NOWHERE, np.uint64(0), one)

    pieces[rows, edits.piece] &= ~bit(edits.source)
    pieces[rows, edits.piece] |= bit(edits.target)
    white = boards.white[edits.board]
    return Boards(pieces[:, :6].copy(), pieces[:, 6:].copy(), white, boards.side)


@dataclass(frozen=True)
class Answer:
    """What a search found for one board."""

    board: Boards  # [1]
    edits: tuple[Edits, ...]  # one edit each, in order
    before: float  # the probe's logit
    after: float
    reached: bool
    evaluations: int  # boards whose logit was read
    seconds: float
    irrelevant: int  # edits that can be taken back alone while the probe still reads the concept

    def words(self) -> list[str]:
        """The edits in words, squares as seen with the mover at the bottom."""
        return [describe(e) for e in self.edits]


def maximise_board(
    reader: Reader,
    board: Boards,
    tau: float,
    beam: Beam = VARIANTS["beam"],
    *,
    legal: Legal = is_legal,
    seed: int = 0,
) -> Answer:
    """Fewest legal edits with `P >= tau`, ties by the larger logit; then pruned.

    At each depth the edits of every board of the beam are walked by their first-order gain, the
    first `n_tried` legal and new ones are read exactly, and the best `width` go on. An edit that
    the answer does not need is dropped at the end.

    Args:
        board: one legal position.
        tau: probability in (0, 1).
        legal: the exact rules; a search never leaves them.
        seed: of the order, where that is random.

    Raises:
        ValueError: not one board, an illegal one, or a tau outside (0, 1).

    Source: specification of document 5, section 5.5.
    """
    if len(board) != 1 or not 0 < tau < 1:
        raise ValueError(f"want one board and tau in (0, 1), got {len(board)} and {tau}")
    if not legal(board)[0]:
        raise ValueError("the board to start from is illegal (`moves.violations` says why)")
    begun, goal = time.perf_counter(), float(np.log(tau / (1 - tau)))
    before = reader.logits(board)[0].item()
    draw = np.random.default_rng(seed)
    front = board
    paths: list[tuple[Edits, ...]] = [()]
    best, top, count = board, before, 1
    path: tuple[Edits, ...] = ()
    seen = set(board.identities())
    for _ in range(beam.depth if before < goal else 0):
        edits = _walked(reader, front, beam, legal, seen, draw)
        if not len(edits):
            break
        tried = apply(front, edits)
        seen.update(tried.identities())
        value = reader.logits(tried)
        count += len(tried)
        order = value.argsort(descending=True, stable=True)[: beam.width].numpy()
        paths = [(*paths[edits.board[k]], _single(edits, k)) for k in order]
        front = tried[order]
        if value[order[0]].item() > top:
            best, path, top = front[[0]], paths[0], value[order[0]].item()
        if top >= goal:
            break
    irrelevant = 0
    if top >= goal and path:
        path, best, top, extra = _pruned(reader, board, path, best, top, goal, legal)
        count += extra
        irrelevant = _irrelevant(reader, board, path, goal, legal)
    taken = time.perf_counter() - begun
    return Answer(best, path, before, top, top >= goal, count, taken, irrelevant)


def maximise_boards(
    reader: Reader,
    boards: Boards,
    tau: float,
    beam: Beam = VARIANTS["beam"],
    *,
    legal: Legal = is_legal,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Answer]:
    """`maximise_board` for each board."""
    rows = range(len(boards))
    return [
        maximise_board(reader, boards[[k]], tau, beam, legal=legal, seed=seed + k)
        for k in (progress(rows) if progress else rows)
    ]


def random_edits(boards: Boards, n_edits: int, *, seed: int, legal: Legal = is_legal) -> Boards:
    """Each board after so many random edits that keep it legal: the control without a probe."""
    draw = np.random.default_rng(seed)
    for _ in range(n_edits):
        edits = all_edits(boards)
        edits = edits[draw.permutation(len(edits))]
        edits = edits[np.argsort(edits.board, kind="stable")]
        tried = apply(boards, edits)
        good = legal(tried).nonzero()[0]
        _, first = np.unique(edits.board[good], return_index=True)
        boards = tried[good[first]]
    return boards


def changed_cells(before: Boards, after: Boards) -> Numbers:
    """Squares on which two boards differ, `[n]`."""
    different = np.zeros(len(before), np.uint64)
    for name in ("own", "other"):
        different |= np.bitwise_or.reduce(getattr(before, name) ^ getattr(after, name), 1)
    return np.bitwise_count(different).astype(np.int64)


def describe(edit: Edits) -> str:
    """One edit in words; the mover's pieces are upper case."""
    piece = int(edit.piece[0])
    name = "PNBRQK"[piece] if piece < 6 else "pnbrqk"[piece - 6]
    squares = ["" if s == NOWHERE else chess.square_name(int(s)) for s in
               (edit.source[0], edit.target[0])]  # fmt: skip
    if not squares[0]:
        return f"+{name}{squares[1]}"
    return f"{name}{squares[0]}-{squares[1]}" if squares[1] else f"-{name}{squares[0]}"


def _walked(
    reader: Reader,
    front: Boards,
    beam: Beam,
    legal: Legal,
    seen: set[bytes],
    draw: np.random.Generator,
) -> Edits:
    """The edits to read exactly: per board the first legal, new ones in the beam's order."""
    edits = all_edits(front, beam.kinds)
    if beam.order == "random" or beam.n_tried is None:
        gain = draw.random(len(edits))
    else:
        slope = torch.nn.functional.pad(
            reader.gradient(front), (0, 8 - front.side, 0, 8 - front.side)
        )
        table = slope.flatten(2).numpy()
        gain = np.where(edits.target == NOWHERE, 0, table[edits.board, edits.piece, edits.target])
        gain = gain - np.where(
            edits.source == NOWHERE, 0, table[edits.board, edits.piece, edits.source]
        )
    edits = edits[np.lexsort((-gain, edits.board))]
    tried = apply(front, edits)
    good = legal(tried)
    kept, room, new = [], [beam.n_tried or len(edits)] * len(front), set(seen)
    names = tried.identities()
    for k in good.nonzero()[0].tolist():
        row = edits.board[k]
        if room[row] and names[k] not in new:
            room[row] -= 1
            new.add(names[k])
            kept.append(k)
    return edits[np.array(kept, int)]


def _single(edits: Edits, k: int) -> Edits:
    return replace(edits[np.array([k])], board=np.zeros(1, int))


def _replay(board: Boards, path: Sequence[Edits]) -> Boards | None:
    """The board after some edits; None where one of them does not fit."""
    for edit in path:
        pieces = np.concatenate([board.own, board.other], 1)[0]
        source, target, occupied = int(edit.source[0]), int(edit.target[0]), int(board.occupied[0])
        if source != NOWHERE and not int(pieces[edit.piece[0]]) >> source & 1:
            return None
        if target != NOWHERE and occupied >> target & 1:
            return None
        board = apply(board, edit)
    return board


def _subsets(
    reader: Reader, board: Boards, path: Sequence[Edits], size: int, legal: Legal
) -> tuple[list[tuple[Edits, ...]], Boards | None]:
    """Legal boards after `size` of the edits."""
    found = []
    for subset in combinations(path, size):
        after = _replay(board, subset)
        if after is not None and legal(after)[0]:
            found.append((subset, after))
    if not found:
        return [], None
    return [subset for subset, _ in found], concatenate([after for _, after in found])


def _pruned(
    reader: Reader,
    board: Boards,
    path: tuple[Edits, ...],
    best: Boards,
    top: float,
    goal: float,
    legal: Legal,
) -> tuple[tuple[Edits, ...], Boards, float, int]:
    """The smallest subset of the edits that still reaches the goal."""
    count = 0
    for size in range(1, len(path)):
        subsets, boards = _subsets(reader, board, path, size, legal)
        if boards is None:
            continue
        value = reader.logits(boards)
        count += len(boards)
        k = int(value.argmax())
        if value[k] >= goal:
            return subsets[k], boards[[k]], value[k].item(), count
    return path, best, top, count


def _irrelevant(
    reader: Reader, board: Boards, path: tuple[Edits, ...], goal: float, legal: Legal
) -> int:
    if len(path) < 2:
        return 0
    _, boards = _subsets(reader, board, path, len(path) - 1, legal)
    return 0 if boards is None else int((reader.logits(boards) >= goal).sum())
