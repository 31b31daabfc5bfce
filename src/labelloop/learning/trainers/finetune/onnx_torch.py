"""A part of an ONNX graph as a torch module that can be trained, with the weights of the file.

The weights keep their ONNX names, so that what was learned goes back into the same initializers (`export`).
A converter that is wrong for one operator trains a wrong model without a word: `check` compares the module with ONNX
Runtime on real inputs, and a trainer calls it before every run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from labelloop.core.errors import ModelError
from labelloop.learning.trainers.finetune import onnx_decoder  # noqa: F401  (its operators are added to the table)
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph, attributes
from labelloop.learning.trainers.finetune.onnx_ops import OPERATORS, Operator

WEIGHTED = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
    "Add": (0, 1),
    "Mul": (0, 1),
}
"""Operator -> which of its inputs are learned when they are floating-point constants. BatchNormalization keeps its
statistics; constants of Sub, Div and so on are arithmetic (a grid, an anchor), and so are some of Add and Mul (see
`_is_weight`)."""


ROUNDING = 5e-4
"""What two correct ways to compute a whole network may differ by, of its largest value. The box layers of YOLOX-nano
came to 4e-5, and to 1.1e-4 while the pictures were laid out channel by channel, where oneDNN's convolutions are less
exact; float64 is 3e-5 away from ONNX Runtime too. An operator that is understood wrongly is further away than that,
and `export.parity` compares boxes and scores in the end."""


DETACHED = " detached"
"""Behind the name of a value: the same without a way back for gradients."""


class Step(NamedTuple):
    """One node: what it does, names of inputs and outputs, and which values nobody needs afterwards."""

    run: Callable[..., Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    spent: tuple[str, ...]


class OnnxModule(nn.Module):
    """Runs nodes in order. `forward` takes the values named `inputs` and returns those named `outputs`."""

    def __init__(
        self, graph: OnnxGraph, *, inputs: Sequence[str], outputs: Sequence[str], apart: Collection[str] = ()
    ) -> None:
        """`apart` are values that learn from outputs and from each other only: no gradient comes back to them from
        other values. Raises ModelError that names the operator which cannot be converted."""
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        nodes = graph.between(inputs, outputs)
        self._weights = nn.ParameterDict()
        self._keys: dict[str, str] = {}
        for node in nodes:
            for index, name in enumerate(node.input):
                if name in graph.constants and name not in self._keys:
                    self._take(name, graph.constants[name], _is_weight(graph, node, index))
        self._apart = frozenset(apart)
        steps = [_reading_apart(step, self._apart) for step in _silu_joined(graph, nodes, keep=set(outputs))]
        self._steps = _with_spent(steps, keep=set(outputs))

    def _take(self, name: str, value: NDArray[Any], learned: bool) -> None:
        tensor = torch.from_numpy(np.array(value))
        key = self._keys[name] = f"k{len(self._keys)}"  # torch allows no dots in names
        if learned:
            self._weights[key] = nn.Parameter(tensor)
        else:
            self.register_buffer(key, tensor, persistent=False)

    def weights(self) -> dict[str, nn.Parameter]:
        """Every parameter by its ONNX name."""
        return {name: self._weights[key] for name, key in self._keys.items() if key in self._weights}

    def forward(self, *values: Tensor) -> list[Tensor]:
        known: dict[str, Tensor | None] = {"": None}
        known.update(zip(self.inputs, values, strict=True))
        for name, key in self._keys.items():
            known[name] = self._weights[key] if key in self._weights else getattr(self, key)
        for step in self._steps:
            result = step.run(*[known[name] for name in step.inputs])
            if len(step.outputs) == 1 and isinstance(result, Tensor):
                known[step.outputs[0]] = result
            else:
                known.update(zip(step.outputs, result, strict=False))
            for name in self._apart.intersection(step.outputs):
                value = known[name]
                known[name + DETACHED] = None if value is None else value.detach()
            for name in step.spent:
                known.pop(name, None)
        return [value for value in (known[name] for name in self.outputs) if value is not None]


class Agreement(NamedTuple):
    """How far two ways to compute the same values are apart: the largest difference, relative to the largest value."""

    difference: float
    value: str

    def __str__(self) -> str:
        return f"{self.difference:.1e} at {self.value}"


def check(
    module: OnnxModule,
    part: onnx.ModelProto,
    samples: Mapping[str, NDArray[np.float32]],
    *,
    tolerance: float = ROUNDING,
    rank: str = "",
) -> Agreement:
    """Run `samples` (input name -> array) through the module, laid out as it is trained, and through ONNX Runtime, and
    compare every output.

    `rank` names an output [b, q] of integers by which the others, [b, q, …], are put into order before: which of two
    that are nearly the same comes first is up to rounding. Raises ModelError when they differ by more than `tolerance`,
    relative to the largest magnitude of that output.
    """
    session = open_session(part)
    try:
        wanted = session.run(list(module.outputs), dict(samples))
    except Exception as error:  # ONNX Runtime's exception classes share no public base
        raise ModelError(
            f"This part of the model does not answer {len(next(iter(samples.values())))} pictures together: {error}",
            hint="Export it with a free batch, or train it with another trainer (command, openmmlab).",
        ) from error
    with torch.no_grad():
        got = module(*[_as_trained(samples[name]) for name in module.inputs])
    computed = [one.cpu().numpy() for one in got]
    if rank:
        computed, wanted = (_ordered(some, module.outputs.index(rank)) for some in (computed, wanted))
    found = [
        Agreement(_difference(ours, theirs), name)
        for name, ours, theirs in zip(module.outputs, computed, wanted, strict=True)
    ]
    worst = max(found, key=lambda one: one.difference if np.isfinite(one.difference) else np.inf)
    if not worst.difference <= tolerance:
        raise ModelError(
            f"The model does not compute the same in torch as in ONNX Runtime ({worst}), so it is not trained.",
            hint="Please report the file; train it with another trainer (command, openmmlab) meanwhile.",
        )
    return worst


def open_session(model: onnx.ModelProto, *, threads: int = 1) -> ort.InferenceSession:
    """ONNX Runtime on the CPU over a model in memory. Raises ModelError."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exception classes share no public base
        raise ModelError(f"ONNX Runtime cannot run a part of this model: {error}") from error


