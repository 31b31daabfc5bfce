"""Label Studio's JSON both ways, on the recorded payloads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from labelloop.core.regions import Box, ItemError, MediaKey, Point, Polygon, Prediction, Raw, Region, Size, Whole
from labelloop.core.tasks import Event, Task
from labelloop.labelstudio import wire
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.labelmap import build_label_map

CONFIG = parse_config(
    '<View><Image name="img" value="$photo"/>'
    '<RectangleLabels name="boxes" toName="img"><Label value="Car"/></RectangleLabels>'
    '<KeyPointLabels name="kp" toName="img" smart="true"><Label value="Car"/></KeyPointLabels></View>'
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


def test_ids_are_unique_and_the_same_next_time() -> None:
    first = [item["id"] for item in encode(*[car(Box((1, 1, 9 + n, 9))) for n in range(50)])]
    again = [item["id"] for item in encode(*[car(Box((1, 1, 9 + n, 9))) for n in range(50)])]
    assert len(set(first)) == 50
    assert first == again


@pytest.mark.parametrize(("score", "sent"), [(0.5, 0.5), (7, 1.0), (-1, 0.0), (math.nan, 0.0)])
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


@pytest.mark.parametrize(
    ("value", "expected"), [(None, {}), ("", {}), ('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1}), ("{", {}), ("[1]", {})]
)
def test_extra_params_in_every_form(value: Any, expected: dict[str, Any]) -> None:
    assert wire.extra_params_of(value) == expected


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


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"tasks": {}}', b'{"tasks": ["x"]}', b'{"label_config": 7}'])
def test_what_label_studio_never_sends_is_refused(body: bytes) -> None:
    with pytest.raises(wire.BadRequest, match="request body"):
        wire.decode_predict(body)


def test_unknown_fields_and_gaps_in_tasks_are_no_reason_to_fail() -> None:
    body = {"tasks": [None, {"id": "x"}, {"id": 3, "data": "no"}, {"id": 4, "data": {"a": 1}, "new": {}}], "later": 1}
    tasks = wire.tasks_of(wire.decode_predict(json.dumps(body).encode()))
    assert [(task.id, task.data) for task in tasks] == [(None, {}), (None, {}), (3, {}), (4, {"a": 1})]


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("webhook_annotation_created", Event("ANNOTATION_CREATED", 1, (2,), (2,))),
        ("webhook_start_training", Event("START_TRAINING", 1)),
    ],
)
def test_events_keep_ids_only(recordings: dict[str, Any], name: str, event: Event) -> None:
    assert wire.decode_event(json.dumps(recordings[name]["body"]).encode()) == event


def test_every_recorded_webhook_is_read(recordings: dict[str, Any]) -> None:
    for name in (name for name in recordings if name.startswith(("webhook_", "train_"))):
        event = wire.decode_event(json.dumps(recordings[name]["body"]).encode())
        assert event.project_id, name
        if "annotation" in name:
            assert event.annotation_ids, name
        if "created" in name or "tasks" in name:
            assert event.task_ids, name


def test_what_we_do_not_understand_travels_through() -> None:
    strange = {"id": "z", "type": "timeserieslabels", "from_name": "x", "to_name": "y", "value": {"start": 1}}
    (region,) = wire.decode_regions([strange], CONFIG)
    assert region.shape == Raw(strange)
    assert wire.encode_prediction(Prediction((region,)), LABELS, task_id=1)["result"] == [strange]


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
