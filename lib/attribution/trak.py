"""TRAK: attribution by a linear model in projected gradients, averaged over trained networks.

Document 4, TRAK; specification section 4. For every network, the output of each training example
is replaced by its linearisation: features are gradients of the output, projected to k numbers.
In those features the training task is a generalised linear model, for which leaving a row out has
a closed form. Averages over networks are taken of that form and of the weights Q separately.

    tau[i, t] = mean_m( phi_t (Phi^T Phi + ridge)^-1 phi_i ) * mean_m( Q_i ),  Q = -loss'(output)

`trak` solves in k numbers; `trak_exact` in n examples, without any projection, which is the
reference for what a projection loses; `trak_vector` uses all outputs of a network instead of one
number (the Gauss-Newton matrix of the cross-entropy). All take one network at a time, so an
iterator that loads checkpoints from disk is as good as a list.

The document has no ridge; ours is a tenth of the mean diagonal unless said otherwise, because
without one the score falls as k nears n (specification section 4.3).

Public names: `trak`, `trak_exact`, `trak_vector`, `Attribution`, `logistic`, `slopes`,
`slopes_at`, `soft_threshold`, `choose_threshold`, `layers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import gradients, training
from lib.attribution import metrics
from lib.attribution.surrogate import factor, gram, kernel_scores, scores

Data = tuple[Tensor, ...]  # x [n, ...], y [n], ... as `gradients.stream` takes them
Block = Sequence[str] | None  # prefixes of parameter names; None for all parameters
TargetGradients = Callable[[nn.Module, Block], Tensor]  # gradients [T, p] of any functionals
Loss = Callable[[Tensor], Tensor]  # of an output, element by element
Each = Callable[["Attribution"], object]
Projection = Callable[..., gradients.Projector]  # (p, k, seed=..., device=...)


@dataclass(frozen=True)
class Attribution:
    """What training examples do to the outputs of targets, averaged over networks."""

    unweighted: Tensor  # [n, T], before Q
    weights: Tensor  # [n], Q: minus the slope of the loss in the output
    n_models: int

    @cached_property
    def tau(self) -> Tensor:
        """The attribution `[n, T]`: positive where an example raises the output of a target."""
        return self.unweighted * self.weights[:, None]


def logistic(output: Tensor) -> Tensor:
    """The loss of a margin, `-log p`: its slope is p - 1."""
    return F.softplus(-output)


def trak(
    models: Iterable[nn.Module],
    train: Data,
    targets: Data | TargetGradients,
    *,
    k: int | None = 512,
    seed: int = 0,
    projection: Projection = gradients.SJLT,
    output: gradients.Output = gradients.margin,
    loss: Loss = logistic,
    ridge: float = 0.1,
    curvature: bool = False,
    leverage: bool = False,
    blocks: Sequence[Block] = (None,),
    chunk: int | None = None,
    each: Each | None = None,
) -> Attribution:
    """Attribute outputs of targets to training examples.

    Args:
        models: networks of one architecture, trained on the data or on parts of it.
        train: inputs `[n, ...]`, labels `[n]` and whatever else `output` takes.
        targets: the same of T targets; or, for functionals of the parameters that are not the
            training output, a function of (network, block) that returns their gradients `[T, p]`.
        k: numbers that a gradient is projected to; None, or one not below the number of
            parameters of a block, keeps the gradient.
        seed: of the projections; each network and block has its own.
        projection: called as `projection(p, k, seed=..., device=...)`.
        output: of (network's outputs, labels, ...): the number that is attributed.
        loss: of that number, what training minimised.
        ridge: added to the Gram matrix, as a share of its mean diagonal.
        curvature: weight examples in the Gram matrix by the loss's second derivative, which the
            published method leaves out.
        leverage: divide by one minus the leverage, which the published method leaves out.
        blocks: parameter blocks with a Gram matrix each; `((prefix, ...),)` for a part of the
            network, `layers(model)` for one a layer.
        chunk: examples a pass, None by the size of the model; the result does not depend on it
            beyond round-off.
        each: called after each network with the attribution so far, for a curve over their
            number or a progress bar.

    Raises:
        ValueError: more numbers than examples and no ridge; a Gram matrix without an inverse; a
            gradient that is not finite, by the index of its example.

    Source: document 4, TRAK; specification sections 4.1 (steps) and 4.7 (any functional).
    """

    def one(index: int, model: nn.Module) -> tuple[Tensor, Tensor]:
        q, bend = slopes(model, train, output, loss)
        total = None
        for number, block in enumerate(blocks):
            project = _projector(model, block, k, seed + 7919 * number, projection)
            features = gradients.projected(
                model, train, output, project, model_id=index, block=block, chunk=chunk
            )
            if callable(targets):
                target = project.project(targets(model, block).to(features), index)
            else:
                target = gradients.projected(
                    model, targets, output, project, model_id=index, block=block, chunk=chunk
                )
            part = scores(
                features,
                target,
                ridge=ridge,
                curvature=bend if curvature else None,
                leverage=leverage,
            )
            total = part if total is None else total.add_(part)
        if total is None:
            raise ValueError("want at least one block of parameters, got none; use (None,) for all")
        return total, q

    return _averaged(models, one, each)


def trak_exact(
    models: Iterable[nn.Module],
    train: Data,
    targets: Data | TargetGradients,
    *,
    output: gradients.Output = gradients.margin,
    loss: Loss = logistic,
    ridge: float = 0.1,
    curvature: bool = False,
    leverage: bool = False,
    block: Block = None,
    chunk: int | None = None,
    each: Each | None = None,
) -> Attribution:
    """`trak` without a projection: the same formula in the kernel of gradients `[n, n]`.

    The ridge is a share of the mean diagonal of that kernel, which has n entries where the primal
    Gram matrix has k. Meant for n up to about 10,000.

    Source: specification section 5.1 (dual form).
    """

    def one(index: int, model: nn.Module) -> tuple[Tensor, Tensor]:
        q, bend = slopes(model, train, output, loss)
        if callable(targets):
            wanted = targets(model, block)
            rows = gradients.stream(model, train, output, block=block, chunk=chunk)
            cross = torch.cat([part @ wanted.to(part).T for part in rows])
        else:
            cross = gradients.kernel(model, train, targets, output, block=block)
        part = kernel_scores(
            gradients.kernel(model, train, None, output, block=block),
            cross,
            ridge=ridge,
            curvature=bend if curvature else None,
            leverage=leverage,
        )
        return part, q

    return _averaged(models, one, each)


def trak_vector(
    models: Iterable[nn.Module],
    train: Data,
    targets: Data | TargetGradients,
    *,
    k: int | None = 512,
    seed: int = 0,
    projection: Projection = gradients.SJLT,
    output: gradients.Output = gradients.margin,
    ridge: float = 0.1,
    block: Block = None,
    chunk: int | None = None,
    each: Each | None = None,
) -> Attribution:
    """TRAK for all outputs of a classifier at once: Gauss-Newton matrix of the cross-entropy.

    An example enters the Gram matrix with all C of its logits, weighted by the curvature of the
    cross-entropy in them, and acts through the gradient of its loss. Costs C passes. On a linear
    classifier, without projection and with the ridge of its penalty, this is exact influence.

    Args:
        output: attributed at the targets; the training task is the cross-entropy.
        (others): as for `trak`.

    Returns:
        The attribution; weights are ones, for the slope is in the gradients of the loss.

    Source: specification section 4.7 (vector outputs).
    """

    def one(index: int, model: nn.Module) -> tuple[Tensor, Tensor]:
        project = _projector(model, block, k, seed, projection)

        def features(data: Data, of: gradients.Output) -> Tensor:
            return gradients.projected(
                model, data, of, project, model_id=index, block=block, chunk=chunk
            )

        n_classes = training.predict(model, train[0][:1]).shape[1]
        matrix = None
        for label in range(n_classes):
            part = gram(features(train, gradients.CentredLogit(label)))
            matrix = part if matrix is None else matrix.add_(part)
        if matrix is None:
            raise ValueError("want a network with at least one output, got none")
        acting = -features(train, gradients.cross_entropy)
        if callable(targets):
            target = project.project(targets(model, block).to(acting), index)
        else:
            target = features(targets, output)
        solved = torch.cholesky_solve(
            target.double().T, factor(matrix, n_classes * len(acting), ridge)
        )
        return acting @ solved.to(acting.dtype), acting.new_ones(len(acting))

    return _averaged(models, one, each)


def soft_threshold(tau: Tensor, keep: float) -> Tensor:
    """Shrink scores to zero so that a share `keep` of every target's column remains.

    Args:
        tau: `[n, T]`.
        keep: in (0, 1]; the threshold of a column is the quantile `1 - keep` of its size.

    Source: document 4, TRAK, the optional last step; specification section 4.1, step 7.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"want keep in (0, 1], got {keep}; it is the share of scores that stay")
    size = tau.abs()
    n_dropped = round((1 - keep) * len(tau))
    if n_dropped == 0:
        return tau.clone()
    threshold = size.kthvalue(n_dropped, 0).values
    return tau.sign() * (size - threshold).clamp(min=0)


