"""Concept attribution refuses what would give numbers without meaning, each in one sentence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from lib import models
from lib.attribution import concepts, prefixes
from lib.attribution.concepts import ConceptData
from lib.attribution.traker import traker_concept

GENERATOR = torch.Generator().manual_seed(0)
MODEL, OTHER = (models.build("mlp", GENERATOR, widths=(4, 5, 3)).eval() for _ in range(2))
TRAIN = torch.randn(20, 4, generator=GENERATOR), torch.arange(20) % 3
DATA = ConceptData(
    torch.randn(12, 4, generator=GENERATOR),
    torch.arange(12) % 2,
    torch.randn(5, 4, generator=GENERATOR),
    torch.arange(5) % 2,
)


def _attribute(data: ConceptData = DATA, models_: list[nn.Module] | None = None, **more) -> object:  # type: ignore[no-untyped-def]
    networks = [MODEL] if models_ is None else models_
    return concepts.attribute(networks, TRAIN, data, ["hidden1"], k=None, **more)


FAULTS: dict[str, tuple[Callable[[], object], str]] = {
    "one class": (lambda: _attribute(replace(DATA, fit_y=torch.ones(12).long())), "one class only"),
    "labels": (lambda: _attribute(replace(DATA, y=torch.arange(5))), r"labels in \{0, 1\}"),
    "lengths": (lambda: _attribute(replace(DATA, y=torch.zeros(4).long())), "want target images"),
    "no checkpoint": (lambda: _attribute(models_=[]), "at least one checkpoint"),
    "version": (lambda: _attribute(versions=("thawed",)), "versions are frozen, refit; got thawed"),
    "another checkpoint": (
        lambda: _attribute(
            readouts=[concepts.fit_readouts(OTHER, DATA, ["hidden1"])], versions=("frozen",)
        ),
        "layer 'hidden1' was fitted on another checkpoint than checkpoint 0",
    ),
    "too few probes": (
        lambda: _attribute(
            models_=[MODEL, OTHER],
            readouts=[concepts.fit_readouts(MODEL, DATA, ["hidden1"])],
            versions=("frozen",),
        ),
        "want probes for every checkpoint, got 1 sets",
    ),
    "official, another checkpoint": (
        lambda: traker_concept(
            [MODEL], TRAIN, DATA, [concepts.fit_readouts(OTHER, DATA, ["hidden1"])["hidden1"]]
        ),
        "fitted on another checkpoint than checkpoint 0",
    ),
    "official, too many probes": (
        lambda: traker_concept(
            [MODEL], TRAIN, DATA, [concepts.fit_readouts(MODEL, DATA, ["hidden1"])["hidden1"]] * 2
        ),
        "want one probe a checkpoint, all of one layer, got 2 for 1 checkpoints",
    ),
    "own probes": (lambda: _attribute(readouts=[{}]), "cannot be refitted"),
    "layer": (
        lambda: concepts.attribute([MODEL], TRAIN, DATA, ["hidden9"]),
        "no layer hidden9 in this model; it has hidden1",
    ),
    "no layer": (lambda: concepts.attribute([MODEL], TRAIN, DATA, []), "at least one layer"),
    "which": (lambda: _attribute().tau("refit", "out"), "attributed are frozen, refit at hidden1"),  # type: ignore[attr-defined]
    "NaN": (
        lambda: _attribute(replace(DATA, fit_x=DATA.fit_x.clone().fill_(float("nan")))),
        "NaN or infinity",
    ),
    "overlap": (
        lambda: concepts.refuse_overlap(TRAIN[0], torch.cat([DATA.x, TRAIN[0][7:9]])),
        r"2 of the concept images are training rows too \(the first: image 5 is row 7\)",
    ),
    "dead": (
        lambda: concepts.ridge_probe(torch.ones(6, 2), torch.arange(6) % 2),
        "every unit of the layer is constant",
    ),
    "no parameters": (
        lambda: prefixes.depends(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), torch.ones(2, 2), "0"),
        "depends on no parameter",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_is_refused(fault: str) -> None:
    act, words = FAULTS[fault]
    with pytest.raises(ValueError, match=words):
        act()


def test_overlap_is_seen_in_any_precision() -> None:
    with pytest.raises(ValueError, match="1 of the concept images"):
        concepts.refuse_overlap(TRAIN[0], TRAIN[0][3:4].double())


def test_disjoint_images_pass() -> None:
    concepts.refuse_overlap(TRAIN[0], DATA.x)
