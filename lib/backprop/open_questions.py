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
    specificity_studies,
    tabular,
)
from lib.backprop import probe_quality_studies as quality_studies
from lib.backprop import weight_problems as problems
from lib.backprop import weight_studies as weights
from lib.backprop.language_studies import Outcome, Subject
from lib.backprop.open_pictures import over_models
from lib.backprop.specificity_studies import Specificity
from lib.claims import Measured
from lib.config import Run
from lib.shares import average, gap


@dataclass(frozen=True)
class Languages:
    """Per kind of weights ("trained", "random") and number of layers: one entry a seed."""

    subjects: Mapping[str, Mapping[int, Sequence[Subject]]]
    outcomes: Mapping[str, Mapping[int, Sequence[Outcome]]]
    others: Mapping[str, Mapping[int, Sequence[Specificity]]]  # for the four concepts

    @property
    def deepest(self) -> int:
        return max(self.subjects["trained"])

    def each(self, kind: str) -> list[Outcome]:
        """Outcomes of every model of a kind."""
        return [o for of in self.outcomes[kind].values() for o in of]


@dataclass(frozen=True)
class Domain:
    """A problem, its front, and what every rule chose."""

    problem: weights.Problem
    path: weights.Front
    chosen: Sequence[weights.Chosen]  # bisection and Lagrangian first

    def reached(self, rule: int) -> torch.Tensor:
        """Whether a rule did as asked, over feasible inputs."""
        return weights.reached(self.problem, self.chosen[rule], self.path)

    @property
    def reach(self) -> float:
        """The distance that counts as 1: the front's farthest point, median over inputs."""
        return self.path.distance.amax(0).median().item()

    def hypervolume(self, y: torch.Tensor) -> torch.Tensor:
        """Share of the square under a front of `y` (gain or truth) against distance, `[n]`."""
        return weights.hypervolume(self.path.distance, y, self.reach)


def languages(run: Run) -> Languages:
    """Train models of every depth and seed, and explain them and their untrained twins."""
    size, width = run.size, run.size.language["width"]
    subjects: dict[str, dict[int, list[Subject]]] = {}
    others: dict[str, dict[int, list[Specificity]]] = {}
    for kind, n_seeds in size.language_seeds.items():
        seeds = range(run.seed, run.seed + n_seeds)
        made = {
            k: [
                language.fetch_model(k, seed=seed, **size.language)
                if kind == "trained"
                else language.untrained(k, width, seed=seed)
                for seed in seeds
            ]
            for k in size.layers
        }
        subjects[kind] = {
            k: [
                language_studies.prepare(m, n_probe=size.n_probe, n=size.n_prefixes, seed=seed)
                for m, seed in zip(of, seeds, strict=True)
            ]
            for k, of in made.items()
        }
        if kind in size.clauses_of:
            others[kind] = {k: _four(of, run, seeds) for k, of in made.items()}
    outcomes = {
        kind: {k: [language_studies.explain(x) for x in made] for k, made in of.items()}
        for kind, of in subjects.items()
    }
    return Languages(subjects, outcomes, others)


def _four(models: Sequence[language.CausalModel], run: Run, seeds: range) -> list[Specificity]:
    how = {"n_probe": run.size.n_probe, "n": run.size.n_clauses}
    beds = [
        specificity_studies.prepare(m, **how, seed=seed)
        for m, seed in zip(models, seeds, strict=True)
    ]
    return [specificity_studies.study(bed) for bed in beds]


def domains(run: Run, spoken: Languages) -> dict[str, Domain]:
    """The fronts of three problems and every rule on them."""
    size, seed = run.size, run.seed
    table = tabular.prepare("shared", run.data_root, seed=seed, **size.table)
    digits = images.prepare("digits", run.data_root, seed=seed, **size.digits)
    loop, _ = images.validated_probe(digits, images.loop(digits), seed=seed)
    rows = image_edits.without_loop(digits, loop, size.n_inputs)
    deepest = spoken.subjects["trained"][spoken.deepest][0]
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
    trained, random = spoken.each("trained"), spoken.each("random")
    depths = spoken.outcomes["trained"]
    lure = [
        torch.tensor([o.mass[:, language.ATTRACTOR].mean() for o in depths[k]])
        for k in (min(depths), max(depths))
    ]
    moved = [over_models(of, lambda o: o.behaviour) for of in (trained, random)]
    done = [torch.cat([d.reached(rule) for d in weighed.values()]) for rule in (0, 1)]
    four = [o for of in spoken.others["trained"].values() for o in of]
    return {
        "P5-50": min(weights.decades(d.chosen[0]) for d in weighed.values()),
        "P5-51": average(done[0]),
        "P5-52": average(done[1]),
        "P5-53": over_models(trained, lambda o: o.place == language.SUBJECT),
        "P5-54": over_models(trained, lambda o: o.after - o.rounded),
        "P5-55": gap(*moved),
        "P5-56": average(lure[0] - lure[1]),
        "P5-63": average(torch.tensor([o.leak(words=False) for o in four])),
        "P5-64": average(torch.tensor([o.leak(words=True) for o in four])),
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
        "P5-58": gap(*map(average, good)) if min(map(len, good)) > 1 else None,
        "P5-59": average(unlabelled),
    }


def _fall(sizes: Sequence[scaling_studies.Configuration]) -> tuple[float, float]:
    """Truth rate of the smallest minus that of the largest network, mean over architectures."""
    falls = []
    for name in sorted({c.architecture for c in sizes}):
        of = sorted((c for c in sizes if c.architecture == name), key=lambda c: c.n_weights)
        falls.append(gap(average(of[0].truth), average(of[-1].truth)))
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
