"""The demo's pictures are the same everywhere, and upright once EXIF is applied."""

from __future__ import annotations

import io

import pytest

pytest.importorskip("PIL", reason="needs the extra labelloop[ocr]")

from PIL import Image, ImageOps

from labelloop.demo.pictures import Drawn, draw_pictures


@pytest.fixture(scope="module")
def pictures() -> list[Drawn]:
    return draw_pictures()


@pytest.mark.slow
def test_pictures_are_drawn_the_same_each_time_and_are_told_apart_by_name_and_text(pictures: list[Drawn]) -> None:
    assert pictures == draw_pictures()
    assert len({picture.name for picture in pictures}) == len(pictures) == 8
    assert len({picture.lines for picture in pictures}) == len(pictures)


def test_each_is_a_jpeg_of_moderate_size_and_one_is_stored_sideways_as_phones_do(pictures: list[Drawn]) -> None:
    turned = []
    for picture in pictures:
        image = Image.open(io.BytesIO(picture.jpeg))
        upright = ImageOps.exif_transpose(image)
        assert image.format == "JPEG"
        assert 500 <= min(upright.size) < max(upright.size) <= 1000
        assert len(picture.jpeg) < 200_000
        assert upright.height > upright.width or not picture.name.startswith("receipt")
        if upright.size != image.size:
            turned.append(picture.name)
    assert turned == ["receipt-books.jpg"]
