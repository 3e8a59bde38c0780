"""Sparse probes: order the channels by a rule, refit on the first k, keep the rest at zero.

Document 1, accuracy against the number of channels read. Its own selection rule is not known to
us, so four are offered, and ``mean_difference`` is the default. Rank on the probe's fit rows only:
choosing channels on test rows inflates every small k.

The chosen sets mean something within one network only. Across seeds, channel 5 of one network has
nothing to do with channel 5 of another, so overlaps of sets are taken between resamples of the
probe data for the same network (``selection_stability``); across seeds compare concept scores on
the same inputs instead (``evaluate.score_agreement``).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import comb

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import lars_path
from torch import Tensor

from lib.probes.inputs import FitData, check_fit_data, standardise
from lib.probes.linear import Probe, fit_logistic
from lib.probes.newton import pull

# Ten bins of equal count leave 40 rows a bin at the documents' smallest size, 400.
_BINS = 10


@dataclass(frozen=True)
class Stability:
    """How much the chosen channels depend on which probe examples were drawn."""

    jaccard: Tensor  # [...] mean over pairs of resamples, in [0, 1]
    chance: float  # its expectation for two random sets of k of the d channels
    frequency: Tensor  # [..., d] share of the resamples that chose each channel


def rank_channels(z: Tensor, y: Tensor, rule: str = "mean_difference") -> Tensor:
    """Order channels from most to least telling of a concept.

    Args:
        z: activations of the probe's fit rows, ``[n, d]`` or ``[m, n, d]``.
        y: labels in {0, 1}, ``[n]`` or ``[m, n]``.
        rule: ``mean_difference`` (difference of the class means over the channel's standard
            deviation), ``l1_path`` (entry into the lasso path of the label coded -1 and +1),
            ``dense_weight`` (size of the dense logistic probe's weight on the standardised
            channel, C = 1) or ``mutual_information`` (plug-in estimate in nats over ten bins of
            equal count; equal values share a bin; its upward bias is the same for channels with
            equally many bins).

    Returns:
        Channel indices, ``[d]`` or ``[m, d]``; ties go to the lower index.

    Raises:
        ValueError: the data are refused (see ``inputs.check_fit_data``) or the rule is unknown.

    Source: document 1, sparse probes.
    """
    if rule not in _RULES:
        raise ValueError(f"unknown rule {rule!r}; choose from {', '.join(_RULES)}")
    data = check_fit_data(z, y)
    # One strength [m, d] a rule, larger is better; stable, so that reruns agree on ties.
    order = _RULES[rule](data).argsort(dim=-1, descending=True, stable=True)
    return order if data.batched else order[0]


def fit_sparse(
    z: Tensor, y: Tensor, order: Tensor, k: int | Sequence[int], *, C: float = 1.0
) -> Probe:
    """Refit logistic probes on the first ``k`` channels of ``order``, zero elsewhere.

    Args:
        z: activations, ``[n, d]`` or ``[m, n, d]``.
        y: labels in {0, 1}, ``[n]`` or ``[m, n]``.
        order: channel indices as ``rank_channels`` gives them, ``[d]`` or ``[m, d]``.
        k: number of channels read; a sequence of ``p`` sizes adds a leading axis ``p``.
        C: inverse penalty of the refit.

    Returns:
        Probes over all ``d`` channels; at ``k = d`` the dense probe.

    Raises:
        ValueError: the data are refused, ``k`` is outside 1..d, or ``order`` is not a permutation
            of the channels.

    Source: document 1, accuracy against sparsity.
    """
    data = check_fit_data(z, y)
    d = z.shape[-1]
    sizes = list(k) if isinstance(k, Sequence) else [k]
    if not sizes or not all(1 <= size <= d for size in sizes):
        raise ValueError(f"want k from 1 to {d}, the number of channels, got {k}")
    models = data.y.shape[0]
    channels = torch.arange(d, device=order.device)
    fits = order.shape in ((d,), (models, d)) and not order.is_floating_point()
    if not fits or not (order.sort(dim=-1).values == channels).all():
        raise ValueError(
            f"want order {(d,)} or {(models, d)}, each row a permutation of the channels, got "
            f"{tuple(order.shape)}; take it from rank_channels on the same layer"
        )
    batched = data.batched or order.ndim == 2
    order = order.to(z.device).expand(models, d)
    weights, biases, done, steps = [], [], [], 0
    for size in sizes:
        chosen = order[:, :size]
        index = chosen[:, None].expand(-1, z.shape[-2], -1)
        part = torch.gather(data.z.expand(models, -1, -1), 2, index)
        probe = fit_logistic(part, data.y, C=C)
        weights.append(torch.zeros_like(data.z[:1, 0]).repeat(models, 1))
        weights[-1].scatter_(1, chosen, probe.weight)
        biases.append(probe.bias)
        done.append(probe.converged)
        steps = max(steps, probe.steps)

    def shape(parts: list[Tensor]) -> Tensor:
        stacked = torch.stack(parts)
        stacked = stacked if batched else stacked[:, 0]
        return stacked if isinstance(k, Sequence) else stacked[0]

    return Probe(shape(weights).to(data.dtype), shape(biases).to(data.dtype), steps, shape(done))


def selection_stability(
    z: Tensor,
    y: Tensor,
    k: int,
    *,
    generator: torch.Generator,
    rule: str = "mean_difference",
    n_draws: int = 20,
) -> Stability:
    """Resample the probe examples and see whether the same channels are chosen again.

    Args:
        z: activations, ``[n, d]`` or ``[m, n, d]``; each network is compared with itself.
        y: labels in {0, 1}, ``[n]``; rows are drawn within each class, so that none vanishes.
        k: number of channels chosen.
        generator: source of the resamples; all networks share them.
        rule: as in ``rank_channels``.
        n_draws: number of resamples, at least 2.

    Returns:
        Mean Jaccard overlap of the chosen sets and its value by chance. The share of one set that
        lies in another is ``k / d`` by chance; Jaccard, which divides by the union, is lower.

    Raises:
        ValueError: the data are refused, ``k`` is outside 1..d, ``n_draws`` is below 2, or ``y``
            is not ``[n]``.
    """
    check_fit_data(z, y)
    d = z.shape[-1]
    if y.ndim != 1 or not 1 <= k <= d or n_draws < 2:
        raise ValueError(
            f"want y [n], k from 1 to {d} and at least 2 draws, "
            f"got y {tuple(y.shape)}, k {k}, {n_draws} draws"
        )
    classes = [(y == label).nonzero()[:, 0] for label in (0, 1)]
    chosen = []
    for _ in range(n_draws):
        drawn = [
            rows[torch.randint(len(rows), (len(rows),), generator=generator).to(rows.device)]
            for rows in classes
        ]
        rows = torch.cat(drawn)
        order = rank_channels(z[..., rows.to(z.device), :], y[rows], rule)
        mask = torch.zeros(order.shape, dtype=torch.float64, device=z.device)
        chosen.append(mask.scatter_(-1, order[..., :k], 1.0))
    sets = torch.stack(chosen, dim=-2)  # [..., draws, d]
    shared = sets @ sets.mT
    overlap = shared / (2 * k - shared)
    pairs = n_draws * (n_draws - 1)
    jaccard = (overlap.sum((-2, -1)) - n_draws) / pairs  # a draw overlaps itself by 1
    return Stability(jaccard, chance_jaccard(k, d), sets.mean(-2))


def chance_jaccard(k: int, d: int) -> float:
    """Expected Jaccard overlap of two random sets of ``k`` of ``d`` channels, exact.

    The number of shared channels is hypergeometric.
    """
    if not 1 <= k <= d:
        raise ValueError(f"want k from 1 to {d}, the number of channels, got {k}")
    ways = comb(d, k)
    shares = range(max(0, 2 * k - d), k + 1)
    return sum(h / (2 * k - h) * (comb(k, h) * comb(d - k, k - h) / ways) for h in shares)


def _mean_difference(data: FitData) -> Tensor:
    x, _, _ = standardise(data.z)
    positive = data.y / data.y.sum(-1, keepdim=True)
    negative = (1 - data.y) / (1 - data.y).sum(-1, keepdim=True)
    return pull(x, positive - negative).abs()


def _dense_weight(data: FitData) -> Tensor:
    x, _, _ = standardise(data.z)
    probe = fit_logistic(x if len(x) > 1 else x[0], data.y)
    return probe.weight.abs()


def _l1_path(data: FitData) -> Tensor:
    """Strength = how early a channel enters; those that never do follow by mean difference."""
    x, _, _ = standardise(data.z)
    target = 2 * data.y - 1
    target = target - target.mean(-1, keepdim=True)
    fallback = _mean_difference(data)
    fallback = fallback / fallback.amax(-1, keepdim=True).clamp_min(1e-300)  # in [0, 1]
    strengths = []
    for i in range(len(target)):
        with warnings.catch_warnings():
            # lars stops early on collinear channels; the fallback orders what it left out.
            warnings.simplefilter("ignore", ConvergenceWarning)
            _, _, path = lars_path(
                x[min(i, len(x) - 1)].cpu().numpy(),
                target[i].cpu().numpy(),
                method="lasso",
                max_iter=8 * x.shape[-1],
            )
        coefficients = torch.from_numpy(path).to(x.device)  # [d, knots]
        knots = coefficients.shape[1]
        present = coefficients != 0
        entry = present.to(torch.int8).argmax(1)
        strengths.append(torch.where(present.any(1), 1.0 + knots - entry, fallback[i]))
    return torch.stack(strengths)


def _mutual_information(data: FitData) -> Tensor:
    z, y = data.z, data.y
    n, d = z.shape[-2:]
    columns = z.mT.contiguous()  # [b, d, n]
    cuts = torch.arange(1, _BINS, device=z.device) * n // _BINS
    edges = columns.sort(dim=-1).values[..., cuts].contiguous()
    bins = torch.searchsorted(edges, columns, right=True)  # equal values share a bin
    joint = torch.zeros(len(y), d, 2 * _BINS, dtype=torch.float64, device=z.device)
    cell = 2 * bins + y.long()[:, None]  # [m, d, n]
    joint.scatter_add_(2, cell, torch.ones((), dtype=torch.float64).to(z).expand_as(cell))
    joint = (joint / n).unflatten(2, (_BINS, 2))
    independent = joint.sum(3, keepdim=True) * joint.sum(2, keepdim=True)
    return torch.xlogy(joint, joint / independent.clamp_min(1e-300)).sum((2, 3))


_RULES: dict[str, Callable[[FitData], Tensor]] = {
    "mean_difference": _mean_difference,
    "l1_path": _l1_path,
    "dense_weight": _dense_weight,
    "mutual_information": _mutual_information,
}
