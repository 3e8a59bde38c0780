"""Concept attribution without forming a gradient: the strongest directions, and the rest alike.

The task and the target are those of `concepts.attribute`: the score of example i for a concept
image t is `g_t' (G + lambda)^-1 g_i`, times Q_i, with g gradients in the parameters before a layer
and G the Gram matrix of the training ones. Here the inverse is that of `eigenpairs`, which reads
the inputs and output gradients of linear modules: one pass over the training rows and one over the
concept images serve all layers. With k = p the result is that of `concepts.attribute(k=None)`.

Source: document 1, method, for task and target.

Public names: `attribute_eigenpairs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lib import features, gradients
from lib.attribution.concepts import L2, VERSIONS, ConceptAttribution, ConceptData, ridge_probe
from lib.attribution.eigenpairs import EigenPairs, Outer, Target
from lib.attribution.prefixes import depends
from lib.attribution.trak import Data, Loss, logistic, slopes_at
from lib.gradients.flat import batches, check_finite
from lib.gradients.hooks import Calls, record


def attribute_eigenpairs(
    models: Iterable[nn.Module],
    train: Data,
    data: ConceptData,
    layers: Sequence[str],
    *,
    k: int = 256,
    ridge: float = 1.0,
    l2: float = L2,
    versions: Sequence[str] = VERSIONS,
    output: gradients.Output = gradients.margin,
    loss: Loss = logistic,
    chunk: int = 1024,
    progress: Callable[[Iterable[nn.Module]], Iterable[nn.Module]] | None = None,
) -> ConceptAttribution:
    """Attribute how well a concept can be read, at every layer, by the strongest eigenpairs.

    Args:
        models: checkpoints of one architecture, trained on `train` or on parts of it. Before the
            layers they may have parameters in linear modules alone, each called once on `[n, i]`.
        train: inputs `[n, ...]`, labels `[n]` and whatever else `output` takes.
        data: concept images, none of them in `train` (`concepts.refuse_overlap`).
        layers: names of modules; all share the passes.
        k: eigenpairs a layer on which the Gram matrix is taken as it is.
        ridge: lambda as a share of the mean of the p eigenvalues of the Gram matrix. As in
            `concepts.attribute(k=None)`; with a projection to k numbers, a ridge stands for p / k
            times as much.
        l2, versions, output, loss, progress: as for `concepts.attribute`.
        chunk: examples a pass; the result does not depend on it beyond round-off.

    Returns:
        The attribution, as of `concepts.attribute`. Beyond it the memory is that of the inputs and
        output gradients of all modules, of one number for every module, image and example, and of
        k numbers an example.

    Raises:
        ValueError: no checkpoint, layer or pair; a ridge that is not positive; data that are
            refused; a module that is not linear, or that reads sequences; a gradient that is not
            finite, by the index of its example; weights used outside their own module.

    Source: document 1, method; specification of document 1, sections 5.1 and 5.2.
    """
    data.check()
    _check(k, ridge, layers, versions)
    owners: dict[str, list[str]] | None = None
    pairs: EigenPairs | None = None
    total: dict[str, Tensor] = {}  # [V, T, n] by layer
    by_model, weights = [], []
    for model in progress(models) if progress else models:
        if owners is None:
            owners = {layer: _owners(model, train[0], layer) for layer in layers}
            _verify(model, train, data.x, owners, output)
        names = list(dict.fromkeys(name for found in owners.values() for name in found))
        modules = {name: model.get_submodule(name) for name in names}
        value, rows = _training(model, train, modules, output, chunk)
        read, targets = _targets(model, data, layers, modules, versions, l2, chunk)
        pairs = EigenPairs(rows, read, pairs)
        means = []
        for layer in layers:
            wanted = [targets[version, layer] for version in versions]
            if layer not in total:
                shape = len(versions), len(data.x), len(train[0])
                total[layer] = next(model.parameters()).new_zeros(shape)
            means.append(pairs.add_scores(total[layer], owners[layer], wanted, k=k, ridge=ridge))
        by_model.append(torch.stack(means, 1))
        weights.append(slopes_at(value, loss)[0])
    if not weights:
        raise ValueError("want at least one checkpoint, got none; train some")
    unweighted = torch.stack([total[layer].mT for layer in layers], 1).div_(len(weights))
    q = torch.stack(weights).to(unweighted.dtype)
    kept = tuple(layers), tuple(versions)
    return ConceptAttribution(*kept, unweighted, torch.stack(by_model), q)


def _check(k: int, ridge: float, layers: Sequence[str], versions: Sequence[str]) -> None:
    if not layers:
        raise ValueError("want at least one layer to read concepts from, got none")
    if k < 1 or not ridge > 0:
        raise ValueError(f"want k >= 1 pairs and a ridge > 0, got {k} and {ridge}")
    unknown = set(versions) - set(VERSIONS)
    if unknown or not versions:
        raise ValueError(f"versions are {', '.join(VERSIONS)}; got {', '.join(sorted(unknown))}")


def _owners(model: nn.Module, x: Tensor, layer: str) -> list[str]:
    """Names of the linear modules whose parameters the layer's output depends on."""
    found = dict.fromkeys(name.rpartition(".")[0] for name in depends(model, x[:2], layer))
    for name in found:
        module = model.get_submodule(name)
        if type(module) is not nn.Linear:
            raise ValueError(
                f"want linear modules before layer {layer!r}, got {type(module).__name__} "
                f"{name!r}; concepts.attribute takes any"
            )
    return list(found)


