"""Does the model say the same about a picture and its mirror image? Two forward passes, no change to the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from labelloop.core.geometry import iou
from labelloop.core.outlines import bounding_box
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Point, Polygon, Region, Shape, Whole
from labelloop.learning.pool import Floats, score_of

SAME_THING_IOU = 0.1
"""Boxes that overlap less are about two things. Low on purpose: what two boxes share already counts by its IoU, and a
higher bar would make the measure jump when a box moves by a pixel."""


def mirrored_picture(picture: Picture) -> Picture:
    """The picture with left and right exchanged."""
    return Picture(rgb=np.ascontiguousarray(picture.rgb[:, ::-1]), size=picture.size)


def mirrored(regions: Sequence[Region], *, width: int) -> tuple[Region, ...]:
    """Regions of a mirror image mapped back, or there: doing it twice changes nothing. `width` is the upright
    picture's in pixels. Labels stay, so a model that tells left hands from right ones is no case for this, nor is one
    that reads text."""
    return tuple(msgspec.structs.replace(region, shape=_mirror(region.shape, width)) for region in regions)


def inconsistency(first: Sequence[Region], second: Sequence[Region], *, threshold: float) -> float:
    """1 - mean agreement of two looks at one picture, in [0, 1]; symmetric.

    Regions of one class on one picture of the task are paired by falling IoU. A pair agrees by
    IoU * (1 - |p1 - p2|), a region without a partner by 0. After CALD (Yu et al., CVPR Workshops 2022, arXiv
    2103.10374), which adds IoU and the likeness of the class scores of a box in both looks; with one score per box its
    difference stands for theirs, and a product needs no constant to stay in [0, 1].

    Give all regions down to the model's low threshold: what one look drew and the other nearly drew must find each
    other. Only pairs with a score of at least `threshold` on either side count, and single regions above it. Two looks
    that find nothing agree. Points and raw regions have no area and are left out.
    """
    ours, theirs = list(_comparable(first)), list(_comparable(second))
    pairs = list(_pairs(ours, theirs))
    partnered = {i for i, _, _ in pairs}, {j for _, j, _ in pairs}
    agreements = [
        overlap * (1.0 - abs(score_of(ours[i]) - score_of(theirs[j])))
        for i, j, overlap in pairs
        if max(score_of(ours[i]), score_of(theirs[j])) >= threshold
    ]
    single = sum(
        score_of(region) >= threshold
        for regions, taken in zip((ours, theirs), partnered, strict=True)
        for number, region in enumerate(regions)
        if number not in taken
    )
    counted = len(agreements) + single
    return 1.0 - sum(agreements) / counted if counted else 0.0


def _pairs(first: Sequence[Region], second: Sequence[Region]) -> Iterator[tuple[int, int, float]]:
    """Which regions are the same thing, one to one: (row in `first`, row in `second`, IoU), best first."""
    overlap = _overlaps(first, second)
    rows, columns = np.nonzero(overlap >= SAME_THING_IOU)
    # ties go to the likelier scores, so that the two sides can be exchanged
    gap = np.abs(_scores(first)[rows] - _scores(second)[columns])
    taken_rows, taken_columns = set[int](), set[int]()
    for number in np.lexsort((gap, -overlap[rows, columns])):
        row, column = int(rows[number]), int(columns[number])
        if row not in taken_rows and column not in taken_columns:
            taken_rows.add(row)
            taken_columns.add(column)
            yield row, column, float(overlap[row, column])


def _overlaps(first: Sequence[Region], second: Sequence[Region]) -> Floats:
    """IoU [n, m] of the boxes around the regions, 1 for two statements about the whole, 0 between classes and media."""
    names: dict[object, int] = {}
    ours, theirs = (
        np.array([names.setdefault(_name(region), len(names)) for region in side], int) for side in (first, second)
    )
    whole = np.array([isinstance(region.shape, Whole) for region in first], bool)
    overlap = np.where(whole[:, None], 1.0, iou(_boxes(first), _boxes(second)))
    return np.where(ours[:, None] == theirs[None, :], overlap, 0.0)


def _name(region: Region) -> object:
    return region.label, region.media, isinstance(region.shape, Whole)


def _comparable(regions: Sequence[Region]) -> Iterator[Region]:
    return (region for region in regions if isinstance(region.shape, Box | Polygon | Whole))


def _boxes(regions: Sequence[Region]) -> Floats:
    around = [bounding_box(region.shape) for region in regions]
    return np.array([box.xyxy if box else (0, 0, 0, 0) for box in around], np.float64).reshape(-1, 4)


def _scores(regions: Sequence[Region]) -> Floats:
    return np.array([score_of(region) for region in regions], np.float64)


def _mirror(shape: Shape, width: int) -> Shape:
    match shape:
        case Box():
            left, top, right, bottom = shape.xyxy
            return Box((width - right, top, width - left, bottom), -shape.angle_deg if shape.angle_deg else 0.0)
        case Polygon():
            return Polygon(tuple((width - x, y) for x, y in shape.points))
        case Point():
            return Point(width - shape.x, shape.y)
    return shape
