"""Removal designs, readings of retrained networks, and what is concluded from them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lib import features, probes, training
from lib.attribution import concept_retraining, concept_studies, concepts, truth
from lib.attribution.concept_cases import Case, Study
from lib.attribution.concept_retraining import Readings, Removal, remaining
from lib.attribution.concepts import ConceptAttribution, ConceptData
from lib.data.base import Provenance, Split
from lib.training import Recipe

LAYERS = ("hidden1", "hidden2")
N = 60


def _study(stack: int = 100) -> Study:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N + 140, 5, generator=generator)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0.5).long()
    shown = (x[:, 2] > 0).long()
    train, rest = Split(x[:N], y[:N]), slice(N, None)
    x, y, shown = x[rest], y[rest], shown[rest]
    data = ConceptData(x[:60], shown[:60], x[60:80], shown[60:80])
    case = Case("third", "object", "", data, x[80:], shown[80:], (2,))
    setting = truth.Setting(
        "toy", "mlp", {"widths": (5, 8, 6, 3)}, Recipe(5, 10, 0.1), train, Split(x, y), stack=stack
    )
    known = Provenance("toy", "drawn here", "none", "", N)
    return Study(setting, "MLP", LAYERS, {"third": case}, ("a", "b", "c"), known)


def _subsets(n: int) -> Tensor:
    return truth.sample_subsets(N, n, 0.5, seed=1)


@pytest.mark.parametrize("stack", [1, 100])
def test_readings_are_those_of_each_network_alone(stack: int) -> None:
    study, subsets, seeds = _study(stack), _subsets(3), [4, 5, 6]
    found = concept_retraining.read(study, subsets, seeds, grid=(1, 50))
    setting, case = study.setting, study.cases["third"]
    for k, (rows, seed) in enumerate(zip(subsets, seeds, strict=True)):
        state = training.train_stacked(
            setting.network,
            setting.spec,
            setting.train.x,
            setting.train.y,
            setting.recipe,
            seeds=[seed],
            subsets=rows[None],
        )
        model = training.unstack(setting.network, setting.spec, state, 0)
        right = model(setting.targets.x).argmax(1) == setting.targets.y
        assert found.task[k] == pytest.approx(right.float().mean().item(), abs=1e-6)
        for layer in LAYERS:
            parts = (case.data.fit_x, case.data.x, case.eval_x)
            fit, attributed, judging = (
                features.activations(model, x, [layer])[layer] for x in parts
            )
            probe = concepts.ridge_probe(fit, case.data.fit_y)
            want = case.data.sign * (attributed @ probe[:-1] + probe[-1])
            torch.testing.assert_close(found.logits["third", layer][k], want, atol=1e-3, rtol=1e-2)
            accuracy = probes.accuracy(judging @ probe[:-1] + probe[-1], case.eval_y)
            assert abs(found.accuracy["third", layer][k] - accuracy) <= 1 / len(case.eval_y) + 1e-6
            sizes = concept_retraining.unit_sizes((1, 50), fit.shape[1])
            order = probes.rank_channels(fit, case.data.fit_y)
            sparse = probes.fit_sparse(fit, case.data.fit_y, order, sizes)
            want = probes.accuracy(sparse.score(judging), case.eval_y)
            near = (found.sparse["third", layer][k] - want).abs()
            assert (near <= 1 / len(case.eval_y) + 1e-6).all(), layer


def test_truth_keeps_halves_and_seeds_apart() -> None:
    study = _study()
    subsets, outputs = concept_retraining.truth_of(study, 4, 3, seed=2)
    assert subsets.shape == (4, N // 2)
    assert outputs["third", "hidden1"].shape == (4, 3, 20)
    seed = truth.network_seed(2, truth.SUBSET, 1, 2)
    again = concept_retraining.read(study, subsets[1:2], [seed]).logits["third", "hidden1"][0]
    torch.testing.assert_close(outputs["third", "hidden1"][1, 2], again, atol=1e-4, rtol=1e-3)


SCORE = torch.arange(12.0).roll(5)
LABELS = torch.arange(12) % 3


def _out(design: str, count: int = 4, seed: int = 0) -> set[int]:
    generator = torch.Generator().manual_seed(seed)
    stays = remaining(design, SCORE, LABELS, count, generator)
    assert torch.equal(stays, stays.unique())
    return set(range(12)) - set(stays.tolist())


def test_designs_remove_what_they_say() -> None:
    assert _out("top") == set(SCORE.topk(4).indices.tolist())
    assert _out("bottom") == set(SCORE.topk(4, largest=False).indices.tolist())
    assert _out("random", seed=0) != _out("random", seed=1)
    for seed in range(5):
        matched, top = _out("class-matched", 5, seed), _out("top", 5)
        counts = [torch.bincount(LABELS[list(rows)], minlength=3) for rows in (matched, top)]
        assert torch.equal(*counts)


@pytest.mark.parametrize(
    ("design", "count", "score", "words"),
    [
        ("best", 3, SCORE, "designs are top, bottom, random, class-matched; got 'best'"),
        ("top", 0, SCORE, "want to remove 1 to 11 of the 12 training rows, got 0"),
        ("top", 12, SCORE, "got 12"),
        ("top", 40, SCORE, "got 40"),
        ("top", 3, SCORE.log(), "NaN or infinity"),
    ],
)
def test_impossible_removals_are_refused(
    design: str, count: int, score: Tensor, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        remaining(design, score, LABELS, count, torch.Generator())


def test_other_numbers_of_seeds_are_refused() -> None:
    with pytest.raises(ValueError, match="want a seed a subset, got 2 and 3"):
        concept_retraining.read(_study(), _subsets(3), [1, 2])


def test_removals_pair_networks_and_hold_the_controls() -> None:
    study = _study()
    case, labels = study.cases["third"], study.setting.train.y
    score = torch.linspace(1, 0, N)
    found = concept_retraining.removals(
        study, case, "hidden2", {"frozen": score}, (6, 30), n_models=3, grid=(1, 4)
    )
    designs = {("", "random")} | {("frozen", d) for d in ("top", "bottom", "class-matched")}
    assert set(found.after) == {(*design, t) for design in designs for t in (6, 30)}
    assert found.concept is not None
    assert found.concept[0] == int((labels == 2).sum())
    seeds = [truth.network_seed(0, truth.REMOVAL, k, 0) for k in range(3)]
    top = torch.arange(6, N).expand(3, -1)
    again = concept_retraining.read(study, top, seeds, grid=(1, 4))
    torch.testing.assert_close(found.after["frozen", "top", 6].task, again.task)
    nothing = replace(
        found, after={**found.after, ("", "random", 6): found.after["frozen", "top", 6]}
    )
    assert not nothing.difference("frozen", 6).any()
    best = concept_retraining.best_layers(study, n_models=3)
    means = {x: (found.whole.logits["third", x] > 0).double().mean() for x in LAYERS}
    assert best["third"] == max(means, key=lambda x: means[x])


def test_equivalence_is_two_one_sided_tests() -> None:
    from scipy import stats

    d = torch.tensor([0.004, -0.002, 0.006, 0.001, 0.003], dtype=torch.float64)
    found = concept_studies.equivalence(d, 0.01)
    tests = [
        stats.ttest_1samp(d, -0.01, alternative="greater"),
        stats.ttest_1samp(d, 0.01, alternative="less"),
    ]
    assert found.p == pytest.approx(max(t.pvalue for t in tests))
    interval = stats.ttest_1samp(d, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert concept_studies.equivalence(d + 0.02, 0.01).p > 0.5
    assert (concept_studies.equivalence(d, 0.01).p < 0.05) == (found.farther < 0.01)
    assert concept_studies.equivalence(torch.zeros(4)).p == 0
    with pytest.raises(ValueError, match="at least 3 pairs"):
        concept_studies.equivalence(d[:2])


def test_spread_of_known_scores() -> None:
    even = concept_studies.spread(torch.ones(200))
    assert even.gini == pytest.approx(0, abs=1e-9)
    assert even.n_effective == pytest.approx(200)
    assert even.top_share == pytest.approx(0.01)
    one = torch.full((200,), -1.0)
    one[7] = 3.0
    single = concept_studies.spread(one)
    assert single.gini == pytest.approx(1 - 1 / 200)
    assert (single.n_effective, single.top_share) == pytest.approx((1, 1))
    assert single.negative == pytest.approx(199 / 200)
    fall = concept_studies.spread(10.0 ** -torch.arange(9.0))
    assert fall.decades == pytest.approx(4, abs=1e-6)
    with pytest.raises(ValueError, match="no score is positive"):
        concept_studies.spread(-torch.ones(5))


def _attribution(common: float, n_models: int = 12, n: int = 400) -> ConceptAttribution:
    """Scores of a common part and of one of every network's own."""
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(n, generator=generator)
    own = torch.randn(n_models, n, generator=generator)
    by_model = (common * shared + (1 - common) * own)[:, None, None]
    unweighted = by_model.mean(0)[..., None]
    return ConceptAttribution(("a",), ("frozen",), unweighted, by_model, torch.ones(n_models, n))


