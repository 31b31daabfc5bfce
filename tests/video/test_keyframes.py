"""The fewest key frames: against every choice there is, on random motion, and on what a detector saw in a real film."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from shapely.geometry import Polygon as Outline

from labelloop.core.outlines import box_at, corners
from labelloop.core.regions import Box, KeyFrame, Track
from labelloop.video.keyframes import fidelity, reduce
from labelloop.video.lifespans import boxes_by_frame, track_of
from labelloop.video.overlap import iou_turned, iou_upright


def motion(rng: np.random.Generator, frames: int, *, noise: float = 1.0, turn: float = 0.0) -> dict[int, Box]:
    """A box that drifts, breathes and trembles; `turn` is how far it turns in one step, in degrees."""
    drift = np.cumsum(rng.normal(0, 1.2, (frames, 2)), axis=0) + 300
    sides = 60 + np.cumsum(rng.normal(0, 0.5, (frames, 2)), axis=0)
    angle = np.cumsum(rng.normal(0, turn, frames)) if turn else np.zeros(frames)
    corner = drift + rng.normal(0, noise, (frames, 2))
    rows = zip(corner.tolist(), np.abs(sides).tolist(), angle.tolist(), strict=True)
    return {
        number: box_at((corner[0], corner[1]), (sides[0] + 1, sides[1] + 1), angle_deg=angle)
        for number, (corner, sides, angle) in enumerate(rows, start=1)
    }


def with_gaps(rng: np.random.Generator, boxes: dict[int, Box]) -> dict[int, Box]:
    gone = {
        frame for start in rng.integers(2, len(boxes), 2) for frame in range(start, start + int(rng.integers(1, 5)))
    }
    return {frame: box for frame, box in boxes.items() if frame not in gone}


@pytest.mark.parametrize("turn", [0.0, 4.0], ids=["upright", "turned"])
def test_iou_is_the_one_of_the_outlines(turn: float) -> None:
    rng = np.random.default_rng(5)
    first, second = motion(rng, 60, noise=15, turn=turn), motion(rng, 60, noise=15, turn=turn)
    rows = [np.array([row(box) for box in boxes.values()]) for boxes in (first, second)]
    expected = []
    for a, b in zip(first.values(), second.values(), strict=True):
        one, two = Outline(corners(a)), Outline(corners(b))
        expected.append(one.intersection(two).area / one.union(two).area)
    assert 0.05 < float(np.mean(expected)) < 0.95
    assert iou_turned(*rows) == pytest.approx(expected, abs=1e-9)
    assert iou_turned(rows[0], rows[0]) == pytest.approx(np.ones(60))
    if not turn:
        upright = [np.concatenate([part[:, :2], part[:, :2] + part[:, 2:4]], axis=1) for part in rows]
        assert iou_upright(*upright) == pytest.approx(expected, abs=1e-9)


def row(box: Box) -> tuple[float, ...]:
    left, top, right, bottom = box.xyxy
    return (*corners(box)[0], right - left, bottom - top, box.angle_deg)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 10, 10, 0), (20, 0, 10, 10, 0), 0.0),
        ((0, 0, 10, 10, 0), (10, 0, 10, 10, 90), 1.0),
        ((0, 0, 10, 10, 0), (2, 2, 4, 4, 0), 0.16),
        ((0, 0, 0, 0, 0), (0, 0, 0, 0, 30), 0.0),
    ],
    ids=["apart", "the same, written from another corner", "one inside the other", "nothing and nothing"],
)
def test_overlaps_that_are_known(first: tuple[float, ...], second: tuple[float, ...], expected: float) -> None:
    assert iou_turned(np.array([first], float), np.array([second], float)) == pytest.approx([expected], abs=1e-9)


@pytest.mark.parametrize("turn", [0.0, 3.0], ids=["upright", "turned"])
@pytest.mark.parametrize("min_iou", [0.6, 0.8, 0.9, 0.99])
def test_what_is_left_out_stays_within_the_tolerance(min_iou: float, turn: float) -> None:
    rng = np.random.default_rng(int(min_iou * 100))
    for frames in (40, 41) if not turn else (20,):
        boxes = with_gaps(rng, motion(rng, frames, turn=turn))
        dense = track_of(boxes, frames_count=frames + int(rng.integers(0, 2)), duration_s=1.6)
        reduced = reduce(dense, min_iou=min_iou)
        assert boxes_by_frame(reduced).keys() == boxes.keys(), "it is seen on the same frames"
        found = fidelity(dense, reduced)
        assert found.min_iou >= min_iou - 1e-6
        assert found.keyframes <= len(dense.keyframes)
        assert reduce(reduced, min_iou=min_iou).frames_count == dense.frames_count


@pytest.mark.parametrize("turn", [0.0, 3.0], ids=["upright", "turned"])
@pytest.mark.parametrize("open_end", [False, True], ids=["it goes before the film ends", "it stays to the end"])
def test_there_is_no_choice_with_fewer_key_frames(turn: float, open_end: bool) -> None:
    rng = np.random.default_rng(11)
    smallest = []
    for _ in range(4):
        boxes = motion(rng, 8, noise=3, turn=turn)
        dense = track_of(boxes, frames_count=8 if open_end else 12)
        reduced = reduce(dense, min_iou=0.8)
        smallest.append(len(reduced.keyframes))
        assert smallest[-1] == fewest(dense, 0.8)
    assert len(set(smallest)) > 1, "the test says something"


def fewest(dense: Track, min_iou: float) -> int:
    """By trying all choices, the small ones first."""
    end = dense.keyframes[-1]
    for count in range(1, len(dense.keyframes) + 1):
        for chosen in combinations(dense.keyframes[1:], count - 1):
            keys = (dense.keyframes[0], *chosen)
            candidate = Track(keys, dense.frames_count)
            if keys[-1].enabled and not end.enabled:
                continue
            if fidelity(dense, candidate).min_iou >= min_iou - 1e-9:
                return count
    raise AssertionError("all of them are a choice")


def test_of_the_shortest_choices_the_most_faithful_is_taken() -> None:
    """Three key frames are needed; the bend is at 5, and only a key frame there loses nothing."""
    boxes = {frame: Box((abs(frame - 5) * 10.0, 0, abs(frame - 5) * 10.0 + 100, 100)) for frame in range(1, 10)}
    dense = track_of(boxes, frames_count=12)
    assert [key.frame for key in reduce(dense, min_iou=0.7).keyframes] == [1, 5, 9]


@pytest.mark.parametrize(
    ("boxes", "frames", "keys"),
    [
        ({1: Box((0, 0, 9, 9))}, 1, [(1, True)]),
        ({3: Box((0, 0, 9, 9))}, 5, [(3, False)]),
        (dict.fromkeys(range(2, 5001), Box((0, 0, 9, 9))), 5000, [(2, True)]),
        (dict.fromkeys(range(2, 5001), Box((0, 0, 9, 9))), 5001, [(2, True), (5000, False)]),
        ({}, 5, []),
    ],
    ids=["a film of one frame", "one frame", "it stands still to the end", "it stands still and goes", "nothing"],
)
def test_small_and_still_tracks(boxes: dict[int, Box], frames: int, keys: list[tuple[int, bool]]) -> None:
    reduced = reduce(track_of(boxes, frames_count=frames))
    assert [(key.frame, key.enabled) for key in reduced.keyframes] == keys


def test_a_track_that_people_drew_comes_back_with_their_key_frames() -> None:
    drawn = Track(
        (KeyFrame(1, Box((0, 0, 50, 50)), time_s=0.04), KeyFrame(20, Box((300, 40, 380, 120)), time_s=0.8),
         KeyFrame(40, Box((0, 0, 50, 50)), enabled=False, time_s=1.6)), 100, 4.0)  # fmt: skip
    assert reduce(drawn, min_iou=0.99) == drawn


def test_no_tolerance_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        reduce(Track((), 5), min_iou=1.5)
