"""Detectors with a real, very small network: backbone, feature pyramid and head of random weights, 64 x 64 pixels.

Written as the exports of the three families are written, batch fixed to 1 included. They know nothing; they can learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 64
WIDTH = 8
SIDES = 32


class Writer:
    """Collects nodes and weights; each method adds nodes and returns the name of the result."""

    def __init__(self, *, seed: int = 0, opset: int = 11) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.random, self.opset = np.random.default_rng(seed), opset

    def constant(self, value: NDArray[Any], name: str = "") -> str:
        name = name or f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, kind: str, inputs: Sequence[str], *, output: str = "", **attributes: Any) -> str:
        name = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def conv(
        self, x: str, into: int, out: int, *, size: int = 1, stride: int = 1, bias: float = 0.0, gain: float = 2.0
    ) -> str:
        weight = self.random.normal(size=(out, into, size, size), scale=(gain / (into * size * size)) ** 0.5)
        names = [self.constant(weight.astype(np.float32)), self.constant(np.full(out, bias, np.float32))]
        pad = [size // 2] * 4
        return self.node("Conv", [x, *names], strides=[stride, stride], pads=pad, kernel_shape=[size, size])

    def silu(self, x: str) -> str:
        return self.node("Mul", [x, self.node("Sigmoid", [x])])

    def reshape(self, x: str, *shape: int) -> str:
        return self.node("Reshape", [x, self.constant(np.array(shape, np.int64))])

    def pyramid(self, x: str) -> dict[int, str]:
        """Stride -> map of WIDTH channels: five halvings, then a feature pyramid down to stride 8."""
        maps, channels = {}, 3
        for stride in (2, 4, 8, 16, 32):
            gain = 2 / 100**2 if channels == 3 else 2.0  # pixels come as 0 to 255
            x = self.silu(self.conv(x, channels, WIDTH, size=3, stride=2, gain=gain))
            maps[stride], channels = x, WIDTH
        deep = {32: self.silu(self.conv(maps[32], WIDTH, WIDTH))}
        for stride in (16, 8):
            none, scales = self.constant(np.empty(0, np.float32)), self.constant(np.array([1, 1, 2, 2], np.float32))
            large = self.node("Resize", [deep[2 * stride], none, scales], mode="nearest", nearest_mode="floor",
                              coordinate_transformation_mode="asymmetric")  # fmt: skip
            joined = self.node("Concat", [large, maps[stride]], axis=1)
            deep[stride] = self.silu(self.conv(joined, 2 * WIDTH, WIDTH))
        return deep

    def write(self, path: Path, outputs: dict[str, tuple[int, ...]]) -> Path:
        graph = helper.make_graph(
            self.nodes,
            "tiny",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            self.constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path)
        return path


def tiny_yolox(path: Path, *, classes: int = 4) -> Path:
    """`output` [1, 84, 5 + classes], raw."""
    net, rows = Writer(), []
    for stride, x in sorted(net.pyramid("images").items()):
        seen = net.silu(net.conv(x, WIDTH, WIDTH, size=3))
        box = net.conv(seen, WIDTH, 4)
        objectness, names = (net.node("Sigmoid", [net.conv(seen, WIDTH, n, bias=-2.0)]) for n in (1, classes))
        joined = net.node("Concat", [box, objectness, names], axis=1)
        rows.append(net.reshape(joined, 1, 5 + classes, (SIDE // stride) ** 2))
    net.node("Transpose", [net.node("Concat", rows, axis=2)], perm=[0, 2, 1], output="output")
    return net.write(path, {"output": (1, 84, 5 + classes)})


def tiny_v8(path: Path, *, classes: int = 4) -> Path:
    """`output0` [1, 4 + classes, 84], boxes decoded in the graph from distributions over 4 distances (theirs have 16, for
    pictures of 640 pixels)."""
    net, rows, bins = Writer(opset=17), [], 4
    for x in (value for _, value in sorted(net.pyramid("images").items())):
        both = net.node("Concat", [net.conv(x, WIDTH, 4 * bins), net.conv(x, WIDTH, classes, bias=-2.0)], axis=1)
        rows.append(net.reshape(both, 1, 4 * bins + classes, -1))
    joined = net.node("Concat", rows, axis=2)
    net.nodes.append(
        helper.make_node("Split", [joined, net.constant(np.array([4 * bins, classes]))], ["d", "c"], axis=1)
    )
    sides = net.node("Transpose", [net.reshape("d", 1, 4, bins, 84)], perm=[0, 2, 1, 3])
    mean = net.constant(np.arange(bins, dtype=np.float32).reshape(1, bins, 1, 1))
    distances = net.reshape(net.node("Conv", [net.node("Softmax", [sides], axis=1), mean]), 1, 4, 84)
    cells = [(x + 0.5, y + 0.5, s) for s in (8, 16, 32) for y in range(SIDE // s) for x in range(SIDE // s)]
    table = np.array(cells, np.float32).T
    anchors, strides = net.constant(table[None, :2]), net.constant(table[None, 2:])
    net.nodes.append(helper.make_node("Split", [distances, net.constant(np.array([2, 2]))], ["lt", "rb"], axis=1))
    first, last = net.node("Sub", [anchors, "lt"]), net.node("Add", [anchors, "rb"])
    middle = net.node("Div", [net.node("Add", [first, last]), net.constant(np.array(2, np.float32))])
    box = net.node("Concat", [middle, net.node("Sub", [last, first])], axis=1)
    net.node("Concat", [net.node("Mul", [box, strides]), net.node("Sigmoid", ["c"])], axis=1, output="output0")
    return net.write(path, {"output0": (1, 4 + classes, 84)})


def tiny_nanodet(path: Path, *, classes: int = 4, opset: int = 11) -> Path:
    """`cls_pred_stride_N` [1, cells, classes] and `dis_pred_stride_N` [1, cells, 32], made by one layer per stride."""
    net, outputs = Writer(opset=opset), {}
    for stride, x in sorted(net.pyramid("images").items()):
        both = net.conv(x, WIDTH, classes + SIDES, bias=-1.0)
        sizes = [classes, SIDES]
        if opset < 13:
            node = helper.make_node("Split", [both], [f"c{stride}", f"d{stride}"], axis=1, split=sizes)
        else:
            node = helper.make_node(
                "Split", [both, net.constant(np.array(sizes))], [f"c{stride}", f"d{stride}"], axis=1
            )
        net.nodes.append(node)
        cells = (SIDE // stride) ** 2
        for name, value, width in (
            (f"cls_pred_stride_{stride}", net.node("Sigmoid", [f"c{stride}"]), classes),
            (f"dis_pred_stride_{stride}", f"d{stride}", SIDES),
        ):
            net.node("Transpose", [net.reshape(value, 1, width, -1)], perm=[0, 2, 1], output=name)
            outputs[name] = (1, cells, width)
    return net.write(path, outputs)
