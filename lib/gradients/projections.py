"""Random projections of gradients to k numbers that keep inner products on average.

``E <Pg, Pg'> = <g, g'>`` for each of them. Every projector has the interface of the traker
package's: ``project(grads [b, p], model_id)`` and ``free_memory()``. Its matrix is drawn from
(seed, model_id) alone, so that checkpoints have independent projections and a matrix that was
freed comes back the same, on every device.

- `SJLT`: sparse, work s a weight whatever k is. The one to use.
- `CachedSigns`: dense signs, drawn once; memory p * k.
- `RandomFactors`: a small projection on either side of every layer; needs no gradient at all.
- `projected`: features of a data set in one pass, never more than a chunk of gradients.

Source: document 4, the projection step; specification section 5.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.gradients.factored import Factor, factored_layers, factors
from lib.gradients.flat import Block, Data, check_data, select, size, slices
from lib.gradients.outputs import Output
from lib.gradients.per_example import stream

# Weights and examples whose gradients are transposed at a time: the copy then stays in a core's
# cache, and takes no memory to speak of.
_TILE, _ROWS = 2**13, 64


class Projector(Protocol):
    """What turns gradients into features; the interface of the traker package's projectors."""

    k: int

    def project(self, grads: Tensor, model_id: int) -> Tensor: ...

    def free_memory(self) -> None: ...


@dataclass(frozen=True)
class _Tile:
    """The sparse matrix of a range of weights, its entries sorted by bucket."""

    columns: slice
    weight: Tensor  # [s * t] int32, within the range
    sign: Tensor  # [s * t]
    starts: Tensor  # [k] int32, where a bucket's entries begin


