"""Thresholds, the embedding space, Algorithm 1, its statistics, and monitoring while training."""

import functools
import random
import sys

import numpy as np
import pytest
import torch
from torch import nn

from lib.data.annotations import CATEGORIES, Annotations, Concept
from lib.monitoring import statistics
from lib.monitoring.activations import (
    ConceptSet,
    LayerActivations,
    layer_activations,
    layer_activations_of,
)
from lib.monitoring.calibration import (
    Rule,
    calibrate,
    permutation_null,
    sweep,
    threshold_of_share,
)
from lib.monitoring.detectors import SIMILARITIES, clip_dissect
from lib.monitoring.dissection import NetworkDissection
from lib.monitoring.live import ConceptMonitor
from lib.monitoring.live_pictures import LivePlot, so_far
from lib.monitoring.record import Probe, Trace, checkpoint_files, observe, scores_of
from lib.monitoring.space import Space, concept_weights, fit_basis, load_basis
from lib.monitoring.stored import fetch_scores, hash_of
from lib.monitoring.together import scores_together

C, D, N = 12, 8, 400
KINDS = tuple(CATEGORIES[k % 6] for k in range(C))
WORDS = ConceptSet(tuple(f"w{k}" for k in range(C)), KINDS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def a_space(c=C, d=D):
    words = WORDS if c == C else ConceptSet(tuple(f"w{k}" for k in range(c)))
    return Space.of(words, torch.randn(c, d, generator=seeded()))


def similarities():
    return torch.randn(N, C, generator=seeded(1))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Conv2d(6, 9, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(4),
    )


def images(n=N):
    return torch.rand(n, 3, 9, 9, generator=seeded(2))


def built():
    model = network()
    model(images(2))
    return model


def probe(n=N):
    return Probe(images(n), torch.arange(n))


def layer(pooled):
    return LayerActivations("layer4", torch.arange(len(pooled)), pooled)


# ---- thresholds ----


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_few_units_of_white_noise_pass_the_threshold(similarity):
    """Specification 7.1, case 11: the threshold comes from other noise than it judges."""
    p = similarities().exp() if similarity == "rank_reorder" else similarities()  # takes a root
    detector = clip_dissect(p, similarity=similarity, **K.get(similarity, {}))
    noise = torch.randn(N, 4000, generator=seeded(3))
    null = permutation_null(detector, layer(noise[:, :2000]), rounds=2)
    fresh = detector.detect(layer(noise[:, 2000:]))
    alpha = 0.01
    assert Rule(null.tau(alpha)).interpretable(fresh).float().mean() <= 3 * alpha


K = {name: {"k": 20} for name in ("soft_wpmi_z", "soft_wpmi", "wpmi")}  # a twentieth of N


def test_the_threshold_is_the_quantile_of_the_null():
    detector = clip_dissect(similarities(), similarity="cos")
    null = permutation_null(detector, layer(torch.randn(N, 50, generator=seeded())), rounds=4)
    assert null.best.shape == (4, 50)
    assert (null.best > null.tau(0.05)).float().mean() == pytest.approx(0.05, abs=0.006)
    assert null.passing(Rule(null.tau(0.05))) == pytest.approx(0.05, abs=0.006)


def test_dead_units_are_in_no_null_and_never_interpretable():
    acts = torch.randn(N, 5, generator=seeded())
    acts[:, 2] = 1.0
    detector = clip_dissect(similarities(), similarity="cos")
    assert permutation_null(detector, layer(acts), rounds=3).best.shape == (3, 4)
    scores = detector.detect(layer(acts))
    assert Rule(-10.0).interpretable(scores).tolist() == [True, True, False, True, True]
    with pytest.raises(ValueError, match="all units are dead"):
        permutation_null(detector, layer(torch.ones(N, 2)))


def test_a_sweep_counts_what_passes_and_falls():
    detector = clip_dissect(similarities(), similarity="cos")
    scores = detector.detect(layer(torch.randn(N, 50, generator=seeded())))
    taus = scores.best.sort().values[[0, 10, 40]]
    assert sweep(scores, taus).tolist() == [49, 39, 9]
    tau = threshold_of_share(scores, 0.3)
    assert int(Rule(tau).interpretable(scores).sum()) == 15
    with pytest.raises(ValueError, match="share in"):
        threshold_of_share(scores, 1.0)


def test_a_rule_that_asks_for_attainment_needs_a_detector_that_gives_it():
    scores = clip_dissect(similarities(), similarity="cos").detect(
        layer(torch.randn(N, 5, generator=seeded()))
    )
    with pytest.raises(ValueError, match="asks for an attainment"):
        Rule(0.0, 0.5).interpretable(scores)


# ---- the embedding space ----


def test_units_are_the_weighted_mean_of_their_words():
    """Specification 7.1, case 3."""
    space = Space.of(ConceptSet(("a", "b", "c")), torch.eye(3))
    concepts = torch.tensor([0, 1, 2])
    u = space.place(concepts, concept_weights(torch.tensor([2.0, 1.0, 0.0])))
    torch.testing.assert_close(u, torch.tensor([0.665241, 0.244728, 0.090031]), atol=1e-6, rtol=0)
    lam = concept_weights(torch.tensor([0.3, 0.2, 0.1]))
    want = torch.tensor([0.367165, 0.332225, 0.300610])
    torch.testing.assert_close(lam, want, atol=1e-6, rtol=0)


def test_a_unit_of_one_word_is_at_the_words_point():
    """Specification 7.1, case 10; with UMAP in tests/acceptance, where it may take its time."""
    space = a_space()
    basis, again = fit_basis(space, "pca"), fit_basis(space, "pca")
    one = torch.tensor([1.0, 0, 0, 0, 0])
    assert basis.place(torch.tensor([7, 1, 2, 3, 4]), one).equal(basis.points[7])
    assert basis.points.equal(again.points)


def test_principal_components_place_weighted_means_where_the_reducer_does():
    space = a_space()
    basis = fit_basis(space, "pca")
    concepts = torch.randint(C, (20, 5), generator=seeded())
    weights = concept_weights(torch.randn(20, 5, generator=seeded()))
    torch.testing.assert_close(
        basis.transform(space.place(concepts, weights)),
        basis.place(concepts, weights),
        atol=1e-5,
        rtol=0,
    )


def test_a_stored_map_is_read_whole_and_for_its_own_space_only(tmp_path):
    space = a_space()
    basis = fit_basis(space, "pca")
    basis.save(tmp_path / "basis2d.npz")
    found = load_basis(tmp_path / "basis2d.npz", space)
    assert found.points.equal(basis.points)
    assert found.words == space.concepts.words
    other = Space.of(WORDS, space.vectors + 1)
    with pytest.raises(ValueError, match="fitted to 12 concepts with other words or embeddings"):
        load_basis(tmp_path / "basis2d.npz", other)


def test_bad_embeddings_are_refused():
    vectors = torch.randn(C, D, generator=seeded())
    vectors[3] = 0
    with pytest.raises(ValueError, match="embedding of 'w3' is zero"):
        Space.of(WORDS, vectors)
    with pytest.raises(ValueError, match="of 12 concepts"):
        Space.of(WORDS, torch.randn(3, D))
    with pytest.raises(ValueError, match="theta"):
        concept_weights(torch.ones(3), 0.0)


def test_without_umap_the_map_is_made_of_principal_components(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)  # importing it fails
    space = a_space()
    with pytest.warns(UserWarning, match="umap-learn is not installed"):
        basis = fit_basis(space)
    assert basis.kind == "pca"
    assert basis.points.equal(fit_basis(space, "pca").points)


# ---- Algorithm 1 ----


def labels():
    g = seeded(5)
    planes = torch.randint(0, C + 1, (N, 1, 9, 9), generator=g)
    made = tuple(Concept(k, w, w, kind) for k, (w, kind) in enumerate(zip(WORDS.words, KINDS)))  # noqa: B905
    return Annotations(
        made, planes.int(), torch.zeros(N, 0, dtype=torch.int32), torch.ones(N, 6).bool()
    )


def observed(score=None, detectors=None, states=None):
    model = built()
    detectors = detectors or [
        clip_dissect(similarities(), similarity="cos"),
        clip_dissect(similarities(), similarity="soft_wpmi_z"),
        NetworkDissection(labels(), torch.arange(N)),
    ]
    if states is None:
        other = {k: v + 0.1 if v.is_floating_point() else v for k, v in model.state_dict().items()}
        states = [(0, model.state_dict()), (3, other)]
    layers = ["0", "5"]
    space = a_space()
    basis = fit_basis(space, "pca")
    acts = probe().activations(model, layers, maps=True)
    rules = calibrate(detectors, acts, alpha=0.2, attainment=0.1, rounds=2)
    found = observe(model, states, probe(), layers, detectors, space, basis, rules, score=score)
    return model, found, rules


@pytest.fixture(scope="module")
def record():
    return observed()


def test_the_table_has_a_row_for_each_checkpoint_unit_and_rank(record):
    _, found, _ = record
    table = found.table()
    assert len(table) == 3 * 2 * 5 * (6 + 9)
    one = table[(table.detector == "cos") & (table.layer == "5") & (table.epoch == 3)]
    assert one.groupby("neuron")["weight"].sum().tolist() == pytest.approx([1.0] * 9, abs=1e-5)
    trace = found.trace("cos", "5")
    mine = one[(one.neuron == 4) & (one["rank"] == 0)].iloc[0]
    assert mine.word == WORDS.words[int(trace.label[1, 4])]
    assert mine.category == KINDS[int(trace.label[1, 4])]
    assert mine.interpretable == bool(trace.interpretable[1, 4])
    assert trace.u.shape == (2, 9, D)
    assert trace.u.dtype == torch.float16


def test_scores_of_a_checkpoint_are_those_of_its_own_weights(record):
    model, found, rules = record
    detector = clip_dissect(similarities(), similarity="cos")
    acts = layer_activations(model, images(), ["5"])["5"]
    want = detector.detect(acts)
    trace = found.trace("cos", "5")
    torch.testing.assert_close(trace.h[0, :, 0], want.best)
    assert trace.interpretable[0].equal(rules["cos", "5"].interpretable(want))
    assert not trace.h[0].equal(trace.h[1])


def test_network_dissection_keeps_its_published_cut(record):
    _, _, rules = record
    assert rules["net_dissection", "5"].tau == 0.04
    assert rules["soft_wpmi_z", "5"].attainment == 0.1
    assert rules["cos", "5"].attainment is None
    assert rules["cos", "5"].expected(50) == pytest.approx(10)


def test_counts_are_a_group_by_of_the_table(record):
    _, found, _ = record
    table = statistics.counts(found.table())
    for detector in ("cos", "net_dissection"):
        trace = found.trace(detector, "5")
        mine = table[(table.detector == detector) & (table.layer == "5") & (table.epoch == 3)]
        assert list(mine.category) == list(CATEGORIES)
        assert mine.units.sum() == int(trace.interpretable[1].sum())
        names = trace.label[1][trace.interpretable[1]].unique()
        assert mine.concepts.sum() == len(names)
        assert mine.share.sum() == pytest.approx(float(trace.interpretable[1].float().mean()))


def test_a_cached_second_checkpoint_has_its_own_scores(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    detectors = [clip_dissect(similarities(), similarity="cos")]
    _, plain, _ = observed(detectors=detectors)
    for _ in range(2):
        _, cached, _ = observed(score=fetch_scores, detectors=detectors)
        for layer_name in ("0", "5"):
            a, b = (x.trace("cos", layer_name) for x in (plain, cached))
            assert a.h.equal(b.h)
            assert a.concepts.equal(b.concepts)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2


def test_images_that_are_prepared_otherwise_have_their_own_scores(tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    model, detectors = built(), [clip_dissect(similarities(), similarity="cos")]
    found = []
    for prepare in (lambda raw: raw, lambda raw: -5 * raw.flip(0)):
        at = Probe(images(), torch.arange(N), prepare=prepare)
        cached = fetch_scores(model, at, ["0"], detectors)["cos", "0"]
        plain = scores_of(model, at, ["0"], detectors)["cos", "0"]
        assert cached.h.equal(plain.h)
        found.append(cached)
    assert not found[0].h.equal(found[1].h)


def test_a_probe_is_named_by_what_a_network_is_shown():
    x, ids = images(), torch.arange(N)
    names = {
        hash_of(Probe(x, ids)),
        hash_of(Probe(x, ids, prepare=functools.partial(torch.mul, other=2))),
        hash_of(Probe(x, ids, prepare=functools.partial(torch.mul, other=3))),
        hash_of(Probe(x + 1, ids)),
        hash_of(Probe(x, ids + 1)),
        hash_of(Probe(x, ids), source=ids),
    }
    assert len(names) == 6
    hash_of(Probe(x, ids, prepare=lambda raw: raw.mul_(2)))
    assert x.equal(images())  # a step in place leaves the probe as it is


def test_unknown_categories_are_refused():
    with pytest.raises(ValueError, match=r"color, object, part.*; got 'animal'"):
        ConceptSet(("cat", "red"), ("animal", "color"))


def test_bad_streams_are_refused():
    state = built().state_dict()
    wider = {k: torch.zeros(7, *v.shape[1:]) if k == "0.weight" else v for k, v in state.items()}
    with pytest.raises(ValueError, match="checkpoint of epoch 2 is of another network: size mism"):
        observed(states=[(1, state), (2, wider)])
    fewer = {k: v for k, v in state.items() if k != "4.bias"}
    with pytest.raises(ValueError, match=r"epoch 2 is of another network: Missing key.*4\.bias"):
        observed(states=[(1, state), (2, fewer)])
    with pytest.raises(ValueError, match=r"epoch 2 is of another network: Unexpected.*9\.bias"):
        observed(states=[(1, state), (2, {**state, "9.bias": torch.zeros(1)})])
    with pytest.raises(ValueError, match="rising epochs, got 1 after 1"):
        observed(states=[(1, state), (1, state)])
    with pytest.raises(ValueError, match="at least one checkpoint"):
        observed(states=[])
    detectors = [clip_dissect(similarities(), similarity="cos")] * 2
    with pytest.raises(ValueError, match="names of their own, got cos, cos"):
        observed(detectors=detectors)


def test_a_missing_rule_and_a_strange_map_are_refused():
    detectors = [clip_dissect(similarities(), similarity="cos")]
    model, space = built(), a_space()
    args = (model, [(0, model.state_dict())], probe(), ["5"], detectors, space)
    with pytest.raises(ValueError, match="no rule for detector 'cos' on layer '5'"):
        observe(*args, fit_basis(space, "pca"), {})
    other = fit_basis(Space.of(WORDS, space.vectors + 1), "pca")
    with pytest.raises(ValueError, match="map was fitted to other concepts"):
        observe(*args, other, {("cos", "5"): Rule(0.0)})


def test_checkpoint_files_are_read_in_order_and_named_when_missing(tmp_path):
    from safetensors.torch import save_file

    state = built().state_dict()
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "a.pth")
    save_file(dict(state), tmp_path / "b.safetensors")
    found = list(checkpoint_files({5: tmp_path / "b.safetensors", 1: tmp_path / "a.pth"}))
    assert [epoch for epoch, _ in found] == [1, 5]
    for _, loaded in found:
        assert loaded.keys() == state.keys()
        assert all(loaded[name].equal(state[name]) for name in state)
    with pytest.raises(FileNotFoundError, match="epoch 9"):
        checkpoint_files({9: tmp_path / "c.pth"})


def test_pooling_takes_means_maxima_first_tokens_or_what_is_flat():
    class Tokens(nn.Module):
        def forward(self, x):
            return x.flatten(2).mT  # [n, positions, channels]

    x = images(6)
    model = nn.Sequential(nn.Identity(), Tokens(), nn.Flatten())
    mean, largest = (
        layer_activations(model, x, ["0", "1", "2"], pooling=p, chunk=4) for p in ("mean", "max")
    )
    torch.testing.assert_close(mean["0"].pooled, x.mean((2, 3)))
    assert largest["0"].pooled.equal(x.amax((2, 3)))
    assert mean["1"].pooled.equal(x[:, :, 0, 0])
    assert mean["2"].pooled.shape == (6, 243)
    assert not any(m._forward_hooks for m in model.modules())
    with pytest.raises(ValueError, match="pooling is one of"):
        layer_activations(model, x, ["0"], pooling="sum")


def test_what_comes_after_a_layer_changes_nothing_of_what_was_read():
    class Twice(nn.Module):  # one module used twice, as ReLUs are, and each time overwritten
        def __init__(self):
            super().__init__()
            self.scale = nn.Conv2d(3, 3, 1, bias=False)
            nn.init.constant_(self.scale.weight, 1.0)

        def forward(self, x):
            first = self.scale(x)
            kept = first.sum()
            first.zero_()
            second = self.scale(x + 1)
            out = second.clone()
            second.zero_()
            return out + kept

    x = images(10)
    wanted = (x + 1).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    for chunk in (3, 10):
        found = layer_activations(Twice(), x, ["scale"], maps=True, chunk=chunk)["scale"]
        torch.testing.assert_close(found.maps, wanted.contiguous())
        torch.testing.assert_close(found.pooled, wanted.mean((2, 3)))


def test_a_pass_ends_after_the_last_layer_once_its_uses_are_known():
    calls = []

    class Rest(nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return x

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), Rest())
    found = layer_activations(model, images(10), ["1", "0"], chunk=4)
    assert calls == [4]  # the first pass alone
    torch.testing.assert_close(found["0"].pooled, model[0](images(10)).mean((2, 3)).detach())
    assert model(images(2)).shape == (2, 4, 7, 7)
    assert not any(m._forward_hooks for m in model.modules())


def test_a_layer_with_several_outputs_is_refused_and_one_that_is_skipped_too():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    class Skips(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Identity(), nn.Identity()

        def forward(self, x):
            return self.used(x)

    with pytest.raises(TypeError, match="layer '0' returns a tuple, want one tensor"):
        layer_activations(nn.Sequential(Pair()), images(2), ["0"])
    with pytest.raises(ValueError, match="does not reach layer 'unused'"):
        layer_activations(Skips(), images(2), ["unused", "used"])
    with pytest.raises(ValueError, match="no layer nine in this model"):
        layer_activations(Skips(), images(2), ["nine"])


# ---- statistics ----


def trace_of(labels_, shows=None, u=None, epochs=None, h=None):
    labels_ = torch.tensor(labels_, dtype=torch.int32)
    e, m = labels_.shape
    shows = torch.ones(e, m).bool() if shows is None else torch.tensor(shows).bool()
    u = torch.zeros(e, m, D) if u is None else u
    return Trace(
        "run",
        "arm",
        "cos",
        "layer4",
        tuple(epochs or range(e)),
        labels_[:, :, None],
        torch.ones(e, m, 1) if h is None else h,
        torch.ones(e, m, 1),
        torch.full((e, m), float("nan")),
        shows,
        torch.zeros(e, m).bool(),
        u.half(),
        u[..., :2].float(),
    )


def test_birth_and_stability_are_first_checkpoints_that_last():
    trace = trace_of(
        [[0, 1, 2, 3], [0, 2, 2, 3], [0, 2, 2, 4]],
        [[1, 0, 1, 0]] * 1 + [[1, 1, 0, 0], [1, 1, 1, 0]],
    )
    assert statistics.birth(trace).tolist() == [0, 1, 2, -1]
    assert statistics.stable_since(trace).tolist() == [0, 1, 0, 2]


def test_paths_add_up_and_approach_ranks_words():
    space = a_space()
    u = torch.stack([space.vectors[:2], space.vectors[[4, 1]], space.vectors[[0, 1]]])
    trace = trace_of([[0, 1]] * 3, u=u)
    there = float((space.vectors[0] - space.vectors[4]).norm())
    assert statistics.path_length(trace).tolist() == pytest.approx([2 * there, 0.0], abs=5e-3)
    found = statistics.approach(trace, space, space.vectors[4])
    assert found.rank[1, 0] == 1
    assert found.distance[1, 0] == pytest.approx(0.0, abs=5e-3)
    assert found.converged[1, 0]
    opposite = statistics.approach(trace, space, -space.vectors[0])
    assert opposite.rank[0, 0] == C + 1
    assert not opposite.converged[0, 0]
    with pytest.raises(ValueError, match="want an anchor"):
        statistics.approach(trace, space, torch.ones(3))


def test_transitions_count_each_unit_once():
    trace = trace_of([[0, 0, 1], [1, 0, 1]], [[1, 1, 0], [1, 0, 1]])
    found = statistics.transitions(trace, WORDS)
    assert found.shape == (1, 7, 7)
    want = torch.zeros(7, 7, dtype=torch.int64)
    want[0, 1], want[0, 6], want[6, 1] = 1, 1, 1  # color to object, color to none, none to object
    assert found[0].equal(want)


def test_a_rise_is_from_low_to_high_and_stays():
    low, high = CATEGORIES.index("texture"), CATEGORIES.index("scene")
    trace = trace_of([[low, low, high], [high, low, high], [high, high, high]], epochs=(0, 5, 10))
    assert statistics.rises(trace, WORDS, by=5).tolist() == [True, False, False]
    assert statistics.rises(trace, WORDS, by=10).tolist() == [True, True, False]


def test_spread_of_one_point_and_of_the_vocabulary():
    space = a_space()
    points = fit_basis(space, "pca").points
    same = trace_of([[3] * 6], u=space.vectors[[3] * 6][None])
    found = statistics.spread(same, 0, space, points, n_draws=50)
    assert found.relative == pytest.approx(0.0, abs=1e-3)
    assert found.effective == pytest.approx(1.0)
    every = trace_of([list(range(C))], u=space.vectors[None])
    found = statistics.spread(every, 0, space, points, n_draws=200)
    assert found.relative == pytest.approx(1.0, abs=1e-3)
    assert found.effective == pytest.approx(C)
    assert found.relative_interval[0] < 1.0 < found.relative_interval[1]
    # a resample repeats units, so it has fewer concepts; the interval is about the value
    assert found.effective_interval[0] < C < found.effective_interval[1]
    with pytest.raises(ValueError, match="at least two interpretable"):
        statistics.spread(trace_of([[0, 1]], [[1, 0]]), 0, space, points, units="interpretable")


def test_hand_computed_retention():
    """Specification 7.1, case 7."""
    kept = torch.tensor([True, False, True, True])
    found = statistics.retention(torch.tensor([4.0, 3, 2, 1]), kept, (25, 50, 75, 100))
    assert found.tolist() == pytest.approx([1, 0.5, 2 / 3, 0.75])


def test_retained_units_by_word_category_and_embedding():
    trace = trace_of([[0, 0, 0], [0, 6, 1], [0, 0, 2]])
    assert statistics.retained(trace).tolist() == [True, False, False]
    assert statistics.retained(trace, when="last").tolist() == [True, True, False]
    by = statistics.retained(trace, by="category", concepts=WORDS)
    assert by.tolist() == [True, True, False]  # words 0 and 6 are colours
    vectors = torch.eye(C)
    vectors[6] = vectors[0]
    space = Space.of(WORDS, vectors)
    assert statistics.retained(trace, by="cosine", space=space).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="two stages"):
        statistics.retained(trace_of([[0, 1]]))


def test_counting_by_category_needs_categories(record):
    table = record[1].table().assign(category="")
    with pytest.raises(ValueError, match="no categories"):
        statistics.counts(table)


# ---- all checkpoints in one pass ----


def test_one_pass_for_all_checkpoints_gives_the_same_record_and_prepares_images_once():
    model, prepared = built(), []

    def counted(x):
        prepared.append(len(x))
        return x * 2

    states = [(0, dict(model.state_dict())), (3, dict(built().state_dict()))]
    states[1][1]["0.weight"] = states[1][1]["0.weight"] * torch.linspace(-1, 1, 9).view(3, 3)
    space = a_space()
    once = Probe(images(), torch.arange(N), prepare=counted, chunk=150)
    detectors = [clip_dissect(similarities(), similarity="cos")]
    where = space, fit_basis(space, "pca"), {("cos", name): Rule(0.1) for name in ("0", "5")}
    score = scores_together(model, states, once, ["0", "5"], detectors)
    assert prepared == [150, 150, 100]
    found = observe(model, states, once, ["0", "5"], detectors, *where, score=score)
    assert len(prepared) == 3
    each = observe(model, states, once, ["0", "5"], detectors, *where)
    for a, b in zip(found.traces, each.traces, strict=True):
        assert a.concepts.equal(b.concepts)
        assert a.h.equal(b.h)
    assert not found.traces[0].h[0].equal(found.traces[0].h[1])
    with pytest.raises(ValueError, match="other checkpoints, images or layers"):
        score(model, probe(), ["0"], detectors, 5)


def test_networks_that_work_in_place_leave_the_images_to_the_next_one():
    models = [nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 2, 1)) for _ in range(2)]
    x = torch.randn(8, 3, 5, 5, generator=seeded())
    before = x.clone()
    found = layer_activations_of(models, x, ["0", "1"])
    assert x.equal(before)
    assert found[0]["0"].pooled.equal(found[1]["0"].pooled)
    assert not found[0]["1"].pooled.equal(found[1]["1"].pooled)
    with pytest.raises(ValueError, match="given twice"):
        layer_activations_of([models[0], models[0]], x, ["0"])
    with pytest.raises(ValueError, match="want images, layers and networks"):
        layer_activations_of([], x, ["0"])


