"""Label Studio's JSON both ways, on the recorded payloads."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from labelloop.core.outlines import corners
from labelloop.core.regions import Box, ItemError, MediaKey, Point, Polygon, Prediction, Raw, Region, Size, Whole
from labelloop.core.tasks import Event, Task
from labelloop.labelstudio import wire
from labelloop.labelstudio.clip import clip
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.labelmap import build_label_map
from labelloop.labelstudio.validate import problem_with

CONFIG = parse_config(
    '<View><Image name="img" value="$photo"/>'
    '<RectangleLabels name="boxes" toName="img"><Label value="Car"/></RectangleLabels>'
    '<KeyPointLabels name="kp" toName="img"><Label value="Car"/></KeyPointLabels></View>'
)
LABELS = build_label_map(CONFIG, ["car"], task="detect")
PHOTO = MediaKey("photo")
SIZE = Size(200, 100)


def encode(*regions: Region, score: float = 0.5) -> list[dict[str, Any]]:
    prediction = Prediction(regions, {PHOTO: SIZE}, "m@1", score)
    item = wire.encode_prediction(prediction, LABELS, task_id=3)
    json.dumps(item, allow_nan=False)
    return item["result"]


def car(shape: Any, score: float = 0.9) -> Region:
    return Region(shape, "car", score, media=PHOTO)


@pytest.fixture(scope="module")
def recordings(shared: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in (shared / "label-studio" / "recordings").glob("*.json")}


@pytest.mark.parametrize(
    ("box", "value"),
    [
        (Box((10, 20, 110, 70)), {"x": 5, "y": 20, "width": 50, "height": 50, "rotation": 0}),
        (Box((-50, -10, 250, 50)), {"x": 0, "y": 0, "width": 100, "height": 50, "rotation": 0}),
        (Box((80, 30, 120, 70), 90), {"x": 60, "y": 30, "width": 20, "height": 40, "rotation": 90}),
        (Box((80, 30, 120, 70), -90), {"x": 40, "y": 70, "width": 20, "height": 40, "rotation": 270}),
    ],
    ids=[
        "plain",
        "clipped to the picture",
        "turned right: pivot at the top right",
        "turned left: pivot at the bottom left",
    ],
)
def test_percent(box: Box, value: dict[str, float]) -> None:
    (item,) = encode(car(box))
    assert {key: item["value"][key] for key in value} == pytest.approx(value, abs=1e-3)
    assert item["value"]["rectanglelabels"] == ["Car"]
    assert (item["original_width"], item["original_height"]) == SIZE


@pytest.mark.parametrize("angle", [0, 15, 90, 200, 359.5])
def test_a_box_survives_the_round_trip(angle: float) -> None:
    box = Box((60, 30, 120, 70), angle)
    (back,) = wire.decode_regions(encode(car(box)), CONFIG)
    assert isinstance(back.shape, Box)
    assert back.shape.xyxy == pytest.approx(box.xyxy, abs=1e-3)
    assert back.shape.angle_deg == pytest.approx(angle)
    assert (back.label, back.score, back.media) == ("Car", 0.9, PHOTO)


@pytest.mark.parametrize(
    "box",
    [Box((10, 10, 10, 50)), Box((-20, 0, -5, 50)), Box((math.nan, 0, 5, 5)), Box((0, 0, math.inf, 5), 0), Box((0, 0, 5, 5), math.nan)],
    ids=["no width", "outside", "NaN", "infinite", "NaN angle"],
)  # fmt: skip
def test_what_cannot_be_drawn_is_left_out_alone(box: Box) -> None:
    assert len(encode(car(box), car(Box((10, 10, 50, 50))))) == 1


def test_what_has_no_label_or_no_confidence_is_left_out() -> None:
    assert encode(Region(Box((1, 1, 9, 9)), "dog", 0.9, media=PHOTO), car(Box((1, 1, 9, 9)), 0.29)) == []


RECTANGLE, POLYGON = "RectangleLabels", "PolygonLabels"


@pytest.mark.parametrize(
    ("tags", "shape"),
    [
        ((RECTANGLE, POLYGON), Box((0, 0, 0.00001, 50))),
        ((RECTANGLE, POLYGON), Box((199.9999999, 0, 250, 50))),
        ((RECTANGLE, POLYGON), Polygon(((-5, 0), (-9, 9), (-1, 3)))),
        ((RECTANGLE, POLYGON), Polygon(((0, -5), (100, -9), (200, -1)))),
        ((RECTANGLE, POLYGON), Polygon(((10, 10), (20, math.nan), (40, 10)))),
        ((RECTANGLE, POLYGON), Polygon(((10, 10), (20, -math.inf), (40, math.inf)))),
        ((RECTANGLE, POLYGON), Polygon(())),
        ((POLYGON,), Polygon(((10, 10), (20, 20), (40, 40)))),  # the box around them has an area
        ((POLYGON,), Polygon(((10, 10), (20, 20)))),
    ],
    ids=[
        "rounds to no width",
        "rounds to no width at the border",
        "outside",
        "squashed onto the border",
        "NaN",
        "infinite",
        "nothing",
        "a line",
        "two points",
    ],
)
def test_what_has_no_area_is_left_out(tags: tuple[str, ...], shape: Any) -> None:
    for tag in tags:
        controls = f'<{tag} name="t" toName="img"><Label value="Car"/></{tag}>'
        assert len(encode_on(controls, car(shape), car(Box((1, 1, 9, 9))))) == 1, tag


def encode_on(controls: str, *regions: Region) -> list[dict[str, Any]]:
    config = parse_config(f'<View><Image name="img" value="$photo"/>{controls}</View>')
    labels = build_label_map(config, ["car"], task="ocr")
    return wire.encode_prediction(Prediction(regions, {PHOTO: SIZE}), labels, task_id=1)["result"]


def test_an_outline_is_cut_off_at_the_border_without_bending() -> None:
    controls = '<PolygonLabels name="p" toName="img"><Label value="Car"/></PolygonLabels>'
    (item,) = encode_on(controls, car(Polygon(((-100, 50), (100, -50), (100, 150)))))
    points = {tuple(point) for point in item["value"]["points"]}
    assert points == {(0, 0), (0, 100), (50, 0), (50, 100)}, "the slanting edges meet the corners of the picture"


def test_ids_are_unique_and_the_same_next_time() -> None:
    first = [item["id"] for item in encode(*[car(Box((1, 1, 9 + n, 9))) for n in range(50)])]
    again = [item["id"] for item in encode(*[car(Box((1, 1, 9 + n, 9))) for n in range(50)])]
    assert len(set(first)) == 50
    assert first == again


def test_ids_are_unique_across_pictures_and_answers() -> None:
    """An annotator may take over suggestions of two answers: one id for two regions would replace the first."""
    other = MediaKey("other")
    config = parse_config(
        '<View><Image name="a" value="$photo"/><Image name="b" value="$other"/>'
        '<RectangleLabels name="r" toName="a,b"><Label value="car"/></RectangleLabels></View>'
    )
    labels = build_label_map(config, ["car"])

    def ids(task_id: int, *corners: float) -> list[str]:
        regions = tuple(Region(Box((1, 1, x, 9)), "car", 0.9, media=media) for x in corners for media in (PHOTO, other))
        prediction = Prediction(regions, {PHOTO: SIZE, other: SIZE})
        return [item["id"] for item in wire.encode_prediction(prediction, labels, task_id=task_id)["result"]]

    everything = [*ids(1, 20, 30), *ids(2, 20, 30), *ids(1, 40), *ids(1, 40, 20)]
    assert len(everything) == len(set(everything)) == 14


@pytest.mark.parametrize(
    ("score", "sent"), [(0.5, 0.5), (7, 1.0), (-1, 0.0), (math.nan, 0.0), (math.inf, 1.0), (1 / 3, 0.333333333)]
)
def test_scores_stay_in_their_range(score: float, sent: float) -> None:
    assert wire.encode_prediction(Prediction(score=score, model="m"), LABELS, task_id=1)["score"] == sent


def test_a_failed_task_is_an_item_like_the_others() -> None:
    failed = Prediction(model="m@1", error=ItemError("media-not-found", "gone"))
    assert wire.encode_prediction(failed, LABELS, task_id=1) == {
        "result": [], "score": 0.0, "model_version": "m@1", "error": "gone",
    }  # fmt: skip
    assert "result" not in wire.encode_skip(failed)


def test_text_with_a_box_is_three_results_with_one_id(recordings: dict[str, Any]) -> None:
    config = parse_config(recordings["predict_ocr"]["body"]["label_config"])
    labels = build_label_map(config, ["Text"], task="ocr")
    key = MediaKey("ocr")
    region = Region(Box((10, 10, 90, 30)), "Text", 0.8, text="hello", media=key)
    result = wire.encode_prediction(Prediction((region,), {key: SIZE}), labels, task_id=1)["result"]
    assert [(item["from_name"], item["type"]) for item in result] == [
        ("bbox", "rectangle"), ("label", "labels"), ("transcription", "textarea"),
    ]  # fmt: skip
    assert len({item["id"] for item in result}) == 1
    assert result[2]["value"]["text"] == ["hello"]
    (back,) = wire.decode_regions(result, config)
    assert (back.label, back.text) == ("Text", "hello")
    assert isinstance(back.shape, Box)


def test_two_images_of_one_field_are_one_picture_with_a_box_each() -> None:
    config = parse_config(
        '<View><Image name="left" value="$photo"/><Image name="right" value="$photo"/>'
        '<RectangleLabels name="l" toName="left"><Label value="car"/></RectangleLabels>'
        '<RectangleLabels name="r" toName="right"><Label value="car"/></RectangleLabels></View>'
    )
    labels = build_label_map(config, ["car"])
    (ref,) = wire.media_refs(Task(1, {"photo": "p"}), labels.fields)
    region = Region(Box((0, 0, 9, 9)), "car", 0.9, media=ref.key)
    result = wire.encode_prediction(Prediction((region,), {ref.key: SIZE}), labels, task_id=1)["result"]
    assert [(item["from_name"], item["to_name"]) for item in result] == [("l", "left"), ("r", "right")]
    assert len({item["id"] for item in result}) == 2


def test_a_list_seen_as_one_picture_does_not_hide_its_pages() -> None:
    config = parse_config(
        '<View><Image name="one" value="$pages"/><Image name="all" valueList="$pages"/>'
        '<RectangleLabels name="r" toName="one,all"><Label value="car"/></RectangleLabels></View>'
    )
    labels = build_label_map(config, ["car"])
    refs = wire.media_refs(Task(1, {"pages": ["p0", "p1"]}), labels.fields)
    assert [(ref.uri, ref.key.page) for ref in refs] == [("p0", 0), ("p1", 1)]
    region = Region(Box((0, 0, 9, 9)), "car", 0.9, media=refs[1].key)
    (item,) = wire.encode_prediction(Prediction((region,), {refs[1].key: SIZE}), labels, task_id=1)["result"]
    assert (item["to_name"], item["item_index"]) == ("all", 1)


def test_pages_say_which_page() -> None:
    config = parse_config('<View><Image name="d" valueList="$pages"/><RectangleLabels name="r" toName="d"><Label value="a"/></RectangleLabels></View>')  # fmt: skip
    labels = build_label_map(config, ["a"])
    refs = wire.media_refs(Task(1, {"pages": ["p0", "p1"]}), labels.fields)
    assert [ref.key for ref in refs] == [MediaKey("pages", 0), MediaKey("pages", 1)]
    region = Region(Box((0, 0, 9, 9)), "a", 0.9, media=refs[1].key)
    (item,) = wire.encode_prediction(Prediction((region,), {refs[1].key: SIZE}), labels, task_id=1)["result"]
    assert item["item_index"] == 1


@pytest.mark.parametrize(
    "data", [{}, {"photo": None}, {"photo": 7}, {"photo": ["a"]}], ids=["absent", "null", "a number", "a list"]
)
def test_a_field_that_is_no_picture_is_an_error_of_its_task(data: dict[str, Any]) -> None:
    (ref,) = wire.media_refs(Task(1, data), LABELS.fields)
    assert ref.uri == ""


@pytest.mark.parametrize(
    ("value", "project"),
    [("7.1795176116", 7), ("7", 7), (7, 7), (None, None), ("", None), ("x.1", None), (True, None), ("9" * 30, None), ([], None)],
)  # fmt: skip
def test_project_ids(value: Any, project: int | None) -> None:
    assert wire.project_id_of(value) == project


def test_every_recorded_predict_request_is_read(recordings: dict[str, Any]) -> None:
    names = [name for name in recordings if name.startswith("predict_")]
    assert len(names) >= 10
    for name in names:
        body = json.dumps(recordings[name]["body"]).encode()
        request = wire.decode_predict(body)
        tasks = wire.tasks_of(request)
        assert [task.id for task in tasks] == [task["id"] for task in recordings[name]["body"]["tasks"]], name
        config = parse_config(request.label_config or "")
        assert (wire.prompt_of(request, config) is not None) == ("interactive" in name), name


def test_a_click_is_in_pixels_and_an_excluding_one_is_apart(recordings: dict[str, Any]) -> None:
    body = recordings["predict_interactive_from_ui_keypoint_second_click"]["body"]
    request = wire.decode_predict(json.dumps(body).encode())
    prompt = wire.prompt_of(request, parse_config(body["label_config"]))
    assert prompt is not None
    (first,) = prompt.include
    (second,) = prompt.exclude
    assert isinstance(first.shape, Point)
    assert isinstance(second.shape, Point)
    source = body["params"]["context"]["result"][0]
    assert first.shape.x == pytest.approx(source["value"]["x"] / 100 * source["original_width"])


@pytest.mark.parametrize(
    "context", [{}, {"result": None}, {"result": [1, None, {}]}, {"result": [{"type": "keypointlabels", "value": {}}]}]
)
def test_an_odd_prompt_is_no_reason_to_fail(context: dict[str, Any]) -> None:
    request = wire.decode_predict(json.dumps({"tasks": [], "params": {"context": context}}).encode())
    prompt = wire.prompt_of(request, CONFIG)
    assert prompt is not None
    assert all(isinstance(region.shape, Raw) for region in prompt.include)


def corner_set(box: Box) -> list[tuple[float, float]]:
    return sorted((round(x, 3), round(y, 3)) for x, y in corners(box))


@pytest.mark.parametrize("angle", [0.00001, 1, 30, 45, 89.9999, 90, 135, 180, 200, 270, 300, 359.99999, -30])
def test_a_turned_box_stays_where_it_is_near_every_border(angle: float) -> None:
    """The corner from which Label Studio measures may lie outside: another one is taken. Tall and wide pictures, for
    a side in percent of the height may be too long in percent of the width."""
    for size in (Size(200, 100), Size(100, 300)):
        middle = (size.width / 2, size.height / 2)
        for x in (3.0, middle[0], size.width - 3.0):
            for y in (3.0, middle[1], size.height - 3.0):
                box = Box((x - 20, y - 4, x + 20, y + 4), angle)
                prediction = Prediction((car(box),), {PHOTO: size})
                (item,) = wire.encode_prediction(prediction, LABELS, task_id=1)["result"]
                value = item["value"]
                assert problem_with(item, CONFIG) is None
                (back,) = wire.decode_regions([item], CONFIG)
                assert isinstance(back.shape, Box)
                if value["rotation"]:
                    assert corner_set(back.shape) == pytest.approx(np.array(corner_set(box)), abs=0.002)
                else:
                    inside = clip(corners(box), size)
                    assert back.shape.xyxy == pytest.approx(bounds(inside), abs=0.01), "what remains in the picture"


def bounds(points: Sequence[tuple[float, float]]) -> tuple[float, float, float, float]:
    xs, ys = zip(*points, strict=True)
    return (min(xs), min(ys), max(xs), max(ys))


def test_a_turned_box_without_a_corner_in_the_picture_is_the_box_around_what_is_seen() -> None:
    (item,) = encode(car(Box((-100, 40, 300, 60), 10)))
    value = item["value"]
    assert (value["x"], value["width"], value["rotation"]) == (0, 100, 0)
    assert 20 < value["y"] < 30
    assert 70 < value["y"] + value["height"] < 80


NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 5, 1.5, -0.0, 1e308, -1e308, 10**300, -(10**300), 2**63, 2**64, "", "x", "7", "1e400", "nan",
    [], {}, [[]], [None], [5], [[[[[1]]]]], [{}], {"id": 1}, {"result": 5}, [1, "x", None, {}, []], "\u0000", "\u00e9" * 300,
)  # fmt: skip

PROMPT: dict[str, Any] = {
    "id": "a", "type": "rectanglelabels", "from_name": "boxes", "to_name": "img", "is_positive": True, "item_index": 0,
    "original_width": 200, "original_height": 100, "score": 0.5,
    "value": {"x": 1, "y": 1, "width": 5, "height": 5, "rotation": 3, "rectanglelabels": ["Car"], "points": [[1, 1], [2, 3], [4, 4]], "text": ["t"]},
}  # fmt: skip


def spoilt(value: Any) -> Iterator[Any]:
    """The same JSON with every part in it, one at a time, replaced by something nasty."""
    yield from NASTY
    pairs: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    for key, inner in pairs:
        for bad in spoilt(inner):
            copy = value.copy()
            copy[key] = bad
            yield copy


@pytest.mark.parametrize(
    "kind", ["rectanglelabels", "keypointlabels", "polygonlabels", "choices", "textarea", "labels"]
)
@pytest.mark.parametrize("dropped", [(), ("points",)], ids=str)
def test_nothing_but_bad_request_comes_of_a_prompt(kind: str, dropped: tuple[str, ...]) -> None:
    value = {key: inner for key, inner in PROMPT["value"].items() if key not in dropped}
    prompt = {**PROMPT, "type": kind, "value": value | {kind: ["Car"]}}
    labels = build_label_map(CONFIG, ["car", "Car"])
    for context in spoilt({"result": [prompt]}):
        request = wire.decode_predict(json.dumps({"tasks": [], "params": {"context": context}}).encode())
        found = wire.prompt_of(request, CONFIG)
        regions = (*found.include, *found.exclude) if found else ()
        for region in regions:
            assert isinstance(region.shape, Raw) or all(map(math.isfinite, numbers_in(region))), context
            assert isinstance(region.label, str | None)
            assert isinstance(region.text, str | None)
        item = wire.encode_prediction(Prediction(regions, {PHOTO: SIZE}), labels, task_id=1)
        json.dumps(item, allow_nan=False)


def numbers_in(value: Any) -> Iterator[float]:
    """All numbers in what msgspec makes of it."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, msgspec.Struct):
        yield from numbers_in(msgspec.structs.astuple(value))
    elif isinstance(value, tuple | list):
        for inner in value:
            yield from numbers_in(inner)


