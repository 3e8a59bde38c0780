"""Controls: what a probe scores when there is nothing, or nothing learned, to find.

Document 1 (shuffled labels, random network, raw input) and document 5 (those, and a control
task). Two controls need no code here, only other activations of the same examples, fitted and
scored with the same calls and the same budget: those of the network with random weights
(``models.build`` without training), and the raw input, flattened.
"""

from __future__ import annotations

from collections import Counter
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
    """Label every input group at random, for good: only memory of the groups can solve the task.

    Groups are put in the order of a hash of their id and the seed, and those that hold the first
    half of the rows are labelled 1. Independent coins would do for many groups; for few they come
    out uneven, and a probe that reads nothing would then score above 0 on the control.

    Args:
        groups: id of each example's group, ``[n]``: integers, or anything with a stable ``str``.
            Give all examples in one call and split afterwards: where the half falls depends on
            them. The same on every machine, and whatever the order of the rows.
        seed: selects the labelling.

    Returns:
        Labels in {0, 1}, ``[n]``, int64, balanced up to the size of one group.

    Raises:
        ValueError: one group holds so many rows that a single class would be left.

    Source: document 5, the control task; the balance is ours.
    """
    ids = groups.tolist() if isinstance(groups, Tensor) else list(groups)
    sizes = Counter(str(g) for g in ids)
    ordered = sorted(sizes, key=lambda g: blake2b(f"{seed}:{g}".encode()).digest())
    label, before = {}, 0
    for g in ordered:  # a group goes to the half in which its middle row falls
        label[g] = int(before + sizes[g] / 2 <= len(ids) / 2)
        before += sizes[g]
    if len(set(label.values())) < 2:
        raise ValueError(
            f"{len(sizes)} groups of {len(ids)} rows cannot be labelled evenly; give smaller groups"
        )
    return torch.tensor([label[str(g)] for g in ids], dtype=torch.int64)


def selectivity(score: Tensor | float, control_score: Tensor | float) -> Tensor | float:
    """Score on the concept minus score on the control task, both ``S = 2 accuracy - 1``.

    Near 0: the probe could have learned anything. Source: document 5, the control task.
    """
    return score - control_score