def test_halves_agree_as_much_as_networks_share() -> None:
    all_shared, none = (
        concept_studies.split_halves(_attribution(c), "frozen", "a", n_splits=20)
        for c in (1.0, 0.0)
    )
    assert all_shared.head.min() == all_shared.tenth.min() == 1
    assert all_shared.spearman.min() == pytest.approx(1)
    assert none.tenth.mean() == pytest.approx(0.1, abs=0.06)
    assert none.head.mean() == pytest.approx(none.chance, abs=0.08)
    assert abs(none.spearman.mean()) < 0.1
    with pytest.raises(ValueError, match="at least two checkpoints"):
        concept_studies.split_halves(_attribution(1.0, 1), "frozen", "a", n_splits=2)


def test_validity_finds_scores_that_generate_the_truth() -> None:
    generator = torch.Generator().manual_seed(0)
    n, n_images, m, r = 80, 12, 60, 4
    tau = torch.randn(n, n_images, generator=generator)
    subsets = truth.sample_subsets(n, m, 0.5, seed=0)
    signal = torch.stack([tau[rows].sum(0) for rows in subsets])
    outputs = signal[:, None] + 3 * torch.randn(m, r, n_images, generator=generator)
    good = ConceptAttribution(
        ("a",), ("frozen",), tau[None, None], tau.mean(1)[None, None, None], torch.ones(1, n)
    )
    (right,) = concept_studies.validity("c", good, subsets, {("c", "a"): outputs})
    flipped = replace(good, unweighted=-good.unweighted, by_model=-good.by_model)
    (wrong,) = concept_studies.validity("c", flipped, subsets, {("c", "a"): outputs})
    assert right.image > 0.85
    assert right.mean > 0.8
    assert wrong.image == pytest.approx(-right.image)
    assert right.image_ceiling == pytest.approx(right.image, abs=0.1)


def test_class_shares_and_units() -> None:
    labels = torch.tensor([0] * 5 + [1] * 15)
    shares = concept_studies.class_shares(torch.arange(20.0).flip(0), labels, 2, k=5)
    assert shares.tolist() == [[1, 0], [0, 1], [0.25, 0.75]]

    def readings(levels: list[float]) -> Readings:
        sparse = torch.tensor([levels, levels])
        return Readings({}, {}, {("c", "a"): sparse}, torch.zeros(2))

    case = _study().cases["third"]
    found = Removal(
        replace(case, name="c"),
        "a",
        (5,),
        readings([0.5, 0.9, 0.95, 0.95]),
        {("frozen", "top", 5): readings([0.5, 0.6, 0.7, 0.95])},
        None,
    )
    assert concept_studies.units_ratio(found, "frozen", 5, (1, 2, 4, 8)) == 8 / 4
