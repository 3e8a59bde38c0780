"""The solver under `maximise`: proximal steps on a linearised probe, every row on its own.

Minimises, for each row, `phi(p(delta)) + g(delta) + h(delta)`: phi is a loss of one number, p the
probe's pre-activation through the network, g a distance with a prox, h what is left. One step
linearises p (and h) where it stands and minimises

    phi(p + J·(u - delta)) + grad h·(u - delta) + g(u) + alpha/2 |u - delta|^2

over u, exactly: the optimum is `u(m) = prox_g(delta - (m J + grad h) / alpha)` for the one number m
with `m = phi'(p + J·(u(m) - delta))`, found on a bracket without touching the network. Where the
network is linear that step is the solution, whatever the loss; alpha has only the network's own
bending to hold back, and follows how well each step was predicted (Levenberg and Marquardt's
rule). A row that is refused raises its alpha while the others move on, so the result of a row does
not depend on its company.

Public names: `Point`, `Path`, `descend`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.backprop.distances import rowwise
from lib.backprop.objective import Term

ACCEPT, GOOD = 0.1, 0.75  # share of the predicted decrease: to take a step, to lower alpha
LOWER, RAISE = 10.0, 4.0
RANGE = 1e12  # alpha stays within this factor of its first value
ROOT, ROOT_STEPS = 1e-10, 80  # m is exact to this, relative
WINDOW = 50  # steps over which the relative change of J is read (specification 1.3)

Loss = Callable[[Tensor], Tensor]  # pre-activation [n] -> loss [n], elementwise


@dataclass(frozen=True)
class Point:
    """What the network says at one delta."""

    preactivation: Tensor  # [n]
    slope: Tensor  # [n, ...], J
    rest: Tensor  # [n], h
    plain: Tensor  # [n], the same distances without their weights
    rest_slope: Tensor  # [n, ...], grad h


@dataclass(frozen=True)
class Path:
    """Where a descent ended and how it got there."""

    delta: Tensor  # best iterate of each row (steps never raise J, so the last)
    total: Tensor  # [n], J
    preactivation: Tensor  # [n]
    converged: Tensor  # [n], bool
    steps: Tensor  # [n], evaluations until the row stopped
    records: list[Tensor]  # what `record` made of each step


def descend(
    evaluate: Callable[[Tensor, Tensor], Point],
    loss: Loss,
    simple: Term | None,
    start: Tensor,
    *,
    active: Tensor | None = None,
    max_steps: int,
    tolerance: float,
    record: Callable[[Tensor, Point, Tensor], Tensor],
) -> Path:
    """Run until every row has stopped or `max_steps` evaluations are spent.

    A row stops when its J changed by less than `tolerance` (relative) over 50 steps, when not even
    the linearised problem promises to lower J by `tolerance` squared, or when no step moves it in
    this precision.

    Args:
        evaluate: the network at (delta, rows to read); other rows of the result are not used.
        loss: phi.
        simple: weight and distance of g, none for zero.
        start: `[n, ...]`.
        active: the rows to move, `[n]`; all by default.
        record: called with (delta, the network there, J) of all rows at each step.
    """

    @torch.no_grad()
    def total_at(delta: Tensor, point: Point) -> Tensor:
        g = 0.0 if simple is None else simple.weight * simple.distance.value(delta)
        return loss(point.preactivation) + g + point.rest

    record = torch.no_grad()(record)
    delta, here = start, evaluate(start, torch.ones(len(start), dtype=torch.bool))
    total = total_at(delta, here)
    alpha = first_alpha = _first_alpha(loss, here)
    noise = torch.finfo(start.dtype).eps
    floor = total.abs() * noise
    past, records = [total], [record(delta, here, total)]
    active = torch.ones_like(total, dtype=torch.bool) if active is None else active
    converged, steps = ~active, torch.zeros_like(total, dtype=torch.long)
    for step in range(1, max_steps + 1):
        trial, promised = _step(loss, simple, delta, here, alpha, active)
        trial = torch.where(rowwise(active, delta), trial, delta)
        gain = total - promised
        there = evaluate(trial, active)
        new_total = total_at(trial, there)
        won = total - new_total
        good = active & (won >= ACCEPT * gain) & (won >= 0)
        small = gain <= max(tolerance**2, noise) * total.abs() + floor
        move = (trial - delta).flatten(1).norm(dim=1)
        still = move <= 0.5 * noise * (1.0 + delta.flatten(1).norm(dim=1))
        done = active & ((small & (alpha <= first_alpha)) | still)
        wide = rowwise(good, delta)
        delta = torch.where(wide, trial, delta)
        here = Point(
            torch.where(good, there.preactivation, here.preactivation),
            torch.where(wide, there.slope, here.slope),
            torch.where(good, there.rest, here.rest),
            torch.where(good, there.plain, here.plain),
            torch.where(wide, there.rest_slope, here.rest_slope),
        )
        total = torch.where(good, new_total, total)
        lower = torch.where(won >= GOOD * gain, alpha / LOWER, alpha)
        alpha = torch.where(good, lower, alpha * RAISE)
        alpha = alpha.clamp(first_alpha / RANGE, first_alpha * RANGE)
        past.append(total)
        records.append(record(delta, here, total))
        if step >= WINDOW:
            done |= active & (past[step - WINDOW] - total <= tolerance * total.abs() + floor)
        steps = torch.where(active, step, steps)
        converged, active = converged | done, active & ~done
        if not bool(active.any()):
            break
    return Path(delta, total, here.preactivation, converged, steps, records)


def _first_alpha(loss: Loss, here: Point) -> Tensor:
    """A curvature that neither rules out nor invites the step that would bring the loss to zero.

    That step, along J, has length about loss / |grad|; a parabola that climbs a tenth of the loss
    over it has this curvature.
    """
    value = loss(here.preactivation).double().abs()
    slope = _slope(loss, here.preactivation).double() * here.slope.double().flatten(1).norm(dim=1)
    alpha = 0.1 * slope**2 / value.clamp_min(1e-30)
    return torch.where((value > 0) & (slope != 0), alpha, 1.0).clamp(1e-12, 1e12)


def _step(
    loss: Loss, simple: Term | None, delta: Tensor, here: Point, alpha: Tensor, active: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimiser of the linearised problem, and the J that it promises (without alpha's term).

    Solved in float64: m may be many orders smaller than its bracket.
    """
    at, slope = delta.double(), here.slope.double()
    p, pull = here.preactivation.double(), here.rest_slope.double()
    a = rowwise(alpha, at)

    def shifted(m: Tensor) -> Tensor:
        u = at - (rowwise(m, at) * slope + pull) / a
        return u if simple is None else simple.distance.prox(u, simple.weight / alpha)  # type: ignore[attr-defined]

    def reading(u: Tensor) -> Tensor:
        return p + (slope * (u - at)).flatten(1).sum(1)

    def excess(m: Tensor) -> Tensor:
        return _slope(loss, reading(shifted(m))) - m

    # excess falls with m, so its root lies between any m and phi' at the reading that m leads to
    left = _slope(loss, p)
    e_left = excess(left)
    right = left + e_left
    e_right = excess(right)
    width = (right - left).abs()
    for _ in range(ROOT_STEPS):  # false position, with Illinois' halving against stalling
        secant = (left * e_right - right * e_left) / (e_right - e_left)
        inside = torch.isfinite(secant) & (e_left * e_right < 0)
        m = torch.where(inside, secant, torch.where(e_left.abs() < e_right.abs(), left, right))
        e = excess(m)
        crossed = e * e_right < 0
        left = torch.where(crossed, right, left)
        e_left = torch.where(crossed, e_right, 0.5 * e_left)
        right, e_right = m, e
        found = (e.abs() <= ROOT * m.abs()) | ((right - left).abs() <= 1e-15 * width)
        if bool((~active | ~inside | found).all()):
            break
    u = shifted(right)
    q = reading(u)
    drift = (pull * (u - at)).flatten(1).sum(1)
    g = 0.0 if simple is None else simple.weight * simple.distance.value(u)
    promised = loss(q) + here.rest.double() + drift + g
    return u.to(delta.dtype), promised


def _slope(loss: Loss, p: Tensor) -> Tensor:
    p = p.detach().requires_grad_()
    return torch.autograd.grad(loss(p).sum(), p)[0]
