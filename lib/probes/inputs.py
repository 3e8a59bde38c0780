"""What probes are fitted to: checked once at the boundary, in float64, standardised.

Shared by the fits of this package (documents 1 and 5). ``check_fit_data``, ``check_weights`` and
``check_penalty`` refuse what no probe can be fitted to, each with one ``ValueError``;
``standardise`` brings channels to mean 0 and standard deviation 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from lib.probes.newton import pull

# A channel whose spread is below this share of its largest value is rounding noise: constant.
_CONSTANT = 1e-12


@dataclass(frozen=True)
class FitData:
    """Checked inputs of a fit, in float64, with the batch axis ``m`` always present."""

    z: Tensor  # [1 or m, n, d]
    y: Tensor  # [m, n]
    batched: bool  # whether the caller gave a batch axis
    dtype: torch.dtype  # of the caller's z


def check_fit_data(z: Tensor, y: Tensor, *, labels: bool = True) -> FitData:
    """Refuse what no probe can be fitted to, once, at the boundary.

    Args:
        z: activations, ``[n, d]`` or ``[m, n, d]``, a float dtype.
        y: ``[n]`` or ``[m, n]``; labels in {0, 1}, or real targets with ``labels=False``.
        labels: whether every value of ``y`` must be 0 or 1.

    Returns:
        The same data in float64 with a batch axis; ``z`` is not copied for each row of ``y``.

    Raises:
        ValueError: wrong shape or dtype, NaN or infinity, fewer than 2 rows, labels other than 0
            and 1, or a row of ``y`` that holds a single value.
    """
    if z.ndim not in (2, 3) or y.ndim not in (1, 2) or z.shape[-2] != y.shape[-1]:
        raise ValueError(
            "want z [n, d] or [m, n, d] and y [n] or [m, n], "
            f"got {tuple(z.shape)} and {tuple(y.shape)}"
        )
    if z.ndim == 3 and y.ndim == 2 and z.shape[0] != y.shape[0]:
        raise ValueError(f"z holds {z.shape[0]} models and y {y.shape[0]}; give one y row a model")
    if 0 in z.shape or 0 in y.shape:
        raise ValueError(f"z {tuple(z.shape)} or y {tuple(y.shape)} is empty; give data")
    if not z.is_floating_point():
        raise ValueError(f"want floating-point activations, got {z.dtype}; convert with z.float()")
    if z.shape[-2] < 2:
        raise ValueError(f"want at least 2 rows, got {z.shape[-2]}")
    activations = z.double() if z.ndim == 3 else z.double()[None]
    if not _is_finite(activations) or not _is_finite(y.double()):
        raise ValueError("z or y holds NaN or infinity; drop those rows or mend the layer")
    target = y.to(device=z.device, dtype=torch.float64)
    if labels and not ((target == 0) | (target == 1)).all():
        raise ValueError(
            f"want labels in {{0, 1}}, got values such as {target.min().item():g} "
            f"and {target.max().item():g}; recode them"
        )
    if (target == target[..., :1]).all(dim=-1).any():
        raise ValueError("y holds one class or value only; a probe needs both classes to fit")
    batched = z.ndim == 3 or y.ndim == 2
    models = max(activations.shape[0], target.shape[0] if y.ndim == 2 else 1)
    return FitData(activations, target.expand(models, -1), batched, z.dtype)


def check_weights(weights: Tensor, data: FitData) -> Tensor:
    """Example weights as float64 ``[1 or m, n]``."""
    n, models = data.y.shape[1], data.y.shape[0]
    shaped = weights.ndim in (1, 2) and weights.shape[-1] == n
    if not shaped or (weights.ndim == 2 and models > 1 and len(weights) != models):
        raise ValueError(
            f"want weights [n] or [m, n] for y {(models, n)}, got {tuple(weights.shape)}"
        )
    importance = weights.to(device=data.y.device, dtype=torch.float64)
    if not torch.isfinite(importance).all() or (importance < 0).any():
        raise ValueError("want finite weights >= 0; give counts or shares of each row")
    if (importance * data.y).sum(-1).eq(0).any() or (importance * (1 - data.y)).sum(-1).eq(0).any():
        raise ValueError("the weights leave one class without rows; a probe needs both")
    return importance if importance.ndim == 2 else importance[None]


def check_penalty(name: str, value: float | Sequence[float]) -> list[float]:
    """Return a penalty argument as a list, refusing what is not finite and positive."""
    if not isinstance(value, Real | Sequence):
        raise ValueError(f"want {name} as a number or a list of numbers, got {type(value)}")
    values = [float(v) for v in value] if isinstance(value, Sequence) else [float(value)]
    if not values or not all(0 < v < float("inf") for v in values):
        raise ValueError(f"want {name} > 0 and finite (or a sequence of such), got {value}")
    return values


def standardise(z: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Bring each channel to mean 0 and standard deviation 1; a constant channel becomes 0.

    Args:
        z: ``[b, n, d]``.
        weights: ``[m, n]`` example weights, or None for equal ones.

    Returns:
        The standardised copy ``[b, n, d]`` (``[m, n, d]`` with weights), the mean and the inverse
        standard deviation ``[b, d]``, the last 0 for a constant channel.
    """
    if weights is None:
        mean = z.mean(1)
        x = z - mean[:, None]
        variance = x.square().mean(1)
    else:
        share = weights / weights.sum(-1, keepdim=True)
        mean = pull(z, share)
        x = z - mean[:, None]
        variance = (x.square() * share[..., None]).sum(1)
    constant = variance <= (_CONSTANT * z.abs().amax(1)).square()
    scale = torch.where(constant, 0.0, 1 / torch.where(constant, 1.0, variance).sqrt())
    if x.requires_grad:  # a probe fitted inside a derivative; in place it would be refused
        return x * scale[:, None], mean, scale
    return x.mul_(scale[:, None]), mean, scale


def _is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite; one cheap sum settles it for nearly all inputs."""
    return bool(torch.isfinite(values.sum()) or torch.isfinite(values).all())
