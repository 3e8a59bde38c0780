"""Perturbations of diagonal components: Fisher-weighted averages and the search for their size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lib.npeff import concept_search
from lib.npeff import perturb_diagonal as diagonal
from lib.npeff.divergence import log_probabilities, loss_and_gradient

N, D, C = 120, 9, 3


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 4), nn.Tanh(), nn.Linear(4, C)).double()


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(N, D, generator=draw(1), dtype=torch.float64)
    return x, torch.randint(0, C, (N,), generator=draw(2))


def parameters_of(model: nn.Module):
    return tuple((name, tuple(w.shape)) for name, w in model.named_parameters())


def looped_fisher(model: nn.Module, x: Tensor) -> Tensor:
    """Mean over examples of ``sum_c p_c (grad log p_c)^2``."""
    total = 0
    for one in x:
        log_p = model(one[None]).log_softmax(1)[0]
        for c in range(C):
            grads = torch.autograd.grad(log_p[c], list(model.parameters()), retain_graph=True)
            flat = torch.cat([g.flatten() for g in grads])
            total = total + log_p[c].exp().detach() * flat.square()
    return total / len(x)


def test_dataset_fisher_equals_the_loop_and_chunks_change_nothing(model, data) -> None:
    wanted = looped_fisher(model, data[0])
    parameters = parameters_of(model)
    found = diagonal.dataset_fisher(model, data, parameters)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(diagonal.dataset_fisher(model, data, parameters, chunk=7), wanted)
    part = diagonal.dataset_fisher(model, data, parameters[2:])
    torch.testing.assert_close(part, wanted[-len(part) :])


def test_sampled_fisher_is_unbiased(model, data) -> None:
    parameters, g = parameters_of(model), draw(3)
    draws = torch.stack(
        [diagonal.sampled_fisher(model, data, parameters, generator=g) for _ in range(60)]
    )
    exact = diagonal.dataset_fisher(model, data, parameters)
    z = (draws.mean(0) - exact) / (draws.std(0) / 60**0.5)
    assert z.abs().max() < 5
    assert z.square().mean() < 2.5


def test_parameters_out_of_order_are_refused(model, data) -> None:
    with pytest.raises(ValueError, match="order"):
        diagonal.dataset_fisher(model, data, parameters_of(model)[::-1])


def test_loss_gradient_is_that_of_the_sum(model, data) -> None:
    rows = torch.tensor([5, 3, 60])
    loss = nn.functional.cross_entropy(model(data[0][rows]), data[1][rows], reduction="sum")
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    parameters = parameters_of(model)
    for chunk in (2, 10):
        value, found = loss_and_gradient(model, data, parameters, rows, chunk=chunk)
        assert value == pytest.approx(loss.item())
        torch.testing.assert_close(found, wanted)
    _, twice = loss_and_gradient(model, data, parameters, rows, weights=torch.tensor([2.0, 2, 2]))
    torch.testing.assert_close(twice, 2 * wanted)


H = torch.tensor([3.0, 4.0, 0.0, 0.0], dtype=torch.float64)
F = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
S = torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64)


def test_average_is_the_weighted_mean_of_two_models() -> None:
    theta = torch.tensor([0.3, -0.2, 0.5, 1.0], dtype=torch.float64)
    h, d = H / 5, (F / 2**0.5).clamp_min(1e-6)
    wanted = (0.75 * d * theta + 0.25 * h * (theta - 0.2 * S)) / (0.75 * d + 0.25 * h)
    torch.testing.assert_close(theta + diagonal.average(H, F, S, 0.2, 0.25), wanted)
    # what matters to the component alone moves by delta, what does not matter to it stays
    found = diagonal.average(H, F, S, 0.2, 0.25)
    assert found[0].item() == pytest.approx(-0.2, rel=1e-4)
    assert 0 < found[1].item() < 0.15
    assert (found[2:] == 0).all()


def test_lengths_of_component_and_fisher_do_not_matter() -> None:
    a = diagonal.average(H, F, S, 0.2, 0.25)
    torch.testing.assert_close(diagonal.average(7 * H, 0.1 * F, S, 0.2, 0.25), a)


def test_literal_guard_takes_the_minimum_and_no_importance_does_not_move() -> None:
    found = diagonal.average(H, F, S, 0.2, 0.25, guard=diagonal.LITERAL)
    # d is 0 or 1e-6: both coordinates of the component move by nearly delta
    torch.testing.assert_close(found[:2], -0.2 * S[:2], rtol=1e-4, atol=0)
    assert found[3] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0 * H, F, S, 0.1, 0.5), "component is zero"),
        ((H, 0 * F, S, 0.1, 0.5), "Fisher is zero"),
        ((-H, F, S, 0.1, 0.5), "negative"),
        ((H * torch.nan, F, S, 0.1, 0.5), "NaN"),
        ((H, F[:3], S, 0.1, 0.5), r"\[m\]"),
        ((H, F, S, 0.0, 0.5), "delta > 0"),
        ((H, F, S, 0.1, 1.0), "share"),
    ],
)
def test_bad_averages_are_refused(arguments, words) -> None:
    with pytest.raises(ValueError, match=words):
        diagonal.average(*arguments)


def rising(delta: float, share: float) -> float:
    return delta**2 * share


@pytest.mark.parametrize("seed", range(20))
def test_search_ends_in_range_or_nearer(seed) -> None:
    found = diagonal.search(rising, generator=draw(seed))
    assert found.in_range == (0.02 <= found.kl <= 0.1)
    assert found.kl == rising(found.delta, found.share)
    assert 0.035 <= found.share <= 0.965
    assert 1e-4 <= found.delta <= 1 + 1e-12
    first = found.tried[0][2]
    assert found.in_range
    assert min(first, 0.02) <= found.kl <= max(first, 0.1)  # never to the other side


def test_search_moves_half_way_to_the_bound_lambda_first() -> None:
    found = diagonal.search(rising, generator=draw(0), wanted=(5, 6), n_moves=2)
    (d0, l0, _), *rest = found.tried
    assert [t[:2] for t in rest] == [
        pytest.approx((d0, (l0 + 0.965) / 2)),
        pytest.approx((math.sqrt(d0), (l0 + 0.965) / 2)),  # half-way to log 1
    ]


def test_search_halves_moves_that_go_too_far() -> None:
    def by_share(delta: float, share: float) -> float:
        return share

    start = diagonal.search(by_share, generator=draw(0), wanted=(2, 3), n_moves=1).tried[0][1]
    step = (0.965 - start) / 2
    wanted = (start + step / 5, start + step / 3)
    found = diagonal.search(by_share, generator=draw(0), wanted=wanted)
    shares = [t[1] for t in found.tried]
    assert shares == pytest.approx([start, start + step, start + step / 2, start + step / 4])
    assert found.in_range


def test_search_says_where_it_ends_if_the_range_is_out_of_reach() -> None:
    found = diagonal.search(lambda d, s: 1e-9 * d * s, generator=draw(0))
    assert not found.in_range
    assert found.share > 0.9
    assert found.delta > 0.9
    assert not diagonal.bisect(lambda d, s: 1e-9).in_range


def test_bisection_ends_in_range() -> None:
    found = diagonal.bisect(rising, wanted=(0.0199, 0.02))
    assert found.in_range
    assert 0.0199 <= found.delta**2 * 0.5 <= 0.02


def test_bad_searches_are_refused() -> None:
    with pytest.raises(ValueError, match="ranges"):
        diagonal.bisect(rising, wanted=(0.1, 0.02))
    with pytest.raises(ValueError, match="ranges"):
        diagonal.search(rising, generator=draw(0), deltas=(0.0, 1.0))
    with pytest.raises(ValueError, match="NaN"):
        diagonal.bisect(lambda d, s: math.nan)


def test_planted_diagonal_components_are_selective() -> None:
    """A linear model whose groups of examples use one block of inputs each."""
    r, g = 3, draw(4)
    group = torch.arange(N) % r
    x = 0.1 * torch.randn(N, D, generator=g, dtype=torch.float64)
    for k in range(r):
        x[group == k, 3 * k : 3 * k + 3] += 1
    linear = nn.Linear(D, C).double()
    with torch.no_grad():
        linear.weight.copy_(torch.randn(C, D, generator=g) * 0.3)
        linear.bias.zero_()
    y = torch.randint(0, C, (N,), generator=g)
    h = torch.stack([looped_fisher(linear, x[group == k]) for k in range(r)])
    parameters = parameters_of(linear)
    dataset = diagonal.dataset_fisher(linear, (x, y), parameters)
    w = nn.functional.one_hot(group, r).double()
    kept = torch.arange(h.shape[1])
    before = linear.weight.detach().clone()
    for generator in (None, draw(5)):
        found = diagonal.measure_diagonal(
            linear,
            (x, y),
            h,
            kept,
            parameters,
            dataset,
            top=concept_search.top_examples(w, 20),
            baseline=torch.arange(N),
            generator=generator,
        )
        assert all(f.in_range for f in found.found)
        kl = found.selectivity.kl_top[:, 0, 0].mean(1)
        torch.testing.assert_close(kl, torch.tensor([f.kl for f in found.found]).double())
        assert (found.selectivity.ratio() > 1).all()
        assert torch.equal(linear.weight, before)
    # a step against the loss lowers it on the examples that it was made for
    top = concept_search.top_examples(w, 20)[0]
    _, gradient = loss_and_gradient(linear, (x, y), parameters, top)
    change = diagonal.average(h[0], dataset, gradient.sign(), 1e-3, 0.5)
    assert change @ gradient < 0
    assert log_probabilities(linear, x, top).shape == (20, C)
