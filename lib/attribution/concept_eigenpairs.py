"""Concept attribution without forming a gradient: the strongest directions, and the rest alike.

The task and the target are those of `concepts.attribute`: the score of example i for a concept
image t is `g_t' (G + lambda)^-1 g_i`, times Q_i, with g gradients in the parameters before a layer
and G the Gram matrix of the training ones. Here the inverse is that of `eigenpairs`, which reads
the inputs and output gradients of linear modules: one pass over the training rows and one over the
concept images serve all layers, and several networks at once (`torch.func.vmap` over their weights:
small networks spend their time between operations). With k = p the result is that of
`concepts.attribute(k=None)`.

Source: document 1, method, for task and target.

Public names: `attribute_eigenpairs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from lib import features, gradients
from lib.attribution.concepts import L2, VERSIONS, ConceptAttribution, ConceptData, ridge_probe
from lib.attribution.eigenpairs import EigenPairs, Outer, Target
from lib.attribution.prefixes import Reader, depends
from lib.attribution.trak import Data, Loss, logistic, slopes_at
from lib.gradients.flat import batches, check_finite

ByModule = dict[str, Tensor]


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
    stack: int = 10,
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
        stack: networks a pass; neither does it depend on that.

    Returns:
        The attribution, as of `concepts.attribute`. Beyond it the memory is that of the inputs and
        output gradients of all modules of a stack, of one number for every module, image and
        example, and of k numbers an example.

    Raises:
        ValueError: no checkpoint, layer or pair; a ridge that is not positive; data that are
            refused; a module that is not linear, or that reads sequences; a gradient that is not
            finite, by the index of its example; weights used outside their own module.

    Source: document 1, method; specification of document 1, sections 5.1 and 5.2.
    """
    data.check()
    _check(k, ridge, stack, layers, versions)
    owners: dict[str, list[str]] = {}
    pairs: EigenPairs | None = None
    total: ByModule = {}  # [V, T, n] by layer
    by_model, values = [], []
    for group in _groups(progress(models) if progress else models, stack):
        if not owners:
            owners = {layer: _owners(group[0], train[0], layer) for layer in layers}
            _verify(group[0], train, data.x, owners, output)
            shape = len(versions), len(data.x), len(train[0])
            total = {layer: next(group[0].parameters()).new_zeros(shape) for layer in layers}
        stacked = _Stack(group, owners)
        value, rows = _training(stacked, train, output, chunk)
        read, targets = _targets(stacked, data, versions, l2, chunk)
        for index in range(len(group)):
            own = {name: Outer(x.a[index], x.d[index]) for name, x in rows.items()}
            pairs = EigenPairs(own, _of(read, index), owners, k=k, like=pairs)
            means = []
            for layer in layers:
                wanted = [_target(targets[version, layer], index) for version in versions]
                means.append(pairs.add_scores(total[layer], layer, wanted, ridge=ridge))
            by_model.append(torch.stack(means, 1))
        values.append(value)
    if not values:
        raise ValueError("want at least one checkpoint, got none; train some")
    value = torch.cat(values)
    q = slopes_at(value.flatten(), loss)[0].unflatten(0, value.shape)
    unweighted = torch.stack([total[layer].mT for layer in layers], 1).div_(len(value))
    kept = tuple(layers), tuple(versions)
    return ConceptAttribution(*kept, unweighted, torch.stack(by_model), q.to(unweighted.dtype))


def _check(
    k: int, ridge: float, stack: int, layers: Sequence[str], versions: Sequence[str]
) -> None:
    if not layers:
        raise ValueError("want at least one layer to read concepts from, got none")
    if k < 1 or not ridge > 0:
        raise ValueError(f"want k >= 1 pairs and a ridge > 0, got {k} and {ridge}")
    if stack < 1:
        raise ValueError(f"want stack >= 1 networks a pass, got {stack}")
    unknown = set(versions) - set(VERSIONS)
    if unknown or not versions:
        raise ValueError(f"versions are {', '.join(VERSIONS)}; got {', '.join(sorted(unknown))}")


def _groups(models: Iterable[nn.Module], size: int) -> Iterable[list[nn.Module]]:
    group: list[nn.Module] = []
    for model in models:
        group.append(model)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


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
    for layer, found in owners.items():
        reader, block = Reader(model, layer), [f"model.{name}" for name in found]
        next(gradients.per_example_hooks(reader, (x[:2],), _sum, block=block))


def _sum(h: Tensor) -> Tensor:
    return h.flatten(1).sum(1)


@dataclass(frozen=True)
class _Pass:
    """A forward pass of N networks on b examples."""

    out: Tensor  # [N, b, ...]
    read: ByModule  # inputs [N, b, i] of the modules, with a column of ones for a bias
    seen: ByModule  # pooled activations [N, b, d] of the layers
    zeros: ByModule  # [N, b, o], added to the modules' outputs

    def slopes(self, value: Tensor, *, last: bool = False) -> ByModule:
        """Gradients `[N, b, o]` of a sum at the modules' outputs; the last one frees the graph."""
        found = torch.autograd.grad(
            value,
            list(self.zeros.values()),
            allow_unused=True,
            materialize_grads=True,
            retain_graph=not last,
        )
        return dict(zip(self.zeros, found, strict=True))


