"""Guided perturbations of a network's parameters: directions, and how they are applied.

A component of a low-rank decomposition is a direction `g_j` in parameter space. Moving along it
should change predictions on the examples that use the component, and little else. So that the move
is not along other components as well, those that are not alike `g_j` are rejected from it.

`lib.npeff.selectivity` measures what a perturbation does, `lib.npeff.perturb_diagonal` is for
diagonal decompositions, and `lib.npeff.repair` uses perturbations to mend a model.

Public names: `directions`, `Directions`, `random_directions`, `scatter`, `perturbed`, `TAU`.

Source: document 3, section 3.1.2; specification 5.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.npeff.store import Parameters

TAU = 0.35  # components with at most this |cosine| are rejected, the paper's
SEQUENTIAL, EXACT = "sequential", "exact"
COLUMNS = 2**20  # parameters at a time in float64
LEAST = 1e-6  # length of a unit component that must be left after rejection


@dataclass(frozen=True)
class Directions:
    """Unit directions in the kept parameters, one a component."""

    unit: Tensor  # [r, m'], in the dtype of the components
    kept: Tensor  # int64 [m'], the parameter position of a column
    parameters: Parameters
    cosines: Tensor  # float64 [r, r], of direction j (row) with component k (column)
    rejected: Tensor  # bool [r, r], whether component k was rejected from direction j
    left: Tensor  # float64 [r], length of a unit component after rejection

    def __len__(self) -> int:
        return len(self.unit)

    @property
    def own(self) -> Tensor:
        """Cosine of each direction with its own component, float64 `[r]`."""
        return self.cosines.diagonal()

    @property
    def worst(self) -> Tensor:
        """Largest |cosine| with a rejected component, float64 `[r]`; 0 where none is rejected.

        Sequential rejection leaves some: components that are rejected later bring earlier ones in.
        """
        return (self.cosines.abs() * self.rejected).amax(1)

    def change(self, j: int, norm: float) -> Tensor:
        """The perturbation ``norm * u_j`` of all parameters, `[m]`."""
        return scatter(norm * self.unit[j], self.kept, self.parameters)


def directions(
    components: Tensor,
    kept: Tensor,
    parameters: Parameters,
    *,
    tau: float | None = TAU,
    rejection: str = SEQUENTIAL,
) -> Directions:
    """A direction for every component, with the components unlike it rejected.

    Args:
        components: ``[r, m']``, any length; G of a low-rank decomposition.
        kept: int64 ``[m']``, ascending parameter positions.
        parameters: names and shapes in the flat order.
        tau: components with ``|cos(g_j, g_k)| <= tau`` are rejected from ``g_j``; None rejects
            none, and ``u_j = g_j / |g_j|``.
        rejection: `SEQUENTIAL` subtracts one projection after the other, in index order, as the
            paper does; `EXACT` projects onto the complement of the rejected components' span.

    Raises:
        ValueError: shapes disagree, NaN, a zero component, a component that lies in the span of
            those rejected from it, or an unknown rejection.

    Source: specification 5.1. The tests use cosines of the original components. Both kinds of
    rejection are solved in the r x r matrix of cosines, in float64: sequential subtraction is one
    triangular system a component, ``c_k = <g_j, g_k> - sum_{l < k} c_l <g_l, g_k>``.
    """
    _check(components, kept, parameters)
    if rejection not in (SEQUENTIAL, EXACT):
        raise ValueError(f"rejection is {SEQUENTIAL!r} or {EXACT!r}, got {rejection!r}")
    if tau is not None and not 0 <= tau < 1:
        raise ValueError(f"want tau in [0, 1) or None, got {tau}")
    lengths = torch.linalg.vector_norm(components, dim=1, dtype=torch.float64)
    if not (lengths > 0).all():
        dead = (lengths == 0).nonzero()[:, 0].tolist()
        raise ValueError(f"components {dead} are zero and have no direction; leave them out")
    blocks = [slice(i, i + COLUMNS) for i in range(0, components.shape[1], COLUMNS)]
    q = sum(_unit(components, lengths, at) @ _unit(components, lengths, at).T for at in blocks)
    assert isinstance(q, Tensor)
    rejected = torch.zeros_like(q, dtype=torch.bool) if tau is None else q.abs() <= tau
    rejected.fill_diagonal_(False)
    weights = torch.eye(len(q), dtype=q.dtype, device=q.device)
    for j, row in enumerate(rejected):
        chosen = row.nonzero()[:, 0]
        if len(chosen):
            weights[j, chosen] -= _shares(q[chosen][:, chosen], q[j, chosen], rejection)
    unit, squares, products = torch.empty_like(components), torch.zeros_like(lengths), q * 0
    for at in blocks:
        g = _unit(components, lengths, at)
        u = weights @ g
        unit[:, at] = u
        squares += u.square().sum(1)
        products += u @ g.T
    left = squares.sqrt()
    if not (left > LEAST).all():
        lost = (left <= LEAST).nonzero()[:, 0].tolist()
        raise ValueError(
            f"components {lost} lie in the span of the components rejected from them: nothing is "
            "left of their directions; lower tau, or give None"
        )
    unit /= left[:, None].to(unit)
    return Directions(unit, kept, parameters, products / left[:, None], rejected, left)


def _unit(components: Tensor, lengths: Tensor, at: slice) -> Tensor:
    """Columns of the unit components in float64; all of them at once would not fit for large m'."""
    return components[:, at].double() / lengths[:, None]


def _shares(q: Tensor, b: Tensor, rejection: str) -> Tensor:
    """What is subtracted of each rejected component: `[k]`, from cosines `[k, k]` and `[k]`."""
    if rejection == EXACT:
        return torch.linalg.pinv(q, hermitian=True) @ b
    lower = q.tril(-1) + torch.eye(len(q), dtype=q.dtype, device=q.device)
    return torch.linalg.solve_triangular(lower, b[:, None], upper=False, unitriangular=True)[:, 0]


def random_directions(support: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """Unit vectors in uniformly random directions within a support, `[n, m']`, float32.

    Args:
        support: bool ``[m']``, the entries that are not zero.
        generator: on the CPU, whatever the device of the support.
    """
    if support.dtype != torch.bool or support.ndim != 1 or not support.any():
        raise ValueError("want a support bool [m'] with at least one entry")
    if n < 1:
        raise ValueError(f"want n >= 1 random directions, got {n}")
    found = torch.zeros(n, len(support), device=support.device)
    drawn = torch.randn(n, int(support.sum()), generator=generator).to(support.device)
    found[:, support] = drawn / drawn.norm(dim=1, keepdim=True)
    return found


def scatter(values: Tensor, kept: Tensor, parameters: Parameters) -> Tensor:
    """Values of the kept parameters, ``[..., m']``, among all of them, ``[..., m]``; else zero."""
    found = values.new_zeros(*values.shape[:-1], n_positions(parameters))
    found[..., kept] = values
    return found


def n_positions(parameters: Parameters) -> int:
    """m, the number of entries of all parameters together."""
    return sum(torch.Size(shape).numel() for _, shape in parameters)


@contextmanager
def perturbed(model: nn.Module, change: Tensor, parameters: Parameters) -> Iterator[nn.Module]:
    """The model with ``theta + change`` within, and with its very own parameters after.

    The parameters' storage is put aside, not added to and subtracted from: what comes back is
    equal to the bit, after an exception too.

    Args:
        change: ``[m]``, in the flat order of `parameters`.

    Raises:
        ValueError: a parameter that the model does not have in that shape, or a change of another
            length or with NaN.
    """
    weights = block(model, parameters)
    m = n_positions(parameters)
    if change.shape != (m,) or not change.isfinite().all():
        raise ValueError(
            f"want a finite change [{m}] of the parameters, got {tuple(change.shape)}; "
            "scatter the kept entries first"
        )
    originals = {name: weight.data for name, weight in weights.items()}
    try:
        parts = change.split([weight.numel() for weight in weights.values()])
        for (name, weight), part in zip(weights.items(), parts, strict=True):
            weight.data = originals[name] + part.view(weight.shape).to(weight)
        yield model
    finally:
        for name, weight in weights.items():
            weight.data = originals[name]


def block(model: nn.Module, parameters: Parameters) -> dict[str, nn.Parameter]:
    """The model's parameters of these names, in this order; refuses absent names, other shapes."""
    known = dict(model.named_parameters())
    for name, shape in parameters:
        if name not in known or tuple(known[name].shape) != tuple(shape):
            have = tuple(known[name].shape) if name in known else "absent"
            raise ValueError(
                f"want a parameter {name!r} of shape {tuple(shape)}, the model's is {have}; the "
                "components are of another model"
            )
    return {name: known[name] for name, _ in parameters}


def _check(components: Tensor, kept: Tensor, parameters: Parameters) -> None:
    if components.ndim != 2 or not len(components) or kept.shape != components.shape[1:]:
        raise ValueError(
            f"want components [r, m'] and kept [m'], got {tuple(components.shape)} and "
            f"{tuple(kept.shape)}"
        )
    m = n_positions(parameters)
    if int(kept.min()) < 0 or int(kept.max()) >= m or bool((kept.diff() <= 0).any()):
        raise ValueError(f"want ascending parameter positions in 0..{m - 1}, each once")
    if not components.isfinite().all():
        raise ValueError("the components hold NaN or infinity; the decomposition has diverged")
