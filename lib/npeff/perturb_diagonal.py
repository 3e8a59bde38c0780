"""Guided perturbations for diagonal decompositions: Fisher-weighted averages of two models.

A diagonal pseudo-Fisher `h` says how important a coordinate is to a component, not which way to
move it. The way is the sign `s` against the gradient of the loss on the component's top examples;
how far is a Fisher-weighted average of the model, with the importances `d` of the whole data set,
and of the model moved by `delta` in every coordinate, with those of the component:

``theta = theta0 - delta s * lambda h / ((1 - lambda) d + lambda h)``.

What is important to the component and to little else moves by about `delta`. The two numbers
`delta` and `lambda` are searched so that the divergence on the top examples is in a given range.

Public names: `dataset_fisher`, `sampled_fisher`, `average`, `search`, `bisect`, `Found`,
`measure_diagonal`, `DiagonalSelectivity`, `FLOOR`, `LITERAL`.

Source: document 3, section 3.1.2, whose appendices C and E nobody could consult; specification 5.5,
recovered from the paper's code. The ranges of the search are this project's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import gradients
from lib.features import Progress
from lib.npeff.divergence import (
    CHUNK,
    FORWARD,
    Data,
    Reference,
    checked_rows,
    log_probabilities,
    loss_and_gradient,
)
from lib.npeff.perturb import block, n_positions, scatter
from lib.npeff.selectivity import Selectivity, respond
from lib.npeff.store import Parameters

NU = 1e-6  # guard of the unit-length data-set Fisher, the paper's code
FLOOR, LITERAL = "floor", "literal"  # max(d, nu), what the code's names say; min(d, nu), its text
LEAST_SHARE, MOST_SHARE = 0.035, 0.965  # range of lambda, the paper's code
N_MOVES, N_HALVINGS = 25, 10  # of the search, the paper's code
KL_RANGE = (0.02, 0.1)  # nats, mean on the top examples; this project's
DELTA_RANGE = (1e-4, 1.0)  # this project's

Divergence = Callable[[float, float], float]  # (delta, lambda) -> mean KL on the top examples


def dataset_fisher(
    model: nn.Module,
    data: Data,
    parameters: Parameters,
    *,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Mean diagonal Fisher of a data set, exact: `[m]` float64, not scaled.

    ``sum_c`` of squared gradients of the centred logits, C passes; labels are not used.

    Args:
        progress: wraps the range of classes.

    Source: specification 1.2 and 5.5.
    """
    names = _in_flat_order(model, parameters)
    n_classes = log_probabilities(model, data[0], torch.zeros(1, dtype=torch.int64)).shape[1]
    total = torch.zeros(n_positions(parameters), dtype=torch.float64)
    steps = range(n_classes)
    for c in progress(steps) if progress else steps:
        output = gradients.CentredLogit(c)
        total += _squares(model, data, output, names, chunk)
    return total / len(data[0])


def sampled_fisher(
    model: nn.Module,
    data: Data,
    parameters: Parameters,
    *,
    generator: torch.Generator,
    chunk: int | None = None,
) -> Tensor:
    """An unbiased estimate of `dataset_fisher` from one pass: a label drawn for each example.

    Labels are drawn from the model's own predictions. Public for networks of many classes: one pass
    in place of C, and what `measure_diagonal` takes either way.
    """
    names = _in_flat_order(model, parameters)
    log_p = log_probabilities(model, data[0], torch.arange(len(data[0])))
    y = torch.multinomial(log_p.exp(), 1, generator=generator)[:, 0].to(data[1].device)
    squares = _squares(model, (data[0], y), gradients.cross_entropy, names, chunk)
    return squares / len(data[0])


def _squares(
    model: nn.Module, data: Data, output: gradients.Output, names: list[str], chunk: int | None
) -> Tensor:
    """Sum over examples of squared gradients, float64 `[m]`."""
    parts = gradients.stream(model, data, output, block=names, chunk=chunk)
    first = next(parts)
    total = first.double().square().sum(0)
    for part in parts:
        total += part.double().square().sum(0)
    return total.cpu()


def _in_flat_order(model: nn.Module, parameters: Parameters) -> list[str]:
    names = list(block(model, parameters))
    known = [name for name, _ in model.named_parameters() if name in names]
    if names != known:
        raise ValueError(f"want parameters in the model's order, {known}, got {names}")
    return names


