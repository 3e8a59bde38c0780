"""Notebook 21 on photographs: detectors side by side on MobileNetV2, and CLIP's words as a space.

The detectors are those of `photographs`, on layers of the ImageNet network as it was published.
The space is the one of CLIP's text embeddings of 1,203 object names: they are its basis, and every
name can be an anchor. A unit is placed among the names that are also words of the probing set;
words without an embedding there (colours, textures, some clothes) have no place in it.

Public names: `PhotoStudy`, `fetch_study`, `fetch_studies`, `claims_of`, `rows`, `describe`,
`Named`, `named_space`, `CLIP_NAMES`.

Source: document 2, sections 2.2 and 3; specification section 1, 2 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib import mobilenet, training
from lib.data import clip_text, concept_images, imagenet
from lib.data.base import Expected
from lib.monitoring import detector_studies, photographs, real_images, stored
from lib.monitoring.activations import ConceptScores, ConceptSet
from lib.monitoring.calibration import Rule
from lib.monitoring.detector_studies import Agreement
from lib.monitoring.dissection import CUT
from lib.monitoring.measures import Measured
from lib.monitoring.photographs import CHANCE, DETECTORS, NETWORK, TEXTURES
from lib.monitoring.record import Top
from lib.monitoring.space import Basis, Space, concept_weights

# one rectified layer a resolution; the last is the one before the mean over positions
LAYERS = ("features.8.conv.0", "features.14.conv.0", "features.18")
LAST = LAYERS[-1]
# our words -> the name that CLIP's text tower was given
CLIP_NAMES = {
    "bag": "handbag",
    "boots": "boot",
    "bra": "brassiere",
    "car": "car (automobile)",
    "earrings": "earring",
    "gloves": "glove",
    "jeans": "jean",
    "leggings": "legging (clothing)",
    "sandals": "sandal (type of shoe)",
    "shoes": "shoe",
    "shorts": "short pants",
    "sign symbol": "street sign",
    "socks": "sock",
    "suit": "suit (clothing)",
    "swimwear": "swimsuit",
    "tie": "necktie",
    "tights": "tights (clothing)",
}
BEST = 5  # words that place a unit (Eq. 1)
THETA = 0.01  # about the spread of a unit's five best intersections over union


@dataclass(frozen=True)
class PhotoStudy:
    """Scores of the units of some layers by each detector, and by its twin that knows chance."""

    n: int  # probing images
    concepts: ConceptSet
    # (detector, layer); Network Dissection reads a layer before its activation, see `fetch_study`
    scores: Mapping[tuple[str, str], ConceptScores]
    rules: Mapping[str, Rule]  # layer -> of the oracle
    noise: Tensor  # [S], share of units on white noise that pass the last layer's threshold

    def interpretable(self, detector: str, layer: str) -> Tensor:
        """Units that pass the rule, bool `[M]`; `detector` may be a twin."""
        is_oracle = detector.removeprefix(CHANCE) == DETECTORS[0]
        rule = self.rules[layer] if is_oracle else Rule(CUT)
        return rule.interpretable(self.scores[detector, layer])

    def agreement(self, layer: str) -> Agreement:
        """The oracle's words beside Network Dissection's labels, where the latter has detectors."""
        words, masks = (self.scores[name, layer] for name in DETECTORS)
        return detector_studies.agreement(masks, words, self.concepts)


def fetch_studies(size: Mapping[str, Any], root: Path, seed: int) -> list[PhotoStudy]:
    """The study in a list, or none where the profile has no sizes for it: "not run".

    Raises:
        MissingData: the profile asks for it and the data are not below `root`.
    """
    return [fetch_study(size, root, seed)] if size else []


def fetch_study(
    size: Mapping[str, Any],
    root: Path,
    seed: int,
    *,
    images: Expected = concept_images.WHOLE,
    network: Expected = imagenet.WHOLE,
) -> PhotoStudy:
    """Probe the published network, through the cache.

    Units of this network stop at 6, and one that stands there in more than half a percent of all
    cells has an empty mask: Network Dissection reads the convolution before the activation.

    Args:
        size: `side` of the images; `n_each` images of each source at most; `fewest` images that
            show a word; `n_rounds` of the permutation null.
        root: DATA_ROOT.
        images, network: what to verify the files against.

    Raises:
        MissingData: images or network are not there.
        DamagedData: they are others.
    """
    loaded = imagenet.load_network(root, expected=network)
    state = mobilenet.folded(loaded)
    n_out = len(state["classifier.bias"])
    model = training.network_of(NETWORK, {"n_out": n_out}, state)
    every = real_images.load(size["side"], root, fewest=1, expected=images)
    n_textures = int((every.source == every.sources.index(TEXTURES)).sum())
    generator = torch.Generator().manual_seed(seed)
    some = torch.randperm(n_textures, generator=generator)[: size["n_each"]].sort().values
    few = photographs.probing_set(every, some, size["n_each"], fewest=size["fewest"], seed=seed)
    at = photographs.photographs(few, seed=seed)
    c = len(at.concepts)
    words, masks = ([d for d in at.detectors if d.needs_maps is x] for x in (False, True))
    tops = stored.fetch_scores(model, at.probe, LAYERS, words, k=c)
    before = stored.fetch_scores(model, at.probe, [f"{x}.0" for x in LAYERS], masks, k=c)
    tops |= {(name, layer.removesuffix(".0")): top for (name, layer), top in before.items()}
    rules = {
        layer: photographs.rule_of(at, model, layer, rounds=size["n_rounds"], seed=seed)
        for layer in LAYERS
    }
    noise, _ = detector_studies.white_noise(at.detectors[0], rules[LAST], at.probe.ids)
    return PhotoStudy(
        len(at),
        at.concepts,
        {key: _whole(top, key[0], c) for key, top in tops.items()},
        rules,
        noise,
    )


def _whole(top: Top, name: str, c: int) -> ConceptScores:
    """All scores `[M, C]` from those of all concepts in order of score."""
    order = top.concepts.long()
    h = torch.zeros(len(order), c).scatter(1, order, top.h)
    # the attainment of the best word is all that a rule reads
    none = bool(top.attainment.isnan().any())
    attainment = (
        None if none else torch.zeros_like(h).scatter(1, order[:, :1], top.attainment[:, None])
    )
    return ConceptScores(h, name, {}, top.dead, attainment)


def claims_of(found: Sequence[PhotoStudy]) -> dict[str, Measured]:
    """Claim -> value and spread; None without a study, or without any detector."""
    if not found:
        return {"P2-08": None, "P2-09": None}
    study = found[0]
    last = study.agreement(LAST)
    spread, mean = torch.std_mean(study.noise)
    return {
        "P2-08": last.share(last.in_five),
        "P2-09": (float(mean) / 0.01, float(spread) / 0.01),
    }


def rows(study: PhotoStudy) -> list[dict[str, object]]:
    """A row a layer: interpretable units with distinct words, chance, and the agreement."""
    found: list[dict[str, object]] = []
    for layer in LAYERS:
        row: dict[str, object] = {"layer": layer, "units": len(study.scores["oracle", layer].dead)}
        for name in DETECTORS:
            passes = study.interpretable(name, layer)
            distinct = len(study.scores[name, layer].label[passes].unique())
            chance = int(study.interpretable(CHANCE + name, layer).sum())
            words = name.replace("_", " ")
            row[f"{words} (words)"] = f"{int(passes.sum())} ({distinct})"
            row[f"chance, {words}"] = chance
        agreed = study.agreement(layer)
        for column, of in (
            ("same word", agreed.same_word),
            ("same category", agreed.same_category),
            ("word among five", agreed.in_five),
        ):
            share = agreed.share(of)
            row[column] = "none" if share is None else f"{share[0]:.0%} ± {share[1]:.0%}"
        row["of another unit"] = f"{agreed.chance:.0%}"
        found.append(row)
    return found


def describe(found: Sequence[PhotoStudy]) -> str:
    """One line: what was probed, or that nothing was."""
    if not found:
        return "not run at this profile: photographs and an ImageNet network are read at `full`"
    return (
        f"MobileNetV2 of ImageNet, {found[0].n:,} street scenes, pictures of clothing and "
        f"textures, {len(found[0].concepts)} words"
    )


@dataclass(frozen=True)
class Named:
    """Units of the last layer in the space of CLIP's text embeddings."""

    space: Space  # of all names
    basis: Basis
    shared: Mapping[str, int]  # word of the probing set -> its name's number
    u: Tensor  # float32 [M, D]
    xy: Tensor  # float32 [M, 2]
    word: Tensor  # int64 [M], number of the best shared name
    interpretable: Tensor  # bool [M]: passes the rule, with a shared word