def test_nothing_but_bad_request_comes_of_any_body() -> None:
    predict = {
        "tasks": [{"id": 1, "data": {"photo": "p"}, "project": 1}],
        "project": "1.2",
        "label_config": "",
        "params": {},
    }
    setup = {"project": "1.2", "schema": "", "hostname": "", "access_token": ""}
    event = {
        "action": "X",
        "project": {"id": 1},
        "task": {"id": 1},
        "tasks": [{"id": 1}],
        "annotation": {"id": 1, "task": 1},
    }
    read, refused = 0, 0
    for base in (predict, setup, event):
        for content in spoilt(base):
            body = json.dumps(content).encode()
            for decode in (decode_all_of_predict, wire.decode_setup, wire.decode_event, wire.decode_object):
                try:
                    decode(body)
                    read += 1
                except wire.BadRequest:
                    refused += 1
    assert read > 1000
    assert refused > 100


def decode_all_of_predict(body: bytes) -> None:
    request = wire.decode_predict(body)
    for task in wire.tasks_of(request):
        assert task.id is None or (type(task.id) is int and -(2**63) <= task.id < 2**63)
        wire.media_refs(task, LABELS.fields)
    wire.prompt_of(request, CONFIG)


@pytest.mark.parametrize(
    "body",
    [
        b'{"tasks": [], "x": 1e400}', b'{"tasks": [], "project": ' + b"9" * 5000 + b"}", b'{"params": {"x": 1e999}}',
        b'{"project": "\xff"}', b'{"project": "\\ud800"}', b'{"x": NaN}', b"\xef\xbb\xbf{}",
        b'{"project": ' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"x": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001,
        b'{"params": {"context": {"result": [{"score": 1e400}]}}}',
    ],
    ids=lambda body: repr(body[:30]),
)  # fmt: skip
@pytest.mark.parametrize("decode", [wire.decode_predict, wire.decode_setup, wire.decode_event, wire.decode_object])
def test_bodies_that_json_readers_stumble_over_are_refused_or_read(body: bytes, decode: Any) -> None:
    with contextlib.suppress(wire.BadRequest):
        decode(body)


