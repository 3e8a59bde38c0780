"""The chess experiments of document 5: what notebook 53 measures.

In reading order: `Bed`, `prepare` (positions, a tower with its checkpoints, a checker), `reader`,
`to_explain`, `answers` (every reader on its own boards), `compare` (every method on the same
boards), `sweep` (the strength of the legality constraint), `checker_faults`.
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
from lib.backprop.chess.boards import Boards
from lib.backprop.chess.concepts import CONCEPTS
from lib.backprop.chess.detection import (
    Guard,
    Sample,
    candidates,
    fit_reader,
    sample,
)
from lib.backprop.chess.edits import all_edits, apply, random_edits
from lib.backprop.chess.moves import violations
from lib.backprop.chess.outcomes import (
    CONCEPT,
    TAU,
    Outcome,
    answered,
    first,
    outcome,
    require_same_start,
)
from lib.backprop.chess.planes import mover_planes, published_pieces, published_planes
from lib.backprop.chess.positions import Positions, fetch_positions, held_out
from lib.backprop.chess.reading import Encode, Reader, features_by_layer
from lib.backprop.chess.relaxed import (
    LEGALITY,
    Relaxed,
    after_fewer_steps,
    part_of,
    relaxed_bop,
    relaxed_ste,
)
from lib.backprop.chess.search import VARIANTS, maximise_at
from lib.data import chess as stored
from lib.probes import Probe

Progress = Callable[[range], Iterator[int]]
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


def searched(
    probe: Reader, boards: Boards, variant: str, taus: Sequence[float], *, seed: int = 0
) -> dict[float, Outcome]:
    """One variant of the beam search at each tau."""
    found = maximise_at(probe, boards, taus, VARIANTS[variant], seed=seed)
    return {tau: answered(variant, probe, boards, tau, made) for tau, made in found.items()}


def answers(
    bed: Bed, readers: Mapping[str, Reader], n: int, taus: Mapping[float, Sequence[str]]
) -> dict[tuple[str, float], Outcome]:
    """The beam with readers at each tau, on n boards that the reader reads low.

    Args:
        taus: tau -> names of the readers that are asked for it; the order of the results.
    """
    found: dict[tuple[str, float], Outcome] = {}
    for name, probe in readers.items():
        asked = [tau for tau, names in taus.items() if name in names]
        made = searched(probe, to_explain(bed, probe, n), "beam", asked)
        found |= {(name, tau): outcome for tau, outcome in made.items()}
    return {(name, tau): found[name, tau] for tau, names in taus.items() for name in names}


def relaxed(
    bed: Bed, probe: Reader, boards: Boards, tau: float, *, kind: str, steps: int, legality: float
) -> Outcome:
    """The authors' optimiser ("bop") or the straight-through one ("ste")."""
    begun, checker = time.perf_counter(), _checker(bed)
    if kind == "bop":
        found = relaxed_bop(probe, checker, boards, steps=steps, legality=legality)
    else:
        found = relaxed_ste(probe, checker, boards, steps=steps)
    seconds = (time.perf_counter() - begun) / len(boards)
    return _relaxed_outcome(kind, probe, boards, tau, found, seconds)


def _relaxed_outcome(
    kind: str, probe: Reader, boards: Boards, tau: float, found: Relaxed, seconds: float
) -> Outcome:
    return outcome(
        f"relaxed, {kind}", probe, boards, found.boards, tau, edits=None,
        evaluations=float(found.evaluations), seconds=seconds, relaxed=found,
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
    known: Sequence[Outcome] = (),
) -> list[Outcome]:
    """Every method on the same boards, and random legal edits as many as the beam makes.

    Args:
        known: outcomes whose first boards are these and that need not be found again.
    """
    found = [
        relaxed(bed, probe, boards, tau, kind=kind, steps=steps, legality=LEGALITY)
        for kind, steps in (("bop", bop_steps), ("ste", ste_steps))
        if steps
    ]
    for o in known:
        require_same_start(o, boards)
    done = {o.method: first(o, len(boards)) for o in known}
    found += [
        done.get(name) or searched(probe, boards, name, [tau], seed=seed)[tau] for name in variants
    ]
    n_edits = 2
    after = random_edits(boards, n_edits, seed=seed)
    edits = torch.full((len(boards),), n_edits)
    return [
        *found,
        outcome(
            "random edits", probe, boards, after, tau, edits=edits, evaluations=0.0, seconds=0.0
        ),
    ]


def sweep(
    bed: Bed,
    probe: Reader,
    boards: Boards,
    weights: Sequence[float],
    steps: int,
    known: Outcome | None = None,
) -> list[Outcome]:
    """The authors' optimiser under several weights of the learned checker, all at once.

    Args:
        known: their run at weight 1 with at least as many steps, whose first boards are these;
            the run with that weight is then its beginning.

    Source: document 5, first experiments, the third.
    """
    begun, checker, n = time.perf_counter(), _checker(bed), len(boards)
    found: dict[float, Relaxed] = {}
    if known is not None and known.relaxed is not None and LEGALITY in weights:
        require_same_start(known, boards)
        found[LEGALITY] = after_fewer_steps(probe, checker, boards, known.relaxed, n, steps)
    todo = [weight for weight in weights if weight not in found]
    if todo:
        every = boards[np.tile(np.arange(n), len(todo))]
        strength = torch.tensor(todo).repeat_interleave(n)
        whole = relaxed_bop(probe, checker, every, steps=steps, legality=strength)
        found |= {weight: part_of(whole, k * n, k * n + n) for k, weight in enumerate(todo)}
    seconds = (time.perf_counter() - begun) / (n * len(weights))
    return [_relaxed_outcome("bop", probe, boards, TAU, found[w], seconds) for w in weights]


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
