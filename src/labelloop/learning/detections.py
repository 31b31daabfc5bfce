"""Boxes of many pictures as arrays: what people drew, what a model found, and which of it matches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from labelloop.formats import coco

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]
Flags = NDArray[np.bool_]

MOST_PER_PICTURE = 100
"""Detections of one class on one picture that count, best first: COCO's `maxDets`."""


class Truth(NamedTuple):
    """What people drew: for each of `n` boxes the number of its picture and class, left, top, width and height in
    pixels [n, 4], and whether it stands for a whole group."""

    pictures: int
    labels: tuple[str, ...]
    picture: Indices
    label: Indices
    xywh: Floats
    crowd: Flags

    @property
    def boxes(self) -> int:
        """How many single things there are to find."""
        return int((~self.crowd).sum())


class Found(NamedTuple):
    """What a model found, whatever its score; `drawn` where the score passes the threshold of its label, so that people
    would see it."""

    picture: Indices
    label: Indices
    score: Floats
    xywh: Floats
    drawn: Flags


class Matches(NamedTuple):
    """One class, best score first. `right` and `ignored` [thresholds, n] say at each IoU threshold whether a detection
    found a thing that nobody better had found, or lies on a group and does not count. `positives` [pictures] are the
    things to find."""

    picture: Indices
    score: Floats
    drawn: Flags
    right: Flags
    ignored: Flags
    positives: Indices


def truth_of(dataset: coco.Dataset) -> Truth:
    """The boxes of a COCO file; pictures and classes are numbered in its order."""
    pictures = {image.id: number for number, image in enumerate(dataset.images)}
    labels = {category.id: number for number, category in enumerate(dataset.categories)}
    rows = dataset.annotations
    return Truth(
        pictures=len(pictures),
        labels=tuple(category.name for category in dataset.categories),
        picture=np.array([pictures[row.image_id] for row in rows], np.intp),
        label=np.array([labels[row.category_id] for row in rows], np.intp),
        xywh=np.array([row.bbox for row in rows], np.float64).reshape(-1, 4),
        crowd=np.array([bool(row.iscrowd) for row in rows], bool),
    )


def match(truth: Truth, found: Found, *, iou_thresholds: Sequence[float]) -> list[Matches]:
    """Matches of each class: COCO's rule (Lin et al., Microsoft COCO, 2014; `evaluateImg` of its code) for all areas.

    Picture by picture the best detection takes the free thing that it overlaps most, if by the threshold at least;
    a thing is found once. So a picture's matches do not depend on the other pictures, and a sample of the pictures
    needs no new matching.
    """
    thresholds = np.minimum(np.asarray(iou_thresholds, np.float64), 1 - 1e-10)
    return [_match_class(truth, found, label, thresholds) for label in range(len(truth.labels))]


def _match_class(truth: Truth, found: Found, label: int, thresholds: Floats) -> Matches:
    things = np.flatnonzero(truth.label == label)
    # by picture, best first, and only so many; then over all pictures, where ties keep the order of the pictures
    rows = np.flatnonzero(found.label == label)
    rows = rows[np.lexsort((-found.score[rows], found.picture[rows]))]
    starts = np.searchsorted(found.picture[rows], found.picture[rows])
    rows = rows[np.arange(len(rows)) - starts < MOST_PER_PICTURE]
    right, ignored = (np.zeros((len(thresholds), len(rows)), bool) for _ in range(2))
    for ours, theirs in _by_picture(found.picture[rows], truth.picture[things]):
        here = things[theirs]
        right[:, ours], ignored[:, ours] = _match_picture(
            found.xywh[rows[ours]], truth.xywh[here], truth.crowd[here], thresholds
        )
    order = np.argsort(-found.score[rows], kind="stable")
    single = things[~truth.crowd[things]]
    return Matches(
        picture=found.picture[rows][order],
        score=found.score[rows][order],
        drawn=found.drawn[rows][order],
        right=right[:, order],
        ignored=ignored[:, order],
        positives=np.bincount(truth.picture[single], minlength=truth.pictures),
    )


def _by_picture(ours: Indices, theirs: Indices) -> Iterator[tuple[slice, Indices]]:
    """For each picture that has both, where it is in `ours`, which is sorted, and which of `theirs` are on it."""
    order = np.argsort(theirs, kind="stable")
    for picture in np.intersect1d(ours, theirs):
        start, end = np.searchsorted(ours, (picture, picture + 1))
        first, last = np.searchsorted(theirs[order], (picture, picture + 1))
        yield slice(int(start), int(end)), order[first:last]


def _match_picture(found: Floats, things: Floats, crowd: Flags, thresholds: Floats) -> tuple[Flags, Flags]:
    """`right` and `ignored` [thresholds, n] of one picture's detections, best first."""
    overlap = _overlaps(found, things, crowd)
    single, groups = overlap[:, ~crowd], overlap[:, crowd].max(1, initial=-1.0)
    right = np.zeros((len(thresholds), len(found)), bool)
    free = np.ones((len(thresholds), single.shape[1]), bool)
    for row in np.flatnonzero(single.max(1, initial=-1.0) >= thresholds[0]):
        fits = free & (single[row] >= thresholds[:, None])
        # of equals the last one, as in COCO's loop
        best = single.shape[1] - 1 - np.argmax(np.where(fits, single[row], -1.0)[:, ::-1], axis=1)
        hit = np.flatnonzero(fits.any(1))
        right[hit, row] = True
        free[hit, best[hit]] = False
    return right, ~right & (groups >= thresholds[:, None])


def _overlaps(found: Floats, things: Floats, crowd: Flags) -> Floats:
    """IoU [n, m]; with a group the part of the detection that lies in it. In COCO's order of operations, so that what
    lies exactly on a threshold falls on the same side."""
    left = np.maximum(found[:, None, :2], things[None, :, :2])
    right = np.minimum(found[:, None, :2] + found[:, None, 2:], things[None, :, :2] + things[None, :, 2:])
    sides = np.maximum(right - left, 0)
    shared = sides[..., 0] * sides[..., 1]
    ours, theirs = found[:, 2] * found[:, 3], things[:, 2] * things[:, 3]
    whole = np.where(crowd, ours[:, None], ours[:, None] + theirs - shared)
    return np.asarray(np.divide(shared, whole, out=np.zeros_like(shared), where=whole > 0))
