"""Pictures for trainers: kept byte for byte where every reader agrees, else encoded upright."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from labelloop.core.errors import MediaTooLarge, MediaUndecodable
from labelloop.media.image import decode
from labelloop.media.upright import upright

MANY = 10**6


def picture(*, width: int = 60, height: int = 40) -> Image.Image:
    """Smooth, so that JPEG loses little, and different in each corner."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 4 % 256, y * 6 % 256, (x + y) * 2 % 256], 2).astype(np.uint8))


def encoded(kind: str, *, orientation: int | None = None, **options: Any) -> bytes:
    out = io.BytesIO()
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    picture().save(out, kind, **options)
    return out.getvalue()


def blind(data: bytes) -> np.ndarray:
    """As a reader sees it that knows no EXIF."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
    "data",
    [encoded("JPEG"), encoded("PNG"), encoded("JPEG", orientation=1)],
    ids=["JPEG", "PNG", "JPEG that says it is upright"],
)
def test_an_upright_jpeg_or_png_stays_byte_for_byte(data: bytes) -> None:
    made = upright(data, max_pixels=MANY)
    assert (made.data, made.changed, made.size) == (data, False, (60, 40))


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_every_reader_sees_a_turned_picture_as_people_do(kind: str, orientation: int) -> None:
    data = encoded(kind, orientation=orientation, **({"quality": 95} if kind == "JPEG" else {}))
    made = upright(data, max_pixels=MANY)
    assert made.changed
    assert made.suffix == {"JPEG": ".jpg", "PNG": ".png"}[kind]
    seen = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert made.size == (seen.shape[1], seen.shape[0])
    assert np.abs(blind(made.data).astype(int) - seen).max() <= (0 if kind == "PNG" else 16)
    assert np.array_equal(decode(made.data, max_pixels=MANY).rgb.shape, seen.shape)
    assert not upright(made.data, max_pixels=MANY).changed


@pytest.mark.parametrize(("kind", "suffix"), [("BMP", ".png"), ("GIF", ".png"), ("TIFF", ".png"), ("WEBP", ".jpg")])
def test_other_formats_become_jpeg_or_png(kind: str, suffix: str) -> None:
    data = encoded(kind)
    made = upright(data, max_pixels=MANY)
    assert (made.suffix, made.changed) == (suffix, True)
    off = np.abs(blind(made.data).astype(int) - decode(data, max_pixels=MANY).rgb)
    assert off.max() <= (0 if suffix == ".png" else 16)


def test_what_is_no_picture_says_so() -> None:
    with pytest.raises(MediaUndecodable):
        upright(b"<html>log in</html>", max_pixels=MANY)
    with pytest.raises(MediaTooLarge):
        upright(encoded("PNG"), max_pixels=100)
