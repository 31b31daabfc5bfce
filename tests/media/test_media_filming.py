"""Films made of pictures, read back: order, sizes, colours, names, and what may not happen."""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from labelloop.core.errors import FilmError
from labelloop.core.regions import Size
from labelloop.media.film import describe, read_frames
from labelloop.media.film_writer import FilmWriter
from labelloop.media.filming import Made, Plan, make_film, parse_fps, plan_films, verify_film
from reference.films import number_of, numbered

LIMIT = 10_000_000


def save(path: Path, number: int, *, width: int = 160, height: int = 96) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), cv2.cvtColor(numbered(number, width=width, height=height), cv2.COLOR_RGB2BGR))
    return path


def make(folder: Path, **options: object) -> Made:
    (plan,) = plan_films(folder, **options)  # type: ignore[arg-type]
    return make_film(plan, fps=Fraction(25), max_pixels=LIMIT)


def rows(made: Made) -> list[dict[str, str]]:
    with made.plan.index.open(newline="") as file:
        return list(csv.DictReader(file))


def test_pictures_become_frames_in_the_order_that_people_mean(tmp_path: Path) -> None:
    names = ["frame1.png", "frame2.png", "Frame10.png", "frame11.png", "frame100.png"]
    for number, name in enumerate(names, start=1):
        save(tmp_path / "walk" / name, number)
    made = make(tmp_path / "walk")
    assert made.plan.film == tmp_path / "walk.mp4"
    assert [number_of(frame.rgb) for frame in read_frames(made.plan.film)] == [1, 2, 3, 4, 5]
    assert [(row["frame"], row["file"], row["width"]) for row in rows(made)] == [
        (str(number), name, "160") for number, name in enumerate(names, start=1)
    ]
    assert [float(row["time_s"]) for row in rows(made)] == [0, 0.04, 0.08, 0.12, 0.16]
    assert verify_film(made, max_pixels=LIMIT) > 30


def test_the_film_is_one_that_browsers_play_and_seek_in(tmp_path: Path) -> None:
    for number in range(1, 31):
        save(tmp_path / "in" / f"{number}.png", number, width=161, height=97)
    made = make(tmp_path / "in")
    film = describe(made.plan.film)
    assert (film.codec, film.size, film.frames_count, film.fps) == ("h264", Size(162, 98), 30, 25)
    data = made.plan.film.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "it plays while it loads"
    frames = list(read_frames(made.plan.film))
    assert frames[0].time_s == 0
    red, blue = frames[0].rgb[80, 40].astype(int), frames[0].rgb[80, 120].astype(int)
    assert np.abs(red - (200, 30, 30)).max() < 6, "colours are those of the pictures"
    assert np.abs(blue - (30, 30, 200)).max() < 6


def test_smaller_pictures_lie_top_left_on_black(tmp_path: Path) -> None:
    save(tmp_path / "in/1.png", 255, width=160, height=40)
    save(tmp_path / "in/2.png", 255, width=80, height=96)
    made = make(tmp_path / "in")
    assert made.size == Size(160, 96)
    first, second = (frame.rgb for frame in read_frames(made.plan.film))
    assert first[10, 80].min() > 240
    assert first[60:, :].max() < 16
    assert second[:, 100:].max() < 16
    assert [(row["width"], row["height"]) for row in rows(made)] == [("160", "40"), ("80", "96")]


def test_pictures_that_are_turned_by_their_metadata_are_upright(tmp_path: Path, rotated_jpeg: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(rotated_jpeg)
    assert make(tmp_path / "in").size == Size(40, 80)


@pytest.fixture
def rotated_jpeg() -> bytes:
    """80 x 40 as stored, to be turned by a quarter (EXIF orientation 6)."""
    data = bytes(cv2.imencode(".jpg", np.full((40, 80, 3), 128, np.uint8))[1])
    tiff = b"II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\0\0\0\0"
    exif = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]


def test_unreadable_pictures_are_left_out_and_named(tmp_path: Path) -> None:
    save(tmp_path / "in/1.png", 1)
    (tmp_path / "in/2.png").write_text("no picture")
    save(tmp_path / "in/3.png", 3)
    (tmp_path / "in/4.jpg").write_bytes(cv2.imencode(".jpg", numbered(4))[1].tobytes()[:200])
    made = make(tmp_path / "in")
    assert [path.name for path in made.pictures] == ["1.png", "3.png"]
    assert [(path.name, why[:30]) for path, why in made.left_out] == [
        ("2.png", "These 10 bytes are no picture "), ("4.jpg", "This JPEG of 200 bytes is dama")
    ]  # fmt: skip
    assert [number_of(frame.rgb) for frame in read_frames(made.plan.film)] == [1, 3]
    assert [row["file"] for row in rows(made)] == ["1.png", "3.png"]


