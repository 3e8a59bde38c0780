"""Which guarantees a feature attribution keeps: the four axioms of Shapley values, and stability.

Document 4, recap: formal guarantees for feature attribution methods. The axioms, for attributions
phi of f at x against a baseline x0:

* completeness: the phi sum to f(x) - f(x0);
* dummy: a feature that f ignores gets 0;
* symmetry: features that f treats alike and that have equal values get equal shares;
* linearity: phi of f - g is phi of f minus phi of g.

They are tried on random ReLU networks of 8 features (`PlantedNetwork`) into which a dummy and a
symmetric pair are built, where exact Shapley values are cheap. Grad-CAM needs images and is left
out. Every violation is relative to the size of the attributions, 0 where an axiom is kept.

Public names: `axioms`, `Guarantees`, `AXIOMS`, `EXACT`, `PlantedNetwork`, `N_FEATURES`,
`path_error`, `completeness_gap`, `sensitivity`, `FINE`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import models
from lib.attribution.coalitions import exact_shapley
from lib.attribution.feature_methods import METHODS, Options, attribute, outputs
from lib.features import Progress

N_FEATURES = 8
PAIR, DUMMY = (5, 6), 7  # places of the symmetric features and of the one that is ignored
HIDDEN = (16, 16)
AXIOMS = ("completeness", "dummy", "symmetry", "linearity")
EXACT = "exact Shapley"
FINE = 1000  # steps of a path whose error does not matter
NOISE = 0.02  # sd of the noise of the stability column, in sds of a feature

Explain = Callable[[nn.Module, Tensor], Tensor]


class PlantedNetwork(nn.Module):
    """A random ReLU network of 8 features: two enter by their sum alone, one not at all."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.body = models.build("mlp", generator, widths=(N_FEATURES - 2, *HIDDEN, 1))
        for module in self.body.modules():
            if isinstance(module, nn.Linear):
                # without biases a ReLU network is linear along rays: any axiom would look kept
                module.bias.data.normal_(0.0, 0.5, generator=generator)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        pair = x[:, PAIR[0]] + x[:, PAIR[1]]
        return self.body(torch.cat([x[:, : PAIR[0]], pair[:, None]], 1))


class Difference(nn.Module):
    """`f - g`."""

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x) - self.g(x)


@dataclass(frozen=True)
class Guarantees:
    """What one method does to the axioms, network by network (`[m]` each)."""

    method: str
    completeness: Tensor
    dummy: Tensor
    symmetry: Tensor
    linearity: Tensor
    distance: Tensor  # from the exact Shapley values
    stability: Tensor  # relative change of the attribution over that of the output

    @property
    def worst(self) -> float:
        """The largest of the four mean violations."""
        return max(getattr(self, name).mean().item() for name in AXIOMS)


def axioms(
    *,
    n_networks: int,
    n_inputs: int,
    options: Options | None = None,
    methods: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Guarantees]:
    """Try every method, and the exact values, on random networks.

    Args:
        n_networks: pairs of networks (linearity needs two).
        n_inputs: rows each, standard normal, the symmetric features equal; the baseline is 0.
        options: of the methods; groups and layer are not read.
        methods: default all of `METHODS` but Grad-CAM.
        progress: wraps the range of networks.

    Returns:
        One entry a method, `EXACT` last.
    """
    given = options or Options()
    names = [*(methods or [name for name in METHODS if name != "Grad-CAM"]), EXACT]
    rows: dict[str, list[Tensor]] = {name: [] for name in names}
    for k in progress(range(n_networks)) if progress else range(n_networks):
        generator = torch.Generator().manual_seed(seed + k)
        f, g = PlantedNetwork(generator), PlantedNetwork(generator)
        x = torch.randn(n_inputs, N_FEATURES, generator=generator, dtype=torch.float64)
        x[:, PAIR[1]] = x[:, PAIR[0]]
        near = x + NOISE * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        exact = exact_shapley(f, x, 0, baseline=0.0)
        for name in names:
            explain = _explainer(name, given, seed + k)
            rows[name].append(_violations(explain, f, g, x, near, exact))
    return [Guarantees(name, *torch.stack(found).unbind(1)) for name, found in rows.items()]


def path_error(n_steps: int, *, n_networks: int, n_inputs: int, seed: int = 0) -> float:
    """Mean completeness gap of integrated gradients with n_steps, on the networks of `axioms`."""
    (found,) = axioms(
        n_networks=n_networks,
        n_inputs=n_inputs,
        options=Options(n_steps=n_steps, chunk=max(64, n_steps)),
        methods=["integrated gradients"],
        seed=seed,
    )[:1]
    return found.completeness.mean().item()


def _explainer(name: str, options: Options, seed: int) -> Explain:
    if name == EXACT:
        return lambda model, x: exact_shapley(model, x, 0, baseline=0.0)
    return lambda model, x: attribute(name, model, x, 0, baseline=0.0, options=options, seed=seed)


def _violations(
    explain: Explain, f: nn.Module, g: nn.Module, x: Tensor, near: Tensor, exact: Tensor
) -> Tensor:
    """The six numbers of `Guarantees` for one network, means over rows before the division."""
    phi, other = explain(f, x), explain(g, x)
    rise = outputs(f, x, 0) - outputs(f, torch.zeros_like(x[:1]), 0)
    top = phi.abs().amax(1).mean()
    both = (phi.norm(dim=1) + other.norm(dim=1)).mean() / 2
    moved = outputs(f, near, 0) - outputs(f, x, 0)
    return torch.stack(
        [
            (phi.sum(1) - rise).abs().mean() / rise.abs().mean(),
            phi[:, DUMMY].abs().mean() / top,
            (phi[:, PAIR[0]] - phi[:, PAIR[1]]).abs().mean() / top,
            (explain(Difference(f, g), x) - (phi - other)).norm(dim=1).mean() / both,
            (phi - exact).norm(dim=1).mean() / exact.norm(dim=1).mean(),
            sensitivity(phi, explain(f, near), moved, rise).median(),
        ]
    )


def completeness_gap(maps: Tensor, rise: Tensor) -> Tensor:
    """`|sum of a map - rise| / |rise|` of each row, `[n]`.

    Args:
        maps: `[n, ...]`, rise: f(x) - f(baseline), `[n]`.
    """
    return (maps.flatten(1).sum(1) - rise).abs() / rise.abs()


def sensitivity(phi: Tensor, moved: Tensor, change: Tensor, rise: Tensor) -> Tensor:
    """How much more an explanation moves than the output, `[n]`; 1: they move alike.

    The relative change of the map (its Euclidean length over that of the map) over the relative
    change of the output (over its rise above the baseline).

    Args:
        phi, moved: maps of the rows and of the rows with a little noise, `[n, ...]`.
        change, rise: of the output, `[n]`.
    """
    map_change = (moved - phi).flatten(1).norm(dim=1) / phi.flatten(1).norm(dim=1)
    return map_change / (change.abs() / rise.abs()).clamp_min(1e-12)
