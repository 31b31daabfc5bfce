from __future__ import annotations

import json
from pathlib import Path

import pytest

from labelloop.core.regions import Box, Interval, Mask, Point, Polygon, Raw, Region, Shape, Span, Whole
from labelloop.labelstudio import wire
from labelloop.labelstudio.config import parse_config
from labelloop.learning.quality import Counts, Fate, Review, fates, quality

TRIANGLE = Polygon(((0, 0), (10, 0), (0, 10)))
MASK = Mask(((TRIANGLE.points,), (((20, 20), (20, 18), (18, 20)),)))


def box(name: str | None, left: float = 0, label: str | None = "car", **more: object) -> Region:
    return Region(Box((left, 0, left + 10, 10)), label, id=name, **more)


def shaped(shape: Shape, label: str = "car", **more: object) -> Region:
    return Region(shape, label, id="a", **more)


def track(*keys: tuple[int, float], label: str = "car", frames: int = 60, ends: bool = True) -> Region:
    """A box of 20 x 20 percent that is at `x` on `frame`, and gone after the last of these."""
    sequence = [{"frame": frame, "x": x, "y": 0, "width": 20, "height": 20, "enabled": True} for frame, x in keys]
    sequence[-1]["enabled"] = not ends
    value = {"sequence": sequence, "framesCount": frames, "labels": [label]}
    return Region(Raw({"id": "t", "type": "videorectangle", "value": value}))


