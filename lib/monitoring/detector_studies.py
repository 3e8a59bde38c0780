"""What notebook 21 measures beside planted units: agreement of detectors, the null, two spaces.

Planted units are in `planted_units`; here are their probing sets.

Public names: `fetch_set`, `Agreement`, `agreement`, `agreement_rows`, `denominator_rows`,
`white_noise`, `pooled`, `placed`, `Seconds`, `Compared`, `embedder`, `builder`,
`timed`, `compare_spaces`, `table_1`, `claims_of`.

Source: document 2, section 3.1 and table 1; specification section 1, 3.5, 4.5 and 7.1.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import bootstrap, cache, claims
from lib.data import scenes
from lib.data.annotations import CATEGORIES, Annotations
from lib.monitoring import encoder, stored
from lib.monitoring.activations import ConceptScores, ConceptSet, LayerActivations
from lib.monitoring.calibration import Rule
from lib.monitoring.cases import LAYERS, Setting
from lib.monitoring.detectors import Detector, clip_dissect
from lib.monitoring.dissection import DENOMINATORS, NetworkDissection, detectors_by_category
from lib.monitoring.learned_space import LearnedSpace, learn, moves, place
from lib.monitoring.planted_units import CHOSEN, ORACLE, TRAINED, Named, percent
from lib.monitoring.space import Space, concept_weights

OTHER_MACHINES = 0.25  # of a ratio of seconds: another machine may differ by as much


def fetch_set(n: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Coverage `[n, C]` of a probing set and its similarities by two encoders, through the cache.

    The oracle's are standardised coverage; the trained encoder's are cosines with bare words.
    """

    def build() -> dict[str, Tensor]:
        world = scenes.probe(n, seed)
        labels = world.annotations()
        return {
            "coverage": labels.coverage(),
            ORACLE: encoder.oracle(labels),
            TRAINED: encoder.fetch().similarities(world.images, labels.words),
        }

    config = {"n": n, "seed": seed, "encoder": encoder.digest_of()}
    code: list[Callable[..., object]]
    code = [scenes.probe, scenes.World, Annotations, encoder.oracle, encoder.Encoder]
    entry = cache.fetch("probing-set", config, build, code=code)
    return entry["coverage"], {name: entry[name] for name in (ORACLE, TRAINED)}


@dataclass(frozen=True)
class Agreement:
    """Two detectors on the detectors of Network Dissection in one layer."""

    same_word: Tensor  # bool [n]
    same_category: Tensor  # bool [n]
    in_five: Tensor  # bool [n]: Network Dissection's five best hold the other's word
    chance: float  # share of the last for the word of another of these units
    m: int  # units of the layer

    def share(self, of: Tensor, *, seed: int = 0) -> tuple[float, float] | None:
        """Mean, and half a 95% bootstrap interval over units; None without any."""
        n = len(of)
        if n == 0:
            return None
        values = of.double()
        generator = torch.Generator().manual_seed(seed)
        low, high = bootstrap.interval(
            lambda rows: values[rows].mean(-1), n, generator=generator
        ).tolist()
        return float(values.mean()), (high - low) / 2


def agreement(
    masks: ConceptScores, words: ConceptScores, concepts: ConceptSet, cut: float = 0.04
) -> Agreement:
    """Words of a detector beside those of Network Dissection, where the latter has detectors.

    Args:
        masks: intersections over union; words: scores of the same units and concepts.
        cut: above which a unit is a detector.
    """
    if masks.h.shape != words.h.shape:
        raise ValueError(
            f"want the same units and concepts, got {tuple(masks.h.shape)} and "
            f"{tuple(words.h.shape)}"
        )
    chosen = (masks.best > cut) & ~masks.dead
    numbers = torch.tensor([CATEGORIES.index(name) for name in concepts.category()])
    five = masks.top(min(5, len(concepts)))[1][chosen]
    word = words.label[chosen]
    return Agreement(
        five[:, 0] == word,
        numbers[five[:, 0].long()] == numbers[word.long()],
        (five == word[:, None]).any(1),
        _by_chance(five, word),
        len(chosen),
    )


def _by_chance(five: Tensor, word: Tensor) -> float:
    holds = (five[:, None, :] == word[None, :, None]).any(2).double()  # unit, word of a unit
    n = len(word)
    return float((holds.sum() - holds.diagonal().sum()) / max(1, n * (n - 1)))


def agreement_rows(found: Mapping[tuple[str, str], Agreement]) -> list[dict[str, str]]:
    """A row for each (layer, encoder)."""
    return [
        {
            "layer": layer,
            "encoder": encoder,
            "detectors": f"{len(one.same_word)} of {one.m}",
            "same word": percent(one.share(one.same_word)),
            "same category": percent(one.share(one.same_category)),
            "word among five": percent(one.share(one.in_five)),
            "of another unit": f"{one.chance:.0%}",
        }
        for (layer, encoder), one in found.items()
    ]


