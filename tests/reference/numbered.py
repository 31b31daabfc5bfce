"""Labelled pictures whose first pixel is their number: one box each, in the same place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from labelloop.formats import coco

SIDE = 40
BOX = (8.0, 8.0, 16.0, 16.0)


def write_numbered(folder: Path, name: str, numbers: Iterable[int]) -> Path:
    """`folder`/`name`.json and `folder`/images/N.png for each of `numbers` (1 to 255), which are the ids too."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in numbers:
        picture = np.full((SIDE, SIDE, 3), number, np.uint8)
        picture[1:, 1:] = 90
        cv2.imwrite(str(images / f"{number}.png"), picture)
        rows.append(coco.Image(number, f"{number}.png", SIDE, SIDE))
    boxes = tuple(coco.Instance(row.id, row.id, 1, BOX) for row in rows)
    coco.write(folder / f"{name}.json", coco.Dataset(tuple(rows), boxes, (coco.Category(1, "part"),)))
    return folder / f"{name}.json"
