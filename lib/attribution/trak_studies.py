"""The studies of notebook 45: TRAK's choices, all methods on images and on text, and the gaps.

Document 4, TRAK; specification sections 4.3, 5.2 and 6. The methods themselves, each at its own
cost, are in `lib.attribution.pareto`.

Public names: `choices`, `Choices`, `one_network`, `projections`, `images`, `language`, `gaps`,
`language_gaps`, `benchmark_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite

import torch
from torch import Tensor

from lib import gradients
from lib.attribution import pareto, surrogate, trak, truth
from lib.attribution.ground import Ground, Point, ground
from lib.config import Run
from lib.training.loop import Progress

DECISIVE = 100.0  # the saving that the document claims at least
FEW, TEN = 5, 10  # networks: of the studies of one choice, and of the comparisons
SIMILARITY = ("Grad-Dot", "Grad-Cos", "GAS", "TracIn", "representation", "representer points")
VALUES = ("KNN-Shapley", "Data Shapley", "random")
INVERSES = ("influence, CG", "influence, LiSSA", "influence, Arnoldi")
DATAMODELS = ("datamodel, LASSO", "datamodel, ridge")


@dataclass(frozen=True)
class Choices:
    """Scores of TRAK as one choice varies."""

    by_k: Mapping[float, Sequence[tuple[int, float]]]  # ridge -> (k, LDS)
    by_ridge: Sequence[tuple[float, float]]  # (ridge, LDS) at the largest k
    weighted: Sequence[tuple[int, float, float]]  # (networks, LDS with Q, LDS without)

    @property
    def least_gain(self) -> float:
        """Smallest gain between successive numbers of networks."""
        return min(b[1] - a[1] for a, b in pairwise(self.weighted))

    @property
    def worth_of_weights(self) -> float:
        """Score with Q minus score without."""
        return next(a - b for m, a, b in self.weighted if m == FEW)

    @property
    def worth_of_ridge(self) -> float:
        """Score at a tenth minus score without a ridge."""
        found = dict(self.by_ridge)
        return found[0.1] - found[0.0]


def choices(g: Ground, run: Run, steps: Sequence[trak.Attribution]) -> Choices:
    """Vary k with and without a ridge, the ridge at the largest k, and the networks.

    Args:
        steps: TRAK after each network, at the run's own k and ridge.
    """
    size = run.size

    def score(k: int, ridge: float) -> float:
        return g.lds(pareto.trak_steps(g, FEW, k=k, ridge=ridge, seed=run.seed)[-1].tau)

    return Choices(
        {ridge: [(k, score(k, ridge)) for k in size.ks] for ridge in (size.ridge, 0.0)},
        [(ridge, score(max(size.ks), ridge)) for ridge in size.ridges],
        [(m, g.lds(steps[m - 1].tau), g.lds(steps[m - 1].unweighted)) for m in size.n_models],
    )


def one_network(gradient: Tensor, phi: Tensor, q: Tensor, ridge: float) -> list[dict[str, object]]:
    """What TRAK holds at one network: sizes, and how well the system is conditioned."""
    values = torch.linalg.eigvalsh(surrogate.gram(phi))
    bare, damped = (
        (values[-1] / (values[0] + share * values.mean()).abs()).item() for share in (0.0, ridge)
    )
    n, p, k = *gradient.shape, phi.shape[1]
    return [
        {"what": "gradients J", "shape": f"{n} x {p}", "note": "of the margin"},
        {"what": "features", "shape": f"{n} x {k}", "note": "projected"},
        {
            "what": "Gram matrix",
            "shape": f"{k} x {k}",
            "note": f"condition number {bare:.0e}, with ridge {damped:.0e}",
        },
        {
            "what": "weights Q",
            "shape": f"{n}",
            "note": f"median {q.median():.1g}; a tenth above {q.quantile(0.9):.1g}",
        },
    ]


def projections(g: Ground, run: Run, steps: Sequence[trak.Attribution]) -> dict[str, float]:
    """Scores of TRAK without a projection, with dense signs, and with the sparse one."""
    size = run.size
    exact = trak.trak_exact(g.halves[:FEW], g.train, g.targets, ridge=size.ridge)
    dense = pareto.trak_steps(
        g, TEN, k=size.k, ridge=size.ridge, seed=run.seed, projection=gradients.CachedSigns
    )
    return {
        f"none (kernel), {FEW} networks": g.lds(exact.tau),
        f"sparse, {FEW} networks": g.lds(steps[FEW - 1].tau),
        f"dense signs, {TEN} networks": g.lds(dense[-1].tau),
        f"sparse, {TEN} networks": g.lds(steps[TEN - 1].tau),
    }


def images(
    g: Ground, run: Run, steps: Sequence[trak.Attribution], progress: Progress | None = None
) -> list[Point]:
    """Every method on the main ground."""
    size, seed = run.size, run.seed
    fitting = truth.measure(
        g.setting, max(size.m_fit), seed=seed + truth.FITTING, progress=progress
    )
    return [
        *pareto.trak_points(g, size.n_models, size.k, steps),
        *pareto.kronecker_points(g, [m for m in size.n_models if m <= TEN], seed),
        *pareto.influence_points(g, seed, size.n_solved),
        *pareto.similarity_points(g, seed),
        *pareto.valuation_points(g, seed),
        *pareto.datamodel_points(g, fitting, size.m_fit),
    ]


def language(run: Run, progress: Progress | None = None) -> tuple[Ground, list[Point]]:
    """The methods of the lecture's language panel on a small transformer.

    Influence functions are left out: hundreds of products with its Hessian a target.
    """
    kind, seed = run.size.language, run.seed
    sizes, m = kind["n_models"], kind["m_fit"][0]
    h = ground(run, kind["setting"], kind["m_truth"], kind["repeats"], max(sizes), progress)
    fitting = truth.measure(h.setting, m, seed=seed + truth.FITTING, progress=progress)
    steps = pareto.trak_steps(h, max(sizes), k=kind["k"], ridge=run.size.ridge, seed=seed)
    plain = ("datamodel, ridge", "empirical influence")
    return h, [
        *pareto.trak_points(h, sizes, kind["k"], steps),
        *pareto.similarity_points(h, seed),
        *pareto.valuation_points(h, seed),
        *pareto.datamodel_points(h, fitting, [m], plain),
    ]


def gaps(points: Sequence[Point]) -> dict[str, float | None]:
    """What separates TRAK from the others: differences of scores and ratios of cost.

    Ratios are None where the datamodels of the run all stay below TRAK.
    """
    few, ten = (_trak(points, m) for m in (FEW, TEN))
    most = max((q for q in points if q.method == "TRAK"), key=lambda q: q.n_models)
    compute, networks = pareto.saving(points, TEN)
    ekfac = next(q for q in points if (q.method, q.n_models) == ("EK-FAC", TEN))
    return {
        "compute": compute if isfinite(compute) else None,
        "networks": networks if isfinite(networks) else None,
        "similarity": few.score - pareto.best(points, SIMILARITY + VALUES).score,
        "influence": few.score - pareto.best(points, INVERSES).score,
        "EK-FAC": ekfac.score - ten.score,
        "datamodels": pareto.best(points, DATAMODELS).score - most.score,
    }


def language_gaps(points: Sequence[Point]) -> dict[str, float | None]:
    """The same on text; where datamodels stay below TRAK, `networks` is a lower bound.

    A bound below `DECISIVE` says nothing and is None.
    """
    rivals = ("Grad-Dot", "GAS", "TracIn", "representation")
    given = max(q.n_models for q in points if q.method == "datamodel, ridge")
    networks = pareto.saving(points, TEN)[1]
    bound = given / TEN if given / TEN >= DECISIVE else None
    return {
        "similarity": _trak(points, TEN).score - pareto.best(points, rivals).score,
        "networks": networks if isfinite(networks) else bound,
    }


def benchmark_rows(
    table: Mapping[str, Mapping[str, tuple[float, float]]],
) -> list[dict[str, object]]:
    """Rows of `pareto.benchmark`, ours beside the published scores."""
    return [
        {"setting": name, "method": method, "ours": ours, "published": theirs}
        for name, methods in table.items()
        for method, (ours, theirs) in methods.items()
    ]


def _trak(points: Sequence[Point], n_models: int) -> Point:
    return next(q for q in points if (q.method, q.n_models) == ("TRAK", n_models))
