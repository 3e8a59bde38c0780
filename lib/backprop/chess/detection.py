"""Probes of concepts on boards: detection by layer, and readers that are worth maximising.

`detect` runs the protocol of specification 2.3 on one layer. `fit_reader` adds what keeps a probe
from being exploited: negatives that meet the trivial rule, edited boards labelled by the rules,
several layers read together, and rounds in which the search's own false answers become negatives.

Public names: `Sample`, `sample`, `detect`, `quick_score`, `Guard`, `fit_reader`, `candidates`,
`false_alarms`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lib import probes
from lib.backprop.chess.boards import KING, Boards, Flags, Numbers, concatenate
from lib.backprop.chess.concepts import owns_queen
from lib.backprop.chess.edits import random_edits
from lib.backprop.chess.planes import mover_planes, published_planes
from lib.backprop.chess.positions import Positions, balanced
from lib.backprop.chess.reading import Encode, Reader, features
from lib.backprop.chess.search import VARIANTS, maximise_at
from lib.probes import Probe, ProbeReport, fit_wide

Concept = Callable[[Boards], Flags]
Progress = Callable[[range], Iterator[int]]
PENALTIES = (100.0, 1000.0)
LOW = float(np.log(0.27 / 0.73))  # boards to explain are read below this


@dataclass(frozen=True)
class Sample:
    """Labelled boards, as many positives as negatives."""

    boards: Boards
    label: Flags  # [n]
    game: Tensor  # [n]


def sample(
    positions: Positions, concept: Concept, n: int, *, seed: int, matched: bool = True
) -> Sample:
    """A balanced sample; with `matched`, every negative's mover owns a queen too."""
    label = concept(positions.boards)
    among = owns_queen(positions.boards) if matched else None
    rows = balanced(label, n, seed=seed, among=among)
    return Sample(positions.boards[rows], label[rows], positions.game[torch.from_numpy(rows)])


def detect(
    network: nn.Module,
    untrained: nn.Module,
    layer: str,
    data: Sample,
    *,
    seed: int,
    penalties: Sequence[float] = PENALTIES,
    encode: Encode = published_planes,
) -> tuple[Probe, ProbeReport]:
    """One layer's probe by the whole protocol, with its controls.

    Split by game; controls: random network, raw planes, shuffled labels, the rule "the mover owns
    a queen", and a coin for each pair of squares that the kings stand on (the control task).

    Source: specification of document 5, section 2.3.
    """
    kings = data.boards.own[:, KING].view(np.int64) * 67 + data.boards.other[:, KING].view(np.int64)
    return probes.validate_penalty(
        features(network, data.boards, layer, encode),
        torch.from_numpy(data.label).long(),
        generator=torch.Generator().manual_seed(seed),
        groups=data.game,
        penalties=penalties,
        random_network=features(untrained, data.boards, layer, encode),
        raw_input=mover_planes(data.boards).flatten(1),
        trivial=torch.from_numpy(owns_queen(data.boards)).long(),
        control_groups=torch.from_numpy(kings % 1000),
        n_shuffles=1,
        fit=fit_wide,
    )


def quick_score(
    z: Tensor, data: Sample, *, seed: int, penalty: float = 100.0
) -> tuple[float, float]:
    """S on a fifth of the games, and half the width of its 95% interval; one penalty, no controls.

    For maps over many layers and checkpoints.

    Args:
        z: activations of the sample's boards, `[n, d]` (`reading.features`).
    """
    generator = torch.Generator().manual_seed(seed)
    y = torch.from_numpy(data.label).long()
    fit, test = probes.split_by_group(
        len(y), generator=generator, groups=data.game, shares=(0.8, 0.2)
    )
    scores = fit_wide(z[fit], y[fit], C=1 / penalty).score(z[test])
    correct = (scores > 0) == (y[test] == 1)
    low, high = probes.bootstrap_interval(
        2 * correct.double() - 1, generator=generator, groups=data.game[test]
    )
    return probes.detection_score(scores, y[test]).item(), (high - low).item() / 2


@dataclass(frozen=True)
class Guard:
    """What is done against a probe that is exploited (specification 5.5, remedies a to d)."""

    layers: tuple[str, ...]  # one probe each, read together
    n_edited: int = 0  # boards after one and after two random edits, labelled by the rules
    n_mined: int = 0  # boards searched in each round
    rounds: int = 0
    weight: int = 3  # how often each mined board counts
    penalty: float = 100.0
    tau: float = 0.9


def fit_reader(
    network: nn.Module,
    data: Sample,
    pool: Boards,
    concept: Concept,
    guard: Guard,
    *,
    seed: int,
    encode: Encode = published_planes,
    progress: Progress | None = None,
) -> Reader:
    """Probes of one concept, fitted as `guard` says.

    In each round, boards of the pool without the concept are maximised greedily at tau and at .99,
    the rules label what comes out, and the probes are refitted with it.

    Args:
        data: the balanced sample.
        pool: boards of the same games as they occur, to be edited and mined.

    Raises:
        ValueError: as `lib.probes.fit_wide`.
    """
    boards, label = data.boards, data.label
    draw = np.random.default_rng(seed)
    if guard.n_edited:
        start = pool[draw.choice(len(pool), guard.n_edited)]
        once = random_edits(start, 1, seed=seed)
        twice = random_edits(once[np.arange(guard.n_edited // 2)], 1, seed=seed + 1)
        boards = concatenate([boards, once, twice])
        label = np.concatenate([label, concept(once), concept(twice)])
    reader = _fitted(network, boards, label, guard, encode)
    rounds = range(guard.rounds)
    for _ in progress(rounds) if progress else rounds:
        few = pool[draw.permutation(len(pool))[: 4 * guard.n_mined]]
        start = few[candidates(reader, few, concept)[: guard.n_mined]]
        made = maximise_at(reader, start, (guard.tau, 0.99), VARIANTS["greedy"])
        found = concatenate([a.board for tau in (guard.tau, 0.99) for a in made[tau]])
        boards = concatenate([boards, *[found] * guard.weight])
        label = np.concatenate([label, *[concept(found)] * guard.weight])
        reader = _fitted(network, boards, label, guard, encode)
    return reader


def candidates(reader: Reader, boards: Boards, concept: Concept) -> Numbers:
    """Rows of the boards without the concept that the probe reads low: those to be explained."""
    low = reader.logits(boards).numpy() < LOW
    return (low & ~concept(boards)).nonzero()[0]


def false_alarms(reader: Reader, boards: Boards, concept: Concept, tau: float = 0.9) -> float:
    """Share of boards without the concept that are read as having it, after one random edit.

    Source: specification of document 5, section 5.5, remedy (d): at most 5% before any use.
    """
    edited = random_edits(boards, 1, seed=0)
    without = edited[~concept(edited)]
    goal = float(np.log(tau / (1 - tau)))
    return (reader.logits(without) >= goal).double().mean().item()


def _fitted(
    network: nn.Module, boards: Boards, label: Flags, guard: Guard, encode: Encode
) -> Reader:
    y = torch.from_numpy(label).long()
    fits = [
        fit_wide(features(network, boards, layer, encode), y, C=1 / guard.penalty)
        for layer in guard.layers
    ]
    return Reader(network, guard.layers, fits, encode)
