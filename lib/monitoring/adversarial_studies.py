"""Case study III: the same network trained plainly and against an attack.

Both arms have the same images, initial weights, order of batches, recipe and number of epochs;
one sees attacked batches. The rule that calls a unit interpretable is fitted on the plain arm's
last network and frozen for both.

Public names: `Study`, `fetch_study`, `counts_of`, `claims_of`, `arm_rows`, `differences`,
`class_units`, `class_rows`, `examples`.

Source: document 2, section 4.2; specification section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from lib.data.annotations import CATEGORIES
from lib.data.scenes import Labelled
from lib.monitoring import cases, measures
from lib.monitoring.calibration import Rule
from lib.monitoring.cases import LAST, LAYERS, Setting, Task
from lib.monitoring.measures import Measured
from lib.monitoring.record import Record
from lib.training import Recipe
from lib.training.adversarial import Attack, Robustness, attacked, robustness
from lib.training.checkpoints import Checkpoints

ARMS = ("standard", "robust")
CUTS = (0.3, 0.4, 0.5, 0.6)


@dataclass(frozen=True)
class Study:
    """Both arms of one seed, probed."""

    seed: int
    task: Task
    test: Labelled
    checkpoints: Mapping[str, Checkpoints]  # by arm; epoch 0 is the same network
    measured: Mapping[str, Robustness]  # of the last networks
    at: Setting
    rules: Mapping[tuple[str, str], Rule]
    record: Record  # both arms
    chance: Record  # both arms, probing images permuted

    @property
    def epochs(self) -> list[int]:
        """Completed epochs at which the networks were probed."""
        return sorted(self.checkpoints[ARMS[0]])


def fetch_study(size: SimpleNamespace, seed: int, *, device: str = "cpu") -> Study:
    """Train (or fetch) and probe both arms of one seed.

    Args:
        size: the notebook's sizes.
    """
    task, recipe = Task("objects", size.n_train, seed), Recipe(**size.recipe)
    attack = Attack(**size.attack)
    keep = (0, *size.keep)
    checkpoints = {
        arm: cases.fetch_run(task, recipe, keep, seed=seed, attack=how, device=device)
        for arm, how in zip(ARMS, (None, attack), strict=True)
    }
    test = task.test_set(size.n_test)
    strong = Attack(**size.evaluation, spare_fooled=True)
    measured = {
        arm: robustness(
            cases.network(task, states[recipe.epochs]),
            test.x,
            test.y,
            strong,
            seed=seed,
            pixels=cases.pixels,
            normalise=cases.normalise,
        )
        for arm, states in checkpoints.items()
    }
    at = cases.setting(size.n_probe, seed)
    blind = cases.permuted(at, seed)
    last = cases.network(task, checkpoints["standard"][recipe.epochs])
    rules = cases.rules_of(at, last, seed=seed)
    records = [
        [cases.judged(s, task, states, rules, arm=arm) for arm, states in checkpoints.items()]
        for s in (at, blind)
    ]
    both, chance = (first.joined(second) for first, second in records)
    return Study(seed, task, test, checkpoints, measured, at, rules, both, chance)


def counts_of(study: Study, arm: str, detector: str = "clip") -> dict[str, Tensor]:
    """What the document counts, as bool over units of the last network.

    Returns:
        The interpretable units of each layer (`layer2` ...), `[M]`; of all layers together those
        of a category (`color`, `texture`, `material`), `[sum M]`; and the last layer's that are
        named as a class (`classes`), `[M]`.
    """
    traces = {layer: study.record.trace(detector, layer, arm) for layer in LAYERS}
    found = {layer: trace.interpretable[-1] for layer, trace in traces.items()}
    concepts = study.at.concepts
    label = torch.cat([measures.kinds(t.label[-1], concepts) for t in traces.values()])
    passes = torch.cat(list(found.values()))
    for name in ("color", "texture", "material"):
        found[name] = passes & (label == CATEGORIES.index(name))
    found["classes"] = class_units(study, arm, detector) >= 0
    return found


def class_units(study: Study, arm: str, detector: str = "clip") -> Tensor:
    """Class that each unit of the last layer is named as, int64 `[M]`; -1 for none.

    A class's word is its own name, which is one of the concepts.
    """
    trace = study.record.trace(detector, LAST, arm)
    numbers = torch.full((len(study.at.concepts),), -1)
    for k, name in enumerate(study.task.names):
        numbers[study.at.concepts.number(name)] = k
    found = numbers[trace.label[-1].long()]
    return torch.where(trace.interpretable[-1], found, -1)


def accuracy_difference(a: Tensor, b: Tensor, *, n_draws: int = 1000) -> Measured:
    """Share of right images of a minus that of b, the same images drawn for both, bool `[n]`."""
    return measures.mean(a.double() - b.double(), n_draws=n_draws)


def differences(
    study: Study, detector: str = "clip", *, n_draws: int = 1000
) -> dict[str, Measured]:
    """Share of units, robust minus standard, of everything in `counts_of`."""
    standard, robust = (counts_of(study, arm, detector) for arm in ARMS)
    return {
        name: measures.share_difference(robust[name], standard[name], n_draws=n_draws)
        for name in standard
    }


def _less(pair: Measured) -> Measured:
    """The same difference seen from the other arm."""
    return None if pair is None else (-pair[0], pair[1])


def claims_of(studies: Sequence[Study], *, n_draws: int = 1000) -> dict[str, Measured]:
    """Claim -> value and spread: over images or units for one seed, over seeds for several."""
    each: dict[str, list[Measured]] = {}
    for study in studies:
        standard, robust = (study.measured[arm] for arm in ARMS)
        more = differences(study, n_draws=n_draws)
        found = {
            "P2-50": accuracy_difference(standard.clean, robust.clean, n_draws=n_draws),
            "P2-51": accuracy_difference(robust.attacked, standard.attacked, n_draws=n_draws),
            "P2-52": _less(more["layer4"]),
            "P2-53": more["layer3"],
            "P2-54": more["layer2"],
            "P2-55": more["color"],
            "P2-56": _less(more["texture"]),
            "P2-57": _less(more["material"]),
            "P2-58": _less(more["classes"]),
        }
        for name, pair in found.items():
            each.setdefault(name, []).append(pair)
    return {name: measures.over_seeds(pairs) for name, pairs in each.items()}


# what the document counts, out of how many units: standard, robust
PUBLISHED: dict[str, tuple[int, int, int]] = {
    "layer3": (91, 125, 256),
    "layer4": (293, 215, 512),
    "color": (15, 74, 896),
    "texture": (154, 97, 896),
    "material": (10, 2, 896),
    "classes": (30, 0, 512),
}
SAID = {"color": "colour words", "texture": "texture words", "material": "material words"}


def arm_rows(study: Study) -> list[dict[str, object]]:
    """Counts of both arms by each detector, beside the document's; a row a quantity."""
    rows: list[dict[str, object]] = []
    found = {name: [counts_of(study, arm, name) for arm in ARMS] for name in cases.DETECTORS}
    for key in (*LAYERS, "color", "texture", "material", "classes"):
        published = PUBLISHED.get(key)
        row: dict[str, object] = {
            "units": SAID.get(key, "named as a class" if key == "classes" else key),
            "of": len(found["clip"][0][key]),
        }
        for name, (standard, robust) in found.items():
            row[name.replace("_", " ")] = f"{int(standard[key].sum())} / {int(robust[key].sum())}"
        row["document"] = f"{published[0]} / {published[1]} of {published[2]}" if published else ""
        rows.append(row)
    return rows


