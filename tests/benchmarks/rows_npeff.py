"""Rows of `make bench` for the factorisation of per-example Fishers.

Data are planted mixtures with noise: 2,000 examples, 4,096 entries each, on 100,000 parameters
of which a few are used far more often than the others. Times include everything from the sparse
PEFs to the result, such as sorting entries by column.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from lib import models
from lib.data import digits
from lib.npeff import fisher, nonnegative, store
from lib.npeff.decomposition import Decomposition
from lib.npeff.diagonal import decompose_diagonal
from lib.npeff.factorise import decompose
from lib.npeff.store import Fishers
from lib.training import Recipe, fetch_model
from tests.benchmarks.row import Row

N, C, K, M, R = 2000, 3, 4096, 100_000, 32
LRM_STEPS, PEER_STEPS, MU_STEPS, CD_STEPS = 200, 10, 20, 200
PEF = {"n": 256, "k": 4096, "chunk": 16}
EPS = 0.01  # as in the specification for small image networks
SMALL = {"n": 1000, "k": 1024, "m": 25_000}  # where the peer runs for long


@cache
def fishers(kind: str, n: int = N, k: int = K, m: int = M, r: int = R) -> Fishers:
    """Normalised sparse PEFs: each row mixes three of r components, plus noise."""
    rng = np.random.default_rng(0)
    often = 1 / (np.arange(m) + m / 500)
    often = rng.permutation(often / often.sum())
    n_rows = C if kind == store.LOW_RANK else 1
    support = [rng.choice(m, m // 20, replace=False, p=often) for _ in range(r)]
    strength = [rng.standard_normal(m // 20) for _ in range(r)]
    values, columns, lengths = [], [], []
    for _ in range(n):
        at, entry = [], []
        for row in range(n_rows):
            at.append(row * m + rng.integers(0, m, k))
            entry.append(0.3 * rng.standard_normal(k))
            for j in rng.choice(r, 3, replace=False):
                at.append(row * m + support[j])
                entry.append(rng.random() * strength[j])
        flat, size = np.concatenate(at), np.concatenate(entry)
        best = np.argpartition(np.abs(size), -k)[-k:]
        where, first = np.unique(flat[best], return_index=True)  # a position met twice counts once
        found = size[best][first].astype(np.float32)
        values.append(np.abs(found) if kind == store.DIAGONAL else found)
        columns.append(where % m)
        lengths.append(np.bincount(where // m, minlength=n_rows))
    value = torch.tensor(np.concatenate(values))
    offsets = torch.tensor(np.concatenate([[0], np.concatenate(lengths).cumsum()]))
    made = Fishers(
        kind, value, torch.tensor(np.concatenate(columns)), offsets,
        torch.arange(n).repeat_interleave(n_rows), torch.ones(n, dtype=torch.float64),
        torch.zeros(n, C), torch.arange(m), (("planted", (m,)),), k,
    )  # fmt: skip
    made = store.normalise(Fishers(**{**vars(made), "norms": store.sparse_norms(made)}))
    return store.prune(made)


def _scipy(data: Fishers):
    from scipy.sparse import csr_matrix

    parts = (data.values.numpy(), data.columns.numpy(), data.offsets.numpy())
    return csr_matrix(parts, shape=(data.n_rows, data.n_columns))


def _start(data: Fishers, r: int = R) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    scale = (float(data.values.sum()) / (len(data) * data.n_columns) / r) ** 0.5
    w, h = (
        torch.rand(*s, generator=generator) * scale for s in ((len(data), r), (r, data.n_columns))
    )
    return w, h


def _loss(data: Fishers, w: np.ndarray, h: np.ndarray) -> float:
    """||X - WH||^2 in float64."""
    x, w, h = _scipy(data).astype(np.float64), w.astype(np.float64), h.astype(np.float64)
    return float(x.multiply(x).sum() - 2 * (w * (x @ h.T)).sum() + ((w.T @ w) * (h @ h.T)).sum())


def _sklearn(
    data: Fishers, solver: str, steps: int, dtype: type = np.float32
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.decomposition import NMF

    w, h = (x.numpy().astype(dtype) for x in _start(data))
    fit = NMF(R, solver=solver, init="custom", tol=0, max_iter=steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        found = fit.fit_transform(_scipy(data).astype(dtype), W=w, H=h)
    return found, fit.components_


def mu_iterations() -> Row:
    """The published rule of diagonal factorisation, same start and iterations.

    Losses are judged by the peer's in double precision: its own of single precision is further from
    that than the two sides may differ.
    """
    data = fishers(store.DIAGONAL)
    exact = _loss(data, *_sklearn(data, "mu", MU_STEPS, np.float64))

    def agree(a: Decomposition, b: tuple[np.ndarray, np.ndarray]) -> tuple[bool, str]:
        mine, theirs = (
            abs(loss / exact - 1)
            for loss in (
                _loss(data, a.coefficients.numpy(), a.components.numpy()),
                _loss(data, *b),
            )
        )
        words = f"loss agrees with float64 to {mine:.0e} (the peer's to {theirs:.0e})"
        return mine < 1e-6 and theirs < 1e-5, words

    return Row(
        ours=lambda: decompose_diagonal(
            data, R, seed=0, step="mu", steps=MU_STEPS, start=_start(data)
        ),
        peer=lambda: _sklearn(data, "mu", MU_STEPS),
        agree=agree,
        peer_name="scikit-learn mu",
        target=3.0,
        sizes=f"{N:,} x {data.n_columns:,}, {K:,} entries a row, r = {R}, {MU_STEPS} iterations",
    )


def to_loss() -> Row:
    """Diagonal factorisation to the loss of 200 iterations of the peer's better solver."""
    data = fishers(store.DIAGONAL, **SMALL)
    target = _loss(data, *_sklearn(data, "cd", CD_STEPS))
    start = _start(data)
    curve = decompose_diagonal(data, R, seed=0, steps=CD_STEPS, start=start, log_every=1).losses
    steps = int((curve <= target).nonzero()[0]) if bool((curve <= target).any()) else CD_STEPS

    def agree(a: Decomposition, b: tuple[np.ndarray, np.ndarray]) -> tuple[bool, str]:
        mine = _loss(data, a.coefficients.numpy(), a.components.numpy())
        theirs = _loss(data, *b)
        words = f"loss {mine:.4f} after {steps} steps, {theirs:.4f} after {CD_STEPS}"
        return mine <= theirs * (1 + 1e-6), words

    return Row(
        ours=lambda: decompose_diagonal(data, R, seed=0, steps=steps, start=start),
        peer=lambda: _sklearn(data, "cd", CD_STEPS),
        agree=agree,
        peer_name="scikit-learn cd",
        target=3.0,
        sizes=f"{SMALL['n']:,} x {data.n_columns:,}, {SMALL['k']:,} entries a row, r = {R}",
    )


