"""Repairs that may cost little: the most mended counter-examples for a bounded loss elsewhere.

Every method proposes changes of the parameters. Components and random directions at several sizes,
downhill by the loss, and steps down the gradient at the same sizes change what the directions are
of, which may be a block of the network; fine-tuning of a few rates and lengths goes the whole way
that it moves all of the network's parameters, or a part of it. Of each method's proposals the
one that mends most counter-examples of the selection set, and loses at most `allowed` of its other
examples, is counted on the test set. Fine-tuning fits what it is trained on, so it is trained on
two thirds of the selection set and chosen on the rest.

Public names: `repair_within`, `Outcome`, `METHODS`, `ALLOWED`, `SIZES`,
`RECIPES`, `PARTS`.

Source: this project's; document 3, section 3.5, leaves the use of loss gradients to future work.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor, nn

from lib.features import Progress
from lib.gradients.flat import flatten
from lib.npeff.perturb import block, n_positions, random_directions
from lib.npeff.repair import Split, Workbench
from lib.npeff.store import Parameters
from lib.training import Recipe, train

ALLOWED = 0.01  # accuracy that may be lost elsewhere
SIZES = (0.01, 0.02, 0.04, 0.07, 0.1, 0.15, 0.2, 0.3)  # lengths along a direction
BALANCES = (0.1, 0.3, 0.5)  # weights of counter-examples in the loss that gradients are taken of
PARTS = (0.5, 0.75, 1.0)  # of the whole change that fine-tuning makes, proposed one by one
COMPONENT, RANDOM, GRADIENT, TUNED = (
    "component",
    "random direction",
    "one gradient step",
    "fine-tuning",
)
METHODS = (COMPONENT, RANDOM, GRADIENT, TUNED)
RECIPES = tuple(  # of fine-tuning: the grammar's own batches and rate, and lower rates
    Recipe(epochs, 100, lr, optimizer="adam") for lr in (3e-4, 1e-3, 5e-3) for epochs in (3, 10, 30)
)

Proposal = tuple[str, int, float, Tensor]  # method, candidate or -1, size, change [m], see `_moved`


@dataclass(frozen=True)
class Outcome:
    """A method's best proposal, or none, and what it does to the test set."""

    candidate: int  # among the candidates; -1 if the method has none
    size: float  # L2, signed along a direction; 0 if no proposal mended anything within the bound
    n_tried: int  # proposals looked at
    selected: Tensor  # float64 [2], gains where it was chosen: counter-examples, elsewhere
    gain: Tensor  # float64 [2], the same on the test set
    spread: Tensor  # float64 [2], standard errors of `gain`


def repair_within(
    bench: Workbench,
    candidates: Tensor,
    *,
    generator: torch.Generator,
    sizes: Sequence[float] = SIZES,
    balances: Sequence[float] = BALANCES,
    recipes: Sequence[Recipe] = RECIPES,
    allowed: float = ALLOWED,
    progress: Progress | None = None,
) -> Mapping[str, Outcome]:
    """The best bounded repair of each method.

    Args:
        candidates: int64 ``[k]``, which directions of the bench to try.
        generator: of a random direction for each candidate, on the same parameters.
        sizes: lengths tried, ascending.
        balances: weights of counter-examples, for steps down the gradient.
        recipes: of fine-tuning all parameters.
        allowed: accuracy that may be lost elsewhere, on the selection set.
        progress: wraps the range of candidates.

    Raises:
        ValueError: sizes that are not positive and ascending, balances outside (0, 1), no
            candidate, a bound below 0, or fewer than 2 examples of a kind to choose by.
    """
    if not sizes or sizes[0] <= 0 or list(sizes) != sorted(set(sizes)):
        raise ValueError(f"want sizes above 0, ascending, got {tuple(sizes)}")
    if not balances or not all(0 < b < 1 for b in balances) or not len(candidates) or allowed < 0:
        raise ValueError(
            f"want balances in (0, 1), a candidate and a bound of at least 0, got "
            f"{tuple(balances)}, {len(candidates)} candidates and {allowed}"
        )
    if min(len(bench.selection.counter), len(bench.selection.elsewhere)) < 2:
        raise ValueError("want at least 2 examples of each kind in the selection set")
    moved = {method: _moved(bench, method) for method in METHODS}
    zero = {method: torch.zeros(n_positions(moved[method])) for method in METHODS}
    before = bench.accuracy_after(zero[TUNED], bench.test, moved[TUNED])
    trained, kept_back = _thirds(bench.selection)
    judges = dict.fromkeys(METHODS, bench.selection) | {TUNED: kept_back}
    start = {m: bench.accuracy_after(zero[m], judges[m], moved[m]) for m in METHODS}
    best: dict[str, tuple[float, int, float, Tensor]] = {
        method: (0.0, -1, 0.0, zero[method]) for method in METHODS
    }
    tried = dict.fromkeys(METHODS, 0)
    proposed = chain(
        _along(bench, candidates, sizes, generator, progress),
        _downhill(bench, sizes, balances),
        _tuned(bench, trained.rows, recipes, generator),
    )
    for method, candidate, size, change in proposed:
        after = bench.accuracy_after(change, judges[method], moved[method])
        mended, lost = (after - start[method]).tolist()
        tried[method] += 1
        if mended > best[method][0] and lost >= -allowed:
            best[method] = (mended, candidate, size, change)
    outcomes = {}
    n = torch.tensor([len(bench.test.counter), len(bench.test.elsewhere)], dtype=torch.float64)
    for method, (_, candidate, size, change) in best.items():
        after = bench.accuracy_after(change, bench.test, moved[method])
        error = ((after * (1 - after) + before * (1 - before)) / n).sqrt()  # unpaired: an excess
        selected = bench.accuracy_after(change, judges[method], moved[method]) - start[method]
        outcomes[method] = Outcome(
            candidate, size, tried[method], selected, after - before, error * (size != 0)
        )
    return outcomes


