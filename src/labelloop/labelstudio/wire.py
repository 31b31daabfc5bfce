"""Label Studio's JSON <-> Task, Region, Prediction. The geometry in it is percent, which `percent` reads and writes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import structlog

from labelloop.core.decoding import convert, from_json
from labelloop.core.errors import LabelloopError
from labelloop.core.outlines import outline_area
from labelloop.core.regions import (
    Interval,
    Mask,
    MediaKey,
    Polygon,
    Prediction,
    Raw,
    Region,
    Shape,
    Size,
    Span,
    Track,
    Whole,
)
from labelloop.core.tasks import Annotation, Event, MediaRef, Prompt, Task, TextRef
from labelloop.labelstudio.config import Control, LabelConfig, ObjectTag
from labelloop.labelstudio.labelmap import LabelMap, Target
from labelloop.labelstudio.percent import NO_CANVAS, Canvas, Encode, decode_shape, encoder, fraction, number
from labelloop.labelstudio.validate import sendable
from labelloop.labelstudio.video import draw_track

log = structlog.get_logger(__name__)

LARGEST_ID = 2**63 - 1


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
        return from_json(body or b"{}", dict[str, Any])


def decode_event(body: bytes) -> Event:
    """Decode a webhook body (or the old `/train`). Payload names differ per action; deletions bring bare ids and
    bulk creation brings lists under the singular names. Raises BadRequest."""
    content = decode_object(body)
    project, action = content.get("project"), content.get("action")
    annotations = [*_objects(content.get("annotation")), *_objects(content.get("annotations"))]
    known = [annotation for annotation in annotations if _id(annotation.get("id")) is not None]
    tasks = [*_objects(content.get("task")), *_objects(content.get("tasks"))]
    # each annotation names its task, and their order is what tells which belongs to which
    owners = [annotation.get("task") for annotation in known]
    task_ids = owners if owners and None not in owners else [task.get("id") for task in tasks]
    return Event(
        action=action[:100] if isinstance(action, str) else "",
        project_id=project_id_of(project.get("id") if isinstance(project, dict) else project),
        task_ids=_ids(task_ids),
        annotation_ids=tuple(annotation["id"] for annotation in known),
        updated_at=tuple(moment_of(annotation.get("updated_at")) for annotation in known),
        made_s=made_s_of(project),
    )


def moment_of(value: Any) -> datetime | None:
    """A moment as Label Studio writes it, "2026-11-20T12:03:29.289364Z", in UTC where it names no zone; else None."""
    try:
        found = convert(value, datetime)
    except msgspec.ValidationError:
        return None
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _id(value: Any) -> int | None:
    """What a database could hold as an id: true is no number here, and 64 bits are all there are."""
    return value if type(value) is int and 0 <= value <= LARGEST_ID else None


def _ids(values: list[Any]) -> tuple[int, ...]:
    return tuple(found for value in values if (found := _id(value)) is not None)


def _objects(value: Any) -> list[dict[str, Any]]:
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, dict)]


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest(f"The request body cannot be read: {error}.") from error
    except RecursionError as error:
        raise BadRequest("The request body cannot be read: it is nested too deeply.") from error


FIRST_PROJECT_S = 1_500_000_000
"""July 2017: no project of any Label Studio is older."""


def project_id_of(value: Any) -> int | None:
    """`"7.1795176116"` (project and its creation time), `"7"` or `7` -> 7; anything else None."""
    if not isinstance(value, str):
        return _id(value)
    head = value.partition(".")[0]
    return int(head) if head.isascii() and head.isdigit() and len(head) < 19 else None


def made_s_of(project: Any) -> int | None:
    """When a project was made, unix seconds: of "7.1795176116", as calls name it, or of its row. In calls the moment is
    that of a clock in Label Studio's zone. None where it is not said, as in "7.1", which people write by hand."""
    if isinstance(project, str):
        tail = project.partition(".")[2]
        said = int(tail) if tail.isascii() and tail.isdigit() and len(tail) < 12 else 0
    else:
        made = moment_of(project.get("created_at")) if isinstance(project, dict) else None
        said = int(made.timestamp()) if made is not None else 0
    return said if said >= FIRST_PROJECT_S else None


