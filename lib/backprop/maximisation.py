"""Concept maximisation: the smallest change of an input that a probe reads as the concept.

Document 5, II-B: `argmin dist(s, s*)` subject to `P(L(s ⊙ s*)) = o`. Three ways to solve it, each
for all rows of a batch at once and each row on its own:

- `maximise`, sound: the penalty form from delta = 0, to convergence;
- `maximise_to`: the constraint form itself, `P >= target` or `P = target`;
- `maximise_faithful`: what the authors' notebooks run, random start and fixed steps included.

Public names: `maximise`, `maximise_to`, `maximise_faithful`, `Maximisation`, `FaithfulRecipe`,
`HOUSING_RECIPE`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lib.backprop.descent import Path, Point, descend
from lib.backprop.objective import Objective, Term, prepare, weights_hash

TIGHTER = (3e-1, 1e-2, 0.0, 0.0, 0.0, 0.0)  # how far `maximise_to` rounds off its constraint
DEAR, DEARER = 10.0, 10.0  # first price over the estimated one, and the factor of each rise
SLACK, SLACK_SINGLE = 1e-6, 1e-4  # how far it may be missed, of the gap; float64 and float32


@dataclass(frozen=True)
class Maximisation:
    """Result of a maximisation of n samples; histories have one row a step, the first at start."""

    delta: Tensor  # [n, ...], in the perturbed space
    result: Tensor  # [n, ...], the perturbed samples s ⊙ delta
    probe_before: Tensor  # [n], concept value P of the samples
    probe_after: Tensor  # [n]
    distance: Tensor  # [n], sum of the distances, unweighted
    objective: Tensor  # [n], J (of `maximise_to`: the weighted distance)
    converged: Tensor  # [n], bool; always False where nothing decides when to stop
    steps: Tensor  # [n], evaluations of the gradient until the row stopped
    probe_history: Tensor  # [steps + 1, n]
    distance_history: Tensor  # [steps + 1, n]
    objective_history: Tensor  # [steps + 1, n]


@dataclass(frozen=True)
class FaithfulRecipe:
    """Numbers of one of the authors' notebooks (specification 1.2)."""

    steps: int
    lr: float = 1e-3
    eps: float = 1e-7
    activity_penalty: float = 0.0


HOUSING_RECIPE = FaithfulRecipe(steps=600)
"""With `Term(0.25, L1())`, link "relu", target 1 and squared error."""


def maximise(
    objective: Objective,
    s: Tensor,
    target: Tensor | float,
    *,
    start: Tensor | None = None,
    max_steps: int = 2000,
    tolerance: float = 1e-6,
) -> Maximisation:
    """Minimise the objective for each row of `s`, from delta = 0, to convergence.

    Args:
        objective: model part, probe, operator, distances and their weights (lambda 2).
        s: samples, `[n, ...]`.
        target: wanted concept value o, one or `[n]`.
        start: first delta, for instance a neighbouring solution on a path; zeros by default. It
            also gives delta's shape where that differs from the placed sample's.
        max_steps: at most so many evaluations of the gradient.
        tolerance: a row stops when its J changes by less than this, relative, over 50 steps,
            or when a step promises less than this, squared.

    Returns:
        The best iterate of every row.

    Raises:
        ValueError: see `lib.backprop.objective.prepare`.
        RuntimeError: the model's or the probe's weights changed meanwhile.

    Source: document 5, II-B; specification 1.3, mode `sound`. Departures: proximal steps on the
    linearised probe (`lib.backprop.descent`) instead of Adam at a fixed rate, since they need no
    learning rate, solve the linear case in a few steps and give exact zeros under L1 (measured on
    one untrained 6-40-20 SELU network, 1,000 rows: 30 to 84 evaluations in the mean, where
    proximal Adam at 1e-2 takes 417 to 1,120 in the median to come as low and on 24% to 42% of rows
    does not in 2,000; it ends lower by over 1e-4 on 3% to 53% of rows, in other local minima);
    and a ReLU probe
    with positive targets is compared before its link, where the same delta is optimal but the
    gradient does not die (specification 9.4).
    """
    point, wanted, delta = prepare(objective, s, target, start)
    frozen = weights_hash(*objective.modules())
    alive = _before_link(objective, wanted)
    simple, others = alive.split()

    def record(at: Tensor, here: Point, total: Tensor) -> Tensor:
        distance = here.plain if simple is None else here.plain + simple.distance.value(at)
        return torch.stack([objective.concept(here.preactivation), distance, total])

    path = descend(
        _evaluator(alive, point, others),
        lambda p: alive.misfit(p, wanted.to(p.dtype)),
        simple,
        delta,
        max_steps=max_steps,
        tolerance=tolerance,
        record=record,
    )
    return _result(objective, s, point, path, torch.stack(path.records, 1), frozen)


