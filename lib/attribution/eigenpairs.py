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
approximated. Nothing is random. All of it is written in the eigenbasis, which leaves inner products
as they are; examples are columns, so that what belongs to one pair lies together in memory.

Source: the basis is that of EK-FAC (`kfac`; specification of document 4, section 1.3). Keeping its
strongest pairs, with the matrix between them, and the mean of the others is ours.

Public names: `Outer`, `Target`, `EigenPairs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lib.attribution.surrogate import factor


@dataclass(frozen=True)
class Outer:
    """Gradients in one linear module: example b's is `d[b, :, None] * a[b, None, :]`."""

    a: Tensor  # [b, i], inputs; a last column of ones where the module has a bias
    d: Tensor  # [b, o], gradients of the output at the module's outputs


@dataclass(frozen=True)
class Target:
    """Gradients of T functionals: of outer products, and of what is common to all of them."""

    d: Mapping[str, Tensor]  # [T, o] by module, at the inputs `others` of `EigenPairs`
    matrices: Mapping[str, Tensor]  # [r, o, i] by module; empty if there are none
    weights: Tensor  # [T, r] of the matrices


@dataclass(frozen=True)
class _Inputs:
    """What a module reads for training examples and for functionals, in its eigenbasis."""

    train: Tensor  # [n, i] as they are
    others: Tensor  # [T, i]
    right: Tensor  # [i, i], eigenvectors v, one a row

    @cached_property
    def rotated(self) -> Tensor:
        """v' a `[i, n]`."""
        return self.right @ self.train.mT

    @cached_property
    def rotated_others(self) -> Tensor:
        """v' a `[i, T]`."""
        return self.right @ self.others.mT

    @cached_property
    def squared(self) -> Tensor:
        """(v' a)^2 `[n, i]`."""
        return self.rotated.square().mT

    @cached_property
    def products(self) -> Tensor:
        """Inner products `[T, n]`."""
        return self.others @ self.train.mT

    def is_of(self, train: Tensor, others: Tensor) -> bool:
        return torch.equal(train, self.train) and torch.equal(others, self.others)


@dataclass(frozen=True)
class _Side:
    """A module's training gradients in the eigenbasis of its own two sides."""

    inputs: _Inputs
    left: Tensor  # [o, o], eigenvectors u, one a row
    slopes: Tensor  # u' d [o, n]
    energy: Tensor  # [o, i]


class EigenPairs:
    """The inverse of `G + lambda` on the gradients of several modules, as the module says."""

    def __init__(
        self,
        train: Mapping[str, Outer],
        others: Mapping[str, Tensor],
        like: EigenPairs | None = None,
    ) -> None:
        """Find the eigenvectors and the energy of every pair of them.

        Args:
            train: gradients of n examples, by module.
            others: inputs `[T, i]` of the functionals that will be scored, by module.
            like: those of another network: a module that reads the same there (the first one,
                say, which reads the data) shares what depends on its inputs alone.
        """
        self._sides = {}
        for name, outer in train.items():
            known = like._sides[name].inputs if like else None
            if known is None or not known.is_of(outer.a, others[name]):
                known = _Inputs(outer.a, others[name], _eigenvectors(outer.a))
            left = _eigenvectors(outer.d)
            u = left @ outer.d.mT
            self._sides[name] = _Side(known, left, u, u.square() @ known.squared)

    def add_scores(
        self,
        total: Tensor,
        modules: Sequence[str],
        targets: Sequence[Target],
        *,
        k: int,
        ridge: float,
    ) -> Tensor:
        """Add `g_t' (G + lambda)^-1 g_i`, for T functionals of these modules' parameters, to sums.

        Args:
            total: sums so far `[V, T, n]`, changed in place.
            modules: whose parameters count; p is the number of them.
            targets: V versions of the T functionals; they share the factorisation.
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
        chosen = _split(energy.topk(k, sorted=False).indices, sides)
        kept = _kept(chosen, [(side.slopes, side.inputs.rotated) for side in sides.values()])
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
        for sums, target in zip(total, targets, strict=True):
            slopes = {name: side.left @ target.d[name].mT for name, side in sides.items()}
            matrices = {
                name: side.left @ target.matrices[name] @ side.inputs.right.mT
                for name, side in sides.items()
                if target.matrices
            }
            read = [side.inputs.rotated_others for side in sides.values()]
            wanted = _kept(chosen, list(zip(slopes.values(), read, strict=True)))  # [k, T]
            if matrices:
                more = [m[:, i, j] for m, (i, j) in zip(matrices.values(), chosen, strict=True)]
                wanted = wanted + (target.weights @ torch.cat(more, 1)).mT
            solved = wanted.mT @ inverse
            if rest:
                added = _products(sides, slopes, matrices, target.weights).mul_(rest)
                added.addmm_(solved, kept)
            else:
                added = solved @ kept
            means.append(added.mean(0))
            sums += added
        return torch.stack(means)


def _eigenvectors(rows: Tensor) -> Tensor:
    """Of the Gram matrix of `[n, i]`, one a row."""
    return torch.linalg.eigh(rows.mT @ rows).eigenvectors.mT


def _split(chosen: Tensor, sides: Mapping[str, _Side]) -> list[tuple[Tensor, Tensor]]:
    """Flat indices over all modules' pairs -> for every module the indices of u and of v."""
    found, start = [], 0
    for side in sides.values():
        size = side.energy.numel()
        own = chosen[(chosen >= start) & (chosen < start + size)] - start
        n_right = len(side.inputs.right)
        found.append((own // n_right, own % n_right))
        start += size
    return found


def _kept(
    chosen: Sequence[tuple[Tensor, Tensor]], rotated: Sequence[tuple[Tensor, Tensor]]
) -> Tensor:
    """The chosen entries `[k, b]` of gradients in the eigenbasis."""
    # index_select: three times as fast as an index in brackets
    parts = [
        u.index_select(0, i).mul_(v.index_select(0, j))
        for (i, j), (u, v) in zip(chosen, rotated, strict=True)
    ]
    return torch.cat(parts)


def _products(
    sides: Mapping[str, _Side],
    slopes: Mapping[str, Tensor],
    matrices: Mapping[str, Tensor],
    weights: Tensor,
) -> Tensor:
    """Inner products `[T, n]` of whole gradients, those of functionals and those of examples."""
    total: Tensor | None = None
    for name, side in sides.items():
        part = (slopes[name].mT @ side.slopes).mul_(side.inputs.products)
        if matrices:
            more = [(m.mT @ side.slopes).mul_(side.inputs.rotated).sum(0) for m in matrices[name]]
            part.addmm_(weights, torch.stack(more))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total
