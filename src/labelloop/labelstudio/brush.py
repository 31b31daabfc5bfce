"""Masks as Label Studio's brush keeps them: the run-length code of the rle-pack library over pixels of four bytes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelloop.compat.names import labelloop_brush
from labelloop.compat.names.labelloop_brush import RUN_SIZES
from labelloop.compat.names.labelloop_masks import parts_of
from labelloop.core.outlines import mask_of
from labelloop.core.regions import Mask, Size

LONGEST_RUN = 1 << RUN_SIZES[-1]
SIZE_BYTES = 4
"""At the beginning of a code: of how many bytes it is."""

CHANNELS = 4
"""Red, green, blue and alpha; a covered pixel has 255 in all of them."""

HALF = 128
"""A brush's edge is smooth: pixels are covered by halves."""

MOST_PIXELS = 50_000_000
"""Of a mask that is read: few bytes of code can mean any number of pixels, of four bytes each."""

FARTHEST_PX = 1_000_000
"""A point farther off is in nobody's picture, and would overflow where lines are drawn."""


def rle_of(mask: Mask, size: Size) -> list[int]:
    """The code of a mask on a picture of `size`, as byte values; empty where it covers nothing of it."""
    painted = paint(mask, size)
    return encode_rle(painted) if painted.any() else []


def paint(mask: Mask, size: Size) -> NDArray[np.bool_]:
    """Which pixels [height, width] a mask covers; none where a point of it is no place."""
    import cv2

    canvas = np.zeros((size.height, size.width), np.uint8)
    for part in mask.parts:  # each by itself: OpenCV fills by the even-odd rule, and parts may touch
        rings = [np.asarray(ring, np.float64) - 0.5 for ring in part]  # pixel 0 has its middle at a half
        if all(ring.size and np.abs(ring).max() < FARTHEST_PX for ring in rings):  # false for NaN and infinity
            cv2.fillPoly(canvas, [np.rint(ring).astype(np.int32) for ring in rings], 1)
    return canvas.view(np.bool_)


def encode_rle(painted: NDArray[np.bool_]) -> list[int]:
    """The code of a mask [height, width].

    A bit stream: the number of bytes (32 bits), the size of a byte less one (5), the sizes of run lengths less one (4
    each), then runs: a one, since all bytes of ours are alike, two bits for the size of the length, the length less
    one, and the byte.
    """
    flat = painted.ravel()
    begins = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    lengths = np.diff(begins, append=flat.size) * CHANNELS
    bits = [format(flat.size * CHANNELS, "032b"), "00111", *(format(size - 1, "04b") for size in RUN_SIZES)]
    for covered, length in zip(flat[begins].tolist(), lengths.tolist(), strict=True):
        byte = "11111111" if covered else "00000000"
        whole, rest = divmod(length, LONGEST_RUN)
        bits += [_run(LONGEST_RUN, byte)] * whole
        bits += [_run(rest, byte)] if rest else []
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _run(length: int, byte: str) -> str:
    choice = next(number for number, bits in enumerate(RUN_SIZES) if length <= 1 << bits)
    return f"1{choice:02b}{length - 1:0{RUN_SIZES[choice]}b}{byte}"


def mask_from(code: Any, size: Size) -> Mask | None:
    """The mask that a code means on a picture of `size`, None where it covers nothing. Raises ValueError or TypeError
    for what is no code, and for that of another picture."""
    return mask_of(parts_of(decode_rle(code, size)))


def decode_rle(code: Any, size: Size) -> NDArray[np.bool_]:
    """Which pixels [height, width] a code covers, by their alpha. Raises as `mask_from` does."""
    if not isinstance(code, list):
        raise TypeError("a code is a list of bytes")
    data = bytes(code)
    promised = int.from_bytes(data[:SIZE_BYTES], "big")
    if promised != size.width * size.height * CHANNELS or promised > MOST_PIXELS * CHANNELS:
        raise ValueError(f"the code is of {promised} bytes, not of {size.width} x {size.height} pixels")
    values = np.frombuffer(labelloop_brush.decode_rle(data), np.uint8)
    if len(values) != promised:
        raise ValueError("the code goes on behind its picture")
    return np.asarray(values.reshape(size.height, size.width, CHANNELS)[:, :, -1] >= HALF)