def denominator_rows(
    annotations: Annotations, acts: Mapping[str, LayerActivations]
) -> list[dict[str, str]]:
    """Detectors (and distinct ones) of each layer with each of the three published unions."""
    rows = []
    for layer, one in acts.items():
        row = {"layer": layer, "units": f"{one.pooled.shape[1]}"}
        for denominator in DENOMINATORS:
            detector = NetworkDissection(annotations, one.ids, denominator=denominator)
            iou = detector.detect(one).h
            n, distinct = detectors_by_category(iou, annotations.categories)["all"]
            row[denominator] = f"{n} ({distinct})"
            row[f"best, {denominator}"] = f"{float(iou.max()):.3f}"
        rows.append(row)
    return rows


def white_noise(
    detector: Detector, rule: Rule, ids: Tensor, *, m: int = 2000, seeds: Sequence[int] = (0, 1, 2)
) -> tuple[Tensor, Tensor]:
    """Shares of units on white noise that pass a rule's threshold, and the whole rule, `[S]`."""
    scores, whole = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(ids), m, generator=generator)
        found = detector.detect(LayerActivations("white noise", ids, noise))
        scores.append(Rule(rule.tau).interpretable(found).double().mean())
        whole.append(rule.interpretable(found).double().mean())
    return torch.stack(scores), torch.stack(whole)


def pooled(at: Setting, model: nn.Module) -> Tensor:
    """Pooled activations of the units of all layers on a probing set, `[N, M]`."""
    found = at.probe.activations(model, LAYERS, maps=False)
    return torch.cat([a.pooled for a in found.values()], 1)


def placed(at: Setting, model: nn.Module) -> Tensor:
    """The same units in our space, by the trained encoder's words, `[M, D]`."""
    tops = stored.fetch_scores(model, at.probe, LAYERS, [at.detector("clip")])
    return torch.cat([at.space.place(t.concepts, concept_weights(t.h)) for t in tops.values()])


@dataclass(frozen=True)
class Seconds:
    """What placing takes in a learned space and in ours, float64 `[R]`, a value a round.

    From a network and images to its units in the space, so activations count on both sides.
    """

    learned: Tensor  # activations and learning, which places the base model's units
    ours: Tensor  # activations, embeddings of images and words, detector, placing
    learned_second: Tensor  # activations of a second model, placed in the first's space
    ours_second: Tensor  # activations of a second model, detector's scores, placing

    @property
    def ratio(self) -> tuple[float, float]:
        """Learned over ours for the first model: of the shortest, and a spread.

        The spread is the standard deviation over rounds, and at least what another machine may
        make of the same work.
        """
        value = float(self.learned.min() / self.ours.min())
        return value, max(float((self.learned / self.ours).std()), OTHER_MACHINES * value)


@dataclass(frozen=True)
class Compared:
    """Our space and a learned one under the same changes; moves in units of the mean distance."""

    seconds: Seconds
    anchors: Tensor  # float32 [A], largest move of each anchor over all changes, ours
    units_probe: Tensor  # float32 [M], units in the learned space, another probing set
    units_again: Tensor  # float32 [M], the same probing set, learned again from another start
    units_half: Tensor  # float32 [M], the same images, half of the units' images drawn anew
    ours_probe: Tensor  # float32 [M], units in our space, another probing set
    base_changes: Tensor  # float32 [M], a model's own units: learned, against placed in another's


def embedder(words: Sequence[str]) -> Callable[[], Tensor]:
    """What embeds `words` with the trained encoder, which is fetched before."""
    towers = encoder.fetch()
    return lambda: towers.words(words)


Build = Callable[[], Callable[[Tensor], Tensor]]


def builder(at: Setting) -> Build:
    """What builds our space from a probing set's images and the words with the trained encoder.

    The encoder is fetched before. Each call embeds all anew and returns a function of the pooled
    activations of units `[N, M]` that places them, `[M, D]`.
    """
    towers = encoder.fetch()

    def build() -> Callable[[Tensor], Tensor]:
        space = Space.of(at.concepts, towers.words(at.concepts.words))
        p = towers.images(at.world.images) @ space.vectors.T
        detector = clip_dissect(p, name="clip", ids=at.probe.ids, similarity="soft_wpmi_z")

        def put(acts: Tensor) -> Tensor:
            scores = detector.detect(LayerActivations("all layers", at.probe.ids, acts))
            values, numbers = scores.top(5)
            return space.place(numbers, concept_weights(values))

        return put

    return build


