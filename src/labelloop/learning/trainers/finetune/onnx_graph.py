"""An ONNX file as a graph that can be asked and changed: who makes a value, who uses it, how large it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, shape_inference

from labelloop.core.errors import ModelError
from labelloop.engines.onnx import OnnxModel

Array = NDArray[Any]
Shape = tuple[int | None, ...]
BATCH = "batch"


class OnnxGraph:
    """One model, indexed. `model` is owned by this object; after changing its nodes, call `reindex`."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.reindex()

    def reindex(self) -> None:
        """Make every table anew. Raises ModelError when the shapes contradict each other."""
        self.nodes: list[onnx.NodeProto] = list(self.model.graph.node)
        self.constants: dict[str, Array] = {one.name: numpy_helper.to_array(one) for one in self._graph.initializer}
        self.producers = {name: node for node in self.nodes for name in node.output}
        self.consumers: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        self.shapes, self.types = _shapes_and_types(self.model)

    @property
    def _graph(self) -> onnx.GraphProto:
        return self.model.graph

    @property
    def opset(self) -> int:
        return max((one.version for one in self.model.opset_import if one.domain in ("", "ai.onnx")), default=1)

    @property
    def inputs(self) -> list[str]:
        return [value.name for value in self._graph.input]

    @property
    def outputs(self) -> list[str]:
        return [value.name for value in self._graph.output]

    def ancestors(self, names: Iterable[str], *, stop: Iterable[str] = ()) -> set[str]:
        """Every value that `names` are computed from, themselves included; the search ends at `stop`."""
        ends, seen, todo = set(stop), set[str](), list(names)
        while todo:
            name = todo.pop()
            if name and name not in seen:
                seen.add(name)
                if name in self.producers and name not in ends:
                    todo.extend(uses(self.producers[name]))
        return seen

    def descendants(self, names: Iterable[str]) -> set[str]:
        """Every value that is computed from `names`, themselves included."""
        seen = set(names)
        for node in self.nodes:  # ONNX keeps nodes in topological order
            if seen.intersection(uses(node)):
                seen.update(name for name in node.output if name)
        return seen

    def between(self, inputs: Sequence[str], outputs: Sequence[str]) -> list[onnx.NodeProto]:
        """The nodes that lead from `inputs` to `outputs`, in order. Raises ModelError when more inputs are needed."""
        needed = self.ancestors(outputs, stop=inputs)
        nodes = [node for node in self.nodes if needed.intersection(node.output) - set(inputs)]
        missing = (needed & set(self.inputs)) - set(inputs)
        if missing:
            raise ModelError(f"{', '.join(outputs)} cannot be computed from {', '.join(inputs)}: {missing} is missing.")
        return nodes

    def subgraph(self, inputs: Sequence[str], outputs: Sequence[str]) -> onnx.ModelProto:
        """A model of its own that leads from `inputs` to `outputs`; the leading axis of both is free."""
        nodes = self.between(inputs, outputs)
        used = {name for node in nodes for name in uses(node)}
        begin, end = ([self._value(name) for name in names] for names in (inputs, outputs))
        kept = [one for one in self._graph.initializer if one.name in used]
        graph = helper.make_graph(nodes, "part", begin, end, kept)
        return helper.make_model(graph, opset_imports=self.model.opset_import, ir_version=self.model.ir_version)

    def set_constant(self, name: str, value: Array) -> None:
        """Give the initializer `name` another value, or make it."""
        for index, one in enumerate(self._graph.initializer):
            if one.name == name:
                del self._graph.initializer[index]
                break
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        self.constants[name] = value

    def own_constant(self, node: onnx.NodeProto, index: int, value: Array) -> None:
        """Give input `index` of `node` a value that it shares with no other node."""
        name = f"{node.input[index]}_of_{node.output[0]}"
        node.input[index] = name
        self.set_constant(name, value)

    def _value(self, name: str) -> onnx.ValueInfoProto:
        known = self.shapes.get(name)
        shape = [BATCH, *known[1:]] if known else known
        return helper.make_tensor_value_info(name, self.types.get(name, onnx.TensorProto.FLOAT), shape)