def cut_counts(study: Study, detector: str = "clip") -> dict[tuple[str, str], list[int]]:
    """Interpretable units of (arm, layer) at the last checkpoint for each cut of `CUTS`."""
    found = {}
    for arm in ARMS:
        for layer in LAYERS:
            trace, rule = study.record.trace(detector, layer, arm), study.rules[detector, layer]
            found[arm, layer] = [
                int(trace.judged(Rule(rule.tau, cut, rule.alpha)).interpretable[-1].sum())
                for cut in CUTS
            ]
    return found


def class_rows(study: Study) -> list[dict[str, object]]:
    """Units of the last layer named as each class, standard / robust, by detector."""
    rows: list[dict[str, object]] = []
    for k, word in enumerate(study.task.names):
        row: dict[str, object] = {"class": word}
        for name in cases.DETECTORS:
            both = [int((class_units(study, arm, name) == k).sum()) for arm in ARMS]
            row[name.replace("_", " ")] = f"{both[0]} / {both[1]}"
        rows.append(row)
    return rows


def examples(
    study: Study, size: SimpleNamespace, n: int = 6
) -> dict[str, tuple[Tensor, Tensor, list[str]]]:
    """Test images as each arm's attack changes them: images, changes, and what is then read.

    Returns:
        arm -> attacked images `[n, 3, h, w]` in [0, 1], changes of the same shape, class names.
    """
    x, y = cases.pixels(study.test.x[:n]), study.test.y[:n]
    found = {}
    for arm in ARMS:
        model = cases.network(study.task, study.checkpoints[arm][study.epochs[-1]])

        def classify(images: Tensor, model: torch.nn.Module = model) -> Tensor:
            return model(cases.normalise(images))

        generator = torch.Generator().manual_seed(study.seed)
        changed = attacked(classify, x, y, Attack(**size.evaluation), generator=generator)
        with torch.no_grad():
            read = classify(changed).argmax(1).tolist()
        found[arm] = (changed, changed - x, [study.task.names[k] for k in read])
    return found
