"""What attribution is compared with: similarity of gradients, of representations, and chance.

Document 4, the comparison in the TRAK part; specification section 4.6. All return `tau` `[n, T]`
with the common sign: positive where a training example raises the output of a target. Gradients
are those of the loss on both sides, so a positive inner product means that a step on the training
example lowers the loss of the target.

Public names: `grad_dot`, `grad_cos`, `gas`, `tracin`, `representation`, `representer_points`,
`random`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import gradients
from lib.attribution.convex import design, fit_multinomial
from lib.attribution.trak import Data
from lib.features import evaluating


def grad_dot(
    model: nn.Module,
    train: Data,
    targets: Data,
    *,
    output: gradients.Output = gradients.cross_entropy,
) -> Tensor:
    """Inner products of gradients of the loss, `[n, T]`."""
    return gradients.kernel(model, train, targets, output)


def grad_cos(
    model: nn.Module,
    train: Data,
    targets: Data,
    *,
    output: gradients.Output = gradients.cross_entropy,
) -> Tensor:
    """Cosines of gradients of the loss, `[n, T]`; 0 where a gradient is zero."""
    norms = [_norms(model, data, output).clamp(min=torch.finfo().tiny) for data in (train, targets)]
    return grad_dot(model, train, targets, output=output) / norms[0][:, None] / norms[1]


def gas(
    models: Sequence[nn.Module],
    train: Data,
    targets: Data,
    *,
    output: gradients.Output = gradients.cross_entropy,
) -> Tensor:
    """Cosines averaged over checkpoints of one run: every checkpoint has the same say, `[n, T]`."""
    weights = [1.0 / len(models) for _ in models]
    return _weighted(models, weights, [grad_cos(m, train, targets, output=output) for m in models])


def tracin(
    models: Sequence[nn.Module],
    rates: Sequence[float],
    train: Data,
    targets: Data,
    *,
    output: gradients.Output = gradients.cross_entropy,
) -> Tensor:
    """Inner products summed over checkpoints of one run, each times its learning rate, `[n, T]`.

    Args:
        models: checkpoints of one run.
        rates: the learning rate at each, times the steps between checkpoints where those differ.
    """
    return _weighted(models, rates, [grad_dot(m, train, targets, output=output) for m in models])


def representation(
    model: nn.Module, train: Data, targets: Data, *, cosine: bool = True, signed: bool = False
) -> Tensor:
    """Similarity of what the last linear layer reads, `[n, T]`.

    Args:
        cosine: cosines; else inner products.
        signed: negative where the labels of example and target differ.
    """
    a, b = penultimate(model, train[0]), penultimate(model, targets[0])
    if cosine:
        a, b = F.normalize(a, dim=1), F.normalize(b, dim=1)
    similarity = a @ b.T
    if signed:
        similarity *= (train[1][:, None] == targets[1]).to(similarity) * 2 - 1
    return similarity


def representer_points(model: nn.Module, train: Data, targets: Data, *, l2: float = 1e-2) -> Tensor:
    """Contributions to the logit of the target's label after refitting the last layer, `[n, T]`.

    With a penalty on the last layer, its optimum is a sum over training examples, and so is every
    logit: example i adds `alpha_i phi_i . phi_t` with `alpha_i` minus the slope of its loss over
    the penalty. What it adds to the logit of the target's label is its score.

    Args:
        l2: penalty lambda on the last layer in mean loss + lambda * squared weights.

    Source: specification section 4.6 (RPS-L2).
    """
    a, b = penultimate(model, train[0]), penultimate(model, targets[0])
    n_classes = int(torch.cat([train[1], targets[1]]).max()) + 1
    fit = fit_multinomial(a, train[1], lam=2 * l2, n_classes=n_classes)
    slope = fit.out(a).softmax(1) - F.one_hot(train[1], n_classes)
    alpha = -slope / (2 * l2 * len(a))
    return (alpha[:, targets[1]] * (design(a) @ design(b).T)).to(a.dtype)


def random(n: int, n_targets: int, generator: torch.Generator) -> Tensor:
    """Scores without meaning, `[n, T]`."""
    return torch.randn(n, n_targets, generator=generator)


@torch.no_grad()
def penultimate(model: nn.Module, x: Tensor, *, chunk: int = 1024) -> Tensor:
    """What the last linear layer of the model reads, `[n, d]`."""
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            "the model has no linear layer to read before; give a model that ends in one"
        )
    seen: list[Tensor] = []
    device = linear[-1].weight.device
    handle = linear[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    try:
        with evaluating(model):
            for rows in x.split(chunk):
                model(rows.to(device))
    finally:
        handle.remove()
    return torch.cat(seen).flatten(1)


def _norms(model: nn.Module, data: Data, output: gradients.Output) -> Tensor:
    return torch.cat([g.norm(dim=1) for g in gradients.stream(model, data, output)])


def _weighted(
    models: Sequence[nn.Module], weights: Sequence[float], parts: Sequence[Tensor]
) -> Tensor:
    if not models or len(weights) != len(models):
        raise ValueError(
            f"want one learning rate a checkpoint and at least one, got {len(weights)} for "
            f"{len(models)} checkpoints"
        )
    return torch.stack([w * part for w, part in zip(weights, parts, strict=True)]).sum(0)
