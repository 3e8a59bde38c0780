"""Notebook 21's measures on tables whose answer is known, and the learned space."""

from types import SimpleNamespace

import pytest
import torch

from lib.monitoring import detector_studies as studies
from lib.monitoring.activations import ConceptScores, ConceptSet
from lib.monitoring.calibration import Rule
from lib.monitoring.detectors import clip_dissect
from lib.monitoring.learned_space import learn, moves, place

C = 12


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def scores_of(h):
    return ConceptScores(torch.tensor(h), "x", {}, torch.zeros(len(h)).bool())


def test_hand_computed_agreement():
    masks = scores_of([[0.3, 0.2, 0.1, 0.05, 0.04, 0.03, 0.02], [0.0, 0.1, 0, 0, 0, 0, 0],
                       [0.01, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])  # fmt: skip
    words = scores_of([[0.0, 0, 0, 9, 0, 0, 0], [0, 9.0, 0, 0, 0, 0, 0], [9.0, 0, 0, 0, 0, 0, 0]])
    concepts = ConceptSet(
        tuple("abcdefg"), ("object", "part", "part", "object", "scene", "scene", "scene")
    )
    found = studies.agreement(masks, words, concepts)
    assert found.m == 3
    assert found.same_word.tolist() == [False, True]  # the third is no detector
    assert found.same_category.tolist() == [True, True]
    assert found.in_five.tolist() == [True, True]
    # the other's word: "b" is among the five of the first, "d" among those of the second
    assert found.chance == pytest.approx(1.0)
    assert found.share(found.same_word)[0] == pytest.approx(0.5)
    assert found.share(torch.zeros(0)) is None
    rows = studies.agreement_rows({("layer4", "clip"): found})
    assert rows[0]["detectors"] == "2 of 3"


def test_white_noise_passes_a_threshold_of_minus_infinity_and_not_of_infinity():
    detector = clip_dissect(torch.randn(400, C, generator=seeded()), similarity="soft_wpmi_z")
    ids = torch.arange(400)
    for tau, want in ((-1e9, 1.0), (1e9, 0.0)):
        above, whole = studies.white_noise(detector, Rule(tau, 0.99), ids, m=20, seeds=(0, 1))
        assert above.tolist() == [want, want]
        assert whole.tolist() == [0.0, 0.0]


def activations(n=600, seed=0):
    """Three groups of units, each on images of its own."""
    g = seeded(seed)
    group = torch.randint(3, (n,), generator=g)
    acts = torch.stack([(group == k % 3).float() for k in range(12)], 1)
    return acts + 0.3 * torch.rand(n, 12, generator=g)


def test_units_that_share_images_are_learned_to_lie_together():
    space = learn(activations(), dim=8, k=60, steps=100)
    apart = torch.cdist(space.units, space.units)
    same = (torch.arange(12) % 3)[:, None] == (torch.arange(12) % 3)
    assert apart[same & ~torch.eye(12).bool()].max() < apart[~same].min()


def test_the_base_models_own_units_are_placed_where_they_were_learned():
    acts = activations()
    space = learn(acts, dim=8, k=60, steps=50)
    torch.testing.assert_close(place(space, acts), space.units, atol=1e-4, rtol=1e-3)
    assert learn(acts, dim=8, k=60, steps=50).units.equal(space.units)
    with pytest.raises(ValueError, match="learned on 600 images, got activations of 599"):
        place(space, acts[1:])


def test_moves_ignore_rotation_and_shift_and_measure_the_rest():
    g = seeded()
    a = torch.randn(30, 4, generator=g)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=g))[0]
    assert moves(a, a @ turn + 3).max() < 1e-5
    other = a.clone()
    other[7] += 5.0
    found = moves(a, other)
    assert int(found.argmax()) == 7
    assert found[7] > 5 * found.median()


def test_spaces_that_cannot_be_learned_are_refused():
    with pytest.raises(ValueError, match="two units or more"):
        learn(torch.rand(10, 1))
    with pytest.raises(ValueError, match="no two units share"):
        learn(torch.eye(6)[:, :2], k=1)


def test_comparing_spaces_finds_no_move_of_anchors_and_some_of_units():
    vectors = torch.nn.functional.normalize(torch.randn(C, 6, generator=seeded()), dim=1)
    sets = [lambda k=k: activations(seed=k) for k in range(3)]
    units = torch.randn(12, 6, generator=seeded(1))
    ours = (units, units.flip(1))
    found = studies.compare_spaces(
        sets, vectors.clone, lambda: lambda acts: units, [1, 2], ours, steps=20
    )
    assert found.anchors.max() == 0
    assert found.units_probe.mean() > 0
    assert found.ours_probe.max() < 1e-5  # a reflection
    assert [row["ours"] for row in studies.table_1(found, C)][2] == "0e+00"


def test_both_spaces_are_timed_from_the_network_to_its_units(monkeypatch: pytest.MonkeyPatch):
    """Each step moves a clock, so that what is left out or counted twice shows."""
    clock = [0.0]
    monkeypatch.setattr(studies.time, "perf_counter", lambda: clock[0])

    def step(seconds, result):
        clock[0] += seconds
        return result

    def learner(acts):
        return step(100.0, learn(acts, k=60, steps=1))

    def build():
        return step(20.0, lambda acts: step(3.0, acts.T))

    first, second = (lambda s=s: step(s, activations()) for s in (1.0, 2.0))
    found = studies.timed(first, second, build, learner, rounds=2)
    assert found.learned.tolist() == [101.0, 101.0]
    assert found.ours.tolist() == [24.0, 24.0]  # embeddings, activations, scores
    assert found.learned_second.tolist() == [2.0, 2.0]
    assert found.ours_second.tolist() == [5.0, 5.0]
    # rounds that agree say nothing of other machines
    assert found.ratio == (pytest.approx(101 / 24), pytest.approx(101 / 96))


def test_our_space_is_built_from_images_and_words_each_time(monkeypatch: pytest.MonkeyPatch):
    seen = []
    vectors = torch.nn.functional.normalize(torch.randn(C, 6, generator=seeded()), dim=1)
    p = torch.nn.functional.normalize(torch.randn(600, 6, generator=seeded(1)), dim=1)
    towers = SimpleNamespace(
        words=lambda words: seen.append("words") or vectors,
        images=lambda images: seen.append("images") or p,
    )
    monkeypatch.setattr(studies.encoder, "fetch", lambda: towers)
    at = SimpleNamespace(
        concepts=ConceptSet(tuple("abcdefghijkl")),
        world=SimpleNamespace(images=None),
        probe=SimpleNamespace(ids=torch.arange(600)),
    )
    build = studies.builder(at)
    assert seen == []
    acts = p @ vectors.T  # a unit for each word
    placed = build()(acts)
    assert sorted(seen) == ["images", "words"]
    near = torch.cdist(placed, vectors).argmin(1)
    assert (near == torch.arange(C)).double().mean() > 0.5
