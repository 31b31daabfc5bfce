"""Which family a file belongs to, and what its card should say.

Every family looks at the inputs, outputs, metadata and operators and claims the file or not. Exactly one claim settles
it; none, or several, is an error that shows what the file has and which card fields would settle it. The rules, with
`cells` for the number of grid cells at the network's size:

| family | claims |
| --- | --- |
| ultralytics-v5 | [b, 3 * cells, 5 + c]; with free rows only if the metadata names c classes |
| ultralytics-v8 | [b, 4 + c, cells], so the grid is the last axis; it may be free |
| ultralytics-e2e | [b, k, 6] where k is neither cells nor 3 * cells, or the metadata says end2end |
| yolox, yolox-decoded | [b, cells, 5 + c]; decoded when the graph has an Exp, raw when it ends in a Transpose |
| nanodet, nanodet-plus | three (four) pairs [b, cells of a stride, c] and [.., 32]; or joined, [b, cells, c + 32] |
| mmdeploy | outputs `dets` [b, k, 5] and integer `labels` [b, k] |
| detr | a second input [b, 2] and outputs `labels`, `boxes`, `scores` |
| detr-raw | outputs `logits` [b, k, c] and `pred_boxes` [b, k, 4] (or RF-DETR's `labels` and `dets`) |
| torchvision | float [n, 4], integer [n], float [n], whatever their names |
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping

import msgspec
import structlog

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.errors import ModelError, ModelUnrecognised
from labelloop.engines.detect.detr import Detr, DetrRaw, DetrSoftmax
from labelloop.engines.detect.head import Clues, Head
from labelloop.engines.detect.mmdeploy import MMDeploy
from labelloop.engines.detect.nanodet import NanoDet, NanoDetPlus
from labelloop.engines.detect.torchvision import Torchvision
from labelloop.engines.detect.ultralytics import UltralyticsEnd2End, UltralyticsV5, UltralyticsV8
from labelloop.engines.detect.yolox import Yolox, YoloxDecoded
from labelloop.engines.labels import BACKGROUND, COCO, COCO91, MISSING, as_names, placeholders
from labelloop.engines.onnx import Signature, Tensor

log = structlog.get_logger(__name__)

HEADS: tuple[type[Head], ...] = (
    UltralyticsV5,
    UltralyticsV8,
    UltralyticsEnd2End,
    Yolox,
    YoloxDecoded,
    NanoDet,
    NanoDetPlus,
    MMDeploy,
    Detr,
    DetrRaw,
    DetrSoftmax,
    Torchvision,
)
FAMILIES = {head.family: head for head in HEADS}
DEFAULT_SIZE_WH = (640, 640)
AS_IT_IS = InputSpec(color="rgb", resize="stretch", pad=0.0, scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_LONGEST_METADATA = 1_000_000


def recognise(signature: Signature, card: ModelCard) -> tuple[Head, ModelCard]:
    """The head that reads this file, and `card` with family, labels and every input field filled in.

    What the card says wins over what the file says, where both can be true. Raises ModelUnrecognised, or
    ModelError when card and file contradict each other.
    """
    _refuse_other_tasks(signature, card)
    if card.input.resize in ("cover", "crop-center"):
        raise ModelError(
            f"The card of {card.name} crops pictures ({card.input.resize}), and a detector must see all of them.",
            hint="Use letterbox-center, letterbox-topleft or stretch.",
        )
    image = image_input(signature, card)
    known_wh = _size_wh(signature, image, card)
    names = card.labels or metadata_names(signature.metadata)
    clues = Clues(
        signature=signature,
        image=image,
        size_wh=known_wh or DEFAULT_SIZE_WH,
        classes=len(names) or None,
        forced=card.family is not None,
    )
    head = _named(clues, card) if card.family is not None else _claimed(clues, card)
    fills = known_wh or (None if isinstance(head, Torchvision) else DEFAULT_SIZE_WH)
    completed = msgspec.structs.replace(
        card,
        family=head.family,
        labels=_labels(names, head, card.name),
        input=_complete(card.input, head.defaults, image=image, size_wh=fills),
        iou_threshold=head.iou_threshold if card.iou_threshold is None else card.iou_threshold,
    )
    return head, completed


def image_input(signature: Signature, card: ModelCard) -> Tensor:
    """The input that takes pictures: [b, 3, h, w] or [3, h, w]. Raises ModelUnrecognised."""
    for tensor in signature.inputs:
        if tensor.rank in (3, 4) and tensor.fixed(tensor.rank - 3) in (3, None):
            return tensor
    raise _unrecognised(signature, card, "none of its inputs takes pictures as [b, 3, h, w] or [3, h, w]")


def metadata_names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Class names from the metadata key `names`, a Python literal in Ultralytics' files; () when there are none."""
    text = metadata.get("names", "")
    if not text or len(text) > _LONGEST_METADATA:
        return ()
    try:
        return as_names(ast.literal_eval(text))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError) as error:
        log.warning("metadata-names-unreadable", error=str(error), names=text[:80])
        return ()


