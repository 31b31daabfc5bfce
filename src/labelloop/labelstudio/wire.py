"""Label Studio's JSON <-> Task, Region, Prediction. The only percent arithmetic in labelloop.

Geometry: Label Studio writes x, y, width, height in percent of the upright picture (0..100), a rotation in
degrees clockwise about the **top-left corner** of the box; a `Box` turns about its centre.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec

from labelloop.core.errors import LabelloopError
from labelloop.core.outlines import bounding_box, corners, outline_of
from labelloop.core.regions import (
    Box,
    MediaKey,
    Point,
    Polygon,
    Prediction,
    Raw,
    Region,
    Shape,
    Size,
    Whole,
)
from labelloop.core.tasks import Event, MediaRef, Prompt, Task
from labelloop.labelstudio.config import LabelConfig, ObjectTag
from labelloop.labelstudio.labelmap import LabelMap, Target

DECIMALS = 4
"""Digits of a percentage: 0.0001 % of a 10,000 px picture is a hundredth of a pixel."""


class BadRequest(LabelloopError):
    """A request body that is not what Label Studio sends."""

    code = "bad-request"


class _TaskIn(msgspec.Struct):
    # Only what is used is typed and decoded; a task also brings every earlier prediction and annotation,
    # with people's e-mail addresses, which we skip over without building objects.
    id: Any = None
    data: Any = None
    project: Any = None


class PredictRequest(msgspec.Struct):
    tasks: list[_TaskIn | None] = []
    project: Any = None
    label_config: str | None = None
    params: dict[str, Any] | None = None


class SetupRequest(msgspec.Struct):
    project: Any = None
    schema: str | None = None
    hostname: str | None = None
    access_token: str | None = None
    extra_params: Any = None


_predict_decoder = msgspec.json.Decoder(PredictRequest)
_setup_decoder = msgspec.json.Decoder(SetupRequest)


def decode_predict(body: bytes) -> PredictRequest:
    """Decode a `/predict` body; unknown fields are ignored. Raises BadRequest."""
    with _readable():
        return _predict_decoder.decode(body)


def decode_setup(body: bytes) -> SetupRequest:
    """Decode a `/setup` body; unknown fields are ignored. Raises BadRequest."""
    with _readable():
        return _setup_decoder.decode(body)


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode a body that must be a JSON object. Raises BadRequest."""
    with _readable():
        return msgspec.json.decode(body or b"{}", type=dict[str, Any])


def decode_event(body: bytes) -> Event:
    """Decode a webhook body (or the old `/train`). Payload names differ per action; deletions bring bare ids and
    bulk creation brings lists under the singular names. Raises BadRequest."""
    content = decode_object(body)
    project = content.get("project")
    annotations = [*_objects(content.get("annotation")), *_objects(content.get("annotations"))]
    tasks = [*_objects(content.get("task")), *_objects(content.get("tasks"))]
    task_ids = [task.get("id") for task in tasks] or [annotation.get("task") for annotation in annotations]
    return Event(
        action=str(content.get("action") or "")[:100],
        project_id=project_id_of(project.get("id") if isinstance(project, dict) else project),
        task_ids=tuple(value for value in task_ids if isinstance(value, int)),
        annotation_ids=tuple(a["id"] for a in annotations if isinstance(a.get("id"), int)),
    )


def _objects(value: Any) -> list[dict[str, Any]]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except msgspec.DecodeError as error:
        raise BadRequest(f"The request body cannot be read: {error}.") from error


def project_id_of(value: Any) -> int | None:
    """`"7.1795176116"` (project and its creation time), `"7"` or `7` -> 7; anything else None."""
    head = str(value).partition(".")[0] if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return int(head) if head.isascii() and head.isdigit() and len(head) < 19 else None


def extra_params_of(value: Any) -> dict[str, Any]:
    """`extra_params` arrives as null, "", JSON text or an object, depending on who stored it."""
    if isinstance(value, str) and value.strip():
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError:
            return {}
    return value if isinstance(value, dict) else {}


def tasks_of(request: PredictRequest) -> list[Task]:
    """The request's tasks in order; one that is null or has no data becomes a Task without data, never a gap."""
    project_id = project_id_of(request.project)
    return [
        Task(
            id=item.id if item is not None and isinstance(item.id, int) else None,
            data=item.data if item is not None and isinstance(item.data, dict) else {},
            project_id=project_id if project_id is not None or item is None else project_id_of(item.project),
        )
        for item in request.tasks
    ]


