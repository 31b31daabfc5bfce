"""Features of a whole picture from an ONNX file, as the first part of a file of one's own.

A classifier has them in front of its last layer. Of a detector the maps at the end of its backbone are pooled, mean and
largest value of each channel. Where there is no file at all, colours and edges have to do (`plain`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.errors import ModelError
from labelloop.learning.trainers.finetune.cut import find_cut
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph, free_batch, read_graph

FEATURES = "features_of_the_picture"
PLAIN_SIDE = 96
PLAIN_INPUT = InputSpec(
    size_wh=(PLAIN_SIDE, PLAIN_SIDE),
    color="rgb",
    resize="stretch",
    pad=0.0,
    scale=1 / 255,
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)
_COLOUR_CELLS, _EDGE_CELLS, _DIRECTIONS = 4, 2, 8
_LAST = ("Gemm", "MatMul")
_PASSED = ("Add", "Softmax", "Sigmoid", "LogSoftmax", "Identity", "Reshape", "Flatten", "Cast")


def features_of(path: Path, card: ModelCard) -> onnx.ModelProto:
    """A model whose only output, FEATURES [b, d], describes a picture prepared as `card` says.

    Raises ModelError for a file whose features are not found.
    """
    if card.input.size_wh is None:
        raise ModelError(f"The card of {card.name} names no input size.", hint="Give it input.size_wh.")
    graph = read_graph(path, size_wh=card.input.size_wh)
    image = graph.inputs[0]
    free_batch(graph)
    if card.engine == "classify":
        values = (_before_last(graph),)
        return _ending(graph.subgraph([image], values), values, pool=False)
    cut = find_cut(graph, image=image, family=card.family or "")
    return _ending(graph.subgraph([image], cut.values), cut.values, pool=True)


def _before_last(graph: OnnxGraph) -> str:
    """The input of the last fully connected layer."""
    name = graph.outputs[0]
    for _ in range(8):
        node = graph.producers.get(name)
        if node is None:
            break
        if node.op_type in _LAST and node.input[0] not in graph.constants:
            return str(node.input[0])
        if node.op_type not in _PASSED:
            break
        name = next((one for one in node.input if one not in graph.constants), "")
    raise ModelError(
        "The features in front of the last layer were not found in this file.",
        hint="Its last layer must be fully connected (Gemm or MatMul). Or begin from a detector.",
    )


def _ending(model: onnx.ModelProto, values: Sequence[str], *, pool: bool) -> onnx.ModelProto:
    """`model`, its outputs joined to one row per picture."""
    graph, rows = model.graph, list(values)
    if pool:
        rows = []
        for number, value in enumerate(values):
            for kind in ("Average", "Max"):
                pooled, flat = f"pooled_{kind}_{number}", f"flat_{kind}_{number}"
                graph.node.append(helper.make_node(f"Global{kind}Pool", [value], [pooled]))
                graph.node.append(helper.make_node("Flatten", [pooled], [flat]))
                rows.append(flat)
    if rows != [FEATURES]:  # in a file that was made here before, they have that name already
        graph.node.append(helper.make_node("Concat", rows, [f"{FEATURES}_joined"], axis=1))
        graph.node.append(helper.make_node("Flatten", [f"{FEATURES}_joined"], [FEATURES]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", None]))
    return model


def plain() -> onnx.ModelProto:
    """Colours and edges from a picture [b, 3, 96, 96] in 0..1, as `learning/features` reckons them: mean and deviation
    of each colour in 4 x 4 cells (Stricker and Orengo 1995), and the strength of edges in 8 directions in 2 x 2 cells
    (after Dalal and Triggs 2005). 128 numbers."""
    colour, edge = PLAIN_SIDE // _COLOUR_CELLS, PLAIN_SIDE // _EDGE_CELLS
    constants = {
        "grey": np.full((1, 3, 1, 1), 1 / 3, np.float32),
        "slopes": _slopes(),
        "tiny": np.full(1, 1e-6, np.float32),
        "four": np.full(1, 4.0, np.float32),
    }
    nodes = [
        _pool("image", "means", colour),
        helper.make_node("Mul", ["image", "image"], ["squares"]),
        _pool("squares", "mean_squares", colour),
        helper.make_node("Mul", ["means", "means"], ["squared_means"]),
        helper.make_node("Sub", ["mean_squares", "squared_means"], ["variances"]),
        helper.make_node("Max", ["variances", "tiny"], ["positive"]),
        helper.make_node("Sqrt", ["positive"], ["deviations"]),
        helper.make_node("Conv", ["image", "grey"], ["greys"]),
        helper.make_node("Conv", ["greys", "slopes"], ["edges"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["edges"], ["directions"]),
        _pool("directions", "strengths", edge),
        helper.make_node("Mul", ["strengths", "four"], ["edge_strengths"]),
        *(helper.make_node("Flatten", [name], [f"{name}_row"]) for name in ("means", "deviations", "edge_strengths")),
    ]
    rows = [f"{name}_row" for name in ("means", "deviations", "edge_strengths")]
    nodes.append(helper.make_node("Concat", rows, [FEATURES], axis=1))
    graph = helper.make_graph(
        nodes,
        "plain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, PLAIN_SIDE, PLAIN_SIDE])],
        [helper.make_tensor_value_info(FEATURES, TensorProto.FLOAT, ["batch", None])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _pool(source: str, target: str, side: int) -> onnx.NodeProto:
    return helper.make_node("AveragePool", [source], [target], kernel_shape=[side, side], strides=[side, side])


def _slopes() -> np.ndarray:
    """How much a grey picture rises in each of 8 directions: Sobel's masks, turned [8, 1, 3, 3]."""
    across = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], np.float32) / 8
    turns = [2 * math.pi * number / _DIRECTIONS for number in range(_DIRECTIONS)]
    return np.stack([math.cos(turn) * across + math.sin(turn) * across.T for turn in turns])[:, None].astype(np.float32)