class SJLT:
    """Sparse Johnson-Lindenstrauss transform: weight j is added to s of k buckets, with signs.

    ``out[bucket] += sign * g[j] / sqrt(s)``, every (bucket, sign) drawn on its own. A projected
    inner product of unit vectors without large entries has variance ``(1 + <g, g'>^2) / k``, that
    of dense signs.
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
            s: buckets a weight.
            device: where the gradients are.

        Raises:
            ValueError: p, k or s < 1, or s > k.
        """
        _check_sizes(p, k)
        if not 1 <= s <= k:
            raise ValueError(f"want 1 <= s <= k = {k} buckets a weight, got s = {s}")
        self.p, self.k, self.s, self.seed = p, k, s, seed
        self.proj_dim = k  # traker's name
        self.device = torch.device(device)
        self._held: tuple[int, torch.dtype, list[_Tile]] | None = None

    def project(self, grads: Tensor | dict[str, Tensor], model_id: int) -> Tensor:
        """Project gradients ``[b, p]`` (or a dict of ``[b, ...]``) to ``[b, k]`` features."""
        grads = _as_rows(grads, self.p)
        tiles = self._tiles(model_id, grads.dtype)
        # Summing rows of the transpose, each the b numbers of a weight, is five times faster than
        # a product with a sparse matrix (measured); the transpose is the larger part of the work.
        scratch = grads.new_empty(min(self.p, _tile_size(self.k)) * min(len(grads), _ROWS))
        out = grads.new_empty(len(grads), self.k)
        for rows, done in zip(grads.split(_ROWS), out.split(_ROWS), strict=True):
            total = grads.new_zeros(self.k, len(rows))
            for tile in tiles:
                part = rows[:, tile.columns].mT
                transposed = scratch[: part.numel()].view(part.shape).copy_(part)
                total += F.embedding_bag(
                    tile.weight, transposed, tile.starts, mode="sum", per_sample_weights=tile.sign
                )
            done.copy_(total.mT)
        return out

    def free_memory(self) -> None:
        """Drop the matrix; the next projection draws the same one again."""
        self._held = None

    def _tiles(self, model_id: int, dtype: torch.dtype) -> list[_Tile]:
        if self._held is None or self._held[:2] != (model_id, dtype):
            generator = _generator(self.seed, model_id)
            shape = (self.p, self.s)
            bucket = torch.randint(self.k, shape, generator=generator, dtype=torch.int32)
            sign = _signs(shape, generator, dtype) / self.s**0.5
            step = _tile_size(self.k)
            ranges = [slice(i, min(i + step, self.p)) for i in range(0, self.p, step)]
            self._held = model_id, dtype, [self._tile(r, bucket[r], sign[r]) for r in ranges]
        return self._held[2]

    def _tile(self, columns: slice, bucket: Tensor, sign: Tensor) -> _Tile:
        order = bucket.flatten().argsort(stable=True)
        count = torch.bincount(bucket.flatten(), minlength=self.k)
        return _Tile(
            columns,
            (order // self.s).int().to(self.device),
            sign.flatten()[order].to(self.device),
            (count.cumsum(0) - count).int().to(self.device),
        )


class CachedSigns:
    """Dense random signs over ``sqrt(k)``, drawn once and kept: fast while p * k numbers fit."""

    proj_type = "rademacher"

    def __init__(
        self,
        p: int,
        k: int,
        *,
        seed: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        """Prepare; arguments and errors as for `SJLT`.

        Args:
            dtype: in which signs are kept and products taken, None for that of the gradients;
                bfloat16 halves the memory and rounds features to three digits.
        """
        _check_sizes(p, k)
        self.p, self.k, self.seed, self.dtype = p, k, seed, dtype
        self.proj_dim = k  # traker's name
        self.device = torch.device(device)
        self._held: tuple[int, torch.dtype, Tensor] | None = None

    def project(self, grads: Tensor | dict[str, Tensor], model_id: int) -> Tensor:
        """Project gradients ``[b, p]`` (or a dict of ``[b, ...]``) to ``[b, k]`` features."""
        grads = _as_rows(grads, self.p)
        dtype = self.dtype or grads.dtype
        if self._held is None or self._held[:2] != (model_id, dtype):
            signs = _signs((self.p, self.k), _generator(self.seed, model_id), dtype)
            self._held = model_id, dtype, signs.to(self.device)
        return (grads.to(dtype) @ self._held[2]).to(grads.dtype) / self.k**0.5

    def free_memory(self) -> None:
        """Drop the matrix; the next projection draws the same one again."""
        self._held = None


class RandomFactors:
    """Signs on either side of every layer's gradient: ``P_out^T (d a^T) P_in``, ki * ko numbers.

    Weights outside linear and convolution layers are left out. A side not longer than its share
    of features is kept as it is.

    Source: the LoGra study; specification section 5.2 (c).
    """

    proj_type = "factored"

    def __init__(
        self,
        model: nn.Module,
        *,
        ki: int,
        ko: int,
        seed: int,
        layers: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Prepare; the matrices are drawn at the first projection.

        Args:
            model: whose layers.
            ki, ko: features on a layer's input and output side.
            seed: of the whole family; each ``model_id`` has matrices of its own.
            layers: names of modules; None is every linear and ungrouped convolution layer.
            device: where the gradients are.

        Raises:
            ValueError: ki or ko < 1, or a name is no such layer.
        """
        if ki < 1 or ko < 1:
            raise ValueError(f"want ki >= 1 and ko >= 1 features a side, got {ki} and {ko}")
        found = factored_layers(model, layers)
        weights = select(model)
        self.p, self.seed, self.layers = size(weights), seed, tuple(found)
        self.device = torch.device(device)
        self._where = slices(weights)
        self._sides = {
            name: (weight[0].numel() + (layer.bias is not None), len(weight))
            for name, layer in found.items()
            if isinstance(weight := layer.weight, Tensor)
        }
        self._ki, self._ko = ki, ko
        self.k = sum(min(ki, i) * min(ko, o) for i, o in self._sides.values())
        self.proj_dim = self.k  # traker's name
        self._held: tuple[int, torch.dtype, dict[str, tuple[Tensor, Tensor]]] | None = None
        self.verified: set[tuple[object, ...]] = set()  # code whose hooks agreed with autograd

    def project(self, grads: Tensor | dict[str, Tensor], model_id: int) -> Tensor:
        """Project flat gradients of the whole model ``[b, p]`` to ``[b, k]`` features."""
        grads, parts = _as_rows(grads, self.p), []
        for name, (left, right) in self._matrices(model_id, grads.dtype).items():
            at = {n: self._where.get(f"{name}.{n}" if name else n) for n in ("weight", "bias")}
            layer = grads[:, at["weight"]].view(len(grads), self._sides[name][1], -1)
            if at["bias"] is not None:
                layer = torch.cat([layer, grads[:, at["bias"], None]], dim=2)
            parts.append((left.mT @ (layer @ right)).flatten(1))
        return torch.cat(parts, dim=1)

    def project_factors(self, factors: dict[str, Factor], model_id: int) -> Tensor:
        """The same features ``[b, k]`` from the `factors` of a chunk, without any gradient."""
        parts = []
        for name, (left, right) in self._matrices(
            model_id, next(iter(factors.values())).a.dtype
        ).items():
            d, a = (factors[name].d @ left).mT, factors[name].a @ right
            # an outer product is ten times faster than a matrix product of inner length 1
            parts.append((d * a if a.shape[1] == 1 else d @ a).flatten(1))
        return torch.cat(parts, dim=1)

    def free_memory(self) -> None:
        """Drop the matrices; the next projection draws the same ones again."""
        self._held = None

    def _matrices(self, model_id: int, dtype: torch.dtype) -> dict[str, tuple[Tensor, Tensor]]:
        """For every layer the projections ``[o, ko]`` and ``[i, ki]``."""
        if self._held is None or self._held[:2] != (model_id, dtype):
            generator = _generator(self.seed, model_id)

            def side(length: int, kept: int) -> Tensor:
                if length <= kept:
                    return torch.eye(length, dtype=dtype, device=self.device)
                return _signs((length, kept), generator, dtype).to(self.device) / kept**0.5

            pairs = {n: (side(o, self._ko), side(i, self._ki)) for n, (i, o) in self._sides.items()}
            self._held = model_id, dtype, pairs
        return self._held[2]


def projected(
    model: nn.Module,
    data: Data,
    output: Output,
    projector: Projector,
    *,
    model_id: int = 0,
    block: Block = None,
    chunk: int | None = None,
    progress: Callable[[Iterable[Tensor]], Iterable[Tensor]] | None = None,
) -> Tensor:
    """Projected per-example gradients in one pass over the data.

    Args:
        model, data, output, block, chunk: as for `stream`.
        projector: for instance `SJLT(p, k, seed=0)`.
        model_id: selects the projection, so that checkpoints have independent ones.
        progress: wraps the loop over chunks, for instance ``tqdm``.

    Returns:
        ``[n, k]``. Beyond it the memory is that of a chunk, whatever n is.
    """
    features: Tensor | None = None
    n, start = check_data(data), 0
    parts = _projected_chunks(model, data, output, projector, model_id, block, chunk)
    for part in parts if progress is None else progress(parts):
        if features is None:
            features = part.new_empty(n, part.shape[1])
        features[start : start + len(part)] = part
        start += len(part)
    assert features is not None
    return features


def _projected_chunks(
    model: nn.Module,
    data: Data,
    output: Output,
    projector: Projector,
    model_id: int,
    block: Block,
    chunk: int | None,
) -> Iterator[Tensor]:
    if isinstance(projector, RandomFactors):
        if block is not None:
            raise ValueError("RandomFactors has its own choice of layers; leave block out")
        verify = (code := _code(model)) not in projector.verified
        parts = factors(model, data, output, layers=projector.layers, chunk=chunk, verify=verify)
        for factored in parts:
            yield projector.project_factors(factored, model_id)
        projector.verified.add(code)
        return
    chunks = stream(model, data, output, block=block, chunk=chunk)
    # `map` drops a chunk before it asks for the next one, which a loop's variable would keep.
    yield from map(projector.project, chunks, repeat(model_id))


def _code(model: nn.Module) -> tuple[object, ...]:
    """What decides how a model uses its weights: its modules' types, and which weights it has."""
    modules = ((name, type(module)) for name, module in model.named_modules())
    return *modules, *(name for name, _ in model.named_parameters())


def _tile_size(k: int) -> int:
    return max(_TILE, 4 * k)  # at least 4 entries a bucket, or adding up tiles is the larger work


def _generator(seed: int, model_id: int) -> torch.Generator:
    """A CPU generator of its own for every (seed, model_id)."""
    digest = hashlib.sha256(f"projection {seed} {model_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def _signs(shape: tuple[int, int], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Random -1 and +1, each from one bit: eight times fewer random numbers than one a sign."""
    n = shape[0] * shape[1]
    bits = torch.empty(-(-n // 64), dtype=torch.int64).random_(-(2**63), None, generator=generator)
    octets = torch.arange(256)[:, None] >> torch.arange(8) & 1
    table = (2 * octets - 1).to(dtype)
    return F.embedding(bits.view(torch.uint8).int(), table).flatten()[:n].view(shape)


def _as_rows(grads: Tensor | dict[str, Tensor], p: int) -> Tensor:
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
