"""What most annotators of one picture drew: boxes that mean the same thing, joined; what a minority drew is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

from labelloop.core.geometry import iou
from labelloop.learning.manifest import Drawn, rounded

SAME_THING_IOU = 0.5
"""What COCO's AP50 calls the same thing."""


def consensus(votes: Sequence[Sequence[Drawn]]) -> tuple[list[Drawn], list[Drawn]]:
    """What more than half of `votes` (one per annotator) have drawn with the same label, and what is dropped.

    Boxes of different annotators are joined best overlap first, at most one of each annotator in a group. An upright
    box gets the median of each side over its group; of outlines the one that the others agree with most is taken, since
    a mean of outlines is nobody's.
    """
    rows = sorted((one, voter) for voter, vote in enumerate(votes) for one in vote)
    boxes = np.array([one.xyxy for one, _ in rows], np.float64).reshape(-1, 4)
    overlap = iou(boxes, boxes)
    group = {row: [row] for row in range(len(rows))}
    for first, second in _pairs(rows, overlap):
        ours, theirs = group[first], group[second]
        if ours is not theirs and not {rows[r][1] for r in ours} & {rows[r][1] for r in theirs}:
            ours += theirs
            group.update(dict.fromkeys(theirs, ours))
    groups = {id(members): members for members in group.values()}.values()
    agreed = [members for members in groups if 2 * len(members) > len(votes)]
    alone = [rows[row][0] for members in groups if 2 * len(members) <= len(votes) for row in members]
    return sorted(_joined(rows, members, overlap) for members in agreed), sorted(alone)


def _pairs(rows: Sequence[tuple[Drawn, int]], overlap: np.ndarray) -> list[tuple[int, int]]:
    """Rows of different annotators with one label that overlap enough, best first."""
    found = [
        (-float(overlap[first, second]), int(first), int(second))
        for first, second in np.argwhere(np.triu(overlap, 1) >= SAME_THING_IOU)
        if rows[first][1] != rows[second][1] and rows[first][0].label == rows[second][0].label
    ]
    return [(first, second) for _, first, second in sorted(found)]


def _joined(rows: Sequence[tuple[Drawn, int]], members: Sequence[int], overlap: np.ndarray) -> Drawn:
    found = [rows[row][0] for row in members]
    if any(one.outline for one in found):
        best = max(sorted(members), key=lambda row: float(overlap[row, list(members)].sum()))
        return rows[best][0]
    return Drawn(found[0].label, rounded(median(sides) for sides in zip(*(one.xyxy for one in found), strict=True)))
