"""The net as an ONNX file with the interface of the family `mmdeploy`: `dets` [b, k, 5] and `labels` [b, k].

Written node by node, with the weights under the names that they have in torch: so nothing is folded or renamed, the
weights of a file can be taken back (`weights_of`), and no exporter is needed. ONNX Runtime folds the normalisation when
it loads the file. That this graph and the torch module say the same is checked after every run (`differences`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from labelloop.engines.onnx import OnnxModel
from labelloop.learning.trainers.scratch.network import LARGEST_LOG_DISTANCE, STRIDE, Detector, boxes_of, cell_centres

OPSET, IR_VERSION = 17, 8
MOST = 100
"""Boxes in an answer."""
PRODUCER = "labelloop.scratch"
COMPARED_SCORE = 1e-3
"""Cells that are no peaks have score 0, and their order means nothing."""


class _Graph:
    """Nodes and weights as they are added; each method returns the name of its output."""

    def __init__(self, net: Detector) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, NDArray[np.generic]] = {
            name: value.detach().cpu().numpy() for name, value in net.state_dict().items() if value.ndim
        }

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        self.weights[name] = value
        return name

    def conv(self, name: str, x: str, *, stride: int = 1) -> str:
        kernel = self.weights[f"{name}.weight"].shape[-1]
        bias = [f"{name}.bias"] if f"{name}.bias" in self.weights else []
        pads = [kernel // 2] * 4
        return self.add("Conv", x, f"{name}.weight", *bias, strides=[stride] * 2, pads=pads, kernel_shape=[kernel] * 2)

    def conv_norm(self, name: str, x: str, *, stride: int = 1) -> str:
        norm = [f"{name}.norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
        return self.add("Relu", self.add("BatchNormalization", self.conv(f"{name}.conv", x, stride=stride), *norm))

    def stage(self, name: str, x: str) -> str:
        """Half the size, then the residual block."""
        smaller = self.conv_norm(f"to{name}", x, stride=2)
        return self.add("Add", smaller, self.conv_norm(f"at{name}.body", smaller))

    def twice(self, x: str) -> str:
        scales = self.constant("twice", np.array([1, 1, 2, 2], np.float32))
        modes = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        return self.add("Resize", x, "", scales, **modes)


def write_onnx(net: Detector, path: Path, *, labels: tuple[str, ...], side: int) -> None:
    """Write `net` for pictures of `side` x `side` in batches of any size; the class names go into the metadata."""
    graph = _Graph(net)
    heat, logs = _outputs(graph, "pictures")
    _peaks(graph, heat, logs, cells=side // STRIDE, classes=len(labels))
    most = min(MOST, (side // STRIDE) ** 2 * len(labels))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            PRODUCER,
            [helper.make_tensor_value_info("pictures", TensorProto.FLOAT, ["batch", 3, side, side])],
            [
                helper.make_tensor_value_info("dets", TensorProto.FLOAT, ["batch", most, 5]),
                helper.make_tensor_value_info("labels", TensorProto.INT64, ["batch", most]),
            ],
            [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in graph.weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name=PRODUCER,
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, {"names": repr(dict(enumerate(labels))), "task": "detect", "trainer": PRODUCER})
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _outputs(graph: _Graph, x: str) -> tuple[str, str]:
    """`Detector.forward`, line by line."""
    at8 = graph.stage("8", graph.conv_norm("to4", graph.conv_norm("stem", x, stride=2), stride=2))
    at16 = graph.stage("16", at8)
    at32 = graph.stage("32", at16)
    at16 = graph.add("Add", at16, graph.twice(graph.conv_norm("from32", at32)))
    at8 = graph.add("Add", at8, graph.twice(graph.conv_norm("from16", at16)))
    heat, box = (graph.conv(name, graph.conv_norm(f"{name}_tower", at8)) for name in ("heat", "box"))
    return heat, box


def _peaks(graph: _Graph, heat: str, logs: str, *, cells: int, classes: int) -> None:
    """`network.peaks`, with the grid as a constant."""
    whole = np.array([cells * cells], np.int64)
    scores = graph.add("Sigmoid", heat)
    around = graph.add("MaxPool", scores, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
    is_peak = graph.add("Cast", graph.add("Equal", scores, around), to=TensorProto.FLOAT)
    rows = graph.constant("rows", np.array([0, classes * cells * cells], np.int64))
    flat = graph.add("Reshape", graph.add("Mul", scores, is_peak), rows)
    most = graph.constant("most", np.array([min(MOST, classes * cells * cells)], np.int64))
    graph.nodes.append(helper.make_node("TopK", [flat, most], ["best", "index"], name="topk", axis=1))
    count = graph.constant("cells", whole)
    graph.add("Div", "index", count, output="labels")

    limit = graph.constant("largest", np.array(LARGEST_LOG_DISTANCE, np.float32))
    distance = graph.add("Exp", graph.add("Min", logs, limit))
    columns = graph.constant("columns", np.array([0, 4, -1], np.int64))
    by_cell = graph.add("Transpose", graph.add("Reshape", distance, columns), perm=[0, 2, 1])
    last = graph.constant("last", np.array([-1], np.int64))
    cell = graph.add("Unsqueeze", graph.add("Mod", "index", count), last)
    sides = graph.constant("sides", np.array([-1, -1, 1, 1], np.float32) * STRIDE)
    reach = graph.add("Mul", graph.add("GatherND", by_cell, cell, batch_dims=1), sides)
    centres = cell_centres(cells, cells).numpy()
    grid = graph.constant("centres", np.concatenate([centres, centres], axis=1).astype(np.float32))
    boxes = graph.add("Add", graph.add("GatherND", grid, cell), reach)
    graph.add("Concat", boxes, graph.add("Unsqueeze", "best", last), output="dets", axis=2)


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a file that `write_onnx` made, under torch's names."""
    rows = onnx.load(str(path)).graph.initializer
    return {row.name: torch.from_numpy(numpy_helper.to_array(row).copy()) for row in rows}


def differences(net: Detector, path: Path, pictures: torch.Tensor) -> tuple[float, float]:
    """How far the file's answers are from the net's: largest difference of a box edge in pixels, and of a score.

    Each box of the file is held against all cells of the net, not against its peaks: where two neighbours are equal but
    for the seventh digit, either may be the peak. The best score of each picture is compared too.
    """
    with torch.no_grad():
        heat, logs = net.cpu().eval()(pictures)
    scores, boxes = heat.sigmoid().flatten(2).numpy(), boxes_of(logs).numpy()
    dets, labels = OnnxModel(path).run({"pictures": pictures.contiguous().numpy()})
    pixels, score = 0.0, float(np.abs(dets[:, 0, 4] - scores.max(axis=(1, 2))).max())
    for ours, our_scores, rows, classes in zip(boxes, scores, dets, labels, strict=True):
        for row, label in zip(rows, classes, strict=True):
            if row[4] > COMPARED_SCORE:
                gaps = np.abs(ours - row[:4]).max(axis=1)
                pixels = max(pixels, float(gaps.min()))
                score = max(score, float(abs(our_scores[label][gaps.argmin()] - row[4])))
    return pixels, score
