"""A labelled COCO file as a manifest."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from labelloop.core.regions import Size
from labelloop.formats import coco
from labelloop.formats.coco import DatasetError
from labelloop.learning.labelled import Source, manifest_of, without_turned
from labelloop.learning.manifest import Drawn, Dropped, LeftOut, Options, side_of

CLASSES = (coco.Category(3, "car"), coco.Category(1, "dog"))


def dataset(*boxes: tuple[float, float, float, float], crowd: bool = False, pictures: int = 1) -> coco.Dataset:
    """`boxes` of cars on the first of the pictures."""
    images = tuple(coco.Image(number, f"{number}.jpg", 100, 50) for number in range(1, pictures + 1))
    rows = tuple(coco.Instance(number, 1, 3, box, iscrowd=int(crowd)) for number, box in enumerate(boxes, 1))
    return coco.Dataset(images, rows, CLASSES)


def source(found: coco.Dataset) -> Source:
    return Source(found, Path("/pictures"))


def test_pictures_boxes_and_labels_come_over() -> None:
    made = manifest_of(source(dataset((10, 20, 30, 10), pictures=2)), held_out=source(dataset()), options=Options())
    first, empty = made.on("train")
    assert made.labels == ("car", "dog")
    assert (first.task_id, first.uri, first.size) == (1, "/pictures/1.jpg", Size(100, 50))
    assert first.drawn == (Drawn("car", (10, 20, 40, 30)),)
    assert empty.drawn == ()
    assert [item.task_id for item in made.on("val")] == [1]


def test_boxes_are_cut_at_the_border_and_what_cannot_be_learned_is_counted() -> None:
    made = manifest_of(source(dataset((90, 40, 30, 30), (200, 0, 5, 5), (5, 5, 0, 9))), options=Options())
    assert [one.xyxy for item in made.items for one in item.drawn] == [(90, 40, 100, 50)]
    assert made.dropped == (Dropped("no-area", "car", 2),)
    assert manifest_of(source(dataset((0, 0, 9, 9), crowd=True)), options=Options()).dropped == (
        Dropped("group", "car", 1),
    )


def test_without_a_second_file_a_share_is_held_out_as_the_project_would() -> None:
    options = Options(val_share=0.3)
    found = dataset(pictures=200)
    made = manifest_of(source(found), options=options)
    assert {item.task_id for item in made.on("val")} == {
        image.id for image in found.images if side_of(image.id, options=options) == "val"
    }
    assert 35 < len(made.on("val")) < 85
    tasks = tuple(msgspec.structs.replace(image, task_id=7) for image in found.images)
    together = manifest_of(source(msgspec.structs.replace(found, images=tasks)), options=options)
    assert len({item.side for item in together.items}) == 1, "the pictures of one task stay together"


def test_a_held_out_class_that_nobody_could_learn_is_refused() -> None:
    strange = msgspec.structs.replace(dataset(), categories=(*CLASSES, coco.Category(9, "bird")))
    with pytest.raises(DatasetError, match="the classes bird, which the data set does not have"):
        manifest_of(source(dataset()), held_out=source(strange), options=Options())


def test_pictures_that_are_seen_turned_are_left_out() -> None:
    asked = manifest_of(source(dataset(pictures=3)), held_out=source(dataset()), options=Options())
    sizes = {1: Size(100, 50), 2: Size(50, 100), 3: Size(200, 100)}
    stored = msgspec.structs.replace(
        asked, items=tuple(msgspec.structs.replace(item, size=sizes[item.task_id]) for item in asked.items)
    )
    kept = without_turned(stored, asked)
    assert [item.task_id for item in kept.on("train")] == [1, 3], "one that was only made larger is no turned one"
    assert [(one.task_id, one.reason) for one in kept.left_out] == [(2, "turned")]
    assert isinstance(kept.left_out[0], LeftOut)
