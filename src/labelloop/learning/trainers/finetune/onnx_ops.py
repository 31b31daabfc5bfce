"""What each ONNX operator means in torch.

One function per operator: it reads the node's attributes and constant inputs once and returns what to do with the
tensors. Semantics: https://onnx.ai/onnx/operators/. Only what detectors use is here; `onnx_torch` refuses the rest by
name, and compares every converted graph with ONNX Runtime before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from labelloop.core.errors import ModelError

Run = Callable[..., Any]


class Operator(NamedTuple):
    """One node as an operator function sees it. `constants` has an entry per input: an array where the input is known
    beforehand, else None."""

    kind: str
    attributes: dict[str, Any]
    constants: Sequence[NDArray[Any] | None]
    outputs: int
    opset: int

    def get(self, name: str, default: Any) -> Any:
        return self.attributes.get(name, default)

    def numbers(self, index: int, attribute: str = "") -> list[int] | None:
        """A list of integers that newer opsets take as input `index` and older ones as an attribute."""
        if attribute in self.attributes:
            return list(self.attributes[attribute])
        value = self.constants[index] if index < len(self.constants) else None
        return None if value is None else [int(number) for number in value.reshape(-1)]

    def unsupported(self, what: str) -> ModelError:
        return ModelError(
            f"The operator {self.kind} with {what} cannot be trained here.",
            hint="Train with another trainer (command, openmmlab), or export the model without it.",
        )


PLAIN = {"padding": [0, 0], "groups": 1, "stride": [1, 1], "dilation": [1, 1]}
FEW_CHANNELS = 16
"""A 1 x 1 convolution to at most this many channels (boxes, objectness, a few classes) is done as a matrix product:
forwards and backwards 2.0 ms instead of 5.6 for 64 to 4 channels of 26 x 26 cells and 8 pictures."""
OPERATORS: dict[str, Callable[[Operator], Run]] = {}


def operator(*kinds: str) -> Callable[[Callable[[Operator], Run]], Callable[[Operator], Run]]:
    def add(build: Callable[[Operator], Run]) -> Callable[[Operator], Run]:
        OPERATORS.update(dict.fromkeys(kinds, build))
        return build

    return add


# --- layers with weights ----------------------------------------------------------------------------


@operator("Conv")
def _conv(node: Operator) -> Run:
    before, padding = _padding(node)
    more = {"padding": padding, "groups": node.get("group", 1)} | _steps(node)

    plain = node.get("kernel_shape", None) == [1, 1] and not before and more == PLAIN

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
        if plain and len(weight) <= FEW_CHANNELS:
            return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        call: Any = {3: F.conv1d, 4: F.conv2d}[x.ndim]
        return call(F.pad(x, before) if before else x, weight, bias, **more)

    return run


@operator("ConvTranspose")
def _conv_transpose(node: Operator) -> Run:
    before, padding = _padding(node)
    if before or node.get("output_shape", None):
        raise node.unsupported("uneven padding")
    more = {"padding": padding, "groups": node.get("group", 1), "output_padding": node.get("output_padding", 0)}
    more |= _steps(node)
    return lambda x, weight, bias=None: F.conv_transpose2d(x, weight, bias, **more)


@operator("Gemm")
def _gemm(node: Operator) -> Run:
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Any:
        a, b = (a.T if node.get("transA", 0) else a), (b.T if node.get("transB", 0) else b)
        return alpha * (a @ b) if c is None else alpha * (a @ b) + beta * c

    return run


@operator("BatchNormalization")
def _batch_norm(node: Operator) -> Run:
    # with the stored statistics: a handful of pictures says less about them than the pretraining did
    epsilon = node.get("epsilon", 1e-5)
    return lambda x, weight, bias, mean, variance: F.batch_norm(x, mean, variance, weight, bias, eps=epsilon)


@operator("LayerNormalization")
def _layer_norm(node: Operator) -> Run:
    axis, epsilon = node.get("axis", -1), node.get("epsilon", 1e-5)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.layer_norm(x, x.shape[axis:], weight, bias, epsilon)

    return run


@operator("PRelu")
def _prelu(_: Operator) -> Run:
    return lambda x, slope: torch.where(x < 0, x * slope, x)


# --- one value at a time ----------------------------------------------------------------------------

SIMPLE: dict[str, Run] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "MatMul": torch.matmul,
    "Pow": torch.pow,
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Exp": torch.exp,
    "Log": torch.log,
    "Sqrt": torch.sqrt,
    "Erf": torch.erf,
    "Floor": torch.floor,
    "Sigmoid": torch.sigmoid,
    "Silu": F.silu,
    "Relu": F.relu,
    "Tanh": torch.tanh,
    "Softplus": F.softplus,
    "Mish": F.mish,
    "HardSwish": F.hardswish,
    "Reciprocal": torch.reciprocal,
    "Max": lambda first, *rest: _fold(torch.maximum, first, rest),
    "Min": lambda first, *rest: _fold(torch.minimum, first, rest),
    "Identity": lambda x: x,
    "Dropout": lambda x, *_: x,
    "GlobalAveragePool": lambda x: x.mean(dim=tuple(range(2, x.ndim)), keepdim=True),
}


def _as_it_is(run: Run) -> Callable[[Operator], Run]:
    return lambda _: run


OPERATORS |= {kind: _as_it_is(run) for kind, run in SIMPLE.items()}


@operator("Div")
def _div(_: Operator) -> Run:
    def run(a: Tensor, b: Tensor) -> Tensor:
        return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")

    return run


@operator("LeakyRelu")
def _leaky_relu(node: Operator) -> Run:
    slope = node.get("alpha", 0.01)
    return lambda x: F.leaky_relu(x, slope)


@operator("Elu")
def _elu(node: Operator) -> Run:
    alpha = node.get("alpha", 1.0)
    return lambda x: F.elu(x, alpha)


@operator("HardSigmoid")
def _hard_sigmoid(node: Operator) -> Run:
    alpha, beta = node.get("alpha", 0.2), node.get("beta", 0.5)
    return lambda x: torch.clamp(alpha * x + beta, 0, 1)


@operator("Clip")
def _clip(node: Operator) -> Run:
    low, high = node.get("min", None), node.get("max", None)  # attributes up to opset 10

    def run(x: Tensor, minimum: Tensor | None = None, maximum: Tensor | None = None) -> Tensor:
        return torch.clamp(x, low if minimum is None else minimum, high if maximum is None else maximum)

    return run


@operator("Cast")
def _cast(node: Operator) -> Run:
    kinds = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float32, 11: torch.float64}
    kind = kinds.get(node.get("to", 1))
    if kind is None:
        raise node.unsupported(f"type {node.get('to', 1)}")
    return lambda x: x.to(kind)


@operator("Softmax")
def _softmax(node: Operator) -> Run:
    axis = node.get("axis", -1 if node.opset >= 13 else 1)

    def run(x: Tensor) -> Tensor:
        if node.opset < 13 and axis not in (-1, x.ndim - 1):  # older opsets flatten everything behind the axis
            return F.softmax(x.flatten(axis), dim=-1).reshape(x.shape)
        return F.softmax(x, dim=axis)

    return run


# --- places and shapes ------------------------------------------------------------------------------


@operator("Concat")
def _concat(node: Operator) -> Run:
    axis = node.get("axis", 0)
    return lambda *parts: torch.cat(parts, dim=axis)


@operator("Split")
def _split(node: Operator) -> Run:
    axis, sizes = node.get("axis", 0), node.numbers(1, "split")

    def run(x: Tensor, _: Tensor | None = None) -> Sequence[Tensor]:
        return torch.split(x, sizes or -(-x.shape[axis] // node.outputs), dim=axis)

    return run


@operator("Shape")
def _shape(node: Operator) -> Run:
    start, end = node.get("start", 0), node.get("end", None)
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64, device=x.device)


@operator("Slice")
def _slice(node: Operator) -> Run:
    known = [node.numbers(place, name) for place, name in enumerate(("", "starts", "ends", "axes", "steps")) if place]
    if any(step < 1 for step in known[3] or ()):
        raise node.unsupported("a negative step")

    def run(x: Tensor, *given: Tensor | None) -> Tensor:
        starts, ends, axes, steps = (_numbers(known[place], given[place : place + 1]) for place in range(4))
        for axis, start, end, step in zip(
            axes or range(len(starts)), starts, ends, steps or [1] * len(starts), strict=True
        ):
            begin, stop, _step = slice(start, end).indices(x.shape[axis])
            index = [slice(None)] * x.ndim
            index[axis] = slice(begin, max(begin, stop), step)
            x = x[tuple(index)]
        return x

    return run


@operator("Reshape")
def _reshape(node: Operator) -> Run:
    fixed = node.numbers(1)

    def run(x: Tensor, shape: Tensor) -> Tensor:
        wanted = fixed if fixed is not None else shape.tolist()
        return x.reshape([x.shape[axis] if size == 0 else size for axis, size in enumerate(wanted)])

    return run


@operator("Transpose")
def _transpose(node: Operator) -> Run:
    order = node.get("perm", None)
    return lambda x: x.permute(order or tuple(reversed(range(x.ndim))))


@operator("Flatten")
def _flatten(node: Operator) -> Run:
    axis = node.get("axis", 1)
    return lambda x: x.reshape(-1 if axis else 1, *[x.shape[axis:].numel()]) if axis else x.reshape(1, -1)


@operator("Squeeze")
def _squeeze(node: Operator) -> Run:
    axes = node.numbers(1, "axes")
    return lambda x, *_: x.squeeze() if axes is None else x.squeeze(tuple(axes))


@operator("Unsqueeze")
def _unsqueeze(node: Operator) -> Run:
    axes = node.numbers(1, "axes")
    if axes is None:
        raise node.unsupported("axes that depend on the picture")

    def run(x: Tensor, *_: Tensor) -> Tensor:
        rank = x.ndim + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return run


@operator("Expand")
def _expand(node: Operator) -> Run:
    fixed = node.numbers(1)

    def run(x: Tensor, shape: Tensor) -> Tensor:
        wanted = fixed if fixed is not None else shape.tolist()
        return torch.broadcast_to(x, np.broadcast_shapes(tuple(x.shape), tuple(wanted)))

    return run


@operator("Gather")
def _gather(node: Operator) -> Run:
    axis = node.get("axis", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        picked = x.index_select(axis, index.reshape(-1) % x.shape[axis])
        return picked.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])

    return run


@operator("Pad")
def _pad(node: Operator) -> Run:
    pads, mode = node.numbers(1, "pads"), node.get("mode", "constant")
    if pads is None or mode not in ("constant", "reflect"):
        raise node.unsupported(f"mode {mode}")
    value = node.constants[2] if len(node.constants) > 2 else None
    fill = node.get("value", 0.0) if value is None else float(value)
    half = len(pads) // 2
    both = [side for axis in reversed(range(half)) for side in (pads[axis], pads[axis + half])]
    # torch reflects only behind the two leading axes
    return lambda x, *_: F.pad(x, both) if fill == 0 and mode == "constant" else _padded(x, both, mode, fill)


# --- windows ----------------------------------------------------------------------------------------


@operator("MaxPool")
def _max_pool(node: Operator) -> Run:
    before, padding = _padding(node)
    if before or node.outputs > 1:
        raise node.unsupported("uneven padding or indices")
    more: dict[str, Any] = {"padding": padding, "ceil_mode": bool(node.get("ceil_mode", 0))} | _steps(
        node, "kernel_shape"
    )
    return lambda x: F.max_pool2d(x, **more)


@operator("AveragePool")
def _average_pool(node: Operator) -> Run:
    before, padding = _padding(node)
    if before:
        raise node.unsupported("uneven padding")
    more: dict[str, Any] = {"padding": padding, "ceil_mode": bool(node.get("ceil_mode", 0))} | _steps(
        node, "kernel_shape"
    )
    more.pop("dilation")
    return lambda x: F.avg_pool2d(x, count_include_pad=bool(node.get("count_include_pad", 0)), **more)


@operator("ReduceMean", "ReduceSum", "ReduceMax")
def _reduce(node: Operator) -> Run:
    axes, keep = node.numbers(1, "axes"), bool(node.get("keepdims", 1))
    call: Any = {"ReduceMean": torch.mean, "ReduceSum": torch.sum, "ReduceMax": torch.amax}[node.kind]

    def run(x: Tensor, *_: Tensor) -> Any:
        return call(x, dim=tuple(range(x.ndim)) if axes is None else tuple(axes), keepdim=keep)

    return run


@operator("Resize", "Upsample")
def _resize(node: Operator) -> Run:
    more: dict[str, Any]
    mode, how = node.get("mode", "nearest"), node.get("coordinate_transformation_mode", "half_pixel")
    nearest = mode == "nearest" and (node.kind == "Upsample" or node.get("nearest_mode", "") == "floor")
    if nearest and (how == "asymmetric" or node.kind == "Upsample"):
        how, more = "asymmetric", {"mode": "nearest"}
    elif mode == "nearest":
        # what torch calls nearest is "asymmetric" and "floor"; whole factors give the same picture in every mode
        more = {"mode": "nearest-exact"}
    elif mode == "linear" and how in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        more = {"mode": "bilinear", "align_corners": how == "align_corners"}
    else:
        raise node.unsupported(f"{mode} and {how}")
    place = 1 if node.kind == "Upsample" or node.opset < 11 else 2
    scales = node.constants[place] if len(node.constants) > place else None
    sizes = node.numbers(3) if len(node.constants) > 3 else None

    def run(x: Tensor, *_: Tensor) -> Tensor:
        if sizes:
            return F.interpolate(x, size=sizes[2:], **more)
        if scales is None or not scales.size:
            raise node.unsupported("a size that depends on the picture")
        size = [int(side * float(scale)) for side, scale in zip(x.shape[2:], scales[2:], strict=True)]
        return F.interpolate(x, size=size, **more)

    return run


def _numbers(known: list[int] | None, given: Sequence[Tensor | None]) -> list[int]:
    """Integers that are known beforehand, or are reckoned in the graph; [] for an input that is left out."""
    if known is not None:
        return known
    return [] if not given or given[0] is None else [int(number) for number in given[0].reshape(-1).tolist()]


def _padding(node: Operator) -> tuple[list[int], list[int]]:
    """What to pad beforehand (torch's order, empty when nothing) and the padding the layer itself can do."""
    automatic = node.get("auto_pad", "NOTSET")
    if automatic not in ("NOTSET", "VALID"):
        raise node.unsupported(f"auto_pad {automatic}")
    pads = list(node.get("pads", [])) if automatic == "NOTSET" else []
    half = len(pads) // 2
    starts, ends = pads[:half], pads[half:]
    if starts == ends:
        return [], starts or [0]
    both = [side for axis in reversed(range(half)) for side in (starts[axis], ends[axis])]
    return both, [0]


def _steps(node: Operator, *more: str) -> dict[str, Any]:
    kernel = {"kernel_size": node.get("kernel_shape", None)} if more else {}
    return {"stride": node.get("strides", 1), "dilation": node.get("dilations", 1)} | kernel


def _padded(x: Tensor, both: list[int], mode: str, fill: float) -> Tensor:
    if mode == "constant":
        return F.pad(x, both, value=fill)
    if any(both[4:]):
        raise ModelError("Only the last two axes can be padded by reflection.")
    return F.pad(x, both[:4], mode="reflect")


def _fold(call: Callable[[Tensor, Tensor], Tensor], first: Tensor, rest: Sequence[Tensor]) -> Tensor:
    for one in rest:
        first = call(first, one)
    return first
