"""Masks as outlines: pixels by the thousand as few points."""

from __future__ import annotations

from typing import Any


def parts_of(mask: Any) -> list[list[list[list[int]]]]:
    """Of each part of a mask [height, width] its outline and, behind it, those of its holes: pixels that the mask
    covers, as [x, y]. Filling the outlines up to and with their points, and the holes without, gives the mask again."""
    import cv2

    found, tree = cv2.findContours(mask.astype("uint8"), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [contour[:, 0].tolist() for contour in found]
    parents = [] if tree is None else tree[0, :, 3].tolist()
    holes: dict[int, list[Any]] = {}
    for ring, parent in zip(rings, parents):
        holes.setdefault(parent, []).append(ring)
    return [[ring, *holes.get(number, [])] for number, ring in enumerate(rings) if parents[number] < 0]
