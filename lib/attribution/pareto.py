"""What notebook 45 computes: the score of every method against what it costs, on one truth.

Document 4, TRAK: the figure of LDS against compute; specification section 6. A method's cost is in
training runs: operations by formula (`lib.attribution.cost`) over those of one network trained on
half of the rows, the networks it needs included. Settings of methods are the usual ones and were
not tuned on this truth.

Public names: `trak_steps`, `trak_points`, `datamodel_points`,
`influence_points`, `kronecker_points`, `similarity_points`, `valuation_points`, `best`,
`front`, `crossing`, `saving`, `benchmark`, `curvature_agreement`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import exp, log

import torch
from torch import Tensor

from lib import gradients
from lib.attribution import (
    baselines,
    convex,
    cost,
    datamodels,
    influence,
    kfac,
    metrics,
    settings,
    solvers,
    surrogate,
    trak,
    truth,
    valuation,
)
from lib.attribution.ground import Ground, Point, ground
from lib.config import Run

# LDS of the dattri benchmark, as read off its plots (specification section 6.2): LR, MLP
BENCHMARK = {
    "influence, CG": {"mnist_lr": 0.799, "mnist_mlp": 0.258},
    "influence, LiSSA": {"mnist_lr": 0.791, "mnist_mlp": 0.136},
    "influence, Arnoldi": {"mnist_lr": 0.309, "mnist_mlp": 0.088},
    "TracIn": {"mnist_lr": 0.329, "mnist_mlp": 0.146},
    "Grad-Dot": {"mnist_lr": 0.329, "mnist_mlp": 0.100},
    "Grad-Cos": {"mnist_lr": 0.189, "mnist_mlp": 0.124},
    "representer points": {"mnist_lr": 0.187, "mnist_mlp": 0.094},
    "TRAK-1": {"mnist_lr": 0.415, "mnist_mlp": 0.114},
    "TRAK-10": {"mnist_lr": 0.643, "mnist_mlp": 0.333},
    "TRAK-50": {"mnist_lr": 0.682, "mnist_mlp": 0.449},
}
BENCHMARK_SIZES = (1, 10, 50)
DAMPING = 0.01  # of conjugate gradients: the published value for a small network
CG_STEPS = 10  # as the dattri benchmark
LISSA_DEPTH, LISSA_BATCH, LISSA_SCALE = 100, 50, 10.0
ARNOLDI_STEPS = 50  # and eigenpairs kept
N_ORDERS = 20  # of Data Shapley
MOST_NUMBERS = 2**28  # of a square root of the Gauss-Newton matrix: a gibibyte
TOLERANCE = 0.01


def trak_flop(g: Ground, k: int) -> float:
    """Operations of TRAK at one network, by a sparse projection."""
    n, t = len(g.train[0]), len(g.targets[0])
    gradients_ = g.reading + cost.sparse_projection(n + t, g.p)
    return gradients_ + cost.gram(n, k) + cost.solve(k, t) + cost.scores(n, k, t)


def trak_steps(g: Ground, n_models: int, **options: object) -> list[trak.Attribution]:
    """TRAK after each of the first networks."""
    seen: list[trak.Attribution] = []
    trak.trak(
        g.halves[:n_models],
        g.train,
        g.targets,
        each=seen.append,
        chunk=200,
        **options,  # type: ignore[arg-type]
    )
    return seen


def trak_points(
    g: Ground, sizes: Sequence[int], k: int, steps: Sequence[trak.Attribution]
) -> list[Point]:
    """TRAK by the number of networks."""
    return [g.point("TRAK", steps[m - 1].tau, n_models=m, flop=m * trak_flop(g, k)) for m in sizes]


def datamodel_points(
    g: Ground,
    fitting: truth.Truth,
    sizes: Sequence[int],
    methods: Sequence[str] = ("datamodel, LASSO", "datamodel, ridge", "empirical influence"),
) -> list[Point]:
    """LASSO, ridge and empirical influence by the number of networks they are fitted on."""
    n, t = len(g.train[0]), len(g.targets[0])
    made: dict[str, tuple[Callable[..., datamodels.Datamodel], Callable[[int, float], float]]] = {
        "datamodel, LASSO": (
            datamodels.fit_lasso,
            lambda m, steps: cost.lasso(m, n, t, steps),
        ),
        "datamodel, ridge": (
            datamodels.fit_ridge,
            lambda m, _: cost.ridge(m, n, t, penalties=len(datamodels.RIDGES) + 1),
        ),
        "empirical influence": (
            datamodels.empirical_influence,
            lambda m, _: cost.marginal_means(m, n, t),
        ),
    }
    found = []
    for m in sizes:
        for name in methods:
            fit, flop = made[name]
            model = fit(fitting.subsets[:m], fitting.outputs[:m, 0], n)
            found.append(g.point(name, model.tau, n_models=m, flop=flop(m, model.steps)))
    return found


def influence_points(whole: Ground, seed: int, n_targets: int) -> list[Point]:
    """Influence functions of one network trained on all rows, by three solvers.

    Each target is solved for, so that a large ground is judged on the first `n_targets` of its
    targets; the cost is that of all.
    """
    g = whole.first(n_targets)
    n, t = len(whole.train[0]), len(whole.targets[0])
    model = g.whole
    product_of = _curvature(g)
    product = product_of(None)
    generator = torch.Generator().manual_seed(seed)

    def conjugate(right: Tensor) -> Tensor:
        return solvers.conjugate_gradient(product, right, damping=DAMPING, max_steps=CG_STEPS).x

    def series(right: Tensor) -> Tensor:
        return solvers.lissa(
            product_of,
            n,
            right,
            generator=generator,
            scale=LISSA_SCALE,
            damping=DAMPING / LISSA_SCALE,  # its unit: the same damping as of the others
            depth=LISSA_DEPTH,
            batch=LISSA_BATCH,
            repeats=1,
        ).x

    with warnings.catch_warnings():  # the first forward-mode derivative of a process loads old code
        warnings.simplefilter("ignore", FutureWarning)
        product(torch.zeros(g.p, device=g.train[0].device))
    pairs = solvers.arnoldi(
        product, g.p, generator=generator, steps=ARNOLDI_STEPS, rank=ARNOLDI_STEPS
    )
    step = partial(cost.hessian_products, g.forward)
    dots = g.reading + cost.scores(n, g.p, t)
    made = [
        (
            "influence, CG",
            influence.influence(model, g.train, g.targets, conjugate),
            dots + step(n, CG_STEPS * t),
        ),
        (
            "influence, LiSSA",
            influence.influence(model, g.train, g.targets, series),
            dots + step(LISSA_BATCH, LISSA_DEPTH * t),
        ),
        (
            "influence, Arnoldi",
            influence.arnoldi_influence(model, g.train, g.targets, pairs, damping=DAMPING),
            g.reading + step(n, ARNOLDI_STEPS) + cost.scores(n + t, g.p, ARNOLDI_STEPS),
        ),
    ]
    return [g.point(name, tau, n_models=1, flop=flop, runs=2.0) for name, tau, flop in made]


def _curvature(g: Ground) -> Callable[[Tensor | None], gradients.Product]:
    """Products with the Gauss-Newton matrix over some rows (None: all), without a penalty.

    By matrix products where a square root of the matrix is small enough to be kept.
    """
    model, n = g.whole, len(g.train[0])
    n_classes = int(g.train[1].max()) + 1
    if n_classes * n * g.p > MOST_NUMBERS:
        return lambda rows: gradients.ggn_product(
            model, g.train if rows is None else tuple(part[rows] for part in g.train),
            gradients.cross_entropy,
        )  # fmt: skip
    root = gradients.ggn_rows(model, g.train)

    def product_of(rows: Tensor | None) -> gradients.Product:
        part = (root if rows is None else root[:, rows]).flatten(0, 1)
        n_rows = len(part) / len(root)
        return lambda v: part.mT @ (part @ v) / n_rows

    return product_of


def kronecker_points(g: Ground, sizes: Sequence[int], seed: int) -> list[Point]:
    """K-FAC and EK-FAC, averaged over networks on halves of the rows."""
    n, t = len(g.train[0]), len(g.targets[0])
    sides = [
        (weight[0].numel() + 1, len(weight))
        for name, weight in g.whole.named_parameters()
        if weight.ndim > 1 and not name.startswith("words")
    ]
    flop = g.reading + g.reading + cost.kronecker(n, t, sides)
    found = []
    for name, fit in (("K-FAC", kfac.fit_kfac), ("EK-FAC", kfac.fit_ekfac)):
        total = torch.zeros(n, t)
        for index, model in enumerate(g.halves[: max(sizes)]):
            generator = torch.Generator().manual_seed(seed + index)
            curvature = fit(model, g.train[0], generator=generator)
            total = total + kfac.influence(curvature, model, g.train, g.targets)
            if index + 1 in sizes:
                m = index + 1
                found.append(g.point(name, total / m, n_models=m, flop=m * flop))
    return found


def similarity_points(g: Ground, seed: int) -> list[Point]:
    """Gradients and representations compared without any curvature, and chance."""
    n, t = len(g.train[0]), len(g.targets[0])
    data = g.train, g.targets
    dots = g.reading + g.dots
    count = len(g.path)
    features = baselines.penultimate(g.whole, g.train[0][:1]).shape[1]
    passes = g.forward * (n + t) + cost.scores(n, features, t)
    chance = baselines.random(n, t, torch.Generator().manual_seed(seed))
    made: list[tuple[str, Tensor, float]] = [
        ("Grad-Dot", baselines.grad_dot(g.whole, *data), dots),
        ("Grad-Cos", baselines.grad_cos(g.whole, *data), dots),
        ("TracIn", baselines.tracin(g.path, g.rates, *data), count * dots),
        ("GAS", baselines.gas(g.path, *data), count * dots),
        ("representation", baselines.representation(g.whole, *data), passes),
        ("representer points", baselines.representer_points(g.whole, *data), passes),
    ]
    found = [g.point(name, tau, n_models=1, flop=flop, runs=2.0) for name, tau, flop in made]
    return [*found, g.point("random", chance, n_models=0, flop=0.0)]


def valuation_points(g: Ground, seed: int) -> list[Point]:
    """Shapley values in the features of one network, for nearest neighbours and for ridge."""
    n, t = len(g.train[0]), len(g.targets[0])
    train, targets = ((baselines.penultimate(g.whole, x), y) for x, y in (g.train, g.targets))
    d = train[0].shape[1] + 1
    passes = g.forward * (n + t)
    walked = valuation.data_shapley(
        valuation.ridge_utility(train, targets),
        n,
        n_orders=N_ORDERS,
        seed=seed,
        tolerance=TOLERANCE,
    )
    distances = passes + cost.scores(n, d, t)
    walk = passes + walked.n_steps * (4.0 * d * d + 2.0 * d * t)
    neighbours = valuation.knn_shapley(train, targets)
    return [
        g.point("KNN-Shapley", neighbours, n_models=1, flop=distances, runs=2.0),
        g.point("Data Shapley", walked.tau, n_models=1, flop=walk, runs=2.0),
    ]


def best(points: Sequence[Point], methods: Sequence[str]) -> Point:
    """The highest score among some methods."""
    return max((q for q in points if q.method in methods), key=_score)


def front(points: Sequence[Point]) -> list[Point]:
    """Points that no cheaper one reaches, from cheap to dear."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda q: (q.compute, -q.score)):
        if not kept or point.score > kept[-1].score:
            kept.append(point)
    return kept


