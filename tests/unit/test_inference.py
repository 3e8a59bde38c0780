"""The inference grammar: labels against an independent checker, balance, splits, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch

from lib.data import inference
from lib.data.inference import LABELS, RULES, VOCABULARY

NOUNS = {"people": {"men", "women"}, "animals": {"dogs", "cats"}, "vehicles": {"cars", "trucks"}}
VERBS = {"push", "pull", "follow", "lead"}
OPEN = {"number": {"two", "three", "four"}, "manner": {"slowly", "quickly"}}
OPEN["place"] = {"inside", "outside"}


@pytest.fixture(scope="module")
def data() -> inference.Inference:
    return inference.load(0, n_train=1300, n_test=650)


def meaning(sentence: str) -> list[set[str]]:
    """What a sentence allows, slot by slot, read from its words alone."""
    number, subject, adverb, verb, thing, *rest = sentence.split()
    assert adverb in ("always", "never")
    allowed = [OPEN["number"] if number == "some" else {number}]
    allowed += [NOUNS.get(noun, {noun}) for noun in (subject, thing)]
    allowed += [{verb} if adverb == "always" else VERBS - {verb}]
    for slot in ("manner", "place"):
        said = OPEN[slot] & set(rest)
        allowed.append(said or OPEN[slot])
    return allowed


def judged(premise: str, hypothesis: str) -> str:
    """The label by its definition: over all worlds, is the hypothesis true where the premise is?"""
    here, there = meaning(premise), meaning(hypothesis)
    worlds = list(itertools.product(*here))
    true = [all(value in slot for value, slot in zip(w, there, strict=True)) for w in worlds]
    return "entailment" if all(true) else "neutral" if any(true) else "contradiction"


def test_every_label_is_that_of_an_independent_checker(data: inference.Inference):
    for split in (data.train, data.test):
        for row, label in zip(split.x, split.y.tolist(), strict=True):
            pair = data.vocabulary.decode(row)
            assert judged(*pair) == LABELS[label], pair


def test_labels_and_rules_are_balanced(data: inference.Inference):
    labels = data.train.y.bincount()
    assert labels.max() - labels.min() <= 1
    for label in range(3):
        counts = data.train.rule[data.train.y == label].bincount(minlength=len(RULES))
        counts = counts[counts > 0]
        assert counts.max() - counts.min() <= 1
    assert set(data.train.rule.tolist()) == set(range(len(RULES)))


def test_each_rule_does_what_its_name_says(data: inference.Inference):
    for row, k in zip(data.train.x, data.train.rule.tolist(), strict=True):
        premise, hypothesis = (s.split() for s in data.vocabulary.decode(row))
        new = set(hypothesis) - set(premise)
        if RULES[k] in ("overlap", "swap"):
            assert not new
        if RULES[k] == "swap":
            assert (hypothesis[1], hypothesis[4]) == (premise[4], premise[1])
        if RULES[k] in ("number", "exact number"):
            assert new <= OPEN["number"]
            assert len(new) == 1
        if RULES[k] == "vague number":
            assert new == {"some"}
        if RULES[k] in ("added", "overlap"):
            assert new <= OPEN["manner"] | OPEN["place"]
        if RULES[k] == "negation":
            assert new <= {"never", "always"}
            assert premise[2] != hypothesis[2]
        if RULES[k] in ("hypernym", "hyponym", "sibling"):
            assert len(new) == 1


def test_words_mislead_as_they_should(data: inference.Inference):
    """`never` in the hypothesis does not settle the label: all three occur with it."""
    never = VOCABULARY.number["never"]
    separator = (data.train.x == 1).cumsum(1) > 0
    denied = ((data.train.x == never) & separator).any(1)
    assert (data.train.y[denied].bincount(minlength=3) > 30).all()


def test_no_pair_occurs_twice(data: inference.Inference):
    rows = torch.cat([data.train.x, data.test.x])
    assert len(rows.unique(dim=0)) == len(rows)


def test_rows_are_padded_and_hold_one_separator(data: inference.Inference):
    x = data.train.x
    assert x.shape == (1300, inference.LENGTH)
    assert x.dtype == torch.int64
    assert (x == 1).sum(1).eq(1).all()
    padded = (x == 0).long()
    assert (padded.diff(dim=1) >= 0).all()  # nothing follows padding
    assert not (x == 2).any()  # the vocabulary is whole
    assert len(VOCABULARY) <= 80
    assert x.max() < len(VOCABULARY)


def test_a_seed_gives_the_same_pairs(data: inference.Inference):
    again = inference.load(0, n_train=1300, n_test=650)
    other = inference.load(1, n_train=1300, n_test=650)
    assert again.provenance == data.provenance
    assert other.provenance.sha256 != data.provenance.sha256


def test_rules_can_be_left_out():
    chosen = ("overlap", "added", "negation")
    data = inference.load(0, n_train=90, n_test=30, rules=chosen)
    assert {RULES[k] for k in data.train.rule.tolist()} == set(chosen)


def test_the_largest_size_can_be_met():
    n = inference.LARGEST - 3
    data = inference.load(0, n_train=n, n_test=3, rules=("vague number", "exact number", "swap"))
    assert len(data.train.x.unique(dim=0)) == n


@pytest.mark.parametrize("sizes", [(2, 10), (10, 2), (20_000, 10)])
def test_impossible_sizes_are_refused(sizes: tuple[int, int]):
    with pytest.raises(ValueError, match="at least 3 pairs in each split and at most 20,000"):
        inference.load(n_train=sizes[0], n_test=sizes[1])


def test_impossible_rules_are_refused():
    with pytest.raises(ValueError, match="no rule makes neutral"):
        inference.load(rules=("overlap", "swap"))
    with pytest.raises(ValueError, match="want different rules among overlap"):
        inference.load(rules=("overlap", "added", "swap", "irony"))
