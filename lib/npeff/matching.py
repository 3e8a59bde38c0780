"""Whether two decompositions of the same examples found the same components.

Components are compared by their coefficients: the cosine of two columns of W over the examples.
Scale does not matter, and runs may differ in K, in r or in kind.

Public names: `cosines`, `max_cosine`, `shuffled_max_cosine`, `assign`, `convergence`.

Source: document 3, section 3.3 (sparsity, number of components, steps) and 3.4 (clusters);
specification section 7.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines of the columns of two sets of coefficients.

    Args:
        a: `[n, r_a]`; b: `[n, r_b]`, of the same examples. Clusters are columns of zeros and ones.

    Returns:
        `[r_a, r_b]`, float64; 0 for a column of zeros (a dead component).

    Raises:
        ValueError: other numbers of examples, or values that are not finite.
    """
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b):
        raise ValueError(
            f"want coefficients [n, r] of the same examples, got {tuple(a.shape)} and "
            f"{tuple(b.shape)}"
        )
    if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
        raise ValueError("want finite coefficients")
    return _unit(a).T @ _unit(b)


def max_cosine(a: Tensor, b: Tensor) -> float:
    """Mean over a's columns of the largest cosine with one of b's: max-cos(A -> B).

    Not symmetric: report both directions.
    """
    return float(cosines(a, b).amax(1).mean())


def shuffled_max_cosine(a: Tensor, b: Tensor, *, seed: int, draws: int = 20) -> Tensor:
    """What `max_cosine` gives when b's examples are shuffled: float64 `[draws]`.

    Source: ours. Coefficients are not negative, so that cosines of unrelated columns are not 0.
    """
    cosines(a, b)  # refuses what it refuses
    generator = torch.Generator().manual_seed(seed)
    left, right = _unit(a), _unit(b)
    found = []
    for _ in range(draws):
        order = torch.randperm(len(b), generator=generator).to(b.device)
        found.append((left.T @ right[order]).amax(1).mean())
    return torch.stack(found)


def assign(larger: Tensor, smaller: Tensor) -> Tensor:
    """For each component of the larger run the nearest one of the smaller: int64 `[r_larger]`.

    The paper asks whether each of the smaller run's components receives at least one.
    """
    if larger.shape[1] < smaller.shape[1]:
        raise ValueError(
            f"want the larger run first, got {larger.shape[1]} and {smaller.shape[1]} components"
        )
    return cosines(larger, smaller).argmax(1)


def convergence(snapshots: Tensor) -> Tensor:
    """Cosine of each component's coefficients with the final ones, float64 `[t, r]`.

    Args:
        snapshots: W on the way `[t, n, r]`, the last one final.
    """
    if snapshots.ndim != 3 or not len(snapshots):
        raise ValueError(f"want snapshots [t, n, r], got {tuple(snapshots.shape)}")
    final = _unit(snapshots[-1])
    return torch.stack([(_unit(w) * final).sum(0) for w in snapshots])


def _unit(w: Tensor) -> Tensor:
    return torch.nn.functional.normalize(w.double(), dim=0)