def _verify(
    model: nn.Module,
    train: Data,
    x: Tensor,
    owners: Mapping[str, Sequence[str]],
    output: gradients.Output,
) -> None:
    """Compare gradients of two examples with autograd: a weight may be used outside its module."""
    every = list(dict.fromkeys(name for found in owners.values() for name in found))
    next(gradients.per_example_hooks(model, [t[:2] for t in train], output, block=every))
    reader, block = _Readers(model, list(owners)), [f"model.{name}" for name in every]
    next(gradients.per_example_hooks(reader, (x[:2],), lambda h: h.sum(1), block=block))


class _Readers(nn.Module):
    """A network that returns the pooled activations of several layers side by side."""

    def __init__(self, model: nn.Module, layers: Sequence[str]) -> None:
        super().__init__()
        self.model, self.layers = model, tuple(layers)
        self.widths: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        # within the forward pass, so that these hooks see what earlier ones made of an output
        with features.recorded(self.model, self.layers) as seen:
            self.model(x)
        parts = [seen[layer] for layer in self.layers]
        parts = [h.mean(dim=(2, 3)) if h.ndim == 4 else h for h in parts]
        self.widths = [h[0].numel() for h in parts]
        return torch.cat([h.flatten(1) for h in parts], 1)


def _training(
    model: nn.Module,
    train: Data,
    modules: Mapping[str, nn.Module],
    output: gradients.Output,
    chunk: int,
) -> tuple[Tensor, dict[str, Outer]]:
    """Outputs `[n]` and gradients of the network's own task."""
    values, read, slopes = [], [], []
    for rows in batches(train, chunk):
        recorded = record(model, rows[0], dict(modules))
        with torch.enable_grad():
            value = output(recorded.out, *rows[1:])
        calls = recorded.calls(value, torch.ones_like(value))
        read.append(_inputs(calls, modules))
        slopes.append(_slopes(calls))
        values.append(value.detach())
    a, d = _joined(read), _joined(slopes)
    for name in modules:
        check_finite(a[name], 0, "activation")
        check_finite(d[name], 0)
    return torch.cat(values), {name: Outer(a[name], d[name]) for name in modules}


