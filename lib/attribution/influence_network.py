"""Influence against retraining for a small convolutional network.

Document 4, influence functions; Koh and Liang's protocol (specification 1.4): a network without
pooling and with smooth activations, trained on all data at once to a small gradient; the points of
largest influence on one misclassified test point are left out one by one, and training goes on from
the trained weights.

How small that gradient is decides the outcome, so there are two starts. From the *finished* one,
whose gradient is as small as that after each retraining, what changes is due to the point that is
left out. From the *unfinished* one training goes on by a fixed number of steps, and most of what
changes is due to those; the control goes on as long with every point.

Training is L-BFGS in coordinates in which the Gauss-Newton matrix is the identity: a network of
about a thousand weights has a small one, and plain L-BFGS needs eight times as many passes over the
data for the same gradient (measured).

In reading order: `build`, `as_images`, `train`, `descend`, `matrix`, `retrain`, `Study`, `study`,
`features_without`.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import vector_to_parameters

from lib import cache, gradients, models, parallel, training
from lib.attribution import influence, solvers
from lib.attribution.influence_studies import Comparison, load
from lib.data.base import Split, sha256_of
from lib.features import Progress, activations

WARM_UP = training.Recipe(epochs=60, batch_size=50, lr=3e-3, optimizer="adam", schedule="cosine")

BLOCK = 10  # retrainings an entry of the cache
UNFINISHED, FINISHED = 1e-4, 1e-6  # largest coordinate of the gradient at the two starts
MAX_STEPS, MORE_STEPS = 200, 20  # of one retraining from the finished, from the unfinished start


class AllConv(nn.Sequential):
    """Three 3x3 convolutions with tanh, the later ones in steps of two, and class maps averaged."""

    def __init__(self, channels: int, n_out: int = 10) -> None:
        super().__init__()
        for i, (fan_in, step) in enumerate(((1, 1), (channels, 2), (channels, 2)), 1):
            conv = nn.Conv2d(fan_in, channels, 3, step, 1)
            self.add_module(f"conv{i}", nn.Sequential(conv, nn.Tanh()))
        self.add_module("maps", nn.Conv2d(channels, n_out, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean((2, 3))


def build(channels: int, seed: int) -> AllConv:
    """A network with weights drawn from `seed`."""
    return models.initialise(AllConv(channels), torch.Generator().manual_seed(seed)).double()  # type: ignore[return-value]


def as_images(split: Split) -> Split:
    """Flat square images as `[n, 1, side, side]` float64, those beyond 16 pixels at half size."""
    side = int(split.x.shape[1] ** 0.5)
    x = split.x.double().view(-1, 1, side, side)
    return Split(F.avg_pool2d(x, 2) if side > 16 else x, split.y)


def train(
    data: Split,
    channels: int,
    l2: float,
    seed: int,
    *,
    tols: Sequence[float] = (UNFINISHED, FINISHED),
    max_rounds: int = 60,
) -> list[AllConv]:
    """One network at several stages of its training on `mean loss + l2/2 |weights|^2`, float64.

    Args:
        tols: largest coordinate of the gradient at each stage, falling.

    Returns:
        A copy at each of `tols`.

    Raises:
        ValueError: `max_rounds` of a hundred steps do not reach the last of `tols`.
    """
    model = build(channels, seed)
    generator = torch.Generator().manual_seed(seed)
    training.train(model, data.x, data.y, WARM_UP, generator=generator)
    stages: list[AllConv] = []
    for _ in range(max_rounds):
        factor = _factor(model, data, l2, damping=l2)
        while (
            descend(model, data, l2, factor, tol=tols[len(stages)], max_steps=100)
            <= (tols[len(stages)])
        ):
            stages.append(copy.deepcopy(model))
            if len(stages) == len(tols):
                return stages
    raise ValueError(f"{max_rounds} rounds do not bring the gradient to {tols[-1]:.0e}; raise l2")


def descend(
    model: nn.Module,
    data: Split,
    l2: float,
    factor: Tensor,
    *,
    tol: float,
    max_steps: int,
    left_out: int | None = None,
) -> float:
    """L-BFGS in coordinates in which the Gauss-Newton matrix is the identity; changes `model`.

    Args:
        factor: Cholesky factor `[p, p]` of the damped Gauss-Newton matrix.
        left_out: a point that the objective leaves out.

    Returns:
        The largest coordinate of the gradient at the end.
    """
    from scipy.optimize import minimize

    start = _flat(list(model.parameters())).detach()
    largest = float("inf")

    def objective(moved: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal largest
        step = torch.linalg.solve_triangular(
            factor.mT, torch.from_numpy(moved)[:, None], upper=True
        )
        vector_to_parameters(start + step[:, 0], model.parameters())
        value, slope = _objective(model, data, l2, left_out)
        largest = slope.abs().max().item()
        inner = torch.linalg.solve_triangular(factor, slope[:, None], upper=False)
        return value, inner[:, 0].numpy()

    def stop(_: np.ndarray) -> None:
        if largest <= tol:
            raise StopIteration

    options = {"maxcor": 50, "maxiter": max_steps, "gtol": 0.0, "ftol": 0.0}
    found = minimize(
        objective,
        np.zeros(len(start)),
        jac=True,
        method="L-BFGS-B",
        callback=stop,
        options=options,
    )
    objective(found.x)
    return largest


def _factor(model: nn.Module, data: Split, l2: float, damping: float) -> Tensor:
    g = matrix(model, data, l2)
    return torch.linalg.cholesky(g + damping * torch.eye(len(g), dtype=g.dtype))


def matrix(model: nn.Module, data: Split, l2: float) -> Tensor:
    """The Gauss-Newton matrix of `mean loss + l2/2 |weights|^2`, `[p, p]`."""
    rows = gradients.ggn_rows(model, (data.x, data.y), chunk=250).flatten(0, 1)
    g = rows.mT @ rows / len(data)
    g.diagonal().add_(l2)
    return g


def retrain(
    model: nn.Module,
    data: Split,
    l2: float,
    factor: Tensor,
    left_out: int | None,
    *,
    tol: float,
    max_steps: int,
) -> nn.Module:
    """Go on training a copy, without one point (None: with all of them); see `descend`."""
    found = copy.deepcopy(model)
    descend(found, data, l2, factor, tol=tol, max_steps=max_steps, left_out=left_out)
    return found


@dataclass(frozen=True)
class Study:
    """What was predicted for the left-out points, and what retraining gave."""

    finished: Comparison  # actual: loss after retraining less that of the finished network
    unfinished: Comparison  # the same from the unfinished network
    controlled: Comparison  # less the control's: the same steps with every point
    control: float  # change of the test point's loss by training on alone
    row: int  # of the test point
    accuracy: float  # of the finished network on the test rows
    n_weights: int
    hessian: str  # "Hessian" or, where it has negative curvature, "Gauss-Newton"
    steps: int  # of conjugate gradients at the finished network


def study(
    data: Split,
    test: Split,
    *,
    channels: int,
    lam: float,
    damping: float,
    n_removed: int,
    seed: int,
    progress: Progress | None = None,
) -> Study:
    """Train, predict, leave out; trainings come from the cache, so that a killed run goes on.

    Args:
        data, test: images `[n, 1, h, w]` float64 and labels.
        damping: of conjugate gradients.
        n_removed: points of largest influence, left out one at a time.
    """
    config: dict[str, object] = {
        "channels": channels,
        "lam": lam,
        "seed": seed,
        "data": cache.state_hash({"x": data.x, "y": data.y}),
    }

    def stages() -> dict[str, Tensor]:
        (found,) = parallel.side_by_side(lambda s: train(data, channels, lam, s), [seed])
        return {
            f"{k}.{name}": w for k, net in enumerate(found) for name, w in net.state_dict().items()
        }

    states = cache.fetch("all-conv", config, stages, code=[train, AllConv])
    early, late = (build(channels, seed).eval() for _ in range(2))
    for k, model in enumerate((early, late)):
        parts = {n.removeprefix(f"{k}."): w for n, w in states.items() if n.startswith(f"{k}.")}
        model.load_state_dict(parts)
    out = training.predict(late, test.x)
    row = int((out.argmax(1) != test.y).nonzero()[0])
    point = test.x[row : row + 1], test.y[row : row + 1]
    config |= {"test": cache.state_hash({"x": point[0], "y": point[1]})}
    found = []
    for model, tol, max_steps in ((late, FINISHED, MAX_STEPS), (early, 0.0, MORE_STEPS)):
        solution, name = _solved(model, data, lam, damping, point)
        tau = influence.scores(model, (data.x, data.y), solution.x[None], chunk=500)[:, 0]
        rows = tau.abs().argsort(descending=True)[:n_removed]
        limits = {"tol": tol, "max_steps": max_steps}
        losses = _losses_without(model, data, point, lam, rows, config, limits, progress)
        base = gradients.cross_entropy(training.predict(model, point[0]), point[1])
        found.append((-tau[rows], losses, base, name, solution.steps))
    (predicted, losses, base, name, steps), (guess, more, start, _, _) = found
    return Study(
        Comparison(predicted, losses[1:] - base),
        Comparison(guess, more[1:] - start),
        Comparison(guess, more[1:] - more[0]),
        (more[0] - start).item(),
        row,
        (out.argmax(1) == test.y).double().mean().item(),
        models.n_parameters(late),
        name,
        steps,
    )


def _losses_without(
    model: nn.Module,
    data: Split,
    point: tuple[Tensor, Tensor],
    lam: float,
    rows: Tensor,
    config: Mapping[str, object],
    limits: Mapping[str, float],
    progress: Progress | None,
) -> Tensor:
    """The test point's loss after training on with every point, then without each of `rows`."""
    factor = functools.cache(lambda: _factor(model, data, lam, damping=lam))
    left_out = [None, *rows.tolist()]
    blocks = range(0, len(left_out), BLOCK)
    losses = []
    for start in progress(blocks) if progress else blocks:
        chosen = left_out[start : start + BLOCK]

        def loss_without(k: int | None) -> Tensor:
            net = retrain(model, data, lam, factor(), k, **limits)  # type: ignore[arg-type]
            return gradients.cross_entropy(training.predict(net, point[0]), point[1])

        def build_losses(chosen: list[int | None] = chosen) -> dict[str, Tensor]:
            factor()  # once, and only where something is built
            return {"losses": torch.cat(list(parallel.side_by_side(loss_without, chosen)))}

        entry = cache.fetch(
            "all-conv-left-out",
            {**config, **limits, "rows": chosen},
            build_losses,
            code=[train, AllConv, retrain],
        )
        losses.append(entry["losses"])
    return torch.cat(losses)


