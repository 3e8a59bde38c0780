"""The aligning network: padding, words in common, dropout by the number of the call, hooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lib import models
from lib.data.nlp import PAD, SEPARATOR
from lib.npeff import fisher


def built(seed: int = 0, **spec: object) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return models.build("alignment", generator, **{"n_words": 20, "width": 8, **spec})


def rows(n: int = 6, seed: int = 0) -> Tensor:
    """Premises of five words, hypotheses of three, two places of padding."""
    x = torch.randint(3, 20, (n, 11), generator=torch.Generator().manual_seed(seed))
    x[:, 5], x[:, 9:] = SEPARATOR, PAD
    return x


def test_padding_changes_nothing_and_the_batch_axis_may_be_absent():
    model, x = built().eval(), rows()
    assert_close(model(torch.cat([x, torch.full((len(x), 4), PAD)], 1)), model(x))
    assert_close(model(x[0]), model(x)[0])


def test_the_order_of_words_does_not_matter_but_their_side_does():
    model, x = built().eval(), rows()
    turned = torch.cat([x[:, :5].flip(1), x[:, 5:]], 1)
    assert_close(model(turned), model(x))
    swapped = torch.cat([x[:, 6:9], x[:, 5:6], x[:, :5], x[:, 9:]], 1)
    assert (model(swapped) - model(x)).abs().max() > 1e-3


def test_a_word_of_the_other_sentence_is_seen_even_without_its_meaning():
    model = built().eval()
    nn.init.zeros_(model.words.weight)
    nn.init.ones_(model.compare.weight)
    x = rows(1)
    x[0, :5], x[0, 6:9] = torch.tensor([3, 4, 5, 6, 7]), torch.tensor([8, 9, 10])
    same = x.clone()
    same[0, 6] = 3
    assert not torch.allclose(model(x), model(same))


def test_dropout_is_of_training_alone_and_repeats():
    x = rows()
    first, second = (built(drop=0.5).train()(x) for _ in range(2))
    assert torch.equal(first, second)
    model = built(drop=0.5).train()
    assert not torch.equal(model(x), model(x))  # another mask at the next call
    model.eval()
    assert torch.equal(model(x), model(x))
    assert_close(model(x), built(drop=0.0).train()(x))


def test_fishers_by_hooks_are_those_of_torch_func():
    model, x = built().eval(), rows()
    m = models.n_parameters(model)
    hooks, plain = (
        fisher.per_example_fishers(model, x, k=3 * m, generic=generic).matrix().to_dense()
        for generic in (False, True)
    )
    assert_close(hooks, plain, rtol=1e-4, atol=1e-6)


def test_sizes_without_sense_are_refused():
    for wrong in ({"width": 0}, {"drop": 1.0}):
        with pytest.raises(ValueError, match="want positive sizes and 0 <= drop < 1"):
            built(**wrong)
