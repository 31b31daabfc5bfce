"""Where the backbone ends: the values at strides 8, 16 and 32 from which neck and head are computed.

The backbone of a detector makes ever smaller maps; its neck begins where a small map is enlarged and joined to a
larger one (a feature pyramid, https://arxiv.org/abs/1612.03144). So:

1. everything computed from an enlarged map (Resize, Upsample, ConvTranspose) belongs to the neck or the head;
2. what the neck takes from outside itself are its feet, one per stride;
3. a foot is often behind a 1x1 convolution that belongs to the neck (a lateral). The deepest foot goes back over one
   such convolution; every other foot goes back until it stands on the way to the deepest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import onnx

from labelloop.core.errors import ModelError
from labelloop.learning.trainers.finetune.class_layer import Rows
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph

ENLARGING = ("Resize", "Upsample", "ConvTranspose")
STRIDES = {"nanodet-plus": (8, 16, 32)}
"""Family -> strides of its backbone, where they are not the usual ones. (NanoDet-Plus makes stride 64 in the neck.)"""
USUAL_STRIDES = (8, 16, 32)
ANY_STRIDES = ("detr", "detr-raw")
"""Families whose decoder looks at as many maps as it was built for: two of them in the smallest DEIMv2."""
BY_HAND: dict[str, tuple[tuple[str, ...], ...]] = {
    "yolox": (("781", "841", "886"),),
    "nanodet": (("528", "743", "846"),),
}
"""Family -> names of the cut in exports that are widely used (the release files of YOLOX-nano and NanoDet-m), for when
the graph does not show it; taken only if the values exist and have the strides."""


class Cut(NamedTuple):
    """`values`: names at the end of the backbone, largest map first; `strides` of each, in pixels of the input."""

    values: tuple[str, ...]
    strides: tuple[int, ...]


def find_cut(graph: OnnxGraph, *, image: str, family: str, names: tuple[str, ...] = ()) -> Cut:
    """The end of the backbone, checked: the strides are the family's, and everything behind it needs nothing else.

    `names`, when given, are the only ones tried. Raises ModelError when there is no such place.
    """
    strides = None if family in ANY_STRIDES else STRIDES.get(family, USUAL_STRIDES)
    for tried in (names,) if names else (_by_structure(graph, image), *BY_HAND.get(family, ())):
        cut = _checked(graph, image, tried, strides)
        if cut is not None:
            return cut
    sizes = ", ".join(map(str, strides or ()))
    raise ModelError(
        "The end of the backbone was not found in this file: no maps "
        f"{f'at strides {sizes} ' if sizes else ''}from which everything else is computed.",
        hint="Train all weights (trainer full), or name the values in the option `cut`.",
    )


def stride_of(graph: OnnxGraph, name: str, *, image: str) -> int | None:
    """How many pixels of the picture one cell of a [b, c, h, w] value covers; None for other values."""
    shape, whole = graph.shapes.get(name, ()), graph.shapes[image]
    sides = [(whole[axis], shape[axis]) for axis in (2, 3)] if len(shape) == 4 else []
    found = {-(-large // small) for large, small in sides if large and small}
    return found.pop() if len(found) == 1 and all(large and small for large, small in sides) else None


def _by_structure(graph: OnnxGraph, image: str) -> tuple[str, ...]:
    enlarged = [node.output[0] for node in graph.nodes if node.op_type in ENLARGING]
    behind = graph.descendants(enlarged)
    feet = {
        name
        for node in graph.nodes
        if set(node.output) & behind
        for name in node.input
        if name and name not in behind and name not in graph.constants
    }
    by_stride: dict[int, list[str]] = {}
    for name in feet:
        stride = stride_of(graph, name, image=image)
        if stride is not None and stride >= USUAL_STRIDES[0]:
            by_stride.setdefault(stride, []).append(name)
    if not by_stride:
        return ()
    order = {name: place for place, node in enumerate(graph.nodes) for name in node.output}
    latest = {stride: max(names, key=lambda name: order.get(name, -1)) for stride, names in by_stride.items()}
    deepest = max(latest)
    bottom = _behind_lateral(graph, latest[deepest])
    spine = graph.ancestors([bottom])
    found = {stride: _on_spine(graph, name, spine) for stride, name in latest.items() if stride != deepest}
    found[deepest] = bottom
    return tuple(found[stride] or "" for stride in sorted(found))


def _behind_lateral(graph: OnnxGraph, name: str) -> str:
    """The input of the 1x1 convolution that `name` comes from, over its activation; `name` where there is none."""
    here = name
    for _ in range(3):  # convolution, gate, product: x * sigmoid(x) is two nodes behind the convolution
        node = graph.producers.get(here)
        if node is None:
            return name
        if node.op_type == "Conv":
            return node.input[0] if _is_pointwise(graph, node) else name
        if node.op_type not in ("Mul", "Sigmoid", "Relu", "LeakyRelu", "HardSwish", "Clip", "BatchNormalization"):
            return name
        here = node.input[0]
    return name


def _on_spine(graph: OnnxGraph, name: str, spine: set[str]) -> str | None:
    """The nearest value that both `name` and the deepest map are computed from, of the same size as `name`."""
    here, size = name, graph.shapes[name][2:]
    while here not in spine:
        node = graph.producers.get(here)
        if node is None or graph.shapes.get(node.input[0], ())[2:] != size:
            return None
        here = node.input[0]
    return here


def _is_pointwise(graph: OnnxGraph, node: onnx.NodeProto) -> bool:
    return graph.shapes.get(node.input[1], ())[2:] == (1, 1)


def _checked(graph: OnnxGraph, image: str, names: tuple[str, ...], strides: tuple[int, ...] | None) -> Cut | None:
    found = tuple(stride_of(graph, name, image=image) or 0 for name in names)
    if not found or 0 in found or (strides is not None and found != strides):
        return None
    needed = graph.ancestors(graph.outputs, stop=names)
    return None if image in needed else Cut(names, found)


def find_head(graph: OnnxGraph, layers: Sequence[Rows], cut: Cut, *, image: str) -> Cut:
    """A later cut, behind everything that serves more than one stride: what is left is the head of each stride.

    `layers` is one layer per stride. The values keep the order of the graph. Raises ModelError.
    """
    serves: dict[str, set[int]] = {}
    for place, layer in enumerate(layers):
        for name in graph.ancestors([layer.value], stop=[image]):
            serves.setdefault(name, set()).add(place)
    values = [
        name
        for node in graph.nodes
        for name in node.output
        if len(serves.get(name, ())) > 1 and any(_serves_one(serves, user) for user in graph.consumers.get(name, ()))
    ]
    if not values or image in graph.ancestors([layer.value for layer in layers], stop=values):
        return cut
    return Cut(tuple(values), tuple(stride_of(graph, name, image=image) or 0 for name in values))


def _serves_one(serves: dict[str, set[int]], node: onnx.NodeProto) -> bool:
    return all(len(serves.get(name, ())) <= 1 for name in node.output)
