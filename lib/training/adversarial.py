"""Projected gradient descent on the input: the attack, training against it, and its measure.

An attack looks, within eps of each pixel and inside the range of pixels, for the change that
raises the loss most: signed gradient steps from a random start, kept in the box after each. In
`lib.training.checkpoints` a network trains on the attacked batches; `robustness` measures it
with a stronger attack.

Pixels are in [0, 1] throughout and normalisation is part of the function attacked, so eps and
step are in units of pixels. That equals an attack in normalised space with eps and step divided
by each channel's deviation.

Public names: `Attack`, `TRAINING`, `EVALUATION`, `attacked`, `Robustness`, `robustness`.

Source: document 2, section 4.2 and appendix A; specification section 3.3 (the recipe of the
repository that the document cites).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.features import evaluating

Classify = Callable[[Tensor], Tensor]
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Attack:
    """How the input is attacked, in units of pixels in [0, 1]."""

    eps: float = 8 / 255  # largest change of a pixel
    step: float = 2 / 255
    n_steps: int = 7
    n_restarts: int = 1
    spare_fooled: bool = False  # leave an image alone once it is misclassified

    def __post_init__(self) -> None:
        if not self.eps > 0 or not self.step > 0 or self.n_steps < 1 or self.n_restarts < 1:
            raise ValueError(f"want eps, step > 0 and n_steps, n_restarts >= 1; got {self}")


TRAINING = Attack()
EVALUATION = Attack(n_steps=50, n_restarts=10, spare_fooled=True)


def attacked(
    classify: Classify,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    generator: torch.Generator,
) -> Tensor:
    """Images within eps of `x` that the attack found, in [0, 1].

    Gradients of weights are neither used nor left behind, and modes are the caller's: training
    attacks in train mode, as the recipe does, so that batch statistics see attacked batches too.

    Args:
        classify: images in [0, 1] to logits `[n, k]`.
        x: images `[n, ...]` in [0, 1]; y: labels `[n]`.
        generator: on the CPU; of the random starts.

    Returns:
        For each image that of all restarts with the highest loss.

    Raises:
        ValueError: pixels outside [0, 1], or as many images as labels are not given.
    """
    if len(x) != len(y) or len(x) == 0:
        raise ValueError(f"want as many images as labels, at least one, got {len(x)}, {len(y)}")
    if not (x.amin() >= 0 and x.amax() <= 1):
        raise ValueError(
            f"want pixels in [0, 1], got {x.amin():.3g} to {x.amax():.3g}; normalise inside "
            "`classify`, not before"
        )
    best, highest = x, torch.full((len(x),), -torch.inf, device=x.device)
    for _ in range(attack.n_restarts):
        found = _descend(classify, x, y, attack, generator)
        if attack.n_restarts == 1:
            return found
        with torch.no_grad():
            loss = F.cross_entropy(classify(found), y, reduction="none")
        better = loss >= highest
        best = torch.where(better.view(-1, *[1] * (x.ndim - 1)), found, best)
        highest = torch.where(better, loss, highest)
    return best


def _descend(
    classify: Classify, x: Tensor, y: Tensor, attack: Attack, generator: torch.Generator
) -> Tensor:
    """One restart."""
    start = torch.rand(x.shape, generator=generator).to(x) * 2 - 1
    delta = _inside(start * attack.eps, x, attack.eps)
    rows = torch.arange(len(x), device=x.device)  # still attacked
    for _ in range(attack.n_steps):
        here = delta[rows].requires_grad_()
        logits = classify(x[rows] + here)
        # a sum: each image's own gradient, whatever the others are
        loss = F.cross_entropy(logits, y[rows], reduction="sum")
        (gradient,) = torch.autograd.grad(loss, here)
        moved = _inside(here.detach() + attack.step * gradient.sign(), x[rows], attack.eps)
        if attack.spare_fooled:
            right = logits.detach().argmax(1) == y[rows]
            rows, moved = rows[right], moved[right]
        delta[rows] = moved
        if len(rows) == 0:
            break
    return (x + delta).clamp(0, 1)


def _inside(delta: Tensor, x: Tensor, eps: float) -> Tensor:
    """The change, kept within eps and x + change within [0, 1]."""
    return torch.maximum(torch.minimum(delta.clamp(-eps, eps), 1 - x), -x)


@dataclass(frozen=True)
class Robustness:
    """Whether each image is classified rightly, as it is and attacked; bool `[n]`."""

    clean: Tensor
    attacked: Tensor

    @property
    def clean_accuracy(self) -> float:
        """Share right without an attack."""
        return self.clean.float().mean().item()

    @property
    def attacked_accuracy(self) -> float:
        """Share right under the attack."""
        return self.attacked.float().mean().item()


def robustness(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack = EVALUATION,
    *,
    seed: int,
    pixels: Change | None = None,
    normalise: Change | None = None,
    chunk: int = 256,
    progress: Callable[[range], Iterator[int]] | None = None,
) -> Robustness:
    """Accuracy of a network in evaluation mode, clean and under a strong attack.

    Args:
        x: raw images `[n, ...]`; `pixels` turns a chunk into images in [0, 1].
        y: labels `[n]`.
        seed: of the random starts; each chunk has its own stream.
        normalise: from images in [0, 1] to what the network reads.
        progress: wraps the range of chunk starts.
    """
    device = next(model.parameters()).device

    def classify(images: Tensor) -> Tensor:
        return model(normalise(images) if normalise else images)

    clean, under = [], []
    starts = range(0, len(x), chunk)
    with evaluating(model):
        for start in progress(starts) if progress else starts:
            rows = x[start : start + chunk].to(device)
            images = pixels(rows) if pixels else rows
            labels = y[start : start + chunk].to(device)
            generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
            found = attacked(classify, images, labels, attack, generator=generator)
            with torch.no_grad():
                clean.append((classify(images).argmax(1) == labels).cpu())
                under.append((classify(found).argmax(1) == labels).cpu())
    return Robustness(torch.cat(clean), torch.cat(under))
