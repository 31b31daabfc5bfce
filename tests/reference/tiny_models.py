"""Hand-built ONNX files, one per family of detectors, that always see the same boxes.

A `Thing` is given in pixels of the network input. Each builder writes it the way that family's network would, so a
test knows exactly which regions must come back. The files hold no network: constants, repeated for the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

BINS = 8
NAMES = ("cat", "dog", "bird")


class Thing(NamedTuple):
    """One box that the network sees: `xyxy` in pixels of the network input, class index, score."""

    xyxy: tuple[float, float, float, float]
    label: int
    score: float

    @property
    def cxcywh(self) -> tuple[float, float, float, float]:
        left, top, right, bottom = self.xyxy
        return ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


def ultralytics_metadata(names: Sequence[str] = NAMES, *, size_wh: tuple[int, int], **more: str) -> dict[str, str]:
    """What the Ultralytics exporter writes: Python literals, `imgsz` as height, width."""
    return {
        "author": "someone",
        "task": "detect",
        "stride": "32",
        "batch": "1",
        "imgsz": str([size_wh[1], size_wh[0]]),
        "names": str(dict(enumerate(names))),
    } | more


def build_v8(
    path: Path,
    things: Sequence[Thing],
    *,
    size_wh: tuple[int, int] = (640, 640),
    classes: int = 3,
    metadata: Mapping[str, str] | None = None,
    batch: int | str = 1,
    free_size: bool = False,
) -> Path:
    """[b, 4 + c, cells]: 1 x 84 x 8400 for 80 classes at 640."""
    rows = np.zeros((cells(size_wh, (8, 16, 32)), 4 + classes), np.float32)
    for row, thing in zip(_spread(things, len(rows)), things, strict=True):
        rows[row, :4] = thing.cxcywh
        rows[row, 4 + thing.label] = thing.score
    metadata = ultralytics_metadata(size_wh=size_wh) if metadata is None else metadata
    return save(path, {"output0": rows.T}, size_wh=size_wh, metadata=metadata, batch=batch, free_size=free_size)


def build_v5(
    path: Path,
    things: Sequence[Thing],
    *,
    size_wh: tuple[int, int] = (640, 640),
    classes: int = 3,
    metadata: Mapping[str, str] | None = None,
    batch: int | str = 1,
) -> Path:
    """[b, 3 * cells, 5 + c]: 1 x 25200 x 85 for 80 classes at 640."""
    rows = np.zeros((3 * cells(size_wh, (8, 16, 32)), 5 + classes), np.float32)
    for row, thing in zip(_spread(things, len(rows)), things, strict=True):
        rows[row] = _with_objectness(thing, thing.cxcywh, classes)
    metadata = ultralytics_metadata(size_wh=size_wh) if metadata is None else metadata
    return save(path, {"output0": rows}, size_wh=size_wh, metadata=metadata, batch=batch)


def build_end2end(
    path: Path,
    things: Sequence[Thing],
    *,
    size_wh: tuple[int, int] = (640, 640),
    rows: int = 300,
    metadata: Mapping[str, str] | None = None,
    batch: int | str = 1,
) -> Path:
    """[b, 300, 6]: left, top, right, bottom, score, class."""
    table = np.zeros((rows, 6), np.float32)
    for row, thing in enumerate(things):
        table[row] = (*thing.xyxy, thing.score, thing.label)
    metadata = ultralytics_metadata(size_wh=size_wh, end2end="True") if metadata is None else metadata
    return save(path, {"output0": table}, size_wh=size_wh, metadata=metadata, batch=batch)


def build_yolox(
    path: Path,
    things: Sequence[Thing],
    *,
    size_wh: tuple[int, int] = (416, 416),
    classes: int = 3,
    decoded: bool = False,
    batch: int | str = 1,
    last: str = "",
) -> Path:
    """[b, cells, 5 + c]; raw boxes are relative to the grid. `last` names another last operator than the export's."""
    rows = np.zeros((cells(size_wh, (8, 16, 32)), 5 + classes), np.float32)
    for thing in things:
        x, y, w, h = thing.cxcywh
        row, stride, column, line = _cell(thing, size_wh, (8, 16, 32), taken=rows[:, 4])
        raw = (x / stride - column, y / stride - line, np.log(w / stride), np.log(h / stride))
        rows[row] = _with_objectness(thing, thing.cxcywh if decoded else raw, classes)
    last = last or ("Exp" if decoded else "Transpose")
    return save(path, {"output": rows}, size_wh=size_wh, batch=batch, image="images", last=last)


