"""The networks and concept data of notebook 11, by the name of the data set.

A `Testbed` is an ensemble of networks of one architecture, the concepts to look for, and a way
to read activations: `digits` (MLPs, embedded data) or `cifar10` (ResNets, real images). Document
1 uses ImageNet networks; which data and network stand in for them is printed on every figure.

Public names: `Concept`, `Testbed`, `load`, `round_digits`, `hilo_synthetic`, `cifar_concepts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from lib import cache, features, models, parallel, training
from lib.config import Run
from lib.data import cifar10, concepts, digits
from lib.data.base import Provenance

ROUND = (0, 6, 8, 9)  # digits with a closed loop, as usually written
ANIMAL, OBJECT = (2, 3, 4, 5, 6, 7), (0, 1, 8, 9)  # CIFAR-10 classes
UNSEEN_ANIMAL, UNSEEN_OBJECT = (6, 7), (9,)  # frog, horse; truck

Progress = Callable[[range], Iterator[int]]


@dataclass(frozen=True)
class Concept:
    """Rows to fit a probe on and disjoint rows to judge it on; neither trained the network."""

    name: str
    kind: str  # "object" | "low-level"
    fit_x: Tensor  # [n, ...]
    fit_y: Tensor  # [n] in {0, 1}
    test_x: Tensor  # [m, ...]
    test_y: Tensor  # [m]
    fit_group: Tensor  # [n] input group of the control task: the class, or the row itself
    test_group: Tensor  # [m]
    note: str

    @property
    def chance(self) -> float:
        """Accuracy of always naming the larger class of the test rows."""
        share = self.test_y.float().mean().item()
        return max(share, 1.0 - share)


@dataclass(frozen=True)
class Testbed:
    """An ensemble, its concepts and its activations."""

    name: str
    network: str
    n_models: int
    n_train: int
    epochs: int
    layers: tuple[str, ...]  # in order of depth
    concepts: dict[str, Concept]
    test_accuracy: Tensor  # [M] of the base networks on their own task
    provenance: Provenance
    read: Callable[[Tensor, bool], dict[str, Tensor]]  # (x, trained) -> layer -> [M, n, d]

    def __str__(self) -> str:
        return (
            f"{self.name}, {self.n_models} x {self.network} "
            f"({self.n_train:,} images, {self.epochs} epochs)"
        )


def load(run: Run, progress: Progress | None = None) -> Testbed:
    """Train (or fetch) the ensemble that `run.size` asks for and prepare its concepts.

    Raises:
        ValueError: an unknown data set or concept.
    """
    if run.size.data not in TESTBEDS:
        raise ValueError(f"data is one of {', '.join(TESTBEDS)}; got {run.size.data!r}")
    bed = TESTBEDS[run.size.data](run, progress)
    unknown = set(run.size.concepts) - set(bed.concepts)
    if unknown:
        known = ", ".join(bed.concepts)
        raise ValueError(f"{run.size.data} has no concept {', '.join(unknown)}; it has {known}")
    return bed


def recipe(run: Run) -> training.Recipe:
    """How the base networks of `run` are trained."""
    names = ("epochs", "batch_size", "lr", "weight_decay", "schedule", "augment", "precision")
    return training.Recipe(**{name: getattr(run.size, name) for name in names})


def _digits(run: Run, progress: Progress | None) -> Testbed:
    data, size = digits.load(), run.size
    spec = {"widths": (64, 32, 32, 10)}
    seeds = range(run.seed, run.seed + size.n_models)
    x, y = data.train.x.to(run.device), data.train.y.to(run.device)
    trained = training.fetch_stack(
        size.network, spec, x, y, recipe(run), seeds=seeds, progress=progress
    )
    states = {
        True: trained,
        False: training.initial_stack(size.network, spec, seeds, run.device),
    }

    def read(rows: Tensor, is_trained: bool) -> dict[str, Tensor]:
        state = states[is_trained]
        seen = training.forward_stacked(
            size.network, spec, state, rows.to(run.device), size.layers
        )[1]
        return {layer: h.cpu() for layer, h in seen.items()}

    out = training.forward_stacked(size.network, spec, trained, data.test.x.to(run.device))[0]
    accuracy = (out.argmax(-1).cpu() == data.test.y).float().mean(1)
    return Testbed(
        name="digits",
        network="MLP 64-32-32-10",
        n_models=size.n_models,
        n_train=len(data.train.x),
        epochs=size.epochs,
        layers=tuple(size.layers),
        concepts={"round": round_digits(data), "hilo-synthetic": hilo_synthetic(run.seed)},
        test_accuracy=accuracy,
        provenance=data.provenance,
        read=read,
    )


def round_digits(data: digits.Digits) -> Concept:
    """Digits with a closed loop, on the rows that trained no network."""
    loops = torch.tensor(ROUND)
    return Concept(
        name="round",
        kind="object",
        fit_x=data.probe.x,
        fit_y=torch.isin(data.probe.y, loops).long(),
        test_x=data.test.x,
        test_y=torch.isin(data.test.y, loops).long(),
        fit_group=data.probe.y,
        test_group=data.test.y,
        note="digits 0, 6, 8, 9 against the others",
    )


def hilo_synthetic(seed: int, n: int = 400) -> Concept:
    """Patches with a fine texture on one side, as flat rows of digit size."""
    x, y = concepts.hilo_patches(2 * n, torch.Generator().manual_seed(seed))
    x, row = x.flatten(1), torch.arange(2 * n)
    return Concept(
        name="hilo-synthetic",
        kind="low-level",
        fit_x=x[:n],
        fit_y=y[:n],
        test_x=x[n:],
        test_y=y[n:],
        fit_group=row[:n],
        test_group=row[n:],
        note="8x8 patches, fine texture on one side only",
    )


def _cifar10(run: Run, progress: Progress | None) -> Testbed:
    images, size = cifar10.load(run.data_root), run.size
    hashed = images.provenance.sha256
    seeds = list(range(run.seed, run.seed + size.n_models))
    # every worker reads the images itself: 150 MB a task would cross the network otherwise
    one = partial(fetch_cifar_network, size.network, recipe(run), hashed, run.device)
    states = parallel.map_tasks(one, seeds, progress=progress)
    trained = [_module(size.network, state, run.device) for state in states]
    untrained = [
        models.build(size.network, torch.Generator().manual_seed(seed), run.device)
        for seed in seeds
    ]
    test = images.test
    accuracy = [training.accuracy(m, test.x, test.y, prepare=cifar10.standardise) for m in trained]
    return Testbed(
        name="CIFAR-10",
        network={"resnet20": "ResNet-20", "resnet18": "ResNet-18"}.get(size.network, size.network),
        n_models=size.n_models,
        n_train=len(images.train.x),
        epochs=size.epochs,
        layers=tuple(size.layers),
        concepts=cifar_concepts(test.x, test.y, run.seed),
        test_accuracy=torch.tensor(accuracy),
        provenance=images.provenance,
        read=partial(_read_modules, trained, untrained, tuple(size.layers)),
    )


def fetch_cifar_network(
    network: str, how: training.Recipe, hashed: str, device: str, seed: int
) -> dict[str, Tensor]:
    """Train one network, or take it from the cache; runs in this process or on a worker."""

    def load_images() -> tuple[Tensor, Tensor]:
        train = cifar10.load().train
        return train.x, train.y

    model = training.fetch_model(
        network,
        {},
        load_images,
        how,
        seed=seed,
        data_hash=hashed,
        prepare=cifar10.standardise,
        device=device,
    )
    return {k: v.cpu() for k, v in model.state_dict().items()}


def _module(network: str, state: dict[str, Tensor], device: str) -> nn.Module:
    model = models.build(network, torch.Generator(), device)
    model.load_state_dict(state)
    return model.eval()


def _read_modules(
    trained: Sequence[nn.Module],
    untrained: Sequence[nn.Module],
    layers: tuple[str, ...],
    x: Tensor,
    is_trained: bool,
) -> dict[str, Tensor]:
    """Pooled activations of every network, each network's through the cache."""
    data = cache.state_hash({"x": x})
    found = []
    for model in trained if is_trained else untrained:
        config = {"model": cache.state_hash(model.state_dict()), "x": data, "layers": list(layers)}

        def build(model: nn.Module = model) -> dict[str, Tensor]:
            return features.activations(model, x, layers, prepare=cifar10.standardise)

        code = (features.activations, cifar10.standardise)
        found.append(cache.fetch("activations", config, build, code=code))
    return {layer: torch.stack([seen[layer] for seen in found]) for layer in layers}


