"""What we send against the shipped fake's rules, which somebody else wrote down from the protocol."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from labelloop.core.regions import Box, MediaKey, Point, Polygon, Prediction, Raw, Region, Size, Whole
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.labelmap import build_label_map
from labelloop.labelstudio.validate import problem_with, sendable
from labelloop.labelstudio.wire import encode_prediction
from labelloop.testing.label_studio import validation

XML = """<View><Image name="img" value="$photo"/><Text name="words" value="$text"/>
<RectangleLabels name="boxes" toName="img"><Label value="Car"/><Label value="Bus"/></RectangleLabels>
<PolygonLabels name="outlines" toName="img"><Label value="Car"/></PolygonLabels>
<KeyPointLabels name="points" toName="img"><Label value="Car"/></KeyPointLabels>
<BrushLabels name="masks" toName="img"><Label value="Car"/></BrushLabels>
<EllipseLabels name="rounds" toName="img"><Label value="Car"/></EllipseLabels>
<Choices name="kind" toName="img"><Choice value="day"/><Choice value="night"/></Choices>
<Rectangle name="bare" toName="img"/><Polygon name="line" toName="img"/>
<Labels name="names" toName="img"><Label value="Text"/></Labels>
<Labels name="spans" toName="words"><Label value="Name"/></Labels>
<Video name="film" value="$film"/><TimelineLabels name="when" toName="film"><Label value="Run"/></TimelineLabels>
<TextArea name="says" toName="img" perRegion="true"/></View>"""
CONFIG = parse_config(XML)

Item = dict[str, Any]


def item(control: str, **value: Any) -> Item:
    kind = CONFIG.controls_by_name[control].type
    return {"id": "r", "from_name": control, "to_name": "img", "type": kind, "score": 0.5, "value": value}


def box(**changes: Any) -> Item:
    return item(
        "boxes", **{"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["Car"]} | changes
    )


def stretch(*ranges: tuple[Any, Any]) -> Item:
    shown = [{"start": start, "end": end} for start, end in ranges]
    return item("when", ranges=shown, timelinelabels=["Run"]) | {"to_name": "film"}


def outline(*points: Any) -> Item:
    return item("outlines", points=list(points), closed=True, polygonlabels=["Car"])


TRIANGLE = ([1, 1], [9, 1], [9, 9])

TAKEN: dict[str, Item] = {
    "a box": box(),
    "the whole picture": box(x=0, y=0, width=100, height=100),
    "turned": box(rotation=359.9),
    "two labels": box(rectanglelabels=["Car", "Bus"]),
    "no label": box(rectanglelabels=[]),
    "more than asked for": box() | {"meta": {"text": ["x"]}, "readonly": True},
    "no score": box() | {"score": None},
    "a triangle": outline(*TRIANGLE),
    "a point": item("points", x=0, y=100, width=0.5, keypointlabels=["Car"]),
    "an ellipse": item("rounds", x=5, y=5, radiusX=1, radiusY=2, rotation=3, ellipselabels=["Car"]),
    "a mask": item("masks", format="rle", rle=[0, 255, 3], brushlabels=["Car"]),
    "a choice": item("kind", choices=["day"]),
    "a text": item("says", text=["one", "two"]),
    "a span": item("spans", start=0, end=4, text="Anna", labels=["Name"]) | {"to_name": "words"},
    "a stretch of a film": stretch((1, 20)),
    "one frame": stretch((7, 7)),
}

REFUSED_BY_ALL: dict[str, Item] = {
    "unknown label": box(rectanglelabels=["Tram"]),
    "labels in the wrong key": item("boxes", x=1, y=1, width=1, height=1, labels=["Car"]),
    "labels not in a list": box(rectanglelabels=None),
    "a choice not in a list": item("kind", choices="day"),
    "unknown choice": item("kind", choices=["dawn"]),
    "x beyond the picture": box(x=100.1),
    "width beyond the picture": box(width=101),
    "NaN": box(y=math.nan),
    "infinite": box(height=math.inf),
    "more than a full turn": box(rotation=361),
    "no height": {**box(), "value": {"x": 1, "y": 1, "width": 1, "rectanglelabels": ["Car"]}},
    "height is a text": box(height="tall"),
    "height is a list": box(height=[1]),
    "a corner beyond the picture": outline([1, 1], [101, 1], [9, 9]),
    "a corner of one number": outline([1, 1], [9], [9, 9]),
    "a corner of texts": outline([1, 1], ["a", "b"], [9, 9]),
    "no outline": item("outlines", polygonlabels=["Car"]),
    "a mask of another format": item("masks", format="png", rle=[1], brushlabels=["Car"]),
    "a text not in a list": item("says", text="one"),
    "a text of numbers": item("says", text=[1]),
    "unknown control": box() | {"from_name": "nobody"},
    "unknown object": box() | {"to_name": "nothing"},
    "another object": box() | {"to_name": "words"},
    "another type": box() | {"type": "rectangle"},
    "no value": {key: inner for key, inner in box().items() if key != "value"},
    "no type": {key: inner for key, inner in box().items() if key != "type"},
    "a value that is no object": box() | {"value": [1]},
    "no stretch": stretch(),
    "a stretch from nowhere": stretch((None, 4)),
    "labels of no shape": item("names", x=1, y=1, width=2, height=2, labels=["Text"]),
}

REFUSED_BY_US: dict[str, Item] = {
    "negative": box(x=-0.01),
    "frame 0": stretch((0, 4)),
    "half a frame": stretch((1, 4.5)),
    "a stretch backwards": stretch((9, 4)),
    "no width": box(width=0.0),
    "turned back": box(rotation=-1),
    "an outline without area": outline([0, 0], [50, 0], [100, 0]),
    "two corners": outline([0, 0], [50, 50]),
    "no corners": outline(),
    "a mask without a picture": item("masks", format="rle", rle=[], brushlabels=["Car"]),
    "a mask of larger numbers": item("masks", format="rle", rle=[256], brushlabels=["Car"]),
    "an endless ellipse": item("rounds", x=5, y=5, radiusX=-math.inf, radiusY=2, ellipselabels=["Car"]),
    "a round thing wider than the picture": item("rounds", x=5, y=5, radiusX=51, radiusY=2, ellipselabels=["Car"]),
    "rotation is null": box(rotation=None),
    "an infinite score": box() | {"score": math.inf},
    "a score of text": box() | {"score": "high"},
    "an id of numbers": box() | {"id": 7},
}  # fmt: skip


def taken_by_fake(result: list[Item]) -> bool:
    return validation.is_valid({"result": result, "score": 0.5}, XML)


@pytest.mark.parametrize("one", TAKEN.values(), ids=TAKEN)
def test_what_is_taken(one: Item) -> None:
    assert sendable([one], CONFIG) == ([one], [])
    assert taken_by_fake([one])


@pytest.mark.parametrize("one", REFUSED_BY_ALL.values(), ids=REFUSED_BY_ALL)
def test_what_everybody_refuses(one: Item) -> None:
    kept, problems = sendable([one], CONFIG)
    assert kept == []
    assert len(problems) == 1
    assert not taken_by_fake([one])


@pytest.mark.parametrize("one", REFUSED_BY_US.values(), ids=REFUSED_BY_US)
def test_what_only_we_refuse(one: Item) -> None:
    assert problem_with(one, CONFIG)
    assert sendable([one], CONFIG)[0] == []


@pytest.mark.parametrize(
    "one", [None, 7, "x", [], {}, {"type": []}, {"from_name": {}, "to_name": [], "type": 1}], ids=repr
)
def test_what_is_nothing_at_all_is_a_problem_and_no_error(one: Any) -> None:
    assert isinstance(problem_with(one, CONFIG), str)


def line(number: int, **changes: Any) -> list[Item]:
    """Shape, label and transcription of one line of text."""
    place = {"x": 1, "y": 1, "width": 5, "height": 5, "rotation": 0}
    parts = [item("bare", **place), item("names", **place, labels=["Text"]), item("says", **place, text=["hello"])]
    found = [part | {"id": f"line {number}"} for part in parts]
    for index, value in changes.items():
        found[int(index[1:])]["value"] |= value
    return found


@pytest.mark.parametrize(
    "changes",
    [{"_0": {"width": 0}}, {"_1": {"labels": ["Word"]}}, {"_2": {"text": None}}, {"_1": {"x": None}}],
    ids=["shape", "label", "text", "the label's copy of the shape"],
)
def test_a_region_stands_or_falls_as_a_whole(changes: dict[str, Any]) -> None:
    good, bad = line(1), line(2, **changes)
    kept, problems = sendable([*bad[:2], *good, bad[2], box() | {"id": None}], CONFIG)
    assert kept == [*good, box() | {"id": None}]
    assert len(problems) == 1
    assert taken_by_fake(kept)


def test_labels_and_text_without_their_shape_fall_together() -> None:
    assert sendable(line(1)[1:], CONFIG)[0] == []


@pytest.mark.parametrize(
    ("changes", "taken"),
    [({}, True), ({"to_id": "gone"}, False), ({"from_id": None}, False), ({"direction": "up"}, False), ({"id": []}, False)],
    ids=["both ends", "one end is left out", "no end", "no direction", "an id that is a list"],
)  # fmt: skip
def test_relations_need_both_ends(changes: dict[str, Any], taken: bool) -> None:
    relation = {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"} | changes
    result = [relation, box() | {"id": "a"}, box() | {"id": "b"}, box(width=0) | {"id": "gone"}]
    assert sendable(result, CONFIG)[0] == [*([relation] if taken else []), *result[1:3]]


def test_dynamic_labels_are_not_ours_to_judge() -> None:
    config = parse_config(
        '<View><Image name="img" value="$p"/><RectangleLabels name="boxes" toName="img" value="$labels"/></View>'
    )
    assert problem_with(box(rectanglelabels=["whatever"]), config) is None
    assert problem_with(box(rectanglelabels=[1]), config)


# --- what encode_prediction makes of anything a model may say ---------------------------------------

RNG_SEED = 7
PHOTO = MediaKey("photo")


def coordinate(rng: random.Random, side: float) -> float:
    """Mostly in the picture, often on or over its border, now and then absurd."""
    if rng.random() < 0.02:
        return rng.choice([math.nan, math.inf, -math.inf, 1e300, -1e300])
    if rng.random() < 0.1:
        return rng.choice([0.0, side, side + 1e-7, -1e-7, side - 1e-7])
    return rng.uniform(-0.3 * side, 1.3 * side)


def any_region(rng: random.Random, size: Size) -> Region:
    x, y = (lambda: coordinate(rng, size.width)), (lambda: coordinate(rng, size.height))
    tiny = rng.choice([1e-6, 1e-3, 1, 1])
    shapes: list[Callable[[], Any]] = [
        lambda: Box((left := x(), top := y(), left + tiny * rng.uniform(-5, 90), top + tiny * rng.uniform(-5, 90)), rng.choice([0.0, 0.0, 90.0, rng.uniform(-400, 400), math.nan])),
        lambda: Polygon(tuple((x(), y()) for _ in range(rng.randrange(7)))),
        lambda: Point(x(), y()),
        lambda: Whole(),
        lambda: Raw(any_item(rng)),
    ]  # fmt: skip
    score = rng.choice([None, rng.uniform(-0.2, 1.2), rng.random(), rng.random(), math.nan])
    label = rng.choice(["car", "car", "car", "bus", "text", "text", "text", "day", "unknown", None])
    return Region(rng.choice(shapes)(), label, score, rng.choice([None, "hello"]), media=PHOTO)


def any_item(rng: random.Random) -> Item:
    """One of the tables' items, with or without something replaced."""
    tables = rng.choice([TAKEN, TAKEN, TAKEN, REFUSED_BY_ALL, REFUSED_BY_US])
    found = copy.deepcopy(rng.choice(list(tables.values()))) | {"id": f"raw {rng.random()}"}
    place = rng.choice([found, found.get("value")])
    if isinstance(place, dict) and place and rng.random() < 0.3:
        place[rng.choice(list(place))] = rng.choice([None, -1, 101, 1e400, "x", [], ["Car"], {}, True, [[1, 2]]])
    return found


@pytest.mark.parametrize("task", ["detect", "ocr", "pose", "classify"])
def test_everything_that_is_sent_is_taken(task: str) -> None:
    rng = random.Random(f"{RNG_SEED} {task}")
    labels = build_label_map(CONFIG, ["car", "bus", "text", "day"], task=task, threshold=0.0)
    sent = 0
    for _ in range(400):
        size = Size(rng.randrange(1, 4000), rng.randrange(1, 4000))
        regions = tuple(any_region(rng, size) for _ in range(rng.randrange(1, 12)))
        answer = encode_prediction(Prediction(regions, {PHOTO: size}, "m@1", rng.uniform(-1, 2)), labels, task_id=1)
        answer = json.loads(json.dumps(answer, allow_nan=False))
        assert validation.is_valid(answer, XML), [one for one in answer["result"] if not taken_by_fake([one])][:3]
        sent += len(answer["result"])
        for one in answer["result"]:
            value = one["value"]
            if one["type"] == "rectanglelabels" and "original_width" in one and not value["rotation"]:
                assert value["x"] + value["width"] <= 100 + 1e-9
                assert value["y"] + value["height"] <= 100 + 1e-9
    assert sent > 200, "the test says something"
