"""Concept detectors: objects that say how well each concept describes each unit of a layer.

A detector is anything with `name`, `needs_maps`, `tau`, `digest` and `detect(acts) ->
ConceptScores`, so a new one takes a few lines. Here is CLIP-Dissect with its similarity functions;
Network Dissection is in `dissection`.

Signs: a detector gives scores h, larger for better. The document speaks of distances d = -h and of
``min d < tau``, which is ``max h > -tau``.

Public names: `Detector`, `detect_layers`, `ClipDissect`, `clip_dissect`, `SIMILARITIES`,
`check_images`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lib import cache
from lib.monitoring.activations import ConceptScores, LayerActivations
from lib.monitoring.pointwise import (
    Embedded,
    Similarities,
    chosen,
    matched,
    membership,
    reference,
    score_sets,
    softmax,
    standardise_sets,
    wpmi,
)
from lib.monitoring.similarity import cosine, cosine_cubed, global_ranks, rank_reorder

Found = tuple[Tensor, Tensor | None]  # scores, attainment
Score = Callable[[Sequence[Tensor]], list[Found]]  # activations of several layers


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


def detect_layers(detector: Detector, acts: Sequence[LayerActivations]) -> list[ConceptScores]:
    """Scores of several layers: at once where a detector can (`detect_layers`), else in turn."""
    if isinstance(detector, ClipDissect):
        return detector.detect_layers(acts)
    return [detector.detect(layer) for layer in acts]


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

    p: Similarities  # float32 [N, C], cosines of image and text embeddings
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
        return self.detect_layers([acts])[0]

    def detect_layers(self, acts: Sequence[LayerActivations]) -> list[ConceptScores]:
        """The same for several layers, which share the work on concepts."""
        for layer in acts:
            check_images(self.ids, layer)
        found = self.score([a.pooled.to(self.p.device, torch.float32) for a in acts])
        return [
            ConceptScores(
                h.cpu(), self.name, self.meta, a.dead.cpu(), None if x is None else x.cpu()
            )
            for a, (h, x) in zip(acts, found, strict=True)
        ]


def clip_dissect(
    p: Similarities,
    *,
    ids: Tensor | None = None,
    similarity: str = "soft_wpmi",
    name: str | None = None,
    **constants: float,
) -> ClipDissect:
    """A CLIP-Dissect detector.

    Args:
        p: similarities of images and concepts `[N, C]`: cosines of L2-normalised embeddings, or an
            oracle's standardised coverage. No logit scale. Or embeddings (`Embedded`): then the
            similarities are made block by block where the similarity function allows it.
        ids: int64 `[N]` of the images; by default row numbers.
        similarity: one of `SIMILARITIES`; soft_wpmi is the reference's best (section 1.1).
        name: for tables; the similarity by default.
        constants: those of the similarity, for instance `k=50`; the reference's by default.

    Raises:
        ValueError: an unknown similarity or constant, a value that is not finite, a K that is no
            whole number from 1 to N.
    """
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity is one of {', '.join(SIMILARITIES)}; got {similarity!r}")
    if isinstance(p, Tensor):
        _check_similarities(p)
        p = p.float()
    n = p.shape[0]
    ids = torch.arange(n) if ids is None else ids
    if len(ids) != n:
        raise ValueError(f"want an id for each of {n} images, got {tuple(ids.shape)}")
    defaults, prepare = SIMILARITIES[similarity]
    unknown = set(constants) - set(defaults)
    if unknown:
        raise ValueError(
            f"{similarity} has no constant {', '.join(sorted(unknown))}; it has "
            f"{', '.join(defaults) or 'none'}"
        )
    used = {**defaults, **constants}
    if not (asked := constants.get("k", 1)) >= 1 or asked % 1:
        raise ValueError(f"want K, the top images of a unit, as a whole number from 1, got {asked}")
    if used.get("k") == 0:  # section 4.5: a hundredth of the images, at least ten
        used["k"] = max(10, n // 100)
    if used.get("k", 1) > n:
        raise ValueError(
            f"want K <= N, got K = {used['k']} and N = {n} probing images; lower k or probe "
            "with more images"
        )
    meta = {"similarity": similarity, **used}
    state = {"p": p} if isinstance(p, Tensor) else {"images": p.images, "words": p.words}
    state["ids"] = ids
    text = json.dumps([meta, cache.state_hash(state)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()
    return ClipDissect(p, ids, name or similarity, meta, prepare(p, used), digest)


def _check_similarities(p: Tensor) -> None:
    if p.ndim != 2 or len(p) == 0:
        raise ValueError(f"want similarities [N, C] of at least one image, got {tuple(p.shape)}")
    if not p.isfinite().all():
        bad = (~p.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"similarity of image {bad[0]} and concept {bad[1]} is not finite")


Constants = Mapping[str, float]


def _dense(p: Similarities) -> Tensor:
    return p.dense() if isinstance(p, Embedded) else p


def _cosine(p: Similarities, used: Constants) -> Score:
    full = _dense(p)
    return lambda layers: [(cosine(acts, full), None) for acts in layers]


def _cosine_cubed(p: Similarities, used: Constants) -> Score:
    full, power, smallest = _dense(p), int(used["power"]), used["smallest_norm"]
    return lambda layers: [
        (cosine_cubed(acts, full, power=power, smallest_norm=smallest), None) for acts in layers
    ]


def _rank_reorder(p: Similarities, used: Constants) -> Score:
    full = _dense(p)
    ranks = global_ranks(full)

    def one(acts: Tensor) -> Tensor:
        return rank_reorder(
            acts,
            full,
            top=used["top"],
            power=used["power"],
            scale_power=used["scale_power"],
            n_permutations=int(used["n_permutations"]),
            seed=int(used["seed"]),
            ranks=ranks,
        )

    return lambda layers: [(one(acts), None) for acts in layers]


def _wpmi(p: Similarities, used: Constants) -> Score:
    q, k, lam = softmax(p, used["a"]), int(used["k"]), used["lam"]
    return lambda layers: [(wpmi(acts, q, k=k, lam=lam), None) for acts in layers]


def _soft_wpmi(p: Similarities, used: Constants) -> Score:
    q = softmax(p, used["a"]) if used["a"] else matched(p)
    k, lam = int(used["k"]), used["lam"]
    weights = membership(k, used["p_start"], used["p_end"])

    def score(layers: Sequence[Tensor]) -> list[Found]:
        found = score_sets(q, [chosen(acts, q, k) for acts in layers], weights, lam)
        return [(h, None) for h in found]

    return score


def _soft_wpmi_z(p: Similarities, used: Constants) -> Score:
    q, k = matched(p, spread=used["spread"]), int(used["k"])
    against = reference(
        q,
        k,
        n_random=int(used["n_random"]),
        seed=int(used["seed"]),
        p_start=used["p_start"],
        p_end=used["p_end"],
    )

    def score(layers: Sequence[Tensor]) -> list[Found]:
        sizes = [acts.shape[1] for acts in layers]
        h, reached = standardise_sets(q, torch.cat([chosen(a, q, k) for a in layers]), against)
        return list(zip(h.split(sizes), reached.split(sizes), strict=True))

    return score


# name -> constants of the reference, and what makes the score; a = 0 stands for the softmax
# matched to the encoder's own spread, k = 0 for a hundredth of the images
SIMILARITIES: dict[str, tuple[dict[str, float], Callable[[Similarities, Constants], Score]]] = {
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
