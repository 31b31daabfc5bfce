"""Single shapes: corners, areas, what lies inside."""

from __future__ import annotations

import pytest

from labelloop.core.outlines import bounding_box, corners, outline_area, outline_contains, outline_of
from labelloop.core.regions import Box, Point, Polygon, Whole

SQUARE = ((0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0))
L_SHAPE = ((0.0, 0.0), (4.0, 0.0), (4.0, 1.0), (1.0, 1.0), (1.0, 4.0), (0.0, 4.0))


@pytest.mark.parametrize(
    ("angle", "first"), [(0, (0, 0)), (90, (3, -1)), (180, (4, 2)), (45, (2 - 0.7071, 1 - 2.1213))]
)
def test_the_first_corner_turns_clockwise_about_the_centre(angle: float, first: tuple[float, float]) -> None:
    assert corners(Box((0, 0, 4, 2), angle))[0] == pytest.approx(first, abs=1e-3)


def test_areas() -> None:
    assert outline_area(SQUARE) == 16
    assert outline_area(L_SHAPE) == 7
    assert outline_area(corners(Box((0, 0, 4, 2), 33))) == pytest.approx(8)
    assert outline_area(()) == 0


@pytest.mark.parametrize(
    ("outline", "point", "inside"),
    [
        (SQUARE, (2, 2), True),
        (SQUARE, (5, 2), False),
        (L_SHAPE, (3, 3), False),
        (L_SHAPE, (0.5, 3), True),
        (corners(Box((0, 0, 10, 2), 90)), (5, 5), True),
        (corners(Box((0, 0, 10, 2), 90)), (9, 1), False),
        ((), (0, 0), False),
    ],
    ids=["in", "out", "in the notch", "in the leg", "in a turned box", "where it was before the turn", "no outline"],
)
def test_what_lies_inside(outline: tuple[tuple[float, float], ...], point: tuple[float, float], inside: bool) -> None:
    assert outline_contains(outline, point) is inside


def test_bounding_boxes() -> None:
    assert bounding_box(Polygon(L_SHAPE)) == Box((0, 0, 4, 4))
    assert bounding_box(Point(3, 4)) == Box((3, 4, 3, 4))
    assert bounding_box(Whole()) is None
    assert outline_of(Whole()) == ()
