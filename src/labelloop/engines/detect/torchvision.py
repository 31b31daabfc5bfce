"""torchvision's detectors (Faster R-CNN, RetinaNet, FCOS, SSD): `boxes` [n, 4], `labels` [n], `scores` [n].

The file resizes and normalises by itself, and answers one picture at a time without a batch axis, boxes in pixels of
what it was given. So a file with free height and width gets the picture at its own size. Labels count from 1 because 0
is the background: the COCO weights go with the list "coco91". Older exports have numbers for output names; the
ranks and types of the three outputs settle it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Self

from labelloop.core.cards import InputSpec
from labelloop.engines.detect.head import Clues, Found, Head, final
from labelloop.engines.onnx import Array


class Torchvision(Head, frozen=True):
    """`boxes`, `labels`, `scores` are positions among the outputs."""

    family: ClassVar[str] = "torchvision"
    single: ClassVar[bool] = True
    defaults: ClassVar[InputSpec] = InputSpec(color="rgb", resize="letterbox-topleft", pad=114.0, scale=1 / 255)
    boxes: int
    labels: int
    scores: int

    @classmethod
    def fit(cls, clues: Clues) -> Self | None:
        if len(clues.signature.inputs) != 1:
            return None
        outputs = list(enumerate(clues.outputs))
        boxes = [i for i, out in outputs if out.rank == 2 and out.fixed(1) in (4, None) and out.is_float]
        labels = [i for i, out in outputs if out.rank == 1 and not out.is_float]
        scores = [i for i, out in outputs if out.rank == 1 and out.is_float]
        if not len(boxes) == len(labels) == len(scores) == 1:
            return None
        return cls(None, boxes[0], labels[0], scores[0])

    def decode(self, outputs: Sequence[Array], *, floor: float) -> Iterator[Found]:
        yield final(outputs[self.boxes], outputs[self.scores], outputs[self.labels], floor=floor)
