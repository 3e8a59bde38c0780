"""Next check 1 of document 5: does a better probe give a better explanation?

Twelve features, the concept is the mean of the first three (C), so that the right answer is known:
an edit that raises the concept moves features of C. `Q` is the share of the edit (L2, in standard
deviations, summed over |delta|) that lies on C; chance is 3 / 12.

Worlds, each a stack of trained networks (specification 7.1):

- "used": the task is the concept (and two other features);
- "unused": the task is elsewhere, but the probed layer is wide enough to hold everything;
- "discarded": the task is elsewhere and the layer has two units;
- "confounded": the task reads feature 4, which correlates with the concept by .9.

Public names: `study`, `Study`, `WORLDS`, `CHANCE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib import cache, probes
from lib.backprop.distances import L2Sq
from lib.backprop.maximisation import maximise_to
from lib.backprop.objective import Objective
from lib.backprop.stacked import StackedPrefix, StackedProbe
from lib.training import Recipe, fetch_stack

N_FEATURES, N_CONCEPT = 12, 3
CHANCE = N_CONCEPT / N_FEATURES
PROXY, RHO = 3, 0.9  # the feature that stands in for the concept in "confounded"
WORLDS = {"used": 24, "unused": 64, "discarded": 2, "confounded": 24}  # units of the probed layer
TARGET = 0.9
N_TEST = 1000
# fields of a `Study`, in order
MEASURED = ("n_rows", "noise", "score", "selectivity", "quality", "truth", "converged")


@dataclass(frozen=True)
class Study:
    """One entry a probe (world x probe rows x label noise x seed); all `[k]`."""

    world: list[str]
    n_rows: Tensor  # probe rows
    noise: Tensor  # share of labels that were flipped; .5 is no label at all
    score: Tensor  # S = 2 accuracy - 1 on clean held-out labels
    selectivity: Tensor  # S minus that of a probe of labels drawn by a coin a group of inputs
    quality: Tensor  # Q
    truth: Tensor  # rise of the true concept over the rise that the probe reports, sd units
    converged: Tensor  # share of rows

    def of(self, world: str) -> Tensor:
        """Which entries are of a world and have labels, `[k]` bool."""
        mine = torch.tensor([w == world for w in self.world])
        return mine & (self.noise < 0.5)


def draw(world: str, n: int, *, generator: torch.Generator) -> Tensor:
    """Inputs `[n, 12]`, standard normal; in "confounded" the proxy follows the concept."""
    x = torch.randn(n, N_FEATURES, generator=generator)
    if world == "confounded":
        x[:, PROXY] = RHO * concept(x) + (1 - RHO**2) ** 0.5 * x[:, PROXY]
    return x


def concept(x: Tensor) -> Tensor:
    """The concept, standard normal, `[...]`."""
    return x[..., :N_CONCEPT].sum(-1) / N_CONCEPT**0.5


def study(
    n_rows: Sequence[int],
    noises: Sequence[float],
    *,
    n_seeds: int,
    n_train: int,
    n_explained: int,
    epochs: int,
    seed: int,
) -> Study:
    """Fit probes of every quality in every world and look where their edits go.

    Args:
        n_rows: probe rows.
        noises: shares of flipped labels; .5 (labels at random) is added as the control.
        n_seeds: networks a world.
    """
    options: dict[str, object] = {
        "n_rows": list(n_rows),
        "noises": [*noises, 0.5],
        "n_seeds": n_seeds,
        "n_train": n_train,
        "n_explained": n_explained,
        "epochs": epochs,
        "seed": seed,
    }
    parts = {world: _fetch(world, options) for world in WORLDS}
    names = [world for world, part in parts.items() for _ in range(len(part["score"]))]
    return Study(names, *(torch.cat([part[x] for part in parts.values()]) for x in MEASURED))


def _fetch(world: str, options: Mapping[str, object]) -> dict[str, Tensor]:
    """`_world` through the cache."""

    def build() -> dict[str, Tensor]:
        found = _world(world, **options)  # type: ignore[arg-type]
        return {name: getattr(found, name) for name in MEASURED}

    return cache.fetch("probe-quality", {"world": world, **options}, build, code=[_world])


def _world(
    world: str,
    n_rows: Sequence[int],
    noises: Sequence[float],
    n_seeds: int,
    n_train: int,
    n_explained: int,
    epochs: int,
    seed: int,
) -> Study:
    generator = torch.Generator().manual_seed(seed)
    x = draw(world, n_train, generator=generator)
    task = {
        "used": concept(x) + 0.5 * (x[:, 5] - x[:, 6]),
        "confounded": x[:, PROXY] + 0.3 * x[:, 5],
    }.get(world, x[:, 5] + torch.tanh(2 * x[:, 6]) + 0.5 * x[:, 7])
    recipe = Recipe(
        epochs=epochs, batch_size=64, lr=3e-3, optimizer="adam", schedule="linear", loss="mse"
    )
    spec: dict[str, object] = {
        "widths": (N_FEATURES, 32, WORLDS[world], 1),
        "activation": "selu",
    }
    seeds = [seed + k for k in range(n_seeds)]
    state = fetch_stack("mlp", spec, x, task, recipe, seeds=seeds)
    layer = StackedPrefix("mlp", spec, state, "hidden2")
    test = draw(world, N_TEST, generator=generator)
    explained = draw(world, 10 * n_explained, generator=generator)
    explained = explained[concept(explained) < -0.5][:n_explained]
    settings, fitted, scores, chance = [], [], [], []
    for n in n_rows:
        for noise in noises:
            rows = draw(world, n, generator=generator)
            flips = (torch.rand(n, generator=generator) < noise).long()
            y = (concept(rows) > 0).long() ^ flips
            coins = torch.randint(2, (n,), generator=generator)
            probe, score = _probe(layer, rows, y, test, n_seeds)
            settings += [(float(n), float(noise))] * n_seeds
            fitted.append(probe)
            scores.append(score)
            chance.append(_probe(layer, rows, coins, test, n_seeds)[1])
    every = {name: weight.repeat(len(fitted), *[1] * (weight.ndim - 1)) for name, weight in
             state.items()}  # fmt: skip
    probe = StackedProbe(
        torch.cat([p.get_buffer("weight") for p in fitted]),
        torch.cat([p.get_buffer("bias") for p in fitted]),
    )
    edit = _explain(StackedPrefix("mlp", spec, every, "hidden2"), probe, explained)
    score = torch.cat(scores)
    chosen = torch.tensor(settings)
    selectivity = score - torch.cat(chance).abs()
    return Study([world] * len(score), chosen[:, 0], chosen[:, 1], score, selectivity, *edit)


def _activations(layer: StackedPrefix, x: Tensor, n_models: int) -> Tensor:
    with torch.no_grad():
        return layer(x.repeat(n_models, 1)).unflatten(0, (n_models, -1))


def _probe(
    layer: StackedPrefix, x: Tensor, y: Tensor, test: Tensor, n_models: int
) -> tuple[StackedProbe, Tensor]:
    found = probes.fit_logistic(_activations(layer, x, n_models), y, C=1.0)
    probe = StackedProbe(found.weight, found.bias)
    scores = probe(_activations(layer, test, n_models).flatten(0, 1)).unflatten(0, (n_models, -1))
    return probe, probes.detection_score(scores, (concept(test) > 0).long()).float()


def _explain(
    layer: StackedPrefix, probe: StackedProbe, rows: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Q, truth and share converged, a number a probe; all probes at once."""
    n_models = layer.n_models
    s = rows.repeat(n_models, 1)
    objective = Objective(layer, probe, [(1.0, L2Sq())], link="sigmoid")
    edit = maximise_to(objective, s, TARGET, max_steps=25, tolerance=1e-4)
    delta = edit.delta.unflatten(0, (n_models, -1))
    mass = delta.abs().sum((1, 2)).clamp_min(1e-12)
    quality = delta[..., :N_CONCEPT].abs().sum((1, 2)) / mass
    risen = concept(delta).mean(1)
    intended = delta.norm(dim=-1).mean(1).clamp_min(1e-12)  # all of it along the concept
    return quality, risen / intended, edit.converged.float().unflatten(0, (n_models, -1)).mean(1)
