"""Geometry of boxes: arrays in, arrays out. A box is a row `left, top, right, bottom` in any unit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.intp]


def area(xyxy: Floats) -> Floats:
    """Areas [n] of boxes [n, 4]; an inverted box has area 0."""
    sides = np.maximum(xyxy[:, 2:] - xyxy[:, :2], 0)
    return np.asarray(sides[:, 0] * sides[:, 1])


def iou(first: Floats, second: Floats) -> Floats:
    """Intersection over union [n, m] of boxes [n, 4] with boxes [m, 4]; 0 where both areas are 0."""
    sides = np.minimum(first[:, None, 2:], second[:, 2:]) - np.maximum(first[:, None, :2], second[:, :2])
    np.maximum(sides, 0, out=sides)
    shared = sides[..., 0] * sides[..., 1]
    union = area(first)[:, None] + area(second) - shared
    return np.asarray(shared / np.where(union > 0, union, 1))  # nothing is shared where there is nothing


def nms(xyxy: Floats, scores: Floats, *, iou_threshold: float, classes: NDArray[Any] | None = None) -> Indices:
    """Greedy non-maximum suppression: indices of the boxes that stay, best score first.

    A box goes when its IoU with a better box that stays is above `iou_threshold`; with `classes` [n] only boxes
    of the same class compete. Ties keep the earlier row. Boxes [n, 4] must be finite and of positive area.
    """
    if not len(scores):
        return np.empty(0, np.intp)
    import cv2  # here: core is imported by parts that never see a picture

    order = np.argsort(-np.asarray(scores), kind="stable")
    xywh = np.asarray(xyxy, np.float64)[order]
    if classes is not None:
        # Each class moves to a place of its own. cv2's NMSBoxesBatched does the same but reckons the distance from
        # the largest coordinate only: with negative coordinates (boxes that stick out) classes still meet.
        xywh += (np.asarray(classes, np.float64)[order] * (xywh.max() - xywh.min() + 1))[:, None]
    xywh[:, 2:] -= xywh[:, :2]
    boxes: Any = xywh  # cv2's stubs ask for lists; arrays are taken as they are, without an object for each box
    ranks: Any = np.arange(len(order), 0, -1).astype(
        np.float32
    )  # cv2 drops scores of 0 and refuses a threshold below it
    kept = cv2.dnn.NMSBoxes(boxes, ranks, 0.0, iou_threshold)
    return np.asarray(order[np.asarray(kept, np.intp).reshape(-1)])
