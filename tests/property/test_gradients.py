"""What must not change gradients, features and products: chunks, order, threads; and the model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lib import gradients, models
from lib.gradients import SJLT, CachedSigns, RandomFactors, cross_entropy, margin

G = torch.Generator().manual_seed(0)
DATA = (torch.randn(11, 1, 8, 8, generator=G).double(), torch.randint(10, (11,), generator=G))
MODEL = nn.Sequential(
    models.build("cnn", G, channels=(4, 4), n_out=12).double(),
    nn.Dropout(0.5),
    nn.BatchNorm1d(12).double(),
    nn.Linear(12, 10).double(),
)
P = gradients.size(gradients.select(MODEL))
V = torch.randn(P, 2, generator=G).double()

Way = Callable[[tuple[Tensor, Tensor], int], Tensor]
WAYS: dict[str, Way] = {
    "per_example": lambda d, c: gradients.per_example(MODEL, d, margin, chunk=c),
    "vmap": lambda d, c: torch.cat(list(gradients.per_example_vmap(MODEL, d, margin, chunk=c))),
    "kernel": lambda d, c: gradients.kernel(MODEL, d, DATA, margin, chunk=c),
    "projected": lambda d, c: gradients.projected(
        MODEL, d, margin, SJLT(P, 8, seed=0), chunk=c
    ),
    "factored": lambda d, c: gradients.projected(
        MODEL, d, margin, RandomFactors(MODEL, ki=3, ko=2, seed=0), chunk=c
    ),
}  # fmt: skip
PRODUCTS = [gradients.hessian_product, gradients.ggn_product]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_chunk_changes_nothing(way: str, chunk: int) -> None:
    torch.testing.assert_close(WAYS[way](DATA, chunk), WAYS[way](DATA, 6))


@pytest.mark.parametrize("way", WAYS)
def test_rows_follow_the_data(way: str) -> None:
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    shuffled = (DATA[0][order], DATA[1][order])
    torch.testing.assert_close(WAYS[way](shuffled, 4), WAYS[way](DATA, 4)[order])


@pytest.mark.parametrize("way", PRODUCTS)
def test_products_do_not_see_chunk_or_order(way: Callable) -> None:
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    want = way(MODEL, DATA, cross_entropy)(V)
    torch.testing.assert_close(way(MODEL, DATA, cross_entropy, chunk=4)(V), want)
    shuffled = (DATA[0][order], DATA[1][order])
    torch.testing.assert_close(way(MODEL, shuffled, cross_entropy)(V), want)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_model_is_left_as_it_was(frozen: bool) -> None:
    MODEL.train()
    MODEL[2].eval()  # a mixed state must come back as it was
    state = {name: value.clone() for name, value in MODEL.state_dict().items()}
    first = [(way(DATA, 4)) for way in WAYS.values()]
    MODEL.requires_grad_(not frozen)
    try:
        again = [way(DATA, 4) for way in WAYS.values()]
        for way in PRODUCTS:
            way(MODEL, DATA, cross_entropy)(V)
        stream = gradients.stream(MODEL, DATA, margin, chunk=2)
        next(stream)  # and in the middle of a stream
        modes = [module.training for module in MODEL]
        assert modes == [True, True, False, True]
        assert [p.requires_grad for p in MODEL.parameters()] == [not frozen] * 14
    finally:
        MODEL.requires_grad_(True)
    for a, b in zip(first, again, strict=True):
        torch.testing.assert_close(a, b)  # dropout was off
        assert not b.requires_grad
    assert all(p.grad is None for p in MODEL.parameters())
    assert not any(m._forward_hooks for m in MODEL.modules())
    for name, value in MODEL.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


def test_under_no_grad_as_with_grad() -> None:
    want = gradients.per_example(MODEL, DATA, margin)
    with torch.no_grad():
        found = gradients.per_example(MODEL, DATA, margin)
        product = gradients.hessian_product(MODEL, DATA, cross_entropy)(V)
    torch.testing.assert_close(found, want)
    torch.testing.assert_close(product, gradients.hessian_product(MODEL, DATA, cross_entropy)(V))


@pytest.mark.parametrize(
    "make", [lambda: SJLT(30_000, 64, seed=0, s=2), lambda: CachedSigns(30_000, 64, seed=0)]
)
def test_threads_do_not_change_a_projection(make: Callable) -> None:
    g = torch.randn(4, 30_000, generator=torch.Generator().manual_seed(0))
    one = make().project(g, 0)
    torch.set_num_threads(2)
    try:
        two = make().project(g, 0)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-4)


def test_an_output_scales_its_gradients() -> None:
    def double(out: Tensor, y: Tensor) -> Tensor:
        return 2 * margin(out, y)

    want = 2 * gradients.per_example(MODEL, DATA, margin)
    torch.testing.assert_close(gradients.per_example(MODEL, DATA, double), want)


def test_further_tensors_of_the_data_reach_the_output() -> None:
    share = torch.arange(11.0).double()

    def weighted(out: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return w * margin(out, y)

    want = share[:, None] * gradients.per_example(MODEL, DATA, margin)
    data = (*DATA, share)
    torch.testing.assert_close(gradients.per_example(MODEL, data, weighted, chunk=4), want)
    by_vmap = torch.cat(list(gradients.per_example_vmap(MODEL, data, weighted, chunk=4)))
    torch.testing.assert_close(by_vmap, want)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("s", [1, 4])
def test_the_device_changes_nothing(s: int) -> None:
    on_gpu = tuple(t.cuda() for t in DATA)
    want = gradients.per_example(MODEL, DATA, margin)
    features = gradients.projected(MODEL, DATA, margin, SJLT(P, 8, seed=0, s=s))
    MODEL.cuda()
    try:
        found = gradients.per_example(MODEL, on_gpu, margin)
        there = gradients.projected(MODEL, on_gpu, margin, SJLT(P, 8, seed=0, s=s, device="cuda"))
    finally:
        MODEL.cpu()
    torch.testing.assert_close(found.cpu(), want)
    torch.testing.assert_close(there.cpu(), features)
