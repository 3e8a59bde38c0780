"""Which training examples put a concept there: TRAK with a probe's logit as the output.

Document 1, method; specification of document 1, section 5. A linear probe reads a concept from
the activations h of one layer of one trained network. Its signed logit on a concept image is a
functional of the network's parameters up to that layer, and TRAK attributes any functional: the
training side stays the network's own task, the target side becomes the gradient of

    c * (w^T h(x) + b),   c = +1 or -1 the concept label.

The probe is a ridge regression to -1 and +1, whose scale is that of the labels (the specification
divides a logistic probe by |w|). Units that hardly ever fire are left out (`QUIET`): standardised,
a single image on which one fires would have a logit of hundreds.

Two versions of that gradient: `frozen` holds the probe fixed, as the document does; `refit` lets
it follow the network, as it does when both are trained anew: the closed form of a ridge probe is
differentiated too. A score is positive where a training example makes the concept easier to read.

One backward pass a checkpoint serves every layer (`prefixes.py`).

Public names: `ConceptData`, `refuse_overlap`, `Readout`, `fit_readouts`, `check_belongs`,
`ridge_probe`,
`concept_features`, `attribute`, `ConceptAttribution`, `VERSIONS`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lib import cache, features, gradients, probes
from lib.attribution.prefixes import Prefixes, Reader, leaves
from lib.attribution.surrogate import scores
from lib.attribution.trak import Data, Loss, Projection, logistic, slopes

VERSIONS = ("frozen", "refit")
# A unit is read if its standard deviation on the rows that fit the probe is at least this share of
# the layer's median one: firing at full strength on one row in a hundred is a tenth.
QUIET = 0.1
ROWS = 16  # rows of the probe's derivative at a time
# Of the ridge probe on standardised units, summed loss: the best of seven powers in five-fold
# cross-validation on the rows that fit the probe (digits, round, both layers).
L2 = 10.0


@dataclass(frozen=True)
class ConceptData:
    """Concept images that fit the probe, and others whose logits are attributed."""

    fit_x: Tensor  # [m, ...]
    fit_y: Tensor  # [m] in {0, 1}
    x: Tensor  # [T, ...]
    y: Tensor  # [T] in {0, 1}

    @property
    def sign(self) -> Tensor:
        """c `[T]`: +1 where the concept is present, -1 where it is not."""
        return 2.0 * self.y.float() - 1.0

    def check(self) -> None:
        """Refuse shapes that disagree, labels other than 0 and 1, and a concept of one class."""
        for name, x, y in (("fit", self.fit_x, self.fit_y), ("target", self.x, self.y)):
            if len(x) != len(y) or y.ndim != 1 or len(y) == 0:
                raise ValueError(
                    f"want {name} images [n, ...] and labels [n], got {list(x.shape)} and "
                    f"{list(y.shape)}"
                )
            if not ((y == 0) | (y == 1)).all():
                raise ValueError(f"want {name} labels in {{0, 1}}; recode them")
        if self.fit_y.unique().numel() < 2:
            raise ValueError(
                "the concept has one class only among the images that fit its probe; give images "
                "with and without the concept"
            )


@dataclass(frozen=True)
class Readout:
    """A linear probe of a concept on one layer of one checkpoint."""

    layer: str
    weight: Tensor  # [d], on raw activations
    bias: Tensor  # []
    checkpoint: str  # hash of the weights that it was fitted on

    def score(self, h: Tensor) -> Tensor:
        """Logits `[n]` of activations `[n, d]`."""
        return h @ self.weight + self.bias


def fit_readouts(
    model: nn.Module, data: ConceptData, layers: Sequence[str], *, l2: float = L2
) -> dict[str, Readout]:
    """Fit the concept's probe on each layer of a checkpoint, in closed form.

    Args:
        model: the checkpoint; taken in evaluation mode.
        data: concept images; they must not have trained the network (`refuse_overlap`).
        layers: names of modules; feature maps are averaged over positions.
        l2: penalty of the ridge probe.

    Raises:
        ValueError: data that are refused, an unknown layer, or a probe that is zero because every
            unit of the layer is constant.
    """
    data.check()
    seen, mark = features.activations(model, data.fit_x, layers), _checkpoint(model)
    found = {}
    for layer in layers:
        direction = ridge_probe(seen[layer], data.fit_y, l2)
        found[layer] = Readout(layer, direction[:-1], direction[-1], mark)
    return found


def check_belongs(readout: Readout, model: nn.Module, index: int) -> None:
    """Refuse a probe that was fitted on other weights than those of `model`, checkpoint `index`."""
    if readout.checkpoint != _checkpoint(model):
        raise ValueError(
            f"the probe of layer {readout.layer!r} was fitted on another checkpoint than "
            f"checkpoint {index}; fit it with fit_readouts on this one"
        )


def ridge_probe(h: Tensor, y: Tensor, l2: float = L2) -> Tensor:
    """Weight and bias `[d + 1]` of a ridge probe to -1 and +1, on raw activations.

    Differentiable in `h` `[m, d]`; of networks `[N, m, d]` at once it is `[N, d + 1]`. Quiet units
    (`QUIET`) have weight 0.
    """
    spread = h.detach().std(-2, correction=0)
    quiet = (spread <= 0) | (spread < QUIET * spread.median(-1, keepdim=True).values)
    heard = ~quiet  # NaN is neither; the fit refuses it
    if not heard.any(-1).all():
        raise ValueError("every unit of the layer is constant, so no probe can read it")
    probe = probes.fit_ridge(h * heard[..., None, :], y, l2=l2)
    return torch.cat([probe.weight, probe.bias[..., None]], -1)


def concept_features(
    model: nn.Module,
    data: ConceptData,
    readouts: Mapping[str, Readout],
    prefixes: Prefixes,
    *,
    model_id: int = 0,
    versions: Sequence[str] = VERSIONS,
    l2: float = L2,
    chunk: int | None = None,
) -> dict[str, dict[str, Tensor]]:
    """Projected gradients of signed concept logits on the images `data.x`.

    Args:
        model: the checkpoint on which `readouts` were fitted.
        data: concept images.
        readouts: one a layer.
        prefixes: the projection of the training features.
        model_id: of the checkpoint, as for the training features.
        versions: of `VERSIONS`.
        l2: penalty of the probe that `refit` follows.
        chunk: images at a time.

    Returns:
        Version -> layer -> `[T, k]`.

    Raises:
        ValueError: an unknown version, or a readout of another checkpoint.
    """
    unknown = set(versions) - set(VERSIONS)
    if unknown:
        raise ValueError(f"versions are {', '.join(VERSIONS)}; got {', '.join(sorted(unknown))}")
    data.check()
    sign = data.sign
    found: dict[str, dict[str, Tensor]] = {version: {} for version in versions}
    for layer in prefixes.layers:
        readout = readouts[layer]
        check_belongs(readout, model, model_id)
        reader = Reader(model, layer)

        def output(h: Tensor, c: Tensor, readout: Readout = readout) -> Tensor:
            return c * readout.score(h)

        block = [f"model.{name}" for name in prefixes.names]
        rows = gradients.stream(reader, (data.x, sign), output, block=block, chunk=chunk)
        frozen = torch.cat([prefixes.project(part, model_id)[layer] for part in rows])
        if "frozen" in found:
            found["frozen"][layer] = frozen
        if "refit" in found:
            follow = torch.cat(
                [
                    prefixes.project(part, model_id)[layer]
                    for part in _probe_jacobian(reader, data, prefixes.names, l2)
                ]
            )
            h = features.activations(model, data.x, [layer])[layer]
            found["refit"][layer] = frozen + sign[:, None] * (h @ follow[:-1] + follow[-1])
    return found


@dataclass(frozen=True)
class ConceptAttribution:
    """What training examples do to a concept's readability, by version and layer."""

    layers: tuple[str, ...]
    versions: tuple[str, ...]
    unweighted: Tensor  # [V, L, n, T], mean over checkpoints, before Q
    by_model: Tensor  # [M, V, L, n], of the mean over images, before Q
    weights: Tensor  # [M, n], Q: minus the slope of the network's own loss

    def tau(self, version: str, layer: str) -> Tensor:
        """Scores `[n, T]` of every image's signed logit."""
        at = self._at(version, layer)
        return self.unweighted[at] * self.weights.mean(0)[:, None]

    def mean(self, version: str, layer: str, models: Tensor | None = None) -> Tensor:
        """Scores `[n]` of the mean signed logit, from all checkpoints or those of `models`."""
        v, layer_index = self._at(version, layer)
        chosen = slice(None) if models is None else models
        kernel = self.by_model[chosen, v, layer_index].mean(0)
        return kernel * self.weights[chosen].mean(0)

    def _at(self, version: str, layer: str) -> tuple[int, int]:
        if version not in self.versions or layer not in self.layers:
            raise ValueError(
                f"attributed are {', '.join(self.versions)} at {', '.join(self.layers)}; "
                f"got {version!r} at {layer!r}"
            )
        return self.versions.index(version), self.layers.index(layer)


