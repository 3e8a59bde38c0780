"""Pairs of sentences that test for flawed heuristics, below DATA_ROOT.

| set | what it tests |
| --- | --- |
| HANS | pairs drawn anew from its templates: does word overlap stand for entailment? |
| Breaking NLI | SNLI-like pairs that differ by one word: does the network know words? |
| counterfactual SNLI | people's revisions of SNLI test pairs to other labels |
| MNLI | a sample of other genres |

They are for tests, and `unseen` drops the pairs that share a sentence with training: most pairs of
counterfactual SNLI are, or revise, pairs that `lib.data.nlp.load_snli` trains on. HANS tells
entailment from everything else; such a pair has label `NOT_ENTAILMENT`, and `as_classes` makes a
class of it for a network of three.

Public names: `load`, `Challenge`, `CHALLENGES`, `unseen`, `NOT_ENTAILMENT`,
`as_classes`.

Source: McCoy et al. 2019 (HANS), Glockner et al. 2018 (Breaking NLI), Kaushik et al. 2020
(counterfactually revised SNLI), Williams et al. 2018 (MNLI); document 3, section 3.5, tests a
network of MNLI on SNLI.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lib.data.base import Expected, Provenance, sha256_of, verify_labels
from lib.data.nlp import NLI_LABELS, REVISED, REVISED_EXPECTED, labelled, read_table, stems_of

NOT_ENTAILMENT = -1
HANS_LABELS = ("entailment", "non-entailment")
HANS, BREAKING, MNLI = (
    f"nlp/{name}.csv.gz" for name in ("hans_regenerated", "breaking_nli", "mnli_sample")
)


@dataclass(frozen=True)
class Challenge:
    """Labelled pairs of one test."""

    text: tuple[tuple[str, str], ...]  # premise, hypothesis
    y: Tensor  # int64 [n], index into `NLI_LABELS`, or `NOT_ENTAILMENT`
    kind: tuple[str, ...]  # what each pair tests: heuristic, category, part or genre
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> Challenge:
        """Some of the pairs, in the order of `index`."""
        rows = index.tolist()
        text, kind = tuple(self.text[i] for i in rows), tuple(self.kind[i] for i in rows)
        return Challenge(text, self.y[index], kind, self.provenance)


@dataclass(frozen=True)
class _Table:
    file: str
    columns: tuple[str, str, str]  # premise, hypothesis, label
    labels: tuple[str, ...]
    kind: tuple[str, ...]  # columns that say what a pair tests
    rows: tuple[str, tuple[str, ...]] | None  # a column and the values that belong to the test
    expected: Expected
    source: str
    licence: str


NLI_COLUMNS = ("premise", "hypothesis", "label")
CHALLENGES: Mapping[str, _Table] = {
    "HANS": _Table(
        HANS,
        ("sentence1", "sentence2", "gold_label"),
        HANS_LABELS,
        ("heuristic",),
        ("split", ("eval",)),
        Expected(
            {HANS: "sha256:f74d487750e376fc9ad1a1a368a25b6426be99e9ee31bd832e736bc109a5eb32"},
            train=(15_000, 15_000),
        ),
        "tommccoy1/hans, templates.py (drawn anew, not the published rows)",
        "MIT",
    ),
    "Breaking NLI": _Table(
        BREAKING,
        NLI_COLUMNS,
        NLI_LABELS,
        ("category",),
        None,
        Expected(
            {BREAKING: "sha256:4c6e57fadbc18839e2e726a7183fb3586d919c8ba730685ba8709a27c51602b0"},
            train=(982, 47, 7164),
        ),
        "BIU-NLP/Breaking_NLI",
        "not stated",
    ),
    "counterfactual SNLI": _Table(
        REVISED,
        NLI_COLUMNS,
        NLI_LABELS,
        ("part",),
        ("split", ("test",)),
        Expected(REVISED_EXPECTED.checksums, train=(654, 677, 669)),
        "acmi-lab/counterfactually-augmented-data, test pairs",
        "Apache-2.0",
    ),
    "MNLI": _Table(
        MNLI,
        NLI_COLUMNS,
        NLI_LABELS,
        ("source",),
        ("source", ("mnli_matched", "mnli_mismatched")),
        Expected(
            {MNLI: "sha256:bcb7c820207a269ab28d42d7d70a348ad64d1e214b3f105646bdffb475e6e2a6"},
            train=(718, 630, 651),
        ),
        "jind11/TextFooler, data (validation pairs of MNLI)",
        "MIT (repository)",
    ),
}


def load(name: str, root: Path, *, expected: Expected | None = None) -> Challenge:
    """The test pairs of one set, in the order of the file.

    Args:
        name: of `CHALLENGES`.
        root: folder that holds the file.
        expected: checksum, and counts of the labels (in `train`); None is what is published.

    Raises:
        ValueError: an unknown name.
        MissingData: no such file.
        DamagedData: checksum, columns or labels are not the published ones.
    """
    if name not in CHALLENGES:
        raise ValueError(f"want a set of {', '.join(CHALLENGES)}, got {name!r}")
    how = CHALLENGES[name]
    expected = expected or how.expected
    table = read_table(root, name, how.file, expected)
    if how.rows is not None:
        column, values = how.rows
        table = [row for row in table if row.get(column) in values]
    premise, hypothesis, label = how.columns
    pairs = labelled(table, premise, hypothesis, how.labels, name, label=label)
    y = torch.tensor([pair.label for pair in pairs], dtype=torch.int64)
    verify_labels(y, expected.train, name)
    if how.labels == HANS_LABELS:
        y = torch.where(y == 0, 0, NOT_ENTAILMENT)
    kind = tuple(" ".join(str(row.get(column)) for column in how.kind) for row in table)
    text = tuple((pair.premise, pair.hypothesis) for pair in pairs)
    return Challenge(text, y, kind, Provenance(name, how.source, how.licence, sha256_of(y), len(y)))


def unseen(pairs: Challenge, text: Iterable[tuple[str, str]]) -> Challenge:
    """The pairs of which neither sentence is among those of other pairs, by `stems_of`.

    A split by premise forbids a premise on both sides. A shared hypothesis counts as well: whoever
    revised a pair of counterfactual SNLI kept one of its two sentences, so a pair with another
    premise and a hypothesis of training is a trained pair with a few words changed.

    Args:
        text: premises and hypotheses that were trained on.
    """
    known = {tuple(stems_of(sentence)) for pair in text for sentence in pair}
    new = [not any(tuple(stems_of(sentence)) in known for sentence in pair) for pair in pairs.text]
    kept = pairs.take(torch.tensor(new, dtype=torch.bool).nonzero()[:, 0])
    note = f"{len(kept):,} of {len(pairs):,} pairs of {pairs.provenance.name} share no sentence"
    about = replace(pairs.provenance, sha256=sha256_of(kept.y), n=len(kept), note=note)
    return replace(kept, provenance=about)


def as_classes(y: Tensor, logits: Tensor) -> Tensor:
    """Labels with a class in place of `NOT_ENTAILMENT`: the other class that is likelier.

    A network of three classes then counts as right exactly where HANS counts it: neutral and
    contradiction are both "non-entailment".

    Args:
        y: int64 `[n]`.
        logits: `[n, 3]`, of the network that is judged, classes as `NLI_LABELS`.
    """
    if logits.shape != (len(y), len(NLI_LABELS)):
        raise ValueError(f"want logits [{len(y)}, {len(NLI_LABELS)}], got {tuple(logits.shape)}")
    likelier = logits[:, 1:].argmax(1).to(y) + 1
    return torch.where(y == NOT_ENTAILMENT, likelier, y)
