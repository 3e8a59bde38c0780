"""What notebook 32 measures, on networks whose components are known."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lib.data.base import Provenance
from lib.npeff import divergence, fisher, perturb_sizes, perturb_studies, store, testbeds
from lib.npeff.coefficients import fit_coefficients
from lib.npeff.components import Components, fishers_of
from lib.npeff.decomposition import unit
from lib.npeff.diagonal import decompose_diagonal
from lib.npeff.factorise import decompose
from lib.npeff.testbeds import Examples

N, GROUPS, WIDTH = 120, 3, 4


def bed() -> testbeds.Testbed:
    """A linear classifier whose inputs fall in groups that use parameters of their own."""
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(N) % GROUPS
    x = torch.zeros(N, GROUPS, WIDTH)
    x[torch.arange(N), group] = 1 + 0.2 * torch.randn(N, WIDTH, generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(GROUPS * WIDTH, 2, bias=False))
    model[1].weight.data = 0.2 * torch.randn(2, GROUPS * WIDTH, generator=generator)
    y = model(x).argmax(1)
    half = Examples(x, y, group)
    nothing = Provenance("groups", "drawn", "none", "0" * 64, N, "")
    names = ("a", "b")
    return testbeds.Testbed(
        "groups", model, half, half, names, ("0", "1", "2"), "1", nothing, 1.0, {"m": 0}
    )


def found(kind: str) -> tuple[Components, store.Fishers]:
    it = bed()
    raw = fisher.per_example_fishers(it.model, it.fit.x, k=24, kind=kind)
    ready = store.prune(store.normalise(raw))
    fit = decompose if kind == store.LOW_RANK else decompose_diagonal
    made = unit(fit(ready, GROUPS, seed=0, steps=200))
    w = fit_coefficients(made, store.select_columns(store.normalise(raw), ready.kept))
    shares = store.sparse_norms(store.normalise(raw))
    return Components(it, made, w, raw.norms, raw.logits, shares), raw


@pytest.fixture(scope="module")
def low_rank() -> tuple[Components, store.Fishers]:
    return found(store.LOW_RANK)


def test_more_entries_than_an_example_has_are_refused():
    with pytest.raises(ValueError, match="1 <= k <= "):
        fishers_of(bed(), "fit", kind=store.LOW_RANK, k=1_000_000)


def test_a_random_direction_is_above_nineteen_others_one_time_in_twenty():
    ratios = torch.rand(4000, 20, generator=torch.Generator().manual_seed(0))
    share, error = perturb_studies.share_above_all(
        SimpleNamespace(kl=ratios[:, 0], random=ratios[:, 1:])
    )
    assert abs(share - 0.05) < 3 * error


def test_groups_with_parameters_of_their_own_move_alone(low_rank):
    case = perturb_studies.moved_low_rank(low_rank[0], n_draws=5, seed=0)
    assert (case.kl > 2).all()  # the other two groups do not move: at most GROUPS
    assert perturb_studies.share_above(case)[0] == 1.0
    assert case.kl.mean() > case.random.mean()
    assert torch.equal(case.lengths, torch.full((GROUPS,), 0.1, dtype=torch.float64))


def test_diagonal_components_move_their_own_group(monkeypatch, tmp_path):
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    parts = found(store.DIAGONAL)[0]
    case = perturb_studies.moved_diagonal(parts, n_draws=2, seed=0)
    assert (case.kl > 2).all()
    assert case.in_range == GROUPS
    # the data set's Fisher is kept, and gives the same
    assert len(list(tmp_path.glob("dataset-fisher-*.safetensors"))) == 1
    again = perturb_studies.moved_diagonal(parts, n_draws=2, seed=0)
    assert torch.equal(case.kl, again.kl)
    assert len(list(tmp_path.glob("dataset-fisher-*.safetensors"))) == 1


def test_small_steps_follow_the_fisher(low_rank):
    swept = perturb_sizes.sweep(*low_rank, sizes=(0.001, 0.01))
    assert torch.allclose(swept.at(0.001), swept.predicted(0.001, own=True), rtol=0.02, atol=1e-14)
    share = perturb_sizes.predicted_share(swept, 0.001, own=True)
    assert torch.allclose(share, torch.ones_like(share), atol=1e-2)
    assert (perturb_sizes.ratios_at(swept, 0.01) > 2).all()


def test_rank_correlation_asks_for_the_order_alone():
    predicted = torch.rand(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kl = torch.stack([predicted**3, 1 + predicted], dim=1)
    right = torch.ones(2, 2, 30, dtype=torch.bool)
    sizes = torch.tensor([-0.1, 0.1], dtype=torch.float64)
    top = torch.zeros(2, 1, dtype=torch.int64)
    swept = perturb_sizes.Sweep(sizes, kl, right, predicted, -predicted, top)
    assert torch.allclose(perturb_sizes.rank_correlation(swept, 0.1), torch.ones(2).double())
    own = perturb_sizes.rank_correlation(swept, 0.1, own=True)
    assert torch.allclose(own, -torch.ones(2).double())


def test_a_network_is_the_same_after_being_moved(low_rank):
    before = {k: v.clone() for k, v in low_rank[0].bed.model.state_dict().items()}
    perturb_sizes.sweep(*low_rank, sizes=(0.5,))
    after = low_rank[0].bed.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_what_was_measured_is_not_measured_again(low_rank, monkeypatch):
    first = perturb_studies.moved_low_rank(low_rank[0], n_draws=3, seed=0)
    walked = perturb_sizes.sweep(*low_rank, sizes=(0.2,))

    def refuse(*_: object) -> None:
        raise AssertionError("the network was moved again")

    monkeypatch.setattr(divergence.Reference, "after", refuse)
    again = perturb_studies.moved_low_rank(low_rank[0], n_draws=3, seed=0)
    assert torch.equal(again.kl, first.kl)
    assert torch.equal(again.random, first.random)
    assert torch.equal(perturb_sizes.sweep(*low_rank, sizes=(0.2,)).kl, walked.kl)
    with pytest.raises(AssertionError, match="moved again"):
        perturb_studies.moved_low_rank(low_rank[0], n_draws=3, seed=1)


def test_a_component_of_zeros_is_left_out(low_rank):
    whole = low_rank[0]
    g = whole.decomposition.components.clone()
    g[1] = 0
    less = replace(whole, decomposition=replace(whole.decomposition, components=g))
    assert perturb_studies.moved_low_rank(less, n_draws=1, seed=0).used.tolist() == [0, 2]


def test_accuracy_off_and_on_a_component_adds_up_to_all(low_rank):
    swept = perturb_sizes.sweep(*low_rank, sizes=(0.3,))
    parts = perturb_sizes.accuracy_on_and_off(swept, 0)
    n_top = swept.top.shape[1]
    together = (parts["top examples"] * n_top + parts["other examples"] * (N - n_top)) / N
    assert torch.allclose(together, swept.right[0].double().mean(1))


def test_spread_of_a_median_shrinks_with_the_number_of_components():
    few, many = (torch.arange(n, dtype=torch.float64) / n for n in (10, 1000))
    assert perturb_studies.median_of(few)[1] > 3 * perturb_studies.median_of(many)[1]
    value, spread = perturb_studies.ratio_of_medians(1 + many, 1 + many)
    assert value == 1
    assert 0 < spread < 0.05


def test_diagonal_fishers_have_no_quadratic_form_of_rows(low_rank):
    _, ways = perturb_studies.directions_of(low_rank[0])
    with pytest.raises(ValueError, match="low-rank"):
        perturb_sizes.quadratic(found(store.DIAGONAL)[1], ways)
