"""Products with the Hessian and the Gauss-Newton matrix against the matrices written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev

from lib import gradients, models
from lib.gradients import cross_entropy

G = torch.Generator().manual_seed(0)
MODEL = models.build("mlp", G, widths=(4, 5, 3)).double()
DATA = (torch.randn(9, 4, generator=G).double(), torch.randint(3, (9,), generator=G))
WEIGHTS = gradients.select(MODEL)
FLAT = gradients.flatten(WEIGHTS)
P = len(FLAT)


def _outputs(flat: Tensor) -> Tensor:
    return functional_call(MODEL, gradients.unflatten(flat, WEIGHTS), (DATA[0],))


def _hessian() -> Tensor:
    return hessian(lambda flat: cross_entropy(_outputs(flat), DATA[1]).mean())(FLAT)


def _ggn() -> Tensor:
    J, p = jacrev(_outputs)(FLAT), _outputs(FLAT).softmax(-1)  # [n, C, p], [n, C]
    H = torch.diag_embed(p) - p[:, :, None] * p[:, None]
    return torch.einsum("ncp,ncd,ndq->pq", J, H, J) / len(p)


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize("chunk", [2, 100])
def test_products_equal_the_explicit_matrices(chunk: int, l2: float) -> None:
    eye = torch.eye(P, dtype=torch.float64)
    ways = [(gradients.hessian_product, _hessian()), (gradients.ggn_product, _ggn())]
    for way, matrix in ways:
        product = way(MODEL, DATA, cross_entropy, l2=l2, chunk=chunk)
        torch.testing.assert_close(product(eye), matrix + l2 * eye)
        torch.testing.assert_close(product(eye[2]), matrix[2] + l2 * eye[2])


def test_the_hessian_of_a_network_is_not_its_gauss_newton_matrix() -> None:
    assert (_hessian() - _ggn()).norm() > 0.05 * _hessian().norm()


def test_gauss_newton_is_symmetric_and_positive_semi_definite() -> None:
    product = gradients.ggn_product(MODEL, DATA, cross_entropy)
    V = torch.randn(P, 100, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inner = V.T @ product(V)
    torch.testing.assert_close(inner, inner.T, atol=1e-12, rtol=1e-10)
    assert (inner.diagonal() >= 0).all()
    G = product(torch.eye(P, dtype=torch.float64))
    assert torch.linalg.eigvalsh(G).min() >= -1e-12


def test_products_are_linear() -> None:
    u, v = torch.randn(2, P, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for way in (gradients.hessian_product, gradients.ggn_product):
        product = way(MODEL, DATA, cross_entropy, l2=0.1)
        torch.testing.assert_close(product(2 * u - 3 * v), 2 * product(u) - 3 * product(v))


def test_a_block_is_the_corner_of_the_matrix() -> None:
    whole = _hessian()
    product = gradients.hessian_product(MODEL, DATA, cross_entropy, block=["out"])
    q = gradients.size(gradients.select(MODEL, ["out"]))
    torch.testing.assert_close(product(torch.eye(q, dtype=torch.float64)), whole[-q:, -q:])


def test_convolutions_norms_and_embeddings_have_products() -> None:
    cnn = models.build("cnn", G, channels=(2, 2)).double()
    words = nn.Sequential(nn.Embedding(5, 3), nn.LayerNorm(3), nn.Flatten(), nn.Linear(6, 2))
    cases: list[tuple[nn.Module, Tensor]] = [
        (cnn, torch.randn(3, 1, 8, 8, generator=G).double()),
        (words.double(), torch.randint(5, (3, 2), generator=G)),
    ]
    for model, x in cases:
        data = (x, torch.tensor([0, 1, 1]))
        p = gradients.size(gradients.select(model))
        v = torch.randn(p, 2, generator=G).double()
        H = gradients.hessian_product(model, data, cross_entropy)(v)
        # The definition: the change of the gradient along v, by central differences.
        step, start = 1e-5, [w.detach().clone() for w in model.parameters()]
        change = []
        for sign in (1, -1):
            move = gradients.unflatten(sign * step * v[:, 0], gradients.select(model))
            with torch.no_grad():
                for w, w0, d in zip(model.parameters(), start, move.values(), strict=True):
                    w.copy_(w0 + d)
            change.append(gradients.per_example(model, data, cross_entropy).mean(0))
        with torch.no_grad():
            for w, w0 in zip(model.parameters(), start, strict=True):
                w.copy_(w0)
        torch.testing.assert_close(
            H[:, 0], (change[0] - change[1]) / (2 * step), atol=1e-6, rtol=1e-4
        )


def test_rows_are_a_square_root_of_the_gauss_newton_matrix():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    model.double()
    data = torch.randn(7, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    rows = gradients.ggn_rows(model, data)
    assert rows.shape == (3, 7, 43)
    product = gradients.ggn_product(model, data, gradients.cross_entropy)
    explicit = product(torch.eye(43, dtype=torch.float64))
    torch.testing.assert_close(rows.flatten(0, 1).mT @ rows.flatten(0, 1) / 7, explicit)