def media_refs(task: Task, objects: tuple[ObjectTag, ...]) -> list[MediaRef]:
    """References to everything that `objects` show of this task. A field that is absent gives a reference with an
    empty URI, so that its absence is an error of this task and not a silence."""
    refs = []
    for tag in objects:
        value = task.data.get(tag.field)
        pages = value if tag.is_list and isinstance(value, list) else [value]
        refs += [
            MediaRef(page if isinstance(page, str) else "", MediaKey(tag.field, number), task.id, task.project_id)
            for number, page in enumerate(pages)
        ]
    return refs


def prompt_of(request: PredictRequest, config: LabelConfig) -> Prompt | None:
    """What the annotator drew with a smart tool; None when this is no interactive request."""
    context = (request.params or {}).get("context")
    if not isinstance(context, dict):
        return None
    result = [item for item in context.get("result") or () if isinstance(item, dict)]
    return Prompt(
        include=tuple(decode_regions([item for item in result if item.get("is_positive") is not False], config)),
        exclude=tuple(decode_regions([item for item in result if item.get("is_positive") is False], config)),
    )


# --- regions -> result ------------------------------------------------------------------------------


def encode_prediction(prediction: Prediction, label_map: LabelMap, *, task_id: int | None) -> dict[str, Any]:
    """One item of `results`. Its regions pass Label Studio's own checks (PROTOCOL 5); others are left out."""
    item: dict[str, Any] = {
        "result": list(_encode_regions(prediction, label_map, task_id)),
        "score": round(_unit(prediction.score), DECIMALS),
        "model_version": prediction.model,
    }
    if prediction.error is not None:
        item["error"] = prediction.error.message
    return item


def encode_skip(prediction: Prediction) -> dict[str, Any]:
    """An item without `result`: Label Studio stores nothing for this task and asks again later."""
    return {
        "error": prediction.error.message if prediction.error else "",
        "score": 0.0,
        "model_version": prediction.model,
    }


def _encode_regions(prediction: Prediction, label_map: LabelMap, task_id: int | None) -> Iterator[dict[str, Any]]:
    number = 0
    for region in prediction.regions:
        if isinstance(region.shape, Raw):
            yield region.shape.result
            continue
        for target in label_map.targets_of(region):
            if target.object.field != region.media.field:
                continue
            number += 1
            yield from _encode_region(region, target, prediction.sizes, f"{task_id}/{number}")


def _encode_region(
    region: Region, target: Target, sizes: Mapping[MediaKey, Size], name: str
) -> Iterator[dict[str, Any]]:
    """The results that draw one region: one, or three that share an id for a bare geometry with label and text."""
    control = target.control
    size = sizes.get(region.media)
    geometry = _encode_shape(region.shape, control.tag, size)
    if geometry is None:
        return
    base: dict[str, Any] = {
        "id": region.id or hashlib.blake2b(name.encode(), digest_size=5).hexdigest(),
        "to_name": target.object.name,
    }
    if size is not None:
        base |= {"original_width": size.width, "original_height": size.height, "image_rotation": 0}
    if target.object.is_list:
        base["item_index"] = region.media.page
    if region.score is not None:
        base["score"] = round(_unit(region.score), DECIMALS)
    holder = target.label_control or control
    if target.label_control is not None:
        yield base | {"from_name": control.name, "type": control.type, "value": geometry}
    labels = {} if target.label is None else {holder.type: [target.label]}
    yield base | {"from_name": holder.name, "type": holder.type, "value": geometry | labels}
    if region.text is not None and target.text_control is not None:
        text = target.text_control
        yield base | {"from_name": text.name, "type": "textarea", "value": geometry | {"text": [region.text]}}


def _encode_shape(shape: Shape, tag: str, size: Size | None) -> dict[str, Any] | None:
    """The geometry part of `value`, or None when nothing is left to draw."""
    if isinstance(shape, Whole):
        return {}
    if size is None or size.width <= 0 or size.height <= 0:
        return None
    if tag.startswith("Rectangle"):
        box = shape if isinstance(shape, Box) else bounding_box(shape)
        return None if box is None else _encode_box(box, size)
    if tag.startswith("Polygon"):
        return _encode_polygon(outline_of(shape), size)
    if tag.startswith("KeyPoint") and isinstance(shape, Point) and _finite(shape.x, shape.y):
        return {"x": _percent(shape.x, size.width), "y": _percent(shape.y, size.height), "width": 0.5}
    return None


