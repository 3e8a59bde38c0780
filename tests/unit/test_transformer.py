"""The transformer: padding, sides, per-example gradients, and stacked training of word numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close

from lib import models, training
from lib.data import inference
from lib.data.nlp import PAD, SEPARATOR

SPEC: dict[str, object] = {
    "n_words": 26, "length": 15, "width": 16, "n_blocks": 2, "n_heads": 2,
}  # fmt: skip


def built(seed: int = 0, **spec: object) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return models.build("transformer", generator, **{**SPEC, **spec})


def rows(n: int = 6, seed: int = 0) -> Tensor:
    return inference.load(seed, n_train=n, n_test=3).train.x


def test_number_of_parameters_in_closed_form():
    w, words, length, blocks = 16, 26, 15, 2
    block = 2 * 2 * w + (w + 1) * 3 * w + (w + 1) * w + (w + 1) * 2 * w + (2 * w + 1) * w
    whole = (words + length + 2) * w + blocks * block + 2 * w + (w + 1) * 3
    assert models.n_parameters(built()) == whole


def test_padding_changes_nothing():
    x = rows()
    wide = torch.cat([x, torch.full((len(x), 5), PAD)], 1)
    model = built(length=20)
    assert_close(model(wide), model(x))


def test_words_their_order_and_their_side_matter():
    x = rows(3)[:1]
    cut = int((x[0] == SEPARATOR).nonzero())
    model = built()
    swapped = x.clone()
    swapped[0, [1, 4]] = x[0, [4, 1]]  # subject and object of the premise
    moved = torch.cat([x[:, cut + 1 :], x[:, cut : cut + 1], x[:, :cut]], 1)
    moved = torch.cat([moved[moved != PAD], moved[moved == PAD]])[None]
    for other in (swapped, moved):
        assert (model(other) - model(x)).abs().max() > 1e-4


def test_a_row_without_the_batch_axis_and_an_empty_row():
    x, model = rows(), built()
    assert_close(model(x[0]), model(x)[0])
    assert torch.isfinite(model(torch.zeros(1, 15, dtype=torch.int64))).all()


def test_attention_is_the_library_s():
    """Against `nn.MultiheadAttention` with the same weights and mask."""
    own = built().get_submodule("block1.attention")
    peer = nn.MultiheadAttention(16, 2, batch_first=True)
    peer.in_proj_weight.data.copy_(own.query_key_value.weight)
    peer.in_proj_bias.data.normal_(generator=torch.Generator().manual_seed(1))
    own.query_key_value.bias.data.copy_(peer.in_proj_bias)
    peer.out_proj.load_state_dict(own.mix.state_dict())
    h = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(2))
    present = torch.arange(7) < torch.tensor([[7], [5], [2]])
    wanted, _ = peer(h, h, h, key_padding_mask=~present)
    assert_close(own(h, present), wanted)


def test_per_example_gradients_by_vmap_are_those_of_one_example_at_a_time():
    model, x = built().eval(), rows()
    parameters = dict(model.named_parameters())

    def first_logit(weights: dict[str, Tensor], row: Tensor) -> Tensor:
        return functional_call(model, weights, (row,))[0]

    together = vmap(grad(first_logit), (None, 0))(parameters, x)
    for i, row in enumerate(x):
        model.zero_grad()
        model(row[None])[0, 0].backward()
        for name, p in model.named_parameters():
            assert_close(together[name][i], p.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_network_of_a_stack_is_the_network_trained_alone(optimizer: str):
    data = inference.load(0, n_train=60, n_test=30)
    recipe = training.Recipe(2, 15, 0.01, optimizer=optimizer)
    subsets = torch.stack([torch.arange(30), torch.arange(30, 60)])
    x, y = data.train.x, data.train.y
    state = training.train_stacked("transformer", SPEC, x, y, recipe, seeds=(3, 4), subsets=subsets)
    out, _ = training.forward_stacked("transformer", SPEC, state, data.test.x)
    for k, seed in enumerate((3, 4)):
        generator = torch.Generator().manual_seed(seed)
        alone = models.build("transformer", generator, **SPEC)
        training.train(alone, x[subsets[k]], y[subsets[k]], recipe, generator=generator)
        assert_close(out[k], training.predict(alone, data.test.x), rtol=1e-3, atol=1e-4)
        member = training.unstack("transformer", SPEC, state, k)
        assert_close(out[k], training.predict(member, data.test.x))


def test_it_learns_the_grammar_better_than_words_alone_allow():
    data = inference.load(0, n_train=600, n_test=300, rules=("vague number", "number", "added"))
    spec = {**SPEC, "width": 32, "n_blocks": 1, "n_heads": 4}
    recipe = training.Recipe(8, 25, 0.01, optimizer="adam", schedule="triangular")
    generator = torch.Generator().manual_seed(0)
    model = models.build("transformer", generator, **spec)
    training.train(model, data.train.x, data.train.y, recipe, generator=generator)
    assert training.accuracy(model, data.test.x, data.test.y) > 0.9


def test_initial_weights_come_from_the_seed_alone():
    state = torch.random.get_rng_state()
    a, b, c = built(1), built(1), built(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, p in a.named_parameters():
        assert torch.equal(p, b.get_parameter(name))
    assert not torch.equal(a.get_parameter("words.weight"), c.get_parameter("words.weight"))
    assert a.get_parameter("words.weight").std().item() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(a.get_parameter("norm.weight"), torch.ones(16))


def test_other_networks_keep_their_draws():
    """What a seed meant before word embeddings were known."""
    wanted = torch.Generator().manual_seed(5)
    model = models.build("mlp", torch.Generator().manual_seed(5), widths=(4, 3, 2))
    for layer, fan_in in (("hidden1.0", 4), ("out", 3)):
        weight = model.get_parameter(f"{layer}.weight")
        drawn = torch.empty_like(weight).normal_(0.0, (2 / fan_in) ** 0.5, generator=wanted)
        assert torch.equal(weight, drawn)


def test_rows_that_are_too_long_and_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="want rows of at most 15 words, got 16"):
        built()(torch.ones(1, 16, dtype=torch.int64))
    for spec in ({"width": 15}, {"n_blocks": 0}, {"n_words": 0}):
        with pytest.raises(ValueError, match="want positive sizes and a width"):
            built(**spec)
