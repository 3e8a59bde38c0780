"""A program becomes a transformer that computes every variable of it.

The residual stream is the direct sum of a constant, a mark of the first position (BOS), and one
block for each variable: one-hot in its value set, zero for no value. An `Aggregate` is one
attention head; `Map` and `PairMap` are hidden units of one ReLU layer. A variable stands in the
earliest half-layer after its inputs; those of one half-layer stand side by side.

Which rows and columns of which matrix compute a variable is kept (`Compiled.regions`), so that
what is found in the weights has a known place.

Public names: `compile_program`, `Compiled`, `Region`, `one_hot_errors`, `error_bounds`.

Source: specification sections 6.3 and 6.4. The original compiler has numerical variables and
biases of zero besides; both are left out. One departure: its hidden units that are off stand at
exactly 0, where what attention leaks, or the order of a sum, decides whether a gradient passes
(float32 and float64, or two batch sizes, then differ). Here a unit needs `margin` more to be on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, prod

import torch
from torch import Tensor

from lib.npeff.program.expressions import (
    NO_VALUE,
    Aggregate,
    Map,
    Node,
    PairMap,
    Positions,
    Program,
    Tokens,
    value_numbers,
)
from lib.npeff.program.transformer import CompiledTransformer

ONE, BOS = 0, 1  # the first two places of the residual stream
MARGIN = 2.0**-10  # over what attention leaks at cold = 20; exact in binary


@dataclass(frozen=True)
class Region:
    """The part of a weight that computes one variable, or none."""

    layer: int
    matrix: str  # one of `transformer.MATRICES`
    rows: slice  # of the stored weight, [out, in]
    columns: slice
    variable: str | None  # None: padding, no variable uses it

    @property
    def parameter(self) -> str:
        """The weight's name in the network."""
        return f"layers.{self.layer}.{self.matrix}.weight"


@dataclass(frozen=True)
class Compiled:
    """A program, its network, and where each variable is."""

    program: Program
    model: CompiledTransformer
    cold: float  # the score of a key that fits, against one half of it for BOS
    blocks: Mapping[str, slice]  # variable: its place in the residual stream
    layer_of: Mapping[str, int]  # variable: the layer that computes it; -1 for the inputs
    regions: tuple[Region, ...]  # they cover every weight once
    width: int  # of the residual stream, d
    n_layers: int
    n_heads: int  # per layer
    key_size: int
    n_hidden: int  # per layer

    @property
    def n_parameters(self) -> int:
        return sum(weight.numel() for weight in self.model.parameters())


