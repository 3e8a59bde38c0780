"""Fine-tuning on photographs: an ImageNet network learns to tell ten textures apart.

No images of retinas are at hand, so the real part of case study IV takes the MobileNetV2 of
ImageNet from things to the Describable Textures: a new last layer, all layers free. It is probed
at chosen epochs with street scenes, clothing and textures that it is not trained on; the rule that
calls a unit interpretable is fitted on the network before and frozen. Units are named by
CLIP-Dissect with the oracle's similarities and by Network Dissection on the masks.

Beside it stand the same training with the labels of its images permuted (what training alone
does), the probing images permuted within their source (chance), and a network of random weights.

Public names: `TextureStudy`, `fetch_study`, `fetch_studies`, `split`, `claims_of`, `rows`,
`describe`.

Source: document 2, section 4.3, with other images; specification section 3.4 and 5. Photographs
have no labels of materials and scenes, so nothing is said of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lib import mobilenet, models, training
from lib.data import concept_images, imagenet
from lib.data.base import Expected, sha256_of
from lib.monitoring import cases, measures, photographs, real_images
from lib.monitoring.activations import ConceptSet
from lib.monitoring.calibration import Rule
from lib.monitoring.dissection import CUT
from lib.monitoring.fine_tuning_studies import best_units, shares
from lib.monitoring.measures import Measured
from lib.monitoring.photographs import CHANCE, CHUNK, DETECTORS, NETWORK, TEXTURES, Photographs
from lib.monitoring.real_images import ProbingImages
from lib.monitoring.record import Record, Trace, observe
from lib.monitoring.space import Space, fit_basis
from lib.monitoring.stored import fetch_scores
from lib.training import Recipe
from lib.training.checkpoints import Checkpoints
from lib.training.loop import Progress
from lib.training.pruning import State

LAST, HEAD = "features.18", "classifier"
# Network Dissection reads what comes before the activation: a unit that stands at its ceiling of 6
# in more than half a percent of all cells has an empty mask behind it
BEFORE = "features.18.0"
LAYER = {"oracle": LAST, "net_dissection": BEFORE}
TUNED, CONTROL, UNTRAINED = "textures", "labels permuted", "random weights"
KINDS = ("object", "part", "texture", "color")  # that these images are labelled for


@dataclass(frozen=True)
class TextureStudy:
    """The network before, and while it is fine-tuned, with its controls."""

    seed: int
    names: tuple[str, ...]  # of the textures
    n_train: int
    n_probe: int
    concepts: ConceptSet
    epochs: tuple[int, ...]  # completed, of fine-tuning; 0: before
    right: Mapping[str, Mapping[int, Tensor]]  # arm -> epoch -> bool [n_test]
    majority: float  # share of the most frequent texture among test images
    # arms TUNED, CONTROL and UNTRAINED; all detectors at LAST, Network Dissection at BEFORE too
    record: Record

    def trace(self, detector: str, arm: str = TUNED) -> Trace:
        """A detector, or its twin, at the layer that it reads."""
        return self.record.trace(detector, LAYER[detector.removeprefix(CHANCE)], arm)

    def units(self, detector: str, kind: str, arm: str = TUNED) -> Tensor:
        """Interpretable units with a word of a category, bool `[E, M]`."""
        return shares(self.trace(detector, arm), self.concepts, kind)


def split(y: Tensor, n_train: int, n_test: int, *, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows to train on, to test on and to probe with: disjoint, so many of each class, the rest.

    Args:
        y: class of each row, int64 `[n]`.
        n_train, n_test: rows a class.

    Raises:
        ValueError: a class leaves none to probe with.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[], [], []]
    for label in y.unique().tolist():
        mine = (y == label).nonzero()[:, 0]
        if min(n_train, n_test) < 1 or n_train + n_test >= len(mine):
            raise ValueError(
                f"class {label} has {len(mine)} images: want at least one each to train on, to "
                f"test on and to probe with, got {n_train} and {n_test} for the first two"
            )
        order = mine[torch.randperm(len(mine), generator=generator)]
        cuts = [n_train, n_test, len(mine) - n_train - n_test]
        for part, rows in zip(parts, order.split(cuts), strict=True):
            part.append(rows)
    train, test, rest = (torch.cat(part).sort().values for part in parts)
    return train, test, rest


def fetch_studies(
    size: Mapping[str, Any], root: Path, seed: int, *, device: str = "cpu"
) -> list[TextureStudy]:
    """The study in a list, or none where the profile has no sizes for it: "not run".

    Raises:
        MissingData: the profile asks for it and the data are not below `root`.
    """
    return [fetch_study(size, root, seed, device=device)] if size else []


def fetch_study(
    size: Mapping[str, Any],
    root: Path,
    seed: int,
    *,
    device: str = "cpu",
    images: Expected = concept_images.WHOLE,
    network: Expected = imagenet.WHOLE,
    progress: Progress | None = None,
) -> TextureStudy:
    """Fine-tune (or fetch) the network with its control, and probe all.

    Args:
        size: `side` of the images; `n_train` and `n_test` textures a class, the rest probes;
            `n_each` probing images of the other sources; `fewest` images that show a word;
            `recipe`, `keep` (completed epochs), `n_rounds` of the permutation null.
        root: DATA_ROOT.
        images, network: what to verify the files against.
        progress: wraps the range of epochs.

    Raises:
        MissingData: images or network are not there.
        DamagedData: they are others.
    """
    loaded = imagenet.load_network(root, expected=network)
    every = real_images.load(size["side"], root, fewest=1, expected=images)
    x, y, names = _textures(every)
    train, test, rest = split(y, size["n_train"], size["n_test"], seed=seed)
    few = photographs.probing_set(every, rest, size["n_each"], fewest=size["fewest"], seed=seed)
    at = photographs.photographs(few, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    spec = {"n_out": len(names)}
    start = training.with_new_head(
        NETWORK, spec, mobilenet.folded(loaded), head=HEAD, generator=generator
    )
    recipe, runs, right = Recipe(**size["recipe"]), {}, {}
    permuted = y[train][torch.randperm(len(train), generator=generator)]
    for arm, labels, keep in (
        (TUNED, y[train], size["keep"]),
        (CONTROL, permuted, (recipe.epochs,)),
    ):
        runs[arm] = _fetch_run(
            x[train], labels, spec, recipe, keep, start, seed=seed, device=device, progress=progress
        )
        right[arm] = {e: _right(state, spec, x[test], y[test]) for e, state in runs[arm].items()}
    untrained = models.build(NETWORK, torch.Generator().manual_seed(seed), "cpu", **spec)
    runs[UNTRAINED] = {0: dict(untrained.state_dict())}
    return TextureStudy(
        seed,
        names,
        len(train),
        len(at),
        at.concepts,
        tuple(sorted(runs[TUNED])),
        right,
        float(y[test].bincount().max()) / len(test),
        _record(at, runs, spec, size["n_rounds"], seed),
    )


def _textures(images: ProbingImages) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Images uint8 `[n, side, side, 3]`, classes `[n]` and their names."""
    mine = images.source == images.sources.index(TEXTURES)
    labels, y = images.annotations.whole[mine, 0].unique(return_inverse=True)
    words = images.annotations.words
    return images.images[mine], y, tuple(words[label - 1] for label in labels.tolist())


