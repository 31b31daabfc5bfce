"""YOLOX (https://github.com/Megvii-BaseDetection/YOLOX): one output [b, cells, 5 + c], strides 8, 16 and 32.

The usual export leaves the boxes as the network wrote them, relative to the grid: `yolox`. Exports with
`--decode_in_inference` have pixels: `yolox-decoded`. Both have the same shape, so the operators tell: decoding needs
an Exp, and the raw head ends in the Transpose of the joined maps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import ClassVar, Self

import numpy as np

from labelloop.core.cards import InputSpec
from labelloop.engines.detect.head import Clues, Floats, Found, Head, best_class, centred, grid
from labelloop.engines.onnx import Array, as_float32

STRIDES = (8, 16, 32)
NANODET_COLUMNS = 32
RAW_ENDS = ("Transpose", "Cast", "DequantizeLinear")
"""Converters to half precision and to int8 add the other two behind the Transpose. (YOLOv6 has the same shape, is
decoded without an Exp, and ends in a Concat.)"""
COCO_CLASSES = 80


class Yolox(Head, frozen=True):
    family: ClassVar[str] = "yolox"
    defaults: ClassVar[InputSpec] = InputSpec(color="bgr", resize="letterbox-topleft", pad=114.0, scale=1.0)
    iou_threshold: ClassVar[float | None] = 0.65
    size_wh: tuple[int, int]

    @classmethod
    def fit(cls, clues: Clues) -> Self | None:
        columns = _columns(clues)
        if columns is None or not (clues.forced or _is_raw(clues)):
            return None
        return cls(columns - 5, clues.size_wh)

    def decode(self, outputs: Sequence[Array], *, floor: float) -> Iterator[Found]:
        cell, stride = _grid(self.size_wh)
        for picture in outputs[0]:
            rows, scores, classes = _confident(picture, floor)
            raw = as_float32(picture[rows, :4])
            centre = (raw[:, :2] + cell[rows]) * stride[rows]
            with np.errstate(over="ignore"):  # a wild size becomes inf, and the engine drops the box
                size = np.exp(raw[:, 2:]) * stride[rows]
            yield Found(centred(np.concatenate([centre, size], axis=1)), scores, classes)


class YoloxDecoded(Head, frozen=True):
    family: ClassVar[str] = "yolox-decoded"
    defaults: ClassVar[InputSpec] = Yolox.defaults
    iou_threshold: ClassVar[float | None] = Yolox.iou_threshold

    @classmethod
    def fit(cls, clues: Clues) -> Self | None:
        columns = _columns(clues)
        if columns is None or not (clues.forced or _has_exp(clues)):
            return None
        return cls(columns - 5)

    def decode(self, outputs: Sequence[Array], *, floor: float) -> Iterator[Found]:
        for picture in outputs[0]:
            rows, scores, classes = _confident(picture, floor)
            yield Found(centred(as_float32(picture[rows, :4])), scores, classes)


def _columns(clues: Clues) -> int | None:
    """The width of the output when it can be YOLOX's."""
    output = clues.outputs[0]
    columns = output.fixed(2) if output.rank == 3 and output.is_float else None
    if columns is None or columns < 6 or clues.forced:
        return columns if columns and columns >= 6 else None
    rows, cells = output.fixed(1), clues.cells(*STRIDES)
    # the joined NanoDet output of the same strides differs only in its width: the known number of classes decides
    nanodet = columns - NANODET_COLUMNS == (clues.classes or COCO_CLASSES)
    mine = rows is not None and rows == cells and len(clues.outputs) == 1 and not clues.is_ultralytics
    return columns if mine and not nanodet else None


def _has_exp(clues: Clues) -> bool:
    return "Exp" in clues.signature.producers.values()


def _is_raw(clues: Clues) -> bool:
    return not _has_exp(clues) and clues.signature.producers.get(clues.outputs[0].name) in RAW_ENDS


def _confident(picture: Array, floor: float) -> tuple[Array, Floats, Array]:
    """Rows whose objectness times best class is above `floor`. Objectness first: it bounds the product, and for a
    usual picture leaves some 320 of 3,549 rows."""
    likely = np.flatnonzero(picture[:, 4] > floor)
    kept = as_float32(picture[likely])
    index, scores, classes = best_class(kept[:, 5:] * kept[:, 4:5], floor)
    return likely[index], scores, classes


@lru_cache(maxsize=8)
def _grid(size_wh: tuple[int, int]) -> tuple[Floats, Floats]:
    return grid(size_wh, STRIDES)
