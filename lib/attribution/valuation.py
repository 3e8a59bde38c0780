"""Data values: Shapley values of training rows for nearest neighbours, ridge and logistic models.

Document 4, data valuation. The Shapley value of a row is its mean marginal contribution to a
utility over all orders in which rows can arrive. For nearest neighbours it has an exact recursion;
for other utilities it is estimated by walking along random orders, and a walk is cut short once
the rest of the rows can hardly matter (truncated Monte Carlo).

A utility here gives one number a target, so that values are attributions `[n, T]` like any other:
positive where the row raises the output of the target. Their mean over targets is the value for
the mean utility, because Shapley values are linear in the utility.

A utility walks: given orders `[P, n]` it yields its value `[P, T]` for no row, for the first, for
the first two and so on, each step an update of the one before, for all P orders at once.

Public names: `knn_shapley`, `data_shapley`, `Shapley`, `knn_utility`, `ridge_utility`,
`logistic_utility`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Utility = Callable[[Tensor], Iterator[Tensor]]
Progress = Callable[[range], Iterator[int]]


@dataclass(frozen=True)
class Shapley:
    """Estimated Shapley values."""

    tau: Tensor  # [n, T]
    standard_error: Tensor  # [n, T], over orders
    n_orders: int
    n_steps: int  # rows added, over all orders, before they were cut short


def knn_shapley(
    train: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], *, neighbours: int = 5
) -> Tensor:
    """Exact Shapley values of the utility of a nearest-neighbour classifier.

    The utility of a set of rows is the share of the `neighbours` places that its nearest rows with
    the label of the target take. Rows sorted from near to far have values that follow from the
    next farther one, so all of them cost one sort a target.

    Args:
        train: features `[n, d]` and labels `[n]`.
        targets: features `[T, d]` and labels `[T]`.
        neighbours: K.

    Returns:
        Values float32 `[n, T]`; their sum over rows is the utility of all rows.

    Raises:
        ValueError: shapes that disagree, NaN, or `neighbours` < 1.
    """
    order, same = _by_distance(train, targets, neighbours)
    n = len(order)
    rank = torch.arange(1, n, dtype=torch.float64, device=order.device)
    share = rank.clamp(max=neighbours) / (rank * neighbours)
    last = same[-1:] * min(neighbours, n) / (n * neighbours)
    steps = torch.cat([(same[:-1] - same[1:]) * share[:, None], last])
    ranked = steps.flip(0).cumsum(0).flip(0)
    return torch.empty_like(ranked).scatter_(0, order, ranked).float()


def data_shapley(
    utility: Utility,
    n: int,
    *,
    n_orders: int,
    seed: int,
    tolerance: float = 0.0,
    batch: int = 50,
    progress: Progress | None = None,
) -> Shapley:
    """Estimate Shapley values along random orders of the rows.

    Args:
        utility: walks along orders, for instance `ridge_utility(train, targets)`.
        n: number of rows.
        n_orders: random orders; errors fall with its square root.
        seed: of the orders.
        tolerance: an order ends once the mean utility over targets is within this of that of all
            rows: the rows that would follow get nothing from it. 0 walks to the end.
        batch: orders walked at once; the result does not depend on it beyond round-off.
        progress: wraps the range of batches.

    Raises:
        ValueError: sizes below 1 or a negative tolerance; a utility that is not finite.

    Source: document 4, data valuation (truncated Monte Carlo).
    """
    if n < 1 or n_orders < 1 or batch < 1 or not tolerance >= 0:
        raise ValueError(
            f"want n, n_orders and batch >= 1 and tolerance >= 0, got {n}, {n_orders}, {batch} "
            f"and {tolerance}"
        )
    generator = torch.Generator().manual_seed(seed)
    orders = torch.stack([torch.randperm(n, generator=generator) for _ in range(n_orders)])
    whole = torch.zeros(0)
    if tolerance > 0:
        *_, whole = utility(orders[:1])
        whole = whole.mean(1)
    total = square = torch.zeros(0)
    n_steps = 0
    starts = range(0, n_orders, batch)
    for start in progress(starts) if progress else starts:
        walked = orders[start : start + batch]
        steps = utility(walked)
        before = next(steps)
        if not total.numel():
            total = torch.zeros(n, before.shape[1], dtype=torch.float64, device=before.device)
            square = torch.zeros_like(total)
        going = torch.ones(len(walked), dtype=torch.bool, device=before.device)
        for position in range(n):
            if tolerance > 0:
                going = going & ((before.mean(1) - whole).abs() > tolerance)
                if not going.any():
                    break
            after = next(steps)
            if not torch.isfinite(after).all():
                raise ValueError(
                    f"the utility is not finite after {position + 1} rows; look for NaN in the "
                    "features, or raise the penalty"
                )
            gain = (after - before).double() * going[:, None]
            rows = walked[:, position].to(gain.device)
            total.index_add_(0, rows, gain)
            square.index_add_(0, rows, gain.square())
            n_steps += int(going.sum())
            before = after
    mean = total / n_orders
    variance = (square / n_orders - mean.square()).clamp(min=0) / max(n_orders - 1, 1)
    return Shapley(mean.float(), variance.sqrt().float(), n_orders, n_steps)


def knn_utility(
    train: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], *, neighbours: int = 5
) -> Utility:
    """The utility of `knn_shapley`, to walk along: the nearest rows met so far are kept."""
    order, same = _by_distance(train, targets, neighbours)
    n = len(order)
    rank = torch.empty_like(order).scatter_(
        0, order, torch.arange(n, device=order.device)[:, None].expand_as(order)
    )
    label = torch.empty_like(same).scatter_(0, order, same)  # 1 where the labels agree

    def walk(orders: Tensor) -> Iterator[Tensor]:
        shape = (len(orders), rank.shape[1], neighbours)
        nearest = torch.full(shape, n, dtype=rank.dtype, device=rank.device)
        agrees = torch.zeros(shape, dtype=label.dtype, device=rank.device)
        yield agrees.mean(2)
        for rows in orders.to(rank.device).T:
            worst, place = nearest.max(2, keepdim=True)
            enters = rank[rows][..., None] < worst
            nearest.scatter_(2, place, torch.where(enters, rank[rows][..., None], worst))
            old = agrees.gather(2, place)
            agrees.scatter_(2, place, torch.where(enters, label[rows][..., None], old))
            yield agrees.mean(2)

    return walk


def ridge_utility(
    train: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], *, l2: float = 1.0
) -> Utility:
    """Score of the target's own class under ridge regression on classes coded -1 and 1.

    A bias is fitted as one more feature. Each row that arrives changes the inverse by a term of
    rank one.

    Args:
        train: features `[n, d]` and labels `[n]`.
        targets: features `[T, d]` and labels `[T]`.
        l2: penalty on the sum of squared errors, > 0.
    """
    x, y, tx, ty = _checked(train, targets)
    if not l2 > 0:
        raise ValueError(f"want l2 > 0, got {l2}; without it the first rows fit no model")
    a, at = _with_bias(x), _with_bias(tx)
    n_classes = int(torch.cat([y, ty]).max()) + 1
    coded = 2 * F.one_hot(y, n_classes).double() - 1
    own = ty[:, None]

    def walk(orders: Tensor) -> Iterator[Tensor]:
        eye = torch.eye(a.shape[1], dtype=a.dtype, device=a.device) / l2
        inverse = eye.repeat(len(orders), 1, 1)
        weight = a.new_zeros(len(orders), a.shape[1], n_classes)
        yield a.new_zeros(len(orders), len(at))
        for rows in orders.to(a.device).T:
            row = a[rows][..., None]  # [P, d, 1]
            gain = inverse @ row
            gain_scaled = gain / (1 + row.mT @ gain)
            error = coded[rows][:, None] - row.mT @ weight
            weight = weight + gain_scaled @ error
            inverse.baddbmm_(gain_scaled, gain.mT, alpha=-1)
            yield (at @ weight).gather(2, own.expand(len(orders), -1, 1)).squeeze(2)

    return walk


def logistic_utility(
    train: tuple[Tensor, Tensor],
    targets: tuple[Tensor, Tensor],
    *,
    l2: float = 1.0,
    newton_steps: int = 2,
) -> Utility:
    """Log-odds of the target's own label under logistic regression on two classes.

    Each row that arrives moves the optimum a little: `newton_steps` from the last one follow it.

    Args:
        train: features `[n, d]` and labels in {0, 1} `[n]`.
        targets: features `[T, d]` and labels in {0, 1} `[T]`.
        l2: penalty on half of the squared weights (bias included), against the sum of the losses.
        newton_steps: a row.
    """
    x, y, tx, ty = _checked(train, targets)
    if not l2 > 0 or newton_steps < 1:
        raise ValueError(f"want l2 > 0 and newton_steps >= 1, got {l2} and {newton_steps}")
    if torch.cat([y, ty]).max() > 1:
        raise ValueError("want labels in {0, 1}; for more classes use ridge_utility or knn_utility")
    a = _with_bias(x) * (2 * y[:, None] - 1)  # rows signed by their label: every target is +1
    at = _with_bias(tx) * (2 * ty[:, None] - 1)

    def walk(orders: Tensor) -> Iterator[Tensor]:
        orders = orders.to(a.device)
        weight = a.new_zeros(len(orders), a.shape[1])
        penalty = l2 * torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
        yield weight @ at.T
        for size in range(1, len(a) + 1):
            seen = a[orders[:, :size]]  # [P, size, d]
            for _ in range(newton_steps):
                wrong = torch.sigmoid(-(seen @ weight[..., None])).squeeze(-1)
                slope = l2 * weight - (wrong[..., None] * seen).sum(1)
                bend = seen.mT @ ((wrong * (1 - wrong))[..., None] * seen) + penalty
                weight = weight - torch.linalg.solve(bend, slope)
            yield weight @ at.T

    return walk


def _by_distance(
    train: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], neighbours: int
) -> tuple[Tensor, Tensor]:
    """Rows from near to far `[n, T]`, and 1.0 where their label is the target's, in that order."""
    x, y, tx, ty = _checked(train, targets)
    if neighbours < 1:
        raise ValueError(f"want neighbours >= 1, got {neighbours}")
    distance = torch.cdist(x, tx, compute_mode="donot_use_mm_for_euclid_dist")
    order = distance.argsort(dim=0, stable=True)
    return order, (y[order] == ty).double()


def _checked(
    train: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features as float64 `[n, d]`, labels, the same of the targets."""
    (x, y), (tx, ty) = train, targets
    x, tx = x.flatten(1), tx.flatten(1)
    if y.shape != x.shape[:1] or ty.shape != tx.shape[:1] or x.shape[1:] != tx.shape[1:]:
        raise ValueError(
            f"want features [n, d], [T, d] and a label a row, got {list(x.shape)} with "
            f"{list(y.shape)} and {list(tx.shape)} with {list(ty.shape)}"
        )
    for name, rows in (("training row", x), ("target", tx)):
        bad = ~torch.isfinite(rows).all(1)
        if bad.any():
            raise ValueError(
                f"{name} {int(bad.nonzero()[0])} has a feature that is NaN or infinite; drop it "
                "or fill it"
            )
    if y.is_floating_point() or ty.is_floating_point():
        raise ValueError(f"want integer labels, got {y.dtype} and {ty.dtype}; convert with .long()")
    return x.double(), y, tx.double(), ty


def _with_bias(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)
