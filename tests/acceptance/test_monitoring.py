"""Concept-Monitor: checks that take a fitted UMAP or trained networks."""

import torch

from lib.monitoring.activations import ConceptSet
from lib.monitoring.space import Space, fit_basis
from lib.monitoring.stored import fetch_basis


def test_umap_places_words_and_units_the_same_way_twice():
    """Specification 7.1, case 10."""
    vectors = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    space = Space.of(ConceptSet(tuple(f"w{k}" for k in range(40))), vectors)
    stored, fresh = fetch_basis(space), fit_basis(space)
    assert stored.kind == "umap-bary"
    torch.testing.assert_close(stored.points, fresh.points, atol=1e-4, rtol=0)
    one = torch.tensor([1.0, 0, 0, 0, 0])
    assert fresh.place(torch.tensor([7, 1, 2, 3, 4]), one).equal(fresh.points[7])
    u = space.place(torch.tensor([[7, 1], [2, 3]]), torch.tensor([[0.5, 0.5], [0.9, 0.1]]))
    assert fresh.transform(u).equal(fresh.transform(u))
