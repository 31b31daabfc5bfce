"""Where the backbone ends, which layer makes which column, and another number of classes: on real and on tiny files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError
from labelloop.engines.labels import COCO, placeholders
from labelloop.learning.trainers.finetune.class_layer import Span, layers_of, replace_classes
from labelloop.learning.trainers.finetune.cut import Cut, find_cut, find_head
from labelloop.learning.trainers.finetune.families import LastLayers
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph, free_batch, read_graph
from labelloop.learning.trainers.finetune.onnx_torch import open_session
from labelloop.learning.trainers.finetune.recipes import FAMILIES, located
from reference.tiny_networks import SIDE, Writer, tiny_nanodet, tiny_v8, tiny_yolox

REAL = {
    "yolox_nano_416": ("yolox", 416, ("781", "841", "886")),
    "nanodet_m_320": ("nanodet", 320, ("528", "743", "846")),
}
TINY = {"yolox": tiny_yolox, "nanodet": tiny_nanodet, "ultralytics-v8": tiny_v8}


def real(shared: Path, file: str) -> tuple[OnnxGraph, str]:
    family, side, _ = REAL[file]
    graph = read_graph(shared / "data/models" / f"{file}.onnx", size_wh=(side, side))
    free_batch(graph)
    return graph, family


def tiny(tmp_path: Path, family: str, build: Callable[..., Path] | None = None, **more: int) -> OnnxGraph:
    graph = read_graph((build or TINY[family])(tmp_path / "tiny.onnx", **more), size_wh=(SIDE, SIDE))
    free_batch(graph)
    return graph


def layers(graph: OnnxGraph, family: str, classes: tuple[str, ...]) -> LastLayers:
    return located(FAMILIES[family], graph, ModelCard(name="m", labels=classes))


@pytest.mark.parametrize("file", REAL)
def test_the_backbone_of_a_real_file_is_found_by_its_structure(
    shared: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labelloop.learning.trainers.finetune.cut.BY_HAND", {})
    graph, family = real(shared, file)
    assert find_cut(graph, image=graph.inputs[0], family=family) == Cut(REAL[file][2], (8, 16, 32))


@pytest.mark.parametrize("file", REAL)
def test_the_table_is_taken_where_the_structure_shows_nothing(
    shared: Path, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("labelloop.learning.trainers.finetune.cut.ENLARGING", ())
    graph, family = real(shared, file)
    assert find_cut(graph, image=graph.inputs[0], family=family).values == REAL[file][2]


def test_a_file_without_a_pyramid_has_no_cut(tmp_path: Path) -> None:
    net = Writer()
    net.node("Relu", [net.conv("images", 3, 4, size=3, stride=2)], output="output")
    graph = read_graph(net.write(tmp_path / "m.onnx", {"output": (1, 4, 32, 32)}), size_wh=(SIDE, SIDE))
    with pytest.raises(ModelError, match="end of the backbone"):
        find_cut(graph, image="images", family="yolox")


@pytest.mark.parametrize("family", TINY)
def test_the_head_is_what_serves_one_stride_only(tmp_path: Path, family: str) -> None:
    graph = tiny(tmp_path, family)
    cut = find_cut(graph, image="images", family=family)
    last = layers(graph, family, placeholders(4))
    head = find_head(graph, last.classes, cut, image="images")
    trained = {node.output[0] for node in graph.between(head.values, last.values)}
    assert trained < {node.output[0] for node in graph.between(cut.values, last.values)}
    for name in trained:
        assert sum(rows.value in graph.descendants([name]) for rows in last.classes) <= 1


@pytest.mark.parametrize("file", REAL)
def test_real_layers_are_found_by_the_columns_they_make(shared: Path, file: str) -> None:
    graph, family = real(shared, file)
    last = layers(graph, family, COCO)
    names = [rows.weights[0] for rows in last.classes]
    if family == "yolox":
        assert names == [f"head.cls_preds.{level}.weight" for level in range(3)]
        assert [rows.weights[0] for rows in last.boxes] == [f"head.reg_preds.{level}.weight" for level in range(3)]
        assert [rows.weights[0] for rows in last.objectness] == [f"head.obj_preds.{level}.weight" for level in range(3)]
    else:
        assert names == [f"head.gfl_cls.{level}.weight" for level in range(3)]
        assert [(rows.start, rows.stop) for rows in (last.classes[0], last.boxes[0])] == [(0, 80), (80, 112)]


@pytest.mark.parametrize("chosen", [(2,), (3, 0, 0, 1, 2, 1, 0)], ids=["fewer classes", "more classes"])
@pytest.mark.parametrize(
    ("family", "more"),
    [("yolox", {}), ("nanodet", {}), ("nanodet", {"opset": 13}), ("ultralytics-v8", {})],
    ids=["yolox", "nanodet", "split-13", "v8"],
)
def test_new_class_rows_make_new_class_columns_and_nothing_else(
    tmp_path: Path, family: str, more: dict[str, int], chosen: tuple[int, ...]
) -> None:
    before, after = tiny(tmp_path, family, **more), tiny(tmp_path, family, **more)
    last = layers(after, family, placeholders(4))
    rows = [[after.constants[name][one.start : one.stop][list(chosen)] for name in one.weights] for one in last.classes]
    replace_classes(after, last.classes, rows)
    onnx.checker.check_model(after.model, full_check=True)
    pictures = np.random.default_rng(0).normal(size=(3, 3, SIDE, SIDE)).astype(np.float32)
    for output, old, new in zip(before.outputs, run(before, pictures), run(after, pictures), strict=True):
        axis = 1 if output == "output0" else 2
        first = {"output": 5, "output0": 4}.get(output, 0)
        kept = list(range(first)) + [first + place for place in chosen]
        wanted = old if output.startswith("dis") else old.take(kept, axis=axis)
        np.testing.assert_allclose(new, wanted, atol=1e-5)
        assert after.shapes[output] == (None, *wanted.shape[1:])


def run(graph: OnnxGraph, pictures: np.ndarray) -> list[np.ndarray]:
    return open_session(graph.model).run(None, {"images": pictures})


@pytest.mark.parametrize("family", TINY)
def test_a_free_batch_answers_as_each_picture_alone(tmp_path: Path, family: str) -> None:
    fixed = read_graph(TINY[family](tmp_path / "fixed.onnx"), size_wh=(SIDE, SIDE))
    free = tiny(tmp_path, family)
    pictures = np.random.default_rng(0).normal(size=(3, 3, SIDE, SIDE)).astype(np.float32)
    for together, *alone in zip(run(free, pictures), *(run(fixed, one[None]) for one in pictures), strict=True):
        np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)


def test_classes_that_cannot_be_followed_are_refused(tmp_path: Path) -> None:
    net = Writer()
    scores = net.conv("images", 3, 4)
    net.node("Softmax", [scores], axis=1, output="output")
    graph = read_graph(net.write(tmp_path / "m.onnx", {"output": (1, 4, SIDE, SIDE)}), size_wh=(SIDE, SIDE))
    with pytest.raises(ModelError, match="Softmax"):
        layers_of(graph, "output", Span(1, 0, 4))


def test_strides_that_share_one_class_layer(tmp_path: Path) -> None:
    net = Writer()
    first, second = (net.conv("images", 3, 4, size=3, stride=stride) for stride in (1, 2))
    net.nodes[-1].input[1:] = net.nodes[-2].input[1:]
    rows = [net.reshape(one, 1, 4, cells) for one, cells in ((first, SIDE**2), (second, SIDE**2 // 4))]
    net.node("Sigmoid", [net.node("Concat", rows, axis=2)], output="output")
    graph = read_graph(net.write(tmp_path / "m.onnx", {"output": (1, 4, SIDE**2 * 5 // 4)}), size_wh=(SIDE, SIDE))
    last = layers_of(graph, "output", Span(1, 0, 4))
    assert last[0].weights == last[1].weights
    replace_classes(graph, last, [[graph.constants[name][:2] for name in one.weights] for one in last])
    assert run(graph, np.zeros((1, 3, SIDE, SIDE), np.float32))[0].shape == (1, 2, SIDE**2 * 5 // 4)


def test_slices_before_and_behind_the_classes_follow(tmp_path: Path) -> None:
    """A head that is one layer, cut by Slice: boxes, classes, and something behind the classes."""
    net = Writer()
    both = net.conv("images", 3, 4 + 3 + 2)
    bounds = {"box": (0, 4), "names": (4, 7), "rest": (7, 9)}
    for name, (start, stop) in bounds.items():
        ends = [net.constant(np.array([number])) for number in (start, stop, 1)]
        net.node("Slice", [both, *ends], output=name)
    path = net.write(tmp_path / "m.onnx", {name: (1, b - a, SIDE, SIDE) for name, (a, b) in bounds.items()})
    before, after = (read_graph(path, size_wh=(SIDE, SIDE)) for _ in range(2))
    rows = layers_of(after, "names", Span(1, 0, 3))
    assert (rows[0].start, rows[0].stop) == (4, 7)
    new = [[after.constants[name][[6, 4, 5, 4, 6]] for name in one.weights] for one in rows]
    replace_classes(after, rows, new)
    picture = np.random.default_rng(0).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)
    old, got = run(before, picture), run(after, picture)
    np.testing.assert_allclose(got[0], old[0], atol=1e-6)
    np.testing.assert_allclose(got[1], old[1][:, [2, 0, 1, 0, 2]], atol=1e-6)
    np.testing.assert_allclose(got[2], old[2], atol=1e-6)
