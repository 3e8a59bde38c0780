"""CLIP-Dissect: hand-computed cases, invariances, planted units, and what is refused."""

import math
import warnings

import pytest
import torch

from lib.monitoring import pointwise
from lib.monitoring.activations import ConceptScores, ConceptSet, LayerActivations
from lib.monitoring.detectors import SIMILARITIES, clip_dissect
from lib.monitoring.pointwise import (
    Embedded,
    matched,
    reference,
    soft_wpmi,
    soft_wpmi_z,
    softmax,
    wpmi,
)
from lib.monitoring.similarity import (
    cosine,
    cosine_cubed,
    global_ranks,
    rank_reorder,
    top_images,
)

# specification 7.1, case 1
P = torch.tensor([[0.3, 0.1], [0.2, 0.2], [0.1, 0.3], [0.0, 0.1]])
A = torch.tensor([[3.0, 0.0], [2.0, 1.0], [1.0, 2.0], [0.0, 3.0]])


@pytest.fixture(autouse=True)
def _no_warnings_about_k():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="K = .* more than a tenth")
        yield


def random_case(n=300, m=7, c=11, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, m, generator=g), 0.3 * torch.randn(n, c, generator=g)


def layer(pooled, ids=None):
    return LayerActivations("layer4", torch.arange(len(pooled)) if ids is None else ids, pooled)


@pytest.mark.parametrize(
    ("found", "want", "atol"),
    [
        (lambda: cosine(A, P), [[1.0, 0.690065], [0.285714, 0.759072]], 1e-5),
        (lambda: cosine_cubed(A, P), [[1.0, -0.024829], [-1.0, 0.024829]], 1e-5),
        (lambda: wpmi(A, P, k=2), [[-0.349894, -0.809160], [-0.854885, -0.314152]], 1e-5),
        (lambda: soft_wpmi(A, P, k=2), [[0.615693, -1.749990], [-1.903400, 0.602251]], 1e-4),
    ],
    ids=["cos", "cos_cubed", "wpmi", "soft_wpmi"],
)
def test_hand_computed_scores(found, want, atol):
    torch.testing.assert_close(found(), torch.tensor(want), atol=atol, rtol=0)


def naive_rank_reorder(acts, p, top, seed):
    """The definition of section 1.1, unit by unit and concept by concept, in float64."""
    acts, p = acts.double(), p.double()
    n = int(len(acts) * top)
    g = torch.Generator().manual_seed(seed)
    draws = [torch.randperm(n, generator=g) for _ in range(5)]
    h = torch.empty(acts.shape[1], p.shape[1], dtype=torch.float64)
    for m in range(acts.shape[1]):
        x, images = acts[:, m].sort(descending=True)
        x, images = x[:n], images[:n]
        rising = x.sort().values
        e0 = torch.stack([(rising - rising[d]).abs() ** 3 for d in draws]).mean()
        for c in range(p.shape[1]):
            ranks = p[images, c].argsort().argsort()
            e = (x - rising[ranks]).abs().pow(3).mean()
            h[m, c] = -(e / e0) / p[images, c].mean() ** 0.5
    return h


def naive_soft_wpmi(acts, p, k, a, lam=1.0):
    """The definition, in float64."""
    q = (a * p.double()).softmax(1)
    weight = torch.tensor([0.998 - j / k * (0.998 - 0.97) for j in range(k)]).double()
    g = torch.empty(acts.shape[1], p.shape[1], dtype=torch.float64)
    for m in range(acts.shape[1]):
        images = acts[:, m].argsort(descending=True)[:k]
        g[m] = (1 + weight[:, None] * (q[images] - 1) + 1e-7).log().sum(0)
    return g - lam * (g.logsumexp(0) - math.log(len(g)))


def test_rank_reorder_is_its_definition():
    acts, p = random_case()
    p = p.abs()
    want = naive_rank_reorder(acts, p, 0.2, seed=3)
    found = rank_reorder(acts, p, top=0.2, seed=3)
    torch.testing.assert_close(found.double(), want, atol=1e-5, rtol=1e-4)


