"""The specification's numbers for influence functions of convex models (sections 1.2, 1.4 and 9).

Digits odd against even, 65 parameters. The split is the specification's own, which it only calls
"permutation seed 0": numpy's `default_rng(0)`, first 1000 rows to train and the next 300 as
targets. The tables' output is the loss of a target, their slopes are pooled over targets.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lib import gradients
from lib.attribution import convex, refits, solvers

# lam -> accuracy, Pearson mean and min, slope; corrected Pearson and slope; largest leverage
TABLE = {
    1e-2: (0.890, 0.9999, 0.9997, 1.035, 0.99997, 1.003, 0.07),
    1e-3: (0.907, 0.9987, 0.9961, 1.093, 0.9995, 1.007, 0.20),
    1e-4: (0.907, 0.9932, 0.9675, 1.167, 0.9967, 1.009, 0.38),
}
# lam, share -> Spearman of random groups, median actual over predicted of coherent groups
GROUPS = {
    (1e-2, 0.01): (0.999, 1.3),
    (1e-2, 0.1): (0.996, 3.0),
    (1e-2, 0.3): (0.985, 7.3),
    (1e-3, 0.01): (0.997, 1.8),
    (1e-3, 0.1): (0.991, 9.9),
    (1e-3, 0.3): (0.977, 31.0),
}


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = torch.tensor(pixels[order]) / 16 - 0.3, torch.tensor(labels[order] % 2)
    return x[:1000], y[:1000], x[1000:1300], y[1000:1300]


def loss_of(labels: Tensor) -> convex.Output:
    return lambda out: F.softplus((1 - 2 * labels) * out[:, 0])


def pearson(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(0), b - b.mean(0)
    return (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0))


def slope(actual: Tensor, predicted: Tensor) -> float:
    return ((actual * predicted).sum() / predicted.square().sum()).item()


@pytest.mark.parametrize("lam", list(TABLE))
def test_leave_one_out_table(lam: float, digits) -> None:
    x, y, points, labels = digits
    accuracy, mean, least, first, corrected_mean, corrected, top = TABLE[lam]
    fit, loss = convex.fit_logistic(x, y, lam=lam), loss_of(labels)
    out = fit.out(points)
    assert ((out[:, 0] > 0) == (labels == 1)).double().mean() == pytest.approx(accuracy, abs=6e-4)
    assert convex.leverage(fit).max() == pytest.approx(top, abs=6e-3)
    slopes = convex.output_gradients(fit, points, loss)
    actual = refits.outputs(refits.leave_one_out(fit), points, loss) - loss(out)
    plain = -convex.influence(fit, slopes)
    fixed = -convex.influence_corrected(fit, slopes)
    found = pearson(plain, actual)
    assert found.mean() == pytest.approx(mean, abs=6e-5)
    assert found.min() == pytest.approx(least, abs=6e-5)
    assert slope(actual, plain) == pytest.approx(first, abs=6e-4)
    assert pearson(fixed, actual).mean() == pytest.approx(corrected_mean, abs=6e-5)
    assert slope(actual, fixed) == pytest.approx(corrected, abs=6e-4)


def test_bands_at_the_middle_penalty(digits) -> None:
    x, y, points, _ = digits
    fit = convex.fit_logistic(x, y, lam=1e-3)
    first = lambda out: out[:, 0]  # noqa: E731
    slopes = convex.output_gradients(fit, points, first)
    actual = refits.outputs(refits.leave_one_out(fit), points, first) - first(fit.out(points))
    plain, fixed = convex.influence(fit, slopes), convex.influence_corrected(fit, slopes)
    assert pearson(-plain, actual).mean() >= 0.998
    assert 1.05 <= slope(actual, -plain) <= 1.13
    assert 0.99 <= slope(actual, -fixed) <= 1.02


@pytest.mark.parametrize(("lam", "share"), list(GROUPS))
def test_group_table(lam: float, share: float, digits) -> None:
    x, y, points, labels = digits
    order, ratio = GROUPS[lam, share]
    fit, loss, k = convex.fit_logistic(x, y, lam=lam), loss_of(labels), int(share * len(x))
    base = loss(fit.out(points))
    tau = convex.influence(fit, convex.output_gradients(fit, points, loss))
    generator = torch.Generator().manual_seed(0)
    groups = [torch.randperm(len(x), generator=generator)[:k] for _ in range(30)]
    actual = refits.outputs(refits.leave_out(fit, groups), points, loss) - base
    predicted = -refits.group_influence(tau, groups)
    ranks = [spearmanr(p, a).statistic for p, a in zip(predicted.T, actual.T, strict=True)]
    assert np.mean(ranks) == pytest.approx(order, abs=0.01)  # 30 groups of another draw
    chosen = torch.randperm(len(points), generator=generator)[:60]
    coherent = [tau[:, t].argsort()[:k] for t in chosen]  # most helpful: including lowers the loss
    left = refits.outputs(refits.leave_out(fit, coherent), points, loss) - base
    rise = torch.stack([left[i, t] for i, t in enumerate(chosen)])
    said = torch.stack([-tau[g, t].sum() for g, t in zip(coherent, chosen, strict=True)])
    assert spearmanr(said, rise).statistic >= 0.85
    found = (rise / said).median().item()
    assert ratio / 2 <= found <= 2 * ratio  # the median over 20 other targets
    assert found > 1


def linear_network(fit: convex.Fit) -> nn.Module:
    """The fit as a network of two classes, so that the generic products see it."""
    model = nn.Linear(fit.a.shape[1], 1, bias=False).double()
    model.weight.data = fit.theta.clone()
    return model


def logistic_loss(out: Tensor, y: Tensor) -> Tensor:
    return F.softplus((1 - 2 * y) * out[..., 0])


def test_solvers_against_cholesky(digits) -> None:
    x, y, points, _ = digits
    fit = convex.fit_logistic(x, y, lam=1e-3)
    model, data = linear_network(fit), (fit.a, fit.y)
    right = convex.design(points[:20]).mT
    exact = torch.cholesky_solve(right, fit.factor)
    h = gradients.hessian_product(model, data, logistic_loss, l2=1e-3)
    found = solvers.conjugate_gradient(h, right, tolerance=1e-9, max_steps=65)
    assert ((found.x - exact).norm(dim=0) <= 1e-6 * exact.norm(dim=0)).all()

    generator = torch.Generator().manual_seed(0)
    series = solvers.lissa(
        lambda rows: convex.product(fit, rows),
        1000,
        right,
        generator=generator,
        scale=2.0,
        depth=5000,
        batch=10,
        repeats=2,
    )
    error = (series.x - exact).norm(dim=0) / exact.norm(dim=0)
    assert error.mean() <= 0.1


def test_self_influence_finds_flipped_labels(digits) -> None:
    x, y, _, _ = digits
    areas = []
    for seed in range(10):
        flipped = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:100]
        wrong = y.clone()
        wrong[flipped] = 1 - wrong[flipped]
        ranks = convex.self_influence(convex.fit_logistic(x, wrong, lam=1e-2)).argsort().argsort()
        above = ranks[flipped].double().sum() - 100 * 99 / 2
        areas.append(above / (100 * 900))
    assert torch.stack(areas).min() >= 0.93
