"""A small language for inference, whose labels follow from exact rules.

Every sentence describes one scene: some number of subjects doing one thing to one kind of object,
in some manner, in some place. A sentence says of each such slot which values it may have (`people`
is men or women; `never push` is any other verb; a slot that is not mentioned may be anything). A
hypothesis follows if it allows, slot by slot, all that the premise allows; it contradicts if in
some slot the two have nothing in common; otherwise it is neutral.

The hypothesis of a pair is the premise after one edit, the pair's *rule*, and perhaps with manner
or place dropped, which never changes the label. Rules come equally often within a label and
labels equally often in a split, so single words say little: after `never` or a new noun in the
hypothesis each label comes about a third of the time, contradiction the least. Overlap says more:
words that are all in the premise are never neutral, and entailment rather than contradiction by
five to four. What follows such a shortcut fails on the other rules, and which pairs those are is
known.

Public names: `load`, `Inference`, `Pairs`, `RULES`, `LABELS`, `LENGTH`, `VOCABULARY`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib.data.base import Provenance, Split, sha256_of
from lib.data.nlp import NLI_LABELS as LABELS
from lib.data.nlp import SPECIAL, Vocabulary

ENTAILMENT, NEUTRAL, CONTRADICTION = range(3)
ANY_NUMBER = "some"
NUMBERS = ("two", "three", "four")
KINDS = {
    "people": ("men", "women"),
    "animals": ("dogs", "cats"),
    "vehicles": ("cars", "trucks"),
}
KIND_OF = {noun: kind for kind, nouns in KINDS.items() for noun in nouns}
AFFIRMED, DENIED = "always", "never"
VERBS = ("push", "pull", "follow", "lead")
MANNERS = ("slowly", "quickly")
PLACES = ("inside", "outside")
OPPOSITE = {
    a: b
    for first, second in (VERBS[:2], VERBS[2:], MANNERS, PLACES)
    for a, b in ((first, second), (second, first))
}
VOCABULARY = Vocabulary(
    (*SPECIAL, ANY_NUMBER, *NUMBERS, *KINDS, *KIND_OF, AFFIRMED, DENIED, *VERBS, *MANNERS, *PLACES)
)
LENGTH = 15  # two sentences of up to seven words, and the separator
LARGEST = 20_000  # pairs in all: a third of it is a label's, and each rule can make 11,664


@dataclass(frozen=True)
class _Scene:
    """A sentence, slot by slot; an empty word leaves its slot open."""

    number: str
    subject: str
    adverb: str  # AFFIRMED or DENIED
    verb: str
    object: str
    manner: str  # may be empty
    place: str  # may be empty

    def words(self) -> list[str]:
        slots = (self.number, self.subject, self.adverb, self.verb, self.object)
        return [word for word in (*slots, self.manner, self.place) if word]


# An edit returns the hypothesis, or None where it does not apply to the premise.
Edit = Callable[[_Scene, random.Random], "_Scene | None"]


def _other(words: Sequence[str], word: str, rng: random.Random) -> str:
    return rng.choice([w for w in words if w != word])


def _overlap(scene: _Scene, rng: random.Random) -> _Scene | None:
    """Drop the manner or the place: all words are in the premise."""
    mentioned = [slot for slot in ("manner", "place") if getattr(scene, slot)]
    if not mentioned:
        return None
    return replace(scene, **{rng.choice(mentioned): ""})


def _hypernym(scene: _Scene, rng: random.Random) -> _Scene | None:
    """Men become people."""
    nouns = [slot for slot in ("subject", "object") if getattr(scene, slot) in KIND_OF]
    if not nouns:
        return None
    slot = rng.choice(nouns)
    return replace(scene, **{slot: KIND_OF[getattr(scene, slot)]})


def _vague_number(scene: _Scene, rng: random.Random) -> _Scene | None:
    """Two become some."""
    return replace(scene, number=ANY_NUMBER) if scene.number in NUMBERS else None


def _other_denied(scene: _Scene, rng: random.Random) -> _Scene | None:
    """Who pushes never pulls: a negation that follows."""
    if scene.adverb == DENIED:
        return None
    return replace(scene, adverb=DENIED, verb=_other(VERBS, scene.verb, rng))


def _added(scene: _Scene, rng: random.Random) -> _Scene | None:
    """Say a manner or a place that the premise leaves open."""
    slots = [s for s in ("manner", "place") if not getattr(scene, s)]
    if not slots:
        return None
    slot = rng.choice(slots)
    return replace(scene, **{slot: rng.choice(MANNERS if slot == "manner" else PLACES)})


def _hyponym(scene: _Scene, rng: random.Random) -> _Scene | None:
    """People become men."""
    nouns = [slot for slot in ("subject", "object") if getattr(scene, slot) in KINDS]
    if not nouns:
        return None
    slot = rng.choice(nouns)
    return replace(scene, **{slot: rng.choice(KINDS[getattr(scene, slot)])})


def _exact_number(scene: _Scene, rng: random.Random) -> _Scene | None:
    """Some become two."""
    return replace(scene, number=rng.choice(NUMBERS)) if scene.number == ANY_NUMBER else None


def _both_denied(scene: _Scene, rng: random.Random) -> _Scene | None:
    """Who never pushes may or may not pull: a negation that says nothing."""
    if scene.adverb == AFFIRMED:
        return None
    return replace(scene, verb=_other(VERBS, scene.verb, rng))


def _negation(scene: _Scene, rng: random.Random) -> _Scene | None:
    """Deny the verb, or what denied it."""
    return replace(scene, adverb=_other((AFFIRMED, DENIED), scene.adverb, rng))


def _antonym(scene: _Scene, rng: random.Random) -> _Scene | None:
    """Slowly becomes quickly, inside outside, and who pushes pulls."""
    slots = [s for s in ("manner", "place") if getattr(scene, s)]
    slots += ["verb"] if scene.adverb == AFFIRMED else []
    if not slots:
        return None
    slot = rng.choice(slots)
    return replace(scene, **{slot: OPPOSITE[getattr(scene, slot)]})


def _number(scene: _Scene, rng: random.Random) -> _Scene | None:
    """Two become three."""
    if scene.number not in NUMBERS:
        return None
    return replace(scene, number=_other(NUMBERS, scene.number, rng))


def _sibling(scene: _Scene, rng: random.Random) -> _Scene | None:
    """Dogs become cats."""
    nouns = [slot for slot in ("subject", "object") if getattr(scene, slot) in KIND_OF]
    if not nouns:
        return None
    slot = rng.choice(nouns)
    noun = getattr(scene, slot)
    return replace(scene, **{slot: _other(KINDS[KIND_OF[noun]], noun, rng)})


def _swap(scene: _Scene, rng: random.Random) -> _Scene | None:
    """Subject and object change places: all words are in the premise, and yet it contradicts."""
    return replace(scene, subject=scene.object, object=scene.subject)


EDITS: dict[str, tuple[int, Edit]] = {
    "overlap": (ENTAILMENT, _overlap),
    "hypernym": (ENTAILMENT, _hypernym),
    "vague number": (ENTAILMENT, _vague_number),
    "other verb denied": (ENTAILMENT, _other_denied),
    "added": (NEUTRAL, _added),
    "hyponym": (NEUTRAL, _hyponym),
    "exact number": (NEUTRAL, _exact_number),
    "both verbs denied": (NEUTRAL, _both_denied),
    "negation": (CONTRADICTION, _negation),
    "antonym": (CONTRADICTION, _antonym),
    "number": (CONTRADICTION, _number),
    "sibling": (CONTRADICTION, _sibling),
    "swap": (CONTRADICTION, _swap),
}
RULES = tuple(EDITS)


@dataclass(frozen=True)
class Pairs(Split):
    """Pairs as numbers, int64 `[n, LENGTH]`, labels int64 `[n]`, and the truth of each pair."""

    rule: Tensor  # int64 [n], index into RULES


@dataclass(frozen=True)
class Inference:
    """Pairs in two splits that share no pair."""

    train: Pairs
    test: Pairs
    names: tuple[str, ...]  # of the labels
    vocabulary: Vocabulary
    provenance: Provenance


def load(
    seed: int = 0, *, n_train: int = 2000, n_test: int = 1000, rules: Sequence[str] = RULES
) -> Inference:
    """Draw pairs, balanced over labels (to one pair) and over rules within a label.

    Args:
        seed: of everything.
        n_train, n_test: pairs in each split.
        rules: which edits occur; leaving some out plants a shortcut that the others reward.

    Raises:
        ValueError: an unknown rule, a label without a rule, or sizes that cannot be met.
    """
    unknown = [rule for rule in rules if rule not in EDITS]
    if unknown or len(set(rules)) < len(rules):
        raise ValueError(f"want different rules among {', '.join(RULES)}; got {', '.join(rules)}")
    by_label = [[r for r in rules if EDITS[r][0] == label] for label in range(len(LABELS))]
    if not all(by_label):
        lacking = [LABELS[k] for k, found in enumerate(by_label) if not found]
        raise ValueError(f"no rule makes {', '.join(lacking)}; keep one rule of each label")
    if min(n_train, n_test) < len(LABELS) or n_train + n_test > LARGEST:
        raise ValueError(
            f"want at least {len(LABELS)} pairs in each split and at most {LARGEST:,} in both, "
            f"got n_train = {n_train} and n_test = {n_test}"
        )
    rng = random.Random(seed)
    seen: set[tuple[_Scene, _Scene]] = set()
    train, test = (_draw(n, by_label, rng, seen) for n in (n_train, n_test))
    note = f"{n_train} / {n_test} train / test, {len(rules)} rules, {len(VOCABULARY)} words"
    provenance = Provenance(
        "inference grammar",
        f"templates and rules of this project, seed {seed}",
        "no data of others in it",
        sha256_of(train.x, train.y, train.rule, test.x, test.y, test.rule),
        n_train + n_test,
        note,
    )
    return Inference(train, test, LABELS, VOCABULARY, provenance)


def _draw(
    n: int, by_label: list[list[str]], rng: random.Random, seen: set[tuple[_Scene, _Scene]]
) -> Pairs:
    """`n` new pairs in random order; `seen` keeps all that were drawn so far."""
    rows = []
    for k in range(n):
        label = k % len(by_label)
        rule = by_label[label][k // len(by_label) % len(by_label[label])]
        pair = _pair(rule, rng)
        while pair in seen:
            pair = _pair(rule, rng)
        seen.add(pair)
        rows.append((pair, label, RULES.index(rule)))
    rng.shuffle(rows)
    sentences = [(premise.words(), hypothesis.words()) for (premise, hypothesis), _, _ in rows]
    return Pairs(
        VOCABULARY.encode(sentences, LENGTH),
        torch.tensor([label for _, label, _ in rows]),
        torch.tensor([rule for _, _, rule in rows]),
    )


def _pair(rule: str, rng: random.Random) -> tuple[_Scene, _Scene]:
    """A premise to which the rule applies, and what it makes of it."""
    while True:
        premise = _premise(rng)
        hypothesis = EDITS[rule][1](premise, rng)
        if hypothesis is not None:
            return premise, _shortened(premise, hypothesis, rng)


def _premise(rng: random.Random) -> _Scene:
    """Subject and object are of different kinds, so that exchanging them always contradicts."""
    kinds = rng.sample(list(KINDS), 2)
    subject, object_ = (rng.choice((kind, *KINDS[kind])) for kind in kinds)
    return _Scene(
        rng.choice((ANY_NUMBER, *NUMBERS)),
        subject,
        DENIED if rng.random() < 0.25 else AFFIRMED,
        rng.choice(VERBS),
        object_,
        rng.choice(MANNERS) if rng.random() < 0.5 else "",
        rng.choice(PLACES) if rng.random() < 0.5 else "",
    )


def _shortened(premise: _Scene, hypothesis: _Scene, rng: random.Random) -> _Scene:
    """Drop, each with chance 1/4, modifiers that the edit left as they were."""
    same = [s for s in ("manner", "place") if getattr(premise, s) == getattr(hypothesis, s)]
    return replace(hypothesis, **{slot: "" for slot in same if rng.random() < 0.25})