def attribute(
    models: Iterable[nn.Module],
    train: Data,
    data: ConceptData,
    layers: Sequence[str],
    *,
    k: int | None = 512,
    seed: int = 0,
    projection: Projection = gradients.SJLT,
    ridge: float = 0.1,
    l2: float = L2,
    versions: Sequence[str] = VERSIONS,
    null: bool = False,
    readouts: Sequence[Mapping[str, Readout]] | None = None,
    block: Sequence[str] | None = None,
    output: gradients.Output = gradients.margin,
    loss: Loss = logistic,
    chunk: int | None = None,
    progress: Callable[[Iterable[nn.Module]], Iterable[nn.Module]] | None = None,
) -> ConceptAttribution:
    """Attribute how well a concept can be read, at every layer, to training examples.

    Args:
        models: checkpoints of one architecture, trained on `train` or on parts of it.
        train: inputs `[n, ...]`, labels `[n]` and whatever else `output` takes.
        data: concept images, none of them in `train` (`refuse_overlap`).
        layers: names of modules; all share the backward pass.
        k: numbers that a gradient is projected to; None keeps it.
        seed: of the projections.
        projection: called as `projection(p, k, seed=..., device=...)`.
        ridge: added to the Gram matrix, as a share of its mean diagonal.
        l2: penalty of the probes.
        versions: of `VERSIONS`.
        null: add a version "null": for every image a random direction of the `frozen` gradient's
            norm. Over images these cancel, so that the height of their mean tells nothing.
        readouts: probes of your own, one mapping a checkpoint; they can be `frozen` only. None
            fits ridge probes.
        block: parameters that serve every layer; None is each layer's own prefix.
        output, loss: of the network's own task: what the training side attributes.
        chunk: examples a pass.
        progress: wraps the checkpoints, for instance `tqdm`.

    Raises:
        ValueError: no checkpoint; a probe of another checkpoint; own probes with "refit"; data
            that are refused.

    Source: document 1, method; specification of document 1, sections 5.1 and 5.2.
    """
    if readouts is not None and "refit" in versions:
        raise ValueError("probes of your own cannot be refitted; use versions=('frozen',)")
    data.check()
    names = (*versions, *(["null"] if null else []))
    prefixes: Prefixes | None = None
    total: Tensor | None = None
    by_model, weights = [], []
    for index, model in enumerate(progress(models) if progress else models):
        if prefixes is None:
            prefixes = Prefixes(
                model, train[0], layers, k=k, seed=seed, projection=projection, block=block
            )
        if readouts is not None and index >= len(readouts):
            raise ValueError(f"want probes for every checkpoint, got {len(readouts)} sets of them")
        own = fit_readouts(model, data, layers, l2=l2) if readouts is None else readouts[index]
        wanted = ("frozen",) if null and "frozen" not in versions else ()
        psi = concept_features(
            model,
            data,
            own,
            prefixes,
            model_id=index,
            versions=(*versions, *wanted),
            l2=l2,
            chunk=chunk,
        )
        if null:
            psi["null"] = _random_directions(psi["frozen"], seed, index)
        q, _ = slopes(model, train, output, loss)
        phi = _training_features(model, train, output, prefixes, index, chunk)
        part = torch.stack(
            [
                scores(phi[x], torch.cat([psi[v][x] for v in names]), ridge=ridge)
                .unflatten(1, (len(names), -1))
                .movedim(1, 0)
                for x in layers
            ],
            dim=1,
        )  # [V, L, n, T]
        total = part if total is None else total.add_(part)
        by_model.append(part.mean(-1))
        weights.append(q)
    if total is None:
        raise ValueError("want at least one checkpoint, got none; train some")
    q = torch.stack(weights).to(total.dtype)
    return ConceptAttribution(tuple(layers), names, total / len(weights), torch.stack(by_model), q)


