"""Case study I on traces planted by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from lib.data import scenes
from lib.monitoring import cases, measures, statistics
from lib.monitoring import standard_pictures as pictures
from lib.monitoring import standard_studies as studies
from lib.monitoring.activations import ConceptSet, LayerActivations
from lib.monitoring.calibration import Rule, permutation_null
from lib.monitoring.detectors import clip_dissect
from lib.monitoring.record import Probe, Record
from lib.monitoring.space import Space, fit_basis
from tests.planted_traces import CONCEPTS, SPACE, trace

EPOCHS = (0, 1, 4)


def planted(last: list[str], first: str = "striped", detector: str = "clip") -> SimpleNamespace:
    """A study of one layer whose units start alike and end with the given words."""
    start = [first] * len(last)
    traces = [
        trace([start, last, last], layer=layer, detector=detector, epochs=EPOCHS)
        for layer in ("layer2", "layer3", "layer4")
    ]
    blind = [
        trace([start] * 3, [[0] * len(last)] * 3, layer=t.layer, detector=detector, epochs=EPOCHS)
        for t in traces
    ]
    basis = SimpleNamespace(points=torch.zeros(10, 2), digest=SPACE.digest)
    return SimpleNamespace(
        accuracy=dict(zip(EPOCHS, (0.1, 0.8, 0.9), strict=True)),
        epochs=list(EPOCHS),
        at=SimpleNamespace(concepts=CONCEPTS, space=SPACE),
        record=Record(tuple(traces), SPACE, basis),
        chance=Record(tuple(blind), SPACE, basis),
        rules={("clip", "layer4"): Rule(1.0, 0.5)},
    )


def test_what_was_planted_is_measured():
    study = planted(["tree", "roof", "beach", "red"] * 10)
    found = studies.measure(study)
    assert found["growth"][0] == pytest.approx(-0.25)  # striped counts, red does not
    assert found["depth"][0] == 0  # all layers are alike
    assert found["rises"][0] == 30
    assert found["S1"][0] > 0.3
    assert found["S2"][0] > 2
    assert found["spread and accuracy"][0] == pytest.approx(0.866, abs=1e-3)  # two are equal


def test_a_watched_training_is_seen_before_each_epoch_and_after_the_last():
    images = torch.randint(256, (60, 48, 48, 3), generator=torch.Generator().manual_seed(0))
    similarity = torch.randn(60, len(CONCEPTS), generator=torch.Generator().manual_seed(1))
    at = SimpleNamespace(
        probe=Probe(images.byte(), torch.arange(60), prepare=scenes.prepare),
        detector=lambda name: clip_dissect(similarity, similarity="cos", name=name),
        space=SPACE,
        basis=fit_basis(SPACE, "pca"),
    )
    rules = {("clip", layer): Rule(0.0) for layer in studies.LAYERS}
    study, looks = SimpleNamespace(seed=3, at=at, rules=rules), []
    recipe = {"epochs": 2, "batch_size": 32, "lr": 0.05}
    monitor = studies.watch(study, n_images=64, recipe=recipe, on_look=looks.append)
    trace = monitor.record().trace("clip", "layer4")
    assert trace.epochs == (0, 1, 2)
    assert [len(look.traces[0].epochs) for look in looks] == [1, 2, 3]
    assert not trace.h[0].equal(trace.h[1])


def test_growth_and_accuracy_rise_together():
    study = planted(["tree"] * 20, first="red")
    assert studies.measure(study)["growth and accuracy"][0] == pytest.approx(0.866, abs=1e-3)


def test_units_that_rise_by_chance_are_taken_off():
    study = planted(["tree"] * 20)
    both = replace(study.chance, traces=study.record.traces)
    study.chance = both
    assert studies.measure(study)["rises"] == (0.0, 0.0)


def test_a_unit_far_from_its_own_word_has_a_low_score():
    scores = torch.stack([torch.linspace(0.1, 8, 40)])
    found = trace([["tree"] * 40], scores=scores)
    value, half = studies.own_anchor(found, SPACE)
    # the embedding is stored in half precision, so some neighbours are equal
    assert value < -0.97
    assert half < 0.05


def test_a_word_that_the_second_set_lacks_should_go_to_a_near_one():
    vectors = torch.eye(10)
    for near in ("lamp", "boat", "fish", "tree", "roof"):  # the present ones most like a windmill
        k = CONCEPTS.number(near)
        vectors[k] = vectors[k] + vectors[CONCEPTS.number("windmill")]
    vectors[CONCEPTS.number("beach")] += 5 * vectors[CONCEPTS.number("windmill")]  # absent too
    space = Space.of(CONCEPTS, vectors)
    first = trace(
        [["windmill", "windmill", "windmill", "beach", "tree", "red", "windmill", "red"]],
        [[1, 1, 1, 1, 1, 1, 1, 0]],
    )
    second = trace([["boat", "windmill", "wood", "tree", "tree", "wood", "lamp", "red"]])
    coverage = torch.ones(3, len(CONCEPTS))
    missing = [CONCEPTS.number(word) for word in ("windmill", "beach", "lamp")]
    coverage[:, missing] = 0
    coverage[0, CONCEPTS.number("boat")] = 0  # one image without it
    found = studies.other_set(first, second, space, coverage)
    assert found.absent.tolist() == [True, True, True, True, False, False, True]
    assert found.near[[0, 1, 2, 6]].tolist() == [True, False, False, False]  # no lamp is there
    assert found.moved[1] == 5
    assert (found.before == found.after).nonzero()[:, 0].tolist() == [1, 4]
    with pytest.raises(ValueError, match="want the coverage of 10 words"):
        studies.other_set(first, second, space, coverage[:, 1:])


def test_the_second_set_lacks_what_goes_with_its_missing_things():
    world = scenes.probe_b(256, 0)
    labels = world.annotations()
    study = planted(["tree"] * 7)
    words = ("windmill", "umbrella", "tower", "blade", "canopy", "beach", "field")
    concepts = ConceptSet(labels.words)
    space = Space.of(concepts, torch.eye(len(concepts)))
    first = trace([[*words, "tree"]], space=space)
    study.at = SimpleNamespace(concepts=concepts, space=space)
    study.record = Record((first,), space, study.record.basis)
    study.other = Record((trace([["tree"] * 8], space=space),), space, study.record.basis)
    study.other_at = SimpleNamespace(annotations=labels)
    found, shares = studies.measure_other_set(study, n_draws=10)
    assert found.absent.tolist() == [True] * 7 + [False]
    assert shares["kept"] == (1.0, 0.0)


def test_chance_stands_beside_each_count():
    study = planted(["tree", "red"] * 5)
    names = cases.DETECTORS
    for which in ("record", "chance"):
        old = getattr(study, which)
        traces = [replace(old.trace("clip", "layer4"), detector=name) for name in names]
        setattr(study, which, Record(tuple(traces), SPACE, old.basis))
    shares = (0.01, None, 0.5)
    study.rules = {(n, "layer4"): Rule(1.0, 0.5, a) for n, a in zip(names, shares, strict=True)}
    assert [row["above the score by chance"] for row in studies.count_rows(study)] == [
        "0.1 /  / 5"
    ] * 3


def test_theta_is_the_spread_of_the_five_scores():
    scores = torch.tensor([[4.0] * 6, [2.0] * 6])  # of two concepts each, the other's is 0
    found = trace([["tree"] * 6, ["tree", "roof"] * 3], scores=scores)
    theta, other = studies.with_theta(found, SPACE)
    assert theta == pytest.approx(3 / 2**0.5)
    odds = other.weights[0, 0, 0] / other.weights[0, 0, 1]
    assert float(odds.log()) == pytest.approx(4 / theta, rel=1e-4)
    assert other.u.shape == found.u.shape
    assert not other.u.equal(found.u)


def test_the_band_of_the_number_of_concepts_holds_it():
    """Resamples of 96 units repeat some, so that they hold fewer of 74 words."""
    words = [str(k) for k in range(74)]
    space = Space.of(ConceptSet(tuple(words)), torch.eye(74))
    labels = torch.randint(74, (96,), generator=torch.Generator().manual_seed(0)) ** 2 // 74
    found = trace([[words[k] for k in labels]], space=space)
    _, effective, n = measures.spreads(found, space)
    value, (low, high) = pictures.band(effective, n, centred=True)
    assert low < value < high
    _, (_, percentile) = pictures.band(effective, n, centred=False)
    assert percentile < value
    points = torch.zeros(74, 2)
    points[0] = 1.0
    spread = statistics.spread(found, 0, space, points, n_draws=400)
    assert spread.effective_interval == pytest.approx((float(low), float(high)))


def test_a_stricter_cut_never_counts_more():
    study = planted(["tree", "red"] * 5)
    found = studies.sweep(
        study.record.trace("clip", "layer4"), study.rules["clip", "layer4"], CONCEPTS
    )
    assert found.tolist() == [[10, 5, 5]] * 4  # attainment is .7 everywhere
    strict = Rule(10.0, 0.5)
    assert studies.sweep(study.record.trace("clip", "layer4"), strict, CONCEPTS).sum() == 0


def test_risen_units_come_best_first():
    study = planted(["tree", "red", "beach", "roof"])
    trace4 = study.record.trace("clip", "layer4")
    h = trace4.h.clone()
    h[-1, :, 0] = torch.tensor([5.0, 9.0, 8.0, 6.0])
    study.record = Record((replace(trace4, h=h),), SPACE, study.record.basis)
    assert studies.risen(study).tolist() == [2, 3, 0]


def test_counts_by_category_are_of_interpretable_units():
    found = trace([["tree", "boat", "red", "roof"]], [[1, 1, 1, 0]])
    assert studies.category_counts(found, CONCEPTS).tolist() == [[1, 2, 0, 0, 0, 0]]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_permuted_images_are_no_round_of_the_calibration(seed: int):
    n = 50
    x = torch.arange(n)[:, None]
    probe = Probe(x, torch.arange(n))
    at = cases.Setting(x, None, probe, CONCEPTS, SPACE, None, (), "")
    blind = cases.permuted(at, seed).probe.x
    seen = []
    scorer = clip_dissect(torch.randn(n, len(CONCEPTS)), similarity="cos")

    def detect(acts: LayerActivations):
        seen.append(acts.pooled)
        return scorer.detect(acts)

    acts = LayerActivations("layer4", torch.arange(n), x.float())
    permutation_null(SimpleNamespace(detect=detect), acts, rounds=cases.ROUNDS, seed=seed)
    assert len(seen) == cases.ROUNDS
    assert sorted(blind[:, 0].tolist()) == list(range(n))
    assert not any(order.equal(blind.float()) for order in seen)
