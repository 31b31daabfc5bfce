"""Non-maximum suppression inside a file: taken off, so that what is in front of it can be trained, and put on again.

MMDeploy's files end in one: boxes and scores of all cells go into the operator NonMaxSuppression, and the nodes behind
it sort what it chose into `dets` and `labels`. They count classes and cells here and there, and some are made for one
picture at a time: in RTMDet's files with a free batch a mask [b, c] meets scores [b, n, c], which ONNX Runtime refuses
for more than one picture. So they are not followed but written anew, with the thresholds of the file, for any number of
classes and pictures. What MMDeploy does beforehand, keeping the cells with the best 5,000 scores, is left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, parser

from labelloop.core.errors import ModelError
from labelloop.engines.onnx_file import scan
from labelloop.learning.trainers.known_shapes import MEASURING, settle_shapes
from labelloop.learning.trainers.onnx_graph import OnnxGraph, attributes, prune

BOXES, SCORES = "boxes_of_cells", "scores_of_cells"
OPERATOR = "NonMaxSuppression"
OUTPUTS = {"dets", "labels"}
OLDEST_OPSET = 11
FORWARDING = ("Reshape", "Unsqueeze", "Squeeze", "Cast", "Identity")


class Suppression(NamedTuple):
    """A box goes when its IoU with a better one of its class is above `most_iou`; of boxes with a score above
    `least_score`, `most_of_class` stay in each class and `most` in all (None: no limit). `outputs` are `dets` and
    `labels` as the file declares them."""

    most_iou: float
    least_score: float
    most_of_class: int
    most: int | None
    outputs: tuple[onnx.ValueInfoProto, ...]


def is_missing(path: Path) -> bool:
    """Whether the file has no suppression; nothing is loaded. Raises ModelError when it cannot be read."""
    return OPERATOR not in scan(path).producers.values()


# --- off --------------------------------------------------------------------------------------------


def take_off(graph: OnnxGraph, *, cells: int) -> Suppression | None:
    """Let the graph end in BOXES [b, 4, cells] and SCORES [b, cells, c], which went into its suppression; None, and
    nothing changed, when it has none.

    Raises ModelError when it has several, as detectors of two stages have, has outputs besides boxes and labels, or
    when what goes into it is not one box for each of the `cells`.
    """
    nodes = [node for node in graph.nodes if node.op_type == OPERATOR]
    if not nodes:
        return None
    _check(graph, nodes)
    _unmask(graph, nodes[0].input[1])
    settle_shapes(graph, image=graph.inputs[0], until=nodes[0].output)
    node = next(node for node in graph.nodes if node.op_type == OPERATOR)
    found = _read(graph, node)
    boxes, scores = (_of_all_cells(graph, name, cells) for name in node.input[:2])
    if graph.shapes[boxes][2] != 4:
        raise _not_one_box_per_cell(cells)
    inside = graph.model.graph
    inside.node.append(helper.make_node("Transpose", [boxes], [BOXES], perm=[0, 2, 1]))
    inside.node.append(helper.make_node("Identity", [scores], [SCORES]))
    batch, _, classes = graph.shapes[scores]
    del inside.output[:]
    for name, rest in ((BOXES, (4, cells)), (SCORES, (cells, classes))):
        inside.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, *rest]))
    prune(graph)
    return found


def _check(graph: OnnxGraph, nodes: list[onnx.NodeProto]) -> None:
    elsewhere = (
        "Train it from config and checkpoint (labelloop models add --engine mmdet), or with the trainer command."
    )
    if len(nodes) > 1:
        raise ModelError(
            f"This file suppresses {len(nodes)} times: it proposes boxes and looks at them again (two stages).",
            hint=elsewhere,
        )
    if set(graph.outputs) != OUTPUTS:
        raise ModelError(f"This file answers {', '.join(graph.outputs)}, not dets and labels alone.", hint=elsewhere)
    if graph.opset < OLDEST_OPSET:
        raise ModelError(f"The file is of opset {graph.opset}; {OLDEST_OPSET} is needed.", hint="Export it again.")


def _unmask(graph: OnnxGraph, scores: str) -> None:
    """Without the mask that sets the scores of a class to 0 where it reaches the threshold nowhere: it fits one picture
    only, and the suppression leaves out such scores anyway."""
    before = graph.ancestors([scores])
    for node in graph.nodes:
        if node.op_type == "Where" and node.output[0] in before and _is_zero(graph, node.input[2]):
            for user in graph.consumers[node.output[0]]:
                user.input[:] = [node.input[1] if name == node.output[0] else name for name in user.input]
    graph.reindex()


def _is_zero(graph: OnnxGraph, name: str) -> bool:
    node = graph.producers.get(name)
    if node is not None and node.op_type == "ConstantOfShape":
        return not np.any(attributes(node).get("value", 0))
    return not np.any(graph.constants.get(name, 1))


def _read(graph: OnnxGraph, node: onnx.NodeProto) -> Suppression:
    """The thresholds; those that are left out are 0, as the operator has it."""
    numbers = [float(graph.constants[name].reshape(-1)[0]) if name else 0.0 for name in _thresholds(graph, node)]
    behind = graph.descendants(node.output)
    limits = [_limit(graph, one.input[1]) for one in graph.nodes if one.op_type == "TopK" and one.input[0] in behind]
    outputs = tuple(onnx.ValueInfoProto.FromString(one.SerializeToString()) for one in graph.model.graph.output)
    return Suppression(numbers[1], numbers[2], int(numbers[0]), next(iter(limits), None), outputs)


def _thresholds(graph: OnnxGraph, node: onnx.NodeProto) -> list[str]:
    names = [*node.input[2:], "", "", ""][:3]
    if any(name and name not in graph.constants for name in names):
        raise ModelError("The thresholds of the suppression in this file are no constants.")
    return names


def _limit(graph: OnnxGraph, name: str) -> int | None:
    """The k of a TopK: a constant, or the smaller one of a constant and the number of boxes there are."""
    if name in graph.constants:
        return int(graph.constants[name].reshape(-1)[0])
    node = graph.producers.get(name)
    if node is None or node.op_type not in (*FORWARDING, "Where", "Min"):
        return None
    places = {"Where": slice(1, 3), "Min": slice(None)}.get(node.op_type, slice(1))
    found = [limit for limit in (_limit(graph, one) for one in node.input[places]) if limit is not None]
    return min(found, default=None)


def _of_all_cells(graph: OnnxGraph, name: str, cells: int) -> str:
    """The last value [b, cells, ...] on the way to `name`. Some files keep the best few thousand cells in between."""
    ranks, sizes = (
        [output for node in graph.nodes if node.op_type in kinds for output in node.output]
        for kinds in (("TopK",), MEASURING)
    )
    before = graph.ancestors([name], stop=[*ranks, *sizes]) - graph.descendants(ranks)
    for node in reversed(graph.nodes):
        for output in node.output:
            shape = graph.shapes.get(output, ())
            if output in before and len(shape) == 3 and shape[1] == cells and shape[2] is not None:
                return str(output)
    raise _not_one_box_per_cell(cells)


def _not_one_box_per_cell(cells: int) -> ModelError:
    return ModelError(
        f"What the suppression of this file chooses from is not one box for each of the {cells} cells of its input.",
        hint="Its strides must be 8, 16 and 32, without anchors. Train it with another trainer (command, openmmlab).",
    )


# --- on ---------------------------------------------------------------------------------------------

TAIL = """
suppression (float[b, n, 4] boxes, float[b, n, c] scores) => (float[b, k, 5] dets, int64[b, k] labels) {
    by_class = Transpose <perm = [0, 2, 1]> (scores)
    chosen = NonMaxSuppression (boxes, by_class, most_of_class, most_iou, least_score)
    pictures = Gather <axis = 1> (chosen, first)
    classes = Gather <axis = 1> (chosen, second)
    places = Gather <axis = 1> (chosen, first_and_third)
    chosen_boxes = GatherND (boxes, places)
    chosen_scores = GatherND (by_class, chosen)

    all_pictures = Concat <axis = 0> (pictures, spare_numbers)
    all_classes = Concat <axis = 0> (classes, spare_numbers)
    all_boxes = Concat <axis = 0> (chosen_boxes, spare_boxes)
    all_scores = Concat <axis = 0> (chosen_scores, spare_scores)

    shape = Shape (boxes)
    batch = Gather <axis = 0> (shape, first)
    counted = Range (first, batch, second)
    each_picture = Reshape (counted, column)
    its_own = Equal (each_picture, all_pictures)
    its_scores = Where (its_own, all_scores, zero)
    everything = Shape (all_scores)
    best, rows = TopK <axis = 1> (its_scores, MOST)

    is_box = Greater (best, zero)
    row_classes = Gather <axis = 0> (all_classes, rows)
    labels = Where (is_box, row_classes, none)
    row_boxes = Gather <axis = 0> (all_boxes, rows)
    is_box_column = Reshape (is_box, columns)
    real_boxes = Where (is_box_column, row_boxes, zero)
    score_column = Reshape (best, columns)
    dets = Concat <axis = 2> (real_boxes, score_column)
}
"""
"""In operators as they are since opset 11, which mean the same in every later one. There are spare rows, because a
picture may have fewer boxes than the answer has rows."""


def put_on(graph: OnnxGraph, suppression: Suppression) -> None:
    """Let the graph end in `dets` [b, k, 5] and `labels` [b, k] again. Unused rows have score 0 and label -1."""
    spare = suppression.most or 1
    constants = {
        "least_score": np.array([suppression.least_score], np.float32),
        "most_iou": np.array([suppression.most_iou], np.float32),
        "most_of_class": np.array([suppression.most_of_class]),
        "most": np.array([spare]),
        "first": np.array(0),
        "second": np.array(1),
        "first_and_third": np.array([0, 2]),
        "column": np.array([-1, 1]),
        "columns": np.array([0, 0, 1]),
        "zero": np.zeros(1, np.float32),
        "none": np.array([-1]),
        "spare_numbers": np.full(spare, -1),
        "spare_scores": np.zeros(spare, np.float32),
        "spare_boxes": np.zeros((spare, 4), np.float32),
    }
    for name, value in constants.items():
        graph.set_constant(f"suppression_{name}", value)
    tail = parser.parse_graph(TAIL.replace("MOST", "everything" if suppression.most is None else "most"))
    ends = {"boxes": BOXES, "scores": SCORES}
    kept = {name: graph.producers[end].input[0] for name, end in ends.items()} | {name: name for name in OUTPUTS}
    for node in tail.node:
        for names in (node.input, node.output):
            names[:] = [kept.get(name, f"suppression_{name}") for name in names]
    inside = graph.model.graph
    inside.node.extend(tail.node)
    del inside.output[:]
    inside.output.extend(suppression.outputs)
    for value in inside.output:
        dims = value.type.tensor_type.shape.dim
        dims[0].CopyFrom(inside.input[0].type.tensor_type.shape.dim[0])
        dims[1].CopyFrom(onnx.TensorShapeProto.Dimension(dim_value=suppression.most))
    prune(graph)
