"""The frames of a film, whether it is one file or a folder of pictures, by number, as JPEGs on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.errors import FilmError
from labelloop.core.regions import Size
from labelloop.media.film import Film, describe, read_frames
from labelloop.media.filming import plan_films
from labelloop.media.image import decode

JPEG_QUALITY = 95


class Frames(Protocol):
    """Upright frames, numbered from 1."""

    @property
    def size(self) -> Size: ...

    @property
    def frames_count(self) -> int: ...

    def read(self, numbers: set[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """The frames of these numbers in order, uint8 [height, width, 3]; numbers that do not exist are passed over."""


class FilmFrames(msgspec.Struct, frozen=True):
    film: Film

    @property
    def size(self) -> Size:
        return self.film.size

    @property
    def frames_count(self) -> int:
        return self.film.frames_count

    def read(self, numbers: set[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        there = [number for number in numbers if 1 <= number <= self.frames_count]
        if there:
            for frame in read_frames(self.film.path, first=min(there), last=max(there)):
                if frame.number in numbers:
                    yield frame.number, frame.rgb


class FolderFrames(msgspec.Struct, frozen=True):
    pictures: tuple[Path, ...]
    size: Size
    max_pixels: int

    @property
    def frames_count(self) -> int:
        return len(self.pictures)

    def read(self, numbers: set[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        for number, path in enumerate(self.pictures, start=1):
            if number in numbers:
                picture = decode(path.read_bytes(), max_pixels=self.max_pixels)
                if picture.size != self.size:
                    raise FilmError(
                        f"{path} has {picture.size.width} x {picture.size.height} pixels and the first picture "
                        f"{self.size.width} x {self.size.height}.",
                        hint="Boxes were drawn on a film of one size: name the film instead of its pictures.",
                    )
                yield number, picture.rgb


def open_frames(path: Path, *, max_pixels: int) -> Frames:
    """A film, or a folder of pictures in natural order. Raises MediaError."""
    if not path.is_dir():
        return FilmFrames(describe(path))
    (plan,) = plan_films(path)
    first = decode(plan.pictures[0].read_bytes(), max_pixels=max_pixels)
    return FolderFrames(plan.pictures, first.size, max_pixels)


def save_frames(frames: Frames, targets: Mapping[int, Path]) -> int:
    """Write frames as JPEGs to the paths beside their numbers; returns how many there were. Raises MediaError."""
    import cv2

    saved = 0
    for number, rgb in frames.read(set(targets)):
        target = targets[number]
        target.parent.mkdir(parents=True, exist_ok=True)
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        done, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not done:
            raise FilmError(f"Frame {number} cannot be written to {target}.")
        target.write_bytes(data.tobytes())
        saved += 1
    return saved