class _Stack:
    """N networks of one architecture as one."""

    def __init__(self, models: Sequence[nn.Module], owners: Mapping[str, Sequence[str]]) -> None:
        self.skeleton, self.layers, self.size = models[0], tuple(owners), len(models)
        names = dict.fromkeys(name for found in owners.values() for name in found)
        known = {name: self.skeleton.get_submodule(name) for name in names}
        self.modules = {name: m for name, m in known.items() if isinstance(m, nn.Linear)}
        states = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in models]
        self.state = {name: torch.stack([s[name].detach() for s in states]) for name in states[0]}

    def forward(self, x: Tensor, *, graph: bool = True) -> _Pass:
        """Run all on the rows `[b, ...]`, in evaluation mode."""
        some = next(iter(self.state.values()))
        zeros = {
            name: some.new_zeros(self.size, len(x), module.out_features, requires_grad=graph)
            for name, module in self.modules.items()
        }
        with features.evaluating(self.skeleton), torch.set_grad_enabled(graph):
            out, read, seen = vmap(lambda state, add: self._one(x, state, add))(self.state, zeros)
        for name, module in self.modules.items():
            a = read[name].detach()
            one = a.new_ones(1).expand(*a.shape[:-1], 1)
            read[name] = a if module.bias is None else torch.cat([a, one], -1)
        return _Pass(out, read, seen, zeros)

    def _one(
        self, x: Tensor, state: ByModule, zeros: ByModule
    ) -> tuple[Tensor, ByModule, ByModule]:
        """One network; the gradient at a zero that is added is the gradient at the output."""
        read: ByModule = {}

        def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
            def add(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
                if name in read or inputs[0].ndim != 2 or len(inputs[0]) != len(x):
                    raise ValueError(
                        f"want module {name!r} to read one vector an example, once, got "
                        f"{list(inputs[0].shape)}; concepts.attribute takes any"
                    )
                read[name] = inputs[0]
                return out + zeros[name]

            return add

        handles = [m.register_forward_hook(hook(name)) for name, m in self.modules.items()]
        try:
            # these hooks come second, so that they see what the others made of an output
            with features.recorded(self.skeleton, self.layers) as seen:
                out = functional_call(self.skeleton, state, (x,))
        finally:
            for handle in handles:
                handle.remove()
        pooled = {
            layer: h.mean(dim=(2, 3)) if h.ndim == 4 else h.flatten(1) for layer, h in seen.items()
        }
        return out, read, pooled


def _training(
    stacked: _Stack, train: Data, output: gradients.Output, chunk: int
) -> tuple[Tensor, dict[str, Outer]]:
    """Outputs `[N, n]` and gradients of the networks' own task."""
    values, read, slopes = [], [], []
    for x, *rest in batches(train, chunk):
        passed = stacked.forward(x)
        value = vmap(lambda out, rest=rest: output(out, *rest))(passed.out)
        slopes.append(passed.slopes(value.sum(), last=True))
        read.append(passed.read)
        values.append(value.detach())
    a, d = _joined(read), _joined(slopes)
    for name in stacked.modules:
        check_finite(a[name].movedim(1, 0), 0, "activation")
        check_finite(d[name].movedim(1, 0), 0)
    return torch.cat(values, 1), {name: Outer(a[name], d[name]) for name in stacked.modules}


def _targets(
    stacked: _Stack, data: ConceptData, versions: Sequence[str], l2: float, chunk: int
) -> tuple[ByModule, dict[tuple[str, str], Target]]:
    """Inputs of the modules on `data.x`, and (version, layer) -> gradients of the signed logits.

    The gradient of a logit `w' h + b` whose probe follows the network is that of the frozen probe
    plus the probe's own derivative, d + 1 matrices, weighted by h and 1.
    """
    fit = stacked.forward(data.fit_x, graph="refit" in versions)
    probes = {layer: ridge_probe(h, data.fit_y, l2) for layer, h in fit.seen.items()}  # [N, d + 1]
    read: list[ByModule] = []
    slopes: dict[str, list[ByModule]] = {layer: [] for layer in stacked.layers}
    weights: dict[str, list[Tensor]] = {layer: [] for layer in stacked.layers}
    for x, c in batches((data.x, data.sign.to(data.x)), chunk):
        images = stacked.forward(x)
        read.append(images.read)
        for layer, h in images.seen.items():
            hand = torch.cat([h, h.new_ones(1).expand(*h.shape[:-1], 1)], -1)
            logit = (hand @ probes[layer].detach()[:, :, None])[..., 0]
            slopes[layer].append(images.slopes((logit * c).sum()))
            weights[layer].append(hand.detach() * c[:, None])
    found: dict[tuple[str, str], Target] = {}
    for layer in stacked.layers:
        d = _joined(slopes[layer])
        if "frozen" in versions:
            found["frozen", layer] = Target(d)
        if "refit" in versions:
            rows = [fit.slopes(number.sum()) for number in probes[layer].unbind(1)]
            moves = {
                name: torch.stack([row[name].mT @ fit.read[name] for row in rows], 1)
                for name in stacked.modules
            }
            found["refit", layer] = Target(d, moves, torch.cat(weights[layer], 1))
    return _joined(read), found


def _target(stacked: Target, index: int) -> Target:
    """That of one network."""
    if stacked.matrices is None or stacked.weights is None:
        return Target(_of(stacked.d, index))
    return Target(_of(stacked.d, index), _of(stacked.matrices, index), stacked.weights[index])


def _of(stacked: Mapping[str, Tensor], index: int) -> ByModule:
    return {name: value[index] for name, value in stacked.items()}


def _joined(parts: Sequence[ByModule]) -> ByModule:
    """Chunks of examples, the second axis, put together."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}
