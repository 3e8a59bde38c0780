"""The galleries of notebook 46: whom TRAK names, and whether retraining agrees.

Document 4, applications of TRAK: images; specification section 7.3. Networks and subsets are those
of notebooks 43 and 45, through the cache.

Public names: `prepare`, `Gallery`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.attribution import datamodels, trak, truth
from lib.attribution.brittleness import paired_difference
from lib.attribution.ground import SETTINGS
from lib.config import Run
from lib.training.loop import Progress

TOP, WIDE = 10, 20  # images on either side; images compared with the datamodel
NAMES = {"digits_mlp": tuple("0123456789"), "cifar2_mini": ("cat", "dog")}


@dataclass(frozen=True)
class Gallery:
    """Scores of training images for targets."""

    setting: truth.Setting
    names: tuple[str, ...]  # of the classes
    tau: Tensor  # TRAK, [n, T]
    datamodel: Tensor  # ridge datamodel, [n, T]

    @property
    def same_class(self) -> tuple[Tensor, Tensor]:
        """Share of a target's class among its highest and its lowest images, each `[T]`."""
        same = self.setting.train.y[:, None] == self.setting.targets.y
        order = self.tau.argsort(0, descending=True)
        high, low = (same.gather(0, rows).double().mean(0) for rows in (order[:TOP], order[-TOP:]))
        return high, low

    @property
    def shared(self) -> Tensor:
        """Images among both methods' highest, over the number expected by chance, `[T]`."""
        n = len(self.tau)
        tops = [
            torch.zeros_like(s, dtype=torch.bool).scatter_(0, s.topk(WIDE, 0).indices, True)
            for s in (self.tau, self.datamodel)
        ]
        return (tops[0] & tops[1]).sum(0).double() / (WIDE * WIDE / n)

    def class_gap(self) -> tuple[float, float]:
        """Mean difference of the two shares, and half its 95% interval over targets."""
        value, low, high = paired_difference(*self.same_class)
        return value, (high - low) / 2

    def agreement(self) -> tuple[float, float]:
        """Mean of `shared`, and half its 95% interval over targets."""
        value, low, high = paired_difference(self.shared, torch.zeros_like(self.shared))
        return value, (high - low) / 2


def prepare(run: Run, progress: Progress | None = None) -> Gallery:
    """TRAK and a ridge datamodel for every target of the setting."""
    size = run.size.gallery
    setting = SETTINGS[size["setting"]](run)
    networks = truth.checkpoints(setting, size["n_models"], seed=run.seed)
    data, targets = setting.train, setting.targets
    found = trak.trak(
        networks, (data.x, data.y), (targets.x, targets.y), k=size["k"], ridge=0.1, seed=run.seed
    )
    fitting = truth.measure(
        setting, size["m_fit"], seed=run.seed + truth.FITTING, progress=progress
    )
    model = datamodels.fit_ridge(fitting.subsets, fitting.outputs[:, 0], len(data))
    return Gallery(setting, NAMES[size["setting"]], found.tau, model.tau)