def compile_program(
    program: Program, *, cold: float = 100.0, beta: float = 1.0, margin: float = MARGIN
) -> Compiled:
    """Compile a program, in float32 on the CPU.

    Args:
        cold: how much a fitting key's score exceeds another's; e^(-cold/2) of the attention goes
            elsewhere. 100 makes the network exact; 20 is what the original compiler's 100 comes
            to at its key size of 25, and leaves gradients in the queries and keys.
        beta: the logits are beta times the one-hot output. How the document made probabilities is
            not known; with 3 classes, beta = 1 makes them .576, .212 and .212.
        margin: a hidden unit is ReLU(its inputs - margin) / (1 - margin); 0 is the original's.

    Raises:
        ValueError: `cold` or `beta` is not positive, `cold` is too low for attention to choose, or
            the margin is not in [0, 0.5).
    """
    if not (0 < cold < float("inf") and 0 < beta < float("inf")):
        raise ValueError(f"want positive finite cold and beta, got {cold} and {beta}")
    if not 0 <= margin < 0.5:
        raise ValueError(f"want a margin in [0, 0.5), got {margin}")
    if exp(-cold / 2) * program.length > 0.1:
        raise ValueError(
            f"want a cold at which a query picks one of {program.length} positions, got {cold}; "
            "use 20 or more"
        )
    start, blocks = 2, {}
    for node in program.nodes:
        blocks[node.name] = slice(start, start + len(node.values))
        start += len(node.values)
    halves = half_layers(program)
    n_layers = max(halves.values()) // 2 + 1
    placed: dict[int, list[Node]] = {half: [] for half in range(2 * n_layers)}
    for node in program.nodes:
        if halves[node.name] >= 0:
            placed[halves[node.name]].append(node)
    heads = [node for node in program.nodes if isinstance(node, Aggregate)]
    key_size = max([1, *(_key_size(node) for node in heads)])
    n_heads = max([1, *(len(placed[half]) for half in range(0, 2 * n_layers, 2))])
    units = [sum(map(n_units, placed[half])) for half in range(1, 2 * n_layers, 2)]
    n_hidden = max([1, *units])
    model = CompiledTransformer(
        *_ends(program, blocks, start),
        n_layers=n_layers,
        n_heads=n_heads,
        key_size=key_size,
        n_hidden=n_hidden,
        beta=beta,
    )
    regions: list[Region] = []
    for layer in range(n_layers):
        at = 0
        for node in placed[2 * layer]:
            assert isinstance(node, Aggregate)
            _fill_head(model, layer, slice(at, at + key_size), node, blocks, cold)
            regions += _head_regions(layer, slice(at, at + key_size), start, node.name)
            at += key_size
        if at < n_heads * key_size:
            regions += _head_regions(layer, slice(at, n_heads * key_size), start, None)
        at = 0
        for node in placed[2 * layer + 1]:
            _fill_units(model, layer, at, node, blocks, margin)
            end = at + n_units(node)
            regions += _unit_regions(layer, slice(at, end), start, node.name)
            at = end
        if at < n_hidden:
            regions += _unit_regions(layer, slice(at, n_hidden), start, None)
    return Compiled(
        program=program,
        model=model.eval(),
        cold=cold,
        blocks=blocks,
        layer_of={name: half // 2 for name, half in halves.items()},
        regions=tuple(regions),
        width=start,
        n_layers=n_layers,
        n_heads=n_heads,
        key_size=key_size,
        n_hidden=n_hidden,
    )


def half_layers(program: Program) -> dict[str, int]:
    """Variable -> half-layer: attention even, ReLU odd, the inputs at -1."""
    halves: dict[str, int] = {}
    for node in program.in_order:
        if isinstance(node, (Tokens, Positions)):
            halves[node.name] = -1
            continue
        half = 1 + max(halves[part.name] for part in node.inputs)
        fits = (half % 2 == 0) == isinstance(node, Aggregate)
        halves[node.name] = half if fits else half + 1
    return halves


def n_units(node: Node) -> int:
    """Hidden units of a `Map` (one a value) or a `PairMap` (one a pair of values)."""
    return len(node.values) if isinstance(node, Map) else prod(len(x.values) for x in node.inputs)


def _key_size(node: Aggregate) -> int:
    return max(len(node.queries.values) + 2, len(node.keys.values) + 1, len(node.values))


def _ends(
    program: Program, blocks: Mapping[str, slice], width: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fixed embeddings of words, positions and BOS, and the read-out."""
    words = torch.zeros(len(program.vocabulary), width)
    positions = torch.zeros(program.length, width)
    bos = torch.zeros(width)
    readout = torch.zeros(width, len(program.classes))
    for node in program.nodes:
        if isinstance(node, Tokens):
            words[:, blocks[node.name]].fill_diagonal_(1)
        elif isinstance(node, Positions):
            positions[:, blocks[node.name]].fill_diagonal_(1)
    words[:, ONE] = 1
    bos[[ONE, BOS]] = 1
    readout[blocks[program.output]].fill_diagonal_(1)
    return words, positions, bos, readout


@torch.no_grad()
def _fill_head(
    model: CompiledTransformer,
    layer: int,
    at: slice,
    node: Aggregate,
    blocks: Mapping[str, slice],
    cold: float,
) -> None:
    """One head: score cold for a key that fits, cold / 2 for BOS, 0 otherwise."""
    part = model.layer(layer)
    key, query, value = (blocks[x.name] for x in node.inputs)
    n_keys, n_values, key_size = len(node.keys.values), len(node.values), at.stop - at.start
    fits = torch.tensor(
        [[bool(node.predicate(k, q)) for q in node.queries.values] for k in node.keys.values]
    )
    sharp = cold * key_size**0.5  # the network divides scores by the root of the key size
    part.w_q.weight[at][:n_keys, query] = fits * sharp
    part.w_q.weight[at][n_keys, ONE] = sharp / 2
    part.w_k.weight[at][:n_keys, key].fill_diagonal_(1)
    part.w_k.weight[at][n_keys, BOS] = 1
    part.w_v.weight[at][:n_values, value].fill_diagonal_(1)
    part.w_o.weight[blocks[node.name], at][:, :n_values].fill_diagonal_(1)


@torch.no_grad()
def _fill_units(
    model: CompiledTransformer,
    layer: int,
    at: int,
    node: Node,
    blocks: Mapping[str, slice],
    margin: float,
) -> None:
    """Hidden units of a map: one a value; of a pair map: ReLU(x_u + y_v - 1), one a pair.

    Both less the margin, and scaled so that a unit that is on writes 1.
    """
    up, down = model.layer(layer).w_1.weight, model.layer(layer).w_2.weight
    number = {value: i for i, value in enumerate(node.values)}
    out = blocks[node.name].start
    up[at : at + n_units(node), ONE] = -margin
    scale = 1 / (1 - margin)
    if isinstance(node, Map):
        first = blocks[node.source.name].start
        for i, u in enumerate(node.source.values):
            up[at + number[node.function(u)], first + i] = 1
        for unit in range(len(node.values)):
            down[out + unit, at + unit] = scale
        return
    assert isinstance(node, PairMap)
    first, second = blocks[node.first.name].start, blocks[node.second.name].start
    for i, u in enumerate(node.first.values):
        for j, v in enumerate(node.second.values):
            unit = at + i * len(node.second.values) + j
            up[unit, first + i] += 1  # added: both inputs may be one variable
            up[unit, second + j] += 1
            up[unit, ONE] -= 1
            down[out + number[node.function(u, v)], unit] = scale


def _head_regions(layer: int, at: slice, width: int, variable: str | None) -> list[Region]:
    whole = slice(0, width)
    inward = [Region(layer, name, at, whole, variable) for name in ("w_q", "w_k", "w_v")]
    return [*inward, Region(layer, "w_o", whole, at, variable)]


def _unit_regions(layer: int, at: slice, width: int, variable: str | None) -> list[Region]:
    whole = slice(0, width)
    return [
        Region(layer, "w_1", at, whole, variable),
        Region(layer, "w_2", whole, at, variable),
    ]


@torch.no_grad()
def one_hot_errors(compiled: Compiled, ids: Tensor, *, chunk: int = 256) -> dict[str, float]:
    """How far each variable's block is from what the interpreter says.

    Args:
        ids: word numbers int64 `[n, t]`, well-formed or not.
        chunk: sequences at a time; it changes nothing but memory.

    Returns:
        Variable -> the largest difference over sequences, positions (BOS too, where no variable
        has a value) and values.

    Raises:
        ValueError: as `interpret`.
    """
    truth = value_numbers(compiled.program, ids)
    worst = dict.fromkeys(truth, 0.0)
    for first in range(0, len(ids), chunk):
        rows = slice(first, first + chunk)
        stream = compiled.model.residual(ids[rows]).cpu()
        for node in compiled.program.nodes:
            number = truth[node.name][rows]
            number = torch.cat([torch.full_like(number[:, :1], NO_VALUE), number], 1)
            want = (number[..., None] == torch.arange(len(node.values))).to(stream.dtype)
            gap = (stream[..., compiled.blocks[node.name]] - want).abs().max().item()
            worst[node.name] = max(worst[node.name], gap)
    return worst


def error_bounds(program: Program, cold: float, margin: float = MARGIN) -> dict[str, float]:
    """A bound of `one_hot_errors` in exact arithmetic, from what attention leaks.

    Let e be 1 minus the entry of the true value, or the sum of the block where there is no value.
    Entries are never negative and sum to at most 1, so e bounds every entry's error. A map keeps
    e; a pair map adds those of its inputs (as the probability that one of two events fails), both
    over 1 - margin; a head leaves at most T exp(-cold/2) to the wrong positions, more if its keys
    and queries are not exact themselves. A bound above 1 says nothing and is given as 1.

    Returns:
        Variable -> bound.

    Source: ours; the specification gives exp(-cold/2), the leak of one head to one position.
    """
    bounds: dict[str, float] = {}
    for node in program.in_order:
        if isinstance(node, Aggregate):
            key, query, value = (bounds[part.name] for part in node.inputs)
            # a score is off by cold (key + query) at most, whether the key fits or not
            lead = cold * (0.5 - 2 * (key + query))
            bound = program.length * exp(-lead) + value
        elif isinstance(node, PairMap):
            bound = (bounds[node.first.name] + bounds[node.second.name]) / (1 - margin)
        elif isinstance(node, Map):
            bound = bounds[node.source.name] / (1 - margin)
        else:
            bound = 0.0
        bounds[node.name] = min(bound, 1.0)
    return bounds
