"""The chess experiments of document 5: what notebook 53 measures.

In reading order: `Bed`, `prepare` (positions, a tower with its checkpoints, a checker), `reader`,
`Outcome` and `compare` (every method on the same boards), `answers` (every reader on its own
boards), `irrelevant_squares`, `sweep` (the strength of the legality constraint), `checker_faults`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib import cache, models
from lib.backprop.chess import networks
from lib.backprop.chess.boards import Boards, Flags, concatenate
from lib.backprop.chess.concepts import CONCEPTS
from lib.backprop.chess.detection import (
    Guard,
    Sample,
    candidates,
    fit_reader,
    sample,
)
from lib.backprop.chess.moves import is_legal, violations
from lib.backprop.chess.planes import (
    from_planes,
    mover_planes,
    published_pieces,
    published_planes,
)
from lib.backprop.chess.positions import Positions, fetch_positions, held_out
from lib.backprop.chess.reading import Encode, Reader, features_by_layer
from lib.backprop.chess.relaxed import Relaxed, relaxed_bop, relaxed_ste
from lib.backprop.chess.search import (
    VARIANTS,
    Answer,
    all_edits,
    apply,
    changed_cells,
    maximise_boards,
    random_edits,
)
from lib.data import chess as stored
from lib.probes import Probe

Progress = Callable[[range], Iterator[int]]
CONCEPT = "threat_my_queen"
TAU = 0.9
HELD_OUT = 0.2  # share of the games that no probe is fitted on


@dataclass(frozen=True)
class Bed:
    """Positions, a network with its history, and a legality checker."""

    name: str
    positions: Positions  # of the games that probes are fitted on
    held: Positions  # of the other games
    checkpoints: Mapping[str, nn.Module]  # in order of training; the first is untrained
    checker: nn.Module | None
    source: str
    layers: tuple[str, ...]  # that are probed, in depth order
    encode: Encode = published_planes

    @property
    def network(self) -> nn.Module:
        """The trained network."""
        return list(self.checkpoints.values())[-1]

    @property
    def untrained(self) -> nn.Module:
        """The same network with random weights."""
        return next(iter(self.checkpoints.values()))

    def sample(self, concept: str, n: int, *, seed: int, matched: bool = True) -> Sample:
        """Balanced positions of one concept, see `detection.sample`.

        Raises:
            ValueError: a concept that there is not, or that no position shows.
        """
        if concept not in CONCEPTS:
            raise ValueError(f"concepts are {', '.join(CONCEPTS)}; got {concept!r}")
        return sample(self.positions, CONCEPTS[concept], n, seed=seed, matched=matched)


def prepare(
    name: str,
    root: Path,
    *,
    seed: int,
    n_positions: int,
    n_train: int,
    width: int,
    epochs: int,
    n_checker: int,
    checkpoints: Sequence[int],
) -> Bed:
    """Positions and networks; what is trained or played comes from the cache.

    Args:
        name: "own" (a small tower trained on the value of the positions) or "official" (the
            authors' network and checker, below `root`).
        n_train, width, epochs, n_checker: of the own networks.
        checkpoints: epochs to keep, of either.

    Raises:
        ValueError: another name.
        MissingData, DamagedData: as `lib.data.chess.load_minichess`.
    """
    if name not in ("own", "official"):
        raise ValueError(f"networks are own or official; got {name!r}")
    fit, rest = held_out(fetch_positions(n_positions, seed=seed), HELD_OUT)
    generator = torch.Generator().manual_seed(seed)
    if name == "official":
        run = stored.load_minichess(root)
        blank = networks.Tower()
        models.initialise(blank, generator).eval()
        towers = {"random": blank}
        towers |= {f"epoch {e}": networks.official_tower(run.at(e)) for e in checkpoints}
        checker = networks.official_checker(stored.load_checker(root))
        named = tuple(networks.layers(blank))
        return Bed(name, fit, rest, towers, checker, str(run.provenance), named)
    recipe = replace(networks.RECIPE, epochs=epochs)
    made = networks.fetch_tower(fit[np.arange(n_train)], width=width, seed=seed, recipe=recipe)
    towers = {"random": made[0]} | {f"epoch {e}": made[e] for e in checkpoints}
    checker = networks.fetch_checker(
        fit.boards[:n_checker], width=width // 2, seed=seed, recipe=replace(recipe, epochs=2)
    )
    about = f"own tower of {width} filters, {epochs} epochs on the value of {n_train:,} positions"
    return Bed(name, fit, rest, towers, checker, about, tuple(networks.layers(made[0])))


def reader(bed: Bed, n: int, guard: Guard, *, seed: int) -> Reader:
    """A reader of `threat_my_queen`, fitted on matched positions as `guard` says, at most once."""
    data, pool, network = bed.sample(CONCEPT, n, seed=seed), bed.positions.boards, bed.network
    # equal weights may still compute something else
    seen = features_by_layer(network, pool[:8], list(dict.fromkeys(guard.layers)), bed.encode)
    config = {
        "network": cache.state_hash(dict(network.state_dict())),
        "features": cache.state_hash(seen),
        "data": cache.state_hash(_arrays(data.boards) | {"label": torch.from_numpy(data.label)}),
        "pool": cache.state_hash(_arrays(pool)),
        "guard": asdict(guard),
        "seed": seed,
    }
    fields = ("weight", "bias", "converged")

    def build() -> dict[str, Tensor]:
        made = fit_reader(
            network, data, pool, CONCEPTS[CONCEPT], guard, seed=seed, encode=bed.encode
        )
        arrays = {
            f"{k}.{field}": getattr(probe, field).contiguous()
            for k, probe in enumerate(made.probes)
            for field in fields
        }
        return arrays | {"steps": torch.tensor([probe.steps for probe in made.probes])}

    found = cache.fetch("chess-reader", config, build, code=[fit_reader, bed.encode])
    probes = [
        Probe(steps=steps, **{field: found[f"{k}.{field}"] for field in fields})
        for k, steps in enumerate(found["steps"].tolist())
    ]
    return Reader(network, guard.layers, probes, bed.encode)


def _arrays(boards: Boards) -> dict[str, Tensor]:
    """Boards as tensors, for the key of the cache."""
    return {
        "own": torch.from_numpy(boards.own.view(np.int64)),
        "other": torch.from_numpy(boards.other.view(np.int64)),
        "white": torch.from_numpy(boards.white.copy()),
    }


def to_explain(bed: Bed, probe: Reader, n: int) -> Boards:
    """Held-out boards without the concept that the probe reads below .27, in a fixed random order.

    Raises:
        ValueError: there are fewer than n.
    """
    order = np.random.default_rng(len(bed.held)).permutation(len(bed.held))
    few = bed.held.boards[order[: 40 * n]]
    rows = candidates(probe, few, CONCEPTS[CONCEPT])[:n]
    if len(rows) < n:
        raise ValueError(f"{len(rows)} held-out boards are read below .27, wanted {n}; play more")
    return few[rows]


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


def searched(probe: Reader, boards: Boards, variant: str, tau: float, *, seed: int = 0) -> Outcome:
    """One variant of the beam search."""
    answers = maximise_boards(probe, boards, tau, VARIANTS[variant], seed=seed)
    return outcome(
        variant,
        probe,
        boards,
        concatenate([a.board for a in answers]),
        tau,
        edits=torch.tensor([len(a.edits) for a in answers]),
        evaluations=float(np.mean([a.evaluations for a in answers])),
        seconds=float(np.mean([a.seconds for a in answers])),
        answers=tuple(answers),
    )


def answers(
    bed: Bed, readers: Mapping[str, Reader], n: int, taus: Sequence[float]
) -> dict[tuple[str, float], Outcome]:
    """The beam with each reader at each tau, on n boards that this reader reads low."""
    return {
        (name, tau): searched(probe, to_explain(bed, probe, n), "beam", tau)
        for name, probe in readers.items()
        for tau in taus
    }


def relaxed(
    bed: Bed, probe: Reader, boards: Boards, tau: float, *, kind: str, steps: int, legality: float
) -> Outcome:
    """The authors' optimiser ("bop") or the straight-through one ("ste")."""
    begun, checker = time.perf_counter(), _checker(bed)
    if kind == "bop":
        found = relaxed_bop(probe, checker, boards, steps=steps, legality=legality)
    else:
        found = relaxed_ste(probe, checker, boards, steps=steps)
    taken = (time.perf_counter() - begun) / len(boards)
    return outcome(
        f"relaxed, {kind}", probe, boards, found.boards, tau,
        edits=None, evaluations=float(steps), seconds=taken, relaxed=found,
    )  # fmt: skip


def compare(
    bed: Bed,
    probe: Reader,
    boards: Boards,
    *,
    tau: float = TAU,
    variants: Sequence[str] = tuple(VARIANTS),
    bop_steps: int = 1000,
    ste_steps: int = 500,
    seed: int = 0,
) -> list[Outcome]:
    """Every method on the same boards, and random legal edits as many as the beam makes."""
    found = [
        relaxed(bed, probe, boards, tau, kind=kind, steps=steps, legality=1.0)
        for kind, steps in (("bop", bop_steps), ("ste", ste_steps))
        if steps
    ]
    found += [searched(probe, boards, name, tau, seed=seed) for name in variants]
    n_edits = 2
    after = random_edits(boards, n_edits, seed=seed)
    edits = torch.full((len(boards),), n_edits)
    return [
        *found,
        outcome(
            "random edits", probe, boards, after, tau, edits=edits, evaluations=0.0, seconds=0.0
        ),
    ]


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


def sweep(
    bed: Bed, probe: Reader, boards: Boards, weights: Sequence[float], steps: int
) -> list[Outcome]:
    """The authors' optimiser under several weights of the learned checker.

    Source: document 5, first experiments, the third.
    """
    return [
        relaxed(bed, probe, boards, TAU, kind="bop", steps=steps, legality=weight)
        for weight in weights
    ]


def checker_faults(bed: Bed, n: int, *, seed: int) -> list[dict[str, object]]:
    """How the learned checker judges held-out boards and the same boards after one illegal edit.

    One row a rule that the edit breaks: number of boards, share that the checker accepts.

    Source: specification of document 5, section 5.3 and table T3.
    """
    draw, checker = np.random.default_rng(seed), _checker(bed)
    start = bed.held.boards[draw.permutation(len(bed.held))[:n]]
    edits = all_edits(start)
    tried = apply(start, edits)
    rows: list[dict[str, object]] = []

    def row(words: str, boards: Boards) -> None:
        x = published_pieces(mover_planes(boards), torch.from_numpy(boards.white.copy()))
        with torch.no_grad():
            accepted = torch.cat([checker(part) < 0 for part in x.split(512)])
        share = accepted.double().mean().item()
        rows.append({"boards": words, "n": len(boards), "accepted as legal": share})

    row("legal", start)
    broken = violations(tried)
    wrong = np.any(list(broken.values()), 0).nonzero()[0]
    row("illegal", tried[draw.permutation(wrong)[: 4 * n]])
    for rule, flags in broken.items():
        only = flags & (np.sum(list(broken.values()), 0) == 1)
        if only.sum() >= 20:
            row(f"illegal: {rule}", tried[draw.permutation(only.nonzero()[0])[:n]])
    return rows


def _checker(bed: Bed) -> nn.Module:
    if bed.checker is None:
        raise ValueError(f"the networks {bed.name} have no legality checker; search legal edits")
    return bed.checker