# ---- while training ----


def trained(monitor_every):
    torch.manual_seed(4)
    np.random.seed(4)
    random.seed(4)
    model = built()
    x, y = images(64), torch.arange(64) % 4
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    space = a_space()
    detectors = [clip_dissect(similarities(), similarity="cos")]
    looks = []
    monitor = ConceptMonitor(
        model,
        ["0", "5"],
        probe(),
        detectors,
        space,
        fit_basis(space, "pca"),
        every=monitor_every or 10**9,
        on_look=looks.append,
    )
    model.train()
    for step in range(20):
        rows = torch.randint(64, (16,))
        noise = torch.from_numpy(np.random.rand(16, 3, 9, 9)).float() * random.random()
        loss = nn.functional.cross_entropy(model(x[rows] + 0.1 * noise), y[rows])
        optimizer.zero_grad()
        loss.backward()
        if monitor_every:
            monitor(step)
        optimizer.step()
    return model, monitor, looks


def a_monitor(model, **options):
    space = a_space()
    detectors = [clip_dissect(similarities(), similarity="cos")]
    return ConceptMonitor(
        model, ["0", "5"], probe(), detectors, space, fit_basis(space, "pca"), **options
    )


def test_around_a_loop_the_monitor_looks_before_each_step_and_after_the_last():
    model, trained_for = built(), []
    monitor = a_monitor(model)
    for step in monitor.around(range(3)):
        trained_for.append(step)
        with torch.no_grad():
            model[0].weight.mul_(1.5)
    assert trained_for == [0, 1, 2]
    trace = monitor.record().trace("cos", "0")
    assert trace.epochs == (0, 1, 2, 3)
    assert not trace.h[3].equal(trace.h[0])  # the last look sees the last step


