"""The engine around the heads: preparing pictures, batches, threads, and networks that say impossible things."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from onnx import TensorProto
from structlog.testing import capture_logs

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Region, Size
from labelloop.engines.base import EngineOptions
from labelloop.engines.detect import DetectEngine
from labelloop.engines.detect.prepare import Normaliser, prepare
from reference import tiny_models as tiny
from reference.tiny_models import NAMES, Thing

SMALL = Size(64, 64)
INF, NAN = float("inf"), float("nan")


def engine(path: Path, *, threads: int = 1, **card: Any) -> DetectEngine:
    return DetectEngine(path, ModelCard(name=path.stem, **card), EngineOptions(device="cpu", threads=threads))


def flat(value: tuple[int, int, int], *, size: Size = SMALL) -> Picture:
    return Picture(rgb=np.full((size.height, size.width, 3), value, np.uint8), size=size)


def noise(width: int, height: int) -> Picture:
    rgb = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Picture(rgb=rgb, size=Size(width, height))


# --- preparing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resize", "size", "inside"),
    [
        pytest.param("stretch", Size(200, 50), (0, 0, 96, 64), id="stretch"),
        pytest.param("letterbox-topleft", Size(192, 64), (0, 0, 96, 32), id="wide, top left"),
        pytest.param("letterbox-center", Size(192, 64), (0, 16, 96, 48), id="wide, centred"),
        pytest.param("letterbox-center", Size(32, 64), (32, 0, 64, 64), id="high, centred"),
        pytest.param("letterbox-center", Size(24, 16), (0, 0, 96, 64), id="enlarged"),
        pytest.param("letterbox-center", Size(1000, 1), (0, 31, 96, 32), id="one row stays one row"),
    ],
)
def test_where_the_picture_lies_in_the_frame(resize: Any, size: Size, inside: tuple[int, int, int, int]) -> None:
    spec = InputSpec(size_wh=(96, 64), color="rgb", resize=resize, pad=7)
    planes = prepare(flat((10, 20, 30), size=size), spec).planes
    expected = np.full((3, 64, 96), 7)
    left, top, right, bottom = inside
    expected[:, top:bottom, left:right] = np.array([10, 20, 30])[:, None, None]
    assert planes.dtype == np.uint8
    np.testing.assert_array_equal(planes, expected)


def test_a_picture_of_the_right_size_is_not_touched() -> None:
    picture = noise(96, 64)
    prepared = prepare(picture, InputSpec(size_wh=(96, 64), color="bgr", resize="letterbox-center", pad=0))
    np.testing.assert_array_equal(prepared.planes, picture.rgb[:, :, ::-1].transpose(2, 0, 1))


def test_resizing_is_bilinear() -> None:
    picture = noise(150, 90)
    prepared = prepare(picture, InputSpec(size_wh=(100, 60), color="rgb", resize="stretch"))
    np.testing.assert_array_equal(prepared.planes.transpose(1, 2, 0), cv2.resize(picture.rgb, (100, 60)))


def test_a_large_picture_is_averaged_not_sampled() -> None:
    rgb = np.zeros((640, 640, 3), np.uint8)
    rgb[:, ::8] = 240  # every eighth column: bilinear sampling alone would see all of them or none
    prepared = prepare(
        Picture(rgb=rgb, size=Size(640, 640)), InputSpec(size_wh=(80, 80), color="rgb", resize="stretch")
    )
    assert prepared.planes.mean() == pytest.approx(30, abs=1)


def test_a_picture_decoded_at_a_reduced_scale_keeps_its_coordinates() -> None:
    spec = InputSpec(size_wh=(320, 320), color="rgb", resize="letterbox-center", pad=114)
    whole = prepare(flat((9, 9, 9), size=Size(1999, 1333)), spec)
    reduced = prepare(Picture(rgb=np.full((167, 250, 3), 9, np.uint8), size=Size(1999, 1333)), spec)
    np.testing.assert_array_equal(whole.planes, reduced.planes)
    assert (whole.scale_xy, whole.offset_xy) == (reduced.scale_xy, reduced.offset_xy)


@pytest.mark.parametrize("size", [Size(96, 64), Size(50, 40)], ids=["as it is", "resized"])
def test_frames_that_lie_plane_by_plane_are_prepared_as_pictures_are(size: Size) -> None:
    picture = noise(*size)
    planes = np.ascontiguousarray(picture.rgb.transpose(2, 0, 1))
    spec = InputSpec(size_wh=(96, 96), color="bgr", resize="letterbox-topleft", pad=114)
    plane_by_plane = prepare(Picture(rgb=planes.transpose(1, 2, 0), size=picture.size), spec)
    np.testing.assert_array_equal(plane_by_plane.planes, prepare(picture, spec).planes)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(InputSpec(scale=1.0, mean=(0, 0, 0), std=(1, 1, 1)), id="as it is"),
        pytest.param(InputSpec(scale=1 / 255, mean=(0, 0, 0), std=(1, 1, 1)), id="scaled"),
        pytest.param(InputSpec(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)), id="ImageNet"),
        pytest.param(InputSpec(scale=1.0, mean=(103.53, 116.28, 123.675), std=(57.375, 57.12, 58.395)), id="0..255"),
    ],
)
def test_normalising_follows_the_formula(spec: InputSpec) -> None:
    picture = noise(40, 30)
    prepared = prepare(picture, InputSpec(size_wh=(40, 30), color="rgb", resize="stretch"))
    tensor = Normaliser(spec, dtype="float32").tensor([prepared, prepared], size=3)
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    plain = (picture.rgb.astype(np.float64) * (spec.scale or 0) - spec.mean) / spec.std
    for image in tensor[:2]:
        np.testing.assert_allclose(image, plain.transpose(2, 0, 1), atol=2e-6 * np.abs(plain).max())
    assert not tensor[2].any()


# --- batches and threads -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batch", "color", "channel"), [(1, "rgb", 1), (4, "rgb", 1), ("b", "rgb", 1), ("b", "bgr", 1)], ids=str
)
def test_each_picture_gets_its_own_answer(tmp_path: Path, batch: int | str, color: Any, channel: int) -> None:
    """The probe's score is the mean of the first channel it gets, which is red or blue by the card."""
    detector = engine(tiny.build_probe(tmp_path / "probe.onnx", batch=batch), input=InputSpec(color=color))
    detector.max_batch = 3 if batch == "b" else detector.max_batch
    reds = [30 + 20 * index for index in range(7)]
    pictures = [flat((red, 0, 255 - red)) for red in reds]
    answers = detector.predict([detector.prepare(picture) for picture in pictures])
    expected = [(red if color == "rgb" else 255 - red) / 255 for red in reds]
    assert [answer[0].score for answer in answers] == pytest.approx(expected, abs=1e-5)
    assert detector.parallel == 1


