"""Concept activation vectors: planted directions are found, random concepts are not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lib.attribution import tcav

D, K = 8, 20


class Planted(nn.Module):
    """A hidden layer that is the input, and three logits: along e0, against e0, of e1 alone."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.hidden(x)
        return torch.stack([h[:, 0].tanh(), -h[:, 0].tanh(), h[:, 1]], 1)


@pytest.fixture(scope="module")
def pool() -> Tensor:
    return torch.randn(400, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def slopes(pool) -> Tensor:
    model = Planted()
    return torch.stack([tcav.slopes(model, pool[:30], c, "hidden") for c in range(3)])


def test_slopes_are_gradients_in_the_layer(pool, slopes) -> None:
    wanted = torch.zeros(30, D)
    wanted[:, 0] = 1 - pool[:30, 0].tanh() ** 2
    torch.testing.assert_close(slopes[0], wanted)
    torch.testing.assert_close(slopes[1], -wanted)


def test_slopes_of_maps_are_summed_or_flattened() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.Linear(8, 2))
    x = torch.randn(3, 1, 2, 2)
    pooled, flat = (tcav.slopes(model, x, 1, "0", pool=p) for p in (True, False))
    torch.testing.assert_close(flat, model[2].weight[1].expand(3, -1))
    torch.testing.assert_close(pooled, flat.unflatten(1, (2, 4)).sum(2))


def test_planted_concept_is_found_with_its_sign(pool, slopes) -> None:
    g = torch.Generator().manual_seed(1)
    concept = torch.randn(K, D, generator=g) + torch.eye(D)[0] * 4
    scores = tcav.concept_scores(concept, pool, slopes, n_runs=8, generator=g)
    null = tcav.null_scores(K, pool, slopes, n_runs=8, n_random=20, generator=g)
    found = tcav.test(scores, null)
    assert found.score[0] == 1
    assert found.score[1] == 0
    p = tcav.holm(found.p_t)
    assert p[0] < 0.05
    assert p[1] < 0.05
    vectors = tcav.directions(concept, pool[:K].expand(2, -1, -1))
    assert torch.allclose(vectors.norm(dim=1), torch.ones(2))
    assert (vectors.argmax(1) == 0).all()


def test_random_concepts_split_evenly_and_keep_the_level_as_one_draw(pool, slopes) -> None:
    g = torch.Generator().manual_seed(2)
    null = tcav.null_scores(K, pool, slopes, n_runs=6, n_random=60, generator=g)
    assert abs(null.mean() - 0.5) < 0.1
    usual, as_one = tcav.false_positives(null)
    assert as_one.mean() < 0.1
    assert usual.mean() > as_one.mean()  # runs that share a concept's images are not independent


def test_equal_scores_without_spread_say_nothing() -> None:
    same = torch.ones(4, 2).double()
    null = torch.ones(5, 4, 2).double()
    null[..., 1] = 0.0
    found = tcav.test(same, null)
    assert found.p_t.tolist() == [1, 0]
    assert found.p_one.tolist() == [1, 0]


def test_welch_is_that_of_scipy() -> None:
    from scipy.stats import ttest_ind

    g = torch.Generator().manual_seed(3)
    a, null = torch.rand(6, 3, generator=g).double(), torch.rand(9, 6, 3, generator=g).double()
    wanted = ttest_ind(a.numpy(), null[:, 0].numpy(), equal_var=False).pvalue
    torch.testing.assert_close(tcav.test(a, null).p_t, torch.from_numpy(wanted))


def test_holm_by_hand() -> None:
    p = torch.tensor([[0.01, 0.04], [0.03, 0.5]]).double()
    wanted = torch.tensor([[0.04, 0.09], [0.09, 0.5]]).double()
    torch.testing.assert_close(tcav.holm(p), wanted)


def test_a_seed_gives_the_same_scores(pool, slopes) -> None:
    a, b = (
        tcav.null_scores(
            K, pool, slopes, n_runs=3, n_random=4, generator=torch.Generator().manual_seed(5)
        )
        for _ in range(2)
    )
    assert torch.equal(a, b)
