"""Next check 2 of document 5: does the method scale over architectures and sizes?

One concept for all: a ring is closed. Rings are drawn by a smooth function of five numbers (half
the angle of the gap, two radii, a centre), so that an edit acts on the numbers, the picture stays a
ring, and whether it is closed afterwards is counted in the picture, without any network. Networks
of four architectures (`scaling_networks`) and several sizes learn to tell closed from open; a probe
reads the concept from their last hidden layer.

Specification 7.2, with a known decoder in place of an autoencoder; chess towers of several depths
are not here.

Public names: `render`, `draw`, `study`, `Configuration`, `slope`, `slope_over_networks`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import cache, probes
from lib.backprop import scaling_networks
from lib.backprop.distances import L2Sq
from lib.backprop.maximisation import maximise_to
from lib.backprop.objective import Objective, Operator, Prefix
from lib.backprop.picture_measures import holes
from lib.cache import state_hash
from lib.training import Recipe

SIDE = 16
GAP, RADIUS_X, RADIUS_Y, CENTRE_X, CENTRE_Y = range(5)
STROKE = 1.1  # pixels
# mean and reach of the five numbers; the gap in radians, the others in pixels
MIDDLE = (0.35, 4.8, 4.8, 7.5, 7.5)
REACH = (0.75, 0.8, 0.8, 1.0, 1.0)
TARGET = 0.9
# fields of a `Configuration` after its name
MEASURED = (
    "n_weights", "accuracy", "score", "success", "truth", "on_gap", "distance", "gradients",
    "seconds",
)  # fmt: skip


def render(u: Tensor) -> Tensor:
    """Rings `[n, 1, 16, 16]` of numbers `[n, 5]`, each in units of its reach around its middle."""
    numbers = u * torch.tensor(REACH).to(u) + torch.tensor(MIDDLE).to(u)
    gap, rx, ry, cx, cy = (numbers[:, k, None, None] for k in range(5))
    at = torch.arange(SIDE).to(u)
    x, y = at[None, None, :] - cx, at[None, :, None] - cy
    away = ((x / rx) ** 2 + (y / ry) ** 2 + 1e-6).sqrt()
    distance = (away - 1) * (rx + ry) / 2
    angle = torch.atan2(x.expand_as(away).abs(), -y.expand_as(away) + 1e-6)  # 0 at the top
    ink = torch.exp(-((distance / STROKE) ** 2)) * torch.sigmoid(10 * (angle - gap))
    return ink[:, None]


def draw(n: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers `[n, 5]`, uniform within their reach, and whether the ring is closed, `[n]`."""
    u = 2 * torch.rand(n, 5, generator=generator) - 1
    return u, (holes(render(u)) > 0).long()


@dataclass(frozen=True)
class Configuration:
    """One network and what the method did on it."""

    architecture: str
    n_weights: int
    accuracy: float  # of the network, held out
    score: float  # S of the probe
    success: Tensor  # [n], probe reads .9 and the solver converged, bool
    truth: Tensor  # [n], the ring is closed afterwards, bool
    on_gap: Tensor  # [n], share of |delta| on the gap
    distance: Tensor  # [n], |delta|_2 over the smallest that closes the ring
    gradients: Tensor  # [n], evaluations
    seconds: float  # all rings together, when they were edited

    @property
    def failure(self) -> str:
        """The most frequent reason why a ring is not closed, "" if most are."""
        if self.truth.double().mean() >= 0.5:
            return ""
        if self.score < 0.5:
            return "weak probe"
        return "not converged" if self.success.double().mean() < 0.5 else "probe is not the concept"


def study(
    networks: Mapping[str, Sequence[Mapping[str, object]]],
    *,
    n_train: int,
    n_probe: int,
    n: int,
    training: Mapping[str, Mapping[str, float]],
    seed: int,
) -> list[Configuration]:
    """Train every network, fit its probe and close rings with it.

    Args:
        networks: architecture (a key of `scaling_networks.NETWORKS`) -> specs, smallest first.
        n: open rings to close, held out.
        training: architecture -> epochs and learning rate.
    """
    generator = torch.Generator().manual_seed(seed)
    u, y = draw(n_train + n_probe + 20 * n, generator=generator)
    parts = (slice(0, n_train), slice(n_train, n_train + n_probe), slice(n_train + n_probe, None))
    still_open = (y[parts[2]] == 0).nonzero()[:n, 0]
    rings = u[parts[2]][still_open]
    needed = _smallest_closing(rings)
    data = {"u": u, "y": y, "rings": rings}

    def fetched(name: str, spec: Mapping[str, object]) -> Configuration:
        def build() -> dict[str, Tensor]:
            made = _configuration(name, spec, u, y, parts, rings, needed, training[name], seed)
            return {x: _exactly(getattr(made, x)) for x in MEASURED}

        key = {"network": [name, dict(spec)], "training": dict(training[name]), "seed": seed}
        key |= {"data": state_hash(data), "parts": [n_train, n_probe, n]}
        kept = cache.fetch("ring-edits", key, build, code=[_configuration])
        fields = {x: v if v.ndim else v.item() for x, v in kept.items()}
        return Configuration(name, **fields)  # type: ignore[arg-type]

    return [fetched(name, spec) for name, specs in networks.items() for spec in specs]