def _fetch_run(
    x: Tensor,
    y: Tensor,
    spec: Mapping[str, object],
    recipe: Recipe,
    keep: Sequence[int],
    start: State,
    *,
    seed: int,
    device: str,
    progress: Progress | None,
) -> Checkpoints:
    return training.fetch_checkpoints(
        NETWORK,
        spec,
        lambda: (x, y),
        recipe,
        keep=keep,
        seed=seed,
        data_hash=sha256_of(x, y),
        pixels=cases.pixels,
        normalise=photographs.normalise,
        start=start,
        device=device,
        progress=progress,
    )


def _right(state: State, spec: Mapping[str, object], x: Tensor, y: Tensor) -> Tensor:
    model = training.network_of(NETWORK, spec, state)
    return training.predict(model, x, prepare=photographs.prepare, chunk=CHUNK).argmax(1) == y


def _record(
    at: Photographs,
    runs: Mapping[str, Checkpoints],
    spec: Mapping[str, object],
    n_rounds: int,
    seed: int,
) -> Record:
    """All arms through all detectors, with the rule of the network before."""
    before = training.network_of(NETWORK, spec, runs[TUNED][0])
    rule = photographs.rule_of(at, before, LAST, rounds=n_rounds, seed=seed)
    rules = {
        (prefix + name, layer): rule if name == "oracle" else Rule(CUT)
        for prefix in ("", CHANCE)
        for name in DETECTORS
        for layer in (LAST, BEFORE)
    }
    # no text encoder is asked: each word is an axis of its own
    space = Space.of(at.concepts, torch.eye(len(at.concepts)))
    basis = fit_basis(space, "pca")
    masks = [d for d in at.detectors if d.needs_maps]
    records = [
        observe(
            before,
            sorted(checkpoints.items()),
            at.probe,
            [layer],
            detectors,
            space,
            basis,
            rules,
            arm=arm,
            score=fetch_scores,
        )
        for layer, detectors in ((LAST, at.detectors), (BEFORE, masks))
        for arm, checkpoints in runs.items()
    ]
    return Record(tuple(t for record in records for t in record.traces), space, basis)


