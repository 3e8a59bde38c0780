"""Notebook 54 from its sizes to its claims: the studies of the open questions, put together.

In reading order: `languages` (models, probes, edits), `domains` and `rules` (weights of the
distance), `measured` (what the claims judge).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lib.backprop import (
    entanglement,
    image_edits,
    images,
    language,
    language_studies,
    scaling_studies,
    tabular,
)
from lib.backprop import probe_quality_studies as quality_studies
from lib.backprop import weight_problems as problems
from lib.backprop import weight_studies as weights
from lib.backprop.language_studies import Outcome, Subject
from lib.backprop.open_pictures import share
from lib.claims import Measured
from lib.config import Run


@dataclass(frozen=True)
class Languages:
    """Per kind of weights ("trained", "random") and number of layers."""

    subjects: Mapping[str, Mapping[int, Subject]]
    outcomes: Mapping[str, Mapping[int, Outcome]]

    @property
    def deepest(self) -> int:
        return max(self.subjects["trained"])


@dataclass(frozen=True)
class Domain:
    """A problem, its front, and what every rule chose."""

    problem: weights.Problem
    path: weights.Front
    chosen: Sequence[weights.Chosen]  # bisection and Lagrangian first

    def reached(self, rule: int) -> torch.Tensor:
        """Whether a rule did as asked, over feasible inputs."""
        return weights.reached(self.problem, self.chosen[rule], self.path)


def languages(run: Run) -> Languages:
    """Train a model of every depth, and explain it and its untrained twin."""
    size, seed = run.size, run.seed
    subjects: dict[str, dict[int, Subject]] = {"trained": {}, "random": {}}
    how = {"n_probe": size.n_probe, "n": size.n_prefixes, "seed": seed}
    for k in size.layers:
        trained = language.fetch_model(k, seed=seed, **size.language)
        random = language.untrained(k, size.language["width"], seed=seed)
        subjects["trained"][k] = language_studies.prepare(trained, **how)
        subjects["random"][k] = language_studies.prepare(random, **how)
    outcomes = {
        kind: {k: language_studies.explain(subject) for k, subject in of.items()}
        for kind, of in subjects.items()
    }
    return Languages(subjects, outcomes)


def domains(run: Run, spoken: Languages) -> dict[str, Domain]:
    """The fronts of three problems and every rule on them."""
    size, seed = run.size, run.seed
    table = tabular.prepare("shared", run.data_root, seed=seed, **size.table)
    digits = images.prepare("digits", run.data_root, seed=seed, **size.digits)
    loop, _ = images.validated_probe(digits, images.loop(digits), seed=seed)
    rows = image_edits.without_loop(digits, loop, size.n_inputs)
    deepest = spoken.subjects["trained"][spoken.deepest]
    found = {}
    for problem in (
        problems.table_problem(table, n=size.n_inputs, seed=seed),
        problems.picture_problem(digits, rows, seed=seed),
        problems.word_problem(deepest),
    ):
        path = weights.front(problem, size.n_weights)
        chosen = (
            weights.bisect(problem),
            weights.lagrangian(problem, size.fixed),
            weights.directly(problem),
            weights.knee(problem, path),
            weights.fixed(problem, path, size.fixed),
            weights.capped(problem, path),
        )
        found[problem.name] = Domain(problem, path, chosen)
    return found


def measured(
    spoken: Languages,
    weighed: Mapping[str, Domain],
    quality: quality_studies.Study,
    sizes: Sequence[scaling_studies.Configuration],
    leaks: entanglement.Study,
    alpha: float,
) -> dict[str, Measured]:
    """What every claim of the notebook is judged by; see the ledger for the words."""
    trained = spoken.outcomes["trained"]
    behaviour = {
        kind: torch.cat([o.behaviour for o in of.values()]) for kind, of in spoken.outcomes.items()
    }
    lure = [share(trained[k].mass[:, language.ATTRACTOR]) for k in (min(trained), max(trained))]
    done = [torch.cat([d.reached(rule) for d in weighed.values()]) for rule in (0, 1)]
    return {
        "P5-50": min(weights.decades(d.chosen[0]) for d in weighed.values()),
        "P5-51": share(done[0]),
        "P5-52": share(done[1]),
        "P5-53": share(torch.cat([o.place == language.SUBJECT for o in trained.values()])),
        "P5-54": share(torch.cat([o.after - o.rounded for o in trained.values()])),
        "P5-55": (behaviour["trained"].mean() - behaviour["random"].mean()).item(),
        "P5-56": _gap(*lure),
        **_quality(quality),
        "P5-60": _fall(sizes),
        "P5-61": leaks.accuracy(leaks.low),
        "P5-62": _off(leaks, alpha),
    }


def _quality(study: quality_studies.Study) -> dict[str, Measured]:
    from scipy.stats import spearmanr

    used, confounded = study.of("used"), study.of("confounded")
    rank = float(spearmanr(study.score[used], study.quality[used]).statistic)
    good = [study.quality[of & (study.score >= 0.8)] for of in (used, confounded)]
    unlabelled = study.quality[study.noise == 0.5] - quality_studies.CHANCE
    return {
        "P5-57": rank,
        "P5-58": _gap(*map(share, good)) if min(map(len, good)) > 1 else None,
        "P5-59": share(unlabelled),
    }


def _gap(a: tuple[float, float], b: tuple[float, float]) -> tuple[float, float]:
    """Difference of two means and its standard error."""
    return a[0] - b[0], math.hypot(a[1], b[1])


def _fall(sizes: Sequence[scaling_studies.Configuration]) -> tuple[float, float]:
    """Truth rate of the smallest minus that of the largest network, mean over architectures."""
    falls = []
    for name in sorted({c.architecture for c in sizes}):
        of = sorted((c for c in sizes if c.architecture == name), key=lambda c: c.n_weights)
        falls.append(_gap(share(of[0].truth), share(of[-1].truth)))
    gaps, errors = zip(*falls, strict=True)
    return sum(gaps) / len(falls), math.hypot(*errors) / len(falls)


def _off(study: entanglement.Study, alpha: float) -> float:
    """Largest distance of a linear layer's leak, mean over seeds, from the formula."""
    kinds = zip(study.world, study.kind, strict=True)
    mine = torch.tensor([w == "separate" and k == "linear" for w, k in kinds])
    theory = entanglement.predicted_leak(study.rho, alpha)
    return max(
        (study.observed[mine & (study.rho == rho)].mean() - theory[study.rho == rho][0])
        .abs()
        .item()
        for rho in study.rho.unique()
    )
