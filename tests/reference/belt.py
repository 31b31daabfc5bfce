"""A data set small enough for a test: bright and dark squares on grey, as a frozen folder for trainers."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

LABELS = ("bright", "dark")


def write_squares(folder: Path, *, pictures: int = 12, side: int = 64, seed: int = 0) -> Path:
    """`train.json`, `val.json` and `images/`: two squares a picture, one of each kind, the last picture empty."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    images, annotations = [], []
    for number in range(pictures):
        picture = random.integers(100, 130, (side, side, 3)).astype(np.uint8)
        name = f"{number}.png"
        images.append({"id": number, "file_name": name, "width": side, "height": side})
        for label in range(2) if number < pictures - 1 else ():
            size = int(random.integers(side // 5, side // 3))
            left = int(random.integers(0, side // 2 - size + 1)) + label * side // 2
            top = int(random.integers(0, side - size + 1))
            picture[top : top + size, left : left + size] = 250 if label == 0 else 5
            annotations.append(
                {"id": len(annotations), "image_id": number, "category_id": label, "bbox": [left, top, size, size],
                 "area": size * size, "iscrowd": 0}
            )  # fmt: skip
        cv2.imwrite(str(folder / "images" / name), picture)
    categories = [{"id": index, "name": label} for index, label in enumerate(LABELS)]
    for split in ("train", "val"):
        coco = {"images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(coco))
    return folder
