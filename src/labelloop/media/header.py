"""Format and size of a picture from its first bytes, so that a bomb is recognised before it is unpacked.

Only formats listed here are decoded at all: what browsers show, hence what can be labelled, and TIFF and JPEG 2000.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from labelloop.core.regions import Size

_U16 = struct.Struct(">H")
_JPEG_FRAME = struct.Struct(">HH")
_JPEG_STARTS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame, in all its kinds
_BOX_SEARCH = 1 << 16


class Header(NamedTuple):
    """`size` as stored, before any orientation is applied; None when the header is damaged."""

    format: str
    size: Size | None


def read_header(data: bytes) -> Header | None:
    """None if this is no picture that we decode."""
    for magic, offset, name, measure in _FORMATS:
        if data.startswith(magic, offset):
            try:
                return Header(name, measure(data))
            except (struct.error, IndexError):
                return Header(name, None)
    return None


def _jpeg(data: bytes) -> Size | None:
    at = 2
    while True:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _JPEG_STARTS:
            height, width = _JPEG_FRAME.unpack_from(data, at + 5)
            return Size(width, height)
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # no length follows
            at += 2
        else:
            at += 2 + _U16.unpack_from(data, at + 2)[0]


def _png(data: bytes) -> Size | None:
    return Size(*struct.unpack_from(">II", data, 16)) if data[12:16] == b"IHDR" else None


def _gif(data: bytes) -> Size:
    return Size(*struct.unpack_from("<HH", data, 6))


def _bmp(data: bytes) -> Size:
    old = struct.unpack_from("<I", data, 14)[0] == 12
    width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
    return Size(width, abs(height))  # negative: rows from top to bottom


def _webp(data: bytes) -> Size | None:
    kind = data[12:16]
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Size(width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8X" and len(data) >= 30:
        return Size(int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
    return None


def _tiff(data: bytes) -> Size | None:
    order = "<" if data[:2] == b"II" else ">"
    start = struct.unpack_from(f"{order}I", data, 4)[0]
    found = {}
    for at in range(start + 2, start + 2 + 12 * struct.unpack_from(f"{order}H", data, start)[0], 12):
        tag, kind = struct.unpack_from(f"{order}HH", data, at)
        if tag in (256, 257):
            found[tag] = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", data, at + 8)[0]
    return Size(found[256], found[257]) if len(found) == 2 else None


def _boxes(data: bytes, name: bytes, layout: str, skip: int) -> list[tuple[int, ...]]:
    """The numbers behind each box called `name` near the beginning of an ISO media file."""
    found, at = [], data.find(name, 0, _BOX_SEARCH)
    while at >= 0:
        found.append(struct.unpack_from(layout, data, at + 4 + skip))
        at = data.find(name, at + 4, _BOX_SEARCH)
    return found


def _avif(data: bytes) -> Size | None:
    # a tiled picture has a box for itself and one for its tiles, some have one for a thumbnail
    found = _boxes(data, b"ispe", ">II", 4)
    return Size(*max(found)) if found else None


def _jpeg2000(data: bytes) -> Size | None:
    found = _boxes(data, b"ihdr", ">II", 0)
    return Size(found[0][1], found[0][0]) if found else None


def avif_turn(data: bytes) -> tuple[int, int | None]:
    """Quarter turns anticlockwise, and what is exchanged then: 0 top and bottom, 1 left and right, or None."""
    turns, mirrors = _boxes(data, b"irot", ">B", 0), _boxes(data, b"imir", ">B", 0)
    return turns[0][0] & 3 if turns else 0, mirrors[0][0] & 1 if mirrors else None


_Measure = Callable[[bytes], Size | None]
_FORMATS: tuple[tuple[bytes, int, str, _Measure], ...] = (
    (b"\xff\xd8\xff", 0, "JPEG", _jpeg),
    (b"\x89PNG\r\n\x1a\n", 0, "PNG", _png),
    (b"WEBP", 8, "WebP", _webp),
    (b"GIF8", 0, "GIF", _gif),
    (b"BM", 0, "BMP", _bmp),
    (b"II*\0", 0, "TIFF", _tiff),
    (b"MM\0*", 0, "TIFF", _tiff),
    (b"ftypavi", 4, "AVIF", _avif),
    (b"jP  \r\n\x87\n", 4, "JPEG 2000", _jpeg2000),
)

_LOOKS: tuple[tuple[bytes, int, str], ...] = (
    (b"%PDF", 0, "a PDF document"),
    (b"PK\3\4", 0, "a ZIP archive"),
    (b"\x1f\x8b", 0, "gzip data"),
    (b"ftypheic", 4, "a HEIC picture"),
    (b"ftypmif1", 4, "a HEIF picture"),
    (b"ftyp", 4, "an MP4 film"),
    (b"\x1aE\xdf\xa3", 0, "a WebM or Matroska film"),
    (b"AVI ", 8, "an AVI film"),
    (b"DICM", 128, "a DICOM file"),
    (b"version https://git-lfs", 0, "a Git LFS pointer"),
    (b"\x93NUMPY", 0, "a NumPy array"),
)


def describe(data: bytes) -> str:
    """What bytes that are no picture look like, in a few words."""
    if not data:
        return "empty"
    for magic, offset, words in _LOOKS:
        if data.startswith(magic, offset):
            return words
    start = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if start.startswith((b"<svg", b"<?xml", b"<!doctype")):
        return "an SVG drawing" if b"<svg" in start else "XML text"
    if start.startswith((b"{", b"[")):
        return "JSON text"
    return "text" if start.isascii() and start.decode("ascii").isprintable() else f"unknown data ({data[:8].hex(' ')})"
