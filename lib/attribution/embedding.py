"""Attributions as vectors: clusters of targets, principal components, differences of algorithms.

Document 4, applications of datamodels; specification section 3.4. The row of a target, one weight
for each training example, is a place in a space in which targets are near that learn from the same
examples. Comparing two learning algorithms (ModelDiff): normalise both rows of every target, take
from the first what points along the second, and look at the principal direction of what is left.

Public names: `cosines`, `spectral_clusters`, `rand_index`, `chance_rand`, `components`,
`Components`, `residuals`, `contrast`, `Contrast`, `share_along`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.attribution.metrics import refuse_nan

ROUND_OFF = 1e-6  # a residual of unit rows that is shorter is none
FLOOR = 1e-3  # smallest similarity: a graph in pieces has no useful second eigenvector


@dataclass(frozen=True)
class Components:
    """Principal components of rows `[T, n]`."""

    directions: Tensor  # [n, k], unit columns; the largest entry of each is positive
    places: Tensor  # of the rows, [T, k]
    shares: Tensor  # of the variance, [k]


@dataclass(frozen=True)
class Contrast:
    """What sets algorithm one apart from algorithm two, judged on networks of its own."""

    directions: Tensor  # [n, k], of the residuals
    first: Tensor  # share of the variance of algorithm one along each, [k]
    second: Tensor  # of algorithm two, [k]
    per_target: Tensor  # squared places of both algorithms along the first direction, [2, T]
    totals: Tensor  # squared lengths of the rows of both, their mean taken off, [2, T]

    @property
    def ratio(self) -> float:
        """Share of variance of the first direction, algorithm one over algorithm two."""
        return (self.first[0] / self.second[0]).item()


def cosines(rows: Tensor) -> Tensor:
    """Cosine similarities `[T, T]` of rows `[T, n]`; 0 for a row of zeros."""
    _checked(rows, "rows")
    unit = F.normalize(rows.double(), dim=1)
    return unit @ unit.T


def spectral_clusters(similarity: Tensor, n_clusters: int = 2) -> Tensor:
    """Clusters `[T]` of a symmetric matrix of similarities `[T, T]`, by its graph Laplacian.

    Negative similarities count as (nearly) none. No random start: the clusters are read off the
    eigenvectors by a pivoted QR decomposition.
    """
    from sklearn.cluster import SpectralClustering

    size = len(similarity)
    if similarity.shape != (size, size) or not 2 <= n_clusters < size:
        raise ValueError(
            f"want similarities [T, T] of more than {n_clusters} targets and at least 2 clusters, "
            f"got {list(similarity.shape)} and {n_clusters}"
        )
    refuse_nan(similarity, "similarity", "target")
    graph = similarity.double().clamp(min=FLOOR)
    graph = (graph + graph.T) / 2
    fit = SpectralClustering(
        n_clusters, affinity="precomputed", assign_labels="cluster_qr", random_state=0
    )
    return torch.from_numpy(fit.fit_predict(graph.numpy())).long()


def rand_index(a: Tensor, b: Tensor) -> Tensor:
    """Adjusted Rand index `[...]` of labellings `[..., T]`: 1 the same, 0 as chance.

    Of the pairs of targets that either labelling puts together, how many both do, chance taken
    off; 1 where both are trivial.
    """
    if a.shape != b.shape or not a.numel() or a.min() < 0 or b.min() < 0:
        raise ValueError(
            f"want two labellings [..., T] from 0, got {list(a.shape)} and {list(b.shape)}"
        )
    x, y = (F.one_hot(labels).double() for labels in (a, b))
    table = x.mT @ y

    def pairs(counts: Tensor) -> Tensor:
        return counts * (counts - 1) / 2

    both = pairs(table).sum((-2, -1))
    first, second = pairs(x.sum(-2)).sum(-1), pairs(y.sum(-2)).sum(-1)
    expected = first * second / pairs(x.sum((-2, -1)))
    room = (first + second) / 2 - expected
    return torch.where(room == 0, 1.0, (both - expected) / room)


def chance_rand(clusters: Tensor, labels: Tensor, *, n_draws: int = 1000, seed: int = 0) -> float:
    """The 95th percentile of the index when clusters of these sizes are dealt out at random."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(n_draws, len(clusters), generator=generator).argsort(1)
    drawn = rand_index(clusters[order], labels.expand(n_draws, -1))
    return drawn.quantile(0.95).item()