def test_a_live_plot_is_one_picture_that_is_exchanged_at_each_look(monkeypatch):
    import IPython.display
    from matplotlib import pyplot

    shown, exchanged = [], []

    class Handle:
        def update(self, picture):
            exchanged.append(picture)

    def display(picture, *, display_id):
        assert display_id is True
        shown.append(picture)
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    monitor = a_monitor(built(), on_look=LivePlot("cos", ["0", "5"], xlabel="completed epochs"))
    before = pyplot.get_fignums()
    list(monitor.around(range(2)))
    assert (len(shown), len(exchanged)) == (1, 2)
    assert "completed epochs 0 to 2" in exchanged[1].metadata["alt"]
    assert exchanged[1].data.startswith(b"\x89PNG")
    assert exchanged[0].data != exchanged[1].data
    assert pyplot.get_fignums() == before  # or the notebook shows them once more


def test_bars_of_a_live_plot_are_the_shares_of_the_record():
    monitor = a_monitor(built())
    monitor(0)
    trace = monitor.record().trace("cos", "5")
    (axis,) = so_far(monitor.record(), "cos", ["5"], "steps").axes
    height = sum(bar.get_height() for bar in axis.patches)
    assert height == pytest.approx(float(trace.interpretable[0].float().mean()))
    assert height > 0