@pytest.mark.parametrize(
    ("predicted", "annotated", "expected"),
    [
        pytest.param([box("a")], [box("a")], [Fate("accepted", "car", 1.0)], id="as it was"),
        pytest.param([box("a")], [box("a", 0.4)], [Fate("accepted", "car", 1.0)], id="rounded"),
        pytest.param([box("a")], [box("a", 5)], [Fate("changed", "car", 1 / 3)], id="moved"),
        pytest.param([box("a")], [box("a", 0, "bus")], [Fate("changed", "car", 1.0, True)], id="another class"),
        pytest.param(
            [box("a", text="ON")], [box("a", text="OH")], [Fate("changed", "car", 1.0)], id="another reading"
        ),
        pytest.param([box("a")], [], [Fate("deleted", "car")], id="wrong"),
        pytest.param([], [box("b", 0, "bus")], [Fate("added", "bus")], id="missed"),
        pytest.param(
            [box("a")], [box("b")], [Fate("deleted", "car"), Fate("added", "car")], id="deleted and drawn again"
        ),
        pytest.param(
            [box("a"), box("a", 0, "bus")], [box("a", 0, "bus"), box("a")], [Fate("accepted", "car", 1.0)], id="two labels"
        ),
        pytest.param(
            [box("a"), box("a", 0, "bus")], [box("a")], [Fate("changed", "car", 1.0, True)], id="one of two labels taken"
        ),
        pytest.param([shaped(TRIANGLE)], [shaped(TRIANGLE)], [Fate("accepted", "car", 1.0)], id="polygon"),
        pytest.param(
            [shaped(TRIANGLE)], [shaped(Polygon((*TRIANGLE.points, (3, 3))))], [Fate("changed", "car", 1.0)], id="corner"
        ),
        pytest.param(
            [shaped(Box((0, 0, 10, 10)))], [shaped(Box((0, 0, 10, 10), 90))], [Fate("changed", "car", 1.0)], id="turned"
        ),
        pytest.param([shaped(MASK)], [shaped(MASK)], [Fate("accepted", "car", 1.0)], id="mask"),
        pytest.param(
            [shaped(MASK)], [shaped(Mask(MASK.parts[:1]))], [Fate("changed", "car", 0.25)], id="mask without a part"
        ),
        pytest.param([shaped(Point(1, 1))], [shaped(Point(9, 1))], [Fate("changed", "car", None)], id="point: no area"),
        pytest.param(
            [shaped(Whole(), "day")], [shaped(Whole(), "night")], [Fate("changed", "day", None, True)], id="choice"
        ),
        pytest.param([shaped(Whole(), "day")], [shaped(Whole(), "day")], [Fate("accepted", "day", 1.0)], id="same choice"),
        pytest.param(
            [Region(Raw({"id": "r", "value": {"x": 1}, "score": 0.5}))],
            [Region(Raw({"id": "r", "value": {"x": 1}, "origin": "prediction"}))],
            [Fate("accepted", "", 1.0)],
            id="not understood, untouched",
        ),
        pytest.param(
            [Region(Raw({"id": "r", "value": {"x": 1}}))],
            [Region(Raw({"id": "r", "value": {"x": 2}}))],
            [Fate("changed", "", None)],
            id="not understood, touched",
        ),
        pytest.param([track((1, 10), (11, 50))], [track((1, 10), (6, 30), (11, 50))], [Fate("accepted", "car", 1.0)], id="track: a key frame that says the same"),
        pytest.param([track((1, 10), (2, 10))], [track((1, 10), (2, 20))], [Fate("changed", "car", 0.6)], id="track: moved on one of two frames"),
        pytest.param([track((1, 10), (2, 10))], [track((1, 10))], [Fate("changed", "car", 0.5)], id="track: ended sooner"),
        pytest.param([track((1, 10), ends=False)], [track((1, 10), ends=False, frames=61)], [Fate("accepted", "car", 1.0)], id="track: a browser counts another frame"),
        pytest.param([track((1, 10))], [track((1, 10), label="bus")], [Fate("changed", "car", 1.0, True)], id="track: another class"),
        pytest.param([shaped(Interval(1, 10))], [shaped(Interval(1, 10))], [Fate("accepted", "car", 1.0)], id="stretch"),
        pytest.param([shaped(Interval(1, 10))], [shaped(Interval(6, 20))], [Fate("changed", "car", 0.25)], id="stretch: moved"),
        pytest.param([shaped(Interval(1, 4))], [shaped(Interval(5, 8))], [Fate("changed", "car", 0.0)], id="stretch: elsewhere"),
        pytest.param([shaped(Span(4, 10), "PER", text="Nadine")], [shaped(Span(4, 10), "PER", text="Nadine")], [Fate("accepted", "PER", 1.0)], id="span"),
        pytest.param([shaped(Span(4, 10), "PER")], [shaped(Span(4, 10), "PER", text="Nadine")], [Fate("accepted", "PER", 1.0)], id="span: the editor adds its characters"),
        pytest.param([shaped(Span(4, 10), "PER", text="Nadine")], [shaped(Span(4, 16), "PER", text="Nadine Gordi")], [Fate("changed", "PER", 0.5)], id="span: made longer"),
        pytest.param([shaped(Span(4, 10), "PER", text="the the")], [shaped(Span(14, 20), "PER", text="the the")], [Fate("changed", "PER", 0.0)], id="span: the same words elsewhere"),
        pytest.param([shaped(Span(4, 10), "PER")], [shaped(Span(5, 10), "PER")], [Fate("changed", "PER", 5 / 6)], id="span: one character less"),
        pytest.param([shaped(Span(4, 10), "PER")], [shaped(Span(4, 10), "ORG")], [Fate("changed", "PER", 1.0, True)], id="span: another class"),
        pytest.param([shaped(Span(4, 10), "PER")], [], [Fate("deleted", "PER")], id="span: deleted"),
        pytest.param([shaped(Interval(1, 10))], [shaped(Interval(1, 11))], [Fate("changed", "car", 10 / 11)], id="stretch: one frame more"),
        pytest.param([shaped(Span(1, 10))], [shaped(Box((1, 0, 10, 10)))], [Fate("changed", "car", None)], id="another kind of shape"),
        pytest.param([shaped(Whole(), text="red")], [shaped(Whole(), text="read")], [Fate("changed", "car", None)], id="a caption that was rewritten"),
        pytest.param([], [], [], id="nothing and left so"),
    ],
)  # fmt: skip
def test_fates(predicted: list[Region], annotated: list[Region], expected: list[Fate]) -> None:
    found = fates(Review(tuple(annotated), tuple(predicted), "m@1"))
    assert [(fate.what, fate.label, fate.relabelled) for fate in found] == [
        (fate.what, fate.label, fate.relabelled) for fate in expected
    ]
    assert [fate.iou for fate in found] == [pytest.approx(fate.iou) for fate in expected]


@pytest.mark.parametrize("predicted", [None, (box(None),)], ids=["prediction is gone", "regions without ids"])
def test_without_the_prediction_the_editor_s_notes_count(predicted: tuple[Region, ...] | None) -> None:
    annotated = (box("a"), box("b", 20), box("c", 40), box("d", 60))
    origins = {"a": "prediction", "b": "prediction-changed", "c": "manual"}
    found = fates(Review(annotated, predicted, origins=origins))
    assert [fate.what for fate in found] == ["accepted", "changed", "added", "added"]
    assert {fate.iou for fate in found} == {None}


