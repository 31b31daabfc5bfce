"""Pictures for other programs to read: any reader sees them as `media/image` does, whether it knows EXIF or not."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from labelloop.core.regions import Size
from labelloop.media.header import read_header
from labelloop.media.image import decode

JPEG_QUALITY = 95
_KEPT = {"JPEG": ".jpg", "PNG": ".png"}
_LOSSY = ("JPEG", "WebP", "AVIF", "JPEG 2000")


class Upright(NamedTuple):
    """`data` is a JPEG or PNG without orientation, `suffix` says which; `changed` where it is not what came in."""

    data: bytes
    suffix: str
    size: Size
    changed: bool


def upright(data: bytes, *, max_pixels: int) -> Upright:
    """The same picture as a JPEG or PNG that is stored upright. Raises MediaUndecodable and MediaTooLarge.

    JPEG and PNG come back byte for byte unless they are turned. What must be encoded anew becomes a JPEG of quality 95
    where it was lossy before (a PNG of a phone's photograph has 20 MB), else a PNG.
    """
    picture = decode(data, max_pixels=max_pixels)
    header = read_header(data)
    name = header.format if header is not None else ""
    if name in _KEPT and not _is_turned(data, picture.rgb):
        return Upright(data, _KEPT[name], picture.size, changed=False)
    suffix = ".jpg" if name in _LOSSY else ".png"
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if suffix == ".jpg" else []
    _, encoded = cv2.imencode(suffix, cv2.cvtColor(picture.rgb, cv2.COLOR_RGB2BGR), options)
    return Upright(bytes(encoded), suffix, picture.size, changed=True)


def _is_turned(data: bytes, seen: np.ndarray) -> bool:
    """Whether a reader that ignores EXIF would see something else: decided by the pixels, so that no second opinion on
    what an orientation tag means can differ from the decoder's."""
    if b"Exif" not in data and b"eXIf" not in data:  # where JPEG and PNG keep it; saves the second decoding
        return False
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    return stored is None or stored.shape != seen.shape or not np.array_equal(stored, seen)
