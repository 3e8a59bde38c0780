"""Open question 2 of document 5: how to weigh the distance against the concept.

With `J = loss(P, o) + lambda * dist(delta)` every lambda gives another compromise. `front` follows
them all; the rules here choose one per sample, and are compared on what they reach (`Chosen`):

- `bisect`: the largest lambda at which the probe still reads tau, by halving on a log scale;
- `lagrangian`: the target moved by what is missing after each solve; `directly`: `maximise_to`;
- `knee`: the sharpest bend of the front; `fixed`: one lambda; `capped`: the largest gain that
  stays near the data.

`hypervolume` says in one number how good a front is.

Specification 6.1. Distances are squared L2 in data units, D is their root: for linear problems
everything is known in closed form (specification 9.1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib.backprop.distances import L2Sq
from lib.backprop.maximisation import maximise, maximise_to
from lib.backprop.objective import Objective, Term

LOW, HIGH = -4.0, 2.0  # decades of lambda
SLACK = 0.02  # by how much a rule may overshoot tau (specification 6.1)
WORSE = 1.05  # times the best distance of the grid


@dataclass(frozen=True)
class Problem:
    """Samples, a probe and what is asked of it; the weight of the one term is what is studied."""

    name: str
    objective: Objective  # its term is a squared L2 in data units
    s: Tensor  # [n, ...]
    goal: float  # the target o of the loss; beyond tau for a regression, 1 for a probability
    tau: float  # what the probe is to read at least
    near: Callable[[Tensor], Tensor]  # delta -> whether the sample stays near the data, [n] bool
    truth: Callable[[Tensor], Tensor]  # delta -> the true concept, [n]

    def solve(
        self, weight: Tensor, start: Tensor | None = None, goal: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """delta and P at a lambda for each sample, `[n]`."""
        distance = self.objective.terms[0][1]
        objective = replace(self.objective, terms=[Term(weight, distance)])
        wanted: Tensor | float = self.goal if goal is None else goal
        found = maximise(objective, self.s, wanted, start=start, max_steps=60)
        return found.delta, found.probe_after

    def distance(self, delta: Tensor) -> Tensor:
        """D, `[n]`: the root of the squared distance."""
        return self.objective.terms[0][1].value(delta).clamp_min(0).sqrt()


@dataclass(frozen=True)
class Front:
    """Every compromise of n samples, from the largest lambda down: all `[k, n]`."""

    weights: Tensor  # [k]
    delta: Tensor  # [k, n, ...]
    probe: Tensor
    distance: Tensor
    near: Tensor  # bool
    truth: Tensor
    gain: Tensor  # share of the way to the goal, 0 to 1


@dataclass(frozen=True)
class Chosen:
    """What a rule came to; all `[n]`."""

    rule: str
    weight: Tensor  # lambda, NaN where the rule has none
    probe: Tensor
    distance: Tensor
    near: Tensor
    truth: Tensor
    solves: int


def squared(scale: Tensor | float) -> list[Term]:
    """The term of a `Problem`: squared L2 of delta / scale."""
    return [Term(1.0, L2Sq(scale=scale))]


def front(problem: Problem, n_weights: int) -> Front:
    """Solve at log-spaced lambdas, each from the solution before it."""
    weights = torch.logspace(HIGH, LOW, n_weights, dtype=problem.s.dtype)
    start, deltas, reads = None, [], []
    for weight in weights:
        start, p = problem.solve(weight.expand(len(problem.s)), start)
        deltas.append(start)
        reads.append(p)
    with torch.no_grad():
        zero = torch.zeros_like(deltas[0])
        point = problem.objective.operator.place(problem.s)
        first = problem.objective.concept(problem.objective.preactivation(point, zero))
    probe = torch.stack(reads)
    gain = ((probe - first) / (problem.tau - first)).clamp(0, 1)
    return Front(
        weights=weights,
        delta=torch.stack(deltas),
        probe=probe,
        distance=torch.stack([problem.distance(d) for d in deltas]),
        near=torch.stack([problem.near(d) for d in deltas]),
        truth=torch.stack([problem.truth(d) for d in deltas]),
        gain=gain,
    )


def hypervolume(distance: Tensor, gain: Tensor, reach: Tensor | float) -> Tensor:
    """Share of the square that the non-dominated points cover: G up, D down, `[...]`.

    A point covers what has no larger gain and no smaller distance, up to the reference point
    (D = reach, G = 0). 1 is the full gain at no distance, 0 none within reach; a straight front
    from the origin to (reach, 1) gives a half.

    Args:
        distance: D >= 0, `[k, ...]`, in any order.
        gain: G, `[k, ...]`; clipped to [0, 1].
        reach: the distance that counts as 1, one for a domain, or one a sample.

    Raises:
        ValueError: shapes differ, values are NaN or infinite, a distance is negative, or reach is
            not positive.

    Source: specification 6.1; the reference point is our choice, it names none.
    """
    if distance.shape != gain.shape or distance.ndim < 1 or not len(distance):
        raise ValueError(
            f"want distance and gain [k, ...], got {tuple(distance.shape)} and {tuple(gain.shape)}"
        )
    limit = torch.as_tensor(reach).to(distance)
    if not bool(torch.isfinite(distance).all() & torch.isfinite(gain).all()):
        raise ValueError("distances or gains hold NaN or infinite values; leave those points out")
    if bool((distance < 0).any()) or not bool((limit > 0).all()):
        raise ValueError("want distances >= 0 and a reach > 0")
    at, order = (distance / limit).clamp(max=1.0).sort(0)
    best = gain.to(distance).clamp(0, 1).gather(0, order).cummax(0).values
    return (torch.cat([at[1:], torch.ones_like(at[:1])]) - at).mul(best).sum(0)


def bisect(problem: Problem, n_solves: int = 12) -> Chosen:
    """The largest lambda with P >= tau, sample by sample; the better side is kept.

    Source: specification 6.1 (a): the loss of a minimiser does not fall when lambda rises, so
    halving is valid wherever the solver finds global minimisers. Each solve starts from the best
    feasible one: where the front is not convex, P jumps between two branches of minimisers, and
    the one that reads tau is followed.
    """
    n = len(problem.s)
    low, high = torch.full((n,), LOW).to(problem.s), torch.full((n,), HIGH).to(problem.s)
    delta, probe = problem.solve(10**low)
    best = delta
    for _ in range(n_solves - 1):
        middle = (low + high) / 2
        start, p = problem.solve(10**middle, best)
        met = p >= problem.tau
        low, high = torch.where(met, middle, low), torch.where(met, high, middle)
        keep = met.reshape(-1, *[1] * (delta.ndim - 1))
        best, probe = torch.where(keep, start, best), torch.where(met, p, probe)
    return _chosen(problem, "bisection", 10**low, best, probe, n_solves)


def lagrangian(problem: Problem, weight: float, n_solves: int = 12) -> Chosen:
    """Augmented Lagrangian: a target that moves by what is still missing after each solve.

    The multiplier of `P >= tau`, divided by the penalty 1 / lambda, is the target's shift; its
    update is `shift += tau - P`. Where a solve leaves more than half of what was missing before it,
    the penalty rises fourfold (the shift falls with it). On the pre-activation, where a sigmoid is
    straight.

    Args:
        weight: the first lambda.

    Source: specification 6.1 (b).
    """
    plain = replace(problem.objective, link="identity", loss="squared")
    inner = replace(problem, objective=plain)
    is_sigmoid = problem.objective.link == "sigmoid"
    # a hair inside, so that "at least" survives the last step's error
    level = math.log(problem.tau / (1 - problem.tau)) if is_sigmoid else problem.tau
    level += 1e-3 * max(1.0, abs(level))
    shift = torch.zeros(len(problem.s)).to(problem.s)
    each, start, p = torch.full_like(shift, weight), None, shift
    missing = torch.full_like(shift, torch.inf)
    for _ in range(n_solves):
        start, p = inner.solve(each, start, level + shift)
        slow = (level - p).abs() > 0.5 * missing
        missing = (level - p).abs()
        shift = shift + (level - p)
        each, shift = torch.where(slow, each / 4, each), torch.where(slow, shift / 4, shift)
    assert start is not None
    none = torch.full_like(shift, torch.nan)
    probe = problem.objective.concept(p)
    return _chosen(problem, "Lagrangian", none, start, probe, n_solves)


def directly(problem: Problem) -> Chosen:
    """`maximise_to`: the constrained problem itself, with no weight at all."""
    found = maximise_to(problem.objective, problem.s, problem.tau, max_steps=60)
    none = torch.full_like(found.probe_after, torch.nan)
    return _chosen(problem, "maximise_to", none, found.delta, found.probe_after, 1)


def knee(problem: Problem, path: Front) -> Chosen:
    """The point of the front farthest from the chord of its ends, both axes from 0 to 1."""
    d = path.distance - path.distance.amin(0)
    d = d / d.amax(0).clamp_min(1e-12)
    at = (path.gain - d).argmax(0)
    return _at(problem, "knee", path, at)


def fixed(problem: Problem, path: Front, weight: float) -> Chosen:
    """One lambda for all: the grid point nearest to `weight`."""
    at = (path.weights.log10() - math.log10(weight)).abs().argmin()
    return _at(problem, f"fixed {weight:g}", path, at.expand(path.probe.shape[1]))


def capped(problem: Problem, path: Front) -> Chosen:
    """The largest gain among points that stay near the data; no move where none does."""
    gain = torch.where(path.near, path.gain, torch.full_like(path.gain, -1.0))
    return _at(problem, "near the data", path, gain.argmax(0))


def reached(problem: Problem, chosen: Chosen, path: Front) -> Tensor:
    """Whether a rule did what was asked, over feasible samples, bool.

    Feasible: some point of the grid reads tau. Done: P in [tau, tau + .02] (to 1e-4, the
    solver's precision) and D at most 1.05 times the best of the grid.
    """
    enough = path.probe >= problem.tau
    best = torch.where(enough, path.distance, torch.inf).amin(0)
    done = (chosen.probe >= problem.tau - 1e-4) & (chosen.probe <= problem.tau + SLACK)
    done &= chosen.distance <= WORSE * best
    return done[enough.any(0)]


def decades(chosen: Chosen) -> float:
    """Decades between the 10% and the 90% quantile over samples of the chosen lambda."""
    logs = chosen.weight.double().log10()
    return (logs.quantile(0.9) - logs.quantile(0.1)).item()


def _at(problem: Problem, rule: str, path: Front, at: Tensor) -> Chosen:
    n = torch.arange(path.probe.shape[1])
    delta, probe = path.delta[at, n], path.probe[at, n]
    return _chosen(problem, rule, path.weights[at], delta, probe, len(path.weights))


def _chosen(
    problem: Problem, rule: str, weight: Tensor, delta: Tensor, probe: Tensor, solves: int
) -> Chosen:
    return Chosen(
        rule=rule,
        weight=weight,
        probe=probe,
        distance=problem.distance(delta),
        near=problem.near(delta),
        truth=problem.truth(delta),
        solves=solves,
    )
