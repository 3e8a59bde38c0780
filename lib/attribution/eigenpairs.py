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
    matrices: Mapping[str, Tensor] | None = None  # [r, o, i] by module
    weights: Tensor | None = None  # [T, r] of the matrices


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
    energy: Tensor  # [o i], of every pair
    order: Tensor  # its largest entries, from the largest on; a layer keeps the first few of them

    def rows(self, slopes: Tensor, read: Tensor, count: int) -> Tensor:
        """Entries `[count, b]` of the strongest pairs, from u' d `[o, b]` and v' a `[i, b]`."""
        first = self.order[:count]
        n_right = len(self.inputs.right)
        # index_select: three times as fast as an index in brackets
        return slopes.index_select(0, first // n_right).mul_(read.index_select(0, first % n_right))


class EigenPairs:
    """The inverse of `G + lambda` on the gradients of several modules, as the module says."""

    def __init__(
        self,
        train: Mapping[str, Outer],
        others: Mapping[str, Tensor],
        groups: Mapping[str, Sequence[str]],
        *,
        k: int,
        like: EigenPairs | None = None,
    ) -> None:
        """Find the eigenvectors, the energy of every pair of them, and the strongest ones.

        Args:
            train: gradients of n examples, by module.
            others: inputs `[T, i]` of the functionals that will be scored, by module.
            groups: names -> modules whose parameters count for functionals of that name, p of them.
            k: pairs on which G is taken as it is, by group; p of them or more are all.
            like: those of another network: a module that reads the same there (the first one,
                say, which reads the data) shares what depends on its inputs alone.

        Raises:
            ValueError: every training gradient of a group is zero.
        """
        self._sides: dict[str, _Side] = {}
        for name, outer in train.items():
            known = like._sides[name].inputs if like else None
            if known is None or not known.is_of(outer.a, others[name]):
                known = _Inputs(outer.a, others[name], _eigenvectors(outer.a))
            left = _eigenvectors(outer.d)
            u = left @ outer.d.mT
            energy = (u.square() @ known.squared).flatten()
            order = energy.topk(min(k, len(energy))).indices
            self._sides[name] = _Side(known, left, u, energy, order)
        self._counts = {group: self._strongest(names, k) for group, names in groups.items()}
        self._kept: dict[str, Tensor] = {}  # [count, n]
        self._grams: dict[tuple[str, str], Tensor] = {}
        for name, side in self._sides.items():
            most = max(counts.get(name, 0) for counts in self._counts.values())
            self._kept[name] = kept = side.rows(side.slopes, side.inputs.rotated, most)
            # The pairs nearly diagonalise G, so that round-off of its entries is small beside the
            # eigenvalues of their own pairs, large or not: no need of a product in float64.
            self._grams[name, name] = kept @ kept.mT

    def _strongest(self, names: Sequence[str], k: int) -> dict[str, int]:
        """How many of the k strongest pairs of all these modules are each one's own."""
        sizes = [len(self._sides[name].order) for name in names]
        energy = torch.cat([self._sides[name].energy[self._sides[name].order] for name in names])
        if energy.sum() == 0:
            raise ValueError("every training gradient is zero, so nothing can be attributed")
        owner = torch.repeat_interleave(torch.tensor(sizes, device=energy.device))
        first = owner[energy.topk(min(k, len(energy))).indices]
        return dict(zip(names, first.bincount(minlength=len(names)).tolist(), strict=True))

    def _matrix(self, counts: Mapping[str, int]) -> Tensor:
        """G on the strongest pairs, module by module; the parts serve every group."""
        names = list(counts)
        for i, name in enumerate(names):
            for other in names[:i]:
                if (name, other) not in self._grams:
                    rows, columns = self._kept[name], self._kept[other]
                    self._grams[name, other] = rows @ columns.mT
                    self._grams[other, name] = self._grams[name, other].mT
        return torch.cat(
            [
                torch.cat([self._grams[a, b][: counts[a], : counts[b]] for b in names], 1)
                for a in names
            ]
        )

    def add_scores(
        self, total: Tensor, group: str, targets: Sequence[Target], *, ridge: float
    ) -> Tensor:
        """Add `g_t' (G + lambda)^-1 g_i`, for T functionals of a group's parameters, to sums.

        Args:
            total: sums so far `[V, T, n]`, changed in place.
            group: of the names given at first.
            targets: V versions of the T functionals; they share the factorisation.
            ridge: lambda as a share of the mean of the p eigenvalues of G.

        Returns:
            What was added, its mean over functionals `[V, n]`.
        """
        counts = self._counts[group]
        sides = {name: self._sides[name] for name in counts}
        kept = torch.cat([self._kept[name][:count] for name, count in counts.items()])  # [k, n]
        k, p = len(kept), sum(len(side.energy) for side in sides.values())
        whole = sum(side.energy.sum(dtype=torch.float64).item() for side in sides.values())
        matrix = self._matrix(counts).double()
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
            matrices = _turned(sides, target)
            parts = []  # of the functionals' gradients, [count, T]
            for name, side in sides.items():
                part = side.rows(slopes[name], side.inputs.rotated_others, counts[name])
                if target.weights is not None:
                    picked = matrices[name].flatten(1)[:, side.order[: counts[name]]]
                    part.addmm_(picked.mT, target.weights.mT)
                parts.append(part)
            solved = torch.cat(parts).mT @ inverse
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


def _turned(sides: Mapping[str, _Side], target: Target) -> dict[str, Tensor]:
    """The functionals' matrices in the eigenbasis."""
    if target.matrices is None:
        return {}
    return {
        name: side.left @ target.matrices[name] @ side.inputs.right.mT
        for name, side in sides.items()
    }


def _products(
    sides: Mapping[str, _Side],
    slopes: Mapping[str, Tensor],
    matrices: Mapping[str, Tensor],
    weights: Tensor | None,
) -> Tensor:
    """Inner products `[T, n]` of whole gradients, those of functionals and those of examples."""
    total: Tensor | None = None
    for name, side in sides.items():
        part = (slopes[name].mT @ side.slopes).mul_(side.inputs.products)
        if weights is not None:
            more = [(m.mT @ side.slopes).mul_(side.inputs.rotated).sum(0) for m in matrices[name]]
            part.addmm_(weights, torch.stack(more))
        total = part if total is None else total.add_(part)
    assert total is not None
    return total