def build_nanodet(
    path: Path,
    things: Sequence[Thing],
    *,
    size_wh: tuple[int, int] = (320, 320),
    classes: int = 3,
    joined: bool = False,
    plus: bool = False,
    batch: int | str = 1,
) -> Path:
    """Per stride [b, cells, c] and [b, cells, 32]; or joined, with a fourth stride and other points if `plus`."""
    strides, point = ((8, 16, 32, 64), 0.0) if plus else ((8, 16, 32), 0.5)
    scores = np.zeros((cells(size_wh, strides), classes), np.float32)
    sides = np.zeros((len(scores), 4 * BINS), np.float32)
    for thing in things:
        row, stride, column, line = _cell(thing, size_wh, strides, taken=scores.max(axis=1), point=point)
        x, y = (column + point) * stride, (line + point) * stride
        left, top, right, bottom = thing.xyxy
        distances = np.array([x - left, y - top, right - x, bottom - y]) / stride
        scores[row, thing.label] = thing.score
        sides[row] = np.concatenate([_distribution(distance) for distance in distances])
    if joined or plus:
        return save(
            path, {"output": np.concatenate([scores, sides], 1)}, size_wh=size_wh, batch=batch, last="Transpose"
        )
    ends = np.cumsum([cells(size_wh, (stride,)) for stride in strides])[:-1]
    parts = {f"cls_pred_stride_{s}": part for s, part in zip(strides, np.split(scores, ends), strict=True)}
    parts |= {f"dis_pred_stride_{s}": part for s, part in zip(strides, np.split(sides, ends), strict=True)}
    return save(path, parts, size_wh=size_wh, batch=batch, image="input.1")


def build_mmdeploy(
    path: Path, things: Sequence[Thing], *, size_wh: tuple[int, int] = (320, 320), batch: int | str = 1
) -> Path:
    """`dets` [b, 100, 5], `labels` [b, 100]; unused rows have score 0 and label -1."""
    dets, labels = np.zeros((100, 5), np.float32), np.full(100, -1, np.int64)
    for row, thing in enumerate(things):
        dets[row], labels[row] = (*thing.xyxy, thing.score), thing.label
    return save(path, {"dets": dets, "labels": labels}, size_wh=size_wh, batch=batch, image="input")


def build_detr(
    path: Path, things: Sequence[Thing], *, size_wh: tuple[int, int] = (320, 320), batch: int | str = 1
) -> Path:
    """With postprocessor: boxes are fractions times `orig_target_sizes`, computed in the graph."""
    boxes, scores, labels = np.zeros((300, 4), np.float32), np.zeros(300, np.float32), np.zeros(300, np.int64)
    for row, thing in enumerate(things):
        boxes[row] = np.array(thing.xyxy) / (size_wh * 2)
        scores[row], labels[row] = thing.score, thing.label
    return save(
        path,
        {"labels": labels, "boxes": boxes, "scores": scores},
        size_wh=size_wh,
        batch=batch,
        sizes="orig_target_sizes",
    )


def build_detr_raw(
    path: Path,
    things: Sequence[Thing],
    *,
    size_wh: tuple[int, int] = (320, 320),
    classes: int = 3,
    softmax: bool = False,
    names: tuple[str, str] = ("logits", "pred_boxes"),
    batch: int | str = 1,
) -> Path:
    """Logits [b, 300, c] (one more class, "nothing", for a softmax) and centre-size fractions [b, 300, 4]."""
    logits = np.full((300, classes + softmax), -200.0, np.float32)
    boxes = np.full((300, 4), 0.5, np.float32)
    if softmax:
        logits[:, -1] = 0
    for row, thing in enumerate(things):
        logits[row, thing.label] = np.log(thing.score / (1 - thing.score))
        boxes[row] = np.array(thing.cxcywh) / (size_wh * 2)
    return save(path, {names[0]: logits, names[1]: boxes}, size_wh=size_wh, batch=batch, image="pixel_values")


