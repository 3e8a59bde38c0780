"""Components of a testbed's network, read on examples that did not make them.

Per-example Fishers of the `fit` examples are factorised, coefficients of the `held_out` ones are
fitted to the frozen components, and everything is cached: the six notebooks of document 3 share it.
What a component is tuned to is read from the held-out examples with the largest coefficients.

Public names: `components_of`, `Components`, `fishers_of`, `tuning`, `Tuning`, `n_top`.

Source: document 3, sections 2.2 and 3.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lib.npeff import archive, concept_search, store
from lib.npeff.coefficients import fit_coefficients
from lib.npeff.decomposition import Decomposition
from lib.npeff.fetch import fetch_decomposition
from lib.npeff.store import Fishers
from lib.npeff.testbeds import Testbed

Progress = Callable[[Sequence[int]], Iterator[int]]
N_TOP = 128  # top examples of a component in the document, of 50,000 with 512 components


def n_top(n: int, r: int) -> int:
    """How many of n examples stand for one of r components: the document's share, at most 128."""
    return min(N_TOP, max(8, round(N_TOP * 512 / 50_000 * n / r)), n)


@dataclass(frozen=True)
class Components:
    """Components of one network and how strongly examples use them."""

    bed: Testbed
    decomposition: Decomposition  # of the fit examples; unit components, largest first
    held_out: Tensor  # [n', r], coefficients of the held-out examples
    norms: Tensor  # float64 [n'], of their dense PEFs
    logits: Tensor  # [n', C]
    shares: Tensor  # float64 [n], q: what of each fit example's PEF the kept entries hold

    @property
    def top(self) -> Tensor:
        """Held-out examples with the largest coefficients, int64 `[r, T]`."""
        return concept_search.top_examples(self.held_out, n_top(*self.held_out.shape))

    @property
    def predicted(self) -> Tensor:
        """The network's class of the held-out examples, int64 `[n']`."""
        return self.logits.argmax(1)


def components_of(
    bed: Testbed,
    *,
    kind: str,
    k: int,
    r: int,
    seed: int = 0,
    steps: int = 400,
    restarts: int = 1,
    raw: bool = False,
    progress: Progress | None = None,
) -> Components:
    """Factorise a testbed's PEFs and read the components on its held-out examples.

    Args:
        kind: LOW_RANK or DIAGONAL.
        k: entries kept an example.
        r: components.
        seed: of the start.
        steps: joint steps; the components alone take a tenth of that before.
        restarts: starts, of which the lowest loss is kept.
        raw: leave the PEFs as they are, the document's first attempt.
        progress: wraps the lists of parts whose PEFs are made.
    """
    fit = fishers_of(bed, "fit", kind=kind, k=k, progress=progress)
    held = fishers_of(bed, "held_out", kind=kind, k=k, progress=progress)
    prepared = store.prune(fit if raw else store.normalise(fit))
    made = fetch_decomposition(prepared, r, seed=seed, steps=steps, restarts=restarts)
    read = store.select_columns(held if raw else store.normalise(held), prepared.kept)
    return Components(
        bed,
        made,
        fit_coefficients(made, read),
        held.norms,
        held.logits,
        store.sparse_norms(store.normalise(fit)),
    )


def fishers_of(
    bed: Testbed, part: str, *, kind: str, k: int, progress: Progress | None = None
) -> Fishers:
    """Raw PEFs of the testbed's "fit" or "held_out" examples, by its block, cached.

    Raises:
        ValueError: more than all entries of an example are to be kept.
    """
    examples = {"fit": bed.fit, "held_out": bed.held_out}[part]
    return archive.fetch_fishers(
        bed.model,
        examples.x,
        kind=kind,
        k=k,
        block=bed.block,
        eps=bed.eps,
        progress=progress,
    )


@dataclass(frozen=True)
class Tuning:
    """What the top examples of each component have in common."""

    concept: Tensor  # int64 [r], the most frequent concept among the top examples
    share: Tensor  # float64 [r], of the top examples that have it
    null: float  # share that the best of r random sets stays below in 95% of draws
    null_one_prediction: float  # the same for random sets of examples with one prediction
    prediction: Tensor  # float64 [r], share of the most frequent prediction

    @property
    def tuned(self) -> Tensor:
        """Components beyond chance, bool [r]."""
        return self.share > self.null


def tuning(
    coefficients: Tensor,
    concept: Tensor,
    predicted: Tensor,
    *,
    seed: int,
    n_draws: int = 1000,
    size: int | None = None,
) -> Tuning:
    """Concepts and predictions that top examples share, beside random sets.

    Args:
        coefficients: `[n, r]`.
        concept: the rule or class of each example, int64 `[n]`.
        predicted: the network's class, int64 `[n]`.
        n_draws: of r random sets each.
        size: top examples of each component; None is `n_top`.

    Raises:
        ValueError: shapes that disagree.
    """
    n, r = coefficients.shape
    if concept.shape != (n,) or predicted.shape != (n,):
        raise ValueError(
            f"want concept and predicted [{n}], got {concept.shape}, {predicted.shape}"
        )
    size = size or n_top(n, r)
    top = concept_search.top_examples(coefficients, size)
    generator = torch.Generator().manual_seed(seed)
    (names, share), (_, prediction) = (_most_frequent(v[top]) for v in (concept, predicted))
    chance = _null(concept, size, r, n_draws, generator)
    one_prediction = [
        _null(concept[predicted == c], size, r, n_draws, generator)
        for c in predicted.unique()
        if (predicted == c).sum() > size
    ]
    return Tuning(
        names,
        share,
        chance,
        max(one_prediction, default=1.0),
        prediction,
    )


def _null(values: Tensor, size: int, r: int, n_draws: int, generator: torch.Generator) -> float:
    """Share of the most frequent value that the best of r random sets stays below in 95%.

    Of a set drawn without replacement the counts of values matter alone: they are drawn directly.
    """
    draw = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    counts = draw.multivariate_hypergeometric(values.bincount().numpy(), size, n_draws * r)
    best = torch.from_numpy(counts).amax(1).view(n_draws, r).amax(1).double() / size
    return float(best.quantile(0.95))


def _most_frequent(sets: Tensor) -> tuple[Tensor, Tensor]:
    """The most frequent value of each row of `[s, T]`, and its share."""
    counts = torch.zeros(len(sets), int(sets.max()) + 1, dtype=torch.float64)
    counts.scatter_add_(1, sets, torch.ones(sets.shape, dtype=torch.float64))
    most = counts.max(1)
    return most.indices, most.values / sets.shape[1]
