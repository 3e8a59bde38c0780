"""Which known concepts do the top examples of a component share, and would chance share them?

A concept is the value of a Boolean variable, true or false, each on its own. A set of examples
is pure in a concept that all of it has; all concepts it is pure in are its conjunction. A concept
that most of the data have is pure by chance, so every count stands beside that of random sets,
and beside counts of rarer concepts only. For a known rule per example, precision and average
precision say how well a component's coefficients single the rule's examples out.

Public names: `top_examples`, `Concepts`, `both_polarities`, `Search`, `search`, `CRITERIA`,
`LIMITS`, `purity_curve`, `Conjunction`, `conjunction`, `RuleMatch`, `match_rules`,
`LEAST_PRECISION`.

Source: document 3, section 3.2, and specification section 6.6. The document counts a component if
its 128 top examples have at least one concept in common; which polarities it counts is not known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

LIMITS = (1.0, 0.5, 0.25)  # of a concept's prevalence
CRITERIA = ("any concept", "held by at most 1/2", "held by at most 1/4", "prediction only")
LEAST_PRECISION = 0.5  # average precision of a rule that counts as found
NUMBERS = 2**24  # look-ups at a time


def top_examples(coefficients: Tensor, n_top: int = 128) -> Tensor:
    """The examples with the largest coefficients, largest first; ties go to the earlier example.

    Args:
        coefficients: `[n, r]`; for clusters pass minus the distances to the centroids.

    Returns:
        int64 `[r, n_top]`.

    Raises:
        ValueError: not `[n, r]`, NaN, or fewer than `n_top` examples.
    """
    if coefficients.ndim != 2 or torch.isnan(coefficients).any():
        raise ValueError(
            f"want coefficients [n, r] without NaN, got shape {tuple(coefficients.shape)}"
        )
    if not 1 <= n_top <= len(coefficients):
        raise ValueError(
            f"want 1 to {len(coefficients)} top examples, as there are examples, got {n_top}"
        )
    order = coefficients.argsort(dim=0, descending=True, stable=True)
    return order[:n_top].T.contiguous()


@dataclass(frozen=True)
class Concepts:
    """What can hold of an example. Variables that never vary are left out."""

    names: tuple[str, ...]  # "s_eq" and "not s_eq"
    holds: Tensor  # bool [n, c]
    prevalence: Tensor  # share of the examples, float64 [c], above 0 and below 1


def both_polarities(truth: Tensor, variables: Sequence[str]) -> Concepts:
    """Every variable being true and its being false, as separate concepts.

    Args:
        truth: bool `[n, b]`.
        variables: b names.

    Raises:
        ValueError: not bool, shapes disagree, or no variable varies.
    """
    if truth.dtype != torch.bool or truth.ndim != 2 or truth.shape[1] != len(variables):
        raise ValueError(
            f"want truth bool [n, b] and b names, got {truth.dtype} {tuple(truth.shape)} and "
            f"{len(variables)} names"
        )
    varies = (truth.any(0) & ~truth.all(0)).nonzero().flatten()
    if not len(varies):
        raise ValueError("no variable varies over the examples; there is nothing to find")
    some = truth[:, varies]
    names = [variables[i] for i in varies.tolist()]
    holds = torch.cat([some, ~some], 1)
    return Concepts((*names, *(f"not {name}" for name in names)), holds, holds.double().mean(0))


@dataclass(frozen=True)
class Search:
    """Concepts of r sets of top examples, and of as many random sets as the null has."""

    concepts: Concepts
    share: Tensor  # of the set's examples that have the concept, float64 [r, c]
    passes: Tensor  # bool [r, 4]: the set meets `CRITERIA[i]`
    purity: Tensor  # largest share among concepts of prevalence <= LIMITS[i], float64 [r, 3]
    null_passes: Tensor  # bool [n_random, 4]
    null_purity: Tensor  # float64 [n_random, 3]

    @property
    def pure(self) -> Tensor:
        """Concepts that all of a set have, bool [r, c]."""
        return self.share == 1

    @property
    def counts(self) -> dict[str, tuple[int, float]]:
        """Criterion -> how many of the r sets meet it, and how many random ones of r would."""
        found, chance = self.passes.sum(0).tolist(), self.null_passes.double().mean(0).tolist()
        r = len(self.passes)
        return {name: (found[i], r * chance[i]) for i, name in enumerate(CRITERIA)}


def search(
    top: Tensor, concepts: Concepts, predicted: Tensor, *, seed: int, n_random: int = 1000
) -> Search:
    """What sets of examples have in common, beside random sets of the same size.

    A set meets the last criterion if all of it has one prediction and it is pure in nothing but
    what every example of that prediction has.

    Args:
        top: example numbers int64 `[r, T]`, from `top_examples`, of components or of clusters.
        concepts: over all n examples.
        predicted: the network's class, int64 `[n]`.
        n_random: sets drawn without replacement from all examples.

    Raises:
        ValueError: shapes disagree, a number is no example or stands twice in a set, or no random
            set is asked for.

    Source: specification section 6.6, (i) to (iv) and the curve of minimum purity.
    """
    n = len(concepts.holds)
    if top.ndim != 2 or top.dtype != torch.int64 or not top.numel():
        raise ValueError(f"want top int64 [r, T], got {top.dtype} {tuple(top.shape)}")
    if predicted.shape != (n,) or predicted.is_floating_point():
        raise ValueError(
            f"want one predicted class for each of {n} examples, got {predicted.dtype} "
            f"{tuple(predicted.shape)}"
        )
    if not 0 <= int(top.min()) <= int(top.max()) < n:
        raise ValueError(f"want example numbers 0 to {n - 1}, got {top.min()} to {top.max()}")
    if (top.sort(1).values.diff(dim=1) == 0).any():
        raise ValueError("want distinct examples in each set; some stand twice")
    if n_random < 1:
        raise ValueError(f"want at least one random set, got {n_random}")
    share, passes, purity = _judge(top, concepts, predicted)
    generator = torch.Generator().manual_seed(seed)
    nulls = []
    at_once = max(1, NUMBERS // (top.shape[1] * len(concepts.names) + n))
    for first in range(0, n_random, at_once):
        size = min(at_once, n_random - first)
        sets = torch.rand(size, n, generator=generator).topk(top.shape[1]).indices
        nulls.append(_judge(sets.to(top.device), concepts, predicted)[1:])
    null_passes, null_purity = (torch.cat(parts) for parts in zip(*nulls, strict=True))
    return Search(concepts, share, passes, purity, null_passes, null_purity)


def _judge(sets: Tensor, concepts: Concepts, predicted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shares `[s, c]`, criteria met `[s, 4]` and purities `[s, 3]` of sets `[s, T]`."""
    step = max(1, NUMBERS // (sets.shape[1] * len(concepts.names)))
    counts = torch.cat([concepts.holds[part].sum(1) for part in sets.split(step)])
    share = counts.double() / sets.shape[1]
    pure = counts == sets.shape[1]
    rare = [concepts.prevalence <= limit for limit in LIMITS]
    classes, number = predicted.unique(return_inverse=True)
    # what every example of a prediction has: it says no more than the prediction
    follows = torch.stack([concepts.holds[number == i].all(0) for i in range(len(classes))])
    of_set = number[sets]
    one_class = (of_set == of_set[:, :1]).all(1)
    only = one_class & ~(pure & ~follows[of_set[:, 0]]).any(1)
    passes = torch.stack([*((pure & some).any(1) for some in rare), only], 1)
    purity = torch.stack(
        [torch.where(some, share, torch.zeros_like(share)).amax(1) for some in rare], 1
    )
    return share, passes, purity


def purity_curve(purity: Tensor, levels: Sequence[float]) -> Tensor:
    """Share of sets whose purity reaches each level, float64 `[len(levels), ...]`.

    Args:
        purity: `[r, ...]`, such as `Search.purity` or its null.
        levels: such as 0.8 to 1.
    """
    # a purity is a count over T: half an example of 10^6 is less than the step between two
    return torch.stack([(purity >= level - 1e-9).double().mean(0) for level in levels])


@dataclass(frozen=True)
class Conjunction:
    """All concepts that a set is pure in, as one condition on examples."""

    concepts: tuple[str, ...]
    short: tuple[str, ...]  # some of them that select the same examples of the data
    prevalence: float  # share of all examples that meet it; at least the set's own share


def conjunction(found: Search, j: int, *, limit: float = 1.0) -> Conjunction:
    """The maximal conjunction of a set, and a short form of it.

    The short form adds, one by one, the concept that leaves the fewest examples, until the rest
    would exclude none. It is not always the shortest.

    Args:
        j: the set.
        limit: use concepts of at most this prevalence.
    """
    holds, names = found.concepts.holds, found.concepts.names
    pure = (found.pure[j] & (found.concepts.prevalence <= limit)).nonzero().flatten().tolist()
    whole = holds[:, pure].all(1)
    left, short = torch.ones_like(whole), []
    while not torch.equal(left, whole):
        sizes = (holds[:, pure] & left[:, None]).sum(0)
        best = pure[int(sizes.argmin())]
        short.append(names[best])
        left = left & holds[:, best]
    return Conjunction(tuple(names[i] for i in pure), tuple(short), whole.double().mean().item())


@dataclass(frozen=True)
class RuleMatch:
    """How well the coefficients of r components single out the examples of k rules."""

    precision: Tensor  # share of a component's top examples that follow the rule, [r, k]
    recall: Tensor  # share of the rule's examples among its top examples, [r, k]
    average_precision: Tensor  # of the coefficients as scores of the rule, [r, k]
    prevalence: Tensor  # share of all examples that follow the rule, [k]
    null_excess: Tensor  # largest over components and rules, the rules permuted, [n_permutations]

    @property
    def excess(self) -> Tensor:
        """(AP - prevalence) / (1 - prevalence), [r, k]: 0 in a random order, 1 in a perfect one."""
        return _excess(self.average_precision, self.prevalence)

    @property
    def best(self) -> Tensor:
        """The rule of each component's largest excess, int64 [r]."""
        return self.excess.argmax(1)

    @property
    def beyond(self) -> Tensor:
        """Excess above what the best component and rule reach in 95% of permutations, [r, k]."""
        return self.excess > self.null_excess.quantile(0.95)

    def found(self, least: float = LEAST_PRECISION) -> Tensor:
        """Rules that a component ranks beyond chance, with `least` average precision, bool [k]."""
        return (self.beyond & (self.average_precision >= least)).any(0)


def match_rules(
    coefficients: Tensor,
    rules: Tensor,
    *,
    seed: int,
    n_top: int = 128,
    n_permutations: int = 200,
) -> RuleMatch:
    """Compare coefficients with a known rule per example.

    Excess is (AP - prevalence) / (1 - prevalence), AP the average precision with tied coefficients
    taken together: common rules have a large AP in any order. The null permutes which example
    follows which rule and takes the best component and rule again; each component keeps its order
    of the examples, so that as many different orders have a chance as in the data.

    Args:
        coefficients: `[n, r]`.
        rules: int64 `[n]`, 0 to k - 1.
        n_top: top examples of a component, as `top_examples` gives them.

    Returns:
        Everything in float64.

    Raises:
        ValueError: shapes disagree, NaN, fewer than two rules or one without an example, too many
            top examples, or no permutation.

    Source: ours; the specification searches Boolean variables (section 6.6).
    """
    top = top_examples(coefficients, n_top)  # checks the coefficients
    n = len(coefficients)
    if rules.shape != (n,) or rules.dtype != torch.int64:
        raise ValueError(
            f"want rules int64 [{n}], one an example, got {rules.dtype} {tuple(rules.shape)}"
        )
    if n_permutations < 1:
        raise ValueError(f"want at least one permutation, got {n_permutations}")
    sizes = rules.bincount() if int(rules.min()) >= 0 else rules.new_zeros(1)
    if len(sizes) < 2 or not (sizes > 0).all():
        raise ValueError(
            f"want rules 0 to k - 1 with k >= 2 and examples of each, got {rules.unique().tolist()}"
        )
    hits = torch.nn.functional.one_hot(rules, len(sizes)).double()[top].sum(1)
    prevalence, places = sizes.double() / n, _places(coefficients)
    generator = torch.Generator().manual_seed(seed)
    nulls = []
    for _ in range(n_permutations):
        dealt = rules[torch.randperm(n, generator=generator).to(rules.device)]
        nulls.append(_excess(_average_precision(places, dealt, sizes), prevalence).amax())
    return RuleMatch(
        precision=hits / n_top,
        recall=hits / sizes,
        average_precision=_average_precision(places, rules, sizes),
        prevalence=prevalence,
        null_excess=torch.stack(nulls),
    )


def _excess(average_precision: Tensor, prevalence: Tensor) -> Tensor:
    return (average_precision - prevalence) / (1 - prevalence)


def _places(coefficients: Tensor) -> Tensor:
    """Examples with a coefficient at least as large, itself counted in, int64 `[r, n]`."""
    falling = -coefficients.T.contiguous()
    return torch.searchsorted(falling.sort(1).values, falling, right=True)


def _average_precision(places: Tensor, rules: Tensor, sizes: Tensor) -> Tensor:
    """Average precision `[r, k]` of k rules from places `[r, n]`, ties taken together.

    The mean over a rule's examples of the rule's share down to there: all examples are sorted by
    rule and then by place, so that an example's number within its rule is how many came so far.
    """
    n = len(rules)
    keys = rules * (n + 1) + places
    # numpy sorts short rows fifteen times as fast
    keys = torch.from_numpy(np.sort(keys.cpu().numpy(), axis=1)).to(keys.device)
    rule = rules.sort().values  # in every row
    so_far = torch.searchsorted(keys, keys, right=True) - (sizes.cumsum(0) - sizes)[rule]
    shares = so_far.double() / (keys - rule * (n + 1))
    total = shares.new_zeros(len(places), len(sizes)).index_add_(1, rule, shares)
    return total / sizes
