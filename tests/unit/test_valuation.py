"""Data values against the definition of the Shapley value on a few rows."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib.attribution import valuation
from lib.attribution.valuation import Utility


def blobs(n: int, n_targets: int = 4, *, classes: int = 2, seed: int = 0):
    """Rows whose first feature leans with the label, and targets of the same kind."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n + n_targets) % classes
    x = torch.randn(n + n_targets, 3, generator=generator, dtype=torch.float64)
    x[:, 0] += 1.5 * y
    return (x[:n], y[:n]), (x[n:], y[n:])


def value_of(utility: Utility, n: int, rows: tuple[int, ...]) -> Tensor:
    """The utility `[T]` of a set: the walk that starts with it, stopped after it."""
    rest = [i for i in range(n) if i not in rows]
    walk = utility(torch.tensor([[*rows, *rest]]))
    return [next(walk) for _ in range(len(rows) + 1)][-1][0]


def shapley_by_definition(utility: Utility, n: int) -> Tensor:
    """Marginal contributions `[n, T]` over all sets of other rows, by their weights."""
    sets = [c for size in range(n + 1) for c in combinations(range(n), size)]
    value = {c: value_of(utility, n, c) for c in sets}
    total = torch.zeros(n, len(value[()]), dtype=torch.float64)
    for i in range(n):
        for c in sets:
            if i not in c:
                joined = tuple(sorted((*c, i)))
                total[i] += (value[joined] - value[c]) / (n * comb(n - 1, len(c)))
    return total


UTILITIES = {
    "knn": lambda train, targets: valuation.knn_utility(train, targets, neighbours=2),
    "ridge": valuation.ridge_utility,
    "logistic": lambda train, targets: valuation.logistic_utility(train, targets, newton_steps=8),
}


@pytest.mark.parametrize("neighbours", [1, 3, 7, 12])
@pytest.mark.parametrize("classes", [2, 3])
def test_knn_values_follow_the_definition(neighbours: int, classes: int):
    train, targets = blobs(7, classes=classes)
    utility = valuation.knn_utility(train, targets, neighbours=neighbours)
    exact = shapley_by_definition(utility, 7)
    found = valuation.knn_shapley(train, targets, neighbours=neighbours)
    assert_close(found.double(), exact, atol=1e-7, rtol=0)


def test_knn_values_add_up_to_the_utility_of_all_rows():
    train, targets = blobs(60, 9)
    distance = torch.cdist(targets[0], train[0])
    nearest = distance.topk(5, largest=False).indices
    share = (train[1][nearest] == targets[1][:, None]).double().mean(1)
    values = valuation.knn_shapley(train, targets, neighbours=5)
    assert_close(values.sum(0).double(), share, atol=1e-6, rtol=0)


