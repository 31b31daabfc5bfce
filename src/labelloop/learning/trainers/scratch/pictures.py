"""The data set as batches: pictures read with OpenCV, shrunk once, changed at random each time."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.errors import MediaUndecodable
from labelloop.learning.trainers.scratch.targets import SMALLEST_SIDE, Floats, targets

Bytes = NDArray[np.uint8]
PAD = 114
SIDES = (320, 416, 512, 640)
SMALL_OBJECT_PX = 16.0
"""A tenth of the objects may be smaller than this in the net's input: two cells of stride 8."""


class Changes(msgspec.Struct, frozen=True):
    """How much a picture is changed at random. `zoom`: factors from 1 / zoom to zoom; `colour`: share by which
    contrast, brightness and saturation vary; `flip`, `flip_vertical`: mirrored half of the time."""

    zoom: float = 1.4
    colour: float = 0.2
    flip: bool = True
    flip_vertical: bool = False


class Sample(NamedTuple):
    """One picture of the data set and its boxes in pixels of it."""

    path: Path
    size_wh: tuple[int, int]
    xyxy: Floats
    classes: NDArray[np.intp]


class Batch(NamedTuple):
    """`pictures` uint8 BGR [b, side, side, 3]; the rest as in `Targets`, stacked."""

    pictures: Bytes
    heat: Floats
    box: Floats
    weight: Floats


def read_samples(data: Path, split: str, labels: tuple[str, ...]) -> list[Sample]:
    """The pictures of `split`.json. Boxes of categories that are no label are left out, and crowds."""
    coco = json.loads((data / f"{split}.json").read_bytes())
    index = {row["id"]: labels.index(row["name"]) for row in coco["categories"] if row["name"] in labels}
    rows: dict[int, list[tuple[int, list[float]]]] = {image["id"]: [] for image in coco["images"]}
    for row in coco["annotations"]:
        if row["category_id"] in index and not row.get("iscrowd"):
            x, y, width, height = row["bbox"]
            rows[row["image_id"]].append((index[row["category_id"]], [x, y, x + width, y + height]))
    return [
        Sample(
            path=data / "images" / image["file_name"],
            size_wh=(image["width"], image["height"]),
            xyxy=np.array([box for _, box in rows[image["id"]]], np.float32).reshape(-1, 4),
            classes=np.array([label for label, _ in rows[image["id"]]], np.intp),
        )
        for image in coco["images"]
    ]


def fitting_side(samples: list[Sample]) -> int:
    """The smallest of SIDES at which nine tenths of the objects are not tiny; the largest when none is enough."""
    sizes = [
        np.sqrt((sample.xyxy[:, 2:] - sample.xyxy[:, :2]).prod(axis=1)) / max(sample.size_wh)
        for sample in samples
        if len(sample.xyxy)
    ]
    small = np.quantile(np.concatenate(sizes), 0.1) if sizes else 1.0
    return next((side for side in SIDES if small * side >= SMALL_OBJECT_PX), SIDES[-1])


class Album:
    """Pictures in memory, shrunk to fit `side`; those beyond `memory_bytes` are read anew each time."""

    def __init__(self, samples: list[Sample], *, side: int, memory_bytes: int) -> None:
        self.samples, self._side, self._left = samples, side, memory_bytes
        self._kept: dict[int, Bytes] = {}

    def picture(self, index: int) -> Bytes:
        """Raises MediaUndecodable."""
        if index in self._kept:
            return self._kept[index]
        picture = shrink(read(self.samples[index].path), self._side)
        if picture.nbytes <= self._left:
            self._left -= picture.nbytes
            self._kept[index] = picture
        return picture


def read(path: Path) -> Bytes:
    """BGR [h, w, 3]. Raises MediaUndecodable."""
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise MediaUndecodable(f"The picture {path} of the data set cannot be read.", hint="Freeze the data set again.")
    return np.asarray(picture, np.uint8)


def shrink(picture: Bytes, side: int) -> Bytes:
    """At most `side` in width and height, averaged as the serving path does it; smaller ones stay as they are."""
    ratio = side / max(picture.shape[:2])
    if ratio >= 1:
        return picture
    size_wh = (max(1, round(picture.shape[1] * ratio)), max(1, round(picture.shape[0] * ratio)))
    return np.asarray(cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA), np.uint8)


# --- random changes ---------------------------------------------------------------------------------


