"""VideoRectangle results: the recordings of a real Label Studio, what they may leave out, and what they may not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labelloop.core.regions import Box, Interval, MediaKey, Raw, Region, Size, Track
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.validate import problem_with
from labelloop.labelstudio.video import (
    PERCENT,
    ExportError,
    decode_track,
    encode_track,
    read_export,
    video_results,
    with_track,
)
from labelloop.labelstudio.wire import decode_regions
from labelloop.video.interpolate import interpolate

HD = Size(1280, 720)
CONFIG = parse_config(
    '<View><Labels name="names" toName="video"><Label value="Car"/></Labels><Video name="video" value="$video"/>'
    '<VideoRectangle name="box" toName="video"/></View>'
)


def item(*keys: dict[str, Any], **value: Any) -> dict[str, Any]:
    said = {"framesCount": 10, "duration": 0.4, "labels": ["Car"], "sequence": list(keys)} | value
    return {"id": "t", "type": "videorectangle", "from_name": "box", "to_name": "video", "value": said}


def key(frame: Any = 1, **changes: Any) -> dict[str, Any]:
    return {
        "frame": frame, "enabled": True, "rotation": 0, "x": 10, "y": 20, "width": 30, "height": 40, "time": 0.04
    } | changes  # fmt: skip


def only(found: dict[str, Any], *, size: Size = HD) -> Track:
    (region,) = decode_track(found, size=size)
    assert isinstance(region.shape, Track)
    return region.shape


@pytest.fixture
def recorded(shared: Path) -> tuple[list[Any], list[Any]]:
    """The same annotation as it is sent and as it is exported with interpolate_key_frames=true."""
    folder = shared / "label-studio/recordings"
    sent = json.loads((folder / "predict_video.json").read_text())["body"]["tasks"][0]
    exported = json.loads((folder / "api_export_snapshot_video_interpolated.json").read_text())["response"]["body"][0]
    return sent["annotations"][0]["result"], exported["annotations"][0]["result"]


@pytest.mark.parametrize("size", [PERCENT, HD], ids=["size unknown", "1280 x 720"])
def test_interpolation_is_what_label_studio_exports(recorded: tuple[list[Any], list[Any]], size: Size) -> None:
    (sent,), (exported,) = recorded
    dense = with_track(sent, interpolate(only(sent, size=size)), size=size)
    for row, expected in zip(dense["value"]["sequence"], exported["value"]["sequence"], strict=True):
        assert row == pytest.approx(expected, abs=1e-6)
    assert {**dense, "value": {**dense["value"], "sequence": []}} == {
        **sent,
        "value": {**sent["value"], "sequence": []},
    }


def test_pixels_and_percent() -> None:
    track = only(item(key(rotation=90, x=50, y=0, width=25, height=10)))
    (found,) = track.keyframes
    # turned about its top-left corner (640, 0) by a quarter: 320 wide to the bottom, 72 high to the left
    assert found.box.xyxy == pytest.approx((640 - 36 - 160, 160 - 36, 640 - 36 + 160, 160 + 36))
    assert found.box.angle_deg == 90
    (row,) = encode_track(track, size=HD)["sequence"]
    assert row == pytest.approx(key(rotation=90, x=50, y=0, width=25, height=10))


def test_what_is_written_is_what_label_studio_takes() -> None:
    track = Track(only(item(key(), key(5, enabled=False))).keyframes, 10, 0.4)
    written = item() | {"value": encode_track(track, size=HD) | {"labels": ["Car"]}}
    assert problem_with(written, CONFIG) is None


def test_times_are_made_up_where_there_are_none() -> None:
    bare = {name: said for name, said in key(5).items() if name not in ("time", "rotation")}
    (row,) = encode_track(only(item(bare)), size=HD)["sequence"]
    assert row["time"] == pytest.approx(5 / 25)
    assert row["rotation"] == 0


def test_several_labels_are_several_regions_with_one_id() -> None:
    found = decode_track(item(key(), labels=["Car", "Red", "Car"]), size=HD)
    assert [(region.id, region.label) for region in found] == [("t", "Car"), ("t", "Red")]
    assert found[0].shape is found[1].shape
    assert decode_track(item(key(), labels=[]), size=HD)[0].label is None


def test_key_frames_are_put_in_order_and_the_later_of_two_counts() -> None:
    track = only(item(key(7), key(3, x=1), key(3, x=50)), size=PERCENT)
    assert [(found.frame, found.box.xyxy[0]) for found in track.keyframes] == [(3, 50), (7, 10)]


def test_what_was_written_stays_as_it_was() -> None:
    said = item(key(1, x=1 / 3, note="mine"), key(4, auto=True), key(6, enabled=False))
    track = only(said)
    kept = with_track(said, Track((track.keyframes[0], track.keyframes[2]), 10, 0.4), size=HD)
    assert kept["value"]["sequence"] == [said["value"]["sequence"][0], said["value"]["sequence"][2]]
    dense = with_track(said, interpolate(track), size=HD)["value"]["sequence"]
    assert dense[1]["note"] == "mine", "as Label Studio's own export copies what it does not know"
    assert said == item(key(1, x=1 / 3, note="mine"), key(4, auto=True), key(6, enabled=False)), "a copy was changed"


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (item(key(0)), "count from 1"),
        (item(key(1.5)), "count from 1"),
        (item(key("first")), "not a number"),
        (item(key(x=None)), "not a number"),
        (item(key(x=float("nan"))), "neither a percentage"),
        (item({"frame": 1}), "'x' is missing"),
        (item(key(), framesCount=10**12), "neither a percentage"),
        (item(key(), framesCount=10**8), "no 100,000,000 frames"),
        (item(key(), labels="Car"), "no list of texts"),
        (item(key(), sequence="all"), ""),
        ({"id": "t", "type": "videorectangle"}, "'value' is missing"),
        ({"id": "t", "type": "videorectangle", "value": None}, ""),
        ({"id": "t", "type": "videorectangle", "value": []}, ""),
    ],
    ids=["frame 0", "between two frames", "a text as frame", "no x", "not a number", "a frame and nothing else", "framesCount of nobody",
         "framesCount that fills the memory", "a label that is no list", "a text as sequence", "no value", "null as value", "a list as value"],
)  # fmt: skip
def test_what_is_no_track(broken: dict[str, Any], says: str) -> None:
    with pytest.raises(ExportError, match=f"The track 't' cannot be read: .*{says}"):
        decode_track(broken, size=HD)


def test_only_tracks_are_looked_at() -> None:
    result = [item(key()), {"type": "labels"}, None, {"type": 5}, "x", item(key()) | {"type": "VideoRectangle"}]
    assert len(list(video_results(result))) == 2
    assert list(video_results("nothing")) == []


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"id,video\n1,x", "is no JSON"), (b'{"id": 1}', "no list of tasks"), (b"[1, 2]", "no list of tasks"),
     (b'[{"id": 1, "box": []}]', "No task of the export has annotations"), (b"\xff", "is no JSON")],
    ids=["CSV", "one task", "numbers", "JSON-MIN", "no text"],
)  # fmt: skip
def test_what_is_no_export(data: bytes, says: str) -> None:
    with pytest.raises(ExportError, match=says) as caught:
        read_export(data)
    assert "format JSON" in caught.value.hint


def test_an_export_without_tasks_is_one() -> None:
    assert read_export(b"[]") == []


def test_boxes_that_reach_beyond_the_film_are_kept() -> None:
    (row,) = encode_track(only(item(key(x=-5, width=120))), size=HD)["sequence"]
    assert (row["x"], row["width"]) == (-5, 120)
    assert isinstance(only(item(key(x=-5))).keyframes[0].box, Box)


@pytest.mark.parametrize(
    ("ranges", "shape"),
    [
        ([{"start": 3, "end": 9}], Interval(3, 9)),
        ([{"start": 3, "end": 9}, {"start": 20, "end": 21}], None),
        ([], None),
        ([{"start": 3, "end": "9"}], None),
    ],
    ids=["one", "two in one region", "none", "no number"],
)
def test_a_stretch_on_the_timeline(ranges: list[Any], shape: Interval | None) -> None:
    config = parse_config(
        '<View><Video name="video" value="$film"/>'
        '<TimelineLabels name="t" toName="video"><Label value="walks"/></TimelineLabels></View>'
    )
    value = {"ranges": ranges, "timelinelabels": ["walks"]}
    item = {"id": "a", "from_name": "t", "to_name": "video", "type": "timelinelabels", "value": value}
    known = Region(shape, "walks", id="a", media=MediaKey("film")) if shape else Region(Raw(item))
    assert decode_regions([item], config) == [known]
