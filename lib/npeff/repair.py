"""Mending a flawed heuristic by moving along a component, with the loss as a guide.

The paper moves by a fixed length both ways and keeps what helps. Here the gradient of the loss on a
selection set gives the sign, a line search on that set the size, and the set also picks one of the
candidate components. What the move does is then counted on disjoint test examples: how many
counter-examples of the heuristic are mended, and how much is damaged elsewhere.

Three controls see the same selection examples. One gradient step, line-searched alike: the same
gradient evaluations, without a component. Fine-tuning with as many evaluations of the gradient as
the whole search has of the loss, in the control's favour. Random directions, one a candidate, on
the same parameters, their sign and size chosen alike: their best result is what choosing among so
many gives by chance.

`accuracy_gains` is the paper's own way, with random directions beside it.

`lib.npeff.repair_within` bounds what a repair may cost instead of weighing it.

Public names: `repair`, `Repair`, `Change`, `Split`, `split`, `accuracy_gains`, `Gains`,
`Workbench`.

Source: document 3, section 3.5, which leaves the use of loss gradients to future work: all of
this but the candidates is this project's. Specification 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from lib.features import Progress
from lib.npeff.divergence import (
    CHUNK,
    Data,
    Reference,
    checked_rows,
    log_probabilities,
    loss_and_gradient,
)
from lib.npeff.perturb import Directions, perturbed, random_directions, scatter
from lib.npeff.store import Parameters

NORM = 0.3  # of the paper's repairs
SIZES = (0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1.0)  # of the line search, this project's
GROW, SHRINK = 1.5, 0.5  # of fine-tuning's rate, after a step that lowers the loss or does not


@dataclass(frozen=True)
class Split:
    """Examples of one purpose."""

    counter: Tensor  # int64, counter-examples of the heuristic: what should change
    elsewhere: Tensor  # int64, what should stay

    @property
    def rows(self) -> Tensor:
        return torch.cat([self.counter, self.elsewhere])

    def weights(self, balance: float) -> Tensor:
        """Of each row, so that both kinds count by `balance` and not by their numbers."""
        a, b = len(self.counter), len(self.elsewhere)
        return torch.cat(
            [
                torch.full((a,), balance / a, dtype=torch.float64),
                torch.full((b,), (1 - balance) / b, dtype=torch.float64),
            ]
        )


def split(counter: Tensor, elsewhere: Tensor, generator: torch.Generator) -> tuple[Split, Split]:
    """Halves of both kinds of examples at random: for selection, and for the test."""
    if min(len(counter), len(elsewhere)) < 2:
        raise ValueError(
            f"want at least 2 examples of each kind, got {len(counter)} and {len(elsewhere)}"
        )
    halves = [
        rows[torch.randperm(len(rows), generator=generator)].tensor_split(2)
        for rows in (counter, elsewhere)
    ]
    selection, test = (Split(halves[0][k], halves[1][k]) for k in range(2))
    return selection, test


@dataclass(frozen=True)
class Change:
    """One change of the parameters and what it does."""

    size: float  # along its direction, or the length of the change
    loss: float  # nats, the balanced mean on the selection set
    accuracy: Tensor  # float64 [2] on the test set: counter-examples, elsewhere


@dataclass(frozen=True)
class Repair:
    """A repair and its controls."""

    before: Change
    candidates: tuple[Change, ...]  # the components
    best: int  # of least loss on the selection set; its index among the candidates
    gradient: Change  # one line-searched step down the gradient
    tuned: Change  # fine-tuning
    random: tuple[Change, ...]  # a random direction for each candidate, line-searched alike
    sizes: Tensor  # float64 [s + 1], from 0, along the best candidate
    curve: Tensor  # float64 [s + 1, 2], test accuracy at these sizes
    balance: float

    def gain(self, change: Change) -> Tensor:
        """Test accuracy after minus before, `[2]`: counter-examples, elsewhere."""
        return change.accuracy - self.before.accuracy

    def net(self, change: Change) -> float:
        """The gain with both kinds weighted by `balance`."""
        mended, damaged = self.gain(change).tolist()
        return self.balance * mended + (1 - self.balance) * damaged


@dataclass(frozen=True)
class Gains:
    """Accuracy gained by moves of one norm, float64 `[k]` each; components and random directions.

    "same": the sign is the better one on the examples that the gain is counted on, the paper's
    way; with two tries each and k of them the best one gains by chance. "other": the sign is
    chosen on the selection set and the gain counted on the test set. "selected": the gain on the
    selection set at that sign, by which one of them may be chosen.
    """

    same: Tensor
    other: Tensor
    selected: Tensor
    random_same: Tensor
    random_other: Tensor
    random_selected: Tensor


def accuracy_gains(
    model: nn.Module,
    data: Data,
    directions: Directions,
    candidates: Tensor,
    *,
    norm: float = NORM,
    selection: Tensor,
    test: Tensor,
    generator: torch.Generator,
    chunk: int = CHUNK,
    progress: Progress | None = None,
) -> Gains:
    """The paper's own repair: move by a fixed norm both ways and keep the better sign.

    Args:
        candidates: int64 ``[k]``, which directions to try, chosen on other examples.
        selection, test: int64, disjoint examples, rows of `data`.
        generator: of a random direction for each candidate, on the same parameters.
        progress: wraps the range of candidates.

    Raises:
        ValueError: a norm that is not positive, or sets that share examples.

    Source: document 3, section 3.5; the disjoint sets and random directions are this project's.
    """
    if not norm > 0:
        raise ValueError(f"want a norm above 0, got {norm}")
    checked_rows(candidates[None], 1, len(directions))
    rows = torch.cat([selection, test])
    checked_rows(rows[None], 1, len(data[0]))
    if len(rows.unique()) < len(rows) or not len(selection) or not len(test):
        raise ValueError("want selection and test examples, at least one each and none twice")
    before = Reference.of(model, data, rows, chunk)
    found = []
    for i in progress(range(len(candidates))) if progress else range(len(candidates)):
        unit = directions.unit[candidates[i]]
        other = random_directions(unit != 0, 1, generator)[0].to(unit)
        for u in (unit, other):
            change = scatter(norm * u, directions.kept, directions.parameters)
            both = torch.stack([change, -change])
            _, right = before.after(model, both, directions.parameters, rows, chunk)
            n = len(selection)
            chosen, counted = (part.mean(1) for part in (right[:, :n], right[:, n:]))
            gains, seen = counted[1:] - counted[0], chosen[1:] - chosen[0]
            sign = seen.argmax()
            found.append(torch.stack([gains.amax(), gains[sign], seen[sign]]))
    own, drawn = torch.stack(found).view(-1, 2, 3).unbind(1)
    return Gains(*own.T, *drawn.T)


@dataclass(frozen=True)
class Workbench:
    """A model with its selection and test examples, and what a change does to them."""

    model: nn.Module
    data: Data
    directions: Directions
    selection: Split
    test: Split
    balance: float
    chunk: int

    def change(self, values: Tensor) -> Tensor:
        return scatter(values, self.directions.kept, self.directions.parameters)

    def loss(self, values: Tensor) -> float:
        """Balanced mean loss on the selection set after a change of the kept parameters."""
        log_p = self._log_p(self.change(values), self.selection)
        y = self.data[1][self.selection.rows.to(self.data[1].device)].cpu()
        losses = -log_p.gather(1, y[:, None])[:, 0]
        return float(losses @ self.selection.weights(self.balance))

    def loss_and_gradient(self, values: Tensor) -> tuple[float, Tensor]:
        """`loss`, and its gradient in the kept parameters, `[m']`."""
        parameters = self.directions.parameters
        with perturbed(self.model, self.change(values), parameters):
            value, gradient = loss_and_gradient(
                self.model,
                self.data,
                parameters,
                self.selection.rows,
                weights=self.selection.weights(self.balance),
                chunk=self.chunk,
            )
        return value, gradient[self.directions.kept.to(gradient.device)]

    def accuracy(self, values: Tensor) -> Tensor:
        """Test accuracy on counter-examples and elsewhere, `[2]`."""
        return self.accuracy_after(self.change(values), self.test)

    def accuracy_after(
        self, change: Tensor, examples: Split, parameters: Parameters | None = None
    ) -> Tensor:
        """Accuracy on counter-examples and elsewhere after a change of parameters, `[2]`.

        Args:
            change: ``[m]``, of all entries of `parameters`; None is what the directions are of.
        """
        log_p = self._log_p(change, examples, parameters)
        y = self.data[1][examples.rows.to(self.data[1].device)].cpu()
        right = (log_p.argmax(1) == y).double()
        n = len(examples.counter)
        return torch.stack([right[:n].mean(), right[n:].mean()])

    def _log_p(
        self, change: Tensor, examples: Split, parameters: Parameters | None = None
    ) -> Tensor:
        with perturbed(self.model, change, parameters or self.directions.parameters):
            return log_probabilities(self.model, self.data[0], examples.rows, self.chunk)

    def line_search(
        self, unit: Tensor, slope: float, sizes: Sequence[float], zero: float
    ) -> Change:
        """The size of least loss along a direction, downhill by the slope; none if none helps."""
        sign = -1.0 if slope > 0 else 1.0
        losses = {0.0: zero} | {sign * s: self.loss(sign * s * unit) for s in sizes}
        size = min(losses, key=losses.__getitem__)
        return Change(size, losses[size], self.accuracy(size * unit))


def repair(
    model: nn.Module,
    data: Data,
    directions: Directions,
    candidates: Tensor,
    *,
    selection: Split,
    test: Split,
    generator: torch.Generator,
    sizes: Sequence[float] = SIZES,
    balance: float = 0.5,
    chunk: int = CHUNK,
    progress: Progress | None = None,
) -> Repair:
    """Choose a component, a sign and a size on the selection set; count on the test set.

    Args:
        model: logits ``[n, C]`` from inputs; taken in eval mode, left as it was.
        data: inputs ``[n, ...]`` and gold labels ``[n]``.
        candidates: int64 ``[k]``, which directions to try.
        selection, test: disjoint examples, rows of `data`.
        generator: of the random directions.
        sizes: lengths tried, ascending.
        balance: weight of counter-examples against elsewhere, in (0, 1).
        progress: wraps the range of candidates.

    Raises:
        ValueError: examples of both sets, or in both kinds; an empty kind; sizes that are not
            positive and ascending; a candidate that is no direction.
    """
    _check(len(data[0]), len(directions), candidates, selection, test, sizes, balance)
    bench = Workbench(model, data, directions, selection, test, balance, chunk)
    nothing = torch.zeros_like(directions.unit[0])
    zero, gradient = bench.loss_and_gradient(nothing)
    gradient = gradient.to(nothing)
    if not gradient.any():
        raise ValueError("the loss on the selection set has no gradient in the kept parameters")
    before = Change(0.0, zero, bench.accuracy(nothing))
    found, random = [], []
    for i in progress(range(len(candidates))) if progress else range(len(candidates)):
        unit = directions.unit[candidates[i]]
        found.append(bench.line_search(unit, float(unit @ gradient), sizes, zero))
        other = random_directions(unit != 0, 1, generator)[0].to(unit)
        random.append(bench.line_search(other, float(other @ gradient), sizes, zero))
    best = min(range(len(found)), key=lambda i: found[i].loss)
    n_losses = len(found) * len(sizes)
    unit = directions.unit[candidates[best]]
    sign = -1.0 if unit @ gradient > 0 else 1.0
    along = torch.tensor([0.0, *(sign * s for s in sizes)], dtype=torch.float64)
    down = gradient / gradient.norm()
    return Repair(
        before,
        tuple(found),
        best,
        bench.line_search(down, 1.0, sizes, zero),
        _fine_tuned(bench, zero, gradient, n_steps=n_losses, longest=sizes[-1]),
        tuple(random),
        along,
        torch.stack([bench.accuracy(float(s) * unit) for s in along]),
        balance,
    )


def _fine_tuned(
    bench: Workbench, loss: float, gradient: Tensor, *, n_steps: int, longest: float
) -> Change:
    """Gradient descent on the selection set in the kept parameters, as long as the loss falls.

    The first step is as long as the longest size; a step that does not lower the loss is undone
    and the rate halved. Each evaluation gives a loss and a gradient and counts, accepted or not.
    """
    values, rate = torch.zeros_like(gradient), longest / float(gradient.norm())
    for _ in range(n_steps):
        there = values - rate * gradient
        value, slope = bench.loss_and_gradient(there)
        if value < loss:
            values, loss, gradient, rate = there, value, slope.to(gradient), rate * GROW
        else:
            rate *= SHRINK
    return Change(float(values.norm()), loss, bench.accuracy(values))


def _check(
    n: int,
    r: int,
    candidates: Tensor,
    selection: Split,
    test: Split,
    sizes: Sequence[float],
    balance: float,
) -> None:
    kinds = [selection.counter, selection.elsewhere, test.counter, test.elsewhere]
    if any(rows.ndim != 1 or not len(rows) for rows in kinds):
        raise ValueError(
            f"want at least one example of each kind, got {[len(rows) for rows in kinds]}"
        )
    together = torch.cat(kinds)
    checked_rows(together[None], 1, n)
    if len(together.unique()) < len(together):
        raise ValueError(
            "an example occurs twice; selection and test, counter-examples and the rest must be "
            "disjoint, or the test would count what was selected for"
        )
    checked_rows(candidates[None], 1, r)
    if not sizes or sizes[0] <= 0 or any(a >= b for a, b in pairwise(sizes)):
        raise ValueError(f"want sizes above 0, ascending, got {tuple(sizes)}")
    if not 0 < balance < 1:
        raise ValueError(f"want a balance in (0, 1), got {balance}")