def crossing(sizes: Sequence[float], values: Sequence[float], level: float) -> float:
    """The size at which a rising curve reaches a level, on a logarithmic axis.

    Returns:
        Infinity where the curve stays below; the first size where it starts above.
    """
    if values[0] >= level:
        return float(sizes[0])
    for (a, b), (u, v) in zip(pairwise(sizes), pairwise(values), strict=True):
        if u < level <= v:
            share = (level - u) / (v - u)
            return exp(log(a) + share * (log(b) - log(a)))
    return float("inf")


def saving(points: Sequence[Point], n_models: int) -> tuple[float, float]:
    """How much dearer datamodels are than TRAK at TRAK's score, in compute and in networks.

    Args:
        points: of TRAK and of datamodels at several sizes.
        n_models: networks of TRAK.

    Returns:
        Ratio of compute, to the better of LASSO and ridge at each size; ratio of networks, to
        ridge. Infinity where datamodels stay below.
    """
    ours = next(q for q in points if q.method == "TRAK" and q.n_models == n_models)
    ridge = [q for q in points if q.method == "datamodel, ridge"]
    both = [q for q in points if q.method.startswith("datamodel")]
    better = [max((q for q in both if q.n_models == r.n_models), key=_score) for r in ridge]
    compute = crossing([q.compute for q in better], [q.score for q in better], ours.score)
    networks = crossing([q.n_models for q in ridge], [q.score for q in ridge], ours.score)
    return compute / ours.compute, networks / n_models


