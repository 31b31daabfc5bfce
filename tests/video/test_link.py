"""Detections into tracks: whose class, how long, on which of Label Studio's frames, with how few key frames."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterable

import numpy as np
import pytest

from labelloop.core.errors import LabelloopError
from labelloop.core.regions import Box, Region, Track
from labelloop.video.interpolate import interpolate
from labelloop.video.lifespans import boxes_by_frame, lifespans
from labelloop.video.link import PIECE, TRACKERS, Clock, Linker, LinkOptions, distinct
from labelloop.video.overlap import iou_upright
from labelloop.video.tracker import as_detections

CLASSES = ("person", "dog", "cat")
FPS = 25.0

Found = tuple[tuple[float, float, float, float], float, int]


def at(x: float, y: float = 100, *, side: float = 80) -> tuple[float, float, float, float]:
    return (x, y, x + side, y + side)


def link(
    frames: Iterable[list[Found]],
    *,
    options: LinkOptions | None = None,
    rate: float = FPS,
    every: int = 1,
    fps: float = FPS,
) -> tuple[Region, ...]:
    """Frames of a film, of which every n-th is looked at, on a template that counts `rate` frames a second."""
    frames = list(frames)
    clock = Clock(fps=fps, duration_s=len(frames) / fps, frame_rate=rate)
    linker = Linker(options or LinkOptions(), classes=CLASSES, clock=clock, steps_per_s=fps / every)
    for index in range(0, len(frames), every):
        linker.add(index / fps, as_detections(frames[index]))
    return linker.finish()


def track_of(region: Region) -> Track:
    assert isinstance(region.shape, Track)
    return region.shape


def seen(region: Region) -> list[tuple[int, int]]:
    return [(life.start, life.end) for life in lifespans(track_of(region))]


def test_a_thing_is_one_track_with_its_class_score_and_frames() -> None:
    (region,) = link([[(at(10 + 2 * step), 0.8, 1)] if 5 <= step < 45 else [] for step in range(50)])
    assert (region.label, region.score) == ("dog", pytest.approx(0.8))
    track = track_of(region)
    assert seen(region) == [(6, 45)]
    assert (track.frames_count, track.duration_s) == (50, 2.0)
    assert [key.frame for key in track.keyframes] == [6, 45]
    assert [key.enabled for key in track.keyframes] == [True, False]
    assert [key.time_s for key in track.keyframes] == [6 / 25, 45 / 25]
    assert boxes_by_frame(track)[26].xyxy == pytest.approx(at(60))


def test_the_class_with_the_most_score_wins_and_the_others_lower_the_score() -> None:
    (region,) = link([[(at(10), 0.9 if step < 12 else 0.5, 1 if step < 12 else 2)] for step in range(20)])
    assert region.label == "dog"
    assert region.score == pytest.approx(0.9 * 12 / 20)


@pytest.mark.parametrize(("frames", "tracks"), [(5, 0), (7, 0), (8, 1), (9, 1)], ids=str)
def test_what_was_hardly_seen_is_dropped(frames: int, tracks: int) -> None:
    assert len(link([[(at(10), 0.9, 0)] if step < frames else [] for step in range(60)])) == tracks


@pytest.mark.parametrize(
    ("gap", "lives"),
    [(0, [(1, 60)]), (5, [(1, 60)]), (20, [(1, 20), (41, 60)]), (29, [(1, 20)])],
    ids=["none", "short: filled", "long: nothing is drawn in it", "too long: another thing"],
)
def test_gaps(gap: int, lives: list[tuple[int, int]]) -> None:
    regions = link([[] if 20 <= step < 20 + gap else [(at(10 + step), 0.9, 0)] for step in range(60)])
    assert seen(regions[0]) == lives
    assert len(regions) == (2 if gap == 29 else 1)


def test_a_thing_that_is_there_at_the_end_stays() -> None:
    (region,) = link([[(at(10), 0.9, 0)]] * 31, every=3)
    assert seen(region) == [(1, 31)]
    assert track_of(region).keyframes[-1].enabled


def test_one_box_with_two_names_is_one_thing() -> None:
    found = as_detections([(at(10), 0.5, 1), (at(11), 0.9, 2), (at(300), 0.2, 0)])
    assert distinct(found).classes.tolist() == [2, 0]


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.parametrize("rate", [25.0, 24.0, 12.0, 60.0, 29.97], ids=str)
def test_boxes_are_where_the_template_shows_them(rate: float, every: int) -> None:
    """Whatever the template counts, its frame j is the film at (j - 1/2) / rate, and there the box is drawn."""
    speed = 60.0  # pixels a second
    (region,) = link(
        [[(at(10 + speed * (step + 0.5) / FPS), 0.9, 0)] for step in range(100)],
        options=LinkOptions(min_iou=0.97),
        rate=rate,
        every=every,
    )
    track = track_of(region)
    assert track.frames_count == pytest.approx(4 * rate, abs=1)
    dense = boxes_by_frame(track)
    assert min(dense) == 1
    assert max(dense) == track.frames_count
    for frame in range(5, int(3.5 * rate)):
        assert dense[frame].xyxy[0] == pytest.approx(10 + speed * (frame - 0.5) / rate, abs=2.5), frame


def test_uneven_frames_are_placed_by_their_time() -> None:
    """A film that stands still for a second in the middle: ten frames, a pause, ten frames."""
    times = [index / 25 for index in range(25)] + [2.0 + index / 25 for index in range(25)]
    linker = Linker(LinkOptions(bridge_s=2.0), classes=CLASSES, clock=Clock(25, 3.0, 25), steps_per_s=25)
    for time_s in times:
        linker.add(time_s, as_detections([(at(10 + 40 * time_s), 0.9, 0)]))
    (region,) = linker.finish()
    dense = boxes_by_frame(track_of(region))
    assert dense[70].xyxy[0] == pytest.approx(10 + 40 * 69.5 / 25, abs=3)
    assert set(dense) == set(range(1, 76))


def test_a_long_track_is_drawn_in_pieces_that_join() -> None:
    """A thing on a winding way through many pieces: every frame there, and as faithful as was asked for."""

    def way(step: int) -> tuple[float, float, float, float]:
        return at(300 + 250 * math.sin(step / 20), 200 + 100 * math.cos(step / 13), side=60 + 20 * math.sin(step / 31))

    frames = 7 * PIECE + 13
    options = LinkOptions(min_iou=0.8)
    (region,) = link([[(way(step), 0.9, 0)] for step in range(frames)], options=options)
    dense = boxes_by_frame(track_of(region))
    assert set(dense) == set(range(1, frames + 1))
    truth = np.array([way(step) for step in range(frames)])
    drawn = np.array([dense[frame].xyxy for frame in range(1, frames + 1)])
    assert iou_upright(truth, drawn).min() >= 0.8 - 1e-6
    assert len(track_of(region).keyframes) < frames / 5
    assert all(key.enabled for key in track_of(region).keyframes)


def test_memory_does_not_grow_with_the_film() -> None:
    """What is kept of a thing that stands still is a key frame for each piece."""

    def kept(frames: int) -> int:
        clock = Clock(25, frames / 25, 25)
        linker = Linker(LinkOptions(), classes=CLASSES, clock=clock, steps_per_s=25)
        tracemalloc.start()
        for step in range(frames):
            linker.add(step / 25, as_detections([(at(100 + step / 10), 0.9, 0)]))
        size = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        return size

    short, long = kept(2 * PIECE + 5), kept(5 * PIECE + 5)
    assert long - short < 3 * PIECE * 20  # bytes a frame; the box alone has 32


@pytest.mark.parametrize("name", TRACKERS)
def test_every_tracker_can_be_chosen(name: str) -> None:
    options = LinkOptions(tracker=name)  # type: ignore[arg-type]
    regions = link([[(at(10 + step), 0.9, 0), (at(500 - step), 0.8, 1)] for step in range(40)], options=options)
    assert sorted(region.label or "" for region in regions) == ["dog", "person"]
    assert all(seen(region) == [(1, 40)] for region in regions)


def test_a_tracker_that_does_not_exist() -> None:
    with pytest.raises(LabelloopError, match=r"There is no tracker 'sort'.*bytetrack"):
        link([[]], options=LinkOptions(tracker="sort"))  # type: ignore[arg-type]


def test_a_film_without_anything() -> None:
    assert link([[]] * 30) == ()


def test_key_frames_are_those_of_interpolation() -> None:
    """What is drawn on all frames is what Label Studio makes of it."""
    (region,) = link([[(at(10 + 3 * step), 0.9, 0)] for step in range(50)])
    assert all(isinstance(key.box, Box) for key in interpolate(track_of(region)).keyframes)
