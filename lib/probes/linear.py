"""Dense linear probes: logistic regression by Newton's method and ridge in closed form.

Document 1 (attributing learned concepts), the linear probes; document 5 (concept
backpropagation), the concept probes. Both standardise every channel on the fit rows, solve in
float64 for a whole batch of models at once, and fold the scaling back, so that a probe always
reads raw activations.

In reading order: ``Probe``, ``fit_logistic``, ``fit_ridge``, ``balanced_weights``,
``concept_direction``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.probes.inputs import check_fit_data, check_penalty, check_weights, standardise
from lib.probes.newton import minimise, pull, solve, to_row_space

# Numbers of activations solved at a time: the float64 copies then stay in a core's cache, which
# is three times faster than one pass over 100 models (measured), and needs no memory to speak of.
_BLOCK = 2**18


@dataclass(frozen=True)
class Probe:
    """Fitted linear probes in raw activation units: ``score(z) = z @ weight + bias``.

    A leading axis of ``m`` models, and before it one of penalties or sizes, is present only when
    the fit was given several of them.
    """

    weight: Tensor  # [..., d]
    bias: Tensor  # [...]
    steps: int  # Newton steps of the slowest fit; 0 for a closed form
    converged: Tensor  # [...] bool

    def score(self, z: Tensor) -> Tensor:
        """Score activations: the logit of a logistic probe, the prediction of a ridge probe.

        Args:
            z: ``[n, d]`` (every probe reads the same rows) or ``[m, n, d]`` (model by model).

        Returns:
            ``[..., n]``, the leading axes those of ``weight`` (for one probe, those of ``z``).

        Raises:
            ValueError: the channels or the number of models disagree.
        """
        weight, bias = self.weight, self.bias
        fits = z.ndim in (2, 3) and z.shape[-1] == weight.shape[-1]
        if not fits or (z.ndim == 3 and weight.ndim > 1 and z.shape[0] != weight.shape[-2]):
            raise ValueError(
                f"want z [n, d] or [m, n, d] for probes of weight {tuple(weight.shape)}, got "
                f"{tuple(z.shape)}; read the layer and the models that the probe was fitted on"
            )
        if weight.ndim == 1:
            return z @ weight + bias
        rows = "nd" if z.ndim == 2 else "mnd"
        return torch.einsum(f"{rows},...md->...mn", z, weight) + bias[..., None]


def fit_logistic(
    z: Tensor,
    y: Tensor,
    *,
    C: float | Sequence[float] = 1.0,
    weights: Tensor | None = None,
    max_steps: int = 50,
    tol: float = 1e-8,
    chunk: int = 1024,
) -> Probe:
    """Fit L2 logistic probes with a damped Newton method, a batch of them at once.

    Minimises ``0.5 |w|^2 + C * sum_i weights_i * loss_i`` over standardised channels, the bias
    free: scikit-learn's objective, whose optimum is unique.

    Args:
        z: activations, ``[n, d]`` or ``[m, n, d]``, a float dtype; solved in float64.
        y: concept labels in {0, 1}, ``[n]`` or ``[m, n]``.
        C: inverse penalty; a sequence of ``p`` adds a leading axis ``p`` to the probe.
        weights: example weights, ``[n]`` or ``[m, n]``. They count in the standardisation too, so
            that weight 2 is a row given twice and weight 0 a row left out.
        max_steps: upper bound on Newton steps.
        tol: a fit stops when its Newton decrement is below this. The decrement bounds the distance
            to the optimum in standardised weights, whatever ``C`` and ``n`` are.
        chunk: rows per block of the Hessian; bounds memory at ``m * chunk * d`` numbers, and does
            not change the result.

    Returns:
        The probe in ``z``'s dtype and on its device; constant channels have weight 0.

    Raises:
        ValueError: the data are refused (see ``check_fit_data``), ``C``, ``tol``, ``max_steps`` or
            ``chunk`` is not positive, or ``weights`` leave a class without rows.

    Source: document 1, the linear probe; C = 1 and standardised features are this project's
    choice, the document states no penalty.
    """
    data = check_fit_data(z, y)
    inverse = check_penalty("C", C)
    if max_steps < 1 or not tol > 0 or chunk < 1:
        raise ValueError(
            f"want max_steps >= 1, tol > 0, chunk >= 1; got {max_steps}, {tol}, {chunk}"
        )
    batched, labels = data.batched, data.y
    importance: Tensor | None = None
    if weights is not None:
        importance = check_weights(weights, data)
        batched = batched or weights.ndim == 2
        models = max(labels.shape[0], importance.shape[0])
        labels = labels.expand(models, -1)
    x, mean, scale = standardise(data.z, importance)
    x, lift = to_row_space(x)
    origin = torch.zeros_like(x[:, 0]).expand(labels.shape[0], -1)
    start: tuple[Tensor, Tensor | None] = origin, None
    solved, steps, done = [], 0, []
    for c in inverse:
        cost = c * (torch.ones_like(labels) if importance is None else importance)
        weight, bias, taken, converged = minimise(
            x, labels, cost.expand_as(labels), start, max_steps, tol, chunk
        )
        start = weight, bias  # the next penalty starts where this one ended
        solved.append((lift(weight), bias))
        done.append(converged)
        steps = max(steps, taken)
    weight = torch.stack([w for w, _ in solved]) * scale
    bias = torch.stack([b for _, b in solved]) - (weight * mean).sum(-1)
    drop = isinstance(C, Sequence), batched
    return Probe(
        _shape(weight, *drop).to(data.dtype),
        _shape(bias, *drop).to(data.dtype),
        steps,
        _shape(torch.stack(done), *drop),
    )


def fit_ridge(z: Tensor, y: Tensor, *, l2: float | Sequence[float]) -> Probe:
    """Fit ridge probes in closed form, all models and all penalties in one call.

    Minimises ``sum_i (y_i - w.x_i - b)^2 + l2 |w|^2`` over standardised channels, the bias free.
    A ``y`` of nothing but 0 and 1 is read as labels and coded -1 and +1, so that a score above 0
    says "present"; any other ``y`` is a real target and is left alone.

    Args:
        z: activations, ``[n, d]`` or ``[m, n, d]``, a float dtype; solved in float64.
        y: labels or targets, ``[n]`` or ``[m, n]``.
        l2: penalty > 0; a sequence of ``p`` adds a leading axis ``p`` to the probe.

    Returns:
        The probe in ``z``'s dtype and on its device; constant channels have weight 0.

    Raises:
        ValueError: the data are refused (see ``check_fit_data``), or ``l2`` is not positive.

    Source: document 1, the probe in the form that batches over models.
    """
    penalties = check_penalty("l2", l2)
    if ((y == 0) | (y == 1)).all():
        y = 2.0 * y - 1.0
    block = max(1, _BLOCK // max(1, z.shape[-2:].numel()))
    if z.ndim == 3 and len(z) > block and y.shape[-1] == z.shape[1]:
        starts = range(0, len(z), block)
        rows = [y if y.ndim == 1 else y[i : i + block] for i in starts]
        fits = [fit_ridge(z[i : i + block], r, l2=l2) for i, r in zip(starts, rows, strict=True)]
        axis = 1 if isinstance(l2, Sequence) else 0
        return Probe(
            torch.cat([fit.weight for fit in fits], axis),
            torch.cat([fit.bias for fit in fits], axis),
            0,
            torch.cat([fit.converged for fit in fits], axis),
        )
    data = check_fit_data(z, y, labels=False)
    target = data.y
    x, mean, scale = standardise(data.z)
    centre = target.mean(-1)
    residual = target - centre[:, None]
    # d > n: (X'X + l2)^-1 X'y = X'(XX' + l2)^-1 y, and XX' is the smaller matrix.
    dual = x.shape[-1] > x.shape[-2]
    gram = x @ x.mT if dual else x.mT @ x
    right = residual if dual else pull(x, residual)
    # One eigendecomposition would serve every penalty, yet costs more than the Cholesky factors of
    # 10 penalties (measured); the loop also keeps one factor a model in memory.
    diagonal = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    parts = [solve(gram + value * diagonal, right) for value in penalties]
    solution = torch.stack(parts)
    if dual:
        solution = torch.stack([pull(x, part) for part in solution])
    weight = solution * scale
    bias = centre - (weight * mean).sum(-1)
    drop = isinstance(l2, Sequence), data.batched
    return Probe(
        _shape(weight, *drop).to(data.dtype),
        _shape(bias, *drop).to(data.dtype),
        0,
        torch.ones_like(_shape(bias, *drop), dtype=torch.bool),
    )


def balanced_weights(y: Tensor) -> Tensor:
    """Example weights that give both classes the same total: ``n / (2 n_class)``.

    Args:
        y: labels in {0, 1}, ``[..., n]``, both classes present.

    Returns:
        ``[..., n]`` float64, summing to ``n``; for ``fit_logistic(weights=...)``.

    Raises:
        ValueError: a class is absent, or a label is neither 0 nor 1.
    """
    label = y.double()
    share = label.mean(-1, keepdim=True)
    if not ((label == 0) | (label == 1)).all() or (share == 0).any() or (share == 1).any():
        raise ValueError("want labels in {0, 1} with both classes present to balance them")
    return 0.5 * (label / share + (1 - label) / (1 - share))


def concept_direction(probe: Probe) -> Tensor:
    """Return the unit vectors along which concept scores rise fastest, in raw activation space.

    Across seeds such directions have no common basis; compare scores there (``score_agreement``).

    Args:
        probe: fitted probes, weight ``[..., d]``.

    Returns:
        ``[..., d]`` of norm 1.

    Raises:
        ValueError: a probe's weight is all zero and so has no direction.
    """
    norm = probe.weight.norm(dim=-1, keepdim=True)
    if (norm == 0).any():
        raise ValueError("a probe has weight 0 everywhere: no direction; fit it with less penalty")
    return probe.weight / norm


def _shape(stacked: Tensor, keep_penalties: bool, keep_models: bool) -> Tensor:
    """Drop the axes (penalty, model) that the caller did not ask for."""
    stacked = stacked if keep_models else stacked[:, 0]
    return stacked if keep_penalties else stacked[0]
