"""The OCR engine: shapes and order by hand, reading on drawn pictures and on scanned receipts."""

from __future__ import annotations

import json
import math
import socket
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from labelloop.core.cards import ModelCard
from labelloop.core.geometry import iou
from labelloop.core.outlines import bounding_box
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Polygon, Region, Size
from labelloop.demo.pictures import Drawn, draw_pictures
from labelloop.engines.base import EngineOptions
from labelloop.engines.ocr import OcrEngine, page_tilt_deg, quad_to_shape, reading_order

pytest.importorskip("rapidocr", reason="needs the extra labelloop[ocr]")


@pytest.fixture(scope="module")
def engine() -> OcrEngine:
    return open_offline(threads=1)


@pytest.fixture(scope="module")
def pair() -> OcrEngine:
    """Two inferences at a time."""
    return open_offline(threads=2)


@pytest.fixture(scope="module")
def pictures() -> dict[str, Drawn]:
    return {picture.name: picture for picture in draw_pictures()}


def open_offline(*, threads: int) -> OcrEngine:
    """Open the engine while every connection to another machine is refused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        return OcrEngine(None, ModelCard(name="text"), EngineOptions(device="cpu", threads=threads))


def refuse(*args: object) -> None:
    raise AssertionError(f"the OCR engine asked the network: {args}")


def read(engine: OcrEngine, jpeg: bytes, *, scale: float = 1.0) -> tuple[Region, ...]:
    bgr = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)  # EXIF applied
    height, width = bgr.shape[:2]
    small = cv2.resize(bgr, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    picture = Picture(np.ascontiguousarray(small[..., ::-1]), Size(width, height))
    return engine.predict([engine.prepare(picture)])[0]


def quad(x: float, y: float, width: float, height: float, angle_deg: float = 0.0) -> NDArray[np.float64]:
    """Clockwise from the top left corner, turned clockwise about its centre."""
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (width / 2, height / 2)
    a = math.radians(angle_deg)
    return corners @ np.array([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]]) + (
        x + width / 2,
        y + height / 2,
    )


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        (quad(10, 20, 100, 30), Box((10, 20, 110, 50))),
        (quad(10, 20, 100, 30, 12), Box((10, 20, 110, 50), angle_deg=12)),
        (quad(10, 20, 100, 30, -12), Box((10, 20, 110, 50), angle_deg=-12)),
        (quad(10, 20, 100, 30, 90), Box((10, 20, 110, 50), angle_deg=90)),
        (np.array([(0, 0), (100, 20), (100, 40), (0, 60)], float), Polygon(((0, 0), (100, 20), (100, 40), (0, 60)))),
    ],
    ids=["upright", "clockwise", "counter-clockwise", "downwards", "perspective"],
)
def test_a_quad_becomes_the_simplest_shape_that_holds_it(corners: NDArray[np.float64], expected: Box | Polygon) -> None:
    shape = quad_to_shape(corners)
    assert type(shape) is type(expected)
    if isinstance(shape, Box) and isinstance(expected, Box):
        assert shape.xyxy == pytest.approx(expected.xyxy, abs=1e-3)
        assert shape.angle_deg == pytest.approx(expected.angle_deg, abs=1e-3)
    else:
        assert shape == expected


def test_a_line_that_is_hardly_tilted_becomes_a_box_around_it() -> None:
    corners = quad(10, 20, 100, 30, 1.0)
    assert quad_to_shape(corners) == Box((*corners.min(axis=0), *corners.max(axis=0)))


ROWS = [quad(20, 0, 200, 30), quad(20, 50, 90, 30), quad(180, 52, 40, 26), quad(20, 100, 90, 30), quad(180, 97, 40, 30)]


@pytest.mark.parametrize("tilt_deg", [0, 4, -4, 15], ids=lambda angle: f"page tilted by {angle}")
@pytest.mark.parametrize("scale", [0.2, 1, 5], ids=lambda scale: f"{scale} times the size")
def test_reading_order_is_rows_from_top_to_bottom(tilt_deg: float, scale: float) -> None:
    turn = quad(-0.5, -0.5, 1, 1, tilt_deg)
    axes = np.array([turn[1] - turn[0], turn[3] - turn[0]])
    page = np.array(ROWS) @ axes * scale
    shuffled = [3, 0, 4, 2, 1]
    assert page_tilt_deg(page) == pytest.approx(tilt_deg)
    assert [shuffled[i] for i in reading_order(page[shuffled], tilt_deg=tilt_deg)] == [0, 1, 2, 3, 4]


def test_a_page_without_lines_has_an_order_too() -> None:
    nothing = np.zeros((0, 4, 2))
    assert reading_order(nothing, tilt_deg=page_tilt_deg(nothing)) == []


def test_short_words_do_not_turn_the_page_and_follow_it_when_they_are_nearly_parallel() -> None:
    """The angle of a short word is noise of a few degrees; that of a long line is not."""
    page = np.array([quad(0, 0, 400, 30, -4), *(quad(0, 50 * n, 40, 25, 1) for n in range(1, 6))])
    assert page_tilt_deg(page) == pytest.approx(-4)
    follows, differs = quad(0, 0, 40, 25, -2), quad(0, 0, 40, 25, 12)
    assert quad_to_shape(follows, tilt_deg=-4) == Box((0, 0, 40, 25), angle_deg=-4)
    assert quad_to_shape(differs, tilt_deg=-4) == Box(pytest.approx((0, 0, 40, 25)), angle_deg=pytest.approx(12))


def test_the_card_is_completed_without_a_file() -> None:
    card = OcrEngine.describe(None, ModelCard(name="text"))
    assert (card.engine, card.task, card.labels, card.licence) == ("ocr", "ocr", ("Text",), "Apache-2.0")
    assert card.family == f"rapidocr {metadata.version('rapidocr')}", "another release has other models"


def test_reads_a_sign_word_for_word_where_it_stands(engine: OcrEngine, pictures: dict[str, Drawn]) -> None:
    sign = pictures["sign-street.jpg"]
    first, second = read(engine, sign.jpeg)
    assert (first.text, second.text) == sign.lines
    assert {first.label, second.label} == set(engine.classes)
    assert isinstance(first.shape, Box)
    assert first.shape.angle_deg == pytest.approx(-2.5, abs=1), "the sign hangs turned by 2.5 degrees"
    assert first.shape.xyxy == pytest.approx((155, 209, 818, 299), abs=12)
    assert first.score is not None
    assert 0.9 < first.score <= 1


@pytest.mark.slow
def test_a_picture_decoded_at_half_size_gives_places_in_the_original(
    engine: OcrEngine, pictures: dict[str, Drawn]
) -> None:
    sign = pictures["sign-platform.jpg"]
    full, half = read(engine, sign.jpeg), read(engine, sign.jpeg, scale=0.5)
    assert [region.text for region in half] == [region.text for region in full]
    for one, other in zip(full, half, strict=True):
        assert isinstance(one.shape, Box)
        assert isinstance(other.shape, Box)
        assert other.shape.xyxy == pytest.approx(one.shape.xyxy, abs=20)


def test_a_picture_without_text_gives_nothing(engine: OcrEngine, capfd: pytest.CaptureFixture[str]) -> None:
    grey = np.full((300, 400, 3), 128, np.uint8)
    assert engine.predict([engine.prepare(Picture(grey, Size(400, 300)))]) == [()]
    assert "".join(capfd.readouterr()) == "", "its own log is silent"


@pytest.mark.slow
def test_all_drawn_pictures_are_read_word_for_word_by_two_threads(pair: OcrEngine, pictures: dict[str, Drawn]) -> None:
    found = read_all(pair, [picture.jpeg for picture in pictures.values()])
    for picture, regions in zip(pictures.values(), found, strict=True):
        assert tuple(region.text for region in regions) == picture.lines, picture.name


class Receipt(NamedTuple):
    """A scanned receipt: its lines with their boxes as SROIE gives them, and what was read."""

    lines: list[tuple[str, tuple[float, float, float, float]]]
    found: tuple[Region, ...]


@pytest.fixture(scope="module")
def receipts(pair: OcrEngine, shared: Path) -> list[Receipt]:
    """12 receipts of SROIE, 552 lines."""
    folder = shared / "data" / "datasets" / "ocr_sroie"
    pages = json.loads((folder / "gt.json").read_text())
    found = read_all(pair, [(folder / page["file_name"]).read_bytes() for page in pages])
    return [
        Receipt([(line["text"], around(line["polygon"])) for line in page["words"] if not line["ignore"]], regions)
        for page, regions in zip(pages, found, strict=True)
    ]


@pytest.mark.slow
def test_words_of_scanned_receipts(receipts: list[Receipt]) -> None:
    """Words compared without case, as multisets per receipt.

    Reached with rapidocr 3.10 (PP-OCRv6 small): recall 0.836, precision 0.878. Most misses are a space or a comma, or
    smudged words which the reference spells out.
    """
    hits = written = said = 0
    for lines, found in receipts:
        truth, answer = words(text for text, _ in lines), words(region.text or "" for region in found)
        hits, written, said = hits + (truth & answer).total(), written + truth.total(), said + answer.total()
    assert hits / written == pytest.approx(0.836, abs=0.015)
    assert hits / said == pytest.approx(0.878, abs=0.015)


@pytest.mark.slow
def test_lines_of_scanned_receipts_are_found_and_read(receipts: list[Receipt]) -> None:
    """Lines matched one to one, best overlap first, at IoU 0.5; characters without case and spaces.

    Reached with rapidocr 3.10: detection F1 0.892; character error rate of the lines that were found 0.028, and 0.079 when
    every line that was missed counts as all wrong.
    """
    matched = written = said = edits = characters = missed = 0
    for lines, found in receipts:
        pairs = match(lines, found)
        matched, written, said = matched + len(pairs), written + len(lines), said + len(found)
        for text, region in pairs:
            edits += edit_distance(plain(text), plain(region.text or ""))
            characters += len(plain(text))
        missed += sum(len(plain(text)) for text, _ in lines) - sum(len(plain(text)) for text, _ in pairs)
    f1 = 2 * matched / (written + said)
    assert f1 == pytest.approx(0.892, abs=0.01)
    assert edits / characters == pytest.approx(0.028, abs=0.005)
    assert (edits + missed) / (characters + missed) == pytest.approx(0.079, abs=0.015)


def around(polygon: list[float]) -> tuple[float, float, float, float]:
    return (min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2]))


def match(
    lines: list[tuple[str, tuple[float, float, float, float]]], found: tuple[Region, ...]
) -> list[tuple[str, Region]]:
    boxes = [bounding_box(region.shape) for region in found]
    overlap = iou(np.array([box for _, box in lines]), np.array([box.xyxy for box in boxes if box]))
    pairs, taken = [], (set[int](), set[int]())
    for flat in np.argsort(-overlap, axis=None, kind="stable"):
        line, region = (int(at) for at in np.unravel_index(flat, overlap.shape))
        if overlap[line, region] < 0.5:
            break
        if line not in taken[0] and region not in taken[1]:
            taken[0].add(line)
            taken[1].add(region)
            pairs.append((lines[line][0], found[region]))
    return pairs


def plain(text: str) -> str:
    return "".join(text.casefold().split())


def edit_distance(one: str, other: str) -> int:
    """Levenshtein 1966."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(one, 1):
        above, row[0] = row[0], number
        for place, wanted in enumerate(other, 1):
            above, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, above + (letter != wanted))
    return row[-1]


def read_all(engine: OcrEngine, jpegs: list[bytes]) -> list[tuple[Region, ...]]:
    with ThreadPoolExecutor(engine.parallel) as pool:
        return list(pool.map(lambda jpeg: read(engine, jpeg), jpegs))


def words(lines: Iterable[str]) -> Counter[str]:
    return Counter(word for line in lines for word in line.casefold().split())
