"""Influence through the Kronecker-factored Fisher matrix: K-FAC and EK-FAC.

Document 4, influence functions at scale; specification 1.3. For a layer with inputs `a` (bias
appended) and pre-activation gradients `d`, an example's gradient is `G = sum_t d_t a_t'` over
positions t (one, in a plain linear layer). K-FAC takes the layer's Fisher matrix for
`E[d d'] (x) E[sum_t a a']`, whose eigenvectors are products of small ones; EK-FAC keeps the
eigenvectors and measures the eigenvalues, `Lambda = E[(U_d' G U_a)^2]`. Labels are drawn from the
model: the true Fisher, not the empirical one. The Fisher is the Hessian of the mean loss where
residuals average out, so scores have the unit of `lib.attribution.influence`.

Only `Linear` and `Conv2d` layers count; others (norms, embeddings) are named in one warning.

In reading order: `Curvature`, `fit_kfac`, `fit_ekfac`, `influence`, `self_influence`, `ensemble`,
`solve`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import gradients
from lib.gradients import Factor
from lib.gradients.factored import has_factors
from lib.training import predict

Sample = Callable[[Tensor, torch.Generator], Tensor]  # (outputs [n, C], generator) -> labels [n]
Data = tuple[Tensor, ...]  # inputs [n, ...], then what the loss or output reads beside them


@dataclass(frozen=True)
class Layer:
    """Eigenvectors and eigenvalues of one layer's Fisher matrix."""

    inputs: Tensor  # [i, i] eigenvectors of the input side, one a column
    outputs: Tensor  # [o, o] of the gradient side
    values: Tensor  # [o, i]

    def rotate(self, factor: Factor) -> Tensor:
        """The examples' gradients in the eigenbasis, `[b, o, i]`."""
        return (factor.d @ self.outputs).mT @ (factor.a @ self.inputs)

    def damped(self, damping: float) -> Tensor:
        """Eigenvalues `[o, i]` plus `damping` times their mean."""
        return self.values + damping * self.values.mean()


@dataclass(frozen=True)
class Curvature:
    """The Fisher matrix of a network, layer by layer; nothing between layers."""

    layers: dict[str, Layer]
    skipped: tuple[str, ...]  # layers with parameters that have no factors


def categorical(out: Tensor, generator: torch.Generator) -> Tensor:
    """Labels `[n]` drawn from the softmax of `out [n, C]`."""
    chance = out.detach().double().softmax(1).cpu()
    return torch.multinomial(chance, 1, generator=generator)[:, 0].to(out.device)


def fit_kfac(
    model: nn.Module,
    x: Tensor,
    *,
    generator: torch.Generator,
    loss: gradients.Output = gradients.cross_entropy,
    sample: Sample = categorical,
    chunk: int = 256,
) -> Curvature:
    """K-FAC: eigenvalues are products of those of the two sides; see `fit_ekfac`."""
    return _sides(model, (x, _labels(model, x, sample, generator)), loss, chunk)


def fit_ekfac(
    model: nn.Module,
    x: Tensor,
    *,
    generator: torch.Generator,
    loss: gradients.Output = gradients.cross_entropy,
    sample: Sample = categorical,
    chunk: int = 256,
) -> Curvature:
    """EK-FAC of a network at these inputs.

    Args:
        model: any module with `Linear` or `Conv2d` layers, each called once in a forward pass.
        x: inputs, usually all training ones, `[n, ...]`.
        generator: on the CPU; draws one label an example from the model.
        loss: per-example loss of (outputs, labels); by default cross-entropy.
        sample: draws labels that belong to `loss`; by default from the softmax.
        chunk: examples a pass; the result does not depend on it beyond round-off.

    Returns:
        The factors, in the model's dtype; eigendecompositions are done in float64.

    Raises:
        ValueError: no layer has factors, or a gradient is not finite (the example is named).

    Source: specification 1.3. One draw a label leaves sampling error of about `1/sqrt(n)`.
    """
    data = x, _labels(model, x, sample, generator)
    kfac = _sides(model, data, loss, chunk)
    total = {name: torch.zeros_like(layer.values) for name, layer in kfac.layers.items()}
    for part in _factors(model, data, loss, list(kfac.layers), chunk):
        for name, factor in part.items():
            total[name] += kfac.layers[name].rotate(factor).square_().sum(0)
    layers = {
        name: Layer(layer.inputs, layer.outputs, total[name] / len(x))
        for name, layer in kfac.layers.items()
    }
    return Curvature(layers, kfac.skipped)


