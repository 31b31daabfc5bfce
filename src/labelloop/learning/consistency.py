"""Does the model say the same about a picture and its mirror image? Two forward passes, no change to the model."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Mask, Point, Polygon, Region, Ring, Shape
from labelloop.learning.matching import comparable, pairs
from labelloop.learning.pool import score_of


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
    ours, theirs = comparable(first), comparable(second)
    same = list(pairs(ours, theirs))
    partnered = {i for i, _, _ in same}, {j for _, j, _ in same}
    agreements = [
        overlap * (1.0 - abs(score_of(ours[i]) - score_of(theirs[j])))
        for i, j, overlap in same
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


def _mirror(shape: Shape, width: int) -> Shape:
    match shape:
        case Box():
            left, top, right, bottom = shape.xyxy
            return Box((width - right, top, width - left, bottom), -shape.angle_deg if shape.angle_deg else 0.0)
        case Polygon():
            return Polygon(_mirror_ring(shape.points, width))
        case Mask():
            return Mask(tuple(tuple(_mirror_ring(ring, width) for ring in part) for part in shape.parts))
        case Point():
            return Point(width - shape.x, shape.y)
    return shape


def _mirror_ring(points: Ring, width: int) -> Ring:
    return tuple((width - x, y) for x, y in points)
