"""Case studies on real data: a ResNet-20 on CIFAR-10, probed with real images.

`task` gives the networks' images, `fetch_run` the networks of a paradigm after chosen epochs;
`setting` is what they are probed with: segmented street scenes and clothing, textures, colours.
There is no image tower for real images here, so words are read by the oracle (labels in place of
an image-text encoder) and by Network Dissection. `judged` is Algorithm 1 with a frozen rule, once
for the images as they are and once for the null, in which images change places within their source.

Each word stands on an axis of its own: the record's embedding space is no CLIP space here, and
nothing is said about distances.

Public names: `NETWORK`, `LAYERS`, `LAST`, `DETECTORS`, `Task`, `task`, `Against`, `AS_PUBLISHED`,
`load`, `pixels`, `normalise`, `fetch_run`, `network`, `Setting`, `setting`, `rules_of`, `judged`.

Source: document 2, sections 4.1 and 4.2; specification section 3.2, 3.3 and 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from lib import cache, training
from lib.data import cifar10, concept_images, imagenet
from lib.data.base import Expected, Provenance, Split, sha256_of
from lib.monitoring import real_images, stored
from lib.monitoring.activations import ConceptSet, LayerActivations
from lib.monitoring.calibration import Null, Rule, attained
from lib.monitoring.cases import ALPHA, ATTAINED, ROUNDS, SLOW_ROUNDS
from lib.monitoring.detectors import Detector, clip_dissect
from lib.monitoring.real_images import ProbingImages
from lib.monitoring.record import Probe, Record, Top, observe, tops_of
from lib.monitoring.space import Basis, Space, fit_basis
from lib.training import Recipe
from lib.training.adversarial import Attack
from lib.training.checkpoints import Checkpoints
from lib.training.loop import Progress
from lib.training.pruning import Masks, State

NETWORK = "resnet20"
LAYERS = ("layer1", "layer2", "layer3")  # three stages: the document's ResNet-18 has four
LAST = LAYERS[-1]
DETECTORS = ("oracle", "net_dissection")
SIDE = 32  # of CIFAR-10: networks see probing images at the size that they were trained on
KEPT = 5  # concepts of a unit
Tops = dict[tuple[str, str], Top]  # (detector, layer) -> best concepts


def pixels(raw: Tensor) -> Tensor:
    """Images uint8 `[n, 3, 32, 32]` as float32 in [0, 1]."""
    return raw.float() / 255


def normalise(images: Tensor) -> Tensor:
    """From there to what the network reads: about zero mean and unit spread a channel."""
    mean = torch.tensor(cifar10.MEAN, device=images.device)[:, None, None]
    sd = torch.tensor(cifar10.SD, device=images.device)[:, None, None]
    return (images - mean) / sd


def prepare_training(raw: Tensor) -> Tensor:
    """CIFAR-10's images uint8 `[n, 3, 32, 32]` as the network reads them."""
    return normalise(pixels(raw))


def prepare(raw: Tensor) -> Tensor:
    """Probing images uint8 `[n, h, w, 3]` as the network reads them."""
    return normalise(pixels(raw.permute(0, 3, 1, 2)))


@dataclass(frozen=True)
class Task:
    """The first rows of CIFAR-10."""

    train: Split  # x uint8 [n, 3, 32, 32], y int64 [n]
    test: Split
    names: tuple[str, ...]
    digest: str  # of the training rows
    provenance: Provenance


def task(
    n_train: int, n_test: int, root: Path | None = None, *, expected: Expected | None = None
) -> Task:
    """The first `n_train` training and `n_test` test images; their order is random as published.

    Raises:
        MissingData: CIFAR-10 is not below `root` (default DATA_ROOT).
        ValueError: fewer rows than asked for.
    """
    whole = cifar10.load(root, expected=expected)
    if not 1 <= n_train <= len(whole.train) or not 1 <= n_test <= len(whole.test):
        raise ValueError(
            f"want 1 to {len(whole.train):,} training and {len(whole.test):,} test images, got "
            f"{n_train:,} and {n_test:,}"
        )
    train, test = (
        Split(part.x[:n].clone(), part.y[:n].clone())
        for part, n in ((whole.train, n_train), (whole.test, n_test))
    )
    digest = f"cifar10 {n_train} {sha256_of(train.x, train.y)[:16]}"
    return Task(train, test, whole.names, digest, whole.provenance)


