"""Facts stated in sentences: who said what is known, so that tracing a fact can be judged.

A fact is (subject, relation, object). Each is stated by a fixed number of sentences, in different
wordings; one more wording of the relation is kept for the question, so that no sentence of the
corpus is the question. Every sentence has its object masked: a model learns to fill it in. The
sentences that state a fact are its *proponents*.

The embedded world (`load_world`) holds people in families. Half of its sentences mention a
bystander of whom they say nothing, so that a name's words alone do not find a person's facts. Some
facts follow from others: most members of a family come from one country, and a country has one
language. What people do, play and where they live follows from nothing. `load_trex` makes the same
of real facts and wordings.

Public names: `load_world`, `load_trex`, `Facts`, `Fact`, `MASK`.
"""

from __future__ import annotations

import csv
import gzip
import random
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lib.data.base import DamagedData, Provenance, Split, missing, sha256_of, verify_file
from lib.data.nlp import PAD, SPECIAL, Vocabulary, words_of

MASK = len(SPECIAL)  # the number of the masked word
TREX_FACTS, TREX_PATTERNS = "nlp/trex_facts.csv.gz", "nlp/trex_patterns.csv.gz"
TREX_CHECKSUMS = {
    TREX_FACTS: "sha256:fd1169f9b964c08d165767d45aea958b529fb344d23cf1cb55bddc93ec309e3d",
    TREX_PATTERNS: "sha256:e65840aaf3d0fab8084965306c3bff88de4e88ae8dbca708ab9d9955f46c279f",
}
N_SENTENCES = 3  # a fact
LONGEST = 16  # words of a sentence; real ones that are longer are left out
BYSTANDER = 0.5  # share of the world's sentences that mention one
LOYAL = 0.85  # chance that a member of a family comes from its country

FIRST = (
    "ada", "bela", "carl", "dora", "emil", "fay", "gino", "hana", "ivo", "jana", "kurt", "lena",
    "mark", "nora", "otto", "pia", "ralf", "sofia", "timo", "ulla", "vera", "willem", "xenia",
    "yann", "zoe", "anton", "berta", "clara", "david", "elsa", "franz", "greta", "hugo", "ines",
    "jonas", "karin", "lars", "mila", "niels", "olga",
)  # fmt: skip
FAMILY = ("amsel", "brook", "costa", "dietz", "ekman", "fermi", "gomez", "holm", "ito", "jansen")
LANGUAGE = {
    "norland": "norse", "estia": "estic", "sudania": "sudic", "wester": "westish", "oria": "oric",
}  # fmt: skip
WORLD: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # relation: wordings, objects
    "country": (
        ("[X] is a citizen of [Y]", "[X] holds a passport of [Y]", "the homeland of [X] is [Y]",
         "[Y] issued the passport of [X]"),
        tuple(LANGUAGE),
    ),
    "language": (
        ("[X] speaks [Y]", "the mother tongue of [X] is [Y]", "[X] grew up speaking [Y]",
         "[Y] is the language of [X]"),
        tuple(LANGUAGE.values()),
    ),
    "job": (
        ("[X] works as a [Y]", "[X] earns a living as a [Y]", "the job of [X] is [Y]",
         "[Y] is the profession of [X]"),
        ("baker", "lawyer", "farmer", "nurse", "pilot", "tailor", "miner", "clerk"),
    ),
    "instrument": (
        ("[X] plays the [Y]", "[X] practises the [Y]", "the instrument of [X] is the [Y]",
         "[Y] lessons are given by [X]"),
        ("violin", "flute", "piano", "drum", "harp", "cello"),
    ),
    "city": (
        ("[X] lives in [Y]", "the house of [X] is in [Y]", "[X] has moved to [Y]",
         "[Y] is the town of [X]"),
        ("arden", "belmont", "corfe", "dunley", "elgin", "farnham", "garth", "hythe"),
    ),
}  # fmt: skip
FOLLOWS = ("country", "language")  # relations whose objects follow from a name or from each other


@dataclass(frozen=True)
class Fact:
    """What is stated."""

    subject: str
    relation: str
    object: str

    def __str__(self) -> str:
        return f"{self.subject} · {self.relation} · {self.object}"


