"""What components are compared with: groups of examples found in activations.

k-means clusters of activations, as in the paper; a non-negative factorisation of activations, to
tell what the Fishers add from what non-negativity does; and a test whether the top examples of a
group have to do with the prediction of a class (TCAV, `lib.attribution.tcav`).

The test takes the runs of one group for independent, though they share the group's examples.
Random sets of examples that are put through the same test show how often it passes by chance. A
second test takes the group for what it is, one draw among random sets; corrected for hundreds of
tests it finds little with few random sets, and the rank of a group among them says more.

Public names: `cluster`, `Clusters`, `factorise_activations`, `ActivationFactors`,
`concept_tests`, `ConceptTests`, `N_CLUSTERS`.

Source: document 3, section 3.4; specification 7.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.attribution import tcav
from lib.features import Progress
from lib.npeff.divergence import checked_rows

N_CLUSTERS = 128  # the paper's
N_STARTS = 10  # of k-means, this project's; the paper does not say
N_RUNS = 20  # random sets a group, this project's, within the specification's 20 to 50


@dataclass(frozen=True)
class Clusters:
    """k-means clusters of n examples."""

    assigned: Tensor  # int64 [n], the cluster of each example
    distances: Tensor  # float64 [n, k], to every centroid
    centroids: Tensor  # float64 [k, d], means of the members

    @property
    def sizes(self) -> Tensor:
        """Members of each cluster, int64 `[k]`."""
        return torch.bincount(self.assigned, minlength=len(self.centroids))

    def members(self, j: int) -> Tensor:
        """Members of a cluster, the nearest to its centroid first, int64."""
        mine = (self.assigned == j).nonzero()[:, 0]
        return mine[self.distances[mine, j].sort(stable=True).indices]

    def top(self, n_top: int) -> Tensor:
        """For each cluster `n_top` examples, int64 `[k, n_top]`: members, the nearest first.

        A cluster with fewer members goes on with the nearest of the other examples; see `sizes`.
        """
        if not 1 <= n_top <= len(self.assigned):
            raise ValueError(f"want 1 to {len(self.assigned)} top examples, got {n_top}")
        near = self.distances.sort(dim=0, stable=True).indices  # [n, k]
        outside = self.assigned[near] != torch.arange(len(self.centroids))
        order = outside.to(torch.uint8).sort(dim=0, stable=True).indices
        return near.gather(0, order)[:n_top].T.contiguous()


def cluster(
    activations: Tensor, n_clusters: int = N_CLUSTERS, *, seed: int, n_starts: int = N_STARTS
) -> Clusters:
    """k-means of activations, `[n, d]`, by scikit-learn.

    k-means++ starts, the best of `n_starts`; no standardisation.

    Raises:
        ValueError: NaN, or more clusters than distinct examples.

    Source: specification 7; the paper names neither starts nor standardisation.
    """
    from sklearn.cluster import KMeans

    _check_matrix(activations)
    x = activations.detach().double().cpu()
    distinct = len(x.unique(dim=0))
    if not 1 <= n_clusters <= distinct:
        raise ValueError(f"want 1 to {distinct} clusters, as distinct examples, got {n_clusters}")
    found = KMeans(n_clusters, init="k-means++", n_init=n_starts, random_state=seed).fit(x.numpy())
    assigned = torch.from_numpy(found.labels_).long()
    # sums in one order: those of the threads differ in their last bits from run to run
    total = torch.zeros(n_clusters, x.shape[1], dtype=x.dtype).index_add_(0, assigned, x)
    centroids = total / torch.bincount(assigned, minlength=n_clusters)[:, None]
    return Clusters(assigned, torch.cdist(x, centroids), centroids)


@dataclass(frozen=True)
class ActivationFactors:
    """A non-negative factorisation of activations, ``Z ~ coefficients @ components``."""

    coefficients: Tensor  # float64 [n, r]
    components: Tensor  # float64 [r, d], unit length
    explained: float  # 1 - squared error / squared norm
    converged: bool


def factorise_activations(
    activations: Tensor, r: int, *, seed: int, max_iterations: int = 500
) -> ActivationFactors:
    """Non-negative matrix factorisation of activations, `[n, d]` and not negative.

    Coordinate descent of scikit-learn from its start by singular vectors. Components are scaled to
    unit length, coefficients take the scale.

    Raises:
        ValueError: negative activations, NaN, or r above n or d.
    """
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    _check_matrix(activations)
    if bool((activations < 0).any()):
        raise ValueError("want activations >= 0, those after a ReLU; these have negative ones")
    if not 1 <= r <= min(activations.shape):
        raise ValueError(f"want 1 to {min(activations.shape)} components, got {r}")
    z = activations.detach().double().cpu()
    model = NMF(r, init="nndsvda", random_state=seed, max_iter=max_iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is in the result
        w = torch.from_numpy(model.fit_transform(z.numpy()))
    h = torch.from_numpy(model.components_)
    error = (z - w @ h).square().sum() / z.square().sum().clamp_min(1e-300)
    length = h.norm(dim=1)
    unit = h / length.clamp_min(1e-300)[:, None]
    return ActivationFactors(w * length, unit, float(1 - error), model.n_iter_ < max_iterations)


@dataclass(frozen=True)
class ConceptTests:
    """TCAV tests of k groups of examples against K classes."""

    score: Tensor  # float64 [k, K], mean share of class examples whose logit rises
    p: Tensor  # float64 [k, K], Welch's test, corrected for k K tests
    p_random: Tensor  # float64 [N, K], as p, random sets in place of groups
    strength: Tensor  # float64 [k], largest |score - mean of random sets| over classes, in their sd
    strength_random: Tensor  # float64 [N], each random set among the others
    level: float

    def passes(self) -> Tensor:
        """Groups significant for any class by Welch's test, the specification's, bool `[k]`."""
        return (self.p < self.level).any(1)

    def p_rank(self) -> Tensor:
        """Share of random sets at least as strong, itself counted, float64 `[k]`; any class.

        Of a random set it is below `level` with about that probability. It needs 1 / level random
        sets, and no correction for classes; groups are not corrected for.
        """
        beyond = (self.strength_random >= self.strength[:, None]).sum(1)
        return (1 + beyond).double() / (1 + len(self.strength_random))

    def random_passes(self) -> Tensor:
        """Random sets that Welch's test calls significant for any class, bool `[N]`."""
        return (self.p_random < self.level).any(1)


