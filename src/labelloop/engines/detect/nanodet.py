"""NanoDet and NanoDet-Plus (https://github.com/RangiLyu/nanodet), boxes as distributions of distances.

Each side of a box is a distribution over 8 distances (0 to 7 strides, `reg_max` 7) from a point of the grid; its
mean is the distance (Generalized Focal Loss, https://arxiv.org/abs/2006.04388). Scores are probabilities.

- `nanodet`: a pair of outputs per stride, [b, cells, c] and [b, cells, 32]; or both joined, [b, all cells, c + 32],
  strides 8, 16, 32. The point is the middle of the cell.
- `nanodet-plus`: joined, strides 8, 16, 32, 64. The point is the top left corner of the cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import ClassVar, Self

import numpy as np

from labelloop.core.cards import InputSpec
from labelloop.engines.detect.head import Clues, Floats, Found, Head, best_class, grid
from labelloop.engines.onnx import Array, Tensor, as_float32

BINS = 8
SIDES = 4 * BINS
COCO_CLASSES = 80
DEFAULTS = InputSpec(
    color="bgr",
    resize="letterbox-center",  # COCO mAP 0.282 on 32 pictures; stretched 0.257
    pad=0.0,
    scale=1.0,
    mean=(103.53, 116.28, 123.675),
    std=(57.375, 57.12, 58.395),
)


class NanoDet(Head, frozen=True):
    """`pairs` are the positions of the class and distance outputs, largest grid first; empty when
    both are joined in output 0."""

    family: ClassVar[str] = "nanodet"
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)
    point: ClassVar[float] = 0.5
    defaults: ClassVar[InputSpec] = DEFAULTS
    iou_threshold: ClassVar[float | None] = 0.6
    floor: ClassVar[float] = 0.05
    """Its scores are spread widely: at 0.01 some 1,500 boxes a picture pass and suppressing them takes 7 ms; mAP is the
    same to 0.0001."""
    size_wh: tuple[int, int]
    pairs: tuple[tuple[int, int], ...] = ()

    @classmethod
    def fit(cls, clues: Clues) -> Self | None:
        pairs = _pairs(clues, cls.strides)
        if pairs:
            return cls(clues.outputs[pairs[0][0]].fixed(2), clues.size_wh, pairs)
        columns = _joined(clues, cls.strides)
        return cls(columns - SIDES, clues.size_wh) if columns else None

    def decode(self, outputs: Sequence[Array], *, floor: float) -> Iterator[Found]:
        points, stride = _points(self.size_wh, self.strides, self.point)
        for scores, sides in zip(*self._split(outputs), strict=True):
            rows, best, classes = best_class(as_float32(scores), floor)
            distances = _mean_distance(as_float32(sides[rows])) * stride[rows]
            at = points[rows]
            yield Found(np.concatenate([at - distances[:, :2], at + distances[:, 2:]], axis=1), best, classes)

    def _split(self, outputs: Sequence[Array]) -> tuple[Array, Array]:
        """Scores [b, cells, c] and distance logits [b, cells, 32] over all strides."""
        if not self.pairs:
            return outputs[0][..., :-SIDES], outputs[0][..., -SIDES:]
        scores, sides = zip(*self.pairs, strict=True)
        return np.concatenate([outputs[i] for i in scores], 1), np.concatenate([outputs[i] for i in sides], 1)


class NanoDetPlus(NanoDet, frozen=True):
    family: ClassVar[str] = "nanodet-plus"
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32, 64)
    point: ClassVar[float] = 0.0


def _joined(clues: Clues, strides: Sequence[int]) -> int | None:
    """Width of the one output when both parts are joined in it."""
    output = clues.outputs[0]
    columns = output.fixed(2) if output.rank == 3 and output.is_float else None
    if columns is None or columns <= SIDES or len(clues.outputs) != 1:
        return None
    if clues.forced:
        return columns
    # with three strides YOLOX has as many rows: only the known number of classes (or COCO's) settles it
    settled = len(strides) == 4 or columns - SIDES == (clues.classes or COCO_CLASSES)
    return columns if output.fixed(1) == clues.cells(*strides) and settled and not clues.is_ultralytics else None


def _pairs(clues: Clues, strides: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Positions of (classes, distances) per stride, found by their number of rows; empty when they do not fit."""
    if len(clues.outputs) != 2 * len(strides) or any(output.rank != 3 for output in clues.outputs):
        return ()
    pairs = []
    for stride in strides:
        level = [i for i, output in enumerate(clues.outputs) if output.fixed(1) == clues.cells(stride)]
        sides = [i for i in level if clues.outputs[i].fixed(2) == SIDES]
        if len(level) != 2 or not sides:
            return ()
        distance = sides[0] if len(sides) == 1 else max(sides, key=lambda i: _speaks_of_distance(clues.outputs[i]))
        pairs.append((next(i for i in level if i != distance), distance))
    return tuple(pairs)


def _speaks_of_distance(output: Tensor) -> bool:
    """32 classes make both outputs equally wide; exports call the second one dis_pred or reg."""
    return "dis" in output.name or "reg" in output.name


def _mean_distance(logits: Floats) -> Floats:
    """Distances [n, 4] in strides from logits [n, 32]: the mean of softmax over the 8 bins of each side."""
    bins = logits.reshape(-1, 4, BINS)
    weights = np.exp(bins - bins.max(axis=2, keepdims=True))
    return np.asarray(weights @ np.arange(BINS, dtype=np.float32) / weights.sum(axis=2), np.float32)


@lru_cache(maxsize=8)
def _points(size_wh: tuple[int, int], strides: tuple[int, ...], point: float) -> tuple[Floats, Floats]:
    cell, stride = grid(size_wh, strides)
    return (cell + np.float32(point)) * stride, stride
