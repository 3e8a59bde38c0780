"""Outputs of a target: what of a classifier's logits is attributed.

Each takes logits ``[..., C]`` and labels ``[...]`` and gives ``[...]``, so that the same function
serves a batch and a single example under ``torch.func.vmap``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Output = Callable[..., Tensor]  # (model outputs [b, ...], y [b], ...) -> [b]


def margin(out: Tensor, y: Tensor) -> Tensor:
    """The log-odds of the correct class, ``logit_y - logsumexp of the other logits``.

    Args:
        out: logits ``[..., C]``, C >= 2.
        y: labels ``[...]``, integers in [0, C).

    Returns:
        ``[...]``, finite wherever the logits are: ``log p - log(1 - p)`` is not, once p rounds
        to 1.

    Source: document 4, the output function of multi-class classification.
    """
    if out.shape[-1] < 2:
        raise ValueError(
            f"want logits of at least 2 classes for a margin, got {tuple(out.shape)}; "
            "give a single-logit model an output function of its own"
        )
    correct = torch.arange(out.shape[-1], device=out.device) == y.unsqueeze(-1)
    others = out.masked_fill(correct, -torch.inf).logsumexp(-1)
    return _logit(out, y) - others


def cross_entropy(out: Tensor, y: Tensor) -> Tensor:
    """The loss of every example in nats: logits ``[..., C]``, labels ``[...]`` -> ``[...]``."""
    return out.logsumexp(-1) - _logit(out, y)


def correct_probability(out: Tensor, y: Tensor) -> Tensor:
    """The probability of the correct class: logits ``[..., C]``, labels ``[...]`` -> ``[...]``."""
    return (-cross_entropy(out, y)).exp()


def _logit(out: Tensor, y: Tensor) -> Tensor:
    return out.gather(-1, y.unsqueeze(-1)).squeeze(-1)