def test_ranks_over_all_images_order_numbers_of_both_signs_and_ties_by_image():
    g = torch.Generator().manual_seed(0)
    p = torch.randn(500, 70, generator=g).round(decimals=1)  # ties, zeros of both signs
    ranks = global_ranks(p)
    for concept in (0, 63, 64, 69):
        order = p[:, concept].sort(stable=True).indices
        assert ranks[concept, order].tolist() == list(range(500))


def test_a_concept_in_the_units_own_order_has_no_rank_error():
    acts, p = random_case()
    p = p.abs()
    p[:, 2] = acts[:, 4].exp()
    found = rank_reorder(acts, p, top=0.2)
    assert found[4, 2] == 0
    assert found.max() == 0


def test_rank_reorder_warns_where_the_root_is_not_defined():
    acts, p = random_case()
    with pytest.warns(UserWarning, match="not positive"):
        found = rank_reorder(acts, p, top=0.2)
    assert found.isfinite().all()


@pytest.mark.parametrize(("k", "c"), [(1, 11), (9, 11), (100, 300)])
def test_soft_wpmi_is_its_definition(k, c):
    acts, p = random_case(c=c)
    found = soft_wpmi(acts, p, k=k)
    want = naive_soft_wpmi(acts, p, k, 10.0)
    torch.testing.assert_close(found.double(), want, atol=1e-4, rtol=0)


def test_scores_do_not_depend_on_blocks(monkeypatch):
    acts, p = random_case(c=300)
    q = matched(p)
    against = reference(q, 9, n_random=200)
    before = [soft_wpmi(acts, p, k=9), wpmi(acts, p, k=9), *soft_wpmi_z(acts, q, against)]
    monkeypatch.setattr(pointwise, "FLOATS", 5000)
    monkeypatch.setattr(pointwise, "ROWS", 5000)
    monkeypatch.setattr(pointwise, "WORKING", 100)
    against = reference(q, 9, n_random=200)
    after = [soft_wpmi(acts, p, k=9), wpmi(acts, p, k=9), *soft_wpmi_z(acts, q, against)]
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("k", [2, 28, 100])
def test_products_never_underflow(k):
    """Probabilities near 0 and the reference's own p: every factor is at its smallest."""
    acts, p = random_case(c=3)
    p[:, 0], p[:, 1:] = -30.0, 30.0
    assert soft_wpmi(acts, p, k=k).isfinite().all()
    torch.testing.assert_close(
        soft_wpmi(acts, p, k=k).double(), naive_soft_wpmi(acts, p, k, 10.0), atol=1e-3, rtol=0
    )


