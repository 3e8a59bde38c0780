"""Alternating steps of a low-rank factorisation: from a start to coefficients and components.

A step computes, from ``B = A G^T`` and ``Q = G G^T``, the multiplicative update of the
coefficients W and a direction for the components G, and moves along it. The loss along a direction
is a polynomial of degree four in the length. A fit can be cut short and go on from a checkpoint.

Public names: `Stage`, `Problem`, `problem_of`, `Run`, `fit`, `best_length`, `Checkpoint`, `key_of`.

Source: document 3, section 2.3; specification 2.1 to 2.5, 2.9, 2.10 and 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lib.npeff.decomposition import Option, read_tensors, write_tensors
from lib.npeff.factors import Factors
from lib.npeff.products import Columns, Group

REFRESH = 50  # steps between two computations of B and Q from G, and between two checkpoints
EPSILON = 1e-9  # of the multiplicative rule (2.2): only prevents 0 / 0
FLOOR = 1e-6  # of the mean curvature: a component that is almost dead takes no huge step
Progress = Callable[[Iterable[int]], Iterable[int]]


@dataclass(frozen=True)
class Stage:
    """Steps of one kind: how many, and how many columns of W, the first ones, they update."""

    steps: int
    columns: int


@dataclass(frozen=True)
class Problem:
    """What is minimised: data, and which components are free (the first `n_free`)."""

    example: Tensor  # int64 [R]
    sizes: Tensor  # int64 [n + 1], where each example's rows begin
    energy: float
    n_free: int
    pull: float = 0.0  # beta of 2.10
    pull_to: float = 0.0  # c of 2.10

    def sum_rows(self, x: Tensor) -> Tensor:
        """Sum the rows `[R, r]` of each example: `[n, r]`; an example may have none."""
        return torch.segment_reduce(x, "sum", offsets=self.sizes, axis=0, initial=0)

    def loss(self, w: Tensor, n: Tensor, q: Tensor) -> float:
        """L of 2.1: ``kappa - 2 <W, N> + <W^T W, Q * Q>``."""
        return self.energy + float(((w.T @ w) * q.square()).sum() - 2 * (w * n).sum())


def problem_of(
    data: Factors, n_free: int, device: torch.device, *, pull: float = 0.0, pull_to: float = 0.0
) -> Problem:
    """The data's part of a problem, on a device."""
    example = data.example.to(device)
    sizes = torch.searchsorted(example, torch.arange(len(data) + 1, device=device))
    return Problem(example, sizes, data.energy, n_free, pull, pull_to)


@dataclass
class Run:
    """Where a fit is. It changes; everything a checkpoint needs is here."""

    w: Tensor  # float64 [n, r]
    done: int = 0
    losses: list[float] = field(default_factory=list)
    loss_steps: list[int] = field(default_factory=list)
    snapshots: list[Tensor] = field(default_factory=list)
    snapshot_steps: list[int] = field(default_factory=list)


def fit(
    problem: Problem,
    space: Columns,
    w: Tensor,
    stages: Sequence[Stage],
    *,
    step: str,
    rate: float,
    log_every: int,
    snapshot_every: int | None,
    checkpoint: Checkpoint | None,
    progress: Progress | None,
) -> Run:
    """Minimise from a start. `space` ends at the components; returns the rest.

    Args:
        w: start of the coefficients, float64 `[n, r]`.

    Raises:
        FloatingPointError, ValueError: as said in `decompose`.
    """
    run = Run(w)
    space.group.same(run.w)
    if checkpoint is not None:
        checkpoint.read(run, space)
    total, before = sum(x.steps for x in stages), stages[0].steps
    columns = [stage.columns for stage in stages for _ in range(stage.steps)]
    f = problem.n_free
    b, q = space.products()
    steps: Iterable[int] = range(run.done, total)
    for i in progress(steps) if progress else steps:
        if i % REFRESH == 0 and i > run.done:
            run.done = i
            b, q = space.products()
            space.group.same(run.w)
            if checkpoint is not None:
                checkpoint.write(run, space)
        w = run.w
        n, v = problem.sum_rows(b.square()), w.T @ w
        if i % log_every == 0 or step != "exact":
            _log(run, problem.loss(w, n, q), i, i % log_every == 0, step, rate)
        if snapshot_every and i >= before and (i - before) % snapshot_every == 0:
            run.snapshots.append(w.clone())
            run.snapshot_steps.append(i - before)
        c = columns[i]
        if c:  # both updates come from the same B and Q (2.4)
            new = w[:, :c] * n[:, :c] / (w @ q.square()[:, :c] + EPSILON)
            run.w = w = torch.cat([new, w[:, c:]], dim=1)
            v = w.T @ w
        if not f:
            continue
        x = (v * q)[:, :f]
        if problem.pull:
            x = x + problem.pull * (q - problem.pull_to * torch.eye(len(q)).to(q))[:, :f]
        curvature = (v * q.square().sqrt()).diagonal()[:f]
        curvature = torch.ones_like(curvature) if step == "gd" else _floored(curvature)
        e, gd, dd = space.turn(x / curvature, (w[problem.example] * b)[:, :f] / curvature)
        s = _padded(gd, len(q)) + _padded(gd, len(q)).T
        dd_whole = _padded(_padded(dd, len(q)).T, len(q))
        if step == "exact":
            slope = -4 * float((dd.diagonal() * curvature).sum())
            t = best_length(*_quartic(problem, w, v, e, q, s, dd_whole), slope=slope)
        else:
            t = 4 * rate if step == "gd" else rate
        space.move(t)
        b[:, :f] -= t * e
        q = q - t * s + t**2 * dd_whole
    b, q = space.products()
    if run.done < total or not run.losses:
        run.done = total
        _log(run, problem.loss(run.w, problem.sum_rows(b.square()), q), total, True, step, rate)
        if snapshot_every:
            run.snapshots.append(run.w.clone())
            run.snapshot_steps.append(total - before)
        if checkpoint is not None:
            checkpoint.write(run, space)
    return run


