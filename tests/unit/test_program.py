"""Compiled programs: each kind by hand, network against interpreter, where variables lie."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib import gradients
from lib.npeff import program as programs
from lib.npeff.program import Aggregate, Compiled, Map, PairMap, Positions, Program, Tokens
from lib.npeff.program.compiler import half_layers
from lib.npeff.program.location import mass, owners
from lib.npeff.program.transformer import MATRICES


def small() -> Program:
    """Every kind of variable, an input used twice, a missing match, a key that moves."""
    token, position = Tokens("token", ("a", "b", "c")), Positions("position", 4)
    is_a = Map("is_a", lambda word: word == "a", token)
    before = Aggregate("before", lambda key, query: key == query - 1, position, position, token)
    changed = PairMap("changed", lambda u, v: u != v, before, token)
    twice = PairMap("twice", lambda u, v: u + v, token, token)
    place_of_c = Aggregate("place_of_c", lambda key, _: key == "c", token, position, position)
    after_c = PairMap("after_c", lambda c, here: here > c, place_of_c, position)
    nodes = (token, position, is_a, before, changed, twice, place_of_c, after_c)
    return Program(nodes, "changed")


BY_HAND = {
    "token": ["a", "c", "a", "a"],
    "position": [0, 1, 2, 3],
    "is_a": [True, False, True, True],
    "before": [None, "a", "c", "a"],
    "changed": [None, True, True, False],
    "twice": ["aa", "cc", "aa", "aa"],
    "place_of_c": [1, 1, 1, 1],
    "after_c": [False, False, True, True],
}
WITHOUT_C = {
    "before": [None, "a", "b"],
    "changed": [None, True, False],
    "place_of_c": [None, None, None],
    "after_c": [None, None, None],
}


@cache
def compiled(cold: float = 100.0, margin: float = 2.0**-10) -> Compiled:
    return programs.compile_program(small(), cold=cold, margin=margin)


def all_rows() -> Tensor:
    """Every sequence of four words with at most one "c": two would be two keys that fit."""
    rows = torch.cartesian_prod(*[torch.arange(3)] * 4)
    return rows[(rows == 2).sum(1) < 2]


def read(found: Compiled, words: str, name: str) -> list[object]:
    """The values that the network holds of a variable, after BOS; None for a zero block."""
    ids = torch.tensor([["abc".index(word) for word in words]])
    values = found.program.by_name[name].values
    block = found.model.residual(ids)[0, 1:, found.blocks[name]]
    assert_close(block.sum(1), block.amax(1), atol=1e-5, rtol=0)  # one-hot or zero
    return [values[row.argmax()] if row.amax() > 0.5 else None for row in block]


@pytest.mark.parametrize("name", BY_HAND)
def test_interpreter_and_network_give_the_values_found_by_hand(name: str):
    program = small()
    assert list(programs.interpret(program, list("acaa"))[name]) == BY_HAND[name]
    assert read(compiled(), "acaa", name) == BY_HAND[name]


@pytest.mark.parametrize("name", WITHOUT_C)
def test_where_no_key_fits_there_is_no_value(name: str):
    assert list(programs.interpret(small(), list("abb"))[name]) == WITHOUT_C[name]
    assert read(compiled(), "abb", name) == WITHOUT_C[name]


def test_value_sets_are_enumerated():
    by_name = small().by_name
    assert by_name["is_a"].values == (True, False)
    assert by_name["before"].values == ("a", "b", "c")
    # pairs that never occur are values too
    assert by_name["twice"].values == ("aa", "ab", "ac", "ba", "bb", "bc", "ca", "cb", "cc")


def test_a_variable_is_computed_in_the_earliest_half_layer_after_its_inputs():
    halves = half_layers(small())
    assert halves == {
        "token": -1, "position": -1,
        "is_a": 1, "twice": 1,  # a ReLU layer follows the first attention
        "before": 0, "place_of_c": 0,
        "changed": 1, "after_c": 1,
    }  # fmt: skip
    token, position = Tokens("token", ("a", "b")), Positions("position", 3)
    upper = Map("upper", str.upper, token)
    first = Aggregate("first", lambda key, _: key == 0, position, position, upper)
    lower = Map("lower", str.lower, first)
    assert half_layers(Program((token, position, upper, first, lower), "lower")) == {
        "token": -1, "position": -1, "upper": 1, "first": 2, "lower": 3,
    }  # fmt: skip


def test_sizes_in_closed_form():
    found = compiled()
    values = 3 + 4 + 2 + 3 + 2 + 9 + 4 + 2
    assert found.width == 2 + values
    assert (found.n_layers, found.n_heads) == (1, 2)
    assert found.key_size == 4 + 2  # four positions as queries, and two more
    assert found.n_hidden == 2 + 3 * 3 + 3 * 3 + 4 * 4
    inner = found.n_heads * found.key_size
    assert found.n_parameters == found.n_layers * found.width * (4 * inner + 2 * found.n_hidden)
    assert len(list(found.model.parameters())) == found.n_layers * len(MATRICES)


@pytest.mark.parametrize("margin", [2.0**-10, 0.0])
def test_network_equals_interpreter_on_every_variable_and_sequence(margin: float):
    for cold in (100.0, 20.0):
        errors = programs.one_hot_errors(compiled(cold, margin), all_rows())
        bounds = programs.error_bounds(small(), cold, margin)
        for name, error in errors.items():
            assert error <= bounds[name] + 1e-6  # round-off of float32
            assert cold == 20 or error < 1e-4


def test_the_bound_of_one_head_is_its_leak_to_every_other_position():
    bounds = programs.error_bounds(small(), 20.0, 0.0)
    leak = 4 * torch.tensor(-10.0).exp().item()
    assert bounds["token"] == bounds["is_a"] == 0
    assert bounds["before"] == pytest.approx(leak)
    assert bounds["changed"] == pytest.approx(leak)
    # a query without a match, and three keys of one value
    gap = programs.one_hot_errors(compiled(20.0, 0.0), torch.tensor([[0, 0, 0]]))["before"]
    assert gap == pytest.approx(3 * torch.tensor(-10.0).exp().item(), rel=1e-3)


def test_errors_do_not_depend_on_the_chunk():
    rows = all_rows()[:20]
    whole = programs.one_hot_errors(compiled(20.0), rows)
    parts = programs.one_hot_errors(compiled(20.0), rows, chunk=7)
    assert whole == pytest.approx(parts, abs=1e-6)


def test_logits_are_beta_times_the_one_hot_output_at_the_last_position():
    rows = torch.tensor([[0, 2, 0, 0], [0, 2, 0, 1]])  # changed: no, yes
    program = small()
    assert program.classes == (False, True)
    for beta in (1.0, 3.0):
        logits = programs.compile_program(program, beta=beta).model(rows)
        assert_close(logits, beta * torch.eye(2))
    assert_close(torch.softmax(torch.tensor([1.0, 0, 0]), 0)[0].item(), 0.576, atol=1e-3, rtol=0)


def test_leading_axes_of_the_input_are_those_of_the_output():
    rows, model = all_rows()[:6], compiled().model
    whole = model(rows)
    assert_close(model(rows.view(2, 3, 4)), whole.view(2, 3, 2))
    assert_close(model(rows[0]), whole[0])
    assert model.residual(rows[0]).shape == (5, compiled().width)


def test_building_draws_nothing_from_the_global_generator():
    before = torch.random.get_rng_state()
    first = programs.compile_program(small()).model.state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    second = programs.compile_program(small()).model.state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


def probability(logits: Tensor, *_: Tensor) -> Tensor:
    return logits.log_softmax(-1)[..., 0]


def test_hooks_give_the_gradients_of_functional_transforms():
    rows = all_rows()[::5]
    for cold in (100.0, 20.0):
        model = compiled(cold).model
        by_hooks = torch.cat(list(gradients.per_example_hooks(model, (rows,), probability)))
        by_vmap = torch.cat(list(gradients.per_example_vmap(model, (rows,), probability)))
        assert_close(by_hooks, by_vmap, atol=1e-6, rtol=1e-5)


def test_with_the_margin_gradients_do_not_depend_on_round_off():
    """Without it a hidden unit stands at 0 and the precision decides whether gradients pass."""
    rows, model = all_rows(), programs.compile_program(small()).model
    single = torch.cat(list(gradients.per_example_vmap(model, (rows,), probability)))
    exact = torch.cat(list(gradients.per_example_vmap(model.double(), (rows,), probability)))
    assert torch.equal(single != 0, exact != 0)
    assert_close(single.double(), exact, atol=1e-5, rtol=1e-5)


def test_queries_and_keys_have_gradients_at_the_lower_coldness_only():
    rows = all_rows()
    sizes = {}
    for cold in (100.0, 20.0):
        model = compiled(cold).model
        loss = model(rows).log_softmax(-1)[:, 0].sum()
        (grad,) = torch.autograd.grad(loss, [model.layer(0).w_q.weight])
        sizes[cold] = grad.abs().max().item()
    assert sizes[100.0] < 1e-12 < 1e-6 < sizes[20.0]


def test_regions_cover_every_weight_once():
    found = compiled()
    covered = {name: torch.zeros_like(weight) for name, weight in found.model.named_parameters()}
    for region in found.regions:
        covered[region.parameter][region.rows, region.columns] += 1
    assert all((count == 1).all() for count in covered.values())


@pytest.mark.parametrize("name", ["is_a", "changed", "twice", "after_c", "before", "place_of_c"])
def test_zeroing_the_regions_of_a_variable_removes_it_and_what_reads_it(name: str):
    found, rows = programs.compile_program(small()), all_rows()
    with torch.no_grad():
        weights = dict(found.model.named_parameters())
        for region in found.regions:
            if region.variable == name:
                weights[region.parameter][region.rows, region.columns] = 0
    readers = {name} | {
        node.name
        for node in found.program.in_order
        if any(part.name == name for part in node.inputs)
    }
    errors = programs.one_hot_errors(found, rows)
    assert {variable for variable, error in errors.items() if error > 0.5} == readers


def test_mass_of_a_planted_direction_lies_where_it_was_planted():
    token, position = Tokens("token", ("a", "b")), Positions("position", 3)
    first = Aggregate("first", lambda key, _: key == 0, position, position, token)
    upper = Map("upper", str.upper, first)
    again = Map("again", str.lower, upper)
    found = programs.compile_program(Program((token, position, first, upper, again), "again"))
    of = owners(found)
    assert len(of.layer) == found.n_parameters
    start, places = 0, {}
    for name, weight in found.model.named_parameters():
        places[name] = start
        start += weight.numel()
    column = found.blocks["first"].start  # the value "a" of `first`
    direction = torch.zeros(3, found.n_parameters)
    direction[0, places["layers.0.w_1.weight"] + column] = 3  # into the first unit of `upper`
    direction[1, places["layers.1.w_q.weight"] + column] = 1  # a head that nothing uses
    direction[1, places["layers.0.w_1.weight"]] = 2  # reads the constant
    row = found.blocks["again"].start  # from the first unit of `upper` into `again`
    direction[2, places["layers.0.w_2.weight"] + row * found.n_hidden] = -1
    where = mass(of, torch.arange(found.n_parameters), direction)
    number = {name: i for i, name in enumerate(where.variables)}
    for shares in (where.layer, where.matrix, where.computes, where.touches):
        assert_close(shares.sum(1), torch.ones(3, dtype=torch.float64))
    assert where.computes[0, number["upper"]] == where.touches[0, number["first"]] == 1
    assert where.layer[0].tolist() == [1, 0]
    assert where.matrix[0, MATRICES.index("w_1")] == 1
    assert_close(where.layer[1].tolist(), [0.8, 0.2])
    assert where.computes[1, -1].item() == pytest.approx(0.2)
    assert where.touches[1, -1].item() == pytest.approx(0.8)
    assert where.computes[2, number["upper"]] == where.touches[2, number["again"]] == 1
    some = torch.tensor([places["layers.0.w_1.weight"] + column, 0])
    assert_close(mass(of, some, direction[:1, some]).computes, where.computes[:1])
