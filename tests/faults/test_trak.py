"""What TRAK refuses: one ValueError each, and its sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lib import models
from lib.attribution import baselines, surrogate, trak, traker

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 4, generator=G), torch.arange(12) % 3
MODEL = models.build("mlp", G, widths=(4, 5, 3)).eval()
BROKEN = X.clone()
BROKEN[5, 1] = float("nan")
PHI = torch.randn(12, 4, generator=G)
TWINS = PHI[:, [0, 0]]

CASES: dict[str, tuple[Callable[[], object], str]] = {
    "k above n": (
        lambda: trak.trak([MODEL], (X, Y), (X, Y), k=20, ridge=0.0),
        "20 numbers a gradient and 12 examples",
    ),
    "k above n, traker": (
        lambda: traker.traker([MODEL], (X, Y), (X, Y), k=20),
        "20 numbers a gradient and 12 examples",
    ),
    "negative ridge": (lambda: surrogate.scores(PHI, PHI, ridge=-0.1), "want ridge >= 0"),
    "ridge NaN": (lambda: surrogate.scores(PHI, PHI, ridge=float("nan")), "want ridge >= 0"),
    "singular": (lambda: surrogate.scores(TWINS, TWINS, ridge=0.0), "singular"),
    "singular kernel": (
        lambda: surrogate.kernel_scores(PHI @ PHI.T, PHI @ PHI.T, ridge=0.0),
        "singular",
    ),
    "leverage one": (
        lambda: surrogate.scores(torch.eye(3), torch.eye(3), ridge=0.0, leverage=True),
        "leverage 1",
    ),
    "columns": (lambda: surrogate.scores(PHI, PHI[:, :3]), "project both alike"),
    "kernel": (lambda: surrogate.kernel_scores(PHI, PHI), r"want a kernel \[n, n\]"),
    "no network": (lambda: trak.trak([], (X, Y), (X, Y)), "at least one network"),
    "no network, traker": (lambda: traker.traker([], (X, Y), (X, Y)), "at least one network"),
    "no block": (lambda: trak.trak([MODEL], (X, Y), (X, Y), blocks=()), "at least one block"),
    "unknown block": (
        lambda: trak.trak([MODEL], (X, Y), (X, Y), blocks=[("hidden9",)]),
        "known parameters: hidden1.0.weight",
    ),
    "NaN example": (lambda: trak.trak([MODEL], (BROKEN, Y), (X, Y)), "example 5"),
    "NaN target": (lambda: trak.trak([MODEL], (X, Y), (BROKEN, Y)), "example 5"),
    "keep": (lambda: trak.soft_threshold(PHI, 0.0), r"want keep in \(0, 1\]"),
    "rates": (
        lambda: baselines.tracin([MODEL], [0.1, 0.2], (X, Y), (X, Y)),
        "one learning rate a checkpoint",
    ),
    "no checkpoint": (lambda: baselines.gas([], (X, Y), (X, Y)), "at least one"),
    "no linear layer": (
        lambda: baselines.representation(torch.nn.ReLU(), (X, Y), (X, Y)),
        "no linear layer",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_in_one_sentence(name: str):
    call, sentence = CASES[name]
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_absent_package_names_the_way_without_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "trak", None)
    with pytest.raises(ImportError, match=r"lib\.attribution\.trak"):
        traker.traker([MODEL], (X, Y), (X, Y), k=4)
