"""A drawn box is followed by its looks, and lost where there is nothing to follow any more."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from labelloop.core.regions import Box
from labelloop.video.flow import Flow, reduced

Rgb = NDArray[np.uint8]
WIDTH, HEIGHT = 640, 360


def texture(width: int, height: int, seed: int) -> Rgb:
    """Something with edges of all directions."""
    noise = np.random.default_rng(seed).integers(0, 255, (height // 6 + 2, width // 6 + 2, 3), np.uint8)
    return np.asarray(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


WALL, THING = texture(WIDTH, HEIGHT, 1), texture(80, 60, 2)


def frame(x: float, y: float, *, scale: float = 1.0, there: bool = True) -> Rgb:
    """The thing, with its middle at x, y, in front of the wall."""
    if not there:
        return WALL
    turn = np.array([[scale, 0, x - 40 * scale], [0, scale, y - 30 * scale]])
    thing = cv2.warpAffine(THING, turn, (WIDTH, HEIGHT))
    mask = cv2.warpAffine(np.full((60, 80), 255, np.uint8), turn, (WIDTH, HEIGHT))[..., None] > 127
    return np.where(mask, thing, WALL).astype(np.uint8)


def box(x: float, y: float, *, scale: float = 1.0) -> Box:
    return Box((x - 40 * scale, y - 30 * scale, x + 40 * scale, y + 30 * scale))


def follow(way: Callable[[int], Rgb], first: Box, *, steps: int) -> list[Box]:
    flow = Flow(reduced(way(0)), first, width=WIDTH)
    found: list[Box] = []
    for step in range(1, steps + 1):
        here = flow.next(reduced(way(step)))
        if here is None:
            break
        found.append(here)
    return found


@pytest.mark.parametrize("speed", [(0, 0), (1.5, 0.5), (4, -2), (8, 3)], ids=str)
def test_a_thing_that_moves(speed: tuple[float, float]) -> None:
    def at(step: int) -> tuple[float, float]:
        return 150 + speed[0] * step, 150 + speed[1] * step

    found = follow(lambda step: frame(*at(step)), box(*at(0)), steps=40)
    assert len(found) == 40
    for step, here in enumerate(found, start=1):
        assert here.xyxy == pytest.approx(box(*at(step)).xyxy, abs=7), step


def test_a_thing_that_comes_nearer() -> None:
    found = follow(lambda step: frame(300, 180, scale=1.012**step), box(300, 180), steps=50)
    assert len(found) == 50
    assert found[-1].xyxy == pytest.approx(box(300, 180, scale=1.012**50).xyxy, abs=15)


def test_a_thing_that_goes_away_is_lost() -> None:
    found = follow(lambda step: frame(200 + 3 * step, 150, there=step < 20), box(200, 150), steps=40)
    assert 18 <= len(found) <= 21


def test_a_thing_that_leaves_the_picture_is_lost() -> None:
    found = follow(lambda step: frame(560 + 4 * step, 150), box(560, 150), steps=60)
    assert 10 <= len(found) <= 32


def test_a_cut_is_the_end() -> None:
    other = texture(WIDTH, HEIGHT, 9)
    found = follow(lambda step: frame(200 + step, 150) if step < 15 else other, box(200, 150), steps=40)
    assert 13 <= len(found) <= 16


def test_a_large_film_is_followed_on_small_frames() -> None:
    """Boxes are in the film's pixels, whatever the frames are reduced to."""

    def large(step: int) -> Rgb:
        return np.asarray(cv2.resize(frame(150 + 2 * step, 150), (3 * WIDTH, 3 * HEIGHT)), np.uint8)

    assert reduced(large(0)).shape == (HEIGHT, WIDTH)
    flow = Flow(reduced(large(0)), Box(tuple(3 * side for side in box(150, 150).xyxy)), width=3 * WIDTH)  # type: ignore[arg-type]
    for step in range(1, 20):
        here = flow.next(reduced(large(step)))
    assert here is not None
    assert here.xyxy == pytest.approx([3 * side for side in box(188, 150).xyxy], abs=15)