@dataclass(frozen=True)
class Against:
    """What files are verified against; by default as published."""

    cifar: Expected | None = None
    concepts: Expected = concept_images.WHOLE
    second: Expected = imagenet.WHOLE


AS_PUBLISHED = Against()


def load(
    size: SimpleNamespace, root: Path, against: Against, *, second: bool = False
) -> tuple[Task, list[ProbingImages]]:
    """All data of a study, so that what is missing is said before anything is trained.

    Args:
        size: `n_train`, `n_test` and `fewest` are read.
        root: DATA_ROOT.
        second: the second probing set as well.

    Raises:
        MissingData: a data set is not below `root`.
    """
    of = task(size.n_train, size.n_test, root, expected=against.cifar)
    found = [real_images.load(SIDE, root, fewest=size.fewest, expected=against.concepts)]
    if second:
        other = real_images.load_second(SIDE, root, fewest=size.fewest, expected=against.second)
        found.append(other)
    return of, found


def fetch_run(
    of: Task,
    recipe: Recipe,
    keep: Sequence[int],
    *,
    seed: int,
    start: State | None = None,
    masks: Masks | None = None,
    attack: Attack | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Checkpoints:
    """The network after the epochs in `keep`, through the cache; as `cases.fetch_run`."""
    return training.fetch_checkpoints(
        NETWORK,
        {"n_out": len(of.names)},
        lambda: (of.train.x, of.train.y),
        recipe,
        keep=sorted(set(keep)),
        seed=seed,
        data_hash=of.digest,
        pixels=pixels,
        normalise=normalise,
        start=start,
        masks=masks,
        attack=attack,
        device=device,
        progress=progress,
    )


def network(of: Task, state: State) -> nn.Module:
    """The network of a task with these weights."""
    return training.network_of(NETWORK, {"n_out": len(of.names)}, state)


@dataclass(frozen=True)
class Setting:
    """Probing images with the detectors that read them."""

    real: ProbingImages
    probe: Probe
    order: Tensor  # int64 [N], of the null
    detectors: tuple[Detector, ...]  # in the order of DETECTORS
    space: Space  # a word an axis
    basis: Basis
    seed: int

    def __len__(self) -> int:
        return len(self.real)

    @property
    def concepts(self) -> ConceptSet:
        """The words."""
        return self.space.concepts

    @property
    def kept(self) -> int:
        """Concepts kept of a unit."""
        return min(KEPT, len(self.concepts))

    def detector(self, name: str) -> Detector:
        """One of the detectors, a name in DETECTORS."""
        return self.detectors[DETECTORS.index(name)]


def setting(real: ProbingImages, seed: int) -> Setting:
    """Detectors of a probing set: words by the standardised soft-WPMI from labels, and masks.

    Args:
        real: of `real_images.load` or `load_second`, at 32 pixels.
        seed: of the null.
    """
    concepts = real.concepts
    words = clip_dissect(real.similarities(), ids=real.ids, similarity="soft_wpmi_z", name="oracle")
    space = Space.of(concepts, torch.eye(len(concepts)))
    return Setting(
        real,
        Probe(real.images, real.ids, "real images", prepare),
        real.shuffled(seed),
        (words, real.dissection()),
        space,
        fit_basis(space, "pca"),
        seed,
    )


def rules_of(
    at: Setting, model: nn.Module, layers: Sequence[str] = LAYERS
) -> dict[tuple[str, str], Rule]:
    """The frozen rules of one comparison, from the reference run's last network.

    As `cases.rules_of`, but the null keeps each image's source: what a unit gains by preferring
    street scenes to clothing is no evidence for a word.
    """
    config = {
        **_named(at, model, layers),
        "rule": [ALPHA, ATTAINED, ROUNDS, SLOW_ROUNDS, at.seed],
    }

    def build() -> dict[str, Tensor]:
        acts = at.probe.activations(model, layers, maps=True)
        return {
            f"{name}/{layer}": torch.tensor(
                _calibrated(at, at.detector(name), acts[layer]), dtype=torch.float64
            )
            for name in DETECTORS
            for layer in layers
        }

    code = stored.code_of(model, at.probe, at.detectors)
    entry = cache.fetch("real-rules", config, build, code=[_calibrated, *code])
    found = {}
    for name in DETECTORS:
        for layer in layers:
            tau, alpha = entry[f"{name}/{layer}"].tolist()
            asked = None if at.detector(name).needs_maps else ATTAINED
            found[name, layer] = Rule(tau, asked, alpha)
    return found


def _calibrated(at: Setting, detector: Detector, acts: LayerActivations) -> tuple[float, float]:
    """Threshold, and the share of chance units that pass it alone."""
    if not detector.needs_maps:  # maps are large, and every round would copy them
        acts = LayerActivations(acts.layer, acts.ids, acts.pooled)
    found = []
    for k in range(SLOW_ROUNDS if detector.needs_maps else ROUNDS):
        scores = detector.detect(acts.permuted(at.real.shuffled(1 + ROUNDS * at.seed + k)))
        h, concepts = scores.top(1)
        alive = ~scores.dead
        found.append((h[alive, 0], attained(scores, concepts[:, 0])[alive]))
    best, reached = (torch.stack(part) for part in zip(*found, strict=True))
    null = Null(best, reached, reached)
    tau = null.tau(ALPHA) if detector.tau is None else detector.tau
    return tau, null.passing(Rule(tau))


def judged(
    at: Setting,
    of: Task,
    checkpoints: Mapping[int, State],
    rules: Mapping[tuple[str, str], Rule],
    *,
    layers: Sequence[str] = LAYERS,
    arm: str = "standard",
) -> tuple[Record, Record]:
    """Algorithm 1 over checkpoints in order of epoch (or stage), and the same for the null."""
    steps = sorted(checkpoints.items())
    found = [fetch_tops(at, network(of, state), layers) for _, state in steps]

    def recorded(kind: int) -> Record:
        each = iter(found)

        def score(*asked: object) -> Tops:  # `observe` asks once for each checkpoint, in order
            return next(each)[kind]

        return observe(
            network(of, steps[0][1]),
            steps,
            at.probe,
            layers,
            at.detectors,
            at.space,
            at.basis,
            rules,
            k=at.kept,
            arm=arm,
            score=score,
        )

    return recorded(0), recorded(1)


def fetch_tops(at: Setting, model: nn.Module, layers: Sequence[str]) -> tuple[Tops, Tops]:
    """The best concepts of each unit, for the images as they are and for the null; cached.

    One pass over the images serves both: the null gives the same activations to other images.
    """
    config = {**_named(at, model, layers), "order": cache.state_hash({"order": at.order})}

    def build() -> dict[str, Tensor]:
        acts = at.probe.activations(model, layers, maps=True)
        blind = {layer: one.permuted(at.order) for layer, one in acts.items()}
        return {
            f"{kind}/{name}/{layer}/{part}": getattr(top, part)
            for kind, given in (("as it is", acts), ("null", blind))
            for (name, layer), top in tops_of(given, layers, at.detectors, at.kept).items()
            for part in stored.NAMES
        }

    code = [tops_of, *stored.code_of(model, at.probe, at.detectors)]
    entry = cache.fetch("real-concepts", config, build, code=code)
    plain, null = (
        {
            (name, layer): Top(*(entry[f"{kind}/{name}/{layer}/{part}"] for part in stored.NAMES))
            for name in DETECTORS
            for layer in layers
        }
        for kind in ("as it is", "null")
    )
    return plain, null


def _named(at: Setting, model: nn.Module, layers: Sequence[str]) -> dict[str, object]:
    """What a cached score of a network depends on, beside the code."""
    return {
        "weights": cache.state_hash(dict(model.state_dict())),
        "network": str(model),
        "probe": stored.hash_of(at.probe),
        "layers": list(layers),
        "detectors": [[d.name, d.digest] for d in at.detectors],
        "kept": at.kept,
    }


def said(of: Task, at: Setting) -> str:
    """What the networks are trained on and probed with, a line each."""
    real = at.real
    n = {name: int((real.source == k).sum()) for k, name in enumerate(real.sources)}
    sources = ", ".join(f"{count:,} {name}" for name, count in n.items())
    lines = [str(of.provenance), str(real.provenance)]
    return "\n".join(
        [*lines, f"{len(real):,} probing images ({sources}), {len(at.concepts)} words"]
    )
