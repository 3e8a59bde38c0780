"""What notebook 35 measures: who finds known rules, and what the document's test proves.

A grouping ranks held-out examples in each of r groups: components by coefficients, k-means
clusters of activations by distance to the centroid, a non-negative factorisation of activations by
coefficients. All are made on the fitted examples and read on the held-out ones. Where examples have
known rules, a grouping is judged by how well its best group ranks the examples of each rule.

Public names: `pooled`, `Grouping`, `by_components`, `by_clusters`, `by_factors`, `by_label`,
`by_probe`, `find_rules`, `Finding`, `method_rows`, `spread_of_picks`, `gallery_rows`,
`concept_slopes`, `concept_tests`, `Tested`, `cosine_rows`; for the claims
`random_beyond`, `largest_cosine`.

Source: document 3, section 3.4; specification section 7 (k-means, TCAV). The comparison with known
rules, the controls and the nulls are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lib import probes
from lib.attribution import tcav
from lib.data.nlp import PAD
from lib.features import Progress, activations
from lib.npeff import baselines, concept_search, matching, nonnegative
from lib.npeff.components import Components, Tuning, n_top, tuning
from lib.npeff.concept_search import RuleMatch
from lib.npeff.testbeds import Testbed
from lib.shares import share

N_DRAWS = 20


def pooled(bed: Testbed, part: str, layer: str, *, rectified: bool = False) -> Tensor:
    """One activation vector an example, `[n, d]`: the mean over the words of a sentence pair.

    Args:
        part: "fit" or "held_out".
        rectified: clamp at 0 before the mean, for a layer that a ReLU follows.

    Source: the document reads BERT's CLS token; our transformer has none, and its output reads the
    mean over words.
    """
    x = {"fit": bed.fit, "held_out": bed.held_out}[part].x
    z = activations(bed.model, x, [layer])[layer]
    z = z.clamp_min(0) if rectified else z
    if z.ndim == 2:
        return z
    present = (x != PAD).to(z.dtype)[..., None]
    return (z * present).sum(1) / present.sum(1).clamp_min(1)


@dataclass(frozen=True)
class Grouping:
    """r groups of the held-out examples."""

    scores: Tensor  # [n', r]: the larger, the more an example belongs to a group
    weights: Tensor  # [n', r], not negative: coefficients, or 0 and 1 for membership

    @property
    def top(self) -> Tensor:
        """Held-out examples that belong most, int64 `[r, T]`."""
        return concept_search.top_examples(self.scores, n_top(*self.scores.shape))


def by_components(found: Components) -> Grouping:
    """Groups of the components of per-example Fishers."""
    return Grouping(found.held_out.double(), found.held_out.double())


def by_clusters(bed: Testbed, layer: str, k: int, *, seed: int) -> Grouping:
    """k-means clusters of the fitted examples' activations, read on the held-out ones.

    Members come first, the nearest to the centroid first; then the others by distance.

    Source: document 3, section 3.4: ranked by distance, and 0 and 1 as coefficients.
    """
    centroids = baselines.cluster(pooled(bed, "fit", layer), k, seed=seed).centroids
    distances = torch.cdist(pooled(bed, "held_out", layer).double(), centroids)
    member = one_hot(distances.argmin(1), k).double()
    return Grouping(member * (distances.max() + 1) - distances, member)


def by_factors(bed: Testbed, layer: str, r: int, *, seed: int) -> Grouping:
    """A non-negative factorisation of rectified activations, read on the held-out examples."""
    fit, held = (pooled(bed, part, layer, rectified=True) for part in ("fit", "held_out"))
    h = baselines.factorise_activations(fit, r, seed=seed).components
    w = nonnegative.solve(h @ h.T, held.double() @ h.T)
    return Grouping(w, w)


def by_label(predicted: Tensor) -> Grouping:
    """One group for each predicted class: what knowing the label alone gives."""
    member = one_hot(predicted).double()
    return Grouping(member, member)


def by_probe(bed: Testbed, layer: str) -> Grouping:
    """Linear probes trained on the rules of the fitted examples: what a layer's activations hold.

    No rival: it is told the rules.
    """
    z, rule = pooled(bed, "fit", layer), bed.fit.concept
    fitted = probes.fit_logistic(
        z.expand(len(bed.concepts), -1, -1), one_hot(rule, len(bed.concepts)).T.contiguous()
    )
    held = pooled(bed, "held_out", layer)
    scores = fitted.score(held.expand(len(bed.concepts), -1, -1)).T.double()
    return Grouping(scores, scores.sigmoid())


@dataclass(frozen=True)
class Finding:
    """What one grouping says of known rules or classes."""

    match: RuleMatch
    tuning: Tuning

    @property
    def best(self) -> Tensor:
        """Average precision of each rule's best group, float64 `[k]`."""
        return self.match.average_precision.amax(0)

    @property
    def found(self) -> Tensor:
        """Rules that a group ranks well and beyond chance, bool `[k]`, as in P3-07."""
        return self.match.found()


