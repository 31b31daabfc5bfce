"""Where the last layers are in a file whose boxes and scores go into a suppression: RTMDet and others of MMDeploy.

RTMDet's head shares its convolutions between the strides, each with a normalisation of its own; exporters fold the one
into the other, so that in the file every stride has layers of its own. The file decodes its boxes itself, by distances
from a point in each cell (https://arxiv.org/abs/2212.07784); gradients go back through that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from labelloop.core.errors import ModelError
from labelloop.learning.trainers.finetune.class_layer import Rows, Span, layers_of
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph
from labelloop.learning.trainers.finetune.suppression import BOXES, SCORES

if TYPE_CHECKING:
    from torch import Tensor

Layers = tuple[tuple[Rows, ...], tuple[Rows, ...], tuple[Rows, ...]]


def last_layers(graph: OnnxGraph, *, classes: int) -> Layers:
    """Layers of classes, boxes (decoded by the file) and objectness. Raises ModelError when they are not found."""
    if not {BOXES, SCORES} <= set(graph.outputs):
        raise ModelError("There is no suppression in this file, so it is not one of MMDeploy's.")
    width = graph.shapes[SCORES][2]
    if width != classes:
        raise ModelError(
            f"The file scores {width} classes, and the card of the model names {classes}.",
            hint="Give one name for each class, in the order of the class index (labels in the card).",
        )
    scores, factor = _factors(graph, width)
    objectness = (
        tuple(Rows(name, 0, 1, _weights(graph, name)) for name in convolutions_behind(graph, factor)) if factor else ()
    )
    if any(graph.shapes[rows.value][1] != 1 for rows in objectness):
        raise ModelError("What the class scores are multiplied with is not one number for each cell.")
    return layers_of(graph, scores, Span(2, 0, width)), (Rows(BOXES, 0, 4, ()),), objectness


def _factors(graph: OnnxGraph, width: int) -> tuple[str, str]:
    """The class scores, and the objectness that they are multiplied with ("" where there is none)."""
    scores = graph.producers[SCORES].input[0]
    node = graph.producers[scores]
    if node.op_type != "Mul":
        return scores, ""
    first, second = node.input
    return (first, second) if graph.shapes[first][-1] == width else (second, first)


def convolutions_behind(graph: OnnxGraph, name: str) -> list[str]:
    """The last convolutions on each way to `name`, the one with the most cells first."""
    found, todo, seen = set[str](), [name], set[str]()
    while todo:
        here = todo.pop()
        node = graph.producers.get(here)
        if here in seen or node is None:
            continue
        seen.add(here)
        if node.op_type == "Conv":
            found.add(here)
        else:
            todo.extend(node.input)
    return sorted(found, key=lambda one: -np.prod([size or 1 for size in graph.shapes[one][2:]]))


def _weights(graph: OnnxGraph, name: str) -> tuple[str, ...]:
    return tuple(weight for weight in graph.producers[name].input[1:] if weight)


def points_in_cells(graph: OnnxGraph, cells: Tensor, strides: Tensor) -> Tensor:
    """From where the file reckons the sides of its boxes, [n, 2] in pixels: the middle of each box when all box layers
    say 0. RTMDet's is the corner of a cell, YOLOv8's its middle.

    `cells` [n, 2] are column and row, `strides` [n, 1]. Raises ModelError where boxes are not in the order of cells.
    """
    import torch

    from labelloop.learning.trainers.finetune.onnx_torch import OnnxModule

    layers = convolutions_behind(graph, BOXES)
    module = OnnxModule(graph, inputs=layers, outputs=[BOXES])
    with torch.no_grad():
        xyxy = module(*[torch.zeros(1, *(size or 1 for size in graph.shapes[name][1:])) for name in layers])[0][0].T
    points: Tensor = (xyxy[:, :2] + xyxy[:, 2:]) / 2
    inside = points / strides - cells
    if not bool(((inside > -0.5) & (inside < 1)).all()):
        raise ModelError("The boxes of this file are not in the order of its cells: row by row, strides 8, 16 and 32.")
    return points
