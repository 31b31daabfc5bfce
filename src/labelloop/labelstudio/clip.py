"""The part of an outline that lies in the picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from labelloop.core.regions import Size

Dot = tuple[float, float]


def clip(points: Sequence[Dot], size: Size) -> tuple[Dot, ...]:
    """The outline `points` (pixels, finite) cut off at the four borders, one after the other, after Sutherland and
    Hodgman (Reentrant polygon clipping, 1974). Moving each point to the border instead would bend the edges.

    Empty where nothing lies in the picture. Parts of a concave outline that the border separates stay joined along it.
    """
    width, height = size
    if not points:
        return ()
    xs, ys = zip(*points, strict=True)
    if min(xs) >= 0 and min(ys) >= 0 and max(xs) <= width and max(ys) <= height:
        return tuple(points)
    for axis, border, sign in ((0, 0.0, 1), (0, float(width), -1), (1, 0.0, 1), (1, float(height), -1)):
        points = list(_cut(points, axis, border, sign))
    return tuple(points)


def _cut(points: Sequence[Dot], axis: int, border: float, sign: int) -> Iterator[Dot]:
    """What lies on the side of the border to which `sign` points along the axis (0 is x, 1 is y)."""
    for before, point in zip([*points[-1:], *points[:-1]], points, strict=True):
        inside, was_inside = (point[axis] - border) * sign >= 0, (before[axis] - border) * sign >= 0
        if inside != was_inside:
            yield _crossing(before, point, axis, border)
        if inside:
            yield point


def _crossing(a: Dot, b: Dot, axis: int, border: float) -> Dot:
    other = 1 - axis
    place = a[other] + (b[other] - a[other]) * (border - a[axis]) / (b[axis] - a[axis])
    return (border, place) if axis == 0 else (place, border)
