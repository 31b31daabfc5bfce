"""Which layer makes which column of an output, and giving the class layer another number of classes.

Both walk the same few operators between the last convolutions and the outputs (Sigmoid, Split, Concat, Reshape,
Transpose …), once backwards and once forwards, and keep track of where a range of channels is. An operator that is
not known here is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from labelloop.core.errors import ModelError
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph, attributes

SAME_PLACE = ("Sigmoid", "Identity", "Cast", "Relu", "Tanh", "Clip", "Silu", "HardSigmoid")
FAR = 2**31 - 1


class Rows(NamedTuple):
    """Output channels `start` to `stop` of a layer; `value` is its output, `weights` its initializers, `axes` the axis
    of each along which the channels are (0 of a convolution)."""

    value: str
    start: int
    stop: int
    weights: tuple[str, ...]
    axes: tuple[int, ...] = (0, 0)


class Span(NamedTuple):
    """Places `start` to `stop` along `axis` of a value."""

    axis: int
    start: int
    stop: int


def layers_of(graph: OnnxGraph, output: str, span: Span) -> tuple[Rows, ...]:
    """The convolutions whose channels become `span` of `output`, in the order of the cells (one per stride).

    Raises ModelError when the way back leads through something that is not understood.
    """
    node = graph.producers.get(output)
    if node is None:
        raise ModelError(f"{output} is not made by a convolution.")
    if node.op_type == "Conv" and span.axis == 1:
        return (Rows(output, span.start, span.stop, tuple(name for name in node.input[1:] if name)),)
    if node.op_type == "Concat":
        return _behind_concat(graph, node, span)
    source = node.input[0]
    return layers_of(graph, source, _source_span(graph, node, output, span))


def replace_classes(graph: OnnxGraph, layers: Sequence[Rows], weights: Sequence[Sequence[NDArray[np.float32]]]) -> None:
    """Give the class layers new rows: `weights[i]` replaces rows `start` to `stop` of each initializer of `layers[i]`.

    Everything behind them that counts channels (Split, Slice, Reshape, the declared outputs) follows. Raises ModelError
    where it cannot.
    """
    change = {len(rows[0]) - (layer.stop - layer.start) for layer, rows in zip(layers, weights, strict=True)}
    if len(change) != 1:
        raise ModelError("The class layers differ in their number of classes.")
    spans = {layer.value: Span(1, layer.start, layer.stop) for layer in layers}
    for node in graph.nodes:
        _follow(graph, node, spans, change=next(iter(change)))
    # by name: strides may share one class layer
    changed = {
        name: np.concatenate([graph.constants[name][: layer.start], value, graph.constants[name][layer.stop :]])
        for layer, rows in zip(layers, weights, strict=True)
        for name, value in zip(layer.weights, rows, strict=True)
    }
    for name, value in changed.items():
        graph.set_constant(name, value)
    for output in graph.model.graph.output:
        if output.name in spans:
            dim = output.type.tensor_type.shape.dim[spans[output.name].axis]
            dim.dim_value = dim.dim_value + next(iter(change))
    del graph.model.graph.value_info[:]
    graph.reindex()


# --- backwards ---------------------------------------------------------------------------------------


def _behind_concat(graph: OnnxGraph, node: onnx.NodeProto, span: Span) -> tuple[Rows, ...]:
    axis = _axis(graph, node.output[0], attributes(node)["axis"])
    if axis != span.axis:  # cells of several strides, one after the other
        return tuple(rows for name in node.input for rows in layers_of(graph, name, span))
    start = 0
    for name in node.input:
        width = _width(graph, name, axis)
        if start <= span.start and span.stop <= start + width:
            return layers_of(graph, name, Span(axis, span.start - start, span.stop - start))
        start += width
    raise _lost(node)


def _source_span(graph: OnnxGraph, node: onnx.NodeProto, output: str, span: Span) -> Span:
    """Where the places of `output` are in the first input of `node`."""
    if node.op_type in SAME_PLACE:
        return span
    if node.op_type == "Transpose":
        return span._replace(axis=attributes(node)["perm"][span.axis])
    if node.op_type == "Reshape":
        return span._replace(axis=_same_axis(graph, node, output, node.input[0], span.axis))
    if node.op_type == "Split":
        if _axis(graph, node.input[0], attributes(node).get("axis", 0)) != span.axis:
            return span
        before = sum(_split_sizes(graph, node)[: list(node.output).index(output)])
        return span._replace(start=span.start + before, stop=span.stop + before)
    if node.op_type == "Slice":
        before = _slice_bounds(graph, node).get(span.axis, (0, FAR))[0]
        return span._replace(start=span.start + before, stop=span.stop + before)
    raise _lost(node)


# --- forwards ----------------------------------------------------------------------------------------


def _follow(graph: OnnxGraph, node: onnx.NodeProto, spans: dict[str, Span], *, change: int) -> None:
    """Add where the classes are in the outputs of `node`, and change the numbers in it that count them.

    Spans are places in the file as it was, so that `graph.shapes` holds for them."""
    span = spans.get(node.input[0]) if node.input else None
    if node.op_type == "Concat":
        _follow_concat(graph, node, spans)
    elif span is None:
        if spans.keys() & set(node.input):
            raise _lost(node)
    elif node.op_type in SAME_PLACE or _is_factor(graph, node, span.axis):
        spans[node.output[0]] = span
    elif node.op_type == "Transpose":
        spans[node.output[0]] = span._replace(axis=attributes(node)["perm"].index(span.axis))
    elif node.op_type == "Reshape":
        _follow_reshape(graph, node, spans, change=change)
    elif node.op_type == "Split":
        _follow_split(graph, node, spans, change=change)
    elif node.op_type == "Slice":
        _follow_slice(graph, node, spans, change=change)
    else:
        raise _lost(node)


def _is_factor(graph: OnnxGraph, node: onnx.NodeProto, axis: int) -> bool:
    """Every class is multiplied with the same number, an objectness."""
    return node.op_type == "Mul" and graph.shapes.get(node.input[1], ())[axis : axis + 1] == (1,)


def _follow_concat(graph: OnnxGraph, node: onnx.NodeProto, spans: dict[str, Span]) -> None:
    found = [(place, spans[name]) for place, name in enumerate(node.input) if name in spans]
    if not found:
        return
    place, span = found[0]
    axis = _axis(graph, node.output[0], attributes(node)["axis"])
    if axis != span.axis:
        if len(found) != len(node.input) or any(other != span for _, other in found):
            raise _lost(node)
        spans[node.output[0]] = span
    elif len(found) == 1:
        before = sum(_width(graph, name, axis) for name in node.input[:place])
        spans[node.output[0]] = Span(axis, span.start + before, span.stop + before)
    else:
        raise _lost(node)


def _follow_reshape(graph: OnnxGraph, node: onnx.NodeProto, spans: dict[str, Span], *, change: int) -> None:
    span, shape = spans[node.input[0]], graph.constants.get(node.input[1])
    axis = _same_axis(graph, node, node.input[0], node.output[0], span.axis)
    if shape is None:
        raise _lost(node)
    spans[node.output[0]] = span._replace(axis=axis)
    if shape[axis] > 0:
        changed = np.array(shape, np.int64)
        changed[axis] += change
        graph.own_constant(node, 1, changed)


def _follow_split(graph: OnnxGraph, node: onnx.NodeProto, spans: dict[str, Span], *, change: int) -> None:
    span = spans[node.input[0]]
    if _axis(graph, node.input[0], attributes(node).get("axis", 0)) != span.axis:
        spans.update(dict.fromkeys(node.output, span))
        return
    sizes, start = _split_sizes(graph, node), 0
    for place, name in enumerate(node.output):
        if start <= span.start and span.stop <= start + sizes[place]:
            spans[name] = Span(span.axis, span.start - start, span.stop - start)
            sizes[place] += change
            _set_split(graph, node, sizes)
            return
        start += sizes[place]
    raise _lost(node)


def _follow_slice(graph: OnnxGraph, node: onnx.NodeProto, spans: dict[str, Span], *, change: int) -> None:
    span = spans[node.input[0]]
    bounds = _slice_bounds(graph, node)
    start, stop = bounds.get(span.axis, (0, FAR))
    stop_in = min(stop, _width(graph, node.input[0], span.axis))
    if stop_in <= span.start:
        return
    if span.axis in bounds and len(bounds) > 1:
        raise _lost(node)
    if start <= span.start and span.stop <= stop_in:
        spans[node.output[0]] = Span(span.axis, span.start - start, span.stop - start)
        if span.axis in bounds and stop < FAR:
            graph.own_constant(node, 2, np.array([stop + change], np.int64))
    elif start >= span.stop:
        graph.own_constant(node, 1, np.array([start + change], np.int64))
        if stop < FAR:
            graph.own_constant(node, 2, np.array([stop + change], np.int64))
    else:
        raise _lost(node)


# --- numbers in nodes --------------------------------------------------------------------------------


def _split_sizes(graph: OnnxGraph, node: onnx.NodeProto) -> list[int]:
    given = attributes(node).get("split") if len(node.input) < 2 else graph.constants.get(node.input[1])
    if given is None:
        axis = _axis(graph, node.input[0], attributes(node).get("axis", 0))
        return [_width(graph, name, axis) for name in node.output]
    return [int(size) for size in given]


def _set_split(graph: OnnxGraph, node: onnx.NodeProto, sizes: list[int]) -> None:
    if graph.opset < 13:
        kept = [one for one in node.attribute if one.name not in ("split", "num_outputs")]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("split", sizes)])
    else:
        if len(node.input) < 2:
            node.input.append("")
        graph.own_constant(node, 1, np.array(sizes, np.int64))


def _slice_bounds(graph: OnnxGraph, node: onnx.NodeProto) -> dict[int, tuple[int, int]]:
    """Axis -> start and stop of a Slice with constant, positive bounds and steps of one."""
    parts: list[Any] = [graph.constants.get(name) for name in node.input[1:]]
    if len(parts) < 2 or parts[0] is None or parts[1] is None:
        raise _lost(node)
    starts, stops = parts[0].tolist(), parts[1].tolist()
    axes = parts[2].tolist() if len(parts) > 2 and parts[2] is not None else list(range(len(starts)))
    steps = parts[3].tolist() if len(parts) > 3 and parts[3] is not None else [1] * len(starts)
    bounds = {
        _axis(graph, node.input[0], axis): (start, stop) for axis, start, stop in zip(axes, starts, stops, strict=True)
    }
    if any(step != 1 for step in steps) or any(start < 0 or stop < 0 for start, stop in bounds.values()):
        raise _lost(node)
    return bounds


def _axis(graph: OnnxGraph, name: str, axis: int) -> int:
    return axis % len(graph.shapes[name]) if axis < 0 else axis


def _width(graph: OnnxGraph, name: str, axis: int) -> int:
    width = graph.shapes[name][axis]
    if width is None:
        raise ModelError(f"The size of {name} along axis {axis} is not known.")
    return width


def _same_axis(graph: OnnxGraph, node: onnx.NodeProto, source: str, target: str, axis: int) -> int:
    """The axis of `target` that is axis `axis` of `source`, across a Reshape that only joins or parts other axes."""
    ours, theirs = graph.shapes[source], graph.shapes[target]
    inner = ours[1:axis]
    for place in range(1, len(theirs)):
        before = theirs[1:place]
        if None in (*inner, *before):
            continue
        if prod(before) == prod(inner) and theirs[place] == ours[axis]:  # type: ignore[arg-type]
            return place
    raise _lost(node)


def _lost(node: onnx.NodeProto) -> ModelError:
    return ModelError(
        f"The classes cannot be followed through the operator {node.op_type} ({node.output[0]}).",
        hint="Train with another trainer (command, openmmlab).",
    )
