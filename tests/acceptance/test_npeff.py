"""Planted per-example Fishers at the size where a start can lose a component."""

from __future__ import annotations

import torch
from torch import Tensor

from lib.npeff import store
from lib.npeff.factorise import decompose, explained


def planted(n: int, r: int, m: int, used: int, seed: int) -> tuple[store.Fishers, Tensor, Tensor]:
    """One or two of r unit, partly sparse components an example, three rows each."""
    generator = torch.Generator().manual_seed(seed)
    g = torch.zeros(r, m, dtype=torch.float64)
    for row in g:
        row[torch.randperm(m, generator=generator)[:used]] = torch.randn(
            used, generator=generator, dtype=torch.float64
        )
    g = torch.nn.functional.normalize(g)
    w = torch.zeros(n, r, dtype=torch.float64)
    rows = torch.zeros(n, 3, m, dtype=torch.float64)
    for i in range(n):
        active = torch.randperm(r, generator=generator)[: 1 + i % 2]
        w[i, active] = 0.25 + torch.rand(len(active), generator=generator, dtype=torch.float64)
        for slot, j in enumerate(active.tolist()):
            rows[i, slot] = w[i, j].sqrt() * g[j]
    raw = store.from_dense(rows)
    return store.normalise(raw), w / raw.norms[:, None], g


def test_twenty_planted_components_come_back_from_four_of_five_starts():
    """A start may end in a local optimum with one component lost (specification, check 6)."""
    fishers, w, g = planted(1000, 20, 200, 20, seed=0)
    good = 0
    for seed in range(5):
        found = decompose(fishers, 20, seed=seed, component_steps=100, steps=900)
        cosines = torch.nn.functional.normalize(found.components) @ g.T
        best = cosines.abs().argmax(0)
        columns = torch.nn.functional.cosine_similarity(found.coefficients[:, best], w, dim=0)
        good += bool(
            1 - explained(found) < 1e-7
            and cosines.abs().amax(0).min() > 0.9999
            and columns.min() > 0.9999
        )
    assert good >= 4