def average(
    component: Tensor,
    dataset: Tensor,
    sign: Tensor,
    delta: float,
    share: float,
    *,
    guard: str = FLOOR,
    nu: float = NU,
) -> Tensor:
    """The change of the parameters, `[m]` float64.

    Args:
        component: h ``[m]``, not negative; scaled to unit length here.
        dataset: d ``[m]``, not negative; scaled to unit length and guarded here.
        sign: s ``[m]``, -1, 0 or 1.
        delta: above 0; share: lambda in (0, 1).
        guard: `FLOOR` takes ``max(d, nu)``. `LITERAL` takes ``min(d, nu)`` as the paper's code does
            under the name of a floor: nothing then protects coordinates that matter in general.

    Raises:
        ValueError: shapes disagree, negative importances or NaN, a component or Fisher of zeros.
    """
    if guard not in (FLOOR, LITERAL):
        raise ValueError(f"guard is {FLOOR!r} or {LITERAL!r}, got {guard!r}")
    if not delta > 0 or not 0 < share < 1 or not nu > 0:
        raise ValueError(
            f"want delta > 0, a share in (0, 1) and nu > 0, got {delta}, {share} and {nu}"
        )
    if component.ndim != 1 or dataset.shape != component.shape or sign.shape != component.shape:
        raise ValueError(
            f"want component, dataset and sign [m], got {tuple(component.shape)}, "
            f"{tuple(dataset.shape)} and {tuple(sign.shape)}; scatter the kept entries first"
        )
    h, d = _importance("component", component), _importance("data set's Fisher", dataset)
    d = d.clamp_min(nu) if guard == FLOOR else d.clamp_max(nu)
    below = (1 - share) * d + share * h
    moved = share * h / torch.where(below > 0, below, 1.0)  # no importance at all: no move
    return -delta * sign.double() * moved


def _importance(what: str, values: Tensor) -> Tensor:
    values = values.double()
    if not values.isfinite().all() or bool((values < 0).any()):
        raise ValueError(f"the {what} holds NaN or negative importances")
    if not values.any():
        raise ValueError(f"the {what} is zero everywhere and says nothing; leave it out")
    return values / values.norm()


@dataclass(frozen=True)
class Found:
    """Where a search ended."""

    delta: float
    share: float  # lambda
    kl: float  # nats
    in_range: bool
    tried: tuple[tuple[float, float, float], ...]  # (delta, lambda, KL), in order


def search(
    kl: Divergence,
    *,
    generator: torch.Generator,
    wanted: tuple[float, float] = KL_RANGE,
    deltas: tuple[float, float] = DELTA_RANGE,
    n_moves: int = N_MOVES,
) -> Found:
    """Search (delta, lambda) from a random start, one coordinate at a time.

    On even moves lambda, on odd ones log delta, goes half-way to the bound that corrects the
    divergence. A move beyond the range wanted is halved, up to 10 times; if it is still beyond,
    the coordinate stays. The divergence is taken to rise in both.

    Raises:
        ValueError: ranges that are empty or not positive, or a divergence that is NaN.

    Source: specification 5.5.
    """
    _check_ranges(wanted, deltas, n_moves)
    draws = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    low = (LEAST_SHARE, math.log(deltas[0]))
    high = (MOST_SHARE, math.log(deltas[1]))
    at = [low[k] + draws[1 - k] * (high[k] - low[k]) for k in range(2)]  # (lambda, log delta)
    tried: list[tuple[float, float, float]] = []
    now = _tried(kl, at, tried)
    for move in range(n_moves):
        side = _side(now, wanted)
        if side == 0:
            break
        k = move % 2
        step = ((high if side < 0 else low)[k] - at[k]) / 2
        for _ in range(N_HALVINGS + 1):
            there = list(at)
            there[k] += step
            value = _tried(kl, there, tried)
            if _side(value, wanted) in (0, side):
                at, now = there, value
                break
            step /= 2
    return Found(math.exp(at[1]), at[0], now, _side(now, wanted) == 0, tuple(tried))


def bisect(
    kl: Divergence,
    *,
    share: float = 0.5,
    wanted: tuple[float, float] = KL_RANGE,
    deltas: tuple[float, float] = DELTA_RANGE,
    n_moves: int = N_MOVES,
) -> Found:
    """Search log delta alone by bisection, lambda fixed; deterministic.

    Raises:
        ValueError: ranges that are empty or not positive, or a divergence that is NaN.

    Source: specification 5.5, the simpler search.
    """
    _check_ranges(wanted, deltas, n_moves)
    low, high = (math.log(bound) for bound in deltas)
    tried: list[tuple[float, float, float]] = []
    for _ in range(n_moves):
        middle = (low + high) / 2
        side = _side(_tried(kl, [share, middle], tried), wanted)
        if side == 0:
            break
        low, high = (middle, high) if side < 0 else (low, middle)
    delta, _, now = tried[-1]
    return Found(delta, share, now, _side(now, wanted) == 0, tuple(tried))


