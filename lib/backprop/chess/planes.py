"""Boards as the planes that networks read, and back.

`mover_planes` is the project's own encoding: twelve planes, the mover's pieces first, the mover's
pawns going up from row 0. `published_planes` and `maia_planes` turn them into what the authors'
6x6 network and Maia read; both are differentiable, so that one gradient with respect to the
mover's planes serves every network.

Public names: `mover_planes`, `from_planes`, `published_planes`, `published_pieces`,
`maia_planes`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lib.backprop.chess.boards import Boards, bits

N_PUBLISHED, N_MAIA = 19, 112


def mover_planes(boards: Boards) -> Tensor:
    """Pieces of the mover (P N B R Q K), then of the other side, float32 `[n, 12, side, side]`.

    Row 0 is the mover's first rank, column 0 the a-file.

    Source: specification of document 5, section 5.4: "mine" depends on no plane.
    """
    pieces = bits(np.concatenate([boards.own, boards.other], 1))
    whole = pieces.reshape(len(boards), 12, 8, 8)
    return torch.from_numpy(whole[..., : boards.side, : boards.side].astype(np.float32))


def from_planes(planes: Tensor, white: Tensor) -> Boards:
    """The boards whose `mover_planes` these are.

    Args:
        planes: `[n, 12, side, side]` of 0 and 1.
        white: `[n]` bool, whether the mover is White.

    Raises:
        ValueError: another shape, or values other than 0 and 1.
    """
    n, side = len(planes), planes.shape[-1]
    if planes.shape != (n, 12, side, side) or white.shape != (n,):
        raise ValueError(
            f"want planes [n, 12, side, side] and white [n], got {tuple(planes.shape)} and "
            f"{tuple(white.shape)}"
        )
    if not ((planes == 0) | (planes == 1)).all():
        raise ValueError("planes hold values other than 0 and 1; round them first")
    whole = np.zeros((n, 12, 8, 8), np.uint8)
    whole[..., :side, :side] = planes.detach().cpu().numpy()
    packed = np.packbits(whole.reshape(n, 12, 64), axis=-1, bitorder="little")
    numbers = packed.view(np.uint64)[..., 0]
    turn = white.cpu().numpy().astype(bool)
    return Boards(numbers[:, :6].copy(), numbers[:, 6:].copy(), turn, side)


def published_pieces(planes: Tensor, white: Tensor) -> Tensor:
    """The twelve piece planes of the authors' network and legality checker, `[n, 12, 6, 6]`.

    Black's pieces first, whoever moves; row 0 is the last rank for the mover; with Black to move
    the board is turned by 180 degrees, files included.

    Source: the authors' environment by way of specification 5.1.
    """
    turn = white[:, None, None, None]
    up = planes.flip(2)
    own, other = up[:, :6], up[:, 6:]
    return torch.where(turn, torch.cat([other, own], 1), torch.cat([own, other], 1).flip(3))


def published_planes(planes: Tensor, white: Tensor) -> Tensor:
    """All planes of the authors' network, `[n, 19, 6, 6]`: pieces, 6 that are zero here, the mover.

    Castling, en passant and the count of plies without progress are zero: positions stand alone.
    """
    zeros = planes.new_zeros(len(planes), 6, *planes.shape[2:])
    mover = white.to(planes)[:, None, None, None].expand(-1, 1, *planes.shape[2:])
    return torch.cat([published_pieces(planes, white), zeros, mover], 1)


def maia_planes(
    planes: Tensor, white: Tensor, castling: Tensor | None = None, *, repeat: bool = True
) -> Tensor:
    """All planes of Maia, `[n, 112, 8, 8]`.

    Args:
        castling: `[n, 4]` of 0 and 1: the mover's queen's side, king's side, the other side's
            queen's side, king's side; none by default.
        repeat: the position stands in all eight places of the history, as for a position without
            known past; False leaves seven of them empty, which Maia takes for the first move.
    """
    n = len(planes)
    full = planes.new_zeros(n, 1, 8, 8)
    step = torch.cat([planes, full], 1)  # the 13th: no repetition
    rights = planes.new_zeros(n, 4) if castling is None else castling.to(planes)
    flags = torch.cat([rights, 1 - white.to(planes)[:, None], planes.new_zeros(n, 2)], 1)
    last = torch.cat([flags, planes.new_ones(n, 1)], 1)[..., None, None].expand(-1, -1, 8, 8)
    return torch.cat([step, *[step if repeat else 0 * step] * 7, last], 1)
