"""Solvers against a matrix that is written down."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib.attribution import solvers

P = 30


def matrix(values: Tensor | None = None) -> Tensor:
    """A symmetric matrix of known eigenvalues, `[P, P]` float64."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(P, P, generator=generator, dtype=torch.float64)
    basis, _ = torch.linalg.qr(mixed)
    values = torch.logspace(-2, 0, P, dtype=torch.float64) if values is None else values
    return (basis * values) @ basis.mT


def right(q: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(P, q, generator=generator, dtype=torch.float64)


def test_conjugate_gradient_equals_cholesky_within_p_steps() -> None:
    h, b = matrix(), right()
    found = solvers.conjugate_gradient(
        lambda v: h @ v, b, damping=0.05, tolerance=1e-12, max_steps=P
    )
    damped = h + 0.05 * torch.eye(P, dtype=h.dtype)
    exact = torch.cholesky_solve(b, torch.linalg.cholesky(damped))
    assert ((found.x - exact).norm(dim=0) <= 1e-6 * exact.norm(dim=0)).all()
    residual = (b - damped @ found.x).norm(dim=0) / b.norm(dim=0)
    assert_close(found.residual, residual, rtol=0.5, atol=1e-9)
    assert found.steps <= P


def test_systems_solved_together_are_those_solved_alone() -> None:
    h, b = matrix(), right()
    b[:, 2] *= 1e6
    b[:, 3] = 0
    together = solvers.conjugate_gradient(lambda v: h @ v, b, damping=0.1)
    for k in range(4):
        alone = solvers.conjugate_gradient(lambda v: h @ v, b[:, k], damping=0.1)
        assert_close(together.x[:, k], alone.x, rtol=1e-6, atol=1e-9)
    assert (together.residual <= 1e-4).all()
    assert (together.x[:, 3] == 0).all()


def test_conjugate_gradient_stops_at_the_tolerance_and_at_the_step_limit() -> None:
    h, b = matrix(), right()
    loose = solvers.conjugate_gradient(lambda v: h @ v, b, tolerance=1e-1)
    tight = solvers.conjugate_gradient(lambda v: h @ v, b, tolerance=1e-8)
    assert loose.steps < tight.steps
    cut = solvers.conjugate_gradient(lambda v: h @ v, b, tolerance=1e-8, max_steps=3)
    assert cut.steps == len(cut.trace) == 3
    assert (cut.residual > 1e-8).all()


def test_negative_curvature_is_refused_and_damped_away() -> None:
    values = torch.linspace(-0.1, 1, P, dtype=torch.float64)
    h, b = matrix(values), right()
    with pytest.raises(solvers.NegativeCurvature, match="Gauss-Newton"):
        solvers.conjugate_gradient(lambda v: h @ v, b)
    found = solvers.conjugate_gradient(lambda v: h @ v, b, damping=0.2, tolerance=1e-10)
    assert_close(h @ found.x + 0.2 * found.x, b, rtol=1e-7, atol=1e-7)


def test_lissa_without_noise_is_the_power_series() -> None:
    h, b = matrix(), right()
    found = solvers.lissa(
        lambda rows: lambda v: h @ v,
        10,
        b,
        generator=torch.Generator().manual_seed(0),
        scale=1.5,
        depth=2000,
        repeats=1,
    )
    assert_close(found.x, torch.linalg.solve(h, b), rtol=1e-3, atol=1e-3)
    assert (found.drift < 1e-3).all()


def test_lissa_with_too_small_a_scale_is_refused_with_too_large_a_one_still_moves() -> None:
    h, b = matrix(), right()
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="raise scale"):
        solvers.lissa(lambda rows: lambda v: h @ v, 10, b, generator=generator, scale=0.3)
    slow = solvers.lissa(
        lambda rows: lambda v: h @ v, 10, b, generator=generator, scale=500.0, depth=200
    )
    assert (slow.drift > 0.05).all()


def test_lissa_averages_batches_of_examples() -> None:
    generator = torch.Generator().manual_seed(2)
    a = torch.randn(200, P, generator=generator, dtype=torch.float64) / P**0.5
    h, b = a.mT @ a / 200, right(1)

    def product_of(rows: Tensor) -> solvers.Product:
        return lambda v: a[rows].mT @ (a[rows] @ v) / len(rows) + 0.05 * v

    found = solvers.lissa(
        product_of, 200, b, generator=generator, scale=2.0, depth=2000, batch=20, repeats=4
    )
    exact = torch.linalg.solve(h + 0.05 * torch.eye(P, dtype=h.dtype), b)
    assert (found.x - exact).norm() < 0.15 * exact.norm()


def test_arnoldi_finds_the_eigenpairs_of_largest_size_of_either_sign() -> None:
    values = torch.linspace(0, 0.1, P, dtype=torch.float64)
    values[0], values[5], values[9] = -2.0, 1.0, 0.5
    h = matrix(values)
    generator = torch.Generator().manual_seed(0)
    pairs = solvers.arnoldi(
        lambda v: h @ v, P, generator=generator, steps=25, rank=3, dtype=torch.float64
    )
    assert_close(pairs.values, torch.tensor([-2.0, 1.0, 0.5], dtype=torch.float64))
    assert_close(h @ pairs.vectors, pairs.vectors * pairs.values, rtol=1e-6, atol=1e-6)
    unit = pairs.vectors.mT @ pairs.vectors
    assert_close(unit, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-10)


def test_arnoldi_of_the_whole_space_is_the_inverse() -> None:
    h, b = matrix(), right()
    generator = torch.Generator().manual_seed(0)
    pairs = solvers.arnoldi(
        lambda v: h @ v, P, generator=generator, steps=P, rank=P, dtype=torch.float64
    )
    damped = h + 0.1 * torch.eye(P, dtype=h.dtype)
    assert_close(pairs.solve(b, damping=0.1), torch.linalg.solve(damped, b))
    assert_close(pairs.solve(b[:, 0], damping=0.1), torch.linalg.solve(damped, b[:, 0]))


def test_arnoldi_ends_where_the_space_is_invariant() -> None:
    values = torch.zeros(P, dtype=torch.float64)
    values[:2] = torch.tensor([3.0, -1.0])
    h = matrix(values)
    generator = torch.Generator().manual_seed(0)
    pairs = solvers.arnoldi(
        lambda v: h @ v, P, generator=generator, steps=20, rank=10, dtype=torch.float64
    )
    assert len(pairs.values) == 3  # two eigenvectors, and the rest of the start in the null space
    assert_close(pairs.values[:2], values[:2])


def test_explicit_and_its_spectrum_give_the_matrix_back() -> None:
    h = matrix()
    found = solvers.explicit(lambda v: h @ v, P, dtype=h.dtype, device="cpu")
    assert_close(found, h)
    pairs = solvers.spectrum(found)
    assert_close((pairs.vectors * pairs.values) @ pairs.vectors.mT, h)
    assert (pairs.values.diff() <= 0).all()
