"""Influence functions of networks: any target, any solver.

Document 4, influence functions; specification 1.1 and 1.3. Three steps, each of them replaceable:

1. what is asked: gradients `[T, p]` of an output at targets (`lib.gradients.per_example`), or of
   any functional of the weights (`lib.gradients.functional_gradient`);
2. `H^-1` times them: `lib.attribution.solvers` with `lib.gradients.hessian_product` or
   `ggn_product`, or `lib.attribution.kfac`;
3. inner products with every training example's loss gradient: `scores`.

`influence` does the three for outputs at targets. The weights are the flat order of
`lib.gradients`; `H` is the Hessian of the mean training loss plus the penalty, at weights that
need not be a minimum: what comes out approximates retraining from there, not from scratch.

Sign: `tau [n, T]` is what including example i adds to output t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lib import gradients
from lib.attribution.solvers import Spectrum
from lib.features import evaluating

Data = Sequence[Tensor]  # inputs [n, ...], then what the loss or output reads beside them
Solve = Callable[[Tensor], Tensor]  # right-hand sides as columns [p, q] -> solutions [p, q]
Block = Sequence[str] | None


def scores(
    model: nn.Module,
    train: Data,
    directions: Tensor,
    *,
    loss: gradients.Output = gradients.cross_entropy,
    block: Block = None,
    chunk: int | None = None,
) -> Tensor:
    """Inner products of directions in weight space with every training example's pull.

    Args:
        train: (x `[n, ...]`, y `[n]`, ...), what `loss` reads.
        directions: `H^-1 dF_t`, one target a row, `[T, p]`.
        block: the part of the weights that `directions` cover; None for all.
        chunk: examples a pass, None by the size of the model.

    Returns:
        `tau [n, T] = -(1/n) <direction_t, dl_i>`.
    """
    if directions.ndim != 2:
        raise ValueError(f"want directions [T, p], got {list(directions.shape)}")
    found = []
    for part in gradients.stream(model, train, loss, block=block, chunk=chunk):
        if part.shape[1] != directions.shape[1]:
            raise ValueError(
                f"want directions of {part.shape[1]} weights, got {directions.shape[1]}; give the "
                "same block to both"
            )
        found.append(part @ directions.mT)
    return torch.cat(found).div_(-len(train[0]))


def influence(
    model: nn.Module,
    train: Data,
    targets: Data,
    solve: Solve,
    *,
    loss: gradients.Output = gradients.cross_entropy,
    output: gradients.Output = gradients.margin,
    block: Block = None,
    chunk: int | None = None,
) -> Tensor:
    """Influence of every training example on every target, with any solver.

    Args:
        train: what `loss` reads, n examples.
        targets: what `output` reads, T of them.
        solve: applies the damped inverse Hessian to columns, for instance
            `lambda g: solvers.conjugate_gradient(product, g, damping=0.01).x`.

    Returns:
        `tau [n, T] = -(1/n) df_t' H^-1 dl_i`.

    Source: specification 1.1.
    """
    wanted = gradients.per_example(model, targets, output, block=block, chunk=chunk)
    return scores(model, train, solve(wanted.mT).mT, loss=loss, block=block, chunk=chunk)


def arnoldi_influence(
    model: nn.Module,
    train: Data,
    targets: Data,
    pairs: Spectrum,
    *,
    damping: float = 0.0,
    loss: gradients.Output = gradients.cross_entropy,
    output: gradients.Output = gradients.margin,
    block: Block = None,
    chunk: int | None = None,
) -> Tensor:
    """`influence` in the span of a few eigenvectors, all gradients projected on them first.

    The same as `influence` with `pairs.solve`, at the cost of r instead of T directions, and
    without any `[T, p]`. What lies outside the span counts for nothing.
    """
    near = scores(model, train, pairs.vectors.mT, loss=loss, block=block, chunk=chunk)
    parts = gradients.stream(model, targets, output, block=block, chunk=chunk)
    wanted = torch.cat([part @ pairs.vectors for part in parts])  # [T, r]
    return near @ (wanted / (pairs.values + damping)).mT


def self_influence(
    model: nn.Module,
    train: Data,
    solve: Solve,
    *,
    loss: gradients.Output = gradients.cross_entropy,
    block: Block = None,
    chunk: int | None = None,
) -> Tensor:
    """`dl_i' H^-1 dl_i`, `[n]`: large for examples that the network can only memorise."""
    pairs = _solved(model, train, solve, loss, block, chunk)
    return torch.cat([(g * s).sum(1) for g, s in pairs])


def relative_influence(
    model: nn.Module,
    train: Data,
    targets: Data,
    solve: Solve,
    *,
    loss: gradients.Output = gradients.cross_entropy,
    output: gradients.Output = gradients.margin,
    block: Block = None,
    chunk: int | None = None,
) -> Tensor:
    """`influence` over the weight change that each example causes, `|H^-1 dl_i|`, `[n, T]`.

    Outliers move everything; this asks for examples that matter to the target in particular.
    """
    wanted = gradients.per_example(model, targets, output, block=block, chunk=chunk)
    pairs = _solved(model, train, solve, loss, block, chunk)
    tau = torch.cat([s @ wanted.mT / s.norm(dim=1, keepdim=True) for _, s in pairs])
    return tau.div_(-len(train[0]))


def input_influence(
    model: nn.Module,
    train: Data,
    direction: Tensor,
    *,
    loss: gradients.Output = gradients.cross_entropy,
    chunk: int = 256,
) -> Tensor:
    """How a functional changes as a training input does: what training-set attacks climb.

    Args:
        train: (x `[n, ...]`, y `[n]`, ...); x real.
        direction: `H^-1 dF`, one functional over all weights, `[p]`.

    Returns:
        `[n, ...]` of x's shape: `-(1/n) d_x (dF' H^-1 d_theta l_i)`, so that moving x_i by delta
        changes F by about its inner product with delta.

    Source: specification 1.1, perturbing an input; one double backward pass for all examples.
    """
    weights = gradients.select(model)
    if direction.shape != (gradients.size(weights),):
        raise ValueError(
            f"want one direction [{gradients.size(weights)}], got {list(direction.shape)}"
        )
    pieces = gradients.unflatten(direction, weights)
    found = []
    with evaluating(model), torch.enable_grad():
        for start in range(0, len(train[0]), chunk):
            x, *rest = (t[start : start + chunk] for t in train)
            x = x.detach().clone().requires_grad_()
            leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
            total = loss(functional_call(model, leaves, (x,)), *rest).sum()
            slopes = torch.autograd.grad(
                total, list(leaves.values()), create_graph=True, materialize_grads=True
            )
            along = [(g * pieces[name]).sum() for name, g in zip(leaves, slopes, strict=True)]
            found.append(torch.autograd.grad(torch.stack(along).sum(), x)[0])
    return torch.cat(found).div_(-len(train[0]))


def _solved(
    model: nn.Module,
    train: Data,
    solve: Solve,
    loss: gradients.Output,
    block: Block,
    chunk: int | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """(`dl_i`, `H^-1 dl_i`), both `[b, p]`, chunk by chunk."""
    for part in gradients.stream(model, train, loss, block=block, chunk=chunk):
        yield part, solve(part.mT).mT
