"""Fine-tuning of detectors with a decoder (RT-DETR, D-FINE, DEIM) from their ONNX file.

Their encoder scores every cell, the best q cells become queries (a TopK), and the decoder turns each query into one
box, so that nothing has to be suppressed. What has to be found in the graph:

1. the logits [b, q, c] and boxes [b, q, 4] of the last decoder layer: outputs (`detr-raw`), or in front of the
   postprocessor (`detr`), which takes the best of q * c scores and reckons query and class out of their places;
2. the linear layer behind the logits, and whatever counts classes between it and the outputs;
3. the TopK that chooses cells. It keeps its old classes: it takes the best of them, whatever it is, and what it takes
   is taught apart from the decoder, as "an object, or none".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
import onnx

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError
from labelloop.engines.detect.detr import BOXES, LOGITS
from labelloop.engines.detect.head import Floats
from labelloop.learning.trainers.finetune.class_layer import Rows
from labelloop.learning.trainers.finetune.families import Answers, LastLayers, Points, Told
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph, attributes, prune

if TYPE_CHECKING:
    from torch import Tensor

HINT = "Train with another trainer (command, openmmlab), or the folder of transformers that it was exported from."
SAME_CLASSES = ("Identity", "Cast", "Squeeze", "Unsqueeze")


class Ends(NamedTuple):
    """Values of the last decoder layer: `logits` [b, q, c] and `boxes` [b, q, 4], fractions of the picture."""

    logits: str
    boxes: str


class DetrRaw:
    """Logits and boxes, centre and size, are outputs.

    One linear layer tells the classes of all queries apart, and has to learn that from few pairs: DEIMv2-atto on bccd,
    200 steps of 4 pictures, came to AP50 / AP .718 / .446 at the usual class rate, .743 / .469 at 2.5 times that,
    .755 / .468 at 5 times."""

    names: ClassVar[tuple[str, ...]] = ("detr-raw",)
    strides: ClassVar[tuple[int, ...]] = ()
    told: ClassVar[Told] = "queries"
    class_pace: ClassVar[float] = 4.0

    def locate(self, graph: OnnxGraph, card: ModelCard) -> LastLayers:
        ends = self.ends(graph)
        _unstack(graph, ends.logits)
        layer = _linear(graph, ends.logits, len(card.labels))
        chosen, more = _choice(graph, ends.logits)
        apart = graph.descendants([chosen]) & graph.ancestors(more[1:]) if more else set()
        return LastLayers((layer,), (Rows(ends.boxes, 0, 4, ()),), (), chosen, more, frozenset(apart))

    def ends(self, graph: OnnxGraph) -> Ends:
        logits, boxes = (next((n for n in names if n in graph.outputs), "") for names in (LOGITS, BOXES))
        return Ends(logits, boxes)

    def give_classes(self, graph: OnnxGraph, layers: LastLayers, rows: Sequence[Sequence[Floats]]) -> None:
        (layer,), (values,) = layers.classes, rows
        self.recount(graph, self.ends(graph), layer.stop, len(values[0]))
        for name, axis, value in zip(layer.weights, layer.axes, values, strict=True):
            graph.set_constant(name, np.moveaxis(value, 0, axis))
        del graph.model.graph.value_info[:]
        graph.reindex()

    def recount(self, graph: OnnxGraph, ends: Ends, before: int, after: int) -> None:  # noqa: ARG002
        """Change what is behind the logits from `before` classes to `after`."""
        for output in graph.model.graph.output:
            if output.name == ends.logits:
                output.type.tensor_type.shape.dim[2].dim_value = after

    def corners(self, boxes: Tensor) -> Tensor:
        return _corners(boxes)

    def answers(self, layers: LastLayers, maps: Mapping[str, Tensor], points: Points) -> Answers:
        size = points.size_wh.repeat(2)
        earlier: tuple[Answers, ...] = ()
        if layers.more:
            scores, boxes = (maps[name].float() for name in layers.more)
            earlier = (Answers(scores[..., None], _corners(boxes) * size, None),)
        logits, raw = (maps[part[0].value].float() for part in (layers.classes, layers.boxes))
        return Answers(logits, self.corners(raw) * size, None, earlier)


class Detr(DetrRaw):
    """With the postprocessor, whose boxes are left, top, right, bottom."""

    names: ClassVar[tuple[str, ...]] = ("detr",)
    told: ClassVar[Told] = "ranks"

    def ends(self, graph: OnnxGraph) -> Ends:
        top = _made_by(graph, "scores", "TopK")
        sigmoid = _made_by(graph, _made_by(graph, top.input[0], "Flatten", "Reshape").input[0], "Sigmoid")
        gather = _made_by(graph, "boxes", "GatherElements")
        scaled = _made_by(graph, gather.input[0], "Mul")
        sizes = [value.name for value in graph.model.graph.input if len(graph.shapes[value.name]) == 2]
        behind = graph.descendants(sizes)
        unit = [name for name in scaled.input if name not in behind and name not in graph.constants]
        if len(unit) != 1:
            raise _lost(scaled)
        return Ends(sigmoid.input[0], unit[0])

    def recount(self, graph: OnnxGraph, ends: Ends, before: int, after: int) -> None:
        top = _made_by(graph, "scores", "TopK")
        flat = graph.producers[top.input[0]]
        if flat.op_type == "Reshape":
            _recount_shape(graph, flat, before, after)
        places = graph.descendants([top.output[1]])
        counting = [node for node in graph.nodes if node.op_type in ("Div", "Mod", "Mul") and places & set(node.input)]
        changed = {node.output[0] for node in counting if _recount_scalar(graph, node, before, after)}
        queries = _made_by(graph, "boxes", "GatherElements").input[1]
        for name in ("labels", queries):
            if not changed & graph.ancestors([name], stop=[top.output[1]]):
                raise ModelError(f"How {name} comes from the places of the best scores is not understood.", hint=HINT)
        _fewer_boxes(graph, top, ends.logits, after)

    def corners(self, boxes: Tensor) -> Tensor:
        return boxes


# --- the way back from the logits -------------------------------------------------------------------


def _unstack(graph: OnnxGraph, logits: str) -> None:
    """The answers of all decoder layers are often stacked, to take one of them: take that one as it is. The others,
    which nobody reads, then drop out."""
    take = graph.producers.get(logits)
    index = graph.constants.get(take.input[1]) if take is not None and take.op_type == "Gather" else None
    stack = graph.producers.get(take.input[0]) if take is not None else None
    if take is None or index is None or index.ndim or stack is None:
        return
    layer: onnx.NodeProto | None = stack
    if stack.op_type == "Concat" and attributes(stack)["axis"] == attributes(take).get("axis", 0):
        layer = graph.producers.get(stack.input[int(index)])
    if layer is None or layer.op_type != "Unsqueeze":
        return
    take.CopyFrom(onnx.helper.make_node("Identity", [layer.input[0]], [logits], name=take.name))
    prune(graph)


def _linear(graph: OnnxGraph, logits: str, classes: int) -> Rows:
    """The linear layer that makes the classes, back over what adds to all of them alike."""
    here, bias = logits, ""
    for _ in range(12):
        node = graph.producers.get(here)
        if node is None:
            break
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in graph.constants:
            return _rows(graph, node, logits, bias, classes)
        if node.op_type == "Add":
            known = [name for name in node.input if name in graph.constants]
            bias = known[0] if known else bias
            here = _term_of_classes(graph, node, classes)
        elif node.op_type in SAME_CLASSES:
            here = node.input[0]
        else:
            raise _lost(node)
        if len(graph.consumers[here]) > 1:
            raise ModelError(f"The class scores {here} are used in more than one place.", hint=HINT)
    raise ModelError(f"{logits} does not come from a linear layer.", hint=HINT)


def _term_of_classes(graph: OnnxGraph, node: onnx.NodeProto, classes: int) -> str:
    """Which of two terms has a column per class; the other is a bias, or a number per query (how well it is boxed,
    D-FINE adds it second, and with one class both are alike)."""
    terms = [name for name in node.input if name not in graph.constants]
    if len(terms) > 1:
        terms = [name for name in terms if graph.shapes.get(name, (None,))[-1] == classes]
    if not terms or (len(terms) > 1 and classes > 1):
        raise _lost(node)
    return str(terms[0])


def _rows(graph: OnnxGraph, node: onnx.NodeProto, logits: str, bias: str, classes: int) -> Rows:
    weight, axis = node.input[1], 0 if attributes(node).get("transB", 0) else 1
    bias = node.input[2] if len(node.input) > 2 else bias
    names, axes = ((weight, bias), (axis, 0)) if bias else ((weight,), (axis,))
    for name, place in zip(names, axes, strict=True):
        if graph.constants[name].shape[place : place + 1] != (classes,):
            raise ModelError(f"{name} has the shape {graph.constants[name].shape}, for {classes} classes.", hint=HINT)
    return Rows(logits, 0, classes, names, axes)


def _choice(graph: OnnxGraph, logits: str) -> tuple[str, tuple[str, ...]]:
    """Where queries are chosen from cells: the index of the chosen [b, q]; their best scores (logits) [b, q] and the
    boxes that the decoder begins with [b, q, 4]. Empty where the graph does not show it."""
    behind = graph.ancestors([logits])
    tops = [node for node in graph.nodes if node.op_type == "TopK" and node.output[1] in behind]
    if len(tops) != 1:
        return "", ()
    (top,), chosen = tops, tops[0].output[1]
    after = graph.descendants([chosen]) & behind
    boxes = [
        node.output[0]
        for node in graph.nodes
        if node.op_type == "Sigmoid" and node.output[0] in after and graph.shapes.get(node.output[0], ())[2:] == (4,)
    ]
    if not boxes or not top.output[0] or not _are_logits(graph, top.input[0]):
        return chosen, ()
    return chosen, (top.output[0], boxes[0])


def _are_logits(graph: OnnxGraph, scores: str) -> bool:
    node = graph.producers.get(scores)
    if node is not None and node.op_type in ("ReduceMax", "Gather", "Squeeze"):
        node = graph.producers.get(node.input[0])
    return node is not None and node.op_type not in ("Sigmoid", "Softmax")


# --- what counts classes behind them ----------------------------------------------------------------


def _recount_shape(graph: OnnxGraph, node: onnx.NodeProto, before: int, after: int) -> None:
    shape = graph.constants.get(node.input[1])
    if shape is None or (shape[-1] > 0 and shape[-1] % before):
        raise _lost(node)
    if shape[-1] > 0:
        graph.own_constant(node, 1, np.array([*shape[:-1], shape[-1] // before * after], np.int64))


def _recount_scalar(graph: OnnxGraph, node: onnx.NodeProto, before: int, after: int) -> bool:
    for place, name in enumerate(node.input):
        value = graph.constants.get(name)
        if value is not None and value.size == 1 and value.item() == before:
            graph.own_constant(node, place, np.full(value.shape, after, value.dtype))
            return True
    return False


def _fewer_boxes(graph: OnnxGraph, top: onnx.NodeProto, logits: str, classes: int) -> None:
    """q queries have q * c scores; a file for many classes may take more than there are now."""
    count, queries = graph.constants.get(top.input[1]), graph.shapes[logits][1] or _chosen_count(graph, logits)
    if count is None or queries is None:
        raise _lost(top)
    most = queries * classes
    if count.item() <= most:
        return
    graph.own_constant(top, 1, np.full(count.shape, most, np.int64))
    for output in graph.model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_value = most


def _chosen_count(graph: OnnxGraph, logits: str) -> int | None:
    chosen, _ = _choice(graph, logits)
    count = graph.constants.get(graph.producers[chosen].input[1]) if chosen else None
    return None if count is None else int(count.item())


def _made_by(graph: OnnxGraph, name: str, *kinds: str) -> onnx.NodeProto:
    node = graph.producers.get(name)
    while node is not None and node.op_type in ("Identity", "Cast"):
        node = graph.producers.get(node.input[0])
    if node is None or node.op_type not in kinds:
        found = f"by {node.op_type}" if node is not None else "outside the graph"
        raise ModelError(f"{name} is made {found}, not by {' or '.join(kinds)}.", hint=HINT)
    return node


def _corners(cxcywh: Tensor) -> Tensor:
    import torch

    halves = cxcywh[..., 2:] / 2
    return torch.cat([cxcywh[..., :2] - halves, cxcywh[..., :2] + halves], dim=-1)


def _lost(node: onnx.NodeProto) -> ModelError:
    return ModelError(
        f"The classes cannot be followed through the operator {node.op_type} ({node.output[0]}).", hint=HINT
    )
