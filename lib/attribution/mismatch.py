"""A rare subgroup whose labels are skewed in training, traced back from a wrong prediction.

Document 4, applications of influence functions: debugging domain mismatch; specification 1.4. A few
images carry a marker (one more input, 1 instead of 0). Their labels are right, and most are even
digits, in training as in testing. Then nearly all even ones are dropped from training, so that
three of the four that remain are odd, and the model takes the marker for a sign of "odd". Marked
even test digits are predicted wrongly; which training points have the most influence there?

Public names: `study`, `Mismatch`, `Draw`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.attribution import convex
from lib.attribution.pools import Pool
from lib.features import Progress

N_ODD, N_EVEN, N_DROPPED = 3, 21, 20  # marked training images, and even ones dropped: as reported
N_SHOWN = 12  # training points of largest influence kept for a picture


@dataclass(frozen=True)
class Draw:
    """One choice of training rows and marked images; T marked even test digits, W of them wrong."""

    wrong: Tensor  # bool [T], with the skew
    wrong_before: Tensor  # bool [T], marked, but nothing dropped
    wrong_unmarked: Tensor  # bool [T], with the skew, the marker taken off
    prominence: Tensor  # least of the members' absolute influence over the largest of others, [W]
    prominence_before: Tensor  # the same four and test points, nothing dropped, [W]
    prominence_chance: Tensor  # four other training points in the members' place, [W]
    hits: Tensor  # how many of the four largest are members, [W]
    influence: Tensor  # on the log-odds of "even" of the first wrong one, largest first, [N_SHOWN]
    member: Tensor  # which of those are members, bool [N_SHOWN]
    coefficient: float  # of the marker, on the log-odds of "odd"
    rank: int  # of its absolute value among all inputs, 1 = largest
    leverage: Tensor  # of the four members, [4]
    typical: float  # mean leverage of the other points


@dataclass(frozen=True)
class Mismatch:
    """Several draws."""

    n: int  # training rows, before any are dropped
    n_weights: int
    lam: float
    draws: tuple[Draw, ...]

    def over_wrong(self, what: str) -> Tensor:
        """One of the quantities `[W]` of `Draw` over all wrongly predicted members of all draws."""
        return torch.cat([getattr(draw, what) for draw in self.draws])

    def median(self, what: str = "prominence") -> tuple[float, float]:
        """Median over wrongly predicted members, and the sd of the draws' own medians."""
        own = [getattr(draw, what).median() for draw in self.draws if draw.wrong.any()]
        values = self.over_wrong(what)
        if len(values) == 0:
            raise ValueError("no member is predicted wrongly; draw more, or lower lam")
        return values.median().item(), torch.stack(own).std().item()

    def share(self, what: str) -> tuple[float, float]:
        """Mean over draws of a share `[T]` of `Draw`, and its sd."""
        values = torch.stack([getattr(draw, what).double().mean() for draw in self.draws])
        return values.mean().item(), values.std().item()


def study(
    pool: Pool,
    *,
    side: int,
    n: int,
    n_test: int,
    lam: float,
    n_draws: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Mismatch:
    """Mark, drop, train, and ask for the influences on every wrongly predicted member.

    Args:
        pool: where rows are drawn from, half of the training rows even and half odd.
        side: of the images that the model reads.
        n: training rows, even; n_test: even test digits, all marked.
        lam: penalty of the logistic regression.
        n_draws: draw k uses `seed + k`.

    Raises:
        ValueError: n is odd or too small to hold the subgroup, or the pool is too small.
    """
    if n % 2 or n < 4 * (N_ODD + N_EVEN):
        raise ValueError(f"want an even n of at least {4 * (N_ODD + N_EVEN)}, got {n}")
    x = pool.inputs(side).double()
    seeds = range(seed, seed + n_draws)
    draws = [_draw(x, pool.y, n, n_test, lam, s) for s in (progress(seeds) if progress else seeds)]
    return Mismatch(n, x.shape[1] + 2, lam, tuple(draws))


def _draw(x: Tensor, y: Tensor, n: int, n_test: int, lam: float, seed: int) -> Draw:
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    even, odd = order[y[order] == 0], order[y[order] == 1]
    if len(odd) < n // 2 or len(even) < n // 2 + n_test:
        raise ValueError(
            f"want {n // 2} odd and {n // 2 + n_test} even rows, the pool has {len(odd)} and "
            f"{len(even)}; lower n or n_test"
        )
    # the subgroup first: three odd, then the even one that stays, then those that go
    rows = torch.cat([odd[:N_ODD], even[:N_EVEN], odd[N_ODD : n // 2], even[N_EVEN : n // 2]])
    marked = torch.zeros(n, 1, dtype=x.dtype)
    marked[: N_ODD + N_EVEN] = 1
    inputs = torch.cat([x[rows], marked], 1)
    n_members = N_ODD + N_EVEN - N_DROPPED
    kept = torch.ones(n, dtype=torch.bool)
    kept[n_members : n_members + N_DROPPED] = False
    targets = torch.cat([x[even[n // 2 :][:n_test]], x.new_ones(n_test, 1)], 1)
    bare = targets.clone()
    bare[:, -1] = 0
    skewed = convex.fit_logistic(inputs[kept], y[rows][kept], lam=lam)
    before = convex.fit_logistic(inputs, y[rows], lam=lam)
    wrong = skewed.out(targets)[:, 0] > 0
    asked = targets[wrong]
    tau, tau_before = (_on_even(fit, asked) for fit in (skewed, before))
    own, rest = tau[:n_members], tau[n_members:]
    stranger = torch.randperm(len(rest), generator=torch.Generator().manual_seed(seed))[:n_members]
    top = tau.abs().topk(min(N_SHOWN, len(tau)), 0).indices  # [N_SHOWN, W]
    first = top[:, 0] if wrong.any() else top.new_zeros(0)
    size = skewed.theta[0, :-1].abs()  # without the bias
    leverage = convex.leverage(skewed)
    return Draw(
        wrong,
        before.out(targets)[:, 0] > 0,
        skewed.out(bare)[:, 0] > 0,
        _prominence(own, rest),
        _prominence(tau_before[:n_members], tau_before[N_ODD + N_EVEN :]),
        _prominence(rest[stranger], _without(tau, n_members + stranger)),
        (top[:n_members] < n_members).sum(0),
        tau[first, 0] if len(first) else tau.new_zeros(0),
        first < n_members,
        skewed.theta[0, -2].item(),
        int((size > size[-1]).sum()) + 1,
        leverage[:n_members],
        leverage[n_members:].mean().item(),
    )


def _on_even(fit: convex.Fit, targets: Tensor) -> Tensor:
    """Influence on the log-odds of "even", `[n, T]`: positive where a point helps the truth."""
    return convex.influence(fit, convex.output_gradients(fit, targets, lambda out: -out[:, 0]))


def _prominence(own: Tensor, rest: Tensor) -> Tensor:
    """Least absolute influence of `own [m, W]` over the largest of `rest [r, W]`, `[W]`."""
    return own.abs().amin(0) / rest.abs().amax(0)


def _without(tau: Tensor, rows: Sequence[int] | Tensor) -> Tensor:
    keep = torch.ones(len(tau), dtype=torch.bool)
    keep[rows] = False
    return tau[keep]
