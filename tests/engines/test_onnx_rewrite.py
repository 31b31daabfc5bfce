"""Graphs that are rewritten before they run: the same answers, from fewer operators."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from labelloop.engines.onnx import OnnxModel
from labelloop.engines.onnx_rewrite import faster_copy

VALUE = np.arange(6, dtype=np.float32).reshape(2, 3)
FULL = 2**63 - 1
QUARTERS = ((0, 0), (1, 0), (0, 1), (1, 1))


def answers(path: Path, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    """Of the file as it stands."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, feeds))


def rewritten(path: Path) -> onnx.ModelProto | None:
    with faster_copy(path) as faster:
        found = None if faster == path else onnx.load(faster)
    assert path.exists()
    assert found is None or not faster.exists()
    if found is not None:
        onnx.checker.check_model(found)
    return found


@pytest.mark.parametrize(
    ("model", "size", "changed"),
    [
        pytest.param("yolox_nano_416", 416, {"Slice": -8, "Concat": -1}, id="YOLOX: the quarters of the picture"),
        pytest.param("nanodet_m_320", 320, {}, id="NanoDet: weights among the inputs"),
        pytest.param("deimv2_atto_320", 0, None, id="DEIMv2: nothing to gain"),
    ],
)
def test_real_files_answer_as_before(shared: Path, model: str, size: int, changed: dict[str, int] | None) -> None:
    path = shared / "data/models" / f"{model}.onnx"
    original, faster = onnx.load(path), rewritten(path)
    if changed is None:
        assert faster is None
        return
    assert faster is not None
    before, after = (Counter(node.op_type for node in model.graph.node) for model in (original, faster))
    assert {kind: after[kind] - before[kind] for kind in before if after[kind] != before[kind]} == changed
    (source,) = faster.graph.input
    image = np.random.default_rng(0).uniform(-2, 2, (1, 3, size, size)).astype(np.float32)
    for one, other in zip(OnnxModel(path).run({source.name: image}), answers(path, {source.name: image}), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-4)  # 1e-4 is what ONNX Runtime's own rewriting does


def test_files_of_before_weights_could_be_anything_else_are_left_alone(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(VALUE, "weight")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, VALUE.shape) for name in ("x", "weight")]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, VALUE.shape)
    graph = helper.make_graph([helper.make_node("Add", ["x", "weight"], ["y"])], "g", inputs, [output], [weight])
    for version, cut in ((3, False), (8, True)):
        path = tmp_path / f"{version}.onnx"
        onnx.save(helper.make_model(graph, ir_version=version, opset_imports=[helper.make_opsetid("", 8)]), path)
        assert (rewritten(path) is not None) == cut
        np.testing.assert_array_equal(OnnxModel(path).run({"x": VALUE})[0], 2 * VALUE)


def write_focus(
    path: Path,
    *,
    order: Sequence[tuple[int, int]] = QUARTERS,
    size: tuple[int, int] = (3, 3),
    conv: dict[str, Any] | None = None,
    both_axes_at_once: bool = False,
    constants_as_nodes: bool = False,
    step: int = 2,
    end: int = FULL,
    concat_axis: int = 1,
    quarters_are_output: bool = False,
    dtype: Any = np.float32,
) -> Path:
    """A picture [1, 2, height, width] in quarters, and a convolution of them: Focus, and what only looks like it."""
    random = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(value: Any) -> str:
        name, tensor = f"k{len(nodes)}.{len(weights)}", numpy_helper.from_array(np.array(value))
        if constants_as_nodes:
            nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            tensor.name = name
            weights.append(tensor)
        return name

    def cut(source: str, begins: list[int], axes: list[int]) -> str:
        told = [constant(value) for value in (begins, [end] * len(axes), axes, [step] * len(axes))]
        nodes.append(helper.make_node("Slice", [source, *told], [f"cut{len(nodes)}"]))
        return str(nodes[-1].output[0])

    quarters = []
    for dy, dx in order:
        quarters.append(
            cut("images", [dx, dy], [3, 2]) if both_axes_at_once else cut(cut("images", [dy], [2]), [dx], [3])
        )
    nodes.append(helper.make_node("Concat", quarters, ["quarters"], axis=concat_axis))
    told = {"kernel_shape": list(size)} | (conv or {})
    channels = (2 if concat_axis != 1 else 2 * len(order)) // told.get("group", 1)
    kernel = random.normal(size=(6, channels, *size)).astype(dtype)
    weights += [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(np.ones(6, dtype), "bias")]
    nodes.append(helper.make_node("Conv", ["quarters", "kernel", "bias"], ["seen"], **told))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    names = ["seen", "quarters"] if quarters_are_output else ["seen"]
    graph = helper.make_graph(
        nodes,
        "focus",
        [helper.make_tensor_value_info("images", kind, [1, 2, "height", "width"])],
        [helper.make_tensor_value_info(name, kind, [None] * 4) for name in names],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8), path)
    return path


