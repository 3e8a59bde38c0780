"""Guided perturbations: directions, exact restoration, divergences against the Fisher's."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import Tensor, nn

from lib.npeff import concept_search, perturb, selectivity
from lib.npeff.divergence import FORWARD, REVERSE, divergences, measured_kl

N, D, C = 240, 12, 3


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def components(r: int = 5, m: int = 40, seed: int = 0, dtype=torch.float64) -> Tensor:
    """Some pairs alike, so that rejection leaves some out."""
    g = torch.randn(r, m, generator=draw(seed), dtype=dtype)
    g[1] = g[0] + 0.3 * g[1]
    return g * torch.arange(1, r + 1)[:, None]


def parameters_of(model: nn.Module) -> perturb.Parameters:
    return tuple((name, tuple(w.shape)) for name, w in model.named_parameters())


ONE = (("w", (40,)),)


def make(g: Tensor, **options) -> perturb.Directions:
    m = g.shape[-1]
    return perturb.directions(g, torch.arange(m), (("w", (m,)),), **options)


def test_directions_equal_the_loop_of_the_paper() -> None:
    g = components()
    found = make(g, tau=0.2)
    unit = g / g.norm(dim=1, keepdim=True)
    for j in range(len(g)):
        u = unit[j].clone()
        for k in range(len(g)):
            if k != j and (unit[j] @ unit[k]).abs() <= 0.2:
                u -= (u @ unit[k]) * unit[k]
        torch.testing.assert_close(found.unit[j], u / u.norm())
    assert found.rejected.any()
    assert not found.rejected[0, 1]


def test_directions_are_unit_and_their_reported_cosines_true() -> None:
    g = components()
    for rejection in (perturb.SEQUENTIAL, perturb.EXACT):
        found = make(g, rejection=rejection)
        unit = g / g.norm(dim=1, keepdim=True)
        torch.testing.assert_close(found.unit.norm(dim=1), torch.ones(5, dtype=g.dtype))
        torch.testing.assert_close(found.cosines, found.unit @ unit.T)
        torch.testing.assert_close(found.change(2, 0.1).norm().item(), 0.1)


def test_exact_rejection_is_orthogonal_to_all_and_sequential_is_not() -> None:
    g = components()
    assert make(g, rejection=perturb.EXACT).worst.max() < 1e-12
    assert make(g).worst.max() > 1e-3


def test_a_single_rejected_component_has_cosine_zero() -> None:
    found = make(components(3)[1:])
    assert found.rejected.sum() == 2
    assert found.worst.max() < 1e-12


def test_no_tau_leaves_the_components() -> None:
    g = components()
    found = make(g, tau=None)
    torch.testing.assert_close(found.unit, g / g.norm(dim=1, keepdim=True))
    assert not found.rejected.any()


def test_column_blocks_change_nothing(monkeypatch) -> None:
    whole = make(components())
    monkeypatch.setattr(perturb, "COLUMNS", 7)
    torch.testing.assert_close(make(components()).unit, whole.unit)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda g: g * torch.tensor([1, 1, 0, 1, 1])[:, None], r"\[2\] are zero"),
        (lambda g: g * torch.nan, "NaN"),
        (lambda g: g[0], "components"),
        (lambda g: torch.cat([g[2:], g[2:].sum(0, keepdim=True)]), "span"),
    ],
)
def test_bad_components_are_refused(change, words) -> None:
    with pytest.raises(ValueError, match=words):
        make(change(components()), tau=0.9, rejection=perturb.EXACT)


def test_unknown_rejection_tau_and_positions_are_refused() -> None:
    g = components()
    with pytest.raises(ValueError, match="rejection"):
        make(g, rejection="none")
    with pytest.raises(ValueError, match="tau"):
        make(g, tau=1.0)
    with pytest.raises(ValueError, match="ascending"):
        perturb.directions(g, torch.arange(40).flip(0), ONE)
    with pytest.raises(ValueError, match="ascending"):
        perturb.directions(g, torch.arange(1, 41), ONE)


def test_random_directions_are_unit_on_the_support_and_reproducible() -> None:
    support = torch.arange(10) % 2 == 0
    a, b = (perturb.random_directions(support, 3, draw(1)) for _ in range(2))
    assert torch.equal(a, b)
    assert (a[:, ~support] == 0).all()
    torch.testing.assert_close(a.norm(dim=1), torch.ones(3))


# a network


@pytest.fixture
def tanh_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(D, 6), nn.Tanh(), nn.Dropout(), nn.Linear(6, C)).double()


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(N, D, generator=draw(2), dtype=torch.float64)
    return x, torch.randint(0, C, (N,), generator=draw(3))


def bits(model: nn.Module) -> list[Tensor]:
    return [w.detach().clone() for w in model.parameters()]


def test_parameters_are_moved_within_and_restored_to_the_bit(tanh_net) -> None:
    before, where = bits(tanh_net), [w.data_ptr() for w in tanh_net.parameters()]
    parameters = parameters_of(tanh_net)[2:]  # a block that is not the first
    change = torch.randn(perturb.n_positions(parameters), dtype=torch.float64) * 1e-3
    with perturb.perturbed(tanh_net, change, parameters):
        inside = bits(tanh_net)
    moved = torch.cat([(a - b).flatten() for a, b in zip(inside, before, strict=True)])
    torch.testing.assert_close(moved[-len(change) :], change)
    assert (moved[: -len(change)] == 0).all()
    assert all(torch.equal(a, b) for a, b in zip(bits(tanh_net), before, strict=True))
    assert where == [w.data_ptr() for w in tanh_net.parameters()]


def test_parameters_are_restored_after_an_exception(tanh_net) -> None:
    before, parameters = bits(tanh_net), parameters_of(tanh_net)
    change = torch.ones(perturb.n_positions(parameters)) / 3
    with pytest.raises(RuntimeError, match="half-way"):  # noqa: SIM117
        with perturb.perturbed(tanh_net, change, parameters):
            raise RuntimeError("half-way")
    assert all(torch.equal(a, b) for a, b in zip(bits(tanh_net), before, strict=True))


def test_another_models_change_is_refused(tanh_net) -> None:
    with (
        pytest.raises(ValueError, match="another model"),
        perturb.perturbed(tanh_net, torch.zeros(4), (("1.weight", (4,)),)),
    ):
        pass
    for change in (torch.zeros(4), torch.full((C,), torch.nan)):
        with (
            pytest.raises(ValueError, match="finite change"),
            perturb.perturbed(tanh_net, change, (("3.bias", (C,)),)),
        ):
            pass


def fisher_rows(model: nn.Module, x: Tensor) -> Tensor:
    """A ``[n, C, m]`` with ``F_i = A_i^T A_i``, by a loop."""
    rows = []
    for one in x:
        log_p = model(one[None]).log_softmax(1)[0]
        p = log_p.detach().exp()
        grads = [
            torch.autograd.grad(log_p[c], list(model.parameters()), retain_graph=True)
            for c in range(len(p))
        ]
        rows.append(
            torch.stack(
                [p[c].sqrt() * torch.cat([g.flatten() for g in grads[c]]) for c in range(len(p))]
            )
        )
    return torch.stack(rows)


def test_kl_approaches_half_of_the_fisher_form_linearly(tanh_net, data) -> None:
    tanh_net.eval()
    x, y = data[0][:20], data[1][:20]
    rows = fisher_rows(tanh_net, x)
    u = torch.randn(rows.shape[2], generator=draw(4), dtype=torch.float64)
    u /= u.norm()
    errors = []
    for norm in (1e-2, 1e-3, 1e-4):
        kl = measured_kl(
            tanh_net, (x, y), norm * u[None], parameters_of(tanh_net), torch.arange(20)
        )[0]
        form = (rows @ (norm * u)).square().sum(1) / 2
        errors.append(((kl - form).abs().sum(1) / form.sum()).tolist())
    for kind in (FORWARD, REVERSE):
        a, b, c = (e[kind] for e in errors)
        assert a < 0.2
        # third order: the relative error is proportional to the norm
        assert 7 < a / b < 13
        assert 7 < b / c < 13


def test_prediction_of_a_complete_decomposition_is_the_fisher_form(tanh_net, data) -> None:
    """With F_i written out as components of its own the prediction is exact."""
    tanh_net.eval()
    rows = fisher_rows(tanh_net, data[0][:4])
    g = rows.flatten(0, 1)  # [4 C, m]
    norms = torch.linalg.matrix_norm(rows @ rows.mT)
    w = torch.eye(4, dtype=torch.float64).repeat_interleave(C, 1) / norms[:, None]
    changes = torch.randn(2, g.shape[1], generator=draw(5), dtype=torch.float64)
    found = selectivity.predicted_kl(w, norms, g, changes)
    wanted = torch.einsum("ncm,sm->snc", rows, changes).square().sum(2) / 2
    torch.testing.assert_close(found, wanted)
    squares = rows.square().sum(1)
    diagonal = selectivity.predicted_kl(
        torch.eye(4), torch.ones(4), squares, changes, kind="diagonal"
    )
    torch.testing.assert_close(diagonal, changes.square() @ squares.T / 2)


def test_divergences_equal_their_definition_and_are_zero_for_equal_ones() -> None:
    p = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.3, 0.5]], dtype=torch.float64)
    q = torch.tensor([[0.25, 0.5, 0.25], [0.2, 0.3, 0.5]], dtype=torch.float64)
    forward, reverse = divergences(p.log(), q.log())
    ln2 = torch.tensor(2.0, dtype=torch.float64).log()
    torch.testing.assert_close(forward[0], 0.5 * ln2 - 0.25 * ln2)
    torch.testing.assert_close(reverse[0], 0.5 * ln2 - 0.25 * ln2)
    assert forward[1] == 0
    assert reverse[1] == 0


# a linear softmax model with planted components


@pytest.fixture(scope="module")
def planted() -> dict:
    """Groups of examples with one block of inputs each, and noise everywhere.

    The component of a group is the leading eigenvector of its mean Fisher.
    """
    r, g = 4, draw(6)
    group = torch.arange(N) % r
    x = 0.1 * torch.randn(N, D, generator=g, dtype=torch.float64)
    for k in range(r):
        size = (int((group == k).sum()), D // r)
        x[group == k, 3 * k : 3 * k + 3] += 1 + torch.rand(size, generator=g)
    model = nn.Linear(D, C).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(C, D, generator=g) * 0.5)
        model.bias.zero_()
    rows = fisher_rows(model, x)
    norms = torch.linalg.matrix_norm(rows @ rows.mT)
    comps, w = [], torch.zeros(N, r)
    for k in range(r):
        mine = rows[group == k].flatten(0, 1)
        comps.append(torch.linalg.svd(mine, full_matrices=False)[2][0])
        w[group == k, k] = 1
    parameters = parameters_of(model)
    m = perturb.n_positions(parameters)
    found = perturb.directions(torch.stack(comps), torch.arange(m), parameters)
    y = model(x).argmax(1)
    return {"model": model, "data": (x, y), "directions": found, "w": w, "norms": norms}


def measured(planted: dict, **options) -> selectivity.Selectivity:
    settings = {
        "norm": 0.1,
        "top": concept_search.top_examples(planted["w"], 30),
        "baseline": selectivity.baseline_examples(N, draw(7), 100),
    }
    model = options.pop("model", planted["model"])
    data = options.pop("data", planted["data"])
    return selectivity.measure(model, data, planted["directions"], **(settings | options))


def test_planted_components_are_selective(planted) -> None:
    found = measured(planted)
    for kind in (FORWARD, REVERSE):
        assert (found.ratio(kind) > 1).all()
        assert (found.ratio(kind) == found.ratios(kind).amax(1)).all()
    norm = selectivity.norm_ratios(planted["norms"], found.top, found.baseline)
    random = selectivity.random_ratios(
        planted["model"],
        planted["data"],
        planted["directions"],
        norm=0.1,
        top=found.top,
        baseline=found.baseline,
        n_draws=9,
        generator=draw(8),
    )
    summary = selectivity.summarise(found.ratio(), norm, random)
    assert summary.n == 4
    assert (found.ratio() > norm).all()
    assert (found.ratio() > random.amax(1)).all()
    assert summary.median_kl > 2 * summary.median_random


def test_measure_equals_one_component_at_a_time(planted) -> None:
    found = measured(planted)
    x, y = planted["data"]
    parameters = planted["directions"].parameters
    for j, s in itertools.product(range(4), range(2)):
        change = planted["directions"].change(j, 0.1) * (1, -1)[s]
        kl = measured_kl(planted["model"], (x, y), change[None], parameters, found.top[j])
        torch.testing.assert_close(found.kl_top[j, s], kl[0])
        kl = measured_kl(planted["model"], (x, y), change[None], parameters, found.baseline)
        torch.testing.assert_close(found.kl_baseline[j, s], kl[0].mean(1))
        moved = copy.deepcopy(planted["model"])
        with torch.no_grad():
            moved.weight += change[: C * D].view(C, D)
            moved.bias += change[C * D :]
            right = (moved(x).argmax(1) == y).double()
        assert found.accuracy_top[j, 1 + s] == right[found.top[j]].mean()
        assert found.accuracy_baseline[j, 1 + s] == right[found.baseline].mean()
    assert (found.accuracy_top[:, 0] == 1).all()  # the labels are the model's own


def test_random_ratios_equal_their_definition(planted) -> None:
    base = selectivity.baseline_examples(N, draw(7), 100)
    top = concept_search.top_examples(planted["w"], 30)
    d = planted["directions"]
    found = selectivity.random_ratios(
        planted["model"],
        planted["data"],
        d,
        norm=0.1,
        top=top,
        baseline=base,
        n_draws=2,
        generator=draw(8),
    )
    g = draw(8)
    for k in range(2):
        unit = perturb.random_directions(torch.ones(d.unit.shape[1], dtype=torch.bool), 1, g)
        change = 0.1 * unit[0].double()
        both = torch.stack([change, -change])
        of = lambda rows, both=both: measured_kl(  # noqa: E731
            planted["model"], planted["data"], both, d.parameters, rows
        )[:, FORWARD].mean(1)
        for j in range(4):
            torch.testing.assert_close(found[j, k], (of(top[j]) / of(base)).amax())


def test_chunks_change_nothing(planted) -> None:
    a, b = measured(planted), measured(planted, chunk=7)
    torch.testing.assert_close(a.kl_top, b.kl_top)
    torch.testing.assert_close(a.kl_baseline, b.kl_baseline)


def test_training_mode_is_left_as_it_was_and_not_used(tanh_net, data) -> None:
    parameters = parameters_of(tanh_net)
    change = torch.ones(1, perturb.n_positions(parameters)) * 0.01
    tanh_net.train()
    tanh_net[0].eval()
    a = measured_kl(tanh_net, data, change, parameters, torch.arange(N))
    assert [m.training for m in tanh_net] == [False, True, True, True]
    tanh_net.eval()
    assert torch.equal(a, measured_kl(tanh_net, data, change, parameters, torch.arange(N)))


def test_parameters_are_restored_when_a_forward_pass_fails(planted) -> None:
    class Fails(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 3:
                raise RuntimeError("out of memory")
            return super().forward(x)

    model = Fails(D, C).double()
    before = bits(model)
    with pytest.raises(RuntimeError, match="out of memory"):
        measured(planted, model=model)
    assert all(torch.equal(a, b) for a, b in zip(bits(model), before, strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"norm": 0.0}, "norm above 0"),
        ({"norm": float("nan")}, "norm above 0"),
        ({"norm": 1e308}, "finite change|NaN"),
        ({"top": torch.full((4, 3), N)}, "indices"),
        ({"top": torch.zeros(3, 3, dtype=torch.int64)}, r"\[4, T\]"),
        ({"baseline": torch.tensor([-1])}, "indices"),
        ({"chunk": 0}, "chunk"),
    ],
)
def test_bad_requests_are_refused(planted, options, words) -> None:
    with pytest.raises(ValueError, match=words):
        measured(planted, **options)


def test_inputs_with_nan_are_refused_by_their_example(planted) -> None:
    x, y = planted["data"]
    x = x.clone()
    x[selectivity.baseline_examples(N, draw(7), 100)[0]] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        measured(planted, data=(x, y))


def test_baseline_is_random_without_repeats_or_everything() -> None:
    a = selectivity.baseline_examples(1000, draw(0), 100)
    assert len(a.unique()) == 100
    assert a.max() > 500
    assert torch.equal(selectivity.baseline_examples(50, draw(0), 100), torch.arange(50))


def test_summary_leaves_out_what_is_undefined() -> None:
    kl = torch.tensor([4.0, 8.0, torch.nan, 2.0, torch.inf])
    norm, random = torch.ones(5), torch.ones(5, 3)
    found = selectivity.summarise(kl, norm, random)
    assert (found.n, found.n_undefined, found.median_kl) == (3, 2, 4)
    with pytest.raises(ValueError, match="no component"):
        selectivity.summarise(kl[2:3], norm[:1], random[:1])
