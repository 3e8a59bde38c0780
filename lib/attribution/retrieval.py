"""Retrieval of the sentences that state a fact: by words, among candidates, and how good it is.

Document 4, applying TRAK to fact tracing; specification section 7.3. A query is a question with its
answer; a document is a sentence of the corpus; which sentences state the fact is annotated.

Public names: `bm25`, `candidates`, `within`, `combined`, `evaluate`, `Retrieval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.attribution.metrics import recall_at, reciprocal_rank, refuse_nan

DEPTH = 10  # of recall and precision


@dataclass(frozen=True)
class Retrieval:
    """How well scores find what is annotated, a number a query, float64 `[Q]`."""

    reciprocal_rank: Tensor  # of the first annotated row
    recall: Tensor  # share of the annotated rows among the ten highest
    precision: Tensor  # share of the ten highest that are annotated


def bm25(
    documents: Tensor,
    queries: Tensor,
    n_words: int,
    *,
    ignored: Sequence[int] = (),
    saturation: float = 1.2,
    length_share: float = 0.75,
) -> Tensor:
    """Scores of documents for queries by the words that they share.

    A word that is in `df` of n documents weighs `log(1 + (n - df + .5) / (df + .5))`; its count in
    a document saturates, the sooner the shorter the document.

    Args:
        documents: word numbers int64 `[n, length]`.
        queries: the same `[Q, length]`; a word that occurs twice counts twice.
        n_words: size of the vocabulary.
        ignored: word numbers that are no words (padding).
        saturation: usually k1. length_share: usually b, in [0, 1].

    Returns:
        float64 `[n, Q]`, at least 0.

    Raises:
        ValueError: no tables of word numbers, a number outside the vocabulary, constants out of
            range, or documents without any word.

    Source: Robertson's formula with the usual constants; document 4 names the method alone.
    """
    for name, rows in (("documents", documents), ("queries", queries)):
        if rows.ndim != 2 or rows.dtype != torch.int64 or not len(rows):
            raise ValueError(
                f"want {name} as int64 [n, length], got {rows.dtype} {list(rows.shape)}"
            )
        if rows.min() < 0 or rows.max() >= n_words:
            raise ValueError(
                f"{name} hold word numbers {int(rows.min())}..{int(rows.max())} of a vocabulary of "
                f"{n_words}; encode them with that vocabulary"
            )
    if saturation < 0 or not 0 <= length_share <= 1:
        raise ValueError(
            f"want saturation >= 0 and length_share in [0, 1], got {saturation}, {length_share}"
        )
    counts, asked = (_counts(rows, n_words, ignored) for rows in (documents, queries))
    lengths = counts.sum(1, keepdim=True)
    if not lengths.any():
        raise ValueError("no document holds a word; check `ignored` and the encoding")
    n, found = len(counts), (counts > 0).sum(0).double()
    weight = torch.log1p((n - found + 0.5) / (found + 0.5))
    damping = saturation * (1 - length_share + length_share * lengths / lengths.mean())
    scores = weight * counts * (saturation + 1) / (counts + damping).clamp(min=1e-300)
    return scores @ asked.T


def candidates(
    relevant: Tensor,
    lexical: Tensor,
    answers: Tensor,
    asked: Tensor,
    n_each: int,
    *,
    seed: int = 0,
) -> Tensor:
    """Rows that methods must rank: the annotated, the likeliest by words, same answers, and random.

    Args:
        relevant: annotated rows, bool `[n, Q]`.
        lexical: BM25 scores `[n, Q]`.
        answers: of rows `[n]`; asked: answers of queries `[Q]`.
        n_each: rows of each of the three other kinds, fewer where there are fewer.
        seed: of the random choices.

    Returns:
        bool `[n, Q]`.

    Source: specification section 7.3, fact tracing, where n_each is 100.
    """
    n, n_queries = relevant.shape
    generator = torch.Generator().manual_seed(seed)
    chosen = relevant.clone()
    few = min(n_each, n)
    chosen.scatter_(0, lexical.topk(few, dim=0).indices, True)
    luck = torch.rand(2, n, n_queries, generator=generator)
    same = luck[0].masked_fill(answers[:, None] != asked, -1.0).topk(few, dim=0)
    chosen.scatter_(0, same.indices, chosen.gather(0, same.indices) | (same.values >= 0))
    chosen.scatter_(0, luck[1].topk(few, dim=0).indices, True)
    return chosen


def within(scores: Tensor, chosen: Tensor) -> Tensor:
    """Scores `[n, Q]` with all that is not a candidate below every candidate."""
    refuse_nan(scores, "scores", "training example")
    if scores.shape != chosen.shape:
        raise ValueError(f"want scores and candidates alike, got {scores.shape}, {chosen.shape}")
    return scores.double().masked_fill(~chosen, scores.double().min().item() - 1.0)


def combined(*scores: Tensor) -> Tensor:
    """The mean of several methods' scores `[n, Q]`, each column at mean 0 and sd 1 first."""
    parts = [(s.double() - s.double().mean(0)) / s.double().std(0).clamp(min=1e-12) for s in scores]
    return torch.stack(parts).mean(0)


def evaluate(scores: Tensor, relevant: Tensor, chosen: Tensor) -> Retrieval:
    """Rank candidates by scores and compare with what is annotated, all `[n, Q]`."""
    ranked = within(scores, chosen)
    recall = recall_at(ranked, relevant, DEPTH)
    precision = recall * relevant.sum(0) / DEPTH
    return Retrieval(reciprocal_rank(ranked, relevant), recall, precision)


def _counts(rows: Tensor, n_words: int, ignored: Sequence[int]) -> Tensor:
    counts = torch.zeros(len(rows), n_words, dtype=torch.float64)
    counts.scatter_add_(1, rows, torch.ones_like(rows, dtype=torch.float64))
    counts[:, list(ignored)] = 0
    return counts
