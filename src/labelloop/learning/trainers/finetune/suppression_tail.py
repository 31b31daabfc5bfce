"""The end of a file that suppresses inside itself, written anew behind what was trained (see `suppression`).

For any number of classes and pictures, in operators as they are since opset 11, which mean the same in every later one.
"""

from __future__ import annotations

from string import Template

import numpy as np
import onnx
from onnx import parser

from labelloop.learning.trainers.finetune.onnx_graph import Array, OnnxGraph, prune
from labelloop.learning.trainers.finetune.suppression import BOXES, OUTPUTS, SCORES, Suppression

TAIL = Template("""
suppression (float[b, n, 4] given_boxes, float[b, n, c] given_scores) => (float[b, k, 5] dets, int64[b, k] labels) {
    shape = Shape (given_boxes)
    batch = Gather <axis = 0> (shape, first)
    counted = Range (first, batch, second)
    each_picture = Reshape (counted, column)
    $best_cells
    by_class = Transpose <perm = [0, 2, 1]> ($scores)
    chosen = NonMaxSuppression ($boxes, by_class, most_of_class, most_iou, least_score)
    pictures = Gather <axis = 1> (chosen, first)
    classes = Gather <axis = 1> (chosen, second)
    places = Gather <axis = 1> (chosen, first_and_third)
    chosen_boxes = GatherND ($boxes, places)
    chosen_scores = GatherND (by_class, chosen)

    all_pictures = Concat <axis = 0> (pictures, spare_numbers)
    all_classes = Concat <axis = 0> (classes, spare_numbers)
    all_boxes = Concat <axis = 0> (chosen_boxes, spare_boxes)
    all_scores = Concat <axis = 0> (chosen_scores, spare_scores)
    its_own = Equal (each_picture, all_pictures)
    its_scores = Where (its_own, all_scores, zero)
    everything = Shape (all_scores)
    best, rows = TopK <axis = 1> (its_scores, $most)

    is_box = Greater (best, zero)
    row_classes = Gather <axis = 0> (all_classes, rows)
    labels = Where (is_box, row_classes, none)
    row_boxes = Gather <axis = 0> (all_boxes, rows)
    is_box_column = Reshape (is_box, columns)
    real_boxes = Where (is_box_column, row_boxes, zero)
    score_column = Reshape (best, columns)
    dets = Concat <axis = 2> (real_boxes, score_column)
}
""")
"""There are spare rows, because a picture may have fewer boxes than the answer has rows."""
BEST_CELLS = """
    best_of_cell, best_class = TopK <axis = 2> (given_scores, one)
    peaks = Reshape (best_of_cell, rows_only)
    peaks_of_best, best_cells = TopK <axis = 1> (peaks, most_cells)
    cells_before = Mul (each_picture, cells)
    best_places = Add (best_cells, cells_before)
    boxes_in_rows = Reshape (given_boxes, corners)
    best_boxes = Gather <axis = 0> (boxes_in_rows, best_places)
    scores_in_rows = Flatten <axis = 2> (given_scores)
    best_scores = Gather <axis = 0> (scores_in_rows, best_places)
"""


def put_on(graph: OnnxGraph, suppression: Suppression) -> None:
    """Let the graph end in `dets` [b, k, 5] and `labels` [b, k] again. Unused rows have score 0 and label -1."""
    cells = graph.shapes[BOXES][2]
    few = suppression.most_cells is not None and cells is not None and suppression.most_cells < cells
    tail = parser.parse_graph(
        TAIL.substitute(
            best_cells=BEST_CELLS if few else "",
            boxes="best_boxes" if few else "given_boxes",
            scores="best_scores" if few else "given_scores",
            most="everything" if suppression.most is None else "most",
        )
    )
    for name, value in _constants(suppression, cells=cells or 0).items():
        graph.set_constant(_inside(name), value)
    given = {"given_boxes": graph.producers[BOXES].input[0], "given_scores": graph.producers[SCORES].input[0]}
    kept = given | {name: name for name in OUTPUTS}
    for node in tail.node:
        for names in (node.input, node.output):
            names[:] = [kept.get(name, _inside(name)) for name in names]
    graph.model.graph.node.extend(tail.node)
    _declare(graph, suppression)
    prune(graph)


def _inside(name: str) -> str:
    return f"suppression_{name}"


def _constants(suppression: Suppression, *, cells: int) -> dict[str, Array]:
    spare = suppression.most or 1
    return {
        "least_score": np.array([suppression.least_score], np.float32),
        "most_iou": np.array([suppression.most_iou], np.float32),
        "most_of_class": np.array([suppression.most_of_class]),
        "most": np.array([spare]),
        "most_cells": np.array([suppression.most_cells or 0]),
        "cells": np.array(cells),
        "first": np.array(0),
        "second": np.array(1),
        "one": np.array([1]),
        "first_and_third": np.array([0, 2]),
        "column": np.array([-1, 1]),
        "columns": np.array([0, 0, 1]),
        "rows_only": np.array([0, -1]),
        "corners": np.array([-1, 4]),
        "zero": np.zeros(1, np.float32),
        "none": np.array([-1]),
        "spare_numbers": np.full(spare, -1),
        "spare_scores": np.zeros(spare, np.float32),
        "spare_boxes": np.zeros((spare, 4), np.float32),
    }


def _declare(graph: OnnxGraph, suppression: Suppression) -> None:
    """The outputs as they were, but for their sizes."""
    inside = graph.model.graph
    del inside.output[:]
    inside.output.extend(suppression.outputs)
    for value in inside.output:
        dims = value.type.tensor_type.shape.dim
        dims[0].CopyFrom(inside.input[0].type.tensor_type.shape.dim[0])
        dims[1].CopyFrom(onnx.TensorShapeProto.Dimension(dim_value=suppression.most))
