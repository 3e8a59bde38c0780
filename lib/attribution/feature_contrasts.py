"""What notebook 47 computes beyond maps: smallest changes of an input, and concepts of a layer.

Document 4, recap of feature attribution: counterfactuals; representation-based explanations.

Public names: `changes`, `Changes`, `linear_check`, `concept_tests`, `ConceptTests`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import cache
from lib.attribution import counterfactuals, feature_subjects, tcav
from lib.attribution.counterfactuals import Counterfactual
from lib.attribution.feature_subjects import Subject
from lib.config import Run
from lib.training.loop import Progress, predict

LEVEL = 0.05


@dataclass(frozen=True)
class Changes:
    """Smallest changes that make the second most likely class win, beside real examples."""

    target: Tensor  # [n] the wanted class
    found: Mapping[str, Counterfactual]  # norm -> what the search found
    nearest: Tensor  # [n, c, h, w] the nearest example taken for the wanted class; NaN if none
    real: Mapping[
        str, Tensor
    ]  # norm -> distance to the nearest such example, [n]; infinity if none
    kept: float | None  # L2 changes that alter another seed's network the same way

    def ratio(self, norm: str = "L2") -> Tensor:
        """Length of the change over the distance to the example, of the rows that have both."""
        both = self.found[norm].found & self.real[norm].isfinite()
        return (self.found[norm].length / self.real[norm])[both]


def changes(subject: Subject, run: Run, progress: Progress | None = None) -> Changes:
    """Search a counterfactual of each image for the class next in line, in L1 and in L2."""
    logits = predict(subject.model, subject.x, chunk=8)
    target = logits.topk(2).indices[:, 1]
    nearest, real = _nearest(subject, target)
    n_steps = run.size.search_steps
    l2 = _searched(subject, target, "L2", nearest, n_steps, progress)
    # where the L2 search found something the L1 search can begin there
    begin = torch.where(l2.delta.isfinite(), subject.x + l2.delta, nearest)
    l1 = _searched(subject, target, "L1", begin, n_steps, progress)
    found = {"L1": l1, "L2": l2}
    kept = None
    if subject.other is not None:
        moved = subject.x + found["L2"].delta.nan_to_num(0.0)
        kept = (predict(subject.other, moved).argmax(1) == target).double().mean().item()
    return Changes(target, found, nearest, real, kept)


def _searched(
    subject: Subject,
    target: Tensor,
    norm: str,
    start: Tensor,
    n_steps: int,
    progress: Progress | None,
) -> Counterfactual:
    def build() -> dict[str, Tensor]:
        result = counterfactuals.search(
            subject.model,
            subject.x,
            target,
            norm=norm,
            low=subject.low,
            high=subject.high,
            n_steps=n_steps,
            start=start,
            progress=progress,
        )
        return vars(result)

    config = {
        "network": subject.network,
        "model": cache.state_hash(subject.model.state_dict()),
        "x": cache.state_hash({"x": subject.x, "target": target, "start": start}),
        "norm": norm,
        "box": [subject.low, subject.high],
        "n_steps": n_steps,
    }
    stored = cache.fetch("counterfactual", config, build, code=[counterfactuals.search])
    return Counterfactual(**{name: value.to(subject.x.device) for name, value in stored.items()})


def _nearest(subject: Subject, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The L2-nearest example of each wanted class, and the distances in either norm."""
    images = torch.full_like(subject.x, torch.nan)
    real = {norm: torch.full((len(target),), torch.inf) for norm in counterfactuals.NORMS}
    for i, label in enumerate(target.tolist()):
        rows = subject.real[subject.real_classes == label]
        if len(rows) == 0:
            continue
        gap = (subject.prepare(rows).to(subject.x) - subject.x[i]).flatten(1)
        length = gap.norm(dim=1)
        best = int(length.argmin())
        real["L2"][i], real["L1"][i] = length[best].cpu(), gap.abs().sum(1).min().cpu()
        images[i] = subject.x[i] + gap[best].reshape(images[i].shape)
    return images, {norm: values.to(subject.x.device) for norm, values in real.items()}


def linear_check(*, d: int = 20, n: int = 50, seed: int = 0) -> dict[str, float]:
    """Largest relative error of the search on random linear models, whose answer is known.

    Two logits, no bound in reach: the shortest change is the margin over the weight's length (L2)
    or over its largest entry (L1).
    """
    generator = torch.Generator().manual_seed(seed)
    model = nn.Linear(d, 2).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    out = model(x).detach()
    target = out.argmin(1)
    need = (out.amax(1) - out.amin(1)).abs()
    weight = (model.weight[0] - model.weight[1]).detach()
    answers = {"L1": need / weight.abs().max(), "L2": need / weight.norm()}
    errors = {}
    for norm, answer in answers.items():
        found = counterfactuals.search(model, x, target, norm=norm, low=-1e3, high=1e3, n_steps=5)
        errors[norm] = ((found.length - answer).abs() / answer).max().item()
    return errors


@dataclass(frozen=True)
class ConceptTests:
    """Each concept against random ones, class by class."""

    concepts: feature_subjects.Concepts
    tests: Mapping[str, tcav.Test]
    adjusted: Mapping[str, Tensor]  # concept -> Holm's p values over all pairs, [K]
    adjusted_one: Mapping[str, Tensor]  # the same of the test that takes a concept for one draw
    null: Tensor  # [N, r, K] scores of random concepts
    false_t: Tensor  # [N] share of classes that the t test grants a random concept
    false_one: Tensor  # [N] the same of the other test

    def share_found(self, *, as_one: bool = False) -> float:
        """Share of the expected pairs whose score is significantly above the null."""
        at = {c: k for k, c in enumerate(self.concepts.classes)}
        adjusted = self.adjusted_one if as_one else self.adjusted
        hits = [
            bool(
                adjusted[name][at[c]] < LEVEL
                and self.tests[name].score[at[c]] > self.tests[name].null[at[c]]
            )
            for name, c in self.concepts.expected
        ]
        return sum(hits) / len(hits)


def concept_tests(
    subject: Subject, run: Run, layer: str, progress: Progress | None = None
) -> ConceptTests:
    """TCAV of the data set's concepts for its classes, with random concepts of the same size."""
    found = feature_subjects.load_concepts(subject, run, layer, progress)
    size = run.size.concepts
    generator = torch.Generator().manual_seed(run.seed)
    null = tcav.null_scores(
        size["k"],
        found.pool,
        found.slopes,
        n_runs=size["n_runs"],
        n_random=size["n_random"],
        generator=generator,
    )
    tests = {
        name: tcav.test(
            tcav.concept_scores(
                found.active[name],
                found.pool,
                found.slopes,
                n_runs=size["n_runs"],
                generator=generator,
            ),
            null,
        )
        for name in found.names
    }
    false_t, false_one = tcav.false_positives(null)
    return ConceptTests(
        found,
        tests,
        _adjusted({name: test.p_t for name, test in tests.items()}),
        _adjusted({name: test.p_one for name, test in tests.items()}),
        null,
        false_t,
        false_one,
    )


def _adjusted(p: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Holm's correction over all concepts and classes together."""
    adjusted = tcav.holm(torch.stack(list(p.values())))
    return dict(zip(p, adjusted, strict=True))
