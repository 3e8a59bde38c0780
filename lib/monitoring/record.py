"""Algorithm 1: every checkpoint through every detector, into one long table.

For each checkpoint one pass over the probing images gives the activations of all layers; each
detector scores them; the k best concepts of each unit, their weights and the unit's place in the
embedding space are kept. All figures are group-bys of the result.

Checkpoints are any stream of (epoch, state): files, or states in memory.

Public names: `Probe`, `Trace`, `Record`, `Top`, `observe`, `assemble`, `scores_of`, `tops_of`,
`checkpoint_files`.

Source: specification section 2.3 and 6.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lib.monitoring.activations import ConceptScores, LayerActivations, layer_activations
from lib.monitoring.calibration import Rule, attained
from lib.monitoring.detectors import Detector, detect_layers
from lib.monitoring.space import Basis, Space, concept_weights

if TYPE_CHECKING:
    import pandas as pd

State = Mapping[str, Tensor]
Rules = Mapping[tuple[str, str], Rule]  # (detector name, layer)
COLUMNS = (
    *("run", "arm", "detector", "epoch", "layer", "neuron", "rank"),
    *("concept", "word", "category", "h", "weight", "attainment", "interpretable", "dead"),
)


@dataclass(frozen=True)
class Probe:
    """The probing images."""

    x: Tensor  # [N, ...]
    ids: Tensor  # int64 [N]
    name: str = "probe"
    prepare: Callable[[Tensor], Tensor] | None = None  # applied to each chunk
    pooling: str = "mean"
    chunk: int = 512

    def __post_init__(self) -> None:
        if len(self.x) != len(self.ids) or len(self.x) == 0:
            raise ValueError(f"want as many ids as images, got {len(self.ids)} and {len(self.x)}")

    def activations(
        self, model: nn.Module, layers: Sequence[str], *, maps: bool
    ) -> dict[str, LayerActivations]:
        """One pass for all layers."""
        return layer_activations(
            model,
            self.x,
            layers,
            ids=self.ids,
            maps=maps,
            pooling=self.pooling,
            prepare=self.prepare,
            chunk=self.chunk,
        )


@dataclass(frozen=True)
class Trace:
    """One detector on one layer over E checkpoints."""

    run: str
    arm: str
    detector: str
    layer: str
    epochs: tuple[int, ...]
    concepts: Tensor  # int32 [E, M, k], best first
    h: Tensor  # float32 [E, M, k]
    weights: Tensor  # float32 [E, M, k], lambda of Eq. 1
    attainment: Tensor  # float32 [E, M], of the best concept; NaN where the detector gives none
    interpretable: Tensor  # bool [E, M]
    dead: Tensor  # bool [E, M]
    u: Tensor  # float16 [E, M, D]
    xy: Tensor  # float32 [E, M, 2]

    @property
    def label(self) -> Tensor:
        """The best concept, int32 `[E, M]`."""
        return self.concepts[:, :, 0]

    def judged(self, rule: Rule) -> Trace:
        """The same under another rule."""
        found = rule.judge(self.h[:, :, 0], self.attainment, self.dead)
        return Trace(**{**self.__dict__, "interpretable": found})


@dataclass(frozen=True)
class Record:
    """All traces of one or more runs, with the space they live in."""

    traces: tuple[Trace, ...]
    space: Space
    basis: Basis

    def trace(self, detector: str, layer: str, arm: str | None = None) -> Trace:
        """The trace of a detector and layer.

        Raises:
            ValueError: none, or several arms to choose from.
        """
        found = [
            t
            for t in self.traces
            if t.detector == detector and t.layer == layer and arm in (None, t.arm)
        ]
        if len(found) != 1:
            there = ", ".join(f"{t.detector}/{t.layer}/{t.arm}" for t in self.traces)
            raise ValueError(
                f"{len(found)} traces for {detector}, {layer}, arm {arm}; there are {there}"
            )
        return found[0]

    def joined(self, other: Record) -> Record:
        """Both runs in one record.

        Raises:
            ValueError: they live in different spaces.
        """
        if other.space.digest != self.space.digest or other.basis.digest != self.basis.digest:
            raise ValueError("the records live in different embedding spaces and do not compare")
        return Record((*self.traces, *other.traces), self.space, self.basis)

    def table(self) -> pd.DataFrame:
        """The long table: a row for each checkpoint, unit and rank, columns `COLUMNS`."""
        import pandas as pd

        return pd.concat([_rows(t, self.space) for t in self.traces], ignore_index=True)


def _rows(t: Trace, space: Space) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    e, m, k = t.concepts.shape
    words = np.array(space.concepts.words)
    kinds = np.array(space.concepts.categories or [""] * len(space.concepts))
    raw = np.array(space.concepts.raw or space.concepts.words)
    grid = np.indices((e, m, k)).reshape(3, -1)
    concept = t.concepts.reshape(-1).numpy()

    def each(values: Tensor) -> np.ndarray:
        return values[:, :, None].expand(e, m, k).reshape(-1).numpy()

    columns = {
        "run": t.run,
        "arm": t.arm,
        "detector": t.detector,
        "epoch": np.array(t.epochs)[grid[0]],
        "layer": t.layer,
        "neuron": grid[1],
        "rank": grid[2],
        "concept": raw[concept],
        "word": words[concept],
        "category": kinds[concept],
        "h": t.h.reshape(-1).numpy(),
        "weight": t.weights.reshape(-1).numpy(),
        "attainment": each(t.attainment),
        "interpretable": each(t.interpretable),
        "dead": each(t.dead),
    }
    return pd.DataFrame(columns, columns=list(COLUMNS))


def observe(
    model: nn.Module,
    checkpoints: Iterable[tuple[int, State]],
    probe: Probe,
    layers: Sequence[str],
    detectors: Sequence[Detector],
    space: Space,
    basis: Basis,
    rules: Rules,
    *,
    k: int = 5,
    theta: float = 1.0,
    run: str = "run",
    arm: str = "standard",
    score: Score | None = None,
    progress: Callable[[Iterable[tuple[int, State]]], Iterable[tuple[int, State]]] | None = None,
) -> Record:
    """Algorithm 1 over a stream of checkpoints.

    Args:
        model: the network; a copy of it takes each state in turn.
        checkpoints: (epoch, state) in rising order, all of this network.
        layers: names as in `model.named_modules()`.
        rules: for each (detector name, layer), frozen before (`calibration.calibrate`).
        k: concepts kept for each unit.
        theta: temperature of Eq. 1.
        score: `scores_of` (default); `stored.fetch_scores`, which keeps them in the cache; or what
            `together.scores_together` returns, which reads the images once for all checkpoints.
        progress: wraps the checkpoints.

    Raises:
        ValueError: no checkpoint, one whose layers differ, epochs out of order, a detector twice, a
            rule that is missing, a map of another space.
    """
    _check(layers, detectors, space, basis, rules)
    network = copy.deepcopy(model)
    epochs: list[int] = []
    found: dict[tuple[str, str], list[Top]] = {}
    for epoch, state in progress(checkpoints) if progress else checkpoints:
        if epochs and epoch <= epochs[-1]:
            raise ValueError(f"want rising epochs, got {epoch} after {epochs[-1]}")
        load(network, state, f"epoch {epoch}")
        epochs.append(epoch)
        for key, top in (score or scores_of)(network, probe, layers, detectors, k).items():
            found.setdefault(key, []).append(top)
    if not epochs:
        raise ValueError("want at least one checkpoint, got none")
    traces = [
        assemble(tops, space, basis, rules[key], key, epochs, theta, run, arm)
        for key, tops in found.items()
    ]
    return Record(tuple(traces), space, basis)


def _check(
    layers: Sequence[str],
    detectors: Sequence[Detector],
    space: Space,
    basis: Basis,
    rules: Rules,
) -> None:
    names = [detector.name for detector in detectors]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"want detectors with names of their own, got {', '.join(names) or 'none'}"
        )
    missing = [(name, layer) for name in names for layer in layers if (name, layer) not in rules]
    if missing:
        raise ValueError(
            f"no rule for detector {missing[0][0]!r} on layer {missing[0][1]!r}; calibrate on the "
            "reference run's last checkpoint first"
        )
    if basis.digest != space.digest:
        raise ValueError("the map was fitted to other concepts or embeddings; fit a new one")


@dataclass(frozen=True)
class Top:
    """What is kept of a checkpoint's scores for one detector and layer."""

    h: Tensor  # float32 [M, k]
    concepts: Tensor  # int32 [M, k]
    attainment: Tensor  # float32 [M]
    dead: Tensor  # bool [M]

    @staticmethod
    def of(scores: ConceptScores, k: int) -> Top:
        """The k best concepts of each unit."""
        h, concepts = scores.top(k)
        return Top(h, concepts, attained(scores, concepts[:, 0]), scores.dead)