def coefficients() -> Row:
    """Coefficients for frozen components, all examples at once against one after the other.

    The target is about the floor: sweeps, gathers and solves alone are a twentieth of the peer.
    """
    from scipy.optimize import nnls

    data = fishers(store.LOW_RANK)
    found = decompose(data, R, seed=0, component_steps=20, steps=100)
    g = found.components
    b = (_scipy(data) @ g.T.numpy()).astype(np.float64) ** 2
    n = torch.tensor(b).view(len(data), C, R).sum(1)
    q = (g @ g.T).double().square()

    def peer() -> np.ndarray:
        half = np.linalg.cholesky(q.numpy())
        right = np.linalg.solve(half, n.numpy().T).T
        return np.stack([nnls(half.T, row)[0] for row in right])

    def agree(a: Tensor, b: np.ndarray) -> tuple[bool, str]:
        worst = float(np.abs(a.numpy() - b).max() / np.abs(b).max())
        used = float((a > 0).double().mean())
        return worst < 1e-7, f"coefficients agree to {worst:.0e} of the largest, {used:.0%} used"

    return Row(
        ours=lambda: nonnegative.solve(q, n),
        peer=peer,
        agree=agree,
        peer_name="scipy nnls loop",
        target=20.0,
        sizes=f"{N:,} examples, r = {R}",
    )


def lrm_steps() -> Row:
    """Low-rank steps with the exact length, from the same start; the peer does the first ones.

    Ours counts everything before and after the steps, the peer's time is that of the steps alone.
    """
    data = fishers(store.LOW_RANK)
    peer = _ScipySteps(data)

    def agree(a: Decomposition, b: float) -> tuple[bool, str]:
        mine = float(a.losses[a.loss_steps.tolist().index(PEER_STEPS)])
        gap = abs(mine / b - 1)
        return gap < 1e-5, f"losses after {PEER_STEPS} steps agree to {gap:.0e}"

    return Row(
        ours=lambda: decompose(data, R, seed=0, component_steps=0, steps=LRM_STEPS),
        peer=peer.run,
        agree=agree,
        peer_name="scipy.sparse",
        target=3.0,
        sizes=f"{N:,} examples, C = {C}, m' = {data.n_columns:,}, K = {K:,}, r = {R}, {LRM_STEPS} "
        "steps",
        peer_share=PEER_STEPS / LRM_STEPS,
    )


