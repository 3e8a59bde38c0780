"""What notebook 34 measures: how K, r, the steps and the kind of Fisher change the components.

Runs are compared by their coefficients on the examples that both factorise, as in the document:
the cosine of a component's column with the nearest column of the other run. Beside each number
stands what two starts of one setting reach, and what is left when the examples of one run are
permuted.

Public names: `prepared`, `at_k`, `Sparse`, `similarity_rows`, `PAIRS`, `counterparts`,
`all_covered`, `Counterparts`, `split_labels`, `splits_agree`, `stable_rate`, `Trial`, `descend`,
`Descent`; for the claims `least_similar`, `after`, `tuned_difference`.

Source: document 3, section 3.3 and figure 5; specification sections 1.5, 2.4, 2.5 and 7.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

import torch
from torch import Tensor

from lib import cache
from lib.npeff import matching, store
from lib.npeff.components import Components, Tuning, fetch_decomposition
from lib.npeff.decomposition import explained, unit
from lib.npeff.factorise import RATES, decompose
from lib.npeff.store import Fishers
from lib.shares import average, gap, share

DOCUMENT_KS = (16_384, 65_536, 262_144)
DOCUMENT_PARAMETERS, DOCUMENT_CLASSES = 110_000_000, 3  # of BERT-base, and of language inference
# mean largest cosine from the first to the second K, in the order of `permutations`
PAIRS = (0.77, 0.77, 0.76, 0.80, 0.77, 0.80)
N_DRAWS = 20  # of a null
TRIAL = 20  # joint steps in which a rate must lower the loss every time
HALVINGS = 20


def prepared(fishers: Fishers, n: int) -> Fishers:
    """The first n examples' PEFs, ready to be factorised."""
    return store.prune(store.normalise(store.take(fishers, torch.arange(n))))


@dataclass(frozen=True)
class Sparse:
    """Factorisations of the same examples with one K, each from another start."""

    k: int
    share: float  # of the entries of a low-rank PEF
    norm: float  # q, mean share of the PEF's norm that they hold
    columns: int  # m', parameters with an entry
    explained: tuple[float, ...]  # 1 - L / kappa, one a start
    coefficients: tuple[Tensor, ...]  # W [n, r], one a start


def at_k(
    fishers: Fishers, ks: Sequence[int], r: int, *, n: int, seeds: Sequence[int], steps: int
) -> list[Sparse]:
    """Keep fewer and fewer entries of the same PEFs, and factorise each.

    Args:
        fishers: raw low-rank PEFs, made with the largest of `ks`.
        ks: ascending.
        n: the first examples that take part.
        seeds: starts. One seed gives every K the same coefficients to start from.
        steps: joint steps; the components alone take a tenth of that before.

    Raises:
        ValueError: the PEFs hold fewer entries than the largest of `ks`.
    """
    raw = store.take(fishers, torch.arange(n))
    found = []
    for k in sorted(ks, reverse=True):
        raw = store.truncate(raw, k)
        whole = store.normalise(raw)
        part = store.prune(whole)
        made = [fetch_decomposition(part, r, seed=seed, steps=steps) for seed in seeds]
        entries = whole.n_parameters * whole.logits.shape[1]
        found.append(
            Sparse(
                k,
                k / entries,
                float(store.sparse_norms(whole).mean()),
                part.n_columns,
                tuple(explained(one) for one in made),
                tuple(one.coefficients for one in made),
            )
        )
    return found[::-1]


def similarity_rows(found: Sequence[Sparse], *, seed: int) -> list[dict[str, object]]:
    """Table rows: every ordered pair of three K, the document's number beside ours.

    The first start of each run is compared; "another start" is the first run against itself from
    its other starts, mean over them.
    """
    rows = []
    for (a, b), (ka, kb), number in zip(
        permutations(found, 2), permutations(DOCUMENT_KS, 2), PAIRS, strict=True
    ):
        entries = DOCUMENT_PARAMETERS * DOCUMENT_CLASSES
        null = matching.shuffled_max_cosine(
            a.coefficients[0], b.coefficients[0], seed=seed, draws=N_DRAWS
        )
        rows.append(
            {
                "document: K, share of entries": f"{ka:,} ({ka / entries:.3%}) to "
                f"{kb:,} ({kb / entries:.3%})",
                "document: n, r, m": "20,000, 128, 110 M",
                "document": number,
                "ours: K, share of entries": f"{a.k:,} ({a.share:.1%}) to {b.k:,} ({b.share:.1%})",
                "ours: n, r, m'": f"{len(a.coefficients[0]):,}, {a.coefficients[0].shape[1]}, "
                f"{a.columns:,} to {b.columns:,}",
                "ours": f"{matching.max_cosine(a.coefficients[0], b.coefficients[0]):.2f}",
                "first K, another start": f"{_restart(a):.2f}",
                "examples permuted": f"{float(null.mean()):.2f}",
            }
        )
    return rows


