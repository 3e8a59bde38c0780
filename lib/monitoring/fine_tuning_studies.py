"""Case study IV: a network that knows things learns to grade retinas.

A network trained on close-ups of things gets a new last layer and trains on, all layers free, on
images like a retina's whose grade is a number of dark dots. It is probed at chosen epochs with
the same probing set; epoch 0 is the network before. The rule that calls a unit interpretable is
fitted on that one and frozen.

Public names: `Study`, `fetch_study`, `claims_of`, `best_units`, `low_among_best`, `shares`,
`epoch_rows`.

Source: document 2, section 4.3; specification section 3.4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from lib import training
from lib.data import scenes
from lib.data.annotations import CATEGORIES
from lib.data.scenes import Labelled
from lib.monitoring import cases, measures
from lib.monitoring.activations import ConceptSet
from lib.monitoring.calibration import Rule
from lib.monitoring.cases import LAST, NETWORK, Setting, Task
from lib.monitoring.measures import Measured
from lib.monitoring.record import Record, Trace
from lib.monitoring.statistics import LOW
from lib.training import Recipe
from lib.training.checkpoints import Checkpoints

BEST = 5  # most interpretable units, as many as the document shows


@dataclass(frozen=True)
class Study:
    """One network, before and while it is fine-tuned."""

    seed: int
    task: Task
    test: Labelled
    checkpoints: Checkpoints  # completed epochs of fine-tuning; 0: before
    right: Mapping[int, Tensor]  # bool [n_test] after each epoch; at 0 the last layer is random
    majority: float  # share of the most frequent grade among test images
    at: Setting
    rules: Mapping[tuple[str, str], Rule]
    record: Record
    chance: Record  # probing images permuted

    @property
    def epochs(self) -> list[int]:
        """Completed epochs of fine-tuning, rising."""
        return sorted(self.checkpoints)


def fetch_study(size: SimpleNamespace, seed: int, *, device: str = "cpu") -> Study:
    """Train (or fetch) the network before, fine-tune and probe it.

    Args:
        size: the notebook's sizes.
    """
    before, task = Task("objects", size.n_before, seed), Task("fundus", size.n_train, seed)
    first = Recipe(**size.before)
    known = cases.fetch_run(before, first, size.before_keep, seed=seed, device=device)
    start = training.with_new_head(
        NETWORK,
        {"n_out": len(task.names)},
        known[first.epochs],
        head="fc",
        generator=torch.Generator().manual_seed(seed),
    )
    recipe = Recipe(**size.recipe)
    checkpoints = cases.fetch_run(task, recipe, size.keep, seed=seed, start=start, device=device)
    test = task.test_set(size.n_test)
    right = {epoch: _right(task, state, test) for epoch, state in checkpoints.items()}
    at = cases.setting(size.n_probe, seed)
    rules = cases.rules_of(at, cases.network(task, checkpoints[0]), layers=[LAST], seed=seed)
    records = [
        cases.judged(s, task, checkpoints, rules, layers=[LAST], arm="fine-tuned")
        for s in (at, cases.permuted(at, seed))
    ]
    majority = float(test.y.bincount().max()) / len(test)
    return Study(seed, task, test, checkpoints, right, majority, at, rules, *records)


def _right(task: Task, state: dict[str, Tensor], test: Labelled) -> Tensor:
    logits = training.predict(cases.network(task, state), test.x, prepare=scenes.prepare)
    return logits.argmax(1) == test.y


def shares(trace: Trace, concepts: ConceptSet, category: str) -> Tensor:
    """Interpretable units with a word of the category, bool `[E, M]`."""
    kinds = measures.kinds(trace.label, concepts)
    return trace.interpretable & (kinds == CATEGORIES.index(category))


def best_units(trace: Trace, at: int, n: int = BEST) -> Tensor:
    """The n most interpretable units of a checkpoint, best first; those that are not come last.

    Args:
        at: row of the trace.
    """
    score = trace.h[at, :, 0].masked_fill(~trace.interpretable[at], -torch.inf)
    return score.argsort(descending=True, stable=True)[:n]


def low_among_best(
    trace: Trace, concepts: ConceptSet, n: int = BEST, *, n_draws: int = 1000
) -> Measured:
    """Share of low-level words among the n best units, last checkpoint minus first."""
    low = torch.tensor([CATEGORIES.index(name) for name in LOW])
    is_low = torch.isin(measures.kinds(trace.label, concepts), low).double()
    score = trace.h[:, :, 0].masked_fill(~trace.interpretable, -torch.inf)

    def statistic(rows: Tensor) -> Tensor:
        found = []
        for at in (0, -1):
            order = score[at][rows].sort(dim=1, descending=True, stable=True).indices[:, :n]
            found.append(is_low[at][rows].gather(1, order).mean(1))
        return found[1] - found[0]

    return measures.measured(statistic, score.shape[1], n_draws=n_draws)


def claims_of(studies: Sequence[Study], *, n_draws: int = 1000) -> dict[str, Measured]:
    """Claim -> value and spread: over units or images for one seed, over seeds for several."""
    each: dict[str, list[Measured]] = {}
    for study in studies:
        trace, concepts = study.record.trace("clip", LAST), study.at.concepts
        lost = measures.share_gain(shares(trace, concepts, "object"), n_draws=n_draws)
        right = study.right[study.epochs[-1]].double() - study.majority
        found = {
            "P2-60": None if lost is None else (-lost[0], lost[1]),
            "P2-61": measures.share_gain(shares(trace, concepts, "material"), n_draws=n_draws),
            "P2-62": low_among_best(trace, concepts, n_draws=n_draws),
            "P2-63": measures.mean(right, n_draws=n_draws),
        }
        for name, pair in found.items():
            each.setdefault(name, []).append(pair)
    return {name: measures.over_seeds(pairs) for name, pairs in each.items()}


def epoch_rows(study: Study) -> list[dict[str, object]]:
    """A row an epoch: accuracy, units by category for each detector, and the best units' words."""
    rows: list[dict[str, object]] = []
    concepts = study.at.concepts
    for at, epoch in enumerate(study.epochs):
        row: dict[str, object] = {
            "epochs": epoch,
            "accuracy": float(study.right[epoch].double().mean()),
        }
        for name in cases.DETECTORS:
            trace = study.record.trace(name, LAST)
            counts = [
                int(shares(trace, concepts, kind)[at].sum())
                for kind in ("object", "part", "scene", "material", "texture", "color")
            ]
            row[name.replace("_", " ")] = " ".join(str(count) for count in counts)
        trace = study.record.trace("clip", LAST)
        words = [concepts.words[int(trace.label[at, k])] for k in best_units(trace, at)]
        row["five best"] = ", ".join(words)
        rows.append(row)
    return rows
