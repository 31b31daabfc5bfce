"""Which regions of two lists mean the same thing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from labelloop.core.geometry import iou
from labelloop.core.outlines import bounding_box
from labelloop.core.regions import Box, Mask, Polygon, Region, Whole
from labelloop.learning.pool import Floats, score_of

SAME_THING_IOU = 0.1
"""Boxes that overlap less are about two things. Low on purpose: what two boxes share already counts by its IoU, and a
higher bar would make a measure jump when a box moves by a pixel."""


def comparable(regions: Sequence[Region]) -> list[Region]:
    """Regions that overlap can be reckoned for: points and raw regions have no area."""
    return [region for region in regions if isinstance(region.shape, Box | Polygon | Mask | Whole)]


def pairs(first: Sequence[Region], second: Sequence[Region]) -> Iterator[tuple[int, int, float]]:
    """Regions of one class that are the same thing, one to one: (row in `first`, row in `second`, IoU), best first.

    Both are lists from `comparable`. Ties go to the likelier scores, so that the two sides can be exchanged.
    """
    overlap = np.where(same_label(first, second), overlaps(first, second), 0.0)
    rows, columns = np.nonzero(overlap >= SAME_THING_IOU)
    gap = np.abs(_scores(first)[rows] - _scores(second)[columns])
    taken_rows, taken_columns = set[int](), set[int]()
    for number in np.lexsort((gap, -overlap[rows, columns])):
        row, column = int(rows[number]), int(columns[number])
        if row not in taken_rows and column not in taken_columns:
            taken_rows.add(row)
            taken_columns.add(column)
            yield row, column, float(overlap[row, column])


def overlaps(first: Sequence[Region], second: Sequence[Region]) -> Floats:
    """IoU [n, m] of the axis-aligned boxes around the regions, 1 for two statements about the whole item, 0 for regions
    of different pictures of a task."""
    whole = np.array([isinstance(region.shape, Whole) for region in first], bool)
    overlap = np.where(whole[:, None], 1.0, iou(_boxes(first), _boxes(second)))
    places = [[(region.media, isinstance(region.shape, Whole)) for region in side] for side in (first, second)]
    return np.where(_equal(*places), overlap, 0.0)


def same_label(first: Sequence[Region], second: Sequence[Region]) -> NDArray[np.bool_]:
    """Which regions have the same label [n, m]."""
    return _equal([region.label for region in first], [region.label for region in second])


def _equal(first: Sequence[object], second: Sequence[object]) -> NDArray[np.bool_]:
    numbers: dict[object, int] = {}
    ours = np.array([numbers.setdefault(name, len(numbers)) for name in first], int)
    theirs = np.array([numbers.setdefault(name, len(numbers)) for name in second], int)
    return np.asarray(ours[:, None] == theirs[None, :])


def _boxes(regions: Sequence[Region]) -> Floats:
    around = [bounding_box(region.shape) for region in regions]
    return np.array([box.xyxy if box else (0, 0, 0, 0) for box in around], np.float64).reshape(-1, 4)


def _scores(regions: Sequence[Region]) -> Floats:
    return np.array([score_of(region) for region in regions], np.float64)
