"""What a file says about itself, what a card adds, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.errors import ModelError, ModelUnrecognised
from labelloop.core.plugins import load
from labelloop.engines.detect import DetectEngine
from labelloop.engines.detect.recognise import recognise
from labelloop.engines.labels import COCO, COCO91
from labelloop.engines.onnx import Signature, Tensor
from reference import tiny_models as tiny
from reference.tiny_models import NAMES, Thing

THING = [Thing((10, 10, 50, 50), 1, 0.6)]


def describe(path: Path, **card: Any) -> ModelCard:
    return DetectEngine.describe(path, ModelCard(name="tiny", **card))


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def test_the_entry_point_is_this_engine() -> None:
    assert load("labelloop.engines", "detect") is DetectEngine


def test_a_card_is_completed_from_the_file_and_stays_what_it_is(tmp_path: Path) -> None:
    path = tiny.build_v8(tmp_path / "v8.onnx", THING)
    card = describe(path, score_threshold=0.2, description="mine")
    assert card == ModelCard(
        name="tiny",
        family="ultralytics-v8",
        labels=NAMES,
        input=InputSpec(
            size_wh=(640, 640),
            color="rgb",
            resize="letterbox-center",
            pad=114.0,
            scale=1 / 255,
            mean=(0.0, 0.0, 0.0),
            std=(1.0, 1.0, 1.0),
        ),
        score_threshold=0.2,
        iou_threshold=0.7,
        description="mine",
    )
    assert DetectEngine.describe(path, card) == card


def test_what_the_card_says_wins(tmp_path: Path) -> None:
    path = tiny.build_mmdeploy(tmp_path / "m.onnx", THING)
    given = InputSpec(color="rgb", scale=1 / 255, mean=(0, 0, 0), resize="letterbox-center")
    card = describe(path, labels=NAMES, input=given, iou_threshold=0.5)
    assert (card.input.color, card.input.mean, card.input.resize) == ("rgb", (0, 0, 0), "letterbox-center")
    assert card.input.std == (57.375, 57.12, 58.395)
    assert card.iou_threshold == 0.5


@pytest.mark.parametrize(
    ("outputs", "options", "family"),
    [
        pytest.param({"o": zeros(3549, 85)}, {"last": "Transpose"}, "yolox", id="3549 rows at 416: YOLOX"),
        pytest.param({"o": zeros(3549, 85)}, {"last": "Exp"}, "yolox-decoded", id="with an Exp: decoded YOLOX"),
        pytest.param({"o": zeros(10647, 85)}, {}, "ultralytics-v5", id="three times 3549 rows: v5"),
        pytest.param({"o": zeros(85, 3549)}, {}, "ultralytics-v8", id="the grid last: v8 with 81 classes"),
        pytest.param({"o": zeros(10647, 6)}, {}, "ultralytics-v5", id="six columns on the v5 grid: v5 with one class"),
        pytest.param(
            {"o": zeros(3549, 6)}, {"last": "Transpose"}, "yolox", id="six columns on the grid: YOLOX, one class"
        ),
        pytest.param({"o": zeros(300, 6)}, {}, "ultralytics-e2e", id="six columns, 300 rows: end to end"),
        pytest.param({"o": zeros(6, 3549)}, {}, "ultralytics-v8", id="six rows: v8 with two classes"),
        pytest.param({"o": zeros(3549, 112)}, {"last": "Transpose"}, "nanodet", id="80 + 32 columns: joined NanoDet"),
        pytest.param({"o": zeros(3598, 112)}, {"last": "Transpose"}, "nanodet-plus", id="with stride 64: NanoDet-Plus"),
        pytest.param({"o": zeros(3549, 37)}, {"last": "Transpose"}, "yolox", id="37 columns: YOLOX with 32 classes"),
    ],
)
def test_shapes_that_look_alike_are_told_apart(
    tmp_path: Path, outputs: dict[str, np.ndarray], options: dict[str, Any], family: str
) -> None:
    path = tiny.save(tmp_path / "x.onnx", outputs, size_wh=(416, 416), **options)
    labels = ("one", "two") if family == "ultralytics-e2e" else ()
    assert describe(path, labels=labels).family == family


@pytest.mark.parametrize(
    ("operators", "family"),
    [
        pytest.param({"x": "Sigmoid", "output": "Transpose"}, "yolox", id="as exported"),
        pytest.param({"x": "Transpose", "output": "Cast"}, "yolox", id="half precision"),
        pytest.param({"x": "Transpose", "output": "DequantizeLinear"}, "yolox", id="int8"),
        pytest.param({"x": "Exp", "output": "Concat"}, "yolox-decoded", id="decoded"),
        pytest.param({"x": "Exp", "output": "Transpose"}, "yolox-decoded", id="decoded, then turned"),
        pytest.param({"x": "Mul", "output": "Concat"}, None, id="decoded without Exp (YOLOv6): the card must say so"),
    ],
)
def test_operators_tell_raw_from_decoded(operators: dict[str, str], family: str | None) -> None:
    signature = Signature(
        inputs=(Tensor("images", (1, 3, 416, 416), "float32"),),
        outputs=(Tensor("output", (1, 3549, 85), "float32"),),
        producers=operators,
    )
    if family is None:
        with pytest.raises(ModelUnrecognised):
            recognise(signature, ModelCard(name="tiny", labels=COCO))
    else:
        assert recognise(signature, ModelCard(name="tiny", labels=COCO))[0].family == family


@pytest.mark.parametrize(
    ("shape", "metadata", "family"),
    [
        pytest.param(("b", "rows", 8), {}, "ultralytics-v5", id="v5: three names, eight columns"),
        pytest.param(("b", 7, "rows"), {}, "ultralytics-v8", id="v8: three names, seven rows"),
        pytest.param(("b", 300, 6), {}, "ultralytics-e2e", id="v10: 300 rows, six columns"),
        pytest.param(("b", "rows", 6), {"end2end": "True"}, "ultralytics-e2e", id="26: said by the metadata"),
        pytest.param(("b", "rows", 6), {"args": "{'nms': True}"}, "ultralytics-e2e", id="suppressed in the file"),
        pytest.param(("b", "rows", 6), {"names": "['one']"}, "ultralytics-v5", id="v5: one name, six columns"),
        pytest.param(("b", "rows", 85), {"names": "['one']"}, None, id="columns that fit nothing"),
        pytest.param(("b", 300, 38), {}, None, id="a mask's coefficients behind the class"),
    ],
)
def test_free_axes_are_settled_by_the_metadata(
    shape: tuple[Any, ...], metadata: dict[str, str], family: str | None
) -> None:
    signature = Signature(
        inputs=(Tensor("images", ("b", 3, "h", "w"), "float32"),),
        outputs=(Tensor("output0", shape, "float32"),),
        metadata=tiny.ultralytics_metadata(size_wh=(640, 640)) | metadata,
    )
    if family is None:
        with pytest.raises(ModelUnrecognised):
            recognise(signature, ModelCard(name="tiny"))
    else:
        head, card = recognise(signature, ModelCard(name="tiny"))
        assert (head.family, card.input.size_wh) == (family, (640, 640))


def test_known_class_names_settle_what_the_shape_cannot(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "x.onnx", {"o": zeros(3549, 37)}, size_wh=(416, 416), last="Transpose")
    assert describe(path, labels=tuple("abcde")).family == "nanodet"
    assert describe(path, labels=tuple(str(i) for i in range(32))).family == "yolox"


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        pytest.param({"a": zeros(7, 7)}, "no family", id="nothing like a detector"),
        pytest.param(
            {"a": zeros(3549, 85)}, "no family", id="YOLOX's shape, but neither raw nor decoded by its operators"
        ),
        pytest.param({"a": zeros(20), "b": zeros(20, 4)}, "no family", id="two outputs of no family"),
    ],
)
def test_an_unrecognised_file_shows_what_it_has_and_what_to_say(tmp_path: Path, outputs: Any, why: str) -> None:
    path = tiny.save(tmp_path / "x.onnx", outputs, size_wh=(416, 416))
    with pytest.raises(ModelUnrecognised) as caught:
        describe(path)
    text = str(caught.value)
    assert why in text
    assert "images float32 [1, 3, 416, 416]" in text
    assert all(f"{name} float32 [1, {', '.join(map(str, value.shape))}]" in text for name, value in outputs.items())
    assert all(word in text for word in ("`family`", "yolox-decoded", "mmdeploy", "`labels`", "size_wh", "mean"))


def test_the_card_settles_it(tmp_path: Path) -> None:
    path = tiny.build_yolox(tmp_path / "x.onnx", THING, last="Identity", decoded=True)
    with pytest.raises(ModelUnrecognised):
        describe(path, labels=NAMES)
    assert describe(path, labels=NAMES, family="yolox-decoded").family == "yolox-decoded"


def build(name: str, **more: Any) -> Callable[[Path], Path]:
    return lambda folder: getattr(tiny, f"build_{name}")(folder / "x.onnx", THING, **more)


@pytest.mark.parametrize(
    ("make", "card", "error", "words"),
    [
        pytest.param(
            build("v8", metadata=tiny.ultralytics_metadata(size_wh=(640, 640), task="segment")),
            {},
            ModelError,
            ["segment", "detection"],
            id="another task",
        ),
        pytest.param(
            build("v8"), {"labels": ("a", "b")}, ModelError, ["2 class names", "3 classes"], id="too few names"
        ),
        pytest.param(
            build("yolox", classes=80),
            {"labels": COCO91},
            ModelError,
            ["91 class names", "80"],
            id="the wrong COCO list",
        ),
        pytest.param(build("detr"), {}, ModelError, ["how many", "--labels coco"], id="no names and no count"),
        pytest.param(build("v8"), {"family": "ultralytics-v9"}, ModelError, ["Did you mean"], id="no such family"),
        pytest.param(
            build("v8"), {"family": "detr"}, ModelUnrecognised, ["'detr'", "output0"], id="cannot be that family"
        ),
        pytest.param(
            build("v8"),
            {"input": InputSpec(size_wh=(320, 320))},
            ModelError,
            ["320 x 320", "640 x 640"],
            id="another size",
        ),
    ],
)
def test_contradictions_are_errors_that_name_both_sides(
    tmp_path: Path, make: Callable[[Path], Path], card: dict[str, Any], error: type[ModelError], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        describe(make(tmp_path), **card)
    assert type(caught.value) is error
    assert caught.value.hint
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_model_without_file_is_an_error() -> None:
    with pytest.raises(ModelError, match="no file"):
        DetectEngine.describe(None, ModelCard(name="tiny"))


def test_without_names_classes_are_numbered_and_a_warning_says_so(tmp_path: Path) -> None:
    with capture_logs() as logs:
        card = describe(tiny.build_yolox(tmp_path / "x.onnx", THING))
    assert card.labels == ("class_0", "class_1", "class_2")
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("labels-missing", "warning")]


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        pytest.param(NAMES, ("__background__", *NAMES), id="the trained classes: a background is put before"),
        pytest.param(("background", *NAMES), ("background", *NAMES), id="with background: as given"),
        pytest.param(COCO, COCO91, id="the 80 of COCO: their category ids"),
    ],
)
def test_torchvision_counts_from_one(tmp_path: Path, given: tuple[str, ...], labels: tuple[str, ...]) -> None:
    path = tiny.build_torchvision(tmp_path / "x.onnx", THING)
    with capture_logs():
        assert describe(path, labels=given).labels == labels


@pytest.mark.parametrize(
    "names",
    [
        pytest.param("__import__('os').abort()", id="code is not run"),
        pytest.param("{0: 'cat', 1: ", id="cut off"),
        pytest.param("(" * 5000, id="deep"),
        pytest.param("{0: {1: 2}}", id="not names"),
        pytest.param("{999999999: 'cat'}", id="an index without end"),
    ],
)
def test_names_that_cannot_be_read_are_left_out(tmp_path: Path, names: str) -> None:
    metadata = tiny.ultralytics_metadata(size_wh=(640, 640)) | {"names": names}
    with capture_logs() as logs:
        card = describe(tiny.build_v8(tmp_path / "x.onnx", THING, metadata=metadata))
    assert card.labels == ("class_0", "class_1", "class_2")
    assert [entry["event"] for entry in logs] == ["metadata-names-unreadable", "labels-missing"]
