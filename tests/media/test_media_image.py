"""Bytes -> upright picture."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from media_site import Site, jpeg, quadrants, ref
from PIL import Image, ImageOps

from labelloop.core.errors import MediaTooLarge, MediaUndecodable
from labelloop.core.regions import Size
from labelloop.media.header import read_header
from labelloop.media.image import decode
from labelloop.media.load import MediaLoader

MAX = 10**7
LOSSLESS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "BMP": {},
    "GIF": {},
    "JPEG2000": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}


def encode(picture: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def close(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal up to what compression does at the edges of the quadrants."""
    return a.shape == b.shape and float(np.abs(a.astype(int) - b.astype(int)).mean()) < 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation(kind: str, orientation: int) -> None:
    picture, exif = Image.fromarray(quadrants()), Image.Exif()
    exif[0x0112] = orientation
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encode(picture, "PNG", exif=exif)))))
    data = encode(picture, kind, exif=exif, **LOSSLESS[kind])  # AVIF's writer empties `exif`
    got = decode(data, max_pixels=MAX)
    assert close(got.rgb, upright)
    assert got.size == ((48, 64) if orientation > 4 else (64, 48))
    assert got.rgb.flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_reduced_pictures(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(quadrants(333, 250)), "JPEG", exif=exif)
    full, half = decode(data, max_pixels=MAX), decode(data, min_size=Size(100, 100), max_pixels=MAX)
    assert half.size == full.size
    assert half.rgb.shape == (-(-full.rgb.shape[0] // 2), -(-full.rgb.shape[1] // 2), 3)
    assert close(half.rgb, cv2.resize(full.rgb, half.rgb.shape[1::-1], interpolation=cv2.INTER_AREA))


def png16() -> bytes:
    return cv2.imencode(".png", quadrants()[:, :, ::-1].astype(np.uint16) * 257)[1].tobytes()


def transparent() -> Image.Image:
    picture = Image.fromarray(quadrants()).convert("RGBA")
    picture.putalpha(0)
    return picture


RGB = Image.fromarray(quadrants())
FORMATS: list[tuple[str, Callable[[], bytes]]] = [
    *((kind, lambda kind=kind: encode(RGB, kind, **LOSSLESS[kind])) for kind in LOSSLESS),
    ("progressive JPEG", lambda: encode(RGB, "JPEG", progressive=True, quality=95)),
    ("CMYK JPEG", lambda: encode(RGB.convert("CMYK"), "JPEG", quality=95)),
    ("lossy WebP", lambda: encode(RGB, "WEBP", quality=95)),
    ("WebP with alpha", lambda: encode(RGB.convert("RGBA"), "WEBP", lossless=True)),
    ("animated WebP", lambda: encode(RGB, "WEBP", save_all=True, append_images=[Image.new("RGB", (64, 48))])),
    ("RGBA PNG", lambda: encode(RGB.convert("RGBA"), "PNG")),
    ("transparent PNG keeps its colours", lambda: encode(transparent(), "PNG")),
    ("palette PNG", lambda: encode(RGB.quantize(8), "PNG")),
    ("16-bit PNG", png16),
    ("animated PNG", lambda: encode(RGB, "PNG", save_all=True, append_images=[Image.new("RGB", (64, 48))])),
    ("animated GIF", lambda: encode(RGB, "GIF", save_all=True, append_images=[Image.new("RGB", (64, 48))])),
    ("palette BMP", lambda: encode(RGB.quantize(8), "BMP")),
    ("LZW TIFF", lambda: encode(RGB, "TIFF", compression="tiff_lzw")),
    ("TIFF of two pages", lambda: encode(RGB, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))])),
]


@pytest.mark.parametrize(("make"), [pytest.param(make, id=name) for name, make in FORMATS])
def test_formats(make: Callable[[], bytes]) -> None:
    data = make()
    header = read_header(data)
    assert header is not None
    assert header.size == (64, 48)
    picture = decode(data, max_pixels=MAX)
    assert picture.size == (64, 48)
    assert picture.rgb.dtype == np.uint8
    assert close(picture.rgb, quadrants())


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_becomes_three_channels(kind: str, mode: str) -> None:
    grey = RGB.convert("L").convert(mode)
    picture = decode(encode(grey, kind), max_pixels=MAX)
    assert close(picture.rgb, np.asarray(grey.convert("RGB")))


