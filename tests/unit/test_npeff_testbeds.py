"""Testbeds on SNLI mixed with tests of heuristics, on planted pairs, and what too weak means."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lib.data import challenges, nlp
from lib.data.base import Provenance
from lib.data.challenges import NOT_ENTAILMENT, Challenge
from lib.npeff import testbeds, testbeds_snli
from lib.npeff.testbed import Examples, assemble, hypothesis_only, judged

WORDS = ("yes", "maybe", "no")  # the word of the hypothesis that says the label
NOTHING = Provenance("planted", "drawn", "none", "0" * 64, 1)


def pairs(n: int) -> tuple[tuple[tuple[str, str], ...], Tensor]:
    y = torch.arange(n) % 3
    return tuple(("a dog", WORDS[k]) for k in y.tolist()), y


def snli(n_train: int = 30, n_test: int = 60) -> nlp.SentencePairs:
    vocabulary = nlp.Vocabulary((*nlp.SPECIAL, "a", "dog", *(nlp.stems_of(w)[0] for w in WORDS)))
    parts = []
    for n in (n_train, n_test):
        text, y = pairs(n)
        words = [(nlp.stems_of(a), nlp.stems_of(b)) for a, b in text]
        parts.append(nlp.TextSplit(vocabulary.encode(words, testbeds_snli.LENGTH), y, text))
    return nlp.SentencePairs(*parts, nlp.NLI_LABELS, vocabulary, NOTHING)


class Reads(nn.Module):
    """Logits that are right, but for pairs with an unknown word: entailment, if barely."""

    def __init__(self, n_words: int) -> None:
        super().__init__()
        self.words = nn.Embedding(n_words, 3)
        self.out = nn.Linear(3, 3)
        with torch.no_grad():
            self.words.weight.zero_()
            self.words.weight[5:8] = torch.eye(3)
            self.words.weight[nlp.UNKNOWN] = torch.tensor([0.5, 0.1, 0.2])
            self.out.weight.copy_(4 * torch.eye(3))
            self.out.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.words(x).sum(-2))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of training rows, one for each network that is asked for."""
    asked: list[int] = []

    def network(x: Tensor, y: Tensor, n_words: int, seed: int) -> nn.Module:
        asked.append(len(x))
        return Reads(n_words)

    def load(name: str, root: object) -> Challenge:
        _, y = pairs(40)
        text = tuple(
            (f"dog {name} {i}", f"{WORDS[k]} {name} {i}") for i, k in enumerate(y.tolist())
        )
        if name == "HANS":
            y = torch.where(y == 0, 0, NOT_ENTAILMENT)
            text = tuple((f"a dog {i}", "zebra") for i in range(40))
        trained = pairs(2)[0]  # premise and hypothesis are SNLI's
        y, about = torch.cat([y, torch.zeros(2, dtype=torch.int64)]), replace(NOTHING, name=name)
        return Challenge(text + trained, y, ("kind",) * 42, about)

    monkeypatch.setattr(testbeds_snli, "_network", network)
    monkeypatch.setattr(testbeds_snli, "_load", lambda run: snli())
    monkeypatch.setattr(testbeds_snli, "_baselines", lambda whole, test: {"half": 0.4})
    monkeypatch.setattr(testbeds_snli, "BLOCK", ("out",))
    monkeypatch.setattr(challenges, "load", load)
    return asked


RUN = SimpleNamespace(data_root=None, seed=0, device="cpu")


def test_examples_are_mixed_by_share_and_say_their_set(trained: list[int]):
    bed = testbeds.load("snli-challenges", RUN, n_fit=32, n_held_out=32, without=("Breaking NLI",))
    concept = torch.cat([bed.fit.concept, bed.held_out.concept])
    counts = dict(zip(bed.concepts, torch.bincount(concept, minlength=6).tolist(), strict=True))
    assert counts["SNLI"] == 24
    assert counts["Breaking NLI"] == 16
    assert counts["HANS, follows"] + counts["HANS, does not"] == 8
    assert set(bed.fit.concept.tolist()) == set(range(6))  # mixed, not one after the other
    assert bed.accuracy == 1  # of SNLI alone
    assert trained == [30]


def test_no_example_of_a_test_shares_a_sentence_with_training(trained: list[int]):
    bed = testbeds.load("snli-challenges", RUN, n_fit=80, n_held_out=80, without=("HANS",))
    own = {sentence for pair in snli().train.text for sentence in pair}
    for part in (bed.fit, bed.held_out):
        for (premise, hypothesis), concept in zip(part.text, part.concept.tolist(), strict=True):
            assert concept == 0 or not {premise, hypothesis} & own
    assert "40 of 42 pairs of MNLI share no sentence" in bed.provenance.note


def test_hans_is_judged_by_entailment_or_not(trained: list[int]):
    bed = testbeds.load("snli-challenges", RUN, n_fit=32, n_held_out=32)
    both = [bed.fit, bed.held_out]
    for name, right in (("HANS, follows", True), ("HANS, does not", False)):
        for part in both:
            rows = part.concept == bed.concepts.index(name)
            assert ((bed.model(part.x[rows]).argmax(1) == part.y[rows]) == right).all()
    assert trained == [30 + 12]  # half of the 24 pairs of Breaking NLI that are no examples


def test_parts_that_cannot_be_left_out_are_refused(trained: list[int]):
    with pytest.raises(ValueError, match="to leave out, got"):
        testbeds.load("snli-challenges", RUN, n_fit=2, n_held_out=2, without=("negation",))
    with pytest.raises(ValueError, match="parts to leave out"):
        testbeds.load("snli", RUN, n_fit=2, n_held_out=2, without=("MNLI",))
    with pytest.raises(ValueError, match="want at most 60 examples"):
        testbeds.load("snli", RUN, n_fit=40, n_held_out=21)


def test_the_rest_of_the_test_pairs_judges_the_network(trained: list[int]):
    bed = testbeds.load("snli", RUN, n_fit=10, n_held_out=10)
    assert bed.n_judged == 50
    assert "Fishers by 12 of them" in str(bed)
    assert bed.fit.y.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(("baseline", "weak"), [(0.85, False), (0.95, True)])
def test_a_network_that_hardly_beats_a_baseline_is_marked_and_not_judged(
    baseline: float, weak: bool
):
    whole = snli()
    both = Examples(whole.test.x, whole.test.y, whole.test.y)
    bed = assemble(
        "planted", Reads(len(whole.vocabulary)), both, 30, nlp.NLI_LABELS, nlp.NLI_LABELS, "out",
        NOTHING, baselines={"half": baseline},
    )  # fmt: skip
    assert bed.too_weak == weak
    assert bed.name == "planted" + weak * ", model too weak"
    values = judged({"a": 1.0, "b": (2.0, 0.1)}, bed, beside=("b",))
    assert values == {"a": None if weak else 1.0, "b": (2.0, 0.1)}


def test_the_hypothesis_alone_is_read_by_its_words():
    train, test = snli(), snli(6, 30)
    score = hypothesis_only(train.train.x, train.train.y, test.test.x, test.test.y)
    assert score == 1
    blind = train.train.x.clone()
    blind[:, 3] = 3  # the word that says the label
    assert hypothesis_only(blind, train.train.y, blind, train.train.y) < 0.5
