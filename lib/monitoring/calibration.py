"""When does a score count? Thresholds from a permutation null, fitted once and then frozen.

The papers give no threshold for CLIP-Dissect. Scores depend on the width of the layer, the concept
set and the encoder, so a number from elsewhere means little. Here the activations are given to
other images, all units of the layer by the same permutation, which keeps how units go together;
the largest score of a unit then comes from chance alone. The threshold is a high quantile of that,
fitted on one checkpoint and kept for all epochs and arms that are compared.

Beside it stands the attainment: how far a unit's top images go from random ones (0) to the
concept's own top images (1).

Public names: `Rule`, `Null`, `permutation_null`, `calibrate`, `sweep`, `threshold_of_share`.

Source: specification section 1.4 and 4.5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.monitoring.activations import ConceptScores, LayerActivations
from lib.monitoring.detectors import Detector

Progress = Callable[[range], Iterator[int]]


@dataclass(frozen=True)
class Rule:
    """A unit is interpretable if its best score exceeds `tau`, and the label is attained."""

    tau: float
    attainment: float | None = None  # of the label, beyond this; None: not asked
    alpha: float | None = None  # share of chance units that pass `tau`, where it was calibrated

    def interpretable(self, scores: ConceptScores) -> Tensor:
        """Bool `[M]`; dead units never are.

        Raises:
            ValueError: the rule asks for an attainment that the detector does not give.
        """
        values, concepts = scores.top(1)
        return self.judge(values[:, 0], attained(scores, concepts[:, 0]), scores.dead)

    def judge(self, best: Tensor, attainment: Tensor, dead: Tensor) -> Tensor:
        """The same from the best score and its attainment (NaN where there is none), any shape."""
        passes = (best > self.tau) & ~dead
        if self.attainment is None:
            return passes
        if attainment.isnan().any():
            raise ValueError(
                "the rule asks for an attainment, which this detector does not give; use "
                "soft_wpmi_z or a rule without it"
            )
        return passes & (attainment > self.attainment)

    def expected(self, m: int) -> float | None:
        """Chance units among m that pass `tau`, to print beside every count."""
        return None if self.alpha is None else self.alpha * m


def attained(scores: ConceptScores, concepts: Tensor) -> Tensor:
    """Attainment of one concept a unit, float32 `[M]`, NaN where the detector gives none."""
    if scores.attainment is None:
        return torch.full(scores.dead.shape, float("nan"))
    return scores.attainment.gather(1, concepts.long()[:, None])[:, 0]


@dataclass(frozen=True)
class Null:
    """Largest scores of units whose activations belong to other images, dead units left out."""

    best: Tensor  # float32 [R, M'], over concepts
    attainment: Tensor  # float32 [R, M'], of the best concept; NaN where there is none
    most_attained: Tensor  # float32 [R, M'], the largest attainment over concepts

    def tau(self, alpha: float) -> float:
        """The value that a share alpha of the null exceeds."""
        if not 0 < alpha < 1:
            raise ValueError(f"want 0 < alpha < 1, got {alpha}")
        values = self.best.flatten().sort().values
        return float(values[min(len(values) - 1, int((1 - alpha) * len(values)))])

    def passing(self, rule: Rule) -> float:
        """Share of chance units that a rule lets pass."""
        alive = torch.zeros_like(self.best, dtype=torch.bool)
        return float(rule.judge(self.best, self.attainment, alive).double().mean())


def permutation_null(
    detector: Detector,
    acts: LayerActivations,
    *,
    rounds: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> Null:
    """Scores of the same activations in a random order of images, `rounds` times.

    Raises:
        ValueError: no rounds, or only dead units.
    """
    if rounds < 1:
        raise ValueError(f"want at least one round, got {rounds}")
    if acts.dead.all():
        raise ValueError(f"layer {acts.layer}: all units are dead, there is nothing to calibrate")
    generator = torch.Generator().manual_seed(seed)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    numbers = range(rounds)
    for _ in progress(numbers) if progress else numbers:
        order = torch.randperm(len(acts.ids), generator=generator)
        scores = detector.detect(acts.permuted(order))
        h, concepts = scores.top(1)
        most = scores.attainment.amax(1) if scores.attainment is not None else None
        reached = attained(scores, concepts[:, 0])
        parts = (h[:, 0], reached, reached if most is None else most)
        found.append(tuple(part[~scores.dead] for part in parts))  # type: ignore[arg-type]
    return Null(*(torch.stack(part) for part in zip(*found, strict=True)))


def calibrate(
    detectors: Sequence[Detector],
    acts: Mapping[str, LayerActivations],
    *,
    alpha: float = 0.01,
    attainment: float | None = None,
    rounds: int = 20,
    seed: int = 0,
) -> dict[tuple[str, str], Rule]:
    """One frozen rule for each detector and layer, from the activations of one checkpoint.

    Args:
        detectors: those that state a threshold keep it; those that give an attainment are asked
            for it too, the others not.
        acts: layer name -> activations, of the reference run's last checkpoint.
        alpha: share of chance units that may pass.
        attainment: of the label, that is asked for as well.

    Returns:
        (detector name, layer) -> rule.
    """
    rules = {}
    for detector in detectors:
        for layer, found in acts.items():
            null = permutation_null(detector, found, rounds=rounds, seed=seed)
            given = not bool(null.attainment.isnan().any())
            tau = null.tau(alpha) if detector.tau is None else detector.tau
            rule = Rule(tau, attainment if given else None)
            share = alpha if detector.tau is None else null.passing(rule)
            rules[detector.name, layer] = Rule(tau, rule.attainment, share)
    return rules


def sweep(scores: ConceptScores, taus: Tensor, attainment: float | None = None) -> Tensor:
    """Number of interpretable units at each threshold, int64 `[T]`."""
    rules = [Rule(float(tau), attainment) for tau in taus]
    return torch.tensor([int(rule.interpretable(scores).sum()) for rule in rules])


def threshold_of_share(scores: ConceptScores, share: float) -> float:
    """The threshold at which a share of the units is interpretable: one number fitted to one.

    For instance 293/512, the share of the document's layer 4: whatever count it is fitted to says
    nothing, the other layers and arms do.

    Raises:
        ValueError: a share outside (0, 1), or more than the units that are alive.
    """
    alive = scores.best[~scores.dead].sort(descending=True).values
    wanted = round(share * len(scores.dead))
    if not 0 < share < 1 or not 0 < wanted < len(alive):
        raise ValueError(
            f"want a share in (0, 1) that leaves one unit out, got {share} of {len(scores.dead)} "
            f"units, {len(alive)} alive"
        )
    return float((alive[wanted - 1] + alive[wanted]) / 2)
