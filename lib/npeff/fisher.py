"""Per-example Fishers of any classifier: exact factors, their norms and their largest entries.

The Fisher of example x is ``F = sum_c p_c s_c s_c^T`` with the scores ``s_c`` (gradients of
``log p(c|x)``) and the model's own probabilities p, so ``F = A^T A`` with rows ``sqrt(p_c) s_c``.
A row is one backward pass from the logits with the cotangent ``sqrt(p_c) (e_c - p)``; the softmax
itself is never differentiated.

Fast way: one forward pass of a batch, one backward pass a class, gradients of all examples by the
hooks of `lib.gradients`. Where activations are mostly zero (compiled networks), only the rows and
columns of a layer that an example uses are multiplied. Generic way: ``torch.func``, any network
that it can differentiate. Which classes take part is decided by `lib.npeff.terms`.

Public name: `per_example_fishers`; `lib.npeff.archive` keeps what it makes.

Source: document 3, section 2.1; specification sections 1 and 9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from lib.gradients.flat import check_finite, evaluating, select, size, slices
from lib.gradients.hooks import (
    Recorded,
    UnsupportedLayer,
    has_factors,
    input_rows,
    is_large,
    layers_of,
    output_rows,
    own_names,
    per_example_hooks,
    record,
    write_gradients,
    write_products,
)
from lib.gradients.outputs import CentredLogit
from lib.npeff.rows import largest, offsets_of
from lib.npeff.store import DIAGONAL, LOW_RANK, Fishers, Parameters
from lib.npeff.terms import cotangents, terms

Progress = Callable[[Sequence[range]], Iterator[range]]
SPARSE = 0.05  # share of a layer's weights that an example may use for the sparse way to pay
NUMBERS = 2**26  # of dense gradients that the activations held at a time belong to
SPARE = 32  # rows of nothing that cost less than a batch of their own
PIECE = 2**21  # of them written at a time: 8 MB, which stay in a processor's cache


def per_example_fishers(
    model: nn.Module,
    x: Tensor,
    *,
    kind: str = LOW_RANK,
    k: int,
    block: Sequence[str] | None = None,
    eps: float = 0.0,
    max_classes: int | None = None,
    n_samples: int | None = None,
    generator: torch.Generator | None = None,
    chunk: int | None = None,
    generic: bool = False,
    progress: Progress | None = None,
) -> Fishers:
    """Per-example Fishers with their k largest entries, raw (not normalised).

    Args:
        model: a classifier, inputs to logits ``[n, C]``; taken in eval mode and left as it was.
        x: inputs ``[n, ...]``, on the model's device.
        kind: `LOW_RANK`: the factor, one row a class; `DIAGONAL`: the diagonal ``sum_c p_c s_c^2``.
        k: entries kept, over all rows of an example jointly, at most ``C m``.
        block: names of parameters or modules to differentiate by; None is every parameter.
        eps, max_classes, n_samples, generator: which classes take part, see `terms`.
        chunk: examples at a time; None bounds the memory by 256 MB of gradients.
        generic: use ``torch.func`` even where the hooks know all layers.
        progress: wraps the list of batches (tqdm).

    Returns:
        Fishers on all m positions of the block; `prune` them and `normalise` them.

    Raises:
        ValueError: an unknown kind or block, k out of range, logits or gradients that are not
            finite (with the example's index).

    Source: document 3, equations 1 and 3; specification 1.1 to 1.5 and 9.
    """
    weights = select(model, block)
    m = size(weights)
    with evaluating(model), torch.no_grad():
        n_classes = model(x[:1]).shape[-1]
    most = m if kind == DIAGONAL else n_classes * m
    if kind not in (LOW_RANK, DIAGONAL) or not 1 <= k <= most:
        raise ValueError(
            f"want kind {LOW_RANK!r} or {DIAGONAL!r} and 1 <= k <= {most:,} (the entries of an "
            f"example with {m:,} parameters), got {kind!r} and k = {k:,}"
        )
    layers = None if generic else _hooked_layers(model, x, block)
    p = _probabilities(model, x)
    chosen = terms(p, eps=eps, max_classes=max_classes, n_samples=n_samples, generator=generator)
    # Examples with equally many terms go together: a batch needs a pass for its longest list.
    order = chosen.present.sum(1).argsort(stable=True)
    groups = _groups(chosen.present[order].sum(1), chunk or 256, 2**63 if chunk else NUMBERS // m)
    parts = []
    for group in progress(groups) if progress else groups:
        rows = order[group.start : group.stop]
        recorded = record(model, x[rows], layers or {})
        mine = chosen.take(rows)
        starts = cotangents(p[rows], mine).to(recorded.out.dtype)
        position = None
        whole = slice(0, len(rows))
        pieces: Iterable[tuple[slice, Tensor]]
        if layers is None:
            pieces = [(whole, _generic_rows(model, x[rows], starts, block))]
        elif all(type(layer) is nn.Linear for layer in layers.values()) and _is_sparse(recorded):
            entries, position = _sparse_rows(recorded, starts, layers, weights)
            pieces = [(whole, entries)]
        else:
            pieces = _dense_rows(recorded, starts, layers, weights)
        for piece, entries in pieces:
            _check_finite(entries, rows[piece])
            logits = recorded.out[piece].detach()
            parts.append(_largest_of(kind, entries, position, mine.present[piece], logits, m, k))
    shapes = tuple((name, tuple(weight.shape)) for name, weight in weights.items())
    return _joined(kind, parts, order.argsort(), m, shapes, k)


def _probabilities(model: nn.Module, x: Tensor) -> Tensor:
    """The model's distribution for every example, float64 ``[n, C]``."""
    with evaluating(model), torch.no_grad():
        logits = torch.cat([model(part) for part in x.split(1024)])
    check_finite(logits, 0, "logit")
    return logits.double().softmax(1)


def _groups(n_terms: Tensor, most: int, rows: int) -> list[range]:
    """Consecutive examples, at most `most`, and at most `rows` rows with the longest list.

    Args:
        n_terms: int64 ``[n]``, ascending.
    """
    groups, start, counts = [], 0, n_terms.tolist()
    while start < len(counts):
        stop, present = start + 1, counts[start]
        while stop < len(counts) and stop - start < most:
            whole = (stop - start + 1) * counts[stop]
            spare = whole - present - counts[stop]  # rows of nothing, so that all are as long
            if whole > rows or spare > max(SPARE, whole // 4):
                break
            present += counts[stop]
            stop += 1
        groups.append(range(start, stop))
        start = stop
    return groups


def _check_finite(entries: Tensor, rows: Tensor) -> None:
    """Refuse gradients that are not finite, naming the example."""
    bad = ~entries.flatten(1).sum(1).isfinite()
    for i in bad.nonzero()[:, 0].tolist():
        check_finite(entries[i : i + 1], int(rows[i]))


def _hooked_layers(
    model: nn.Module, x: Tensor, block: Sequence[str] | None
) -> dict[str, nn.Module] | None:
    """The block's layers if hooks see every use of its weights (verified on two examples)."""
    try:
        labels = torch.zeros(min(2, len(x)), dtype=torch.int64, device=x.device)
        next(per_example_hooks(model, (x[:2], labels), CentredLogit(0), block=block))
        return layers_of(model, block)
    except UnsupportedLayer:
        return None


def _generic_rows(
    model: nn.Module, batch: Tensor, starts: Tensor, block: Sequence[str] | None
) -> Tensor:
    """Factors ``[b, S, m]`` by ``torch.func``."""
    fixed, weights = select(model), select(model, block)

    def rows(x: Tensor, cotangent: Tensor) -> Tensor:
        def logits(chosen: dict[str, Tensor]) -> Tensor:
            return functional_call(model, {**fixed, **chosen}, (x[None],))[0]

        pull = vjp(logits, weights)[1]
        found = vmap(lambda one: pull(one)[0])(cotangent)
        return torch.cat([found[name].flatten(1) for name in weights], 1)

    with evaluating(model), torch.no_grad():
        return vmap(rows)(batch, starts)


def _dense_rows(
    recorded: Recorded,
    starts: Tensor,
    layers: dict[str, nn.Module],
    weights: dict[str, Tensor],
) -> Iterator[tuple[slice, Tensor]]:
    """Factors ``[b', S, m]`` of a few examples after the other, one backward pass a term.

    On a processor as many examples at a time as its caches hold; all in the same memory.
    """
    b, n_terms, _ = starts.shape
    where, m, device = slices(weights), size(weights), recorded.out.device
    inputs = {
        name: input_rows(layer, recorded.seen[name][0][0])  # once for all terms
        for name, layer in layers.items()
        if has_factors(layer) and len(recorded.seen[name]) == 1 and not is_large(layer, device)
    }
    calls = [
        recorded.calls(recorded.out, starts[:, s], last=s == n_terms - 1) for s in range(n_terms)
    ]
    # in sixteens every example lies as in one piece to a cache line, and rounds alike
    most = 16 * max(1, PIECE // (16 * n_terms * m)) if device.type == "cpu" else b
    memory = recorded.out.new_empty(min(most, b), n_terms, m)
    for first in range(0, b, most):
        piece = slice(first, min(first + most, b))
        rows = memory[: piece.stop - first]
        for s, name in product(range(n_terms), layers):
            layer = layers[name]
            views = {
                own: rows[:, s, where[full]].view(len(rows), *weights[full].shape)
                for own, full in own_names(name, layer)
                if full in where
            }
            mine = [(x[piece], d[piece]) for x, d in calls[s][name]]
            if name in inputs:
                write_products(inputs[name][piece], output_rows(layer, mine[0][1]), views)
            else:
                write_gradients(layer, mine, views)
        yield piece, rows


def _is_sparse(recorded: Recorded) -> bool:
    """Whether examples use so little of the layers' inputs that zeros are worth skipping."""
    used = [
        float((_tokens(x) != 0).any(1).double().mean())
        for calls in recorded.seen.values()
        for x, _ in calls
    ]
    return sum(used) / len(used) < SPARSE**0.5


def _sparse_rows(
    recorded: Recorded,
    starts: Tensor,
    layers: dict[str, nn.Module],
    weights: dict[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Factors on the positions that an example uses: entries ``[b, S, N]``, positions ``[b, N]``.

    Unused slots have position 0 and entry 0.
    """
    n_terms = starts.shape[1]
    per_term = [
        recorded.calls(recorded.out, starts[:, s], last=s == n_terms - 1) for s in range(n_terms)
    ]
    where = slices(weights)
    entries, positions = [], []
    for name, layer in layers.items():
        assert isinstance(layer, nn.Linear)  # the caller looked
        names = dict(own_names(name, layer))
        calls = [terms_[name] for terms_ in per_term]
        x = torch.cat([_tokens(a) for a, _ in calls[0]], 1)  # [b, T, i]
        d = torch.stack([torch.cat([_tokens(g) for _, g in c], 1) for c in calls], 1)
        outputs, d = _compact(d)  # [b, o'], [b, S, T, o']
        if (full := names.get("bias")) in where:
            entries.append(d.sum(2))
            positions.append(outputs + where[full].start)
        if (full := names.get("weight")) in where:
            inputs, x = _compact(x[:, None])
            block = d.mT @ x  # [b, S, o', i']
            at = where[full].start + outputs[:, :, None] * layer.in_features + inputs[:, None]
            entries.append(block.flatten(2))
            positions.append(at.flatten(1))
    found, at = torch.cat(entries, 2), torch.cat(positions, 1)
    return found, torch.where((found != 0).any(1), at, 0)


def _tokens(x: Tensor) -> Tensor:
    """Inputs of a linear layer as ``[b, T, i]``."""
    return x.reshape(len(x), -1, x.shape[-1])


def _compact(x: Tensor) -> tuple[Tensor, Tensor]:
    """The last axis of ``[b, ..., T, i]`` without what is zero in all rows of an example.

    Returns:
        Indices ``[b, i']`` into the last axis, padded with unused ones, and ``[b, ..., T, i']``.
    """
    used = (x != 0).flatten(1, -2).any(1)
    width = max(1, int(used.sum(1).max()))
    index = used.byte().sort(dim=1, descending=True, stable=True).indices[:, :width]
    shape = [len(x), *[1] * (x.ndim - 2), width]
    return index, x.gather(-1, index.view(shape).expand(*x.shape[:-1], width))


@dataclass(frozen=True)
class _Part:
    """The largest entries of some examples, a tensor each."""

    values: Sequence[Tensor]
    columns: Sequence[Tensor]
    lengths: Sequence[Tensor]  # of an example's rows
    norms: Tensor  # float64 [b]
    logits: Tensor  # [b, C]


def _largest_of(
    kind: str,
    rows: Tensor,
    position: Tensor | None,
    present: Tensor,
    logits: Tensor,
    m: int,
    k: int,
) -> _Part:
    """The k largest entries of each example; writes into `rows`."""
    b, _, n_slots = rows.shape
    if kind == DIAGONAL:
        entries = rows[:, :1].square_()  # in place: the rows are not needed again
        for i in range(1, rows.shape[1]):
            entries[:, 0].addcmul_(rows[:, i], rows[:, i])
        # a few rows at a time stay in a processor's cache: five times as fast
        norms = torch.cat([row.double().norm(dim=2)[:, 0] for row in entries.split(8)])
    else:
        entries = rows
        norms = torch.linalg.matrix_norm((rows @ rows.mT).double())
    flat = entries.flatten(1)
    kept = largest(flat, k)
    counts = [i.numel() for i in kept]
    found = [row.index_select(0, i) for row, i in zip(flat, kept, strict=True)]
    if kind == DIAGONAL and position is None:  # an index is a column, an example a row
        lengths = torch.tensor(counts, device=flat.device).split(1)
        return _Part(found, kept, lengths, norms, logits)
    values, index = torch.cat(found), torch.cat(kept)
    each = torch.tensor(counts, device=flat.device)
    example = torch.arange(b, device=flat.device).repeat_interleave(each)
    term, slot = index.div(n_slots, rounding_mode="floor"), index % n_slots
    columns = slot if position is None else position[example, slot]
    if kind == DIAGONAL:
        present = torch.ones_like(present[:, :1])
    # rows are numbered example by example, over the terms that are present
    number = present.flatten().cumsum(0) - 1
    row = number[example * present.shape[1] + term]
    if position is not None:  # else they ascend already
        order = (row * m + columns).argsort()
        values, columns = values[order], columns[order]
    lengths = torch.bincount(row, minlength=int(present.sum())).split(present.sum(1).tolist())
    return _Part(values.split(counts), columns.split(counts), lengths, norms, logits)


def _joined(
    kind: str, parts: Sequence[_Part], order: Tensor, m: int, shapes: Parameters, k: int
) -> Fishers:
    """All parts' examples, in this order."""
    places = order.tolist()

    def together(lists: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        flat = [x for one in lists for x in one]
        return [flat[i] for i in places]

    lengths = together([part.lengths for part in parts])
    n_rows = torch.tensor([x.numel() for x in lengths], device=order.device)
    return Fishers(
        kind,
        torch.cat(together([part.values for part in parts])),
        torch.cat(together([part.columns for part in parts])),
        offsets_of(torch.cat(lengths)),
        torch.arange(len(order), device=order.device).repeat_interleave(n_rows),
        torch.cat([part.norms for part in parts])[order],
        torch.cat([part.logits for part in parts])[order],
        torch.arange(m, device=order.device),
        shapes,
        k,
    )
