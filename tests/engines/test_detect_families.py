"""Every family, from hand-built files whose boxes are known, through resizing and back to pixels of the picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Region, Size
from labelloop.engines.base import EngineOptions
from labelloop.engines.detect import DetectEngine
from reference import tiny_models as tiny
from reference.tiny_models import NAMES, Thing

LANDSCAPE, PORTRAIT, SQUARE = Size(1280, 717), Size(333, 500), Size(64, 64)


class Family(NamedTuple):
    name: str
    build: Callable[..., Path]
    size_wh: tuple[int, int]
    resize: str
    suppresses: bool = False
    can_batch: bool = True
    more: Mapping[str, Any] = MappingProxyType({})
    card: Mapping[str, Any] = MappingProxyType({"labels": NAMES})


FAMILIES = [
    Family("ultralytics-v8", tiny.build_v8, (640, 640), "letterbox-center", suppresses=True, card={}),
    Family("ultralytics-v8", tiny.build_v8, (640, 384), "letterbox-center", suppresses=True, more={"metadata": {}}),
    Family("ultralytics-v5", tiny.build_v5, (640, 640), "letterbox-center", suppresses=True, card={}),
    Family("ultralytics-v5", tiny.build_v5, (320, 320), "letterbox-center", suppresses=True, more={"metadata": {}}),
    Family("ultralytics-e2e", tiny.build_end2end, (640, 640), "letterbox-center", card={}),
    Family("ultralytics-e2e", tiny.build_end2end, (640, 640), "letterbox-center", more={"metadata": {}}),
    Family("yolox", tiny.build_yolox, (416, 416), "letterbox-topleft", suppresses=True),
    Family("yolox-decoded", tiny.build_yolox, (416, 416), "letterbox-topleft", suppresses=True, more={"decoded": True}),
    Family("nanodet", tiny.build_nanodet, (320, 320), "letterbox-center", suppresses=True),
    Family("nanodet", tiny.build_nanodet, (320, 320), "letterbox-center", suppresses=True, more={"joined": True}),
    Family("nanodet-plus", tiny.build_nanodet, (416, 416), "letterbox-center", suppresses=True, more={"plus": True}),
    Family("mmdeploy", tiny.build_mmdeploy, (320, 320), "letterbox-topleft"),
    Family("detr", tiny.build_detr, (320, 320), "stretch"),
    Family("detr-raw", tiny.build_detr_raw, (320, 256), "stretch"),
    Family("detr-raw", tiny.build_detr_raw, (320, 320), "stretch", more={"names": ("labels", "dets")}),
    Family(
        "detr-softmax",
        tiny.build_detr_raw,
        (320, 320),
        "stretch",
        more={"softmax": True},
        card={"labels": NAMES, "family": "detr-softmax"},
    ),
    Family("torchvision", tiny.build_torchvision, (320, 320), "letterbox-topleft", can_batch=False),
    Family(
        "torchvision",
        tiny.build_torchvision,
        (320, 320),
        "letterbox-topleft",
        can_batch=False,
        more={"batch": None, "names": ("2763", "2764", "2765")},
    ),
]


def named(family: Family) -> str:
    return "-".join([family.name, *map(str, family.more)])


def picture(size: Size) -> Picture:
    return Picture(rgb=np.full((size.height, size.width, 3), 90, np.uint8), size=size)


def onto_network(xyxy: Sequence[float], size: Size, family: Family) -> tuple[float, ...]:
    """Where a box of the picture is in the network's input, written out here once more on purpose."""
    width, height = family.size_wh
    if family.resize == "stretch":
        inner_w, inner_h = width, height
    else:
        ratio = min(width / size.width, height / size.height)
        inner_w, inner_h = round(size.width * ratio), round(size.height * ratio)
    left = (width - inner_w) // 2 if family.resize == "letterbox-center" else 0
    top = (height - inner_h) // 2 if family.resize == "letterbox-center" else 0
    x, y = inner_w / size.width, inner_h / size.height
    return (xyxy[0] * x + left, xyxy[1] * y + top, xyxy[2] * x + left, xyxy[3] * y + top)


