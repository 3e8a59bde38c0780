"""Which classes make up an example's Fisher: all, the likely ones, or a sample.

Public names: `terms`, `Terms`, `cotangents`.

Source: document 3, sections 2.1 (number of classes) and 4 (large output spaces, left to future
work there); specification 1.2 and 1.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SUM_TOLERANCE = 1e-4  # of probabilities


@dataclass(frozen=True)
class Terms:
    """The classes whose scores make up each example's Fisher, and with which weight."""

    classes: Tensor  # int64 [n, S]
    weights: Tensor  # float64 [n, S], not negative; the factor's row is weight * score
    present: Tensor  # bool [n, S]; absent terms have no row

    def take(self, rows: Tensor) -> Terms:
        """The terms of some examples, as wide as the longest of their lists."""
        width = int(self.present[rows].sum(1).max())
        return Terms(
            self.classes[rows, :width], self.weights[rows, :width], self.present[rows, :width]
        )


def terms(
    p: Tensor,
    *,
    eps: float = 0.0,
    max_classes: int | None = None,
    n_samples: int | None = None,
    generator: torch.Generator | None = None,
) -> Terms:
    """Choose the terms of ``F = sum_c p_c s_c s_c^T``.

    Args:
        p: probabilities, ``[n, C]``, rows sum to one.
        eps: drop classes less likely than this; the probabilities kept are not normalised anew.
            The paper takes 3e-3 for ImageNet. The most likely class always stays.
        max_classes: at most so many, the most likely ones; None is all.
        n_samples: instead, draw so many classes from p: an unbiased estimate of F whose rank is
            bounded however many classes there are (the paper leaves large output spaces to
            future work).
        generator: of the draws.

    Returns:
        Classes in ascending order if all take part, else by descending probability.

    Raises:
        ValueError: NaN, rows that do not sum to one, a threshold outside [0, 1), counts below 1,
            or a draw without a generator.
    """
    if p.ndim != 2 or p.shape[1] < 2:
        raise ValueError(f"want probabilities [n, C] with C >= 2, got {tuple(p.shape)}")
    p = p.double()
    if not p.isfinite().all() or (p < 0).any():
        raise ValueError(
            "want probabilities in [0, 1], got NaN or numbers outside; look at the logits"
        )
    off = (p.sum(1) - 1).abs().max()
    if off > SUM_TOLERANCE:
        raise ValueError(
            f"want rows that sum to one, got a sum off by {float(off):.2g}; give softmax"
        )
    n_classes = p.shape[1]
    if not 0 <= eps < 1 or (max_classes is not None and max_classes < 1):
        raise ValueError(f"want 0 <= eps < 1 and max_classes >= 1, got {eps} and {max_classes}")
    if n_samples is not None:
        if n_samples < 1 or generator is None:
            raise ValueError("want n_samples >= 1 and a generator to draw with")
        return _sampled(p, n_samples, generator)
    if eps == 0 and (max_classes is None or max_classes >= n_classes):
        classes = torch.arange(n_classes, device=p.device).expand_as(p)
        return Terms(classes, p.sqrt(), torch.ones_like(p, dtype=torch.bool))
    likely, classes = p.sort(dim=1, descending=True, stable=True)
    return _trimmed(
        classes[:, :max_classes], likely[:, :max_classes], likely[:, :max_classes] >= eps
    )


def _sampled(p: Tensor, n_samples: int, generator: torch.Generator) -> Terms:
    draws = torch.multinomial(p.cpu(), n_samples, replacement=True, generator=generator)
    counts = torch.zeros_like(p).scatter_add_(
        1, draws.to(p.device), torch.ones_like(draws, dtype=p.dtype).to(p.device)
    )
    often, classes = counts.sort(dim=1, descending=True, stable=True)
    return _trimmed(classes, often / n_samples, often > 0)


def _trimmed(classes: Tensor, share: Tensor, present: Tensor) -> Terms:
    present = present.clone()
    present[:, 0] = True
    width = int(present.sum(1).max())
    weights = torch.where(present, share.sqrt(), 0.0)
    return Terms(classes[:, :width], weights[:, :width], present[:, :width])


def cotangents(p: Tensor, chosen: Terms) -> Tensor:
    """``weight (e_c - p)`` of every term, ``[n, S, C]``: what its backward pass starts from."""
    found = -p[:, None].repeat(1, chosen.classes.shape[1], 1)
    top = p.argmax(1, keepdim=True)
    # 1 - p loses its digits where p is near one; the sum of the other probabilities does not
    others = (1 - p).scatter(1, top, p.scatter(1, top, 0.0).sum(1, keepdim=True))
    found.scatter_(2, chosen.classes[..., None], others.gather(1, chosen.classes)[..., None])
    return found * chosen.weights[..., None]
