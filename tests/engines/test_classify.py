"""Classifiers in ONNX files: which files they are, what they see of a picture, and what they say of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.errors import ModelError, ModelUnrecognised
from labelloop.core.pictures import Picture
from labelloop.core.regions import Region, Size, Whole
from labelloop.core.settings import read_settings
from labelloop.engines.base import EngineOptions
from labelloop.engines.classify import CROP, ClassifyEngine, prepare_for
from labelloop.serving.models import add_model, open_registry
from reference.tiny_models import Thing, build_v8

COLOURS = ("red", "green", "blue")
SIDE = 32
CPU = EngineOptions(device="cpu")


def build(
    path: Path,
    *,
    ends_in: str = "",
    names: Sequence[str] = COLOURS,
    layout: str = "nchw",
    batch: int | str = "b",
    side: int | str = SIDE,
    four_axes: bool = False,
    gain: float = 4.0,
) -> Path:
    """A real little network: the mean of each channel, times `gain`, is the score of its colour."""
    shape = [batch, 3, side, side] if layout == "nchw" else [batch, side, side, 3]
    nodes = [] if layout == "nchw" else [helper.make_node("Transpose", ["image"], ["planes"], perm=[0, 3, 1, 2])]
    planes = "image" if layout == "nchw" else "planes"
    nodes.append(helper.make_node("GlobalAveragePool", [planes], ["means"]))
    if four_axes:
        nodes.append(helper.make_node("Mul", ["means", "gain"], ["raw"]))
    else:
        nodes += [
            helper.make_node("Flatten", ["means"], ["flat"]),
            helper.make_node("Gemm", ["flat", "weights"], ["raw"]),
        ]
    nodes.append(helper.make_node(ends_in or "Identity", ["raw"], ["scores"]))
    constants = [
        numpy_helper.from_array(np.eye(3, dtype=np.float32) * gain, "weights"),
        numpy_helper.from_array(np.float32(gain), "gain"),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 3, 1, 1] if four_axes else [batch, 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    if names:
        model.metadata_props.add(key="names", value=str(dict(enumerate(names))))
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def plain(colour: str, width: int = 60, height: int = 40) -> Picture:
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., COLOURS.index(colour)] = 255
    return Picture(rgb, Size(width, height))


def ask(engine: ClassifyEngine, *pictures: Picture) -> list[tuple[Region, ...]]:
    return engine.predict([engine.prepare(picture) for picture in pictures])


@pytest.mark.parametrize(
    ("build_options", "family"),
    [
        ({}, "softmax"),
        ({"ends_in": "Softmax"}, "probabilities"),
        ({"ends_in": "Sigmoid"}, "probabilities"),
        ({"four_axes": True}, "softmax"),
        ({"layout": "nhwc"}, "softmax"),
        ({"batch": 1}, "softmax"),
        ({"batch": 4}, "softmax"),
        ({"side": "s"}, "softmax"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
def test_a_file_is_recognised_and_right_about_plain_colours(
    tmp_path: Path, build_options: dict[str, object], family: str
) -> None:
    file = build(tmp_path / "colours.onnx", **build_options)
    card = ClassifyEngine.describe(file, ModelCard(name="colours"))
    assert (card.engine, card.task, card.family, card.labels) == ("classify", "classify", family, COLOURS)
    assert card.input.size_wh == ((224, 224) if build_options.get("side") == "s" else (SIDE, SIDE))
    engine = ClassifyEngine(file, card, CPU)
    found = ask(engine, *map(plain, COLOURS), *map(plain, COLOURS))
    assert [regions[0].label for regions in found] == [*COLOURS, *COLOURS]
    for regions in found:
        scores = [region.score for region in regions]
        assert scores == sorted(scores, reverse=True)
        assert all(type(region.shape) is Whole for region in regions)


def test_logits_become_the_softmax_of_imagenets_normalisation(tmp_path: Path) -> None:
    file = build(tmp_path / "colours.onnx", gain=1.0)
    engine = ClassifyEngine(file, ModelCard(name="m"), CPU)
    (regions,) = ask(engine, plain("green"))
    pixel = (np.array([0, 1, 0]) - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    expected = np.exp(pixel) / np.exp(pixel).sum()
    assert {region.label: region.score for region in regions} == pytest.approx(
        dict(zip(COLOURS, expected, strict=True)), abs=1e-5
    )


def test_a_card_that_says_sigmoid_lets_several_be_true(tmp_path: Path) -> None:
    file = build(tmp_path / "colours.onnx")
    engine = ClassifyEngine(file, ModelCard(name="m", family="sigmoid"), CPU)
    yellow = Picture(np.full((40, 40, 3), (255, 255, 0), np.uint8), Size(40, 40))
    (regions,) = ask(engine, yellow)
    scores = {region.label: region.score for region in regions}
    assert scores["red"] > 0.99
    assert scores["green"] > 0.99
    assert scores.get("blue", 0.0) < 0.01


def test_top_k_and_the_background(tmp_path: Path) -> None:
    file = build(tmp_path / "colours.onnx", names=("__background__", "green", "blue"), gain=0.1)
    engine = ClassifyEngine(file, ModelCard(name="m", max_detections=1), CPU)
    assert engine.classes == ("green", "blue")
    (regions,) = ask(engine, plain("red"))
    assert len(regions) == 1, "the background is best here, and no class"
    assert regions[0].label in engine.classes


@pytest.mark.parametrize(("resize", "share"), [("crop-center", CROP), ("cover", 1.0)])
@pytest.mark.parametrize("size_wh", [(90, 60), (60, 90), (60, 60)], ids=["wide", "high", "square"])
def test_cropping_keeps_the_middle_and_its_proportions(resize, share: float, size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    columns = np.linspace(0, 255, width)[None, :, None]
    rows = np.linspace(0, 255, height)[:, None, None]
    rgb = np.concatenate(np.broadcast_arrays(columns, rows, 0.0 * rows), axis=2).astype(np.uint8)
    spec = InputSpec(size_wh=(30, 30), color="rgb", resize=resize)
    planes = prepare_for(Picture(rgb, Size(width, height)), spec).planes
    side = share * min(size_wh)
    across, down = (255 * side / (length - 1) for length in size_wh)
    assert np.ptp(planes[0].astype(float)) == pytest.approx(across * 29 / 30, abs=6)
    assert np.ptp(planes[1].astype(float)) == pytest.approx(down * 29 / 30, abs=6)
    assert planes[:2].mean() == pytest.approx(127.5, abs=3), "from the middle"


@pytest.mark.parametrize(
    ("card", "says"),
    [
        (ModelCard(name="m", labels=("a", "b")), "2 class names are given for m, but the file has 3 classes"),
        (ModelCard(name="m", family="softmx"), "Did you mean 'softmax'?"),
        (ModelCard(name="m", input=InputSpec(size_wh=(64, 64))), "fixed to 32 x 32"),
    ],
    ids=["wrong number of names", "misspelt family", "wrong size"],
)
def test_a_card_that_contradicts_its_file_says_where(tmp_path: Path, card: ModelCard, says: str) -> None:
    file = build(tmp_path / "colours.onnx")
    with pytest.raises(ModelError, match=says.replace("?", r"\?")):
        ClassifyEngine.describe(file, card)


def test_a_detector_is_no_classifier_and_a_classifier_is_found_without_being_named(tmp_path: Path) -> None:
    detector = build_v8(tmp_path / "boxes.onnx", [Thing((10, 10, 50, 50), 0, 0.9)], size_wh=(64, 64))
    with pytest.raises(ModelUnrecognised, match="not recognised as a classifier"):
        ClassifyEngine.describe(detector, ModelCard(name="boxes"))
    settings = read_settings(home=tmp_path / "home")
    registry = open_registry(settings)
    engines = [
        add_model(registry, file, ModelCard(name=file.stem), settings).card.engine
        for file in (detector, build(tmp_path / "colours.onnx"))
    ]
    assert engines == ["detect", "classify"]


def test_a_file_that_nobody_knows_is_refused_in_the_words_of_the_detectors(tmp_path: Path) -> None:
    file = tmp_path / "odd.onnx"
    graph = helper.make_graph(
        [helper.make_node("Identity", ["image"], ["out"])],
        "odd",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 3, 8, 8])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), file)
    settings = read_settings(home=tmp_path / "home")
    with pytest.raises(ModelUnrecognised, match="no family of detectors claims it"):
        add_model(open_registry(settings), file, ModelCard(name="odd", labels=("a",)), settings)


def test_the_direction_classifier_inside_rapidocr_knows_a_line_that_stands_on_its_head() -> None:
    """A real network: it tells text from text that was turned by 180 degrees."""
    rapidocr = pytest.importorskip("rapidocr", reason="needs the extra labelloop[ocr]")
    (file,) = sorted((Path(rapidocr.__file__).parent / "models").glob("*_cls_*.onnx"))[-1:]
    spec = InputSpec(
        size_wh=(192, 48), color="bgr", resize="letterbox-topleft", scale=1 / 255, mean=(0.5,) * 3, std=(0.5,) * 3
    )
    card = ClassifyEngine.describe(file, ModelCard(name="direction", labels=("upright", "turned"), input=spec))
    assert card.family == "probabilities"
    engine = ClassifyEngine(file, card, CPU)
    line = np.full((48, 192, 3), 255, np.uint8)
    cv2.putText(line, "Platform 12", (6, 34), cv2.FONT_HERSHEY_SIMPLEX, 0.95, (0, 0, 0), 2)
    turned = np.ascontiguousarray(line[::-1, ::-1])
    found = ask(engine, Picture(line, Size(192, 48)), Picture(turned, Size(192, 48)))
    assert [regions[0].label for regions in found] == ["upright", "turned"]
    assert all(regions[0].score > 0.9 for regions in found)