def _restart(one: Sparse) -> float:
    """Mean of max-cos between the first start and each other one; NaN with one start."""
    first, *others = one.coefficients
    if not others:
        return float("nan")
    return sum(matching.max_cosine(first, other) for other in others) / len(others)


@dataclass(frozen=True)
class Counterparts:
    """Which component of a smaller run each one of a larger run is nearest to."""

    parent: Tensor  # int64 [r_larger], the nearest of the smaller run
    cosine: Tensor  # float64 [r_larger], with it
    covered: Tensor  # bool [r_smaller], whether it is a parent
    null: Tensor  # float64 [N_DRAWS], covered share when the examples of one run are permuted

    @property
    def share(self) -> float:
        """Share of the smaller run's components with a counterpart."""
        return float(self.covered.double().mean())


def counterparts(larger: Tensor, smaller: Tensor, *, seed: int) -> Counterparts:
    """Assign every component of a larger run to the nearest of a smaller one.

    Args:
        larger: coefficients `[n, r_larger]`; smaller: `[n, r_smaller]`, of the same examples.

    The null is needed: r_larger assignments fill most of r_smaller places by chance.
    """
    parent = matching.assign(larger, smaller)
    generator = torch.Generator().manual_seed(seed)
    nulls = []
    for _ in range(N_DRAWS):
        order = torch.randperm(len(larger), generator=generator)
        nulls.append(len(matching.assign(larger[order], smaller).unique()) / smaller.shape[1])
    cosine = matching.cosines(larger, smaller).gather(1, parent[:, None])[:, 0]
    covered = torch.zeros(smaller.shape[1], dtype=torch.bool)
    covered[parent] = True
    return Counterparts(parent, cosine, covered, torch.tensor(nulls, dtype=torch.float64))


def split_labels(found: Components, concept: Tensor) -> list[str]:
    """Words for each component: its number and the concept of most of its top examples."""
    return [f"{found.bed.concepts[int(c)]} · {j}" for j, c in enumerate(concept)]


def splits_agree(
    larger: Tensor, smaller: Tensor, parent: Tensor, *, seed: int, draws: int = 1000
) -> tuple[float, float]:
    """Share of the larger run's components tuned to their parent's concept, and the null's 95%.

    Args:
        larger, smaller: int64 `[r]`, the concept of each component.
        parent: int64 `[r_larger]`; the null permutes it.
    """
    agree = float((larger == smaller[parent]).double().mean())
    generator = torch.Generator().manual_seed(seed)
    orders = torch.rand(draws, len(parent), generator=generator).argsort(1)
    null = (larger == smaller[parent[orders]]).double().mean(1)
    return agree, float(null.quantile(0.95))


@dataclass(frozen=True)
class Trial:
    """A rate that was tried."""

    rate: float
    falls: bool  # the loss fell at every step


def stable_rate(
    fishers: Fishers, r: int, *, step: str, seed: int, component_steps: int
) -> tuple[float, list[Trial]]:
    """The default rate, halved until the loss falls at each of the first joint steps.

    Args:
        fishers: prepared.
        step: "gd" or "precond".

    Returns:
        The rate, and what was tried.

    Raises:
        ValueError: none of `HALVINGS` halvings is enough.

    Source: the rule is ours. The document gives no rate, its program 1e-3; the gradient is a sum
    over examples, so that a stable rate shrinks with n (specification 2.5).
    """
    rate, tried = RATES[step], list[Trial]()
    for _ in range(HALVINGS + 1):
        try:
            made = decompose(
                fishers, r, seed=seed, step=step, rate=rate, component_steps=component_steps,
                steps=TRIAL, log_every=1,
            )  # fmt: skip
            falls = bool((made.losses.diff() <= 0).all())
        except FloatingPointError:
            falls = False
        tried.append(Trial(rate, falls))
        if falls:
            return rate, tried
        rate /= 2
    raise ValueError(f"the loss rises at every rate from {RATES[step]:g} to {2 * rate:g}")


