"""What notebook 31 measures: sparsity, planted components, tunings, outliers, other starts, places.

Public names: `kept_share`, `KeptShare`, `planted`, `recovery`, `Recovery`, `rule_match`,
`label_of_rule`, `most_tuned`, `sentences`, `n_effective`, `use_of_examples`, `pairs`, `nearest`,
`permuted_nearest`, `mass_by_module`; for the claims `mean_share`, `same_concept`,
`median_ratio`, `rules_found`, `over_pairs`.

Source: document 3, sections 2.1, 2.2 and 3.3; specification sections 7 and 10 (check 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from lib import cache
from lib.npeff import concept_search, matching, store
from lib.npeff.components import Components, Tuning, n_top
from lib.npeff.concept_search import RuleMatch
from lib.npeff.decomposition import Decomposition, explained
from lib.npeff.factorise import decompose
from lib.npeff.store import Fishers
from lib.npeff.testbeds import Testbed
from lib.shares import share

N_CLASSES = 3
LEVELS = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class KeptShare:
    """How much of the PEFs the largest entries hold."""

    k: tuple[int, ...]
    quantiles: Tensor  # [len(k), 3] of q over examples, at `LEVELS`
    mean: Tensor  # [len(k)]
    positions: Tensor  # int64 [len(k)], parameters that any example uses


def kept_share(fishers: Fishers, ks: Sequence[int]) -> KeptShare:
    """Norm of the kept entries over that of the dense PEF, for several K.

    Args:
        fishers: raw PEFs made with the largest of `ks`.
    """
    rows: list[Tensor] = []
    mean: list[Tensor] = []
    positions: list[int] = []
    for k in sorted(ks, reverse=True):  # each from the one before: half the sorting
        fishers = store.truncate(fishers, k)
        part = store.normalise(store.prune(fishers))
        q = store.sparse_norms(part)
        rows.insert(0, q.quantile(torch.tensor(LEVELS, dtype=q.dtype)))
        mean.insert(0, q.mean())
        positions.insert(0, part.n_columns)
    return KeptShare(
        tuple(sorted(ks)), torch.stack(rows), torch.stack(mean), torch.tensor(positions)
    )


def planted(
    seed: int, *, n: int = 1000, r: int = 20, m: int = 80, n_used: int = 20
) -> tuple[Fishers, Tensor, Tensor]:
    """PEFs that are exact mixtures of known components.

    Each component is a unit vector with `n_used` entries that are not zero; each example mixes one
    or two of them with weights from U(.25, 1.25) and is normalised; its other rows are zero.

    Returns:
        Normalised PEFs, components `[r, m]` and coefficients `[n, r]` of the normalised PEFs.
    """
    generator = torch.Generator().manual_seed(seed)
    used = torch.rand(r, m, generator=generator).argsort(1)[:, :n_used]
    g = torch.zeros(r, m, dtype=torch.float64)
    g.scatter_(1, used, torch.randn(r, n_used, generator=generator, dtype=torch.float64))
    g /= g.norm(dim=1, keepdim=True)
    active = torch.rand(n, r, generator=generator).argsort(1)[:, :2]
    weight = 0.25 + torch.rand(n, 2, generator=generator, dtype=torch.float64)
    weight[:, 1] *= torch.rand(n, generator=generator) < 0.5
    rows = torch.zeros(n, N_CLASSES, m, dtype=torch.float64)
    rows[:, :2] = weight.sqrt()[..., None] * g[active]
    fishers = store.from_dense(rows)
    w = torch.zeros(n, r, dtype=torch.float64).scatter_add_(1, active, weight)
    return store.normalise(fishers), g, w / fishers.norms[:, None]


@dataclass(frozen=True)
class Recovery:
    """How many planted components each way of descending finds."""

    cosine: Tensor  # float64 [starts, r], best matching cosine of each planted component, sorted
    loss: Tensor  # float64 [starts], L / kappa

    def found(self, level: float = 0.99) -> Tensor:
        """Planted components found by each start, int64 `[starts]`."""
        return (self.cosine > level).sum(1)


def recovery(
    fishers: Fishers,
    truth: Tensor,
    *,
    step: str,
    seeds: Iterable[int],
    component_steps: int = 100,
    steps: int = 1500,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> Recovery:
    """Factorise planted PEFs from several starts, each of them cached.

    Args:
        truth: `[r, m]`, unit vectors on all m parameters.
        step: as for `decompose`.
    """
    at = truth[:, fishers.kept]
    data = cache.state_hash({"values": fishers.values, "columns": fishers.columns, "truth": at})
    cosines, losses = [], []
    for seed in progress(seeds) if progress else seeds:
        config = {"data": data, "step": step, "seed": seed, "steps": [component_steps, steps]}

        def build(seed: int = seed) -> dict[str, Tensor]:
            made = decompose(
                fishers,
                len(truth),
                seed=seed,
                step=step,
                component_steps=component_steps,
                steps=steps,
            )
            g = made.components / made.components.norm(dim=1, keepdim=True)
            best = (at @ g.T.to(at)).abs().amax(1).sort().values
            return {"cosine": best, "loss": torch.tensor(1 - explained(made)).double()}

        found = cache.fetch("npeff-planted", config, build, code=[decompose])
        cosines.append(found["cosine"])
        losses.append(found["loss"])
    return Recovery(torch.stack(cosines), torch.stack(losses))


def n_effective(coefficients: Tensor) -> Tensor:
    """Examples that carry a component: ``(sum w)^2 / sum w^2`` of each column, float64 `[r]`.

    An empty component has none.
    """
    w = coefficients.double()
    return w.sum(0).square() / w.square().sum(0).clamp(min=torch.finfo(torch.float64).tiny)


def mass_by_module(decomposition: Decomposition) -> tuple[tuple[str, ...], Tensor]:
    """Share of each component's squared length (or of a diagonal one's sum) in each parameter.

    Returns:
        Names of the parameters and float64 `[r, parameters]`; rows of components that are not
        zero sum to one.
    """
    names = tuple(name for name, _ in decomposition.parameters)
    sizes = torch.tensor([torch.Size(shape).numel() for _, shape in decomposition.parameters])
    owner = torch.bucketize(decomposition.kept, sizes.cumsum(0), right=True)
    g = decomposition.components.double()
    mass = g.square() if decomposition.kind == store.LOW_RANK else g
    total = torch.zeros(len(g), len(names), dtype=torch.float64)
    total.index_add_(1, owner, mass)
    return names, total / total.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def rule_match(found: Components, *, seed: int, n_permutations: int = 200) -> RuleMatch:
    """How well components single out the rules of the held-out examples."""
    coefficients, bed = found.held_out, found.bed
    return concept_search.match_rules(
        coefficients,
        bed.held_out.concept,
        seed=seed,
        n_top=n_top(*coefficients.shape),
        n_permutations=n_permutations,
    )


def label_of_rule(bed: Testbed) -> list[str]:
    """The label that the held-out examples of each concept have most often."""
    found = []
    for k in range(len(bed.concepts)):
        labels = bed.held_out.y[bed.held_out.concept == k]
        found.append(bed.classes[int(labels.mode().values)] if len(labels) else "")
    return found


def most_tuned(tuning: Tuning, n: int) -> list[int]:
    """The components of largest share, each of another concept as long as there are any."""
    order = tuning.share.argsort(descending=True, stable=True).tolist()
    first = {int(tuning.concept[j]): j for j in reversed(order)}
    chosen = [j for j in order if first[int(tuning.concept[j])] == j]
    return (chosen + [j for j in order if j not in chosen])[:n]


def sentences(found: Components, picks: Sequence[int], n: int) -> list[dict[str, object]]:
    """Rows of a table: the first `n` held-out pairs of each component."""
    bed, rows = found.bed, []
    for j in picks:
        for i in found.top[j, :n].tolist():
            premise, hypothesis = bed.held_out.text[i]
            rows.append(
                {
                    "component": j,
                    "coefficient": f"{float(found.held_out[i, j]):.2f}",
                    "premise": premise,
                    "hypothesis": hypothesis,
                    "concept": bed.concepts[int(bed.held_out.concept[i])],
                    "prediction": bed.classes[int(found.predicted[i])],
                }
            )
    return rows


def use_of_examples(w: Tensor) -> tuple[Tensor, Tensor]:
    """How many examples carry each component, float64 `[r]`, and its top ones, int64 `[r, T]`."""
    return n_effective(w), concept_search.top_examples(w, n_top(*w.shape))


def pairs(seeds: Iterable[int]) -> list[tuple[int, int]]:
    """All pairs of seeds."""
    return list(combinations(seeds, 2))


def nearest(a: Components, b: Components, order: Tensor | None = None) -> Tensor:
    """Largest cosine of every component of either run with one of the other, float64 `[2 r]`.

    Args:
        order: of the examples of `b`, int64 `[n']`; a permutation gives what chance does.
    """
    cosines = matching.cosines(a.held_out, b.held_out if order is None else b.held_out[order])
    return torch.cat([cosines.amax(1), cosines.amax(0)])


def permuted_nearest(a: Components, b: Components, *, seed: int) -> float:
    """Mean of `nearest` when the examples of one run are permuted."""
    generator = torch.Generator().manual_seed(seed)
    return float(nearest(a, b, torch.randperm(len(b.held_out), generator=generator)).mean())


def mean_share(shares: KeptShare, k: int) -> tuple[float, float]:
    """Mean q at one K, and half of the spread between its outer quantiles."""
    at = shares.k.index(k)
    return float(shares.mean[at]), float((shares.quantiles[at, -1] - shares.quantiles[at, 0]) / 2)


def same_concept(found: Components, tuning: Tuning) -> tuple[float, float]:
    """Share of components with the same most frequent concept on fitted and held-out examples."""
    _, top = use_of_examples(found.decomposition.coefficients)
    top = found.bed.fit.concept[top]
    return share(top.mode(1).values == tuning.concept)


def median_ratio(a: Tensor, b: Tensor) -> float:
    """Ratio of two medians over components."""
    return float(a.median() / b.median())


def rules_found(match: RuleMatch) -> tuple[float, float]:
    """Share of rules that a component ranks well and beyond chance, as `RuleMatch.found`."""
    return share(match.found())


def over_pairs(cosines: Mapping[str, Tensor]) -> tuple[float, float]:
    """Mean largest cosine over pairs of runs, and its spread between pairs."""
    means = torch.stack([values.mean() for values in cosines.values()])
    return float(means.mean()), float(means.std()) if len(means) > 1 else 0.0