def _exactly(value: Tensor | float) -> Tensor:
    """A number as it is, not rounded to float32."""
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)


def _configuration(
    name: str,
    spec: Mapping[str, object],
    u: Tensor,
    y: Tensor,
    parts: tuple[slice, slice, slice],
    rings: Tensor,
    needed: Tensor,
    training: Mapping[str, float],
    seed: int,
) -> Configuration:
    flat = name == "mlp"

    def shown(numbers: Tensor) -> Tensor:
        x = render(numbers)
        return x.flatten(1) if flat else x

    train, fit, rest = parts
    recipe = Recipe(
        epochs=int(training["epochs"]), batch_size=64, lr=training["lr"], optimizer="adam"
    )
    data = state_hash({"u": u[train], "y": y[train]})
    network = scaling_networks.fetch(
        name, spec, shown(u[train]), y[train], recipe, seed=seed, data_hash=data
    )
    layer = Prefix(network, scaling_networks.LAST_HIDDEN[name])
    layer.eval()
    with torch.no_grad():
        z, z_rest = layer(shown(u[fit])), layer(shown(u[rest]))
        right = network(shown(u[rest])).argmax(1) == y[rest]
    probe = probes.fit_logistic(z, y[fit], C=0.1)
    objective = Objective(
        layer, probe.score, [(1.0, L2Sq())], Operator(lambda s, d: shown(s + d)),
        link="sigmoid", any_rows=True,
    )  # fmt: skip
    start = time.perf_counter()
    edit = maximise_to(objective, rings, TARGET, max_steps=30, tolerance=1e-4)
    seconds = time.perf_counter() - start
    size = edit.delta.abs()
    return Configuration(
        architecture=name,
        n_weights=sum(p.numel() for p in network.parameters()),
        accuracy=right.double().mean().item(),
        score=probes.detection_score(probe.score(z_rest), y[rest]).item(),
        success=edit.converged & (edit.probe_after >= TARGET - 1e-3),
        truth=holes(render(rings + edit.delta)) > 0,
        on_gap=size[:, GAP] / size.sum(1).clamp_min(1e-12),
        distance=edit.delta.norm(dim=1) / needed,
        gradients=edit.steps.double(),
        seconds=seconds,
    )


def _smallest_closing(rings: Tensor, n_steps: int = 60) -> Tensor:
    """By how much the gap alone must fall until the picture has a hole, `[n]`."""
    smallest = torch.full((len(rings),), math.nan)
    for k in range(n_steps, 0, -1):
        moved = rings.clone()
        moved[:, GAP] -= 3.0 * k / n_steps
        closed = holes(render(moved)) > 0
        smallest = torch.where(closed, torch.tensor(3.0 * k / n_steps), smallest)
    return smallest


def slope(
    configurations: Sequence[Configuration], seed: int, measure: str = "truth"
) -> tuple[float, float, float]:
    """Change of a measure for ten times as many weights, and its 95% bootstrap interval.

    Least squares with a level of its own for each architecture; rings are drawn anew, networks are
    not. The interval says what other rings would give with these networks.

    Args:
        measure: a field of `Configuration` with one value a ring.
    """
    values = torch.stack([getattr(c, measure) for c in configurations]).double()
    design = _design(configurations)
    n = values.shape[1]
    drawn = torch.randint(n, (500, n), generator=torch.Generator().manual_seed(seed))
    means = torch.cat([values.mean(1)[:, None], values[:, drawn].mean(2)], 1)  # [networks, 501]
    found = torch.linalg.lstsq(design, means).solution[0]
    low, high = found[1:].quantile(0.025).item(), found[1:].quantile(0.975).item()
    return found[0].item(), low, high


def slope_over_networks(
    configurations: Sequence[Configuration], measure: str = "truth"
) -> tuple[float, float, float]:
    """The same slope with the interval that the scatter of the networks around it gives.

    Student's t for least squares with a level of its own for each architecture: what other
    networks might give, trained once a size. NaN bounds where no degree of freedom is left.

    Args:
        measure: a field of `Configuration`, one number or one value a ring.
    """
    from scipy.stats import t

    rows = [torch.as_tensor(getattr(c, measure)).double().mean() for c in configurations]
    design, y = _design(configurations), torch.stack(rows)
    found = torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
    free = len(y) - design.shape[1]
    if free < 1:
        return found[0].item(), math.nan, math.nan
    variance = ((y - design @ found) ** 2).sum() / free
    error = (variance * torch.linalg.inv(design.T @ design)[0, 0]).sqrt().item()
    reach = float(t.ppf(0.975, free)) * error
    return found[0].item(), found[0].item() - reach, found[0].item() + reach


def _design(configurations: Sequence[Configuration]) -> Tensor:
    """log10 of the number of weights, then a level for each architecture."""
    names = sorted({c.architecture for c in configurations})
    logs = torch.tensor([math.log10(c.n_weights) for c in configurations]).double()
    which = torch.tensor([names.index(c.architecture) for c in configurations])
    return torch.cat([logs[:, None], nn.functional.one_hot(which, len(names)).double()], 1)
