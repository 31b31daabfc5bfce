"""Bytes -> upright RGB picture.

Orientation as browsers show it, because Label Studio's percentages refer to what the browser shows: EXIF in JPEG,
PNG, WebP and TIFF (OpenCV turns those) and AVIF's own two boxes (it does not). Transparency is dropped, not
composited: that is what `convert("RGB")` and cv2.imread do in the pipelines that models are trained with.
16-bit samples lose their lower byte; of an animation, or a file of pages, the first counts.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from labelloop.core.errors import MediaTooLarge, MediaUndecodable
from labelloop.core.pictures import Picture
from labelloop.core.regions import Size
from labelloop.media.header import avif_turn, describe, read_header

_RGB = NDArray[np.uint8]
_REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))


def decode(data: bytes, *, min_size: Size | None = None, max_pixels: int) -> Picture:
    """Decode the first picture in `data`; `Picture.size` is always the full upright size.

    With `min_size`, the network's input, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, whatever is smallest
    and still at least as wide and as high as that.

    Raises MediaUndecodable, naming what the bytes look like, and MediaTooLarge before anything is unpacked.
    """
    header = read_header(data)
    if header is None:
        raise _undecodable(data)
    if header.size is None or min(header.size) < 1:
        raise MediaUndecodable(f"The header of this {header.format} is damaged.", hint="Does it open in a browser?")
    _check_pixels(header.size, max_pixels)
    if header.format == "JPEG" and min_size is not None:
        picture = _reduced(data, header.size, min_size)
        if picture is not None:
            return picture
    rgb = _imdecode(data, cv2.IMREAD_COLOR_RGB)
    if rgb is None:
        raise MediaUndecodable(
            f"This {header.format} of {len(data):,} bytes is damaged or cut off.", hint="Does it open in a browser?"
        )
    if header.format == "AVIF":
        rgb = _turned(rgb, data)
    size = Size(rgb.shape[1], rgb.shape[0])
    _check_pixels(size, max_pixels)  # again: a header can lie
    return Picture(rgb=rgb, size=size)


def _check_pixels(size: Size, max_pixels: int) -> None:
    if size.width * size.height > max_pixels:
        raise MediaTooLarge(
            f"The picture has {size.width} x {size.height} pixels, more than {max_pixels:,}.",
            hint="LABELLOOP_MEDIA_MAX_PIXELS is the limit.",
        )


def _imdecode(data: bytes, flags: int) -> _RGB | None:
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:  # older releases raise where newer ones answer None
        return None
    return None if decoded is None or decoded.ndim != 3 else np.asarray(decoded, np.uint8)


# libjpeg's reduced decoding averages, where the plain linear resize after a full decoding skips pixels. Measured
# with deimv2_atto (input 320 x 320, stretched) on coco32, box mAP with full -> reduced decoding, by the pictures'
# shorter side: 640 px 0.325 -> 0.325 (/2), 800 px 0.322 -> 0.331 (/2), 1280 px 0.315 -> 0.323 (/4),
# 2560 px 0.298 -> 0.333 (/8). So no margin above the network's input is needed. Below it costs much: 640 x 480
# decoded to 320 x 240 and stretched to 320 x 320 gives 0.316 where the full decoding gives 0.335. A network that
# letterboxes could do with the shorter side below its input, but then the averaging replaces its own resize
# (nanodet_m on pictures of 640 x 480: 0.280 -> 0.289): better, and not what the model's authors measured.
def _reduced(data: bytes, stored: Size, min_size: Size) -> Picture | None:
    """The picture at the smallest scale that suffices, or None to decode it in full."""
    width, height = stored
    for factor, flags in _REDUCED:
        small = Size(-(-width // factor), -(-height // factor))
        # orientation may swap the sides; it shows in the shape of the result, unless the shapes look alike
        if not (_suffices(small, min_size) and _suffices(_swapped(small), min_size)):
            continue
        if small.width == small.height and width != height:
            continue
        bgr = _imdecode(data, flags)
        if bgr is None:
            return None
        shape = Size(bgr.shape[1], bgr.shape[0])
        if shape not in (small, _swapped(small)):
            return None
        return Picture(rgb=_to_rgb(bgr), size=stored if shape == small else _swapped(stored))
    return None


def _to_rgb(bgr: _RGB) -> _RGB:
    # OpenCV 5 knows no reduced decoding to RGB; the reduced picture is small
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _suffices(size: Size, target: Size) -> bool:
    return size.width >= target.width and size.height >= target.height


def _swapped(size: Size) -> Size:
    return Size(size.height, size.width)


def _turned(rgb: _RGB, data: bytes) -> _RGB:
    turns, axis = avif_turn(data)
    rgb = np.rot90(rgb, turns)
    if axis is not None:
        rgb = rgb[::-1] if axis == 0 else rgb[:, ::-1]
    return np.ascontiguousarray(rgb)


def _undecodable(data: bytes) -> MediaUndecodable:
    look = describe(data)
    hint = "Only pictures that a browser shows, TIFF and JPEG 2000 can be read."
    if look == "an HTML page":
        hint = "The server sent a page where a picture should be, a log-in form most likely: check the credentials."
    return MediaUndecodable(f"These {len(data):,} bytes are no picture but {look}.", hint=hint)
