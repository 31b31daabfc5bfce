"""From the classes of frame after frame to the stretches of a film that show them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from labelloop.core.regions import Interval, Whole
from labelloop.video.link import Clock
from labelloop.video.timeline import Sayings, Timeline, TimelineOptions
from labelloop.video.tracker import Detections, as_detections

CLASSES = ("run", "jump", "rest")
FPS = 25.0
SURE = {"run": 0.5, "jump": 0.5}

Scores = Callable[[int], dict[str, float]]


def frame_of(scores: dict[str, float]) -> Detections:
    return as_detections([((0, 0, 0, 0), score, CLASSES.index(name)) for name, score in scores.items()])


def stretches(
    says: Scores, *, frames: int = 100, rate: float = FPS, every: int = 1, sure: dict[str, float] = SURE
) -> list[tuple[str | None, int, int]]:
    clock = Clock(FPS, frames / FPS, rate)
    timeline = Timeline(TimelineOptions(), CLASSES, sure=sure, clock=clock, steps_per_s=FPS / every)
    for number in range(1, frames + 1, every):
        timeline.add((number - 1) / FPS, frame_of(says(number)))
    found = []
    for region in timeline.finish():
        assert isinstance(region.shape, Interval)
        found.append((region.label, region.shape.first, region.shape.last))
    return found


def between(first: int, last: int, score: float = 0.9, otherwise: float = 0.1) -> Scores:
    return lambda number: {"run": score if first <= number <= last else otherwise}


CASES: dict[str, tuple[Scores, list[tuple[str, int, int]]]] = {
    "from one frame to another": (between(21, 60), [("run", 21, 60)]),
    "the whole film": (between(1, 100), [("run", 1, 100)]),
    "from the first frame": (between(1, 30), [("run", 1, 30)]),
    "to the last frame": (between(70, 100), [("run", 70, 100)]),
    "never": (between(0, 0), []),
    "never sure": (between(21, 60, score=0.45), []),
    "exactly at the threshold": (between(21, 60, score=0.5), [("run", 21, 60)]),
    "half a second is enough": (between(21, 33), [("run", 21, 33)]),
    "less is not": (between(21, 32), []),
    "sure in the middle, likely around it": (
        lambda n: {"run": 0.9 if 40 <= n <= 45 else 0.35 if 21 <= n <= 60 else 0.1},
        [("run", 21, 60)],
    ),
    "a flicker does not cut it": (lambda n: {"run": 0.0 if n in (30, 31, 44) else 0.8}, [("run", 1, 100)]),
    "a trembling score does not cut it": (lambda n: {"run": 0.55 if n % 2 else 0.4}, [("run", 1, 100)]),
    "two stretches": (
        lambda n: {"run": 0.9 if n <= 30 or n > 60 else 0.0},
        [("run", 1, 30), ("run", 61, 100)],
    ),
    "two classes at a time": (
        lambda n: {"run": 0.9 if n <= 60 else 0.0, "jump": 0.7 if n > 40 else 0.0},
        [("run", 1, 60), ("jump", 41, 100)],
    ),
    "a class that is not named is not there": (
        lambda n: {"run": 0.9} if 21 <= n <= 60 else {},
        [("run", 21, 60)],
    ),
    "a class that nobody asked for": (lambda _: {"rest": 1.0}, []),
}


@pytest.mark.parametrize("name", CASES, ids=str)
def test_stretches_of_a_film(name: str) -> None:
    says, expected = CASES[name]
    assert stretches(says) == expected


@pytest.mark.parametrize(("rate", "expected"), [(25, (26, 75)), (50, (51, 150)), (12.5, (13, 38)), (30, (31, 90))])
def test_frames_are_counted_as_the_label_config_does(rate: float, expected: tuple[int, int]) -> None:
    """Seconds 1 to 3: frame j is what is shown at (j - 1/2) / rate."""
    ((_, first, last),) = stretches(between(26, 75), rate=rate)
    assert (first, last) == (pytest.approx(expected[0], abs=1), pytest.approx(expected[1], abs=1))
    assert (first - 0.5) / rate >= 1.0
    assert (last - 0.5) / rate <= 3.0


@pytest.mark.parametrize("every", [2, 3, 5])
def test_a_frame_that_is_looked_at_stands_for_those_up_to_the_next_one(every: int) -> None:
    (first, last) = stretches(between(31, 60), every=every)[0][1:]
    assert first == pytest.approx(31, abs=every)
    assert last == pytest.approx(60, abs=every)
    assert stretches(between(1, 100), every=every) == [("run", 1, 100)]


def test_the_score_is_that_of_the_frames_it_is_sure_of() -> None:
    clock = Clock(FPS, 4.0, FPS)
    sayings = Sayings(CLASSES, sure=SURE, clock=clock, steps_per_s=FPS)
    for number in range(1, 101):
        sayings.add((number - 1) / FPS, frame_of({"run": 0.4 if number <= 50 else 0.8 if number <= 75 else 0.6}))
    whole, stretch = sayings.finish()
    assert (type(whole.shape), whole.score) == (Whole, pytest.approx(0.55))
    assert (stretch.shape, stretch.score) == (Interval(1, 100), pytest.approx(0.7))
    assert stretch.score >= SURE["run"], "a label config draws nothing below its threshold"


def test_many_changes_cost_no_memory_beyond_what_is_found() -> None:
    """Flickering that never lasts leaves nothing behind."""
    assert stretches(lambda n: {"run": 0.9 if n % 40 < 5 else 0.0}, frames=20_000) == []
