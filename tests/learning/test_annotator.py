"""What a person does to drawn boxes, and how long it takes."""

from __future__ import annotations

import pytest

from labelloop.core.errors import SimulationError
from labelloop.core.regions import Box, Region, Whole
from labelloop.learning.annotator import Actions, Times, correct, parse_times


def box(left: float, top: float = 0, *, label: str = "car", score: float | None = None) -> Region:
    """A square of 20 pixels."""
    return Region(Box((left, top, left + 20, top + 20)), label=label, score=score)


CASES = {
    "nothing there, nothing drawn": ([], [], Actions(1)),
    "nothing drawn": ([], [box(0), box(50)], Actions(1, added=2)),
    "drawn where nothing is": ([box(0)], [], Actions(1, deleted=1)),
    "exact": ([box(0)], [box(0)], Actions(1, accepted=1)),
    "IoU 0.74 is left": ([box(3)], [box(0)], Actions(1, accepted=1)),
    "IoU 0.60 is moved": ([box(5)], [box(0)], Actions(1, moved=1)),
    "IoU 0.43 is drawn anew": ([box(8)], [box(0)], Actions(1, deleted=1, added=1)),
    "a wrong label is drawn anew": ([box(0, label="dog")], [box(0)], Actions(1, deleted=1, added=1)),
    "twice the same thing": ([box(0), box(1)], [box(0)], Actions(1, accepted=1, deleted=1)),
    "each thing once, the better pair first": ([box(2), box(0)], [box(0), box(5)], Actions(1, accepted=2)),
    "what has no place on the picture is no box": ([Region(Whole(), label="car")], [], Actions(1, deleted=1)),
}


@pytest.mark.parametrize(("drawn", "truth", "expected"), CASES.values(), ids=CASES)
def test_what_there_is_to_do(drawn: list[Region], truth: list[Region], expected: Actions) -> None:
    assert correct(drawn, truth) == expected


def test_time_is_counts_times_seconds() -> None:
    actions = Actions(pictures=2, accepted=5, moved=3, deleted=1, added=4) + Actions(pictures=1, added=1)
    assert actions.seconds(Times(accept=1, move=10, delete=100, add=1000, picture=10_000)) == 35_135
    assert (actions.edits, actions.boxes) == (9, 13)


def test_times_are_read_by_name() -> None:
    assert parse_times("add=25, move=6.5") == Times(add=25, move=6.5)
    assert parse_times("") == Times()


@pytest.mark.parametrize("text", ["draw=7", "add", "add=quick", "add=-1", "add=inf", "7"])
def test_a_wrong_time_is_named(text: str) -> None:
    with pytest.raises(SimulationError, match="is no time of an action") as refused:
        parse_times(text)
    assert "accept, move, delete, add, picture" in refused.value.hint
