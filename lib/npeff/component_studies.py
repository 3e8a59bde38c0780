"""What notebook 31 measures: sparsity, planted components, outliers, stability, and places.

Public names: `kept_share`, `KeptShare`, `planted`, `recovery`, `Recovery`, `n_effective`,
`mass_by_module`, `agreement`.

Source: document 3, sections 2.1, 2.2 and 3.3; specification sections 7 and 10 (check 6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.npeff import matching, store
from lib.npeff.components import Components
from lib.npeff.decomposition import Decomposition, explained
from lib.npeff.factorise import decompose
from lib.npeff.store import Fishers

N_CLASSES = 3
LEVELS = (0.05, 0.5, 0.95)


@dataclass(frozen=True)
class KeptShare:
    """How much of the PEFs the largest entries hold."""

    k: tuple[int, ...]
    quantiles: Tensor  # [len(k), 3] of q over examples, at `LEVELS`
    mean: Tensor  # [len(k)]
    positions: Tensor  # int64 [len(k)], parameters that any example uses


def kept_share(fishers: Fishers, ks: Sequence[int]) -> KeptShare:
    """Norm of the kept entries over that of the dense PEF, for several K.

    Args:
        fishers: raw PEFs made with the largest of `ks`.
    """
    rows, mean, positions = [], [], []
    for k in ks:
        part = store.normalise(store.prune(store.truncate(fishers, k)))
        q = store.sparse_norms(part)
        rows.append(q.quantile(torch.tensor(LEVELS, dtype=q.dtype)))
        mean.append(q.mean())
        positions.append(part.n_columns)
    return KeptShare(tuple(ks), torch.stack(rows), torch.stack(mean), torch.tensor(positions))


def planted(
    seed: int, *, n: int = 1000, r: int = 20, m: int = 80, n_used: int = 20
) -> tuple[Fishers, Tensor, Tensor]:
    """PEFs that are exact mixtures of known components.

    Each component is a unit vector with `n_used` entries that are not zero; each example mixes one
    or two of them with weights from U(.25, 1.25) and is normalised; its other rows are zero.

    Returns:
        Normalised PEFs, components `[r, m]` and coefficients `[n, r]` of the normalised PEFs.
    """
    generator = torch.Generator().manual_seed(seed)
    used = torch.rand(r, m, generator=generator).argsort(1)[:, :n_used]
    g = torch.zeros(r, m, dtype=torch.float64)
    g.scatter_(1, used, torch.randn(r, n_used, generator=generator, dtype=torch.float64))
    g /= g.norm(dim=1, keepdim=True)
    active = torch.rand(n, r, generator=generator).argsort(1)[:, :2]
    weight = 0.25 + torch.rand(n, 2, generator=generator, dtype=torch.float64)
    weight[:, 1] *= torch.rand(n, generator=generator) < 0.5
    rows = torch.zeros(n, N_CLASSES, m, dtype=torch.float64)
    rows[:, :2] = weight.sqrt()[..., None] * g[active]
    fishers = store.from_dense(rows)
    w = torch.zeros(n, r, dtype=torch.float64).scatter_add_(1, active, weight)
    return store.normalise(fishers), g, w / fishers.norms[:, None]


@dataclass(frozen=True)
class Recovery:
    """How many planted components each way of descending finds."""

    cosine: Tensor  # float64 [starts, r], best matching cosine of each planted component, sorted
    loss: Tensor  # float64 [starts], L / kappa

    def found(self, level: float = 0.99) -> Tensor:
        """Planted components found by each start, int64 `[starts]`."""
        return (self.cosine > level).sum(1)


def recovery(
    fishers: Fishers,
    truth: Tensor,
    *,
    step: str,
    seeds: Iterable[int],
    component_steps: int = 100,
    steps: int = 1500,
    progress: Callable[[Iterable[int]], Iterable[int]] | None = None,
) -> Recovery:
    """Factorise planted PEFs from several starts.

    Args:
        truth: `[r, m]`, unit vectors on all m parameters.
        step: as for `decompose`.
    """
    cosines, losses = [], []
    at = truth[:, fishers.kept]
    for seed in progress(seeds) if progress else seeds:
        made = decompose(
            fishers,
            len(truth),
            seed=seed,
            step=step,
            component_steps=component_steps,
            steps=steps,
        )
        g = made.components / made.components.norm(dim=1, keepdim=True)
        cosines.append((at @ g.T.to(at)).abs().amax(1).sort().values)
        losses.append(1 - explained(made))
    return Recovery(torch.stack(cosines), torch.tensor(losses, dtype=torch.float64))


def n_effective(coefficients: Tensor) -> Tensor:
    """Examples that carry a component: ``(sum w)^2 / sum w^2`` of each column, float64 `[r]`.

    An empty component has none.
    """
    w = coefficients.double()
    return w.sum(0).square() / w.square().sum(0).clamp(min=torch.finfo(torch.float64).tiny)


def mass_by_module(decomposition: Decomposition) -> tuple[tuple[str, ...], Tensor]:
    """Share of each component's squared length (or of a diagonal one's sum) in each parameter.

    Returns:
        Names of the parameters and float64 `[r, parameters]`; rows of components that are not
        zero sum to one.
    """
    names = tuple(name for name, _ in decomposition.parameters)
    sizes = torch.tensor([torch.Size(shape).numel() for _, shape in decomposition.parameters])
    owner = torch.bucketize(decomposition.kept, sizes.cumsum(0), right=True)
    g = decomposition.components.double()
    mass = g.square() if decomposition.kind == store.LOW_RANK else g
    total = torch.zeros(len(g), len(names), dtype=torch.float64)
    total.index_add_(1, owner, mass)
    return names, total / total.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def agreement(runs: Sequence[Components]) -> Tensor:
    """Mean largest cosine of coefficients between runs, of both directions, float64 `[pairs]`."""
    found = []
    for i, a in enumerate(runs):
        for b in runs[i + 1 :]:
            cosines = matching.cosines(a.held_out, b.held_out)
            found.append((cosines.amax(1).mean() + cosines.amax(0).mean()) / 2)
    return torch.stack(found)
