"""What notebook 33 measures, on planted components and on the compiled toy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib.npeff import concept_search as concepts
from lib.npeff import fetch, fisher, store
from lib.npeff import program as programs
from lib.npeff import program_studies as studies
from lib.npeff.concept_search import Search
from lib.npeff.factorise import decompose, unit
from lib.npeff.program import Compiled, inference
from lib.npeff.program.location import Mass


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return programs.compile_program(inference.build(), cold=20)


@pytest.fixture(scope="module")
def found() -> Search:
    """400 examples; sets of 20 with "rare" (50 have it), with "rare" and "even", and with nothing.

    Two sets of three are pure in something that at most half of the examples have.
    """
    i = torch.arange(400)
    made = concepts.both_polarities(torch.stack([i < 50, i % 2 == 0], 1), ("rare", "even"))
    top = torch.stack([i[:20], i[:40:2], torch.cat([i[40:50], i[101:111]])])
    return concepts.search(top, made, (i % 3 == 0).long(), seed=0, n_random=300)


def placed(computes: Tensor) -> Mass:
    """Shares of components on the weights of "rare", "even" and padding."""
    one = torch.ones(len(computes), 1, dtype=torch.float64)
    return Mass(one, one, computes, computes, ("rare", "even"))


def test_the_sparse_way_is_taken_for_the_compiled_toy_and_is_exact(
    compiled: Compiled, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = inference.examples(3, seed=1, program=compiled.program).ids
    used = []
    real = fisher._sparse_rows
    monkeypatch.setattr(fisher, "_sparse_rows", lambda *a: used.append(1) or real(*a))
    fast = fisher.per_example_fishers(compiled.model, ids, k=32_768)
    assert used
    slow = fisher.per_example_fishers(compiled.model, ids, k=32_768, generic=True, chunk=1)
    assert len(used) == 1
    a, b = (one.matrix().to_dense() for one in (fast, slow))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    torch.testing.assert_close(fast.norms, slow.norms, rtol=1e-5, atol=0)
    # nothing is cut off
    assert int((fast.offsets[3::3] - fast.offsets[:-3:3]).max()) < 32_768


def test_the_network_agrees_with_the_program_within_its_bound(compiled: Compiled) -> None:
    examples = inference.examples(30, seed=0, program=compiled.program)
    rows = studies.agreement_rows(compiled.program, examples, (20.0, 100.0), n=16, seed=0)
    assert [row["coldness"] for row in rows] == ["20", "100"]
    for row in rows:
        assert row["accuracy on all examples"] == 1
        for which in ("examples", "random sequences"):
            assert float(str(row[f"largest error, 16 {which}"])) <= float(
                str(row["bound of the error"])
            )
    assert float(str(rows[1]["largest error, 16 random sequences"])) < 1e-4


def test_the_last_position_holds_the_label_whatever_the_chunk(compiled: Compiled) -> None:
    examples = inference.examples(9, seed=0, program=compiled.program)
    one, many = (studies.last_position(compiled.model, examples.ids, chunk=c) for c in (2, 9))
    torch.testing.assert_close(one, many)
    assert one[:, compiled.blocks["label"]].argmax(1).tolist() == examples.labels.tolist()


def test_chance_is_what_draws_of_as_many_random_sets_reach(found: Search) -> None:
    beyond = studies.above_chance(found, "held by at most 1/4")
    assert beyond.share == pytest.approx(2 / 3)
    assert beyond.null == 0  # 20 of 50 in 400 by chance: never
    assert beyond.sd == pytest.approx((2 / 9 / 3) ** 0.5)


def test_chance_takes_the_95_percent_draw() -> None:
    i = torch.arange(40)
    made = concepts.both_polarities((i < 2)[:, None], ("two",))
    search = concepts.search(i[None, 2:12].repeat(4, 1), made, i % 2, seed=0, n_random=4000)
    p = search.null_passes[:, 0].double().mean()  # "not two" in a random set of ten
    assert 0.4 < p < 0.7
    beyond = studies.above_chance(search, "any concept")
    assert beyond.null == 1  # .56^4 = .1 of draws of four have all four
    with pytest.raises(ValueError, match="criterion"):
        studies.above_chance(search, "all")


def test_shares_are_those_of_the_components_that_were_asked_for(found: Search) -> None:
    assert studies.pure_share({"3 components": found}, 3) == (
        pytest.approx(2 / 3),
        pytest.approx((2 / 27) ** 0.5),
    )
    assert studies.pure_share({"3 components": found}, 4) is None


def test_conjunctions_are_counted_among_pure_sets(found: Search) -> None:
    share, sd = studies.conjunctive_share(found)
    assert (share, sd) == (0.5, pytest.approx((0.25 / 2) ** 0.5))


def test_rare_variables_are_counted_by_the_value_that_is_shared(found: Search) -> None:
    assert studies.n_rare(found).tolist() == [1, 2, 0]
    assert studies.n_rare(found, limit=0.2).tolist() == [1, 1, 0]


def test_smaller_top_sets_are_purer_and_leave_more_concepts_possible() -> None:
    i = torch.arange(300)
    made = concepts.both_polarities(torch.stack([i < 30, i < 35], 1), ("rare", "also"))
    w = torch.stack([300.0 - i, (i * 7 % 300).double()], 1)
    small, large = studies.by_size(w, made, i % 2, (20, 60), seed=0, n_random=50)
    assert (small.share[2], large.share[2]) == (0.5, 0)
    assert (small.two_rare, large.two_rare) == (0.5, 0)
    assert (small.possible, large.possible) == (4, 2)
    assert small.null[2] == 0


def test_what_is_left_of_a_coefficient_is_that_of_the_last_top_example() -> None:
    w = torch.tensor([[4.0, 0.0, 1.0], [1.0, 0.0, 0.5], [2.0, 0.0, 0.0]])
    assert studies.coefficient_left(w[:, :2], 2) == 0.5  # a component that is empty is left out
    assert studies.coefficient_left(w[:, 2:], 3) == 0


def test_components_that_lie_where_their_concept_is_computed_are_told_apart(
    found: Search,
) -> None:
    right = placed(torch.tensor([[0.8, 0.1, 0.1], [0.5, 0.5, 0.0], [0.1, 0.2, 0.7]]).double())
    one = studies.placement(right, found, seed=0)
    assert one.component.tolist() == [0, 1]
    # .8 over .5 and .1; (.5 + .5) over .9 and .3: medians of two are means
    torch.testing.assert_close(one.ratio, torch.tensor([4.8, (1 / 0.9 + 1 / 0.3) / 2]).double())
    torch.testing.assert_close(one.own, torch.tensor([0.8, 1.0]).double())
    assert one.share == 1
    wrong = placed(torch.tensor([[0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.5, 0.5, 0.0]]).double())
    assert studies.placement(wrong, found, seed=0).share == 0


def test_a_place_that_all_components_share_is_no_evidence(found: Search) -> None:
    same = placed(torch.tensor([[0.9, 0.1, 0.0]] * 3).double())
    one = studies.placement(same, found, seed=0)
    assert one.share == 0
    assert one.null.max() == 0


def test_the_null_deals_concepts_out_anew(found: Search) -> None:
    right = placed(torch.tensor([[0.8, 0.0, 0.2], [0.0, 0.5, 0.5], [0.1, 0.2, 0.7]]).double())
    one = studies.placement(right, found, seed=0, n_draws=500)
    # dealt as it is: .8 above .0 and .1; .5 below .8, above .3. Exchanged: .8 above .5, .3; 0 below
    assert one.share == 1
    assert sorted(set(one.null.tolist())) == [0.5, 1.0]
    assert 0.4 < (one.null == 1).double().mean() < 0.6


def test_placement_refuses_components_of_another_search(found: Search) -> None:
    with pytest.raises(ValueError, match="same 2 or more components"):
        studies.placement(placed(torch.ones(2, 3).double() / 3), found, seed=0)
    with pytest.raises(ValueError, match="no component is pure"):
        studies.placement(placed(torch.ones(3, 3).double() / 3), found, seed=0, limit=0.01)


def test_each_clause_gets_the_component_that_singles_it_out() -> None:
    generator = torch.Generator().manual_seed(0)
    rules = torch.arange(300) % 3
    w = torch.rand(300, 2, generator=generator, dtype=torch.float64)
    w[:, 1] += 2 * (rules == 2)
    match = concepts.match_rules(w, rules, seed=0, n_top=150, n_permutations=50)
    made = studies.clauses_found(match, ("a", "b", "c"), 300, 150)
    assert [one.beyond for one in made] == [False, False, True]
    assert (made[2].component, made[2].n) == (1, 100)
    assert made[2].average_precision == pytest.approx(1)
    assert made[2].most == made[2].precision == pytest.approx(100 / 150)
    assert made[2].recall == 1


def test_a_fetched_decomposition_is_the_one_that_would_be_made(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20, 3, 12, generator=generator, dtype=torch.float64)
    fishers = store.prune(store.normalise(store.from_dense(rows)))
    made = unit(decompose(fishers, 3, seed=1, component_steps=2, steps=20))
    steps = []
    for _ in range(2):
        found = fetch.fetch_decomposition(
            fishers, 3, seed=1, steps=20, progress=lambda s: steps.append(len(s)) or s
        )
        assert torch.equal(found.coefficients, made.coefficients)
        assert torch.equal(found.components, made.components)
        assert found.loss == made.loss
        assert found.energy == pytest.approx(made.energy)
    assert steps == [22]  # the second time it is read
