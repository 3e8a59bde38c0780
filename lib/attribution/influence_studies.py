"""The experiments behind notebook 41: influence against retraining, five times over.

Document 4, influence functions, and the protocols of Koh and Liang (specification 1.4). Every study
returns predicted and actual changes of an output when training points are left out, with the
objective's 1/n and penalty kept.

In reading order: `load`, `leave_one_out`, `groups`, `multinomial`, `hinge`, `kernel_and_network`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.attribution import convex, refits, solvers
from lib.data import digits, mnist
from lib.data.base import Split
from lib.features import Progress


@dataclass(frozen=True)
class Comparison:
    """Predicted and actual changes of one output when each of some rows is left out."""

    predicted: Tensor  # [k]
    actual: Tensor  # [k]

    @property
    def pearson(self) -> float:
        return torch.corrcoef(torch.stack([self.predicted, self.actual]))[0, 1].item()

    @property
    def slope(self) -> float:
        """Of actual on predicted, with an intercept."""
        p, a = self.predicted - self.predicted.mean(), self.actual - self.actual.mean()
        return ((p * a).sum() / p.square().sum()).item()

    @property
    def error(self) -> float:
        """Root mean squared deviation from the diagonal."""
        return (self.predicted - self.actual).square().mean().sqrt().item()


def load(
    name: str, root: Path, *, n: int, classes: Sequence[int] | None = None, seed: int = 0
) -> tuple[Split, Split]:
    """Training rows and test rows of a data set of digits, flat float32 inputs.

    Args:
        name: "digits" (8x8; the split of `lib.data.digits`) or "mnist" (28x28, 0 to 1; n rows of
            the training set and 1,000 of the test set, drawn by `seed`).
        root: folder of the real data.
        n: training rows, before a choice of classes.
        classes: keep these alone.
    """
    if name == "digits":
        data = digits.load(seed)
        train = Split(data.train.x[:n], data.train.y[:n])
        rest = data.probe, data.test
        test = Split(torch.cat([s.x for s in rest]), torch.cat([s.y for s in rest]))
    elif name == "mnist":
        images = mnist.load(root)
        train = _draw(images.train, n, seed)
        test = _draw(images.test, 1000, seed)
    else:
        raise ValueError(f"data is digits or mnist, got {name!r}")
    if classes is None:
        return train, test
    kept = torch.tensor(classes)
    masks = [torch.isin(s.y, kept) for s in (train, test)]
    few = [Split(s.x[m], s.y[m]) for s, m in zip((train, test), masks, strict=True)]
    return few[0], few[1]


def _draw(split: Split, n: int, seed: int) -> Split:
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:n]
    return Split(split.x[rows].flatten(1).float() / 255, split.y[rows])


# --- binary logistic regression: every point, and groups


@dataclass(frozen=True)
class LeaveOneOut:
    """Changes of the logit of every target when each training point is left out, `[n, T]`."""

    lam: float
    first_order: Tensor
    corrected: Tensor
    actual: Tensor
    accuracy: float  # of the full model on the targets
    leverage: float  # largest


def leave_one_out(train: Split, targets: Split, lam: float) -> LeaveOneOut:
    """Odd against even by logistic regression: influence and retraining without each point."""
    fit = convex.fit_logistic(train.x, train.y % 2, lam=lam)
    logit = fit.out(targets.x)[:, 0]
    slopes = convex.output_gradients(fit, targets.x, _first)
    actual = refits.outputs(refits.leave_one_out(fit), targets.x, _first) - logit
    accuracy = ((logit > 0) == (targets.y % 2 == 1)).double().mean().item()
    return LeaveOneOut(
        lam,
        -convex.influence(fit, slopes),
        -convex.influence_corrected(fit, slopes),
        actual,
        accuracy,
        convex.leverage(fit).max().item(),
    )


def columns(predicted: Tensor, actual: Tensor) -> tuple[Tensor, Tensor]:
    """Pearson correlation and slope of actual on predicted, target by target, `[T]` each."""
    p, a = predicted - predicted.mean(0), actual - actual.mean(0)
    product = (p * a).sum(0)
    return product / (p.norm(dim=0) * a.norm(dim=0)), product / p.square().sum(0)


@dataclass(frozen=True)
class Groups:
    """Changes of one output when groups of one size are left out."""

    share: float
    random: Comparison  # every random group on every target, [G T], group by group
    random_newton: Comparison
    coherent: Comparison  # each group on its own target, [G]
    coherent_newton: Comparison


def groups(
    train: Split,
    targets: Split,
    *,
    lam: float,
    shares: Sequence[float],
    n_random: int,
    n_coherent: int,
    output: str,
    seed: int,
) -> list[Groups]:
    """Leave out random groups, and the points that help one target most, size by size.

    Args:
        shares: of the training points in a group.
        output: "margin" of the correct class or "loss" of each target.
    """
    fit = convex.fit_logistic(train.x, train.y % 2, lam=lam)
    value = _outputs(targets)[output]
    tau = convex.influence(fit, convex.output_gradients(fit, targets.x, value))
    helpful = tau if output == "margin" else -tau
    base = value(fit.out(targets.x))

    def left_out(rows: Sequence[Tensor]) -> list[Tensor]:
        """First order, Newton step and truth, `[G, T]` each."""
        step = refits.outputs(refits.group_newton(fit, rows), targets.x, value) - base
        truth = refits.outputs(refits.leave_out(fit, rows), targets.x, value) - base
        return [-refits.group_influence(tau, rows), step, truth]

    found = []
    for share in shares:
        k, generator = round(share * len(train)), torch.Generator().manual_seed(seed)
        drawn = [torch.randperm(len(train), generator=generator)[:k] for _ in range(n_random)]
        first, newton, truth = (z.flatten() for z in left_out(drawn))
        chosen = torch.randperm(len(targets), generator=generator)[:n_coherent]
        near = [helpful[:, t].argsort(descending=True)[:k] for t in chosen]
        own = [z[torch.arange(len(chosen)), chosen] for z in left_out(near)]
        found.append(
            Groups(
                share,
                Comparison(first, truth),
                Comparison(newton, truth),
                Comparison(own[0], own[2]),
                Comparison(own[1], own[2]),
            )
        )
    return found


def _first(out: Tensor) -> Tensor:
    return out[:, 0]


def _outputs(targets: Split) -> dict[str, convex.Output]:
    sign = 2 * (targets.y % 2).double() - 1
    return {
        "margin": lambda out: sign * out[:, 0],
        "loss": lambda out: F.softplus(-sign * out[:, 0]),
    }


# --- ten classes: two solvers on one misclassified point


def multinomial(
    train: Split,
    test: Split,
    *,
    lam: float,
    n_removed: int,
    lissa: dict[str, float],
    seed: int,
    progress: Progress | None = None,
) -> tuple[dict[str, Comparison], int, solvers.Solution]:
    """Leave out the points of largest influence on one misclassified test point.

    Returns:
        Solver -> comparison over its own `n_removed` points; the test point's row; what LiSSA did.
    """
    fit = convex.fit_multinomial(train.x, train.y, lam=lam)
    wrong = fit.out(test.x).argmax(1) != test.y
    row = int(wrong.nonzero()[0])
    x, label = test.x[row : row + 1], test.y[row : row + 1]
    loss = lambda out: F.cross_entropy(out, label.expand(len(out)), reduction="none")  # noqa: E731
    right = convex.output_gradients(fit, x, loss).flatten()
    series = solvers.lissa(
        lambda rows: convex.product(fit, rows),
        len(train),
        right,
        generator=torch.Generator().manual_seed(seed),
        progress=progress,
        **lissa,  # type: ignore[arg-type]
    )
    exact = solvers.conjugate_gradient(convex.product(fit), right, max_steps=500)
    found = {}
    for name, solved in (("conjugate gradients", exact.x), ("LiSSA", series.x)):
        pull = (fit.a @ solved.reshape(fit.theta.shape).mT * fit.residual).sum(1) / len(train)
        rows = pull.abs().argsort(descending=True)[:n_removed]
        theta = refits.leave_one_out(fit, rows)
        actual = refits.outputs(theta, x, loss)[:, 0] - loss(fit.out(x))
        found[name] = Comparison(pull[rows], actual)
    return found, row, series


# --- hinge loss: linear machines, and kernel machines through their Cholesky features


def hinge_fit(a: Tensor, sign: Tensor, lam: float, n: int) -> Tensor:
    """Minimise `sum_i max(0, 1 - s_i theta.a_i) / n + lam/2 |theta|^2`: theta `[D]`, float64.

    `n` is the full number of points, also where `a` lacks some of them.
    """
    from sklearn.svm import LinearSVC

    machine = LinearSVC(
        C=1 / (n * lam),
        loss="hinge",
        fit_intercept=False,
        tol=1e-7,
        max_iter=1_000_000,
        random_state=0,
    )
    return torch.from_numpy(machine.fit(a.numpy(), sign.numpy()).coef_[0].astype(np.float64))


def hinge_influence(
    a: Tensor, sign: Tensor, theta: Tensor, slopes: Tensor, *, lam: float, t: float
) -> Tensor:
    """Influence `tau [n, T]` with the hinge smoothed to `t log(1 + exp((1 - s)/t))`.

    Args:
        a: `[n, D]`, sign: `[n]` in {-1, 1}, theta: `[D]`, the optimum of the plain hinge.
        slopes: gradients of the outputs in theta, `[T, D]`.
        t: temperature; 0 is the hinge itself, whose second derivative is 0 wherever it exists.
    """
    short = 1 - sign * (a @ theta)
    if t > 0:
        pull = torch.sigmoid(short / t)
        curvature = pull * torch.sigmoid(-short / t) / t
    else:
        pull, curvature = (short > 0).double(), torch.zeros_like(short)
    hessian = (a.mT * curvature) @ a / len(a) + lam * torch.eye(a.shape[1], dtype=a.dtype)
    solved = torch.linalg.solve(hessian, slopes.mT)
    return (sign * pull)[:, None] * (a @ solved) / len(a)


@dataclass(frozen=True)
class Hinge:
    """Change of one test point's hinge loss without each of some points, by temperature."""

    found: dict[float, Comparison]
    n: int  # training points
    n_inside: int  # of them with a loss: their pull is known
    n_on: int  # of them on the margin: theta does not tell how hard they pull