def _ordered(values: Sequence[NDArray[Any]], rank: int) -> list[NDArray[Any]]:
    """Values of as many rows as the one that says the order; the others stay as they are."""
    order = values[rank].argsort(axis=1)
    return [
        np.take_along_axis(one, order.reshape(*order.shape, *[1] * (one.ndim - 2)), axis=1)
        if one.shape[:2] == order.shape
        else one
        for one in values
    ]


def _as_trained(value: NDArray[np.float32]) -> Tensor:
    tensor = torch.from_numpy(value)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _difference(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    if ours.shape != theirs.shape:
        return np.inf
    return float(np.abs(ours - theirs).max(initial=0) / max(1.0, float(np.abs(theirs).max(initial=0))))


def _is_weight(graph: OnnxGraph, node: onnx.NodeProto, index: int) -> bool:
    value = graph.constants[node.input[index]]
    if index not in WEIGHTED.get(node.op_type, ()) or value.dtype != np.float32:
        return False
    if value.size > 1 and np.array_equal(value.reshape(-1), np.arange(value.size)):
        return False  # the mean of a distribution over 0, 1, 2 …, written as a convolution
    if node.op_type == "MatMul" and value.ndim == 1:
        return False  # the same over other values: a row of weights for one output is a matrix of one column
    if node.op_type == "Mul" and np.isin(value, (0, 1)).all():
        return False  # a mask: which cells may be chosen
    # Add and Mul: a bias or a scale per channel is learned; a single number or a whole grid of anchors is not
    per_channel = value.size == max(value.shape, default=0) and value.size > 1 and value.ndim in (1, 3, 4)
    return node.op_type not in ("Add", "Mul") or per_channel


def _silu_joined(graph: OnnxGraph, nodes: Sequence[onnx.NodeProto], *, keep: set[str]) -> list[Step]:
    """Steps of the nodes, with x * sigmoid(x) as one: torch then keeps one tensor for the gradient instead of three."""
    gates = {
        node.output[0]: node.input[0]
        for node in nodes
        if node.op_type == "Sigmoid" and len(graph.consumers.get(node.output[0], ())) == 1
    }
    joined = {
        node.output[0]: gate
        for node in nodes
        for gate in node.input
        if node.op_type == "Mul" and gate not in keep and gates.get(gate) in (set(node.input) - {gate})
    }
    dropped = set(joined.values())
    steps = []
    for node in nodes:
        if node.output[0] in joined:
            steps.append(
                Step(OPERATORS["Silu"](_operator(graph, node)), (gates[joined[node.output[0]]],), (node.output[0],), ())
            )
        elif node.output[0] not in dropped:
            steps.append(Step(_build(graph, node), tuple(node.input), tuple(node.output), ()))
    return steps


def _build(graph: OnnxGraph, node: onnx.NodeProto) -> Callable[..., Any]:
    build = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if build is None:
        raise ModelError(
            f"The operator {node.op_type} cannot be trained here.",
            hint="Train with another trainer (command, openmmlab), or export the model without it.",
        )
    return build(_operator(graph, node))


def _operator(graph: OnnxGraph, node: onnx.NodeProto) -> Operator:
    constants = [graph.constants.get(name) for name in node.input]
    return Operator(node.op_type, attributes(node), constants, len(node.output), graph.opset)


def _reading_apart(step: Step, apart: frozenset[str]) -> Step:
    if apart.intersection(step.outputs):
        return step
    return step._replace(inputs=tuple(name + DETACHED if name in apart else name for name in step.inputs))


def _with_spent(steps: Sequence[Step], *, keep: set[str]) -> list[Step]:
    last = {name: index for index, step in enumerate(steps) for name in step.inputs}
    spent: list[list[str]] = [[] for _ in steps]
    for name, index in last.items():
        if name and name not in keep:
            spent[index].append(name)
    return [step._replace(spent=tuple(names)) for step, names in zip(steps, spent, strict=True)]
