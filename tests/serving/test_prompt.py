"""What a click means."""

from __future__ import annotations

import pytest

from labelloop.core.regions import Box, Mask, Point, Polygon, Raw, Region, Whole
from labelloop.core.tasks import Prompt
from labelloop.serving.prompt import select

STREET = Region(Box((0, 0, 100, 100)), "street", 0.9)
CAR = Region(Box((10, 10, 50, 50)), "car", 0.8)
DRIVER = Region(Polygon(((20, 20), (30, 20), (30, 30), (20, 30))), "person", 0.7)
DOG = Region(Box((70, 70, 90, 90)), "dog", 0.6)
FENCE = Region(
    Mask(((((60, 5), (98, 5), (98, 25), (60, 25)), ((65, 10), (90, 10), (90, 20), (65, 20))),)), "fence", 0.5
)
"""Around a yard, which is a hole in it."""
FOUND = (STREET, CAR, DRIVER, DOG, FENCE)


def marks(*shapes: object) -> tuple[Region, ...]:
    return tuple(Region(shape) for shape in shapes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("include", "exclude", "labels"),
    [
        ((Point(25, 25),), (), ["person"]),
        ((Point(45, 45),), (), ["car"]),
        ((Point(99, 1),), (), ["street"]),
        ((Point(25, 25), Point(80, 80)), (), ["person", "dog"]),
        ((Point(62, 15),), (), ["fence"]),
        ((Point(75, 15),), (), ["street"]),
        ((Box((55, 0, 100, 30)),), (), ["fence"]),
        ((Point(25, 25),), (Point(22, 22),), []),
        ((Point(45, 45),), (Point(5, 5),), ["car"]),
        ((Box((5, 5, 60, 60)),), (), ["street", "car", "person"]),
        ((Box((60, 60, 95, 95)),), (), ["dog"]),
        ((Polygon(((60, 60), (95, 60), (95, 70))),), (), []),
        ((Point(200, 200),), (), []),
        ((Whole(),), (), ["street", "car", "person", "dog", "fence"]),
        ((Raw({}),), (), ["street", "car", "person", "dog", "fence"]),
        ((), (Point(80, 80),), ["car", "person", "fence"]),
    ],
    ids=[
        "the smallest around the point", "the car beside its driver", "only the street", "two clicks",
        "the fence", "the yard", "a box around the fence",
        "excluded", "only the street is excluded", "centres in a box", "a box around the dog",
        "an outline beside the dog", "nothing there", "no place", "not understood", "only an exclusion",
    ],
)  # fmt: skip
def test_what_is_meant(include: tuple[object, ...], exclude: tuple[object, ...], labels: list[str]) -> None:
    chosen = select(FOUND, Prompt(marks(*include), marks(*exclude)))
    assert [region.label for region in chosen] == labels
