"""Low-rank factorisation: loss, gradient, steps, planted truth, invariances, checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lib.npeff import alternating, component_studies, factorise, products, store
from lib.npeff.factorise import Decomposition, decompose, explained, unit
from lib.npeff.factors import factors_of
from lib.npeff.store import Fishers


def random_fishers(
    n: int = 30, c: int = 3, m: int = 11, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Fishers:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, c, m, generator=generator, dtype=dtype)
    return store.normalise(store.from_dense(rows))


def planted(n: int = 400, seed: int = 0) -> tuple[Fishers, Tensor, Tensor]:
    """Mixtures of one or two of 6 unit, partly sparse components (check 6)."""
    fishers, g, w = component_studies.planted(seed, n=n, r=6)
    return fishers, w, g


def matched(found: Decomposition, w: Tensor, g: Tensor) -> tuple[float, float]:
    """Least matched |cosine| of components and of coefficients."""
    a = torch.nn.functional.normalize(found.components) @ torch.nn.functional.normalize(g).T
    best = a.abs().argmax(0)
    assert len(best.unique()) == len(best)
    columns = torch.nn.functional.cosine_similarity(found.coefficients[:, best], w, dim=0)
    return float(a.abs().amax(0).min()), float(columns.min())


def explicit_loss(fishers: Fishers, w: Tensor, g: Tensor) -> Tensor:
    """The sum of squared Frobenius norms of m x m matrices."""
    a = fishers.matrix().to_dense()
    total = w.new_zeros(())
    for i in range(len(fishers)):
        rows = a[fishers.example == i]
        model = torch.einsum("j,ja,jb->ab", w[i], g, g)
        total = total + (rows.T @ rows - model).square().sum()
    return total


def space_of(fishers: Fishers, g: Tensor, blocks: int = 1) -> products.Columns:
    return products.Columns(products.blocks_of(fishers, blocks), g.T, products.Alone())


def test_the_loss_is_the_sum_of_frobenius_norms_and_the_direction_its_gradient():
    fishers = random_fishers()
    generator = torch.Generator().manual_seed(1)
    w = torch.rand(30, 4, generator=generator, dtype=torch.float64)
    g = torch.randn(4, 11, generator=generator, dtype=torch.float64, requires_grad=True)
    loss = explicit_loss(fishers, w, g)
    (gradient,) = torch.autograd.grad(loss, g)
    problem = alternating.problem_of(factors_of(fishers), 4, torch.device("cpu"))
    space = space_of(fishers, g.detach())
    b, q = space.products()
    assert problem.loss(w, problem.sum_rows(b.square()), q) == pytest.approx(loss.item(), rel=1e-10)
    space.turn((w.T @ w) * q, w[fishers.example] * b)
    torch.testing.assert_close(4 * space.direction[0].T, gradient, rtol=1e-12, atol=1e-12)


def test_the_coefficient_step_never_raises_the_loss_and_ends_at_the_non_negative_least_squares():
    from scipy.optimize import nnls

    fishers, _, g = planted(n=40)
    g = g + 0.02  # no exact fit, and overlapping components
    problem = alternating.problem_of(factors_of(fishers), 0, torch.device("cpu"))
    space = space_of(fishers, g)
    start = torch.rand(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    stages = [alternating.Stage(3_000, 6)]
    run = alternating.fit(
        problem, space, start, stages, step="exact", rate=0.0, log_every=1, snapshot_every=None,
        checkpoint=None, progress=None,
    )  # fmt: skip
    losses = torch.tensor(run.losses)
    assert (losses.diff() <= 1e-12).all()
    torch.testing.assert_close(space.components(), g, rtol=0, atol=0)
    b, q = space.products()
    n = problem.sum_rows(b.square())
    half = torch.linalg.cholesky(q.square())
    target = torch.linalg.solve_triangular(half, n.T, upper=False).T
    best = torch.stack([torch.tensor(nnls(half.T.numpy(), row.numpy())[0]) for row in target])
    assert problem.loss(run.w, n, q) == pytest.approx(problem.loss(best, n, q), rel=1e-6)


@pytest.mark.parametrize("step", ["exact", "precond"])
def test_planted_components_come_back(step: str):
    fishers, w, g = planted()
    found = decompose(fishers, 6, seed=0, step=step, component_steps=100, steps=1000)
    assert 1 - explained(found) < 1e-7
    components, coefficients = matched(found, w, g)
    assert components > 0.9999
    assert coefficients > 0.9999


def test_the_published_rule_finds_the_planted_components():
    fishers, w, g = planted()
    found = decompose(fishers, 6, seed=0, step="gd", component_steps=100, steps=1500, rate=1e-3)
    assert 1 - explained(found) < 1e-7
    assert min(matched(found, w, g)) > 0.9999


def test_the_loss_of_the_exact_step_never_rises():
    fishers, _, _ = planted(n=100)
    found = decompose(fishers, 4, seed=0, component_steps=60, steps=240, log_every=1)
    assert (found.losses.diff() <= 1e-9 * found.losses[0]).all()
    assert found.losses[-1] < 0.9 * found.losses[60] < found.losses[0]


def test_the_exact_step_is_the_best_along_its_direction():
    fishers = random_fishers(n=20)
    w = torch.rand(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = torch.randn(3, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    data = factors_of(fishers)
    problem = alternating.problem_of(data, 3, torch.device("cpu"), pull=0.3, pull_to=0.5)
    space = space_of(fishers, g)
    run = alternating.fit(
        problem, space, w, [alternating.Stage(1, 0)], step="exact", rate=0.0, log_every=1,
        snapshot_every=None, checkpoint=None, progress=None,
    )  # fmt: skip
    after = space.components()

    def objective(x: Tensor) -> float:
        gap = x @ x.T - 0.5 * torch.eye(3, dtype=x.dtype)
        return explicit_loss(fishers, run.w, x).item() + 0.3 * gap.square().sum().item()

    least = objective(after)
    assert least < objective(g)
    assert least <= min(objective(g + s * (after - g)) for s in (0.9, 0.99, 1.01, 1.1))


def test_a_rate_that_is_too_large_is_named():
    fishers, _, _ = planted()
    with pytest.raises(FloatingPointError, match=r"eta = 0\.1; lower it"):
        decompose(fishers, 6, seed=0, step="gd", steps=400, rate=0.1)


def test_scale_and_sign_of_components_do_not_matter_and_unit_keeps_the_loss():
    fishers = random_fishers()
    found = decompose(fishers, 4, seed=0, component_steps=10, steps=30)
    s = torch.tensor([2.0, -0.5, 3.0, -1.0], dtype=torch.float64)
    w, g = found.coefficients, found.components
    assert explicit_loss(fishers, w, g).item() == pytest.approx(found.loss, rel=1e-10)
    assert explicit_loss(fishers, w / s**2, s[:, None] * g).item() == pytest.approx(found.loss)
    even = unit(replace(found, coefficients=w / s**2, components=s[:, None] * g))
    assert explicit_loss(fishers, even.coefficients, even.components).item() == pytest.approx(
        found.loss
    )
    torch.testing.assert_close(even.components.norm(dim=1), torch.ones(4, dtype=torch.float64))
    assert (even.coefficients.sum(0).diff() <= 0).all()
    torch.testing.assert_close(unit(found).coefficients, even.coefficients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blocks_of_columns_change_nothing_but_rounding(dtype: torch.dtype):
    fishers = random_fishers(n=50, m=37, dtype=dtype)
    steps = 20 if dtype == torch.float64 else 1  # each step makes a difference larger
    found = [
        decompose(fishers, 4, seed=0, component_steps=3, steps=steps, blocks=k) for k in (1, 3)
    ]
    for name in ("coefficients", "components"):
        a, b = (getattr(x, name) for x in found)
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(a.abs().max()))


def test_rows_of_zeros_may_be_left_out():
    """Examples with one, two and three rows: the same as with three, the rest zero."""
    rows = torch.randn(30, 3, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    used = torch.arange(3) <= torch.arange(30)[:, None] % 3
    whole = store.normalise(store.from_dense(rows * used[..., None]))
    stay = used.flatten()
    lengths = whole.offsets.diff()[stay]
    fewer = replace(
        whole,
        example=whole.example[stay],
        offsets=torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
    )
    a, b = (decompose(x, 4, seed=0, component_steps=5, steps=20) for x in (whole, fewer))
    torch.testing.assert_close(a.coefficients, b.coefficients)
    torch.testing.assert_close(a.components, b.components)


def test_an_example_that_is_zero_has_no_coefficients():
    rows = torch.randn(20, 2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[3] = 0
    found = decompose(store.normalise(store.from_dense(rows)), 3, seed=0, steps=5)
    assert (found.coefficients[3] == 0).all()
    assert found.coefficients.isfinite().all()


def test_normalised_whole_pefs_have_energy_n():
    assert random_fishers(n=30).normalised
    assert decompose(random_fishers(n=30), 2, seed=0, steps=1).energy == pytest.approx(30)
    rows = torch.randn(30, 3, 11, generator=torch.Generator().manual_seed(0))
    sparse = store.normalise(store.from_dense(rows, k=8))
    assert decompose(sparse, 2, seed=0, steps=1).energy < 0.99 * 30  # not by round-off


def test_the_same_seed_gives_the_same_bytes_and_restarts_keep_the_best():
    fishers = random_fishers(dtype=torch.float32)
    runs = [decompose(fishers, 4, seed=s, component_steps=5, steps=30) for s in (3, 3, 4, 5)]
    assert torch.equal(runs[0].coefficients, runs[1].coefficients)
    assert torch.equal(runs[0].components, runs[1].components)
    best = decompose(fishers, 4, seed=3, component_steps=5, steps=30, restarts=3)
    assert best.loss == min(x.loss for x in runs)
    assert best.seed == 3 + [x.loss for x in runs[1:]].index(best.loss)


def test_a_run_that_was_cut_short_goes_on_to_the_same_bytes(tmp_path: Path):
    fishers = random_fishers(dtype=torch.float32)
    options = {"seed": 0, "component_steps": 30, "steps": 90, "snapshot_every": 7}
    whole = decompose(fishers, 4, **options)
    path = tmp_path / "run.safetensors"

    def cut(steps):
        for i in steps:
            if i == 77:
                raise KeyboardInterrupt
            yield i

    with pytest.raises(KeyboardInterrupt):
        decompose(fishers, 4, **options, checkpoint=path, progress=cut)
    seen: list[int] = []
    again = decompose(
        fishers, 4, **options, checkpoint=path, progress=lambda steps: seen.extend(steps) or steps
    )
    assert seen[0] == 50
    finished = decompose(
        fishers, 4, **options, checkpoint=path, progress=lambda steps: seen.clear() or list(steps)
    )
    for other in (again, finished):
        for name in ("coefficients", "components", "losses", "loss_steps", "snapshots"):
            assert torch.equal(getattr(whole, name), getattr(other, name)), name
    assert whole.snapshot_steps.tolist() == [*range(0, 90, 7), 90]
    torch.testing.assert_close(whole.snapshots[-1], whole.coefficients, rtol=0, atol=0)


def test_a_checkpoint_of_another_decomposition_is_refused(tmp_path: Path):
    fishers = random_fishers()
    path = tmp_path / "run.safetensors"
    decompose(fishers, 4, seed=0, steps=2, checkpoint=path)
    for other, options, word in (
        (fishers, {"r": 3, "seed": 0, "steps": 2}, "r;"),
        (fishers, {"r": 4, "seed": 1, "steps": 2}, "seed"),
        (fishers, {"r": 4, "seed": 0, "steps": 3}, "steps"),
        (random_fishers(seed=1), {"r": 4, "seed": 0, "steps": 2}, "data"),
    ):
        with pytest.raises(ValueError, match=f"another decomposition: it differs in {word}"):
            decompose(other, **options, checkpoint=path)


def test_a_damaged_file_is_not_read(tmp_path: Path):
    found = decompose(random_fishers(), 4, seed=0, steps=2, snapshot_every=1)
    path = tmp_path / "found.safetensors"
    factorise.save(found, path)
    again = factorise.load(path)
    assert torch.equal(found.components, again.components)
    assert torch.equal(found.snapshots, again.snapshots)
    assert again.options == found.options
    assert again.parameters == found.parameters
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:-9])
    with pytest.raises(ValueError, match="cannot be read"):
        factorise.load(path)
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        factorise.load(path)


def test_what_cannot_be_factorised_is_refused():
    fishers = random_fishers()
    with pytest.raises(ValueError, match="1 <= r <= n = 30"):
        decompose(fishers, 31, seed=0)
    with pytest.raises(ValueError, match="normalised"):
        decompose(replace(fishers, normalised=False), 3, seed=0)
    decompose(replace(fishers, normalised=False), 3, seed=0, steps=1, raw=True)
    bad = fishers.values.clone()
    bad[4] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        decompose(replace(fishers, values=bad), 3, seed=0)
    with pytest.raises(ValueError, match="want step"):
        decompose(fishers, 3, seed=0, step="adam")
    with pytest.raises(ValueError, match="leave rate out"):
        decompose(fishers, 3, seed=0, rate=0.1)
    with pytest.raises(ValueError, match="low-rank"):
        decompose(store.from_dense(torch.rand(5, 7), kind=store.DIAGONAL), 2, seed=0)


def test_the_pull_makes_components_more_orthogonal():
    fishers = random_fishers(n=60)

    def gap(pull: float) -> float:
        g = decompose(fishers, 4, seed=0, component_steps=20, steps=100, pull=pull).components
        return float((g @ g.T - 0.5 * torch.eye(4, dtype=g.dtype)).square().sum())

    assert gap(10.0) < 0.5 * gap(0.0)


@pytest.mark.parametrize(
    ("option", "match"), [({"rate": -1e-3}, "rate > 0"), ({"rate": 0.0}, "rate > 0")]
)
def test_a_rate_that_does_not_descend_is_refused(option, match):
    fishers = store.normalise(store.from_dense(torch.rand(9, 2, 8, dtype=torch.float64)))
    with pytest.raises(ValueError, match=match):
        decompose(fishers, 2, seed=0, step="gd", **option)


def test_a_loss_that_is_not_finite_along_the_direction_is_no_silent_end():
    assert alternating.best_length(1.0, 0.0, 0.0, slope=-2.0) == pytest.approx(1.0)
    assert alternating.best_length(1.0, 0.0, 0.0, slope=0.0) == 0.0
    for bad in (float("inf"), float("nan")):
        with pytest.raises(FloatingPointError, match="along the direction is not finite"):
            alternating.best_length(1.0, bad, 0.0, slope=-2.0)
