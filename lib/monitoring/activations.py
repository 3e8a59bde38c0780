"""What detectors read: the activations of one layer over the probing images, and concept scores.

A unit is one channel of a feature map, or one coordinate of a flat output. Activations carry the
ids of the images they were made from, so that a detector can refuse another set or another order.

Public names: `LayerActivations`, `layer_activations`, `layer_activations_of`, `ConceptScores`,
`ConceptSet`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.data.annotations import CATEGORIES
from lib.features import evaluating, recorded

Progress = Callable[[range], Iterator[int]]
DEAD = 1e-8  # standard deviation over images below which a unit says nothing (section 1.1)
POOLINGS = ("mean", "max")


@dataclass(frozen=True)
class LayerActivations:
    """Activations of one layer for N probing images.

    Raises:
        ValueError: shapes that disagree, or a value that is not finite, with layer and unit.
    """

    layer: str
    ids: Tensor  # int64 [N], the images, in order
    pooled: Tensor  # float32 [N, M]
    maps: Tensor | None = None  # float [N, M, h, w], for detectors that read positions

    def __post_init__(self) -> None:
        n = len(self.ids)
        if self.pooled.ndim != 2 or len(self.pooled) != n or n == 0 or self.ids.ndim != 1:
            raise ValueError(
                f"layer {self.layer}: want ids [N] and pooled activations [N, M], got "
                f"{tuple(self.ids.shape)} and {tuple(self.pooled.shape)}"
            )
        if self.maps is not None and (
            self.maps.ndim != 4 or self.maps.shape[:2] != self.pooled.shape
        ):
            raise ValueError(
                f"layer {self.layer}: want maps [N, M, h, w] with N, M = "
                f"{tuple(self.pooled.shape)}, got {tuple(self.maps.shape)}"
            )
        # a sum is finite only if every term is: one pass without a copy
        finite = self.pooled.sum(0, dtype=torch.float64).isfinite()
        if not finite.all():
            unit = int((~finite).nonzero()[0])
            raise ValueError(
                f"layer {self.layer}: unit {unit} has a NaN or infinite activation; "
                "check the checkpoint and the preprocessing of the images"
            )

    @property
    def dead(self) -> Tensor:
        """Units whose pooled activation does not vary, bool `[M]`."""
        return self.pooled.std(0, correction=0) < DEAD

    def permuted(self, order: Tensor) -> LayerActivations:
        """The same with the activations of other images: row i gets those of `order[i]`."""
        maps = None if self.maps is None else self.maps[order]
        return LayerActivations(self.layer, self.ids, self.pooled[order], maps)


@torch.no_grad()
def layer_activations(
    model: nn.Module,
    x: Tensor,
    layers: Sequence[str],
    *,
    ids: Tensor | None = None,
    maps: bool = False,
    pooling: str = "mean",
    prepare: Callable[[Tensor], Tensor] | None = None,
    chunk: int = 512,
    progress: Progress | None = None,
) -> dict[str, LayerActivations]:
    """One pass over the images for all layers, in evaluation mode.

    Only pooled values are kept unless `maps` asks for positions. A 4-D output is pooled over
    positions, of a 3-D output (a transformer's) the first token is taken, a flat one is kept.

    Args:
        model: any module; its modes are restored and no hook stays.
        x: images `[N, ...]`, moved to the model's device chunk by chunk.
        layers: names as in `model.named_modules()`; the output is taken after the module, so after
            the last ReLU of a torchvision block.
        ids: int64 `[N]`; by default the row numbers.
        maps: keep feature maps too (layers without positions keep none).
        pooling: mean or max over positions.
        prepare: applied to each chunk, for instance normalisation of raw pixels.
        progress: wraps the range of chunk starts.

    Raises:
        ValueError: no images, an unknown or unreached layer, activations that are not finite.
        TypeError: a layer's output is not one tensor.

    Source: section 1.1 (pooling) and 6 (one pass for all layers).
    """
    options = {"ids": ids, "maps": maps, "pooling": pooling, "prepare": prepare}
    return layer_activations_of([model], x, layers, chunk=chunk, progress=progress, **options)[0]  # type: ignore[arg-type]


@torch.no_grad()
def layer_activations_of(
    models: Sequence[nn.Module],
    x: Tensor,
    layers: Sequence[str],
    *,
    ids: Tensor | None = None,
    maps: bool = False,
    pooling: str = "mean",
    prepare: Callable[[Tensor], Tensor] | None = None,
    chunk: int = 512,
    progress: Progress | None = None,
) -> list[dict[str, LayerActivations]]:
    """`layer_activations` of several networks in one pass over the images.

    Each chunk is moved and prepared once, which pays where that costs more than a network's forward
    pass (pictures that are decoded); the activations of all networks are in memory together.
    Arguments and errors as there; the models are different objects.

    Source: section 6 (data in the outer loop, checkpoints in the inner one).
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling is one of {', '.join(POOLINGS)}; got {pooling!r}")
    if len(x) == 0 or not layers or not models:
        raise ValueError(
            f"want images, layers and networks, got {len(x)}, {len(layers)} and {len(models)}"
        )
    if len({id(model) for model in models}) < len(models):
        raise ValueError("one network is given twice; give copies with their own weights")
    ids = torch.arange(len(x)) if ids is None else ids
    found: list[_Stored] = [_Stored({}, {}) for _ in models]
    starts = range(0, len(x), chunk)
    with ExitStack() as stack:
        readings = [stack.enter_context(_reading(m, layers, pooling, maps)) for m in models]
        for model in models:
            stack.enter_context(evaluating(model))
        for start in progress(starts) if progress else starts:
            rows = x[start : start + chunk].to(_device(models[0], x))
            rows = prepare(rows) if prepare else rows
            for model, reading, stored in zip(models, readings, found, strict=True):
                # a network whose first layer works in place must not change the next one's input
                reading.run(model, rows.to(_device(model, x), copy=len(models) > 1))
                for name in layers:
                    if name not in reading.pooled:
                        raise ValueError(f"the forward pass does not reach layer {name!r}")
                    _keep(stored.pooled, name, reading.pooled[name], start, len(x))
                    if name in reading.maps:
                        _keep(stored.maps, name, reading.maps[name], start, len(x))
    return [
        {name: LayerActivations(name, ids, s.pooled[name], s.maps.get(name)) for name in layers}
        for s in found
    ]


@dataclass(frozen=True)
class _Stored:
    """Activations of one network, by layer."""

    pooled: dict[str, Tensor]
    maps: dict[str, Tensor]


def _device(model: nn.Module, x: Tensor) -> torch.device:
    first = next(model.parameters(), None)
    return x.device if first is None else first.device


class _AllRead(Exception):
    """The last of the layers has been read."""


class _Reading:
    """What hooks leave of one forward pass; passes after the first end at the last hook.

    Pooling in the hook spares a copy of each feature map, and what follows the last layer is not
    computed. A layer that is used several times in a pass leaves its last output, so the first pass
    runs to its end and counts the uses; the later ones are taken to use the layers as often.
    """

    def __init__(self, pooling: str, with_maps: bool) -> None:
        self.pooling, self.with_maps = pooling, with_maps
        self.pooled: dict[str, Tensor] = {}
        self.maps: dict[str, Tensor] = {}
        self._uses, self._last = 0, -1

    def run(self, model: nn.Module, x: Tensor) -> None:
        """One pass; `pooled` and `maps` are then of these images."""
        self.pooled.clear()
        self.maps.clear()
        self._uses = 0
        try:
            model(x)
        except _AllRead:
            return
        self._last = self._uses

    def hook(self, name: str) -> Callable[[nn.Module, object, object], None]:
        """A forward hook for the layer of that name."""

        def read(module: nn.Module, inputs: object, output: object) -> None:
            if not isinstance(output, Tensor):
                raise TypeError(
                    f"layer {name!r} returns a {type(output).__name__}, want one tensor"
                )
            self.pooled[name] = _pool(output, self.pooling)
            if self.with_maps and output.ndim == 4:
                self.maps[name] = output.clone()  # a later ReLU(inplace=True) would overwrite it
            self._uses += 1
            if self._uses == self._last:
                raise _AllRead

        return read


@contextmanager
def _reading(
    model: nn.Module, layers: Sequence[str], pooling: str, maps: bool
) -> Iterator[_Reading]:
    """Hooks on the layers within, none after."""
    with recorded(model, layers):  # refuses an unknown layer
        pass
    reading = _Reading(pooling, maps)
    handles = [
        model.get_submodule(name).register_forward_hook(reading.hook(name)) for name in layers
    ]
    try:
        yield reading
    finally:
        for handle in handles:
            handle.remove()


def _pool(h: Tensor, pooling: str) -> Tensor:
    """Pooled values `[n, M]`, never a view of the output."""
    if h.ndim == 4:
        return h.mean((2, 3)) if pooling == "mean" else h.amax((2, 3))
    if h.ndim == 3:
        return h[:, 0].clone()
    if h.ndim == 2:
        return h.clone()
    raise ValueError(f"want an output with 2, 3 or 4 dimensions, got {tuple(h.shape)}")


def _keep(store: dict[str, Tensor], name: str, h: Tensor, start: int, n: int) -> None:
    if name not in store:
        store[name] = torch.empty((n, *h.shape[1:]), dtype=torch.float32)
    store[name][start : start + len(h)] = h


@dataclass(frozen=True)
class ConceptScores:
    """How well each concept describes each unit: what a detector returns."""

    h: Tensor  # float32 [M, C], larger is better
    name: str  # of the detector
    meta: Mapping[str, object]  # all constants
    dead: Tensor  # bool [M]; never interpretable
    attainment: Tensor | None = None  # float32 [M, C], 0 as random images, 1 as the ideal ones
    tau: float | None = None  # a threshold on h that the method itself states, if it does

    def __post_init__(self) -> None:
        if self.h.ndim != 2 or self.dead.shape != self.h.shape[:1]:
            raise ValueError(
                f"want scores [M, C] and dead [M], got {tuple(self.h.shape)} and "
                f"{tuple(self.dead.shape)}"
            )

    def top(self, k: int = 5) -> tuple[Tensor, Tensor]:
        """Scores and concepts of the k best, best first, `[M, k]`; ties by concept number.

        Raises:
            ValueError: more than there are concepts.
        """
        if not 1 <= k <= self.h.shape[1]:
            raise ValueError(f"want 1 <= k <= {self.h.shape[1]} concepts, got k = {k}")
        values, concepts = self.h.sort(dim=1, descending=True, stable=True)
        return values[:, :k].contiguous(), concepts[:, :k].int().contiguous()

    @property
    def label(self) -> Tensor:
        """The best concept of each unit, int32 `[M]`."""
        return self.top(1)[1][:, 0]

    @property
    def best(self) -> Tensor:
        """The score of that concept, `[M]`."""
        return self.top(1)[0][:, 0]


@dataclass(frozen=True)
class ConceptSet:
    """The words S, with their categories where they are known."""

    words: tuple[str, ...]
    categories: tuple[str, ...] = ()  # one a word, or none at all
    raw: tuple[str, ...] = field(default=())  # names as the data set spells them

    def __post_init__(self) -> None:
        names = self.raw or self.words
        if len(set(names)) < len(names):
            twice = next(name for k, name in enumerate(names) if name in names[:k])
            raise ValueError(f"the concept {twice!r} is listed twice; keep one of them")
        for what, values in (("categories", self.categories), ("raw", self.raw)):
            if values and len(values) != len(self.words):
                raise ValueError(
                    f"want one of {what} for each of {len(self.words)} words, got {len(values)}"
                )
        if not self.words:
            raise ValueError("want at least one concept, got none")
        unknown = next((name for name in self.categories if name not in CATEGORIES), None)
        if unknown is not None:
            raise ValueError(f"a category is one of {', '.join(CATEGORIES)}; got {unknown!r}")

    def __len__(self) -> int:
        return len(self.words)

    def category(self) -> tuple[str, ...]:
        """The categories.

        Raises:
            ValueError: there are none.
        """
        if not self.categories:
            raise ValueError(
                "this concept set has no categories, so units cannot be counted by category; "
                "take one from an annotated data set, or give `categories`"
            )
        return self.categories

    def number(self, word: str) -> int:
        """The number of a word (or raw name).

        Raises:
            ValueError: it is not in the set; similar words are named.
        """
        for names in (self.words, self.raw):
            if word in names:
                return names.index(word)
        from difflib import get_close_matches

        near = ", ".join(get_close_matches(word, self.words, 3)) or "nothing like it"
        raise ValueError(f"{word!r} is not one of the {len(self)} concepts; there is {near}")

    @staticmethod
    def read(path: Path) -> ConceptSet:
        """One word a line; blank lines are dropped before words are numbered.

        Raises:
            ValueError: a word twice, or none.
        """
        lines = (line.strip() for line in path.read_text().splitlines())
        return ConceptSet(tuple(line for line in lines if line))
