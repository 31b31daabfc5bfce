"""Every operator, and both shared detectors, compute in torch what they compute in ONNX Runtime; what does not is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from labelloop.core.errors import ModelError
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph, free_batch, read_graph
from labelloop.learning.trainers.finetune.onnx_ops import OPERATORS
from labelloop.learning.trainers.finetune.onnx_torch import OnnxModule, check

SHAPE = (2, 4, 6, 8)
FLOAT = np.float32


def values(*shape: int, seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(FLOAT)


def ints(*numbers: int) -> NDArray[Any]:
    return np.array(numbers, np.int64)


class Case(NamedTuple):
    """One node on an input of SHAPE; `constants` are its other inputs, in order, "" leaves one out."""

    kind: str
    attributes: Mapping[str, Any] = MappingProxyType({})
    constants: tuple[Any, ...] = ()
    opset: int = 17
    positive: bool = False
    outputs: int = 1
    word: str = ""


CASES = [
    Case("Conv", {"pads": [1, 1, 1, 1]}, (values(5, 4, 3, 3), values(5))),
    Case("Conv", {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 4}, (values(4, 1, 3, 3),), word="depthwise, no bias"),
    Case("Conv", {"pads": [0, 0, 1, 1], "dilations": [2, 2]}, (values(5, 4, 2, 2), values(5)), word="uneven padding"),
    Case("Conv", {}, (values(3, 4, 1, 1), values(3)), word="few channels"),
    Case("ConvTranspose", {"strides": [2, 2]}, (values(4, 3, 2, 2), values(3))),
    Case("BatchNormalization", {"epsilon": 1e-3}, (values(4), values(4, seed=1), values(4, seed=2), np.abs(values(4)) + 1)),
    Case("LayerNormalization", {"axis": -1}, (values(8), values(8, seed=1))),
    Case("PRelu", {}, (values(4, 1, 1),)),
    Case("MatMul", {}, (values(8, 3),)),
    *[Case(kind) for kind in ("Sigmoid", "Relu", "Tanh", "Softplus", "HardSwish", "Exp", "Neg", "Abs", "Erf", "Floor")],
    *[Case(kind, positive=True) for kind in ("Log", "Sqrt", "Reciprocal")],
    Case("Mish", opset=18),
    Case("Identity"),
    Case("LeakyRelu", {"alpha": 0.1}),
    Case("Elu", {"alpha": 0.7}),
    Case("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    Case("Clip", {}, (np.array(-0.5, FLOAT), np.array(0.5, FLOAT))),
    Case("Clip", {"min": 0.0, "max": 0.4}, opset=10, word="attributes"),
    *[Case(kind, {}, (values(4, 1, 1),)) for kind in ("Add", "Sub", "Mul", "Div", "Max", "Min")],
    Case("Pow", {}, (np.array(2, FLOAT),)),
    Case("Softmax", {"axis": 1}),
    Case("Softmax", {"axis": 1}, opset=11, word="everything behind the axis together"),
    Case("Cast", {"to": TensorProto.FLOAT}),
    Case("Concat", {"axis": 1}, (values(2, 3, 6, 8),)),
    Case("Split", {"axis": 1, "split": [1, 3]}, opset=11, outputs=2),
    Case("Split", {"axis": 1}, (ints(1, 3),), outputs=2),
    Case("Slice", {}, (ints(1), ints(1000), ints(2), ints(2))),
    Case("Slice", {}, (ints(-3), ints(-1), ints(3)), word="from the end"),
    Case("Reshape", {}, (ints(0, 2, -1, 8),)),
    Case("Transpose", {"perm": [0, 2, 3, 1]}),
    Case("Flatten", {"axis": 1}),
    Case("Squeeze", {}, (ints(0),), word="an axis of one"),
    Case("Unsqueeze", {}, (ints(1, -1),)),
    Case("Unsqueeze", {"axes": [2]}, opset=11),
    Case("Expand", {}, (ints(3, 2, 4, 6, 8),)),
    Case("Gather", {"axis": 1}, (ints(3, 0),)),
    Case("Gather", {"axis": 2}, (np.array(-1),), word="one place, from the end"),
    Case("Pad", {}, (ints(0, 0, 1, 0, 0, 0, 2, 1), np.array(3, FLOAT))),
    Case("Pad", {"mode": "reflect"}, (ints(0, 0, 1, 2, 0, 0, 0, 1),)),
    Case("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, word="one more row"),
    Case("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, word="padding does not count"),
    Case("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("GlobalAveragePool"),
    Case("ReduceMean", {"axes": [2, 3]}, opset=13),
    Case("ReduceMean", {"axes": [1], "keepdims": 0}, opset=13),
    Case("ReduceSum", {}, (ints(1),)),
    Case("ReduceMax", {"axes": [1]}, opset=13),
    Case("Resize", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, ("", np.array([1, 1, 2, 2], FLOAT))),
    Case("Resize", {"mode": "linear"}, ("", np.array([1, 1, 2, 2], FLOAT))),
    Case("Resize", {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}, ("", np.array([1, 1, 0.5, 0.5], FLOAT))),
    Case("Resize", {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, ("", "", ints(2, 4, 9, 13))),
    Case("Resize", {}, ("", np.array([1, 1, 2, 2], FLOAT)), word="nearest, as a plain resize is written"),
    Case("GatherElements", {"axis": 3}, (np.full((2, 4, 6, 3), [7, 0, -1]),)),
    Case("GatherND", {}, (np.array([[1, 0], [0, -1]]),)),
    Case("GridSample", {}, (values(2, 3, 3, 2),), word="beyond the edges too"),
    Case("GridSample", {"mode": "nearest", "padding_mode": "border", "align_corners": 1}, (values(2, 3, 3, 2),)),
    Case("Tile", {}, (ints(1, 2, 1, 3),)),
    Case("Einsum", {"equation": "bchw,wk->bckh"}, (values(8, 3),)),
    Case("Mod", {"fmod": 1}, (np.array(0.3, FLOAT),)),
    *[Case(kind) for kind in ("Sin", "Cos")],
    Case("Upsample", {"mode": "nearest"}, (np.array([1, 1, 2, 2], FLOAT),), opset=9),
]  # fmt: skip


def name(case: Case) -> str:
    return f"{case.kind}-{case.opset}-{case.word}".strip("-")


def build(case: Case, shape: tuple[int, ...] = SHAPE) -> OnnxGraph:
    names = ["" if isinstance(one, str) else f"c{place}" for place, one in enumerate(case.constants)]
    outputs = [f"y{place}" for place in range(case.outputs)]
    node = helper.make_node(case.kind, ["x", *names], outputs, **case.attributes)
    constants = [numpy_helper.from_array(one, key) for one, key in zip(case.constants, names, strict=True) if key]
    return OnnxGraph(model([node], constants, shape=shape, outputs=outputs, opset=case.opset))


def model(
    nodes: list[onnx.NodeProto],
    constants: list[onnx.TensorProto],
    *,
    shape: tuple[int, ...] = SHAPE,
    outputs: list[str],
    opset: int = 17,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None) for output in outputs],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_an_operator_is_what_onnx_runtime_makes_of_it(case: Case) -> None:
    shape = (1, *SHAPE[1:]) if case.kind == "Squeeze" else SHAPE
    graph = build(case, shape)
    x = values(*shape, seed=7)
    module = OnnxModule(graph, inputs=["x"], outputs=graph.outputs)
    check(module, graph.model, {"x": np.abs(x) + FLOAT(0.1) if case.positive else x}, tolerance=1e-5)


def test_every_operator_has_a_case() -> None:
    elsewhere = {
        "Gemm",
        "Silu",
        "Dropout",
        "Shape",
        "TopK",
        "ConstantOfShape",
        "Range",
        "Where",
        *LOGIC,
    }  # tested below
    assert set(OPERATORS) - {case.kind for case in CASES} == elsewhere


def test_shapes_that_are_computed_in_the_graph() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "first"], ["b"]),
        helper.make_node("Unsqueeze", ["b", "zero"], ["row"]),
        helper.make_node("Concat", ["row", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["flat"]),
        helper.make_node("Gemm", ["flat", "w", "bias"], ["gemm"], transB=1, alpha=0.5),
        helper.make_node("Dropout", ["gemm"], ["y"]),
    ]
    constants = {"first": np.array(0), "zero": ints(0), "rest": ints(-1), "w": values(3, 192), "bias": values(3)}
    graph = OnnxGraph(model(nodes, [numpy_helper.from_array(v, k) for k, v in constants.items()], outputs=["y"]))
    module = OnnxModule(graph, inputs=["x"], outputs=["y"])
    check(module, graph.model, {"x": values(*SHAPE)}, tolerance=1e-5)
    assert set(module.weights()) == {"w", "bias"}


def test_shapes_that_are_reckoned_from_parts_of_a_shape() -> None:
    """As newer exporters write it: Shape with a start, a Slice and a Tile by what was reckoned, a Range, a filled map."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sides"], start=2),
        helper.make_node("Gather", ["sides", "zero"], ["height"]),
        helper.make_node("Slice", ["x", "one", "height", "three"], ["cut"]),
        helper.make_node("Range", ["first", "height_0", "step"], ["places"]),
        helper.make_node("Squeeze", ["height"], ["height_0"]),
        helper.make_node("Tile", ["places", "height"], ["many"]),
        helper.make_node("ConstantOfShape", ["sides"], ["filled"], value=numpy_helper.from_array(np.full(1, 2, FLOAT))),
        helper.make_node("Cast", ["many"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["cut"], ["y"]),
    ]
    nodes.insert(3, nodes.pop(4))
    constants = {"zero": ints(0), "one": ints(1), "three": ints(3), "first": np.array(0), "step": np.array(2)}
    given = [numpy_helper.from_array(value, key) for key, value in constants.items()]
    graph = OnnxGraph(model(nodes, given, outputs=["y", "filled", "numbers"]))
    check(OnnxModule(graph, inputs=["x"], outputs=graph.outputs), graph.model, {"x": values(*SHAPE)}, tolerance=1e-6)


