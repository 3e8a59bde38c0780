"""The networks and concepts of notebooks 12 and 13: what is attributed, and what judges it.

Document 1, method. Concept images fall into three parts: some fit the probe, some have their
logits attributed, and others judge what a removal did, because judging on the attributed ones
exaggerates (specification of document 1, section 5.2). No image is in two parts, except that all
flat patches of *hilo-synthetic*, a sixth of it, are one and the same image.

Public names: `Case`, `Study`, `load`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.attribution import settings
from lib.attribution.concepts import ConceptData, refuse_overlap
from lib.attribution.truth import Setting
from lib.config import Run
from lib.data import cifar10, digits
from lib.data.base import Provenance
from lib.probes import testbeds
from lib.probes.testbeds import Concept


@dataclass(frozen=True)
class Case:
    """A concept, its images, and the classes of the network's own task that show it."""

    name: str
    kind: str  # "object" | "low-level"
    note: str
    data: ConceptData
    eval_x: Tensor  # [E, ...]
    eval_y: Tensor  # [E] in {0, 1}
    classes: tuple[int, ...]  # empty where no class of the task shows the concept

    def shown_by(self, labels: Tensor) -> Tensor:
        """Which training examples `[n]` belong to the concept's classes."""
        return torch.isin(labels, torch.tensor(self.classes, dtype=labels.dtype))


@dataclass(frozen=True)
class Study:
    """A network's setting, the layers that are probed and the concepts."""

    setting: Setting
    network: str
    layers: tuple[str, ...]  # in order of depth
    cases: Mapping[str, Case]
    class_names: tuple[str, ...]
    provenance: Provenance

    def __str__(self) -> str:
        n = len(self.setting.train)
        return f"{self.setting.name}, {self.network}, {n:,} training images"


def load(run: Run) -> Study:
    """The study of `run.size`: `data`, `concepts`, `layers`, `n_fit`, `n_attributed`, `n_eval`.

    Raises:
        ValueError: an unknown data set or concept, or concept images among the training images.
    """
    if run.size.data not in STUDIES:
        raise ValueError(f"data is one of {', '.join(STUDIES)}; got {run.size.data!r}")
    study = STUDIES[run.size.data](run)
    unknown = set(run.size.concepts) - set(study.cases)
    if unknown:
        known = ", ".join(study.cases)
        raise ValueError(f"{run.size.data} has no concept {', '.join(unknown)}; it has {known}")
    for case in study.cases.values():
        for x in (case.data.fit_x, case.data.x, case.eval_x):
            refuse_overlap(study.setting.train.x, x, f"images of the concept {case.name}")
    return study


def _digits(run: Run) -> Study:
    data = digits.load(seed=0)
    found = {
        "round": _case(run, testbeds.round_digits(data), testbeds.ROUND),
        "hilo-synthetic": _case(run, testbeds.hilo_synthetic(run.seed), ()),
    }
    return Study(
        setting=settings.digits_deep(run.size.n_attributed),  # what is attributed judges nothing
        network="MLP 64-32-32-10",
        layers=tuple(run.size.layers),
        cases={name: found[name] for name in run.size.concepts if name in found},
        class_names=tuple("0123456789"),
        provenance=data.provenance,
    )


def _cifar10(run: Run) -> Study:
    data = cifar10.load(run.data_root)
    # the first test images judge the networks' own task
    rest = slice(settings.N_CIFAR10_TEST, None)
    known = testbeds.cifar_concepts(data.test.x[rest], data.test.y[rest], run.seed)
    shown = {"animal": testbeds.ANIMAL}
    cases = {
        name: _case(run, known[name], shown.get(name, ()), settings.cifar_pixels)
        for name in run.size.concepts
        if name in known
    }
    return Study(
        setting=settings.cifar10_mini(run.data_root),
        network="three convolutions, 16x16 pixels",
        layers=tuple(run.size.layers),
        cases=cases,
        class_names=data.names,
        provenance=data.provenance,
    )


def _case(
    run: Run,
    concept: Concept,
    classes: tuple[int, ...],
    prepare: Callable[[Tensor], Tensor] = torch.clone,
) -> Case:
    """The first rows of each part, in the random order that the concept has."""
    n_fit, a, b = run.size.n_fit, run.size.n_attributed, run.size.n_eval
    parts = (concept.fit_y[:n_fit], concept.test_y[:a], concept.test_y[a : a + b])
    for words, labels in zip(("fit", "attributed", "judging"), parts, strict=True):
        if labels.unique().numel() < 2:
            raise ValueError(
                f"the {len(labels)} {words} images of {concept.name} are of one class or none; "
                "change n_fit, n_attributed or n_eval"
            )
    data = ConceptData(
        prepare(concept.fit_x[:n_fit]), parts[0], prepare(concept.test_x[:a]), parts[1]
    )
    eval_x = prepare(concept.test_x[a : a + b])
    return Case(concept.name, concept.kind, concept.note, data, eval_x, parts[2], classes)


STUDIES = {"digits": _digits, "cifar10": _cifar10}
