"""The five documents, the question of each, and what is built for it.

Imports the standard library only, for the tour, the gallery and the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lib.config import ROOT


@dataclass(frozen=True)
class Document:
    """A document and its part of the companion."""

    title: str
    question: str
    lens: str  # what its method looks at, in two or three words
    sections: tuple[str, ...]  # its notebooks, built or planned


DOCUMENTS: dict[int, Document] = {
    1: Document(
        "Attributing Learned Concepts in Neural Networks to Training Data (Konz et al.)",
        "Where is a concept, and which training data put it there?",
        "probes, then data",
        ("11_concept_presence", "12_concept_attribution", "13_concept_removal"),
    ),
    2: Document(
        "Concept-Monitor: demystifying training processes",
        "When does a unit learn a concept?",
        "units over time",
        (
            "21_concept_detectors",
            "22_standard_training",
            "23_lottery_ticket",
            "24_adversarial_training",
            "25_fine_tuning",
        ),
    ),
    3: Document(
        "NPEFF: Non-Negative Per-Example Fisher Factorization",
        "Which parameters carry it?",
        "parameters",
        (
            "31_components",
            "32_perturbations",
            "33_known_ground_truth",
            "34_hyperparameters",
            "35_baselines",
            "36_flawed_heuristics",
        ),
    ),
    4: Document(
        "Lecture on data attribution: influence functions, datamodels, TRAK",
        "Which data made this prediction?",
        "training examples",
        (
            "41_influence_functions",
            "42_debugging_with_influence",
            "43_datamodels",
            "44_datamodel_applications",
            "45_trak_and_lds",
            "46_trak_applications",
            "47_feature_attribution_recap",
        ),
    ),
    5: Document(
        "Concept backpropagation",
        "What does the network think it looks like?",
        "inputs",
        ("51_tabular", "52_images", "53_chess", "54_open_questions"),
    ),
}


def stands(section: str) -> bool:
    """Whether the notebook of a section has been built."""
    return (ROOT / "notebooks" / f"{section}.ipynb").is_file()


# data set, part of the project that reads it, files that say it is there, how to get it
REAL_DATA: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    (
        "CIFAR-10",
        "11, 12, 13, 42, 43, 45, 46",
        ("cifar-10-batches-py", "cifar10/cifar10_jpeg.npz"),
        "make data",
    ),
    ("MNIST", "41, 42, 44, 45, 46", ("MNIST/raw",), "make data"),
    ("Fashion-MNIST", "later sections", ("FashionMNIST/raw",), "make data"),
    ("SNLI", "45", ("nlp/snli_validation_test.csv.gz",), "by hand: see lib/data/nlp.py"),
    ("T-REx", "46", ("nlp/trex_facts.csv.gz",), "by hand: see lib/data/facts.py"),
    (
        "ImageNet sample",
        "47",
        ("imagenet_sample/imagenet_sample_1000.npz",),
        "by hand: see lib/data/imagenet.py",
    ),
    ("California housing", "51", ("cal_housing_py3.pkz", "housing/housing.csv"), "make data"),
)


def real_data(root: Path) -> list[dict[str, object]]:
    """Which real data sets lie below `root`: one row a set, for a table; nothing is verified."""
    return [
        {
            "data set": name,
            "used by": used,
            "on this machine": "yes" if any((root / file).exists() for file in files) else "no",
            "to get it": how,
        }
        for name, used, files, how in REAL_DATA
    ]