LOGIC = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not")


@pytest.mark.parametrize("kind", LOGIC)
def test_one_or_the_other(kind: str) -> None:
    bits = kind in ("And", "Or", "Not")
    nodes = [
        helper.make_node("Cast" if bits else "Identity", ["x"], ["a"], **({"to": TensorProto.BOOL} if bits else {})),
        helper.make_node(kind, ["a"] if kind == "Not" else ["a", "b"], ["which"]),
        helper.make_node("Where", ["which", "x", "c"], ["y"]),
    ]
    x = np.random.default_rng(0).integers(0, 3, SHAPE).astype(FLOAT)
    other = np.ones(1, bool) if bits else np.ones(1, FLOAT)
    constants = [numpy_helper.from_array(other, "b"), numpy_helper.from_array(np.full(1, -7, FLOAT), "c")]
    graph = OnnxGraph(model(nodes, constants, outputs=["y"]))
    check(OnnxModule(graph, inputs=["x"], outputs=["y"]), graph.model, {"x": x}, tolerance=1e-6)


def chooses() -> OnnxGraph:
    """The best three rows of each picture, as a query selection is written."""
    nodes = [
        helper.make_node("Reshape", ["x", "shape"], ["rows"]),
        helper.make_node("ReduceMax", ["rows"], ["best"], axes=[2], keepdims=0),
        helper.make_node("TopK", ["best", "three"], ["scores", "chosen"], axis=1),
        helper.make_node("GatherElements", ["best", "chosen"], ["y"], axis=1),
    ]
    constants = [numpy_helper.from_array(ints(3), "three"), numpy_helper.from_array(ints(0, -1, 8), "shape")]
    made = model(nodes, constants, outputs=["y", "scores"])
    made.graph.output.append(helper.make_tensor_value_info("chosen", TensorProto.INT64, None))
    return OnnxGraph(made)


