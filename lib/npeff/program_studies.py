"""What notebook 33 measures on a compiled program: that it is the program, and what is found in it.

A component is pure if all its top examples share the value of a Boolean variable of the program.
Every count stands beside that of random sets. Where a component lies is compared with where the
other components lie: a variable whose weights all components use says nothing about one of them.

Public names: `agreement_rows`, `last_position`, `search_all`, `above_chance`, `Beyond`,
`pure_share`, `n_rare`, `conjunctive_share`, `by_size`, `SizeCount`, `coefficient_left`,
`placement`, `Placement`, `clauses_found`, `ClauseFound`.

Source: document 3, section 3.2; specification sections 6.4 and 6.6. The document gives counts
only; nulls, sizes of top sets and places in the weights are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.npeff import concept_search
from lib.npeff.baselines import Clusters
from lib.npeff.concept_search import CRITERIA, Concepts, RuleMatch, Search
from lib.npeff.decomposition import Decomposition
from lib.npeff.program import Compiled, Program, compile_program, error_bounds, one_hot_errors
from lib.npeff.program.inference import VOCABULARY, Examples
from lib.npeff.program.location import Mass
from lib.npeff.program.transformer import CompiledTransformer

LEVEL = 0.95  # of nulls


def agreement_rows(
    program: Program, examples: Examples, colds: Sequence[float], *, n: int, seed: int
) -> list[dict[str, object]]:
    """Table rows: how far the network is from the program, on the data and on random words.

    Args:
        colds: coldnesses of the attention to compile with.
        n: examples, and random sequences that are mostly no sentences, to look at.
        seed: of the random words.

    Source: specification 6.4, step 5, and section 10, check 13.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(len(VOCABULARY), (n, examples.ids.shape[1]), generator=generator)
    rows = []
    for cold in colds:
        compiled = compile_program(program, cold=cold)
        with torch.no_grad():
            right = compiled.model(examples.ids).argmax(1) == examples.labels
        rows.append(
            {
                "coldness": f"{cold:g}",
                "accuracy on all examples": right.double().mean().item(),
                f"largest error, {n} examples": _largest(compiled, examples.ids[:n]),
                f"largest error, {n} random sequences": _largest(compiled, noise),
                "bound of the error": max(error_bounds(program, cold).values()),
            }
        )
    return rows


def _largest(compiled: Compiled, ids: Tensor) -> float:
    return max(one_hot_errors(compiled, ids).values())


def last_position(model: CompiledTransformer, ids: Tensor, *, chunk: int = 256) -> Tensor:
    """The residual stream where the label is read, after the last layer, `[n, d]`."""
    with torch.no_grad():
        parts = [model.residual(part)[:, -1] for part in ids.split(chunk)]
    return torch.cat(parts)


def search_all(
    fits: Mapping[int, Decomposition],
    clusters: Mapping[int, Clusters],
    concepts: Concepts,
    predicted: Tensor,
    *,
    n_top: int,
    n_draws: int,
    seed: int,
) -> dict[str, Search]:
    """What components and clusters have in common, by "32 components", "32 k-means clusters".

    Args:
        fits, clusters: number of components or clusters -> what was found.
        n_draws: draws of as many random sets.
    """
    tops = {
        f"{r} components": concept_search.top_examples(fit.coefficients, n_top)
        for r, fit in fits.items()
    }
    tops |= {f"{r} k-means clusters": one.top(n_top) for r, one in clusters.items()}
    return {
        name: concept_search.search(
            top, concepts, predicted, seed=seed, n_random=n_draws * len(top)
        )
        for name, top in tops.items()
    }


@dataclass(frozen=True)
class Beyond:
    """A share of r sets, and what as many random sets reach."""

    share: float
    sd: float  # of a share over r sets (binomial)
    null: float  # reached by 95% of draws of r random sets at most


