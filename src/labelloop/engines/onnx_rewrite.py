"""Rewrites of an ONNX graph that leave its answers as they are and that ONNX Runtime does not do by itself.

A rewrite looks for what exporters are known to write, and leaves alone whatever it does not know by heart.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import structlog

if TYPE_CHECKING:
    import onnx

log = structlog.get_logger(__name__)

_FREE_OF_INPUTS = 4
"""Before this version of the format every weight had to be an input, and none of them was meant to be replaced."""
_LARGEST = 256 * 10**6
"""Larger files are left as they are: a graph that is rewritten is held in memory."""
_TO_THE_END = 2**31 - 1
_PATCHES = frozenset({(0, 0), (0, 1), (1, 0), (1, 1)})


@contextmanager
def faster_copy(path: Path) -> Iterator[Path]:
    """A file with the answers of the one at `path` that runs faster; `path` itself where nothing is to be gained. For
    files without external data."""
    content = _rewritten(path)
    if content is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="labelloop-") as folder:  # bytes would be kept by the session for good
        copy = Path(folder) / path.name
        copy.write_bytes(content)
        del content
        yield copy


def _rewritten(path: Path) -> bytes | None:
    if path.stat().st_size > _LARGEST:
        return None
    import onnx  # here: 0.1 s that a process without models need not pay

    try:
        model = onnx.load_model(path, load_external_data=False)
        changes = [rewrite(model) for rewrite in (drop_weight_inputs, join_space_to_depth)]
        return model.SerializeToString() if any(changes) else None
    except Exception as error:  # a stranger's file: what is wrong with it, ONNX Runtime says in better words
        log.debug("onnx-not-rewritten", model=path.name, reason=str(error))
        return None


def drop_weight_inputs(model: onnx.ModelProto) -> bool:
    """Take weights out of the list of inputs; whether there were any.

    Exporters of old list all weights among the inputs. That makes them defaults that a caller may replace, so ONNX
    Runtime must not fold them: NanoDet-m took 30 to 36 ms of one core as it is, and 24 to 30 without them.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    surplus = [source for source in model.graph.input if source.name in weights]
    if model.ir_version < _FREE_OF_INPUTS:
        return False
    for source in surplus:
        model.graph.input.remove(source)
    return bool(surplus)


def join_space_to_depth(model: onnx.ModelProto) -> bool:
    """Let convolutions look at the picture itself where they look at its four interleaved quarters; whether there were
    any.

    YOLOX and YOLOv5 before version 6 ("Focus") begin by laying every second pixel of every second row into channels of
    their own, four quarters side by side, and convolve those with k x k. Pixel (2y + dy, 2x + dx) of the picture is
    pixel (y, x) of quarter (dy, dx), so a kernel of 2k x 2k with a stride of 2 over the picture multiplies the same
    numbers, and the quarters need not be cut: 9 to 12 % of YOLOX-nano's time.
    """
    graph = model.graph
    parts = _Parts.of(graph)
    joined = [found for node in graph.node if (found := _quartered(node, parts)) is not None]
    for quartered in joined:
        _convolve_whole(graph, quartered, parts)
    if joined:
        _drop_unused(graph)
    return bool(joined)


class _Parts(NamedTuple):
    """By the name of a tensor: what makes it, and what it is where it never changes."""

    makers: Mapping[str, onnx.NodeProto]
    constants: Mapping[str, onnx.TensorProto]

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> _Parts:
        makers = {name: node for node in graph.node for name in node.output}
        constants = {tensor.name: tensor for tensor in graph.initializer}
        for source in graph.input:
            constants.pop(source.name, None)  # a caller may replace it
        told = ((node, a) for node in graph.node if node.op_type == "Constant" for a in node.attribute)
        constants |= {node.output[0]: a.t for node, a in told if a.name == "value"}
        return cls(makers, constants)

    def numbers(self, name: str) -> list[int] | None:
        from onnx import numpy_helper

        tensor = self.constants.get(name)
        return None if tensor is None else [int(n) for n in numpy_helper.to_array(tensor).ravel()]


