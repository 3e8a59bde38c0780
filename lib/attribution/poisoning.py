"""Training-set attacks: training images changed unseen, so that a test image is read wrongly.

Document 4, applications of influence functions: adversarial training examples; specification 1.4.
A linear top layer (logistic regression) reads fixed features of images that are stored in whole
grey levels. For one test image at a time:

1. Influence of *changing* a training image on the margin of the test image: its slope in the pixels
   (specification 1.1, perturbing an input). The images with the most to gain are taken.
2. Every pixel of these moves against its slope, inside a box around the image; half a grey level
   wide, so that the stored image stays what it is. The top layer is trained again. Repeat.

Labels are never changed. What is computed from `convex.Fit` here is `influence.input_influence`
for a top layer, for many test images at once (tested against it).

In reading order: `Bottom`, `random_bottom`, `trained_bottom`, `Victim`, `victim`, `right_targets`,
`prepare`, `slopes`, `choose`, `attack`, `random_attack`, `Attack`, `predicted`, `study`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import models, shares, training
from lib.attribution import convex, refits
from lib.attribution.pools import SHIFT, Pool
from lib.data.base import Split, sha256_of
from lib.features import Progress

HALF = 0.5  # of a grey level: a pixel that moves by less is stored as before
BELOW = 1 - 1e-6  # boxes end a hair inside, so that half a level is less than half a level
LOOSE, TIGHT = 1e-6, 1e-8  # largest coordinate of the gradient on the way, and at the end
STEP = 5.0  # of one iteration, in half-widths of the box: as published, beyond the box


class Bottom(nn.Module):
    """All of a network below its last linear layer, reading images in grey levels."""

    def __init__(self, network: nn.Module, top: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        layers = list(network.children())
        if not isinstance(layers[-1], nn.Linear):
            raise ValueError("want a network that ends in a linear layer, which is taken off")
        self.layers = nn.Sequential(*layers[:-1]).eval().requires_grad_(False)
        self.top, self.shape = top, shape

    def forward(self, grey: Tensor) -> Tensor:
        """Features `[b, D]` of images `[b, side, side]`, the bias column of ones last."""
        x = (grey / self.top - SHIFT).view(len(grey), *self.shape)
        features = self.layers(x.to(next(self.layers.parameters()).dtype)).flatten(1)
        return convex.design(features)


def random_bottom(pool: Pool, n_features: int, seed: int) -> Bottom:
    """`n_features` random ReLU features: a hidden layer that was never trained."""
    d = pool.side**2
    generator = torch.Generator().manual_seed(seed)
    network = models.build("mlp", generator, widths=(d, n_features, 2)).double()
    return Bottom(network, pool.top, (d,))


def trained_bottom(
    pool: Pool, rows: Tensor, channels: tuple[int, ...], epochs: int, seed: int
) -> Bottom:
    """What the last layer of a convolutional network reads that was trained on `rows` (cached).

    The network tells all ten digits apart; `rows` should not be those that the top layer sees.
    """
    shape = 1, pool.side, pool.side
    recipe = training.Recipe(epochs, batch_size=128, lr=0.05, weight_decay=5e-4)
    x, y = (pool.grey[rows] / pool.top - SHIFT).unflatten(1, (1, -1)), pool.digit[rows]
    network = training.fetch_model(
        "cnn",
        {"size": pool.side, "channels": channels},
        lambda: (x, y),
        recipe,
        seed=seed,
        data_hash=sha256_of(x, y),
    )
    return Bottom(network, pool.top, shape)


@dataclass(frozen=True)
class Victim:
    """A trained top layer, the images that it was trained on, and its features."""

    bottom: Bottom
    grey: Tensor  # training images in grey levels, float64 [n, side, side]
    fit: convex.Fit  # of odd against even on their features

    def margin(self, theta: Tensor, targets: Split) -> Tensor:
        """Log-odds of the right class of target t by model t, `theta [T, 1, D]`: `[T]`."""
        out = (_see(self.bottom, targets.x) * theta[:, 0]).sum(1)
        return (2 * targets.y - 1) * out


def victim(bottom: Bottom, pool: Pool, rows: Tensor, lam: float) -> Victim:
    """Train the top layer on some rows of the pool."""
    grey = pool.grey[rows].double()
    fit = convex.fit_logistic(_see(bottom, grey)[:, :-1], pool.y[rows], lam=lam)
    return Victim(bottom, grey, fit)


def right_targets(found: Victim, pool: Pool, rows: Tensor, n: int) -> tuple[Split, float]:
    """The first n of `rows` that the victim reads rightly, and its accuracy on all of `rows`."""
    every = Split(pool.grey[rows].double(), pool.y[rows])
    theta = found.fit.theta.expand(len(rows), -1, -1)
    right = found.margin(theta, every) > 0
    kept = right.nonzero()[:n, 0]
    return Split(every.x[kept], every.y[kept]), right.double().mean().item()


def prepare(
    pool: Pool,
    bottom: Mapping[str, object],
    *,
    n: int,
    n_test: int,
    n_targets: int,
    lam: float,
    seed: int = 0,
) -> tuple[Victim, Split, float]:
    """A victim trained on n rows, and `right_targets` among n_test others.

    Args:
        bottom: `kind` "random" with the arguments of `random_bottom`, or "trained" with those of
            `trained_bottom` and `n_rows`: further rows that the network below is trained on.
        n_targets: test images to attack.
        lam: penalty of the top layer.
    """
    given = {key: value for key, value in bottom.items() if key not in ("kind", "n_rows")}
    if bottom["kind"] == "random":
        rows, test = pool.draw((n, n_test), seed)
        below = random_bottom(pool, **given, seed=seed)  # type: ignore[arg-type]
    elif bottom["kind"] == "trained":
        rows, test, others = pool.draw((n, n_test, int(bottom["n_rows"])), seed)  # type: ignore[call-overload]
        below = trained_bottom(pool, others, **given, seed=seed)  # type: ignore[arg-type]
    else:
        raise ValueError(f"bottom is random or trained, got {bottom['kind']!r}")
    found = victim(below, pool, rows, lam)
    return found, *right_targets(found, pool, test, n_targets)


def slopes(found: Victim, theta: Tensor, target: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """How the margin of each target changes as training images change.

    Args:
        theta: the model of each target, `[T, 1, D]`.
        target: gradient of the margin of target t in its model's weights, `[T, D]`.
        x, y: training images `[T, K, side, side]` and their labels `[T, K]`, K for each target.

    Returns:
        `-(1/n) d_x (dm_t' H^-1 d_theta l_k)`, `[T, K, side, side]`: moving image k by delta changes
        the margin by about its inner product with delta. H is that of the unchanged images.
    """
    solved = found.fit.solve(target[:, None])[:, 0]  # [T, D]
    with torch.enable_grad():
        leaf = x.detach().flatten(0, 1).requires_grad_()
        a = found.bottom(leaf)
        weight = _in_features(found, theta, solved, a.detach().view(*y.shape, -1), y)
        (slope,) = torch.autograd.grad(a, leaf, weight.flatten(0, 1))
    return slope.view_as(x)


def choose(found: Victim, targets: Split, n_chosen: int, half: float) -> Tensor:
    """The training images with the most to gain for each target, `[T, n_chosen]`, best first.

    What an image gains is to first order the sum of its absolute slopes, each times the room that
    its pixel has in the box (a black pixel cannot go below black).
    """
    n, n_targets = len(found.grey), len(targets.y)
    toward = (2 * targets.y - 1)[:, None] * _see(found.bottom, targets.x)
    solved = found.fit.solve(toward[:, None])[:, 0]
    low, high = _box(found, found.grey, half)
    chosen = []
    with torch.enable_grad():
        leaf = found.grey.detach().clone().requires_grad_()
        a = found.bottom(leaf)  # once, for all targets
        for t in range(n_targets):
            theta, labels = found.fit.theta[None], found.fit.y[None].long()
            weight = _in_features(found, theta, solved[t : t + 1], a.detach()[None], labels)[0]
            (slope,) = torch.autograd.grad(a, leaf, weight, retain_graph=t < n_targets - 1)
            room = torch.where(slope > 0, found.grey - low, high - found.grey)
            gain = (slope.abs() * room).flatten(1).sum(1)
            chosen.append(gain.topk(min(n_chosen, n)).indices)
    return torch.stack(chosen)


@dataclass(frozen=True)
class Attack:
    """Attacks on T test images, each by K training images changed inside a box."""

    half: float  # half-width of the box, grey levels
    rows: Tensor  # of the training images changed, [T, K]
    images: Tensor  # as changed, grey levels, [T, K, side, side]
    before: Tensor  # margin of the target, [T]; above 0: read rightly
    after: Tensor  # after retraining on the changed images, [T]
    iterations: Tensor  # until the prediction flipped or nothing changed any more, [T]

    @property
    def flipped(self) -> Tensor:
        """Which targets are read wrongly now, bool `[T]`."""
        return (self.before > 0) & (self.after < 0)

    @property
    def share(self) -> tuple[float, float]:
        """Share of targets flipped, and its standard error."""
        return shares.share(self.flipped)


def attack(
    found: Victim,
    targets: Split,
    rows: Tensor,
    *,
    half: float = HALF,
    step: float = STEP,
    max_iterations: int = 100,
) -> Attack:
    """Change images by the signs of influence, retraining every time, until predictions flip.

    Args:
        targets: test images, read rightly by the unchanged model.
        rows: training images to change for each, `[T, K]` (`choose`).
        half: half-width of the box around each image, grey levels; also never below black or
            above white.
        step: of one iteration, in half-widths. As published it is larger than the box, so that each
            iteration takes every pixel to one side of it.

    Returns:
        Where each attack ended: at the first flip, at a point that the next iteration would not
        change, or after `max_iterations`.
    """
    if rows.ndim != 2 or len(rows) != len(targets.y) or not half > 0 or not step > 0:
        raise ValueError(
            f"want rows [{len(targets.y)}, K], half > 0 and step > 0, got {list(rows.shape)}, "
            f"{half} and {step}"
        )
    start = found.grey[rows]
    low, high = _box(found, start, half)
    labels = found.fit.y[rows].long()
    toward = (2 * targets.y - 1)[:, None] * _see(found.bottom, targets.x)
    x, theta = start.clone(), found.fit.theta.repeat(len(rows), 1, 1)
    before = found.margin(theta, targets)
    after, iterations = before.clone(), torch.zeros(len(rows), dtype=torch.int64)
    live = before > 0
    for _ in range(max_iterations):
        k = live.nonzero()[:, 0]
        if len(k) == 0:
            break
        slope = slopes(found, theta[k], toward[k], x[k], labels[k])
        moved = (x[k] - step * half * slope.sign()).clamp(low[k], high[k])
        same = (moved == x[k]).flatten(1).all(1)
        x[k], iterations[k] = moved, iterations[k] + (~same).long()
        theta[k] = _retrained(found, rows[k], moved, theta[k], LOOSE)
        after[k] = found.margin(theta[k], Split(targets.x[k], targets.y[k]))
        live[k] = ~same & (after[k] > 0)
    after = found.margin(_retrained(found, rows, x, theta), targets)
    return Attack(half, rows, x, before, after, iterations)


def random_attack(
    found: Victim, targets: Split, rows: Tensor, *, half: float = HALF, seed: int = 0
) -> Attack:
    """The control: the same images, the same box, every pixel to a side drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    start = found.grey[rows]
    low, high = _box(found, start, half)
    up = torch.rand(start.shape, generator=generator) < 0.5
    x = torch.where(up, high, low)
    theta = found.fit.theta.expand(len(rows), -1, -1)
    after = found.margin(_retrained(found, rows, x, theta), targets)
    ones = torch.ones(len(rows), dtype=torch.int64)
    return Attack(half, rows, x, found.margin(theta, targets), after, ones)


