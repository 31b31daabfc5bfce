"""The belt: the same everywhere, true to its boxes, and various."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from labelloop.demo import belt


def test_a_scene_follows_from_seed_and_number() -> None:
    first, again, other = belt.draw_scene(3, 7), belt.draw_scene(3, 7), belt.draw_scene(3, 8)
    assert first == again
    assert first.jpeg != other.jpeg


def test_boxes_lie_inside_and_do_not_hide_each_other() -> None:
    labels: Counter[str] = Counter()
    for number in range(12):
        scene = belt.draw_scene(0, number)
        picture = cv2.imdecode(np.frombuffer(scene.jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert picture.shape == (480, 640, 3)
        for part in scene.parts:
            left, top, right, bottom = part.xyxy
            assert 0 <= left < right <= 640
            assert 0 <= top < bottom <= 480
            assert 8 < right - left < belt.CANVAS
            labels[part.label] += 1
    assert set(labels) == set(belt.LABELS)
    assert max(labels.values()) < 4 * min(labels.values())


def test_parts_are_where_the_boxes_say() -> None:
    """Metal is brighter, or shadowed: the picture changes more inside the boxes than around them."""
    inside, outside = [], []
    for number in range(6):
        scene = belt.draw_scene(0, number)
        grey = cv2.imdecode(np.frombuffer(scene.jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert grey is not None
        slope = np.abs(cv2.Laplacian(cv2.GaussianBlur(grey, (0, 0), 1.5), cv2.CV_32F))
        mask = np.zeros(slope.shape, bool)
        for part in scene.parts:
            left, top, right, bottom = (int(value) for value in part.xyxy)
            mask[top:bottom, left:right] = True
            inside.append(float(slope[top:bottom, left:right].mean()))
        rails = np.zeros_like(mask)
        rails[40:-40] = True
        outside.append(float(slope[~mask & rails].mean()))
    assert min(inside) > 1.5 * float(np.mean(outside))


def test_the_data_set_is_coco(tmp_path: Path) -> None:
    belt.write_data_set(tmp_path, train=range(3), val=range(3, 5), seed=1)
    train = json.loads((tmp_path / "train.json").read_text())
    assert [category["name"] for category in train["categories"]] == list(belt.LABELS)
    assert [image["id"] for image in train["images"]] == [1, 2, 3]
    scenes = [belt.draw_scene(1, number) for number in range(3)]
    assert len(train["annotations"]) == sum(len(scene.parts) for scene in scenes)
    for image, scene in zip(train["images"], scenes, strict=True):
        assert (tmp_path / "images" / image["file_name"]).read_bytes() == scene.jpeg
        boxes = [row["bbox"] for row in train["annotations"] if row["image_id"] == image["id"]]
        assert [[x, y, x + w, y + h] for x, y, w, h in boxes] == [list(part.xyxy) for part in scene.parts]
