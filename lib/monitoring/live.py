"""Monitoring inside somebody's own training loop: a callback that changes nothing.

::

    monitor = ConceptMonitor(model, ["layer4"], probe, [detector], space, basis, every=100)
    for step, batch in enumerate(loader):
        ...  # as before
        monitor(step)
    monitor.record()

or, with a training loop that takes `progress` and knows of epochs alone::

    training.train(model, x, y, recipe, generator=g, progress=monitor.around)

For a plot that is drawn anew at every look, give `on_look=LivePlot(detector, layers)` of
`lib.monitoring.live_pictures`.

It looks at the network in evaluation mode and without gradients, and gives back the mode of every
module and the state of every random generator, so that training with and without it ends in the
same weights, bit for bit. No hook stays in the network between two looks.

Public names: `ConceptMonitor`, `undisturbed`.

Source: specification section 6, last point.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from lib.features import evaluating
from lib.monitoring.calibration import Rule
from lib.monitoring.detectors import Detector
from lib.monitoring.record import Probe, Record, Rules, Top, assemble, scores_of
from lib.monitoring.space import Basis, Space


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients within; modes and random states restored after."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        with torch.no_grad(), evaluating(model):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


class ConceptMonitor:
    """Call it after each step (or epoch); every `every`-th call it looks."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        probe: Probe,
        detectors: Sequence[Detector],
        space: Space,
        basis: Basis,
        *,
        every: int = 1,
        rules: Rules | None = None,
        k: int = 5,
        theta: float = 1.0,
        on_look: Callable[[Record], object] | None = None,
    ) -> None:
        """A monitor of a network that is being trained.

        Args:
            model: the network itself, not a copy.
            every: look at steps 0, every, 2 every, ...
            rules: frozen thresholds by (detector name, layer). Without them a detector's own
                `tau` counts, or 0 where it has none: then calibrate, and judge the record anew.
            on_look: called with the record so far, for instance to redraw a plot.

        Raises:
            ValueError: `every` below 1, no layer or no detector, a map of another space.
        """
        if every < 1 or not layers or not detectors:
            raise ValueError(
                f"want every >= 1, layers and detectors, got {every}, {list(layers)} and "
                f"{len(detectors)} detectors"
            )
        if basis.digest != space.digest:
            raise ValueError("the map was fitted to other concepts or embeddings; fit a new one")
        self.model, self.layers, self.probe, self.detectors = model, layers, probe, detectors
        self.space, self.basis, self.every, self.rules = space, basis, every, dict(rules or {})
        self.k, self.theta, self.on_look = k, theta, on_look
        self._steps: list[int] = []
        self._tops: dict[tuple[str, str], list[Top]] = {}

    def __call__(self, step: int) -> bool:
        """Look, if it is time; returns whether it did."""
        if step % self.every:
            return False
        if self._steps and step <= self._steps[-1]:
            raise ValueError(f"want rising steps, got {step} after {self._steps[-1]}")
        with undisturbed(self.model):
            found = scores_of(self.model, self.probe, self.layers, self.detectors, self.k)
            for key, top in found.items():
                self._tops.setdefault(key, []).append(top)
            self._steps.append(step)
            if self.on_look:
                self.on_look(self.record())
        return True

    def around(self, steps: range) -> Iterator[int]:
        """The numbers of `steps`, with a look before each and one after the last."""
        for step in steps:
            self(step)
            yield step
        self(steps.stop)

    def record(self, run: str = "live", arm: str = "live") -> Record:
        """What was seen so far; its epochs are the steps.

        Raises:
            ValueError: nothing was seen yet.
        """
        if not self._steps:
            raise ValueError("the monitor has not looked yet; call it with step 0 first")
        own = {d.name: Rule(d.tau or 0.0) for d in self.detectors}
        traces = [
            assemble(
                tops,
                self.space,
                self.basis,
                self.rules.get(key, own[key[0]]),
                key,
                self._steps,
                self.theta,
                run,
                arm,
            )
            for key, tops in self._tops.items()
        ]
        return Record(tuple(traces), self.space, self.basis)