def predicted(found: Victim, targets: Split, done: Attack) -> Tensor:
    """What influence at the unchanged model says of the margins' changes, `[T]`, to first order."""
    theta = found.fit.theta.expand(len(done.rows), -1, -1)
    toward = (2 * targets.y - 1)[:, None] * _see(found.bottom, targets.x)
    start, labels = found.grey[done.rows], found.fit.y[done.rows].long()
    slope = slopes(found, theta, toward, start, labels)
    return (slope * (done.images - start)).flatten(1).sum(1)


@dataclass(frozen=True)
class Study:
    """Attacks by number of images and size of the box, each with its control."""

    victim: Victim
    targets: Split
    accuracy: float  # of the unchanged model on the test rows
    counts: tuple[int, ...]
    boxes: tuple[float, ...]  # half-widths, grey levels
    done: Mapping[tuple[int, float], tuple[Attack, Attack]]  # (count, half) -> ours, random signs

    def line(self, half: float, control: int = 0) -> dict[int, Attack]:
        """Attacks by number of images in one box; `control` 1: with random signs."""
        return {k: self.done[k, half][control] for k in self.counts if (k, half) in self.done}

    def column(self, count: int, control: int = 0) -> dict[float, Attack]:
        """Attacks by box with one number of images."""
        return {h: self.done[count, h][control] for h in self.boxes if (count, h) in self.done}