def tasks_of(request: PredictRequest) -> list[Task]:
    """The request's tasks in order; one that is null or has no data becomes a Task without data, never a gap. An id
    that is no 64-bit number is None."""
    project_id = project_id_of(request.project)
    return [
        Task(
            id=_id(item.id) if item is not None else None,
            data=item.data if item is not None and isinstance(item.data, dict) else {},
            project_id=project_id if project_id is not None or item is None else project_id_of(item.project),
        )
        for item in request.tasks
    ]


def with_whole(tasks: Sequence[Task], body: bytes) -> list[Task]:
    """The tasks of a `/predict` body that was decoded, each with all that it brings."""
    rows = decode_object(body).get("tasks") or []
    return [
        msgspec.structs.replace(task, whole=row) if isinstance(row, dict) else task
        for task, row in zip(tasks, rows, strict=True)
    ]


def media_refs(task: Task, objects: tuple[ObjectTag, ...]) -> list[MediaRef]:
    """One reference to each picture or text that `objects` show of this task, in their order: several may show the same
    field. A field that is absent gives a reference with an empty URI, so that its absence is an error of this task and
    not a silence."""
    refs: dict[MediaKey, MediaRef] = {}
    for tag in objects:
        value = task.data.get(tag.field)
        pages = value if tag.is_list and isinstance(value, list) else [value]
        for index, page in enumerate(pages):
            key = MediaKey(tag.field, index)
            if key not in refs or not refs[key].uri:  # a list seen through value="$pages" is no picture
                refs[key] = _ref(tag, page if isinstance(page, str) else "", key, task)
    return list(refs.values())


def _ref(tag: ObjectTag, uri: str, key: MediaKey, task: Task) -> MediaRef:
    if not tag.shows_texts:
        return MediaRef(uri, key, task.id, task.project_id)
    markup = tag.tag.lower() == "hypertext"
    return TextRef(uri, key, task.id, task.project_id, by_url=tag.by_url, markup=markup)


def prompt_of(request: PredictRequest, config: LabelConfig) -> Prompt | None:
    """What the annotator drew with a smart tool; None when this is no interactive request."""
    context = (request.params or {}).get("context")
    if not isinstance(context, dict):
        return None
    result = _objects(context.get("result"))
    return Prompt(
        include=tuple(decode_regions([item for item in result if item.get("is_positive") is not False], config)),
        exclude=tuple(decode_regions([item for item in result if item.get("is_positive") is False], config)),
        context=context,
    )


# --- regions -> result ------------------------------------------------------------------------------


def encode_prediction(prediction: Prediction, label_map: LabelMap, *, task_id: int | None) -> dict[str, Any]:
    """One item of `results`. What Label Studio would not take (PROTOCOL 5) is left out. Ids are unique in the item, and
    the same for the same answer."""
    result, problems = sendable(_encode_regions(prediction, label_map, task_id), label_map.config)
    if problems:
        log.warning("regions are left out of an answer", task=task_id, regions=len(problems), because=problems[0])
    item: dict[str, Any] = {
        "result": result,
        "score": whole_score(prediction.score),
        "model_version": prediction.model,
    }
    if prediction.error is not None:
        item["error"] = prediction.error.message
    return item


def whole_score(score: float) -> float:
    """The score of a prediction within [0, 1], with nine digits: tasks are sorted by it, and four digits as a region
    has would tie half of 5,000. What is no number is 0."""
    return round(min(max(score, 0.0), 1.0), 9) if math.isfinite(score) else fraction(score)


def encode_skip(prediction: Prediction) -> dict[str, Any]:
    """An item without `result`: Label Studio stores nothing for this task and asks again later."""
    return {
        "error": prediction.error.message if prediction.error else "",
        "score": 0.0,
        "model_version": prediction.model,
    }