def _targets(
    model: nn.Module,
    data: ConceptData,
    layers: Sequence[str],
    modules: Mapping[str, nn.Module],
    versions: Sequence[str],
    l2: float,
    chunk: int,
) -> tuple[dict[str, Tensor], dict[tuple[str, str], Target]]:
    """Inputs of the modules on `data.x`, and (version, layer) -> gradients of the signed logits.

    The gradient of a logit `w' h + b` whose probe follows the network is that of the frozen probe
    plus the probe's own derivative, d + 1 matrices, weighted by h and 1.
    """
    readers = _Readers(model, layers)
    refit = "refit" in versions
    recorded = record(readers, data.fit_x, dict(modules)) if refit else None
    if recorded is None:
        with features.evaluating(model), torch.no_grad():
            out = readers(data.fit_x)
    else:
        out = recorded.out
    with torch.set_grad_enabled(refit):
        fitted = _probes(out.split(readers.widths, 1), data.fit_y, l2)
    probe, follow = {}, {}
    for layer, found in zip(layers, fitted, strict=True):
        probe[layer] = found.detach()
        if recorded is not None:
            follow[layer] = _matrices(
                (recorded.calls(found, row, last=False) for row in torch.eye(len(found)).to(found)),
                modules,
            )
    read: list[dict[str, Tensor]] = []
    slopes: dict[str, list[dict[str, Tensor]]] = {layer: [] for layer in layers}
    weights: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for x, c in batches((data.x, data.sign.to(data.x)), chunk):
        images = record(readers, x, dict(modules))
        for layer, h in zip(layers, images.out.split(readers.widths, 1), strict=True):
            with torch.enable_grad():
                logit = h @ probe[layer][:-1] + probe[layer][-1]
            calls = images.calls(logit, c, last=False)
            if layer == layers[0]:
                read.append(_inputs(calls, modules))
            slopes[layer].append(_slopes(calls))
            if refit:
                one = h.detach().new_ones(len(h), 1)
                weights[layer].append(c[:, None] * torch.cat([h.detach(), one], 1))
    found_d = {layer: _joined(slopes[layer]) for layer in layers}
    none = data.x.new_zeros(len(data.x), 0)
    return _joined(read), {
        (version, layer): Target(found_d[layer], follow[layer], torch.cat(weights[layer]))
        if version == "refit"
        else Target(found_d[layer], {}, none)
        for version in versions
        for layer in layers
    }


def _probes(seen: Sequence[Tensor], y: Tensor, l2: float) -> list[Tensor]:
    """The ridge probe of every layer, those of one width in one call."""
    found: dict[int, Tensor] = {}
    for width in {h.shape[1] for h in seen}:
        at = [i for i, h in enumerate(seen) if h.shape[1] == width]
        found |= zip(at, ridge_probe(torch.stack([seen[i] for i in at]), y, l2), strict=True)
    return [found[i] for i in range(len(seen))]


def _inputs(calls: Calls, modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """What each module reads, `[b, i]`, with a column of ones for its bias."""
    found = {}
    for name, module in modules.items():
        if len(calls[name]) != 1 or calls[name][0][0].ndim != 2:
            raise ValueError(
                f"want module {name!r} to read one vector an example, got "
                f"{len(calls[name])} calls on {list(calls[name][0][0].shape)}; "
                "concepts.attribute takes any"
            )
        a = calls[name][0][0]
        found[name] = a if module.bias is None else torch.cat([a, a.new_ones(len(a), 1)], 1)
    return found


def _slopes(calls: Calls) -> dict[str, Tensor]:
    """Gradients `[b, o]` at the modules' outputs."""
    return {name: found[0][1] for name, found in calls.items()}


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _matrices(rows: Iterable[Calls], modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Gradients of functionals of all images at once, sums over them: `[r, o, i]` by module."""
    found: dict[str, list[Tensor]] = {}
    read: dict[str, Tensor] = {}
    for calls in rows:
        read = read or _inputs(calls, modules)
        for name, d in _slopes(calls).items():
            found.setdefault(name, []).append(d.mT @ read[name])
    return {name: torch.stack(parts) for name, parts in found.items()}
