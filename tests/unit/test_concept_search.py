"""Concepts of planted sets, what chance gives, and rules that coefficients single out."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.testing import assert_close

from lib.npeff import concept_search as concepts
from lib.npeff.concept_search import CRITERIA, Concepts, Search, both_polarities, search

N, T = 400, 20
NAMES = ("half", "quarter", "rare", "common", "never", "class")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def planted() -> tuple[Tensor, Tensor]:
    """Truth `[N, 6]`, predictions; the last variable is the prediction, the fifth never true."""
    truth = torch.zeros(N, 6, dtype=torch.bool)
    i = torch.arange(N)
    truth[:, 0] = i % 2 == 0
    truth[:, 1] = i % 4 == 1  # in the odd half
    truth[:, 2] = i < 40
    truth[:, 3] = i < 396
    truth[:, 5] = i % 5 < 2
    return truth, truth[:, 5].long()


def found_in(*sets: Tensor, n_random: int = 50) -> Search:
    truth, predicted = planted()
    return search(
        torch.stack(sets), both_polarities(truth, NAMES), predicted, seed=0, n_random=n_random
    )


def some(condition: Tensor, seed: int = 0) -> Tensor:
    rows = condition.nonzero().flatten()
    return rows[torch.randperm(len(rows), generator=generator(seed))[:T]]


def names_of(found: Search, j: int) -> set[str]:
    return {found.concepts.names[i] for i in found.pure[j].nonzero().flatten().tolist()}


def test_both_polarities_are_concepts_and_constants_are_none():
    made = both_polarities(planted()[0], NAMES)
    varying = ["half", "quarter", "rare", "common", "class"]
    assert list(made.names) == [*varying, *(f"not {name}" for name in varying)]
    want = [0.5, 0.25, 0.1, 0.99, 0.4]
    assert_close(made.prevalence.tolist(), [*want, *(1 - p for p in want)])


def test_pure_concepts_of_planted_sets():
    truth, _ = planted()
    half, quarter, rare = truth[:, 0], truth[:, 1], truth[:, 2]
    found = found_in(some(quarter), some(half & rare), some(~rare & (torch.arange(N) < 396)))
    assert names_of(found, 0) >= {"quarter", "not half"}
    assert names_of(found, 1) == {"half", "not quarter", "rare", "common"}
    assert names_of(found, 2) == {"not rare", "common"}


def test_shares_are_counts_over_the_set():
    i = torch.arange(T)
    found = found_in(i)
    share = dict(zip(found.concepts.names, found.share[0].tolist(), strict=True))
    assert (share["half"], share["quarter"], share["rare"]) == (0.5, 0.25, 1.0)
    assert share["not quarter"] == 0.75
    assert found.purity[0].tolist() == [1.0, 1.0, 1.0]  # "rare"


def test_criteria_and_their_counts():
    truth, _ = planted()
    half, quarter = truth[:, 0], truth[:, 1]
    i = torch.arange(N)
    mixed = torch.cat([i[380:399], i[:1]])  # nothing rare in common, and no "common" either
    sets = [
        some(quarter & ~truth[:, 2]),
        some(half & ~truth[:, 2], 3),
        some(i < 396, 5),
        mixed,
    ]
    found = found_in(*sets)
    passes = {name: found.passes[:, k].tolist() for k, name in enumerate(CRITERIA)}
    assert passes["any concept"] == [True, True, True, False]
    assert passes["held by at most 1/2"] == [True, True, False, False]
    assert passes["held by at most 1/4"] == [True, False, False, False]
    assert passes["prediction only"] == [False] * 4
    assert found.counts["any concept"][0] == 3
    assert found.counts["held by at most 1/4"][0] == 1


def test_a_set_with_nothing_but_its_prediction():
    truth, predicted = planted()
    i = torch.arange(N)
    # of one prediction, with examples of each value of all other variables
    alone = torch.cat([i[predicted == 0][:10], i[predicted == 0][-10:]])
    also_half = some((predicted == 0) & truth[:, 0])
    found = found_in(alone, also_half)
    assert names_of(found, 0) == {"not class"}
    assert found.passes[:, 3].tolist() == [True, False]


def test_what_follows_from_the_prediction_is_no_further_concept():
    """A variable that is false wherever the prediction is 1 adds nothing to the prediction."""
    i = torch.arange(N)
    predicted = (i % 2).long()
    truth = torch.stack([predicted == 1, (predicted == 0) & (i % 3 == 0), i % 7 < 3], 1)
    made = both_polarities(truth, ("class", "within", "other"))
    odd = i[1::2][:T]
    found = search(odd[None], made, predicted, seed=0, n_random=2)
    assert names_of(found, 0) == {"class", "not within"}
    assert found.passes[0, 3]


def test_random_sets_pass_as_often_as_the_hypergeometric_law_says():
    """One concept of prevalence 0.9: pure in either polarity with a known chance."""
    i = torch.arange(N)
    made = both_polarities((i < 360)[:, None], ("common",))
    n_random = 4000
    top = i[None, :10]
    found = search(top, made, (i % 2).long(), seed=1, n_random=n_random)
    log = torch.lgamma(torch.tensor([361.0, 351.0, 401.0, 391.0], dtype=torch.float64))
    chance = (log[0] - log[1] - log[2] + log[3]).exp().item()  # C(360, 10) / C(400, 10)
    sd = (chance * (1 - chance) / n_random) ** 0.5
    assert abs(found.null_passes[:, 0].double().mean().item() - chance) < 5 * sd
    assert not found.null_passes[:, 2].any()  # its other polarity, pure once in 10^11 sets


def test_random_sets_are_seeded_and_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch):
    first = found_in(torch.arange(T), n_random=60)
    assert torch.equal(found_in(torch.arange(T), n_random=60).null_purity, first.null_purity)
    monkeypatch.setattr(concepts, "NUMBERS", 7 * (T * 10 + N))
    assert torch.equal(found_in(torch.arange(T), n_random=60).null_purity, first.null_purity)
    truth, predicted = planted()
    made = both_polarities(truth, NAMES)
    other = search(torch.arange(T)[None], made, predicted, seed=1, n_random=60)
    assert not torch.equal(other.null_purity, first.null_purity)


def test_purity_curve_by_hand():
    purity = torch.tensor([[1.0, 0.5], [0.9, 0.25], [0.8, 0.0], [0.95, 1.0]])
    curve = concepts.purity_curve(purity, (0.8, 0.9, 0.95, 1.0))
    assert_close(curve[:, 0].tolist(), [1.0, 0.75, 0.5, 0.25])
    assert_close(curve[:, 1].tolist(), [0.25] * 4)


def test_conjunction_is_maximal_and_its_short_form_selects_the_same():
    truth, _ = planted()
    found = found_in(some(truth[:, 0] & truth[:, 2]))
    whole = concepts.conjunction(found, 0)
    assert set(whole.concepts) == {"half", "not quarter", "rare", "common"}
    assert whole.short == ("rare", "half")  # these imply the others
    assert whole.prevalence == pytest.approx(20 / N)
    assert concepts.conjunction(found, 0, limit=0.25).concepts == ("rare",)


def test_a_set_without_a_common_concept_has_the_empty_conjunction():
    i = torch.arange(N)
    found = found_in(torch.cat([i[380:399], i[:1]]))
    empty = concepts.conjunction(found, 0)
    assert (empty.concepts, empty.short, empty.prevalence) == ((), (), 1.0)


def test_top_examples_are_sorted_and_ties_go_to_the_earlier():
    w = torch.tensor([[0.0, 2], [3, 2], [0, 2], [1, 5]])
    assert concepts.top_examples(w, 3).tolist() == [[1, 3, 0], [3, 0, 1]]
    distances = torch.tensor([[0.5], [0.1], [0.9]])
    assert concepts.top_examples(-distances, 2).tolist() == [[1, 0]]


def coefficients(rules: Tensor) -> Tensor:
    """Component 0 is rule 2, component 1 leans to rule 1, component 2 is noise; many are zero."""
    noise = torch.rand(len(rules), 3, generator=generator(4), dtype=torch.float64)
    noise[:, 0] = (rules == 2) * (1 + noise[:, 0])
    noise[:, 1] += 0.5 * (rules == 1)
    noise[noise[:, 2] < 0.5, 2] = 0
    return noise


def rules_of(n: int = N) -> Tensor:
    return torch.randint(4, (n,), generator=generator(3))


def test_average_precision_with_ties_equals_scikit_learn():
    rules = rules_of()
    w = coefficients(rules)
    w = torch.cat([w, (w[:, 1:2] * 8).round()], 1)
    found = concepts.match_rules(w, rules, seed=0, n_top=T, n_permutations=2)
    for j in range(w.shape[1]):
        for k in range(4):
            want = average_precision_score((rules == k).numpy(), w[:, j].numpy())
            assert found.average_precision[j, k].item() == pytest.approx(want, rel=1e-12)


def test_precision_and_recall_are_counts_of_the_top_examples():
    rules = rules_of()
    w = coefficients(rules)
    found = concepts.match_rules(w, rules, seed=0, n_top=T, n_permutations=2)
    for j, top in enumerate(concepts.top_examples(w, T)):
        for k in range(4):
            hits = (rules[top] == k).sum().item()
            assert found.precision[j, k].item() == pytest.approx(hits / T)
            assert found.recall[j, k].item() == pytest.approx(hits / (rules == k).sum().item())
    assert_close(found.precision.sum(1), torch.ones(3, dtype=torch.float64))


def test_planted_rules_are_found():
    rules = rules_of()
    found = concepts.match_rules(coefficients(rules), rules, seed=0, n_top=T, n_permutations=199)
    assert found.best[:2].tolist() == [2, 1]
    assert found.excess[0, 2].item() == pytest.approx(1)
    assert found.beyond[0].tolist() == [False, False, True, False]
    assert found.found().tolist() == [False, True, True, False]
    assert found.found(least=0.9).tolist() == [False, False, True, False]


def test_random_coefficients_pass_the_joint_null_as_often_as_its_level_says():
    """The best of all components and rules: as many orders have a chance as in the data."""
    rules, passed, n_draws = torch.arange(150) % 4, 0, 300
    for seed in range(n_draws):
        w = torch.rand(150, 24, generator=generator(1000 + seed))
        found = concepts.match_rules(w, rules, seed=seed, n_top=10, n_permutations=99)
        passed += int(found.beyond.any())
    assert abs(passed / n_draws - 0.05) < 3 * (0.05 * 0.95 / n_draws) ** 0.5


def test_a_common_rule_has_no_advantage_in_excess():
    """A rule of 90 % has an average precision near 0.9 in any order, and an excess near 0."""
    rules = (torch.arange(N) % 10 == 0).long()
    w = torch.zeros(N, 1)
    found = concepts.match_rules(w, rules, seed=0, n_top=T, n_permutations=2)
    assert_close(found.average_precision[0], found.prevalence)  # all tied
    assert_close(found.excess[0], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_permuting_the_examples_changes_nothing():
    truth, predicted = planted()
    order = torch.randperm(N, generator=generator(6))
    place = order.argsort()
    top = torch.stack([some(truth[:, 0]), some(truth[:, 2])])
    first = search(top, both_polarities(truth, NAMES), predicted, seed=0, n_random=1)
    moved = both_polarities(truth[order], NAMES)
    second = search(place[top], moved, predicted[order], seed=0, n_random=1)
    assert torch.equal(first.share, second.share)
    assert torch.equal(first.passes, second.passes)
    rules = rules_of()
    w = coefficients(rules)
    one = concepts.match_rules(w, rules, seed=0, n_top=T, n_permutations=1)
    two = concepts.match_rules(w[order], rules[order], seed=0, n_top=T, n_permutations=1)
    assert_close(one.average_precision, two.average_precision)


CONCEPTS = both_polarities(planted()[0], NAMES)
TOP, PREDICTED, W, RULES = torch.arange(T)[None], planted()[1], torch.eye(N, 2), rules_of()


def asked(
    top: Tensor = TOP, made: Concepts = CONCEPTS, of: Tensor = PREDICTED, n_random: int = 2
) -> object:
    return search(top, made, of, seed=0, n_random=n_random)


def matched(w: Tensor = W, rules: Tensor = RULES, n_top: int = T, n: int = 2) -> object:
    return concepts.match_rules(w, rules, seed=0, n_top=n_top, n_permutations=n)


REFUSED = {
    "truth as numbers": (lambda: both_polarities(torch.ones(3, 2), "ab"), "want truth bool"),
    "names": (lambda: both_polarities(torch.ones(3, 2).bool(), "a"), "1 names"),
    "constant": (lambda: both_polarities(torch.ones(3, 2).bool(), "ab"), "no variable varies"),
    "flat top": (lambda: asked(TOP[0]), r"want top int64 \[r, T\]"),
    "real top": (lambda: asked(TOP.double()), "want top int64"),
    "no example": (lambda: asked(TOP + N), "want example numbers 0 to 399"),
    "twice": (lambda: asked(TOP * 0), "distinct examples"),
    "predictions": (lambda: asked(of=PREDICTED[:-1]), "one predicted class"),
    "no random set": (lambda: asked(n_random=0), "at least one random set"),
    "NaN": (lambda: concepts.top_examples(W * float("nan"), T), "without NaN"),
    "too many": (lambda: concepts.top_examples(W, N + 1), "want 1 to 400 top examples"),
    "rules": (lambda: matched(rules=RULES[:-1]), r"want rules int64 \[400\]"),
    "one rule": (lambda: matched(rules=RULES * 0), "k >= 2"),
    "a rule without an example": (lambda: matched(rules=RULES * 2), "examples of each"),
    "negative rule": (lambda: matched(rules=RULES - 1), "examples of each"),
    "no permutation": (lambda: matched(n=0), "at least one permutation"),
}


@pytest.mark.parametrize(("call", "sentence"), REFUSED.values(), ids=REFUSED)
def test_refused_with_a_sentence(call: object, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        call()  # type: ignore[operator]
