"""What notebook 36 measures: components made on mispredicted examples, and repairs along them.

A general decomposition is expanded on the examples that the network gets wrong, coefficients of
unfiltered examples are fitted, and components are ranked by how many of their top examples are
mispredicted. Then the network is moved along them: by the document's fixed length, and by sizes
that the loss chooses. Whatever is chosen is chosen on one half of the held-out examples, and
counted on the other.

Public names: `expand_on_errors`, `Expanded`, `by_rule`, `mispredicted`, `shares_by_count`,
`count_difference`, `Bench`, `bench_of`, `gains`, `workbench`, `weighed`, `points`, `bounded`,
`describe`, `gain_rows`, `outcome_rows`, `top_rows`, `raised`, `gain_beyond_random`, `repaired`,
`advantage`.

Source: document 3, section 3.5; specification sections 4.2 and 7. Repairs are this project's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.features import Progress
from lib.npeff import concept_search, perturb, repair, store
from lib.npeff.coefficients import expand, fit_coefficients
from lib.npeff.components import Components, fishers_of
from lib.npeff.decomposition import Decomposition
from lib.npeff.divergence import CHUNK
from lib.npeff.perturb import Directions
from lib.npeff.repair import Gains, Repair, Split, Workbench
from lib.npeff.repair_within import ALLOWED, COMPONENT, Outcome, repair_within
from lib.npeff.testbeds import Testbed
from lib.shares import gap, share
from lib.training import predict

N_TOP, LEAST_WRONG = 16, 8  # top examples looked at, and how many must be mispredicted: document's
NORM = 0.3  # of the document's perturbations
RAISED = 0.005  # the gain in accuracy that the document counts
N_WEIGHED = 400  # other examples that `weighed` sees, at most, to bound its cost


@dataclass(frozen=True)
class Expanded:
    """A general decomposition and the components added for mispredicted examples."""

    bed: Testbed
    decomposition: Decomposition  # of the mispredicted fit examples; new components first
    held_out: Tensor  # [n', r_new + r], coefficients of all held-out examples
    wrong: Tensor  # bool [n'], held-out examples that the network gets wrong
    n_filtered: int  # mispredicted fit examples

    @property
    def n_new(self) -> int:
        """Components that the expansion added."""
        return self.decomposition.n_components - self.decomposition.frozen

    def top(self, rows: Tensor | None = None, n: int = N_TOP) -> Tensor:
        """Held-out examples of largest coefficient, among some rows if given: int64 `[r, n]`."""
        if rows is None:
            return concept_search.top_examples(self.held_out, n)
        return rows[concept_search.top_examples(self.held_out[rows], n)]


def expand_on_errors(
    found: Components,
    *,
    k: int,
    n_new: int,
    seed: int,
    steps: int,
) -> Expanded:
    """Components for what the network gets wrong, beside the general ones.

    Args:
        found: the general decomposition of all fit examples.
        k: entries kept of a PEF, as for `found`.
        n_new: components to add; the document's 64.
        steps: joint steps; the new components alone take a tenth of that before.

    Raises:
        ValueError: fewer mispredicted examples than components to add.

    Source: document 3, section 3.5 and its steps in specification 7: decompose, filter, expand,
    fit the unfiltered examples.
    """
    bed = found.bed
    fit = fishers_of(bed, "fit", kind=store.LOW_RANK, k=k)
    held = fishers_of(bed, "held_out", kind=store.LOW_RANK, k=k)
    wrong = (fit.logits.argmax(1).cpu() != bed.fit.y.cpu()).nonzero()[:, 0]
    if len(wrong) < n_new:
        raise ValueError(
            f"want at least {n_new} mispredicted examples for {n_new} new components, the network "
            f"errs on {len(wrong)} of {len(fit)}; take more examples or a network that errs more"
        )
    filtered = store.normalise(store.take(fit, wrong))
    made = expand(
        found.decomposition, filtered, n_new, seed=seed, component_steps=steps // 10, steps=steps
    )
    read = fit_coefficients(made, store.normalise(held))
    errs = held.logits.argmax(1).cpu() != bed.held_out.y.cpu()
    return Expanded(bed, made, read, errs, len(wrong))


def by_rule(bed: Testbed) -> Tensor:
    """Accuracy on the held-out examples of each concept, float64 `[concepts]`; NaN without any."""
    right = (predict(bed.model, bed.held_out.x).argmax(1).cpu() == bed.held_out.y).double()
    concepts = range(len(bed.concepts))
    return torch.stack([right[bed.held_out.concept == c].mean() for c in concepts])


def mispredicted(found: Expanded, rows: Tensor | None = None) -> Tensor:
    """How many of each component's 16 top examples are mispredicted, int64 `[r]`."""
    return found.wrong[found.top(rows)].sum(1)