def _score(point: Point) -> float:
    return point.score


def benchmark(run: Run, names: Sequence[str]) -> dict[str, dict[str, tuple[float, float]]]:
    """Our scores beside those of the dattri benchmark: setting -> method -> (ours, published).

    100 subsets, one network each, TRAK on half-data networks with k = 512 and without a ridge, as
    published. Costly: influence functions of 500 targets of a network of 0.1M weights.
    """
    found = {}
    for name in names:
        g = ground(run, name, 100, 1, max(BENCHMARK_SIZES))
        steps = trak_steps(g, max(BENCHMARK_SIZES), k=512, ridge=0.0)
        points = similarity_points(g, run.seed)
        points += influence_points(g, run.seed, run.size.n_solved)
        ours = {q.method: q.score for q in points}
        ours |= {f"TRAK-{m}": g.lds(steps[m - 1].tau) for m in BENCHMARK_SIZES}
        found[name] = {
            method: (ours[method], published[name]) for method, published in BENCHMARK.items()
        }
    return found


def curvature_agreement(lam: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Correlation with exact influence `[T]`, odd against even digits, logistic regression.

    Returns:
        Of TRAK with the loss's curvature and the penalty as its ridge; and of TRAK as published,
        without curvature, at the same ridge.

    Source: specification section 4.1 (what dropping R costs).
    """
    setting = settings.digits_mlp()
    fit = convex.fit_logistic(setting.train.x, setting.train.y % 2, lam=lam)
    sign, target_sign = (2 * (split.y % 2) - 1 for split in (setting.train, setting.targets))
    exact = convex.influence(
        fit, convex.output_gradients(fit, setting.targets.x, lambda out: out[:, 0] * target_sign)
    )
    phi = fit.a * sign[:, None]
    target = convex.design(setting.targets.x) * target_sign[:, None]
    weights = torch.sigmoid(-fit.out(setting.train.x)[:, 0] * sign)[:, None]
    found = []
    for bend in (fit.curvature.flatten(), None):
        share = lam * len(phi) / surrogate.gram(phi, bend).diagonal().mean().item()
        tau = weights * surrogate.scores(phi, target, ridge=share, curvature=bend)
        found.append(metrics.pearson(tau, exact))
    return found[0], found[1]
