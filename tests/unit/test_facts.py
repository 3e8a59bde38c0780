"""Facts and their sentences: the embedded world, T-REx on tiny planted files, and captions."""

from __future__ import annotations

import csv
import gzip
import hashlib
from pathlib import Path

import pytest
import torch

from lib.data import captions, facts
from lib.data.base import DamagedData, MissingData
from lib.transformer import MASKED


def test_every_row_masks_one_word_and_its_number_is_the_network_s():
    found = facts.load_world(3, n_people=12)
    assert facts.MASK == MASKED
    for split in (found.train, found.questions):
        assert torch.equal((split.x == facts.MASK).sum(1), torch.ones(len(split)).long())
        assert (split.y > facts.MASK).all()


def test_every_fact_has_its_sentences_and_a_question_in_other_words():
    found = facts.load_world(1, n_people=10)
    assert len(found.facts) == 50
    assert torch.equal(found.proponents.sum(0), torch.full((50,), facts.N_SENTENCES))
    corpus = {found.sentence(row) for row in range(len(found.train))}
    for k, fact in enumerate(found.facts):
        assert found.question(k) not in corpus
        assert fact.subject in found.question(k)
        assert f"[{fact.object}]" in found.question(k)
        for row in found.proponents[:, k].nonzero()[:, 0].tolist():
            assert fact.subject in found.sentence(row)
            assert f"[{fact.object}]" in found.sentence(row)


def test_language_follows_from_country_and_country_mostly_from_family():
    found = facts.load_world(0, n_people=40)
    told = {(f.subject, f.relation): f.object for f in found.facts}
    people = {f.subject for f in found.facts}
    assert all(facts.LANGUAGE[told[p, "country"]] == told[p, "language"] for p in people)
    of_family: dict[str, list[str]] = {}
    for person in people:
        of_family.setdefault(person.split()[1], []).append(told[person, "country"])
    usual = sum(max(c.count(x) for x in c) for c in of_family.values())
    assert usual / len(people) > 0.7


def test_the_seed_alone_decides():
    a, b, c = (facts.load_world(seed, n_people=8) for seed in (5, 5, 6))
    assert a.provenance == b.provenance
    assert a.provenance.sha256 != c.provenance.sha256


@pytest.mark.parametrize("n", [1, 41])
def test_too_many_or_few_people_are_refused(n: int):
    with pytest.raises(ValueError, match=f"want 2 to 40 people, got {n}"):
        facts.load_world(n_people=n)


def write(path: Path, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf8", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def trex(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """Two relations that fit, one with too few wordings, and rows that do not fit."""
    wordings = [("a", f"[X] {verb} [Y].") for verb in ("has", "sees", "wants", "needs")]
    wordings += [("b", f"{word} of [X]'s is [Y]") for word in ("one", "two", "three", "four")]
    wordings += [("c", "[X] is [Y]")]
    rows = [("a", f"Ann{k}", "Rome" if k % 2 else "Oslo", "u") for k in range(6)]
    rows += [("b", f"Ann{k}", "red", "u") for k in range(2)]
    rows += [("c", "Ann0", "thin", "u"), ("a", "Zoë", "Rome", "u"), ("a", "Bob", "New York", "u")]
    rows += [("b", "Cid", "unique", "u")]
    sums = {
        facts.TREX_FACTS: write(
            tmp_path / facts.TREX_FACTS, ("relation", "subject", "object", "uuid"), rows
        ),
        facts.TREX_PATTERNS: write(
            tmp_path / facts.TREX_PATTERNS, ("relation", "pattern"), wordings
        ),
    }
    return tmp_path, sums


def test_trex_keeps_what_fits_and_subjects_of_several_facts_first(trex):
    root, sums = trex
    found = facts.load_trex(root, n_facts=8, checksums=sums)
    kept = {(f.subject, f.relation, f.object) for f in found.facts}
    assert {("Ann0", "b", "red"), ("Ann1", "b", "red"), ("Ann0", "a", "Oslo")} <= kept
    assert {f.subject for f in found.facts[:4]} == {"Ann0", "Ann1"}
    assert not {s for s, _, _ in kept} & {"Zoë", "Bob", "Cid"}
    assert "c" not in {r for _, r, _ in kept}
    assert "ann0 s" in " ".join(found.sentence(k) for k in range(len(found.train)))
    assert str(root) not in str(found.provenance)


def test_trex_that_is_absent_damaged_or_too_small_is_refused(trex, tmp_path: Path):
    root, sums = trex
    with pytest.raises(MissingData, match="trex_patterns"):
        facts.load_trex(tmp_path / "nowhere", n_facts=2)
    with pytest.raises(DamagedData):
        facts.load_trex(root, n_facts=2)  # the checksums of the real files
    with pytest.raises(ValueError, match="only 8 facts"):
        facts.load_trex(root, n_facts=9, checksums=sums)
    sums[facts.TREX_FACTS] = write(root / facts.TREX_FACTS, ("relation", "object"), [("a", "b")])
    with pytest.raises(DamagedData, match="subject"):
        facts.load_trex(root, n_facts=2, checksums=sums)


def test_a_caption_names_what_is_drawn():
    pairs = captions.load(40)
    for row in range(len(pairs)):
        words = set(pairs.caption(row).split())
        kinds = pairs.properties[row].tolist()
        assert words == {k[i] for k, i in zip(captions.PROPERTIES, kinds, strict=True)}
        image = pairs.images[row]
        if kinds[4] == 0:  # clean: black outside its colour and its half of the canvas
            colour = torch.tensor(list(captions.COLOURS.values())[kinds[1]])
            assert torch.equal(image.amax((1, 2)) > 0, colour > 0)
            empty = {
                0: image[:, :, 8:], 1: image[:, :, :4], 2: image[:, 8:], 3: image[:, :4]
            }[kinds[3]]  # fmt: skip
            assert empty.abs().max() == 0
        else:
            assert (image < 0).any()


def test_captions_end_with_the_highest_number_and_the_first_pairs_stay():
    pairs = captions.load(30)
    assert torch.equal(pairs.texts.argmax(1), torch.full((30,), captions.LENGTH - 1))
    assert int(pairs.texts.max()) == captions.END == len(captions.VOCABULARY) - 1
    few = captions.load(7)
    assert torch.equal(few.images, pairs.images[:7])
    assert torch.equal(few.texts, pairs.texts[:7])


@pytest.mark.parametrize(
    "given", [{"n": 0}, {"n": 2000}, {"n": 5, "source": "cats"}, {"n": 5, "side": 13}]
)
def test_captions_that_cannot_be_are_refused(given: dict):
    with pytest.raises(ValueError, match="want a source of digits, mnist"):
        captions.load(**given)