def find_rules(
    groups: Grouping, rule: Tensor, predicted: Tensor, *, seed: int, size: int
) -> Finding:
    """Judge a grouping against the known rule (or class) of each held-out example.

    Args:
        rule, predicted: int64 `[n']`.
        size: top examples of a group; the same for all that are compared.
    """
    match = concept_search.match_rules(groups.scores, rule, seed=seed, n_top=size)
    return Finding(match, tuning(groups.scores, rule, predicted, seed=seed, size=size))


def method_rows(found: Mapping[str, Sequence[Finding]]) -> list[dict[str, object]]:
    """Table rows, a method each: mean over seeds, and the spread between them.

    Args:
        found: method -> a finding for each seed.
    """
    rows = []
    for name, runs in found.items():
        r, k = runs[0].match.average_precision.shape
        tuned = [one.tuning.concept[one.tuning.tuned] for one in runs]
        rows.append(
            {
                "method": name,
                "groups": r,
                f"rules found, of {k}": _over(float(one.found.sum()) for one in runs),
                "best average precision of a rule, mean": _over(
                    float(one.best.mean()) for one in runs
                ),
                "precision of its best top examples, mean": _over(
                    float(one.match.precision.amax(0).mean()) for one in runs
                ),
                "commonest rule's share of top examples, mean over groups": _over(
                    float(one.tuning.share.mean()) for one in runs
                ),
                "groups tuned beyond chance": _over(float(len(one)) for one in tuned),
                "rules among them": _over(float(len(one.unique())) for one in tuned),
                "seeds": len(runs),
            }
        )
    return rows


def _over(values: Iterable[float]) -> str:
    x = torch.tensor(list(values), dtype=torch.float64)
    digits = 1 if float(x.max()) > 1 else 2
    if len(x) < 2:
        return f"{float(x):.{digits}f}"
    return f"{float(x.mean()):.{digits}f} ± {float(x.std()):.{digits}f}"