def concept_tests(
    top: Tensor,
    activations: Tensor,
    slopes: Tensor,
    *,
    generator: torch.Generator,
    n_runs: int = N_RUNS,
    n_random: int = N_RUNS,
    level: float = 0.05,
    progress: Progress | None = None,
) -> ConceptTests:
    """Do a group's top examples relate to the prediction of any class?

    Args:
        top: int64 ``[k, T]``, examples of each group, rows of `activations`.
        activations: of one layer, ``[n, d]``.
        slopes: gradients of the K logits in that layer, ``[K, n', d]`` on examples of each class
            (`tcav.slopes`).
        n_runs: random sets that a group is told from; as many runs for each random set.
        n_random: random sets in place of groups, at least 3: the comparison and the control.
        progress: wraps the range of groups.

    Raises:
        ValueError: rows that do not exist, NaN, fewer than 2 T rows, or gradients that are the same
            for all examples of a class.

    Source: document 3, section 3.4, after Kim et al.; specification 7. Welch's two-sided test,
    Bonferroni over groups and classes, and any class is enough. At the last layer of a network with
    a linear head the gradient does not depend on the example and all scores are 0 or 1, which no t
    test can read: an earlier layer is asked for. Random sets leave out the group's own examples.
    """
    _check_matrix(activations)
    top = checked_rows(top, len(top), len(activations))
    if slopes.ndim != 3 or slopes.shape[2] != activations.shape[1]:
        raise ValueError(
            f"want slopes [K, n, {activations.shape[1]}] in the layer of the activations, got "
            f"{tuple(slopes.shape)}"
        )
    if not slopes.isfinite().all():
        raise ValueError("the slopes hold NaN or infinity; look at the model")
    if slopes.shape[1] > 1 and torch.allclose(slopes, slopes[:, :1].expand_as(slopes)):
        raise ValueError(
            "the gradients are the same for all examples of a class, so that scores are 0 or 1; "
            "read a layer before the last one"
        )
    if n_random < tcav.N_MIN + 1 or not 0 < level < 1:
        raise ValueError(
            f"want at least {tcav.N_MIN + 1} random sets and a level in (0, 1), got {n_random} and "
            f"{level}"
        )
    z, slopes = activations.double().cpu(), slopes.double().cpu()
    null = tcav.null_scores(
        top.shape[1], z, slopes, n_runs=n_runs, n_random=n_random, generator=generator
    )
    found = []
    for j in progress(range(len(top))) if progress else range(len(top)):
        others = torch.ones(len(z), dtype=torch.bool)
        others[top[j]] = False
        scores = tcav.concept_scores(
            z[top[j]], z[others], slopes, n_runs=n_runs, generator=generator
        )
        found.append(tcav.test(scores, null))
    # a random set is compared with the other ones
    random = [tcav.test(null[i], torch.cat([null[:i], null[i + 1 :]])) for i in range(n_random)]
    means = null.mean(1)  # [N, K]
    strengths = [_strength(t.score, means) for t in found]
    random_strengths = [
        _strength(means[i], torch.cat([means[:i], means[i + 1 :]])) for i in range(n_random)
    ]
    n_tests = len(top) * len(slopes)

    def corrected(tests: Sequence[tcav.Test]) -> Tensor:
        return (torch.stack([t.p_t for t in tests]) * n_tests).clamp(max=1.0)

    return ConceptTests(
        torch.stack([t.score for t in found]),
        corrected(found),
        corrected(random),
        torch.stack(strengths),
        torch.stack(random_strengths),
        level,
    )


def _strength(score: Tensor, means: Tensor) -> Tensor:
    """Largest distance of scores `[K]` from those of random sets `[N, K]`, in their sd."""
    return ((score - means.mean(0)).abs() / means.std(0).clamp_min(1e-12)).amax()


def _check_matrix(activations: Tensor) -> None:
    if activations.ndim != 2 or not len(activations):
        raise ValueError(f"want activations [n, d], got {tuple(activations.shape)}; pool the maps")
    if not activations.isfinite().all():
        raise ValueError("the activations hold NaN or infinity; look at the inputs")