def hinge(
    train: Split,
    test: Split,
    *,
    classes: tuple[int, int],
    lam: float,
    n_removed: int,
    temperatures: Sequence[float],
    progress: Progress | None = None,
) -> Hinge:
    """A linear machine without bias, as the study's code has it.

    The test point has the smallest margin, so that its loss is on the slope. The points left out
    are those of largest influence by the plain hinge, the same at every temperature; the weights
    are always those of the plain hinge.
    """
    a, target = train.x.double(), test.x.double()
    sign, want = ((2 * (s.y == classes[1]).double() - 1) for s in (train, test))
    theta = hinge_fit(a, sign, lam, len(a))
    row = int((want * (target @ theta)).argmin())
    slope = (-want[row] * target[row])[None]
    tau = {t: hinge_influence(a, sign, theta, slope, lam=lam, t=t)[:, 0] for t in temperatures}
    rows = tau[0.0].abs().argsort(descending=True, stable=True)[:n_removed]
    refit = _machines_without(a, sign, lam, rows, progress)
    losses = (1 - want[row] * (refit @ target[row])).clamp_min(0)
    base = (1 - want[row] * (target[row] @ theta)).clamp_min(0)
    short = 1 - sign * (a @ theta)
    return Hinge(
        {t: Comparison(-tau[t][rows], losses - base) for t in temperatures},
        len(a),
        int((short > 1e-4).sum()),
        int((short.abs() <= 1e-4).sum()),
    )