def test_threads_share_one_engine(tmp_path: Path) -> None:
    detector = engine(tiny.build_probe(tmp_path / "probe.onnx"), threads=4)
    assert detector.parallel == 4

    def score(red: int) -> float:
        [[region]] = detector.predict([detector.prepare(flat((red, 0, 0)))])
        return float(region.score or 0)

    reds = list(range(20, 220))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(score, reds)) == pytest.approx([red / 255 for red in reds], abs=1e-5)


@pytest.mark.parametrize(
    ("dtype", "given", "score", "tolerance"),
    [
        pytest.param(TensorProto.FLOAT16, {}, 100 / 255, 1e-3, id="half precision"),
        pytest.param(TensorProto.DOUBLE, {}, 100 / 255, 1e-6, id="double precision"),
    ],
)
def test_other_number_types(tmp_path: Path, dtype: int, given: Any, score: float, tolerance: float) -> None:
    detector = engine(tiny.build_probe(tmp_path / "probe.onnx", size_wh=(16, 16), dtype=dtype), **given)
    [[region]] = detector.predict([detector.prepare(flat((100, 0, 0)))])
    assert region.score == pytest.approx(score, abs=tolerance)
    assert region.shape == Box((0.0, 0.0, 64.0, 64.0))


# --- what networks say ---------------------------------------------------------------------------------


def test_impossible_boxes_are_left_out_and_the_rest_is_clipped(tmp_path: Path) -> None:
    things = [
        Thing((10, 10, 50, 50), 0, 0.9),
        Thing((NAN, 10, 50, 50), 0, 0.8),
        Thing((10, 10, INF, 50), 0, 0.8),
        Thing((10, 10, 50, 50), 0, NAN),
        Thing((10, 10, 50, 50), 0, INF),
        Thing((50, 10, 50, 50), 0, 0.8),
        Thing((50, 50, 10, 10), 0, 0.8),
        Thing((650, 10, 700, 50), 0, 0.8),
        Thing((-20, 600, 30, 700), 1, 0.7),
        Thing((10, 10, 50, 50), 2, 1.0000002),
    ]
    detector = engine(tiny.build_end2end(tmp_path / "e2e.onnx", things))
    [regions] = detector.predict([detector.prepare(flat((0, 0, 0), size=Size(640, 640)))])
    assert [(region.label, region.shape, pytest.approx(region.score)) for region in regions] == [
        ("bird", Box((10.0, 10.0, 50.0, 50.0)), 1.0),
        ("cat", Box((10.0, 10.0, 50.0, 50.0)), 0.9),
        ("dog", Box((0.0, 600.0, 30.0, 640.0)), 0.7),
    ]
    assert regions[0].score == 1.0