@pytest.mark.parametrize(
    ("sent", "known"),
    [(3, 3), (0, 0), (2**63 - 1, 2**63 - 1), (2**63, None), (-(2**63) - 1, None), (10**30, None), (True, None), (1.0, None), ("3", None), ([3], None)],
)  # fmt: skip
def test_ids_that_no_database_holds_are_none(sent: Any, known: int | None) -> None:
    request = wire.decode_predict(json.dumps({"tasks": [{"id": sent, "data": {}}]}).encode())
    assert [task.id for task in wire.tasks_of(request)] == [known]
    event = wire.decode_event(json.dumps({"task": {"id": sent}, "annotation": {"id": sent}}).encode())
    assert event.task_ids == event.annotation_ids == (() if known is None else (known,))


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"tasks": {}}', b'{"tasks": ["x"]}', b'{"label_config": 7}'])
def test_what_label_studio_never_sends_is_refused(body: bytes) -> None:
    with pytest.raises(wire.BadRequest, match="request body"):
        wire.decode_predict(body)


def test_unknown_fields_and_gaps_in_tasks_are_no_reason_to_fail() -> None:
    body = {"tasks": [None, {"id": "x"}, {"id": 3, "data": "no"}, {"id": 4, "data": {"a": 1}, "new": {}}], "later": 1}
    tasks = wire.tasks_of(wire.decode_predict(json.dumps(body).encode()))
    assert [(task.id, task.data) for task in tasks] == [(None, {}), (None, {}), (3, {}), (4, {"a": 1})]


