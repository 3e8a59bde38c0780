"""Logistic probes of layers with thousands of units: L-BFGS in the activations' own precision.

Newton's method (`linear.fit_logistic`) solves a d x d system a step: for convolutional layers read
square by square (document 5, chess) that takes minutes where L-BFGS takes seconds. Objective,
standardisation and result are the same.

Public names: `fit_wide`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from lib.probes.inputs import check_fit_data, check_penalty, check_weights
from lib.probes.linear import Probe


def fit_wide(
    z: Tensor,
    y: Tensor,
    *,
    C: float | Sequence[float] = 1.0,
    weights: Tensor | None = None,
    max_steps: int = 300,
    tol: float = 1e-4,
) -> Probe:
    """Fit L2 logistic probes by L-BFGS, one network, one concept, one or several penalties.

    Minimises ``0.5 |w|^2 + C * sum_i weights_i * loss_i`` over standardised channels, the bias
    free, as `fit_logistic` does.

    Args:
        z: activations ``[n, d]``, float32 or float64; computed in that precision.
        y: labels in {0, 1}, ``[n]``.
        C: inverse penalty; a sequence of ``p`` adds a leading axis ``p`` to the probe, and each
            fit starts where the last one ended: give them in order.
        weights: example weights ``[n]``; unlike in `fit_logistic` they do not enter the
            standardisation.
        max_steps: at most so many steps a penalty.
        tol: a fit stops when no component of the gradient exceeds this share of ``C n``.

    Returns:
        The probe in ``z``'s dtype; constant channels have weight 0.

    Raises:
        ValueError: as `fit_logistic`, or several networks or concepts at once.
    """
    from scipy.optimize import minimize

    data = check_fit_data(z, y)
    inverse = check_penalty("C", C)
    if data.batched:
        raise ValueError(f"want one z [n, d] and y [n], got {tuple(z.shape)} and {tuple(y.shape)}")
    if max_steps < 1 or not tol > 0:
        raise ValueError(f"want max_steps >= 1 and tol > 0; got {max_steps} and {tol}")
    share = None if weights is None else check_weights(weights, data)[0].to(z.dtype)
    sd, mean = torch.std_mean(z, 0, correction=0)
    scale = torch.where(sd > 1e-6 * z.abs().amax(0), 1 / sd.clamp_min(1e-30), 0.0)
    x, sign = (z - mean) * scale, (2 * data.y[0] - 1).to(z.dtype)
    n, d = x.shape
    found, steps, done = [], 0, []
    point = np.zeros(d + 1)

    for c in inverse:

        def cost(at: np.ndarray, c: float = c) -> tuple[float, np.ndarray]:
            w = torch.from_numpy(at).to(x)
            margin = (x @ w[:-1] + w[-1]) * sign
            each = softplus(-margin) if share is None else share * softplus(-margin)
            pull = -torch.sigmoid(-margin) * sign
            pull = pull if share is None else share * pull
            loss = each.double().sum() * c + 0.5 * w[:-1].double().square().sum()
            slope = torch.cat([x.T @ pull * c + w[:-1], pull.sum()[None] * c])
            return loss.item() / (c * n), slope.double().cpu().numpy() / (c * n)

        out = minimize(
            cost, point, jac=True, method="L-BFGS-B",
            options={"maxiter": max_steps, "gtol": tol, "ftol": 1e-9, "maxcor": 20},
        )  # fmt: skip
        point, steps = out.x, max(steps, int(out.nit))
        done.append(bool(out.success))
        found.append(torch.from_numpy(out.x).to(z.device))
    whole = torch.stack(found)
    weight = whole[:, :-1] * scale.double()
    bias = whole[:, -1] - weight @ mean.double()
    weight, bias, converged = weight.to(z.dtype), bias.to(z.dtype), torch.tensor(done)
    if not isinstance(C, Sequence):
        weight, bias, converged = weight[0], bias[0], converged[0]
    return Probe(weight, bias, steps, converged)