Score = Callable[
    [nn.Module, Probe, Sequence[str], Sequence[Detector], int], dict[tuple[str, str], Top]
]


def assemble(
    tops: Sequence[Top],
    space: Space,
    basis: Basis,
    rule: Rule,
    key: tuple[str, str],
    epochs: Sequence[int],
    theta: float,
    run: str,
    arm: str,
) -> Trace:
    """A trace from what was kept of each checkpoint.

    Raises:
        ValueError: checkpoints with different numbers of units.
    """
    widths = [len(top.dead) for top in tops]
    if len(set(widths)) > 1:
        raise ValueError(f"layer {key[1]} has {widths} units in turn; want one network throughout")
    h = torch.stack([top.h for top in tops])
    concepts = torch.stack([top.concepts for top in tops])
    attainment = torch.stack([top.attainment for top in tops])
    dead = torch.stack([top.dead for top in tops])
    weights = concept_weights(h, theta)
    u = space.place(concepts, weights)
    xy = basis.place(concepts, weights) if basis.kind != "umap" else _transformed(basis, u)
    passes = rule.judge(h[:, :, 0], attainment, dead)
    return Trace(
        run=run,
        arm=arm,
        detector=key[0],
        layer=key[1],
        epochs=tuple(epochs),
        concepts=concepts,
        h=h,
        weights=weights,
        attainment=attainment,
        interpretable=passes,
        dead=dead,
        u=u.half(),
        xy=xy.float(),
    )


