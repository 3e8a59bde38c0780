"""Case study II: iterative magnitude pruning, seen stage by stage.

One dense training is shared by arms that rewind to different epochs; every stage's network is
probed as it is rewound (only the mask has learned) and as it is trained. Controls at the last
stage of the arm that rewinds to the start: random masks with each layer's own sparsity, the
learned mask on another initialisation, no mask; and the same networks with the batch norms'
statistics estimated again, since a mask changes the scale of what they normalise.

Public names: `Study`, `fetch_study`, `claims_of`, `COUNTS`, `shares_after_rewinding`, `trend`,
`curve`, `curves`, `area`, `steepness`. Arms and controls are in `ticket_arms`, tables of a study in
`lottery_tables`, figures in `lottery_pictures`.

Source: document 2, section 4.1; specification section 3.2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from lib import bootstrap, training
from lib.data import scenes
from lib.data.scenes import Labelled
from lib.monitoring import cases, measures, statistics, ticket_arms
from lib.monitoring.activations import ConceptSet
from lib.monitoring.calibration import Rule
from lib.monitoring.cases import LAST, NETWORK, Setting, Task
from lib.monitoring.measures import Measured
from lib.monitoring.record import Record, Trace
from lib.training import Recipe, pruning
from lib.training.checkpoints import Checkpoints, Stage
from lib.training.pruning import Masks, State

DETECTORS = ("clip", "oracle")
STATES = ("rewound", "trained")
PERCENTS = tuple(range(10, 101, 10))


@dataclass(frozen=True)
class Study:
    """All arms of one seed, probed."""

    seed: int
    rewinds: tuple[int, ...]  # epochs: start, early, late
    stages: Mapping[int, list[Stage]]  # by epoch rewound to
    right: Mapping[int, Tensor]  # bool [stages, n_test], trained networks of each arm
    at: Setting
    rules: Mapping[tuple[str, str], Rule]
    record: Record  # arms "rewound 0", "trained 0", ..., and the controls, see `controls`
    detectors: tuple[str, ...] = DETECTORS  # the first one's words are meant unless another is
    layer: str = LAST

    def trace(self, state: str, rewind: int, detector: str | None = None) -> Trace:
        """The last layer over stages; state: rewound, trained or re-estimated."""
        return self.control(f"{state} {rewind}", detector)

    def control(self, name: str, detector: str | None = None) -> Trace:
        """Controls at the last stage: "random" (a draw a checkpoint), "other", each also with
        "re-estimated " before it."""
        return self.record.trace(detector or self.detectors[0], self.layer, name)

    @property
    def left(self) -> list[float]:
        """Share of prunable weights at each stage."""
        return [pruning.share_left(stage.masks) for stage in self.stages[self.rewinds[0]]]


def fetch_study(
    size: SimpleNamespace,
    seed: int,
    *,
    device: str = "cpu",
    progress: Callable[[range], Iterator[int]] | None = None,
) -> Study:
    """Train (or fetch), prune and probe all arms of one seed.

    Every network is trained by one thread, the arms side by side.

    Args:
        size: the notebook's sizes.
        progress: wraps the range of all arms' stages.
    """
    task, recipe = Task(size.task, size.n_train, seed), Recipe(**size.recipe)
    rewinds = tuple(size.rewinds)
    data = functools.cache(task.train_set)

    def fetch(
        epochs: Sequence[int], own: int, start: State | None, masks: Masks | None
    ) -> Checkpoints:
        return cases.fetch_run(
            task, recipe, epochs, seed=own, start=start, masks=masks, data=data, device=device
        )

    spec = {"n_out": len(task.names)}
    stages = ticket_arms.train_arms(NETWORK, spec, recipe, size, seed, fetch, progress=progress)
    test = task.test_set(size.n_test)
    right = {r: torch.stack([_right(task, s.trained, test) for s in stages[r]]) for r in rewinds}
    at = cases.setting(size.n_probe, seed, second=True)
    start = stages[rewinds[0]]
    dense = cases.network(task, start[0].trained)
    rules = cases.rules_of(at, dense, DETECTORS, [LAST], seed=seed)

    def again(state: State) -> State:
        model, n = cases.network(task, state), size.n_batches
        return ticket_arms.reestimated(
            model, task.digest, lambda: data().x, scenes.prepare, n, seed
        )

    controls = ticket_arms.controls_of(NETWORK, spec, start, rewinds[0], size.n_random, seed, again)
    arms = ticket_arms.arms_of(stages) | controls
    records = [
        cases.judged(at, task, states, rules, names=DETECTORS, layers=[LAST], arm=arm)
        for arm, states in arms.items()
    ]
    record = functools.reduce(Record.joined, records)
    return Study(seed, rewinds, stages, right, at, rules, record)


def _right(task: Task, state: State, test: Labelled) -> Tensor:
    logits = training.predict(cases.network(task, state), test.x, prepare=scenes.prepare)
    return logits.argmax(1) == test.y


def any_word(trace: Trace, concepts: ConceptSet) -> Tensor:
    """Interpretable units, colours among their words, bool `[E, M]`."""
    return trace.interpretable


COUNTS = {"not a colour": measures.counted, "any word": any_word}


def shares_after_rewinding(
    study: Study, state: str, rewind: int, detector: str | None = None
) -> Tensor:
    """Interpretable units without a colour word, bool `[stages, M]`."""
    return measures.counted(study.trace(state, rewind, detector), study.at.concepts)


def trend(units: Tensor, *, n_draws: int = 1000) -> Measured:
    """Spearman of stage and share of units, bool `[stages, M]`; 0 if the share never changes."""
    stage = torch.arange(len(units), dtype=torch.float64)

    def statistic(rows: Tensor) -> Tensor:
        shares = units.double()[:, rows].mean(-1)  # [stages, b]
        return measures.correlation(shares, stage).nan_to_num(0.0)

    return measures.measured(statistic, units.shape[1], n_draws=n_draws)


def curve(study: Study, rewind: int, state: str = "trained", detector: str | None = None) -> Tensor:
    """Retention R(x) at x = 10, 20, ..., 100%, float64 `[10]`: the word at every later stage
    equals that of the trained dense network; `state` is that of the later stages."""
    trace = study.trace("trained" if state == "trained" else "kept", rewind, detector)
    return statistics.retention(trace.h[0, :, 0], statistics.retained(trace), PERCENTS)


def curves(
    study: Study, rewind: int, state: str = "trained", detector: str | None = None
) -> tuple[Callable[[Tensor], Tensor], int]:
    """`curve` of rows of units `[b, M]` as `[10, b]`, and how many units there are.

    A unit drawn twice counts twice; its place among the best is that in the resample.
    """
    trace = study.trace("trained" if state == "trained" else "kept", rewind, detector)
    kept, score = statistics.retained(trace).double(), trace.h[0, :, 0]
    m = len(kept)
    takes = torch.tensor([-(-x * m // 100) for x in PERCENTS])

    def statistic(rows: Tensor) -> Tensor:
        order = score[rows].sort(dim=1, descending=True, stable=True).indices
        running = kept[rows].gather(1, order).cumsum(1)
        return (running[:, takes - 1] / takes).T

    return statistic, m


def area(
    study: Study, rewind: int, state: str = "trained", detector: str | None = None
) -> tuple[Callable[[Tensor], Tensor], int]:
    """Mean of R(x) for rows of units `[b, M]`, `[b]`, and how many units there are."""
    statistic, m = curves(study, rewind, state, detector)
    return (lambda rows: statistic(rows).mean(0)), m


def claims_of(studies: Sequence[Study], *, n_draws: int = 1000) -> dict[str, Measured]:
    """Claim -> value and spread: over images or units for one seed, over seeds for several."""
    each: dict[str, list[Measured]] = {}
    for study in studies:
        for name, pair in claims_of_one(study, n_draws).items():
            each.setdefault(name, []).append(pair)
    found = {name: measures.over_seeds(pairs) for name, pairs in each.items()}
    found["P2-41"] = together(studies, n_draws=n_draws)
    return found


def together(studies: Sequence[Study], *, n_draws: int = 1000) -> Measured:
    """Spearman of the area under retention and accuracy over arms and seeds; None if constant.

    Half the 95% interval when units and test images are drawn anew: with three arms of one seed
    only four values are possible, and two of the arms may lie closer than what was drawn.
    """
    arms = [(study, rewind) for study in studies for rewind in study.rewinds]
    areas = [area(study, rewind) for study, rewind in arms]
    right = torch.stack([study.right[rewind][-1] for study, rewind in arms]).double()

    def both(units: Tensor, images: Tensor) -> Tensor:
        kept = torch.stack([statistic(units) for statistic, _ in areas])
        return measures.correlation(kept, right[:, images].mean(-1))

    m, n = areas[0][1], right.shape[1]
    generator = torch.Generator().manual_seed(measures.SEED)

    def drawn(units: Tensor) -> Tensor:
        return both(units, torch.randint(n, (len(units), n), generator=generator)).nan_to_num(0.0)

    value = float(both(torch.arange(m)[None], torch.arange(n)[None])[0])
    if math.isnan(value):
        return None
    low, high = bootstrap.interval(drawn, m, generator=generator, n_draws=n_draws)
    return value, float(high - low) / 2


def claims_of_one(study: Study, n_draws: int) -> dict[str, Measured]:
    """The same of one seed; with two arms the later one is the early one and the late one."""
    start, early, late = study.rewinds[0], study.rewinds[1], study.rewinds[-1]
    right = {r: study.right[r][-1].double() for r in study.rewinds}
    learned = {r: shares_after_rewinding(study, "rewound", r) for r in study.rewinds}
    estimated = shares_after_rewinding(study, "re-estimated", start)
    masks = _mask_measures(study, n_draws)
    areas = {r: area(study, r) for r in study.rewinds}
    m = areas[start][1]
    draws = {"n_draws": n_draws}

    def early_minus_best(rows: Tensor) -> Tensor:
        others = [areas[r][0](rows) for r in study.rewinds if r != early]
        return areas[early][0](rows) - torch.stack(others).amax(0)

    return {
        "P2-30": measures.mean(right[early] - right[start], **draws),
        "P2-31": measures.mean(right[early] - right[late], **draws),
        "P2-32": (study.left[-1], 0.0),
        "P2-33": trend(learned[start], **draws),
        "P2-34": trend(learned[early], **draws),
        "P2-35": trend(learned[late], **draws),
        "P2-36": masks["mask"],
        "P2-37": trend(estimated, **draws),
        "P2-38": masks["initialisation"],
        "P2-39": measures.measured(early_minus_best, m, **draws),
        "P2-40": steepness(study, late, **draws),
    }


def _mask_measures(study: Study, n_draws: int) -> dict[str, Measured]:
    """The learned mask against random masks, no mask, and another initialisation."""
    concepts, start = study.at.concepts, study.rewinds[0]
    learned = shares_after_rewinding(study, "rewound", start).double()
    random, other = (
        measures.counted(study.control(name), concepts).double() for name in ("random", "other")
    )

    def against_masks(rows: Tensor) -> Tensor:
        best = torch.maximum(random.mean(0)[rows].mean(1), learned[0][rows].mean(1))
        return learned[-1][rows].mean(1) - best

    m = learned.shape[1]
    return {
        "mask": measures.measured(against_masks, m, n_draws=n_draws),
        "initialisation": measures.mean(learned[-1] - other.mean(0), n_draws=n_draws),
    }


def steepness(study: Study, rewind: int, *, n_draws: int = 1000) -> Measured:
    """Retention of all units minus that of the tenth that is most interpretable."""
    trace = study.trace("trained", rewind)
    kept, score = statistics.retained(trace).double(), trace.h[0, :, 0]
    tenth = -(-len(kept) // 10)

    def statistic(rows: Tensor) -> Tensor:
        order = score[rows].sort(dim=1, descending=True, stable=True).indices[:, :tenth]
        return kept[rows].mean(1) - kept[rows].gather(1, order).mean(1)

    return measures.measured(statistic, len(kept), n_draws=n_draws)