def test_training_is_the_same_to_the_bit_with_and_without_monitoring():
    """Specification 7.1, case 14, with dropout, batch norm and three random generators."""
    alone, _, _ = trained(0)
    watched, monitor, looks = trained(4)
    for name, value in alone.state_dict().items():
        assert watched.state_dict()[name].equal(value), name
    assert watched.training
    assert monitor.record().traces[0].epochs == (0, 4, 8, 12, 16)
    assert len(looks) == 5
    assert not any(m._forward_hooks for m in watched.modules())


def test_a_live_record_is_that_of_the_same_checkpoints():
    model, space = built(), a_space()
    detectors = [clip_dissect(similarities(), similarity="cos")]
    basis = fit_basis(space, "pca")
    monitor = ConceptMonitor(model, ["5"], probe(), detectors, space, basis)
    monitor(0)
    rules = {("cos", "5"): Rule(0.0)}
    want = observe(model, [(0, model.state_dict())], probe(), ["5"], detectors, space, basis, rules)
    assert monitor.record().traces[0].h.equal(want.traces[0].h)
    with pytest.raises(ValueError, match="rising steps, got 0 after 0"):
        monitor(0)


def test_random_states_come_back_even_from_a_detector_that_draws():
    class Drawing:
        name, needs_maps, tau, digest = "drawing", False, None, "x"

        def detect(self, acts):
            torch.rand(3), np.random.rand(3), random.random()
            return clip_dissect(similarities(), similarity="cos").detect(acts)

    model, space = built(), a_space()
    monitor = ConceptMonitor(model, ["5"], probe(), [Drawing()], space, fit_basis(space, "pca"))
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    want = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    monitor(0)
    assert (torch.rand(1), np.random.rand(), random.random()) == want
