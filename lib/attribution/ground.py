"""The ground that methods of attribution are compared on: truth, networks, and what they cost.

Document 4, TRAK: the figure of LDS against compute. A `Ground` holds what every method may read:
networks trained on halves of the rows, and checkpoints of one run on all rows. It judges an
attribution as a `Point`: its score, and its cost in training runs.

Public names: `ground`, `Ground`, `Point`, `SETTINGS`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from lib import bootstrap, models, training
from lib.attribution import cost, metrics, settings, settings_language, trak, truth
from lib.config import Run
from lib.data.base import Split
from lib.training.loop import SCHEDULES, Progress

SETTINGS: dict[str, Callable[[Run], truth.Setting]] = {
    "digits_mlp": lambda _: settings.digits_mlp(),
    "cifar2_mini": lambda run: settings.cifar2_mini(run.data_root),
    "mnist_lr": lambda run: settings.mnist_lr(run.data_root),
    "mnist_mlp": lambda run: settings.mnist_mlp(run.data_root),
    "grammar_transformer": lambda _: settings_language.grammar_transformer(),
    "snli_transformer": lambda run: settings_language.snli_transformer(run.data_root),
}
N_RESAMPLES = 1000
N_STEPS_KEPT = 5  # checkpoints of one run that TracIn and GAS read


@dataclass(frozen=True)
class Point:
    """A method at one size."""

    method: str
    n_models: int  # networks trained for it
    compute: float  # training runs
    score: float  # LDS
    low: float  # 95% interval over targets
    high: float
    n_constant: int

    @property
    def spread(self) -> float:
        """Half of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Ground:
    """A setting, its truth, and the networks that methods may read."""

    setting: truth.Setting
    truth: truth.Truth
    halves: list[nn.Module]  # each trained on its own half of the rows
    path: list[nn.Module]  # checkpoints of one run on all rows, the last one at its end
    rates: list[float]  # learning rate at each

    @cached_property
    def train(self) -> trak.Data:
        """Inputs as the network sees them, and labels."""
        return self._seen(self.setting.train.x), self.setting.train.y

    @cached_property
    def targets(self) -> trak.Data:
        return self._seen(self.setting.targets.x), self.setting.targets.y

    @property
    def whole(self) -> nn.Module:
        """The network at the end of the run on all rows."""
        return self.path[-1]

    @property
    def p(self) -> int:
        return models.n_parameters(self.whole)

    @cached_property
    def ceiling(self) -> metrics.Ceiling:
        """What the seeds of the truth allow."""
        return metrics.ceiling(self.truth.outputs)

    @cached_property
    def forward(self) -> float:
        """Operations of one forward pass of one example."""
        return cost.forward(self.whole, self.train[0])

    @cached_property
    def training(self) -> float:
        """Operations of one network trained on half of the rows."""
        return cost.training(self.forward, len(self.train[0]) // 2, self.setting.recipe.epochs)

    @property
    def dots(self) -> float:
        """Operations of the inner products of gradients of all examples with all targets."""
        n, t = len(self.train[0]), len(self.targets[0])
        if isinstance(self.whole, models.MLP):  # from inputs and output gradients of its layers
            return cost.kernel(n, t, sum(sum(w.shape) for w in self.whole.parameters()))
        return cost.scores(n, self.p, t)

    @property
    def reading(self) -> float:
        """Operations of the gradients of all examples and targets at one network."""
        return cost.gradients(self.forward, len(self.train[0]) + len(self.targets[0]))

    def first(self, n_targets: int) -> Ground:
        """The same with the first targets alone, for methods that pay for every target."""
        targets, found = self.setting.targets, self.truth
        few = Split(targets.x[:n_targets], targets.y[:n_targets])
        return replace(
            self,
            setting=replace(self.setting, targets=few),
            truth=replace(found, outputs=found.outputs[..., :n_targets]),
        )

    def lds(self, tau: Tensor) -> float:
        return metrics.lds(tau, self.truth.subsets, self.truth.mean).mean

    def point(
        self, method: str, tau: Tensor, *, n_models: int, flop: float, runs: float | None = None
    ) -> Point:
        """Judge an attribution.

        Args:
            n_models: networks trained for it.
            flop: operations beyond training.
            runs: what that training cost; default one run a network.
        """
        score = metrics.lds(tau, self.truth.subsets, self.truth.mean)
        low, high = bootstrap.interval(
            lambda rows: score.per_target[rows].mean(1),
            len(score.per_target),
            generator=torch.Generator().manual_seed(0),
            n_draws=N_RESAMPLES,
        ).tolist()
        compute = (n_models if runs is None else runs) + flop / self.training
        return Point(method, n_models, compute, score.mean, low, high, score.n_constant)

    def _seen(self, x: Tensor) -> Tensor:
        return self.setting.prepare(x) if self.setting.prepare else x


def ground(
    run: Run, name: str, m: int, repeats: int, n_halves: int, progress: Progress | None = None
) -> Ground:
    """The truth of a setting and the networks to attribute with, through the cache.

    Args:
        name: of `SETTINGS`.
        m, repeats: of the truth.
        n_halves: networks on halves of the rows.
    """
    setting = SETTINGS[name](run)
    judged = truth.measure(setting, m, repeats=repeats, seed=run.seed, progress=progress)
    halves = truth.checkpoints(setting, n_halves, seed=run.seed)
    path, rates = trajectory(setting, run.seed)
    return Ground(setting, judged, halves, path, rates)


def trajectory(setting: truth.Setting, seed: int) -> tuple[list[nn.Module], list[float]]:
    """Checkpoints of one run on all rows, evenly spaced in epochs, and the rate at each."""
    recipe = setting.recipe
    generator = torch.Generator().manual_seed(seed)
    spec = dict(setting.spec)
    model = models.build(setting.network, generator, setting.train.x.device, **spec)
    every = max(1, recipe.epochs // N_STEPS_KEPT)
    kept: list[nn.Module] = []
    rates: list[float] = []

    def watch(epochs: range) -> Iterator[int]:
        for epoch in epochs:
            yield epoch
            if (epochs.stop - 1 - epoch) % every == 0:
                kept.append(copy.deepcopy(model).eval())
                done = (epoch + 1) / recipe.epochs
                rates.append(recipe.lr * SCHEDULES[recipe.schedule](done, recipe.peak))

    training.train(
        model,
        setting.train.x,
        setting.train.y,
        recipe,
        generator=generator,
        prepare=setting.prepare,
        progress=watch,
    )
    return kept, rates
