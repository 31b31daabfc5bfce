"""What fine-tuning has to know about a family: which columns are what, and how a box is written.

One class per family. `locate` finds the last layers in the file, `answers` turns what they make into boxes and logits.
The decoding is that of `engines/detect`, in torch, so that gradients flow through it; every run compares both. Here are
the families whose cells answer; those with a decoder are in `detr.py`, and `recipes.py` knows them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Protocol

import numpy as np

from labelloop.core.cards import ModelCard
from labelloop.engines.detect.head import Floats, grid
from labelloop.learning.trainers.finetune.class_layer import Rows, Span, layers_of, replace_classes
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph
from labelloop.learning.trainers.finetune.rtmdet import last_layers

if TYPE_CHECKING:
    from torch import Tensor

NANODET_BINS = 8

Told = Literal["cells", "queries", "ranks"]
"""What a row of the outputs is: a cell, at its place; a query, in the order in which they were chosen; or one of the
best scores of all queries and classes."""


class LastLayers(NamedTuple):
    """The layers that make the columns, one entry per stride each; `objectness` is empty where there is none, and
    `boxes` is one entry, an output, where the file decodes them itself.

    Of a decoder that chooses cells: `chosen` is the index of the chosen, `more` their scores and the boxes that it
    begins with, `apart` the values between, which learn from those two only."""

    classes: tuple[Rows, ...]
    boxes: tuple[Rows, ...]
    objectness: tuple[Rows, ...]
    chosen: str = ""
    more: tuple[str, ...] = ()
    apart: frozenset[str] = frozenset()

    @property
    def values(self) -> tuple[str, ...]:
        rows = (rows.value for part in (self.classes, self.boxes, self.objectness) for rows in part)
        return tuple(name for name in dict.fromkeys((*rows, *self.more, self.chosen)) if name)


class Answers(NamedTuple):
    """Of a batch of b pictures with n cells: class `logits` [b, n, c], `xyxy` [b, n, 4] in pixels of the network input,
    `objectness` logits [b, n, 1] or None. The score of a class is sigmoid(logit), times sigmoid(objectness).
    `earlier` are answers that the network gave on the way and that are taught too."""

    logits: Tensor
    xyxy: Tensor
    objectness: Tensor | None
    earlier: tuple[Answers, ...] = ()

    @property
    def scores(self) -> Tensor:
        scores = self.logits.sigmoid()
        return scores if self.objectness is None else scores * self.objectness.sigmoid()


class Points(NamedTuple):
    """`cells` [n, 2] column and row, `strides` [n, 1], `centres` [n, 2] in pixels; `size_wh` [2] of the network
    input."""

    cells: Tensor
    strides: Tensor
    centres: Tensor
    size_wh: Tensor


class Family(Protocol):
    """How one family writes boxes."""

    names: ClassVar[tuple[str, ...]]
    """Families of `engines/detect` that are written like this."""
    strides: ClassVar[tuple[int, ...]]
    """One class layer for each; () where answers do not belong to cells."""
    told: ClassVar[Told]
    class_pace: ClassVar[float]
    """How many times faster its class layer learns than the option `class_rate` says."""

    def locate(self, graph: OnnxGraph, card: ModelCard) -> LastLayers:
        """Raises ModelError when the layers are not where the family has them."""

    def give_classes(self, graph: OnnxGraph, layers: LastLayers, rows: Sequence[Sequence[Floats]]) -> None:
        """Put `rows[i]`, one array per initializer of `layers.classes[i]`, first axis classes, in the place of those
        that are there, and let everything behind them follow. Raises ModelError where it cannot."""

    def answers(self, layers: LastLayers, maps: Mapping[str, Tensor], points: Points) -> Answers:
        """From the values named in `LastLayers.values`."""


class Grid:
    """Families whose every cell answers: the columns are maps [b, channels, h, w] of convolutions."""

    told: ClassVar[Told] = "cells"
    class_pace: ClassVar[float] = 1.0

    def boxes(self, raw: Tensor, points: Points) -> Tensor:
        """What the box layers say, [b, n, k], as left, top, right, bottom in pixels [b, n, 4]."""
        raise NotImplementedError

    def give_classes(self, graph: OnnxGraph, layers: LastLayers, rows: Sequence[Sequence[Floats]]) -> None:
        replace_classes(graph, layers.classes, rows)

    def answers(self, layers: LastLayers, maps: Mapping[str, Tensor], points: Points) -> Answers:
        logits, raw = (_columns(part, maps) for part in (layers.classes, layers.boxes))
        objectness = _columns(layers.objectness, maps) if layers.objectness else None
        return Answers(logits, self.boxes(raw, points), objectness)


class Yolox(Grid):
    """One output [b, n, 5 + c]: centre and size, objectness, classes. Boxes are offsets from a cell."""

    names: ClassVar[tuple[str, ...]] = ("yolox",)
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)

    def locate(self, graph: OnnxGraph, card: ModelCard) -> LastLayers:
        output, width = graph.outputs[0], 5 + len(card.labels)
        return LastLayers(
            classes=layers_of(graph, output, Span(2, 5, width)),
            boxes=layers_of(graph, output, Span(2, 0, 4)),
            objectness=layers_of(graph, output, Span(2, 4, 5)),
        )

    def boxes(self, raw: Tensor, points: Points) -> Tensor:
        import torch

        centres = (raw[..., :2] + points.cells) * points.strides
        halves = raw[..., 2:].clamp(max=20).exp() * points.strides / 2
        return torch.cat([centres - halves, centres + halves], dim=-1)


class NanoDet(Grid):
    """A pair of outputs per stride, [b, n, c] and [b, n, 32], or all joined in one. Each side of a box is a
    distribution over 8 distances from the middle of the cell."""

    names: ClassVar[tuple[str, ...]] = ("nanodet",)
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)

    def locate(self, graph: OnnxGraph, card: ModelCard) -> LastLayers:
        count, sides = len(card.labels), 4 * NANODET_BINS
        if len(graph.outputs) == 1:
            joined = graph.outputs[0]
            classes = layers_of(graph, joined, Span(2, 0, count))
            return LastLayers(classes, layers_of(graph, joined, Span(2, count, count + sides)), ())
        by_rows = sorted(graph.outputs, key=lambda name: -(graph.shapes[name][1] or 0))
        wide = [name for name in by_rows if graph.shapes[name][2] == sides and "cls" not in name]
        others = [name for name in by_rows if name not in wide]
        return LastLayers(
            classes=tuple(rows for name in others for rows in layers_of(graph, name, Span(2, 0, count))),
            boxes=tuple(rows for name in wide for rows in layers_of(graph, name, Span(2, 0, sides))),
            objectness=(),
        )

    def boxes(self, raw: Tensor, points: Points) -> Tensor:
        import torch

        bins = raw.reshape(*raw.shape[:-1], 4, NANODET_BINS).softmax(dim=-1)
        steps = bins @ torch.arange(NANODET_BINS, dtype=raw.dtype, device=raw.device)
        distances = steps * points.strides
        return torch.cat([points.centres - distances[..., :2], points.centres + distances[..., 2:]], dim=-1)


class UltralyticsV8(Grid):
    """One output [b, 4 + c, n]: centre and size in pixels, classes. The file decodes its boxes itself, so they are read
    from the output, and gradients go back through its own decoding."""

    names: ClassVar[tuple[str, ...]] = ("ultralytics-v8",)
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)

    def locate(self, graph: OnnxGraph, card: ModelCard) -> LastLayers:
        output = graph.outputs[0]
        classes = layers_of(graph, output, Span(1, 4, 4 + len(card.labels)))
        return LastLayers(classes, (Rows(output, 0, 4, ()),), ())

    def boxes(self, raw: Tensor, points: Points) -> Tensor:  # noqa: ARG002
        import torch

        halves = raw[..., 2:] / 2
        return torch.cat([raw[..., :2] - halves, raw[..., :2] + halves], dim=-1)


class MMDeploy(Grid):
    """`dets` and `labels` behind a suppression, which is taken off: boxes [b, 4, n] and scores [b, n, c] are what is in
    front of it (`suppression`). The file decodes its boxes itself."""

    names: ClassVar[tuple[str, ...]] = ("mmdeploy",)
    strides: ClassVar[tuple[int, ...]] = (8, 16, 32)

    def locate(self, graph: OnnxGraph, card: ModelCard) -> LastLayers:
        return LastLayers(*last_layers(graph, classes=len(card.labels)))

    def boxes(self, raw: Tensor, points: Points) -> Tensor:  # noqa: ARG002
        return raw


def points_of(family: Family, size_wh: tuple[int, int]) -> Points:
    import torch

    parts = (
        grid(size_wh, family.strides)
        if family.strides
        else (np.zeros((0, 2), np.float32), np.zeros((0, 1), np.float32))
    )
    cells, strides = (torch.from_numpy(np.array(part)) for part in parts)
    return Points(cells, strides, (cells + 0.5) * strides, torch.tensor(size_wh, dtype=torch.float32))


def _columns(rows: tuple[Rows, ...], maps: Mapping[str, Tensor]) -> Tensor:
    import torch

    parts = [maps[one.value][:, one.start : one.stop].flatten(2).transpose(1, 2).float() for one in rows]
    return torch.cat(parts, dim=1)
