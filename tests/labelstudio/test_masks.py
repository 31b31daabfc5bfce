"""Masks on the controls that can draw them: as what a brush paints, as outlines, as boxes."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
import pytest

from labelloop.compat.names import labelloop_brush as written
from labelloop.core.outlines import area_of, bounding_box, contains
from labelloop.core.regions import Box, Mask, MediaKey, Prediction, Raw, Region, Size
from labelloop.engines.own import mask_of
from labelloop.labelstudio import brush, wire
from labelloop.labelstudio.brush import encode_rle, mask_from, paint
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.labelmap import build_label_map
from labelloop.labelstudio.validate import problem_with
from reference.brush import decode_rle

PHOTO = MediaKey("photo")
SIZE = Size(60, 40)
LABEL = '<Label value="Car"/>'
BRUSH = f'<BrushLabels name="brush" toName="img">{LABEL}</BrushLabels>'
POLYGONS = f'<PolygonLabels name="outline" toName="img">{LABEL}</PolygonLabels>'
BOXES = f'<RectangleLabels name="box" toName="img">{LABEL}</RectangleLabels>'
NAMED_BY_ANOTHER = f'<Brush name="brush" toName="img"/><Labels name="kind" toName="img">{LABEL}</Labels>'


def ring_and_square() -> np.ndarray[Any, np.dtype[np.bool_]]:
    """A ring with a hole, a square apart from it, and a speck."""
    covered = np.zeros((SIZE.height, SIZE.width), np.uint8)
    cv2.circle(covered, (20, 20), 15, 1, -1)
    cv2.circle(covered, (20, 20), 6, 0, -1)
    covered[5:15, 45:55] = 1
    covered[35, 58] = 1
    return covered.astype(bool)


def drawn(controls: str, mask: Mask, task: str = "segment") -> list[dict[str, Any]]:
    config = parse_config(f'<View><Image name="img" value="$photo"/>{controls}</View>')
    prediction = Prediction((Region(mask, "car", 0.9, media=PHOTO),), {PHOTO: SIZE}, "m@1", 0.5)
    result: list[dict[str, Any]] = wire.encode_prediction(
        prediction, build_label_map(config, ["car"], task=task), task_id=1
    )["result"]
    assert [problem_with(item, config) for item in result] == [None] * len(result)
    return result


def alpha(item: dict[str, Any]) -> np.ndarray[Any, Any]:
    pixels = np.array(decode_rle(item["value"]["rle"]), np.uint8).reshape(SIZE.height, SIZE.width, 4)
    return pixels[:, :, 3] == 255


def shape_of(covered: np.ndarray[Any, Any]) -> Mask:
    mask = mask_of(covered)
    assert mask is not None
    return mask


@pytest.mark.parametrize(
    ("controls", "types"),
    [
        (BRUSH, ["brushlabels"]),
        (BRUSH + BOXES, ["brushlabels"]),
        (BRUSH + POLYGONS, ["polygonlabels", "polygonlabels"]),
        (POLYGONS, ["polygonlabels", "polygonlabels"]),
        (BOXES, ["rectanglelabels"]),
        (NAMED_BY_ANOTHER, ["brush", "labels"]),
        ('<KeyPointLabels name="k" toName="img"><Label value="Car"/></KeyPointLabels>', []),
    ],
    ids=["a brush", "rather than a box", "rather outlines", "outlines", "a box", "named by Labels", "nothing"],
)
def test_who_draws_a_mask(controls: str, types: list[str]) -> None:
    result = drawn(controls, shape_of(ring_and_square()))
    assert [item["type"] for item in result] == types
    assert len({item["id"] for item in result}) == (1 if "brush" in types else len(types))
    assert all((item["original_width"], item["original_height"]) == SIZE for item in result)


def test_a_brush_paints_exactly_what_the_model_said_with_its_hole_and_speck() -> None:
    (item,) = drawn(BRUSH, shape_of(ring_and_square()))
    assert item["value"]["format"] == "rle"
    assert item["value"]["brushlabels"] == ["Car"]
    assert item["score"] == 0.9
    np.testing.assert_array_equal(alpha(item), ring_and_square())


def test_outlines_are_those_of_the_parts_that_are_no_specks() -> None:
    disc, square = sorted(drawn(POLYGONS, shape_of(ring_and_square())), key=lambda item: min(item["value"]["points"]))
    assert min(x for x, _ in disc["value"]["points"]) == pytest.approx(100 * 5.5 / 60, abs=1e-3)
    assert sorted(square["value"]["points"]) == [
        pytest.approx([100 * x / 60, 100 * y / 40], abs=1e-3) for x in (45.5, 54.5) for y in (5.5, 14.5)
    ]


def test_a_box_is_around_all_parts() -> None:
    (item,) = drawn(BOXES, shape_of(ring_and_square()))
    assert item["value"]["x"] == pytest.approx(100 * 5.5 / 60, abs=1e-3)
    assert item["value"]["x"] + item["value"]["width"] == pytest.approx(100 * 58.5 / 60, abs=1e-3)


def test_a_brush_is_no_place_for_boxes() -> None:
    config = parse_config(f'<View><Image name="img" value="$photo"/>{BRUSH}</View>')
    assert build_label_map(config, ["car"], task="detect").unmapped == ("car",)


@pytest.mark.parametrize("seed", range(20))
def test_what_is_painted_is_what_was_outlined(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2)
    noise = rng.random((height, width)) < rng.random()
    smooth = cv2.GaussianBlur(rng.random((height, width), np.float32), (0, 0), 1.5) > 0.5
    for covered in (noise, smooth):
        mask = mask_of(covered)
        painted = paint(mask if mask is not None else Mask(()), Size(int(width), int(height)))
        np.testing.assert_array_equal(painted, covered)
        flat = np.array(decode_rle(encode_rle(covered)), np.uint8).reshape(height, width, 4)
        np.testing.assert_array_equal(flat, np.where(covered, 255, 0)[:, :, None].repeat(4, axis=2))
        assert mask_from(encode_rle(covered), Size(int(width), int(height))) == mask


def test_a_long_run_is_written_in_pieces() -> None:
    covered = np.ones((200, 300), bool)
    assert decode_rle(encode_rle(covered)) == [255] * (4 * 200 * 300)


@pytest.mark.parametrize(
    "mask",
    [
        Mask(()),
        Mask((((),),)),
        Mask(((((math.nan, 1.0), (2.0, 2.0), (3.0, 1.0)),),)),
        Mask(((((1.0, 1.0), (math.inf, 2.0), (3.0, 1.0)),),)),
        Mask(((((70.0, 1.0), (80.0, 2.0), (75.0, 9.0)),),)),
    ],
    ids=["no parts", "a part without points", "no number", "infinite", "beside the picture"],
)
def test_what_is_not_in_the_picture_is_not_drawn(mask: Mask) -> None:
    assert drawn(BRUSH, mask) == []
    assert drawn(POLYGONS, mask) == []
    assert drawn(BOXES, mask) == []


def test_a_place_that_no_picture_has_is_not_painted() -> None:
    assert drawn(BRUSH, Mask(((((1e12, 1.0), (2.0, 2.0), (3.0, 1.0)),),))) == []


def test_a_mask_reaches_as_far_as_the_picture() -> None:
    (item,) = drawn(BRUSH, Mask(((((-20.0, -20.0), (10.5, -20.0), (10.5, 80.0), (-20.0, 80.0)),),)))
    np.testing.assert_array_equal(alpha(item), np.indices((SIZE.height, SIZE.width))[1] <= 10)


def test_what_lies_in_a_hole_lies_not_in_the_mask() -> None:
    mask = shape_of(ring_and_square())
    assert contains(mask, (10, 20))
    assert contains(mask, (50, 10))
    assert not contains(mask, (20, 20))
    # outlines run half a pixel inside what is covered, so their area is a little less than the pixels'
    assert area_of(mask) == pytest.approx(ring_and_square().sum(), rel=0.25)
    around = bounding_box(mask)
    assert isinstance(around, Box)
    assert around.xyxy == (5.5, 5.5, 58.5, 35.5)


def test_nothing_is_no_mask_and_a_list_of_numbers_neither() -> None:
    assert mask_of(np.zeros((4, 5))) is None
    with pytest.raises(ValueError, match="not \\[height, width\\]"):
        mask_of(np.ones(4))


def test_smooth_edges_are_read_as_editors_write_them() -> None:
    pixels = np.zeros((SIZE.height, SIZE.width, 4), np.uint8)
    pixels[10:20, 10:30] = (255, 0, 0, 255)
    pixels[9, 10:30] = (255, 0, 0, 127)
    pixels[20, 10:30] = (255, 0, 0, 128)
    painted = np.zeros((SIZE.height, SIZE.width), bool)
    painted[10:21, 10:30] = True
    code = written.encode_rle(pixels.ravel().tolist())
    np.testing.assert_array_equal(brush.decode_rle(code, SIZE), painted)


@pytest.mark.parametrize("parts", ["brushlabels", "brush and labels"])
def test_what_people_painted_is_read_as_a_mask(parts: str) -> None:
    where = {"from_name": "brush", "to_name": "img", "original_width": 60, "original_height": 40, "id": "r"}
    value = {"format": "rle", "rle": encode_rle(ring_and_square())}
    named = {"from_name": "kind", "to_name": "img", "original_width": 60, "original_height": 40, "id": "r"}
    result = (
        [{**where, "type": "brushlabels", "value": {**value, "brushlabels": ["Car"]}}]
        if parts == "brushlabels"
        else [{**where, "type": "brush", "value": value}, {**named, "type": "labels", "value": {"labels": ["Car"]}}]
    )
    config = parse_config(
        f'<View><Image name="img" value="$photo"/>{BRUSH if len(result) == 1 else NAMED_BY_ANOTHER}</View>'
    )
    assert wire.decode_regions(result, config) == [Region(shape_of(ring_and_square()), "Car", id="r", media=PHOTO)]


@pytest.mark.parametrize(
    "code",
    [
        [],
        [1, 2, 3],
        "AAAA",
        5,
        None,
        [256, 0],
        ["a"],
        encode_rle(np.ones((41, 60), bool)),
        encode_rle(ring_and_square())[:-4],
        encode_rle(np.zeros((40, 60), bool)),
        [0xFF, 0xFF, 0xFF, 0xFC, *encode_rle(ring_and_square())[4:]],
        written.encode_rle(b"ab" * 4 * 60 * 20 + b"behind")[:4] + written.encode_rle(b"x" * 65536)[4:],
    ],
    ids=["empty", "too short", "a text", "a number", "nothing", "no byte", "no number", "of another picture", "cut off", "nothing is painted", "of four gigabytes", "longer than it says"],
)  # fmt: skip
def test_what_is_no_mask_stays_as_it_was_written(code: Any) -> None:
    item = {
        "from_name": "brush", "to_name": "img", "original_width": 60, "original_height": 40, "id": "r",
        "type": "brushlabels", "value": {"format": "rle", "rle": code, "brushlabels": ["Car"]},
    }  # fmt: skip
    config = parse_config(f'<View><Image name="img" value="$photo"/>{BRUSH}</View>')
    assert wire.decode_regions([item], config) == [Region(Raw(item))]