def named_space(
    study: PhotoStudy,
    root: Path,
    *,
    detector: str = "net_dissection",
    theta: float = THETA,
    kind: str = "umap-bary",
    expected: Expected = clip_text.WHOLE,
) -> Named:
    """Place the units of the last layer by their five best words that CLIP has a name for.

    Args:
        detector: whose scores; the oracle calls hardly any unit of this network an object.
        theta: temperature of Eq. 1. Intersections over union differ by hundredths: with the
            document's 1 every unit is the plain mean of its five words.
        kind: of map, as for `space.fit_basis`.

    Raises:
        MissingData: no text embeddings below `root`.
        ValueError: fewer than five words of the probing set have a name.
    """
    clip = clip_text.load(root, expected=expected)
    names = ConceptSet(clip.words)
    shared = {
        word: names.words.index(CLIP_NAMES.get(word, word))
        for word, category in zip(study.concepts.words, study.concepts.category(), strict=True)
        if category == "object" and CLIP_NAMES.get(word, word) in names.words
    }
    if len(shared) < BEST:
        raise ValueError(
            f"want at least {BEST} words of the probing set among CLIP's names, got {len(shared)}"
        )
    space = Space.of(names, clip.vectors)
    basis = stored.fetch_basis(space, kind)
    columns = torch.tensor([study.concepts.number(word) for word in shared])
    numbers = torch.tensor(list(shared.values()))
    scores = study.scores[detector, LAST]
    h, order = scores.h[:, columns].sort(dim=1, descending=True, stable=True)
    best, weights = numbers[order[:, :BEST]], concept_weights(h[:, :BEST], theta)
    own = torch.isin(scores.label.long(), columns)
    return Named(
        space,
        basis,
        shared,
        space.place(best, weights),
        basis.place(best, weights),
        best[:, 0],
        study.interpretable(detector, LAST) & own,
    )
