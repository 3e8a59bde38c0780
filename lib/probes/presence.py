"""Where and how sparsely a concept can be read from a network, with every control.

Document 1, "concept presence at different network layers" and "accuracy against sparsity k":
for each layer of each network a dense probe, and sparse probes of k units, fitted on one set of
concept images and judged on another. Beside them, with the same budget: the same network with
random weights, the raw input, shuffled labels, and a control task.

Public names: `Presence`, `measure`, `dense_rows`, `location_rows`, `rule_comparison`,
`stability`, `agreement`, `agreements`, `location`, `units_needed`, `paired_interval`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib import bootstrap
from lib.probes.controls import control_task, shuffled_labels
from lib.probes.evaluate import accuracy, bootstrap_interval, ece, roc_auc, score_agreement
from lib.probes.linear import fit_logistic
from lib.probes.sparse import fit_sparse, rank_channels, selection_stability
from lib.probes.testbeds import Concept, Testbed

RULES = ("mean_difference", "l1_path", "dense_weight", "mutual_information")


@dataclass(frozen=True)
class Presence:
    """What probes find of one concept; M networks, accuracies on the concept's test rows."""

    concept: Concept
    layers: tuple[str, ...]
    dense: Tensor  # [L, M]
    random_network: Tensor  # [L, M] same seeds, weights never trained
    shuffled: Tensor  # [L, M] probe fitted on permuted labels, mean over permutations
    control_task: Tensor  # [L, M] mean over coins; NaN where no coin splits the groups
    raw_input: float
    sizes: dict[str, tuple[int, ...]]  # layer -> grid of k, up to its number of units
    sparse: dict[str, Tensor]  # layer -> [K, M]
    logits: dict[str, Tensor]  # layer -> [K, M, n_test] of the sparse probes
    random_logits: dict[str, Tensor]  # layer -> [M, n_test] of the random networks' dense probes

    @property
    def best_layer(self) -> int:
        """Index of the layer where the dense probe is most accurate on average."""
        return int(self.dense.mean(1).argmax())

    @property
    def best_control(self) -> float:
        """The most that a probe reaches without anything learned: raw input, random, shuffled."""
        means = (self.random_network.mean(1).max(), self.shuffled.mean(1).max())
        return max(self.raw_input, *(x.item() for x in means))


def measure(
    bed: Testbed, name: str, *, grid: Sequence[int], n_draws: int, generator: torch.Generator
) -> Presence:
    """Fit all probes of one concept.

    Args:
        grid: sizes of the sparse probes; those above a layer's number of units are dropped and
            the number of units itself is added.
        n_draws: permutations, and coins of the control task, to average over in each network.
        generator: of the shuffled labels.
    """
    concept = bed.concepts[name]
    fit, test = bed.read(concept.fit_x, True), bed.read(concept.test_x, True)
    random_fit, random_test = bed.read(concept.fit_x, False), bed.read(concept.test_x, False)
    permuted = [
        shuffled_labels(concept.fit_y, bed.n_models, generator=generator) for _ in range(n_draws)
    ]
    sizes, sparse, logits, random_logits = {}, {}, {}, {}
    dense, control, random_network, shuffled = [], [], [], []
    for layer in bed.layers:
        z, z_test, y_test = fit[layer], test[layer], concept.test_y
        d = z.shape[-1]
        sizes[layer] = (*(k for k in sorted(grid) if k < d), d)
        order = rank_channels(z, concept.fit_y)
        probe = fit_sparse(z, concept.fit_y, order, sizes[layer])
        logits[layer] = probe.score(z_test)
        sparse[layer] = accuracy(logits[layer], y_test)
        dense.append(sparse[layer][-1])
        draws = [accuracy(fit_logistic(z, y).score(z_test), y_test) for y in permuted]
        shuffled.append(torch.stack(draws).mean(0))
        untrained = fit_logistic(random_fit[layer], concept.fit_y)
        random_logits[layer] = untrained.score(random_test[layer])
        random_network.append(accuracy(random_logits[layer], y_test))
        control.append(_control(concept, z, z_test, n_draws))
    raw = fit_logistic(concept.fit_x.flatten(1).float(), concept.fit_y)
    return Presence(
        concept=concept,
        layers=bed.layers,
        dense=torch.stack(dense),
        random_network=torch.stack(random_network),
        shuffled=torch.stack(shuffled),
        control_task=torch.stack(control),
        raw_input=accuracy(raw.score(concept.test_x.flatten(1).float()), concept.test_y).item(),
        sizes=sizes,
        sparse=sparse,
        logits=logits,
        random_logits=random_logits,
    )


def _control(concept: Concept, z: Tensor, z_test: Tensor, n_draws: int) -> Tensor:
    """Accuracy [M] on labels that are a coin per input group, mean over the usable coins."""
    found: list[Tensor] = []
    for seed in range(20 * n_draws):
        fit_y = control_task(concept.fit_group, seed=seed)
        test_y = control_task(concept.test_group, seed=seed)
        share = fit_y.double().mean().item()
        if 0.3 <= share <= 0.7 and len(found) < n_draws:  # as balanced as a concept
            found.append(accuracy(fit_logistic(z, fit_y).score(z_test), test_y))
    if not found:
        return torch.full((len(z),), torch.nan, dtype=torch.float64)
    return torch.stack(found).mean(0)