def test_knn_values_do_not_depend_on_the_order_of_rows():
    train, targets = blobs(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = valuation.knn_shapley((train[0][order], train[1][order]), targets)
    assert_close(shuffled, valuation.knn_shapley(train, targets)[order])


def test_a_copy_of_a_target_is_its_most_valuable_row():
    train, targets = blobs(30)
    x, y = train
    x[11], y[11] = targets[0][0], targets[1][0]
    assert valuation.knn_shapley((x, y), targets, neighbours=3)[:, 0].argmax() == 11


@pytest.mark.parametrize("name", UTILITIES)
def test_sampled_values_agree_with_the_definition(name: str):
    utility = UTILITIES[name](*blobs(6))
    exact = shapley_by_definition(utility, 6)
    found = valuation.data_shapley(utility, 6, n_orders=2000, seed=0)
    off = (found.tau - exact).abs() / found.standard_error.clamp(min=1e-9)
    assert off.max() < 4.5  # 24 values, in standard errors
    assert found.standard_error.max() < 0.05 * exact.abs().max()  # and those are small
    mean = (found.tau - exact).mean(1).abs()  # values for the mean utility
    assert (mean < 4.5 * found.standard_error.mean(1)).all()


@pytest.mark.parametrize("name", UTILITIES)
def test_values_of_every_order_add_up_to_the_utility(name: str):
    train, targets = blobs(8)
    utility = UTILITIES[name](train, targets)
    found = valuation.data_shapley(utility, 8, n_orders=3, seed=1)
    gain = value_of(utility, 8, tuple(range(8))) - value_of(utility, 8, ())
    assert_close(found.tau.sum(0).double(), gain, atol=1e-5, rtol=1e-5)
    assert found.n_steps == 3 * 8


def test_a_walk_of_ridge_regressions_equals_fits_from_scratch():
    (x, y), (tx, ty) = blobs(9, classes=3)
    walk = valuation.ridge_utility((x, y), (tx, ty), l2=0.7)
    a = torch.cat([x, torch.ones(9, 1, dtype=x.dtype)], 1)
    at = torch.cat([tx, torch.ones(4, 1, dtype=x.dtype)], 1)
    order = torch.tensor([4, 0, 8, 2, 6, 1, 3, 7, 5])
    for size, value in enumerate(walk(order[None])):
        rows = order[:size]
        coded = 2.0 * torch.eye(3, dtype=x.dtype)[y[rows]] - 1
        penalty = 0.7 * torch.eye(4, dtype=x.dtype)
        weight = torch.linalg.solve(a[rows].T @ a[rows] + penalty, a[rows].T @ coded)
        assert_close(value[0], (at @ weight)[torch.arange(4), ty])


def test_a_walk_of_logistic_regressions_ends_at_the_optimum():
    (x, y), (tx, ty) = blobs(30)
    *_, value = valuation.logistic_utility((x, y), (tx, ty), l2=0.5)(torch.arange(30)[None])
    a = torch.cat([x, torch.ones(30, 1, dtype=x.dtype)], 1)
    weight = torch.zeros(4, dtype=x.dtype, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        solver.zero_grad()
        margins = (2 * y - 1) * (a @ weight)
        loss = torch.nn.functional.softplus(-margins).sum() + 0.25 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    at = torch.cat([tx, torch.ones(4, 1, dtype=x.dtype)], 1)
    assert_close(value[0], (at @ weight.detach()) * (2 * ty - 1), atol=1e-3, rtol=1e-3)


def test_truncation_saves_steps_and_keeps_the_order_of_rows():
    train, targets = blobs(60, 20)
    utility = valuation.knn_utility(train, targets)
    whole = valuation.data_shapley(utility, 60, n_orders=400, seed=0)
    cut = valuation.data_shapley(utility, 60, n_orders=400, seed=0, tolerance=0.03)
    assert cut.n_steps < 0.8 * whole.n_steps
    pair = torch.stack([whole.tau.mean(1), cut.tau.mean(1)])
    assert torch.corrcoef(pair)[0, 1] > 0.8


def test_values_do_not_depend_on_the_batch():
    utility = valuation.ridge_utility(*blobs(10))
    one = valuation.data_shapley(utility, 10, n_orders=23, seed=0, batch=4, tolerance=0.1)
    two = valuation.data_shapley(utility, 10, n_orders=23, seed=0, tolerance=0.1)
    assert_close(one.tau, two.tau)
    assert one.n_steps == two.n_steps


(X, Y), TARGETS = blobs(12)
NAN = X.clone()
NAN[5, 1] = float("nan")
REFUSED = {
    "NaN": (lambda: valuation.knn_shapley((NAN, Y), TARGETS), "training row 5"),
    "labels": (lambda: valuation.knn_shapley((X, Y[:-1]), TARGETS), "a label a row"),
    "real labels": (lambda: valuation.ridge_utility((X, Y.float()), TARGETS), "integer labels"),
    "K": (lambda: valuation.knn_shapley((X, Y), TARGETS, neighbours=0), "neighbours >= 1"),
    "l2": (lambda: valuation.ridge_utility((X, Y), TARGETS, l2=0.0), "want l2 > 0"),
    "classes": (
        lambda: valuation.logistic_utility((X, Y + 1), TARGETS),
        "use ridge_utility or knn_utility",
    ),
    "orders": (
        lambda: valuation.data_shapley(
            valuation.ridge_utility((X, Y), TARGETS), 12, n_orders=0, seed=0
        ),
        "n_orders",
    ),
    "tolerance": (
        lambda: valuation.data_shapley(
            valuation.ridge_utility((X, Y), TARGETS), 12, n_orders=1, seed=0, tolerance=-1.0
        ),
        "tolerance >= 0",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_is_refused_in_a_sentence(name: str):
    call, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        call()


def test_a_utility_that_is_not_finite_is_refused():
    def broken(orders: Tensor):
        yield torch.zeros(len(orders), 1)
        yield torch.full((len(orders), 1), float("nan"))

    with pytest.raises(ValueError, match="not finite after 1 rows"):
        valuation.data_shapley(broken, 1, n_orders=2, seed=0)
