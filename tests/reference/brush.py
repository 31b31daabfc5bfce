"""Reads what Label Studio's brush keeps of a mask, apart from the code that writes it."""

from __future__ import annotations


def decode_rle(code: list[int]) -> list[int]:
    """The bytes of a run-length code of rle-pack, read bit by bit as its description says."""
    bits = "".join(format(byte, "08b") for byte in code)
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    size, word = take(32), take(5) + 1
    runs = [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < size:
        same, length = take(1), take(runs[take(2)]) + 1
        values += [take(word)] * length if same else [take(word) for _ in range(length)]
    return values
