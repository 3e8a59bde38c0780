"""What notebook 43 computes: scores of datamodels by number of networks, and by subset size.

Document 4, datamodels; specification sections 2 and 3. Networks to fit are never those of the
truth; where datamodels of several subset sizes are compared, the last networks of each size judge.

Public names: `prepare`, `Study`, `score`, `scaling`, `Score`, `spreads`, `compare_alphas`,
`Alphas`, `picks`, `FITS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.attribution import datamodels, metrics, settings, truth
from lib.attribution.datamodels import Datamodel, Evaluation
from lib.config import Run
from lib.training.loop import Progress

SETTINGS: dict[str, tuple[Callable[[Run], truth.Setting], tuple[str, ...]]] = {
    "digits": (lambda _: settings.digits_mlp(), tuple("0123456789")),
    "cifar2_mini": (lambda run: settings.cifar2_mini(run.data_root), ("cat", "dog")),
}
FITS: dict[str, Callable[[Tensor, Tensor, int], Datamodel]] = {
    "LASSO": datamodels.fit_lasso,
    "ridge": datamodels.fit_ridge,
    "empirical influence": datamodels.empirical_influence,
}
N_RESAMPLES = 300
JUDGES = 0.25  # share of the networks of a subset size that judge datamodels of every size


@dataclass(frozen=True)
class Study:
    """A setting, its truth, and the networks that datamodels are fitted on."""

    setting: truth.Setting
    names: tuple[str, ...]  # of the classes
    judged: truth.Truth  # what is to be predicted
    fitting: truth.Truth
    by_alpha: Mapping[float, truth.Truth]

    @property
    def ceiling(self) -> metrics.Ceiling:
        """What the seeds of the truth allow."""
        return metrics.ceiling(self.judged.outputs)

    def fit(self, method: str, m: int) -> Datamodel:
        """A datamodel of the first m networks, by a method of `FITS`."""
        outputs = self.fitting.outputs[:m, 0]
        return FITS[method](self.fitting.subsets[:m], outputs, len(self.setting.train))


@dataclass(frozen=True)
class Score:
    """A datamodel and how well it predicts the truth."""

    method: str
    m: int
    model: Datamodel
    lds: metrics.LDS
    interval: metrics.Interval
    evaluation: Evaluation

    @property
    def n_weights(self) -> Tensor:
        """Weights that are not zero, `[T]`."""
        return (self.model.tau != 0).sum(0)


@dataclass(frozen=True)
class Alphas:
    """Datamodels of several subset sizes."""

    alphas: tuple[float, ...]
    m: int  # networks each
    effect: Tensor  # root of the summed squared marginal effects of a target, noise removed, [A]
    interval: Tensor  # its 95% interval over targets, [A, 2]
    ratio: tuple[float, float]  # of the smallest alpha to the largest, and half its interval
    correlation: Tensor  # mean Pearson correlation, fitted at row, predicting column, [A, A]


def prepare(run: Run, progress: Progress | None = None) -> Study:
    """Train everything that the notebook needs, or take it from the cache."""
    size = run.size
    make, names = SETTINGS[size.data]
    setting, seed = make(run), run.seed + truth.FITTING
    of_alpha = {
        alpha: truth.measure(setting, size.m_alpha, alpha=alpha, seed=seed, progress=progress)
        for alpha in size.alphas
    }
    return Study(
        setting,
        names,
        truth.measure(
            setting, size.m_truth, repeats=size.repeats, seed=run.seed, progress=progress
        ),
        truth.measure(setting, size.m_fit, seed=seed, progress=progress),
        of_alpha,
    )


def score(study: Study, method: str, m: int) -> Score:
    """Fit a datamodel on the first m networks and judge it by the truth."""
    model, judge = study.fit(method, m), study.judged
    return Score(
        method,
        m,
        model,
        metrics.lds(model.tau, judge.subsets, judge.mean),
        metrics.bootstrap(model.tau, judge.subsets, judge.mean, n_resamples=N_RESAMPLES),
        datamodels.evaluate(model, judge.subsets, judge.mean),
    )


def scaling(
    study: Study, grid: Sequence[int], progress: Progress | None = None
) -> dict[str, list[Score]]:
    """Scores of every method of `FITS` at every number of networks."""
    pairs = [(method, m) for method in FITS for m in grid]
    steps = range(len(pairs))
    found = [score(study, *pairs[k]) for k in (progress(steps) if progress else steps)]
    return {method: [s for s in found if s.method == method] for method in FITS}


def spreads(judged: truth.Truth) -> tuple[Tensor, Tensor]:
    """How much of an output the data decide: sd over subsets and over seeds, each `[T]`.

    The variance over subsets of means of R networks holds 1/R of that over seeds, which is taken
    off.
    """
    outputs = judged.outputs.double()
    seeds = outputs.var(1).mean(0)
    subsets = outputs.mean(1).var(0) - seeds / outputs.shape[1]
    return subsets.clamp(min=0).sqrt(), seeds.sqrt()


def compare_alphas(study: Study, *, seed: int = 0) -> Alphas:
    """Effects and predictions of datamodels of every subset size, at equal numbers of networks.

    The squared effect is the product of marginal means from two halves of the networks, whose
    errors are independent, summed over rows: without that, noise would count as effect.
    """
    n = len(study.setting.train)
    alphas = tuple(study.by_alpha)
    m = len(next(iter(study.by_alpha.values())).subsets)
    n_fit = m - round(JUDGES * m)
    squares, rows = [], []
    for found in study.by_alpha.values():
        halves = [slice(0, m // 2), slice(m // 2, m)]
        a, b = (
            datamodels.empirical_influence(found.subsets[part], found.outputs[part, 0], n).tau
            for part in halves
        )
        squares.append((a * b).sum(0))
        model = datamodels.fit_lasso(found.subsets[:n_fit], found.outputs[:n_fit, 0], n)
        judged = [
            datamodels.evaluate(model, other.subsets[n_fit:], other.outputs[n_fit:, 0])
            for other in study.by_alpha.values()
        ]
        rows.append(torch.stack([e.pearson.nan_to_num(0.0).mean() for e in judged]))
    square = torch.stack(squares)  # [A, T]
    generator = torch.Generator().manual_seed(seed)
    n_targets = square.shape[1]
    pick = torch.randint(n_targets, (1000, n_targets), generator=generator)
    drawn = square[:, pick].mean(2).clamp(min=0).sqrt()  # [A, 1000]
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    effect = square.mean(1).clamp(min=0).sqrt()
    low, high = (drawn[0] / drawn[-1]).quantile(ends).tolist()
    ratio = ((effect[0] / effect[-1]).item(), (high - low) / 2)
    return Alphas(alphas, m, effect, drawn.quantile(ends, dim=1).T, ratio, torch.stack(rows))


def picks(judged: truth.Truth, n: int = 3) -> list[int]:
    """Targets from hard to easy: evenly spaced in the order of their mean output."""
    order = judged.mean.mean(0).argsort()
    places = torch.linspace(0.02, 0.8, n) * (len(order) - 1)
    return order[places.long()].tolist()
