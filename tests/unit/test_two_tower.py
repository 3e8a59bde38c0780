"""Two towers: open_clip's class, stacked training, the output in a simulated batch, gradients."""

from __future__ import annotations

import math
import sys

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib import two_tower
from lib.attribution import pair_studies, trak
from lib.data import captions
from lib.training import Recipe

SPEC = {
    "image_size": 12, "patch": 6, "width": 8, "heads": 2, "layers": 1, "embed": 8,
    "n_words": len(captions.VOCABULARY), "length": captions.LENGTH,
}  # fmt: skip
PAIRS = captions.load(40)
RECIPE = Recipe(2, 10, 0.01, optimizer="adam")


def built(seed: int = 0) -> torch.nn.Module:
    return two_tower.build(SPEC, torch.Generator().manual_seed(seed)).eval()


def in_batch(seed: int = 0, size: int = 12) -> two_tower.InBatch:
    return two_tower.InBatch(built(seed), PAIRS.images, PAIRS.texts, torch.arange(size))


def test_the_model_is_open_clip_s_and_its_weights_come_from_the_generator_alone():
    from open_clip.model import CLIP

    state = torch.random.get_rng_state()
    a, b, c = built(1), built(1), built(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert isinstance(a, CLIP)
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert not torch.equal(a.visual.proj, c.visual.proj)
    assert a.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_a_network_of_a_stack_is_the_network_trained_alone():
    rows = torch.stack([torch.arange(30), torch.arange(10, 40)])
    x, t = PAIRS.images, PAIRS.texts
    both = two_tower.train_stacked(SPEC, x, t, RECIPE, seeds=(3, 4), subsets=rows)
    together = two_tower.embed_stacked(SPEC, both, x, t)
    for k, seed in enumerate((3, 4)):
        alone = two_tower.train_stacked(SPEC, x, t, RECIPE, seeds=(seed,), subsets=rows[k : k + 1])
        # not weight by weight: the bias of keys has no effect, and Adam scales up its round-off
        for got, wanted in zip(together, two_tower.embed_stacked(SPEC, alone, x, t), strict=True):
            assert_close(got[k], wanted[0], rtol=1e-3, atol=1e-4)


def test_stacked_embeddings_are_those_of_the_unstacked_network():
    rows = torch.arange(20).expand(2, -1)
    state = two_tower.train_stacked(
        SPEC, PAIRS.images, PAIRS.texts, RECIPE, seeds=(0, 1), subsets=rows
    )
    images, texts = two_tower.embed_stacked(SPEC, state, PAIRS.images[:6], PAIRS.texts[:6])
    for k in range(2):
        a, b, _ = two_tower.unstack(SPEC, state, k)(PAIRS.images[:6], PAIRS.texts[:6])
        assert_close(images[k], a, rtol=1e-4, atol=1e-5)
        assert_close(texts[k], b, rtol=1e-4, atol=1e-5)
        assert_close(images[k].norm(dim=-1), torch.ones(6))


def test_the_output_is_the_formula_by_hand():
    """-log(1 + sum exp(sim(z, z') - sim(z, z))), both ways, at the model's temperature."""
    model, rows = in_batch(), torch.tensor([20, 33])
    found = two_tower.contrastive(model(rows))
    with torch.no_grad():
        a, b, scale = model.clip(PAIRS.images, PAIRS.texts)
    for k, row in enumerate(rows.tolist()):
        own = a[row] @ b[row]
        wanted = 0.0
        for one, others in ((a[row], b[:12]), (b[row], a[:12])):
            wanted -= math.log(1 + sum(math.exp(scale * (one @ z - own)) for z in others))
        assert found[k].item() == pytest.approx(wanted, rel=1e-4)


def test_a_pair_of_the_batch_does_not_meet_itself_there():
    model = in_batch()
    out = model(torch.tensor([3, 20]))
    assert torch.isinf(out[0, :, 4]).all()
    assert torch.isinf(out).sum() == 2
    for read in (two_tower.contrastive, two_tower.margin):
        assert torch.isfinite(read(out)).all()


def test_the_margin_is_the_log_odds_of_the_pair_both_ways():
    out = in_batch()(torch.tensor([3, 20, 33]))
    p = out.double().softmax(-1)[..., 0]
    assert_close(two_tower.margin(out).double(), (p / (1 - p)).log().sum(-1), rtol=1e-4, atol=1e-4)


def test_margin_and_its_weight_make_the_gradient_of_training():
    """Where both directions agree, weight times slope is that of the log-probability, halved."""
    logits = torch.randn(5, 1, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one, other = (logits.expand(5, 2, 9).clone().requires_grad_() for _ in range(2))
    pair_studies.of_margin(two_tower.margin(one)).sum().backward()
    pair_studies.half(two_tower.contrastive(other)).sum().backward()
    assert_close(one.grad, other.grad)


def test_the_weight_of_a_margin_is_half_of_one_minus_p():
    p = torch.tensor([0.01, 0.3, 0.5, 0.9, 0.999], dtype=torch.float64)
    out = (2 * (p / (1 - p)).log()).requires_grad_()  # both directions at p
    (slope,) = torch.autograd.grad(pair_studies.of_margin(out).sum(), out)
    assert_close(-slope, (1 - p) / 2)


def test_gradients_of_the_cosine_are_those_of_autograd():
    model, rows = in_batch(), torch.tensor([5, 30])
    found = pair_studies.cosine_gradients(rows)(model, None)
    for k, row in enumerate(rows.tolist()):
        model.zero_grad()
        a, b, _ = model.clip(PAIRS.images[row : row + 1], PAIRS.texts[row : row + 1])
        (a * b).sum().backward()
        flat = torch.cat([
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
            for p in model.parameters()
        ])  # fmt: skip
        assert_close(found[k], flat, rtol=1e-3, atol=1e-5)


def test_a_target_that_is_in_training_is_its_own_strongest_pair():
    """Pitfall 1 of the specification: the sign and the alignment of rows."""
    rows = torch.arange(30).expand(2, -1)
    recipe = Recipe(6, 10, 0.01, optimizer="adam")
    state = two_tower.train_stacked(
        SPEC, PAIRS.images, PAIRS.texts, recipe, seeds=(0, 1), subsets=rows
    )
    models = [
        two_tower.InBatch(
            two_tower.unstack(SPEC, state, k), PAIRS.images, PAIRS.texts, torch.arange(30)
        )
        for k in range(2)
    ]
    targets = torch.tensor([2, 11, 25])
    for asked, output, loss in (
        ((targets,), two_tower.contrastive, pair_studies.half),
        ((targets,), two_tower.margin, pair_studies.of_margin),
        (pair_studies.cosine_gradients(targets), two_tower.contrastive, pair_studies.half),
    ):
        tau = trak.trak(
            models, (torch.arange(30),), asked, k=None, ridge=0.1, output=output, loss=loss
        ).tau
        own = tau[targets, torch.arange(3)]
        assert (own > 0).all()
        if isinstance(asked, tuple):
            assert torch.equal(tau.argmax(0), targets)


def test_the_weight_of_every_pair_is_one_half():
    """Training minimises half of the output's negative, so that its slope is one half."""
    out = torch.linspace(-3, 0, 5)
    assert_close(pair_studies.half(out).diff() / out.diff(), torch.full((4,), -0.5))


def removal(after: Tensor, before: Tensor) -> pair_studies.Removal:
    return pair_studies.Removal(
        (1, 2), before, {"TRAK": after, "neighbours": 0.5 * (after + before.mean(0)[:, None])}
    )


def test_drops_ratios_and_differences_of_planted_cosines():
    before = torch.full((3, 4), 0.9)
    after = torch.stack([torch.full((4, 2), 0.5), torch.full((4, 2), 0.1)])
    found = removal(after, before)
    assert_close(found.drop("TRAK"), torch.tensor([[0.4] * 4, [0.8] * 4]).double())
    assert found.ratio("TRAK", "neighbours")[0] == pytest.approx(2.0)
    assert found.difference("TRAK", "neighbours") == pytest.approx((0.4, 0.0))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"texts": PAIRS.texts[:5]}, "as many images as texts"),
        ({"subsets": torch.arange(10)}, r"subsets \[N, m\]"),
        ({"subsets": torch.full((1, 3), 40)}, "subsets index 40 pairs"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change: dict, sentence: str):
    given = {
        "images": PAIRS.images, "texts": PAIRS.texts, "subsets": torch.arange(10)[None], **change
    }  # fmt: skip
    images, texts = given.pop("images"), given.pop("texts")
    with pytest.raises(ValueError, match=sentence) as caught:
        two_tower.train_stacked(SPEC, images, texts, RECIPE, seeds=(0,), **given)
    assert "\n" not in str(caught.value)


def test_an_absent_package_names_what_works_without_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "open_clip.model", None)
    with pytest.raises(ImportError, match="open_clip_torch"):
        built()
