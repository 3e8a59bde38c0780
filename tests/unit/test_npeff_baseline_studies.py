"""Groups against known rules, and the concept test on sequences: planted answers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lib.attribution import tcav
from lib.data.base import Provenance
from lib.npeff import baseline_studies as studies
from lib.npeff import testbeds
from lib.transformer import Transformer

N, N_RULES = 240, 4


def planted_bed(
    model: nn.Module, x: Tensor, y: Tensor, rule: Tensor, layer: str
) -> testbeds.Testbed:
    both = testbeds.Examples(x, y, rule, tuple(("a b", "c d") for _ in range(len(y))))
    half = torch.arange(len(y)) < len(y) // 2
    fit, held = (both.take(rows.nonzero()[:, 0]) for rows in (half, ~half))
    source = Provenance("planted", "this test", "none", "0" * 64, N)
    classes, rules = ("no", "yes"), tuple("pqrs")
    return testbeds.Testbed(
        "planted", model, fit, held, classes, rules, layer, source, 1.0, {"chance": 0.5}
    )


@pytest.fixture(scope="module")
def bed() -> testbeds.Testbed:
    """Inputs around four points, a rule each; the label is the rule's half."""
    generator = torch.Generator().manual_seed(0)
    rule = torch.arange(N) % N_RULES
    x = 4 * torch.eye(N_RULES)[rule] + 0.3 * torch.rand(N, N_RULES, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Linear(N_RULES, 6), nn.Tanh(), nn.Linear(6, 2))
    return planted_bed(model, x, rule // 2, rule, "0")


def judged(bed: testbeds.Testbed, groups: studies.Grouping) -> studies.Finding:
    size = groups.top.shape[1]
    return studies.find_rules(groups, bed.held_out.concept, bed.held_out.y, seed=0, size=size)


def test_clusters_and_factors_of_separated_rules_find_every_rule(bed):
    for groups in (
        studies.by_clusters(bed, "0", N_RULES, seed=0),
        studies.by_factors(bed, "0", N_RULES, seed=0),
        studies.by_probe(bed, "0"),
    ):
        found = judged(bed, groups)
        assert found.found.all()
        torch.testing.assert_close(found.best, torch.ones(N_RULES, dtype=torch.float64))


def test_the_label_alone_ranks_a_rule_by_its_share_of_the_label(bed):
    found = judged(bed, studies.by_label(bed.held_out.y))
    torch.testing.assert_close(found.best, torch.full((N_RULES,), 0.5, dtype=torch.float64))


def test_groups_by_chance_find_no_rule(bed):
    scores = torch.rand(len(bed.held_out), 8, generator=torch.Generator().manual_seed(1))
    assert not judged(bed, studies.Grouping(scores, scores)).found.any()


def test_members_of_a_cluster_come_before_all_others(bed):
    groups = studies.by_clusters(bed, "0", 6, seed=0)
    for scores, member in zip(groups.scores.T, groups.weights.T, strict=True):
        n = int(member.sum())
        assert set(scores.argsort(descending=True)[:n].tolist()) == set(
            member.nonzero()[:, 0].tolist()
        )


def test_equal_groups_have_cosine_one_and_more_than_permuted_ones(bed):
    groups = studies.by_clusters(bed, "0", N_RULES, seed=0)
    found = studies.cosine_rows({"a": groups, "b": groups}, seed=0)
    value, null = found["a to b"]
    assert value == pytest.approx(1)
    assert null < 0.5
    assert studies.largest_cosine(found, "a", "b") == pytest.approx(1)


def test_methods_are_listed_with_their_spread(bed):
    runs = [judged(bed, studies.by_clusters(bed, "0", 6, seed=seed)) for seed in (0, 1)]
    (row,) = studies.method_rows({"k-means": runs})
    assert row["rules found, of 4"].startswith("4.0 ±")
    assert row["seeds"] == 2


def words(n: int) -> Tensor:
    """Rows of words with a separator, and padding behind."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(3, 9, (n, 7), generator=generator)
    x[:, 3] = 1
    x[::2, 6] = 0
    return x


@pytest.fixture(scope="module")
def sentences() -> testbeds.Testbed:
    torch.manual_seed(0)
    model = Transformer(n_words=9, length=7, width=8, n_blocks=2, n_heads=2, n_out=2)
    y = torch.arange(N) % 2
    return planted_bed(model, words(N), y, torch.arange(N) % N_RULES, "norm")


def test_pooled_activations_of_the_last_layer_give_the_logits(sentences):
    z = studies.pooled(sentences, "held_out", "norm")
    model = sentences.model
    assert isinstance(model, Transformer)
    torch.testing.assert_close(model.out(z), model(sentences.held_out.x))


def test_slopes_say_how_a_logit_moves_if_a_unit_rises_at_all_words(sentences):
    slopes = studies.concept_slopes(sentences, "block1")
    model, c, unit, step = sentences.model, 1, 3, 1e-2
    x = sentences.held_out.x[sentences.held_out.y == c]

    def logit(change: float) -> Tensor:
        def shift(module, inputs, out):
            return out + change * torch.eye(8)[unit]

        handle = model.get_submodule("block1").register_forward_hook(shift)
        try:
            return model(x)[:, c]
        finally:
            handle.remove()

    measured = (logit(step) - logit(-step)) / (2 * step)
    torch.testing.assert_close(slopes[c, :, unit], measured, atol=2e-3, rtol=2e-2)


def test_slopes_need_no_gradient_of_word_numbers(sentences):
    found = tcav.slopes(sentences.model, sentences.held_out.x, 0, "block1", chunk=32)
    assert found.shape == (len(sentences.held_out), 7 * 8)
    assert found.abs().sum() > 0


def test_groups_are_counted_beside_random_sets(sentences):
    generator = torch.Generator().manual_seed(3)
    scores = torch.rand(len(sentences.held_out), 6, generator=generator)
    groups = {"a": studies.Grouping(scores, scores), "b": studies.Grouping(-scores, scores)}
    tested = studies.concept_tests(sentences, groups, "block1", seed=0, n_runs=8, n_random=41)
    summary = tested.summary()
    assert summary["a"][2] == summary["b"][2] == 6
    assert summary["random sets"][2] == 41
    assert studies.random_beyond(tested)[0] == pytest.approx(
        max(0, summary["random sets"][0] - 0.05)
    )


def test_tops_of_different_sizes_are_refused(sentences):
    scores = torch.rand(len(sentences.held_out), 6)
    groups = {
        "a": studies.Grouping(scores, scores),
        "b": studies.Grouping(scores[:, :2], scores[:, :2]),
    }
    with pytest.raises(ValueError, match="as many groups"):
        studies.concept_tests(sentences, groups, "block1", seed=0, n_runs=5, n_random=5)