def _transformed(basis: Basis, u: Tensor) -> Tensor:
    return basis.transform(u.flatten(0, 1)).unflatten(0, u.shape[:2])


def load(model: nn.Module, state: State, what: str) -> None:
    """Give a network the weights of a checkpoint.

    Raises:
        ValueError: it is of another network.
    """
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise ValueError(
            f"the checkpoint of {what} is of another network: {first[0].strip()} Give checkpoints "
            "of the model that is monitored"
        ) from error


def scores_of(
    model: nn.Module,
    probe: Probe,
    layers: Sequence[str],
    detectors: Sequence[Detector],
    k: int = 5,
) -> dict[tuple[str, str], Top]:
    """Best concepts of all units of a network by each detector: (detector, layer) -> `Top`.

    One pass over the images for all layers and detectors.
    """
    acts = probe.activations(model, layers, maps=any(d.needs_maps for d in detectors))
    return tops_of(acts, layers, detectors, k)


def tops_of(
    acts: Mapping[str, LayerActivations],
    layers: Sequence[str],
    detectors: Sequence[Detector],
    k: int,
) -> dict[tuple[str, str], Top]:
    """The same from the activations of a network."""
    found = {}
    for detector in detectors:
        scores = detect_layers(detector, [acts[layer] for layer in layers])
        for layer, one in zip(layers, scores, strict=True):
            found[detector.name, layer] = Top.of(one, k)
    return found


def checkpoint_files(paths: Mapping[int, Path]) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """States from files (safetensors, or torch files read as weights only), in order of epoch.

    Raises:
        FileNotFoundError: a file is missing; said before any is read.
        ValueError: a file that holds no state dictionary.
    """
    for epoch, path in sorted(paths.items()):
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint of epoch {epoch} at {path}")
    return _read_files(paths)


def _read_files(paths: Mapping[int, Path]) -> Iterator[tuple[int, dict[str, Tensor]]]:
    for epoch, path in sorted(paths.items()):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: object = load_file(path)
        else:
            state = torch.load(path, weights_only=True, map_location="cpu")
            state = state.get("state_dict", state) if isinstance(state, dict) else state
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise ValueError(f"{path.name} holds no state dictionary; save model.state_dict()")
        yield epoch, {name.removeprefix("module."): value for name, value in state.items()}
