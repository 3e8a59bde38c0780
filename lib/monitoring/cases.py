"""What the case studies of document 2 share: probing set, detectors, space, and trained networks.

`setting` makes everything that is probed with; `Task` and `fetch_run` give the networks of a
paradigm after chosen epochs, trained at most once; `judged` is Algorithm 1 with one frozen rule
for all arms that are compared.

Public names: `Setting`, `setting`, `LAYERS`, `DETECTORS`, `Task`, `fetch_run`, `network`,
`accuracies`, `rules_of`, `judged`, `permuted`.

Source: document 2, section 3.2 and 4; specification section 1.4, 2.3, 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lib import cache, training
from lib.data import scenes
from lib.data.annotations import Annotations
from lib.data.base import sha256_of
from lib.data.scenes import Labelled, World
from lib.monitoring import encoder, stored
from lib.monitoring.activations import ConceptSet
from lib.monitoring.calibration import Rule, calibrate
from lib.monitoring.detectors import Detector, clip_dissect
from lib.monitoring.dissection import NetworkDissection
from lib.monitoring.record import Probe, Record, observe
from lib.monitoring.space import Basis, Space
from lib.training import Recipe
from lib.training.adversarial import Attack
from lib.training.checkpoints import Checkpoints
from lib.training.pruning import Masks, State

NETWORK = "scene_resnet"
LAYERS = ("layer2", "layer3", "layer4")
LAST = LAYERS[-1]
DETECTORS = ("clip", "oracle", "net_dissection")
ALPHA, ATTAINED = 0.01, 0.5  # of chance units that pass; of the word's own top images
PERMUTED = 10_000  # added to the seed of the null, so that it is no round of the calibration
SAMPLE = 64  # images whose pixels name a task
ROUNDS, SLOW_ROUNDS = 10, 2  # permutations; of Network Dissection, whose cut is given anyway


def pixels(raw: Tensor) -> Tensor:
    """Images uint8 `[n, 48, 48, 3]` as float32 `[n, 3, 48, 48]` in [0, 1]."""
    return raw.permute(0, 3, 1, 2).float() / 255


def normalise(images: Tensor) -> Tensor:
    """From there to what networks read; both together are `scenes.prepare`."""
    return (images - 0.5) / 0.25


@dataclass(frozen=True)
class Setting:
    """A probing set with the detectors that read it and the space that units are placed in."""

    world: World
    annotations: Annotations
    probe: Probe
    concepts: ConceptSet
    space: Space
    basis: Basis
    detectors: tuple[Detector, ...]  # in the order of DETECTORS
    encoder: str  # its name and digest, for provenance

    def __len__(self) -> int:
        return len(self.world)

    def detector(self, name: str) -> Detector:
        """One of the detectors, a name in DETECTORS."""
        return self.detectors[DETECTORS.index(name)]


def setting(n: int, seed: int, *, second: bool = False) -> Setting:
    """Probing images number `seed` with three detectors: trained encoder, oracle, exact masks.

    Words are read by the standardised soft-WPMI (specification section 4.5).

    Args:
        n: images.
        second: the set without windmills, umbrellas, fields and beaches.
    """
    world = (scenes.probe_b if second else scenes.probe)(n, seed)
    labels = world.annotations()
    concepts = ConceptSet(
        labels.words,
        tuple(c.category for c in labels.concepts),
        tuple(c.raw for c in labels.concepts),
    )
    towers = encoder.fetch()
    ids = torch.arange(n)
    space = Space.of(concepts, towers.words(concepts.words))
    p = towers.images(world.images) @ space.vectors.T
    options = {"ids": ids, "similarity": "soft_wpmi_z"}
    detectors: tuple[Detector, ...] = (
        clip_dissect(p, name="clip", **options),  # type: ignore[arg-type]
        clip_dissect(encoder.oracle(labels), name="oracle", **options),  # type: ignore[arg-type]
        NetworkDissection(labels, ids),
    )
    probe = Probe(world.images, ids, "probe-b" if second else "probe", scenes.prepare)
    basis = stored.fetch_basis(space)
    who = f"{towers.name} {towers.digest[:8]}"
    return Setting(world, labels, probe, concepts, space, basis, detectors, who)


@dataclass(frozen=True)
class Task:
    """A labelled set to train on and one to test on, drawn when they are needed."""

    kind: str  # scenes | objects | fundus
    n: int
    seed: int

    def train_set(self) -> Labelled:
        """The training images."""
        return self._make()(self.n, self.seed)

    def test_set(self, n: int) -> Labelled:
        """Images that no network has seen."""
        return self._make()(n, self.seed, test=True)

    @property
    def names(self) -> tuple[str, ...]:
        """The classes."""
        return self.test_set(1).names

    @property
    def digest(self) -> str:
        """Names the training images without drawing them all: kind, sizes, and a first few.

        By pixels and not by the world's code, most of which (captions) these images do not show.
        """
        few = self._make()(min(self.n, SAMPLE), self.seed)
        return f"{self.kind} {self.n} {self.seed} {sha256_of(few.x, few.y)[:16]}"

    def _make(self):  # type: ignore[no-untyped-def]
        known = {"scenes": scenes.scenes, "objects": scenes.objects, "fundus": scenes.fundus}
        if self.kind not in known:
            raise ValueError(f"a task is one of {', '.join(known)}; got {self.kind!r}")
        return known[self.kind]


def fetch_run(
    task: Task,
    recipe: Recipe,
    keep: Sequence[int],
    *,
    seed: int,
    start: State | None = None,
    masks: Masks | None = None,
    attack: Attack | None = None,
    data: Callable[[], Labelled] | None = None,
    device: str = "cpu",
) -> Checkpoints:
    """The network of a task after the epochs in `keep`, through the cache.

    Args:
        seed: of weights (unless `start` is given), order and attack.
        start, masks, attack: as for `lib.training.fetch_checkpoints`.
        data: gives the task's training images, where several trainings share them; by default
            they are drawn when there is something to train.
    """

    def load() -> tuple[Tensor, Tensor]:
        drawn = (data or task.train_set)()
        return drawn.x, drawn.y

    return training.fetch_checkpoints(
        NETWORK,
        {"n_out": len(task.names)},
        load,
        recipe,
        keep=sorted(set(keep)),
        seed=seed,
        data_hash=task.digest,
        pixels=pixels,
        normalise=normalise,
        start=start,
        masks=masks,
        attack=attack,
        device=device,
    )


def network(task: Task, state: State) -> nn.Module:
    """The network of a task with these weights."""
    return training.network_of(NETWORK, {"n_out": len(task.names)}, state)


def accuracies(task: Task, checkpoints: Mapping[int, State], test: Labelled) -> dict[int, float]:
    """Share of test images classified rightly after each epoch."""
    return {
        epoch: training.accuracy(network(task, state), test.x, test.y, prepare=scenes.prepare)
        for epoch, state in checkpoints.items()
    }


def rules_of(
    at: Setting,
    model: nn.Module,
    names: Sequence[str] = DETECTORS,
    layers: Sequence[str] = LAYERS,
    *,
    seed: int = 0,
) -> dict[tuple[str, str], Rule]:
    """The frozen rules of one comparison, from the reference run's last network.

    Scores above the 99% of a permutation null and more than half of the word's own attainment;
    for Network Dissection the published cut.
    """
    found: dict[tuple[str, str], Rule] = {}
    for name in names:
        detector = at.detector(name)
        rounds = SLOW_ROUNDS if detector.needs_maps else ROUNDS
        config = {
            "weights": cache.state_hash(dict(model.state_dict())),
            "probe": cache.state_hash({"x": at.probe.x, "ids": at.probe.ids}),
            "detector": [name, detector.digest],
            "layers": list(layers),
            "rule": [ALPHA, ATTAINED, rounds, seed],
        }

        def build(detector: Detector = detector, rounds: int = rounds) -> dict[str, Tensor]:
            acts = at.probe.activations(model, layers, maps=detector.needs_maps)
            options = {"alpha": ALPHA, "attainment": ATTAINED, "rounds": rounds, "seed": seed}
            made = calibrate([detector], acts, **options)  # type: ignore[arg-type]
            # NaN stands for what a rule does not have
            return {
                layer: torch.tensor(
                    [float("nan") if v is None else v for v in (r.tau, r.attainment, r.alpha)],
                    dtype=torch.float64,
                )
                for (_, layer), r in made.items()
            }

        entry = cache.fetch(
            "rules", config, build, code=[calibrate, type(detector), stored.fetch_scores]
        )
        for layer in layers:
            tau, *rest = entry[layer].tolist()
            found[name, layer] = Rule(tau, *(None if math.isnan(v) else v for v in rest))
    return found


def judged(
    at: Setting,
    task: Task,
    checkpoints: Mapping[int, State],
    rules: Mapping[tuple[str, str], Rule],
    *,
    names: Sequence[str] = DETECTORS,
    layers: Sequence[str] = LAYERS,
    arm: str = "standard",
) -> Record:
    """Algorithm 1 over checkpoints in order of epoch (or stage); scores through the cache."""
    steps = sorted(checkpoints.items())
    return observe(
        network(task, steps[0][1]),
        steps,
        at.probe,
        layers,
        [at.detector(name) for name in names],
        at.space,
        at.basis,
        rules,
        arm=arm,
        score=stored.fetch_scores,
    )


def permuted(at: Setting, seed: int) -> Setting:
    """The null: units are given the images in another order, detectors keep the first one.

    Everything about the network stays, how units go together included; only what an image shows
    is lost. The order is none of those that the rules of this seed are fitted on.
    """
    generator = torch.Generator().manual_seed(PERMUTED + seed)
    order = torch.randperm(len(at), generator=generator)
    return replace(at, probe=replace(at.probe, x=at.probe.x[order], name="permuted"))
