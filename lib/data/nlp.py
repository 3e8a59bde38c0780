"""Pairs of sentences as rows of word numbers: SNLI and RTE below DATA_ROOT, and the vocabulary.

A pair is premise, separator, hypothesis, padding. Words are lower-cased runs of letters and
digits ("isn't" is one word), marks are dropped; a vocabulary holds the most frequent words of the
training rows alone, the others share one number.

SNLI here is its validation and test part (the training part is not in the folder), split anew by
premise, because a premise comes with about three hypotheses and would otherwise be on both sides.
The training rows of counterfactually revised SNLI, whose premises are others, can be added to
them. RTE and MRPC keep their published rows. `lib.data.challenges` has tests of heuristics.

Public names: `load_snli`, `load_rte`, `load_mrpc`, `SentencePairs`, `TextSplit`, `Vocabulary`,
`fit_vocabulary`, `words_of`, `stems_of`, `read_table`, `labelled`, `Pair`, `PAD`, `SEPARATOR`,
`UNKNOWN`, `NLI_LABELS`.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lib.data.base import (
    DamagedData,
    Expected,
    Provenance,
    Split,
    missing,
    sha256_of,
    verify_file,
    verify_labels,
)

PAD, SEPARATOR, UNKNOWN = 0, 1, 2
SPECIAL = ("<pad>", "<sep>", "<unknown>")
NLI_LABELS = ("entailment", "neutral", "contradiction")
RTE_LABELS = ("entailment", "not entailment")
MRPC_LABELS = ("other", "paraphrase")
SNLI, RTE = "nlp/snli_validation_test.csv.gz", "nlp/rte.csv.gz"
REVISED, MRPC = "nlp/snli_counterfactual.csv.gz", "nlp/mrpc.csv.gz"
SNLI_EXPECTED = Expected(
    {SNLI: "sha256:471fb760f07b176877bbbce516a03d318fdf8ea870ead6894a3f909e6d80ddb2"},
    train=(6697, 6454, 6515),  # validation and test together
)
RTE_EXPECTED = Expected(
    {RTE: "sha256:307f7bade4fa780507753c96853b1102cb18915ce4ae5b31464eea260d08f55f"},
    train=(1249, 1241),
    test=(146, 131),
)
REVISED_EXPECTED = Expected(
    {REVISED: "sha256:920706686d6b706f4a1c4cb48a800fea5010596426563f9b7f3f6b426ff1dfb1"},
    train=(2770, 2778, 2782),  # originals and revisions
)
MRPC_EXPECTED = Expected(
    {MRPC: "sha256:113f6831dd678089bd2127257ac6911d67cec7a236c54c6bc11d7afc98a5b6e1"},
    train=(1323, 2753),  # its training and validation rows
    test=(578, 1147),
)
TOKEN = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")
Form = Callable[[str], list[str]]


@dataclass(frozen=True)
class Vocabulary:
    """The words that have a number of their own; ``words[k]`` is number k."""

    words: tuple[str, ...]  # begins with SPECIAL

    def __len__(self) -> int:
        return len(self.words)

    @cached_property
    def number(self) -> dict[str, int]:
        """Word -> its number."""
        return {word: k for k, word in enumerate(self.words)}

    def encode(self, pairs: Sequence[tuple[Sequence[str], Sequence[str]]], length: int) -> Tensor:
        """Premises and hypotheses, as lists of words, to rows of numbers.

        A pair that is too long keeps up to half of the row for the hypothesis, and the beginning
        of the premise in what is left.

        Returns:
            int64 `[n, length]`.

        Raises:
            ValueError: length < 3, or a sentence without words.
        """
        if length < 3:
            raise ValueError(
                f"want length >= 3 (premise, separator, hypothesis), got {length}; raise it"
            )
        rows = []
        for i, (premise, hypothesis) in enumerate(pairs):
            if not premise or not hypothesis:
                raise ValueError(f"pair {i} has a sentence without words; drop such pairs")
            n_hypothesis = min(len(hypothesis), max(length // 2, length - 1 - len(premise)))
            row = [self.number.get(word, UNKNOWN) for word in premise[: length - 1 - n_hypothesis]]
            row += [SEPARATOR]
            row += [self.number.get(word, UNKNOWN) for word in hypothesis[:n_hypothesis]]
            rows.append(row + [PAD] * (length - len(row)))
        return torch.tensor(rows, dtype=torch.int64).reshape(len(pairs), length)

    def decode(self, row: Tensor) -> tuple[str, str]:
        """Premise and hypothesis of one row of numbers `[length]`, words joined by blanks."""
        words = [self.words[k] for k in row.tolist() if k != PAD]
        cut = words.index(SPECIAL[SEPARATOR])
        return " ".join(words[:cut]), " ".join(words[cut + 1 :])


@dataclass(frozen=True)
class TextSplit(Split):
    """Pairs as numbers, int64 `[n, length]`, with labels int64 `[n]` and the sentences."""

    text: tuple[tuple[str, str], ...]  # premise, hypothesis


@dataclass(frozen=True)
class SentencePairs:
    """A labelled set of sentence pairs."""

    train: TextSplit
    test: TextSplit
    names: tuple[str, ...]  # of the labels
    vocabulary: Vocabulary  # from the training rows
    provenance: Provenance


def words_of(sentence: str) -> list[str]:
    """Lower-cased runs of letters and digits, an apostrophe and its ending included."""
    return TOKEN.findall(sentence.lower())


def stems_of(sentence: str) -> list[str]:
    """`words_of` without common endings: "running" and "runs" become "run".

    A crude rule of this project's, for few training pairs: forms of one word share a number. It
    errs ("used" stays, "wedding" becomes "wed").
    """
    return [_stem(word) for word in words_of(sentence)]


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and len(word) >= len(ending) + 3 and not word.endswith("ss"):
            word = word[: -len(ending)]
            if ending in ("ing", "ed") and word[-1] == word[-2] and word[-1] not in "ls":
                word = word[:-1]  # running, stopped; but calling, passing
            break
    return word.rstrip("e") if len(word) > 3 else word


def fit_vocabulary(sentences: Iterable[Sequence[str]], size: int) -> Vocabulary:
    """The most frequent words of some sentences, ties in alphabetical order.

    Args:
        sentences: lists of words, of training rows only.
        size: numbers in all, the special ones included; fewer if there are fewer words.

    Raises:
        ValueError: a size that has no room for a word.
    """
    if size <= len(SPECIAL):
        raise ValueError(f"want size > {len(SPECIAL)}, got {size}: the first are special; raise it")
    counts = Counter(word for sentence in sentences for word in sentence)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return Vocabulary(SPECIAL + tuple(ranked[: size - len(SPECIAL)]))


def load_snli(
    root: Path,
    *,
    n_words: int = 2000,
    length: int = 24,
    test_share: float = 0.2,
    seed: int = 0,
    revised: bool = False,
    form: Form = words_of,
    expected: Expected = SNLI_EXPECTED,
    expected_revised: Expected = REVISED_EXPECTED,
) -> SentencePairs:
    """SNLI's 19,666 labelled validation and test pairs, split by premise.

    Args:
        root: folder that holds `nlp/snli_validation_test.csv.gz`.
        n_words: size of the vocabulary.
        length: of a row; 24 numbers hold two thirds of the pairs whole.
        test_share: of the premises.
        seed: of the split.
        revised: add the 8,330 training pairs of counterfactually revised SNLI to the training
            rows, after SNLI's own; none of their premises is among those held out.
        form: of a sentence to words, `words_of` or `stems_of`.
        expected: checksum and label counts of all rows (in `train`); expected_revised: of the
            added ones.

    Raises:
        MissingData: no such file.
        DamagedData: checksum, columns or labels are not the published ones.
        ValueError: a test_share that leaves one side empty.
    """
    table = read_table(root, "SNLI", SNLI, expected)
    rows = labelled(table, "premise", "hypothesis", NLI_LABELS, "SNLI")
    verify_labels(torch.tensor([row.label for row in rows]), expected.train, "SNLI")
    premises = sorted({row.premise for row in rows})
    n_test = round(test_share * len(premises))
    if not 0 < n_test < len(premises):
        raise ValueError(
            f"want a test_share with 1 to {len(premises) - 1} of {len(premises)} premises, "
            f"got {test_share}"
        )
    order = torch.randperm(len(premises), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = {premises[k] for k in order[:n_test]}
    train = [row for row in rows if row.premise not in held_out]
    test = [row for row in rows if row.premise in held_out]
    # rows of a premise lie side by side, so a part of the training rows would be of few premises
    shuffled = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    train = [train[k] for k in shuffled]
    note = f"split by premise, seed {seed}"
    source = "MJ-Jang/BECEL, data/snli (validation and test of SNLI)"
    if revised:
        more = _revised(root, expected_revised)
        train += [row for row in more if row.premise not in held_out]
        note += f", {len(more):,} counterfactual training pairs added"
        source += "; acmi-lab/counterfactually-augmented-data (Apache-2.0)"
    licence = "CC BY-SA 4.0"
    return _encoded(
        "SNLI", train, test, NLI_LABELS, n_words, length, source, licence, note, form=form
    )


def _revised(root: Path, expected: Expected) -> list[Pair]:
    """Training pairs of counterfactually revised SNLI, shuffled."""
    name = "counterfactually revised SNLI"
    table = [r for r in read_table(root, name, REVISED, expected) if r.get("split") == "train"]
    rows = labelled(table, "premise", "hypothesis", NLI_LABELS, name)
    verify_labels(torch.tensor([row.label for row in rows]), expected.train, name)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    return [rows[k] for k in order.tolist()]


def load_rte(
    root: Path, *, n_words: int = 2000, length: int = 48, expected: Expected = RTE_EXPECTED
) -> SentencePairs:
    """RTE's 2,490 training and 277 validation pairs; label 0 is entailment.

    Raises:
        MissingData: no `nlp/rte.csv.gz` below `root`.
        DamagedData: checksum, columns or labels are not the published ones.
    """
    table = read_table(root, "RTE", RTE, expected)
    parts = []
    for split, counts in (("train", expected.train), ("validation", expected.test)):
        chosen = [row for row in table if row.get("split") == split]
        parts.append(labelled(chosen, "sentence1", "sentence2", ("0", "1"), "RTE"))
        verify_labels(torch.tensor([row.label for row in parts[-1]]), counts, f"RTE, {split}")
    train, test = parts
    source = "MJ-Jang/BECEL, data/rte (GLUE)"
    note = "published split"
    return _encoded("RTE", train, test, RTE_LABELS, n_words, length, source, "not stated", note)


def load_mrpc(
    root: Path, *, n_words: int = 2000, length: int = 56, expected: Expected = MRPC_EXPECTED
) -> SentencePairs:
    """MRPC, 4,076 training and 1,725 test pairs; label 1 is a paraphrase.

    Its validation rows are among the training rows.

    Raises:
        MissingData: no `nlp/mrpc.csv.gz` below `root`.
        DamagedData: checksum, columns or labels are not the published ones.
    """
    table = read_table(root, "MRPC", MRPC, expected)
    parts = []
    for splits, counts in ((("train", "validation"), expected.train), (("test",), expected.test)):
        chosen = [row for row in table if row.get("split") in splits]
        parts.append(labelled(chosen, "sentence1", "sentence2", ("0", "1"), "MRPC"))
        labels = torch.tensor([row.label for row in parts[-1]])
        verify_labels(labels, counts, f"MRPC, {splits[0]}")
    train, test = parts
    source = "MJ-Jang/BECEL, data/mrpc"
    note = "published split"
    return _encoded("MRPC", train, test, MRPC_LABELS, n_words, length, source, "not stated", note)


@dataclass(frozen=True)
class Pair:
    """Two sentences and the index of their label."""

    premise: str
    hypothesis: str
    label: int


def read_table(root: Path, name: str, file: str, expected: Expected) -> list[dict[str, str]]:
    """Rows of a gzipped table below `root`, its checksum verified.

    Raises:
        MissingData: no such file; DamagedData: another or a damaged one.
    """
    path = root / file
    if not path.is_file():
        raise missing(name, root, [file], public=False)
    verify_file(path, expected.checksums[file])
    try:
        with gzip.open(path, "rt", encoding="utf8", newline="") as lines:
            return list(csv.DictReader(lines))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        raise DamagedData(f"{path} cannot be read ({error}); fetch it again") from error


def labelled(
    table: Sequence[dict[str, str]],
    premise: str,
    hypothesis: str,
    labels: Sequence[str],
    name: str,
    *,
    label: str = "label",
) -> list[Pair]:
    """Pairs of a table, by the names of its columns.

    Raises:
        DamagedData: a column is missing, or a label is none of `labels`.
    """
    rows = []
    for i, row in enumerate(table):
        absent = [c for c in (premise, hypothesis, label) if row.get(c) is None]
        if absent or row[label] not in labels:
            raise DamagedData(
                f"{name}, row {i}: wanted the columns {premise}, {hypothesis} and a label of "
                f"{', '.join(labels)}, got {row}; fetch it again"
            )
        rows.append(Pair(row[premise], row[hypothesis], labels.index(row[label])))
    return rows


def _encoded(
    name: str,
    train: list[Pair],
    test: list[Pair],
    labels: tuple[str, ...],
    n_words: int,
    length: int,
    source: str,
    licence: str,
    note: str,
    *,
    form: Form = words_of,
) -> SentencePairs:
    """Numbers for both splits, with the words of the training rows."""
    sides = (train, test)
    words = [[(form(r.premise), form(r.hypothesis)) for r in rows] for rows in sides]
    sentences = [sentence for pair in words[0] for sentence in pair]
    vocabulary = fit_vocabulary(sentences, n_words)
    parts = [
        TextSplit(
            vocabulary.encode(pairs, length),
            torch.tensor([r.label for r in rows]),
            tuple((r.premise, r.hypothesis) for r in rows),
        )
        for rows, pairs in zip(sides, words, strict=True)
    ]
    whole = sha256_of(*(tensor for part in parts for tensor in (part.x, part.y)))
    note = (
        f"{len(train)} / {len(test)} train / test, {note}; "
        f"{len(vocabulary)} words, rows of {length}"
    )
    provenance = Provenance(name, source, licence, whole, len(train) + len(test), note)
    return SentencePairs(parts[0], parts[1], labels, vocabulary, provenance)