def above_chance(found: Search, criterion: str) -> Beyond:
    """Share of sets that meet one of `CRITERIA`, beside draws of as many random sets.

    Raises:
        ValueError: an unknown criterion, or fewer random sets than sets.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"want a criterion of {', '.join(CRITERIA)}, got {criterion!r}")
    i, r = CRITERIA.index(criterion), len(found.passes)
    n_draws = len(found.null_passes) // r
    if n_draws < 1:
        raise ValueError(f"want at least {r} random sets, as there are sets, search with more")
    draws = found.null_passes[: n_draws * r, i].view(n_draws, r).double().mean(1)
    share = found.passes[:, i].double().mean().item()
    null = draws.quantile(LEVEL, interpolation="higher").item()
    return Beyond(share, (share * (1 - share) / r) ** 0.5, null)


def pure_share(found: Mapping[str, Search], r: int) -> tuple[float, float] | None:
    """Share of r components that are pure in any concept, and its sd; None if there is no r."""
    if f"{r} components" not in found:
        return None
    beyond = above_chance(found[f"{r} components"], CRITERIA[0])
    return beyond.share, beyond.sd


def conjunctive_share(found: Search, *, limit: float = 0.5) -> tuple[float, float]:
    """Share of pure sets that share two or more variables of at most this prevalence, and its sd.

    Raises:
        ValueError: no set is pure.
    """
    pure = found.passes[:, 0]
    if not bool(pure.any()):
        raise ValueError("no set is pure in anything; take fewer top examples")
    share = (n_rare(found, limit=limit)[pure] >= 2).double().mean().item()
    return share, (share * (1 - share) / int(pure.sum())) ** 0.5


def n_rare(found: Search, *, limit: float = 0.5) -> Tensor:
    """How many variables of at most this prevalence each set shares, int64 `[r]`.

    A variable counts by the value that is shared: false is as good as true.
    """
    return (found.pure & (found.concepts.prevalence <= limit)).sum(1)


@dataclass(frozen=True)
class SizeCount:
    """What top sets of one size share."""

    n_top: int
    share: tuple[float, ...]  # of components that meet each of `CRITERIA`
    null: tuple[float, ...]  # of random sets that do
    two_rare: float  # share of components that share two concepts of prevalence <= 1/2
    possible: int  # concepts that enough examples have to fill a set


def by_size(
    coefficients: Tensor,
    concepts: Concepts,
    predicted: Tensor,
    sizes: Sequence[int],
    *,
    seed: int,
    n_random: int = 1000,
) -> list[SizeCount]:
    """The search for several numbers of top examples.

    Args:
        coefficients: `[n, r]`; the rest as for `concept_search.search`.
        sizes: numbers of top examples.
    """
    counts = (concepts.prevalence * len(concepts.holds)).round()
    made = []
    for size in sizes:
        top = concept_search.top_examples(coefficients, size)
        found = concept_search.search(top, concepts, predicted, seed=seed, n_random=n_random)
        share, null = (x.double().mean(0).tolist() for x in (found.passes, found.null_passes))
        two = (n_rare(found) >= 2).double().mean().item()
        possible = int((counts >= size).sum())
        made.append(SizeCount(size, tuple(share), tuple(null), two, possible))
    return made


def coefficient_left(coefficients: Tensor, n_top: int) -> float:
    """Median over components of the last top example's coefficient over the largest.

    Near 0: the component is about fewer examples than `n_top`, and the rest of its top examples
    are there to fill the set.
    """
    ranked = coefficients.double().sort(dim=0, descending=True).values
    used = ranked[:, ranked[0] > 0]
    return (used[n_top - 1] / used[0]).median().item()


@dataclass(frozen=True)
class Placement:
    """Do pure components lie where the variables are computed that their examples share?"""

    component: Tensor  # int64 [p], the pure ones
    own: Tensor  # share of its squared length on those variables' parameters, float64 [p]
    ratio: Tensor  # median over the other components of own over theirs, float64 [p]
    null: Tensor  # share of ratios above 1, variables dealt out at random, float64 [n_draws]

    @property
    def share(self) -> float:
        """Of pure components with a ratio above 1."""
        return (self.ratio > 1).double().mean().item()


def placement(
    where: Mass, found: Search, *, seed: int, limit: float = 1.0, n_draws: int = 1000
) -> Placement:
    """Compare a component's mass on its concepts' parameters with the other components' there.

    A component's parameters are those that compute any variable whose value its top examples
    share. The null deals these sets of variables out to the pure components in random order.

    Args:
        where: of all r components.
        found: of the same components' top examples.
        limit: of the prevalence of the values that count.

    Raises:
        ValueError: different components, or none that is pure.
    """
    r = len(where.computes)
    if len(found.share) != r or r < 2:
        raise ValueError(f"want the search of the same 2 or more components, got {r} placed ones")
    pure = found.pure & (found.concepts.prevalence <= limit)
    component = pure.any(1).nonzero().flatten()
    if not len(component):
        raise ValueError("no component is pure, there is nothing to place; take fewer top examples")
    number = {name: i for i, name in enumerate(where.variables)}
    at = [number[name.removeprefix("not ")] for name in found.concepts.names]
    used = torch.zeros(len(component), len(where.variables) + 1, dtype=torch.float64)
    for row, j in zip(used, component.tolist(), strict=True):
        row[[at[i] for i in pure[j].nonzero().flatten().tolist()]] = 1
    masses = where.computes @ used.T  # [r, p]: of every component, on every set of variables
    # [p, p]: ratio of a pure component on a pure component's variables
    ratios = torch.stack([_ratios(masses, j) for j in component.tolist()])
    generator = torch.Generator().manual_seed(seed)
    orders = torch.rand(n_draws, len(component), generator=generator).argsort(1)
    dealt = ratios[torch.arange(len(component)), orders]
    own = masses[component, torch.arange(len(component))]
    return Placement(component, own, ratios.diagonal().clone(), (dealt > 1).double().mean(1))


def _ratios(masses: Tensor, j: int) -> Tensor:
    """Of component j: median over the others of its mass over theirs, for each set `[p]`."""
    others = torch.cat([masses[:j], masses[j + 1 :]])
    tiny = torch.finfo(masses.dtype).tiny
    # a mean of the two middle ones where their number is even
    return (masses[j] / others.clamp(min=tiny)).quantile(0.5, dim=0)


@dataclass(frozen=True)
class ClauseFound:
    """The component that singles out a clause's examples best."""

    clause: str
    n: int  # examples of the clause
    component: int
    average_precision: float
    precision: float  # of its top examples
    most: float  # precision that so few examples allow
    recall: float
    beyond: bool  # its excess is above 95% of the best component's under permutation


def clauses_found(match: RuleMatch, names: Sequence[str], n: int, n_top: int) -> list[ClauseFound]:
    """For each rule the component with the largest average precision.

    The null is the largest excess over rules and components of a permutation, so that no rule is
    found by looking at many components.

    Args:
        names: of the rules; n: examples; n_top: as `match_rules` was given.
    """
    beyond, made = match.beyond, []
    for i, name in enumerate(names):
        j = int(match.average_precision[:, i].argmax())
        size = round(match.prevalence[i].item() * n)
        made.append(
            ClauseFound(
                clause=name,
                n=size,
                component=j,
                average_precision=match.average_precision[j, i].item(),
                precision=match.precision[j, i].item(),
                most=min(1.0, size / n_top),
                recall=match.recall[j, i].item(),
                beyond=bool(beyond[j, i]),
            )
        )
    return made
