"""In the weights of which variables does a direction in parameter space lie?

A compiled program's every weight belongs to one layer and one matrix; it computes one variable (or
none, where it pads), and it reads or writes the block of one variable. The share of a direction's
squared length in each says where a component lives.

Public names: `Owners`, `owners`, `Mass`, `mass`.

Source: ours; the specification (section 6.3) says where the compiler puts what.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib.npeff.program.compiler import Compiled
from lib.npeff.program.transformer import MATRICES


@dataclass(frozen=True)
class Owners:
    """For every parameter, in the order of the network's `named_parameters`, flattened: int16 [m].

    -1 in `computes`: padding; -1 in `touches`: the constant or the mark of BOS.
    """

    layer: Tensor
    matrix: Tensor  # number in `transformer.MATRICES`
    computes: Tensor  # number in `variables` of what the head or hidden unit computes
    touches: Tensor  # of whose block is read (w_q, w_k, w_v, w_1) or written (w_o, w_2)
    variables: tuple[str, ...]
    n_layers: int


def owners(compiled: Compiled) -> Owners:
    """Look up every parameter of a compiled program."""
    variables = tuple(node.name for node in compiled.program.nodes)
    number = {name: i for i, name in enumerate(variables)}
    along = torch.full((compiled.width,), -1, dtype=torch.int16)
    for name, block in compiled.blocks.items():
        along[block] = number[name]
    of: dict[str, list[Tensor]] = {"layer": [], "matrix": [], "computes": [], "touches": []}
    for name, weight in compiled.model.named_parameters():
        _, layer, matrix, _ = name.split(".")
        computes = torch.full(weight.shape, -1, dtype=torch.int16)
        for region in compiled.regions:
            if region.parameter == name and region.variable is not None:
                computes[region.rows, region.columns] = number[region.variable]
        writes = matrix in ("w_o", "w_2")
        touches = (along[:, None] if writes else along[None]).expand(weight.shape)
        of["computes"].append(computes.flatten())
        of["touches"].append(touches.flatten())
        of["layer"].append(torch.full_like(of["computes"][-1], int(layer)))
        of["matrix"].append(torch.full_like(of["computes"][-1], MATRICES.index(matrix)))
    flat = {key: torch.cat(parts) for key, parts in of.items()}
    return Owners(**flat, variables=variables, n_layers=compiled.n_layers)


@dataclass(frozen=True)
class Mass:
    """Shares of each component's squared length; every row of each of these sums to 1."""

    layer: Tensor  # [r, L]
    matrix: Tensor  # [r, 6]
    computes: Tensor  # [r, v + 1], the last is padding
    touches: Tensor  # [r, v + 1], the last is the constant and BOS
    variables: tuple[str, ...]


def mass(of: Owners, kept: Tensor, components: Tensor) -> Mass:
    """Where components lie.

    Args:
        of: of the network whose parameters the components are about.
        kept: parameter positions int64 `[m']`, distinct.
        components: `[r, m']`, of a low-rank decomposition; of a diagonal one pass the roots of its
            pseudo-Fishers, whose squares are what is shared out.

    Raises:
        ValueError: shapes disagree, a position is no parameter or doubled, or a component is not
            finite or zero.
    """
    m = len(of.layer)
    if components.ndim != 2 or kept.shape != components.shape[1:]:
        raise ValueError(
            f"want kept [m'] and components [r, m'], got {tuple(kept.shape)} and "
            f"{tuple(components.shape)}"
        )
    kept = kept.cpu()
    if len(kept) and not 0 <= int(kept.min()) <= int(kept.max()) < m:
        raise ValueError(f"want positions of the network's {m} parameters, got {kept.aminmax()}")
    if len(kept.unique()) < len(kept):
        raise ValueError("want distinct positions; some stand twice in kept")
    square = components.detach().cpu().double().square()
    total = square.sum(1, keepdim=True)
    if not (torch.isfinite(total) & (total > 0)).all():
        bad = (~(torch.isfinite(total) & (total > 0))).flatten().nonzero().flatten().tolist()
        raise ValueError(f"components {bad} are zero, infinite or NaN; leave them out")
    square = square / total

    def shares(owner: Tensor, n: int) -> Tensor:
        at = owner[kept].long()
        at = torch.where(at < 0, n - 1, at)  # padding last
        return square.new_zeros(len(square), n).index_add_(1, at, square)

    n_variables = len(of.variables) + 1
    return Mass(
        layer=shares(of.layer, of.n_layers),
        matrix=shares(of.matrix, len(MATRICES)),
        computes=shares(of.computes, n_variables),
        touches=shares(of.touches, n_variables),
        variables=of.variables,
    )