def _machines_without(
    a: Tensor, sign: Tensor, lam: float, rows: Tensor, progress: Progress | None = None
) -> Tensor:
    """Plain hinge machines without each of `rows`, `[len(rows), D]`."""
    found = []
    for k in progress(range(len(rows))) if progress else range(len(rows)):
        keep = torch.arange(len(a)) != rows[k]
        found.append(hinge_fit(a[keep], sign[keep], lam, len(a)))
    return torch.stack(found)


@dataclass(frozen=True)
class Neighbours:
    """Influence of training images on test images beside their distance."""

    distance: Tensor  # [n, T] Euclidean, in pixels
    same: Tensor  # [n, T] bool, of the test image's class
    influence: dict[str, Tensor]  # model -> tau [n, T] on the margin of the right class

    def near_share(self, model: str, part: float = 0.1) -> Tensor:
        """Share `[T]` of the absolute influence on the nearest `part` of the training images."""
        k = round(part * len(self.distance))
        size = self.influence[model].abs()
        near = self.distance.argsort(0)[:k]
        return size.gather(0, near).sum(0) / size.sum(0)

    def other_share(self, model: str) -> Tensor:
        """Share `[T]` of the helpful influence that images of the other class have."""
        helpful = self.influence[model].clamp_min(0)
        return (helpful * ~self.same).sum(0) / helpful.sum(0)


def kernel_and_network(
    train: Split,
    test: Split,
    features: Callable[[Tensor], Tensor],
    *,
    classes: tuple[int, int],
    n_targets: int,
    lam: float = 1e-3,
    progress: Progress | None = None,
) -> Neighbours:
    """An RBF machine on pixels against logistic regression on a network's features.

    The kernel's width is the median distance of two training images. The machine has the hinge
    loss, its influence the smoothed one (t = .001); "retrained" is the truth.

    `features` are of a network that has not seen these classes.
    """
    x, points = train.x.double(), test.x[:n_targets].double()
    sign, want = (2 * (s.y == classes[1]).double() - 1 for s in (train, test))
    want = want[:n_targets]
    width = torch.pdist(x).median()
    gram = torch.exp(-torch.cdist(x, x).square() / (2 * width**2))
    root = torch.linalg.cholesky(gram + 1e-8 * torch.eye(len(x), dtype=x.dtype))
    cross = torch.exp(-torch.cdist(x, points).square() / (2 * width**2))
    mapped = torch.linalg.solve_triangular(root, cross, upper=False).mT  # [T, n]
    theta = hinge_fit(root, sign, lam, len(x))
    slopes = want[:, None] * mapped
    machine = hinge_influence(root, sign, theta, slopes, lam=lam, t=1e-3)
    top, seen = features(train.x), features(test.x[:n_targets])
    fit = convex.fit_logistic(top, (sign > 0).long(), lam=lam)
    margin = convex.output_gradients(fit, seen, lambda out: want * out[:, 0])
    refit = _machines_without(root, sign, lam, torch.arange(len(x)), progress)
    return Neighbours(
        torch.cdist(x, points),
        sign[:, None] == want,
        {
            "RBF machine": machine,
            "RBF machine, retrained": (theta - refit) @ slopes.mT,
            "network": convex.influence(fit, margin),
        },
    )