def spread_of_picks(tuned: Tuning) -> list[int]:
    """The groups of largest, middle and smallest share of one concept."""
    order = tuned.share.argsort(descending=True, stable=True).tolist()
    return [order[0], order[len(order) // 2], order[-1]]


def gallery_rows(
    bed: Testbed, predicted: Tensor, name: str, groups: Grouping, tuned: Tuning, n: int
) -> list[dict[str, object]]:
    """Table rows: first held-out pairs of the most, the middle and the least tuned group."""
    rows = []
    for j in spread_of_picks(tuned):
        for i in groups.top[j, :n].tolist():
            premise, hypothesis = bed.held_out.text[i]
            rows.append(
                {
                    "group": f"{name} {j}",
                    "commonest rule": f"{bed.concepts[int(tuned.concept[j])]} "
                    f"({float(tuned.share[j]):.0%})",
                    "premise": premise,
                    "hypothesis": hypothesis,
                    "rule": bed.concepts[int(bed.held_out.concept[i])],
                    "prediction": bed.classes[int(predicted[i])],
                }
            )
    return rows


def concept_slopes(bed: Testbed, layer: str) -> Tensor:
    """Gradient of each class's logit in the pooled activations of a layer, `[K, n', d]`.

    On held-out examples of each class, as many of each. How the logit rises if a unit rises at all
    words alike: the sum of the gradients over words.
    """
    x, y = bed.held_out.x, bed.held_out.y
    n = int(torch.bincount(y, minlength=len(bed.classes)).min())
    found = []
    for c in range(len(bed.classes)):
        rows = x[(y == c).nonzero()[:n, 0]]
        slopes = tcav.slopes(bed.model, rows, c, layer)
        words = x.shape[1] if x.ndim == 2 and not x.is_floating_point() else 1
        found.append(slopes.view(len(rows), words, -1).sum(1))
    return torch.stack(found)


@dataclass(frozen=True)
class Tested:
    """Tests of all groups of all methods together, and of random sets."""

    tests: baselines.ConceptTests
    rows: Mapping[str, slice]  # method -> its rows among the groups

    def passes(self, name: str) -> Tensor:
        """Groups of a method that pass Welch's test for any class, bool `[r]`."""
        return self.tests.passes()[self.rows[name]]

    def ranks(self, name: str) -> Tensor:
        """Groups of a method whose rank among random sets passes, bool `[r]`."""
        return self.tests.p_rank()[self.rows[name]] < self.tests.level

    def summary(self) -> dict[str, tuple[float, float, int]]:
        """Groups -> share that passes Welch's test, share that passes by rank, how many.

        A random set has no rank of its own: the ranks are among all random sets.
        """
        found = {
            name: (_share(self.passes(name)), _share(self.ranks(name)), len(self.ranks(name)))
            for name in self.rows
        }
        random = self.tests.random_passes()
        return found | {"random sets": (_share(random), math.nan, len(random))}


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())


def concept_tests(
    bed: Testbed,
    groups: Mapping[str, Grouping],
    layer: str,
    *,
    seed: int,
    n_runs: int,
    n_random: int,
    progress: Progress | None = None,
) -> Tested:
    """TCAV for the top examples of every group, one correction over all of them.

    Args:
        layer: before the last one, whose gradient is the same for all examples.
        n_runs, n_random: as in `baselines.concept_tests`.

    Raises:
        ValueError: groups of different sizes of their tops.
    """
    tops = [one.top for one in groups.values()]
    if len({top.shape[1] for top in tops}) > 1:
        raise ValueError("want as many groups in each method, so that all have as many examples")
    rows, first = {}, 0
    for name, top in zip(groups, tops, strict=True):
        rows[name] = slice(first, first + len(top))
        first += len(top)
    tests = baselines.concept_tests(
        torch.cat(tops),
        pooled(bed, "held_out", layer),
        concept_slopes(bed, layer),
        generator=torch.Generator().manual_seed(seed),
        n_runs=n_runs,
        n_random=n_random,
        progress=progress,
    )
    return Tested(tests, rows)


def cosine_rows(groups: Mapping[str, Grouping], *, seed: int) -> dict[str, tuple[float, float]]:
    """Direction -> mean largest cosine of two methods' groups, and with examples permuted."""
    found = {}
    for (a, first), (b, second) in permutations(groups.items(), 2):
        null = matching.shuffled_max_cosine(first.weights, second.weights, seed=seed, draws=N_DRAWS)
        value = matching.max_cosine(first.weights, second.weights)
        found[f"{a} to {b}"] = (value, float(null.mean()))
    return found


def random_beyond(tested: Tested) -> tuple[float, float]:
    """Share of random sets that pass Welch's test beyond its level, at least 0, and its error."""
    p, error = share(tested.tests.random_passes())
    return max(0.0, p - tested.tests.level), error


def largest_cosine(cosines: Mapping[str, tuple[float, float]], a: str, b: str) -> float:
    """The larger of the two directions between two methods."""
    return max(cosines[f"{a} to {b}"][0], cosines[f"{b} to {a}"][0])