def read_graph(path: Path, *, size_wh: tuple[int, int]) -> OnnxGraph:
    """The graph of the ONNX file at `path` for pictures of `size_wh`, with constants only as initializers.

    Raises ModelError when the file cannot be read or wants files outside its folder.
    """
    OnnxModel(path, device="cpu", optimise=False)  # refuses files that reach outside their folder
    model = onnx.load(path)
    graph = model.graph
    names = {one.name for one in graph.initializer}
    for value in [value for value in graph.input if value.name in names]:
        graph.input.remove(value)  # files of IR 3 list their weights among the inputs
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        graph.initializer.append(numpy_helper.from_array(_constant(node), node.output[0]))
        graph.node.remove(node)
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if len(dims) == 4:
            dims[2].dim_value, dims[3].dim_value = size_wh[1], size_wh[0]
    return OnnxGraph(model)


def free_batch(graph: OnnxGraph) -> None:
    """Make the leading axis of inputs and outputs free, where the file fixed it to 1.

    A Reshape to [1, …] becomes one to [0, …], which in ONNX means "as it comes". Whether the file then answers several
    pictures as it answers each is for the caller to check (`export`).
    """
    for node in graph.nodes:
        shape = graph.constants.get(node.input[1]) if node.op_type == "Reshape" else None
        incoming = graph.shapes.get(node.input[0])
        if shape is not None and len(shape) > 1 and shape[0] == 1 and incoming and incoming[0] == 1:
            graph.own_constant(node, 1, np.array([0, *shape[1:]], np.int64))
    for value in [*graph.model.graph.input, *graph.model.graph.output]:
        dims = value.type.tensor_type.shape.dim
        if dims and dims[0].dim_value == 1:
            dims[0].dim_param = BATCH
    del graph.model.graph.value_info[:]
    graph.reindex()


def prune(graph: OnnxGraph) -> None:
    """Take out the nodes and weights that no output needs, and index what is left."""
    inside = graph.model.graph
    needed, nodes = set(graph.outputs), list[onnx.NodeProto]()
    for node in reversed(inside.node):
        if needed.intersection(node.output):
            needed.update(uses(node))
            nodes.append(node)
    weights = [one for one in inside.initializer if one.name in needed]
    del inside.node[:], inside.initializer[:], inside.value_info[:]
    inside.node.extend(reversed(nodes))
    inside.initializer.extend(weights)
    graph.reindex()


def uses(node: onnx.NodeProto) -> list[str]:
    """The inputs of a node, and what the graphs inside it (the branches of an If) take from outside."""
    graphs = [one.g for one in node.attribute if one.type == onnx.AttributeProto.GRAPH]
    inside = (name for graph in graphs for inner in graph.node for name in uses(inner))
    return [name for name in (*node.input, *inside) if name]  # "" stands for one that is left out


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Name -> value; texts decoded, tensors as arrays."""
    return {one.name: _plain(helper.get_attribute_value(one)) for one in node.attribute}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value


def _constant(node: onnx.NodeProto) -> Array:
    value = next(iter(attributes(node).values()))
    if isinstance(value, float):
        return np.array(value, np.float32)
    if isinstance(value, list) and value and isinstance(value[0], float):
        return np.array(value, np.float32)
    return np.asarray(value)


def _shapes_and_types(model: onnx.ModelProto) -> tuple[dict[str, Shape], dict[str, int]]:
    try:
        inferred = shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except shape_inference.InferenceError as error:
        raise ModelError(f"The shapes of this ONNX file contradict each other: {error}") from error
    graph = inferred.graph
    values = (*graph.input, *graph.value_info, *graph.output)
    shapes = {value.name: tuple(_dims(value)) for value in values} | {
        one.name: tuple(one.dims) for one in graph.initializer
    }
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    return shapes, {name: kind for name, kind in types.items() if kind}


def _dims(value: onnx.ValueInfoProto) -> Iterator[int | None]:
    for dim in value.type.tensor_type.shape.dim:
        yield dim.dim_value if dim.HasField("dim_value") else None
