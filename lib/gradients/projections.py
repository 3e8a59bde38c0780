"""Random projections of gradients to k numbers that keep inner products on average.

Every projector has the interface of the traker package's: ``project(grads [b, p], model_id)`` and
``free_memory()``. Its matrix is drawn from (seed, model_id) alone, so that checkpoints have
independent projections and a matrix that was freed comes back the same.

Source: document 4, the projection step; specification section 5.2.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


class SJLT:
    """Sparse Johnson-Lindenstrauss transform: coordinate j goes to s of k buckets with signs.

    ``out[bucket] += sign * g[j] / sqrt(s)``, so the work is s additions a coordinate whatever k
    is, and the variance of a projected inner product of unit vectors about ``(1 + <g, g'>^2)/k``
    as for dense signs.
    """

    proj_type = "sjlt"

    def __init__(
        self, p: int, k: int, *, seed: int, s: int = 1, device: torch.device | str = "cpu"
    ) -> None:
        """Prepare; the matrix is drawn at the first projection.

        Args:
            p: number of weights.
            k: number of features.
            seed: of the whole family; each ``model_id`` has a matrix of its own.
            s: buckets a coordinate.
            device: where the gradients are.

        Raises:
            ValueError: p, k or s < 1, or s > k.
        """
        _check_sizes(p, k)
        if not 1 <= s <= k:
            raise ValueError(f"want 1 <= s <= k = {k} buckets a coordinate, got s = {s}")
        self.p, self.k, self.s, self.seed = p, k, s, seed
        self.proj_dim = k  # traker's name
        self.device = torch.device(device)
        self._held: tuple[int, Tensor] | None = None

    def project(self, grads: Tensor | dict[str, Tensor], model_id: int) -> Tensor:
        """Project gradients ``[b, p]`` (or a dict of ``[b, ...]``) to ``[b, k]`` features."""
        grads = as_rows(grads, self.p)
        return (self._matrix(model_id, grads.dtype) @ grads.mT).mT.contiguous()

    def free_memory(self) -> None:
        """Drop the matrix; the next projection draws the same one again."""
        self._held = None

    def _matrix(self, model_id: int, dtype: torch.dtype) -> Tensor:
        if self._held is None or self._held[0] != model_id or self._held[1].dtype != dtype:
            generator = generator_for(self.seed, model_id)
            size = (self.s, self.p)
            bucket = torch.randint(self.k, size, generator=generator)
            sign = torch.randint(2, size, generator=generator).to(dtype) * 2 - 1
            column = torch.arange(self.p).expand(size)
            matrix = torch.sparse_coo_tensor(
                torch.stack([bucket.flatten(), column.flatten()]),
                sign.flatten() / self.s**0.5,
                (self.k, self.p),
            )
            self._held = model_id, matrix.to_sparse_csr().to(self.device)
        return self._held[1]


def generator_for(seed: int, model_id: int) -> torch.Generator:
    """A CPU generator of its own for every (seed, model_id)."""
    digest = hashlib.sha256(f"projection {seed} {model_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def as_rows(grads: Tensor | dict[str, Tensor], p: int) -> Tensor:
    """Gradients as ``[b, p]``; refuses another width."""
    if isinstance(grads, dict):
        grads = torch.cat([g.flatten(1) for g in grads.values()], dim=1)
    if grads.ndim != 2 or grads.shape[1] != p:
        raise ValueError(
            f"want gradients [b, {p}], got {tuple(grads.shape)}; "
            "make the projector for the model and block that they are of"
        )
    return grads.detach()


def _check_sizes(p: int, k: int) -> None:
    if p < 1 or k < 1:
        raise ValueError(f"want p >= 1 weights and k >= 1 features, got p = {p}, k = {k}")