def assert_same(path: Path, *, height: int, width: int, dtype: Any = np.float32, tolerance: float = 1e-5) -> None:
    image = np.random.default_rng(1).normal(size=(1, 2, height, width)).astype(dtype)
    for one, other in zip(OnnxModel(path).run({"images": image}), answers(path, {"images": image}), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="without a border"),
        pytest.param({"conv": {"pads": [1, 1, 1, 1]}}, id="as YOLOX writes it"),
        pytest.param({"conv": {"pads": [0, 1, 2, 0], "strides": [2, 1]}}, id="borders and strides of many kinds"),
        pytest.param({"size": (1, 1)}, id="1 x 1"),
        pytest.param({"size": (5, 3), "conv": {"pads": [2, 1, 2, 1], "strides": [3, 2]}}, id="5 x 3"),
        pytest.param({"both_axes_at_once": True}, id="one cut along both axes"),
        pytest.param({"constants_as_nodes": True}, id="constants as nodes"),
        pytest.param({"end": 2**31 - 1}, id="ends of 32 bits"),
        pytest.param({"dtype": np.float16}, id="half precision"),
        *(pytest.param({"order": order}, id=f"order {order}") for order in [*itertools.permutations(QUARTERS)][1::7]),
    ],
)
def test_a_convolution_of_quarters_becomes_one_of_the_picture(tmp_path: Path, given: dict[str, Any]) -> None:
    path = write_focus(tmp_path / "focus.onnx", **given)
    faster = rewritten(path)
    assert faster is not None
    assert [node.op_type for node in faster.graph.node] == ["Conv"]
    assert len(faster.graph.initializer) == 2
    dtype = given.get("dtype", np.float32)
    assert_same(path, height=16, width=22, dtype=dtype, tolerance=0.05 if dtype == np.float16 else 1e-5)


def test_quarters_that_are_looked_at_elsewhere_stay(tmp_path: Path) -> None:
    path = write_focus(tmp_path / "focus.onnx", quarters_are_output=True)
    faster = rewritten(path)
    assert faster is not None
    assert sorted(Counter(node.op_type for node in faster.graph.node).items()) == [
        ("Concat", 1),
        ("Conv", 1),
        ("Slice", 8),
    ]
    assert_same(path, height=8, width=12)


@pytest.mark.parametrize(
    ("given", "height"),
    [
        pytest.param({"conv": {"dilations": [2, 2]}}, 16, id="a dilated convolution"),
        pytest.param({"conv": {"group": 2}}, 16, id="groups"),
        pytest.param({"conv": {"auto_pad": "SAME_UPPER"}}, 16, id="a border that the size decides"),
        pytest.param({"order": QUARTERS[:2]}, 16, id="two quarters"),
        pytest.param({"order": (*QUARTERS[:3], (0, 1))}, 16, id="one quarter twice"),
        pytest.param({"order": (*QUARTERS, (0, 0))}, 16, id="five quarters"),
        pytest.param({"order": ((2, 2), (3, 2), (2, 3), (3, 3))}, 16, id="a part of the picture"),
        pytest.param({"step": 3}, 18, id="every third pixel"),
        pytest.param({"end": 12}, 16, id="not to the end"),
        pytest.param({"concat_axis": 2}, 16, id="quarters below each other"),
    ],
)
def test_what_only_looks_like_it_is_left_alone(tmp_path: Path, given: dict[str, Any], height: int) -> None:
    path = write_focus(tmp_path / "other.onnx", **given)
    assert rewritten(path) is None
    assert_same(path, height=height, width=height)


def test_a_file_that_cannot_be_read_is_left_to_onnx_runtime(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"<html>not found</html>")
    assert rewritten(path) is None
