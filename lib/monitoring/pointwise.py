"""CLIP-Dissect's point-wise mutual information: WPMI, soft-WPMI and its standardised form.

A softmax turns an image's similarities into probabilities of concepts. A concept is evidence for a
unit if it is probable in the images that activate the unit most, beyond what is expected:

- `wpmi`: the sum of log-probabilities over the top K images, less the layer's own prior;
- `soft_wpmi`: each image belongs to the top with a probability that falls with its rank;
- `soft_wpmi_z`: the prior is that of random sets of images instead of the layer's own units, so
  scores compare across layers, checkpoints and networks. It also gives the attainment.

Memory is that of a block of concepts: the softmax `[N, C]` is never held, nor anything
`[M, K, C]`. The sum of logarithms is taken as the logarithm of products of a few factors, which
are far from underflow, so that hardly any logarithm is left.

Similarities may be given as embeddings of images and words (`Embedded`); then not even `[N, C]`
similarities are held.

Public names: `Embedded`, `ConceptSoftmax`, `softmax`, `matched`, `wpmi`, `soft_wpmi`,
`soft_wpmi_z`, `score_sets`, `standardise_sets`, `chosen`, `Reference`, `reference`, `membership`.

Source: specification section 1.1, 4.5 and 6.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.monitoring.similarity import check_pair, top_images

FLOOR = 1e-7  # inside every logarithm, as in the reference
MATCHED = 0.3  # spread of the softmax's exponents that CLIP's own cosines have at a = 10
FLOATS = 2**25  # numbers in a block of probabilities [N, concepts]: 128 MiB at most
ROWS = 2**21  # numbers in a block of whole rows
WORKING = 2**16  # numbers that the inner loop holds: they stay in a core's cache
LOWEST = 80.0  # a product of factors may fall to exp(-80), well above float32's smallest number


@dataclass(frozen=True)
class Embedded:
    """Similarities of N images and C concepts as the product of their embeddings."""

    images: Tensor  # float32 [N, D], each of length 1
    words: Tensor  # float32 [C, D], each of length 1

    def __post_init__(self) -> None:
        if (
            self.images.ndim != 2
            or self.words.ndim != 2
            or (self.images.shape[1] != self.words.shape[1])
        ):
            raise ValueError(
                f"want embeddings [N, D] and [C, D], got {tuple(self.images.shape)} and "
                f"{tuple(self.words.shape)}"
            )
        for name, rows in (("image", self.images), ("word", self.words)):
            off = ~((rows.norm(dim=1) - 1).abs() < 1e-3)
            if off.any():
                raise ValueError(
                    f"{name} {int(off.nonzero()[0])} has an embedding whose length is not 1; "
                    "divide embeddings by their length"
                )

    @property
    def shape(self) -> tuple[int, int]:
        """N and C."""
        return len(self.images), len(self.words)

    @property
    def device(self) -> torch.device:
        """Where the embeddings are."""
        return self.images.device

    def dense(self) -> Tensor:
        """All similarities, `[N, C]`."""
        return self.images @ self.words.T


Similarities = Tensor | Embedded


def _part(p: Similarities, rows: Tensor | None, first: int, last: int) -> Tensor:
    """Similarities of some images (None: all) and concepts first to last, a tensor of its own."""
    if isinstance(p, Embedded):
        images = p.images if rows is None else p.images.index_select(0, rows)
        return images @ p.words[first:last].T
    part = p[:, first:last]
    return part.clone() if rows is None else part.index_select(0, rows)


@dataclass(frozen=True)
class ConceptSoftmax:
    """Probabilities of concepts in each image, made block by block from similarities.

    ``Q[i, c] = exp(scale_c (p[i, c] - shift_c) - log_partition[i])``.
    """

    p: Similarities  # float32 [N, C]
    scale: Tensor  # float32 [C]
    shift: Tensor  # float32 [C]
    log_partition: Tensor  # float32 [N]

    def __len__(self) -> int:
        return len(self.log_partition)

    def probabilities(self, rows: Tensor | None, first: int, last: int) -> Tensor:
        """Q of some images (None: all), concepts first to last, `[n, last - first]`."""
        return self.logs(rows, first, last).exp_()

    def logs(self, rows: Tensor | None, first: int, last: int) -> Tensor:
        """The logarithm of `probabilities`."""
        part = _part(self.p, rows, first, last)
        part.sub_(self.shift[first:last]).mul_(self.scale[first:last])
        offset = self.log_partition if rows is None else self.log_partition[rows]
        return part.sub_(offset[:, None])


def softmax(p: Similarities, a: float = 10.0) -> ConceptSoftmax:
    """Softmax of ``a p`` over concepts, with the temperature of the reference."""
    c = p.shape[1]
    return _softmax(p, torch.full((c,), a, device=p.device), torch.zeros(c, device=p.device))


def matched(
    p: Similarities, *, standardise: bool = True, spread: float = MATCHED
) -> ConceptSoftmax:
    """Softmax whose exponents have the given standard deviation, whatever encoder made `p`.

    Args:
        standardise: give each concept mean 0 and spread 1 over the images first; otherwise one
            factor for all. A concept that never varies gets exponent 0.

    Source: section 1.1, `a_mode="matched"`: a = 10 is fit for cosines of spread .03 only.
    """
    n, c = p.shape
    mean, sd = torch.empty(c, device=p.device), torch.empty(c, device=p.device)
    for first, last in _blocks(n, c):
        part = _part(p, None, first, last)
        mean[first:last], sd[first:last] = part.mean(0), part.std(0, correction=0)
    if not standardise:
        whole = (sd.square().mean() + mean.var(correction=0)).sqrt()
        return softmax(p, spread / float(whole.clamp_min(1e-12)))
    scale = torch.where(sd > 1e-6, spread / sd.clamp_min(1e-6), torch.zeros_like(sd))
    return _softmax(p, scale, mean)


def _softmax(p: Similarities, scale: Tensor, shift: Tensor) -> ConceptSoftmax:
    n, c = p.shape
    step = max(1, ROWS // c)
    found = torch.empty(n, device=p.device)
    for start in range(0, n, step):
        if isinstance(p, Embedded):
            part = p.images[start : start + step] @ p.words.T
        else:
            part = p[start : start + step].clone()
        found[start : start + step] = part.sub_(shift).mul_(scale).logsumexp(1)
    if not found.isfinite().all():
        bad = int((~found.isfinite()).nonzero()[0])
        raise ValueError(f"similarities hold NaN or infinity, first in image {bad}")
    return ConceptSoftmax(p, scale, shift, found)


def membership(k: int, p_start: float = 0.998, p_end: float = 0.97) -> list[float]:
    """Probability that the image of rank j = 0..K-1 belongs to a unit's top; `p_end` is not met."""
    return [p_start - j / k * (p_start - p_end) for j in range(k)]