def influence(
    curvature: Curvature,
    model: nn.Module,
    train: Data,
    targets: Data,
    *,
    damping: float = 0.1,
    loss: gradients.Output = gradients.cross_entropy,
    output: gradients.Output = gradients.margin,
    chunk: int = 256,
) -> Tensor:
    """Influence of every training example on every target, one pass over each.

    Args:
        curvature: of this model, from `fit_kfac` or `fit_ekfac`.
        train: (x `[n, ...]`, y `[n]`), what `loss` reads.
        targets: (x `[T, ...]`, y `[T]`), what `output` reads.
        damping: added to each layer's eigenvalues, in units of their mean.

    Returns:
        `tau [n, T] = -(1/n) df_t' (F + delta)^-1 dl_i`: what including i adds to the output.

    Source: specification 1.3; damping .1 is the usual choice, to be set for other problems.
    """
    names = list(curvature.layers)
    parts = [
        [_flat(curvature, name, factor, damping) for name, factor in part.items()]
        for part in _factors(model, targets, output, names, chunk)
    ]
    wanted = [torch.cat(layer) for layer in zip(*parts, strict=True)]  # a layer: [T, o i]
    n, rows = len(train[0]), []
    for part in _factors(model, train, loss, names, chunk):
        score = wanted[0].new_zeros(len(next(iter(part.values())).a), len(wanted[0]))
        for (name, factor), right in zip(part.items(), wanted, strict=True):
            score.addmm_(curvature.layers[name].rotate(factor).flatten(1), right.mT)
        rows.append(score)
    return torch.cat(rows).div_(-n)


def self_influence(
    curvature: Curvature,
    model: nn.Module,
    train: Data,
    *,
    damping: float = 0.1,
    loss: gradients.Output = gradients.cross_entropy,
    chunk: int = 256,
) -> Tensor:
    """`g_i' (F + delta)^-1 g_i`, `[n]`: large for examples that the network can only memorise."""
    found = []
    for part in _factors(model, train, loss, list(curvature.layers), chunk):
        score = torch.zeros(len(next(iter(part.values())).a), device=train[0].device)
        for name, factor in part.items():
            layer = curvature.layers[name]
            score = score + (layer.rotate(factor).square_() / layer.damped(damping)).sum((1, 2))
        found.append(score)
    return torch.cat(found)


def ensemble(
    models: Sequence[nn.Module],
    train: Data,
    targets: Data,
    *,
    generator: torch.Generator,
    fit: Callable[..., Curvature] = fit_ekfac,
    damping: float = 0.1,
    loss: gradients.Output = gradients.cross_entropy,
    output: gradients.Output = gradients.margin,
    chunk: int = 256,
) -> Tensor:
    """Mean influence `[n, T]` over networks, each with a curvature of its own on `train`."""
    if not models:
        raise ValueError("want at least one network to average over, got none")
    total = 0.0 * torch.zeros(len(train[0]), len(targets[0]))
    for model in models:
        curvature = fit(model, train[0], generator=generator, loss=loss, chunk=chunk)
        tau = influence(
            curvature, model, train, targets, damping=damping, loss=loss, output=output, chunk=chunk
        )
        total = total.to(tau) + tau / len(models)
    return total


