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

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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
        models: checkpoints of one architecture, trained on `train` or on parts of it; all are held
            at once. Before the layers they may have parameters in linear modules alone, each
            called once on `[n, i]`.
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
    models = list(models)
    if not models:
        raise ValueError("want at least one checkpoint, got none; train some")
    owners = {layer: _owners(models[0], train[0], layer) for layer in layers}
    _verify(models[0], train, data.x, owners, output)
    names = list(dict.fromkeys(name for found in owners.values() for name in found))
    probes = _probes(models, data, layers, l2)
    pairs: EigenPairs | None = None
    shape = len(versions), len(data.x), len(train[0])
    total = {layer: next(models[0].parameters()).new_zeros(shape) for layer in layers}
    by_model, values = [], []
    for index, model in enumerate(progress(models) if progress else models):
        modules = {name: model.get_submodule(name) for name in names}
        value, rows = _training(model, train, modules, output, chunk)
        own = {layer: probes[layer][index] for layer in layers}
        read, frozen, follow = _targets(model, data, own, modules, l2, "refit" in versions, chunk)
        pairs = EigenPairs(rows, read, owners, k=k, like=pairs)
        means = []
        for layer in layers:
            both = {"frozen": frozen[layer], "refit": follow.get(layer)}
            wanted = [target for version in versions if (target := both[version]) is not None]
            means.append(pairs.add_scores(total[layer], layer, wanted, ridge=ridge))
        by_model.append(torch.stack(means, 1))
        values.append(value)
    q = slopes_at(torch.cat(values), loss)[0].unflatten(0, (len(models), -1))
    unweighted = torch.stack([total[layer].mT for layer in layers], 1).div_(len(models))
    kept = tuple(layers), tuple(versions)
    return ConceptAttribution(*kept, unweighted, torch.stack(by_model), q.to(unweighted.dtype))


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

    def parts(self, out: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Layers and their activations `[b, d]` in an output of the last pass."""
        return zip(self.layers, out.split(self.widths, 1), strict=True)


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


def _probes(
    models: Sequence[nn.Module], data: ConceptData, layers: Sequence[str], l2: float
) -> dict[str, Tensor]:
    """Weights and biases `[M, d + 1]` by layer: of all networks in one call, much the sooner."""
    seen = [features.activations(model, data.fit_x, layers) for model in models]
    return {
        layer: ridge_probe(torch.stack([h[layer].flatten(1) for h in seen]), data.fit_y, l2)
        for layer in layers
    }


def _targets(
    model: nn.Module,
    data: ConceptData,
    probes: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    l2: float,
    refit: bool,
    chunk: int,
) -> tuple[dict[str, Tensor], dict[str, Target], dict[str, Target]]:
    """Inputs of the modules on `data.x`; by layer gradients of the logits, frozen and refit.

    The gradient of a logit `w' h + b` whose probe follows the network is that of the frozen probe
    plus the probe's own derivative, d + 1 matrices, weighted by h and 1.
    """
    readers = _Readers(model, list(probes))
    read: list[dict[str, Tensor]] = []
    slopes: dict[str, list[dict[str, Tensor]]] = {layer: [] for layer in probes}
    weights: dict[str, list[Tensor]] = {layer: [] for layer in probes}
    for x, c in batches((data.x, data.sign.to(data.x)), chunk):
        images = record(readers, x, dict(modules))
        for layer, h in readers.parts(images.out):
            with torch.enable_grad():
                logit = h @ probes[layer][:-1] + probes[layer][-1]
            calls = images.calls(logit, c, last=False)
            slopes[layer].append(_slopes(calls))
            if refit:
                one = h.detach().new_ones(len(h), 1)
                weights[layer].append(c[:, None] * torch.cat([h.detach(), one], 1))
        read.append(_inputs(calls, modules))
    frozen = {layer: Target(_joined(slopes[layer])) for layer in probes}
    if not refit:
        return _joined(read), frozen, {}
    moves = _probe_slopes(readers, data, modules, l2)
    follow = {x: Target(frozen[x].d, moves[x], torch.cat(weights[x])) for x in probes}
    return _joined(read), frozen, follow


def _probe_slopes(
    readers: _Readers, data: ConceptData, modules: Mapping[str, nn.Module], l2: float
) -> dict[str, dict[str, Tensor]]:
    """Derivative of the probe's d + 1 numbers: `[d + 1, o, i]` by layer and module."""
    recorded = record(readers, data.fit_x, dict(modules))
    found: dict[str, dict[str, Tensor]] = {}
    for layer, h in readers.parts(recorded.out):
        with torch.enable_grad():
            probe = ridge_probe(h, data.fit_y, l2)
        rows = []
        for row in torch.eye(len(probe)).to(probe):
            calls = recorded.calls(probe, row, last=False)
            a = _inputs(calls, modules)
            rows.append({name: d.mT @ a[name] for name, d in _slopes(calls).items()})
        found[layer] = {name: torch.stack([r[name] for r in rows]) for name in modules}
    return found


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
