"""Entanglement or coincidence? A controlled study of what moves besides the concept.

Six standard normal inputs; the concept is the first, A; the second, B, correlates with it by rho.
The leak of an explanation is `E = |delta_B| / |delta_A|`. It has two sources that matter: a
penalised probe borrows from a correlated feature (data), or the layer cannot tell the two apart
(representation). Refitting the probe on rows where A and B are drawn independently removes the
first and keeps the second (specification of document 5, section 7.3).

Known worlds, each with a linear layer and with a trained 6-40-20-1 SELU network:

- "separate": the layer keeps A and B apart (the identity; a network trained on A + B c);
- "merged": the layer sees A and B only as .8 A + .6 B, so that E = .75 whatever the probe;
- "product": a network trained on A·B, whose right answer nobody knows: shown, not scored.

Public names: `predicted_leak`, `study`, `Study`, `ENTANGLED`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import probes
from lib.backprop.distances import L2Sq
from lib.backprop.maximisation import maximise_to
from lib.backprop.objective import Objective
from lib.backprop.stacked import StackedPrefix, StackedProbe
from lib.training import Recipe, fetch_stack

N_FEATURES, A, B, C = 6, 0, 1, 2
MERGED = (0.8, 0.6)
ENTANGLED = 0.1  # a leak above this counts as entanglement
WORLDS = {"separate": False, "merged": True, "product": None}  # name -> whether it is entangled
SPEC: dict[str, object] = {"widths": (N_FEATURES, 40, 20, 1), "activation": "selu"}


def predicted_leak(rho: Tensor | float, alpha: float) -> Tensor:
    """E of a ridge probe on an injective linear layer: `alpha rho / (1 + alpha - rho^2)`.

    Args:
        rho: correlation of A and B.
        alpha: ridge penalty per example, in units of the features' variance.

    Source: specification 7.3: the ridge weights are proportional to (1 + alpha - rho^2, alpha rho).
    """
    rho = torch.as_tensor(rho, dtype=torch.float64)
    return alpha * rho / (1 + alpha - rho**2)


@dataclass(frozen=True)
class Study:
    """Leaks of M layers, before and after the probe is refitted on independent features."""

    world: list[str]  # [M]
    kind: list[str]  # [M], "linear" or "network"
    rho: Tensor  # [M]
    observed: Tensor  # [M], E with the probe of the correlated rows
    intervened: Tensor  # [M], E with the probe of the independent rows
    low: Tensor  # [M], lower end of the 95% bootstrap interval of `intervened` over rows
    systematic: Tensor  # [M], |mean delta_B| / |mean delta_A| of the same: signs may cancel

    @property
    def truth(self) -> Tensor:
        """1 entangled, 0 not, -1 unknown, `[M]`."""
        known = {True: 1, False: 0, None: -1}
        return torch.tensor([known[WORLDS[name]] for name in self.world])

    def accuracy(self, leak: Tensor) -> tuple[float, float]:
        """Share of layers of known truth that `leak > .1` classes correctly, and its error."""
        known = self.truth >= 0
        right = ((leak[known] > ENTANGLED) == (self.truth[known] == 1)).double()
        share = right.mean().item()
        return share, math.sqrt(share * (1 - share) / len(right))


class _Stack(nn.Module):
    """M layers as one: identity or network, on inputs whose A and B are merged or not."""

    def __init__(self, merge: Tensor, network: StackedPrefix | None) -> None:
        super().__init__()
        self.register_buffer("merge", merge)  # [M, 6, 6]
        self.network = network
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        stacked = x.unflatten(0, (len(self.get_buffer("merge")), -1))
        seen = torch.einsum("mnd,mde->mne", stacked, self.get_buffer("merge")).flatten(0, 1)
        return seen if self.network is None else self.network(seen)


def draw(rho: Tensor, n: int, *, generator: torch.Generator) -> Tensor:
    """Inputs of M layers, `[M, n, 6]`, whose A and B correlate by `rho`, `[M]`."""
    x = torch.randn(n, N_FEATURES, generator=generator).expand(len(rho), -1, -1).clone()
    rho = rho[:, None].to(x.dtype)
    x[..., B] = rho * x[..., A] + (1 - rho**2).sqrt() * x[..., B]
    return x


def study(
    rhos: Sequence[float],
    *,
    alpha: float,
    n_seeds: int,
    n: int,
    n_rows: int,
    epochs: int,
    seed: int,
) -> Study:
    """Measure the leak in every world, with linear layers and with trained networks.

    Args:
        rhos: correlations of A and B.
        alpha: ridge penalty of the probes, per example.
        n_seeds: networks (and samples) per world and correlation.
        n: rows that fit each network and each probe.
        n_rows: rows that are explained; each is to raise the probe by 1, in L2 distance (L1 would
            pick one coordinate and hide the leak).
        epochs: of each network.
        seed: of the first network and sample.
    """
    parts = [
        _measure("linear", rhos, alpha, seed + 1000 * k, 1, n, n_rows, epochs)
        for k in range(n_seeds)
    ]
    parts.append(_measure("network", rhos, alpha, seed, n_seeds, n, n_rows, epochs))
    return Study(
        world=[name for p in parts for name in p.world],
        kind=[name for p in parts for name in p.kind],
        rho=torch.cat([p.rho for p in parts]),
        observed=torch.cat([p.observed for p in parts]),
        intervened=torch.cat([p.intervened for p in parts]),
        low=torch.cat([p.low for p in parts]),
        systematic=torch.cat([p.systematic for p in parts]),
    )


def _measure(
    kind: str,
    rhos: Sequence[float],
    alpha: float,
    seed: int,
    n_seeds: int,
    n: int,
    n_rows: int,
    epochs: int,
) -> Study:
    names = ["separate", "merged"] + ["product"] * (kind == "network")
    members = [(w, r, seed + k) for w in names for r in rhos for k in range(n_seeds)]
    world = [w for w, _, _ in members]
    rho = torch.tensor([r for _, r, _ in members])
    generator = torch.Generator().manual_seed(seed)
    x = draw(rho, n, generator=generator)
    merge = torch.stack([_merge(w) for w in world])
    layer = _Stack(merge, _networks(world, x, merge, members, epochs) if kind != "linear" else None)
    independent = draw(torch.zeros_like(rho), n, generator=generator)
    rows = draw(rho, n_rows, generator=generator)
    leaks = []
    for fit_rows in (x, independent):
        with torch.no_grad():
            z = layer(fit_rows.flatten(0, 1)).unflatten(0, (len(members), -1))
        # concept values are standard normal: never 0 and 1 alone, so they are read as targets
        probe = probes.fit_ridge(z, fit_rows[..., A], l2=alpha * n)
        leaks.append(_leaks(layer, StackedProbe(probe.weight, probe.bias), rows))
    return Study(
        world=world,
        kind=[kind] * len(world),
        rho=rho,
        observed=_leak(leaks[0].abs()),
        intervened=_leak(leaks[1].abs()),
        low=_lower_end(leaks[1].abs(), generator),
        systematic=_leak(leaks[1]),
    )


def _merge(world: str) -> Tensor:
    matrix = torch.eye(N_FEATURES)
    if world == "merged":
        u = torch.tensor(MERGED)
        matrix[:2, :2] = torch.outer(u, u)
    return matrix


def _networks(
    world: list[str],
    x: Tensor,
    merge: Tensor,
    members: list[tuple[str, float, int]],
    epochs: int,
) -> StackedPrefix:
    """Train all networks of the study in one stack, each on rows of its own."""
    seen = torch.einsum("mnd,mde->mne", x, merge)
    target = {
        "separate": seen[..., A] + seen[..., B] * seen[..., C],
        "merged": seen[..., A] + 0.5 * seen[..., C],
        "product": seen[..., A] * seen[..., B],
    }
    y = torch.stack([target[w][k] for k, w in enumerate(world)])
    n = x.shape[1]
    subsets = torch.arange(len(world) * n).view(len(world), n)
    recipe = Recipe(
        epochs=epochs, batch_size=64, lr=3e-3, optimizer="adam", schedule="linear", loss="mse"
    )
    state = fetch_stack(
        "mlp",
        SPEC,
        seen.flatten(0, 1),
        y.flatten(),
        recipe,
        seeds=[seed for _, _, seed in members],
        subsets=subsets,
    )
    return StackedPrefix("mlp", SPEC, state, "hidden2")


def _leaks(layer: _Stack, probe: StackedProbe, rows: Tensor) -> Tensor:
    """delta_A and delta_B of every explained row, `[2, M, n_rows]`."""
    s = rows.flatten(0, 1)
    with torch.no_grad():
        target = probe(layer(s)) + 1.0
    found = maximise_to(Objective(layer, probe, [(1.0, L2Sq())]), s, target, max_steps=50)
    delta = found.delta.unflatten(0, rows.shape[:2])
    return torch.stack([delta[..., A], delta[..., B]])


def _leak(leaks: Tensor) -> Tensor:
    total = leaks.double().sum(-1).abs()
    return total[1] / total[0]


def _lower_end(leaks: Tensor, generator: torch.Generator, n_draws: int = 500) -> Tensor:
    """2.5% quantile of E over resamples of the explained rows, `[M]`."""
    n = leaks.shape[-1]
    draws = torch.randint(n, (n_draws, n), generator=generator)
    totals = leaks.double()[..., draws].sum(-1)  # [2, M, draws]
    return (totals[1] / totals[0]).quantile(0.025, dim=-1)
