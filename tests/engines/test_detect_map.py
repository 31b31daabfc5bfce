"""Correctness pinned with numbers: box mAP of the shared models on 32 pictures of COCO, ours against a plain decode."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from labelloop.core.cards import ModelCard
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Region, Size
from labelloop.engines.base import EngineOptions
from labelloop.engines.detect import DetectEngine
from labelloop.engines.labels import COCO
from reference.coco_map import Detection, Reference, box_map

EXPECTED = {"yolox_nano_416": 0.326, "nanodet_m_320": 0.282, "deimv2_atto_320": 0.335}


@lru_cache(maxsize=1)
def pictures(folder: Path) -> dict[int, NDArray[np.uint8]]:
    images = json.loads((folder / "annotations.json").read_text())["images"]
    return {
        image["id"]: np.asarray(cv2.imread(str(folder / "images" / image["file_name"]), cv2.IMREAD_COLOR_RGB))
        for image in images
    }


def detection(region: Region) -> Detection:
    assert isinstance(region.shape, Box)
    return Detection(region.shape.xyxy, float(region.score or 0), COCO.index(str(region.label)))


@pytest.mark.parametrize("model", EXPECTED)
def test_map_on_coco_is_that_of_a_plain_decode(shared: Path, model: str) -> None:
    path, folder = shared / "data/models" / f"{model}.onnx", shared / "data/datasets/coco32"
    engine = DetectEngine(path, ModelCard(name=model, labels=COCO), EngineOptions(device="cpu"))
    plain = Reference(path)
    ours, theirs = {}, {}
    for number, rgb in pictures(folder).items():
        prepared = engine.prepare(Picture(rgb=rgb, size=Size(rgb.shape[1], rgb.shape[0])))
        ours[number] = [detection(region) for region in engine.predict([prepared])[0]]
        theirs[number] = plain(rgb)
    reached = box_map(ours, folder / "annotations.json")
    assert reached == pytest.approx(box_map(theirs, folder / "annotations.json"), abs=0.005)
    assert reached == pytest.approx(EXPECTED[model], abs=0.005)
