"""Small films made for tests, each frame of which says its number."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

BITS = 8


def numbered(number: int, *, width: int = 160, height: int = 96) -> NDArray[np.uint8]:
    """A picture that shows `number` as eight columns, black or white, above a red field on the left and a blue one on the right."""
    rgb = np.zeros((height, width, 3), np.uint8)
    for bit in range(BITS):
        rgb[: height // 2, bit * width // BITS : (bit + 1) * width // BITS] = 255 * (number >> bit & 1)
    rgb[height // 2 :, : width // 2] = (200, 30, 30)
    rgb[height // 2 :, width // 2 :] = (30, 30, 200)
    return rgb


def number_of(rgb: NDArray[np.uint8]) -> int:
    height, width = rgb.shape[:2]
    places = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    return sum(int(rgb[height // 4, x].mean() > 128) << bit for bit, x in enumerate(places))


def write(
    path: Path, ticks: Sequence[int], *, rate: Fraction = Fraction(25), codec: str = "libx264", **options: str
) -> Path:
    """A film whose frames are shown at `ticks` of 1 / rate and are numbered from 1."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"g": "10", **options})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        stream.time_base = 1 / rate
        for number, tick in enumerate(ticks, start=1):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = tick, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turned(path: Path, quarters: int) -> Path:
    """Writes into the header of an mp4 that players turn it clockwise by that many quarters, as telephones do."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4
    at += 4 + (20 if data[at] == 0 else 32) + 16
    one = 0x10000
    cos, sin = [(one, 0), (0, one), (-one, 0), (0, -one)][quarters % 4]
    struct.pack_into(">9i", data, at, cos, sin, 0, -sin, cos, 0, 0, 0, 0x40000000)
    path.write_bytes(data)
    return path


def numbers(frames: Iterable[NDArray[np.uint8]]) -> list[int]:
    return [number_of(rgb) for rgb in frames]
