"""What is said of a whole item, and of places in a text: label map and wire."""

from __future__ import annotations

import json
from typing import Any

import pytest

from labelloop.core.regions import MediaKey, Prediction, Raw, Region, Size, Span, Whole
from labelloop.core.tasks import Task, TextRef
from labelloop.labelstudio import wire
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.labelmap import LabelMap, build_label_map

TEXT = MediaKey("review")


def choices(extra: str = "", *, shown: str = '<Text name="t" value="$review"/>', to: str = "t") -> str:
    options = '<Choice value="Good"/><Choice value="Bad" alias="bad"/><Choice value="Rude"/>'
    return f'<View>{shown}<Choices name="c" toName="{to}" {extra}>{options}</Choices></View>'


def label_map(config: str, *, task: str = "text", **options: Any) -> LabelMap:
    return build_label_map(parse_config(config), ["good", "bad", "rude"], task=task, **options)


def said(*classes: tuple[str, float], media: MediaKey = TEXT) -> list[Region]:
    return [Region(Whole(), name, score, media=media) for name, score in classes]


def encode(labels: LabelMap, regions: list[Region]) -> list[dict[str, Any]]:
    prediction = Prediction(tuple(regions), {region.media: Size(0, 0) for region in regions}, "m@1", 0.5)
    item = wire.encode_prediction(prediction, labels, task_id=3)
    return json.loads(json.dumps(item, allow_nan=False))["result"]


@pytest.mark.parametrize(
    ("extra", "scores", "chosen"),
    [
        ("", [("good", 0.2), ("bad", 0.5), ("rude", 0.3)], ["bad"]),
        ('choice="single-radio"', [("good", 0.2), ("bad", 0.1), ("rude", 0.15)], ["Good"]),
        ('choice="multiple"', [("rude", 0.9), ("good", 0.2), ("bad", 0.6)], ["Rude", "bad"]),
        ('choice="multiple"', [("rude", 0.4), ("good", 0.2)], []),
        ('choice="multiple" model_score_threshold="0.1"', [("rude", 0.4), ("good", 0.2)], ["Rude", "Good"]),
        ('model_score_threshold="0.6"', [("good", 0.5)], []),
    ],
    ids=["one of several", "the best, however weak", "several", "none of several", "a lower bar", "a bar for one"],
)
def test_choices(extra: str, scores: list[tuple[str, float]], chosen: list[str]) -> None:
    found = encode(label_map(choices(extra)), said(*scores))
    assert [item["value"]["choices"] for item in found] == ([chosen] if chosen else [])
    for item in found:
        assert (item["from_name"], item["to_name"], item["type"]) == ("c", "t", "choices")
        assert item["score"] == max(score for _, score in scores), "that of the best"
        assert "original_width" not in item


def test_choices_come_back_as_they_were_sent() -> None:
    config = choices('choice="multiple"')
    found = encode(label_map(config), said(("good", 0.9), ("rude", 0.8)))
    back = wire.decode_regions(found, parse_config(config))
    assert [(region.label, type(region.shape), region.media) for region in back] == [
        ("Good", Whole, TEXT),
        ("Rude", Whole, TEXT),
    ]


def test_only_the_best_of_choices_that_exclude_each_other_counts() -> None:
    regions = said(("good", 0.2), ("bad", 0.5), ("rude", 0.3))
    assert [region.label for region in label_map(choices()).best_choices(regions)] == ["bad"]
    assert label_map(choices('choice="multiple"')).best_choices(regions) == regions
    pages = [*said(("good", 0.2), media=MediaKey("review", 1)), *said(("bad", 0.9))]
    assert len(label_map(choices()).best_choices(pages)) == 2, "each page has an answer of its own"


@pytest.mark.parametrize(
    ("task", "shown", "mapped"),
    [
        ("text", '<Text name="t" value="$review"/>', True),
        ("text", '<HyperText name="t" value="$review"/>', True),
        ("text", '<Image name="t" value="$review"/>', False),
        ("classify", '<Image name="t" value="$review"/>', True),
        ("classify", '<Text name="t" value="$review"/>', False),
    ],
)
def test_a_model_fills_choices_on_what_it_reads(task: str, shown: str, mapped: bool) -> None:
    labels = label_map(choices(shown=shown), task=task)
    assert bool(labels.targets) is mapped
    assert bool(labels.notes) is not mapped
    assert bool(labels.unfilled) is not mapped


def test_choices_about_a_region_are_not_about_the_item() -> None:
    assert not label_map(choices('perRegion="true"')).targets


def test_the_fingerprint_knows_whether_several_can_be_chosen() -> None:
    assert label_map(choices()).fingerprint != label_map(choices('choice="multiple"')).fingerprint


def test_texts_of_a_task_are_references_to_texts() -> None:
    config = parse_config(
        '<View><Text name="a" value="$a"/><HyperText name="b" value="$b"/><Text name="c" value="$c" valueType="url"/></View>'
    )
    refs = wire.media_refs(Task(1, {"a": "plain", "b": "<b>bold</b>", "c": "/data/x.txt"}, 7), config.objects)
    assert [(type(ref), ref.uri, ref.markup, ref.by_url) for ref in refs] == [
        (TextRef, "plain", False, False),
        (TextRef, "<b>bold</b>", True, False),
        (TextRef, "/data/x.txt", False, True),
    ]


NAMES = (
    '<View><Labels name="ner" toName="t"><Label value="Person"/><Label value="Place"/></Labels>'
    '<Text name="t" value="$review"/></View>'
)


def test_places_in_a_text() -> None:
    labels = build_label_map(parse_config(NAMES), ["person", "place"], task="ner")
    region = Region(Span(4, 9), "person", 0.75, text="Maria", media=TEXT)
    (item,) = encode(labels, [region])
    assert item["value"] == {"start": 4, "end": 9, "text": "Maria", "labels": ["Person"]}
    assert (item["type"], item["score"]) == ("labels", 0.75)
    (back,) = wire.decode_regions([item], parse_config(NAMES))
    assert (back.shape, back.label, back.text) == (Span(4, 9), "Person", "Maria")


@pytest.mark.parametrize("span", [Span(5, 5), Span(-1, 3), Span(7, 2)], ids=["empty", "before the text", "backwards"])
def test_a_place_that_is_none_is_not_sent(span: Span) -> None:
    labels = build_label_map(parse_config(NAMES), ["person"], task="ner")
    assert encode(labels, [Region(span, "person", 0.9, text="x", media=TEXT)]) == []


@pytest.mark.parametrize(
    "value",
    [
        {"start": "/div[1]/text()[1]", "end": "/div[1]/text()[1]", "startOffset": 0, "endOffset": 5, "text": "Maria"},
        {"start": 1.5, "end": 2.5, "text": "seconds"},
        {"start": True, "end": 5, "text": "Maria"},
    ],
    ids=["a path in markup", "seconds of a recording", "no number"],
)
def test_other_peoples_places_travel_through_untouched(value: dict[str, Any]) -> None:
    item = {"from_name": "ner", "to_name": "t", "type": "labels", "value": value | {"labels": ["Person"]}}
    (back,) = wire.decode_regions([item], parse_config(NAMES))
    assert back.shape == Raw(item)


def test_places_are_not_looked_for_in_markup() -> None:
    labels = build_label_map(parse_config(NAMES.replace("<Text", "<HyperText")), ["person"], task="ner")
    assert not labels.targets
    assert "reads texts" in labels.notes[0]
