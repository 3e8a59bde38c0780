"""Where a concept is, on a testbed whose networks hold it where we put it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib import config
from lib.data.base import Provenance
from lib.probes import presence, testbeds

N, M, UNITS, UNIT = 400, 3, 16, 5
LAYERS = ("layer1", "layer2", "layer3")


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(seed: int) -> tuple[Tensor, Tensor]:
    """Rows whose label is the sign of the product of two entries: no line finds it."""
    x = noise(N, 2 + UNITS, seed=seed)
    x[:, :2] = x[:, :2].sign() * (1 + 0.1 * x[:, :2].abs())
    return x, (x[:, 0] * x[:, 1] > 0).long()


def read(x: Tensor, trained: bool) -> dict[str, Tensor]:
    """Noise; once trained, unit 5 of layer 2 is the concept, layer 3 smears it over eight."""
    found = {}
    for depth, layer in enumerate(LAYERS):
        mixing = noise(M, UNITS, UNITS, seed=10 + depth + 100 * trained)
        found[layer] = x[:, 2:] @ mixing / UNITS**0.5
    if trained:
        concept = x[:, 0] * x[:, 1]
        found["layer2"][..., UNIT] = concept
        found["layer3"][..., :8] = concept[:, None] + 2 * found["layer3"][..., :8]
    return found


@pytest.fixture(scope="module")
def bed() -> testbeds.Testbed:
    (fit_x, fit_y), (test_x, test_y) = images(0), images(1)
    concept = testbeds.Concept(
        name="product",
        kind="object",
        fit_x=fit_x,
        fit_y=fit_y,
        test_x=test_x,
        test_y=test_y,
        fit_group=torch.arange(N),
        test_group=torch.arange(N, 2 * N),
        note="",
    )
    return testbeds.Testbed(
        name="planted",
        network="none",
        n_models=M,
        n_train=0,
        epochs=1,
        layers=LAYERS,
        concepts={"product": concept},
        test_accuracy=torch.ones(M),
        provenance=Provenance("planted", "", "", "", N, ""),
        read=read,
    )


@pytest.fixture(scope="module")
def found(bed: testbeds.Testbed) -> presence.Presence:
    generator = torch.Generator().manual_seed(0)
    return presence.measure(bed, "product", grid=(1, 2, 4, 8, 64), n_draws=4, generator=generator)


def test_the_planted_layer_is_found(found: presence.Presence):
    assert found.best_layer == 1
    assert (found.dense[1] > 0.99).all()
    assert (found.dense[0] - 0.5).abs().max() < 0.1
    assert found.dense[2].min() > 0.8
    share = presence.location(found.dense, generator=torch.Generator().manual_seed(0))
    assert share.tolist() == [0.0, 1.0, 0.0]


def test_one_unit_is_enough_where_one_was_planted_and_not_where_it_is_smeared(
    found: presence.Presence,
):
    assert found.sizes["layer2"] == (1, 2, 4, 8, 16)  # 64 is above the layer's units
    assert presence.units_needed(found.sparse["layer2"], found.sizes["layer2"]).tolist() == [1] * M
    needed = presence.units_needed(found.sparse["layer3"], found.sizes["layer3"])
    assert (needed >= 4).all()
    assert_close(found.sparse["layer2"][-1], found.dense[1])
    accuracy = ((found.logits["layer2"] > 0) == (found.concept.test_y == 1)).double().mean(-1)
    assert_close(accuracy, found.sparse["layer2"])


def test_every_control_is_at_chance(found: presence.Presence):
    three_sd = 3 * (0.25 / N) ** 0.5
    assert abs(found.raw_input - 0.5) < three_sd
    assert (found.random_network.mean(1) - 0.5).abs().max() < three_sd
    assert (found.control_task - 0.5).abs().max() < three_sd
    # labels permuted once may by chance lie along the planted unit; their mean does not
    assert (found.shuffled.mean(1) - 0.5).abs().max() < 0.1
    assert found.best_control < 0.6


def test_what_a_network_had_before_training_is_credited_to_the_control(bed: testbeds.Testbed):
    """The same testbed with trained and untrained exchanged."""
    swapped = replace(bed, read=lambda x, trained: read(x, not trained), layers=("layer2",))
    generator = torch.Generator().manual_seed(0)
    found = presence.measure(swapped, "product", grid=(1,), n_draws=1, generator=generator)
    assert (found.random_network > 0.99).all()
    assert ((found.random_logits["layer2"] > 0) == (found.concept.test_y == 1)).all()
    assert found.dense.max() < 0.6
    assert found.best_control > 0.99


def test_best_control_is_the_largest_of_them(found: presence.Presence):
    assert replace(found, raw_input=0.9).best_control == 0.9
    high = replace(found, random_network=torch.full_like(found.random_network, 0.8))
    assert high.best_control == pytest.approx(0.8)


def test_every_rule_finds_the_unit(bed: testbeds.Testbed, found: presence.Presence):
    by_rule = presence.rule_comparison(bed, found, "layer2")
    assert set(by_rule) == set(presence.RULES)
    assert all((accuracy[0] > 0.99).all() for accuracy in by_rule.values())


def test_the_choice_of_the_unit_is_stable_and_that_among_noise_is_not(
    bed: testbeds.Testbed, found: presence.Presence
):
    overlap, chance = presence.stability(bed, found, "layer2", n_draws=5, seed=0)
    assert overlap.shape == (4, M)
    assert_close(overlap[0], torch.ones_like(overlap[0]))
    assert chance[0] == pytest.approx(1 / UNITS)
    noisy, _ = presence.stability(bed, found, "layer1", n_draws=5, seed=0)
    assert noisy[0].mean() < 0.7


def test_a_control_task_that_no_coin_splits_is_nan(bed: testbeds.Testbed):
    concept = bed.concepts["product"]
    same = replace(concept, fit_group=concept.fit_group * 0, test_group=concept.test_group * 0)
    found = presence.measure(
        replace(bed, concepts={"one": same}, layers=("layer1",)),
        "one",
        grid=(1,),
        n_draws=1,
        generator=torch.Generator().manual_seed(0),
    )
    assert found.control_task.isnan().all()


@pytest.mark.parametrize("label_effect", [0.0, 5.0, 500.0])
def test_agreement_is_that_beyond_the_label(label_effect: float):
    y = torch.arange(4000) % 2
    own = noise(3, 4000, seed=0)
    shared = own[:1].expand(3, -1)
    by_label = label_effect * torch.tensor([1.0, 2.0, -1.0])[:, None] * y
    assert_close(presence.agreement(shared + by_label, y), torch.ones(3, dtype=torch.float64))
    assert presence.agreement(own + by_label, y).abs().max() < 4 / 4000**0.5
    half = presence.agreement(own + own.roll(1, 0) + by_label, y)  # one of two parts shared
    assert_close(half, torch.full((3,), 0.5, dtype=torch.float64), rtol=0, atol=0.06)


def test_agreement_leaves_the_logits_alone_and_ignores_their_scale():
    logits, y = noise(3, 50, seed=0), torch.arange(50) % 2
    kept = logits.clone()
    first = presence.agreement(logits, y)
    assert_close(logits, kept, rtol=0, atol=0)
    scaled = logits * torch.tensor([[2.0], [0.1], [30.0]]) + 7
    assert_close(presence.agreement(scaled, y), first)


def test_location_shares_what_the_networks_disagree_on():
    dense = torch.tensor([[0.9, 0.5], [0.5, 0.9], [0.1, 0.1]])  # each network votes for its own
    share = presence.location(dense, generator=torch.Generator().manual_seed(0), n_draws=4000)
    # both twice: 1/4 each; a draw of each ties, and a tie goes to the earlier layer
    assert_close(share, torch.tensor([0.75, 0.25, 0.0]), rtol=0, atol=0.03)


def test_units_needed_is_the_smallest_that_reaches_the_share():
    sparse = torch.tensor([[0.50, 0.99, 0.70], [0.76, 0.60, 0.70], [0.80, 1.00, 0.80]])
    assert presence.units_needed(sparse, (1, 4, 16)).tolist() == [4, 1, 16]
    assert presence.units_needed(sparse, (1, 4, 16), share=0.5).tolist() == [1, 1, 1]


def test_paired_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = []
    for seed in range(200):
        difference = 0.3 + noise(20, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        mean, low, high = presence.paired_interval(difference, generator=generator, n_draws=400)
        assert low <= mean <= high
        covered.append(low <= 0.3 <= high)
    share = sum(covered) / len(covered)
    # a percentile bootstrap of 20 values covers about 92%; 200 trials know it to 2%
    assert 0.86 <= share <= 0.98


def test_a_paired_interval_moves_and_stretches_with_its_values():
    difference = noise(10, seed=0)

    def interval(values: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.tensor(presence.paired_interval(values, generator=generator))

    assert_close(interval(2 * difference + 1), 2 * interval(difference) + 1)
    assert interval(torch.full((10,), 0.25)).tolist() == [0.25] * 3


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    return {"profile": "quick", "device": "cpu", "n_models": 2, "epochs": 2}


def rows_of(x: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x.flatten(1).contiguous()}


def test_the_digits_testbed_probes_on_rows_that_trained_nothing(small: dict[str, object]):
    from lib.data import digits

    run = config.resolve("11_concept_presence", **small)  # type: ignore[arg-type]
    bed = testbeds.load(run)
    trained_on = rows_of(digits.load().train.x)
    for concept in bed.concepts.values():
        fit, test = rows_of(concept.fit_x), rows_of(concept.test_x)
        # a few digits are drawn alike twice in the set itself, and flat patches are all the same
        assert len(fit & test) <= 2, concept.name
        assert len((fit | test) & trained_on) <= 2, concept.name
        share = concept.test_y.double().mean().item()
        assert 0.35 <= share <= 0.65
        assert concept.chance == pytest.approx(max(share, 1 - share))
    x = bed.concepts["round"].test_x
    fitted, fresh = bed.read(x, True), bed.read(x, False)
    assert set(fitted) == set(fresh) == set(run.size.layers)
    assert fitted["hidden1"].shape == (2, len(x), 32)
    assert not torch.equal(fitted["hidden1"], fresh["hidden1"])
    assert not torch.equal(fitted["hidden1"][0], fitted["hidden1"][1])  # two seeds
    assert bed.test_accuracy.min() > 0.3  # two epochs: above the chance of 0.1


def test_unknown_data_and_concepts_are_refused_by_name(small: dict[str, object]):
    run = config.resolve("11_concept_presence", **small, data="imagenet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="data is one of digits, cifar10; got 'imagenet'"):
        testbeds.load(run)
    run = config.resolve("11_concept_presence", **small, concepts=("round", "snake"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="digits has no concept snake; it has round, hilo"):
        testbeds.load(run)


def test_image_concepts_fit_and_judge_on_different_images_and_hold_classes_back():
    x = torch.rand(600, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(600) % 10
    class_of = {row.numpy().tobytes(): int(k) for row, k in zip(x.flatten(1), y, strict=True)}
    found = testbeds.cifar_concepts(x, y, seed=0)
    for concept in found.values():
        assert not rows_of(concept.fit_x) & rows_of(concept.test_x), concept.name
        again = testbeds.cifar_concepts(x, y, seed=0)[concept.name]
        assert_close(again.fit_x, concept.fit_x)
    unseen = found["unseen-classes"]
    assert {class_of[row] for row in rows_of(unseen.fit_x)} == {0, 1, 2, 3, 4, 5, 8}
    assert {class_of[row] for row in rows_of(unseen.test_x)} == {6, 7, 9}
    animal = torch.isin(found["animal"].fit_group, torch.tensor([2, 3, 4, 5, 6, 7]))
    assert_close(animal.long(), found["animal"].fit_y)