def components(rows: Tensor, k: int = 3) -> Components:
    """The first k principal components of rows `[T, n]`, their mean taken off."""
    _checked(rows, "rows")
    if not 1 <= k <= min(rows.shape):
        raise ValueError(f"want 1 to {min(rows.shape)} components, got {k}")
    centred = rows.double() - rows.double().mean(0)
    left, values, right = torch.linalg.svd(centred, full_matrices=False)
    largest = right.abs().argmax(1, keepdim=True)
    sign = right.gather(1, largest).sign()[:, 0]
    power = values.square()
    return Components(
        (right * sign[:, None])[:k].T,
        (left * values * sign)[:, :k],
        power[:k] / power.sum(),
    )


def residuals(first: Tensor, second: Tensor) -> Tensor:
    """`u - <u, v> v` for the unit rows u, v of two attributions of the same targets, `[T, n]`.

    Raises:
        ValueError: shapes that disagree, or a row of zeros, which has no direction.

    Source: specification section 3.4, comparing learning algorithms.
    """
    if first.shape != second.shape:
        raise ValueError(
            f"want rows of the same targets and training set, got {list(first.shape)} and "
            f"{list(second.shape)}"
        )
    u, v = _unit(first, "the first algorithm"), _unit(second, "the second algorithm")
    return u - (u * v).sum(1, keepdim=True) * v


def contrast(
    fitted: tuple[Tensor, Tensor], judged: Sequence[tuple[Tensor, Tensor]] | None = None, k: int = 5
) -> Contrast:
    """Principal directions of the residuals, and how much of each algorithm lies along them.

    Args:
        fitted: rows `[T, n]` of algorithms one and two, which give the directions.
        judged: such pairs from other networks, which give the shares (their mean is taken); with
            None, the rows that were fitted: the noise of their networks then counts for algorithm
            one, since directions were chosen along it.
        k: number of directions.
    """
    left = residuals(*fitted)
    if (left.norm(dim=1) < ROUND_OFF).all():
        raise ValueError(
            "both algorithms have the same rows for every target, so nothing sets them apart; give "
            "rows of separate networks"
        )
    directions = components(left, k).directions
    pairs = [fitted] if judged is None else list(judged)
    if not pairs:
        raise ValueError("want at least one pair of rows to judge by, got none")
    along, squares, totals = [], [], []
    for pair in pairs:
        rows = [_unit(part, "a judging algorithm") for part in pair]
        rows = [part - part.mean(0) for part in rows]
        along.append(torch.stack([share_along(part, directions) for part in rows]))
        squares.append(torch.stack([(part @ directions[:, 0]).square() for part in rows]))
        totals.append(torch.stack([part.square().sum(1) for part in rows]))
    first, second = torch.stack(along).mean(0)
    return Contrast(
        directions, first, second, torch.stack(squares).mean(0), torch.stack(totals).mean(0)
    )


def share_along(rows: Tensor, directions: Tensor) -> Tensor:
    """Share `[k]` of the variance of rows `[T, n]` along unit directions `[n, k]`."""
    centred = rows.double() - rows.double().mean(0)
    return (centred @ directions).square().sum(0) / centred.square().sum()


def _unit(rows: Tensor, what: str) -> Tensor:
    _checked(rows, what)
    norms = rows.double().norm(dim=1)
    if (norms == 0).any():
        raise ValueError(
            f"target {int((norms == 0).nonzero()[0])} has no weights in {what}, so no direction; "
            "use a ridge datamodel or leave it out"
        )
    return rows.double() / norms[:, None]


def _checked(rows: Tensor, what: str) -> None:
    if rows.ndim != 2 or not rows.numel():
        raise ValueError(f"want {what} as [T, n], got {list(rows.shape)}")
    refuse_nan(rows, what, "target")
