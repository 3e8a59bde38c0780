"""Factorisation of diagonal Fishers against scikit-learn, planted parts and checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lib.npeff import store
from lib.npeff.diagonal import decompose_diagonal
from lib.npeff.factorise import explained, unit


def sparse(n: int = 200, m: int = 600, dtype: torch.dtype = torch.float64) -> store.Fishers:
    generator = torch.Generator().manual_seed(0)
    parts = torch.rand(10, m, generator=generator) * (torch.rand(10, m, generator=generator) < 0.1)
    rows = torch.rand(n, 10, generator=generator).pow(3) @ parts
    rows += (
        0.3 * torch.rand(n, m, generator=generator) * (torch.rand(n, m, generator=generator) < 0.1)
    )
    return store.normalise(store.from_dense(rows.to(dtype), kind=store.DIAGONAL, k=min(100, m)))


def start(n: int, r: int, m: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.rand(*s, generator=generator, dtype=torch.float64) for s in ((n, r), (r, m)))


def sklearn_nmf(x: np.ndarray, w: Tensor, h: Tensor, solver: str, steps: int):
    from sklearn.decomposition import NMF

    fit = NMF(len(h), solver=solver, init="custom", tol=0, max_iter=steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = fit.fit_transform(x, W=w.numpy().copy(), H=h.numpy().copy())
    return found, fit.components_


def test_the_published_rule_is_that_of_scikit_learn():
    fishers = sparse()
    x = fishers.matrix().to_dense()
    w, h = start(200, 8, 600)
    found = decompose_diagonal(fishers, 8, seed=0, step="mu", steps=200, start=(w, h))
    theirs_w, theirs_h = sklearn_nmf(x.numpy(), w, h, "mu", 200)
    theirs = np.linalg.norm(x.numpy() - theirs_w @ theirs_h)
    ours = torch.linalg.norm(x - found.coefficients @ found.components)
    assert float(ours) == pytest.approx(theirs, rel=1e-6)
    assert float(ours) ** 2 == pytest.approx(found.loss, rel=1e-9)
    for a, b in ((found.coefficients, theirs_w), (found.components, theirs_h)):
        assert np.abs(a.numpy() - b).max() < 1e-3 * b.max()


def test_random_starts_end_where_those_of_scikit_learn_do():
    """To one in a hundred: local optima of one problem, from two starts each (check 10)."""
    from sklearn.decomposition import NMF

    fishers = sparse()
    x = fishers.matrix().to_dense().numpy()
    ours = [
        decompose_diagonal(fishers, 16, seed=seed, step="mu", steps=500).loss ** 0.5
        for seed in (0, 1)
    ]
    for seed in (0, 1):
        fit = NMF(16, solver="mu", init="random", random_state=seed, tol=0, max_iter=500)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fit.fit(x)
        assert ours == pytest.approx([fit.reconstruction_err_] * 2, rel=0.01)


def test_coordinate_descent_is_no_worse_than_that_of_scikit_learn_and_never_rises():
    fishers = sparse()
    x = fishers.matrix().to_dense()
    w, h = start(200, 8, 600)
    found = decompose_diagonal(fishers, 8, seed=0, steps=60, start=(w, h), log_every=1)
    theirs_w, theirs_h = sklearn_nmf(x.numpy(), w, h, "cd", 60)
    theirs = np.linalg.norm(x.numpy() - theirs_w @ theirs_h) ** 2
    assert found.loss <= 1.01 * theirs
    assert (found.losses.diff() <= 1e-12 * found.energy).all()
    assert float(found.coefficients.min()) >= 0
    assert float(found.components.min()) >= 0


def test_planted_parts_come_back():
    generator = torch.Generator().manual_seed(0)
    h = torch.rand(5, 60, generator=generator, dtype=torch.float64)
    h *= torch.arange(60) // 12 == torch.arange(5)[:, None]
    w = torch.rand(100, 5, generator=generator, dtype=torch.float64)
    w *= torch.rand(100, 5, generator=generator) < 0.5
    w[:5] = torch.eye(5)  # an example of each part alone: the parts are unique
    raw = store.from_dense(w @ h, kind=store.DIAGONAL)
    found = unit(decompose_diagonal(store.normalise(raw), 5, seed=0, restarts=3))
    assert 1 - explained(found) < 1e-6
    cosines = found.components @ torch.nn.functional.normalize(h).T
    assert cosines.amax(0).min() > 0.999


@pytest.mark.parametrize("step", ["hals", "mu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_of_columns_change_nothing_but_rounding(step: str, dtype: torch.dtype):
    found = [
        decompose_diagonal(sparse(dtype=dtype), 4, seed=0, step=step, steps=5, blocks=k)
        for k in (1, 3)
    ]
    for name in ("coefficients", "components"):
        a, b = (getattr(x, name) for x in found)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(a.max()))


@pytest.mark.parametrize("step", ["hals", "mu"])
def test_a_run_that_was_cut_short_goes_on_to_the_same_bytes(step: str, tmp_path: Path):
    fishers = sparse(n=40, m=100, dtype=torch.float32)
    options = {"seed": 0, "step": step, "steps": 90, "snapshot_every": 20}
    whole = decompose_diagonal(fishers, 4, **options)
    path = tmp_path / "run.safetensors"

    def cut(steps):
        for i in steps:
            if i == 77:
                raise KeyboardInterrupt
            yield i

    with pytest.raises(KeyboardInterrupt):
        decompose_diagonal(fishers, 4, **options, checkpoint=path, progress=cut)
    again = decompose_diagonal(fishers, 4, **options, checkpoint=path)
    for name in ("coefficients", "components", "losses", "loss_steps", "snapshots"):
        assert torch.equal(getattr(whole, name), getattr(again, name)), name
    with pytest.raises(ValueError, match="another decomposition: it differs in r"):
        decompose_diagonal(fishers, 3, **options, checkpoint=path)


@pytest.mark.parametrize("step", ["hals", "mu"])
def test_the_same_seed_gives_the_same_bytes(step: str):
    fishers = sparse(n=40, m=100, dtype=torch.float32)
    a, b, other = (
        decompose_diagonal(fishers, 4, seed=s, step=step, steps=10, blocks=3) for s in (3, 3, 4)
    )
    for name in ("coefficients", "components", "losses"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
        assert not torch.equal(getattr(a, name), getattr(other, name)), name


def test_examples_and_components_of_zeros_stay_zero():
    rows = torch.rand(20, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[4] = 0
    fishers = store.normalise(store.from_dense(rows, kind=store.DIAGONAL))
    w, h = start(20, 3, 30)
    w[:, 1], h[1] = 0, 0
    found = decompose_diagonal(fishers, 3, seed=0, steps=20, start=(w, h))
    assert (found.coefficients[4] == 0).all()
    assert (found.components[1] == 0).all()
    assert found.components.isfinite().all()


def test_what_cannot_be_factorised_is_refused():
    fishers = sparse(n=20, m=50)
    with pytest.raises(ValueError, match="1 <= r <= n = 20"):
        decompose_diagonal(fishers, 21, seed=0)
    negative = store.from_dense(-torch.rand(5, 7), kind=store.DIAGONAL)
    with pytest.raises(ValueError, match="nowhere negative"):
        decompose_diagonal(negative, 2, seed=0, raw=True)
    with pytest.raises(ValueError, match="want a start"):
        decompose_diagonal(fishers, 3, seed=0, start=start(20, 4, 50))
    with pytest.raises(ValueError, match="want diagonal PEFs"):
        decompose_diagonal(store.from_dense(torch.rand(5, 2, 7)), 2, seed=0)
