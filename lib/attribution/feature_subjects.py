"""The classifiers that notebook 47 explains, by the name of the data, and their concepts.

`digits` (embedded): DIGITS-CNN, two convolutions on 8x8 digits. `imagenet` (real): a MobileNetV2
with 1,000 classes and one training image of each. What is explained is the logit of the class that
the network predicts, rightly, for each image.

Public names: `load`, `Asked`, `Subject`, `load_concepts`, `Concepts`, `SUBJECTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import cache, features, training
from lib.attribution import settings, tcav
from lib.attribution.feature_methods import Options, patches
from lib.config import Run
from lib.data import concepts, digits, imagenet
from lib.features import Progress

N_PATCHES = 3  # a side: 9 patches, few enough for exact Shapley values
ROUND = (0, 6, 8, 9)  # digits with a closed loop
# texture -> the class that shows it, named before any run
TEXTURE_OF = {
    "banded": 340,  # zebra
    "braided": 616,  # knot
    "bubbly": 971,  # bubble
    "chequered": 918,  # crossword puzzle
    "cobwebbed": 815,  # spider web
    "crosshatched": 904,  # window screen
}
Code = Sequence[Callable[..., object]]
MOBILENET_STAGES = ((0, 0), (1, 3), (4, 6), (7, 10), (11, 13), (14, 17), (18, 18))


@dataclass(frozen=True)
class Asked:
    """A network, images, and the outputs of which one asks what they rest on."""

    network: str
    model: nn.Module
    x: Tensor  # [n, c, h, w]
    y: Tensor  # [n] the explained class
    baseline: float  # a pixel that stands for nothing
    options: Options

    @property
    def groups(self) -> Tensor:
        """The patches that LIME and the SHAP methods score."""
        assert self.options.groups is not None
        return self.options.groups


@dataclass(frozen=True)
class Subject(Asked):
    """A classifier asked about classes that it predicts rightly, and what else is known of it."""

    name: str  # of the data
    rows: tuple[int, ...]  # the images' numbers in the data set
    names: tuple[str, ...]  # of the classes
    low: float  # of the pixel range
    high: float
    stages: tuple[tuple[str, ...], ...]  # layers to randomise together, from input to output
    real: Tensor  # [m, c, h, w] examples of the classes, as the data set holds them
    real_classes: Tensor  # [m] what the network takes them for
    prepare: Callable[[Tensor], Tensor]  # examples to inputs
    other: nn.Module | None  # the same network from another seed
    is_shown: bool  # whether the licence lets a kept figure show the images
    accuracy: float

    @property
    def about(self) -> str:
        """Data and network in words."""
        return f"{self.name}, {self.network}"


@dataclass(frozen=True)
class Concepts:
    """Activations of concept images, of a pool of other images, and slopes of classes."""

    names: tuple[str, ...]
    layer: str
    active: Mapping[str, Tensor]  # concept -> [k, d]
    pool: Tensor  # [m, d]
    classes: tuple[int, ...]
    slopes: Tensor  # [K, n, d]
    expected: tuple[tuple[str, int], ...]  # (concept, class) named beforehand


def load(run: Run) -> Subject:
    """The classifier and images that `run.size.data` names.

    Raises:
        ValueError: an unknown name.
        MissingData: real data that are not below DATA_ROOT.
    """
    if run.size.data not in SUBJECTS:
        raise ValueError(f"data is one of {', '.join(SUBJECTS)}; got {run.size.data!r}")
    return SUBJECTS[run.size.data](run)


def load_concepts(
    subject: Subject, run: Run, layer: str, progress: Progress | None = None
) -> Concepts:
    """The concepts of the same data set, as a layer holds them."""
    return CONCEPTS[run.size.data](subject, run, layer, progress)


# --- digits


def _digits_network(seed: int) -> nn.Module:
    setting = settings.digits_cnn()
    train = setting.train
    return training.fetch_model(
        setting.network,
        setting.spec,
        lambda: (train.x, train.y),
        setting.recipe,
        seed=seed,
        data_hash=cache.state_hash({"x": train.x, "y": train.y}),
    )


def _digits(run: Run) -> Subject:
    setting = settings.digits_cnn()
    model = _digits_network(run.seed).to(run.device)
    held_out = digits.load(0).test
    x, y = held_out.x.unflatten(1, (1, 8, 8)).to(run.device), held_out.y
    right = training.predict(model, x).argmax(1).cpu() == y
    rows = right.nonzero()[: run.size.n_images, 0]
    return Subject(
        "CNN 8-16",
        model,
        x[rows],
        y[rows].to(run.device),
        baseline=-0.3,  # black
        options=_options(run, (1, 8, 8), "conv2", chunk=256),
        name="digits",
        rows=tuple(rows.tolist()),
        names=tuple("0123456789"),
        low=-0.3,
        high=0.7,
        stages=(("conv1",), ("conv2",), ("out",)),
        real=setting.train.x,
        real_classes=training.predict(model, setting.train.x.to(run.device)).argmax(1).cpu(),
        prepare=_as_they_are,
        other=_digits_network(run.seed + 1).to(run.device),
        is_shown=True,
        accuracy=right.double().mean().item(),
    )


def _as_they_are(x: Tensor) -> Tensor:
    return x


def _options(run: Run, shape: tuple[int, int, int], layer: str, chunk: int) -> Options:
    size = run.size
    return Options(
        groups=patches(shape, N_PATCHES, N_PATCHES),
        layer=layer,
        n_steps=size.n_steps,
        n_smooth=size.n_smooth,
        n_samples=size.n_samples,
        n_orders=size.n_orders,
        chunk=chunk,
    )


def _digit_concepts(subject: Subject, run: Run, layer: str, progress: Progress | None) -> Concepts:
    size, data = run.size.concepts, digits.load(0)
    k = size["k"]
    is_round = torch.isin(data.probe.y, torch.tensor(ROUND))
    mixed, label = concepts.hilo_patches(4 * k, torch.Generator().manual_seed(run.seed))
    images = {
        "round": data.probe.x[is_round][:k].unflatten(1, (1, 8, 8)),
        "high-low frequency": mixed[label == 1][:k, None],
    }
    pool = data.train.x.unflatten(1, (1, 8, 8))
    held_out = data.test
    of_class = [held_out.x[held_out.y == c][: size["n_class"]] for c in range(10)]

    def read(x: Tensor) -> Tensor:
        found = features.activations(subject.model, x.to(run.device), [layer], pool=False)
        return found[layer].flatten(1).cpu()

    slopes = [
        tcav.slopes(
            subject.model, x.unflatten(1, (1, 8, 8)).to(run.device), c, layer, pool=False
        ).cpu()
        for c, x in enumerate(of_class)
    ]
    return Concepts(
        tuple(images),
        layer,
        {name: read(x) for name, x in images.items()},
        read(pool),
        tuple(range(10)),
        torch.stack(slopes),
        tuple(("round", c) for c in ROUND),
    )


# --- ImageNet


def _imagenet(run: Run) -> Subject:
    sample = imagenet.load(run.data_root)
    model = imagenet.load_network(run.data_root).to(run.device)
    order = torch.randperm(len(sample.y), generator=torch.Generator().manual_seed(run.seed))
    guesses = _predictions(model, sample.x, run.device)
    kept = order[(guesses == sample.y)[order]][: run.size.n_images]
    x = imagenet.prepare(sample.x[kept]).to(run.device)
    stages = [tuple(f"features.{k}" for k in range(a, b + 1)) for a, b in MOBILENET_STAGES]
    shape = (x.shape[1], x.shape[2], x.shape[3])
    return Subject(
        "MobileNetV2",
        model,
        x,
        sample.y[kept].to(run.device),
        baseline=0.0,  # mid-grey
        options=_options(run, shape, "features.18", chunk=8),
        name="ImageNet sample",
        rows=tuple(kept.tolist()),
        names=sample.names,
        low=-1.0,
        high=1.0,
        stages=(*stages, ("classifier",)),
        real=sample.x,
        real_classes=guesses,
        prepare=imagenet.prepare,
        other=None,
        is_shown=False,
        accuracy=(guesses == sample.y).double().mean().item(),
    )


def _predictions(model: nn.Module, pixels: Tensor, device: str) -> Tensor:
    """Classes of all images of the sample, by the cache: 20 s on two cores."""

    def build() -> dict[str, Tensor]:
        parts = [
            training.predict(model, imagenet.prepare(part).to(device)).argmax(1).cpu()
            for part in pixels.split(8)
        ]
        return {"classes": torch.cat(parts)}

    config = {"model": cache.state_hash(model.state_dict()), "x": cache.state_hash({"x": pixels})}
    code: Code = [imagenet.load_network, imagenet.prepare, training.predict]
    return cache.fetch("predictions", config, build, code=code)["classes"]


def _texture_concepts(
    subject: Subject, run: Run, layer: str, progress: Progress | None
) -> Concepts:
    size = run.size.concepts
    textures, sample = imagenet.load_textures(run.data_root), imagenet.load(run.data_root)
    order = torch.randperm(len(sample.y), generator=torch.Generator().manual_seed(run.seed + 1))
    # one image a class: slopes are taken on images of all classes, none of them in the pool
    asked, pool = order[: size["n_class"]], order[size["n_class"] :][: 8 * size["k"]]
    images = {
        name: textures.x[textures.y == textures.names.index(name)][: size["k"]]
        for name in TEXTURE_OF
    }

    def build() -> dict[str, Tensor]:
        def read(pixels: Tensor) -> Tensor:
            return features.activations(
                subject.model,
                pixels.to(run.device),
                [layer],
                chunk=8,
                prepare=imagenet.prepare,
                progress=progress,
            )[layer].cpu()

        x = imagenet.prepare(sample.x[asked]).to(run.device)
        classes = list(TEXTURE_OF.values())
        slopes = [
            tcav.slopes(subject.model, x, c, layer, chunk=8).cpu()
            for c in (progress(classes) if progress else classes)  # type: ignore[arg-type]
        ]
        found = {name: read(pixels) for name, pixels in images.items()}
        return {**found, "pool": read(sample.x[pool]), "slopes": torch.stack(slopes)}

    config = {
        "model": cache.state_hash(subject.model.state_dict()),
        "images": cache.state_hash({**images, "pool": sample.x[pool], "asked": sample.x[asked]}),
        "layer": layer,
        "classes": list(TEXTURE_OF.values()),
    }
    code: Code = [
        imagenet.load_network,
        imagenet.prepare,
        features.activations,
        tcav.slopes,
    ]
    found = cache.fetch("textures", config, build, code=code)
    return Concepts(
        tuple(images),
        layer,
        {name: found[name] for name in images},
        found["pool"],
        tuple(TEXTURE_OF.values()),
        found["slopes"],
        tuple(TEXTURE_OF.items()),
    )


SUBJECTS: dict[str, Callable[[Run], Subject]] = {"digits": _digits, "imagenet": _imagenet}
CONCEPTS = {"digits": _digit_concepts, "imagenet": _texture_concepts}
