"""What the ONNX operators of transformer decoders mean in torch; registered beside those of `onnx_ops`.

A decoder chooses cells (TopK, GatherElements), looks where its boxes are (GridSample), and its file reckons with shapes
on the way (Tile, Range …). Semantics: https://onnx.ai/onnx/operators/.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from labelloop.learning.trainers.finetune.onnx_ops import OPERATORS, Operator, Run, operator

SIMPLE: dict[str, Run] = {
    "Where": torch.where,
    "Equal": torch.eq,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Not": torch.logical_not,
    "Sin": torch.sin,
    "Cos": torch.cos,
}
SAMPLED = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest"}
"""Modes of GridSample by their names up to opset 19 and from 20 on, and as torch calls them."""


def _as_it_is(run: Run) -> Any:
    return lambda _: run


OPERATORS |= {kind: _as_it_is(run) for kind, run in SIMPLE.items()}


# --- which ones -------------------------------------------------------------------------------------


@operator("TopK")
def _top_k(node: Operator) -> Run:
    axis, largest = node.get("axis", -1), bool(node.get("largest", 1))
    in_order = bool(node.get("sorted", 1))

    def run(x: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        values, index = torch.topk(x, int(count), dim=axis, largest=largest, sorted=in_order)
        return values, index

    return run


@operator("GatherElements")
def _gather_elements(node: Operator) -> Run:
    axis = node.get("axis", 0)
    return lambda x, index: torch.gather(x, axis, index % x.shape[axis])


@operator("GatherND")
def _gather_nd(node: Operator) -> Run:
    if node.get("batch_dims", 0):
        raise node.unsupported("batch_dims")
    return lambda x, index: x[tuple(index.unbind(dim=-1))]


@operator("GridSample")
def _grid_sample(node: Operator) -> Run:
    mode, padding = node.get("mode", "bilinear"), node.get("padding_mode", "zeros")
    if mode not in SAMPLED:
        raise node.unsupported(f"mode {mode}")
    more: dict[str, Any] = {"mode": SAMPLED[mode], "padding_mode": padding}
    more["align_corners"] = bool(node.get("align_corners", 0))

    def run(x: Tensor, grid: Tensor) -> Tensor:
        # under autocast one of them may be in half precision; a place on a map is not exact enough in it
        kind = torch.promote_types(x.dtype, grid.dtype)
        return F.grid_sample(x.to(kind), grid.to(kind), **more)

    return run


# --- shapes and constants ---------------------------------------------------------------------------


@operator("Tile")
def _tile(node: Operator) -> Run:
    fixed = node.numbers(1)

    def run(x: Tensor, times: Tensor) -> Tensor:
        return x.repeat(fixed if fixed is not None else times.tolist())

    return run


@operator("Range")
def _range(_: Operator) -> Run:
    def run(start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
        return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype, device=start.device)

    return run


@operator("ConstantOfShape")
def _constant_of_shape(node: Operator) -> Run:
    value = np.asarray(node.get("value", np.zeros(1, np.float32))).reshape(-1)[0]
    filled = torch.as_tensor(value)
    return lambda shape: filled.to(shape.device).expand(*shape.tolist()).clone()


@operator("Einsum")
def _einsum(node: Operator) -> Run:
    equation = node.get("equation", "")
    return lambda *parts: torch.einsum(equation, *parts)


@operator("Mod")
def _mod(node: Operator) -> Run:
    # the default takes the sign of the divisor, fmod that of the number
    call = torch.fmod if node.get("fmod", 0) else torch.remainder
    return lambda a, b: call(a, b)
