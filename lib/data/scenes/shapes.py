"""Shapes in object coordinates as boolean masks, for many images at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Mask = NDArray[np.bool_]

Shape = tuple[str, float, float, float, float] | tuple[object, ...]


def covered(shapes: tuple[Shape, ...], u: Array, v: Array, turn: Array) -> Mask:
    """Pixels inside any of the shapes.

    Args:
        shapes: as `lib.data.scenes.vocabulary` names them.
        u: to the right, `[m, 1, w]`, v: down, `[m, h, 1]`; a shape lies between -1 and 1.
        turn: radians, `[m, 1, 1]`, for the shapes that turn.

    Returns:
        bool `[m, h, w]`.
    """
    inside = [SHAPES[str(name)](u, v, turn, *map(float, sizes)) for name, *sizes in shapes]  # type: ignore[arg-type]
    found = inside[0]
    for other in inside[1:]:
        found = found | other
    return np.broadcast_to(found, (len(u), v.shape[1], u.shape[2]))


def box(
    u: Array, v: Array, turn: Array, left: float, top: float, right: float, below: float
) -> Mask:
    return ((u >= left) & (u <= right)) & ((v >= top) & (v <= below))


def oval(u: Array, v: Array, turn: Array, x: float, y: float, rx: float, ry: float) -> Mask:
    return ((u - x) / rx) ** 2 + ((v - y) / ry) ** 2 <= 1.0


def dome(u: Array, v: Array, turn: Array, x: float, y: float, rx: float, ry: float) -> Mask:
    return oval(u, v, turn, x, y, rx, ry) & (v <= y)


def trapezoid(
    u: Array, v: Array, turn: Array, t: float, b: float, x: float, above: float, below: float
) -> Mask:
    half = above + (below - above) * (v - t) / (b - t)
    return (np.abs(u - x) <= half) & ((v >= t) & (v <= b))


def triangle(
    u: Array,
    v: Array,
    turn: Array,
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    x3: float,
    y3: float,
) -> Mask:
    corners = ((x1, y1), (x2, y2), (x3, y3))
    side = (x2 - x1) * (y3 - y1) - (x3 - x1) * (y2 - y1)  # which way round the corners go
    sign = 1.0 if side >= 0 else -1.0
    found = None
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        right = sign * ((bx - ax) * (v - ay)) >= sign * ((by - ay) * (u - ax))
        found = right if found is None else found & right
    assert found is not None
    return found


def blades(u: Array, v: Array, turn: Array, x: float, y: float, length: float, half: float) -> Mask:
    """Two crossed bars."""
    c, s = np.cos(turn), np.sin(turn)
    a = np.abs(c * (u - x) + s * (v - y))
    b = np.abs(c * (v - y) - s * (u - x))
    return (np.minimum(a, b) <= half) & (np.maximum(a, b) <= length)


def rose(u: Array, v: Array, turn: Array, x: float, y: float, radius: float) -> Mask:
    """Five petals."""
    a, b = u - x, v - y
    angle = np.arctan2(np.broadcast_to(b, np.broadcast_shapes(a.shape, b.shape)), a)
    return np.hypot(a, b) <= radius * (0.66 + 0.34 * np.cos(5 * angle + turn))


SHAPES = {f.__name__: f for f in (box, oval, dome, trapezoid, triangle, blades, rose)}
