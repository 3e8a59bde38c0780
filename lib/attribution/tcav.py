"""Concept activation vectors and the test of what a class owes to a concept (TCAV).

Document 4, recap: representation-based explanations. A concept activation vector is the direction
of a linear probe that tells a concept's images from random ones in a layer; the TCAV score of a
class is the share of its images whose logit rises along that direction. Scores over several
random sets are compared with those of random sets against random sets by a two-sided t test, with
Holm's correction over all tests.

That test takes the runs of one concept for independent, though they share the concept's images,
and so do a random concept's runs: `false_positives` counts how many random concepts pass. Hence a
second test that takes the concept for what it is, one draw: its mean score against the mean scores
of random concepts, each with as many runs.

Public names: `directions`, `slopes`, `concept_scores`, `null_scores`, `test`, `Test`, `holm`,
`false_positives`, `N_MIN`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import probes
from lib.features import evaluating

N_MIN = 2  # random sets that a t test needs
PENALTY = 1.0  # C of the probes, this project's default


def directions(concept: Tensor, others: Tensor, *, C: float = PENALTY) -> Tensor:
    """One concept activation vector a random set: unit vectors `[r, d]` towards the concept.

    Args:
        concept: activations of the concept's images, `[k, d]`, or `[r, k, d]`, one set a run.
        others: activations of random sets, `[r, k', d]`.
        C: inverse penalty of the logistic probes.

    Raises:
        ValueError: shapes that disagree, or data that no probe can be fitted to.
    """
    if others.ndim != 3 or concept.shape[-1] != others.shape[-1]:
        raise ValueError(
            f"want a concept [k, d] and random sets [r, k', d], got {tuple(concept.shape)} and "
            f"{tuple(others.shape)}; read the same layer for both"
        )
    first = concept.expand(len(others), -1, -1) if concept.ndim == 2 else concept
    z = torch.cat([first, others], 1)
    y = torch.cat([torch.ones(first.shape[1]), torch.zeros(others.shape[1])]).long()
    return probes.concept_direction(probes.fit_logistic(z, y, C=C))


def slopes(
    model: nn.Module, x: Tensor, target: int, layer: str, *, pool: bool = True, chunk: int = 64
) -> Tensor:
    """Gradient of a class's logit in a layer's activations, `[n, d]`.

    Args:
        pool: sum the gradients of maps `[n, c, h, w]` over places, `d = c`: how the logit rises if
            a channel rises everywhere alike, for probes that read mean activations; else the maps
            are flattened.

    Raises:
        ValueError: an unknown layer, a class that the model does not have.
    """
    layers = dict(model.named_modules())
    if layer not in layers:
        known = ", ".join(name for name in layers if name)
        raise ValueError(f"no layer {layer!r} in this model; it has {known}")
    seen: list[Tensor] = []
    # the output itself, not the copy that `features.recorded` keeps: the logit must depend on it
    handle = layers[layer].register_forward_hook(lambda _, __, out: seen.append(out))
    found = []
    try:
        with evaluating(model), torch.enable_grad():
            for part in x.split(chunk):
                # word numbers have no gradient; there it starts at the weights
                logits = model(part.detach().requires_grad_(part.is_floating_point()))
                if not 0 <= target < logits.shape[1]:
                    raise ValueError(
                        f"the model has the outputs 0..{logits.shape[1] - 1}, got {target}"
                    )
                (grad,) = torch.autograd.grad(logits[:, target].sum(), seen.pop())
                found.append(grad.sum((2, 3)) if pool and grad.ndim == 4 else grad.flatten(1))
    finally:
        handle.remove()
    return torch.cat(found)


def concept_scores(
    concept: Tensor,
    pool: Tensor,
    gradients: Tensor,
    *,
    n_runs: int,
    generator: torch.Generator,
    C: float = PENALTY,
) -> Tensor:
    """TCAV scores of a concept, one a random set: `[n_runs, K]`.

    Args:
        concept: activations of the concept's images, `[k, d]`.
        pool: activations of images without a common concept, `[m, d]`; k of them make a set.
        gradients: `slopes` of K classes on n images each, `[K, n, d]`.

    Raises:
        ValueError: fewer than `N_MIN` runs, or a pool smaller than a set.
    """
    _check(len(concept), pool, n_runs, 1)
    sets = _drawn(pool, len(concept), n_runs, generator)
    return _shares(directions(concept, sets, C=C), gradients)


def null_scores(
    k: int,
    pool: Tensor,
    gradients: Tensor,
    *,
    n_runs: int,
    n_random: int,
    generator: torch.Generator,
    C: float = PENALTY,
) -> Tensor:
    """TCAV scores of random concepts, `[n_random, n_runs, K]`.

    A random concept is k images of the pool, told from sets of k others of it.

    Raises:
        ValueError: fewer than `N_MIN` runs or random concepts, or a pool smaller than two sets.
    """
    _check(k, pool, min(n_runs, n_random), 2)
    found = []
    for _ in range(n_random):
        mine = pool[torch.randperm(len(pool), generator=generator)]
        sets = _drawn(mine[k:], k, n_runs, generator)
        found.append(_shares(directions(mine[:k], sets, C=C), gradients))
    return torch.stack(found)


def _check(k: int, pool: Tensor, n: int, n_sets: int) -> None:
    if n < N_MIN or len(pool) < n_sets * k:
        raise ValueError(
            f"want at least {N_MIN} random sets and random concepts and a pool of {n_sets} x {k} "
            f"rows; got {n} and {len(pool)} rows: draw more sets, or shorten the concept"
        )


def _drawn(pool: Tensor, k: int, n: int, generator: torch.Generator) -> Tensor:
    """n sets of k rows of the pool, `[n, k, d]`."""
    return torch.stack([pool[torch.randperm(len(pool), generator=generator)[:k]] for _ in range(n)])


def _shares(vectors: Tensor, gradients: Tensor) -> Tensor:
    """Share of a class's images whose logit rises along each vector, `[r, K]`."""
    rises = torch.einsum("rd,knd->rkn", vectors, gradients.to(vectors)) > 0
    return rises.double().mean(-1)


