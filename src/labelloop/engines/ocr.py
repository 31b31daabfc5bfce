"""Text in pictures, with the models that come inside the rapidocr wheel: nothing is downloaded.

Finds lines of text (DBNet), turns those that stand on their head (a small classifier), reads them (SVTR, CTC).
"""

from __future__ import annotations

import math
import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError, ModelFailed
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Polygon, Region, Size
from labelloop.engines.base import EngineOptions, Wants

if TYPE_CHECKING:
    from rapidocr import RapidOCR

log = structlog.get_logger(__name__)

LABEL = "Text"
LOWEST_SCORE = 0.3
"""Lines read with less confidence are noise: texture, half a letter at the edge."""

STRAIGHT_DEG = 2.0
"""A line tilted by less becomes a box without an angle: a person sees no difference and corrects it more easily."""
NOISE_DEG = 2.5
"""A line that differs from its page by less takes the page's angle, so that short words do not dance."""
RECTANGULAR = 0.93
"""Least share of its minimum-area rectangle that a quad must fill to count as a rectangle."""


class Prepared(msgspec.Struct, frozen=True):
    """`bgr` is uint8 [height, width, 3]; `scale_xy` brings its pixels back to those of the original."""

    bgr: NDArray[np.uint8]
    scale_xy: tuple[float, float]


class OcrEngine:
    """Lines of text as regions labelled "Text", with the transcription and its confidence, in reading order.

    A RapidOCR object keeps state between calls, so there is one for each inference at a time; a busy one is never
    shared.
    """

    needs_file = False
    wants: Wants = "picture"
    classes: tuple[str, ...] = (LABEL,)
    max_batch = 1
    input_size: Size | None = None  # small print is lost at a reduced scale

    def __init__(self, path: Path | None, card: ModelCard, options: EngineOptions) -> None:
        """Raises ModelError when rapidocr is not installed, or does not start."""
        del path
        self.parallel = options.threads
        self._lowest = LOWEST_SCORE if card.score_threshold is None else min(LOWEST_SCORE, card.score_threshold)
        self._idle: queue.LifoQueue[RapidOCR] = queue.LifoQueue()
        for _ in range(self.parallel):
            self._idle.put(_open(options.device))

    @classmethod
    def describe(cls, path: Path | None, card: ModelCard) -> ModelCard:
        """The card completed. Raises ModelError when rapidocr is not installed.

        The release of rapidocr is part of the family: another one brings other models, and is another version of ours.
        """
        del path
        _bundled_models()
        return msgspec.structs.replace(
            card,
            engine="ocr",
            task="ocr",
            family=card.family or f"rapidocr {metadata.version('rapidocr')}",
            labels=cls.classes,
            licence=card.licence or "Apache-2.0",
        )

    def prepare(self, picture: Picture) -> Prepared:
        height, width = picture.rgb.shape[:2]
        bgr = np.asarray(cv2.cvtColor(picture.rgb, cv2.COLOR_RGB2BGR), dtype=np.uint8)
        return Prepared(bgr, (picture.size.width / width, picture.size.height / height))

    def predict(self, batch: Sequence[Prepared]) -> list[tuple[Region, ...]]:
        with self._reader() as reader:
            return [self._read(reader, item) for item in batch]

    @contextmanager
    def _reader(self) -> Iterator[RapidOCR]:
        reader = self._idle.get()
        try:
            yield reader
        finally:
            self._idle.put(reader)

    def _read(self, reader: RapidOCR, item: Prepared) -> tuple[Region, ...]:
        # Every flag at every call: a RapidOCR object remembers what the last call was given.
        found: Any = reader(
            item.bgr,
            use_det=True,
            use_cls=True,
            use_rec=True,
            return_word_box=False,
            return_single_char_box=False,
            text_score=self._lowest,
        )
        if found.boxes is None or found.txts is None or found.scores is None:  # no text in this picture
            return ()
        quads = np.asarray(found.boxes, dtype=np.float64) * item.scale_xy
        tilt_deg = page_tilt_deg(quads)
        shapes = [quad_to_shape(quad, tilt_deg=tilt_deg) for quad in quads]
        return tuple(
            Region(shapes[index], label=LABEL, score=float(found.scores[index]), text=found.txts[index])
            for index in reading_order(quads, tilt_deg=tilt_deg)
        )


def page_tilt_deg(quads: NDArray[np.float64]) -> float:
    """The angle at which most of the text runs, clockwise: the median over lines [n, 4, 2], weighted by length, because
    a pixel at the end of a short word turns it by degrees."""
    if not len(quads):
        return 0.0
    along = _along(quads)
    angles, lengths = np.degrees(np.arctan2(along[:, 1], along[:, 0])), np.linalg.norm(along, axis=1)
    order = np.argsort(angles)
    return float(angles[order][np.searchsorted(np.cumsum(lengths[order]), lengths.sum() / 2)])