def wpmi(
    acts: Tensor, p: Similarities | ConceptSoftmax, *, k: int = 28, a: float = 2.0, lam: float = 0.6
) -> Tensor:
    """Weighted point-wise mutual information, `[M, C]` (section 1.1).

    ``g[m, c]`` sums ``log(Q[i, c] + 1e-7)`` over the K most activating images, and
    ``h = g - lam (logsumexp_m g - log M)``.

    Raises:
        ValueError: K > N, or shapes that disagree.

    Warns:
        K > N / 10.
    """
    q = p if isinstance(p, ConceptSoftmax) else softmax(p, a)
    images = chosen(acts, q, k)
    h = torch.empty(len(images), q.p.shape[1], device=acts.device)
    for first, last in _blocks(*q.p.shape):
        logs = q.probabilities(None, first, last).add_(FLOOR).log_()
        sums = torch.nn.functional.embedding_bag(images, logs, mode="sum").double()
        h[:, first:last] = sums - lam * _prior(sums)
    return h


def soft_wpmi(
    acts: Tensor,
    p: Similarities | ConceptSoftmax,
    *,
    k: int = 100,
    a: float = 10.0,
    lam: float = 1.0,
    p_start: float = 0.998,
    p_end: float = 0.97,
) -> Tensor:
    """Soft-WPMI, `[M, C]` (section 1.1): exact, in blocks of concepts.

    ``g[m, c] = sum_j log(1 + p_j (Q[i_j, c] - 1) + 1e-7)`` over the K most activating images in
    falling order, ``h = g - lam (logsumexp_m g - log M)``; with lam = 1 no score exceeds log M.

    Args:
        p: similarities, or a softmax of them (`softmax`, `matched`), which then is not recomputed.
        a: used for similarities only.

    Raises:
        ValueError: K > N, or shapes that disagree.

    Warns:
        K > N / 10: the top images are then not top.
    """
    q = p if isinstance(p, ConceptSoftmax) else softmax(p, a)
    return score_sets(q, [chosen(acts, q, k)], membership(k, p_start, p_end), lam)[0]