def dense_rows(
    results: Mapping[str, Presence], *, generator: torch.Generator
) -> list[dict[str, object]]:
    """A table of the dense probes: mean and sd over networks, interval over images, controls."""
    rows: list[dict[str, object]] = []
    for name, r in results.items():
        y = r.concept.test_y
        for i, layer in enumerate(r.layers):
            logits = r.logits[layer][-1]
            low, high = bootstrap_interval(
                ((logits > 0) == (y == 1)).double().mean(0), generator=generator
            )
            rows.append(
                {
                    "concept": name,
                    "layer": layer,
                    "accuracy ± sd": (r.dense[i].mean().item(), r.dense[i].std().item()),
                    "95% over images": f"{low:.3f} to {high:.3f}",
                    "AUC": roc_auc(logits, y).mean().item(),
                    "ECE": ece(logits, y).mean().item(),
                    "random weights": r.random_network[i].mean().item(),
                    "control task": r.control_task[i].mean().item(),
                    "raw input": r.raw_input,
                }
            )
    return rows


def location_rows(
    results: Mapping[str, Presence], *, generator: torch.Generator
) -> list[dict[str, object]]:
    """A table of where a concept is best read, and how many units 95% of the accuracy takes."""
    rows: list[dict[str, object]] = []
    for name, r in results.items():
        share = location(r.dense, generator=generator)
        for i, layer in enumerate(r.layers):
            needed = units_needed(r.sparse[layer], r.sizes[layer]).double()
            rows.append(
                {
                    "concept": name,
                    "layer": layer,
                    "best layer in": f"{share[i]:.0%} of draws",
                    "units for 95% (median)": needed.median().item(),
                    "over networks": f"{needed.min():.0f} to {needed.max():.0f}",
                    "of": r.sizes[layer][-1],
                }
            )
    return rows


def rule_comparison(bed: Testbed, result: Presence, layer: str) -> dict[str, Tensor]:
    """Accuracy `[K, M]` of sparse probes whose units were chosen by each rule."""
    concept = result.concept
    z, z_test = bed.read(concept.fit_x, True)[layer], bed.read(concept.test_x, True)[layer]
    found = {}
    for rule in RULES:
        probe = fit_sparse(
            z, concept.fit_y, rank_channels(z, concept.fit_y, rule), result.sizes[layer]
        )
        found[rule] = accuracy(probe.score(z_test), concept.test_y)
    return found


def stability(
    bed: Testbed, result: Presence, layer: str, *, n_draws: int, seed: int
) -> tuple[Tensor, list[float]]:
    """Overlap of the k units chosen on two resamples of the concept images.

    Returns:
        Mean Jaccard overlap `[K, M]` within each network, and its value by chance for each k.
    """
    concept = result.concept
    z = bed.read(concept.fit_x, True)[layer]
    overlaps, chance = [], []
    for k in result.sizes[layer][:-1]:  # all units always overlap
        generator = torch.Generator().manual_seed(seed)
        found = selection_stability(z, concept.fit_y, k, generator=generator, n_draws=n_draws)
        overlaps.append(found.jaccard)
        chance.append(found.chance)
    return torch.stack(overlaps), chance


def agreement(logits: Tensor, y: Tensor) -> Tensor:
    """Correlation between networks of their probes' logits, the label's part removed.

    Args:
        logits: `[M, n]`, y: labels `[n]`. Each network's class means are subtracted first, or
            two probes that agree on nothing but the label would correlate.

    Returns:
        The M (M - 1) / 2 correlations of pairs.
    """
    centred = logits.double().clone()
    for label in (0, 1):
        rows = y == label
        centred[:, rows] -= centred[:, rows].mean(1, keepdim=True)
    upper = torch.triu_indices(len(logits), len(logits), offset=1)
    return score_agreement(centred)[upper[0], upper[1]]


def agreements(results: Mapping[str, Presence], *, trained: bool) -> dict[str, Tensor]:
    """Concept -> `agreement` of the dense probes at every layer, `[L, pairs]`."""
    found = {}
    for name, r in results.items():
        logits = (r.logits[x][-1] if trained else r.random_logits[x] for x in r.layers)
        found[name] = torch.stack([agreement(x, r.concept.test_y) for x in logits])
    return found


def location(dense: Tensor, *, generator: torch.Generator, n_draws: int = 1000) -> Tensor:
    """How often each layer is the best one, over bootstrap draws of the networks: `[L]`."""
    n_layers, n_models = dense.shape
    draws = torch.randint(n_models, (n_draws, n_models), generator=generator)
    best = dense[:, draws].mean(-1).argmax(0)
    return torch.bincount(best, minlength=n_layers) / n_draws


def units_needed(sparse: Tensor, sizes: Sequence[int], share: float = 0.95) -> Tensor:
    """Smallest k of the grid whose accuracy reaches `share` of the dense probe's, `[M]`."""
    reached = sparse >= share * sparse[-1]
    return torch.tensor(sizes)[reached.int().argmax(0)]


def paired_interval(
    difference: Tensor, *, generator: torch.Generator, n_draws: int = 2000
) -> tuple[float, float, float]:
    """Mean of paired differences `[M]` and its 95% bootstrap interval over networks."""
    low, high = bootstrap.interval(
        lambda rows: difference[rows].mean(1),
        len(difference),
        generator=generator,
        n_draws=n_draws,
    ).tolist()
    return difference.mean().item(), low, high
