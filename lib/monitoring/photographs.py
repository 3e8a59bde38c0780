"""Photographs as probing images of an ImageNet network: the set, its detectors, chance, one rule.

Units are named by CLIP-Dissect with the oracle's similarities (coverage by the masks) and by
Network Dissection. Each has a twin that is asked with the images permuted within their source:
what it finds is chance. No image encoder for photographs is at hand.

Public names: `Photographs`, `photographs`, `probing_set`, `rule_of`, `normalise`, `prepare`,
`NETWORK`, `DETECTORS`, `CHANCE`.

Source: specification of document 2, section 1, 4.5 (the rule) and 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lib import cache
from lib.data.base import sha256_of
from lib.monitoring import cases, real_images
from lib.monitoring.activations import ConceptSet
from lib.monitoring.calibration import Null, Rule, attained
from lib.monitoring.detectors import Detector, clip_dissect
from lib.monitoring.real_images import ProbingImages
from lib.monitoring.record import Probe
from lib.monitoring.stored import fetch_scores, hash_of

NETWORK = "mobilenet_v2"
DETECTORS = ("oracle", "net_dissection")
CHANCE = "chance of "  # before a detector's name: its twin
TEXTURES = "dtd"  # their source in the probing set
CHUNK = 64  # images a pass


@dataclass(frozen=True)
class Photographs:
    """A probing set with the detectors that read it."""

    at: ProbingImages
    probe: Probe
    detectors: tuple[Detector, ...]  # those of DETECTORS, then the twin of each

    @property
    def concepts(self) -> ConceptSet:
        """The words."""
        return self.at.concepts

    def __len__(self) -> int:
        return len(self.at)


def normalise(images: Tensor) -> Tensor:
    """From images in [0, 1] to what the network reads."""
    return images * 2 - 1


def prepare(raw: Tensor) -> Tensor:
    """Images uint8 `[n, h, w, 3]` as the network reads them, float32 `[n, 3, h, w]`."""
    return normalise(cases.pixels(raw))


def probing_set(
    images: ProbingImages, textures: Tensor, n_each: int, *, fewest: int, seed: int
) -> ProbingImages:
    """Some textures and as many as `n_each` images of every other source, words chosen anew.

    Args:
        textures: rows among the images of textures.
        fewest: words that fewer of the chosen images show are left out.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for k, name in enumerate(images.sources):
        mine = (images.source == k).nonzero()[:, 0]
        order = torch.randperm(len(mine), generator=generator)[:n_each].sort().values
        chosen.append(mine[textures if name == TEXTURES else order])
    few = images.take(torch.cat(chosen))
    groups = [few.sources[k] for k in few.source.tolist()]
    provenance = replace(few.provenance, n=len(few), sha256=sha256_of(few.images))
    return real_images.of(few.images, few.annotations, groups, provenance, fewest=fewest)


def photographs(at: ProbingImages, *, seed: int) -> Photographs:
    """The detectors of a probing set; `seed` permutes the images of their twins."""
    mixed = replace(at.take(at.shuffled(seed)), images=at.images, ids=at.ids)
    probe = Probe(at.images, at.ids, "photographs", prepare, chunk=CHUNK)
    return Photographs(at, probe, (*_detectors(at, ""), *_detectors(mixed, CHANCE)))


def _detectors(at: ProbingImages, prefix: str) -> list[Detector]:
    words = clip_dissect(
        at.similarities(), ids=at.ids, similarity="soft_wpmi_z", name=f"{prefix}oracle"
    )
    return [words, replace(at.dissection(), name=f"{prefix}net_dissection")]


def rule_of(where: Photographs, model: nn.Module, layer: str, *, rounds: int, seed: int) -> Rule:
    """The oracle's frozen rule from one network: a score above the 99% of chance, and attained.

    Chance: the images of the activations permuted within their source, so that a unit keeps which
    source it prefers, and units how they go together. Network Dissection keeps its published cut.

    Args:
        rounds: permutations.
    """
    detector = where.detectors[0]

    def build() -> dict[str, Tensor]:
        acts = where.probe.activations(model, [layer], maps=False)[layer]
        found = []
        for k in range(rounds):
            scores = detector.detect(acts.permuted(where.at.shuffled(seed + 1 + k)))
            alive = ~scores.dead
            reached = attained(scores, scores.label)
            found.append((scores.best[alive], reached[alive], reached[alive]))
        null = Null(*(torch.stack(part) for part in zip(*found, strict=True)))
        return {"tau": torch.tensor(null.tau(cases.ALPHA), dtype=torch.float64)}

    config = {
        "weights": cache.state_hash(dict(model.state_dict())),
        "probe": hash_of(where.probe, source=where.at.source),
        "detector": detector.digest,
        "rule": [layer, cases.ALPHA, rounds, seed],
    }
    code: list[Callable[..., object]]
    code = [Null, type(detector), fetch_scores, ProbingImages, type(model), prepare]
    tau = float(cache.fetch("rules", config, build, code=code)["tau"])
    return Rule(tau, cases.ATTAINED, cases.ALPHA)
