from __future__ import annotations

import pytest

from labelloop.core.regions import Box, MediaKey, Point, Region, Whole
from labelloop.learning.mistakes import suspicions


def box(left: float, label: str = "car", score: float | None = None, **more: object) -> Region:
    return Region(Box((left, 0, left + 10, 10)), label, score, **more)


@pytest.mark.parametrize(
    ("annotated", "predicted", "expected"),
    [
        pytest.param([box(0)], [box(1, score=0.95)], [], id="agreed"),
        pytest.param([], [box(0, score=0.95)], [("overlooked", 0.95)], id="nothing annotated"),
        pytest.param([box(50)], [box(0, score=0.95)], [("overlooked", 0.95)], id="elsewhere"),
        pytest.param([], [box(0, score=0.8)], [], id="not sure enough"),
        pytest.param([box(0)], [], [], id="a silent model contradicts nobody"),
        pytest.param([box(0)], [box(5, score=0.9)], [("misplaced", 0.6)], id="a third of overlap"),
        pytest.param([box(0, "bus")], [box(0, score=0.95)], [("swapped", 0.95)], id="another label"),
        pytest.param(
            [box(0, "person")],
            [box(0, "person", 0.6), box(0, "rider", 0.95)],
            [("overlooked", 0.95)],
            id="the other label is confirmed, so the second is missing",
        ),
        pytest.param([box(0)], [box(0, score=0.95), box(2, score=0.92)], [], id="a double of the model is no mistake"),
        pytest.param(
            [Region(Whole(), "day")], [Region(Whole(), "night", 0.99)], [("swapped", 0.99)], id="class of the picture"
        ),
        pytest.param(
            [box(0, media=MediaKey("a"))],
            [box(0, score=0.95, media=MediaKey("b"))],
            [("overlooked", 0.95)],
            id="other page",
        ),
        pytest.param([], [Region(Point(1, 1), "nose", 0.99)], [], id="points have no area"),
        pytest.param(
            [box(0), box(30, "bus")],
            [box(5, score=0.9), box(30, score=0.9), box(90, score=0.99)],
            [("overlooked", 0.99), ("swapped", 0.9), ("misplaced", 0.6)],
            id="most suspicious first",
        ),
    ],
)
def test_suspicions(annotated: list[Region], predicted: list[Region], expected: list[tuple[str, float]]) -> None:
    found = suspicions(annotated, predicted)
    assert [one.kind for one in found] == [kind for kind, _ in expected]
    assert [one.weight for one in found] == pytest.approx([weight for _, weight in expected])
    assert all((one.person is None) == (one.kind == "overlooked") for one in found)
    assert all(one.model in predicted and (one.person is None or one.person in annotated) for one in found)


def test_a_lower_bar_finds_more() -> None:
    predicted = [box(0, score=0.6), box(50, score=0.95)]
    assert len(suspicions([], predicted)) == 1
    assert len(suspicions([], predicted, sure=0.5)) == 2
