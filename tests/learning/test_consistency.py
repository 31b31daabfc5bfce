from __future__ import annotations

import numpy as np
import pytest

from labelloop.core.geometry import iou
from labelloop.core.outlines import bounding_box, rings_of
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Mask, MediaKey, Point, Polygon, Raw, Region, Shape, Size, Whole
from labelloop.learning.consistency import inconsistency, mirrored, mirrored_picture

WIDTH = 100


def box(left: float, score: float | None = 0.8, label: str = "car", **more: object) -> Region:
    return Region(Box((left, 0, left + 10, 10)), label, score, **more)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param([], [], 0.0, id="nothing twice"),
        pytest.param([box(0)], [box(0)], 0.0, id="the same"),
        pytest.param([box(0)], [], 1.0, id="gone"),
        pytest.param([box(0)], [box(50)], 1.0, id="elsewhere"),
        pytest.param([box(0)], [box(0, label="bus")], 1.0, id="another class"),
        pytest.param([box(0)], [box(5)], 1 - 1 / 3, id="half beside"),
        pytest.param([box(0, 0.9)], [box(0, 0.4)], 0.5, id="less sure"),
        pytest.param([box(0, 0.9)], [box(5, 0.4)], 1 - 0.5 / 3, id="both"),
        pytest.param([box(0, 0.31)], [box(0, 0.29)], 0.02, id="drawn and nearly drawn find each other"),
        pytest.param([box(0), box(50, 0.05)], [box(0), box(70, 0.1)], 0.0, id="noise below the threshold"),
        pytest.param([box(0), box(50, 0.05)], [box(0), box(55, 0.1)], 0.0, id="noise that moves"),
        pytest.param([box(0)], [box(5), box(0, 0.7)], 0.55, id="the same place before the same score"),
        pytest.param([box(0), box(50)], [box(0)], 0.5, id="one of two"),
        pytest.param([box(0)], [box(0), box(1)], 0.5, id="one to one: a double has no partner"),
        pytest.param([box(0, media=MediaKey("a"))], [box(0, media=MediaKey("b"))], 1.0, id="another page"),
        pytest.param([Region(Whole(), "day", 0.9)], [Region(Whole(), "day", 0.7)], 0.2, id="a class of the picture"),
        pytest.param([Region(Whole(), "day", 0.9)], [Region(Whole(), "night", 0.9)], 1.0, id="day or night"),
        pytest.param([Region(Point(1, 1), "nose", 0.9)], [Region(Raw({}))], 0.0, id="no area: left out"),
        pytest.param([box(0, None)], [box(0, 1.0)], 0.0, id="without a score is sure"),
    ],
)
def test_inconsistency(first: list[Region], second: list[Region], expected: float) -> None:
    assert inconsistency(first, second, threshold=0.3) == pytest.approx(expected)
    assert inconsistency(second, first, threshold=0.3) == pytest.approx(expected)


def test_the_better_partner_wins() -> None:
    first, second = [box(0), box(4)], [box(4), box(9)]
    # 4 with 4 fully, 0 with 9 at 1/19: below what counts as one thing
    assert inconsistency(first, second, threshold=0.3) == pytest.approx(1 - 1 / 3)


def test_bounds_symmetry_and_independence_of_order() -> None:
    rng = np.random.default_rng(1)

    def look() -> list[Region]:
        return [
            box(float(rng.integers(0, 30)), float(rng.random()), str(rng.choice(["car", "bus"])))
            for _ in range(rng.integers(0, 12))
        ]

    for _ in range(200):
        first, second = look(), look()
        value = inconsistency(first, second, threshold=0.3)
        assert 0 <= value <= 1
        assert inconsistency(second[::-1], first[::-1], threshold=0.3) == pytest.approx(value)
        assert inconsistency(first, first[::-1], threshold=0.3) == pytest.approx(0)


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(Box((10, 20, 40, 30)), id="box"),
        pytest.param(Box((10, 20, 40, 30), angle_deg=30), id="turned box"),
        pytest.param(Polygon(((1, 2), (30, 4), (5, 60))), id="polygon"),
        pytest.param(Point(7, 8), id="point"),
        pytest.param(Mask((((((1, 2), (30, 4), (5, 60))), ((6, 20), (9, 20), (8, 30))),)), id="mask with a hole"),
    ],
)
def test_mirroring_exchanges_left_and_right(shape: Shape) -> None:
    (there,) = mirrored([Region(shape, "car", 0.5)], width=WIDTH)
    for here, mirrored_ring in zip(rings_of(shape), rings_of(there.shape), strict=True):
        expected = sorted((WIDTH - x, y) for x, y in here)
        np.testing.assert_allclose(sorted(mirrored_ring), expected, atol=1e-9)
    if isinstance(there.shape, Box):
        assert there.shape.xyxy[0] < there.shape.xyxy[2]
    (back,) = mirrored([there], width=WIDTH)
    for here, again in zip(rings_of(shape), rings_of(back.shape), strict=True):
        np.testing.assert_allclose(again, here, atol=1e-9)
    assert (there.label, there.score) == ("car", 0.5)


def test_what_has_no_place_stays() -> None:
    regions = (Region(Whole(), "day", 0.5), Region(Raw({"id": "x"})))
    assert mirrored(regions, width=WIDTH) == regions


def test_a_box_found_in_the_mirrored_picture_comes_back_to_where_it_is() -> None:
    rgb = np.zeros((40, WIDTH, 3), np.uint8)
    rgb[10:20, 5:25] = 255

    def find(picture: Picture) -> tuple[Region, ...]:
        rows, columns = np.nonzero(picture.rgb[:, :, 0])
        return (Region(Box((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)), "blob", 0.9),)

    picture = Picture(rgb=rgb, size=Size(WIDTH, 40))
    mirror = mirrored_picture(picture)
    assert mirror.rgb.flags.c_contiguous
    assert mirror.size == picture.size
    assert inconsistency(find(picture), find(mirror), threshold=0.3) == 1.0
    back = mirrored(find(mirror), width=picture.size.width)
    assert inconsistency(find(picture), back, threshold=0.3) == 0.0
    boxes = [np.array([bounding_box(found[0].shape).xyxy]) for found in (find(picture), back)]
    assert iou(boxes[0], boxes[1])[0, 0] == 1.0