def test_boxes_in_the_padding_are_left_out(tmp_path: Path) -> None:
    things = [Thing((10, 10, 50, 50), 0, 0.9), Thing((100, 100, 200, 200), 0, 0.8)]
    detector = engine(tiny.build_end2end(tmp_path / "e2e.onnx", things))
    [regions] = detector.predict([detector.prepare(flat((0, 0, 0), size=Size(640, 460)))])
    assert [region.shape for region in regions] == [Box((100.0, 10.0, 200.0, 110.0))]


def test_a_class_without_a_name_is_left_out_and_said_once(tmp_path: Path) -> None:
    things = [Thing((10, 10, 50, 50), label, 0.5 + label / 100) for label in (0, 1, 7)]
    detector = engine(tiny.build_mmdeploy(tmp_path / "m.onnx", things), labels=NAMES, score_threshold=-1.0)
    prepared = detector.prepare(flat((0, 0, 0)))
    with capture_logs() as logs:
        first, second = detector.predict([prepared, prepared])
    assert [region.label for region in first] == [region.label for region in second] == ["dog", "cat"]
    assert [entry["event"] for entry in logs] == ["class-without-name"]


def test_background_and_unused_indices_are_no_classes(tmp_path: Path) -> None:
    things = [Thing((10, 10, 50, 50), label, 0.5) for label in (-1, 0, 1)]
    labels = ("__background__", "cat", "N/A")
    detector = engine(tiny.build_torchvision(tmp_path / "tv.onnx", things), labels=labels)
    assert detector.classes == ("cat",)
    [regions] = detector.predict([detector.prepare(flat((0, 0, 0)))])
    assert [region.label for region in regions] == ["cat"]


def test_the_card_sets_thresholds_and_the_most_boxes(tmp_path: Path) -> None:
    boxes = [(10.0 + 70 * i, 10.0, 70.0 + 70 * i, 70.0) for i in range(5)]
    things = [Thing(box, 0, 0.2 + 0.1 * i) for i, box in enumerate(boxes)] + [Thing((25, 10, 85, 70), 0, 0.15)]
    path = tiny.build_v8(tmp_path / "v8.onnx", [*things, Thing((500, 500, 600, 600), 1, 0.004)])

    def scores(**card: Any) -> list[float]:
        detector = engine(path, **card)
        [regions] = detector.predict([detector.prepare(flat((0, 0, 0), size=Size(640, 640)))])
        return [round(float(region.score or 0), 3) for region in regions]

    assert scores() == [0.6, 0.5, 0.4, 0.3, 0.2, 0.15]
    assert scores(score_threshold=0.35) == scores(), "for drawing: a label config may ask for less"
    assert scores(score_threshold=0.001)[-1] == 0.004, "it may ask for less than the family's floor too"
    assert scores(max_detections=2) == [0.6, 0.5]
    assert scores(iou_threshold=0.5) == [0.6, 0.5, 0.4, 0.3, 0.2]


def test_a_crowd_of_three_thousand_candidates(tmp_path: Path) -> None:
    """Each of 300 places is seen ten times; each must be answered once, by its best."""
    random = np.random.default_rng(3)
    things = []
    for place in range(300):
        x, y = 30 * (place % 20) + 10, 40 * (place // 20) + 10
        scores = random.uniform(0.1, 0.9, 10).tolist()
        things += [Thing((x, y, x + 24, y + 30), place % 3, score) for score in scores]
    path = tiny.build_v8(tmp_path / "crowd.onnx", things)
    detector = engine(path)
    [regions] = detector.predict([detector.prepare(flat((0, 0, 0), size=Size(640, 640)))])
    best: dict[tuple[float, ...], float] = {}
    for thing in things:
        best[thing.xyxy] = max(best.get(thing.xyxy, 0), thing.score)

    def found(region: Region) -> tuple[float, ...]:
        assert isinstance(region.shape, Box)
        return tuple(float(round(side)) for side in region.shape.xyxy)

    assert {found(region): pytest.approx(region.score) for region in regions} == best
    assert [region.score for region in regions] == sorted((region.score for region in regions), reverse=True)
