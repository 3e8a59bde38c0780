"""Flipped labels, found by checking the most suspicious training points first.

Document 4, applications of influence functions; specification 1.4. Some labels are flipped, a model
is trained, and the points are put into an order: by self-influence (the leave-one-out effect of a
point on its own loss), by training loss, or at random. Somebody checks them in that order and
corrects what is wrong; after each share the model is retrained from the corrected labels.

Two models: logistic regression (`sweep`: every share of flips and of checks, retrained exactly) and
networks (`networks`: self-influence by EK-FAC, and gradients at one or several checkpoints; the
order alone is judged). In reading order: `flip`, `sweep`, `Sweep`, `corrupted`,
`networks`, `NetworkOrders`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from lib import cache, gradients, models, parallel, training
from lib.attribution import convex, kfac, metrics, refits
from lib.attribution.ground import trajectory
from lib.attribution.pools import Pool
from lib.attribution.truth import Setting
from lib.data.base import Split
from lib.features import Progress
from lib.training.loop import LOSSES, SCHEDULES
from lib.training.stacked import build_skeleton

ORDERS = ("self-influence", "training loss", "random")
N_RESAMPLES = 1000


def flip(y: Tensor, share: float, n_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Give a share of the labels another class, each of the others with the same chance.

    Args:
        y: labels `[n]`, integers below `n_classes`.
        share: of the labels, in (0, 1); rounded to whole points.

    Returns:
        labels `[n]`, and which of them are wrong, bool `[n]`.

    Raises:
        ValueError: a share that flips no point or all, or a label outside of the classes.
    """
    n_flipped = round(share * len(y))
    if not 0 < n_flipped < len(y):
        raise ValueError(
            f"want a share of {len(y)} labels that flips some but not all, got {share}"
        )
    if y.is_floating_point() or int(y.min()) < 0 or int(y.max()) >= n_classes:
        raise ValueError(f"want integer labels below n_classes = {n_classes}; count the classes")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(y), generator=generator)[:n_flipped]
    wrong = torch.zeros(len(y), dtype=torch.bool)
    wrong[rows] = True
    shift = torch.randint(1, n_classes, (n_flipped,), generator=generator)
    labels = y.clone()
    labels[rows] = (y[rows] + shift.to(y)) % n_classes
    return labels, wrong


def found_by(scores: Tensor, wrong: Tensor, shares: Sequence[float]) -> Tensor:
    """Share of the wrong labels among the highest scores, for each share checked, `[S]`."""
    hits = wrong[scores.argsort(descending=True)].double().cumsum(0)
    counts = [round(share * len(scores)) for share in shares]
    return torch.stack([hits[c - 1] if c else hits.new_zeros(()) for c in counts]) / hits[-1]


# --- logistic regression


@dataclass(frozen=True)
class Sweep:
    """Every order at every share of flips and of checks; K seeds."""

    n: int
    n_test: int
    lam: float
    flips: tuple[float, ...]
    checks: tuple[float, ...]  # the first is 0: nothing checked
    orders: tuple[str, ...]
    found: Tensor  # share of the flipped labels found, [orders, flips, checks, K]
    accuracy: Tensor  # on clean test labels, [orders, flips, checks, K]
    auc: Tensor  # of each order for flipped labels, [orders, flips, K]
    clean: Tensor  # accuracy without flips, [K]

    def regained(self, order: str, flips: float, checks: float) -> Tensor:
        """Accuracy won back at a share of checks, and accuracy lost to the flips, `[2, K]`."""
        k, c = self.flips.index(flips), self.checks.index(checks)
        accuracy = self.accuracy[self.orders.index(order), k]
        return torch.stack([accuracy[c] - accuracy[0], self.clean - accuracy[0]])

    def gain(self, flips: float, checks: float) -> tuple[float, float]:
        """Share of the lost accuracy won back by self-influence, less at random; its spread.

        A ratio of means over seeds, because single seeds may lose nothing; spread: bootstrap sd,
        infinite where the flips may have cost nothing.
        """
        ours, lost = self.regained("self-influence", flips, checks)
        won = ours - self.regained("random", flips, checks)[0]
        generator = torch.Generator().manual_seed(0)
        pick = torch.randint(len(won), (N_RESAMPLES, len(won)), generator=generator)
        above, below = won[pick].mean(1), lost[pick].mean(1)
        spread = (above / below).std().item() if (below > 0).all() else float("inf")
        return (won.mean() / lost.mean()).item(), spread