def _encode_regions(prediction: Prediction, label_map: LabelMap, task_id: int | None) -> list[dict[str, Any]]:
    """This runs for hundreds of regions a task and thousands of tasks: what many regions share is made once."""
    result: list[dict[str, Any]] = []
    pens = _Pens(label_map, prediction.sizes)
    prefix, lowest = "", label_map.lowest_threshold
    chosen: dict[tuple[str, str, int], dict[str, Any]] = {}
    for region in label_map.best_choices(prediction.regions):
        shape, score = region.shape, region.score
        if type(shape) is Raw:
            result += _as_sent(shape)
            continue
        if score is not None and score < lowest:
            continue
        for place, (threshold, label, pen) in enumerate(pens.of(region)):
            if score is None or score >= threshold:
                prefix = prefix or _id_prefix(prediction, task_id)
                name = region.id if region.id and place == 0 else f"{prefix}{len(result)}"
                if type(shape) is Whole:
                    result += pen.choose(region, label, name, chosen)
                elif type(shape) is Mask and pen.outlines:
                    result += _draw_parts(region, shape, label, name, pen)
                else:
                    result += pen.draw(region, label, name)
    return result


SMALLEST_PART = 4
"""Squared pixels: parts of a mask with less are specks, and nobody wants to delete them one by one."""


def _draw_parts(region: Region, mask: Mask, label: str | None, name: str, pen: _Pen) -> list[dict[str, Any]]:
    """A mask for a control that draws outlines: one region for each part, its holes filled."""
    result: list[dict[str, Any]] = []
    outlines = [outer for outer, *_ in mask.parts if outline_area(outer) >= SMALLEST_PART]
    for place, outline in enumerate(outlines):
        part = msgspec.structs.replace(region, shape=Polygon(outline))
        result += pen.draw(part, label, f"{name}.{place}" if place else name)
    return result


def _id_prefix(prediction: Prediction, task_id: int | None) -> str:
    """From the task and all that is drawn on it: two answers about one picture, as an annotator gets from two clicks of
    a smart tool, must not name different regions alike."""
    shapes = [region.shape for region in prediction.regions if type(region.shape) is not Raw]
    content = msgspec.msgpack.encode((task_id, shapes), enc_hook=float)  # float: numbers may be NumPy's
    return hashlib.blake2b(content, digest_size=4).hexdigest() + "-"


def _as_sent(shape: Raw) -> list[dict[str, Any]]:
    """Somebody else's result as Label Studio will read it, in a list; nothing where it is not JSON."""
    try:
        return [msgspec.json.decode(msgspec.json.encode(shape.result))]
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        log.warning("a result is left out of an answer", because=f"it is not JSON: {error}")
        return []