def test_the_best_are_chosen_and_gathered() -> None:
    graph = chooses()
    module = OnnxModule(graph, inputs=["x"], outputs=graph.outputs)
    check(module, graph.subgraph(["x"], graph.outputs), {"x": values(*SHAPE)}, tolerance=1e-6)


def test_two_that_are_nearly_the_same_may_be_chosen_in_either_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared by what was chosen, not by the rank."""
    choose = OPERATORS["TopK"]

    def reversed_ranks(node: Any) -> Any:
        return lambda x, count: tuple(one.flip(-1) for one in choose(node)(x, count))

    monkeypatch.setitem(OPERATORS, "TopK", reversed_ranks)
    graph = chooses()
    module = OnnxModule(graph, inputs=["x"], outputs=graph.outputs)
    check(module, graph.model, {"x": values(*SHAPE)}, tolerance=1e-6, rank="chosen")
    with pytest.raises(ModelError, match="does not compute the same"):
        check(module, graph.model, {"x": values(*SHAPE)}, tolerance=1e-6)


def gated(*, also: bool) -> OnnxGraph:
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["gate"]),
        helper.make_node("Mul", ["gate", "x"], ["y"]),
        helper.make_node("Neg", ["gate" if also else "y"], ["z"]),
    ]
    return OnnxGraph(model(nodes, [], outputs=["y", "z"]))


@pytest.mark.parametrize("also", [False, True], ids=["the gate is used once", "the gate is used elsewhere too"])
def test_a_silu_in_two_nodes(also: bool) -> None:
    graph = gated(also=also)
    module = OnnxModule(graph, inputs=["x"], outputs=["y", "z"])
    check(module, graph.model, {"x": values(*SHAPE)}, tolerance=1e-6)
    assert len(module._steps) == (3 if also else 2)


@pytest.mark.parametrize(
    ("case", "what"),
    [
        (Case("Det"), "Det"),
        (Case("GridSample", {"mode": "bicubic"}, (values(2, 3, 3, 2),)), "bicubic"),
        (Case("Slice", {}, (ints(-1), ints(-100), ints(1), ints(-1))), "negative step"),
        (Case("Conv", {"auto_pad": "SAME_UPPER"}, (values(3, 4, 3, 3),)), "auto_pad"),
        (Case("Resize", {"mode": "cubic"}, ("", np.array([1, 1, 2, 2], FLOAT))), "cubic"),
    ],
    ids=["unknown operator", "smooth sampling", "backwards", "padding by name", "cubic"],
)
def test_what_cannot_be_converted_is_refused_by_name(case: Case, what: str) -> None:
    with pytest.raises(ModelError, match=what):
        OnnxModule(build(case), inputs=["x"], outputs=["y0"])


def test_a_difference_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "Relu", lambda _: lambda x: torch.relu(x) + 0.01)
    graph = build(Case("Relu"))
    with pytest.raises(ModelError, match="does not compute the same"):
        check(OnnxModule(graph, inputs=["x"], outputs=["y0"]), graph.model, {"x": values(*SHAPE)})


def test_a_batch_that_cannot_be_freed_is_told() -> None:
    graph = build(Case("Reshape", {}, (ints(1, 24, 8),)))
    with pytest.raises(ModelError, match="does not answer 2 pictures"):
        check(OnnxModule(graph, inputs=["x"], outputs=["y0"]), graph.subgraph(["x"], ["y0"]), {"x": values(*SHAPE)})


def test_a_nan_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "Relu", lambda _: lambda x: x * torch.nan)
    graph = build(Case("Relu"))
    with pytest.raises(ModelError, match="does not compute the same"):
        check(OnnxModule(graph, inputs=["x"], outputs=["y0"]), graph.model, {"x": values(*SHAPE)})


FILES = {"yolox_nano_416": (416, 0.9e6), "nanodet_m_320": (320, 0.94e6)}


@pytest.mark.parametrize("file", FILES)
def test_a_whole_detector_for_more_than_one_picture(shared: Path, file: str) -> None:
    side, weights = FILES[file]
    graph = read_graph(shared / "data/models" / f"{file}.onnx", size_wh=(side, side))
    free_batch(graph)
    module = OnnxModule(graph, inputs=graph.inputs, outputs=graph.outputs)
    assert sum(weight.numel() for weight in module.weights().values()) == pytest.approx(weights, rel=0.01)
    pictures = 100 * np.abs(values(2, 3, side, side))
    together = check(module, graph.model, {graph.inputs[0]: pictures})
    assert together.difference < 1e-4


def test_values_that_need_more_than_the_given_inputs_are_refused() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Add", ["a", "x"], ["y"])]
    graph = OnnxGraph(model(nodes, [], outputs=["y"]))
    with pytest.raises(ModelError, match="cannot be computed"):
        graph.between(["a"], ["y"])


def test_gradients_reach_every_weight() -> None:
    graph = build(CASES[0])
    module = OnnxModule(graph, inputs=["x"], outputs=["y0"])
    module(torch.from_numpy(values(*SHAPE)))[0].sum().backward()
    assert {key for key, weight in module.weights().items() if weight.grad is not None} == {"c0", "c1"}