def maximise_to(
    objective: Objective,
    s: Tensor,
    target: Tensor | float,
    *,
    at_least: bool = True,
    max_steps: int = 200,
    tolerance: float = 1e-6,
) -> Maximisation:
    """Minimise the distance for each row of `s` subject to `P >= target` (or `P = target`).

    The document's own form of the problem: no lambda to choose. Weights of the terms only matter
    relative to one another; `loss`, `loss_weight` and `activity_penalty` are not used. Solved by
    an exact penalty: missing the constraint costs a price per unit, and a price above the
    constraint's multiplier leaves nothing missing. The cost is rounded off over the last part of
    the gap, first widely, so that the descent can slide along the constraint, in the end over 1e-6
    of it (1e-4 in float32). The price of a row that then still misses is raised. A sigmoid's
    constraint is put on its logit, where it is better scaled.

    Args:
        at_least: the constraint is `P >= target`, and a sample that meets it keeps delta = 0;
            False: `P = target`, for regression.
        max_steps: at most so many evaluations of the gradient at each price.
        tolerance: as in `maximise`.

    Returns:
        `converged` is False where the constraint could not be met; `objective` and its history
        are the weighted distance.

    Raises:
        ValueError: as in `maximise`; or a sigmoid's target is 0 or 1, which no logit reaches, or a
            ReLU's is 0.
        RuntimeError: the weights changed meanwhile.

    Source: document 5, II-B, the constrained problem; specification 6.1 (b), whose augmented
    Lagrangian needs tens of outer rounds where this needs one or two.
    """
    point, wanted, delta = prepare(objective, s, target, None)
    frozen = weights_hash(*objective.modules())
    if objective.link == "sigmoid":
        if not bool(((wanted > 0) & (wanted < 1)).all()):
            raise ValueError("a sigmoid probe never outputs 0 or 1; ask for a target between them")
        level = torch.logit(wanted)
    elif objective.link == "relu" and not bool((wanted > 0).all()):
        raise ValueError("a ReLU probe gives 0 over a whole half space; ask for a target above 0")
    else:
        level = wanted
    simple, others = objective.split()
    evaluate = _evaluator(objective, point, others)
    price, gap = _first_price(objective, evaluate(delta, wanted > -torch.inf), level, at_least)
    slack = (SLACK if s.dtype == torch.float64 else SLACK_SINGLE) * gap
    slack = slack + 16 * torch.finfo(s.dtype).eps * (1.0 + level.abs())
    steps = torch.zeros(len(s), dtype=torch.long, device=s.device)
    stopped, todo = steps > 0, steps == 0
    history = []

    def missing(p: Tensor) -> Tensor:
        return (level - p).clamp_min(0.0) if at_least else (level - p).abs()

    def record(at: Tensor, here: Point, total: Tensor) -> Tensor:
        distance, weighted = here.plain, here.rest
        if simple is not None:
            own = simple.distance.value(at)
            distance, weighted = distance + own, weighted + simple.weight * own
        return torch.stack([objective.concept(here.preactivation), distance, weighted])

    for round_off in TIGHTER:
        width = torch.maximum(slack, round_off * gap)

        def cost(p: Tensor, price: Tensor = price, width: Tensor = width) -> Tensor:
            part = missing(p) / width  # Huber's function: a parabola up to 1, straight beyond
            return price * width * torch.where(part < 1, 0.5 * part**2, part - 0.5)

        path = descend(
            evaluate,
            cost,
            simple,
            delta,
            active=todo,
            max_steps=max_steps,
            tolerance=tolerance,
            record=record,
        )
        delta, steps = path.delta, steps + path.steps
        stopped = torch.where(todo, path.converged, stopped)
        history += path.records
        met = missing(path.preactivation) <= width
        price = torch.where(met, price, DEARER * price)
        if round_off == 0:
            todo = ~met
        if not bool(todo.any()):
            break
    path = replace(path, total=history[-1][2], converged=met & stopped, steps=steps)
    return _result(objective, s, point, path, torch.stack(history, 1), frozen)


