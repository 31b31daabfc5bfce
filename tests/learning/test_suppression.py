"""A suppression inside the file: taken off and put on, with more or fewer classes, for more than one picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError
from labelloop.core.geometry import nms
from labelloop.engines.detect.head import Found, grid
from labelloop.engines.labels import placeholders
from labelloop.engines.onnx import OnnxModel
from labelloop.learning.trainers.base import TrainRequest
from labelloop.learning.trainers.finetune import export
from labelloop.learning.trainers.finetune.class_layer import replace_classes
from labelloop.learning.trainers.finetune.families import LastLayers
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph, free_batch, read_graph
from labelloop.learning.trainers.finetune.onnx_torch import open_session
from labelloop.learning.trainers.finetune.recipes import FAMILIES, located
from labelloop.learning.trainers.finetune.suppression import BOXES, SCORES, Suppression, take_off
from labelloop.learning.trainers.finetune.suppression_tail import put_on
from labelloop.learning.trainers.head import HeadTrainer
from reference.tiny_networks import SIDE, tiny_yolox

torch = pytest.importorskip("torch", reason="needs the extra train")

from labelloop.learning.trainers.finetune.rtmdet import points_in_cells  # noqa: E402
from reference.tiny_rtmdet import LEAST_SCORE, MOST_IOU, MOST_OF_CLASS, tiny_rtmdet  # noqa: E402

CELLS = 84
FILES: dict[str, dict[str, Any]] = {
    "as RTMDet-tiny": {},
    "everything free": {"free": True},
    "distances to the power of e": {"exponential": True, "masked": False},
    "the best cells first": {"first": 40, "most": 12},
    "a newer opset": {"opset": 18, "free": True},
    "everything free, the best cells, an objectness": {"free": True, "first": 40, "exponential": True, "factor": True},
}
Array = NDArray[Any]


def pictures(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(3).normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`tiny_rtmdet`, each file made once."""
    folder, made = tmp_path_factory.mktemp("files"), dict[str, Path]()

    def build(**more: Any) -> Path:
        name = repr(sorted(more.items()))
        if name not in made:
            made[name] = tiny_rtmdet(folder / f"{len(made)}.onnx", **more)
        return made[name]

    return build


def opened(make: Make, **more: Any) -> tuple[Path, OnnxGraph, Suppression]:
    path = make(**more)
    graph = read_graph(path, size_wh=(SIDE, SIDE))
    found = take_off(graph, cells=CELLS)
    assert found is not None
    free_batch(graph)
    return path, graph, found


def layers(graph: OnnxGraph, classes: int = 4) -> LastLayers:
    return located(FAMILIES["mmdeploy"], graph, ModelCard(name="m", labels=placeholders(classes)))


def answers(path: Path, images: Array) -> tuple[Array, Array]:
    dets, labels = OnnxModel(path).run({"input": images})
    return dets, labels


@pytest.mark.parametrize("more", FILES.values(), ids=FILES)
def test_off_and_on_again_the_file_answers_as_before(make: Make, tmp_path: Path, more: dict[str, Any]) -> None:
    """One picture at a time, which is all that the original can; and then several as each alone."""
    path, graph, found = opened(make, **more)
    assert found[:4] == pytest.approx((MOST_IOU, LEAST_SCORE, MOST_OF_CLASS, more.get("most", 30)))
    assert found.most_cells == more.get("first")
    put_on(graph, found)
    export.save(graph, tmp_path / "again.onnx", labels=())
    further = take_off(read_graph(tmp_path / "again.onnx", size_wh=(SIDE, SIDE)), cells=CELLS)
    assert further is not None, "what was trained once is trained again"
    assert further[:5] == found[:5]
    images = pictures(3)
    together = answers(tmp_path / "again.onnx", images)
    for place in range(3):
        dets, labels = answers(path, images[place : place + 1])
        many = int((dets[0, :, 4] > 0).sum())
        assert many > 5
        np.testing.assert_allclose(together[0][place, :many], dets[0, :many], atol=1e-4)
        np.testing.assert_array_equal(together[1][place, :many], labels[0, :many])
        assert not together[0][place, many:].any()
        assert (together[1][place, many:] == -1).all()


