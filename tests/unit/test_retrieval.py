"""BM25 against the formula by hand, candidate sets, and scores of planted rankings."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from lib.attribution import retrieval

# words 1..4, 0 is padding
DOCUMENTS = torch.tensor([[1, 2, 0], [1, 1, 3], [4, 0, 0]])
G = torch.Generator().manual_seed(0)


def test_bm25_is_the_formula_by_hand():
    found = retrieval.bm25(DOCUMENTS, torch.tensor([[1, 4, 0]]), 5, ignored=(0,))
    idf = {1: math.log(1 + 1.5 / 2.5), 4: math.log(1 + 2.5 / 1.5)}  # in 2 and in 1 of 3 documents
    mean = (2 + 3 + 1) / 3

    def part(count: int, length: int, word: int) -> float:
        return idf[word] * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / mean))

    wanted = torch.tensor([[part(1, 2, 1)], [part(2, 3, 1)], [part(1, 1, 4)]]).double()
    assert_close(found, wanted)


def test_bm25_prefers_rare_words_short_documents_and_counts_queries():
    documents = torch.tensor([[1, 2, 2, 2], [1, 0, 0, 0], [3, 0, 0, 0], [1, 2, 2, 2]])
    scores = retrieval.bm25(documents, torch.tensor([[1, 0], [3, 0], [1, 1]]), 4, ignored=(0,))
    assert scores[1, 0] > scores[0, 0] == scores[3, 0]
    assert scores[2, 1] > scores[1, 0]  # the word 3 is rarer than the word 1
    assert_close(scores[:, 2], 2 * scores[:, 0])


def test_bm25_does_not_depend_on_padding_or_on_the_order_of_words():
    wide = torch.cat([DOCUMENTS.flip(1), torch.zeros(3, 4, dtype=torch.int64)], 1)
    query = torch.tensor([[2, 1]])
    narrow = retrieval.bm25(DOCUMENTS, query, 5, ignored=(0,))
    assert_close(retrieval.bm25(wide, query, 5, ignored=(0,)), narrow)


def test_candidates_hold_the_four_kinds_and_no_more():
    n, answers = 60, torch.arange(60) % 6
    relevant = torch.zeros(n, 2, dtype=torch.bool)
    relevant[[3, 9], 0], relevant[[4], 1] = True, True
    lexical = torch.rand(n, 2, generator=G).double()
    asked = torch.tensor([3, 4])
    chosen = retrieval.candidates(relevant, lexical, answers, asked, 5, seed=1)
    for q in range(2):
        assert chosen[relevant[:, q], q].all()
        assert chosen[lexical[:, q].topk(5).indices, q].all()
        assert chosen[answers == asked[q], q].sum() >= 5
        assert chosen[:, q].sum() <= 5 + 5 + 5 + relevant[:, q].sum()
    again = retrieval.candidates(relevant, lexical, answers, asked, 5, seed=1)
    assert torch.equal(again, chosen)


def test_no_row_of_another_answer_is_added_where_few_share_it():
    relevant = torch.eye(8, dtype=torch.bool)[:, :1]
    chosen = retrieval.candidates(
        relevant, torch.zeros(8, 1).double(), torch.arange(8), torch.tensor([0]), 1
    )
    assert chosen.sum() <= 3  # itself (annotated, and its answer is no other's), one by words, one


def test_a_perfect_ranking_and_its_reverse():
    relevant = torch.zeros(40, 3, dtype=torch.bool)
    relevant[:4] = True
    scores = -torch.arange(40.0)[:, None].expand(-1, 3)
    every = torch.ones_like(relevant)
    best, worst = (retrieval.evaluate(s, relevant, every) for s in (scores, -scores))
    assert_close(best.reciprocal_rank, torch.ones(3).double())
    assert_close(best.recall, torch.ones(3).double())
    assert_close(best.precision, torch.full((3,), 0.4).double())
    assert_close(worst.reciprocal_rank, torch.full((3,), 1 / 37).double())
    assert worst.recall.sum() == 0


def test_what_is_no_candidate_cannot_rank():
    relevant = torch.zeros(20, 1, dtype=torch.bool)
    relevant[5] = True
    scores = torch.arange(20.0)[:, None]
    chosen = torch.zeros_like(relevant)
    chosen[:7] = True
    found = retrieval.evaluate(scores, relevant, chosen)
    assert found.reciprocal_rank.item() == 0.5  # behind row 6 alone


def test_combining_does_not_depend_on_scale_or_offset():
    a, b = torch.rand(2, 30, 4, generator=G).double()
    assert_close(retrieval.combined(5 * a + 3, b), retrieval.combined(a, 0.1 * b - 7))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"documents": DOCUMENTS.float()}, "want documents as int64"),
        ({"queries": torch.tensor([[9]])}, "vocabulary of 5"),
        ({"saturation": -1.0}, "want saturation >= 0"),
        ({"ignored": (0, 1, 2, 3, 4)}, "no document holds a word"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change: dict, sentence: str):
    given = {"documents": DOCUMENTS, "queries": DOCUMENTS[:1], "n_words": 5, **change}
    with pytest.raises(ValueError, match=sentence) as caught:
        retrieval.bm25(**given)
    assert "\n" not in str(caught.value)


def test_scores_that_are_not_finite_are_refused():
    bad = torch.tensor([[0.0], [torch.nan]])
    with pytest.raises(ValueError, match="training example 1"):
        retrieval.within(bad, torch.ones(2, 1, dtype=torch.bool))
