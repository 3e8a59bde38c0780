"""Case study III, and I, on real data: CIFAR-10 trained plainly and against an attack.

As `adversarial_studies` on scenes: both arms have the same images, first weights, order and
recipe, and the rule that calls a unit interpretable is fitted on the plain arm's last network.
Its plain arm is also a standard training seen epoch by epoch (case I). No image has a label of a
material or a scene, so nothing is said about those; of the classes only the automobile has a word
among the labels of the probing images ("car").

Public names: `Pair`, `fetch_pairs`, `counts_of`, `claims_of`, `pair_rows`, `colour_rows`,
`denominator_rows`, `said`, `note`.

Source: document 2, section 3.2 and 4.2; specification section 3.1, 3.3 and 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from lib import cache
from lib.data.annotations import CATEGORIES
from lib.monitoring import measures, real_cases
from lib.monitoring.adversarial_studies import ARMS, PUBLISHED, SAID, accuracy_difference
from lib.monitoring.calibration import Rule
from lib.monitoring.case_pictures import NAMES
from lib.monitoring.dissection import DENOMINATORS, detectors_by_category
from lib.monitoring.measures import Measured
from lib.monitoring.real_cases import AS_PUBLISHED, DETECTORS, LAST, LAYERS, Against, Setting, Task
from lib.monitoring.record import Record
from lib.monitoring.stored import code_of, hash_of
from lib.training import Recipe
from lib.training.adversarial import Attack, Robustness, robustness
from lib.training.checkpoints import Checkpoints
from lib.training.loop import Progress
from lib.training.pruning import State

CLASS_WORD = "car"  # what street scenes call an automobile
KINDS = ("object", "part", "texture", "color")  # that the probing images have labels of


@dataclass(frozen=True)
class Pair:
    """Both arms, probed."""

    seed: int
    task: Task
    checkpoints: Mapping[str, Checkpoints]  # by arm; epoch 0 is the same network
    measured: Mapping[str, Robustness]  # of the last networks
    at: Setting
    rules: Mapping[tuple[str, str], Rule]
    record: Record  # both arms
    chance: Record  # both arms, images in another order within their source
    second: Record  # last networks on the second probing set, which has colours alone

    @property
    def epochs(self) -> list[int]:
        """Completed epochs at which the networks were probed."""
        return sorted(self.checkpoints[ARMS[0]])


def fetch_pairs(
    sizes: Sequence[Mapping[str, object]],
    root: Path,
    *,
    seed: int,
    device: str = "cpu",
    progress: Progress | None = None,
    against: Against = AS_PUBLISHED,
) -> list[Pair]:
    """Train (or fetch) and probe a pair of networks for each size; none for no sizes.

    Args:
        sizes: of a profile; quick has none, because the data are not embedded.
        root: DATA_ROOT.
        progress: wraps the range of epochs of each training.
        against: what to verify data against.

    Raises:
        MissingData: a data set is not below `root`.
    """
    return [
        _fetch(SimpleNamespace(**size), root, seed + k, device, progress, against)
        for k, size in enumerate(sizes)
    ]


def _fetch(
    size: SimpleNamespace,
    root: Path,
    seed: int,
    device: str,
    progress: Progress | None,
    against: Against,
) -> Pair:
    of, (first, other) = real_cases.load(size, root, against, second=True)
    checkpoints = train(of, size, seed, device=device, progress=progress)
    epochs = max(checkpoints[ARMS[0]])
    last = {arm: states[epochs] for arm, states in checkpoints.items()}
    measured = {arm: _robustness(of, state, size, seed) for arm, state in last.items()}
    at, second = real_cases.setting(first, seed), real_cases.setting(other, seed)
    plain = real_cases.network(of, last[ARMS[0]])
    rules = real_cases.rules_of(at, plain)
    pairs = [real_cases.judged(at, of, s, rules, arm=arm) for arm, s in checkpoints.items()]
    again = real_cases.rules_of(second, plain)
    seconds = [
        real_cases.judged(second, of, {epochs: state}, again, arm=arm)[0]
        for arm, state in last.items()
    ]
    record, chance = (a.joined(b) for a, b in zip(*pairs, strict=True))
    joined = seconds[0].joined(seconds[1])
    return Pair(seed, of, checkpoints, measured, at, rules, record, chance, joined)


def train(
    of: Task,
    size: SimpleNamespace,
    seed: int,
    *,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Checkpoints]:
    """Both arms through the cache, the plain one first."""
    recipe, attack = Recipe(**size.recipe), Attack(**size.attack)
    keep = (0, *size.keep)
    return {
        arm: real_cases.fetch_run(
            of, recipe, keep, seed=seed, attack=how, device=device, progress=progress
        )
        for arm, how in zip(ARMS, (None, attack), strict=True)
    }


def _robustness(
    of: Task, state: Mapping[str, Tensor], size: SimpleNamespace, seed: int
) -> Robustness:
    """Which test images are read rightly, clean and under the strong attack; cached."""
    strong = Attack(**size.evaluation, spare_fooled=True)

    def build() -> dict[str, Tensor]:
        found = robustness(
            real_cases.network(of, dict(state)),
            of.test.x,
            of.test.y,
            strong,
            seed=seed,
            pixels=real_cases.pixels,
            normalise=real_cases.normalise,
        )
        return {"clean": found.clean, "attacked": found.attacked}

    config = {
        "state": cache.state_hash(state),
        "test": cache.state_hash({"x": of.test.x, "y": of.test.y}),
        "attack": strong.__dict__,
        "seed": seed,
    }
    code: list[Callable[..., object]] = [robustness, real_cases.pixels, real_cases.normalise]
    return Robustness(**cache.fetch("robustness", config, build, code=code))


def counts_of(
    pair: Pair, arm: str, detector: str = "oracle", *, record: Record | None = None, step: int = -1
) -> dict[str, Tensor]:
    """What the document counts, as bool over units of one checkpoint's network.

    Args:
        record: another than the pair's own, for instance `pair.chance`.
        step: place of the checkpoint.

    Returns:
        The interpretable units of each layer, `[M]`; of all layers together those of a category
        (`object`, `part`, `texture`, `color`), `[sum M]`; and the last layer's that are named
        "car" (`classes`), `[M]`.
    """
    record = record or pair.record
    concepts = record.space.concepts
    traces = {layer: record.trace(detector, layer, arm) for layer in LAYERS}
    found = {layer: trace.interpretable[step] for layer, trace in traces.items()}
    label = torch.cat([measures.kinds(t.label[step], concepts) for t in traces.values()])
    passes = torch.cat(list(found.values()))
    for name in KINDS:
        found[name] = passes & (label == CATEGORIES.index(name))
    if CLASS_WORD in concepts.words:
        number = concepts.number(CLASS_WORD)
        found["classes"] = found[LAST] & (traces[LAST].label[step] == number)
    return found


def differences(
    pair: Pair, detector: str = "oracle", *, n_draws: int = 1000
) -> dict[str, Measured]:
    """Share of units, robust minus standard, of everything in `counts_of`."""
    standard, robust = (counts_of(pair, arm, detector) for arm in ARMS)
    return {
        name: measures.share_difference(robust[name], standard[name], n_draws=n_draws)
        for name in standard
    }


CLAIMS = ("P2-70", "P2-71", "P2-72", "P2-73", "P2-74", "P2-75", "P2-76", "P2-77")


def claims_of(pairs: Sequence[Pair], *, n_draws: int = 1000) -> dict[str, Measured]:
    """Claim -> value and spread over images or units (over seeds for several); None without."""
    each: dict[str, list[Measured]] = {name: [] for name in CLAIMS}
    for pair in pairs:
        standard, robust = (pair.measured[arm] for arm in ARMS)
        more = differences(pair, n_draws=n_draws)
        plain = pair.record.trace("oracle", LAST, ARMS[0])
        words = measures.counted(plain, pair.at.concepts)
        found = {
            "P2-70": accuracy_difference(standard.clean, robust.clean, n_draws=n_draws),
            "P2-71": accuracy_difference(robust.attacked, standard.attacked, n_draws=n_draws),
            "P2-72": _less(more[LAST]),
            "P2-73": more[LAYERS[-2]],
            "P2-74": more["color"],
            "P2-75": _less(more["texture"]),
            "P2-76": _less(more.get("classes")),
            "P2-77": measures.share_gain(words, n_draws=n_draws),
        }
        for name, measured in found.items():
            each[name].append(measured)
    return {name: measures.over_seeds(measured) for name, measured in each.items()}


def _less(measured: Measured) -> Measured:
    """The same difference seen from the other arm."""
    return None if measured is None else (0.0 - measured[0], measured[1])  # never -0


# the document's counts, of layers that stand where ours do
LIKE = {"layer2": "layer3", "layer3": "layer4", "color": "color", "texture": "texture"}


def pair_rows(pair: Pair) -> list[dict[str, object]]:
    """Counts of both arms by each detector, the null's in brackets, beside the document's.

    A row a quantity.
    """
    rows: list[dict[str, object]] = []
    found = {
        (name, arm, kind): counts_of(pair, arm, name, record=record)
        for name in DETECTORS
        for arm in ARMS
        for kind, record in (("", pair.record), ("null", pair.chance))
    }
    for key, units in found["oracle", ARMS[0], ""].items():
        row: dict[str, object] = {"units": _said(key), "of": len(units)}
        for name in DETECTORS:
            row[NAMES[name]] = " / ".join(
                f"{int(found[name, arm, ''][key].sum())} "
                f"({int(found[name, arm, 'null'][key].sum())})"
                for arm in ARMS
            )
        published = PUBLISHED.get(LIKE.get(key, ""))
        row["document"] = f"{published[0]} / {published[1]} of {published[2]}" if published else ""
        rows.append(row)
    return rows


def colour_rows(pair: Pair) -> list[dict[str, object]]:
    """Interpretable units of the last networks on the second probing set: colours alone."""
    rows: list[dict[str, object]] = []
    for layer in LAYERS:
        row: dict[str, object] = {"layer": layer}
        for name in DETECTORS:
            traces = [pair.second.trace(name, layer, arm) for arm in ARMS]
            row["of"] = traces[0].label.shape[1]
            row[NAMES[name]] = " / ".join(str(int(t.interpretable[-1].sum())) for t in traces)
        rows.append(row)
    return rows


def denominator_rows(pair: Pair) -> list[dict[str, object]]:
    """Detectors of Network Dissection (distinct ones) with each of the three published unions."""
    rows: list[dict[str, object]] = []
    categories = pair.at.real.annotations.categories
    for arm in ARMS:
        found = _overlaps(pair, pair.checkpoints[arm][pair.epochs[-1]])
        for layer in LAYERS:
            row: dict[str, object] = {"network": arm, "layer": layer}
            for denominator in DENOMINATORS:
                iou = found[f"{denominator}/{layer}"]
                n, distinct = detectors_by_category(iou, categories)["all"]
                row["units"] = len(iou)
                row[denominator] = f"{n} ({distinct}), best {float(iou.max()):.3f}"
            rows.append(row)
    return rows


def _overlaps(pair: Pair, state: State) -> dict[str, Tensor]:
    """Intersections over union of all layers with each denominator, through the cache."""
    model, at = real_cases.network(pair.task, state), pair.at
    detectors = {name: at.real.dissection(name) for name in DENOMINATORS}
    config = {
        "weights": cache.state_hash(state),
        "probe": hash_of(at.probe),
        "detectors": [d.digest for d in detectors.values()],
    }

    def build() -> dict[str, Tensor]:
        acts = at.probe.activations(model, LAYERS, maps=True)
        return {
            f"{name}/{layer}": detector.detect(acts[layer]).h
            for name, detector in detectors.items()
            for layer in LAYERS
        }

    code = code_of(model, at.probe, list(detectors.values()))
    return cache.fetch("real-denominators", config, build, code=code)


def _said(key: str) -> str:
    own = {"object": "object words", "part": "part words", "classes": f'named "{CLASS_WORD}"'}
    return own.get(key) or SAID.get(key, key)


def said(pairs: Sequence[Pair]) -> str:
    """What the networks and probing images are, a line each, or that there are none."""
    if not pairs:
        return "not at this profile: real data are not embedded; `full` reads them from DATA_ROOT"
    lines = []
    for pair in pairs:
        lines.append(real_cases.said(pair.task, pair.at))
        for arm, found in pair.measured.items():
            lines.append(
                f"{arm}: accuracy {found.clean_accuracy:.3f}, attacked "
                f"{found.attacked_accuracy:.3f} ({len(found.clean):,} test images)"
            )
    return "\n".join(lines)


def note(pair: Pair) -> str:
    """What a figure's foot says: data, length, null."""
    n, last = len(pair.task.train), pair.epochs[-1]
    return (
        f"ResNet-20, {n:,} images of CIFAR-10, {last} epochs, seed {pair.seed}; "
        f"{len(pair.at):,} probing images\nof streets, clothing, textures, no materials or scenes; "
        "black: images permuted within their source"
    )