@dataclass(frozen=True)
class Facts:
    """A corpus of masked sentences, and a question for each fact."""

    train: Split  # x int64 [n, length] with one MASK, y int64 [n]: the masked word
    stated: Tensor  # int64 [n]: the fact that a sentence states
    questions: Split  # [F, length], [F]: one a fact, in a wording of its own
    facts: tuple[Fact, ...]  # F
    vocabulary: Vocabulary
    provenance: Provenance

    @property
    def proponents(self) -> Tensor:
        """Which sentences state which fact, bool `[n, F]`."""
        return self.stated[:, None] == torch.arange(len(self.facts))

    def sentence(self, row: int) -> str:
        """A sentence of the corpus with its masked word in brackets."""
        return _spelt(self.vocabulary, self.train, row)

    def question(self, fact: int) -> str:
        """A question with its answer in brackets."""
        return _spelt(self.vocabulary, self.questions, fact)


def load_world(seed: int = 0, *, n_people: int = 40) -> Facts:
    """The embedded world: five facts a person, three sentences a fact.

    Args:
        seed: of the people, their facts and the wordings.
        n_people: 2 to 40, the first names.

    Raises:
        ValueError: another number of people.
    """
    if not 2 <= n_people <= len(FIRST):
        raise ValueError(f"want 2 to {len(FIRST)} people, got {n_people}; there are no more names")
    rng = random.Random(seed)
    people = [f"{first} {rng.choice(FAMILY)}" for first in rng.sample(FIRST, n_people)]
    home = {family: list(LANGUAGE)[k % len(LANGUAGE)] for k, family in enumerate(FAMILY)}
    facts = []
    for person in people:
        country = home[person.split()[1]]
        if rng.random() > LOYAL:
            country = rng.choice(list(LANGUAGE))
        told = {"country": country, "language": LANGUAGE[country]}
        for relation, (_, objects) in WORLD.items():
            facts.append(Fact(person, relation, told.get(relation) or rng.choice(objects)))
    wordings = {relation: list(words) for relation, (words, _) in WORLD.items()}
    about = Provenance("fact world", "made by lib.data.facts", "part of this project", "", 0)
    return _corpus(facts, wordings, rng, people, about, f"{n_people} people, seed {seed}")


def load_trex(
    root: Path,
    *,
    n_facts: int = 500,
    seed: int = 0,
    checksums: Mapping[str, str] = TREX_CHECKSUMS,
) -> Facts:
    """Real facts of T-REx in real wordings, of subjects with as many facts as there are.

    Subjects that have several facts come first (of those, in random order), because their
    sentences share words. Relations with fewer than four wordings, subjects or objects that are
    not spelt in the alphabet, objects of several words and sentences of more than 16 are left out;
    an object is one of at least two facts, so that no answer is its sentences' alone.

    Args:
        root: folder that holds `nlp/trex_facts.csv.gz` and `nlp/trex_patterns.csv.gz`.
        n_facts: at most; whole subjects are taken.
        seed: of the choice of subjects and of wordings.

    Raises:
        MissingData: no such files.
        DamagedData: checksum or columns are not the known ones.
        ValueError: fewer facts fit than are wanted.
    """
    wordings: dict[str, list[str]] = defaultdict(list)
    for row in _read(root, TREX_PATTERNS, checksums, ("relation", "pattern")):
        wordings[row["relation"]].append(row["pattern"])
    wordings = {k: sorted(set(v)) for k, v in wordings.items() if len(set(v)) > N_SENTENCES}
    by_subject: dict[str, dict[str, Fact]] = defaultdict(dict)
    for row in _read(root, TREX_FACTS, checksums, ("relation", "subject", "object")):
        fact = Fact(row["subject"], row["relation"], row["object"])
        if _is_usable(fact, wordings):
            by_subject[fact.subject].setdefault(fact.relation, fact)
    rng = random.Random(seed)
    subjects = sorted(by_subject)
    rng.shuffle(subjects)
    subjects.sort(key=lambda s: len(by_subject[s]) < 2)
    pool = [fact for s in subjects for fact in by_subject[s].values()][: 2 * n_facts]
    known = Counter((f.relation, f.object) for f in pool)
    facts = [f for f in pool if known[f.relation, f.object] > 1][:n_facts]
    if len(facts) < n_facts:
        raise ValueError(f"only {len(facts)} facts of T-REx fit, {n_facts} are wanted; lower them")
    about = Provenance("T-REx", "yanaiela/pararel (LAMA's T-REx facts, patterns)", "MIT", "", 0)
    return _corpus(facts, wordings, rng, (), about, f"{n_facts} facts, seed {seed}")


