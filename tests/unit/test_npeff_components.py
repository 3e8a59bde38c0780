"""What notebook 31 measures, on coefficients and components whose answers are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lib.npeff import component_studies as studies
from lib.npeff import components, fisher, store, testbeds
from lib.npeff.concept_search import match_rules
from lib.npeff.decomposition import Decomposition


def labels(n: int = 600, k: int = 6) -> Tensor:
    return torch.arange(n) % k


def coefficients_of(rule: Tensor, chosen: list[int], seed: int = 0) -> Tensor:
    """Columns that are large on one rule each; -1 is a column of noise."""
    noise = torch.rand(len(rule), len(chosen), generator=torch.Generator().manual_seed(seed))
    member = torch.stack([(rule == k).float() for k in chosen], 1)
    return noise + 2 * member


def decomposition(components: Tensor, parameters: store.Parameters, kind: str) -> Decomposition:
    r, m = components.shape
    return Decomposition(
        kind, torch.ones(3, r), components, torch.arange(m), parameters, m,
        torch.zeros(1).double(), torch.zeros(1).long(), 1.0, 0, {},
    )  # fmt: skip


def test_planted_tunings_are_seen_and_noise_is_not() -> None:
    rule = labels(1200)
    found = components.tuning(
        coefficients_of(rule, [0, 3, -1, 5]), rule, rule % 2, seed=0, n_draws=200
    )
    assert found.tuned.tolist() == [True, True, False, True]
    assert found.concept[[0, 1, 3]].tolist() == [0, 3, 5]
    torch.testing.assert_close(found.share[[0, 1, 3]], torch.ones(3).double())
    torch.testing.assert_close(found.prediction[[0, 1, 3]], torch.ones(3).double())


def test_a_component_of_the_prediction_alone_is_not_of_a_rule() -> None:
    """Large on all examples of one prediction: beyond chance, not beyond sets of one prediction."""
    rule = labels()
    noise = torch.rand(600, 4, generator=torch.Generator().manual_seed(1))
    found = components.tuning(
        noise + 2 * (rule % 2 == 0).float()[:, None], rule, rule % 2, seed=0, n_draws=200
    )
    assert (found.share <= found.null_one_prediction).all()
    assert found.null < found.null_one_prediction
    torch.testing.assert_close(found.prediction, torch.ones(4).double())


def test_the_null_holds_its_level() -> None:
    """Of 200 decompositions into noise, about one in twenty has a component above the null."""
    rule = labels()
    exceeded = 0
    for seed in range(200):
        w = torch.rand(600, 4, generator=torch.Generator().manual_seed(1000 + seed))
        top = w.topk(components.n_top(600, 4), dim=0).indices.T
        share = torch.stack([torch.bincount(rule[row], minlength=6).max() for row in top])
        if seed == 0:
            null = components.tuning(w, rule, rule, seed=0, n_draws=10_000).null
        exceeded += int((share / top.shape[1]).max() > null)
    assert 1 <= exceeded <= 25


@pytest.mark.parametrize(("n", "r", "want"), [(50_000, 512, 128), (1500, 32, 61), (20, 32, 8)])
def test_top_examples_are_the_documents_share(n: int, r: int, want: int) -> None:
    assert components.n_top(n, r) == want


def test_share_kept_grows_to_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    made = fisher.per_example_fishers(model, torch.randn(20, 6), k=159)
    found = studies.kept_share(made, [5, 20, 80, 159])
    assert bool((found.mean.diff() > 0).all())
    assert float(found.mean[-1]) == pytest.approx(1, abs=1e-5)
    assert bool((found.positions.diff() >= 0).all())


def test_planted_fishers_are_mixtures_of_unit_norm() -> None:
    made, g, w = studies.planted(0, n=30, r=4, m=25, n_used=8)
    torch.testing.assert_close(store.sparse_norms(made), torch.ones(30).double())
    factors = torch.zeros(30, 3, 25, dtype=torch.float64)
    factors.view(90, 25)[:, made.kept] = made.matrix().to_dense()
    whole = torch.einsum("nr,ri,rj->nij", w, g, g)
    torch.testing.assert_close(factors.mT @ factors, whole)


def test_planted_components_are_found() -> None:
    made, g, _ = studies.planted(0, n=200, r=4, m=40, n_used=10)
    found = studies.recovery(made, g, step="exact", seeds=[0, 1], steps=400)
    assert found.found().tolist() == [4, 4]
    assert float(found.loss.max()) < 1e-6


def test_effective_examples_count_equal_coefficients() -> None:
    w = torch.zeros(50, 3)
    w[:7, 0] = 2.0
    w[4, 1] = 9.0
    torch.testing.assert_close(studies.n_effective(w), torch.tensor([7.0, 1.0, 0.0]).double())


@pytest.mark.parametrize("kind", [store.LOW_RANK, store.DIAGONAL])
def test_mass_lies_in_the_parameters_that_hold_it(kind: str) -> None:
    g = torch.tensor([[3.0, 0, 0, 4.0, 0], [0, 0, 1.0, 0, 0]])
    made = decomposition(g, (("a", (2,)), ("b", (1, 2)), ("c", (1,))), kind)
    names, mass = studies.mass_by_module(made)
    assert names == ("a", "b", "c")
    first = [9 / 25, 16 / 25, 0] if kind == store.LOW_RANK else [3 / 7, 4 / 7, 0]
    torch.testing.assert_close(mass, torch.tensor([first, [0, 1, 0]]).double())


def test_rules_that_are_ranked_first_are_found() -> None:
    rule = labels()
    match = match_rules(coefficients_of(rule, [0, 3, -1, -1]), rule, seed=0, n_top=60)
    share, _ = studies.rules_found(match)
    assert share == pytest.approx(2 / 6)


def test_most_tuned_components_are_of_different_concepts() -> None:
    tuned = components.Tuning(
        torch.tensor([2, 2, 0, 1]),
        torch.tensor([0.9, 0.95, 0.5, 0.7]).double(),
        0.2,
        0.3,
        torch.ones(4).double(),
    )
    assert studies.most_tuned(tuned, 3) == [1, 3, 2]
    assert studies.most_tuned(tuned, 4) == [1, 3, 2, 0]


def test_the_hypothesis_alone_tells_what_it_holds() -> None:
    """Label in the hypothesis' words: read from them. In the premise's: not."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 2, (400,), generator=generator)
    fill = torch.randint(5, 30, (400, 7), generator=generator)
    for place, low, high in ((6, 0.95, 1.0), (0, 0.3, 0.7)):
        x = fill.clone()
        x[:, 3] = 1  # the separator
        x[:, place] = 3 + y
        found = testbeds.hypothesis_only(x[:200], y[:200], x[200:], y[200:])
        assert low <= found <= high