def sweep(
    pool: Pool,
    *,
    side: int,
    n: int,
    n_test: int,
    lam: float,
    flips: Sequence[float],
    checks: Sequence[float],
    n_seeds: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sweep:
    """Flip, order, check, correct, retrain: all shares, all orders, many seeds.

    Args:
        pool: seed k draws n training rows, n_test others and the flips with `seed + k`.
        side: of the images that the model reads.
        lam: penalty of the logistic regression.
        flips, checks: shares of the training points; checks without the 0.

    Returns:
        The study; orders are made once, from the model of the flipped labels, as published.

    Source: specification 1.4 (mislabels). Self-influence is `g' H^-1 g` at the flipped optimum.
    """
    shares = (0.0, *checks)
    found: list[Tensor] = []
    accuracy: list[Tensor] = []
    auc: list[Tensor] = []
    clean: list[Tensor] = []
    x, y = pool.inputs(side), pool.y
    seeds = range(seed, seed + n_seeds)
    for s in progress(seeds) if progress else seeds:
        rows, test = pool.draw((n, n_test), s)
        judge = Split(x[test], y[test])
        clean.append(_accuracy(convex.fit_logistic(x[rows], y[rows], lam=lam).theta[None], judge))
        parts = [_checked(x[rows], y[rows], judge, lam, f, shares, s) for f in flips]
        for kept, column in zip((found, accuracy, auc), zip(*parts, strict=True), strict=True):
            kept.append(torch.stack(column, 1))  # [orders, flips, ...]
    return Sweep(
        n,
        n_test,
        lam,
        tuple(flips),
        shares,
        ORDERS,
        torch.stack(found, -1),
        torch.stack(accuracy, -1),
        torch.stack(auc, -1),
        torch.cat(clean),
    )


def suspicion(fit: convex.Fit, seed: int) -> dict[str, Tensor]:
    """Each order of `ORDERS` as a score `[n]`, high where a label looks wrong."""
    generator = torch.Generator().manual_seed(seed + 1)
    return {
        "self-influence": convex.self_influence(fit),
        "training loss": fit.loss.value(fit.a @ fit.theta.mT, fit.y),
        "random": torch.rand(len(fit.y), generator=generator, dtype=torch.float64),
    }


def _checked(
    x: Tensor, y: Tensor, test: Split, lam: float, share: float, shares: Sequence[float], seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Found and accuracy `[orders, checks]`, and AUC `[orders]`, of one draw of flips."""
    labels, wrong = flip(y, share, 2, seed)
    fit = convex.fit_logistic(x, labels, lam=lam)
    found, auc, corrected = [], [], []
    for scores in suspicion(fit, seed).values():
        found.append(found_by(scores, wrong, shares))
        auc.append(metrics.mislabel_auc(scores, wrong))
        order = scores.argsort(descending=True)
        for part in shares:
            fixed = labels.clone()
            seen = order[: round(part * len(y))]
            fixed[seen] = y[seen]
            corrected.append(fixed)
    theta = refits.relabelled(fit, torch.stack(corrected))
    accuracy = _accuracy(theta, test).view(len(found), -1)
    return torch.stack(found), accuracy, torch.tensor(auc, dtype=torch.float64)


def _accuracy(theta: Tensor, test: Split) -> Tensor:
    """Share of test rows on the right side, for each of several models `[m, 1, D]`: `[m]`."""
    out = convex.design(test.x) @ theta[:, 0].mT  # [T, m]
    return ((out > 0) == (test.y == 1)[:, None]).double().mean(0)


# --- networks


def corrupted(setting: Setting, share: float, seed: int) -> tuple[Setting, Tensor]:
    """A setting with some training labels flipped, and which: bool `[n]`."""
    train = setting.train
    n_classes = int(torch.cat([train.y, setting.targets.y]).max()) + 1
    labels, wrong = flip(train.y.cpu(), share, n_classes, seed)
    name = f"{setting.name}, {share:.0%} flipped"
    return replace(setting, name=name, train=Split(train.x, labels.to(train.y.device))), wrong


@dataclass(frozen=True)
class NetworkOrders:
    """How well each order finds the flipped labels of several networks; K networks."""

    setting: str
    n: int
    share: float
    shares: tuple[float, ...]  # checked
    found: Mapping[str, Tensor]  # order -> share of the flips found, [checks, K]
    auc: Mapping[str, Tensor]  # order -> [K]
    accuracy: Tensor  # of each network on the targets' clean labels, [K]
    fitted: Tensor  # share of the flipped labels that the network predicts, [K]
    skipped: tuple[str, ...]  # layers that EK-FAC leaves out
    shown: Tensor  # of the first network: self-influence, loss, and 1 where flipped, [3, n]

    def at(self, order: str, checked: float) -> tuple[float, float]:
        """Share of the flips found at a share checked: mean and sd over networks."""
        values = self.found[order][self.shares.index(checked)]
        return values.mean().item(), values.std().item()


def networks(
    setting: Setting,
    *,
    share: float,
    checks: Sequence[float],
    n_networks: int,
    damping: float,
    seed: int = 0,
    progress: Progress | None = None,
) -> NetworkOrders:
    """Train networks on flipped labels (once, through the cache) and order their training rows.

    Args:
        share: of the labels flipped; network k has its own flips and first weights, of `seed + k`.
        damping: of EK-FAC, in units of a layer's mean eigenvalue.

    Source: specification 1.3 and 1.4; the published anchor is EK-FAC self-influence.
    """
    seeds = range(seed, seed + n_networks)
    shares = (0.0, *checks)
    if setting.stack > 1:  # small networks: several at a time
        paths: Iterable[tuple[list[nn.Module], list[float]]] = parallel.side_by_side(
            lambda s: _path(corrupted(setting, share, s)[0], s), seeds
        )
    else:
        paths = (_path(corrupted(setting, share, s)[0], s) for s in seeds)
    found: dict[str, list[Tensor]] = {}
    auc: dict[str, list[float]] = {}
    accuracy, fitted = [], []
    skipped: tuple[str, ...] = ()
    shown: list[Tensor] = []
    for _, s, (path, rates) in zip(
        progress(seeds) if progress else seeds, seeds, paths, strict=True
    ):
        trained, wrong = corrupted(setting, share, s)
        scores, skipped = _network_scores(trained, path, rates, damping, s)
        if not shown:
            shown = [scores["EK-FAC self-influence"], scores["training loss"], wrong.float()]
        for order, value in scores.items():
            found.setdefault(order, []).append(found_by(value, wrong, shares))
            auc.setdefault(order, []).append(metrics.mislabel_auc(value, wrong))
        right = training.predict(path[-1], _seen(trained, trained.targets.x)).argmax(1)
        accuracy.append((right == trained.targets.y).double().mean())
        own = training.predict(path[-1], _seen(trained, trained.train.x[wrong])).argmax(1)
        fitted.append((own == trained.train.y[wrong]).double().mean())
    return NetworkOrders(
        setting.name,
        len(setting.train),
        share,
        shares,
        {order: torch.stack(values, 1) for order, values in found.items()},
        {order: torch.tensor(values, dtype=torch.float64) for order, values in auc.items()},
        torch.stack(accuracy),
        torch.stack(fitted),
        skipped,
        torch.stack(shown),
    )


def _seen(setting: Setting, x: Tensor) -> Tensor:
    return setting.prepare(x) if setting.prepare else x


def _path(setting: Setting, seed: int) -> tuple[list[nn.Module], list[float]]:
    """`ground.trajectory` through the cache."""

    def build() -> dict[str, Tensor]:
        path, rates = trajectory(setting, seed)
        states = {
            f"{k}.{name}": w for k, net in enumerate(path) for name, w in net.state_dict().items()
        }
        return states | {"rates": torch.tensor(rates, dtype=torch.float64)}

    recipe = setting.recipe
    config = {
        "network": setting.network,
        "spec": dict(setting.spec),
        "recipe": asdict(recipe),
        "data": setting.data_hash,
        "seed": seed,
    }
    # what tables of names point to, which following the source does not find
    tables = models.NETWORKS[setting.network], LOSSES[recipe.loss], SCHEDULES[recipe.schedule]
    states = cache.fetch("trajectory", config, build, code=[trajectory, *tables])
    rates = states.pop("rates").tolist()
    path = []
    for k in range(len(rates)):
        part = {n.removeprefix(f"{k}."): w for n, w in states.items() if n.startswith(f"{k}.")}
        net = build_skeleton(setting.network, setting.spec)
        net.to_empty(device=setting.train.x.device).load_state_dict(part)
        path.append(net)
    return path, rates


def _network_scores(
    setting: Setting, path: Sequence[nn.Module], rates: Sequence[float], damping: float, seed: int
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Order -> score `[n]`, high where a label looks wrong; and the layers without factors."""
    data = _seen(setting, setting.train.x), setting.train.y
    model, generator = path[-1], torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="K-FAC leaves out")  # reported instead
        curvature = kfac.fit_ekfac(model, data[0], generator=generator)
    steps = [_squared_norms(net, data) for net in path]
    return {
        "EK-FAC self-influence": kfac.self_influence(curvature, model, data, damping=damping),
        "training loss": gradients.cross_entropy(training.predict(model, data[0]), data[1]),
        "Grad-Dot with itself": steps[-1],
        "TracIn with itself": torch.stack(
            [rate * step for rate, step in zip(rates, steps, strict=True)]
        ).sum(0),
        "random": torch.rand(len(data[1]), generator=generator),
    }, curvature.skipped


def _squared_norms(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    """Squared length of every example's gradient of the loss, `[n]`."""
    parts = gradients.stream(model, data, gradients.cross_entropy)
    return torch.cat([part.square().sum(1) for part in parts])