def test_the_original_with_a_free_batch_takes_one_picture(make: Make) -> None:
    """Why it is written anew: MMDeploy's mask. Without this property the tiny file would be no example."""
    path = make(free=True)
    with pytest.raises(Exception, match="Where"):
        answers(path, pictures(2))


@pytest.mark.parametrize("chosen", [(2,), (3, 0, 0, 1, 2, 1, 0)], ids=["fewer classes", "more classes"])
@pytest.mark.parametrize("more", FILES.values(), ids=FILES)
def test_new_class_rows_make_new_scores_and_nothing_else(
    make: Make, tmp_path: Path, more: dict[str, Any], chosen: tuple[int, ...]
) -> None:
    _, before, _ = opened(make, **more)
    _, after, found = opened(make, **more)
    last = layers(after)
    rows = [[after.constants[name][list(chosen)] for name in one.weights] for one in last.classes]
    replace_classes(after, last.classes, rows)
    assert layers(after, len(chosen)).objectness == layers(before).objectness
    old, new = (open_session(graph.model).run([BOXES, SCORES], {"input": pictures(3)}) for graph in (before, after))
    np.testing.assert_allclose(new[0], old[0], atol=1e-4)
    np.testing.assert_allclose(new[1], old[1][..., list(chosen)], atol=1e-6)
    put_on(after, found)
    onnx.checker.check_model(after.model, full_check=True)
    export.save(after, tmp_path / "new.onnx", labels=())
    dets, labels = answers(tmp_path / "new.onnx", pictures(3))
    for place in range(3):
        expected = suppressed(new[0][place].T, new[1][place], found)
        many = min(len(expected), dets.shape[1])
        np.testing.assert_allclose(dets[place, :many, 4], expected[:many, 4], atol=1e-6)
        assert set(labels[place].tolist()) <= {-1, *range(len(chosen))}


def suppressed(xyxy: Array, scores: Array, found: Suppression) -> Array:
    """Boxes with scores [k, 5], best first, by this project's own suppression."""
    rows = []
    taking_part = np.argsort(-scores.max(axis=1), kind="stable")[: found.most_cells]
    for label in range(scores.shape[1]):
        able = taking_part[scores[taking_part, label] > found.least_score]
        kept = able[nms(xyxy[able], scores[able, label], iou_threshold=found.most_iou)][: found.most_of_class]
        rows.append(np.concatenate([xyxy[kept], scores[kept, label][:, None]], axis=1))
    together = np.concatenate(rows)
    return together[np.argsort(-together[:, 4], kind="stable")]


def test_nothing_found_is_an_answer_too(make: Make, tmp_path: Path) -> None:
    _, graph, found = opened(make)
    put_on(graph, found._replace(least_score=1.0))
    export.save(graph, tmp_path / "nothing.onnx", labels=())
    dets, labels = answers(tmp_path / "nothing.onnx", pictures(2))
    assert dets.shape == (2, 30, 5)
    assert not dets.any()
    assert (labels == -1).all()


def test_a_file_without_a_limit_on_boxes(make: Make, tmp_path: Path) -> None:
    _, graph, found = opened(make)
    put_on(graph, found._replace(most=None))
    export.save(graph, tmp_path / "all.onnx", labels=())
    dets, _ = answers(tmp_path / "all.onnx", pictures(1))
    assert (dets[0, :, 4] > 0).sum() > 30


@pytest.mark.parametrize("exponential", [False, True], ids=["linear", "exponential"])
def test_points_are_where_the_file_reckons_from(make: Make, exponential: bool) -> None:
    _, graph, _ = opened(make, exponential=exponential)
    cells, strides = (torch.from_numpy(one) for one in grid((SIDE, SIDE), (8, 16, 32)))
    np.testing.assert_allclose(points_in_cells(graph, cells, strides), cells * strides, atol=1e-5)
    with pytest.raises(ModelError, match="order of its cells"):
        points_in_cells(graph, cells.flip(0), strides.flip(0))