def features_without(
    classes: Sequence[int], where: Mapping[str, object], n: int
) -> Callable[[Tensor], Tensor]:
    """The last hidden layer of a network trained on every digit but `classes`, from the cache.

    Args:
        where: name, root and seed for `influence_studies.load`; n: rows before the choice.
    """
    rest = [c for c in range(10) if c not in classes]
    seen, _ = load(**where, n=n, classes=rest)  # type: ignore[arg-type]
    spec = {"widths": (seen.x.shape[1], 64, 64, 10)}
    recipe = training.Recipe(epochs=30, batch_size=50, lr=0.1)
    net = training.fetch_model(
        "mlp",
        spec,
        lambda: (seen.x, seen.y),
        recipe,
        seed=int(where["seed"]),  # type: ignore[call-overload]
        data_hash=sha256_of(seen.x, seen.y),
    )
    return lambda x: activations(net, x, ["hidden2"])["hidden2"]


def _solved(
    model: nn.Module, data: Split, lam: float, damping: float, point: tuple[Tensor, Tensor]
) -> tuple[solvers.Solution, str]:
    """`H^-1` times the gradient of the test point's loss, and which matrix was taken for H."""
    pair = data.x, data.y
    right = gradients.per_example(model, point, gradients.cross_entropy)[0]
    try:
        h = gradients.hessian_product(model, pair, gradients.cross_entropy, l2=lam)
        with warnings.catch_warnings():
            # torch loads its forward-mode rules with a warning that names a path of the machine
            warnings.simplefilter("ignore", FutureWarning)
            return solvers.conjugate_gradient(h, right, damping=damping), "Hessian"
    except solvers.NegativeCurvature:
        g = gradients.ggn_product(model, pair, gradients.cross_entropy, l2=lam)
        return solvers.conjugate_gradient(g, right, damping=damping), "Gauss-Newton"


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])


def _objective(
    model: nn.Module, data: Split, l2: float, left_out: int | None = None
) -> tuple[float, Tensor]:
    """Value and flat gradient of the mean loss (1/n of all points) plus the penalty."""
    weights = list(model.parameters())
    with torch.enable_grad():
        losses = gradients.cross_entropy(model(data.x), data.y)
        total = losses.sum() if left_out is None else losses.sum() - losses[left_out]
        value = total / len(data) + l2 / 2 * sum(w.square().sum() for w in weights)
        found = torch.autograd.grad(value, weights)
    return value.item(), _flat(found)