def cifar_concepts(x: Tensor, y: Tensor, seed: int) -> dict[str, Concept]:
    """Concepts on the test images, which never trained a network: one half fits, one judges."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    half = torch.zeros(len(x), dtype=torch.bool)
    half[order[: len(x) // 2]] = True
    fit_half, test_half = half.nonzero()[:, 0], (~half).nonzero()[:, 0]
    seen = (
        [c for c in ANIMAL if c not in UNSEEN_ANIMAL],
        [c for c in OBJECT if c not in UNSEEN_OBJECT],
    )

    def group(
        rows: Tensor, positive: Sequence[int], negative: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        chosen, label = concepts.class_group(y[rows], positive, negative, generator)
        return rows[chosen], label

    def concept(
        name: str, kind: str, fit: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], note: str
    ) -> Concept:
        (a, fit_y), (b, test_y) = fit, test
        by_row = kind == "low-level"
        groups = (a, b) if by_row else (y[a], y[b])
        return Concept(name, kind, x[a], fit_y, x[b], test_y, groups[0], groups[1], note)

    rows, label = concepts.hilo_natural(x, generator)
    k = len(rows) // 2
    return {
        "animal": concept(
            "animal",
            "object",
            group(fit_half, ANIMAL, OBJECT),
            group(test_half, ANIMAL, OBJECT),
            "six animal classes against four of vehicles",
        ),
        "unseen-classes": concept(
            "unseen-classes",
            "object",
            group(fit_half, *seen),
            group(test_half, UNSEEN_ANIMAL, UNSEEN_OBJECT),
            "animal again, judged on frog, horse and truck, which the probe never saw",
        ),
        "hilo-natural": concept(
            "hilo-natural",
            "low-level",
            (rows[:k], label[:k]),
            (rows[k:], label[k:]),
            "top 5% against middle fifth of the two-sided texture score",
        ),
    }


TESTBEDS = {"digits": _digits, "cifar10": _cifar10}
