"""Small films in which coloured squares move, and an engine that sees them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Region, Size, Whole

FILM_CONFIG = (
    '<View><Labels name="kinds" toName="film"><Label value="Red" predicted_values="red"/><Label value="Blue"'
    ' predicted_values="blue"/></Labels><Video name="film" value="$video" frameRate="{rate}"/>'
    '<VideoRectangle name="box" toName="film"/></View>'
)

COLOURS: Mapping[str, tuple[int, int, int]] = {"red": (220, 30, 30), "blue": (30, 30, 220)}
WIDTH, HEIGHT, SIDE = 320, 192, 40

Way = Callable[[int], tuple[float, float] | None]
"""Frame from 1 -> the corner of a square, None where it is not there."""


def across(frame: int) -> tuple[float, float]:
    """The red square's way: two pixels to the right with each frame, and back."""
    step = 2 * frame % 500
    return (10.0 + (step if step < 250 else 500 - step), 20.0)


def scene(frame: int, ways: Mapping[str, Way], *, background: int | None = None) -> NDArray[np.uint8]:
    """Squares on plain grey or, with a number for it, on a wall of blots, and spotted."""
    rgb = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
    if background is not None:
        blots = np.random.default_rng(background).integers(60, 190, (HEIGHT // 12, WIDTH // 12), np.uint8)
        rgb = np.repeat(cv2.resize(blots, (WIDTH, HEIGHT))[..., None], 3, axis=2)
    for colour, way in ways.items():
        place = way(frame)
        if place is not None:
            left, top = (round(side) for side in place)
            thing = np.full((SIDE, SIDE, 3), COLOURS[colour], np.uint8) if background is None else _spotted(background)
            rgb[top : top + SIDE, left : left + SIDE] = thing
    return rgb


def _spotted(seed: int) -> NDArray[np.uint8]:
    """A square that looks like something, for what goes by looks."""
    spots = np.random.default_rng(seed + 1).integers(0, 255, (7, 7), np.uint8)
    return np.repeat(cv2.resize(spots, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)[..., None], 3, axis=2)


def write_scene(
    path: Path,
    *,
    frames: int = 50,
    fps: Fraction = Fraction(25),
    ways: Mapping[str, Way] | None = None,
    ticks: Sequence[int] | None = None,
    codec: str = "libx264",
    background: int | None = None,
) -> Path:
    """An H.264 film; frame n is shown at `ticks[n - 1]` / fps where they are given."""
    shown = ticks or range(frames)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.time_base = 1 / fps
        for number, tick in enumerate(shown, start=1):
            picture = av.VideoFrame.from_ndarray(
                scene(number, ways or {"red": across}, background=background), format="rgb24"
            )
            picture.pts, picture.time_base = tick, 1 / fps
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


class SquareEngine:
    """Finds the squares. `looked` counts the frames; `gate` closed lets nobody through; `at` is called with each count."""

    needs_file = False
    classes = tuple(COLOURS)
    max_batch = 4
    parallel = 2
    wants: Literal["picture", "nothing"] = "picture"
    input_size: Size | None = None

    def __init__(self, at: Callable[[int], None] = lambda _count: None) -> None:
        self.looked = 0
        self.gate = threading.Event()
        self.gate.set()
        self._at = at
        self._lock = threading.Lock()

    def prepare(self, picture: Picture) -> Any:
        return picture

    def predict(self, batch: Sequence[Picture]) -> list[tuple[Region, ...]]:
        assert self.gate.wait(60)
        return [self._look(picture) for picture in batch]

    def _look(self, picture: Picture) -> tuple[Region, ...]:
        with self._lock:
            self.looked += 1
            count = self.looked
        self._at(count)
        found = []
        for name, colour in COLOURS.items():
            near = (np.abs(picture.rgb.astype(int) - colour).max(axis=2) < 60).astype(np.uint8)
            _, _, stats, _ = cv2.connectedComponentsWithStats(near)
            for left, top, width, height, area in stats[1:]:
                if area > SIDE * SIDE / 4:
                    xyxy = (float(left), float(top), float(left + width), float(top + height))
                    found.append(Region(Box(xyxy), label=name, score=0.9))
        return tuple(found)


class ColourEngine(SquareEngine):
    """The same as a classifier: which colours a frame shows."""

    def _look(self, picture: Picture) -> tuple[Region, ...]:
        return tuple(Region(Whole(), label=found.label, score=found.score) for found in super()._look(picture))