def test_sixteen_bit_grey() -> None:
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    picture = decode(cv2.imencode(".png", ramp)[1].tobytes(), max_pixels=MAX)
    assert np.abs(picture.rgb[:, :, 0].astype(int) - (ramp >> 8)).max() <= 1


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_cut_off(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(MediaUndecodable):
        decode(data[: int(len(data) * share)], max_pixels=MAX)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_hardly_begun(kind: str) -> None:
    data = encode(RGB, kind)
    for length in range(2, 64):
        with pytest.raises(MediaUndecodable):
            decode(data[:length], max_pixels=MAX)


@pytest.mark.parametrize(
    ("data", "look"),
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE html><title>Log in</title>", "HTML page.*credentials"),
        (b"\xef\xbb\xbf<html>", "HTML page"),
        (b'<?xml version="1.0"?><svg/>', "SVG"),
        (b'<svg xmlns="x">', "SVG"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied", "XML"),
        (b'{"detail": "no"}', "JSON"),
        (b"%PDF-1.7", "PDF"),
        (b"\0\0\0\x18ftypheic\0\0", "HEIC"),
        (b"\0\0\0\x18ftypisom\0\0", "MP4"),
        (b"\0" * 128 + b"DICM", "DICOM"),
        (b"version https://git-lfs.github.com/spec/v1", "Git LFS"),
        (b"hello", "text"),
        (b"\x01\x02\x03", "unknown data .01 02 03"),
        (b"v/1\x01" + b"\0" * 40, "unknown data"),  # OpenEXR: a decoder that nobody labels with
    ],
)
def test_what_is_no_picture_is_named(data: bytes, look: str) -> None:
    with pytest.raises(MediaUndecodable, match=look):
        decode(data, max_pixels=MAX)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header announces more than its few bytes can unpack to."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
        + chunk(b"IEND", b"")
    )


def sized(kind: str, width: int, height: int) -> bytes:
    """A small picture with another size written into its header."""
    data = bytearray(encode(RGB, kind, **LOSSLESS[kind]))
    if kind == "JPEG":
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    elif kind == "GIF":
        data[6:10] = struct.pack("<HH", width, height)
    elif kind == "BMP":
        data[18:26] = struct.pack("<ii", width, -height)
    else:
        return bomb(width, height)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_bombs_are_refused_by_their_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "imdecode", lambda *args: pytest.fail("it was unpacked"))
    with pytest.raises(MediaTooLarge, match=r"50000 x 40000.*LABELLOOP_MEDIA_MAX_PIXELS"):
        decode(sized(kind, 50_000, 40_000), max_pixels=200 * 10**6)


def test_the_largest_that_is_allowed_and_nothing_at_all() -> None:
    assert decode(jpeg(), max_pixels=64 * 48).size == (64, 48)
    with pytest.raises(MediaTooLarge):
        decode(jpeg(), max_pixels=64 * 48 - 1)
    for width, height in ((0, 10), (10, 0)):
        with pytest.raises(MediaUndecodable, match="header"):
            decode(bomb(width, height), max_pixels=MAX)


@pytest.mark.parametrize(
    ("size", "min_size", "factor", "what"),
    [
        ((640, 480), None, 1, "no wish"),
        ((640, 480), (416, 416), 1, "half would be too small"),
        ((640, 480), (320, 320), 1, "half is too low to be stretched"),
        ((640, 640), (320, 320), 2, "exactly half"),
        ((480, 640), (320, 240), 1, "the sides might be swapped"),
        ((639, 639), (320, 320), 2, "halves are rounded up"),
        ((1280, 1280), (320, 320), 4, "a quarter"),
        ((1279, 1300), (300, 300), 4, "a quarter, odd"),
        ((2560, 2558), (100, 100), 2, "an eighth and a quarter would hide which side is which"),
        ((2560, 2559), (100, 100), 1, "so would any part"),
        ((2560, 2600), (320, 320), 8, "an eighth"),
        ((5000, 5000), (100, 100), 8, "never less"),
    ],
)
def test_reduced_decoding(size: tuple[int, int], min_size: tuple[int, int] | None, factor: int, what: str) -> None:
    data = jpeg(quadrants(*size))
    wish = Size(*min_size) if min_size else None
    picture = decode(data, min_size=wish, max_pixels=10**8)
    assert picture.size == size
    assert picture.rgb.shape[:2] == (-(-size[1] // factor), -(-size[0] // factor)), what
    assert picture.rgb[2, 2].tolist() == pytest.approx([255, 0, 0], abs=8)
    assert picture.rgb[-3, 2].tolist() == pytest.approx([0, 0, 255], abs=8)


def test_other_formats_are_decoded_in_full() -> None:
    assert decode(encode(RGB, "PNG"), min_size=Size(8, 8), max_pixels=MAX).rgb.shape == (48, 64, 3)


def test_real_photographs(shared: Path) -> None:
    for path in sorted((shared / "data/datasets/coco32/images").glob("*.jpg"))[:8]:
        data = path.read_bytes()
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        picture = decode(data, max_pixels=MAX)
        assert picture.rgb.shape == expected.shape
        assert np.abs(picture.rgb.astype(int) - expected).mean() < 1


def test_a_reference_becomes_a_picture(make_loader: Callable[..., MediaLoader], studio: Site) -> None:
    studio.answers["/data/upload/1/a.jpg"] = (200, {}, jpeg())
    seen: list[tuple[str, float]] = []
    loader = make_loader(observe=lambda name, value: seen.append((name, value)), media_max_pixels=64 * 48)
    picture = loader.load(ref("/data/upload/1/a.jpg"), min_size=Size(16, 12))
    assert picture.size == (64, 48)
    assert picture.rgb.shape == (24, 32, 3)
    assert [name for name, _ in seen] == ["cache_miss", "fetch", "decode"]
    assert all(0 < value <= 1 for _, value in seen)
    with pytest.raises(MediaTooLarge):
        make_loader(media_max_pixels=64 * 48 - 1).load(ref("/data/upload/1/a.jpg"))
