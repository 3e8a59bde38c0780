"""Sentence pairs: words, vocabulary, rows of numbers, and the loaders on tiny planted files."""

from __future__ import annotations

import csv
import gzip
import hashlib
from pathlib import Path

import pytest
import torch

from lib import config
from lib.data import nlp
from lib.data.base import DamagedData, Expected, MissingData

REAL = config.data_root()
SNLI_COLUMNS = ("split", "premise", "hypothesis", "label")
RTE_COLUMNS = ("split", "sentence1", "sentence2", "label")


def write(path: Path, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A gzipped csv, and its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def snli_rows(n_premises: int = 10) -> list[tuple[str, ...]]:
    return [
        ("test" if k % 2 else "validation", f"A dog, no {k}, runs.", f"It {label}s {k}!", label)
        for k in range(n_premises)
        for label in nlp.NLI_LABELS
    ]


@pytest.fixture
def snli(tmp_path: Path) -> Expected:
    digest = write(tmp_path / nlp.SNLI, SNLI_COLUMNS, snli_rows())
    return Expected({nlp.SNLI: digest}, train=(10, 10, 10))


@pytest.fixture
def rte(tmp_path: Path) -> Expected:
    rows = [("train", f"Rain falls on hill {k}.", "Rain falls.", str(k % 2)) for k in range(6)]
    rows += [("validation", "Snow falls.", "Rain falls.", "1")]
    return Expected(
        {nlp.RTE: write(tmp_path / nlp.RTE, RTE_COLUMNS, rows)}, train=(3, 3), test=(0, 1)
    )


def test_words_are_lower_cased_runs_without_marks():
    assert nlp.words_of("A man, aged 30, isn't IN the park.") == [
        "a", "man", "aged", "30", "isn't", "in", "the", "park",
    ]  # fmt: skip


def test_vocabulary_is_by_frequency_then_alphabet():
    vocabulary = nlp.fit_vocabulary([["b", "a", "c"], ["c", "d"]], size=6)
    assert vocabulary.words == (*nlp.SPECIAL, "c", "a", "b")
    assert vocabulary.number["c"] == 3
    with pytest.raises(ValueError, match="want size > 3, got 3"):
        nlp.fit_vocabulary([["a"]], size=3)


def test_a_pair_is_encoded_and_read_back():
    vocabulary = nlp.Vocabulary((*nlp.SPECIAL, "a", "b"))
    rows = vocabulary.encode([(["a", "b"], ["b", "z"])], 7)
    assert rows.tolist() == [[3, 4, nlp.SEPARATOR, 4, nlp.UNKNOWN, nlp.PAD, nlp.PAD]]
    assert vocabulary.decode(rows[0]) == ("a b", "b <unknown>")


@pytest.mark.parametrize(
    ("n_premise", "n_hypothesis", "kept"),
    [(9, 2, (7, 2)), (9, 9, (4, 5)), (2, 9, (2, 7)), (4, 5, (4, 5))],
)
def test_a_long_pair_keeps_its_hypothesis_up_to_half(
    n_premise: int, n_hypothesis: int, kept: tuple[int, int]
):
    vocabulary = nlp.Vocabulary((*nlp.SPECIAL, "p", "h"))
    row = vocabulary.encode([(["p"] * n_premise, ["h"] * n_hypothesis)], 10)[0]
    assert ((row == 3).sum().item(), (row == 4).sum().item()) == kept


def test_pairs_that_cannot_be_encoded_are_refused():
    vocabulary = nlp.Vocabulary((*nlp.SPECIAL, "a"))
    with pytest.raises(ValueError, match="pair 1 has a sentence without words"):
        vocabulary.encode([(["a"], ["a"]), (["a"], [])], 5)
    with pytest.raises(ValueError, match="want length >= 3"):
        vocabulary.encode([(["a"], ["a"])], 2)


def test_snli_is_split_by_premise(tmp_path: Path, snli: Expected):
    data = nlp.load_snli(tmp_path, n_words=60, length=12, expected=snli)
    train, test = ({p for p, _ in split.text} for split in (data.train, data.test))
    assert not train & test
    assert (len(train), len(test)) == (8, 2)
    assert (len(data.train), len(data.test)) == (24, 6)
    assert data.train.x.shape == (24, 12)
    for split in (data.train, data.test):  # rows, labels and sentences belong together
        for (_, hypothesis), label in zip(split.text, split.y.tolist(), strict=True):
            assert data.names[label] in hypothesis
    for row, (premise, hypothesis) in zip(data.train.x, data.train.text, strict=True):
        words = data.vocabulary.decode(row)
        assert words == (" ".join(nlp.words_of(premise)), " ".join(nlp.words_of(hypothesis)))
    assert str(tmp_path) not in str(data.provenance)


def test_snli_vocabulary_is_of_training_rows_alone(tmp_path: Path, snli: Expected):
    data = nlp.load_snli(tmp_path, n_words=1000, length=12, expected=snli)
    held_out = {w for pair in data.test.text for s in pair for w in nlp.words_of(s)}
    trained = {w for pair in data.train.text for s in pair for w in nlp.words_of(s)}
    assert set(data.vocabulary.words) == trained | set(nlp.SPECIAL)
    assert held_out - trained  # the numbers of the premises
    assert (data.test.x == nlp.UNKNOWN).any()


def test_snli_split_follows_the_seed(tmp_path: Path, snli: Expected):
    a, b, c = (
        nlp.load_snli(tmp_path, seed=seed, expected=snli).provenance.sha256 for seed in (0, 0, 1)
    )
    assert a == b != c
    with pytest.raises(ValueError, match="want a test_share with 1 to 9 of 10 premises"):
        nlp.load_snli(tmp_path, test_share=0.0, expected=snli)


def test_rte_keeps_its_split(tmp_path: Path, rte: Expected):
    data = nlp.load_rte(tmp_path, expected=rte)
    assert data.train.y.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.test.text == (("Snow falls.", "Rain falls."),)
    assert data.test.x[0, 0] == nlp.UNKNOWN
    assert data.names[0] == "entailment"


def test_stems_are_words_without_common_endings():
    stems = nlp.stems_of("Dogs running, stopped; dresses passing. The red wedding is sings, used")
    assert stems == [
        "dog", "run", "stop", "dress", "pass", "the", "red", "wed", "is", "sing", "used",
    ]  # fmt: skip
    assert nlp.stems_of("A man rides") == nlp.stems_of("a man ride")


def test_counterfactual_training_pairs_come_after_snli_and_are_not_held_out(
    tmp_path: Path, snli: Expected
):
    columns = ("split", "part", "premise", "hypothesis", "label")
    rows = [("train", "original", f"A cat {k} naps.", "It rests.", "neutral") for k in range(4)]
    rows += [("train", "original", f"A dog, no {k}, runs.", "It!", "neutral") for k in range(10)]
    rows += [("test", "original", "A bird.", "It flies.", "entailment")]
    digest = write(tmp_path / nlp.REVISED, columns, rows)
    more = Expected({nlp.REVISED: digest}, train=(0, 14, 0))
    own = nlp.load_snli(tmp_path, expected=snli)
    data = nlp.load_snli(tmp_path, revised=True, expected=snli, expected_revised=more)
    assert data.train.text[: len(own.train)] == own.train.text
    assert data.test.text == own.test.text
    added = {premise for premise, _ in data.train.text[len(own.train) :]}
    assert {f"A cat {k} naps." for k in range(4)} <= added
    assert not added & {premise for premise, _ in data.test.text}
    assert "A bird." not in added


def test_mrpc_trains_on_its_validation_rows_too(tmp_path: Path):
    rows = [(split, "One.", "Two.", label) for split, label in
            (("train", "1"), ("validation", "0"), ("test", "1"))]  # fmt: skip
    digest = write(tmp_path / nlp.MRPC, RTE_COLUMNS, rows)
    expected = Expected({nlp.MRPC: digest}, train=(1, 1), test=(0, 1))
    data = nlp.load_mrpc(tmp_path, expected=expected)
    assert data.train.y.tolist() == [1, 0]
    assert data.test.y.tolist() == [1]
    assert data.names == ("other", "paraphrase")


@pytest.mark.skipif(not (REAL / nlp.MRPC).is_file(), reason="no MRPC below DATA_ROOT")
def test_the_published_mrpc_is_read():
    data = nlp.load_mrpc(REAL)
    for split, counts in ((data.train, (1323, 2753)), (data.test, (578, 1147))):
        assert tuple(split.y.bincount().tolist()) == counts
        assert split.x.shape == (sum(counts), 56)
        assert (split.x == nlp.SEPARATOR).sum(1).eq(1).all()
    assert len(data.vocabulary) == 2000
    # the first pair of the file; "amrozi" is among its rare words
    assert data.train.text[0][0].startswith("Amrozi accused his brother")
    assert data.train.y[0] == 1
    assert "accused his brother" in data.vocabulary.decode(data.train.x[0])[0]
    whole = (data.train.x != nlp.PAD).sum(1) < 56  # rows that nothing was cut from
    assert whole.float().mean() > 0.9
    train, test = ({*split.text} for split in (data.train, data.test))
    assert not train & test


def test_absent_files_are_one_sentence(tmp_path: Path):
    for load, file in (
        (nlp.load_snli, nlp.SNLI),
        (nlp.load_rte, nlp.RTE),
        (nlp.load_mrpc, nlp.MRPC),
    ):
        with pytest.raises(MissingData, match=f"wanted {file}; set DATA_ROOT"):
            load(tmp_path)


def test_another_file_is_refused(tmp_path: Path, snli: Expected):
    with pytest.raises(DamagedData, match="damaged or another version"):
        nlp.load_snli(tmp_path)
    (tmp_path / nlp.SNLI).write_bytes(b"no archive")
    digest = f"sha256:{hashlib.sha256(b'no archive').hexdigest()}"
    with pytest.raises(DamagedData, match="cannot be read"):
        nlp.load_snli(tmp_path, expected=Expected({nlp.SNLI: digest}, train=(10, 10, 10)))


def test_another_balance_an_unknown_label_and_a_lost_column_are_refused(
    tmp_path: Path, snli: Expected
):
    with pytest.raises(DamagedData, match=r"wanted \[9, 10, 11\] rows per class"):
        nlp.load_snli(tmp_path, expected=Expected(snli.checksums, train=(9, 10, 11)))
    for columns, row in (
        (SNLI_COLUMNS, ("test", "a", "b", "-")),
        (("split", "premise", "other", "label"), ("test", "a", "b", "neutral")),
    ):
        digest = write(tmp_path / nlp.SNLI, columns, [row])
        with pytest.raises(DamagedData, match="SNLI, row 0: wanted the columns premise"):
            nlp.load_snli(tmp_path, expected=Expected({nlp.SNLI: digest}, train=(1, 0, 0)))


def test_rows_are_whole_numbers(tmp_path: Path, snli: Expected):
    data = nlp.load_snli(tmp_path, expected=snli)
    assert data.train.x.dtype == data.train.y.dtype == torch.int64
