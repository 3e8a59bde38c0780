"""Distances between a sample and its perturbed version (document 5; specification section 1.1).

Each is a small frozen object: `value(delta)` gives one number a row, and `prox(v, step)`, where the
distance is simple enough to have one, solves `argmin_u 1/2 |u - v|^2 + step * value(u)` row by row;
for kinked distances that is what gives exact zeros. A `scale` divides each coordinate first, for
instance by its standard deviation.

`Mahalanobis` and `DecodedMSE` are squared, like `L2Sq`: smooth at zero, and with the same
minimiser as their square root wherever the distance is minimised under a constraint.

Public names: `L1`, `L2`, `GroupL2`, `Hamming` (kinked); `L2Sq`, `Mahalanobis`, `DecodedMSE`
(smooth).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

NEWTON_STEPS = 60  # for the scaled L2 prox; convex and monotone, so it needs far fewer


def rowwise(x: Tensor, like: Tensor) -> Tensor:
    """Reshape one number a row, `[n]`, so that it multiplies `like`, `[n, ...]`."""
    return x.reshape(-1, *([1] * (like.ndim - 1)))


@dataclass(frozen=True)
class Distance(ABC):
    """A distance with one value a row; the base of all."""

    @abstractmethod
    def value(self, delta: Tensor) -> Tensor:
        """Distance of each row of `delta`, `[n, ...]`, as `[n]`."""

    def take(self, rows: Tensor) -> Distance:
        """The distance for some of the rows it was made for; itself where rows are alike."""
        return self


@dataclass(frozen=True)
class Simple(Distance):
    """A distance with a proximal point in closed form, or nearly."""

    @abstractmethod
    def prox(self, v: Tensor, step: Tensor) -> Tensor:
        """The proximal point of each row of `v`, `[n, ...]`, for steps `[n]`."""


@dataclass(frozen=True)
class Kinked(Simple):
    """A distance that is not differentiable everywhere: the solver must go through `prox`."""

    scale: Tensor | float = 1.0  # [...] or a number; the distance is of delta / scale


@dataclass(frozen=True)
class L1(Kinked):
    """`sum_j |delta_j| / scale_j`: few coordinates move."""

    def value(self, delta: Tensor) -> Tensor:
        return (delta / self.scale).abs().flatten(1).sum(1)

    def prox(self, v: Tensor, step: Tensor) -> Tensor:
        return v.sign() * (v.abs() - rowwise(step, v) / self.scale).clamp_min(0.0)


@dataclass(frozen=True)
class L2(Kinked):
    """`|delta / scale|_2`, not squared: all of a row moves or none of it does."""

    def value(self, delta: Tensor) -> Tensor:
        return (delta / self.scale).flatten(1).norm(dim=1)

    def prox(self, v: Tensor, step: Tensor) -> Tensor:
        # u_j = v_j mu / (mu + step / scale_j^2), where mu = |u / scale| > 0 solves
        # sum_j (scale_j v_j / (scale_j^2 mu + step))^2 = 1; no such mu if |scale v| <= step.
        scale = torch.as_tensor(self.scale, dtype=torch.float64, device=v.device)
        wide, t = v.double(), step.double()[:, None]
        s2 = (scale * torch.ones_like(wide[:1])).flatten(1) ** 2
        sv = (scale * wide).flatten(1)
        moves = (sv.norm(dim=1) > t[:, 0]) & (t[:, 0] > 0)
        t = torch.where(moves[:, None], t, torch.ones_like(t))
        mu = torch.zeros_like(t[:, 0])
        for _ in range(NEWTON_STEPS):  # on 1/norm - 1, increasing and concave: no overshoot
            below = s2 * mu[:, None] + t
            norm = (sv / below).norm(dim=1).clamp_min(1e-150)
            slope = (sv**2 * s2 / below**3).sum(1) / norm**3
            change = torch.where(moves, (1.0 - 1.0 / norm) / slope, 0.0).clamp_min(0.0)
            mu = mu + change
            if bool((change <= 1e-14 * mu).all()):
                break
        shrink = (s2 * mu[:, None] / (s2 * mu[:, None] + t)).reshape(v.shape).to(v.dtype)
        still = torch.where(rowwise(step, v) > 0, torch.zeros_like(v), v)
        return torch.where(rowwise(moves, v), v * shrink, still)


@dataclass(frozen=True)
class GroupL2(Kinked):
    """`sum_t |delta_t / scale|_2` over groups t of `delta`, `[n, t, ...]`: few groups move.

    For words, a group is a position; `scale` is a number.
    """

    def value(self, delta: Tensor) -> Tensor:
        return (delta / self.scale).flatten(2).norm(dim=2).sum(1)

    def prox(self, v: Tensor, step: Tensor) -> Tensor:
        size = v.flatten(2).norm(dim=2)
        shrunk = (size - step[:, None] / self.scale).clamp_min(0.0) / size.clamp_min(1e-150)
        return v * shrunk.reshape(*shrunk.shape, *[1] * (v.ndim - 2)).to(v.dtype)


@dataclass(frozen=True)
class Hamming(Kinked):
    """Number of coordinates that differ from zero; its proximal step is a hard threshold."""

    def value(self, delta: Tensor) -> Tensor:
        return (delta != 0).flatten(1).sum(1).to(delta.dtype)

    def prox(self, v: Tensor, step: Tensor) -> Tensor:
        return torch.where(v**2 > 2.0 * rowwise(step, v), v, torch.zeros_like(v))


@dataclass(frozen=True)
class L2Sq(Simple):
    """`sum_j (delta_j / scale_j)^2`: every useful coordinate moves a little."""

    scale: Tensor | float = 1.0

    def value(self, delta: Tensor) -> Tensor:
        return ((delta / self.scale) ** 2).flatten(1).sum(1)

    def prox(self, v: Tensor, step: Tensor) -> Tensor:
        return v / (1.0 + 2.0 * rowwise(step, v) / (torch.ones_like(v) * self.scale) ** 2)


@dataclass(frozen=True)
class Mahalanobis(Simple):
    """`delta^T covariance^-1 delta`: moves along the data's own directions are cheap."""

    covariance: Tensor  # [d, d], symmetric positive definite
    variances: Tensor = field(init=False, repr=False)  # [d], along the columns of
    axes: Tensor = field(init=False, repr=False)  # [d, d]

    def __post_init__(self) -> None:
        variances, axes = torch.linalg.eigh(self.covariance)
        if not bool((variances > 0).all()):
            raise ValueError(
                "the covariance is not positive definite; add a small multiple of the identity"
            )
        object.__setattr__(self, "variances", variances)
        object.__setattr__(self, "axes", axes)

    def value(self, delta: Tensor) -> Tensor:
        return ((delta.flatten(1) @ self.axes) ** 2 / self.variances).sum(1)

    def prox(self, v: Tensor, step: Tensor) -> Tensor:
        axes = self.axes.to(v.dtype)
        along = v.flatten(1) @ axes / (1.0 + 2.0 * step[:, None] / self.variances)
        return (along @ axes.T).reshape(v.shape)


@dataclass(frozen=True)
class DecodedMSE(Distance):
    """`mean over pixels of (decoder(point + delta) - reference)^2`.

    `reference` is the decoded point where the document compares two decoded pictures, and the
    original picture where it compares with that.
    """

    decoder: Callable[[Tensor], Tensor]
    point: Tensor  # [n, k], where delta is added
    reference: Tensor  # [n, ...]

    def value(self, delta: Tensor) -> Tensor:
        return ((self.decoder(self.point + delta) - self.reference) ** 2).flatten(1).mean(1)

    def take(self, rows: Tensor) -> DecodedMSE:
        return DecodedMSE(self.decoder, self.point[rows], self.reference[rows])