def refuse_overlap(train_x: Tensor, images: Tensor, what: str = "concept images") -> None:
    """Raise a ValueError where rows of `images` are also rows of `train_x`.

    A probe that is judged on what the network trained on cannot show what removing it does.
    """
    known = {_row_hash(row): i for i, row in enumerate(train_x)}
    shared = [(j, known[h]) for j, row in enumerate(images) if (h := _row_hash(row)) in known]
    if shared:
        j, i = shared[0]
        raise ValueError(
            f"{len(shared)} of the {what} are training rows too (the first: image {j} is row {i}); "
            "probe data and training data must share nothing, so leave them out of one"
        )


def _row_hash(row: Tensor) -> bytes:
    return hashlib.blake2b(
        row.double().cpu().contiguous().numpy().tobytes(), digest_size=16
    ).digest()


def _training_features(
    model: nn.Module,
    train: Data,
    output: gradients.Output,
    prefixes: Prefixes,
    model_id: int,
    chunk: int | None,
) -> dict[str, Tensor]:
    """Features `[n, k]` of every layer, from one backward pass of each training example."""
    found: dict[str, list[Tensor]] = {layer: [] for layer in prefixes.layers}
    for rows in gradients.stream(model, train, output, block=prefixes.names, chunk=chunk):
        for layer, part in prefixes.project(rows, model_id).items():
            found[layer].append(part)
    return {layer: torch.cat(parts) for layer, parts in found.items()}