def test_spans_as_label_studio_writes_them() -> None:
    config = parse_config(
        '<View><Labels name="n" toName="t"><Label value="PER"/><Label value="ORG"/></Labels><Text name="t" value="$text"/></View>'
    )

    def result(name: str, start: int, end: int, text: str, label: str = "PER") -> dict[str, object]:
        value = {"start": start, "end": end, "text": text, "labels": [label]}
        return {"id": name, "from_name": "n", "to_name": "t", "type": "labels", "value": value}

    predicted = [
        result("a", 0, 5, "Nadia"),
        result("b", 9, 12, "Bob"),
        result("c", 20, 24, "ACME"),
        result("d", 30, 33, "day"),
    ]
    annotated = [result("a", 0, 5, "Nadia"), result("b", 9, 16, "Bob Dow"), result("c", 20, 24, "ACME", "ORG")]
    found = fates(
        Review(tuple(wire.decode_regions(annotated, config)), tuple(wire.decode_regions(predicted, config)), "m@1")
    )
    assert [(fate.what, fate.relabelled) for fate in found] == [
        ("accepted", False), ("changed", False), ("changed", True), ("deleted", False)
    ]  # fmt: skip
    assert [fate.iou for fate in found] == [1.0, pytest.approx(3 / 7), 1.0, None]


def test_quality_of_two_versions_by_hand() -> None:
    reviews = [
        Review((box("a"), box("b", 25)), (box("a"), box("b", 20)), "m@1"),  # accepted; moved, IoU 1/3
        Review((box("a"),), (box("a"),), "m@1"),  # untouched
        Review((box("x", 0, "bus"),), (box("a"), box("c", 20, "bus")), "m@1"),  # two deleted, one added
        Review((box("a"),), (box("a"),), "m@2"),
        Review((box("n"),), None),  # began with nothing: not counted
        Review((box("n"), box("p")), None, origins={"n": "manual", "p": "prediction"}),  # its version is deleted
    ]
    gone, first, second = quality(iter(reviews))
    assert (gone.version, first.version, second.version) == ("", "m@1", "m@2")
    assert (first.pictures, first.untouched) == (3, 1)
    assert first.classes == {
        "bus": Counts(deleted=1, added=1),
        "car": Counts(accepted=2, changed=1, deleted=1, iou_sum=pytest.approx(1 / 3), measured=1),
    }
    assert first.total.predicted == 5
    assert first.total.acceptance == pytest.approx(2 / 5)
    assert first.total.edit_iou == pytest.approx(1 / 3)
    assert first.total.edits == 4
    assert first.total.edits_from_nothing == 4
    assert first.edits_saved_per_picture == 0  # two boxes saved, two deletions caused
    assert second.edits_saved_per_picture == 1
    assert (gone.total.accepted, gone.total.added, gone.total.deleted) == (1, 1, 0)


def test_a_model_that_only_errs_costs_edits() -> None:
    (found,) = quality([Review((), (box("a"), box("b", 20)), "m@1")])
    assert found.edits_saved_per_picture == -2
    assert found.total.acceptance == 0


def test_an_empty_prediction_left_empty_is_an_untouched_picture() -> None:
    (found,) = quality([Review((), (), "m@1")])
    assert (found.pictures, found.untouched, found.classes) == (1, 1, {})
    assert found.total.acceptance is None
    assert found.total.edit_iou is None
    assert quality([]) == []


def test_counts_add_up_to_the_regions_of_both_sides() -> None:
    predicted = (box("a"), box("b", 20), box("c", 40, "bus"), box("d", 60))
    annotated = (box("a"), box("b", 24), box("c", 40), box("e", 80), box("f", 90))
    (found,) = quality([Review(annotated, predicted, "m@1")])
    assert found.total.predicted == len(predicted)
    assert found.total.edits_from_nothing == len(annotated)
    assert found.total.relabelled == 1


def test_a_submitted_prelabel_as_label_studio_sends_it(shared: Path) -> None:
    name = "webhook_annotation_created_from_ui_prelabel.json"
    body = json.loads((shared / "label-studio" / "recordings" / name).read_text())["body"]
    config = parse_config(body["project"]["label_config"])
    result = body["annotation"]["result"]
    assert body["annotation"]["parent_prediction"] is not None
    annotated = tuple(wire.decode_regions(result, config))
    origins = {item["id"]: item["origin"] for item in result}
    assert [fate.what for fate in fates(Review(annotated, annotated, "stub", origins))] == ["accepted"]
    assert [fate.what for fate in fates(Review(annotated, None, origins=origins))] == ["accepted"]
    moved = [item | {"value": item["value"] | {"x": item["value"]["x"] + 3}} for item in result]
    changed = tuple(wire.decode_regions(moved, config))
    (fate,) = fates(Review(changed, annotated, "stub", origins))
    assert (fate.what, fate.label) == ("changed", "Car")
    assert fate.iou == pytest.approx(27 / 33)
