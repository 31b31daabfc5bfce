"""RT-DETR, D-FINE, DEIM and RF-DETR: a fixed set of boxes, nothing to suppress.

- `detr`: the export with the postprocessor. A second input `orig_target_sizes` [b, 2] (width, height) scales the
  boxes; outputs `labels` [b, k], `boxes` [b, k, 4] (left, top, right, bottom), `scores` [b, k].
- `detr-raw`: class logits [b, k, c] and boxes [b, k, 4] (centre and size as fractions of the picture). Scores are
  the sigmoid of the logits (these models are trained with a focal loss). Hugging Face exports call the outputs `logits`
  and `pred_boxes`, RF-DETR calls them `labels` and `dets`.
- `detr-softmax`: the same outputs of the first DETR, Conditional DETR's excepted: the last class is "no object" and
  the scores are a softmax. Not to be told apart from `detr-raw` by its shape: only the card can say so.

Preprocessing: plain resize, RGB / 255. RF-DETR and Hugging Face's DETR also want
`input: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}` in the card.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Self

import numpy as np

from labelloop.core.cards import InputSpec
from labelloop.engines.detect.head import Clues, Floats, Found, Head, best_class, centred, final
from labelloop.engines.onnx import Array, Tensor, as_float32

DEFAULTS = InputSpec(color="rgb", resize="stretch", pad=0.0, scale=1 / 255)
LOGITS = ("logits", "pred_logits", "labels")
BOXES = ("pred_boxes", "boxes", "dets")


class Detr(Head, frozen=True):
    """`labels`, `boxes`, `scores` are positions among the outputs; `sizes` is the input for the picture size."""

    family: ClassVar[str] = "detr"
    defaults: ClassVar[InputSpec] = DEFAULTS
    labels: int
    boxes: int
    scores: int
    sizes: Tensor
    size_wh: tuple[int, int]

    @classmethod
    def fit(cls, clues: Clues) -> Self | None:
        names = [output.name for output in clues.outputs]
        others = [tensor for tensor in clues.signature.inputs if tensor != clues.image]
        if not {"labels", "boxes", "scores"} <= set(names) or len(others) != 1:
            return None
        sizes, boxes = others[0], names.index("boxes")
        fits = sizes.rank == 2 and sizes.fixed(1) in (2, None) and clues.outputs[boxes].rank == 3
        return cls(None, names.index("labels"), boxes, names.index("scores"), sizes, clues.size_wh) if fits else None

    @property
    def extra(self) -> Mapping[str, Array]:
        # the network's own size, not the picture's: so boxes come in the same pixels as every other family's
        return {self.sizes.name: np.array(self.size_wh, self.sizes.dtype)}

    def decode(self, outputs: Sequence[Array], *, floor: float) -> Iterator[Found]:
        for boxes, scores, labels in zip(outputs[self.boxes], outputs[self.scores], outputs[self.labels], strict=True):
            yield final(boxes, scores, labels, floor=floor)


class DetrRaw(Head, frozen=True):
    """`logits` and `boxes` are positions among the outputs."""

    family: ClassVar[str] = "detr-raw"
    defaults: ClassVar[InputSpec] = DEFAULTS
    logits: int
    boxes: int
    size_wh: tuple[int, int]

    @classmethod
    def fit(cls, clues: Clues) -> Self | None:
        names = [output.name for output in clues.outputs]
        logits = next((names.index(name) for name in LOGITS if name in names), None)
        boxes = next((names.index(name) for name in BOXES if name in names), None)
        if logits is None or boxes is None:
            return None
        first, second = clues.outputs[logits], clues.outputs[boxes]
        fits = first.rank == second.rank == 3 and second.fixed(2) == 4 and first.is_float and second.is_float
        return cls(first.fixed(2), logits, boxes, clues.size_wh) if fits else None

    def decode(self, outputs: Sequence[Array], *, floor: float) -> Iterator[Found]:
        unit = np.array(self.size_wh * 2, np.float32)
        for logits, boxes in zip(outputs[self.logits], outputs[self.boxes], strict=True):
            rows, scores, classes = best_class(self._probabilities(as_float32(logits)), floor)
            yield Found(centred(as_float32(boxes[rows]) * unit), scores, classes)

    def _probabilities(self, logits: Floats) -> Floats:
        with np.errstate(over="ignore"):  # exp of a very negative logit: 1 / (1 + inf) is the right 0
            return np.asarray(1 / (1 + np.exp(-logits)), np.float32)


class DetrSoftmax(DetrRaw, frozen=True):
    family: ClassVar[str] = "detr-softmax"

    @classmethod
    def fit(cls, clues: Clues) -> Self | None:
        raw = super().fit(clues) if clues.forced else None
        return raw and cls(raw.classes and raw.classes - 1, raw.logits, raw.boxes, raw.size_wh)

    def _probabilities(self, logits: Floats) -> Floats:
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(weights[:, :-1] / weights.sum(axis=1, keepdims=True), np.float32)
