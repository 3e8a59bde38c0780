"""The smallest change of an input that alters a decision.

Document 4, recap: counterfactuals. For a classifier with margin
`g(x) = logit_t - max over other classes` of a wanted class t, find the shortest `delta`, in L1 or
L2, with `g(x + delta) >= margin` and `x + delta` in a box. The search linearises g where it
stands, solves that problem exactly (`linear_step`: the closed form, box included), steps towards
the solution, and shortens every success along its ray; for a linear model the first step is the
answer. A batch of rows at once.

Public names: `search`, `Counterfactual`, `linear_step`, `margin`, `NORMS`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.features import Progress, evaluating

NORMS = ("L1", "L2")
N_HALVINGS = 50
SHORTEST, LONGEST, N_SHORTENINGS = 0.5, 1.5, 8  # of a step's end, along its ray

Box = tuple[Tensor, Tensor]  # lowest and highest change of each coordinate, [n, p]


@dataclass(frozen=True)
class Counterfactual:
    """The shortest changes found."""

    delta: Tensor  # [n, ...]; NaN where none was found
    length: Tensor  # [n] in the norm asked for; infinity where none was found
    found: Tensor  # bool [n]
    alignment: Tensor  # [n] cosine of delta and the margin's gradient there, free coordinates only


def margin(out: Tensor, target: Tensor) -> Tensor:
    """Logit of the target minus the largest other one, `[n]`; above 0 the target wins."""
    others = out.scatter(1, target[:, None], -torch.inf)
    return out.gather(1, target[:, None])[:, 0] - others.amax(1)


def search(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    *,
    norm: str = "L2",
    low: float,
    high: float,
    n_steps: int = 60,
    rate: float = 0.5,
    reach: float = 1e-3,
    progress: Progress | None = None,
) -> Counterfactual:
    """Search the smallest change that makes `target` the largest output of each row.

    Args:
        model: rows `[n, ...]` to logits `[n, k]`, k >= 2.
        x: `[n, ...]` inside the box.
        target: the wanted class of each row, int64 `[n]`.
        norm: "L1" (few features change) or "L2" (many change a little).
        low, high: the box of allowed values.
        n_steps: linearisations.
        rate: share of the way to each linear solution; it shrinks towards the end.
        reach: the margin asked for, as a share of the first distance to the boundary.
        progress: wraps the range of steps.

    Raises:
        ValueError: an unknown norm, values outside the box, NaN, or one output only.

    Source: document 4, recap; it names the idea and no algorithm. `linear_step` is the projection
    onto a half-space in the box; for networks this is a local search, judged by its rows'
    `alignment`, by the linear case and by real examples of the class.
    """
    if norm not in NORMS:
        raise ValueError(f"norm is one of {', '.join(NORMS)}; got {norm!r}")
    if not torch.isfinite(x).all() or x.min() < low or x.max() > high:
        raise ValueError(
            f"want finite x within [{low}, {high}], got values from {x.min().item():.3g} to "
            f"{x.max().item():.3g}; widen the box or clean the rows"
        )
    flat = x.flatten(1)
    delta, best = torch.zeros_like(flat), torch.full_like(flat, torch.nan)
    length = torch.full_like(flat[:, 0], torch.inf)
    if norm == "L1":
        # few coordinates go far, where the linear picture is worst: start from the L2 answer
        near = search(
            model, x, target, norm="L2", low=low, high=high, n_steps=n_steps, rate=rate, reach=reach
        )
        best = near.delta.flatten(1)
        length = torch.where(near.found, _length(best, norm), length)
    box = low - flat, high - flat
    with evaluating(model):
        start, _ = _linearised(model, x, target, delta)
        wanted = reach * start.abs()
        for step in progress(range(n_steps)) if progress else range(n_steps):
            g, slope = _linearised(model, x, target, delta)
            # g + slope . (new - delta) >= wanted
            need = wanted - g + (slope * delta).sum(1)
            goal = linear_step(slope, need, *box, norm)
            pace = 1.0 if step == 0 else rate * (1 - step / n_steps) + 1 / n_steps
            delta = delta + pace * (goal - delta)
            near = _on_ray(model, x, target, delta, wanted, box)
            size = _length(near, norm)
            better = near.isfinite().all(1) & (size < length)
            best, length = (
                torch.where(better[:, None], near, best),
                torch.where(better, size, length),
            )
        found = length.isfinite()
        _, slope = _linearised(model, x, target, best.nan_to_num(0.0))
    free = (flat + best > low + 1e-6) & (flat + best < high - 1e-6)
    a, b = best.nan_to_num(0.0) * free, slope * free
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1)
    return Counterfactual(best.reshape(x.shape), length, found, cosine)


def linear_step(slope: Tensor, need: Tensor, low: Tensor, high: Tensor, norm: str) -> Tensor:
    """The shortest `d` with `slope . d >= need` and `low <= d <= high`, row by row, `[n, p]`.

    Args:
        slope: `[n, p]`, need: `[n]`, low, high: `[n, p]` with low <= 0 <= high.
        norm: "L2": `d = clip(t slope)` with t by bisection. "L1": coordinates of steepest slope
            go to their bound one after the other, the last in part.

    Where the box does not reach `need`, the corner that comes closest; where `need <= 0`, 0.
    """
    corner = torch.where(slope > 0, high, low)  # the best each coordinate can do
    gain = slope * corner  # >= 0
    if norm == "L1":
        order = slope.abs().argsort(dim=1, descending=True)
        sorted_gain = gain.gather(1, order)
        before = sorted_gain.cumsum(1) - sorted_gain
        part = ((need[:, None] - before) / sorted_gain.clamp_min(1e-30)).clamp(0, 1)
        return torch.zeros_like(slope).scatter(1, order, part * corner.gather(1, order))
    ratio = torch.where(slope == 0, torch.zeros_like(slope), corner / slope)
    ends = torch.zeros_like(need), ratio.amax(1)  # every coordinate is at its bound at the second
    for _ in range(N_HALVINGS):
        middle = (ends[0] + ends[1]) / 2
        reached = (_clipped(slope, middle, low, high) * slope).sum(1) >= need
        ends = torch.where(reached, ends[0], middle), torch.where(reached, middle, ends[1])
    d = _clipped(slope, ends[1], low, high)
    return torch.where((need > 0)[:, None], d, torch.zeros_like(d))


def _clipped(slope: Tensor, t: Tensor, low: Tensor, high: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(t[:, None] * slope, low), high)


def _linearised(
    model: nn.Module, x: Tensor, target: Tensor, delta: Tensor
) -> tuple[Tensor, Tensor]:
    """Margins `[n]` and their gradients `[n, p]` at x + delta."""
    z = (x + delta.reshape(x.shape)).detach().requires_grad_()
    out = model(z)
    if out.ndim != 2 or out.shape[1] < 2:
        raise ValueError(f"want a model with outputs [n, k], k >= 2, got {tuple(out.shape)}")
    g = margin(out, target)
    (slope,) = torch.autograd.grad(g.sum(), z)
    return g.detach(), slope.flatten(1)


@torch.no_grad()
def _on_ray(
    model: nn.Module, x: Tensor, target: Tensor, delta: Tensor, wanted: Tensor, box: Box
) -> Tensor:
    """`delta` scaled, row by row, to where the target begins to win; NaN where it does not.

    The linear goal is approached from outside, so that the ray is followed a little beyond it.
    """

    def at(share: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(share[:, None] * delta, box[0]), box[1])

    def wins(share: Tensor) -> Tensor:
        # half of the margin asked for: the linear goal is met to round-off only
        return margin(model(x + at(share).reshape(x.shape)), target) >= wanted / 2

    low, high = SHORTEST * torch.ones_like(wanted), LONGEST * torch.ones_like(wanted)
    is_won = wins(high)
    for _ in range(N_SHORTENINGS):
        middle = (low + high) / 2
        kept = wins(middle)
        low, high = torch.where(kept, low, middle), torch.where(kept, middle, high)
    return torch.where(is_won[:, None], at(high), torch.nan)


def _length(delta: Tensor, norm: str) -> Tensor:
    return delta.abs().sum(1) if norm == "L1" else delta.norm(dim=1)
