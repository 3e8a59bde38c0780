"""The probes of document 5's notebooks: one unit, Adam, a fixed number of epochs.

Their "L1" is an activity penalty, `activity * mean |output|`: it pulls predictions down and makes
nothing sparse (specification 2.1, 9.4). For probes that deserve to be followed, see `lib.probes`.

Public names: `fit_by_recipe`, `LINKS_AND_LOSSES`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LR, EPSILON, BATCH = 1e-3, 1e-7, 32

LINKS_AND_LOSSES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]]
LINKS_AND_LOSSES = {
    "relu, absolute error": (torch.relu, lambda out, y: (out - y).abs()),
    "sigmoid, bce": (
        torch.sigmoid,
        lambda out, y: F.binary_cross_entropy(out, y.expand_as(out), reduction="none"),
    ),
    "sigmoid, squared error": (torch.sigmoid, lambda out, y: (out - y).square()),
}


def fit_by_recipe(
    z: Tensor, y: Tensor, kind: str, *, activity: float, epochs: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Fit one probe a network as the authors do.

    Args:
        z: activations, `[N, n, d]`.
        y: the concept, `[n]`; labels or values in the link's range.
        kind: a key of `LINKS_AND_LOSSES`.
        activity: factor of the mean absolute output in the loss.
        generator: on the CPU, for the first weights (Glorot's uniform) and the order of rows.

    Returns:
        weight `[N, d]` and bias `[N]` of the pre-activation.

    Raises:
        ValueError: another kind, or shapes that do not fit.

    Source: the authors' notebooks by way of specification 2.1: batches of 32, Adam at 1e-3.
    """
    if kind not in LINKS_AND_LOSSES:
        raise ValueError(f"kind is one of {sorted(LINKS_AND_LOSSES)}; got {kind!r}")
    if z.ndim != 3 or y.shape != z.shape[1:2]:
        raise ValueError(f"want z [N, n, d] and y [n], got {tuple(z.shape)} and {tuple(y.shape)}")
    link, loss_of = LINKS_AND_LOSSES[kind]
    n_models, n, d = z.shape
    y = y.to(z)
    reach = (6.0 / (d + 1)) ** 0.5
    drawn = torch.rand(n_models, d, generator=generator)
    weight = ((2 * drawn - 1) * reach).to(z).requires_grad_()
    bias = torch.zeros(n_models).to(z).requires_grad_()
    optimiser = torch.optim.Adam([weight, bias], lr=LR, eps=EPSILON)
    for _ in range(epochs):
        for rows in torch.randperm(n, generator=generator).split(BATCH):
            out = link(torch.einsum("mnd,md->mn", z[:, rows], weight) + bias[:, None])
            loss = loss_of(out, y[rows]).mean(1) + activity * out.abs().mean(1)
            optimiser.zero_grad()
            loss.sum().backward()
            optimiser.step()
    return weight.detach(), bias.detach()
