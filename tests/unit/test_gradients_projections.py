"""Random projections: unbiased, of the variance theory says, and drawn from (seed, model_id)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib import gradients, models
from lib.gradients import SJLT, CachedSigns, Projector, RandomFactors, factored, margin

P, K, SEEDS = 960, 48, 200
LINEAR = nn.Sequential(nn.Linear(29, 32))  # P = 32 * 30 weights

MAKERS: dict[str, Callable[[int], Projector]] = {
    "sjlt": lambda seed: SJLT(P, K, seed=seed),
    "sjlt of 4": lambda seed: SJLT(P, K, seed=seed, s=4),
    "signs": lambda seed: CachedSigns(P, K, seed=seed),
    "factors": lambda seed: RandomFactors(LINEAR, ki=8, ko=6, seed=seed),
}


def _pair(kind: str) -> Tensor:
    """Two unit vectors with inner product .6, dense or on every 32nd weight alone."""
    generator = torch.Generator().manual_seed(7)
    raw = torch.randn(2, P, generator=generator, dtype=torch.float64)
    if kind == "one in 32":
        raw *= torch.arange(P) % 32 == 5
    u = raw[0] / raw[0].norm()
    w = raw[1] - (raw[1] @ u) * u
    return torch.stack([u, 0.6 * u + 0.8 * w / w.norm()])


def _grams(make: Callable[[int], Projector], pair: Tensor) -> Tensor:
    """Gram matrices of the projected pair, ``[SEEDS, 2, 2]``."""
    features = torch.stack([make(seed).project(pair, 0) for seed in range(SEEDS)])
    return features @ features.mT


@pytest.mark.parametrize("kind", ["dense", "one in 32"])
@pytest.mark.parametrize("name", MAKERS)
def test_inner_products_are_unbiased(name: str, kind: str) -> None:
    pair = _pair(kind)
    grams = _grams(MAKERS[name], pair)
    error = grams.mean(0) - pair @ pair.T
    spread = grams.std(0) / SEEDS**0.5
    assert (error.abs() <= 4 * spread + 1e-12).all(), error / spread


@pytest.mark.parametrize("kind", ["dense", "one in 32"])
@pytest.mark.parametrize("name", ["sjlt", "sjlt of 4", "signs"])
def test_variance_is_that_of_k_independent_features(name: str, kind: str) -> None:
    pair = _pair(kind)
    grams = _grams(MAKERS[name], pair)
    # For unit vectors (1 + <u, v>^2) / k, less the share of a weight with itself, which is exact.
    inner, itself = pair @ pair.T, (pair**2) @ (pair**2).T
    share = {"sjlt": 1.0, "sjlt of 4": 0.25, "signs": 1.0}[name]
    want = (1 + inner**2 - 2 * share * itself) / K
    ratio = grams.var(0) / want
    # A sample variance of 200 has a relative standard error of .1, more with heavy tails.
    assert ((ratio > 0.6) & (ratio < 1.6)).all(), ratio


@pytest.mark.parametrize("name", MAKERS)
def test_the_matrix_belongs_to_seed_and_model(name: str) -> None:
    pair = _pair("dense").float()
    projector = MAKERS[name](3)
    first, other = projector.project(pair, 0), projector.project(pair, 1)
    torch.testing.assert_close(projector.project(pair, 0), first, rtol=0, atol=0)
    projector.free_memory()
    projector.free_memory()
    torch.testing.assert_close(projector.project(pair, 0), first, rtol=0, atol=0)
    torch.testing.assert_close(MAKERS[name](3).project(pair, 0), first, rtol=0, atol=0)
    assert first.shape == (2, projector.k)
    assert first.dtype == torch.float32
    for another in (other, MAKERS[name](4).project(pair, 0), MAKERS[name](1).project(pair, 3)):
        cosine = torch.nn.functional.cosine_similarity(another, first).abs()
        assert (cosine < 0.6).all()


@pytest.mark.parametrize("name", MAKERS)
def test_projection_is_linear_and_row_by_row(name: str) -> None:
    g = torch.randn(5, P, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    projector = MAKERS[name](0)
    whole = projector.project(g, 0)
    torch.testing.assert_close(projector.project(g[3:4], 0), whole[3:4])
    torch.testing.assert_close(projector.project(2 * g[:1] - g[1:2], 0), 2 * whole[:1] - whole[1:2])
    torch.testing.assert_close(projector.project(g.mT.contiguous().mT, 0), whole)  # other layout
    torch.testing.assert_close(projector.project(g.float(), 0), whole.float())


@pytest.mark.parametrize("s", [1, 3])
def test_sjlt_over_several_tiles_is_its_own_sparse_matrix(s: int) -> None:
    p, k = 20_000, 16  # three tiles
    projector = SJLT(p, k, seed=0, s=s)
    some = torch.arange(0, p, 41)  # their unit vectors give rows of the matrix
    matrix = projector.project(torch.nn.functional.one_hot(some, p).float(), 0)
    g = torch.zeros(3, p)
    g[:, some] = torch.randn(3, len(some), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(projector.project(g, 0), g[:, some] @ matrix, atol=1e-4, rtol=1e-4)
    if s == 1:
        assert ((matrix != 0).sum(1) == 1).all()
        assert (matrix.abs().sum(1) == 1).all()
    load = (matrix != 0).sum(0) / (s * len(some) / k)  # buckets are used evenly
    assert ((load > 0.4) & (load < 1.6)).all()


def test_bfloat16_signs_agree_to_three_digits() -> None:
    pair = _pair("dense").float()
    exact = CachedSigns(P, K, seed=0).project(pair, 0)
    rough = CachedSigns(P, K, seed=0, dtype=torch.bfloat16).project(pair, 0)
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() < 0.01 * exact.norm()


def _digits(n: int) -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    model = models.build("mlp", generator, widths=(6, 16, 4))
    x = torch.randn(n, 6, generator=generator)
    return model, (x, torch.randint(4, (n,), generator=generator))


@pytest.mark.parametrize("s", [1, 4])
def test_projected_features_are_projected_gradients(s: int) -> None:
    model, data = _digits(30)
    J = gradients.per_example(model, data, margin)
    projector = SJLT(J.shape[1], 20, seed=0, s=s)
    seen = []

    def progress(chunks):  # type: ignore[no-untyped-def]
        for chunk in chunks:
            seen.append(len(chunk))
            yield chunk

    found = gradients.projected(
        model, data, margin, projector, model_id=2, chunk=7, progress=progress
    )
    torch.testing.assert_close(found, projector.project(J, 2))
    assert seen == [7, 7, 7, 7, 2]


@pytest.mark.parametrize("layers", [None, ["out"]])
def test_factored_projection_never_needs_the_gradient(layers: list[str] | None) -> None:
    model, data = _digits(30)
    J = gradients.per_example(model, data, margin)
    projector = RandomFactors(model, ki=3, ko=5, seed=0, layers=layers)
    found = gradients.projected(model, data, margin, projector, model_id=2, chunk=7)
    torch.testing.assert_close(found, projector.project(J, 2))
    assert found.shape[1] == projector.k == 3 * 4 + (15 if layers is None else 0)


def test_sides_that_fit_are_kept_exactly() -> None:
    model, data = _digits(10)
    J = gradients.per_example(model, data, margin)
    features = RandomFactors(model, ki=100, ko=100, seed=0).project(J, 0)
    torch.testing.assert_close(features @ features.T, J @ J.T)


def test_traker_scores_with_our_projector(tmp_path: Path) -> None:
    trak = pytest.importorskip("trak")
    model, (x, y) = _digits(120)
    n, k = 100, 24
    tracer = trak.TRAKer(
        model=model.eval(),
        task="image_classification",
        train_set_size=n,
        save_dir=str(tmp_path),
        projector=SJLT(gradients.size(gradients.select(model)), k, seed=5),
        device="cpu",
        use_half_precision=False,
        logging_level=50,
    )
    tracer.load_checkpoint(model.state_dict(), model_id=0)
    tracer.featurize(batch=[x[:n], y[:n]], num_samples=n)
    tracer.finalize_features()  # frees the projector
    tracer.start_scoring_checkpoint("targets", model.state_dict(), model_id=0, num_targets=20)
    tracer.score(batch=[x[n:], y[n:]], num_samples=20)
    theirs = torch.tensor(tracer.finalize_scores("targets")).double()  # [n, 20]
    projector = SJLT(gradients.size(gradients.select(model)), k, seed=5)
    phi = gradients.projected(model, (x, y), margin, projector).double()
    doubt = 1 - gradients.correct_probability(model(x[:n]), y[:n]).detach().double()
    ours = phi[:n] @ torch.linalg.solve(phi[:n].T @ phi[:n], phi[n:].T) * doubt[:, None]
    corr = torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1]
    assert corr > 0.9999


class _Reused(nn.Sequential):
    """Reads its first layer's weight once more, outside the layer's own call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = super().forward(x)
        return out * (2 + self[0].weight.sum())  # type: ignore[operator, union-attr]


def test_a_factored_projector_verifies_every_kind_of_model_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, data = nn.Sequential(nn.Linear(3, 2)), (torch.randn(5, 3), torch.randint(2, (5,)))
    projector, verified = RandomFactors(plain, ki=2, ko=2, seed=0), []
    hooks = factored.per_example_hooks
    monkeypatch.setattr(
        factored, "per_example_hooks", lambda *a, **k: verified.append(1) or hooks(*a, **k)
    )
    for _ in range(3):
        gradients.projected(plain, data, margin, projector, chunk=2)
    assert len(verified) == 1
    with pytest.raises(ValueError, match="used outside its layer"):
        gradients.projected(_Reused(nn.Linear(3, 2)), data, margin, projector)
