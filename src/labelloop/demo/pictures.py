"""The demo's own pictures: receipts and signs, drawn here, the same on every machine and known word for word.

Nothing is downloaded and nobody's rights are touched; because we know what is written on them, `labelloop demo --check`
can compare what was read with what was drawn.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Color = tuple[int, int, int]

_EXIF_ORIENTATION = 0x0112
_TURN_RIGHT = 6  # EXIF: turn the stored picture 90 degrees clockwise to see it upright


class Drawn(NamedTuple):
    """`name` is the file name, `jpeg` its bytes, `lines` what is written on it, top to bottom."""

    name: str
    jpeg: bytes
    lines: tuple[str, ...]


class Line(NamedTuple):
    """One line on a receipt: `right` stands at the right margin (a price), `kind` says how it looks."""

    left: str
    right: str = ""
    kind: Literal["text", "title", "center", "total", "rule"] = "text"


RULE = Line("", kind="rule")


def draw_pictures() -> list[Drawn]:
    """All of them, in a fixed order. The last receipt is stored sideways with an EXIF orientation, as phones do."""
    return [
        _receipt("receipt-cafe.jpg", _CAFE, table=(94, 66, 44), tilt_deg=-1.5, seed=1),
        _street_sign("sign-street.jpg", "HARBOUR LANE", "Numbers 12 to 48"),
        _shop_front("sign-bakery.jpg", "THE GOLDEN LOAF", "Bread and pastry since 1987"),
        _receipt("receipt-garden.jpg", _GARDEN, table=(70, 78, 84), tilt_deg=4.0, seed=2),
        _direction_sign("sign-directions.jpg"),
        _plate("sign-opening-hours.jpg"),
        _receipt("receipt-books.jpg", _BOOKS, table=(120, 112, 100), tilt_deg=1.0, seed=3, sideways=True),
        _platform_sign("sign-platform.jpg"),
    ]


_CAFE = (
    Line("CAFE MERIDIAN", kind="title"),
    Line("14 Harbour Lane", kind="center"),
    Line("Table 7", "Guests 2"),
    RULE,
    Line("2 Flat white", "7.80"),
    Line("1 Almond croissant", "3.40"),
    Line("1 Fresh orange juice", "4.20"),
    Line("1 Cheese sandwich", "6.90"),
    RULE,
    Line("TOTAL", "22.30", kind="total"),
    Line("Card payment", "22.30"),
    RULE,
    Line("Thank you for your visit", kind="center"),
)
_GARDEN = (
    Line("GREEN THUMB", kind="title"),
    Line("Garden and hardware", kind="center"),
    RULE,
    Line("Watering can 5 litres", "18.50"),
    Line("Tomato seeds", "2.75"),
    Line("Garden gloves", "9.90"),
    Line("Potting soil 20 kg", "12.00"),
    RULE,
    Line("Subtotal", "43.15"),
    Line("Discount", "4.15"),
    Line("TOTAL", "39.00", kind="total"),
    RULE,
    Line("Returns within 30 days", kind="center"),
)
_BOOKS = (
    Line("PAGE ONE BOOKS", kind="title"),
    Line("Market Square 3", kind="center"),
    RULE,
    Line("Atlas of rivers", "34.00"),
    Line("Bread for beginners", "21.50"),
    Line("Notebook dotted", "8.25"),
    RULE,
    Line("TOTAL", "63.75", kind="total"),
    Line("Cash", "70.00"),
    Line("Change", "6.25"),
    RULE,
    Line("Happy reading", kind="center"),
)


# --- receipts -------------------------------------------------------------------------------------


def _receipt(
    name: str, lines: Sequence[Line], *, table: Color, tilt_deg: float, seed: int, sideways: bool = False
) -> Drawn:
    paper = _print_on_paper(lines)
    photo = _table(table, (paper.width + 200, paper.height + 160), seed=seed)
    _lay(photo, paper, tilt_deg=tilt_deg)
    words = tuple(word for line in lines for word in (line.left, line.right) if word)
    return Drawn(name, _photograph(photo, seed=seed, sideways=sideways), words)


def _print_on_paper(lines: Sequence[Line]) -> Image.Image:
    step = {"title": 72, "total": 64, "rule": 34, "text": 46, "center": 46}
    paper = Image.new("RGB", (560, 120 + sum(step[line.kind] for line in lines)), (250, 248, 242))
    pen, y, margin, ink = ImageDraw.Draw(paper), 56, 48, (38, 38, 46)
    for line in lines:
        middle = y + step[line.kind] / 2
        size, bold = {"title": (46, 1.2), "total": (36, 0.9)}.get(line.kind, (27, 0.3))
        if line.kind == "rule":
            for x in range(margin, paper.width - margin, 14):
                pen.line([(x, middle), (x + 7, middle)], fill=(130, 130, 136), width=2)
        elif line.kind in ("title", "center"):
            _write(pen, (paper.width / 2, middle), line.left, size=size, fill=ink, bold=bold)
        else:
            _write(pen, (margin, middle), line.left, size=size, fill=ink, bold=bold, anchor="lm")
            _write(pen, (paper.width - margin, middle), line.right, size=size, fill=ink, bold=bold, anchor="rm")
        y += step[line.kind]
    return paper


def _lay(photo: Image.Image, paper: Image.Image, *, tilt_deg: float) -> None:
    """Put `paper` in the middle of `photo`, torn off at both ends, turned, with a soft shadow."""
    outline = Image.new("L", paper.size, 0)
    teeth = [(x, 0 if (x // 10) % 2 else 8) for x in range(0, paper.width + 1, 10)]
    ImageDraw.Draw(outline).polygon([*teeth, *((x, paper.height - y) for x, y in reversed(teeth))], fill=255)
    turned = paper.rotate(tilt_deg, Image.Resampling.BICUBIC, expand=True)
    mask = outline.rotate(tilt_deg, Image.Resampling.BICUBIC, expand=True)
    x, y = (photo.width - turned.width) // 2, (photo.height - turned.height) // 2
    shadow = Image.new("L", photo.size, 0)
    shadow.paste(mask.point(lambda level: level * 0.55), (x + 10, y + 14))
    photo.paste((12, 10, 8), mask=shadow.filter(ImageFilter.GaussianBlur(12)))
    photo.paste(turned, (x, y), mask)


def _table(color: Color, size_wh: tuple[int, int], *, seed: int) -> Image.Image:
    """A table top: long streaks of grain across planks."""
    width, height = size_wh
    noise = np.random.default_rng(seed)
    grain = noise.normal(0, 1, (height, width // 40 + 2))
    streaks = np.asarray(Image.fromarray(grain.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
    planks = np.repeat(noise.normal(0, 7, height // 150 + 1), 150)[:height, None]
    seams = np.where(np.arange(height) % 150 < 3, -26, 0)[:, None]
    level = np.asarray(color, np.float32) + (streaks * 6 + planks + seams)[..., None]
    return Image.fromarray(level.clip(0, 255).astype(np.uint8))


# --- signs ----------------------------------------------------------------------------------------


def _street_sign(name: str, street: str, below: str) -> Drawn:
    photo = _wall((198, 186, 168), (960, 560), brick=(60, 26), seed=4)

    def draw(pen: ImageDraw.ImageDraw) -> None:
        pen.rounded_rectangle((0, 0, 759, 299), 26, fill=(18, 62, 130), outline=(240, 242, 246), width=10)
        _write(pen, (380, 116), street, size=88, fill=(250, 250, 250), bold=2)
        _write(pen, (380, 226), below, size=44, fill=(228, 234, 244), bold=0.6)

    _hang(photo, draw, size_wh=(760, 300), at=(100, 120), tilt_deg=2.5)
    return Drawn(name, _photograph(photo, seed=4), (street, below))


def _shop_front(name: str, title: str, below: str) -> Drawn:
    photo = _wall((150, 84, 66), (1000, 680), brick=(64, 28), seed=5)
    pen = ImageDraw.Draw(photo)
    pen.rectangle((60, 90, 940, 300), fill=(32, 56, 50), outline=(206, 168, 92), width=6)
    _write(pen, (500, 170), title, size=82, fill=(226, 190, 112), bold=1.8)
    _write(pen, (500, 250), below, size=38, fill=(236, 228, 208), bold=0.4)
    for index, x in enumerate(range(60, 940, 55)):
        stripe = (244, 240, 230) if index % 2 else (178, 54, 48)
        out, wider = (x - 500) * 1.06 + 500, 55 * 1.06
        pen.polygon([(x, 306), (x + 55, 306), (out + wider, 400), (out, 400)], fill=stripe)
    pen.rectangle((34, 400, 966, 414), fill=(120, 40, 36))
    pen.rectangle((90, 440, 910, 680), fill=(58, 70, 78), outline=(46, 40, 36), width=12)
    pen.rectangle((380, 500, 620, 600), fill=(246, 244, 236), outline=(90, 70, 50), width=4)
    _write(pen, (500, 550), "OPEN", size=66, fill=(178, 54, 48), bold=2)
    return Drawn(name, _photograph(photo, seed=5), (title, below, "OPEN"))


def _direction_sign(name: str) -> Drawn:
    rows = (("City centre", "2 km"), ("Airport", "14 km"), ("North beach", "21 km"))
    photo = _sky((1000, 640), seed=6)
    pen = ImageDraw.Draw(photo)
    for x in (250, 730):
        pen.rectangle((x, 420, x + 22, 640), fill=(120, 124, 128))

    def draw(pen: ImageDraw.ImageDraw) -> None:
        pen.rounded_rectangle((0, 0, 799, 399), 22, fill=(12, 98, 66), outline=(244, 246, 244), width=9)
        for index, (place, distance) in enumerate(rows):
            y = 80 + 120 * index
            pen.polygon(
                [(48, y), (84, y - 26), (84, y - 9), (116, y - 9), (116, y + 9), (84, y + 9), (84, y + 26)],
                fill="white",
            )
            _write(pen, (150, y), place, size=62, fill=(252, 252, 252), bold=1.2, anchor="lm")
            _write(pen, (752, y), distance, size=62, fill=(252, 252, 252), bold=1.2, anchor="rm")

    _hang(photo, draw, size_wh=(800, 400), at=(100, 70), tilt_deg=0.0)
    return Drawn(name, _photograph(photo, seed=6), tuple(word for row in rows for word in row))


def _plate(name: str) -> Drawn:
    rows = (("Monday", "closed"), ("Tuesday to Friday", "9 to 18"), ("Saturday", "10 to 16"))
    photo = _wall((92, 104, 112), (900, 640), brick=(300, 640), seed=7)

    def draw(pen: ImageDraw.ImageDraw) -> None:
        pen.rounded_rectangle((0, 0, 719, 439), 18, fill=(242, 240, 234), outline=(70, 66, 60), width=6)
        for x, y in ((26, 26), (694, 26), (26, 414), (694, 414)):
            pen.ellipse((x - 8, y - 8, x + 8, y + 8), fill=(150, 146, 138))
        _write(pen, (360, 88), "OPENING HOURS", size=60, fill=(60, 56, 52), bold=1.5)
        pen.line([(90, 146), (630, 146)], fill=(150, 146, 138), width=3)
        for index, (day, hours) in enumerate(rows):
            _write(pen, (70, 214 + 78 * index), day, size=42, fill=(60, 56, 52), bold=0.5, anchor="lm")
            _write(pen, (650, 214 + 78 * index), hours, size=42, fill=(60, 56, 52), bold=0.5, anchor="rm")

    _hang(photo, draw, size_wh=(720, 440), at=(90, 100), tilt_deg=-3.0)
    return Drawn(name, _photograph(photo, seed=7), ("OPENING HOURS", *(word for row in rows for word in row)))


def _platform_sign(name: str) -> Drawn:
    photo = _wall((206, 210, 208), (1000, 560), brick=(100, 50), seed=8)
    pen = ImageDraw.Draw(photo)
    pen.rectangle((0, 130, 1000, 430), fill=(30, 34, 44))
    pen.rectangle((0, 130, 1000, 146), fill=(242, 178, 34))
    pen.ellipse((70, 200, 230, 360), fill=(242, 178, 34))
    pen.polygon([(200, 280), (144, 224), (144, 260), (98, 260), (98, 300), (144, 300), (144, 336)], fill=(30, 34, 44))
    _write(pen, (290, 240), "RIVERSIDE", size=96, fill=(250, 250, 250), bold=2, anchor="lm")
    _write(pen, (294, 350), "Platform 4 to the coast", size=52, fill=(208, 214, 226), bold=0.6, anchor="lm")
    return Drawn(name, _photograph(photo, seed=8), ("RIVERSIDE", "Platform 4 to the coast"))


def _hang(
    photo: Image.Image,
    draw: Callable[[ImageDraw.ImageDraw], None],
    *,
    size_wh: tuple[int, int],
    at: tuple[int, int],
    tilt_deg: float,
) -> None:
    """Draw a sign on its own sheet and put it on `photo`, turned, with a shadow."""
    sign = Image.new("RGBA", size_wh, (0, 0, 0, 0))
    draw(ImageDraw.Draw(sign))
    turned = sign.rotate(tilt_deg, Image.Resampling.BICUBIC, expand=True)
    alpha = turned.getchannel("A")
    shadow = Image.new("L", photo.size, 0)
    shadow.paste(alpha.point(lambda level: level * 0.5), (at[0] + 8, at[1] + 10))
    photo.paste((14, 14, 16), mask=shadow.filter(ImageFilter.GaussianBlur(8)))
    photo.paste(turned, at, alpha)


def _wall(color: Color, size_wh: tuple[int, int], *, brick: tuple[int, int], seed: int) -> Image.Image:
    """Rows of stones of `brick` size with their joints, each a little lighter or darker than `color`."""
    (width, height), (across, down), noise = size_wh, brick, np.random.default_rng(seed)
    wall = Image.new("RGB", size_wh, tuple(int(level * 0.8) for level in color))
    pen = ImageDraw.Draw(wall)
    for row, y in enumerate(range(0, height, down)):
        for x in range(-(row % 2) * across // 2, width, across):
            shade = noise.normal(1.0, 0.035)
            stone = tuple(int(min(255, max(0, level * shade))) for level in color)
            pen.rectangle((x + 1, y + 1, x + across - 2, y + down - 2), fill=stone)
    return wall.filter(ImageFilter.GaussianBlur(0.8))


def _sky(size_wh: tuple[int, int], *, seed: int) -> Image.Image:
    """Blue that pales towards the ground, with soft clouds."""
    width, height = size_wh
    pale = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    level = (1 - pale) * np.array((96, 150, 208), np.float32) + pale * np.array((206, 224, 238), np.float32)
    puffs = np.random.default_rng(seed).random((7, 11)).astype(np.float32)
    clouds = np.asarray(Image.fromarray(puffs).resize((width, height), Image.Resampling.BICUBIC))[..., None]
    cover = (clouds - 0.55).clip(0, 0.5) * 1.2
    return Image.fromarray((level * (1 - cover) + 246 * cover).clip(0, 255).astype(np.uint8))


# --- the pen and the camera -------------------------------------------------------------------------


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)  # the face inside Pillow's wheel, so the same on every machine


def _write(
    pen: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    *,
    size: int,
    fill: Color,
    bold: float = 0.0,
    anchor: str = "mm",
) -> None:
    """`bold` is the width in pixels by which the strokes grow: the face has one weight."""
    pen.text(xy, text, font=_font(size), fill=fill, anchor=anchor, stroke_width=bold, stroke_fill=fill)


def _photograph(scene: Image.Image, *, seed: int, sideways: bool = False) -> bytes:
    """Light from one corner, a little blur and grain, and JPEG."""
    width, height = scene.size
    y, x = np.mgrid[0:height, 0:width]
    light = 1.06 - 0.22 * (x / width * 0.6 + y / height * 0.4)
    grain = np.random.default_rng(seed).normal(0, 2.2, (height, width, 1))
    level = np.asarray(scene.filter(ImageFilter.GaussianBlur(0.5)), np.float32) * light[..., None] + grain
    photo, exif = Image.fromarray(level.clip(0, 255).astype(np.uint8)), Image.Exif()
    if sideways:
        photo = photo.transpose(Image.Transpose.ROTATE_90)
        exif[_EXIF_ORIENTATION] = _TURN_RIGHT
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=88, exif=exif)
    return file.getvalue()
