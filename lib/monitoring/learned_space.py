"""A space that is learned from activations, in the way of ConceptEvo, to compare ours with.

Units of a base model that share strongly activating images are drawn together, others pushed
apart, so that a vector is learned for each unit. An image gets the vector that lets each unit be
the mean of its images, and a unit of any other model is placed at the mean of its own. Nothing
in such a space has a name, and it belongs to one base model and one probing set.

Public names: `LearnedSpace`, `learn`, `place`, `moves`.

Source: document 2, table 1, compares with ConceptEvo (arXiv 2203.16475) in words alone; this is
written from its description. Departure: the vectors of images are the smallest that solve the
equations exactly, where the publication descends towards them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.monitoring.similarity import top_images


@dataclass(frozen=True)
class LearnedSpace:
    """Vectors of a base model's units and of the probing images."""

    units: Tensor  # float32 [M, D]
    images: Tensor  # float32 [N, D]; zero for images that activate no unit strongly
    k: int  # strongly activating images of a unit


def learn(
    acts: Tensor,
    *,
    dim: int = 30,
    k: int = 20,
    steps: int = 1000,
    batch: int = 1024,
    negatives: int = 3,
    lr: float = 0.05,
    seed: int = 0,
) -> LearnedSpace:
    """Learn the space of a base model.

    Args:
        acts: pooled activations of its units over the probing images, `[N, M]`.
        dim: width of the space.
        k: images counted as strongly activating.
        steps, batch, negatives: pairs of units that share an image, drawn in proportion to how
            many they share, each against some drawn evenly.
        seed: of the first vectors and of all draws.

    Raises:
        ValueError: fewer than two units, K > N, or no two units share an image.
    """
    if acts.ndim != 2 or acts.shape[1] < 2:
        raise ValueError(f"want activations [N, M] of two units or more, got {tuple(acts.shape)}")
    n, m = acts.shape
    images = top_images(acts, k)[1]
    strong = torch.zeros(m, n).scatter_(1, images, 1.0)
    shared = (strong @ strong.T).fill_diagonal_(0.0)
    if not shared.any():
        raise ValueError(f"no two units share one of their {k} images; raise k")
    generator = torch.Generator().manual_seed(seed)
    units = (torch.randn(m, dim, generator=generator) / dim**0.5).requires_grad_()
    optimizer = torch.optim.Adam([units], lr)
    for _ in range(steps):
        pairs = torch.multinomial(shared.flatten(), batch, replacement=True, generator=generator)
        first, second = pairs // m, pairs % m
        others = torch.randint(m, (batch, negatives), generator=generator)
        near = (units[first] * units[second]).sum(1)
        far = (units[first][:, None] * units[others]).sum(2)
        loss = F.softplus(-near).mean() + F.softplus(far).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = units.detach()
    # u = (strong / k) x has many solutions; this is the smallest
    solved = torch.linalg.lstsq((strong / k).double(), found.double(), driver="gelsd").solution
    return LearnedSpace(found, solved.float(), k)


def place(space: LearnedSpace, acts: Tensor) -> Tensor:
    """Units of another model `[N, M]` over the same images, at the mean of their images, `[M, D]`.

    Raises:
        ValueError: another number of images: the space knows no others.
    """
    if len(acts) != len(space.images):
        raise ValueError(
            f"the space was learned on {len(space.images)} images, got activations of {len(acts)}; "
            "learn a new one for this probing set"
        )
    return space.images[top_images(acts, space.k)[1]].mean(1)


def moves(before: Tensor, after: Tensor) -> Tensor:
    """How far points `[M, D]` move after the best rotation, in their mean distance, `[M]`.

    Centres are taken out and the rotation (or reflection) is the one with the least squares, so
    what is left is a change of the arrangement itself.
    """
    if before.shape != after.shape or before.ndim != 2 or len(before) < 2:
        raise ValueError(
            f"want the same points twice, got {tuple(before.shape)} and {tuple(after.shape)}"
        )
    a, b = (x.double() - x.double().mean(0) for x in (before, after))
    left, _, right = torch.linalg.svd(b.T @ a)
    return ((b @ (left @ right) - a).norm(dim=1) / torch.pdist(a).mean()).float()