def build_torchvision(
    path: Path,
    things: Sequence[Thing],
    *,
    size_wh: tuple[int, int] = (320, 320),
    names: tuple[str, str, str] = ("boxes", "labels", "scores"),
    free_size: bool = False,
    batch: int | None = 1,
) -> Path:
    """One picture: [n, 4], [n] from 1, [n]. `batch` None: an input without batch axis."""
    boxes = np.array([thing.xyxy for thing in things], np.float32)
    labels = np.array([thing.label + 1 for thing in things], np.int64)
    scores = np.array([thing.score for thing in things], np.float32)
    outputs = dict(zip(names, (boxes, labels, scores), strict=True))
    return save(path, outputs, size_wh=size_wh, batch=batch, free_size=free_size, repeat=False)


def build_probe(
    path: Path, *, size_wh: tuple[int, int] = (64, 64), batch: int | str = 1, dtype: int = TensorProto.FLOAT
) -> Path:
    """An end-to-end file whose one box has the mean of the picture's first channel for a score."""
    nodes = [
        helper.make_node("Slice", ["images", "zero", "one", "channel"], ["red"]),
        helper.make_node("ReduceMean", ["red"], ["mean"], axes=[1, 2, 3], keepdims=1),
        helper.make_node("Reshape", ["mean", "row"], ["score"]),
        helper.make_node("Mul", ["score", "nothing"], ["zeros"]),
        helper.make_node("Add", ["zeros", "box"], ["boxes"]),
        helper.make_node("Concat", ["boxes", "score", "zeros_1"], ["output0"], axis=2),
        helper.make_node("Mul", ["score", "nothing_1"], ["zeros_1"]),
    ]
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    constants = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "channel": np.array([1]),
        "row": np.array([-1, 1, 1]),
        "nothing": np.zeros((1, 1, 4), kind),
        "nothing_1": np.zeros((1, 1, 1), kind),
        "box": np.array([[[0, 0, *size_wh]]], kind),
    }
    nodes[-2], nodes[-1] = nodes[-1], nodes[-2]
    width, height = size_wh
    graph = helper.make_graph(
        nodes,
        "probe",
        [helper.make_tensor_value_info("images", dtype, [batch, 3, height, width])],
        [helper.make_tensor_value_info("output0", dtype, [batch, 1, 6])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return _write(path, graph, ultralytics_metadata(("thing",), size_wh=size_wh, end2end="True"))


def save(
    path: Path,
    outputs: Mapping[str, NDArray],
    *,
    size_wh: tuple[int, int],
    metadata: Mapping[str, str] | None = None,
    batch: int | str | None = 1,
    free_size: bool = False,
    image: str = "images",
    sizes: str = "",
    last: str = "",
    repeat: bool = True,
) -> Path:
    """A file whose outputs are these arrays, each repeated for the batch. `last` is the operator at the end."""
    width, height = ("w", "h") if free_size else size_wh
    shape = [3, height, width] if batch is None else [batch, 3, height, width]
    inputs = [helper.make_tensor_value_info(image, TensorProto.FLOAT, shape)]
    nodes, constants = [], []
    if repeat:
        constants += [numpy_helper.from_array(np.array([value]), name) for name, value in (("from", 0), ("to", 1))]
        nodes += [
            helper.make_node("Shape", [image], ["shape"]),
            helper.make_node("Slice", ["shape", "from", "to"], ["batch"]),
        ]
    if sizes:
        inputs.append(helper.make_tensor_value_info(sizes, TensorProto.INT64, [batch, 2]))
        nodes += [
            helper.make_node("Cast", [sizes], ["float_sizes"], to=TensorProto.FLOAT),
            helper.make_node("Concat", ["float_sizes", "float_sizes"], ["both_sizes"], axis=1),
            helper.make_node("Unsqueeze", ["both_sizes", "to"], ["scale"]),
        ]
    infos = []
    for name, value in outputs.items():
        value = np.ascontiguousarray(value)
        declared = [batch, *value.shape] if repeat else [f"{name}_rows", *value.shape[1:]]
        infos.append(helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), declared))
        end = "Mul" if sizes and name == "boxes" else last
        nodes += _output_nodes(name, value, end, repeat, constants)
    return _write(path, helper.make_graph(nodes, "tiny", inputs, infos, constants), metadata or {})


