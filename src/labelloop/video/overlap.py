"""Intersection over union of boxes that may be turned: arrays in, arrays out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CLOSE = 1e-9
"""What counts as on the border, as a share of the box's side: twice the same box must overlap wholly."""


def iou_upright(first_xyxy: Floats, second_xyxy: Floats) -> Floats:
    """IoU [n] of the rows of two arrays [n, 4] (left, top, right, bottom), each with its neighbour; 0 where both are
    empty."""
    sides = np.minimum(first_xyxy[:, 2:], second_xyxy[:, 2:]) - np.maximum(first_xyxy[:, :2], second_xyxy[:, :2])
    return _over_union(_area(sides), *(_area(xyxy[:, 2:] - xyxy[:, :2]) for xyxy in (first_xyxy, second_xyxy)))


def _area(sides: Floats) -> Floats:
    """Areas [n] from widths and heights [n, 2]; negative ones count as none."""
    inside = np.maximum(sides, 0)
    return np.asarray(inside[:, 0] * inside[:, 1])


def iou_turned(first: Floats, second: Floats) -> Floats:
    """IoU [n] of rows of boxes [n, 5] (x and y of the corner they are turned about, width, height, degrees clockwise),
    each with its neighbour.

    The overlap of two convex outlines is the convex outline around their corners inside each other and the crossings of
    their sides: at most 24 points, of which those that do not count are moved onto one that does.
    """
    if not len(first):
        return np.zeros(0)
    a, b = _corners(first), _corners(second)
    crossings, crossed = _crossings(a, b)
    points = np.concatenate([a, b, crossings], axis=1)
    counts = np.concatenate([_inside(a, second), _inside(b, first), crossed], axis=1)
    return _over_union(_hull_area(points, counts), first[:, 2] * first[:, 3], second[:, 2] * second[:, 3])


def _over_union(shared: Floats, first_area: Floats, second_area: Floats) -> Floats:
    union = first_area + second_area - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _axes(boxes: Floats) -> tuple[Floats, Floats]:
    """Unit vectors [n, 2] along the width and the height."""
    angle = np.radians(boxes[:, 4])
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([cos, sin], axis=1), np.stack([-sin, cos], axis=1)


def _corners(boxes: Floats) -> Floats:
    """[n, 4, 2], in drawing order."""
    along, across = _axes(boxes)
    right, down = along * boxes[:, 2:3], across * boxes[:, 3:4]
    corner = boxes[:, :2]
    return np.stack([corner, corner + right, corner + right + down, corner + down], axis=1)


def _inside(points: Floats, boxes: Floats) -> NDArray[np.bool_]:
    """Which of the points [n, m, 2] lie in the box of their row."""
    offsets = points - boxes[:, None, :2]
    inside = np.ones(points.shape[:2], bool)
    for axis, side in zip(_axes(boxes), (boxes[:, 2:3], boxes[:, 3:4]), strict=True):
        reach = (offsets * axis[:, None]).sum(axis=2)
        inside &= (reach >= -_CLOSE * side) & (reach <= side * (1 + _CLOSE))
    return inside


def _crossings(a: Floats, b: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Where the sides of two outlines [n, 4, 2] cross: points [n, 16, 2], and which of them exist."""
    start, other = a[:, :, None], b[:, None]
    step, other_step = np.roll(a, -1, 1)[:, :, None] - start, np.roll(b, -1, 1)[:, None] - other
    across = _cross(step, other_step)
    with np.errstate(divide="ignore", invalid="ignore"):  # parallel sides do not cross; their corners are inside
        here = _cross(other - start, other_step) / across
        there = _cross(other - start, step) / across
        exists = (here >= 0) & (here <= 1) & (there >= 0) & (there <= 1)
    points = start + np.where(exists, here, 0)[..., None] * step
    return points.reshape(len(a), -1, 2), exists.reshape(len(a), -1)


def _hull_area(points: Floats, counts: NDArray[np.bool_]) -> Floats:
    """Area [n] of the convex outline on which all of the points [n, m, 2] that count lie."""
    rows = np.arange(len(points))
    stand_in = points[rows, counts.argmax(axis=1)]
    points = np.where(counts[..., None], points, stand_in[:, None])
    points = points - (points * counts[..., None]).sum(1, keepdims=True) / np.maximum(counts.sum(1), 1)[:, None, None]
    order = np.argsort(np.arctan2(points[..., 1], points[..., 0]), axis=1)
    ring = points[rows[:, None], order]
    area = np.abs(_cross(ring, np.roll(ring, -1, 1)).sum(axis=1)) / 2
    return np.where(counts.any(axis=1), area, 0.0)


def _cross(u: Floats, v: Floats) -> Floats:
    return np.asarray(u[..., 0] * v[..., 1] - u[..., 1] * v[..., 0])
