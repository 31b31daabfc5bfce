"""What a graph reckons from the sizes of its maps, reckoned once: Shape, Gather, Range and the like become constants.

Exporters that leave height and width free write the grid of cells and the shape of every Reshape as arithmetic. The
size of the pictures is known here, so only the batch is left to vary. ONNX Runtime reckons for some batches, and
what is the same for all of them does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from labelloop.core.errors import ModelError
from labelloop.learning.trainers.finetune.onnx_graph import Array, OnnxGraph, prune, uses

MEASURING = ("Shape", "Size")
COUNTING = ("NonMaxSuppression", "NonZero", "Unique", "Compress", "If", "Loop", "Scan")
"""How large their outputs are is for the picture to say, so whatever is computed from them is left alone."""
BATCHES = (1, 2, 3)
"""One is among them, because files may ask whether it is one."""


def settle_shapes(graph: OnnxGraph, *, image: str, joined: bool = False) -> None:
    """Replace what depends on sizes only by constants; the shape of a Reshape keeps a free batch as 0, "as it comes".

    `joined`: on the way the batch is one axis with others, with queries or heads. Then "as it comes" may be another
    number, and a free batch is -1, "what is left", or stays to be reckoned where there is a -1 already. Raises
    ModelError for a graph that ONNX Runtime cannot run.
    """
    counting = [name for node in graph.nodes if node.op_type in COUNTING for name in node.output]
    settled = _settled(graph, graph.descendants(counting))
    rest = [node for node in graph.nodes if not settled.issuperset(node.output)]
    wanted = sorted({name for node in rest for name in node.input if name in settled})
    if not wanted:
        return
    runs = _reckoned(graph, image, wanted)
    for name, *values in zip(wanted, *runs, strict=True):
        if all(np.array_equal(value, values[0]) for value in values):
            graph.set_constant(f"{name}_settled", values[0])
            for node in rest:
                node.input[:] = [f"{name}_settled" if one == name else one for one in node.input]
        else:
            _free_first(graph, name, values, joined=joined)
    prune(graph)


def _settled(graph: OnnxGraph, behind: set[str]) -> set[str]:
    """Values that the content of a picture does not touch, constants apart."""
    settled: set[str] = set()
    for node in graph.nodes:
        used = uses(node)
        if behind.intersection((*used, *node.output)):
            continue
        known = all(name in settled or name in graph.constants for name in used if name)
        if node.op_type in MEASURING or (known and node.input):
            settled.update(node.output)
    return settled


def _reckoned(graph: OnnxGraph, image: str, wanted: Sequence[str]) -> list[list[Array]]:
    """The values for each of the BATCHES, or for the one batch that the file is fixed to."""
    from labelloop.learning.trainers.finetune.onnx_torch import (
        open_session,  # here: families are looked up without torch
    )

    part = graph.subgraph([image], wanted)
    del part.graph.output[:]
    part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)  # the type is ONNX Runtime's to say
    session, (fixed, *sizes) = open_session(part), graph.shapes[image]
    runs = []
    for batch in BATCHES if fixed is None else (fixed,):
        picture = np.zeros([batch, *(size or 1 for size in sizes)], np.float32)
        try:
            runs.append([np.asarray(value) for value in session.run(list(wanted), {image: picture})])
        except Exception as error:  # ONNX Runtime's exception classes share no public base
            raise ModelError(
                f"This file does not answer {batch} pictures of {sizes[2]} x {sizes[1]}: {error}",
                hint="Export it again with a batch of one, or train it with another trainer (command, openmmlab).",
            ) from error
    return runs


def _free_first(graph: OnnxGraph, name: str, values: Sequence[Array], *, joined: bool) -> None:
    """Where only the first number of the shape `name` is the batch, write 0 or -1 for it in each Reshape."""
    shape = values[0]
    if shape.ndim != 1 or len(shape) < 2 or tuple(value[0] for value in values) != BATCHES:
        return
    if all(np.array_equal(value[1:], shape[1:]) for value in values) and not (joined and (shape[1:] < 1).any()):
        for node in graph.consumers[name]:
            if node.op_type == "Reshape" and node.input[1] == name:
                graph.own_constant(node, 1, np.concatenate([np.full(1, -1 if joined else 0), shape[1:]]))