def scene(size: Size) -> list[tuple[tuple[float, float, float, float], int, float]]:
    """Boxes of the picture (as fractions of it first): small and large, two of one size far apart, one at the edge."""
    fractions = [
        ((0.10, 0.10, 0.30, 0.30), 0, 0.9),
        ((0.60, 0.60, 0.80, 0.80), 0, 0.8),
        ((0.25, 0.35, 0.65, 0.65), 1, 0.7),
        ((0.90, 0.00, 1.00, 0.12), 2, 0.6),
        ((0.10, 0.10, 0.30, 0.30), 2, 0.5),
    ]
    return [
        ((a * size.width, b * size.height, c * size.width, d * size.height), label, score)
        for (a, b, c, d), label, score in fractions
    ]


def engine(path: Path, **card: Any) -> DetectEngine:
    return DetectEngine(path, ModelCard(name=path.stem, **card), EngineOptions(device="cpu"))


def rows(regions: Sequence[Region]) -> list[tuple[float, ...]]:
    return [(*region.shape.xyxy, region.score) for region in regions if isinstance(region.shape, Box)]


@pytest.mark.parametrize("size", [LANDSCAPE, PORTRAIT], ids=["landscape", "portrait"])
@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_known_boxes_come_back_in_pixels_of_the_picture(tmp_path: Path, family: Family, size: Size) -> None:
    expected = scene(size)
    things = [Thing(onto_network(xyxy, size, family), label, score) for xyxy, label, score in expected]
    path = family.build(tmp_path / "tiny.onnx", things, size_wh=family.size_wh, **family.more)
    detector = engine(path, **family.card)
    assert detector.card.family == family.name
    assert detector.classes == NAMES
    assert detector.input_size == Size(*family.size_wh)
    [regions] = detector.predict([detector.prepare(picture(size))])
    assert [region.label for region in regions] == [NAMES[label] for _, label, _ in expected]
    np.testing.assert_allclose(rows(regions), [(*xyxy, score) for xyxy, _, score in expected], atol=0.02)


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_overlapping_boxes_go_only_where_the_network_left_them(tmp_path: Path, family: Family) -> None:
    box, shifted = (100.0, 100.0, 160.0, 160.0), (104.0, 100.0, 164.0, 160.0)
    things = [Thing(box, 1, 0.6), Thing(shifted, 1, 0.7), Thing(shifted, 0, 0.5)]
    path = family.build(tmp_path / "tiny.onnx", things, size_wh=family.size_wh, **family.more)
    detector = engine(path, **family.card)
    [regions] = detector.predict([detector.prepare(picture(Size(*family.size_wh)))])
    assert [(region.label, round(region.score or 0, 3)) for region in regions] == (
        [("dog", 0.7), ("cat", 0.5)] if family.suppresses else [("dog", 0.7), ("dog", 0.6), ("cat", 0.5)]
    )


@pytest.mark.parametrize("batch", [1, 2, "batch"])
@pytest.mark.parametrize("family", [family for family in FAMILIES if family.can_batch], ids=named)
def test_fixed_and_free_batches_answer_every_picture(tmp_path: Path, family: Family, batch: int | str) -> None:
    thing = Thing((100.0, 100.0, 160.0, 160.0), 1, 0.6)
    path = family.build(tmp_path / "tiny.onnx", [thing], size_wh=family.size_wh, batch=batch, **family.more)
    detector = engine(path, **family.card)
    assert detector.max_batch == (2 if batch == 2 else 1)
    sizes = [Size(*family.size_wh), Size(family.size_wh[0] * 2, family.size_wh[1] * 2), Size(*family.size_wh)]
    answers = detector.predict([detector.prepare(picture(size)) for size in sizes])
    assert [rows(answer)[0][0] for answer in answers] == pytest.approx([100, 200, 100], abs=0.01)


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_a_network_that_sees_nothing_answers_nothing(tmp_path: Path, family: Family) -> None:
    faint = [Thing((100.0, 100.0, 160.0, 160.0), 1, 0.004)]
    path = family.build(tmp_path / "tiny.onnx", faint, size_wh=family.size_wh, **family.more)
    detector = engine(path, **family.card)
    assert detector.predict([detector.prepare(picture(SQUARE))]) == [()]
    assert detector.predict([]) == []


