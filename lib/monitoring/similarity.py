"""CLIP-Dissect's similarity functions without a softmax: cosine, cubed cosine, rank reorder.

Each compares what a unit does over the probing images, `acts [N, M]`, with how well each concept
fits the same images, `p [N, C]` (cosines of image and text embeddings), and gives `[M, C]`, larger
for more alike. `pointwise` holds the two with a softmax.

Public names: `cosine`, `cosine_cubed`, `rank_reorder`, `global_ranks`, `top_images`,
`check_pair`.
"""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

CONCEPTS = 256  # sorted at once; the keys of one unit then stay in the cache of a core
SMALLEST_MEAN = 1e-6  # mean similarity below which rank reorder is not defined


def check_pair(acts: Tensor, p: Tensor) -> None:
    """Refuse activations and similarities of different images."""
    if acts.ndim != 2 or p.ndim != 2 or len(acts) != len(p) or len(p) == 0:
        raise ValueError(
            f"want activations [N, M] and similarities [N, C] of the same N images, got "
            f"{tuple(acts.shape)} and {tuple(p.shape)}"
        )


def cosine(acts: Tensor, p: Tensor) -> Tensor:
    """Cosine over images of a unit's activations and a concept's similarities, `[M, C]`.

    Neither centred nor padded (section 1.1); a column of zeros has cosine 0 with everything.
    """
    check_pair(acts, p)
    return _safe(acts.T @ p, acts.norm(dim=0), p.norm(dim=0))


def _safe(products: Tensor, a: Tensor, b: Tensor) -> Tensor:
    # zero norms only occur with zero products
    a, b = (torch.where(norm > 0, norm, torch.ones_like(norm)) for norm in (a, b))
    return products / a[:, None] / b


def cosine_cubed(acts: Tensor, p: Tensor, *, power: int = 3, smallest_norm: float = 1e-3) -> Tensor:
    """Cosine of centred columns raised to the third power, so that the extremes count, `[M, C]`.

    Section 1.1: each column is divided by its norm, or by `smallest_norm` if that is larger.
    """
    check_pair(acts, p)
    if power < 1 or power % 2 == 0:
        raise ValueError(f"want an odd power, which keeps signs; got {power}")
    a, b = ((x - x.mean(0)).pow(power) for x in (acts, p))
    a /= a.norm(dim=0).clamp_min(smallest_norm)
    b /= b.norm(dim=0).clamp_min(smallest_norm)
    return a.T @ b


def top_images(acts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k most activating images of each unit, most first: values and images `[M, k]`.

    Images with equal activation come in their own order, so that the choice is the same on every
    machine; most units have no such images, and the others alone pay for a stable sort.

    Raises:
        ValueError: k above the number of images.
    """
    if not 1 <= k <= len(acts):
        raise ValueError(
            f"want 1 <= K <= {len(acts)}, the number of probing images; got K = {k}: lower K or "
            "probe with more images"
        )
    columns = acts.T.contiguous()
    values, images = columns.topk(k, dim=1)
    last = values[:, -1:]
    tied = (values[:, 1:] == values[:, :-1]).any(1)
    tied |= (columns == last).sum(1) > (values == last).sum(1)
    if tied.any():
        stable, order = columns[tied].sort(dim=1, descending=True, stable=True)
        values[tied], images[tied] = stable[:, :k], order[:, :k]
    return values, images


def global_ranks(p: Tensor) -> Tensor:
    """Rank of each image in each concept's similarities over all images, int32 `[C, N]`.

    Ranks among any chosen images have the same order, so one sort a concept serves all units.
    """
    n, c = p.shape
    ranks = torch.empty(c, n, dtype=torch.int32, device=p.device)
    places = torch.arange(n, dtype=torch.int32, device=p.device)
    for concept in range(c):
        order = p[:, concept].sort(stable=True).indices
        ranks[concept, order] = places
    return ranks


def rank_reorder(
    acts: Tensor,
    p: Tensor,
    *,
    top: float = 0.05,
    power: float = 3.0,
    scale_power: float = 0.5,
    n_permutations: int = 5,
    seed: int = 0,
    ranks: Tensor | None = None,
) -> Tensor:
    """How far a concept's order of a unit's top images is from the unit's own, `[M, C]`.

    With n = int(top N) images B, activations x in falling order and r_j the rank of image j in the
    concept's similarities inside B, the error is the mean over j of ``|x_j - x_(r_j)|^power``; it
    is divided by that of random orders and by the mean similarity to the power `scale_power`, and
    the score is its negative.

    The reference sorts twice for each unit. Here the concept's order comes from `global_ranks`,
    packed with the place j into one integer, so that one integer sort gives the permutation.

    Args:
        top: share of the images compared.
        n_permutations: random orders that the error is measured against; drawn once from `seed`
            and shared by all units (the reference draws them anew for each, without a seed).
        ranks: `global_ranks(p)`, when it is used more than once.

    Raises:
        ValueError: fewer than two images are left.

    Warns:
        where the mean similarity is not positive, as it can be for an encoder that is not CLIP:
        the root is not defined there, and the mean is raised to a small positive one.

    Source: section 1.1 and 6. A unit without variation scores every concept as a random order.
    """
    check_pair(acts, p)
    n = int(len(acts) * top)
    if n < 2:
        raise ValueError(
            f"want at least two images in the top {top:g} of {len(acts)}, got {n}; raise `top` or "
            "probe with more images"
        )
    ranks = global_ranks(p) if ranks is None else ranks
    values, images = top_images(acts, n)
    ascending = values.flip(1)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.stack([torch.randperm(n, generator=generator) for _ in range(n_permutations)])
    chance = torch.stack(
        [(ascending - ascending[:, d.to(acts.device)]).abs().pow(power).mean(1) for d in draws]
    ).mean(0)
    similarity = torch.stack([p[rows].mean(0) for rows in images])
    if (similarity <= 0).any():
        warnings.warn(
            f"{int((similarity <= 0).sum())} mean similarities are not positive; rank reorder is "
            "meant for CLIP's own embeddings",
            stacklevel=2,
        )
    bits = (n - 1).bit_length()
    fits = (len(acts) << bits) < 2**31
    place = torch.arange(n, device=acts.device, dtype=torch.int32 if fits else torch.int64)
    errors = torch.empty(len(values), p.shape[1], device=acts.device)

    def measure(unit: int) -> None:
        for first in range(0, p.shape[1], CONCEPTS):
            found = ranks[first : first + CONCEPTS].index_select(1, images[unit])
            order = _sorted((found.to(place.dtype) << bits) | place) & ((1 << bits) - 1)
            gap = values[unit].take(order.long()) - ascending[unit]
            gap = gap.abs_().pow_(power) if power != 3 else gap.abs_() * gap.square()
            errors[unit, first : first + CONCEPTS] = gap.mean(1)

    if acts.device.type == "cpu":  # numpy's sort leaves the interpreter, so threads help
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(measure, range(len(values))))
    else:
        for unit in range(len(values)):
            measure(unit)
    ratio = torch.where(chance[:, None] > 0, errors / chance[:, None], torch.ones_like(errors))
    return -ratio / similarity.clamp_min(SMALLEST_MEAN).pow(scale_power)


def _sorted(keys: Tensor) -> Tensor:
    """Rows in rising order; numpy's integer sort is vectorised and several times torch's."""
    if keys.device.type != "cpu":
        return keys.sort(1).values
    array = keys.numpy()
    array.sort(1)
    return torch.from_numpy(array)