def _random_directions(psi: Mapping[str, Tensor], seed: int, model_id: int) -> dict[str, Tensor]:
    """Gaussian directions `[T, k]` of the norms of `psi`: attribution of nothing."""
    generator = torch.Generator().manual_seed(seed + 104_729 * (model_id + 1))
    found = {}
    for layer, rows in psi.items():
        noise = torch.randn(rows.shape, generator=generator).to(rows)
        found[layer] = noise * (rows.norm(dim=1) / noise.norm(dim=1))[:, None]
    return found


def _probe_jacobian(
    reader: Reader, data: ConceptData, names: Sequence[str], l2: float
) -> Iterator[Tensor]:
    """Derivative of the probe in the parameters, a few of its d + 1 rows at a time."""
    with leaves(reader) as own:
        h = functional_call(reader, own, (data.fit_x,))
        probe = ridge_probe(h, data.fit_y, l2)
        wanted = [own[f"model.{name}"] for name in names]
        for group in probe.split(ROWS):
            slopes_of = [
                torch.autograd.grad(
                    number, wanted, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                for number in group
            ]
            yield torch.stack([torch.cat([s.flatten() for s in one]) for one in slopes_of])


def _checkpoint(model: nn.Module) -> str:
    return cache.state_hash(dict(model.state_dict()))