def _encode_box(box: Box, size: Size) -> dict[str, Any] | None:
    if not _finite(*box.xyxy, box.angle_deg):
        return None
    left, top, right, bottom = box.xyxy
    if box.angle_deg % 360 == 0:
        left, right = max(0.0, left), min(float(size.width), right)
        top, bottom = max(0.0, top), min(float(size.height), bottom)
        x, y = left, top
    else:
        x, y = corners(box)[0]
    width, height = right - left, bottom - top
    if width <= 0 or height <= 0:
        return None
    return {
        "x": _percent(x, size.width),
        "y": _percent(y, size.height),
        "width": _percent(width, size.width),
        "height": _percent(height, size.height),
        "rotation": round(box.angle_deg % 360, DECIMALS),
    }


def _encode_polygon(points: tuple[tuple[float, float], ...], size: Size) -> dict[str, Any] | None:
    if len(points) < 3 or not all(_finite(x, y) for x, y in points):
        return None
    return {"points": [[_percent(x, size.width), _percent(y, size.height)] for x, y in points], "closed": True}


def _percent(pixels: float, whole: float) -> float:
    return round(min(max(pixels / whole * 100.0, 0.0), 100.0), DECIMALS)


def _finite(*numbers: float) -> bool:
    return all(map(math.isfinite, numbers))


def _unit(score: float) -> float:
    return min(max(float(score), 0.0), 1.0) if math.isfinite(score) else 0.0


# --- result -> regions ------------------------------------------------------------------------------


def decode_regions(result: list[Any], config: LabelConfig) -> list[Region]:
    """Regions of a stored result, an annotation or a prompt, in pixels.

    Results that share an id (geometry, labels, text) become one Region; several labels on one region become one Region
    each with the same id; what is not understood comes back as `Raw`.
    """
    regions: list[Region] = []
    parts: dict[str, list[dict[str, Any]]] = {}
    for number, item in enumerate(item for item in result if isinstance(item, dict)):
        parts.setdefault(str(item.get("id") or f"#{number}"), []).append(item)
    for items in parts.values():
        regions += _decode_parts(items, config)
    return regions


def _decode_parts(items: list[dict[str, Any]], config: LabelConfig) -> list[Region]:
    try:
        return _decode_known(items, config)
    except (KeyError, TypeError, ValueError, AttributeError):
        # Not what this control writes: somebody else's region, which travels through untouched.
        return [Region(Raw(item)) for item in items]


def _decode_known(items: list[dict[str, Any]], config: LabelConfig) -> list[Region]:
    shape = next((found for item in items if (found := _decode_shape(item)) is not None), None)
    if shape is None:
        return [Region(Raw(item)) for item in items]
    first = items[0]
    labels = [label for item in items for label in item["value"].get(item["type"], ()) if item["type"] != "textarea"]
    text = next((item["value"]["text"] for item in items if item["type"] == "textarea"), None)
    tag = config.object_named(first["to_name"])
    return [
        Region(
            shape,
            label=label,
            score=next((float(item["score"]) for item in items if item.get("score") is not None), None),
            text="\n".join(text) if isinstance(text, list) else text,
            id=first.get("id"),
            media=MediaKey(tag.field if tag else "", int(first.get("item_index") or 0)),
        )
        for label in (labels or [None])
    ]


def _decode_shape(item: dict[str, Any]) -> Shape | None:
    kind, value = item["type"], item["value"]
    if kind == "choices" or (kind == "textarea" and "x" not in value and "points" not in value):
        return Whole()
    width, height = item["original_width"] / 100.0, item["original_height"] / 100.0
    if "points" in value:
        return Polygon(tuple((float(x) * width, float(y) * height) for x, y in value["points"]))
    if kind.startswith("keypoint"):
        return Point(value["x"] * width, value["y"] * height)
    if kind.startswith(("rectangle", "labels", "textarea")) and "width" in value and "height" in value:
        return _decode_box(value, width, height)
    return None


def _decode_box(value: dict[str, Any], width: float, height: float) -> Box:
    x, y, w, h = value["x"] * width, value["y"] * height, value["width"] * width, value["height"] * height
    angle = float(value.get("rotation") or 0.0)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # the centre lies half a diagonal away from the pivot, turned with the box
    cx, cy = x + (w * cos - h * sin) / 2, y + (w * sin + h * cos) / 2
    return Box((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), angle)
