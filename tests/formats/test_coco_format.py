"""COCO JSON: what is read is what was there, what is written others read, and a file that contradicts itself is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labelloop.core.regions import Box, Polygon
from labelloop.formats import coco

IMAGE = {"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}
CATEGORY = {"id": 5, "name": "cell"}
THING = {"id": 9, "image_id": 1, "category_id": 5, "bbox": [1, 2, 3, 4]}


def file(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps({"images": [IMAGE], "annotations": [THING], "categories": [CATEGORY]} | changes))
    return path


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("bccd/annotations.json", (364, 4886, 3)),
        ("bccd/val.json", (87, None, 3)),
        ("coco32/annotations.json", (32, 240, 80)),
    ],
)
def test_real_files_survive_a_round_trip(
    shared: Path, tmp_path: Path, name: str, counts: tuple[int, int | None, int]
) -> None:
    dataset = coco.read(shared / "data/datasets" / name)
    assert (len(dataset.images), len(dataset.categories)) == (counts[0], counts[2])
    assert counts[1] in (None, len(dataset.annotations))
    coco.write(tmp_path / "again.json", dataset)
    again = coco.read(tmp_path / "again.json")
    assert (again.images, again.categories) == (dataset.images, dataset.categories)
    assert [a.bbox for a in again.annotations] == [a.bbox for a in dataset.annotations]


def test_groups_with_run_lengths_and_outlines_travel_through(tmp_path: Path) -> None:
    rle = {"size": [30, 40], "counts": [100, 20, 1080]}
    things = [
        THING | {"iscrowd": 1, "area": 20.0, "segmentation": rle},
        THING | {"id": 10, "iscrowd": 1, "area": 20.0, "segmentation": {"size": [30, 40], "counts": "T3`;"}},
        THING | {"id": 11, "iscrowd": 0, "area": 6.0, "segmentation": [[1, 2, 4, 2, 4, 6], [0, 0, 1, 0, 1, 1]]},
        THING | {"id": 12, "iscrowd": 0, "area": 12, "segmentation": []},
    ]
    dataset = coco.read(file(tmp_path / "a.json", annotations=things))
    coco.write(tmp_path / "b.json", dataset)
    assert json.loads((tmp_path / "b.json").read_text())["annotations"] == things


def test_what_is_missing_is_written_as_readers_expect_it(tmp_path: Path) -> None:
    coco.write(tmp_path / "b.json", coco.read(file(tmp_path / "a.json")))
    (thing,) = json.loads((tmp_path / "b.json").read_text())["annotations"]
    assert thing == THING | {"iscrowd": 0, "segmentation": [], "area": 12.0}


def test_a_reader_of_the_field_takes_what_we_write(shared: Path, tmp_path: Path) -> None:
    from faster_coco_eval import COCO

    dataset = coco.read(shared / "data/datasets/bccd/val.json")
    coco.write(tmp_path / "val.json", dataset)
    theirs = COCO(str(tmp_path / "val.json"))
    assert len(theirs.getImgIds()) == 87
    assert len(theirs.getAnnIds()) == len(dataset.annotations)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": [IMAGE, IMAGE]}, "image id 1 twice"),
        ({"annotations": [THING, THING]}, "annotation id 9 twice"),
        ({"annotations": [THING | {"image_id": 2}]}, "names image 2"),
        ({"annotations": [THING | {"category_id": 2}]}, "category 2"),
        ({"annotations": [THING | {"bbox": [1, 2, 3]}]}, "no COCO detection file.*bbox"),
        ({"images": None}, "no COCO detection file.*images"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(coco.DatasetError, match=words):
        coco.read(file(tmp_path / "a.json", **changes))


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"{"])
def test_what_is_no_json_object_says_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(coco.DatasetError, match="no COCO detection file"):
        coco.read(tmp_path / "a.json")


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(coco.DatasetError, match="cannot be read: No such file"):
        coco.read(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("shape", "bbox", "area", "points"),
    [
        (Box((1, 2, 4, 6)), (1, 2, 3, 4), 12, 0),
        (Box((10, 10, 30, 20), angle_deg=90), (15, 5, 10, 20), 200, 4),
        (Polygon(((0, 0), (10, 0), (10, 10))), (0, 0, 10, 10), 50, 3),
    ],
    ids=["a box", "a turned box", "a polygon"],
)
def test_shapes_become_instances_and_come_back(shape: Box | Polygon, bbox: Any, area: float, points: int) -> None:
    instance = coco.instance_of(shape, id=1, image_id=2, category_id=3)
    assert instance is not None
    assert instance.bbox == pytest.approx(bbox)
    assert instance.area == pytest.approx(area)
    assert [len(outline) for outline in instance.segmentation] == ([2 * points] if points else [])  # type: ignore[union-attr,arg-type]
    back = coco.region_of(instance, {3: "cell"})
    assert back.label == "cell"
    assert isinstance(back.shape, Polygon if points else Box)


def test_what_has_no_extent_is_no_instance() -> None:
    assert coco.instance_of(Box((1, 1, 1, 9)), id=1, image_id=1, category_id=1) is None
    assert coco.instance_of(Polygon(()), id=1, image_id=1, category_id=1) is None