def claims_of(found: Sequence[TextureStudy], *, n_draws: int = 1000) -> dict[str, Measured]:
    """Claim -> value and half its interval over units or images; None without a study."""
    names = ("P2-64", "P2-65", "P2-66", "P2-67", "P2-68", "P2-69")
    if not found:
        return dict.fromkeys(names)
    study = found[0]
    lost, won = (
        [
            measures.share_gain(sign * study.units(name, kind).double(), n_draws=n_draws)
            for name in DETECTORS
        ]
        for sign, kind in ((-1, "object"), (1, "texture"))
    )
    tuned, control = (study.units("oracle", "texture", a)[-1].double() for a in (TUNED, CONTROL))
    right = study.right[TUNED][study.epochs[-1]].double() - study.majority
    values = (
        *(lost[0], won[0], lost[1], won[1]),
        measures.mean(right, n_draws=n_draws),
        measures.mean(tuned - control, n_draws=n_draws),  # the same units: from one start
    )
    return dict(zip(names, values, strict=True))


def rows(study: TextureStudy) -> list[dict[str, object]]:
    """A row a network: accuracy, units by category, chance, and the words of the best units."""
    found: list[dict[str, object]] = []
    for arm in (TUNED, CONTROL, UNTRAINED):
        trace = study.trace("oracle", arm)
        for at, epoch in enumerate(trace.epochs):
            right = study.right.get(arm, {}).get(epoch)
            row: dict[str, object] = {
                "trained on": arm,
                "epochs": epoch,
                # before training the last layer is random
                "accuracy": "" if right is None or not epoch else float(right.double().mean()),
            }
            for name in DETECTORS:
                counts = [int(study.units(name, kind, arm)[at].sum()) for kind in KINDS]
                row[name.replace("_", " ")] = " ".join(str(count) for count in counts)
                chance = study.trace(CHANCE + name, arm).interpretable[at]
                row[f"chance, {name.replace('_', ' ')}"] = int(chance.sum())
            clipped = study.record.trace("net_dissection", LAST, arm).interpretable[at]
            row["net dissection, clipped"] = int(clipped.sum())
            best = [study.concepts.words[int(trace.label[at, k])] for k in best_units(trace, at)]
            row["five best"] = ", ".join(best)
            found.append(row)
    return found


def describe(found: Sequence[TextureStudy]) -> str:
    """One line: what was run, or that nothing was."""
    if not found:
        return "not run at this profile: photographs and an ImageNet network are read at `full`"
    study = found[0]
    m = study.trace("oracle").label.shape[1]
    return (
        f"{study.n_train} images of {len(study.names)} textures to train on, {study.n_probe:,} "
        f"others to probe with, {len(study.concepts)} words, {m:,} units of {LAST}"
    )
