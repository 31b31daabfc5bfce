"""The detection engine: any ONNX detector whose family is known, pictures in, regions out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import structlog

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError
from labelloop.core.geometry import nms
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Region, Size
from labelloop.engines.base import EngineOptions, Wants
from labelloop.engines.detect.head import Found
from labelloop.engines.detect.prepare import Normaliser, Prepared, prepare, resized
from labelloop.engines.detect.recognise import image_input, recognise
from labelloop.engines.labels import BACKGROUND, MISSING
from labelloop.engines.onnx import Model, capacity_of, open_model, read_signature

log = structlog.get_logger(__name__)

DEFAULT_MAX_DETECTIONS = 300
MAX_CANDIDATES = 3000


class DetectEngine:
    """One loaded detector (see `engines/base` for the seam). `predict` and `prepare` may run in several threads."""

    needs_file: ClassVar[bool] = True
    wants: Wants = "picture"

    @staticmethod
    def describe(path: Path | None, card: ModelCard) -> ModelCard:
        """Complete `card` from the file: family, labels, how pictures are prepared, IoU threshold.

        Raises ModelUnrecognised with the file's inputs and outputs and the card fields that would settle it, and
        ModelError when the file cannot be read or card and file contradict each other.
        """
        return recognise(read_signature(_required(path, card)), card)[1]

    def __init__(
        self, path: Path | None, card: ModelCard, options: EngineOptions, *, model: Model | None = None
    ) -> None:
        """`model` runs the tensors instead of the file at `path`."""
        self._model = model or open_model(_required(path, card), device=options.device, threads=max(1, options.threads))
        self._head, self.card = recognise(self._model.signature, card)
        self._image = image_input(self._model.signature, card)
        self._spec = self.card.input
        self._normaliser = Normaliser(self._spec, dtype=self._image.dtype)
        # the card's threshold is for drawing; a label config may ask for less, down to the family's floor
        self._floor = min(self._head.floor, 1.0 if card.score_threshold is None else card.score_threshold)
        self._most = card.max_detections or DEFAULT_MAX_DETECTIONS
        self._warned = False
        self._real = np.array([name not in (BACKGROUND, MISSING) for name in self.card.labels])
        self.classes = tuple(name for name, real in zip(self.card.labels, self._real, strict=True) if real)
        self._fixed_batch = self._batch_of_file()
        self.parallel, self.urgent, self.max_batch = capacity_of(self._model, options, fixed_batch=self._fixed_batch)
        self.input_size = Size(*self._spec.size_wh) if self._spec.size_wh else None

    def prepare(self, picture: Picture) -> Prepared:
        """Resize and pad to the network's input; the picture itself can be freed afterwards."""
        return prepare(picture, self._spec)

    def resized(self, size: Size) -> Size:
        """What `prepare` brings a picture of this size to, without what it is padded with."""
        return resized(size, self._spec)

    def predict(self, batch: Sequence[Prepared]) -> list[tuple[Region, ...]]:
        """Regions of each picture, best first, in pixels of the original; scores are above
        the family's floor (0.01; NanoDet 0.05) or the card's `score_threshold`, whichever is lower. Raises ModelFailed.

        A batch longer than `max_batch` runs in parts."""
        parts = [batch[start : start + self.max_batch] for start in range(0, len(batch), self.max_batch)]
        return [regions for part in parts for regions in self._run(part)]

    def _run(self, batch: Sequence[Prepared]) -> list[tuple[Region, ...]]:
        images = self._normaliser.tensor(batch, size=self._fixed_batch or len(batch))
        feeds = {name: np.tile(row, (len(images), 1)) for name, row in self._head.extra.items()}
        feeds[self._image.name] = images if self._image.rank == 4 else images[0]
        found = self._head.decode(self._model.run(feeds), floor=self._floor)
        return [self._regions(one, prepared) for one, prepared in zip(islice(found, len(batch)), batch, strict=True)]

    def _regions(self, found: Found, prepared: Prepared) -> tuple[Region, ...]:
        network_xyxy, scores, classes = self._best(self._sound(found))
        xyxy = (network_xyxy.astype(np.float64) - prepared.offset_xy * 2) * (prepared.scale_xy * 2)
        np.clip(xyxy, 0, prepared.size * 2, out=xyxy)
        inside = (xyxy[:, 2:] > xyxy[:, :2]).all(axis=1)
        rows = zip(xyxy[inside].tolist(), scores[inside].tolist(), classes[inside].tolist(), strict=True)
        labels = self.card.labels
        return tuple(Region(shape=Box(tuple(box)), label=labels[index], score=score) for box, score, index in rows)

    def _sound(self, found: Found) -> Found:
        """Without what a broken or half-precision model may say: boxes that are not finite or have no area, and
        classes that have no name."""
        xyxy, scores, classes = found
        named = (classes >= 0) & (classes < len(self.card.labels))
        if not named.all() and not self._warned:
            self._warned = True
            log.warning(
                "class-without-name",
                model=self.card.name,
                index=int(classes[~named][0]),
                labels=len(self.card.labels),
                hint="The class names do not belong to this file; COCO models that count to 90 need the list coco91.",
            )
        real = named & self._real[np.where(named, classes, 0)]
        with np.errstate(invalid="ignore"):
            sound = np.isfinite(xyxy).all(axis=1) & np.isfinite(scores) & (xyxy[:, 2:] > xyxy[:, :2]).all(axis=1)
        keep = real & sound
        return Found(xyxy[keep], np.minimum(scores[keep], 1), classes[keep])

    def _best(self, found: Found) -> Found:
        """Suppressed where the family needs it, best score first, at most `max_detections`."""
        xyxy, scores, classes = found
        order = np.argsort(-scores, kind="stable")
        if self.card.iou_threshold is None:
            kept = order[: self._most]
        else:
            order = order[:MAX_CANDIDATES]
            kept = order[nms(xyxy[order], scores[order], iou_threshold=self.card.iou_threshold, classes=classes[order])]
            kept = kept[: self._most]
        return Found(xyxy[kept], scores[kept], classes[kept])

    def _batch_of_file(self) -> int | None:
        """The batch size that the file is fixed to; None when it is free."""
        return 1 if self._head.single or self._image.rank == 3 else self._image.fixed(0)


def _required(path: Path | None, card: ModelCard) -> Path:
    if path is None:
        raise ModelError(
            f"The model {card.name} has no file.", hint="Add an ONNX file: labelloop models add FILE.onnx."
        )
    return path