def score_sets(
    q: ConceptSoftmax, layers: Sequence[Tensor], weights: Sequence[float], lam: float = 1.0
) -> list[Tensor]:
    """Soft-WPMI of units given by their top images: several layers share one pass over concepts.

    Args:
        layers: for each layer its units' images, most activating first, `[M, K]`.
        weights: probability of membership of each rank, `[K]`.

    Returns:
        For each layer `[M, C]`; each has a prior of its own.
    """
    sizes = [len(images) for images in layers]
    found = [torch.empty(m, q.p.shape[1], device=q.p.device) for m in sizes]
    for first, last, g in _evidence(q, torch.cat(list(layers)), weights):
        for h, part in zip(found, g.split(sizes), strict=True):
            h[:, first:last] = part - lam * _prior(part)
    return found


def _prior(g: Tensor) -> Tensor:
    return g.logsumexp(0) - math.log(len(g))


def chosen(acts: Tensor, q: ConceptSoftmax, k: int) -> Tensor:
    """The K most activating images of each unit, int64 `[M, K]`.

    Raises:
        ValueError: K > N, or activations of other images.

    Warns:
        K > N / 10.
    """
    check_pair(acts, q.log_partition[:, None])
    if k > len(acts) / 10 and k <= len(acts):
        warnings.warn(
            f"K = {k} of N = {len(acts)} probing images is more than a tenth: the most activating "
            "images are then hardly special; lower K or probe with more images",
            stacklevel=3,
        )
    return top_images(acts, k)[1]


