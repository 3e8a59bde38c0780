"""Datamodels: a linear function of the training set that predicts what a network outputs.

Document 4, datamodels; specification section 3. For each target, regress the outputs of networks
trained on random subsets on the indicators of who was in: with an L1 penalty (the datamodel), with
an L2 penalty, or one row at a time (empirical influence, marginal means). All targets are fitted
together on the shared Gram matrix of the indicators.

Every column of the indicators has about the same variance, so nothing is standardised; the bias is
free. A penalty is chosen on the last subsets, held out, then all subsets are fitted with it.

Public names: `fit_lasso`, `fit_ridge`, `empirical_influence`, `lasso`, `ridge`, `evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib.attribution import proximal
from lib.attribution.metrics import pearson, predicted, refuse_nan, spearman
from lib.attribution.subsets import check_subsets

RIDGES = tuple(10.0 ** (k / 4) for k in range(4, 17))  # rho from 10 to 10,000
CHOICE_TOL = 1e-3  # along the path; a tenth of it chooses the same penalties (measured)
GIVE_UP = 1.5  # a target leaves the path when its error is so many times its smallest
STEPS = 200  # of the proximal method between attempts at the exact solution
ROUNDS = 200


@dataclass(frozen=True)
class Path:
    """How held-out error and sparsity follow the penalty; NaN once a target has left the path."""

    penalties: Tensor  # [K, T], falling
    error: Tensor  # held-out mean squared error [K, T]
    n_weights: Tensor  # float64 [K, T], weights that are not zero


@dataclass(frozen=True)
class Datamodel:
    """Linear datamodels of T targets: output ~ sum of `tau` over the subset + `bias`."""

    tau: Tensor  # float64 [n, T]
    bias: Tensor  # [T]
    penalty: Tensor  # [T]; 0 for empirical influence, which has none
    path: Path | None = None
    steps: float = 0.0  # proximal steps of LASSO, the mean over targets

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
    times, step = _operator(moments, torch.float32)
    cross = moments.cross.float()
    limit = CHOICE_TOL * cross.abs().amax(0)
    weights = torch.zeros_like(cross)
    best, chosen, start = torch.full_like(largest, torch.inf), largest, weights.clone()
    active = torch.ones_like(largest, dtype=torch.bool)
    errors, counts, spent = [], [], 0
    for penalty in penalties:  # each from the solution before; this close is enough to choose
        a = active.nonzero()[:, 0]
        if len(a):
            half = penalty[a].float() / 2
            before = weights[:, a]
            weights[:, a], _, more = proximal.minimise(
                times, cross[:, a], half, before, step, limit[a], 10 * STEPS
            )
            spent += more
        error = moments.error(weights.double(), *choosing).masked_fill(~active, torch.nan)
        errors.append(error)
        counts.append((weights != 0).sum(0).double().masked_fill(~active, torch.nan))
        better = error < best
        best, chosen = error.where(better, best), penalty.where(better, chosen)
        start = weights.where(better, start)
        active = error <= GIVE_UP * best
    path = Path(penalties, torch.stack(errors), torch.stack(counts))
    fit = lasso(subsets, outputs, n, penalty=chosen, start=start)
    return replace(fit, path=path, steps=fit.steps + spent / len(largest))


def lasso(
    subsets: Tensor,
    outputs: Tensor,
    n: int,
    *,
    penalty: Tensor,
    start: Tensor | None = None,
    tol: float = 1e-6,
) -> Datamodel:
    """Minimise `mean (tau' 1_S + bias - F)^2 + penalty |tau|_1` for every target at its penalty.

    Args:
        subsets, outputs, n: as for `fit_lasso`.
        penalty: lambda of each target, `[T]`, positive; scikit-learn's alpha is half of it.
        start: weights to start from, `[n, T]`; the solution does not depend on them.
        tol: how far the optimality conditions may be off, relative to the smallest penalty that
            sets all weights to zero; most targets are solved exactly.
    """
    _checked(subsets, outputs, n)
    if penalty.shape != outputs.shape[1:] or not (penalty > 0).all():
        raise ValueError(
            f"want one positive penalty a target, [{outputs.shape[1]}], got "
            f"{list(penalty.shape)} with smallest {penalty.min().item():g}"
        )
    moments = _moments(subsets, outputs, n)
    times, step = _operator(moments, torch.float64)
    tau = torch.zeros_like(moments.cross) if start is None else start.double().clone()
    limit = tol * moments.cross.abs().amax(0)
    going, spent = torch.arange(tau.shape[1]), 0
    for _ in range(ROUNDS):
        cross, threshold = moments.cross[:, going], penalty[going].double() / 2
        near, done, more = proximal.minimise(
            times, cross, threshold, tau[:, going], step, limit[going], STEPS
        )
        spent += more
        exact, is_optimal = proximal.on_support(moments.gram, cross, threshold, near, limit[going])
        tau[:, going] = torch.where(is_optimal, exact, near)
        going = going[~(done | is_optimal)]
        if not len(going):
            break
    else:
        raise ValueError(
            f"{len(going)} of {tau.shape[1]} targets did not converge in {ROUNDS * STEPS} steps, "
            f"the first is target {int(going[0])}; raise the penalty or the tolerance"
        )
    bias, steps = moments.bias(tau), spent / tau.shape[1]
    return Datamodel(tau, bias, penalty.double(), steps=steps)


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
    path = Path(grid, errors, torch.full_like(errors, n))
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

    indicators: Tensor  # [m, n], float32
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
    return _Moments(indicators, gram, cross, presence, mean, values.var(0, correction=0))


def _ridge_path(moments: _Moments, m: int, penalties: Sequence[float]) -> list[Tensor]:
    """Weights `[n, T]` for every penalty, from one eigendecomposition."""
    values, vectors = torch.linalg.eigh(moments.gram)
    rotated = vectors.T @ moments.cross
    return [vectors @ (rotated / (values + rho / m)[:, None]) for rho in penalties]


def _operator(moments: _Moments, dtype: torch.dtype) -> tuple[Callable[[Tensor], Tensor], float]:
    """The product with the Gram matrix, and 1 over its largest eigenvalue (a little less)."""
    m, n = moments.indicators.shape
    if 2 * m >= n:
        gram = moments.gram.to(dtype)
        return gram.matmul, 1 / (torch.linalg.eigvalsh(moments.gram)[-1].item() * (1 + 1e-6))
    z = moments.indicators - moments.presence  # two thin products cost less
    step = m / (torch.linalg.eigvalsh(z @ z.T)[-1].item() * (1 + 1e-6))
    z = z.to(dtype)
    return lambda w: z.T @ (z @ w) / m, step


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
