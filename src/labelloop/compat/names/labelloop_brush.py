"""Masks as Label Studio's brush keeps them: the run-length code of the rle-pack library, four bytes a pixel."""

from __future__ import annotations

import re
from typing import Any

WORD_SIZE = 8
RUN_SIZES = (3, 4, 8, 16)
"""Bits of a run's length, in the order in which two bits choose among them."""

_REPEATED = re.compile(rb"(.)\1+", re.DOTALL)


def encode_rle(values: Any) -> list[int]:
    """The code of a flat sequence of bytes, as a list of byte values.

    A bit stream: the number of bytes (32 bits), the size of a byte less one (5), the sizes of run lengths less one (4
    each), then runs: one bit (1: one byte repeated, 0: a literal row), two bits for the size of the length, the length
    less one, and the byte or the bytes.
    """
    data = bytes(values)
    bits = [format(len(data), "032b"), format(WORD_SIZE - 1, "05b")]
    bits += [format(size - 1, "04b") for size in RUN_SIZES]
    for same, row in _runs(data):
        choice = next(i for i, size in enumerate(RUN_SIZES) if len(row) <= 1 << size)
        bits += [str(int(same)), format(choice, "02b"), format(len(row) - 1, f"0{RUN_SIZES[choice]}b")]
        bits += [format(byte, "08b") for byte in (row[:1] if same else row)]
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _runs(data: bytes) -> Any:
    """Repeated bytes and rows of single ones, none longer than the largest length."""
    literal = 0
    for found in _REPEATED.finditer(data):
        yield from _rows(data[literal : found.start()], False)
        yield from _rows(found[0], True)
        literal = found.end()
    yield from _rows(data[literal:], False)


def _rows(data: bytes, same: bool) -> Any:
    longest = 1 << RUN_SIZES[-1]
    for at in range(0, len(data), longest):
        yield same, data[at : at + longest]


def decode_rle(code: Any, print_params: bool = False) -> Any:
    """What `encode_rle` was given: a flat uint8 array where there is a NumPy, else bytes. Raises ValueError for a code
    that was cut off."""
    del print_params
    data, at = bytes(code), 0

    def take(count: int) -> int:
        nonlocal at
        begin, at = at, at + count
        if at > 8 * len(data):
            raise ValueError("the code ends too early")
        end = (at + 7) // 8
        return int.from_bytes(data[begin // 8 : end], "big") >> (8 * end - at) & (1 << count) - 1

    size, word_size = take(32), take(5) + 1
    run_sizes = [take(4) + 1 for _ in RUN_SIZES]
    found = bytearray()
    while len(found) < size:
        same, length = take(1), take(run_sizes[take(2)]) + 1
        if same:
            found += bytes([take(word_size)]) * length
        else:
            found += bytes(take(word_size) for _ in range(length))
    try:
        import numpy
    except ImportError:
        return bytes(found)
    return numpy.frombuffer(found, numpy.uint8)


def mask2rle(mask: Any) -> list[int]:
    """The code of a mask [height, width] of 0 and 255 (or of truths): each pixel is red, green, blue and alpha."""
    rows = mask.tolist() if hasattr(mask, "tolist") else mask
    pixels = {False: b"\0" * 4, True: b"\xff" * 4}
    return encode_rle(b"".join(pixels[bool(value)] for row in rows for value in row))
