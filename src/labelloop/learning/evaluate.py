"""A model version on held-out pictures, asked through the serving path as people ask it.

The pictures are those of a frozen folder: two versions see the same bytes, whatever happens to the project meanwhile.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import msgspec
import numpy as np

from labelloop.core.errors import ModelFailed
from labelloop.core.outlines import bounding_box
from labelloop.core.regions import Prediction, Region
from labelloop.core.tasks import Task
from labelloop.formats import coco
from labelloop.labelstudio.config import ObjectTag
from labelloop.labelstudio.labelmap import LabelMap
from labelloop.learning.detections import Floats, Found, Truth, match, truth_of
from labelloop.learning.measures import IOU_THRESHOLDS, Measures, Metric, average_precisions, measure
from labelloop.serving.projects import View

BATCH = 32
"""Pictures in memory at a time."""

Predict = Callable[[Sequence[Task], View], Sequence[Prediction]]
"""One Prediction per task, in order: `serving/predict` at bulk priority."""


class HeldOut(msgspec.Struct, frozen=True):
    """Pictures that no training of this project sees, and what people drew on them."""

    images: tuple[coco.Image, ...]
    folder: Path
    truth: Truth


class Evaluation(msgspec.Struct, frozen=True):
    """What a version found on held-out pictures, and how good that is."""

    model: str
    truth: Truth
    found: Found
    measures: Measures

    @property
    def items(self) -> int:
        return self.measures.pictures

    @property
    def answers(self) -> int:
        return self.measures.boxes

    @property
    def described(self) -> str:
        return f"{self.items} held-out pictures with {self.answers} boxes"

    def value(self, metric: str) -> float | None:
        return self.measures.value(_known(metric))

    def floor(self, metric: str) -> float:  # noqa: ARG002 - as in the seam: nobody finds boxes without looking
        return 0.0

    def sampled(self, metric: str, draws: Floats) -> Floats:
        """`metric` on samples of the pictures, `draws` [samples, pictures]; NaN for one without a box to find."""
        return average_precisions(match(self.truth, self.found, iou_thresholds=IOU_THRESHOLDS[_known(metric)]), draws)

    def same_items(self, other: object) -> bool:
        return (
            isinstance(other, Evaluation)
            and self.truth.labels == other.truth.labels
            and all(np.array_equal(ours, theirs) for ours, theirs in zip(self.truth[2:], other.truth[2:], strict=True))
        )


def _known(metric: str) -> Metric:
    return "AP" if metric == "AP" else "AP50"


def held_out(folder: Path, *, side: str = "val") -> HeldOut:
    """One side of a folder as `jobs/folder` writes it. Raises DatasetError."""
    dataset = coco.read(folder / f"{side}.json")
    return HeldOut(dataset.images, folder / "images", truth_of(dataset))


def evaluate(pictures: HeldOut, view: View, predict: Predict) -> Evaluation:
    """Ask the version of `view` about `pictures` and measure what it says. Regions below the thresholds count for AP,
    not for precision and recall.

    A version none of whose classes has a label in the project finds nothing. Raises ModelFailed when no picture at all
    gets an answer: that says nothing about how good the model is.
    """
    asked = without_thresholds(view)
    rows: list[tuple[int, int, float, tuple[float, float, float, float], bool]] = []
    failed, seconds, error = 0, 0.0, None
    for start, tasks in _batches(pictures, asked) if asked.label_map.fields else ():
        begun = time.perf_counter()
        predictions = predict(tasks, asked)
        seconds += time.perf_counter() - begun
        for picture, prediction in enumerate(predictions, start):
            failed += prediction.error is not None
            error = prediction.error or error
            rows += [(picture, *row) for row in _rows(prediction.regions, view.label_map, pictures.truth.labels)]
    if error is not None and failed == len(pictures.images):
        raise ModelFailed(f"{view.version.id} answered for none of {failed} held-out pictures: {error.message}")
    found = _found(rows)
    per_picture = seconds / max(1, len(pictures.images))
    measures = measure(pictures.truth, found, seconds_per_picture=per_picture, failed=failed)
    return Evaluation(view.version.id, pictures.truth, found, measures)


def found_in(pictures: Iterable[Sequence[Region]], labels: LabelMap, known: Sequence[str]) -> Found:
    """What a model drew on pictures, one item of regions each, as arrays for `measures.measure`; `known` are the labels
    of the data set. For those who ask a model themselves."""
    return _found(
        [(picture, *row) for picture, regions in enumerate(pictures) for row in _rows(regions, labels, known)]
    )


def without_thresholds(view: View) -> View:
    """The same version drawing everything it finds, on one picture a task: the first that it draws on in a project."""
    labels = view.label_map
    if not labels.fields:
        return view
    first = labels.fields[0]
    tag = ObjectTag(first.name, first.tag, first.field)
    targets = {
        key: tuple(msgspec.structs.replace(target, threshold=0.0, object=tag) for target in found[:1])
        for key, found in labels.targets.items()
    }
    open_map = msgspec.structs.replace(labels, targets=targets, fields=(tag,), lowest_threshold=0.0)
    return msgspec.structs.replace(view, label_map=open_map)


def _batches(pictures: HeldOut, view: View) -> Iterator[tuple[int, list[Task]]]:
    """Tasks that bring their pictures along, as `data:` URIs, with the number of the first."""
    (tag,) = view.label_map.fields
    images = iter(pictures.images)
    start = 0
    while batch := list(islice(images, BATCH)):
        yield start, [Task(image.task_id, {tag.field: data_uri(pictures.folder / image.file_name)}) for image in batch]
        start += len(batch)


def data_uri(path: Path) -> str:
    """A picture of a data set as a reference that brings it along."""
    kind = "png" if path.suffix == ".png" else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _rows(
    regions: Sequence[Region], labels: LabelMap, known: Sequence[str]
) -> Iterator[tuple[int, float, tuple[float, float, float, float], bool]]:
    """Label, score, left-top-width-height, and whether it would be drawn, of each region that has a label of the data
    set and a place."""
    numbers = {label: number for number, label in enumerate(known)}
    for region in regions:
        targets, box = labels.targets_for(region.label, type(region.shape)), bounding_box(region.shape)
        number = numbers.get(targets[0].label or "") if targets else None
        if number is None or box is None:
            continue
        left, top, right, bottom = box.xyxy
        score = 1.0 if region.score is None else region.score
        yield number, score, (left, top, right - left, bottom - top), score >= targets[0].threshold


def _found(rows: Sequence[tuple[int, int, float, tuple[float, float, float, float], bool]]) -> Found:
    return Found(
        picture=np.array([row[0] for row in rows], np.intp),
        label=np.array([row[1] for row in rows], np.intp),
        score=np.array([row[2] for row in rows], np.float64),
        xywh=np.array([row[3] for row in rows], np.float64).reshape(-1, 4),
        drawn=np.array([row[4] for row in rows], bool),
    )