def study(
    found: Victim,
    targets: Split,
    accuracy: float,
    *,
    counts: tuple[int, ...],
    boxes: tuple[float, ...],
    wide: float,
    max_iterations: int,
    seed: int = 0,
    progress: Progress | None = None,
) -> Study:
    """Every number of images in two boxes, and the fewest in every box.

    The images are chosen once for each target, at half a grey level; k of them are the first k.

    Args:
        targets, accuracy: of `right_targets`.
        counts: numbers of training images changed.
        boxes: half-widths in grey levels; `HALF` and `wide` among them.
        wide: the second box that is attacked by every number of images.

    Raises:
        ValueError: `HALF` or `wide` is not among the boxes.
    """
    if not {HALF, wide} <= set(boxes):
        raise ValueError(f"want {HALF} and wide = {wide} among the boxes, got {list(boxes)}")
    ranked = choose(found, targets, max(counts), HALF)
    jobs = {(count, half) for count in counts for half in (HALF, wide)}
    jobs |= {(min(counts), half) for half in boxes}
    done: dict[tuple[int, float], tuple[Attack, Attack]] = {}
    order = sorted(jobs)
    steps = range(len(order))
    for k in progress(steps) if progress else steps:
        count, half = order[k]
        rows = ranked[:, :count]
        ours = attack(found, targets, rows, half=half, max_iterations=max_iterations)
        done[count, half] = ours, random_attack(found, targets, rows, half=half, seed=seed)
    return Study(found, targets, accuracy, counts, boxes, done)


