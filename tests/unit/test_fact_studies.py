"""Fact tracing: which rows a group loses, the masked model, falls, and a planted fact found."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lib import gradients, models
from lib.attribution import fact_studies, trak, truth
from lib.data import facts
from lib.training import Recipe
from lib.transformer import MASKED

SPEC: dict[str, object] = {"n_words": 20, "length": 7, "width": 8, "n_heads": 2}
G = torch.Generator().manual_seed(0)


def built(**spec: object) -> nn.Module:
    return models.build("masked_word", torch.Generator().manual_seed(0), **{**SPEC, **spec}).eval()


def rows(n: int = 5) -> Tensor:
    x = torch.randint(MASKED + 1, 20, (n, 7), generator=torch.Generator().manual_seed(1))
    x[torch.arange(n), torch.arange(n) % 5] = MASKED
    return x


def test_facts_take_turns_and_no_row_goes_twice():
    scores = torch.tensor([[9.0, 9.0], [8.0, 8.0], [7.0, 1.0], [0.0, 7.0], [1.0, 0.0]])
    # the first takes 0, the second 1 (0 is gone); then 2 and 3
    assert fact_studies.removed_rows(scores, 1).tolist() == [0, 1]
    assert fact_studies.removed_rows(scores, 2).tolist() == [0, 1, 2, 3]


def test_every_method_loses_as_many_rows_whatever_its_overlap():
    same = torch.rand(50, 1, generator=G).expand(-1, 4)
    for scores in (same, torch.rand(50, 4, generator=G)):
        lost = fact_studies.removed_rows(scores, 5)
        assert lost.tolist() == sorted(set(lost.tolist()))
        assert len(lost) == 20


@pytest.mark.parametrize("k", [0, 25])
def test_a_removal_of_nothing_or_of_all_is_refused(k: int):
    with pytest.raises(ValueError, match="want 1 <= k and 2 facts times k < 50 rows"):
        fact_studies.removed_rows(torch.rand(50, 2), k)


def test_falls_of_planted_margins():
    before = torch.tensor([[1.0, 2.0], [1.0, 3.0]])
    after = {("TRAK", 3): torch.tensor([[-1.0, 1.0], [-1.0, -3.0]]), ("BM25", 3): before}
    found = fact_studies.Removal(torch.arange(2), before, after)
    assert_close(found.fall("TRAK", 3), torch.tensor([0.5, 1.0]).double())
    assert_close(found.margin_fall("TRAK", 3), torch.tensor([1.5, 4.0]).double())
    assert found.difference(("TRAK", 3), ("BM25", 3))[0] == pytest.approx(0.75)


def test_padding_changes_nothing_and_order_does():
    x, model = rows(), built(length=12)
    wide = torch.cat([x, torch.zeros(5, 5, dtype=torch.int64)], 1)
    assert_close(model(wide), model(x))
    swapped = x.clone()
    swapped[0, [1, 2]] = x[0, [2, 1]]
    assert (model(swapped) - model(x))[0].abs().max() > 1e-5


def test_what_stands_elsewhere_is_read_through_attention_alone():
    """With the blocks' outputs at zero, the mask's place and nothing else decides."""
    model = built()
    for name, weight in model.named_parameters():
        if "mix" in name or "back" in name:
            weight.data.zero_()
    x = rows(2)
    other = x.clone()
    other[0, 3] = 5
    assert_close(model(other), model(x))


def test_gradients_by_hooks_are_those_by_vmap():
    model, y = built(), torch.arange(5) + MASKED + 1
    hooks = torch.cat(list(gradients.per_example_hooks(model, (rows(), y), gradients.margin)))
    plain = torch.cat(list(gradients.per_example_vmap(model, (rows(), y), gradients.margin)))
    assert_close(hooks, plain, rtol=1e-3, atol=1e-5)


def test_rows_that_are_too_long_and_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="at most 7 words, got 8"):
        built()(torch.ones(1, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match="want positive sizes"):
        built(width=9)


@pytest.fixture(scope="module")
def small() -> tuple[facts.Facts, truth.Setting]:
    corpus = facts.load_world(0, n_people=6)
    spec = {
        "n_words": len(corpus.vocabulary), "length": corpus.train.x.shape[1],
        "width": 16, "n_heads": 2,
    }  # fmt: skip
    recipe = Recipe(30, 10, 0.02, optimizer="adam", schedule="triangular")
    data = (corpus.train, corpus.questions)
    return corpus, truth.Setting("small", "masked_word", spec, recipe, *data, stack=2)


def test_trak_ranks_the_sentences_of_a_fact_above_others(small):
    corpus, setting = small
    networks = truth.checkpoints(setting, 2, share=0.5, seed=0)
    data = [(s.x, s.y) for s in (corpus.train, corpus.questions)]
    tau = trak.trak(networks, *data, k=None, ridge=0.1).tau
    states = corpus.proponents
    mean = [(tau * part).sum(0) / part.sum(0) for part in (states.float(), (~states).float())]
    assert (mean[0] > mean[1]).double().mean() > 0.8


def test_too_few_known_facts_are_refused(small):
    corpus, setting = small
    tracing = fact_studies.Tracing(corpus, setting, {}, torch.arange(3), 3, corpus.proponents)
    size = {"n_groups": 2, "group": 2, "repeats": 1, "ks": (2,)}
    run = SimpleNamespace(size=SimpleNamespace(facts=size), seed=0)
    with pytest.raises(ValueError, match="want 2 groups of 2 known facts, the model knows 3"):
        fact_studies.remove(run, tracing)  # type: ignore[arg-type]