def _moved(bench: Workbench, method: str) -> Parameters:
    """What a method changes: what the directions are of, or all parameters of the network."""
    if method != TUNED:
        return bench.directions.parameters
    return tuple((name, tuple(w.shape)) for name, w in bench.model.named_parameters())


def _along(
    bench: Workbench,
    candidates: Tensor,
    sizes: Sequence[float],
    generator: torch.Generator,
    progress: Progress | None,
) -> Iterator[Proposal]:
    """Components and random directions, each the way that lowers the loss."""
    zero = torch.zeros_like(bench.directions.unit[0])
    _, gradient = bench.loss_and_gradient(zero)
    gradient = gradient.to(zero)
    for i in progress(range(len(candidates))) if progress else range(len(candidates)):
        unit = bench.directions.unit[candidates[i]]
        other = random_directions(unit != 0, 1, generator)[0].to(unit)
        for method, way in ((COMPONENT, unit), (RANDOM, other)):
            sign = -1.0 if way @ gradient > 0 else 1.0
            for size in sizes:
                yield method, i, sign * size, bench.change(sign * size * way)


def _downhill(
    bench: Workbench, sizes: Sequence[float], balances: Sequence[float]
) -> Iterator[Proposal]:
    zero = torch.zeros_like(bench.directions.unit[0])
    for balance in balances:
        _, slope = replace(bench, balance=balance).loss_and_gradient(zero)
        down = -slope.to(zero) / slope.to(zero).norm()
        for size in sizes:
            yield GRADIENT, -1, size, bench.change(size * down)


def _thirds(examples: Split) -> tuple[Split, Split]:
    """Two thirds of both kinds, and the rest; the order is random already (`repair.split`)."""
    cuts = [max(1, 2 * len(rows) // 3) for rows in (examples.counter, examples.elsewhere)]
    first = Split(examples.counter[: cuts[0]], examples.elsewhere[: cuts[1]])
    return first, Split(examples.counter[cuts[0] :], examples.elsewhere[cuts[1] :])


def _tuned(
    bench: Workbench, rows: Tensor, recipes: Sequence[Recipe], generator: torch.Generator
) -> Iterator[Proposal]:
    x, y = (t[rows.to(t.device)] for t in bench.data)
    parameters = _moved(bench, TUNED)
    start = _flat(bench.model, parameters)
    for recipe in recipes:
        model = train(copy.deepcopy(bench.model), x, y, recipe, generator=generator)
        change = _flat(model, parameters) - start
        for part in PARTS:
            yield TUNED, -1, part * float(change.norm()), part * change


def _flat(model: nn.Module, parameters: Parameters) -> Tensor:
    return flatten({k: weight.detach() for k, weight in block(model, parameters).items()})