def quad_to_shape(quad: NDArray[np.float64], *, tilt_deg: float = 0.0) -> Box | Polygon:
    """The simplest shape that holds a line of text.

    `quad` is [4, 2], clockwise from the top left corner of the text. An upright rectangle becomes a Box, a tilted one
    a Box with an angle (that of its page where it differs little), anything else (perspective) a Polygon.
    """
    width, height = cv2.minAreaRect(quad.astype(np.float32))[1]
    if _area(quad) < RECTANGULAR * width * height:
        return Polygon(tuple((float(x), float(y)) for x, y in quad))
    along = _along(quad[None])[0]
    angle = math.degrees(math.atan2(along[1], along[0]))
    if abs(angle - tilt_deg) < NOISE_DEG:
        angle = tilt_deg
    if abs(angle) < STRAIGHT_DEG:
        (left, top), (right, bottom) = quad.min(axis=0), quad.max(axis=0)
        return Box((float(left), float(top), float(right), float(bottom)))
    half_width = float(np.linalg.norm(along)) / 2
    half_height = float(np.linalg.norm(quad[3] - quad[0] + quad[2] - quad[1])) / 4
    x, y = map(float, quad.mean(axis=0))
    return Box((x - half_width, y - half_height, x + half_width, y + half_height), angle_deg=angle)


def reading_order(quads: NDArray[np.float64], *, tilt_deg: float) -> list[int]:
    """Indices of `quads` [n, 4, 2] from top to bottom, and from left to right along a row.

    The page is set upright first: on a receipt that lies at an angle of three degrees the price stands higher than its
    own line. A line joins the row above it when its middle lies in the upper two thirds of the row's first line; fixed
    pixel distances would break with the size of the picture.
    """
    cos, sin = math.cos(math.radians(tilt_deg)), math.sin(math.radians(tilt_deg))
    upright = quads @ np.array([[cos, -sin], [sin, cos]])
    upper, lower, left = upright[:, :, 1].min(axis=1), upright[:, :, 1].max(axis=1), upright[:, :, 0].min(axis=1)
    middle = (upper + lower) / 2
    rows: list[list[int]] = []
    for index in np.argsort(middle, kind="stable").tolist():
        first = rows[-1][0] if rows else index
        if rows and middle[index] < lower[first] - (lower[first] - upper[first]) / 3:
            rows[-1].append(index)
        else:
            rows.append([index])
    return [index for row in rows for index in sorted(row, key=lambda i: float(left[i]))]


def _along(quads: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the upper and the lower edge of each quad [n, 4, 2], as vectors [n, 2] to the end of the line."""
    return (quads[:, 1] - quads[:, 0] + quads[:, 2] - quads[:, 3]) / 2


def _area(quad: NDArray[np.float64]) -> float:
    """Shoelace formula."""
    x, y = quad[:, 0], quad[:, 1]
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)


def _open(device: str) -> RapidOCR:
    """One reader with its three models loaded, one thread each."""
    models = _bundled_models()
    from rapidocr import RapidOCR  # here: a second, and packages that only this engine needs

    gpu = _gpu(device)
    parameters: dict[str, Any] = {
        "Global.log_level": "critical",  # it has a handler of its own and warns about each picture without text
        "EngineConfig.onnxruntime.intra_op_num_threads": 1,
        "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        "EngineConfig.onnxruntime.use_cuda": gpu is not None,
        "EngineConfig.onnxruntime.cuda_ep_cfg.device_id": gpu or 0,
        # A path given is a path used: without one rapidocr compares checksums and downloads what differs.
        **{f"{stage}.model_path": str(path) for stage, path in models.items()},
    }
    try:
        reader = RapidOCR(params=parameters)
        # It loads a model when a picture first needs it; a page and a line need all three.
        reader(np.full((736, 736, 3), 255, np.uint8), use_det=True, use_cls=True, use_rec=True)
        reader(np.full((48, 320, 3), 255, np.uint8), use_det=False, use_cls=True, use_rec=True)
    except Exception as error:
        raise ModelFailed(
            f"rapidocr does not start: {error}.", hint="Install it anew with: pip install --force-reinstall rapidocr"
        ) from error
    return reader


def _gpu(device: str) -> int | None:
    """Number of the GPU to use, None for the CPU. A GPU that was asked for and is missing warns."""
    import onnxruntime as ort

    kind, _, number = device.partition(":")
    if kind in ("cpu", "openvino"):  # rapidocr is told of its engine here alone, and ONNX Runtime is what we test
        return None
    if "CUDAExecutionProvider" in ort.get_available_providers():
        return int(number or 0)
    if kind == "cuda":
        hint = "This ONNX Runtime has no CUDA: pip install 'labelloop[cuda]'."
        log.warning("gpu-missing", wanted=device, using="cpu", hint=hint)
    return None


def _bundled_models() -> dict[str, Path]:
    """The wheel's own model file for each stage. Their names change between releases of rapidocr."""
    try:
        import rapidocr
    except ImportError as error:
        raise ModelError(
            "Reading text needs the package rapidocr, which is not installed.", hint="pip install 'labelloop[ocr]'"
        ) from error
    folder = Path(rapidocr.__file__).parent / "models"
    found = {stage: sorted(folder.glob(f"*_{stage.lower()}_*.onnx")) for stage in ("Det", "Cls", "Rec")}
    if not all(found.values()):
        raise ModelError(
            f"rapidocr in {folder.parent} has no models inside.", hint="pip install --force-reinstall rapidocr"
        )
    return {stage: paths[-1] for stage, paths in found.items()}
