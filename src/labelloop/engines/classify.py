"""Classifiers in ONNX files: a picture in, its most likely classes out.

A file is recognised by one picture input and one output [b, c] (or [b, c, 1, 1]). Whether that is probabilities already
is seen from the operator that makes it; pictures are prepared as for ImageNet unless the card says otherwise:

| family | claims | its scores |
| --- | --- | --- |
| ultralytics-cls | metadata of Ultralytics with the task "classify" | probabilities |
| probabilities | the output comes from a Softmax or a Sigmoid | as they are |
| softmax | any other [b, c] | softmax over the classes, which exclude each other |
| sigmoid | never by itself: the card must say it | the logistic function of each: several may be true |
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.errors import ModelError, ModelFailed, ModelUnrecognised
from labelloop.core.pictures import Picture
from labelloop.core.regions import Region, Size, Whole
from labelloop.engines.base import EngineOptions, Wants
from labelloop.engines.detect.prepare import Normaliser, Prepared, prepare
from labelloop.engines.detect.recognise import metadata_names
from labelloop.engines.labels import BACKGROUND, MISSING, placeholders
from labelloop.engines.onnx import Model, Signature, Tensor, as_float32, capacity_of, open_model, read_signature

log = structlog.get_logger(__name__)

IMAGENET = InputSpec(
    color="rgb", resize="crop-center", pad=0.0, scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
"""Mean and standard deviation of ImageNet's pictures, as torchvision's, timm's and most other classifiers expect."""
PLAIN = InputSpec(color="rgb", resize="cover", pad=0.0, scale=1 / 255, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
FAMILIES = {"ultralytics-cls": PLAIN, "probabilities": IMAGENET, "softmax": IMAGENET, "sigmoid": IMAGENET}
DEFAULT_SIDE = 224
DEFAULT_TOP_K = 10
"""More than people want to see: a project with a few of a model's thousand classes gets the best of its own."""
FLOOR = 0.001
CROP = 0.875
"""Of the side that is resized, 224 of 256 pixels are kept."""
_SETTLED = ("Softmax", "Sigmoid", "HardSigmoid")


class Layout(msgspec.Struct, frozen=True):
    """Where a file takes a picture and gives its scores. `channels_last`: [b, h, w, 3], as Keras exports."""

    image: Tensor
    output: int
    classes: int | None
    channels_last: bool

    def size_wh(self) -> tuple[int | None, int | None]:
        """What the file fixes, None where it leaves a side free."""
        first = 1 if self.channels_last else 2
        return self.image.fixed(first + 1), self.image.fixed(first)


class ClassifyEngine:
    """One loaded classifier. `predict` and `prepare` may run in several threads."""

    needs_file: ClassVar[bool] = True
    wants: Wants = "picture"

    @staticmethod
    def describe(path: Path | None, card: ModelCard) -> ModelCard:
        """Complete `card` from the file: family, labels, how pictures are prepared.

        Raises ModelUnrecognised with the file's inputs and outputs, and ModelError when card and file contradict.
        """
        return recognise(read_signature(_required(path, card)), card)[1]

    def __init__(
        self, path: Path | None, card: ModelCard, options: EngineOptions, *, model: Model | None = None
    ) -> None:
        """`model` runs the tensors instead of the file at `path`."""
        self._model = model or open_model(_required(path, card), device=options.device, threads=max(1, options.threads))
        self._layout, self.card = recognise(self._model.signature, card)
        self._spec = self.card.input
        self._normaliser = Normaliser(self._spec, dtype=self._layout.image.dtype)
        self._most = card.max_detections or DEFAULT_TOP_K
        self._floor = FLOOR if card.score_threshold is None else min(FLOOR, card.score_threshold)
        self._real = [name not in (BACKGROUND, MISSING) for name in self.card.labels]
        self.classes = tuple(name for name, real in zip(self.card.labels, self._real, strict=True) if real)
        self._fixed_batch = self._layout.image.fixed(0)
        self.parallel, self.urgent, self.max_batch = capacity_of(self._model, options, fixed_batch=self._fixed_batch)
        self.input_size: Size | None = _decoded_size(self._spec)

    def prepare(self, picture: Picture) -> Prepared:
        """Crop, resize and pad to the network's input; the picture itself can be freed afterwards."""
        return prepare_for(picture, self._spec)

    def predict(self, batch: Sequence[Prepared]) -> list[tuple[Region, ...]]:
        """The `max_detections` likeliest classes of each picture, best first, as Whole regions. Raises ModelFailed."""
        parts = [batch[start : start + self.max_batch] for start in range(0, len(batch), self.max_batch)]
        return [self._regions(scores) for part in parts for scores in self.scores(part)]

    def scores(self, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        """Scores [n, c] in [0, 1] of n prepared pictures, at most `max_batch`."""
        images = self._normaliser.tensor(batch, size=self._fixed_batch or len(batch))
        if self._layout.channels_last:
            images = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        raw = self._model.run({self._layout.image.name: images})[self._layout.output]
        rows = as_float32(raw).reshape(len(images), -1)[: len(batch)]
        if rows.shape[1] != len(self.card.labels):
            raise ModelFailed(f"{self.card.name} gives {rows.shape[1]} scores, and has {len(self.card.labels)} labels.")
        return settled(rows, self.card.family or "")

    def _regions(self, scores: NDArray[np.float32]) -> tuple[Region, ...]:
        order = [int(index) for index in np.argsort(-scores, kind="stable") if self._real[index]][: self._most]
        kept = [(index, float(scores[index])) for index in order]
        return tuple(
            Region(Whole(), label=self.card.labels[index], score=min(score, 1.0))
            for index, score in kept
            if math.isfinite(score) and score >= self._floor
        )


def settled(raw: NDArray[np.float32], family: str) -> NDArray[np.float32]:
    """What a family's output [n, c] says in probabilities."""
    if family == "softmax":
        powers = np.exp(raw - raw.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)
    if family == "sigmoid":
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * raw)), np.float32)  # 1 / (1 + e^-x), without overflow
    return raw