class _Quartered(NamedTuple):
    """A convolution of the quarters of `source`; `order` is how they follow each other among its channels."""

    conv: onnx.NodeProto
    source: str
    order: list[tuple[int, int]]


def _quartered(conv: onnx.NodeProto, parts: _Parts) -> _Quartered | None:
    from onnx import helper

    if conv.op_type != "Conv" or len(conv.input) < 2 or conv.input[1] not in parts.constants:
        return None
    told = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    plain = told.get("group", 1) == 1 and set(told.get("dilations", [1])) == {1}
    concat = parts.makers.get(conv.input[0])
    if not plain or told.get("auto_pad", b"NOTSET") != b"NOTSET" or concat is None or concat.op_type != "Concat":
        return None
    if [helper.get_attribute_value(a) for a in concat.attribute] != [1]:
        return None
    found = [_quarter(name, parts) for name in concat.input]
    order = [place for _, place in filter(None, found)]
    sources = {source for source, _ in filter(None, found)}
    if len(order) != len(found) or len(sources) != 1 or len(order) != len(_PATCHES) or set(order) != _PATCHES:
        return None
    return _Quartered(conv, sources.pop(), order)


def _quarter(name: str, parts: _Parts) -> tuple[str, tuple[int, int]] | None:
    """(picture, (dy, dx)) where `name` is every second pixel of every second row of a picture, begun at (dy, dx)."""
    starts: dict[int, int] = {}
    while set(starts) != {2, 3}:
        node = parts.makers.get(name)
        if node is None or node.op_type != "Slice" or len(node.input) != 5:
            return None
        begins, ends, axes, steps = (parts.numbers(given) for given in node.input[1:])
        if begins is None or ends is None or axes is None or steps is None:
            return None
        for begin, end, axis, step in zip(begins, ends, axes, steps, strict=True):
            if axis not in (2, 3) or axis in starts or begin not in (0, 1) or end < _TO_THE_END or step != 2:
                return None
            starts[axis] = begin
        name = node.input[0]
    return name, (starts[2], starts[3])


def _convolve_whole(graph: onnx.GraphProto, quartered: _Quartered, parts: _Parts) -> None:
    from onnx import helper, numpy_helper

    conv, source, order = quartered
    weight = numpy_helper.to_array(parts.constants[conv.input[1]])  # [out, 4 * channels, k, k]
    out, channels, height, width = weight.shape
    channels //= len(order)
    whole = np.zeros((out, channels, 2 * height, 2 * width), weight.dtype)
    for place, (dy, dx) in enumerate(order):
        whole[:, :, dy::2, dx::2] = weight[:, place * channels : (place + 1) * channels]
    told = {a.name: helper.get_attribute_value(a) for a in conv.attribute}
    del conv.attribute[:]
    doubled = {
        "kernel_shape": whole.shape[2:],
        "strides": [2 * n for n in told.get("strides", (1, 1))],
        "pads": [2 * n for n in told.get("pads", (0, 0, 0, 0))],
    }
    conv.attribute.extend(helper.make_attribute(key, value) for key, value in doubled.items())
    name = f"{conv.output[0]}/whole"
    graph.initializer.append(numpy_helper.from_array(whole, name))
    conv.input[0], conv.input[1] = source, name


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Nodes and weights that nothing reads any more. Graphs inside nodes may read anything: with those, all stays."""
    if any(a.HasField("g") or a.graphs for node in graph.node for a in node.attribute):
        return
    read, kept = {output.name for output in graph.output}, []
    for node in reversed(graph.node):  # what makes a tensor stands before what reads it
        if not read.isdisjoint(node.output):
            read.update(node.input)
            kept.append(node)
    weights = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(weights)