def shares_by_count(found: Expanded, *, seed: int, n_draws: int = 1000) -> dict[str, Tensor]:
    """Share of components with at least 0..16 mispredicted top examples, float64 `[17]` each.

    The third curve is of random sets of 16 held-out examples.
    """
    counts, n = mispredicted(found), found.n_new
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(n_draws, len(found.wrong), generator=generator).topk(N_TOP, dim=1).indices
    kinds = {
        "expanded": counts[:n],
        "general": counts[n:],
        "random sets": found.wrong[draws].sum(1),
    }
    least = torch.arange(N_TOP + 1)
    return {k: (v[:, None] >= least).double().mean(0) for k, v in kinds.items()}


def count_difference(found: Expanded) -> tuple[float, float]:
    """Share of expanded minus share of general components with 8 of 16 mispredicted; its error."""
    mask = mispredicted(found) >= LEAST_WRONG
    return gap(share(mask[: found.n_new]), share(mask[found.n_new :]))


@dataclass(frozen=True)
class Bench:
    """What repairs work with: directions, candidates, and examples to choose and to count on."""

    found: Expanded
    directions: Directions  # of all components
    candidates: Tensor  # int64 [k], most mispredicted first
    n_wrong: Tensor  # int64 [k], of their 16 top examples in the selection half
    selection: Split
    test: Split

    @property
    def chosen(self) -> Tensor:
        """Candidates that the document's criterion picks, bool `[k]`."""
        return self.n_wrong >= LEAST_WRONG


def bench_of(found: Expanded, rule: str, *, n_candidates: int, seed: int) -> Bench:
    """Halve the held-out examples and pick candidates on the first half.

    Args:
        rule: counter-examples of the heuristic are the pairs of this concept, right or wrong.
        n_candidates: components, those of the most mispredicted top examples.
    """
    concept = found.bed.held_out.concept
    counter = concept == found.bed.concepts.index(rule)
    generator = torch.Generator().manual_seed(seed)
    selection, test = repair.split(counter.nonzero()[:, 0], (~counter).nonzero()[:, 0], generator)
    counts = mispredicted(found, selection.rows)
    made = found.decomposition
    order = counts.argsort(descending=True, stable=True)
    alive = made.components.norm(dim=1)[order] > 0
    candidates = order[alive][:n_candidates]
    ways = perturb.directions(made.components, made.kept, made.parameters)
    return Bench(found, ways, candidates, counts[candidates], selection, test)


def gains(
    bench: Bench, *, norm: float = NORM, seed: int, progress: Progress | None = None
) -> Gains:
    """The document's repair: a fixed length both ways, the sign chosen on the selection half."""
    bed = bench.found.bed
    return repair.accuracy_gains(
        bed.model,
        (bed.held_out.x, bed.held_out.y),
        bench.directions,
        bench.candidates,
        norm=norm,
        selection=bench.selection.rows,
        test=bench.test.rows,
        generator=torch.Generator().manual_seed(seed),
        progress=progress,
    )


def workbench(bench: Bench, n_elsewhere: int | None = None, balance: float = 0.5) -> Workbench:
    """What repairs see: all counter-examples of the selection half, and so many others, or all."""
    bed = bench.found.bed
    seen = Split(bench.selection.counter, bench.selection.elsewhere[:n_elsewhere])
    data = (bed.held_out.x, bed.held_out.y)
    return Workbench(bed.model, data, bench.directions, seen, bench.test, balance, CHUNK)


def weighed(bench: Bench, *, seed: int, progress: Progress | None = None) -> Repair:
    """Repairs whose sign and size the loss chooses, counter-examples weighing as much as others.

    Args:
        progress: wraps the range of candidates.
    """
    work = workbench(bench, N_WEIGHED)
    return repair.repair(
        work.model,
        work.data,
        work.directions,
        bench.candidates,
        selection=work.selection,
        test=work.test,
        generator=torch.Generator().manual_seed(seed),
        progress=progress,
    )


