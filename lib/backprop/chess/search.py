"""The fewest legal edits of a board after which a probe reads the concept: beam search.

Every board the search looks at passes the exact rules of legality, so what it returns is a
position that can stand on a board, unlike the relaxed optimisers' (`relaxed`). Many boards are
searched side by side, each as if it were alone.

Public names: `Beam`, `VARIANTS`, `Answer`, `maximise_board`, `maximise_boards`, `maximise_at`,
`first_order_gain`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from lib.backprop.chess.boards import Boards, Numbers, concatenate
from lib.backprop.chess.edits import (
    ALL_KINDS,
    KINDS,
    NOWHERE,
    Edits,
    Legal,
    all_edits,
    apply,
    describe,
    first_legal,
)
from lib.backprop.chess.moves import is_legal
from lib.backprop.chess.reading import Reader

Cost = Callable[[Boards], NDArray[np.float64]]
Path = tuple[Edits, ...]
Progress = Callable[[range], Iterator[int]]
AT_ONCE = 32  # boards searched side by side


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
        if min(sizes) < 1 or not self.kinds or not set(self.kinds) <= set(ALL_KINDS):
            raise ValueError(f"want sizes >= 1 and edits among {', '.join(ALL_KINDS)}; got {self}")
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
class Answer:
    """What a search found for one board."""

    board: Boards  # [1]
    edits: Path  # one edit each, in order
    before: float  # the probe's logit
    after: float
    reached: bool
    evaluations: int  # boards whose logit was read
    seconds: float  # of all boards searched with it, divided by their number
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
    cost: Cost | None = None,
    seed: int = 0,
) -> Answer:
    """`maximise_boards` for one board.

    Raises:
        ValueError: not one board, an illegal one, or a tau outside (0, 1).
    """
    if len(board) != 1:
        raise ValueError(f"want one board and tau in (0, 1), got {len(board)} and {tau}")
    return maximise_boards(reader, board, tau, beam, legal=legal, cost=cost, seed=seed)[0]


def maximise_boards(
    reader: Reader,
    boards: Boards,
    tau: float,
    beam: Beam = VARIANTS["beam"],
    *,
    legal: Legal = is_legal,
    cost: Cost | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Answer]:
    """Fewest legal edits with `P >= tau`, ties by the larger logit; then pruned.

    At each depth the edits of every board of the beam are walked by their first-order gain, the
    first `n_tried` legal and new ones are read exactly, and the best `width` go on. An edit that
    the answer does not need is dropped at the end.

    Args:
        boards: legal positions.
        tau: probability in (0, 1).
        legal: the exact rules; a search never leaves them.
        cost: of each board in logits, `[n]`, for instance how unlike a played position it is
            (`typical.Typical.cost`): taken off the gain and the logit wherever boards are
            compared, while what counts as reached stays `P >= tau`.
        seed: of the order, where that is random; board k uses seed + k.

    Raises:
        ValueError: an illegal board, or a tau outside (0, 1).

    Source: specification of document 5, section 5.5.
    """
    found = maximise_at(
        reader, boards, [tau], beam, legal=legal, cost=cost, seed=seed, progress=progress
    )
    return found[tau]


def maximise_at(
    reader: Reader,
    boards: Boards,
    taus: Sequence[float],
    beam: Beam = VARIANTS["beam"],
    *,
    legal: Legal = is_legal,
    cost: Cost | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[float, list[Answer]]:
    """`maximise_boards` at several tau: the search for a larger one goes on where it stood."""
    if not all(0 < tau < 1 for tau in taus):
        raise ValueError(f"want tau in (0, 1), got {', '.join(map(str, taus))}")
    if not legal(boards).all():
        raise ValueError("a board to start from is illegal (`moves.violations` says why)")
    found: dict[float, list[Answer]] = {tau: [] for tau in taus}
    starts = range(0, len(boards), AT_ONCE)
    for first in progress(starts) if progress else starts:
        begun = time.perf_counter()
        part = boards[np.arange(first, min(first + AT_ONCE, len(boards)))]
        search = _Search(reader, part, beam, legal, cost, seed + first)
        for tau in sorted(found):
            goal = float(np.log(tau / (1 - tau)))
            while search.advance(goal):
                pass
            made = search.answers(goal)
            taken = (time.perf_counter() - begun) / len(part)
            found[tau] += [replace(a, seconds=taken) for a in made]
    return found


def first_order_gain(reader: Reader, boards: Boards, edits: Edits) -> NDArray[np.float64]:
    """What each edit adds to the logit by the gradient at its board, `[m]`."""
    room = 8 - boards.side
    slope = torch.nn.functional.pad(reader.gradient(boards), (0, room, 0, room))
    table = slope.flatten(2).numpy()
    put = table[edits.board, edits.becomes, edits.target]
    taken = table[edits.board, edits.piece, edits.source]
    return np.where(edits.target == NOWHERE, 0, put) - np.where(edits.source == NOWHERE, 0, taken)


class _Search:
    """Beams of several boards ("roots"), moved on together."""

    def __init__(
        self,
        reader: Reader,
        roots: Boards,
        beam: Beam,
        legal: Legal,
        cost: Cost | None,
        seed: int,
    ) -> None:
        self.reader, self.roots, self.beam, self.legal, self.cost = reader, roots, beam, legal, cost
        n = len(roots)
        self.draws = [np.random.default_rng(seed + k) for k in range(n)]
        self.before = reader.logits(roots).double().numpy()
        self.top = self.before.copy()  # logit of the best board of each root
        self.worth = self.before - self._costs(roots)  # the same less its cost
        self.best = [roots[[k]] for k in range(n)]
        self.path: list[Path] = [()] * n
        self.count, self.depth = np.ones(n, int), np.zeros(n, int)
        self.seen: list[set[bytes]] = [{key} for key in roots.identities()]
        self.front, self.root = roots, np.arange(n)
        self.paths: list[Path] = [()] * n

    def _costs(self, boards: Boards) -> NDArray[np.float64]:
        return np.zeros(len(boards)) if self.cost is None else self.cost(boards)

    def advance(self, goal: float) -> bool:
        """One edit more for every root that is below the goal; False if none can go on."""
        going = (self.top < goal) & (self.depth < self.beam.depth)
        at = going[self.root].nonzero()[0]
        if not len(at):
            return False
        edits = self._walked(at)
        if not len(edits):
            self.depth[going] = self.beam.depth
            return False
        tried = apply(self.front, edits)
        root = self.root[edits.board]
        value = self.reader.logits(tried).double().numpy()
        worth = value - self._costs(tried)
        kept = [~going[self.root]]
        fronts, roots = [self.front[kept[0]]], [self.root[kept[0]]]
        paths = [self.paths[k] for k in kept[0].nonzero()[0]]
        for k, key in zip(root.tolist(), tried.identities(), strict=True):
            self.seen[k].add(key)
        for r in going.nonzero()[0]:
            mine = (root == r).nonzero()[0]
            self.count[r] += len(mine)
            self.depth[r] = self.depth[r] + 1 if len(mine) else self.beam.depth
            if not len(mine):
                continue
            order = mine[np.argsort(-worth[mine], kind="stable")]
            there = order[value[order] >= goal]
            first = there[0] if len(there) else order[0]
            if len(there) or worth[first] > self.worth[r]:
                self.best[r], self.top[r] = tried[[first]], value[first]
                self.worth[r] = worth[first]
                self.path[r] = (*self.paths[edits.board[first]], _single(edits, first))
            order = order[: self.beam.width]
            fronts.append(tried[order])
            roots.append(np.full(len(order), r))
            paths += [(*self.paths[edits.board[k]], _single(edits, k)) for k in order]
        self.front, self.root = concatenate(fronts), np.concatenate(roots)
        self.paths = paths
        return True

    def _walked(self, at: Numbers) -> Edits:
        """The edits to read exactly, of boards `at` of the front: the first legal, new ones."""
        front, root, beam = self.front[at], self.root[at], self.beam
        edits = all_edits(front, beam.kinds)
        if beam.order == "random" or beam.n_tried is None:
            gain = np.empty(len(edits))
            mine = root[edits.board]
            for r in np.unique(root):
                rows = (mine == r).nonzero()[0]
                gain[rows] = self.draws[r].random(len(rows))
        else:
            gain = first_order_gain(self.reader, front, edits)
        if self.cost is not None:
            gain = gain - self.cost(apply(front, edits))
        edits = edits[np.lexsort((-gain, edits.board))]
        most = np.bincount(edits.board, minlength=len(front))
        room = most if beam.n_tried is None else np.full(len(front), beam.n_tried)
        wanted = np.minimum(room + 2 * beam.width, most)  # some are not new
        while True:
            rows = first_legal(front, edits, wanted, self.legal)
            kept, short = self._new(front, edits, rows, room, root)
            came = np.bincount(edits.board[rows], minlength=len(front))
            short &= (came == wanted) & (wanted < most)  # there may be more of them
            if not short.any():
                made = edits[kept]
                return replace(made, board=at[made.board])
            wanted = np.where(short, np.minimum(2 * wanted, most), wanted)

    def _new(
        self, front: Boards, edits: Edits, rows: Numbers, room: Numbers, root: Numbers
    ) -> tuple[Numbers, NDArray[np.bool_]]:
        """The first `room` of the legal edits that lead to new boards; who has fewer."""
        left, kept = room.copy(), []
        new = {r: set(self.seen[r]) for r in np.unique(root).tolist()}
        names = apply(front, edits[rows]).identities()
        for row, board, name in zip(rows.tolist(), edits.board[rows], names, strict=True):
            known = new[root[board]]
            if left[board] and name not in known:
                left[board] -= 1
                known.add(name)
                kept.append(row)
        return np.array(kept, int), left > 0

    def answers(self, goal: float) -> list[Answer]:
        """The best board of each root, pruned where it reaches the goal."""
        n = len(self.roots)
        best, top, path = list(self.best), self.top.copy(), list(self.path)
        count, reached = self.count.copy(), self.top >= goal
        open_ = {k for k in range(n) if reached[k] and len(path[k]) > 1}
        for size in range(1, self.beam.depth):
            asked = [k for k in sorted(open_) if size < len(path[k])]
            for k, subsets, boards, value in self._subsets(asked, path, size):
                count[k] += len(boards)
                worth = np.where(value >= goal, value - self._costs(boards), -np.inf)
                j = int(worth.argmax())
                if value[j] >= goal:
                    path[k], best[k], top[k] = subsets[j], boards[[j]], value[j]
                    open_.discard(k)
        spare = np.zeros(n, int)
        for size in range(1, self.beam.depth):
            asked = [k for k in range(n) if reached[k] and len(path[k]) == size + 1]
            for k, _, _, value in self._subsets(asked, path, size):
                spare[k] = (value >= goal).sum()
        return [
            Answer(
                best[k], path[k], float(self.before[k]), float(top[k]), bool(reached[k]),
                int(count[k]), 0.0, int(spare[k]),
            )
            for k in range(n)
        ]  # fmt: skip

    def _subsets(
        self, asked: Sequence[int], path: Sequence[Path], size: int
    ) -> Iterator[tuple[int, list[Path], Boards, NDArray[np.float64]]]:
        """Of each root asked: legal boards after `size` of its edits, and their logits."""
        found = [
            (k, subset, after)
            for k in asked
            for subset in combinations(path[k], size)
            if (after := _replay(self.roots[[k]], subset)) is not None
        ]
        if not found:
            return
        boards = concatenate([after for _, _, after in found])
        good = self.legal(boards).nonzero()[0]
        if not len(good):
            return
        value = self.reader.logits(boards[good]).double().numpy()
        whose = np.array([found[j][0] for j in good])
        for k in np.unique(whose).tolist():
            mine = (whose == k).nonzero()[0]
            yield k, [found[good[j]][1] for j in mine], boards[good[mine]], value[mine]


def _single(edits: Edits, k: int) -> Edits:
    return replace(edits[np.array([k])], board=np.zeros(1, int))


def _replay(board: Boards, path: Sequence[Edits]) -> Boards | None:
    """The board after some edits; None where one of them does not fit."""
    for edit in path:
        pieces = np.concatenate([board.own, board.other], 1)[0]
        source, target, occupied = int(edit.source[0]), int(edit.target[0]), int(board.occupied[0])
        if source != NOWHERE and not int(pieces[edit.piece[0]]) >> source & 1:
            return None
        if target not in (NOWHERE, source) and occupied >> target & 1:
            return None
        board = apply(board, edit)
    return board
