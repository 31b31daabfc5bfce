"""MMDeploy's end-to-end detectors (RTMDet, Faster R-CNN, MMYOLO …): `dets` [b, k, 5], `labels` [b, k].

`dets` are left, top, right, bottom, score in pixels of the network input, suppressed inside the file; unused rows have
score 0. The file says nothing about preprocessing: the defaults are RTMDet's. For the others the card says, for
instance, `input: {color: rgb, mean: [123.675, 116.28, 103.53], std: [58.395, 57.12, 57.375]}` (Faster R-CNN) or
`input: {color: rgb, scale: 0.00392157, mean: [0, 0, 0], std: [1, 1, 1], resize: letterbox-center}` (MMYOLO v5, v8).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

from labelloop.core.cards import InputSpec
from labelloop.engines.detect.head import Clues, Found, Head, final
from labelloop.engines.onnx import Array


class MMDeploy(Head, frozen=True):
    """`dets` and `labels` are positions among the outputs."""

    family: ClassVar[str] = "mmdeploy"
    defaults: ClassVar[InputSpec] = InputSpec(
        color="bgr",
        resize="letterbox-topleft",
        pad=114.0,
        scale=1.0,
        mean=(103.53, 116.28, 123.675),
        std=(57.375, 57.12, 58.395),
    )
    dets: int
    labels: int

    @classmethod
    def fit(cls, clues: Clues) -> Self | None:
        names = [output.name for output in clues.outputs]
        if not {"dets", "labels"} <= set(names):
            return None
        dets, labels = names.index("dets"), names.index("labels")
        boxes, indices = clues.outputs[dets], clues.outputs[labels]
        fits = boxes.rank == 3 and boxes.fixed(2) in (5, None) and indices.rank == 2 and not indices.is_float
        return cls(None, dets, labels) if fits else None

    def decode(self, outputs: Sequence[Array], *, floor: float) -> Iterator[Found]:
        for boxes, classes in zip(outputs[self.dets], outputs[self.labels], strict=True):
            yield final(boxes[:, :4], boxes[:, 4], classes, floor=floor)
