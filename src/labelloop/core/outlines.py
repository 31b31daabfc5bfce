"""Geometry of single shapes, in plain numbers. Arrays of boxes are in `core/geometry`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from labelloop.core.regions import Box, Mask, Point, Polygon, Ring, Shape

Outline = Sequence[tuple[float, float]]


def corners(box: Box) -> tuple[tuple[float, float], ...]:
    """The four corners of a box in drawing order, beginning at what was top-left before it was turned."""
    left, top, right, bottom = box.xyxy
    x, y, half_w, half_h = (left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2
    cos, sin = math.cos(math.radians(box.angle_deg)), math.sin(math.radians(box.angle_deg))
    offsets = ((-half_w, -half_h), (half_w, -half_h), (half_w, half_h), (-half_w, half_h))
    return tuple((x + dx * cos - dy * sin, y + dx * sin + dy * cos) for dx, dy in offsets)


def box_at(corner: tuple[float, float], size_wh: tuple[float, float], *, angle_deg: float) -> Box:
    """The box whose `corners` begin at `corner`: Label Studio turns about that one, a `Box` about its centre."""
    (x, y), (width, height) = corner, size_wh
    cos, sin = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    # the centre lies half a diagonal away from the corner, turned with the box
    cx, cy = x + (width * cos - height * sin) / 2, y + (width * sin + height * cos) / 2
    return Box((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2), angle_deg)


def outline_of(shape: Shape) -> tuple[tuple[float, float], ...]:
    """The points around a shape: four for a box, one for a point, none for what has no place. A mask has several
    outlines (`rings_of`), and none here."""
    match shape:
        case Box():
            return corners(shape)
        case Polygon():
            return shape.points
        case Point():
            return ((shape.x, shape.y),)
    return ()


def rings_of(shape: Shape) -> list[Ring]:
    """All outlines of a shape, those of holes too; an empty list for what has no place. What lies inside an odd number
    of them lies in the shape."""
    if isinstance(shape, Mask):
        return [ring for part in shape.parts for ring in part]
    outline = outline_of(shape)
    return [outline] if outline else []


def mask_of(parts: Sequence[Sequence[Sequence[Sequence[float]]]]) -> Mask | None:
    """The mask of outlines that run through pixels [column, row], each part's holes behind it; None without any."""
    rings = tuple(tuple(tuple((x + 0.5, y + 0.5) for x, y in ring) for ring in part) for part in parts)
    return Mask(rings) if rings else None


def bounding_box(shape: Shape) -> Box | None:
    """The axis-aligned box around a shape, None for what has no place in the picture."""
    points = [point for ring in rings_of(shape) for point in ring]
    if not points:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return Box((min(xs), min(ys), max(xs), max(ys)))


def area_of(shape: Shape) -> float:
    """Area of a shape in squared pixels, without its holes; 0 for what has none."""
    if isinstance(shape, Mask):
        return sum(outline_area(outer) - sum(map(outline_area, holes)) for outer, *holes in shape.parts)
    return outline_area(outline_of(shape))


def contains(shape: Shape, point: tuple[float, float]) -> bool:
    """Whether `point` lies in a shape, and in none of its holes."""
    return sum(outline_contains(ring, point) for ring in rings_of(shape)) % 2 == 1


def outline_area(outline: Outline) -> float:
    """Area inside a simple outline, by the shoelace formula."""
    turns = zip(outline, [*outline[1:], *outline[:1]], strict=True)
    return abs(sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in turns)) / 2


def outline_contains(outline: Outline, point: tuple[float, float]) -> bool:
    """Whether `point` lies inside, by the even-odd rule: a ray from it crosses the outline an odd number of times."""
    x, y = point
    inside = False
    for (x0, y0), (x1, y1) in zip(outline, [*outline[1:], *outline[:1]], strict=True):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            inside = not inside
    return inside