def _log(run: Run, loss: float, i: int, keep: bool, step: str, rate: float) -> None:
    if not math.isfinite(loss):
        name = "eta" if step == "gd" else "t"
        cure = f' with the rate {name} = {rate:g}; lower it, or use step="exact"'
        raise FloatingPointError(
            f"the loss is not finite after {i} steps{cure if step != 'exact' else ''}"
        )
    if keep:
        run.losses.append(loss)
        run.loss_steps.append(i)


def _floored(curvature: Tensor) -> Tensor:
    """V_jj Q_jj of each component, kept away from zero."""
    tiny = torch.finfo(curvature.dtype).tiny
    return curvature + (FLOOR * curvature.mean()).clamp(min=tiny)


def _padded(x: Tensor, width: int) -> Tensor:
    """Columns of zeros for the components that do not move."""
    return torch.nn.functional.pad(x, (0, width - x.shape[1]))


def _quartic(
    problem: Problem, w: Tensor, v: Tensor, e: Tensor, q: Tensor, s: Tensor, dd: Tensor
) -> tuple[float, float, float]:
    """Coefficients of t^2, t^3 and t^4 of the loss along a direction (2.5, and 2.10's term)."""
    squares = problem.sum_rows(e.square())
    v2, v3, v4 = s.square() + 2 * q * dd, -2 * s * dd, dd.square()
    a = torch.stack([(v * x).sum() for x in (v2, v3, v4)])
    a[0] -= 2 * (w[:, : squares.shape[1]] * squares).sum()
    if problem.pull:
        rest = q - problem.pull_to * torch.eye(len(q)).to(q)
        a[0] += problem.pull * (s.square() + 2 * rest * dd).sum()
        a[1:] += problem.pull * torch.stack([v3.sum(), v4.sum()])
    two, three, four = a.tolist()
    return two, three, four


def best_length(two: float, three: float, four: float, *, slope: float) -> float:
    """The t > 0 where ``slope t + two t^2 + three t^3 + four t^4`` is least; 0 if it never falls.

    Source: specification 2.5, mode 3. The slope is that of the gradient along the direction,
    ``-4 <D, D'>``: a sum of squares, where the formula there is a difference of large numbers.

    Raises:
        FloatingPointError: a coefficient is not finite; 0 would look like the end of the descent.
    """
    cubic = [4 * four, 3 * three, 2 * two, slope]
    if not np.isfinite(cubic).all():
        raise FloatingPointError(
            f"the loss along the direction is not finite (slope {slope:g}, {two:g}, {three:g}, "
            f"{four:g}); the PEFs are too large for their dtype, normalise them or take float64"
        )
    if not slope < 0:
        return 0.0
    roots = np.roots(cubic)
    real = roots.real[(np.abs(roots.imag) <= 1e-7 * np.abs(roots)) & (roots.real > 0)]
    values = [slope * t + two * t**2 + three * t**3 + four * t**4 for t in real]
    return float(real[int(np.argmin(values))]) if values and min(values) < 0 else 0.0


def key_of(data: Factors, r: int, seed: int, options: dict[str, Option]) -> dict[str, Option]:
    """What a checkpoint must agree in: the data's hash, r, seed and options."""
    return {"data": data.digest, "r": r, "seed": seed, **options}


class Space(Protocol):
    """Components that a checkpoint can hold."""

    group: Group

    def state(self) -> dict[str, Tensor]:
        """What to hold."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from it."""


@dataclass(frozen=True)
class Checkpoint:
    """A file that a fit goes on from."""

    path: Path
    key: dict[str, Option]

    def write(self, run: Run, space: Space) -> None:
        """Replace the file. All processes take part, the first one writes."""
        tensors = {f"space.{name}": value for name, value in space.state().items()}
        if space.group.rank:
            return
        tensors |= {"w": run.w, "losses": torch.tensor(run.losses, dtype=torch.float64)}
        tensors |= {"loss_steps": torch.tensor(run.loss_steps, dtype=torch.int64)}
        if run.snapshots:
            tensors["snapshots"] = torch.stack(run.snapshots)
        note = {"key": self.key, "done": run.done, "snapshot_steps": run.snapshot_steps}
        write_tensors(self.path, tensors, note)

    def read(self, run: Run, space: Space) -> None:
        """Take up the state in the file, if there is one.

        Raises:
            ValueError: it is of another decomposition; DamagedFile: it is not whole.
        """
        if not self.path.is_file():
            return
        tensors, note = read_tensors(self.path)
        theirs = note.get("key", {})
        differing = [name for name in self.key if theirs.get(name) != self.key[name]]
        if differing:
            raise ValueError(
                f"the checkpoint {self.path.name} is of another decomposition: it differs in "
                f"{', '.join(differing)}; delete it or name another file"
            )
        run.w = tensors["w"].to(run.w.device)
        run.done, run.losses = note["done"], tensors["losses"].tolist()
        run.loss_steps, run.snapshot_steps = tensors["loss_steps"].tolist(), note["snapshot_steps"]
        run.snapshots = list(tensors["snapshots"].to(run.w.device)) if run.snapshot_steps else []
        space.restore({k[6:]: x for k, x in tensors.items() if k.startswith("space.")})