def change(
    picture: Bytes, sample: Sample, *, side: int, changes: Changes, rng: np.random.Generator
) -> tuple[Bytes, Floats, NDArray[np.intp]]:
    """One picture of `side` x `side` with its boxes, which are clipped; what is mostly outside is gone."""
    matrix = _place(picture.shape[:2], side, changes, rng)
    at_centres = matrix.copy()  # OpenCV counts from the middle of the first pixel, boxes from its corner
    at_centres[:, 2] += (matrix[[0, 1], [0, 1]] - 1) / 2
    warped = cv2.warpAffine(picture, at_centres, (side, side), flags=cv2.INTER_LINEAR, borderValue=(PAD, PAD, PAD))
    boxes, inside = move(sample.xyxy * (picture.shape[1] / sample.size_wh[0]), matrix, side=side)
    return _recolour(np.asarray(warped, np.uint8), changes.colour, rng), boxes[inside], sample.classes[inside]


def _place(shape: tuple[int, ...], side: int, changes: Changes, rng: np.random.Generator) -> NDArray[np.float64]:
    """The matrix [2, 3] that zooms, mirrors and puts a picture anywhere; one larger than the input fills it."""
    scale = side / max(shape) * changes.zoom ** rng.uniform(-1, 1)
    matrix = np.zeros((2, 3))
    for axis, (length, mirrors) in enumerate(((shape[1], changes.flip), (shape[0], changes.flip_vertical))):
        room = side - length * scale
        begin = rng.uniform(min(room, 0), max(room, 0))
        if mirrors and rng.random() < 0.5:
            matrix[axis, axis], matrix[axis, 2] = -scale, begin + length * scale
        else:
            matrix[axis, axis], matrix[axis, 2] = scale, begin
    return matrix


def move(xyxy: Floats, matrix: NDArray[np.float64], *, side: int) -> tuple[Floats, NDArray[np.bool_]]:
    """Boxes under a matrix [2, 3] without rotation, clipped to the input; and which keep more than a third."""
    corners = xyxy.reshape(-1, 2, 2) * [matrix[0, 0], matrix[1, 1]] + matrix[:, 2]
    whole = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    clipped = whole.clip(0, side).astype(np.float32)
    sides = clipped[:, 2:] - clipped[:, :2]
    areas = (whole[:, 2:] - whole[:, :2]).prod(axis=1)
    return clipped, (sides.min(axis=1) >= SMALLEST_SIDE) & (sides.prod(axis=1) > areas / 3)


def _recolour(picture: Bytes, most: float, rng: np.random.Generator) -> Bytes:
    """Contrast, brightness, and the distance from grey, each by a random share."""
    contrast, saturation = 1 + rng.uniform(-most, most, 2)
    brightness = 128 * rng.uniform(-most, most)
    grey = np.array([0.114, 0.587, 0.299])
    matrix = contrast * (saturation * np.eye(3) + (1 - saturation) * grey)
    shift = np.full((3, 1), 128 * (1 - contrast) + brightness)
    return np.asarray(cv2.transform(picture, np.hstack([matrix, shift])), np.uint8)


# --- batches ----------------------------------------------------------------------------------------


def batches(
    album: Album, *, side: int, size: int, labels: int, changes: Changes, seed: int, start: int
) -> Iterator[Batch]:
    """Batches without end from number `start` on; each picture once per round, in an order of its own each time. The
    same seed and number give the same batch, so that a resumed run sees what it would have seen."""
    count = len(album.samples)
    number = start
    while True:
        rng = np.random.default_rng([seed, number])
        rows = []
        for place in range(number * size, (number + 1) * size):
            index = int(_order(seed, place // count, count)[place % count])
            sample = album.samples[index]
            picture, xyxy, classes = change(album.picture(index), sample, side=side, changes=changes, rng=rng)
            rows.append((picture, *targets(xyxy, classes, count=labels, side=side)))
        yield Batch(*(np.stack(part) for part in zip(*rows, strict=True)))
        number += 1


def _order(seed: int, round_: int, count: int) -> NDArray[np.intp]:
    return np.random.default_rng([seed, 1 << 32, round_]).permutation(count)


def ahead(source: Iterator[Batch], *, most: int = 3) -> Generator[Batch, None, None]:
    """`source`, made by a thread while the net is at work (OpenCV and the net release the interpreter). An error in it
    is raised here; closing this generator ends the thread."""
    made: queue.Queue[Batch | BaseException] = queue.Queue(most)
    closed = threading.Event()

    def put(item: Batch | BaseException) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                made.put(item, timeout=0.2)
                return

    def work() -> None:
        try:
            for batch in source:
                put(batch)
                if closed.is_set():
                    return
        except BaseException as error:
            put(error)

    threading.Thread(target=work, daemon=True, name="pictures").start()
    try:
        while True:
            item = made.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
