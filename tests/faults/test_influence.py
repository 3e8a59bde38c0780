"""What influence functions refuse: one ValueError each, and its sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from lib import gradients, models
from lib.attribution import convex, influence, kfac, refits, solvers

RNG = torch.Generator().manual_seed(0)
X = torch.randn(20, 4, generator=RNG)
Y = torch.arange(20) % 2
NAN = X.clone()
NAN[3, 1] = torch.nan
FIT = convex.fit_logistic(X, Y, lam=0.1)
SLOPES = convex.output_gradients(FIT, X[:2], lambda out: out[:, 0])
H = torch.eye(4)
MODEL = models.build("mlp", RNG, widths=(4, 3, 2)).eval()
BROKEN = models.build("mlp", RNG, widths=(4, 3, 2)).eval()
with torch.no_grad():
    BROKEN.get_submodule("out").weight[0, 0] = torch.nan


def eye(v: torch.Tensor) -> torch.Tensor:
    return v


CASES: dict[str, tuple[Callable[[], object], str]] = {
    "NaN row": (lambda: convex.fit_logistic(NAN, Y, lam=0.1), "row 3 holds NaN"),
    "NaN label": (lambda: convex.fit_ridge(X, NAN[:, 1], lam=0.1), "row 3 holds NaN"),
    "lengths": (lambda: convex.fit_ridge(X, Y[:-1], lam=0.1), r"want x \[n, d\] and y \[n\]"),
    "no penalty": (lambda: convex.fit_multinomial(X, Y, lam=0.0), "want lam > 0"),
    "one class": (lambda: convex.fit_logistic(X, Y * 0, lam=0.1), "both present"),
    "signed labels": (lambda: convex.fit_logistic(X, 2 * Y - 1, lam=0.1), r"labels in \{0, 1\}"),
    "real classes": (lambda: convex.fit_multinomial(X, X[:, 0], lam=0.1), "want integer labels"),
    "slopes of another model": (
        lambda: convex.influence(FIT, SLOPES[:, :, :-1]),
        r"want gradients \['T', 1, 5\], got \[2, 1, 4\]",
    ),
    "NaN slope": (lambda: convex.influence(FIT, SLOPES * torch.nan), "target 0 holds NaN"),
    "row out of range": (
        lambda: refits.leave_one_out(FIT, torch.tensor([20])),
        "rows in 0 .. 19",
    ),
    "group out of range": (
        lambda: refits.leave_out(FIT, [torch.tensor([0, -1])]),
        "rows in 0 .. 19",
    ),
    "NaN right-hand side": (
        lambda: solvers.conjugate_gradient(eye, torch.tensor([[1.0, torch.nan]] * 4)),
        "right-hand side 1 holds NaN",
    ),
    "negative damping": (
        lambda: solvers.conjugate_gradient(eye, torch.ones(4), damping=-1.0),
        "want damping >= 0",
    ),
    "negative curvature": (
        lambda: solvers.conjugate_gradient(lambda v: -v, torch.ones(4)),
        "use the Gauss-Newton product",
    ),
    "no steps": (
        lambda: solvers.conjugate_gradient(eye, torch.ones(4), max_steps=0),
        "max_steps >= 1",
    ),
    "LiSSA diverges": (
        lambda: solvers.lissa(lambda rows: eye, 9, torch.ones(4), generator=RNG, scale=0.4),
        "raise scale",
    ),
    "no batch": (
        lambda: solvers.lissa(lambda rows: eye, 9, torch.ones(4), generator=RNG, batch=0),
        "batch, repeats >= 1",
    ),
    "rank over steps": (
        lambda: solvers.arnoldi(eye, 4, generator=RNG, steps=2, rank=3),
        "want 1 <= rank <= steps",
    ),
    "eigenvalue of zero": (
        lambda: solvers.spectrum(torch.diag(torch.tensor([1.0, 0.0]))).solve(torch.ones(2)),
        "choose another damping",
    ),
    "directions of other weights": (
        lambda: influence.scores(MODEL, (X, Y), torch.ones(2, 7)),
        "give the same block to both",
    ),
    "one direction for scores": (
        lambda: influence.scores(MODEL, (X, Y), torch.ones(23)),
        r"want directions \[T, p\]",
    ),
    "two directions for inputs": (
        lambda: influence.input_influence(MODEL, (X, Y), torch.ones(2, 23)),
        r"want one direction \[23\]",
    ),
    "NaN input of a network": (
        lambda: influence.scores(MODEL, (NAN, Y), torch.ones(2, 23)),
        "example 3 holds NaN",
    ),
    "NaN weight under K-FAC": (
        lambda: kfac.fit_kfac(BROKEN, X, generator=RNG),
        "holds NaN",
    ),
    "no layer for K-FAC": (
        lambda: kfac.fit_kfac(nn.Embedding(3, 2), Y, generator=RNG),
        "K-FAC wants Linear or Conv2d",
    ),
    "flat gradients of another model": (
        lambda: kfac.solve(kfac.fit_kfac(MODEL, X, generator=RNG), MODEL, torch.ones(2, 7)),
        r"want right \[T, 23\]",
    ),
    "NaN input under K-FAC": (
        lambda: kfac.influence(
            kfac.fit_kfac(MODEL, X, generator=RNG), MODEL, (NAN, Y), (X[:2], Y[:2])
        ),
        "example 3 holds NaN",
    ),
}


@pytest.mark.parametrize("case", list(CASES))
def test_bad_input_is_refused_in_one_sentence(case: str) -> None:
    call, sentence = CASES[case]
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_k_fac_names_an_unsupported_layer_and_goes_on() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 2))
    with pytest.warns(UserWarning, match=r"leaves out 0 \(LayerNorm\)"):
        curvature = kfac.fit_ekfac(model, X, generator=RNG)
    tau = kfac.influence(curvature, model, (X, Y), (X[:2], Y[:2]), output=gradients.margin)
    assert torch.isfinite(tau).all()
