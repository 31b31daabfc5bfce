"""Files written by Ultralytics' exporter (and those that keep its layout): YOLOv5 to YOLO26.

Only the layout of the tensors is used; nothing of their code. Boxes are in pixels of the network input and scores
are probabilities. Three layouts, told apart by orientation and by how many rows the grid of the strides makes:

- `ultralytics-v5` [b, 3 * cells, 5 + c]: centre, size, objectness, classes (v5, v7; three anchors a cell)
- `ultralytics-v8` [b, 4 + c, cells]: centre, size, classes (v8, v9, 11, 12; no anchors, no objectness)
- `ultralytics-e2e` [b, k, 6]: left, top, right, bottom, score, class, already suppressed (v10, 26, `nms=True`)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

import numpy as np

from labelloop.core.cards import InputSpec
from labelloop.engines.detect.head import Clues, Found, Head, best_class, centred, final
from labelloop.engines.onnx import Array, as_float32

DEFAULTS = InputSpec(color="rgb", resize="letterbox-center", pad=114.0, scale=1 / 255)
STRIDES = ((8, 16, 32), (8, 16, 32, 64), (4, 8, 16, 32))
"""P3 to P5, with P6 for large pictures, with P2 for small objects."""


class UltralyticsV5(Head, frozen=True):
    family: ClassVar[str] = "ultralytics-v5"
    defaults: ClassVar[InputSpec] = DEFAULTS
    iou_threshold: ClassVar[float | None] = 0.7

    @classmethod
    def fit(cls, clues: Clues) -> Self | None:
        output = clues.outputs[0]
        columns = output.fixed(2) if output.rank == 3 and output.is_float else None
        if columns is None or columns < 6:
            return None
        rows = output.fixed(1)
        # older exports add the three maps before decoding, which have five axes
        alone = all(other.rank == 5 for other in clues.outputs[1:])
        anchored = rows in [3 * clues.cells(*strides) for strides in STRIDES]
        dynamic = rows is None and clues.is_ultralytics and columns - 5 == clues.classes and not _ends_itself(clues)
        return cls(columns - 5) if clues.forced or (alone and (anchored or dynamic)) else None

    def decode(self, outputs: Sequence[Array], *, floor: float) -> Iterator[Found]:
        for picture in outputs[0]:
            rows = as_float32(picture[picture[:, 4] > floor])
            index, scores, classes = best_class(rows[:, 5:] * rows[:, 4:5], floor)
            yield Found(centred(rows[index, :4]), scores, classes)


class UltralyticsV8(Head, frozen=True):
    family: ClassVar[str] = "ultralytics-v8"
    defaults: ClassVar[InputSpec] = DEFAULTS
    iou_threshold: ClassVar[float | None] = 0.7

    @classmethod
    def fit(cls, clues: Clues) -> Self | None:
        output = clues.outputs[0]
        rows = output.fixed(1) if output.rank == 3 and output.is_float else None
        if rows is None or rows < 5:
            return None
        cells = output.fixed(2)
        on_grid = cells in [clues.cells(*strides) for strides in STRIDES]
        dynamic = cells is None and clues.classes in (None, rows - 4)
        return cls(rows - 4) if clues.forced or (len(clues.outputs) == 1 and (on_grid or dynamic)) else None

    def decode(self, outputs: Sequence[Array], *, floor: float) -> Iterator[Found]:
        for picture in outputs[0]:
            # filter before transposing: 0.2 ms for 84 x 8400, and 1.9 ms with a transposed copy of everything
            columns = np.flatnonzero(picture[4:].max(axis=0) > floor)
            kept = as_float32(picture[:, columns].T)
            index, scores, classes = best_class(kept[:, 4:], floor)
            yield Found(centred(kept[index, :4]), scores, classes)


class UltralyticsEnd2End(Head, frozen=True):
    family: ClassVar[str] = "ultralytics-e2e"
    defaults: ClassVar[InputSpec] = DEFAULTS

    @classmethod
    def fit(cls, clues: Clues) -> Self | None:
        output = clues.outputs[0]
        if output.rank != 3 or not output.is_float or output.fixed(2) not in (6, None):
            return None
        if clues.forced:
            return cls(None)
        rows = output.fixed(1)
        # a one-class v5 or YOLOX has six columns too, and as many rows as the grid has cells
        grids = {times * clues.cells(*strides) for strides in STRIDES for times in (1, 3)}
        few = rows is not None and rows not in grids
        settled = output.fixed(2) == 6 and (few or _ends_itself(clues))
        return cls(None) if settled and len(clues.outputs) == 1 else None

    def decode(self, outputs: Sequence[Array], *, floor: float) -> Iterator[Found]:
        for picture in outputs[0]:
            yield final(picture[:, :4], picture[:, 4], picture[:, 5], floor=floor)


def _ends_itself(clues: Clues) -> bool:
    metadata = clues.signature.metadata
    return metadata.get("end2end") == "True" or "'nms': True" in metadata.get("args", "")
