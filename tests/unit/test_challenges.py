"""Tests of flawed heuristics: the loaders on tiny planted files, and HANS's two labels."""

from __future__ import annotations

import csv
import gzip
import hashlib
from pathlib import Path

import pytest
import torch

from lib import config
from lib.data import challenges
from lib.data.base import DamagedData, Expected, MissingData
from lib.data.nlp import NLI_LABELS, REVISED, load_snli, stems_of

REAL = config.data_root()
HANS_COLUMNS = ("split", "gold_label", "sentence1", "sentence2", "heuristic")
HANS_ROWS = [
    ("eval", "entailment", "The judge and the actor ran.", "The judge ran.", "subsequence"),
    ("train", "entailment", "The judge slept.", "The judge slept.", "subsequence"),
    ("eval", "non-entailment", "The judge saw the actor.", "The actor saw the judge.", "overlap"),
]
NLI_ROWS = {
    "Breaking NLI": (
        challenges.BREAKING,
        ("category", "premise", "hypothesis", "label"),
        [("colors", f"A red car {k}.", "A blue car.", label) for k, label in enumerate(NLI_LABELS)],
    ),
    "counterfactual SNLI": (
        REVISED,
        ("split", "part", "premise", "hypothesis", "label"),
        [("test", "original", "A dog.", "A pet.", label) for label in NLI_LABELS]
        + [("train", "original", "A cat.", "A pet.", "neutral")],
    ),
    "MNLI": (
        challenges.MNLI,
        ("source", "premise", "hypothesis", "label"),
        [("mnli_matched", "It rains.", "It is wet.", label) for label in NLI_LABELS]
        + [("train_contradicting_hans_heuristics", "A.", "B.", "neutral")],
    ),
}


def write(path: Path, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A gzipped csv, and its checksum."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.mark.parametrize("name", NLI_ROWS)
def test_a_set_holds_its_test_pairs_in_the_order_of_the_file(tmp_path: Path, name: str):
    file, columns, rows = NLI_ROWS[name]
    digest = write(tmp_path / file, columns, rows)
    found = challenges.load(name, tmp_path, expected=Expected({file: digest}, train=(1, 1, 1)))
    assert found.y.tolist() == [0, 1, 2]
    at = columns.index("premise")
    assert found.text == tuple((row[at], row[at + 1]) for row in rows[:3])
    assert set(found.kind) == {rows[0][columns.index(c)] for c in challenges.CHALLENGES[name].kind}
    assert found.take(torch.tensor([2, 0])).y.tolist() == [2, 0]
    assert str(tmp_path) not in str(found.provenance)


def test_pairs_with_a_sentence_of_training_are_dropped(tmp_path: Path):
    file, columns, rows = NLI_ROWS["Breaking NLI"]
    digest = write(tmp_path / file, columns, rows)
    whole = challenges.load("Breaking NLI", tmp_path, expected=Expected({file: digest}, (1, 1, 1)))
    trained = [("a RED car 0", "Something."), ("The blue car.", "A red car, 2?")]  # 0 and 2
    found = challenges.unseen(whole, trained)
    assert found.text == (("A red car 1.", "A blue car."),)
    assert found.y.tolist() == [1]
    assert found.kind == ("colors",)
    assert "1 of 3 pairs of Breaking NLI share no sentence" in str(found.provenance)
    assert not len(challenges.unseen(whole, [("A truck.", "a blue car")]))
    assert challenges.unseen(whole, [("A truck.", "a blue bus")]).text == whole.text


@pytest.mark.skipif(not (REAL / REVISED).is_file(), reason="no SNLI below DATA_ROOT")
@pytest.mark.parametrize(
    ("name", "n"), [("counterfactual SNLI", 402), ("Breaking NLI", 8121), ("MNLI", 1999)]
)
def test_published_pairs_share_no_sentence_with_training(name: str, n: int):
    trained = load_snli(REAL, revised=True, form=stems_of).train.text
    found = challenges.unseen(challenges.load(name, REAL), trained)
    assert len(found) == n
    sides = [
        {" ".join(stems_of(sentence)) for pair in text for sentence in pair}
        for text in (trained, found.text)
    ]
    assert not sides[0] & sides[1]


def test_hans_tells_entailment_from_everything_else(tmp_path: Path):
    digest = write(tmp_path / challenges.HANS, HANS_COLUMNS, HANS_ROWS)
    expected = Expected({challenges.HANS: digest}, train=(1, 1))
    found = challenges.load("HANS", tmp_path, expected=expected)
    assert found.y.tolist() == [0, challenges.NOT_ENTAILMENT]
    assert found.kind == ("subsequence", "overlap")


def test_a_network_of_three_classes_is_right_where_hans_counts_it():
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    y = torch.where(torch.arange(50) % 2 == 0, 0, challenges.NOT_ENTAILMENT)
    right = logits.argmax(1) == challenges.as_classes(y, logits)
    says_entailment = logits.argmax(1) == 0
    assert torch.equal(right, torch.where(y == 0, says_entailment, ~says_entailment))
    with pytest.raises(ValueError, match=r"want logits \[50, 3\], got \(50, 2\)"):
        challenges.as_classes(y, logits[:, :2])


def test_absent_damaged_and_unknown_sets_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="want a set of HANS, Breaking NLI"):
        challenges.load("SNLI", tmp_path)
    for name, how in challenges.CHALLENGES.items():
        with pytest.raises(MissingData, match=f"wanted {how.file}; set DATA_ROOT"):
            challenges.load(name, tmp_path)
    file, columns, rows = NLI_ROWS["Breaking NLI"]
    digest = write(tmp_path / file, columns, rows)
    with pytest.raises(DamagedData, match="damaged or another version"):
        challenges.load("Breaking NLI", tmp_path)
    wrong = Expected({file: digest}, train=(2, 1, 1))
    with pytest.raises(DamagedData, match=r"wanted \[2, 1, 1\] rows per class"):
        challenges.load("Breaking NLI", tmp_path, expected=wrong)
