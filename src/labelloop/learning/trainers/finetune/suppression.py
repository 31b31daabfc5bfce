"""Non-maximum suppression inside a file: taken off, so that what is in front of it can be trained.

MMDeploy's files end in one: boxes and scores of all cells go into the operator NonMaxSuppression, and the nodes behind
it sort what it chose into `dets` and `labels`. They count classes and cells here and there, and some are made for one
picture at a time: in RTMDet's files with a free batch a mask [b, c] meets scores [b, n, c], which ONNX Runtime refuses
for more than one picture. So they are not followed but written anew, with the file's thresholds (`suppression_tail`).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from labelloop.core.errors import ModelError
from labelloop.engines.onnx_file import scan
from labelloop.learning.trainers.finetune.known_shapes import MEASURING, settle_shapes
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph, attributes, prune

BOXES, SCORES = "boxes_of_cells", "scores_of_cells"
OPERATOR = "NonMaxSuppression"
OUTPUTS = {"dets", "labels"}
OLDEST_OPSET = 11
MASKING = {"ReduceMax", "Less", "Not", "Greater", "GreaterOrEqual", "Identity"}
FORWARDING = ("Reshape", "Unsqueeze", "Squeeze", "Cast", "Identity")


class Suppression(NamedTuple):
    """A box goes when its IoU with a better one of its class is above `most_iou`; of boxes with a score above
    `least_score`, `most_of_class` stay in each class and `most` in all. Only the `most_cells` cells with the best
    scores take part. None: no limit. `outputs` are `dets` and `labels` as the file declares them."""

    most_iou: float
    least_score: float
    most_of_class: int
    most: int | None
    most_cells: int | None
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
    found = _read(graph, nodes[0])
    _unmask(graph, nodes[0].input[1], found.least_score)
    settle_shapes(graph, image=graph.inputs[0])
    node = next(node for node in graph.nodes if node.op_type == OPERATOR)
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


def _unmask(graph: OnnxGraph, scores: str, least: float) -> None:
    """Without the mask that sets the scores of a class to 0 where it reaches the threshold nowhere: it fits one picture
    only, and the suppression leaves out such scores anyway."""
    before = graph.ancestors([scores])
    for node in graph.nodes:
        if node.op_type != "Where" or node.output[0] not in before or not _is_zero(graph, node.input[2]):
            continue
        if _is_threshold(graph, node.input[0], node.input[1], least):
            for user in graph.consumers[node.output[0]]:
                user.input[:] = [node.input[1] if name == node.output[0] else name for name in user.input]
    graph.reindex()


def _is_threshold(graph: OnnxGraph, mask: str, scores: str, least: float) -> bool:
    """The mask says where the best of the scores reach a number that is no higher than `least`."""
    between = graph.ancestors([mask], stop=[scores]) - {scores}
    kinds = {graph.producers[name].op_type for name in between if name in graph.producers}
    numbers = [graph.constants[name] for name in between if name in graph.constants]
    return kinds <= MASKING and all(np.all(number <= least) for number in numbers if number.dtype.kind == "f")


def _is_zero(graph: OnnxGraph, name: str) -> bool:
    node = graph.producers.get(name)
    if node is not None and node.op_type == "ConstantOfShape":
        return not np.any(attributes(node).get("value", 0))
    return not np.any(graph.constants.get(name, 1))


def _read(graph: OnnxGraph, node: onnx.NodeProto) -> Suppression:
    """Thresholds that are left out are 0, as the operator has it."""
    numbers = [float(graph.constants[name].reshape(-1)[0]) if name else 0.0 for name in _thresholds(graph, node)]
    before, behind = graph.ancestors(node.input[:1]), graph.descendants(node.output)
    ranks = [one for one in graph.nodes if one.op_type == "TopK"]
    cells = [_limit(graph, one.input[1]) for one in ranks if before.intersection(one.output)]
    rows = [_limit(graph, one.input[1]) for one in ranks if one.input[0] in behind]
    return Suppression(
        most_iou=numbers[1],
        least_score=numbers[2],
        most_of_class=int(numbers[0]),
        most=next(iter(rows), None),
        most_cells=next(reversed(cells), None),  # what we write has one of each cell's classes in front of it
        outputs=tuple(onnx.ValueInfoProto.FromString(one.SerializeToString()) for one in graph.model.graph.output),
    )


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