def _tried(kl: Divergence, at: list[float], tried: list[tuple[float, float, float]]) -> float:
    delta = math.exp(at[1])
    value = kl(delta, at[0])
    if math.isnan(value):
        raise ValueError(f"the divergence at delta = {delta:.3g} is NaN; lower the range of delta")
    tried.append((delta, at[0], value))
    return value


def _side(kl: float, wanted: tuple[float, float]) -> int:
    """-1 below the range, 1 above it, 0 in it."""
    return int(kl > wanted[1]) - int(kl < wanted[0])


def _check_ranges(wanted: tuple[float, float], deltas: tuple[float, float], n_moves: int) -> None:
    if not (0 < wanted[0] < wanted[1] and 0 < deltas[0] < deltas[1]) or n_moves < 1:
        raise ValueError(
            f"want ranges (low, high) with 0 < low < high and at least one move, got KL {wanted}, "
            f"delta {deltas} and {n_moves} moves"
        )


@dataclass(frozen=True)
class DiagonalSelectivity:
    """KL-ratios of diagonal components, and where the searches ended."""

    selectivity: Selectivity  # one sign: it is set by the loss
    found: tuple[Found, ...]  # of each component
    norms: Tensor  # float64 [r], lengths of the changes
    guard: str


def measure_diagonal(
    model: nn.Module,
    data: Data,
    components: Tensor,
    kept: Tensor,
    parameters: Parameters,
    dataset: Tensor,
    *,
    top: Tensor,
    baseline: Tensor,
    generator: torch.Generator | None = None,
    wanted: tuple[float, float] = KL_RANGE,
    deltas: tuple[float, float] = DELTA_RANGE,
    guard: str = FLOOR,
    chunk: int = CHUNK,
    progress: Progress | None = None,
) -> DiagonalSelectivity:
    """Search a perturbation for every diagonal component and measure its selectivity.

    Args:
        components: H ``[r, m']``, kept: int64 ``[m']``, dataset: ``[m]`` of `dataset_fisher`.
        top: int64 ``[r, T]``, baseline: int64 ``[B]``, as for `selectivity.measure`.
        generator: starts of `search`; None takes `bisect`.
        progress: wraps the range of components.

    Raises:
        ValueError: shapes disagree, a component of zeros, or what `search` refuses.
    """
    r = len(components)
    top = checked_rows(top, r, len(data[0]))
    if components.ndim != 2 or kept.shape != components.shape[1:]:
        raise ValueError(
            f"want components [r, m'] and kept [m'], got {tuple(components.shape)} and "
            f"{tuple(kept.shape)}"
        )
    before = Reference.of(model, data, top, chunk)
    ends: list[Found] = []
    norms: list[float] = []

    def searched(j: int) -> Tensor:
        """The change of component j, `[1, m]`; notes where the search ended."""
        # summed over the top examples, gold labels
        _, gradient = loss_and_gradient(model, data, parameters, top[j], chunk=chunk)
        sign = gradient.sign().cpu()
        h = scatter(components[j].cpu(), kept.cpu(), parameters)

        def change(delta: float, share: float) -> Tensor:
            return average(h, dataset, sign, delta, share, guard=guard)

        def kl(delta: float, share: float) -> float:
            found, _ = before.after(model, change(delta, share)[None], parameters, top[j], chunk)
            return float(found[0, FORWARD].mean())

        if generator is None:
            end = bisect(kl, wanted=wanted, deltas=deltas)
        else:
            end = search(kl, generator=generator, wanted=wanted, deltas=deltas)
        moved = change(end.delta, end.share)
        ends.append(end)
        norms.append(float(moved.norm()))
        return moved[None]

    measured = respond(
        model,
        data,
        (searched(j) for j in range(r)),
        parameters,
        top=top,
        baseline=baseline,
        chunk=chunk,
        progress=progress,
    )
    return DiagonalSelectivity(
        measured, tuple(ends), torch.tensor(norms, dtype=torch.float64), guard
    )
