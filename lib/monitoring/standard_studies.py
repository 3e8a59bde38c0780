"""Case study I: standard training, as document 2 looks at it, and what its sentences come to.

`fetch_study` trains and probes one seed; `measure` gives the numbers of the claims, `over_seeds`
of several; the rest are the tables of the notebook.

Public names: `Study`, `fetch_study`, `watch`, `measure`, `spread_gains`, `with_theta`,
`theta_line`, `claims_of`, `agreement_rows`, `other_set`, `OtherSet`, `other_set_rows`, `sweep`,
`risen`, `count_rows`.

Source: document 2, section 3.2, appendix C and D; specification section 3.1 and 3.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace

import torch
from torch import Tensor

from lib import models, training
from lib.data import scenes
from lib.data.annotations import CATEGORIES
from lib.monitoring import cases, measures, statistics
from lib.monitoring.activations import ConceptSet
from lib.monitoring.calibration import Rule
from lib.monitoring.cases import LAST, LAYERS, Setting, Task
from lib.monitoring.live import ConceptMonitor
from lib.monitoring.measures import Measured
from lib.monitoring.record import Record, Trace
from lib.monitoring.space import Space, concept_weights
from lib.training import Recipe
from lib.training.checkpoints import Checkpoints

WORDS = ("clip", "oracle")  # detectors that read words; the other needs masks
CUTS = (0.3, 0.4, 0.5, 0.6)  # of the attainment
NEAREST = 5


@dataclass(frozen=True)
class Study:
    """One network's training, probed."""

    seed: int
    task: Task
    checkpoints: Checkpoints
    accuracy: dict[int, float]  # on test images, after each epoch
    at: Setting
    rules: Mapping[tuple[str, str], Rule]
    record: Record  # all detectors and layers
    chance: Record  # probing images permuted
    other_at: Setting
    other: Record  # last epoch, last layer, on the second probing set

    @property
    def epochs(self) -> list[int]:
        """Completed epochs, rising."""
        return sorted(self.checkpoints)


def fetch_study(size: SimpleNamespace, seed: int, *, device: str = "cpu") -> Study:
    """Train (or fetch) and probe the network of one seed; training and probing images are its own.

    Args:
        size: the notebook's sizes.
    """
    task = Task("scenes", size.n_train, seed)
    recipe = Recipe(**size.recipe)
    checkpoints = cases.fetch_run(task, recipe, size.keep, seed=seed, device=device)
    accuracy = cases.accuracies(task, checkpoints, task.test_set(size.n_test))
    at, other_at = (cases.setting(size.n_probe, seed, second=second) for second in (False, True))
    last = {recipe.epochs: checkpoints[recipe.epochs]}
    trained = cases.network(task, last[recipe.epochs])
    rules = cases.rules_of(at, trained, seed=seed)
    blind = cases.permuted(at, seed)
    return Study(
        seed,
        task,
        checkpoints,
        accuracy,
        at,
        rules,
        cases.judged(at, task, checkpoints, rules),
        cases.judged(blind, task, checkpoints, rules, arm="permuted"),
        other_at,
        # the rule of the first set: only the images differ
        cases.judged(other_at, task, last, rules, names=WORDS, layers=[LAST], arm="other set"),
    )


def watch(
    study: Study,
    *,
    n_images: int,
    recipe: Mapping[str, object],
    on_look: Callable[[Record], object] | None = None,
) -> ConceptMonitor:
    """Train another network on a few scenes and monitor it before each epoch and after the last.

    Args:
        study: gives probing images, the detector "clip", the space and the frozen rules.
        n_images: to train on.
        recipe: of `Recipe`.
        on_look: called with the record so far.
    """
    generator = torch.Generator().manual_seed(study.seed)
    data = scenes.scenes(n_images, study.seed)
    model = models.build(cases.NETWORK, generator, n_out=len(data.names))
    at, layers = study.at, list(LAYERS)
    monitor = ConceptMonitor(
        model,
        layers,
        at.probe,
        [at.detector("clip")],
        at.space,
        at.basis,
        rules=study.rules,
        on_look=on_look,
    )
    training.train(
        model,
        data.x,
        data.y,
        Recipe(**recipe),  # type: ignore[arg-type]
        generator=generator,
        prepare=scenes.prepare,
        progress=monitor.around,
    )
    return monitor