def prepare_for(picture: Picture, spec: InputSpec) -> Prepared:
    """`detect.prepare`, and what only classifiers do: the middle of the picture is cut out first."""
    if spec.resize not in ("cover", "crop-center") or spec.size_wh is None:
        return prepare(picture, spec)
    height, width = picture.rgb.shape[:2]
    share = (CROP if spec.resize == "crop-center" else 1.0) * min(width / spec.size_wh[0], height / spec.size_wh[1])
    inner_w, inner_h = (max(1, round(side * share)) for side in spec.size_wh)
    left, top = (width - inner_w) // 2, (height - inner_h) // 2
    middle = Picture(picture.rgb[top : top + inner_h, left : left + inner_w], Size(inner_w, inner_h))
    return prepare(middle, msgspec.structs.replace(spec, resize="stretch"))


def recognise(signature: Signature, card: ModelCard) -> tuple[Layout, ModelCard]:
    """Where the file's pictures and scores are, and `card` with family, labels and every input field filled in.

    What the card says wins over what the file says, where both can be true. Raises ModelUnrecognised, or ModelError
    when card and file contradict each other.
    """
    layout = _layout(signature, card)
    family = card.family or _family(signature, layout)
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(FAMILIES)}."
        raise ModelError(f"There is no family {family!r} of classifiers (card of {card.name}).", hint=hint)
    completed = msgspec.structs.replace(
        card,
        engine="classify",
        task="classify",
        family=family,
        labels=_labels(card.labels or metadata_names(signature.metadata), layout, card.name),
        input=_input(card.input, FAMILIES[family], layout, card.name),
    )
    return layout, completed


def _layout(signature: Signature, card: ModelCard) -> Layout:
    if len(signature.inputs) == 1 and signature.inputs[0].rank == 4:
        image = signature.inputs[0]
        scores = [(n, tensor) for n, tensor in enumerate(signature.outputs) if _is_scores(tensor)]
        if scores and (image.fixed(1) in (3, None) or image.fixed(3) == 3):
            number, tensor = scores[0]
            channels_last = image.fixed(3) == 3 and image.fixed(1) != 3
            return Layout(image, number, tensor.fixed(1), channels_last)
    raise ModelUnrecognised(
        f"The model {card.name} is not recognised as a classifier. It has {signature}",
        hint="A classifier takes one picture, [b, 3, h, w] or [b, h, w, 3], and answers [b, c].",
    )


def _is_scores(tensor: Tensor) -> bool:
    return tensor.is_float and (
        tensor.rank == 2 or (tensor.rank == 4 and (tensor.fixed(2), tensor.fixed(3)) in ((1, 1), (None, None)))
    )


def _family(signature: Signature, layout: Layout) -> str:
    if signature.metadata.get("task") == "classify" and "names" in signature.metadata:
        return "ultralytics-cls"
    producer = signature.producers.get(signature.outputs[layout.output].name)
    return "probabilities" if producer in _SETTLED else "softmax"


def _labels(names: tuple[str, ...], layout: Layout, model: str) -> tuple[str, ...]:
    if layout.classes is not None and names and len(names) != layout.classes:
        raise ModelError(
            f"{len(names)} class names are given for {model}, but the file has {layout.classes} classes.",
            hint="Give one name for each, in the order of the class index.",
        )
    if not names and layout.classes is None:
        raise ModelError(
            f"The file of {model} says neither the names of its classes nor how many there are.",
            hint="Give the names in the order of their index: --labels names.txt, or in the card.",
        )
    if not names:
        last = (layout.classes or 0) - 1
        log.warning("labels-missing", model=model, using=f"class_0 to class_{last}", hint="Give --labels names.txt.")
    return names or placeholders(layout.classes or 0)


def _input(given: InputSpec, usual: InputSpec, layout: Layout, model: str) -> InputSpec:
    if not layout.image.is_float:  # a file that takes bytes scales by itself
        usual = InputSpec(color="rgb", resize=usual.resize, pad=0.0, scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    width, height = layout.size_wh()
    wanted = given.size_wh or (width or DEFAULT_SIDE, height or DEFAULT_SIDE)
    if (width or wanted[0], height or wanted[1]) != tuple(wanted):
        raise ModelError(
            f"The card of {model} wants pictures of {wanted[0]} x {wanted[1]}, "
            f"but the file is fixed to {width or 'any'} x {height or 'any'}.",
            hint="Remove input.size_wh from the card.",
        )
    told: dict[str, Any] = {name: value for name, value in msgspec.structs.asdict(given).items() if value is not None}
    return msgspec.structs.replace(usual, **told | {"size_wh": wanted})


def _decoded_size(spec: InputSpec) -> Size | None:
    """How large a picture must at least be decoded; None where it must be whole."""
    if spec.size_wh is None:
        return None
    share = CROP if spec.resize == "crop-center" else 1.0
    return Size(*(math.ceil(side / share) for side in spec.size_wh))


def _required(path: Path | None, card: ModelCard) -> Path:
    if path is None:
        raise ModelError(
            f"The model {card.name} has no file.", hint="Add an ONNX file: labelloop models add FILE.onnx."
        )
    return path