def timed(
    first: Callable[[], Tensor],
    second: Callable[[], Tensor],
    build: Build,
    learner: Callable[[Tensor], LearnedSpace],
    *,
    rounds: int = 3,
) -> Seconds:
    """Time both spaces in turn, so that a machine's other work falls on both.

    Args:
        first, second: make the activations `[N, M]` of two models.
        build: of `builder`.
        learner: learns a space from activations.
        rounds: two or more, for an sd.
    """

    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        learned = learner(first())
        one = time.perf_counter()
        place(learned, second())
        two = time.perf_counter()
        put = build()
        put(first())
        three = time.perf_counter()
        put(second())
        found.append((one - start, two - one, three - two, time.perf_counter() - three))
    columns = torch.tensor(found, dtype=torch.float64).unbind(1)
    return Seconds(columns[0], columns[2], columns[1], columns[3])


def compare_spaces(
    acts: Sequence[Callable[[], Tensor]],
    embed: Callable[[], Tensor],
    build: Build,
    anchors: Sequence[int],
    ours: Sequence[Tensor],
    *,
    seed: int = 0,
    steps: int = 600,
) -> Compared:
    """Learn a space for two probing sets and two base models, and embed the words each time.

    Args:
        acts: make activations `[N, M]`: base model A on probing set 1, A on set 2, B on set 1.
        embed: embeds the concept words, `[C, D]`; called for every setting anew.
        build: builds our space for probing set 1, as `builder` does; for its time alone.
        anchors: numbers of words.
        ours: A's units in our space on sets 1 and 2, `[M, D]`.
        seed, steps: of the learning.
    """
    options = {"steps": steps}
    seconds = timed(acts[0], acts[2], build, lambda x: learn(x, seed=seed, **options))
    words = embed()
    a_first, a_second, b_first = (make() for make in acts)
    first = learn(a_first, seed=seed, **options)
    second, again = (
        learn(x, seed=y, **options) for x, y in ((a_second, seed), (a_first, seed + 1))
    )
    of_b = learn(b_first, seed=seed, **options)
    scale = torch.pdist(words).mean()
    moved = torch.stack(
        [(embed()[list(anchors)] - words[list(anchors)]).norm(dim=1) / scale for _ in acts]
    )
    half = a_first[torch.randperm(len(a_first), generator=torch.Generator().manual_seed(seed))]
    return Compared(
        seconds,
        moved.amax(0),
        moves(first.units, second.units),
        moves(first.units, again.units),
        moves(first.units, learn(half[: len(half) // 2], seed=seed, **options).units),
        moves(*ours),
        moves(of_b.units, place(first, b_first)),
    )


def table_1(found: Compared, n_words: int) -> list[dict[str, str]]:
    """The document's table 1, measured."""

    seconds = found.seconds

    def mean(values: Tensor) -> str:
        return f"{float(values.mean()):.2f}"

    def least(values: Tensor) -> str:
        return f"{float(values.min()):.2f}"

    return [
        {
            "question": "seconds from a network and images to its units in the space",
            "document": "ConceptEvo trains, ours does not",
            "learned": f"{least(seconds.learned)}: activations, learning",
            "ours": f"{least(seconds.ours)}: activations, images and {n_words} words, detector",
        },
        {
            "question": "the same for a second model, the space being there",
            "document": "trained anew for each base model",
            "learned": f"{least(seconds.learned_second)} in the first's space; anew as above",
            "ours": f"{least(seconds.ours_second)}: activations, scores",
        },
        {
            "question": "anchors: largest move over probing sets and base models",
            "document": "no against yes",
            "learned": "has none",
            "ours": f"{float(found.anchors.max()):.0e}",
        },
        {
            "question": "units: mean move on another probing set",
            "document": "not flexible against flexible",
            "learned": mean(found.units_probe),
            "ours": mean(found.ours_probe),
        },
        {
            "question": "units: mean move when learned from another start",
            "document": "no number",
            "learned": mean(found.units_again),
            "ours": "0, nothing is drawn",
        },
        {
            "question": "units of a second model: placed in the first's space, or in its own",
            "document": "trained anew for each base model",
            "learned": mean(found.base_changes),
            "ours": "0, one space",
        },
    ]


def claims_of(
    planted: Sequence[Named], last: Agreement, noise: Tensor, compared: Compared
) -> dict[str, claims.Measured]:
    """Claim -> value, or value and spread, of the scenes.

    Args:
        planted: `planted_units.planted` at the specified noise.
        last: of words by the trained encoder, in the last layer.
        noise: share of white noise above the score at a nominal .01, one value a round.
    """
    named = {one.encoder: one for one in planted if one.variant == CHOSEN}
    spread, mean = torch.std_mean(noise)
    return {
        "P2-01": named[ORACLE].share,
        "P2-02": named[TRAINED].share,
        "P2-03": last.share(last.in_five),
        "P2-04": (float(mean) / 0.01, float(spread) / 0.01),
        "P2-05": compared.seconds.ratio,
        "P2-06": float(compared.anchors.max()),
        "P2-07": float(compared.units_probe.mean()),
    }