MADE_S = 1795176116
SAID_AT = datetime(2026, 11, 20, 12, 3, 29, 896742, tzinfo=UTC)


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("webhook_annotation_created", Event("ANNOTATION_CREATED", 1, (2,), (2,), (SAID_AT,), MADE_S)),
        ("webhook_start_training", Event("START_TRAINING", 1, made_s=MADE_S)),
    ],
)
def test_events_keep_ids_and_moments_only(recordings: dict[str, Any], name: str, event: Event) -> None:
    assert wire.decode_event(json.dumps(recordings[name]["body"]).encode()) == event


def test_every_recorded_webhook_is_read(recordings: dict[str, Any]) -> None:
    for name in (name for name in recordings if name.startswith(("webhook_", "train_"))):
        event = wire.decode_event(json.dumps(recordings[name]["body"]).encode())
        assert event.project_id, name
        if "annotation" in name:
            assert event.annotation_ids, name
        if "created" in name or "tasks" in name:
            assert event.task_ids, name


def test_what_we_do_not_understand_travels_through_where_label_studio_takes_it() -> None:
    config = parse_config(
        '<View><Image name="img" value="$photo"/><Ranker name="order" toName="img"/>'
        '<Ellipse name="round" toName="img"/></View>'
    )
    known = {"id": "z", "type": "ranker", "from_name": "order", "to_name": "img", "value": {"ranker": {"a": ["b"]}}}
    stray = {**known, "id": "s", "from_name": "nobody"}
    flat = {
        **known,
        "id": "f",
        "type": "ellipse",
        "from_name": "round",
        "value": {"x": 5, "y": 5, "radiusX": 0, "radiusY": 1},
    }
    regions = wire.decode_regions([known, stray, flat], config)
    assert [region.shape for region in regions] == [Raw(known), Raw(stray), Raw(flat)]
    odd = [Region(Raw({**known, "value": {"ranker": value}})) for value in (object(), "\ud800", {1: object()})]
    item = wire.encode_prediction(Prediction((*regions, *odd)), build_label_map(config, []), task_id=1)
    assert item["result"] == [known]
    msgspec.json.encode(item)


def test_a_recorded_annotation_comes_back_in_pixels(recordings: dict[str, Any]) -> None:
    body = recordings["webhook_annotation_created"]["body"]
    (region,) = wire.decode_regions(body["annotation"]["result"], parse_config(body["project"]["label_config"]))
    assert region.shape == Box((32.0, 48.0, 128.0, 144.0))
    assert region.label == "Car"


def test_choices_and_polygons_are_read() -> None:
    config = parse_config(
        '<View><Image name="i" value="$p"/><Choices name="c" toName="i"><Choice value="a"/></Choices></View>'
    )
    items = [
        {"id": "1", "type": "choices", "from_name": "c", "to_name": "i", "value": {"choices": ["a", "b"]}},
        {"id": "2", "type": "polygonlabels", "from_name": "q", "to_name": "i", "original_width": 200, "original_height": 100,
         "value": {"points": [[0, 0], [50, 0], [50, 100]], "polygonlabels": ["a"]}},
    ]  # fmt: skip
    first, second, third = wire.decode_regions(items, config)
    assert (first.shape, first.label, second.label) == (Whole(), "a", "b")
    assert third.shape == Polygon(((0, 0), (100, 0), (100, 100)))
    msgspec.json.encode(third)