@dataclass(frozen=True)
class Descent:
    """A factorisation on its way, coefficients included."""

    step: str
    steps: Tensor  # int64 [t], joint steps done at each snapshot
    similarity: Tensor  # float64 [t, r], cosine of each column with its final value
    halfway: Tensor  # float64 [h, r], the same for the first half of the steps, with its own end
    loss_steps: Tensor  # int64 [s], steps done, those of the components alone included
    loss: Tensor  # float64 [s], L / kappa
    seconds: float  # a step, when it was run

    @property
    def mean(self) -> Tensor:
        """Mean over components, `[t]`."""
        return self.similarity.mean(1)


def descend(
    fishers: Fishers,
    r: int,
    *,
    step: str,
    seed: int,
    steps: int,
    n_snapshots: int = 30,
    rate: float | None = None,
) -> Descent:
    """Factorise and keep the coefficients on the way, through the cache.

    Args:
        fishers: prepared.
        steps: joint steps; the components alone take a tenth of that before.
        n_snapshots: at equal distances, the start comes on top; the document keeps 30.
        rate: of "gd" and "precond", as `stable_rate` finds it.

    Raises:
        ValueError: steps that cannot be divided by `n_snapshots`.
    """
    if steps % n_snapshots:
        raise ValueError(f"want steps a multiple of {n_snapshots} snapshots, got {steps}")
    arrays = {name: getattr(fishers, name) for name in ("values", "columns", "offsets", "kept")}
    config: dict[str, object] = {
        "data": cache.state_hash(arrays),
        "r": r,
        "step": step,
        "seed": seed,
        "steps": steps,
        "n_snapshots": n_snapshots,
        "rate": rate,
    }

    def build() -> dict[str, Tensor]:
        start = time.perf_counter()
        made = decompose(
            fishers, r, seed=seed, step=step, rate=rate, component_steps=steps // 10, steps=steps,
            snapshot_every=steps // n_snapshots,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        final = unit(made)
        assert final.snapshots is not None
        assert final.snapshot_steps is not None
        return {
            "steps": final.snapshot_steps,
            "similarity": matching.convergence(final.snapshots),
            "halfway": matching.convergence(final.snapshots[: n_snapshots // 2 + 1]),
            "loss_steps": final.loss_steps,
            "loss": final.losses / final.energy,
            "seconds": torch.tensor(seconds / (steps + steps // 10), dtype=torch.float64),
        }

    entry = cache.fetch("descent", config, build, code=[decompose, unit, matching.convergence])
    seconds = float(entry.pop("seconds"))
    return Descent(step, **entry, seconds=seconds)


def after(descent: Descent, share: float) -> tuple[float, float]:
    """Mean similarity to the end at a share of the joint steps, and its error over components.

    Source: document 3, figure 5 (700 and 1,100 of 1,500 steps); the last snapshot up to there.
    """
    at = int((descent.steps <= share * int(descent.steps[-1])).sum()) - 1
    return average(descent.similarity[at])


def least_similar(found: Sequence[Sparse]) -> float:
    """Smallest mean largest cosine over ordered pairs of K."""
    return min(
        matching.max_cosine(a.coefficients[0], b.coefficients[0]) for a, b in permutations(found, 2)
    )


def all_covered(runs: Mapping[int, Tensor], *, seed: int) -> dict[tuple[int, int], Counterparts]:
    """`counterparts` for all pairs of runs; keys are (smaller, larger) r.

    Args:
        runs: r -> coefficients `[n, r]`.
    """
    return {
        (a, b): counterparts(runs[b], runs[a], seed=seed) for a, b in combinations(sorted(runs), 2)
    }


def tuned_difference(a: Tuning, b: Tuning) -> tuple[float, float]:
    """Difference of two shares of tuned components, and its standard error."""
    return gap(*(share(t.tuned) for t in (a, b)))