def _blocks(n: int, c: int) -> list[tuple[int, int]]:
    # few enough for the memory; the last block is not a sliver
    count = math.ceil(c / max(1, min(c, FLOATS // (4 * n), 128)))
    edges = [round(k * c / count) for k in range(count + 1)]
    return list(itertools.pairwise(edges))


def _evidence(
    q: ConceptSoftmax, images: Tensor, weights: Sequence[float]
) -> Iterator[tuple[int, int, Tensor]]:
    """For each block of concepts: first, last, and g `[M, last - first]` in float64."""
    # probabilities are made for those images only that any unit chose
    rows, places = images.unique(return_inverse=True)
    if 2 * len(rows) > len(q):
        few, places = None, images
    else:
        few = rows
    ranked = places.T.contiguous()  # [K, M]
    for first, last in _blocks(*q.p.shape):
        yield first, last, _log_products(q.probabilities(few, first, last), ranked, weights)


def _log_products(q: Tensor, ranked: Tensor, weights: Sequence[float]) -> Tensor:
    """``sum_j log(1 + p_j (q[ranked[j]] - 1) + 1e-7)`` for every unit and concept, float64."""
    m, c = ranked.shape[1], q.shape[1]
    # 1 + p (q - 1) is written (1 - p) + p q, which loses no digits for small q
    bases = [1.0 - weight + FLOOR for weight in weights]
    group = max(1, int(LOWEST / max(1e-3, -math.log(min(bases)))))
    g = torch.zeros(m, c, dtype=torch.float64, device=q.device)
    step = max(1, WORKING // c)
    constants = torch.tensor(bases, dtype=q.dtype, device=q.device)
    for start in range(0, m, step):
        units = ranked[:, start : start + step]
        factor = torch.empty(units.shape[1], c, dtype=q.dtype, device=q.device)
        product = torch.empty_like(factor)
        for begin in range(0, len(weights), group):
            for j in range(begin, min(begin + group, len(weights))):
                torch.index_select(q, 0, units[j], out=factor)
                if j == begin:
                    torch.add(constants[j], factor, alpha=weights[j], out=product)
                else:
                    torch.add(constants[j], factor, alpha=weights[j], out=factor)
                    product.mul_(factor)
            g[start : start + step] += product.log_()
    return g


@dataclass(frozen=True)
class Reference:
    """What soft-WPMI's evidence is for random and for ideal sets of images, per concept."""

    mean: Tensor  # float64 [C], over random ordered sets of K images
    sd: Tensor  # float64 [C]
    ideal: Tensor  # float64 [C], of the K images most similar to the concept
    weights: tuple[float, ...]


def reference(
    q: ConceptSoftmax,
    k: int,
    *,
    n_random: int = 256,
    seed: int = 0,
    p_start: float = 0.998,
    p_end: float = 0.97,
) -> Reference:
    """The population of random units, and the ideal unit of each concept (section 4.5).

    Args:
        k: images in a set.
        n_random: random ordered sets, at least 2; the specification asks for 200 or more.
        seed: of the sets.

    Raises:
        ValueError: K > N or fewer than two sets.
    """
    n, c = q.p.shape
    if not 1 <= k <= n or n_random < 2:
        raise ValueError(f"want 1 <= K <= {n} and n_random >= 2, got {k} and {n_random}")
    weights = membership(k, p_start, p_end)
    generator = torch.Generator().manual_seed(seed)
    images = torch.stack([torch.randperm(n, generator=generator)[:k] for _ in range(n_random)])
    mean, sd, ideal = (torch.empty(c, dtype=torch.float64, device=q.p.device) for _ in range(3))
    for first, last, g in _evidence(q, images.to(q.p.device), weights):
        mean[first:last], sd[first:last] = g.mean(0), g.std(0)
        best = top_images(_part(q.p, None, first, last), k)[1]  # [c, K]
        column = torch.arange(last - first, device=best.device)[:, None]
        found = q.probabilities(None, first, last)[best, column].double()
        p = torch.tensor(weights, dtype=torch.float64, device=best.device)
        ideal[first:last] = (1 - p + FLOOR + p * found).log().sum(1)
    return Reference(mean, sd, ideal, tuple(weights))


def soft_wpmi_z(acts: Tensor, q: ConceptSoftmax, against: Reference) -> tuple[Tensor, Tensor]:
    """Standardised soft-WPMI and attainment, each `[M, C]`.

    ``h = (g - mean) / sd`` and ``attainment = (g - mean) / (ideal - mean)``, with g the evidence of
    soft-WPMI and mean, sd, ideal from `reference`. The first does not depend on the other units of
    the layer; the second is free of scale: 0 for random images, 1 for the concept's own top.

    A concept that no image varies in has h = attainment = 0.

    Source: section 4.5 (ours; the papers have neither).
    """
    return standardise_sets(q, chosen(acts, q, len(against.weights)), against)


def standardise_sets(
    q: ConceptSoftmax, images: Tensor, against: Reference
) -> tuple[Tensor, Tensor]:
    """`soft_wpmi_z` of units given by their top images `[M, K]`, of one layer or of many."""
    h = torch.empty(len(images), q.p.shape[1], device=q.p.device)
    attained = torch.empty_like(h)
    for first, last, g in _evidence(q, images, against.weights):
        mean, sd = against.mean[first:last], against.sd[first:last]
        reach = against.ideal[first:last] - mean
        varies = (q.scale[first:last] > 0) & (sd > 1e-9) & (reach > 1e-9)
        beyond = torch.where(varies, g - mean, torch.zeros_like(g))
        h[:, first:last] = beyond / sd.clamp_min(1e-9)
        attained[:, first:last] = beyond / reach.clamp_min(1e-9)
    return h, attained