def _see(bottom: Bottom, grey: Tensor, chunk: int = 2048) -> Tensor:
    with torch.no_grad():
        return torch.cat([bottom(part) for part in grey.split(chunk)])


def _box(found: Victim, grey: Tensor, half: float) -> tuple[Tensor, Tensor]:
    half *= BELOW
    return (grey - half).clamp_min(0), (grey + half).clamp_max(found.bottom.top)


def _retrained(found: Victim, rows: Tensor, x: Tensor, start: Tensor, tol: float = TIGHT) -> Tensor:
    """The top layer of each target, trained on its own changed images, `[T, 1, D]`."""
    inputs = _see(found.bottom, x.flatten(0, 1)).view(*rows.shape, -1)
    return refits.replaced(found.fit, rows, inputs, start, tol=tol)


def _in_features(found: Victim, theta: Tensor, solved: Tensor, a: Tensor, y: Tensor) -> Tensor:
    """The margin's slope in training features, `-(1/n) (W (s.a) theta + r s)`: `[T, K, D]`."""
    out = torch.einsum("tkd,td->tk", a, theta[:, 0])
    flat, labels = out.reshape(-1, 1), y.reshape(-1).to(out)
    loss = found.fit.loss
    r = loss.residual(flat, labels).view_as(out)
    w = loss.curvature(flat)[:, 0, 0].view_as(out)
    along = torch.einsum("tkd,td->tk", a, solved)
    weight = (w * along)[..., None] * theta[:, 0][:, None] + r[..., None] * solved[:, None]
    return -weight / len(found.grey)
