"""Coefficients of new examples, and expansion beside frozen components."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lib.npeff import nonnegative, store
from lib.npeff.coefficients import expand, fit_coefficients, fit_multiplicative
from lib.npeff.decomposition import Decomposition, explained
from lib.npeff.diagonal import decompose_diagonal
from lib.npeff.factorise import decompose


def mixtures(n: int, g: Tensor, seed: int) -> tuple[store.Fishers, Tensor]:
    """Normalised PEFs that are exact mixtures of ``g_j g_j^T``, and their coefficients."""
    r = len(g)
    generator = torch.Generator().manual_seed(seed)
    w = torch.rand(n, r, generator=generator, dtype=torch.float64)
    w *= torch.rand(n, r, generator=generator, dtype=torch.float64) < 0.5
    w[:, 0] += 0.1
    raw = store.from_dense(w.sqrt()[:, :, None] * g)
    return store.normalise(raw), w / raw.norms[:, None]


def components(r: int = 5, m: int = 40, seed: int = 0) -> Tensor:
    g = torch.randn(r, m, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.nn.functional.normalize(g)


def frozen(g: Tensor, fishers: store.Fishers, k: int | None = None) -> Decomposition:
    found = decompose(fishers, len(g), seed=0, steps=1)
    return replace(found, components=g, k=k or fishers.k)


@pytest.mark.parametrize("few", [0, 2**20])  # each row's part of the matrix, or all of it
@pytest.mark.parametrize("r", [3, 17])
@pytest.mark.parametrize("alike", [0.0, 1.0, 3.0])
def test_the_solver_agrees_with_a_loop_of_scipy(r: int, alike: float, few: int, monkeypatch):
    from scipy.optimize import nnls

    monkeypatch.setattr(nonnegative, "FEW_NUMBERS", few)
    generator = torch.Generator().manual_seed(r)
    basis = torch.randn(r, 60, generator=generator, dtype=torch.float64) + alike
    q = torch.nn.functional.normalize(basis) @ torch.nn.functional.normalize(basis).T
    b = torch.randn(300, r, generator=generator, dtype=torch.float64)
    half = np.linalg.cholesky(q.numpy())
    expected = [nnls(half.T, np.linalg.solve(half, row))[0] for row in b.numpy()]
    found = nonnegative.solve(q, b)
    torch.testing.assert_close(found, torch.tensor(np.stack(expected)), rtol=1e-8, atol=1e-9)


def test_batches_of_systems_change_nothing(monkeypatch):
    monkeypatch.setattr(nonnegative, "FEW_NUMBERS", 0)
    g = components(r=6)
    b = torch.randn(500, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = nonnegative.solve(g @ g.T, b)
    monkeypatch.setattr(nonnegative, "BATCH_NUMBERS", 1)  # 64 rows at a time
    assert torch.equal(nonnegative.solve(g @ g.T, b), whole)


@pytest.mark.parametrize("few", [0, 2**20])
@pytest.mark.parametrize("n", [20, 600])  # one system after the other, and all together
def test_twice_the_same_component_ends_at_an_optimum(n: int, few: int, monkeypatch):
    monkeypatch.setattr(nonnegative, "FEW_NUMBERS", few)
    basis = torch.randn(6, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    basis[5] = 3 * basis[0]
    q = basis @ basis.T
    b = torch.randn(n, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) @ q
    w = nonnegative.solve(q, b)
    slope = w @ q - b
    assert (w >= 0).all()
    assert (slope > -1e-6 * b.abs().amax()).all()
    assert (w * slope).abs().max() < 1e-6 * (w * b).abs().max()


def test_components_that_are_zero_or_twice_there_do_no_harm():
    q = torch.eye(4, dtype=torch.float64)
    q[3, 3] = 0
    q[0, 1] = q[1, 0] = 1
    b = torch.tensor([[1.0, 1.0, -2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = nonnegative.solve(q, b)
    assert found[0, :2].sum().item() == pytest.approx(1)
    assert found[0, 2:].tolist() == [0, 0]
    assert found[1].tolist() == [0, 0, 0, 0]


def test_exact_mixtures_give_their_coefficients_back():
    g = components()
    fishers, w = mixtures(100, g, 1)
    found = fit_coefficients(frozen(g, fishers), fishers)
    torch.testing.assert_close(found, w, rtol=1e-6, atol=1e-9)
    assert 1 - explained(expand(frozen(g, fishers), fishers, 0, seed=0)) < 1e-6
    slow = fit_multiplicative(frozen(g, fishers), fishers, seed=0, tol=1e-7, max_steps=5000)
    torch.testing.assert_close(slow, w, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", [store.LOW_RANK, store.DIAGONAL])
def test_chunks_of_examples_change_nothing(kind: str):
    g = components().abs()
    if kind == store.LOW_RANK:
        fishers, _ = mixtures(20, g, 1)
    else:
        rows = torch.rand(20, 40, generator=torch.Generator().manual_seed(0)).double()
        fishers = store.normalise(store.from_dense(rows, kind=kind))
    whole = replace(frozen(g, mixtures(20, g, 1)[0], fishers.k), kind=kind)
    a, b = (fit_coefficients(whole, fishers, chunk=c) for c in (5, 100))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_entries_on_other_parameters_are_dropped():
    g = components()
    fishers, w = mixtures(20, g, 1)
    whole = frozen(g, fishers)
    kept = torch.arange(3, 33)
    some = replace(whole, components=g[:, kept], kept=kept)
    b = torch.stack([(g[:, kept] @ g[j, kept]).square() for j in range(5)])
    expected = nonnegative.solve((g[:, kept] @ g[:, kept].T).square(), w @ b)
    torch.testing.assert_close(fit_coefficients(some, fishers), expected, rtol=1e-8, atol=1e-9)
    with pytest.raises(ValueError, match="of the model and block"):
        fit_coefficients(replace(whole, parameters=(("other", (40,)),)), fishers)


def test_fishers_of_another_k_are_refused():
    g = components()
    fishers, _ = mixtures(20, g, 1)
    whole = frozen(g, fishers)
    fewer = store.truncate(fishers, 50)
    with pytest.raises(ValueError, match=r"want PEFs of K = 200 entries .* got K = 50"):
        fit_coefficients(whole, fewer)


def test_expansion_leaves_frozen_components_alone_and_lowers_the_loss():
    g = components(r=6)
    fishers, _ = mixtures(80, g, 1)
    general = frozen(g[:4], mixtures(80, g[:4], 2)[0], fishers.k)
    alone = expand(general, fishers, 0, seed=0)
    torch.testing.assert_close(alone.coefficients, fit_coefficients(general, fishers))
    found = expand(general, fishers, 2, seed=0, new_steps=20, steps=300)
    assert found.frozen == 4
    assert torch.equal(found.components[2:], general.components)
    assert found.loss < 0.01 * alone.loss
    assert (found.losses.diff() <= 1e-9 * found.losses[0]).all()
    cosines = torch.nn.functional.normalize(found.components[:2]) @ g[4:].T
    assert cosines.abs().amax(0).min() > 0.999


def test_an_expansion_has_the_same_bytes_again_and_after_a_break(tmp_path):
    g = components(r=6)
    fishers, _ = mixtures(60, g, 1)
    general = frozen(g[:4], mixtures(60, g[:4], 2)[0], fishers.k)
    options = {"seed": 0, "component_steps": 20, "new_steps": 10, "steps": 50}

    def cut(steps):
        for i in steps:
            if i == 77:
                raise KeyboardInterrupt
            yield i

    path, seen = tmp_path / "expansion", []
    with pytest.raises(KeyboardInterrupt):
        expand(general, fishers, 2, **options, checkpoint=path, progress=cut)
    first = expand(general, fishers, 2, **options)
    again = expand(general, fishers, 2, **options)
    resumed = expand(
        general, fishers, 2, **options, checkpoint=path, progress=lambda x: seen.extend(x) or x
    )
    assert seen[0] == 50
    for other in (again, resumed):
        for name in ("coefficients", "components", "losses", "loss_steps"):
            assert torch.equal(getattr(first, name), getattr(other, name)), name


def test_a_checkpoint_of_other_frozen_components_is_refused(tmp_path):
    g = components(r=6)
    fishers, _ = mixtures(60, g, 1)
    first = frozen(g[:4], mixtures(60, g[:4], 2)[0], fishers.k)
    second = replace(first, components=g[[5, 4, 3, 2]].clone())
    path = tmp_path / "expansion"
    expand(first, fishers, 2, seed=0, steps=60, checkpoint=path)
    with pytest.raises(ValueError, match="checkpoint"):
        expand(second, fishers, 2, seed=0, steps=60, checkpoint=path)


@pytest.mark.parametrize("kind", [store.LOW_RANK, store.DIAGONAL])
def test_raw_fishers_are_refused_where_components_are_of_normalised_ones(kind: str):
    rows = torch.rand(20, 2, 15, dtype=torch.float64) if kind == store.LOW_RANK else None
    raw = store.from_dense(torch.rand(20, 15).double() if rows is None else rows, kind=kind)
    method = decompose if kind == store.LOW_RANK else decompose_diagonal
    made = method(store.normalise(raw), 3, seed=0, steps=5)
    with pytest.raises(ValueError, match="want normalised PEFs"):
        fit_coefficients(made, raw)
    with pytest.raises(ValueError, match="want raw PEFs"):
        fit_coefficients(method(raw, 3, seed=0, steps=5, raw=True), store.normalise(raw))
