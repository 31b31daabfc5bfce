"""A data set as a trainer sees it: pictures with boxes, and the views of them that a network is shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.cards import InputSpec
from labelloop.core.pictures import Picture
from labelloop.engines.detect.prepare import Prepared, prepare
from labelloop.learning.trainers.base import TrainerError
from labelloop.media.image import decode

MAX_PIXELS = 100_000_000
SMALLEST_SIDE = 1.0
"""A box thinner than this many pixels of the network input teaches nothing."""


class Sample(NamedTuple):
    """One picture: `xyxy` float32 [m, 4] in its own pixels, `labels` int64 [m] indices into the request's labels."""

    path: Path
    xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]


class View(NamedTuple):
    """What the network is shown of a sample: `xyxy` [m, 4] in pixels of the network input."""

    prepared: Prepared
    xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]


class Plan(NamedTuple):
    """Which view to make: of sample number `sample`, mirrored or not."""

    sample: int
    mirrored: bool


def read_samples(data: Path, split: str, labels: Sequence[str]) -> list[Sample]:
    """The pictures of `data`/`split`.json with their boxes; pictures without boxes are kept, crowds are left out.

    Raises TrainerError when the file cannot be read or names a category that is no label.
    """
    path = data / f"{split}.json"
    try:
        coco: dict[str, Any] = msgspec.json.decode(path.read_bytes())
        index = {entry["id"]: labels.index(entry["name"]) for entry in coco["categories"]}
        boxes: dict[int, list[tuple[list[float], int]]] = {entry["id"]: [] for entry in coco["images"]}
        for one in coco["annotations"]:
            if not one.get("iscrowd"):
                boxes[one["image_id"]].append((one["bbox"], index[one["category_id"]]))
        return [_sample(data / "images" / entry["file_name"], boxes[entry["id"]]) for entry in coco["images"]]
    except (OSError, msgspec.DecodeError, KeyError, ValueError) as error:
        raise TrainerError(
            f"{path} is not the data set that was promised: {error!r}.", hint="Freeze it again."
        ) from error


def make_view(sample: Sample, plan: Plan, spec: InputSpec) -> View:
    """Decode, mirror, resize and pad, as serving does. Raises OSError or MediaError when the picture cannot be read."""
    picture = decode(sample.path.read_bytes(), max_pixels=MAX_PIXELS)
    xyxy, rgb = sample.xyxy, picture.rgb
    if plan.mirrored:
        rgb = np.ascontiguousarray(rgb[:, ::-1])
        width = picture.size.width
        xyxy = np.stack([width - xyxy[:, 2], xyxy[:, 1], width - xyxy[:, 0], xyxy[:, 3]], axis=1)
    prepared = prepare(Picture(rgb=rgb, size=picture.size), spec)
    limits = np.array(picture.size * 2, np.float32)
    placed = np.clip(xyxy, 0, limits) / np.array(prepared.scale_xy * 2) + np.array(prepared.offset_xy * 2)
    sound = (placed[:, 2:] - placed[:, :2] >= SMALLEST_SIDE).all(axis=1)
    return View(prepared, placed[sound].astype(np.float32), sample.labels[sound])


def plan_views(samples: int, *, seed: int) -> list[Plan]:
    """Every picture once as it is, in random order, then every picture mirrored: cut off where time ends, so that each
    picture has been seen before any is seen twice."""
    order = np.random.default_rng(seed).permutation(samples).tolist()
    return [Plan(sample, mirrored) for mirrored in (False, True) for sample in order]


def _sample(path: Path, boxes: Sequence[tuple[list[float], int]]) -> Sample:
    xywh = np.array([box for box, _ in boxes], np.float32).reshape(-1, 4)
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return Sample(path, xyxy, np.array([label for _, label in boxes], np.int64))
