"""Products of the Hessian and of the Gauss-Newton matrix with vectors, over a whole data set.

Neither matrix is formed: the Hessian's product is the derivative of the gradient along the vector,
the Gauss-Newton matrix's is ``J^T Hout J v`` with the Hessian of the loss in the model's outputs.

Source: specification section 1.3, inverse-Hessian products for networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap

from lib.gradients.flat import (
    Data,
    batches,
    check_data,
    evaluating,
    flatten,
    select,
    size,
    unflatten,
)
from lib.gradients.outputs import CentredLogit, Output
from lib.gradients.per_example import per_example

Product = Callable[[Tensor], Tensor]  # [p] -> [p], or [p, q] -> [p, q]
Weights = dict[str, Tensor]


def hessian_product(
    model: nn.Module,
    data: Data,
    loss: Output,
    *,
    l2: float = 0.0,
    block: Sequence[str] | None = None,
    chunk: int = 1024,
) -> Product:
    """The linear operator of the Hessian of ``mean loss + l2/2 |weights|^2``.

    Args:
        model: any module, taken in eval mode at its weights of each call.
        data: ``(x [n, ...], y [n], ...)``.
        loss: maps model outputs and the rest of the data to one number an example
            (`cross_entropy`).
        l2: weight of the penalty, >= 0.
        block: names of parameters or modules; None is every parameter.
        chunk: examples at a time; does not change the result.

    Returns:
        A function from ``[p]`` to ``[p]`` and from ``[p, q]`` to ``[p, q]``, in the flat order of
        `stream`.

    Raises:
        ValueError: data, block or ``l2`` are refused; the product's argument is not ``[p(, q)]``.
    """

    def along(weights: Weights, fixed: Weights, v: Weights, batch: tuple[Tensor, ...]) -> Weights:
        def total(chosen: Weights) -> Tensor:
            out = functional_call(model, {**fixed, **chosen}, (batch[0],))
            return loss(out, *batch[1:]).sum()

        return jvp(grad(total), (weights,), (v,))[1]

    return _product(model, data, along, l2, block, chunk)


def ggn_product(
    model: nn.Module,
    data: Data,
    loss: Output,
    *,
    l2: float = 0.0,
    block: Sequence[str] | None = None,
    chunk: int = 1024,
) -> Product:
    """The linear operator of the generalised Gauss-Newton matrix of the same objective.

    It is positive semi-definite when ``loss`` is convex in the model's outputs, as
    `cross_entropy` is. Arguments, result and errors as for `hessian_product`.
    """

    def along(weights: Weights, fixed: Weights, v: Weights, batch: tuple[Tensor, ...]) -> Weights:
        def outputs(chosen: Weights) -> Tensor:
            return functional_call(model, {**fixed, **chosen}, (batch[0],))

        def total(out: Tensor) -> Tensor:
            return loss(out, *batch[1:]).sum()

        out, pull = vjp(outputs, weights)[:2]
        change = jvp(outputs, (weights,), (v,))[1]
        return pull(jvp(grad(total), (out,), (change,))[1])[0]

    return _product(model, data, along, l2, block, chunk)


def ggn_rows(
    model: nn.Module, data: Data, *, block: Sequence[str] | None = None, chunk: int | None = None
) -> Tensor:
    """A square root of the Gauss-Newton matrix of the mean cross-entropy, ``[C, n, p]``.

    The matrix is ``sum_c R_c^T R_c / n``. Where ``C n p`` numbers fit into memory, products with
    many vectors are two matrix products instead of passes through the network.

    Args:
        model, block, chunk: as for `stream`.
        data: ``(x [n, ...], y [n])``; labels have no part in the matrix.
    """
    with evaluating(model), torch.no_grad():
        n_classes = model(data[0][:1]).shape[-1]
    parts = [
        per_example(model, data, CentredLogit(label), block=block, chunk=chunk)
        for label in range(n_classes)
    ]
    return torch.stack(parts)


def _product(
    model: nn.Module,
    data: Data,
    along: Callable[[Weights, Weights, Weights, tuple[Tensor, ...]], Weights],
    l2: float,
    block: Sequence[str] | None,
    chunk: int,
) -> Product:
    """Mean over the data of ``along`` a vector, plus the penalty's share."""
    n, p = check_data(data, chunk), size(select(model, block))
    if not l2 >= 0:
        raise ValueError(f"want l2 >= 0, got {l2}")

    def product(v: Tensor) -> Tensor:
        if v.ndim not in (1, 2) or len(v) != p:
            raise ValueError(f"want a vector [{p}] or columns [{p}, q], got {tuple(v.shape)}")
        fixed, weights = select(model), select(model, block)
        total = l2 * v
        with evaluating(model):
            for batch in batches(data, chunk):

                def one(column: Tensor, batch: tuple[Tensor, ...] = batch) -> Tensor:
                    return flatten(along(weights, fixed, unflatten(column, weights), batch))

                # One pass for all columns; vmap would only add work to a single one.
                part = one(v) if v.ndim == 1 else vmap(one, in_dims=1, out_dims=1)(v)
                total = total + part / n
        return total.detach()

    return product