@dataclass(frozen=True)
class Test:
    """One concept against random ones, class by class, `[K]` each."""

    __test__ = False  # not one of pytest's

    score: Tensor  # mean TCAV score over runs
    spread: Tensor  # sd over runs
    null: Tensor  # mean score of random concepts
    p_t: Tensor  # two-sided t test, runs taken for independent
    p_one: Tensor  # two-sided t test, the concept one draw among random concepts


def test(scores: Tensor, null: Tensor) -> Test:
    """Compare a concept's scores with those of random concepts.

    The usual test (Welch's) compares the runs of the concept with one run of each random concept;
    the other asks whether its mean score could be one more of the random concepts' mean scores.

    Args:
        scores: `[r, K]` of `concept_scores`, null: `[N, r, K]` of `null_scores`.
    """
    mean = scores.mean(0)
    return Test(
        mean,
        scores.std(0),
        null.mean((0, 1)),
        _welch(scores, null[:, 0]),
        _as_one(mean, null.mean(1)),
    )


test.__test__ = False  # type: ignore[attr-defined]


def _welch(a: Tensor, b: Tensor) -> Tensor:
    """Two-sided p values of the columns of `[r, K]` against those of `[N, K]`."""
    from scipy.stats import t as student

    va, vb = a.var(0) / len(a), b.var(0) / len(b)
    error = (va + vb).sqrt()
    difference = a.mean(0) - b.mean(0)
    freedom = (va + vb).square() / (
        va.square() / (len(a) - 1) + vb.square() / (len(b) - 1)
    ).clamp_min(1e-300)
    value = difference.abs() / error.clamp_min(1e-300)
    p = torch.from_numpy(2 * student.sf(value.numpy(), freedom.clamp_min(1.0).numpy()))
    # no spread on either side: equal means say nothing, different ones are certain
    return torch.where(error > 0, p, (difference == 0).double())


def _as_one(mean: Tensor, null: Tensor) -> Tensor:
    """Two-sided p values of one more draw, `[K]`, from the sample of random concepts, `[N, K]`."""
    from scipy.stats import t as student

    n = len(null)
    error = null.std(0) * (1 + 1 / n) ** 0.5
    difference = mean - null.mean(0)
    value = difference.abs() / error.clamp_min(1e-300)
    p = torch.from_numpy(2 * student.sf(value.numpy(), n - 1))
    return torch.where(error > 0, p, (difference == 0).double())


def holm(p: Tensor) -> Tensor:
    """Holm's adjusted p values of `[...]` tests: the chance of any false one stays below each."""
    flat = p.flatten()
    order = flat.argsort()
    scaled = flat[order] * torch.arange(len(flat), 0, -1)
    adjusted = torch.empty_like(flat)
    adjusted[order] = scaled.cummax(0).values.clamp(max=1.0)
    return adjusted.reshape(p.shape)


def false_positives(null: Tensor, level: float = 0.05) -> tuple[Tensor, Tensor]:
    """Share of classes for which each test calls a random concept significant.

    Each random concept in turn is taken for the concept and the others for random ones.

    Args:
        null: `[N, r, K]` of `null_scores`.

    Returns:
        Two tensors `[N]`: of the usual test, and of the one that takes a concept for one draw.
    """
    usual, as_one = [], []
    for k in range(len(null)):
        found = test(null[k], torch.cat([null[:k], null[k + 1 :]]))
        usual.append((found.p_t < level).double().mean())
        as_one.append((found.p_one < level).double().mean())
    return torch.stack(usual), torch.stack(as_one)
