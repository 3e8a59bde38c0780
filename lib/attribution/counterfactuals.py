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

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.features import Progress, evaluating

NORMS = ("L1", "L2")
N_HALVINGS = 50
PACES = (0.5, 0.2, 0.07)
REACH = 1e-3  # margin asked for beyond the boundary, as a share of that at the start
SHORTEST, LONGEST = 0.5, 1.5  # of a step's end, along its ray
N_SHORTENINGS, N_LAST = 5, 12  # halvings on the ray, at each step and at the end

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
    n_steps: int = 30,
    paces: Sequence[float] = PACES,
    start: Tensor | None = None,
    progress: Progress | None = None,
) -> Counterfactual:
    """Search the smallest change that makes `target` the largest output of each row.

    Args:
        model: rows `[n, ...]` to logits `[n, k]`, k >= 2.
        x: `[n, ...]` inside the box.
        target: the wanted class of each row, int64 `[n]`.
        norm: "L1" (few features change) or "L2" (many change a little).
        low, high: the box of allowed values.
        n_steps: linearisations a run.
        paces: share of the way to each linear solution, one a run; it shrinks towards the run's
            end. A fast pace overshoots where the boundary bends, a slow one stays near.
        start: inputs of the shape of x inside the box where the target wins, real examples say;
            one more run begins there. NaN rows have none.
        progress: wraps the range of runs.

    Raises:
        ValueError: an unknown norm, values outside the box, NaN, one output only, or a class
            that the model does not have.

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
    with torch.no_grad(), evaluating(model):
        shape = tuple(model(x[:1]).shape)
    if len(shape) != 2 or shape[1] < 2:
        raise ValueError(f"want a model with outputs [n, k], k >= 2, got {shape}")
    if target.shape != x.shape[:1] or target.min() < 0 or target.max() >= shape[1]:
        raise ValueError(
            f"want a target of 0..{shape[1] - 1} for each of {len(x)} rows, got "
            f"{tuple(target.shape)} from {int(target.min())} to {int(target.max())}"
        )
    flat = x.flatten(1)
    box = low - flat, high - flat
    best, length = torch.full_like(flat, torch.nan), torch.full_like(flat[:, 0], torch.inf)
    runs = [(torch.zeros_like(flat), pace) for pace in paces]
    if start is not None:
        runs.append(((start - x).flatten(1).nan_to_num(0.0), paces[0]))
    with evaluating(model):
        wanted = REACH * _linearised(model, x, target, runs[0][0])[0].abs()
        for k in progress(range(len(runs))) if progress else range(len(runs)):
            delta, pace = runs[k]
            for step in range(n_steps):
                g, slope = _linearised(model, x, target, delta)
                # g + slope . (new - delta) >= wanted
                need = wanted - g + (slope * delta).sum(1)
                goal = linear_step(slope, need, *box, norm)
                whole = k == 0 and step == 0  # the answer, if the model is linear
                after = delta + (1.0 if whole else pace * (1 - step / n_steps)) * (goal - delta)
                # a run from a real example begins with that example
                for candidate in (delta, after) if step == 0 and k == len(paces) else (after,):
                    tried = _on_ray(model, x, target, candidate, wanted, box, N_SHORTENINGS)
                    size = _length(tried, norm)
                    better = tried.isfinite().all(1) & (size < length)
                    best = torch.where(better[:, None], tried, best)
                    length = torch.where(better, size, length)
                delta = after
        best = _on_ray(model, x, target, best, wanted, box, N_LAST)
        length = _length(best, norm).nan_to_num(torch.inf)
        _, slope = _linearised(model, x, target, best.nan_to_num(0.0))
    free = (flat + best > low + 1e-6) & (flat + best < high - 1e-6)
    a, b = best.nan_to_num(0.0) * free, slope * free
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=1)
    return Counterfactual(best.reshape(x.shape), length, length.isfinite(), cosine)


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
    g = margin(model(z), target)
    (slope,) = torch.autograd.grad(g.sum(), z)
    return g.detach(), slope.flatten(1)


@torch.no_grad()
def _on_ray(
    model: nn.Module,
    x: Tensor,
    target: Tensor,
    delta: Tensor,
    wanted: Tensor,
    box: Box,
    n_halvings: int,
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
    is_won = wins(torch.ones_like(wanted))
    high = torch.where(is_won, 1.0, high)
    is_won = is_won | wins(high)
    for _ in range(n_halvings):
        middle = (low + high) / 2
        kept = wins(middle)
        low, high = torch.where(kept, low, middle), torch.where(kept, middle, high)
    return torch.where(is_won[:, None], at(high), torch.nan)


def _length(delta: Tensor, norm: str) -> Tensor:
    return delta.abs().sum(1) if norm == "L1" else delta.norm(dim=1)
