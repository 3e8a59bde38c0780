"""Controls: what a probe scores when there is nothing, or nothing learned, to find.

Document 1 (shuffled labels, random network, raw input) and document 5 (those, and a control
task). Two controls need no code here, only other activations of the same examples, fitted and
scored with the same calls and the same budget: those of the network with random weights
(``models.build`` without training), and the raw input, flattened.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor


def shuffled_labels(y: Tensor, n_draws: int, *, generator: torch.Generator) -> Tensor:
    """Permute labels over examples: any score above chance is then a leak.

    Args:
        y: labels, ``[n]``.
        n_draws: number of permutations.
        generator: source of the permutations.

    Returns:
        ``[n_draws, n]``, each row a permutation of ``y``; fit them all in one call.

    Raises:
        ValueError: ``y`` is not ``[n]``, or ``n_draws`` is below 1.
    """
    if y.ndim != 1 or n_draws < 1:
        raise ValueError(f"want y [n] and n_draws >= 1, got {tuple(y.shape)} and {n_draws}")
    keys = torch.rand(n_draws, len(y), generator=generator, device=generator.device)
    return y[keys.argsort(dim=-1).to(y.device)]


def control_task(groups: Tensor | Sequence[object], *, seed: int) -> Tensor:
    """Label every input group by a fixed coin: only memory of the groups can solve the task.

    The coin is a hash of the group's id and the seed alone. A group therefore has one label on
    every machine and in every call, so fit rows and test rows may be labelled apart.

    Args:
        groups: id of each example's group, ``[n]``: integers, or anything with a stable ``str``.
        seed: selects the set of coins.

    Returns:
        Labels in {0, 1}, ``[n]``, int64. For few groups the coins come out uneven, and a probe
        that reads nothing then scores above 0: choose seeds whose labels are near even
        (``even_seed``). If all coins agree, a fit refuses them.

    Source: document 5, the control task.
    """
    ids = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    coins = {g: blake2b(f"{seed}:{g}".encode(), digest_size=1).digest()[0] & 1 for g in set(ids)}
    return torch.tensor([coins[g] for g in ids], dtype=torch.int64)


def even_seed(groups: Tensor | Sequence[object], *, n_seeds: int = 100) -> int:
    """The first of the seeds 0..n_seeds-1 whose control task is closest to even on these rows.

    It looks at the labels alone, never at activations, so the control stays fair.
    """
    shares = [control_task(groups, seed=seed).double().mean().item() for seed in range(n_seeds)]
    return min(range(n_seeds), key=lambda seed: abs(shares[seed] - 0.5))


def selectivity(score: Tensor | float, control_score: Tensor | float) -> Tensor | float:
    """Score on the concept minus score on the control task, both ``S = 2 accuracy - 1``.

    Near 0: the probe could have learned anything. Source: document 5, the control task.
    """
    return score - control_score
