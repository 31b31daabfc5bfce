"""A plain reference: each model's own recipe, written for reading, and the box mAP of any detections.

Nothing here comes from labelloop. One picture at a time, float64 after the network, loops where a loop is clearer. Other
tests use `box_map` on what came back through HTTP and compare it with `reference_detections`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MOST = 300


class Detection(NamedTuple):
    """`xyxy` in pixels of the original picture; `label` is the index of the class, 0 to 79."""

    xyxy: tuple[float, float, float, float]
    score: float
    label: int


class Reference:
    """`reference_detections` for many pictures: the session is opened once."""

    def __init__(self, model_path: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(str(model_path), options, providers=["CPUExecutionProvider"])
        recipes = {"yolox": _yolox, "nanodet": _nanodet, "deimv2": _deim}
        self._recipe = next(recipe for name, recipe in recipes.items() if model_path.name.startswith(name))

    def __call__(self, image_rgb: NDArray[np.uint8]) -> list[Detection]:
        xyxy, scores = self._recipe(self._session, image_rgb)
        height, width = image_rgb.shape[:2]
        xyxy = np.clip(xyxy, 0, (width, height, width, height))
        if self._recipe is _yolox:
            return _suppressed(xyxy, scores, floor=0.001, iou_threshold=0.65)[:MOST]
        if self._recipe is _nanodet:
            return _suppressed(xyxy, scores, floor=0.05, iou_threshold=0.6)[:MOST]
        return _listed(xyxy, scores)[:MOST]


def reference_detections(model_path: Path, image_rgb: NDArray[np.uint8]) -> list[Detection]:
    """What the model (one of the three in the shared folder) sees, best first, down to a score of 0.001 (NanoDet, as in
    its own code, 0.05)."""
    return Reference(model_path)(image_rgb)


def box_map(detections: Mapping[int, Sequence[Detection]], coco_json: Path) -> float:
    """COCO box mAP 50:95 of `detections` (COCO image id -> detections) on the pictures of `coco_json`."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth = json.loads(coco_json.read_text())
    category = [entry["id"] for entry in sorted(truth["categories"], key=lambda entry: entry["id"])]
    results = [
        {
            "image_id": image,
            "category_id": category[found.label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": found.score,
        }
        for image, every in detections.items()
        for found in every
        for x1, y1, x2, y2 in [found.xyxy]
    ]
    coco = COCO(truth)
    evaluation = COCOeval_faster(coco, coco.loadRes(results), "bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[0])


def _yolox(session: ort.InferenceSession, rgb: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    side = 416
    ratio = min(side / rgb.shape[0], side / rgb.shape[1])
    small = cv2.resize(rgb, (round(rgb.shape[1] * ratio), round(rgb.shape[0] * ratio)))
    frame = np.full((side, side, 3), 114.0)
    frame[: small.shape[0], : small.shape[1]] = small
    image = frame[:, :, ::-1].transpose(2, 0, 1)[None].astype(np.float32)
    rows = session.run(None, {"images": image})[0][0].astype(np.float64)
    places = [
        (column, row, stride)
        for stride in (8, 16, 32)
        for row in range(side // stride)
        for column in range(side // stride)
    ]
    column, row, stride = np.array(places, np.float64).T
    x, y = (rows[:, 0] + column) * stride, (rows[:, 1] + row) * stride
    w, h = np.exp(rows[:, 2]) * stride, np.exp(rows[:, 3]) * stride
    return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1) / ratio, rows[:, 4:5] * rows[:, 5:]


def _nanodet(session: ort.InferenceSession, rgb: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    side = 320
    ratio = min(side / rgb.shape[0], side / rgb.shape[1])
    small = cv2.resize(rgb, (round(rgb.shape[1] * ratio), round(rgb.shape[0] * ratio)))
    left_pad, top_pad = (side - small.shape[1]) // 2, (side - small.shape[0]) // 2
    frame = np.zeros((side, side, 3))
    frame[top_pad : top_pad + small.shape[0], left_pad : left_pad + small.shape[1]] = small
    normal = (frame[:, :, ::-1] - (103.53, 116.28, 123.675)) / (57.375, 57.12, 58.395)
    names = [output.name for output in session.get_outputs()]
    outputs = dict(
        zip(names, session.run(None, {"input.1": normal.transpose(2, 0, 1)[None].astype(np.float32)}), strict=True)
    )
    boxes, scores = [], []
    for stride in (8, 16, 32):
        scores.append(outputs[f"cls_pred_stride_{stride}"][0].astype(np.float64))
        weights = np.exp(outputs[f"dis_pred_stride_{stride}"][0].astype(np.float64).reshape(-1, 4, 8))
        left, top, right, bottom = ((weights / weights.sum(2, keepdims=True)) @ np.arange(8) * stride).T
        across = side // stride
        x = (np.arange(across * across) % across + 0.5) * stride
        y = (np.arange(across * across) // across + 0.5) * stride
        boxes.append(np.stack([x - left, y - top, x + right, y + bottom], 1))
    return (np.concatenate(boxes) - (left_pad, top_pad, left_pad, top_pad)) / ratio, np.concatenate(scores)


def _deim(session: ort.InferenceSession, rgb: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    small = cv2.resize(rgb, (320, 320)).astype(np.float64) / 255
    original = np.array([[rgb.shape[1], rgb.shape[0]]], np.int64)
    feeds = {"images": small.transpose(2, 0, 1)[None].astype(np.float32), "orig_target_sizes": original}
    labels, boxes, best = (output[0] for output in session.run(["labels", "boxes", "scores"], feeds))
    scores = np.zeros((len(labels), 80))
    scores[np.arange(len(labels)), labels] = best
    return boxes.astype(np.float64), scores


def _listed(xyxy: Floats, scores: Floats, *, floor: float = 0.001) -> list[Detection]:
    rows, labels = np.nonzero(scores > floor)
    found = [
        Detection(tuple(xyxy[row].tolist()), float(scores[row, label]), int(label))
        for row, label in zip(rows, labels, strict=True)
    ]
    return sorted(found, key=lambda detection: -detection.score)


def _suppressed(xyxy: Floats, scores: Floats, *, floor: float, iou_threshold: float) -> list[Detection]:
    """The best class of each box; then the best box of each class, without what overlaps it, and so on."""
    single = np.where(scores == scores.max(1, keepdims=True), scores, 0)
    kept: list[Detection] = []
    for candidate in _listed(xyxy, single, floor=floor):
        rivals = (other for other in kept if other.label == candidate.label)
        if all(iou_of(candidate.xyxy, other.xyxy) <= iou_threshold for other in rivals):
            kept.append(candidate)
    return kept


def iou_of(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return width * height / (sum(areas) - width * height)