def points(made: Repair) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gains of test accuracy: candidates and random directions `[k, 2]`, the two controls `[2]`."""
    return (
        torch.stack([made.gain(change) for change in made.candidates]),
        torch.stack([made.gain(change) for change in made.random]),
        made.gain(made.gradient),
        made.gain(made.tuned),
    )


def describe(found: Expanded) -> str:
    """How many examples are mispredicted, and how many components meet the criterion."""
    bed, mask = found.bed, mispredicted(found) >= LEAST_WRONG
    new, general = mask[: found.n_new], mask[found.n_new :]
    return (
        f"mispredicted: {found.n_filtered} of {len(bed.fit):,} fitted and "
        f"{int(found.wrong.sum())} of {len(bed.held_out):,} held-out examples\n"
        f"at least {LEAST_WRONG} of {N_TOP}: {int(new.sum())} of {len(new)} expanded components, "
        f"{int(general.sum())} of {len(general)} general ones"
    )


def bounded(
    bench: Bench, *, seed: int, allowed: float = ALLOWED, progress: Progress | None = None
) -> Mapping[str, Outcome]:
    """Repairs that may lose a point elsewhere, by every method.

    Args:
        progress: wraps the range of candidates.
    """
    return repair_within(
        workbench(bench),
        bench.candidates,
        generator=torch.Generator().manual_seed(seed),
        allowed=allowed,
        progress=progress,
    )


def gain_rows(bench: Bench, found: Gains) -> list[dict[str, object]]:
    """Rows of a table: each candidate, its mispredicted top examples and what moving it gains."""
    rows: list[dict[str, object]] = []
    for i, j in enumerate(bench.candidates.tolist()):
        rows.append(
            {
                "component": j,
                "made": "on errors" if j < bench.found.n_new else "in general",
                "mispredicted of 16": int(bench.n_wrong[i]),
                "gain, other examples": f"{100 * float(found.other[i]):+.2f}",
                "gain, same examples": f"{100 * float(found.same[i]):+.2f}",
                "random, other examples": f"{100 * float(found.random_other[i]):+.2f}",
            }
        )
    return rows


def outcome_rows(bench: Bench, found: Mapping[str, Outcome]) -> list[dict[str, object]]:
    """Rows of a table: what each method repairs and damages, in points."""
    rows: list[dict[str, object]] = []
    for method, outcome in found.items():
        gain, spread = 100 * outcome.gain, 100 * outcome.spread
        which = f" {int(bench.candidates[outcome.candidate])}" if method == COMPONENT else ""
        rows.append(
            {
                "method": method + which * (outcome.candidate >= 0),
                "proposals": outcome.n_tried,
                "size": f"{outcome.size:+.2g}" if outcome.size else "none",
                "counter-examples": f"{gain[0]:+.1f} ± {spread[0]:.1f}",
                "elsewhere": f"{gain[1]:+.1f} ± {spread[1]:.1f}",
                "when chosen": f"{100 * float(outcome.selected[0]):+.1f}, "
                f"{100 * float(outcome.selected[1]):+.1f}",
            }
        )
    return rows


def top_rows(found: Expanded, j: int, n: int = 6) -> list[dict[str, object]]:
    """Rows of a table: the first held-out pairs of a component, with label and prediction."""
    bed, rows = found.bed, []
    predicted = predict(bed.model, bed.held_out.x).argmax(1).cpu()
    for i in found.top()[j, :n].tolist():
        premise, hypothesis = bed.held_out.text[i]
        rows.append(
            {
                "premise": premise,
                "hypothesis": hypothesis,
                "rule": bed.concepts[int(bed.held_out.concept[i])],
                "label": bed.classes[int(bed.held_out.y[i])],
                "prediction": bed.classes[int(predicted[i])],
            }
        )
    return rows


def raised(bench: Bench, found: Gains) -> tuple[float, float] | None:
    """Share of the components that the criterion picks which raise accuracy by .5 points.

    None if it picks none.
    """
    if not bench.chosen.any():
        return None
    return share(found.other[bench.chosen] >= RAISED)


def gain_beyond_random(bench: Bench, found: Gains) -> tuple[float, float] | None:
    """Gain of the best of these components minus that of the best random direction; its error.

    Which is best is chosen on the selection half, its gain counted on the test half.
    """
    if not bench.chosen.any():
        return None
    mask = bench.chosen
    best = found.other[mask][found.selected[mask].argmax()]
    null = found.random_other[mask][found.random_selected[mask].argmax()]
    n = len(bench.test.rows)
    changed = max(abs(float(best)), abs(float(null)), 1 / n)  # at least so many answers change
    return float(best - null), (2 * changed / n) ** 0.5


def repaired(outcome: Outcome, allowed: float = ALLOWED) -> tuple[float, float]:
    """Gain on the counter-examples and its error; 0 if the test examples elsewhere lose more."""
    if float(outcome.gain[1]) < -allowed:
        return 0.0, float(outcome.spread[0])
    return float(outcome.gain[0]), float(outcome.spread[0])


def advantage(a: Outcome, b: Outcome) -> tuple[float, float]:
    """Difference of two repairs' gains, and its error."""
    first, second = repaired(a), repaired(b)
    return first[0] - second[0], (first[1] ** 2 + second[1] ** 2) ** 0.5