def test_each_folder_becomes_a_film_with_its_name(tmp_path: Path) -> None:
    for folder in ("day/cam1/frames", "day/cam2/frames", "day"):
        save(tmp_path / folder / "1.png", 1)
    (tmp_path / "day/empty").mkdir()
    films = [plan.film.relative_to(tmp_path).as_posix() for plan in plan_films(tmp_path / "day", recursive=True)]
    assert films == ["day.mp4", "day/cam1/frames.mp4", "day/cam2/frames.mp4"]
    elsewhere = plan_films(tmp_path / "day", recursive=True, out=tmp_path / "out")
    assert [plan.film.relative_to(tmp_path).as_posix() for plan in elsewhere] == [
        "out/day.mp4", "out/day/cam1/frames.mp4", "out/day/cam2/frames.mp4"
    ]  # fmt: skip
    (one,) = plan_films(tmp_path / "day", out=tmp_path / "x/film.mp4")
    assert (one.film, one.index) == (tmp_path / "x/film.mp4", tmp_path / "x/film.frames.csv")


@pytest.mark.parametrize(
    ("pattern", "found"),
    [(None, ["a.jpg", "b.PNG"]), ("*.jpg", ["a.jpg"]), ("*.png", ["b.PNG"]), ("*.dat", ["c.dat"])],
    ids=["pictures", "one kind", "whatever the case", "by another name"],
)
def test_which_files_are_pictures(tmp_path: Path, pattern: str | None, found: list[str]) -> None:
    for name in ("a.jpg", "b.PNG", "c.dat", ".hidden.jpg", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    (plan,) = plan_films(tmp_path, pattern=pattern)
    assert [path.name for path in plan.pictures] == found


def test_what_cannot_become_a_film(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("a", "b"):
        save(tmp_path / "two" / folder / "1.png", 1)
    with pytest.raises(FilmError, match="There is no folder"):
        plan_films(tmp_path / "absent")
    with pytest.raises(FilmError, match="No pictures are in") as caught:
        plan_films(tmp_path / "two")
    assert "--recursive" in caught.value.hint
    with pytest.raises(FilmError, match=r"No pictures that match '\*.gif' are in"):
        plan_films(tmp_path / "two", pattern="*.gif", recursive=True)
    with pytest.raises(FilmError, match="2 folders with pictures cannot become one film"):
        plan_films(tmp_path / "two", recursive=True, out=tmp_path / "one.mp4")
    with pytest.raises(FilmError, match=r"one.avi would not play") as caught:
        plan_films(tmp_path / "two/a", out=tmp_path / "one.avi")
    assert ".mp4" in caught.value.hint


def test_nothing_is_left_behind_where_no_picture_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/1.jpg").write_text("no picture")
    with pytest.raises(FilmError, match=r"None of the 1 pictures .* can be read\. 1\.jpg: "):
        make(tmp_path / "in")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_film_that_is_not_finished_is_not_there(tmp_path: Path) -> None:
    def add_one_that_is_too_large() -> None:
        with FilmWriter(tmp_path / "x.mp4", Size(160, 96), fps=Fraction(25)) as writer:
            writer.add(numbered(1))
            writer.add(numbered(2, width=400))

    with pytest.raises(ValueError, match="broadcast"):
        add_one_that_is_too_large()
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FilmError, match=r"cannot be written: (File exists|Not a directory)"):
        FilmWriter(tmp_path / "file/x.mp4", Size(16, 16), fps=Fraction(25)).__enter__()
    with (
        pytest.raises(FilmError, match="with 20000 x 16 pixels"),
        FilmWriter(tmp_path / "x.mp4", Size(20000, 16), fps=Fraction(25)) as writer,
    ):
        writer.add(np.zeros((16, 20000, 3), np.uint8))


def test_verifying_notices_another_order_and_a_missing_frame(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        save(tmp_path / "in" / f"{number}.png", number)
    made = make(tmp_path / "in")
    pictures = made.pictures
    swapped = Made(made.plan, made.size, made.fps, (pictures[1], pictures[0], pictures[2]))
    with pytest.raises(FilmError, match=r"Frame 1 of .* is not 2.png"):
        verify_film(swapped, max_pixels=LIMIT)
    with pytest.raises(FilmError, match="has 3 frames"):
        verify_film(Made(made.plan, made.size, made.fps, pictures[:2]), max_pixels=LIMIT)


@pytest.mark.parametrize(
    ("text", "fps"),
    [("25", Fraction(25)), ("29.97", Fraction(30000, 1001)), ("23.976", Fraction(24000, 1001)), ("59.94", Fraction(60000, 1001)),
     ("30000/1001", Fraction(30000, 1001)), ("12.5", Fraction(25, 2)), ("0.5", Fraction(1, 2)), ("24", Fraction(24))],
)  # fmt: skip
def test_frame_rates(text: str, fps: Fraction) -> None:
    assert parse_fps(text) == fps


@pytest.mark.parametrize("text", ["0", "-5", "fast", "1/0", "nan", "inf", "100000", ""])
def test_what_is_no_frame_rate(text: str) -> None:
    with pytest.raises(FilmError):
        parse_fps(text)


@pytest.mark.parametrize("fps", ["24000/1001", "0.5", "60"])
def test_the_film_has_the_rate_that_was_asked_for(tmp_path: Path, fps: str) -> None:
    save(tmp_path / "in/1.png", 1)
    save(tmp_path / "in/2.png", 2)
    plan = Plan(tmp_path / "in", (tmp_path / "in/1.png", tmp_path / "in/2.png"), tmp_path / "x.mp4")
    make_film(plan, fps=parse_fps(fps), max_pixels=LIMIT)
    assert describe(plan.film).fps == pytest.approx(float(Fraction(fps)), rel=1e-4)