def _refuse_other_tasks(signature: Signature, card: ModelCard) -> None:
    task = signature.metadata.get("task", "detect")
    if task != "detect":
        raise ModelError(
            f"The model {card.name} was exported for the task {task!r}; the detect engine reads detectors only.",
            hint="Add it with --engine classify." if task == "classify" else "Export a detection model (task detect).",
        )


def _size_wh(signature: Signature, image: Tensor, card: ModelCard) -> tuple[int, int] | None:
    """The network's size: fixed by the file, else from the card, else from the metadata; None when nobody says."""
    height, width = image.fixed(image.rank - 2), image.fixed(image.rank - 1)
    wanted = card.input.size_wh
    if wanted and ((width or wanted[0]), (height or wanted[1])) != tuple(wanted):
        raise ModelError(
            f"The card of {card.name} wants pictures of {wanted[0]} x {wanted[1]}, "
            f"but the file is fixed to {width or 'any'} x {height or 'any'}.",
            hint="Remove input.size_wh from the card.",
        )
    if width and height:
        return width, height
    if wanted:
        return wanted
    sides = [int(number) for number in re.findall(r"\d+", signature.metadata.get("imgsz", ""))][:2]
    return (sides[-1], sides[0]) if sides and min(sides) > 0 else None


def _named(clues: Clues, card: ModelCard) -> Head:
    head = FAMILIES.get(card.family or "")
    if head is None:
        near = difflib.get_close_matches(card.family or "", FAMILIES, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(FAMILIES)}."
        raise ModelError(f"There is no family {card.family!r} (card of {card.name}).", hint=hint)
    fitted = head.fit(clues)
    if fitted is None:
        raise _unrecognised(clues.signature, card, f"it does not have the outputs of the family {card.family!r}")
    return fitted


def _claimed(clues: Clues, card: ModelCard) -> Head:
    claims = [head for head in (kind.fit(clues) for kind in HEADS) if head is not None]
    if len(claims) == 1:
        return claims[0]
    families = " or ".join(head.family for head in claims)
    raise _unrecognised(
        clues.signature, card, f"it could be {families}" if claims else "no family of detectors claims it"
    )


def _unrecognised(signature: Signature, card: ModelCard, why: str) -> ModelUnrecognised:
    return ModelUnrecognised(
        f"The model {card.name} is not recognised: {why}. It has {signature}",
        hint=f"Say what it is in the card: `family` (one of {', '.join(FAMILIES)}), and if needed `labels`, "
        "`input: {size_wh, color, resize, scale, mean, std}`.",
    )


def _labels(names: tuple[str, ...], head: Head, model: str) -> tuple[str, ...]:
    if isinstance(head, Torchvision) and names:
        names = _with_background(names, model)
    if not names:
        if head.classes is None:
            raise ModelError(
                f"The file of {model} says neither the names of its classes nor how many there are.",
                hint="Give the names in the order of their index: --labels names.txt, --labels coco, or in the card.",
            )
        log.warning(
            "labels-missing", model=model, using=f"class_0 to class_{head.classes - 1}", hint="Give --labels names.txt."
        )
        return placeholders(head.classes)
    if head.classes is not None and head.classes != len(names):
        raise ModelError(
            f"{len(names)} class names are given for {model}, but the file ({head.family}) has {head.classes} classes.",
            hint="Give one name for each, in the order of the class index.",
        )
    return names


def _with_background(names: tuple[str, ...], model: str) -> tuple[str, ...]:
    """torchvision counts classes from 1; people write down the classes they trained."""
    if names == COCO:
        log.warning("labels-coco91", model=model, reason="torchvision's COCO weights use the category ids 1 to 90")
        return COCO91
    return names if names[0].lower() in (BACKGROUND, "background", MISSING.lower()) else (BACKGROUND, *names)


def _complete(given: InputSpec, usual: InputSpec, *, image: Tensor, size_wh: tuple[int, int] | None) -> InputSpec:
    if not image.is_float:  # a file that takes bytes scales by itself
        usual = InputSpec(color=usual.color, resize=usual.resize, pad=usual.pad)
    return msgspec.structs.replace(_over(given, _over(usual, AS_IT_IS)), size_wh=size_wh)


def _over(first: InputSpec, second: InputSpec) -> InputSpec:
    """`second`, with every field that `first` sets."""
    return msgspec.structs.replace(
        second, **{name: value for name, value in msgspec.structs.asdict(first).items() if value is not None}
    )