class _ScipySteps:
    """The same steps as one writes them with scipy and numpy."""

    def __init__(self, data: Fishers) -> None:
        self.example, self.energy = data.example.numpy(), store.energy(data)
        self.a = _scipy(data)
        self.turned = self.a.T.tocsr()
        m, generator = data.n_columns, torch.Generator().manual_seed(0)
        self.w = torch.rand(N, R, generator=generator, dtype=torch.float64).numpy()
        self.g = (torch.randn(m, R, generator=generator) * (2 / (R * m)) ** 0.5).numpy()

    def run(self) -> float:
        """Take the steps from the start; returns the last loss."""
        from lib.npeff.alternating import EPSILON, FLOOR, best_length

        a, turned, w, g = self.a, self.turned, self.w, self.g
        b, q = a @ g, g.T @ g

        def per_example(x: np.ndarray) -> np.ndarray:
            return np.square(x).reshape(N, C, R).sum(1)

        for _ in range(PEER_STEPS):
            w = w * per_example(b) / (w @ np.square(q) + EPSILON)
            v = w.T @ w
            curvature = v.diagonal() * q.diagonal()
            curvature = curvature + FLOOR * curvature.mean()
            x, rows = (v * q) / curvature, (w[self.example] * b) / curvature
            d = g @ x.astype(np.float32) - turned @ rows.astype(np.float32)
            e, gd, dd = a @ d, g.T @ d, d.T @ d
            s = gd + gd.T
            t = best_length(
                float((v * (s * s + 2 * q * dd)).sum() - 2 * (w * per_example(e)).sum()),
                float(-2 * (v * s * dd).sum()),
                float((v * dd * dd).sum()),
                slope=float(-4 * (dd.diagonal() * curvature).sum()),
            )
            g = g - np.float32(t) * d
            b, q = b - np.float32(t) * e, q - t * s + t**2 * dd
        b, q = (a @ g).astype(np.float64), (g.T @ g).astype(np.float64)
        cross = float((w * per_example(b)).sum())
        return self.energy - 2 * cross + float(((w.T @ w) * q * q).sum())


def per_example_fishers() -> Row:
    """Sparse PEFs of a trained network, classes below a threshold left out.

    The peer is the Jacobian of the logits by ``vmap(jacrev)``, as one writes it with torch.func. It
    takes and returns blocks of megabytes; with an allocator that keeps those it is twice as fast
    and ours as before, so that the ratio is about 6 (glibc: both MALLOC_MMAP_THRESHOLD_ and
    MALLOC_TRIM_THRESHOLD_ of 1073741824).
    """
    data = digits.load()
    x, y = data.train.x.view(-1, 1, 8, 8), data.train.y
    recipe = Recipe(20, 50, 0.01, optimizer="adam", schedule="triangular")
    spec = {"channels": (32, 64)}
    model = fetch_model(
        "cnn", spec, lambda: (x, y), recipe, seed=0, data_hash=data.provenance.sha256
    )
    rest = data.test.x.view(-1, 1, 8, 8)[: PEF["n"]]

    def peer() -> tuple[Tensor, Tensor, Tensor]:
        parts = [_jacobian_fishers(model, part) for part in rest.split(PEF["chunk"])]
        return tuple(torch.cat(found) for found in zip(*parts, strict=True))

    def agree(a: Fishers, b: tuple[Tensor, Tensor, Tensor]) -> tuple[bool, str]:
        values, at, norms = b
        dense = torch.zeros(len(rest), a.n_parameters).scatter_(1, at, values)
        gap = float((a.matrix().to_dense() - dense).norm() / dense.norm())
        worst = float((a.norms - norms).norm() / norms.norm())
        return gap < 1e-4 and worst < 1e-4, f"entries agree to {gap:.0e}, norms to {worst:.0e}"

    return Row(
        ours=lambda: fisher.per_example_fishers(
            model, rest, kind=store.DIAGONAL, k=PEF["k"], eps=EPS
        ),
        peer=peer,
        agree=agree,
        peer_name="vmap(jacrev)",
        target=10.0,
        sizes=f"{PEF['n']} digits, C = 10, p >= {EPS}, {models.n_parameters(model):,} weights, "
        f"K = {PEF['k']:,}; the peer {PEF['chunk']} at a time",
    )


def _jacobian_fishers(model: torch.nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Entries, positions and norms of diagonal PEFs."""
    from torch.func import functional_call, jacrev, vmap

    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def logits(chosen: dict[str, Tensor], one: Tensor) -> Tensor:
        return functional_call(model, chosen, (one[None],))[0]

    found = vmap(jacrev(logits), in_dims=(None, 0))(weights, x)
    jacobian = torch.cat([part.flatten(2) for part in found.values()], 2)
    with torch.no_grad():
        p = model(x).softmax(1)
    kept = torch.where((p >= EPS) | (p == p.amax(1, keepdim=True)), p, 0.0)
    diagonal = (kept[..., None] * (jacobian - p[:, None] @ jacobian).square()).sum(1)
    at = diagonal.topk(PEF["k"], dim=1).indices
    return diagonal.gather(1, at), at, diagonal.double().norm(dim=1)


ROWS: dict[str, Callable[[], Row]] = {
    "pef/vmap-jacrev": per_example_fishers,
    "d-npeff/sklearn-mu-iteration": mu_iterations,
    "d-npeff/sklearn-to-loss": to_loss,
    "coefficients/nnls": coefficients,
    "lrm-step/scipy-sparse": lrm_steps,
}