def test_soft_wpmi_is_at_most_log_m_and_zero_for_one_unit():
    acts, p = random_case(m=9)
    assert soft_wpmi(acts, p, k=10).max() <= math.log(9) + 1e-5
    torch.testing.assert_close(
        soft_wpmi(acts[:, :1], p, k=10), torch.zeros(1, p.shape[1]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("score", [wpmi, soft_wpmi], ids=["wpmi", "soft_wpmi"])
def test_pointwise_scores_ignore_a_constant_and_follow_concepts(score):
    acts, p = random_case()
    order = torch.randperm(p.shape[1], generator=torch.Generator().manual_seed(1))
    h = score(acts, p, k=20)
    torch.testing.assert_close(score(acts, p + 0.7, k=20), h, atol=1e-4, rtol=0)
    torch.testing.assert_close(score(acts, p[:, order], k=20), h[:, order], atol=1e-4, rtol=0)
    torch.testing.assert_close(score(acts.exp(), p, k=20), h, atol=0, rtol=0)
    assert not torch.allclose(cosine(acts.exp(), p), cosine(acts, p), atol=1e-2)


def test_equal_activations_are_taken_in_the_order_of_images():
    acts = torch.tensor([[0.0, 1], [2, 0], [0, 1], [2, 0], [0, 1]])
    values, images = top_images(acts, 3)
    assert images.tolist() == [[1, 3, 0], [0, 2, 4]]
    assert values.tolist() == [[2, 2, 0], [1, 1, 1]]


def planted(n=2000, c=40, seed=0):
    """Coverages of concepts that differ in how common they are, and units that follow them."""
    g = torch.Generator().manual_seed(seed)
    common = torch.linspace(0.02, 0.4, c)
    coverage = torch.rand(n, c, generator=g) * (torch.rand(n, c, generator=g) < common)
    acts = coverage + 0.1 * torch.randn(n, c, generator=g)
    oracle = (coverage - coverage.mean(0)) / coverage.std(0)
    return acts, oracle


@pytest.mark.parametrize("similarity", ["soft_wpmi_z", "cos_cubed"])
def test_planted_units_are_named_right_with_the_oracle(similarity):
    acts, oracle = planted()
    scores = clip_dissect(oracle, similarity=similarity).detect(layer(acts))
    right = (scores.label == torch.arange(len(scores.label))).float().mean()
    assert right >= 0.9


def test_attainment_is_one_for_the_ideal_selector_and_near_zero_for_noise():
    _, oracle = planted()
    detector = clip_dissect(oracle, similarity="soft_wpmi_z")
    ideal = detector.detect(layer(oracle)).attainment
    torch.testing.assert_close(ideal.diagonal(), torch.ones(len(ideal)), atol=1e-3, rtol=0)
    noise = torch.randn(len(oracle), 50, generator=torch.Generator().manual_seed(1))
    found = detector.detect(layer(noise))
    assert found.attainment.mean().abs() < 0.05
    assert abs(float(found.h.mean())) < 0.2
    assert 0.8 < float(found.h.std()) < 1.2


def test_standardised_scores_do_not_depend_on_other_units():
    acts, oracle = planted()
    detector = clip_dissect(oracle, similarity="soft_wpmi_z")
    alone = detector.detect(layer(acts[:, :3])).h
    torch.testing.assert_close(alone, detector.detect(layer(acts)).h[:3], atol=1e-5, rtol=0)


def test_a_concept_absent_from_the_images_scores_nothing():
    acts, oracle = planted()
    oracle[:, 5] = 0.0
    scores = clip_dissect(oracle, similarity="soft_wpmi_z").detect(layer(acts))
    assert scores.h[:, 5].eq(0).all()
    assert scores.attainment[:, 5].eq(0).all()


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_every_similarity_gives_finite_scores_and_marks_dead_units(similarity):
    acts, p = random_case(n=1200)
    acts[:, 3] = 0.25
    scores = clip_dissect(p.abs(), similarity=similarity).detect(layer(acts))
    assert scores.h.shape == (7, 11)
    assert scores.h.isfinite().all()
    assert scores.dead.tolist() == [False] * 3 + [True] + [False] * 3


def test_matched_softmax_has_the_spread_it_is_asked_for():
    _, p = random_case(n=2000)
    q = matched(4 * p + 3)
    exponents = q.logs(None, 0, 11) + q.log_partition[:, None]
    torch.testing.assert_close(exponents.std(0), torch.full((11,), 0.3), atol=1e-3, rtol=0)
    torch.testing.assert_close(q.probabilities(None, 0, 11).sum(1), torch.ones(2000))
    torch.testing.assert_close(
        softmax(p, 10.0).probabilities(torch.tensor([5, 1]), 2, 4), (10 * p).softmax(1)[[5, 1], 2:4]
    )


def test_many_top_images_warn_and_too_many_are_refused():
    acts, p = random_case()
    detector = clip_dissect(p, similarity="soft_wpmi")
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        with pytest.warns(UserWarning, match="K = 100 of N = 300"):
            detector.detect(layer(acts))
    with pytest.raises(ValueError, match="K = 301 and N = 300"):
        clip_dissect(p, similarity="soft_wpmi", k=301)
    with pytest.raises(ValueError, match="got K = 301"):
        soft_wpmi(acts, p, k=301)


@pytest.mark.parametrize("similarity", ["wpmi", "soft_wpmi", "soft_wpmi_z"])
@pytest.mark.parametrize("k", [-1, 0, 2.5, float("nan"), float("inf")])
def test_a_number_of_top_images_that_is_none_is_refused(similarity: str, k: float):
    _, p = random_case()
    with pytest.raises(ValueError, match="as a whole number from 1"):
        clip_dissect(p, similarity=similarity, k=k)


def test_another_order_of_images_is_refused():
    acts, p = random_case()
    detector = clip_dissect(p, similarity="cos")
    ids = torch.arange(300)
    ids[[4, 5]] = ids[[5, 4]]
    with pytest.raises(ValueError, match="row 4 is image 5, the detector has image 4"):
        detector.detect(layer(acts, ids))
    with pytest.raises(ValueError, match="knows 300 images, the activations are of 299"):
        detector.detect(layer(acts[1:]))


def test_activations_that_are_not_finite_name_layer_and_unit():
    acts, _ = random_case()
    acts[7, 2] = math.nan
    with pytest.raises(ValueError, match="layer4: unit 2 has a NaN"):
        layer(acts)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_embeddings_and_several_layers_at_once_give_the_same_scores(similarity):
    g = torch.Generator().manual_seed(0)
    x, t = (torch.nn.functional.normalize(torch.rand(n, 16, generator=g)) for n in (1200, 11))
    first, second = layer(torch.randn(1200, 4, generator=g)), layer(torch.randn(1200, 3))
    apart = clip_dissect(x @ t.T, similarity=similarity)
    together = clip_dissect(Embedded(x, t), similarity=similarity).detect_layers([first, second])
    for acts, found in zip((first, second), together, strict=True):
        want = apart.detect(acts)
        torch.testing.assert_close(found.h, want.h, atol=2e-4, rtol=1e-3)
    with pytest.raises(ValueError, match="word 0 has an embedding whose length is not 1"):
        Embedded(x, 2 * t)


def test_similarities_that_are_not_finite_are_refused():
    _, p = random_case()
    p[3, 1] = math.inf
    with pytest.raises(ValueError, match="image 3 and concept 1"):
        clip_dissect(p)


def test_unknown_similarities_and_constants_are_refused():
    _, p = random_case()
    with pytest.raises(ValueError, match="similarity is one of cos"):
        clip_dissect(p, similarity="dot")
    with pytest.raises(ValueError, match="wpmi has no constant p_end"):
        clip_dissect(p, similarity="wpmi", p_end=0.9)


def test_a_digest_changes_with_data_and_constants():
    _, p = random_case()
    digests = {
        clip_dissect(p, similarity="cos").digest,
        clip_dissect(p + 1, similarity="cos").digest,
        clip_dissect(p, similarity="wpmi").digest,
        clip_dissect(p, similarity="wpmi", k=9).digest,
        clip_dissect(p, similarity="cos", ids=torch.arange(300) + 1).digest,
    }
    assert len(digests) == 5


def test_top_concepts_come_best_first_and_no_more_than_there_are():
    scores = ConceptScores(torch.tensor([[0.1, 0.5, 0.5]]), "x", {}, torch.tensor([False]))
    values, concepts = scores.top(3)
    assert concepts.tolist() == [[1, 2, 0]]
    assert values[0].tolist() == pytest.approx([0.5, 0.5, 0.1])
    with pytest.raises(ValueError, match="k = 5"):
        scores.top(5)


def test_concept_sets_drop_blank_lines_before_numbering(tmp_path):
    (tmp_path / "words.txt").write_text("sky\n\n  grass \nwindmill\n\n")
    found = ConceptSet.read(tmp_path / "words.txt")
    assert found.words == ("sky", "grass", "windmill")
    assert found.number("grass") == 1
    with pytest.raises(ValueError, match="'windmil' is not one of the 3 concepts; there is wind"):
        found.number("windmil")
    with pytest.raises(ValueError, match="no categories"):
        found.category()
    (tmp_path / "words.txt").write_text("sky\nsky\n")
    with pytest.raises(ValueError, match="'sky' is listed twice"):
        ConceptSet.read(tmp_path / "words.txt")