class _Pen(msgspec.Struct):
    """Draws regions with one control on one picture. `named` is what all its results say alike; `bare` is who draws the
    geometry where another control names it, `texts` who takes transcriptions. With `outlines` it draws
    those, of which a mask may need several."""

    encode: Encode
    canvas: Canvas
    labels_key: str
    named: dict[str, Any]
    bare: dict[str, str] | None
    texts: dict[str, str] | None
    several: bool
    outlines: bool

    def draw(self, region: Region, label: str | None, name: str) -> list[dict[str, Any]]:
        """The results that draw one region: one, or up to three that share an id for a bare geometry with label and
        text; none where nothing is left to draw."""
        geometry = self.encode(region.shape, self.canvas)
        if geometry is None:
            return []
        item = {**self.named, "id": name, "value": geometry}
        if region.score is not None:
            item["score"] = fraction(region.score)
        items = [item]
        if self.bare is not None:
            items.insert(0, {**item, **self.bare, "value": geometry.copy()})
        if self.texts is not None and region.text is not None:
            items.append({**item, **self.texts, "value": {**geometry, "text": [region.text]}})
        if label is not None:
            geometry[self.labels_key] = [label]
        if type(region.shape) is Span:
            geometry["text"] = region.text or ""
        return items

    def choose(
        self, region: Region, label: str | None, name: str, chosen: dict[tuple[str, str, int], dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """All that one control says about one item is one result, `chosen` those that are begun: the region joins it
        or, where only one answer is possible and a better one is there, goes nowhere."""
        key = (self.named["from_name"], self.named["to_name"], self.named.get("item_index", 0))
        begun = chosen.get(key)
        if begun is None:
            items = self.draw(region, label, name)
            chosen[key] = items[0]
            return items
        choices = begun["value"].get(self.labels_key, [])
        if self.several and label is not None and label not in choices:
            choices.append(label)
        return []


class _Pens:
    """The pens for one prediction, each made when the first region needs it."""

    def __init__(self, label_map: LabelMap, sizes: Mapping[MediaKey, Size]) -> None:
        self._label_map = label_map
        self._sizes = sizes
        self._of_class: dict[tuple[str | None, type, MediaKey], list[tuple[float, str | None, _Pen]]] = {}
        self._of_place: dict[tuple[str, str, str, type, MediaKey], _Pen | None] = {}

    def of(self, region: Region) -> list[tuple[float, str | None, _Pen]]:
        """Threshold, label and pen for every place where regions of this class, type of shape and picture go."""
        key = (region.label, type(region.shape), region.media)
        found = self._of_class.get(key)
        if found is None:
            found = self._of_class[key] = [
                (target.threshold, target.label, pen)
                for target in self._label_map.targets_for(region.label, type(region.shape))
                if (pen := self._of_target(target, type(region.shape), region.media)) is not None
            ]
        return found

    def _of_target(self, target: Target, shape: type[Shape], media: MediaKey) -> _Pen | None:
        holder = target.label_control or target.control
        key = (target.control.name, holder.name, target.object.name, shape, media)
        if key not in self._of_place:
            self._of_place[key] = _pen(target, shape, media, self._sizes.get(media))
        return self._of_place[key]


def _pen(target: Target, shape: type[Shape], media: MediaKey, size: Size | None) -> _Pen | None:
    """None where this cannot be drawn: on another picture, by this control, or on a picture whose size is not known.
    Two objects may show one field; a page beyond the first is only on those that show a list."""
    if target.object.field != media.field or (media.page and not target.object.is_list):
        return None
    if shape is Track:
        return _film_pen(target, size)
    encode = encoder(shape, target.control.tag)
    has_size = size is not None and size.width > 0 and size.height > 0
    if encode is None or not (has_size or shape in (Whole, Span, Interval)):
        return None
    shared: dict[str, Any] = {"to_name": target.object.name}
    if size is not None and has_size:
        shared |= {"original_width": size.width, "original_height": size.height, "image_rotation": 0}
    if target.object.is_list:
        shared["item_index"] = media.page
    holder, texts = target.label_control or target.control, target.text_control
    return _Pen(
        encode=encode,
        canvas=Canvas.of(size) if size is not None and has_size else NO_CANVAS,
        labels_key=holder.type,
        named=shared | _signed(holder),
        bare=None if target.label_control is None else _signed(target.control),
        texts=None if texts is None or shape is Span else _signed(texts),
        several=target.control.several,
        outlines=target.control.tag.startswith("Polygon"),
    )


def _film_pen(target: Target, size: Size | None) -> _Pen | None:
    """A track is one result, which names its labels itself, whoever offers them."""
    if size is None or min(size) <= 0:
        return None
    named = {"to_name": target.object.name, "original_width": size.width, "original_height": size.height}
    return _Pen(
        encode=draw_track,
        canvas=Canvas.of(size),
        labels_key="labels",
        named=named | {"origin": "prediction"} | _signed(target.control),
        bare=None,
        texts=None,
        several=False,
        outlines=False,
    )


def _signed(control: Control) -> dict[str, str]:
    return {"from_name": control.name, "type": control.type}


# --- result -> regions ------------------------------------------------------------------------------


def decode_regions(result: Any, config: LabelConfig) -> list[Region]:
    """Regions of a stored result, an annotation or a prompt, in pixels.

    Results that share an id (geometry, labels, text) become one Region; several labels on one region become one Region
    each with the same id; what is not understood comes back as `Raw`. Takes whatever JSON brings.
    """
    regions: list[Region] = []
    parts: dict[str, list[dict[str, Any]]] = {}
    for index, item in enumerate(_objects(result)):
        parts.setdefault(name_of(item) or f"#{index}", []).append(item)
    for items in parts.values():
        regions += _decode_parts(items, config)
    return regions


def decode_annotation(row: Mapping[str, Any], config: LabelConfig, *, task_id: int) -> Annotation:
    """An annotation as Label Studio's task list and export write it. Takes whatever JSON brings."""
    author = row.get("completed_by")
    result = [one for one in _objects(row.get("result")) if one.get("type") != "relation"]  # between regions, no region
    return Annotation(
        id=_id(row.get("id")) or 0,
        task_id=task_id,
        regions=tuple(decode_regions(result, config)),
        sizes=_sizes(result, config),
        author_id=_id(author.get("id") if isinstance(author, dict) else author),
        updated_at=moment_of(row.get("updated_at")),
        ground_truth=row.get("ground_truth") is True,
        skipped=row.get("was_cancelled") is True,
    )


def _sizes(result: Any, config: LabelConfig) -> dict[MediaKey, Size]:
    """The pictures that results name with their size; the first word on each counts."""
    found: dict[MediaKey, Size] = {}
    for item in _objects(result):
        try:
            tag = config.objects_by_name.get(_text(item.get("to_name")))
            size = Size(round(number(item.get("original_width"))), round(number(item.get("original_height"))))
            if min(size) > 0:
                found.setdefault(MediaKey(tag.field if tag else "", _page(item.get("item_index"))), size)
        except (TypeError, ValueError):
            continue  # not about a place in a picture
    return found


def name_of(item: Mapping[str, Any]) -> str | None:
    """The id of a result's region, None without one; some tools write numbers."""
    name = item.get("id")
    return str(name) if _id(name) is not None else name if isinstance(name, str) and name else None


def _decode_parts(items: list[dict[str, Any]], config: LabelConfig) -> list[Region]:
    try:
        return _decode_known(items, config)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        # Not what this control writes: somebody else's region, which travels through untouched.
        return [Region(Raw(item)) for item in items]


def _decode_known(items: list[dict[str, Any]], config: LabelConfig) -> list[Region]:
    shape = next((found for item in items if (found := _decode_shape(item)) is not None), None)
    if shape is None:
        return [Region(Raw(item)) for item in items]
    first = items[0]
    labels: list[str | None] = [label for i in items if i["type"] != "textarea" for label in _lines(i, i["type"])]
    texts = next((_lines(i, "text") for i in items if i["type"] == "textarea" or type(shape) is Span), None)
    tag = config.objects_by_name.get(_text(first["to_name"]))
    media = MediaKey(tag.field if tag else "", _page(first.get("item_index")))
    score = next((known for item in items if (known := _score(item)) is not None), None)
    text = None if texts is None else "\n".join(texts)
    name = name_of(first)
    return [Region(shape, label=label, score=score, text=text, id=name, media=media) for label in labels or [None]]


def _decode_shape(item: dict[str, Any]) -> Shape | None:
    kind, value = item["type"], item["value"]
    if kind == "choices" or (kind == "textarea" and "x" not in value and "points" not in value):
        return Whole()
    if kind == "timelinelabels":
        (shown,) = value["ranges"]
        return Interval(_place(shown["start"]), _place(shown["end"]))
    if kind == "labels" and "text" in value:  # of a <Text>; in a recording places are seconds, in a <HyperText> paths
        return Span(_place(value["start"]), _place(value["end"]))
    return decode_shape(kind, value, (item["original_width"], item["original_height"]))


def _lines(item: dict[str, Any], key: str) -> list[str]:
    """A list of texts in the item's value; one text alone is a list of one, none is empty. Raises TypeError."""
    value = item["value"].get(key)
    return [_text(value)] if isinstance(value, str) else [_text(line) for line in value or ()]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _place(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("no place in a text")
    return value


def _page(value: Any) -> int:
    page = number(value) if value is not None else 0.0
    if page < 0 or page != int(page):
        raise ValueError("no page")
    return int(page)


def _score(item: dict[str, Any]) -> float | None:
    """A score that is no number says nothing, and the region is as good as without it."""
    try:
        return number(item.get("score"))
    except (TypeError, ValueError):
        return None