def measure(study: Study, detector: str = "clip", *, n_draws: int = 1000) -> dict[str, Measured]:
    """The quantities of the claims for one detector, each with half its interval over units."""
    concepts, space = study.at.concepts, study.at.space
    traces = [study.record.trace(detector, layer) for layer in LAYERS]
    last, blind = traces[-1], study.chance.trace(detector, LAST)
    plain = measures.counted(last, concepts)
    right = torch.tensor([study.accuracy[epoch] for epoch in last.epochs], dtype=torch.float64)
    relative, _, n = measures.spreads(last, space)

    def with_accuracy(rows: Tensor) -> Tensor:
        shares = plain.double()[:, rows].mean(-1)  # [E, b]
        return measures.correlation(shares, right)

    m = plain.shape[1]
    by = last.epochs[len(last.epochs) // 2]
    rose = statistics.rises(last, concepts, by).double()
    rose -= statistics.rises(blind, concepts, by).double()
    options = {"n_draws": n_draws}
    return {
        "growth": measures.share_gain(plain, **options),
        "depth": measures.depth(traces, concepts, **options),
        **spread_gains(last, space, **options),
        "rises": measures.measured(lambda rows: rose[rows].sum(-1), m, **options),
        "growth and accuracy": measures.measured(with_accuracy, m, **options),
        "spread and accuracy": measures.measured(
            lambda rows: measures.correlation(relative(rows), right), n, **options
        ),
        "own anchor": own_anchor(last, space, **options),
    }


def with_theta(trace: Trace, space: Space) -> tuple[float, Trace]:
    """Theta = mean sd of a unit's five scores, and the trace with units placed by it.

    One theta for all checkpoints; Eq. 1 has theta = 1. Source: specification section 2.1.
    """
    theta = float(trace.h[~trace.dead].std(-1).mean())
    weights = concept_weights(trace.h, theta)
    u = space.place(trace.concepts, weights).half()
    return theta, replace(trace, weights=weights, u=u)


def theta_line(study: Study, detector: str = "clip", *, n_draws: int = 1000) -> str:
    """The gains of S1 and S2 (P2-12, P2-13) with theta = 1 and with that of `with_theta`."""
    last, space = study.record.trace(detector, LAST), study.at.space
    parts = []
    for theta, trace in ((1.0, last), with_theta(last, space)):
        gains = spread_gains(trace, space, n_draws=n_draws).items()
        text = [f"{name} {pair[0]:+.2f} ± {pair[1]:.2g}" for name, pair in gains if pair]
        parts.append(f"theta = {theta:.2g}: {', '.join(text)}")
    return "; ".join(parts)


def spread_gains(trace: Trace, space: Space, *, n_draws: int = 1000) -> dict[str, Measured]:
    """S1 and S2 at the last checkpoint minus the first, {"S1", "S2"}."""
    *both, n = measures.spreads(trace, space)

    def gain(spread: measures.Statistic) -> Measured:
        return measures.measured(
            lambda rows: spread(rows)[-1] - spread(rows)[0], n, n_draws=n_draws
        )

    return dict(zip(("S1", "S2"), map(gain, both), strict=True))


def own_anchor(trace: Trace, space: Space, *, n_draws: int = 1000) -> Measured:
    """Spearman over units of score and distance to the unit's own word, at the last checkpoint."""
    alive = ~trace.dead[-1]
    words = space.vectors[trace.label[-1][alive].long()]
    distance = (trace.u[-1][alive].float() - words).norm(dim=1)
    score = trace.h[-1, alive, 0]

    def statistic(rows: Tensor) -> Tensor:
        return measures.correlation(distance[rows].T, score[rows].T)

    return measures.measured(statistic, int(alive.sum()), n_draws=n_draws)


@dataclass(frozen=True)
class OtherSet:
    """What happens to the last layer's words on the second probing set."""

    before: Tensor  # int64 [m] words of interpretable units on the first set
    after: Tensor  # int64 [m] of the same units on the second
    absent: Tensor  # bool [m]: the word is of something that the second set lacks
    near: Tensor  # bool [m]: the new word is among the five present ones nearest to the old one

    @property
    def moved(self) -> tuple[int, int]:
        """Units with an absent word that went to a near one, and all of those."""
        return int((self.near & self.absent).sum()), int(self.absent.sum())


def other_set(first: Trace, second: Trace, space: Space, coverage: Tensor) -> OtherSet:
    """Words of interpretable units at the last checkpoint on both sets.

    Both sets are asked for the same words, as the document does; one that names what is not there
    can be given, and then counts as neither near nor kept.

    Args:
        first, second: the same units on each set.
        space: of the words.
        coverage: of the second set by the words, `[N, C]`; one that covers nothing is missing.

    Raises:
        ValueError: coverage of another number of words.
    """
    if coverage.shape[1:] != space.vectors.shape[:1]:
        raise ValueError(
            f"want the coverage of {len(space.vectors)} words, got {tuple(coverage.shape)}"
        )
    units = first.interpretable[-1]
    before, after = (t.label[-1][units].long() for t in (first, second))
    missing = (coverage == 0).all(0)
    likeness = space.vectors @ space.vectors.T
    likeness[:, missing] = -torch.inf
    nearest = likeness.topk(min(NEAREST, int((~missing).sum())), dim=1).indices  # [C, 5]
    near = (nearest[before] == after[:, None]).any(1)
    return OtherSet(before, after, missing[before], near)


def measure_other_set(
    study: Study, detector: str = "clip", *, n_draws: int = 1000
) -> tuple[OtherSet, dict[str, Measured]]:
    """The found words, and the two shares of the claims: (OtherSet, {"moved", "kept"})."""
    found = other_set(
        study.record.trace(detector, LAST),
        study.other.trace(detector, LAST),
        study.at.space,
        study.other_at.annotations.coverage(),
    )
    near = found.near[found.absent].double()
    kept = (found.after == found.before)[~found.absent].double()
    return found, {
        "moved": measures.mean(near, n_draws=n_draws),
        "kept": measures.mean(kept, n_draws=n_draws),
    }


def other_set_rows(study: Study) -> list[dict[str, object]]:
    """What became of the words of interpretable units, a row a detector."""
    rows: list[dict[str, object]] = []
    for name in WORDS:
        found, shares = measure_other_set(study, name)
        likeness = (study.at.space.vectors[found.before] * study.at.space.vectors[found.after]).sum(
            1
        )
        stays = int((found.absent & (found.before == found.after)).sum())
        rows.append(
            {
                "detector": name,
                "units": len(found.before),
                "thing missing": found.moved[1],
                "to a near word": found.moved[0],
                "keep the missing word": stays,
                "others that keep theirs": shares["kept"] or "",
                "mean cosine of words": float(likeness.mean()),
            }
        )
    return rows


def claims_of(studies: Sequence[Study], *, n_draws: int = 1000) -> dict[str, Measured]:
    """Claim -> value and spread: over units for one seed, over seeds for several."""
    each: dict[str, list[Measured]] = {}
    for study in studies:
        ours = measure(study, n_draws=n_draws)
        masks = measure(study, "net_dissection", n_draws=n_draws)
        other = measure_other_set(study, n_draws=n_draws)[1]
        found = {
            "P2-10": ours["growth"],
            "P2-11": ours["depth"],
            "P2-12": ours["S1"],
            "P2-13": ours["S2"],
            "P2-14": ours["rises"],
            "P2-15": ours["growth and accuracy"],
            "P2-16": ours["spread and accuracy"],
            "P2-17": ours["own anchor"],
            "P2-18": masks["growth"],
            "P2-19": masks["depth"],
            "P2-20": other["moved"],
            "P2-21": other["kept"],
        }
        for name, pair in found.items():
            each.setdefault(name, []).append(pair)
    return {name: measures.over_seeds(pairs) for name, pairs in each.items()}


def sweep(trace: Trace, rule: Rule, concepts: ConceptSet) -> Tensor:
    """Interpretable units without colour for each cut of `CUTS` and epoch, int64 `[cuts, E]`."""
    return torch.stack(
        [
            measures.counted(trace.judged(Rule(rule.tau, cut, rule.alpha)), concepts).sum(1)
            for cut in CUTS
        ]
    )


def agreement_rows(study: Study) -> list[dict[str, object]]:
    """How detectors agree on Network Dissection's detectors of each layer, a row an epoch."""
    rows: list[dict[str, object]] = []
    for layer in LAYERS:
        masks = study.record.trace("net_dissection", layer)
        for at, epoch in enumerate(masks.epochs):
            units = masks.interpretable[at]
            row: dict[str, object] = {"layer": layer, "epoch": epoch, "detectors": int(units.sum())}
            for name in WORDS:
                words = study.record.trace(name, layer).label[at][units]
                best = masks.concepts[at][units]
                same = (best[:, 0] == words).double().mean()
                among = (best == words[:, None]).any(1).double().mean()
                both = measures.kinds(torch.stack([best[:, 0], words]), study.at.concepts)
                kind = (both[0] == both[1]).double().mean()
                row |= (
                    {
                        f"{name}: same word": float(same),
                        "category": float(kind),
                        "in top 5": float(among),
                    }
                    if name == "clip"
                    else {"oracle: in top 5": float(among)}
                )
            rows.append(row)
    return [row for row in rows if row["detectors"]]


def count_rows(study: Study) -> list[dict[str, object]]:
    """Last layer, a row an epoch: accuracy, counts by detector, and what chance gives.

    The last column is alpha M, in the order of the detectors: units by chance that pass the score
    alone; the numbers in brackets also ask for the attainment.
    """
    rows = []
    for at, epoch in enumerate(study.epochs):
        row: dict[str, object] = {"epochs": epoch, "accuracy": study.accuracy[epoch]}
        expected = []
        for name in cases.DETECTORS:
            trace, blind = (r.trace(name, LAST) for r in (study.record, study.chance))
            plain, null = (
                int(measures.counted(t, study.at.concepts)[at].sum()) for t in (trace, blind)
            )
            colours = int(trace.interpretable[at].sum()) - plain
            row[name.replace("_", " ")] = f"{plain} + {colours} (chance {null})"
            share = study.rules[name, LAST].expected(trace.label.shape[1])
            expected.append("" if share is None else f"{share:.2g}")
        row["above the score by chance"] = " / ".join(expected)
        rows.append(row)
    return rows


def risen(study: Study, detector: str = "clip") -> Tensor:
    """Units of the last layer that went from a pattern to a thing and stayed, best score first."""
    trace = study.record.trace(detector, LAST)
    by = trace.epochs[len(trace.epochs) // 2]
    units = statistics.rises(trace, study.at.concepts, by).nonzero()[:, 0]
    return units[trace.h[-1, units, 0].argsort(descending=True, stable=True)]


def category_counts(trace: Trace, concepts: ConceptSet) -> Tensor:
    """Interpretable units by category, int64 `[E, 6]`."""
    found = measures.kinds(trace.label, concepts)
    return torch.stack(
        [((found == k) & trace.interpretable).sum(1) for k in range(len(CATEGORIES))], 1
    )