def test_yolov8_with_the_shapes_of_coco(tmp_path: Path) -> None:
    names = [f"thing {index}" for index in range(80)]
    metadata = tiny.ultralytics_metadata(names, size_wh=(640, 640))
    path = tiny.build_v8(tmp_path / "v8.onnx", [Thing((0, 140, 320, 500), 79, 0.75)], classes=80, metadata=metadata)
    detector = engine(path)
    assert [output.shape for output in detector._model.signature.outputs] == [(1, 84, 8400)]
    [regions] = detector.predict([detector.prepare(picture(Size(1280, 720)))])
    assert regions == (Region(Box((0.0, 0.0, 640.0, 720.0)), "thing 79", 0.75),)


@pytest.mark.parametrize(
    ("given", "pixels"),
    [
        pytest.param({}, (640, 384), id="the metadata's, height before width"),
        pytest.param({"input": InputSpec(size_wh=(320, 192))}, (320, 192), id="the card's"),
    ],
)
def test_a_free_size_is_taken_from(tmp_path: Path, given: dict[str, Any], pixels: tuple[int, int]) -> None:
    thing = Thing((10, 10, 90, 90), 1, 0.6)
    path = tiny.build_v8(tmp_path / "free.onnx", [thing], size_wh=(640, 384), free_size=True, batch="b")
    detector = engine(path, family="ultralytics-v8", **given)
    assert detector.input_size == Size(*pixels)
    prepared = detector.prepare(picture(Size(*pixels)))
    assert prepared.planes.shape == (3, pixels[1], pixels[0])
    assert rows(detector.predict([prepared])[0])[0][:4] == pytest.approx((10, 10, 90, 90))


def test_torchvision_with_a_free_size_gets_the_picture_as_it_is(tmp_path: Path) -> None:
    path = tiny.build_torchvision(tmp_path / "tv.onnx", [Thing((10, 20, 110, 220), 1, 0.6)], free_size=True, batch=None)
    detector = engine(path, labels=NAMES)
    assert detector.input_size is None
    reduced = Picture(rgb=np.zeros((240, 160, 3), np.uint8), size=Size(320, 480))
    prepared = detector.prepare(reduced)
    assert prepared.planes.shape == (3, 240, 160)
    assert rows(detector.predict([prepared])[0])[0][:4] == pytest.approx((20, 40, 220, 440))


NO_MEAN, NO_STD = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
COCO_BGR = ((103.53, 116.28, 123.675), (57.375, 57.12, 58.395))
PREPARED = {
    "ultralytics-v5": ("rgb", 114, 1 / 255, NO_MEAN, NO_STD),
    "ultralytics-v8": ("rgb", 114, 1 / 255, NO_MEAN, NO_STD),
    "ultralytics-e2e": ("rgb", 114, 1 / 255, NO_MEAN, NO_STD),
    "yolox": ("bgr", 114, 1, NO_MEAN, NO_STD),
    "yolox-decoded": ("bgr", 114, 1, NO_MEAN, NO_STD),
    "nanodet": ("bgr", 0, 1, *COCO_BGR),
    "nanodet-plus": ("bgr", 0, 1, *COCO_BGR),
    "mmdeploy": ("bgr", 114, 1, *COCO_BGR),
    "detr": ("rgb", 0, 1 / 255, NO_MEAN, NO_STD),
    "detr-raw": ("rgb", 0, 1 / 255, NO_MEAN, NO_STD),
    "detr-softmax": ("rgb", 0, 1 / 255, NO_MEAN, NO_STD),
    "torchvision": ("rgb", 114, 1 / 255, NO_MEAN, NO_STD),
}


@pytest.mark.parametrize("family", FAMILIES, ids=named)
def test_pictures_are_prepared_as_the_familys_own_code_does(tmp_path: Path, family: Family) -> None:
    thing = Thing((100.0, 100.0, 160.0, 160.0), 1, 0.6)
    path = family.build(tmp_path / "tiny.onnx", [thing], size_wh=family.size_wh, **family.more)
    color, pad, scale, mean, std = PREPARED[family.name]
    assert DetectEngine.describe(path, ModelCard(name="tiny", **family.card)).input == InputSpec(
        size_wh=family.size_wh, color=color, resize=family.resize, pad=pad, scale=scale, mean=mean, std=std
    )