def choose_threshold(
    tau: Tensor,
    subsets: Tensor,
    outputs: Tensor,
    *,
    shares: Sequence[float] = (1.0, 0.5, 0.2, 0.1, 0.05),
) -> tuple[Tensor, float]:
    """The share to keep with the best score on subsets that are not those of the final judgement.

    Args:
        tau: `[n, T]`.
        subsets: held out for this choice alone, `[m, size]`, with mean outputs `[m, T]`.
        shares: candidates.

    Returns:
        The shrunk scores and the share.
    """
    tried = {keep: soft_threshold(tau, keep) for keep in shares}
    best = max(tried, key=lambda keep: metrics.lds(tried[keep], subsets, outputs).mean)
    return tried[best], best


def layers(model: nn.Module) -> tuple[tuple[str], ...]:
    """One block for every module that has parameters of its own: a Gram matrix a layer."""
    return tuple(
        (name,)
        for name, module in model.named_modules()
        if any(True for _ in module.parameters(recurse=False))
    )


@dataclass
class _Whole:
    """The projector that keeps gradients as they are."""

    k: int

    def project(self, rows: Tensor, model_id: int) -> Tensor:
        return rows

    def free_memory(self) -> None:
        """Nothing is kept."""


def _averaged(
    models: Iterable[nn.Module],
    one: Callable[[int, nn.Module], tuple[Tensor, Tensor]],
    each: Each | None,
) -> Attribution:
    """Means over networks of kernels and of weights, each by itself (specification 4.1, step 6)."""
    total = weights = so_far = None
    for index, model in enumerate(models):
        part, q = one(index, model)
        total = part if total is None else total + part
        weights = q if weights is None else weights + q
        count = index + 1
        so_far = Attribution(total / count, (weights / count).to(total.dtype), count)
        if each:
            each(so_far)
    if so_far is None:
        raise ValueError("want at least one network, got none; train some with truth.checkpoints")
    return so_far


def _projector(
    model: nn.Module, block: Block, k: int | None, seed: int, projection: Projection
) -> gradients.Projector:
    p = gradients.size(gradients.select(model, block))
    if k is None or k >= p:
        return _Whole(p)
    return projection(p, k, seed=seed, device=next(model.parameters()).device)


@torch.no_grad()
def _outputs(model: nn.Module, data: Data, output: gradients.Output) -> Tensor:
    logits = training.predict(model, data[0])
    return output(logits, *(rest.to(logits.device) for rest in data[1:]))


def slopes(
    model: nn.Module, data: Data, output: gradients.Output, loss: Loss
) -> tuple[Tensor, Tensor]:
    """Q and R of every example `[n]`: minus the first, and the second derivative of its loss."""
    return slopes_at(_outputs(model, data, output), loss)


def slopes_at(outputs: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """`slopes`, from the outputs `[n]` of the examples."""
    value = outputs.detach().double().requires_grad_()
    (slope,) = torch.autograd.grad(loss(value).sum(), value, create_graph=True)
    bend = torch.zeros_like(value)
    if slope.requires_grad:
        (bend,) = torch.autograd.grad(slope.sum(), value)
    return -slope.detach(), bend.detach()