def solve(curvature: Curvature, model: nn.Module, right: Tensor, *, damping: float = 0.1) -> Tensor:
    """`(F + delta)^-1` times flat gradients `[T, p]` of any functionals of the parameters.

    The order is that of `model.named_parameters()`; parameters of skipped layers come back zero.
    For `lib.attribution.influence.scores`.
    """
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    if right.ndim != 2 or right.shape[1] != sum(sizes.values()):
        raise ValueError(f"want right [T, {sum(sizes.values())}], got {list(right.shape)}")
    parts = dict(zip(sizes, right.split(list(sizes.values()), dim=1), strict=True))
    found = {name: torch.zeros_like(part) for name, part in parts.items()}
    for name, layer in curvature.layers.items():
        weight, bias = f"{name}.weight".lstrip("."), f"{name}.bias".lstrip(".")
        matrix = parts[weight].unflatten(1, (len(layer.outputs), -1))
        if bias in parts:
            matrix = torch.cat([matrix, parts[bias][:, :, None]], 2)
        inner = layer.outputs.mT @ matrix @ layer.inputs / layer.damped(damping)
        matrix = layer.outputs @ inner @ layer.inputs.mT
        if bias in parts:
            found[bias] = matrix[:, :, -1]
            matrix = matrix[:, :, :-1]
        found[weight] = matrix.flatten(1)
    return torch.cat(list(found.values()), 1)


def _labels(model: nn.Module, x: Tensor, sample: Sample, generator: torch.Generator) -> Tensor:
    out = predict(model, x)
    bad = ~torch.isfinite(out).flatten(1).all(1)
    if bad.any():
        raise ValueError(
            f"the output for example {int(bad.nonzero()[0])} holds NaN or infinity; look at its "
            "input and at the model's weights"
        )
    return sample(out, generator)


def _sides(model: nn.Module, data: Data, loss: gradients.Output, chunk: int) -> Curvature:
    """Second moments of both sides of each layer, decomposed."""
    names, skipped = _layers(model)
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for part in _factors(model, data, loss, names, chunk):
        for name, factor in part.items():
            a, d = factor.a.flatten(0, 1), factor.d.flatten(0, 1)
            # summed over positions on one side, averaged on the other: the product is then right
            # for one position, and for independent ones (Grosse and Martens' approximation)
            inputs[name] = inputs.get(name, 0) + a.mT @ a
            outputs[name] = outputs.get(name, 0) + d.mT @ d / factor.a.shape[1]
    layers, n = {}, len(data[0])
    for name in names:
        a_values, a_vectors = torch.linalg.eigh((inputs[name] / n).double())
        d_values, d_vectors = torch.linalg.eigh((outputs[name] / n).double())
        values = d_values.clamp_min(0)[:, None] * a_values.clamp_min(0)
        dtype = inputs[name].dtype
        layers[name] = Layer(a_vectors.to(dtype), d_vectors.to(dtype), values.to(dtype))
    return Curvature(layers, skipped)


def _layers(model: nn.Module) -> tuple[list[str], tuple[str, ...]]:
    """Names of the layers with factors, and of those with parameters but without."""
    names, skipped = [], []
    for name, module in model.named_modules():
        if has_factors(module):
            names.append(name)
        elif next(module.parameters(recurse=False), None) is not None:
            skipped.append(f"{name or 'the model'} ({type(module).__name__})")
    if not names:
        raise ValueError("K-FAC wants Linear or Conv2d layers, this model has none; use a solver")
    if skipped:
        warnings.warn(f"K-FAC leaves out {', '.join(skipped)}", stacklevel=4)
    return names, tuple(skipped)


def _factors(
    model: nn.Module, data: Data, output: gradients.Output, names: list[str], chunk: int
) -> Iterator[dict[str, Factor]]:
    return gradients.factors(model, data, output, layers=names, chunk=chunk)


def _flat(curvature: Curvature, name: str, factor: Factor, damping: float) -> Tensor:
    layer = curvature.layers[name]
    return (layer.rotate(factor) / layer.damped(damping)).flatten(1)