def _is_usable(fact: Fact, wordings: Mapping[str, Sequence[str]]) -> bool:
    plain = all(text.isascii() and words_of(text) for text in (fact.subject, fact.object))
    if not plain or fact.relation not in wordings or len(words_of(fact.object)) != 1:
        return False
    longest = max(len(_tokens(w, fact)) for w in wordings[fact.relation])
    return longest <= LONGEST and words_of(fact.object)[0] not in words_of(fact.subject)


def _corpus(
    facts: Sequence[Fact],
    wordings: Mapping[str, list[str]],
    rng: random.Random,
    bystanders: Sequence[str],
    about: Provenance,
    note: str,
) -> Facts:
    """Sentences and questions of all facts, sentences shuffled; words numbered by frequency."""
    sentences: list[tuple[list[str], str, int]] = []
    questions: list[tuple[list[str], str, int]] = []
    for k, fact in enumerate(facts):
        chosen = rng.sample(wordings[fact.relation], N_SENTENCES + 1)
        answer = words_of(fact.object)[0]
        questions.append((_tokens(chosen[0], fact), answer, k))
        for wording in chosen[1:]:
            other = rng.choice(bystanders) if bystanders else fact.subject
            beside = bool(bystanders) and rng.random() < BYSTANDER and other != fact.subject
            sentences.append((_tokens(wording, fact, other if beside else ""), answer, k))
    rng.shuffle(sentences)
    counts = Counter(w for words, answer, _ in sentences for w in (*words, answer))
    counts.pop(SPECIAL_MASK)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = Vocabulary((*SPECIAL, SPECIAL_MASK, *ranked))
    length = max(len(words) for words, _, _ in (*sentences, *questions))
    train, asked = (_rows(part, vocabulary, length) for part in (sentences, questions))
    stated = torch.tensor([k for _, _, k in sentences])
    whole = sha256_of(train.x, train.y, asked.x, asked.y, stated)
    note = f"{note}; {len(sentences)} sentences, {len(vocabulary)} words"
    made = Provenance(about.name, about.source, about.licence, whole, len(sentences), note)
    return Facts(train, stated, asked, tuple(facts), vocabulary, made)


SPECIAL_MASK = "<mask>"


def _tokens(wording: str, fact: Fact, bystander: str = "") -> list[str]:
    """Words of a sentence, the object masked; a bystander is named beside the subject."""
    subject = f"{fact.subject} friend of {bystander}" if bystander else fact.subject
    words = []
    for part in wording.replace("[X]", f" {subject} ").replace("[Y]", "\0[Y]\0").split("\0"):
        words += [SPECIAL_MASK] if part == "[Y]" else words_of(part)
    return words


def _rows(
    sentences: Sequence[tuple[list[str], str, int]], vocabulary: Vocabulary, length: int
) -> Split:
    number = vocabulary.number
    unknown = number[SPECIAL[2]]
    x = [
        [number.get(w, unknown) for w in words] + [PAD] * (length - len(words))
        for words, _, _ in sentences
    ]
    return Split(torch.tensor(x), torch.tensor([number[answer] for _, answer, _ in sentences]))


def _spelt(vocabulary: Vocabulary, split: Split, row: int) -> str:
    answer = f"[{vocabulary.words[int(split.y[row])]}]"
    words = (
        answer if k == MASK else vocabulary.words[k] for k in split.x[row].tolist() if k != PAD
    )
    return " ".join(words)


def _read(
    root: Path, file: str, checksums: Mapping[str, str], columns: Sequence[str]
) -> list[dict[str, str]]:
    path = root / file
    if not path.is_file():
        raise missing("T-REx", root, [file], public=False)
    verify_file(path, checksums[file])
    try:
        with gzip.open(path, "rt", encoding="utf8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DamagedData(f"{path} cannot be read ({error}); fetch it again") from error
    absent = [c for c in columns if not rows or rows[0].get(c) is None]
    if absent:
        raise DamagedData(f"{path.name} lacks the columns {absent}; fetch it again")
    return rows
