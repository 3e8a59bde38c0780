"""Feature attribution on models whose answer is known in closed form; exact Shapley values."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from lib import models
from lib.attribution import coalitions, feature_axioms, feature_methods, known_answer
from lib.attribution.feature_methods import METHODS, RANDOMISED, Options, attribute

ADDITIVE = ("input x gradient", "integrated gradients", "KernelSHAP", "Shapley sampling")
BASELINE = torch.tensor([0.5, -1.0, 0.0, 2.0, 0.25], dtype=torch.float64)


def rows(n: int = 3, d: int = 5, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Formula(nn.Module):
    """One output from a formula of the columns."""

    def __init__(self, f) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)[:, None]


PRODUCT = Formula(lambda x: x[:, 0] * x[:, 1])


@pytest.fixture
def linear() -> nn.Module:
    return models.build("mlp", torch.Generator().manual_seed(1), widths=(5, 3)).double().eval()


@pytest.mark.parametrize("method", ADDITIVE)
def test_on_a_linear_model_weight_times_difference(method: str, linear) -> None:
    x = rows()
    phi = attribute(method, linear, x, 2, baseline=BASELINE, options=Options(n_samples=400))
    wanted = (x - BASELINE) * linear.out.weight[2]
    torch.testing.assert_close(phi, wanted, rtol=1e-4, atol=1e-4)
    exact = coalitions.exact_shapley(linear, x, 2, baseline=BASELINE)
    torch.testing.assert_close(exact, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["gradient", "SmoothGrad"])
def test_on_a_linear_model_the_weight(method: str, linear) -> None:
    phi = attribute(method, linear, rows(), 1, baseline=0.0)
    torch.testing.assert_close(phi, linear.out.weight[1].expand(3, -1), rtol=1e-6, atol=1e-9)


def test_a_product_is_shared_evenly_by_those_who_share() -> None:
    x = torch.tensor([[2.0, 3.0], [-1.0, 4.0]], dtype=torch.float64)
    half = (x[:, 0] * x[:, 1])[:, None].expand(-1, 2) / 2
    torch.testing.assert_close(coalitions.exact_shapley(PRODUCT, x, 0, baseline=0.0), half)
    path = attribute("integrated gradients", PRODUCT, x, 0, baseline=0.0)
    torch.testing.assert_close(path, half, rtol=1e-6, atol=1e-6)
    # the gradient's formula credits each factor with the whole product: twice too much in sum
    whole = attribute("input x gradient", PRODUCT, x, 0, baseline=0.0)
    torch.testing.assert_close(whole, 2 * half)


def test_targets_may_differ_by_row(linear) -> None:
    x, target = rows(), torch.tensor([2, 0, 1])
    phi = attribute("gradient", linear, x, target, baseline=0.0)
    torch.testing.assert_close(phi, linear.out.weight[target])


@pytest.mark.parametrize("method", [name for name in METHODS if name != "Grad-CAM"])
def test_an_ignored_feature_gets_nothing(method: str) -> None:
    model = feature_axioms.PlantedNetwork(torch.Generator().manual_seed(3))
    x = rows(d=feature_axioms.N_FEATURES)
    phi = attribute(method, model, x, 0, baseline=0.0, options=Options(n_samples=1000))
    rest = phi[:, :-1].abs().amax()
    # LIME and KernelSHAP regress on drawn coalitions: nothing but for their sampling error
    tolerance = 0.05 if method in ("LIME", "KernelSHAP") else 1e-12
    assert phi[:, -1].abs().max() <= tolerance * rest


def test_guided_backpropagation_lets_no_negative_signal_pass() -> None:
    class TwoRectifiers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.ReLU(), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.a(x[:, :1]) - 3 * self.b(x[:, 1:])

    x = torch.tensor([[1.0, 1.0]])
    for method, wanted in (("gradient", [2.0, -3.0]), ("guided backpropagation", [2.0, 0.0])):
        assert attribute(method, TwoRectifiers(), x, 0, baseline=0.0).tolist() == [wanted]


def test_grad_cam_weighs_maps_by_their_mean_gradient() -> None:
    conv = nn.Conv2d(1, 2, 1, bias=False)
    conv.weight.data[:, 0, 0, 0] = torch.tensor([1.0, -1.0])
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(8, 1, bias=False))
    model[2].weight.data[:] = torch.tensor([[1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0]])
    x = torch.tensor([[[[1.0, -2.0], [0.0, 4.0]]]])
    cam = attribute("Grad-CAM", model, x, 0, baseline=0.0, options=Options(layer="0"))
    # mean gradients 1 and 2 on the maps x and -x: relu(x - 2x)
    torch.testing.assert_close(cam, (-x).clamp(min=0))


@pytest.mark.parametrize("method", METHODS)
def test_rows_do_not_depend_on_their_company(method: str) -> None:
    model = models.build("cnn", torch.Generator().manual_seed(0), size=4, channels=(2, 4)).eval()
    x = torch.randn(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    y = torch.tensor([0, 1, 2, 3, 4])
    options = Options(layer="conv2", n_samples=40, n_orders=3, n_smooth=4, n_steps=8, chunk=3)
    state = torch.random.get_rng_state()
    whole = attribute(method, model, x, y, baseline=0.0, options=options, seed=7)
    assert torch.equal(state, torch.random.get_rng_state())
    first = attribute(method, model, x[:1], y[:1], baseline=0.0, options=options, seed=7)
    torch.testing.assert_close(whole[:1], first, rtol=1e-4, atol=1e-5)
    again = attribute(method, model, x, y, baseline=0.0, options=options, seed=7)
    assert torch.equal(whole, again)
    other = attribute(method, model, x, y, baseline=0.0, options=options, seed=8)
    assert torch.equal(whole, other) == (method not in RANDOMISED)


def test_group_scores_are_spread_evenly_and_sum_to_the_rise(linear) -> None:
    groups = torch.tensor([0, 0, 1, 1, 1])
    x = rows()
    options = Options(groups=groups, n_samples=100)
    phi = attribute("KernelSHAP", linear, x, 0, baseline=BASELINE, options=options)
    assert torch.equal(phi[:, 0], phi[:, 1])
    assert torch.equal(phi[:, 2], phi[:, 4])
    wanted = coalitions.exact_shapley(linear, x, 0, baseline=BASELINE, groups=groups)
    torch.testing.assert_close(coalitions.group_sums(phi, groups), wanted, rtol=1e-3, atol=1e-3)


def test_patches_cover_an_image_evenly() -> None:
    groups = feature_methods.patches((3, 8, 8), 3, 3)
    assert groups.shape == (3, 8, 8)
    assert torch.equal(groups[0], groups[2])
    # sides of 3, 3 and 2 pixels, patches numbered row by row
    counts = torch.bincount(groups[0].flatten())
    assert sorted(counts.tolist()) == [4, 6, 6, 6, 6, 9, 9, 9, 9]
    assert groups[0, 0, 0] == 0
    assert groups[0, -1, -1] == 8
    assert (groups[0].diff(dim=1) >= 0).all()


# --- exact Shapley values


def test_glove_game() -> None:
    """Two left gloves, one right: the right one is worth four times a left one."""
    member = coalitions.coalitions(3)
    value = torch.minimum(member[:, :2].sum(1), member[:, 2].long()).double()
    wanted = torch.tensor([1 / 6, 1 / 6, 4 / 6], dtype=torch.float64)
    torch.testing.assert_close(coalitions.shapley(value), wanted)


def test_shapley_values_are_means_over_orders() -> None:
    values = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = torch.zeros(4, dtype=torch.float64)
    orders = list(permutations(range(4)))
    for order in orders:
        before = 0
        for player in order:
            wanted[player] += (values[before | 1 << player] - values[before]) / len(orders)
            before |= 1 << player
    torch.testing.assert_close(coalitions.shapley(values), wanted)


def test_renumbering_features_renumbers_values() -> None:
    model = feature_axioms.PlantedNetwork(torch.Generator().manual_seed(5))
    x, d = rows(d=feature_axioms.N_FEATURES), feature_axioms.N_FEATURES
    order = torch.randperm(d, generator=torch.Generator().manual_seed(0))
    plain = coalitions.exact_shapley(model, x, 0, baseline=0.0)
    moved = coalitions.exact_shapley(model, x, 0, baseline=0.0, groups=order)
    torch.testing.assert_close(moved[:, order], plain)


def test_result_does_not_depend_on_the_chunk() -> None:
    model = feature_axioms.PlantedNetwork(torch.Generator().manual_seed(5))
    x = rows(d=feature_axioms.N_FEATURES)
    a, b = (coalitions.exact_shapley(model, x, 0, baseline=0.0, chunk=c) for c in (7, 512))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# --- axioms


@pytest.fixture(scope="module")
def guarantees() -> dict[str, feature_axioms.Guarantees]:
    methods = ["gradient", "input x gradient", "guided backpropagation", "integrated gradients"]
    found = feature_axioms.axioms(
        n_networks=3, n_inputs=4, methods=methods, options=Options(n_steps=400, chunk=500), seed=9
    )
    return {g.method: g for g in found}


def test_exact_values_keep_every_axiom(guarantees) -> None:
    assert guarantees[feature_axioms.EXACT].worst < 1e-10
    assert guarantees[feature_axioms.EXACT].distance.max() == 0


def test_integrated_gradients_keep_every_axiom_up_to_the_path_sum(guarantees) -> None:
    found = guarantees["integrated gradients"]
    assert max(found.dummy.max(), found.symmetry.max(), found.linearity.max()) < 1e-10
    assert found.completeness.mean() < 0.02
    assert (
        feature_axioms.path_error(50, n_networks=3, n_inputs=4, seed=9) > found.completeness.mean()
    )


def test_maps_of_gradients_are_not_complete_and_guided_ones_not_linear(guarantees) -> None:
    assert guarantees["input x gradient"].completeness.mean() > 0.1
    assert guarantees["gradient"].linearity.max() < 1e-10
    assert guarantees["guided backpropagation"].linearity.mean() > 0.1


def test_planted_network_ignores_the_dummy_and_the_order_of_the_pair() -> None:
    model = feature_axioms.PlantedNetwork(torch.Generator().manual_seed(2))
    x = rows(6, feature_axioms.N_FEATURES)
    changed, swapped = x.clone(), x.clone()
    changed[:, feature_axioms.DUMMY] += 5
    a, b = feature_axioms.PAIR
    swapped[:, [a, b]] = x[:, [b, a]]
    assert torch.equal(model(changed), model(x))
    torch.testing.assert_close(model(swapped), model(x))


def test_stability_of_a_linear_model_is_that_of_its_input() -> None:
    x, noise = rows(4), 0.01 * rows(4, seed=1)
    weight = rows(1, seed=2)[0]
    phi, moved = x * weight, (x + noise) * weight
    found = feature_axioms.sensitivity(phi, moved, noise @ weight, x @ weight)
    wanted = ((noise * weight).norm(dim=1) / (x * weight).norm(dim=1)) / (
        (noise @ weight).abs() / (x @ weight).abs()
    )
    torch.testing.assert_close(found, wanted)


# --- images with a known answer


@pytest.fixture(scope="module")
def planted() -> known_answer.Planted:
    return known_answer.draw(60, torch.Generator().manual_seed(77))


def test_built_network_depends_on_the_glyph_and_on_nothing_else(planted) -> None:
    network = known_answer.GlyphNetwork().eval()
    assert torch.equal(known_answer.relevant(network, planted.x, planted.y), planted.mask)
    assert (network(planted.x).argmax(1) == planted.y).all()
    phi = attribute("gradient", network, planted.x, planted.y, baseline=0.0)
    assert torch.equal(phi[:, 0] != 0, planted.mask)
    assert (known_answer.localisation(phi, planted.mask) == 1).all()


def test_built_network_does_not_see_changes_outside_the_glyph(planted) -> None:
    network = known_answer.GlyphNetwork().eval()
    outside = planted.x.masked_fill(~planted.mask[:, None], 0.0)
    own = torch.arange(len(planted.y)), planted.y
    torch.testing.assert_close(network(outside)[own], network(planted.x)[own])
    assert known_answer.kept_without_rest(network, planted, torch.Generator().manual_seed(0)) == 1


def test_random_maps_find_nothing(planted) -> None:
    noise = torch.rand(planted.x.shape, generator=torch.Generator().manual_seed(3))
    assert abs(known_answer.localisation(noise, planted.mask).mean() - 0.5) < 0.05


def test_glyphs_are_balanced_and_differ_at_every_shift() -> None:
    shapes = known_answer.glyphs()
    assert (shapes.sum(1) == 0).all()
    assert (shapes.sum(2) == 0).all()
    match = torch.nn.functional.conv2d(shapes[:, None], shapes[:, None], padding=3)
    own = match[range(len(shapes)), range(len(shapes)), 3, 3].clone()
    assert (own == 16).all()
    match[range(len(shapes)), range(len(shapes)), 3, 3] = 0
    assert match.max() < known_answer.SHARE * 16