def maximise_faithful(
    objective: Objective,
    s: Tensor,
    target: Tensor | float,
    recipe: FaithfulRecipe,
    *,
    generator: torch.Generator,
) -> Maximisation:
    """Run the authors' notebook procedure on each row of `s`.

    delta = k + b with b = 0 and k uniform in (-a, a), a = sqrt(6 / (1 + d)) for d coordinates a
    row: a dense layer fed with the constant 1. Both parts are trained and get the same gradient,
    so delta moves at twice the learning rate. Adam, a fixed number of steps, no stopping rule,
    last iterate. Results depend on the start: that is the point of this mode.

    Args:
        recipe: steps, rate and epsilon; `activity_penalty` is added to the objective's own.
        generator: for k, on the CPU so that a seed gives the same start on every device.

    Returns:
        `converged` is False throughout.

    Raises:
        ValueError, RuntimeError: as in `maximise`.

    Source: the authors' notebooks by way of specification 1.2 and 1.3. Departure: one copy of each
    sample instead of 64 identical ones, which leaves the mean gradient as it is. Epsilon is added
    after the bias correction (torch) and not before it (Keras), a difference of order 1e-7.
    """
    penalty = objective.activity_penalty + recipe.activity_penalty
    objective = replace(objective, activity_penalty=penalty)
    point, wanted, zero = prepare(objective, s, target, None)
    frozen = weights_hash(*objective.modules())
    reach = (6.0 / (1 + zero[0].numel())) ** 0.5
    drawn = torch.rand(zero.shape, generator=generator, dtype=zero.dtype)
    k = ((2 * drawn - 1) * reach).to(zero.device).requires_grad_()
    b = torch.zeros_like(zero, requires_grad=True)
    optimiser = torch.optim.Adam([k, b], lr=recipe.lr, eps=recipe.eps)
    history = []
    for step in range(recipe.steps + 1):
        delta = k + b
        p = objective.preactivation(point, delta)
        total = objective.misfit(p, wanted) + objective.weighted(delta)
        seen = [objective.concept(p), objective.distance(delta), total]
        history.append(torch.stack(seen).detach())
        if step == recipe.steps:
            break
        k.grad, b.grad = torch.autograd.grad(total.sum(), (k, b))
        optimiser.step()
    never = torch.zeros(len(s), dtype=torch.bool, device=s.device)
    taken = torch.full((len(s),), recipe.steps, device=s.device)
    path = Path(delta.detach(), total.detach(), p.detach(), never, taken, [])
    return _result(objective, s, point, path, torch.stack(history, 1), frozen)


def _before_link(objective: Objective, wanted: Tensor) -> Objective:
    if objective.link == "relu" and bool((wanted > 0).all()) and not objective.activity_penalty:
        return replace(objective, link="identity")
    return objective


def _evaluator(
    objective: Objective, point: Tensor, others: list[Term]
) -> Callable[[Tensor, Tensor], Point]:
    """Reads the probe, the distances without a prox, and both gradients at a delta."""

    def read(at: Tensor, point: Tensor, others: list[Term]) -> Point:
        at = at.detach().requires_grad_()
        p = objective.preactivation(point, at)
        (slope,) = torch.autograd.grad(p.sum(), at)
        if not others:
            none = torch.zeros_like(p).detach()
            return Point(p.detach(), slope, none, none, torch.zeros_like(slope))
        each = [term.distance.value(at) for term in others]
        rest = torch.stack([term.weight * d for term, d in zip(others, each, strict=True)]).sum(0)
        (rest_slope,) = torch.autograd.grad(rest.sum(), at)
        plain = torch.stack(each).sum(0).detach()
        return Point(p.detach(), slope, rest.detach(), plain, rest_slope)

    def evaluate(at: Tensor, wanted: Tensor) -> Point:
        if not objective.any_rows or bool(wanted.all()):
            return read(at, point, others)
        rows = wanted.nonzero()[:, 0].to(at.device)
        part = read(at[rows], point[rows], [term.take(rows) for term in others])

        def spread(x: Tensor) -> Tensor:
            return x.new_zeros(len(at), *x.shape[1:]).index_copy(0, rows, x)

        return Point(*(spread(value) for value in vars(part).values()))

    return evaluate


def _first_price(
    objective: Objective, start: Point, level: Tensor, at_least: bool
) -> tuple[Tensor, Tensor]:
    """A price for missing the constraint by one unit, and by how much the start misses it.

    The linear model at the start says which delta would meet the constraint and at what distance
    D; then a unit of pre-activation is worth at most about 2 D / gap (for a squared distance).
    """
    gap = level - start.preactivation
    gap = gap.clamp_min(0.0) if at_least else gap
    g = start.slope.flatten(1)
    reach = (gap / (g**2).sum(1).clamp_min(1e-30))[:, None] * g
    worth = 2.0 * objective.weighted(reach.reshape(start.slope.shape)).detach()
    return DEAR * (worth / gap.abs().clamp_min(1e-30)).clamp(1e-8, 1e12), gap.abs()


def _result(
    objective: Objective, s: Tensor, point: Tensor, path: Path, history: Tensor, frozen: str
) -> Maximisation:
    if weights_hash(*objective.modules()) != frozen:
        raise RuntimeError(
            "the weights of the model or the probe changed during the maximisation; it explains "
            "a frozen network, so nothing else may train it meanwhile"
        )
    with torch.no_grad():
        before = objective.concept(objective.preactivation(point, torch.zeros_like(path.delta)))
        result = objective.operator.combine(point, path.delta)
        distance = objective.distance(path.delta)
    return Maximisation(
        delta=path.delta,
        result=result,
        probe_before=before,
        probe_after=objective.concept(path.preactivation),
        distance=distance,
        objective=path.total,
        converged=path.converged,
        steps=path.steps,
        probe_history=history[0],
        distance_history=history[1],
        objective_history=history[2],
    )
