"""The inverse of a Gram matrix of gradients, from the factors of linear modules alone.

Gradients g of linear modules that read one vector a an example are outer products `d a'`. Wanted is
`g_t' (G + lambda)^-1 g_i` with `G = sum_i g_i g_i'`, and no gradient formed:

- The eigenvectors u of `sum d d'` and v of `sum a a'` make an orthonormal basis of outer products
  `u v'`; in it the energy of the gradients is `sum_i (u' d_i)^2 (v' a_i)^2`.
- On the k pairs with the most energy G is taken as it is. Off them it is taken for a multiple of
  the identity, the mean energy of the other p - k pairs.
- What the pairs leave out is there exactly, because inner products of whole gradients cost
  nothing: `<g_t, g_i> = <d_t, d_i> <a_t, a_i>`.

So no gradient is dropped, as a random projection drops most of it, and with k = p nothing is
approximated. Nothing is random.

Source: the basis is that of EK-FAC (`kfac`; specification of document 4, section 1.3). Keeping its
strongest pairs, with the matrix between them, and the mean of the others is ours.

Public names: `Outer`, `EigenPairs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.attribution.surrogate import factor


@dataclass(frozen=True)
class Outer:
    """Gradients in one linear module: example b's is `d[b, :, None] * a[b, None, :]`."""

    a: Tensor  # [b, i], inputs; a last column of ones where the module has a bias
    d: Tensor  # [b, o], gradients of the output at the module's outputs


Gradients = Mapping[str, Outer]  # by module
Matrices = Mapping[str, Tensor]  # gradients that are no outer products, `[r, o, i]` by module


@dataclass(frozen=True)
class _Side:
    """A module's training gradients in the eigenbasis of its own two sides."""

    outer: Outer
    left: Tensor  # [o, o], eigenvectors u, one a row
    right: Tensor  # [i, i], eigenvectors v
    rotated: tuple[Tensor, Tensor]  # u' d [o, n] and v' a [i, n]
    energy: Tensor  # [o, i]

    def rotate(self, outer: Outer) -> tuple[Tensor, Tensor]:
        """u' d `[o, b]` and v' a `[i, b]`: rows lie together in memory, columns would not."""
        return self.left @ outer.d.mT, self.right @ outer.a.mT


class EigenPairs:
    """The inverse of `G + lambda` on the gradients of several modules, as the module says."""

    def __init__(self, train: Gradients) -> None:
        """Find the eigenvectors and the energy of every pair of them.

        Args:
            train: gradients of n examples, by module.
        """
        self._sides = {}
        for name, outer in train.items():
            left, right = (torch.linalg.eigh(x.mT @ x).eigenvectors.mT for x in (outer.d, outer.a))
            u, v = left @ outer.d.mT, right @ outer.a.mT
            self._sides[name] = _Side(outer, left, right, (u, v), u.square() @ v.square().mT)

    def add_scores(
        self,
        total: Tensor,
        modules: Sequence[str],
        targets: Sequence[tuple[Gradients, Matrices, Tensor]],
        *,
        k: int,
        ridge: float,
    ) -> Tensor:
        """Add `g_t' (G + lambda)^-1 g_i`, for T functionals of these modules' parameters, to sums.

        Args:
            total: sums so far `[V, n, T]`, changed in place.
            modules: whose parameters count; p is the number of them.
            targets: (gradients of T functionals, matrices `[r, o, i]`, weights `[T, r]`): their
                sum, the matrices weighted, is a functional's gradient. Each is one version of
                the T functionals; V of them share the factorisation.
            k: pairs on which G is taken as it is; p of them or more are all.
            ridge: lambda as a share of the mean of the p eigenvalues of G.

        Returns:
            What was added, its mean over functionals `[V, n]`.

        Raises:
            ValueError: every training gradient is zero.
        """
        sides = {name: self._sides[name] for name in modules}
        energy = torch.cat([side.energy.flatten() for side in sides.values()])
        p, whole = len(energy), energy.sum(dtype=torch.float64).item()
        if whole == 0:
            raise ValueError("every training gradient is zero, so nothing can be attributed")
        k = min(k, p)
        chosen = _split(energy.topk(k).indices, sides)
        kept = _kept(chosen, [side.rotated for side in sides.values()])  # [k, n]
        # The pairs nearly diagonalise the matrix, so that round-off of its entries is small beside
        # the eigenvalues of their own pairs, large or not: no need of a product in float64.
        matrix = (kept @ kept.mT).double()
        on_pairs = matrix.trace().item()
        damping = ridge * whole / p
        lower = factor(matrix, kept.shape[1], damping * k / on_pairs)
        # round-off may leave less than nothing
        rest = 1 / (damping + max(whole - on_pairs, 0.0) / (p - k)) if k < p else 0.0
        # k is small and lambda bounds the condition: with T functionals an inverse is the faster
        inverse = torch.cholesky_inverse(lower)
        inverse.diagonal().sub_(rest)
        inverse = inverse.to(kept.dtype)
        means = []
        for sums, (outers, matrices, weights) in zip(total, targets, strict=True):
            rotated = [side.rotate(outers[name]) for name, side in sides.items()]
            wanted = _kept(chosen, rotated)  # [k, T]
            if matrices:
                more = [
                    (side.left @ matrices[name] @ side.right.mT)[:, i, j]
                    for (name, side), (i, j) in zip(sides.items(), chosen, strict=True)
                ]
                wanted = wanted + (weights @ torch.cat(more, 1)).mT
            solved = inverse @ wanted
            sums.addmm_(kept.mT, solved)
            mean = kept.mT @ solved.mean(1)
            if rest:
                mean += _add_products(sums, sides, outers, matrices, weights, rest)
            means.append(mean)
        return torch.stack(means)


def _split(chosen: Tensor, sides: Mapping[str, _Side]) -> list[tuple[Tensor, Tensor]]:
    """Flat indices over all modules' pairs -> for every module the indices of u and of v."""
    found, start = [], 0
    for side in sides.values():
        size = side.energy.numel()
        own = chosen[(chosen >= start) & (chosen < start + size)] - start
        n_right = len(side.right)
        found.append((own // n_right, own % n_right))
        start += size
    return found


def _kept(
    chosen: Sequence[tuple[Tensor, Tensor]], rotated: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """The chosen entries `[k, b]` of gradients in the eigenbasis."""
    parts = [u[i].mul_(v[j]) for (i, j), (u, v) in zip(chosen, rotated, strict=True)]
    return torch.cat(parts)


def _add_products(
    sums: Tensor,
    sides: Mapping[str, _Side],
    outers: Gradients,
    matrices: Matrices,
    weights: Tensor,
    scale: float,
) -> Tensor:
    """Add inner products of training gradients with the functionals' to `[n, T]`; mean over T."""
    mean: Tensor | None = None
    for name, side in sides.items():
        own, other = side.outer, outers[name]
        d = other.d * scale
        sums.addcmul_(own.d @ d.mT, own.a @ other.a.mT)
        middle = d.mT @ other.a / len(d)  # the mean gradient
        if matrices:
            slopes = torch.stack([((own.d @ m) * own.a).sum(1) for m in matrices[name]], 1)
            sums.addmm_(slopes, weights.mT, alpha=scale)
            middle = middle + scale * torch.einsum("r,roi->oi", weights.mean(0), matrices[name])
        part = (own.d @ middle).mul_(own.a).sum(1)
        mean = part if mean is None else mean + part
    assert mean is not None
    return mean