def test_a_row_too_few_or_moved_is_a_difference(make: Make, tmp_path: Path) -> None:
    _, graph, found = opened(make)
    boxes, scores = open_session(graph.model).run([BOXES, SCORES], {"input": pictures(1)})
    put_on(graph, found)
    export.save(graph, tmp_path / "again.onnx", labels=())
    dets, labels = answers(tmp_path / "again.onnx", pictures(1))
    limits = np.full(4, SIDE, np.float32)

    def apart(rows: Array, classes: Array) -> export.Parity:
        return export._rows_apart(Found(rows[:, :4], rows[:, 4], classes), boxes[0].T, scores[0], limits, found)

    right = apart(dets[0], labels[0])
    assert right.pixels < 1e-4
    assert right.score < 1e-6
    without = apart(np.delete(dets[0], 3, axis=0), np.delete(labels[0], 3))
    assert without.score == pytest.approx(dets[0, 3, 4], abs=1e-6)
    moved = dets[0] + np.array([0.3, 0, 0, 0, 0], np.float32)
    assert apart(moved, labels[0]).pixels > 0.05
    assert apart(dets[0], (labels[0] + 1) % 4).score > 1e-3
    assert apart(dets[0][:0], labels[0][:0]).score == pytest.approx(dets[0, 0, 4], abs=1e-6)


# --- refused ----------------------------------------------------------------------------------------


def changed(source: Path, target: Path, change: Callable[[onnx.GraphProto], None]) -> OnnxGraph:
    model = onnx.load(source)
    change(model.graph)
    onnx.save(model, target)
    return read_graph(target, size_wh=(SIDE, SIDE))


def twice(graph: onnx.GraphProto) -> None:
    node = next(node for node in graph.node if node.op_type == "NonMaxSuppression")
    graph.node.add().CopyFrom(node)
    graph.node[-1].name = graph.node[-1].output[0] = "again"


def masks(graph: onnx.GraphProto) -> None:
    graph.output.append(helper.make_tensor_value_info("masks", onnx.TensorProto.FLOAT, None))
    graph.node.append(helper.make_node("Identity", ["dets"], ["masks"]))


@pytest.mark.parametrize(
    ("change", "cells", "why"),
    [
        (twice, CELLS, "two stages"),
        (masks, CELLS, "masks"),
        (lambda graph: None, 3 * CELLS, "not one box for each of the 252 cells"),
    ],
    ids=["two stages", "masks too", "anchors"],
)
def test_other_files_are_refused_in_words(make: Make, tmp_path: Path, change: Any, cells: int, why: str) -> None:
    graph = changed(make(), tmp_path / "changed.onnx", change)
    with pytest.raises(ModelError, match=why):
        take_off(graph, cells=cells)


def test_a_file_without_a_suppression_is_left_alone(tmp_path: Path) -> None:
    graph = read_graph(tiny_yolox(tmp_path / "yolox.onnx"), size_wh=(SIDE, SIDE))
    before = graph.model.SerializeToString()
    assert take_off(graph, cells=CELLS) is None
    assert graph.model.SerializeToString() == before


def test_a_mask_that_means_something_else_is_not_dropped(make: Make, tmp_path: Path) -> None:
    """Above the threshold of the suppression it would take boxes away that the new file shows."""

    def higher(graph: onnx.GraphProto) -> None:
        compared = next(node for node in graph.node if node.op_type in ("Less", "GreaterOrEqual"))
        number = next(node for node in graph.node if compared.input[1] in node.output)
        number.attribute[0].t.CopyFrom(onnx.numpy_helper.from_array(np.array(0.3, np.float32)))

    graph = changed(make(), tmp_path / "changed.onnx", higher)
    assert take_off(graph, cells=CELLS) is not None
    with pytest.raises(ModelError, match="Where"):
        layers(graph)


def test_too_few_names_are_told(make: Make) -> None:
    _, graph, _ = opened(make)
    with pytest.raises(ModelError, match="scores 4 classes, and the card of the model names 3"):
        layers(graph, 3)


def test_what_scratch_made_is_known_without_loading_it(make: Make, tmp_path: Path) -> None:
    """Its files have the same interface, and it goes on from them itself."""
    card = ModelCard(name="m", family="mmdeploy", labels=placeholders(4))
    request = TrainRequest(data=tmp_path, labels=("a",), out=tmp_path, budget_s=9, base=make(), base_card=card)
    assert HeadTrainer().refuses(request) is None
    other = msgspec.structs.replace(request, base=tiny_yolox(tmp_path / "m.onnx"))
    assert "no suppression" in (HeadTrainer().refuses(other) or "")
