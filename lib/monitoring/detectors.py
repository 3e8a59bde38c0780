"""Concept detectors: objects that say how well each concept describes each unit of a layer.

A detector is anything with `name`, `needs_maps`, `digest` and `detect(acts) -> ConceptScores`, so
a new one takes a few lines. Here is CLIP-Dissect with its similarity functions; Network
Dissection is in `dissection`.

Signs: a detector gives scores h, larger for better. The document speaks of distances d = -h and of
``min d < tau``, which is ``max h > -tau``.

Public names: `Detector`, `ClipDissect`, `clip_dissect`, `SIMILARITIES`, `check_images`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lib import cache
from lib.monitoring.activations import ConceptScores, LayerActivations
from lib.monitoring.pointwise import (
    matched,
    reference,
    soft_wpmi,
    soft_wpmi_z,
    softmax,
    wpmi,
)
from lib.monitoring.similarity import cosine, cosine_cubed, global_ranks, rank_reorder

Found = tuple[Tensor, Tensor | None]  # scores, attainment
Score = Callable[[Tensor], Found]


class Detector(Protocol):
    """What every method here takes for a detector."""

    @property
    def name(self) -> str:
        """For tables and legends."""

    @property
    def needs_maps(self) -> bool:
        """Whether it reads positions, not only pooled activations."""

    @property
    def tau(self) -> float | None:
        """A threshold that the method itself states, or None."""

    @property
    def digest(self) -> str:
        """Hash of everything its scores depend on beside the activations."""

    def detect(self, acts: LayerActivations) -> ConceptScores:
        """Scores of the concepts for the units of a layer."""


def check_images(ids: Tensor, acts: LayerActivations) -> None:
    """Refuse activations of other images, or of the same in another order."""
    if len(ids) != len(acts.ids):
        raise ValueError(
            f"layer {acts.layer}: the detector knows {len(ids)} images, the activations are of "
            f"{len(acts.ids)}; make both from the same probing set"
        )
    differ = (ids.cpu() != acts.ids.cpu()).nonzero()
    if len(differ):
        at = int(differ[0])
        raise ValueError(
            f"layer {acts.layer}: images are in another order: row {at} is image "
            f"{int(acts.ids[at])}, the detector has image {int(ids[at])} there"
        )


@dataclass(frozen=True)
class ClipDissect:
    """CLIP-Dissect for one probing set and concept set; made by `clip_dissect`."""

    p: Tensor  # float32 [N, C], cosines of image and text embeddings
    ids: Tensor  # int64 [N]
    name: str
    meta: Mapping[str, object]
    score: Score
    digest: str
    needs_maps: bool = False
    tau: float | None = None

    def detect(self, acts: LayerActivations) -> ConceptScores:
        """Scores from pooled activations, on the device of the similarities.

        Raises:
            ValueError: another order of images, or fewer images than the top K needs.
        """
        check_images(self.ids, acts)
        h, attainment = self.score(acts.pooled.to(self.p.device, torch.float32))
        found = None if attainment is None else attainment.cpu()
        return ConceptScores(h.cpu(), self.name, self.meta, acts.dead.cpu(), found)


def clip_dissect(
    p: Tensor,
    *,
    ids: Tensor | None = None,
    similarity: str = "soft_wpmi",
    name: str | None = None,
    **constants: float,
) -> ClipDissect:
    """A CLIP-Dissect detector.

    Args:
        p: similarities of images and concepts `[N, C]`: cosines of L2-normalised embeddings, or an
            oracle's standardised coverage. No logit scale.
        ids: int64 `[N]` of the images; by default row numbers.
        similarity: one of `SIMILARITIES`; soft_wpmi is the reference's best (section 1.1).
        name: for tables; the similarity by default.
        constants: those of the similarity, for instance `k=50`; the reference's by default.

    Raises:
        ValueError: an unknown similarity or constant, a value that is not finite, K > N.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity is one of {', '.join(SIMILARITIES)}; got {similarity!r}")
    ids = torch.arange(len(p)) if ids is None else ids
    if p.ndim != 2 or len(ids) != len(p) or len(p) == 0:
        raise ValueError(
            f"want similarities [N, C] and ids [N], got {tuple(p.shape)} and {tuple(ids.shape)}"
        )
    if not p.isfinite().all():
        bad = (~p.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"similarity of image {bad[0]} and concept {bad[1]} is not finite")
    defaults, prepare = SIMILARITIES[similarity]
    unknown = set(constants) - set(defaults)
    if unknown:
        raise ValueError(
            f"{similarity} has no constant {', '.join(sorted(unknown))}; it has "
            f"{', '.join(defaults) or 'none'}"
        )
    used = {**defaults, **constants}
    if used.get("k") == 0:  # section 4.5: a hundredth of the images, at least ten
        used["k"] = max(10, len(p) // 100)
    if used.get("k", 1) > len(p):
        raise ValueError(
            f"want K <= N, got K = {used['k']} and N = {len(p)} probing images; lower k or probe "
            "with more images"
        )
    p = p.float()
    meta = {"similarity": similarity, **used}
    text = json.dumps([meta, cache.state_hash({"p": p, "ids": ids})], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return ClipDissect(p, ids, name or similarity, meta, prepare(p, used), digest)


Constants = Mapping[str, float]


def _cosine(p: Tensor, used: Constants) -> Score:
    return lambda acts: (cosine(acts, p), None)


def _cosine_cubed(p: Tensor, used: Constants) -> Score:
    power, smallest = int(used["power"]), used["smallest_norm"]
    return lambda acts: (cosine_cubed(acts, p, power=power, smallest_norm=smallest), None)


def _rank_reorder(p: Tensor, used: Constants) -> Score:
    ranks = global_ranks(p)

    def score(acts: Tensor) -> Found:
        h = rank_reorder(
            acts,
            p,
            top=used["top"],
            power=used["power"],
            scale_power=used["scale_power"],
            n_permutations=int(used["n_permutations"]),
            seed=int(used["seed"]),
            ranks=ranks,
        )
        return h, None

    return score


def _wpmi(p: Tensor, used: Constants) -> Score:
    q = softmax(p, used["a"])
    return lambda acts: (wpmi(acts, q, k=int(used["k"]), lam=used["lam"]), None)


def _soft_wpmi(p: Tensor, used: Constants) -> Score:
    q = softmax(p, used["a"]) if used["a"] else matched(p)
    k, lam, start, end = int(used["k"]), used["lam"], used["p_start"], used["p_end"]
    return lambda acts: (soft_wpmi(acts, q, k=k, lam=lam, p_start=start, p_end=end), None)


def _soft_wpmi_z(p: Tensor, used: Constants) -> Score:
    q = matched(p, spread=used["spread"])
    against = reference(
        q,
        int(used["k"]),
        n_random=int(used["n_random"]),
        seed=int(used["seed"]),
        p_start=used["p_start"],
        p_end=used["p_end"],
    )
    return lambda acts: soft_wpmi_z(acts, q, against)


# name -> constants of the reference, and what makes the score; a = 0 stands for the softmax
# matched to the encoder's own spread, k = 0 for a hundredth of the images
SIMILARITIES: dict[str, tuple[dict[str, float], Callable[[Tensor, Constants], Score]]] = {
    "cos": ({}, _cosine),
    "cos_cubed": ({"power": 3, "smallest_norm": 1e-3}, _cosine_cubed),
    "rank_reorder": (
        {"top": 0.05, "power": 3, "scale_power": 0.5, "n_permutations": 5, "seed": 0},
        _rank_reorder,
    ),
    "wpmi": ({"k": 28, "a": 2.0, "lam": 0.6}, _wpmi),
    "soft_wpmi": (
        {"k": 100, "a": 10.0, "lam": 1.0, "p_start": 0.998, "p_end": 0.97},
        _soft_wpmi,
    ),
    "soft_wpmi_z": (
        {"k": 0, "spread": 0.3, "p_start": 0.998, "p_end": 0.97, "n_random": 256, "seed": 0},
        _soft_wpmi_z,
    ),
}
