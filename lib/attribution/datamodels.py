"""Datamodels: a linear function of the training set that predicts what a network outputs.

Document 4, datamodels; specification section 3. For each target, regress the outputs of networks
trained on random subsets on the indicators of who was in: with an L1 penalty (the datamodel), with
an L2 penalty, or one row at a time (empirical influence, marginal means). All targets are fitted
together on the shared Gram matrix of the indicators.

Every column of the indicators has about the same variance, so nothing is standardised; the bias is
free. A penalty is chosen on the last subsets, held out, then all subsets are fitted with it.

Public names: `fit_lasso`, `fit_ridge`, `empirical_influence`, `lasso`, `ridge`, `Datamodel`,
`Path`, `evaluate`, `Evaluation`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.attribution.metrics import pearson, predicted, refuse_nan, spearman
from lib.attribution.subsets import check_subsets

RIDGES = tuple(10.0 ** (k / 4) for k in range(4, 17))  # rho from 10 to 10,000
MAX_STEPS = 5000
CHOICE_TOL = 1e-3  # along the path; a tenth of it chooses the same penalties (measured)
CHECK_EVERY = 10  # steps between looks at who has converged


@dataclass(frozen=True)
class Path:
    """How held-out error and sparsity follow the penalty."""

    penalties: Tensor  # [K, T], falling
    error: Tensor  # held-out mean squared error [K, T]
    n_weights: Tensor  # int64 [K, T], weights that are not zero


@dataclass(frozen=True)
class Datamodel:
    """Linear datamodels of T targets: output ~ sum of `tau` over the subset + `bias`."""

    tau: Tensor  # float64 [n, T]
    bias: Tensor  # [T]
    penalty: Tensor  # [T]; 0 for empirical influence, which has none
    path: Path | None = None

    def predict(self, subsets: Tensor) -> Tensor:
        """Outputs `[m, T]` of networks trained on subsets `[m, k]`."""
        return predicted(self.tau, subsets) + self.bias


@dataclass(frozen=True)
class Evaluation:
    """Predicted against observed outputs over held-out subsets, each `[T]`."""

    pearson: Tensor
    spearman: Tensor
    error: Tensor  # mean squared
    baseline: Tensor  # of predicting each target's mean over these subsets: their variance


def fit_lasso(
    subsets: Tensor,
    outputs: Tensor,
    n: int,
    *,
    n_penalties: int = 25,
    smallest: float = 0.01,
    held_out: float = 0.1,
) -> Datamodel:
    """Datamodels by L1-penalised regression, the penalty of each target chosen on held-out subsets.

    Args:
        subsets: int64 `[m, k]`, sorted.
        outputs: of one network a subset, `[m, T]`.
        n: number of training rows.
        n_penalties: length of the path.
        smallest: last penalty as a share of the first, at which all weights are zero.
        held_out: share of the subsets, the last ones, that choose.

    Raises:
        ValueError: shapes, NaN, a target whose output never changes, too few subsets.

    Source: specification section 3.1. Its lambda multiplies the norm beside the *mean* squared
    error, so that the path starts at 2 max|X'(F - mean)|/m (the section leaves out the 2).
    """
    fitting, choosing = _divided(subsets, outputs, n, held_out)
    moments = _moments(*fitting, n)
    largest = 2 * moments.cross.abs().amax(0)
    shares = torch.logspace(0, math.log10(smallest), n_penalties, dtype=torch.float64)
    penalties = shares[:, None] * largest
    weights = torch.zeros(n, outputs.shape[1])
    errors, counts = [], []
    gram, cross = moments.gram.float(), moments.cross.float()
    step = 1 / _top_eigenvalue(gram)
    for penalty in penalties:  # from the previous solution; single precision is enough to choose
        weights = _fista(gram, cross, penalty.float() / 2, weights, step, tol=CHOICE_TOL)
        errors.append(moments.error(weights.double(), *choosing))
        counts.append((weights != 0).sum(0))
    path = Path(penalties, torch.stack(errors), torch.stack(counts))
    best = path.error.argmin(0, keepdim=True)
    chosen = lasso(subsets, outputs, n, penalty=penalties.gather(0, best)[0], start=weights)
    return Datamodel(chosen.tau, chosen.bias, chosen.penalty, path)


def lasso(
    subsets: Tensor,
    outputs: Tensor,
    n: int,
    *,
    penalty: Tensor,
    start: Tensor | None = None,
    tol: float = 1e-8,
) -> Datamodel:
    """Minimise `mean (tau' 1_S + bias - F)^2 + penalty |tau|_1` for every target at its penalty.

    Args:
        subsets, outputs, n: as for `fit_lasso`.
        penalty: lambda of each target, `[T]`, positive; scikit-learn's alpha is half of it.
        start: weights to start from, `[n, T]`; the solution does not depend on them.
        tol: how far the optimality conditions may be off, relative to the smallest penalty that
            sets all weights to zero.
    """
    _checked(subsets, outputs, n)
    if penalty.shape != outputs.shape[1:] or not (penalty > 0).all():
        raise ValueError(
            f"want one positive penalty a target, [{outputs.shape[1]}], got "
            f"{list(penalty.shape)} with smallest {penalty.min().item():g}"
        )
    moments = _moments(subsets, outputs, n)
    begin = torch.zeros_like(moments.cross) if start is None else start.double()
    step = 1 / _top_eigenvalue(moments.gram)
    tau = _fista(moments.gram, moments.cross, penalty.double() / 2, begin, step, tol)
    return Datamodel(tau, moments.bias(tau), penalty.double())


def fit_ridge(
    subsets: Tensor,
    outputs: Tensor,
    n: int,
    *,
    penalties: Sequence[float] = RIDGES,
    held_out: float = 0.1,
) -> Datamodel:
    """Datamodels by L2-penalised regression, one penalty for all targets by held-out subsets.

    The choice minimises the held-out error relative to each target's variance, averaged over
    targets. Arguments and errors as for `fit_lasso`.

    Source: specification section 3.1.
    """
    fitting, choosing = _divided(subsets, outputs, n, held_out)
    moments = _moments(*fitting, n)
    weights = _ridge_path(moments, len(fitting[0]), penalties)
    errors = torch.stack([moments.error(w, *choosing) for w in weights])
    best = penalties[int((errors / moments.variance).mean(1).argmin())]
    chosen = ridge(subsets, outputs, n, penalty=best)
    grid = torch.tensor(list(penalties), dtype=torch.float64)[:, None].expand_as(errors)
    path = Path(grid, errors, torch.full_like(errors, n, dtype=torch.int64))
    return Datamodel(chosen.tau, chosen.bias, chosen.penalty, path)


def ridge(subsets: Tensor, outputs: Tensor, n: int, *, penalty: float) -> Datamodel:
    """`tau = (Z'Z + penalty I)^-1 Z'F` with centred indicators Z and outputs F."""
    _checked(subsets, outputs, n)
    if not penalty > 0:
        raise ValueError(
            f"want a positive ridge penalty, got {penalty}; subsets of one size make the Gram "
            "matrix singular"
        )
    moments = _moments(subsets, outputs, n)
    m = len(subsets)
    system = moments.gram + penalty / m * torch.eye(n, dtype=torch.float64)
    tau = torch.cholesky_solve(moments.cross, torch.linalg.cholesky(system))
    rho = torch.full((outputs.shape[1],), penalty, dtype=torch.float64)
    return Datamodel(tau, moments.bias(tau), rho)


def empirical_influence(subsets: Tensor, outputs: Tensor, n: int) -> Datamodel:
    """Marginal means: mean output with a row minus mean output without it.

    Raises:
        ValueError: as for `fit_lasso`; or a row that is in every subset, or in none.

    Source: specification section 3.1. The bias makes the mean prediction right; with thousands of
    rows the summed effects overshoot, since each also carries the noise of one network a subset.
    """
    _checked(subsets, outputs, n)
    moments = _moments(subsets, outputs, n)
    share = moments.presence
    odd = (share == 0) | (share == 1)
    if odd.any():
        raise ValueError(
            f"row {int(odd.nonzero()[0])} is in all or none of the {len(subsets)} subsets, so its "
            "effect cannot be seen; train on more subsets"
        )
    tau = moments.cross / (share * (1 - share))[:, None]
    none = torch.zeros(outputs.shape[1], dtype=torch.float64)
    return Datamodel(tau, moments.bias(tau), none)


def evaluate(model: Datamodel, subsets: Tensor, outputs: Tensor) -> Evaluation:
    """Compare predictions with outputs `[m, T]` on subsets that were not used to fit.

    Source: specification section 3.3.
    """
    _checked(subsets, outputs, len(model.tau))
    observed, guess = outputs.double(), model.predict(subsets)
    return Evaluation(
        pearson(guess, observed),
        spearman(guess, observed),
        (guess - observed).square().mean(0),
        observed.var(0, correction=0),
    )


@dataclass(frozen=True)
class _Moments:
    """Means and central second moments of indicators and outputs."""

    gram: Tensor  # [n, n]
    cross: Tensor  # [n, T]
    presence: Tensor  # [n], share of subsets that hold a row
    mean: Tensor  # [T]
    variance: Tensor  # [T]

    def bias(self, tau: Tensor) -> Tensor:
        return self.mean - self.presence @ tau

    def error(self, tau: Tensor, subsets: Tensor, outputs: Tensor) -> Tensor:
        guess = predicted(tau, subsets) + self.bias(tau)
        return (guess - outputs).square().mean(0)


def _moments(subsets: Tensor, outputs: Tensor, n: int) -> _Moments:
    m = len(subsets)
    # single precision counts exactly up to 2^24
    indicators = torch.zeros(m, n).scatter_(1, subsets, 1.0)
    presence = indicators.sum(0).double() / m
    gram = (indicators.T @ indicators).double() / m - presence.outer(presence)
    values = outputs.double()
    mean = values.mean(0)
    # the centred outputs sum to zero, so the indicators need not be centred
    cross = indicators.T.double() @ (values - mean) / m
    return _Moments(gram, cross, presence, mean, values.var(0, correction=0))


def _ridge_path(moments: _Moments, m: int, penalties: Sequence[float]) -> list[Tensor]:
    """Weights `[n, T]` for every penalty, from one eigendecomposition."""
    values, vectors = torch.linalg.eigh(moments.gram)
    rotated = vectors.T @ moments.cross
    return [vectors @ (rotated / (values + rho / m)[:, None]) for rho in penalties]


def _fista(
    gram: Tensor, cross: Tensor, threshold: Tensor, start: Tensor, step: float, tol: float
) -> Tensor:
    """Minimise `w'Gw/2 - c'w + threshold |w|_1` for each column, by accelerated proximal steps.

    The momentum of a column starts anew where it points uphill; columns leave when they meet the
    optimality conditions to `tol` times the largest entry of their `cross`.

    Args:
        gram: `[n, n]`, cross: `[n, T]`, threshold: `[T]`, start: `[n, T]`.
        step: at most 1 over the largest eigenvalue of `gram`.
    """
    result = start.clone()
    columns = torch.arange(cross.shape[1])
    limit = tol * cross.abs().amax(0)
    w, point = start, start
    momentum = torch.ones_like(threshold)
    for k in range(1, MAX_STEPS + 1):
        moved = point - step * (gram @ point - cross)
        new = moved - moved.clamp(-step * threshold, step * threshold)
        away = point - new
        change = new - w
        uphill = (away * change).sum(0) > 0
        following = (1 + (1 + 4 * momentum.square()).sqrt()) / 2
        speed = torch.where(uphill, 0.0, (momentum - 1) / following)
        momentum = torch.where(uphill, 1.0, following)
        w, point = new, new + speed * change
        if k % CHECK_EVERY == 0:
            going = away.abs().amax(0) > step * limit
            if not going.all():
                result[:, columns[~going]] = w[:, ~going]
                if not going.any():
                    return result
                columns, limit, threshold = columns[going], limit[going], threshold[going]
                cross, w, point = cross[:, going], w[:, going], point[:, going]
                momentum = momentum[going]
    raise ValueError(
        f"{len(columns)} of {len(result.T)} targets did not converge in {MAX_STEPS} steps, the "
        f"first is target {int(columns[0])}; raise the penalty or the tolerance"
    )


def _top_eigenvalue(gram: Tensor) -> float:
    return torch.linalg.eigvalsh(gram.double())[-1].item() * (1 + 1e-6)


def _divided(
    subsets: Tensor, outputs: Tensor, n: int, held_out: float
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """The subsets to fit and the last ones, which choose the penalty."""
    _checked(subsets, outputs, n)
    m = len(subsets)
    n_choosing = round(held_out * m)
    if n_choosing < 3 or m - n_choosing < 3:
        raise ValueError(
            f"{m} subsets leave {n_choosing} to choose the penalty and {m - n_choosing} to fit; "
            "want at least 3 of each, so train on more subsets"
        )
    a = m - n_choosing
    return (subsets[:a], outputs[:a]), (subsets[a:], outputs[a:].double())


def _checked(subsets: Tensor, outputs: Tensor, n: int) -> None:
    check_subsets(subsets, n)
    if outputs.ndim != 2 or len(outputs) != len(subsets):
        raise ValueError(
            f"want outputs [m, T] with m = {len(subsets)}, got {list(outputs.shape)}; take one "
            "repeat or the mean over repeats"
        )
    if len(subsets) < 3:
        raise ValueError(f"want at least 3 subsets, got {len(subsets)}; train on more")
    refuse_nan(outputs, "outputs", "subset")
    flat = (outputs == outputs[0]).all(0)
    if flat.any():
        named = ", ".join(str(t) for t in flat.nonzero()[:5, 0].tolist())
        raise ValueError(
            f"{int(flat.sum())} targets have the same output for every subset (target {named}); "
            "nothing about them can be attributed, so leave them out"
        )
