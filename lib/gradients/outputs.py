"""Outputs of a target: what of a classifier's logits is attributed.

Each takes logits ``[..., C]`` and labels ``[...]`` and gives ``[...]``, so that the same function
serves a batch and a single example under ``torch.func.vmap``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class CentredLogit:
    """`sqrt(p_c) (logit_c - sum_k p_k logit_k)`, probabilities held fixed.

    Its gradients `J_c` over the classes c make up the Gauss-Newton matrix of the cross-entropy of
    an example, `sum_c J_c J_c^T`.
    """

    label: int  # c

    def __call__(self, out: Tensor, *labels: Tensor) -> Tensor:
        p = out.detach().softmax(-1)
        centred = out[..., self.label] - (p * out).sum(-1)
        return p[..., self.label].sqrt() * centred


def _logit(out: Tensor, y: Tensor) -> Tensor:
    return out.gather(-1, y.unsqueeze(-1)).squeeze(-1)