def _output_nodes(
    name: str, value: NDArray, last: str, repeat: bool, constants: list[onnx.TensorProto]
) -> list[onnx.NodeProto]:
    if not repeat:
        constants.append(numpy_helper.from_array(value, f"{name}_value"))
        return [helper.make_node("Identity", [f"{name}_value"], [name])]
    if last == "Transpose":
        value = np.ascontiguousarray(value.T)
    if last == "Exp":
        value = np.log(np.maximum(value, 1e-30))
    constants.append(numpy_helper.from_array(value[None], f"{name}_value"))
    constants.append(numpy_helper.from_array(np.array(value.shape), f"{name}_tail"))
    repeated = f"{name}_repeated" if last else name
    nodes = [
        helper.make_node("Concat", ["batch", f"{name}_tail"], [f"{name}_shape"], axis=0),
        helper.make_node("Expand", [f"{name}_value", f"{name}_shape"], [repeated]),
    ]
    if last == "Transpose":
        nodes.append(helper.make_node("Transpose", [repeated], [name], perm=[0, 2, 1]))
    elif last == "Mul":
        nodes.append(helper.make_node("Mul", [repeated, "scale"], [name]))
    elif last:
        nodes.append(helper.make_node(last, [repeated], [name]))
    return nodes


def _write(path: Path, graph: onnx.GraphProto, metadata: Mapping[str, str]) -> Path:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def cells(size_wh: tuple[int, int], strides: Sequence[int]) -> int:
    return sum(int(np.ceil(size_wh[0] / stride)) * int(np.ceil(size_wh[1] / stride)) for stride in strides)


def _spread(things: Sequence[Thing], rows: int) -> list[int]:
    """Rows far apart, the last one included, in no order of score."""
    return [(rows - 1) * (place + 1) // len(things) for place in range(len(things))]


def _with_objectness(thing: Thing, box: Sequence[float], classes: int) -> NDArray[np.float32]:
    """Objectness and class score whose product is the score."""
    row = np.zeros(5 + classes, np.float32)
    row[:4], row[4], row[5 + thing.label] = box, np.sqrt(thing.score), np.sqrt(thing.score)
    return row


def _cell(
    thing: Thing, size_wh: tuple[int, int], strides: Sequence[int], *, taken: NDArray, point: float = 0.5
) -> tuple[int, int, int, int]:
    """The free cell nearest to the middle of the box, on the first stride whose 7 steps reach every side from there:
    row, stride, column, line."""
    x, y = thing.cxcywh[:2]
    left, top, right, bottom = thing.xyxy
    start = 0
    for stride in strides:
        across, down = int(np.ceil(size_wh[0] / stride)), int(np.ceil(size_wh[1] / stride))
        line, column = np.divmod(np.arange(across * down), across)
        px, py = (column + point) * stride, (line + point) * stride
        steps = np.stack([px - left, py - top, right - px, bottom - py]) / stride
        usable = (steps >= 0).all(0) & (steps <= BINS - 1).all(0) & (taken[start : start + across * down] == 0)
        if usable.any():
            nearest = int(np.where(usable, np.hypot(px - x, py - y), np.inf).argmin())
            return start + nearest, stride, int(column[nearest]), int(line[nearest])
        start += across * down
    raise ValueError(f"no free cell for {thing}")


def _distribution(distance: float) -> NDArray[np.float32]:
    """Logits over 0..7 whose softmax has this mean, on the two bins beside it."""
    low = min(int(distance), BINS - 2)
    share = np.zeros(BINS)
    share[low], share[low + 1] = low + 1 - distance, distance - low
    return np.log(np.maximum(share, 1e-12)).astype(np.float32)
