"""Key frames to frames: the rules one by one. That they are Label Studio's own is held in tests/labelstudio and tests/e2e."""

from __future__ import annotations

import random

import pytest

from labelloop.core.outlines import corners
from labelloop.core.regions import Box, KeyFrame, Track
from labelloop.video.interpolate import between, interpolate
from labelloop.video.lifespans import boxes_by_frame, lifespans, track_of

HERE, THERE = Box((10, 20, 30, 60)), Box((20, 40, 60, 100))


def track(*keys: KeyFrame, frames: int = 20, duration_s: float = 2.0) -> Track:
    return Track(keys, frames, duration_s)


def test_a_box_moves_in_a_straight_line_between_two_key_frames() -> None:
    dense = interpolate(track(KeyFrame(1, HERE), KeyFrame(6, THERE, enabled=False)))
    assert [key.frame for key in dense.keyframes] == [1, 2, 3, 4, 5, 6]
    assert dense.keyframes[1].box.xyxy == pytest.approx((12, 24, 36, 68))
    assert [key.auto for key in dense.keyframes] == [False, True, True, True, True, False]
    assert [key.enabled for key in dense.keyframes] == [True] * 5 + [False]


@pytest.mark.parametrize(
    ("keys", "seen"),
    [
        ([(3, True)], [*range(3, 21)]),
        ([(3, False)], [3]),
        ([(3, True), (5, False)], [3, 4, 5]),
        ([(3, True), (5, False), (9, True), (10, False)], [3, 4, 5, 9, 10]),
        ([(3, False), (5, False)], [3, 5]),
        ([(18, True), (20, True)], [18, 19, 20]),
        ([(19, True), (25, True)], [*range(19, 26)]),
        ([], []),
    ],
    ids=["the last one holds to the end", "one frame only", "the frame that ends it is seen", "gone and back",
         "ended where it began", "up to the last frame", "beyond the film", "nothing"],
)  # fmt: skip
def test_when_a_thing_is_seen(keys: list[tuple[int, bool]], seen: list[int]) -> None:
    said = track(*(KeyFrame(frame, HERE, enabled=enabled) for frame, enabled in keys))
    assert [key.frame for key in interpolate(said).keyframes] == seen
    assert list(boxes_by_frame(said)) == seen


@pytest.mark.parametrize(
    ("start", "end", "linear", "shortest"),
    [(0, 90, 45, 45), (350, 10, 180, 360), (10, 350, 180, 0), (-170, 170, 0, -180), (30, 30, 30, 30)],
    ids=["a quarter turn", "over the top", "back over the top", "over the bottom", "none"],
)
def test_how_a_box_turns(start: float, end: float, linear: float, shortest: float) -> None:
    first, then = Box((0, 0, 10, 20), start), Box((0, 0, 10, 20), end)
    assert between(first, then, 0.5).angle_deg == pytest.approx(linear)
    assert between(first, then, 0.5, rotation="shortest").angle_deg == pytest.approx(shortest)


def test_a_turning_box_moves_with_its_corner_and_not_with_its_centre() -> None:
    first, then = Box((100, 100, 140, 120), 0), Box((150, 80, 190, 100), 90)
    for share in (0.0, 0.25, 0.5, 1.0):
        at = corners(between(first, then, share))[0]
        expected = [a + (b - a) * share for a, b in zip(corners(first)[0], corners(then)[0], strict=True)]
        assert at == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((0.04, 0.2), [0.04, 0.08, 0.12, 0.16, 0.2]),
        ((0.0, 0.1), [0.0, 0.03, 0.05, 0.08, 0.1]),
        ((0.5, 0.5), [0.5, 0.88, 1.25, 1.62, 0.5]),
        ((None, 0.2), [None, None, None, None, 0.2]),
    ],
    ids=["even", "rounded to hundredths, halves to even", "the same twice: on to the film's end", "one is missing"],
)
def test_times(times: tuple[float | None, float], expected: list[float | None]) -> None:
    said = track(KeyFrame(1, HERE, time_s=times[0]), KeyFrame(5, HERE, enabled=False, time_s=times[1]))
    assert [key.time_s for key in interpolate(said).keyframes] == expected


def test_times_run_on_to_the_end_after_the_last_key_frame() -> None:
    dense = interpolate(track(KeyFrame(18, HERE, time_s=1.7)))
    assert [key.time_s for key in dense.keyframes] == [1.7, 1.85, 2.0]


def test_interpolating_twice_changes_nothing() -> None:
    once = interpolate(track(KeyFrame(2, HERE), KeyFrame(7, THERE, enabled=False), KeyFrame(12, THERE)))
    assert [(key.frame, key.enabled) for key in interpolate(once).keyframes] == [
        (key.frame, key.enabled) for key in once.keyframes
    ]
    for key, again in zip(once.keyframes, interpolate(once).keyframes, strict=True):
        assert again.box.xyxy == pytest.approx(key.box.xyxy)


def test_boxes_become_a_track_and_come_back() -> None:
    rng = random.Random(0)
    for _ in range(200):
        frames = rng.randrange(1, 30)
        boxes = {frame: Box((frame, 0, frame + 5, 5)) for frame in range(1, frames + 1) if rng.random() < 0.7}
        found = track_of(boxes, frames_count=frames, duration_s=frames / 25)
        assert boxes_by_frame(found) == boxes
        assert sum(len(life.boxes) for life in lifespans(found)) == len(boxes)
        assert all(life.open_end == (life.end == frames) for life in lifespans(found))


def test_lifespans_that_touch_stay_apart() -> None:
    said = track(
        KeyFrame(1, HERE), KeyFrame(4, HERE, enabled=False), KeyFrame(5, THERE), KeyFrame(6, THERE, enabled=False)
    )
    assert [(life.start, life.end, life.open_end) for life in lifespans(said)] == [(1, 4, False), (5, 6, False)]
