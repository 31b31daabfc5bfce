"""Folders of pictures -> films, one per folder, each with a table that says which picture became which frame."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.errors import FilmError, LabelloopError
from labelloop.core.pictures import Picture
from labelloop.core.regions import Size
from labelloop.media.film import describe, read_frames
from labelloop.media.film_writer import FilmWriter
from labelloop.media.image import decode

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jp2"})
OTHER_FILMS = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mpg", ".mpeg", ".webm", ".wmv"})
COLUMNS = ("frame", "time_s", "file", "width", "height")
LOWEST_PSNR_DB = 20.0
"""Of the brightness of a frame against its picture. Coding at our quality leaves more than 30 dB; another picture of
the same scene has less than 20."""

Tell = Callable[[str, int, int], None]
"""Told what is done, how far it is and how far it goes."""


class Plan(msgspec.Struct, frozen=True):
    """A film to be made: the pictures in their order, the film, and the table beside it."""

    folder: Path
    pictures: tuple[Path, ...]
    film: Path

    @property
    def index(self) -> Path:
        return self.film.with_suffix(".frames.csv")


class Made(msgspec.Struct, frozen=True):
    """A film that was made. `pictures` are those that became frames, in order; `left_out` the unreadable, and why."""

    plan: Plan
    size: Size
    fps: Fraction
    pictures: tuple[Path, ...]
    left_out: tuple[tuple[Path, str], ...] = ()


def plan_films(
    folder: Path, *, out: Path | None = None, pattern: str | None = None, recursive: bool = False
) -> list[Plan]:
    """Which films to make of the pictures in `folder` and, with `recursive`, of those in each folder below it.

    A film has the name of its folder and lies beside it. With `out` ending in .mp4 it is that file (there must be only
    one), with any other `out` films lie in that folder, in the same tree as their pictures. Raises FilmError.
    """
    folder = folder.absolute()
    if not folder.is_dir():
        raise FilmError(f"There is no folder {folder}.", hint="Name the folder with the pictures.")
    below = sorted((path for path in folder.rglob("*") if path.is_dir()), key=_natural) if recursive else []
    found = [(each, pictures) for each in [folder, *below] if (pictures := _pictures(each, pattern))]
    if not found:
        what = f"that match {pattern!r} " if pattern else ""
        deeper = "" if recursive else " Pictures in folders below it are found with --recursive."
        raise FilmError(f"No pictures {what}are in {folder}.", hint=f"--pattern says which files are pictures.{deeper}")
    if out is not None and out.suffix.lower() in OTHER_FILMS and not out.is_dir():
        raise FilmError(f"{out} would not play in every browser.", hint="Films are made as .mp4: name it so.")
    if out is not None and out.suffix.lower() == ".mp4" and not out.is_dir():
        if len(found) > 1:
            raise FilmError(
                f"{len(found)} folders with pictures cannot become one film {out}.", hint="Name a folder with -o."
            )
        return [Plan(found[0][0], found[0][1], out.absolute())]
    return [Plan(each, pictures, _film_of(each, folder, out)) for each, pictures in found]


def _film_of(each: Path, root: Path, out: Path | None) -> Path:
    home = each.parent if out is None else out.absolute() / each.relative_to(root.parent).parent
    return home / f"{each.name or 'film'}.mp4"


def _pictures(folder: Path, pattern: str | None) -> tuple[Path, ...]:
    files = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if pattern is None:
        found = (path for path in files if path.suffix.lower() in SUFFIXES)
    else:
        found = (path for path in files if fnmatch(path.name.lower(), pattern.lower()))
    return tuple(sorted(found, key=_natural))


def _natural(path: Path) -> tuple[list[tuple[int, int | str]], str]:
    """frame2 before frame10, whatever the case; names that only differ in zeros or case keep an order too."""
    parts = re.split(r"(\d+)", path.as_posix().lower())
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part], path.as_posix()


def parse_fps(text: str) -> Fraction:
    """`25`, `29.97`, `30000/1001` as a fraction; decimals that mean an NTSC rate become it. Raises FilmError."""
    try:
        fps = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise FilmError(f"{text!r} is no frame rate.", hint="Write 25, 29.97 or 30000/1001.") from error
    if not Fraction(1, 100) <= fps <= 1000:
        raise FilmError(f"{text} frames a second cannot be played.", hint="Take a rate between 0.01 and 1000.")
    whole = Fraction(round(fps * 1001 / 1000))
    exact = whole * 1000 / 1001
    return exact if fps.denominator > 1 and abs(fps - exact) < Fraction(1, 200) else fps


def make_film(plan: Plan, *, fps: Fraction, max_pixels: int, tell: Tell | None = None) -> Made:
    """Make one film and its table. Pictures that cannot be read are left out, and said to be. The film is as large as
    the widest and the highest picture, with even sides. Raises FilmError where nothing is left."""
    tell = tell or _silent
    sizes, left_out = _measure(plan, max_pixels, tell)
    if not sizes:
        first = f" {left_out[0][0].name}: {left_out[0][1]}" if left_out else ""
        raise FilmError(f"None of the {len(plan.pictures)} pictures in {plan.folder} can be read.{first}")
    size = Size(max(size.width for size in sizes.values()), max(size.height for size in sizes.values()))
    done: list[tuple[Path, Size]] = []
    with FilmWriter(plan.film, size, fps=fps) as writer:
        for number, path in enumerate(sizes, start=1):
            try:
                picture = _read(path, max_pixels)
            except LabelloopError as error:  # only seen when it is unpacked in full
                left_out.append((path, error.message))
                continue
            writer.add(picture.rgb)
            done.append((path, picture.size))
            tell("writing", number, len(sizes))
        if not done:
            raise FilmError(f"None of the {len(plan.pictures)} pictures in {plan.folder} can be read.")
    _write_index(plan, done, fps)
    return Made(plan, writer.size, fps, tuple(path for path, _ in done), tuple(left_out))


def _measure(plan: Plan, max_pixels: int, tell: Tell) -> tuple[dict[Path, Size], list[tuple[Path, str]]]:
    """The upright size of each picture, and what cannot be read. A JPEG is unpacked at an eighth for that."""
    sizes: dict[Path, Size] = {}
    left_out: list[tuple[Path, str]] = []
    for number, path in enumerate(plan.pictures, start=1):
        try:
            sizes[path] = _read(path, max_pixels, min_size=Size(1, 1)).size
        except LabelloopError as error:
            left_out.append((path, error.message))
        tell("measuring", number, len(plan.pictures))
    return sizes, left_out


def _read(path: Path, max_pixels: int, *, min_size: Size | None = None) -> Picture:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FilmError(f"It cannot be read: {error.strerror}.") from error
    return decode(data, min_size=min_size, max_pixels=max_pixels)


def _write_index(plan: Plan, done: Sequence[tuple[Path, Size]], fps: Fraction) -> None:
    try:
        with plan.index.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for number, (path, size) in enumerate(done, start=1):
                time_s = round(float((number - 1) / fps), 6)
                writer.writerow([number, time_s, path.relative_to(plan.folder).as_posix(), *size])
    except OSError as error:
        raise FilmError(f"{plan.index} cannot be written: {error.strerror}.") from error


def verify_film(made: Made, *, max_pixels: int, tell: Tell | None = None) -> float:
    """Read every frame back and compare it with its picture. Returns the lowest peak signal-to-noise ratio of the
    brightness, in dB. Raises FilmError where the film is not what it should be."""
    tell = tell or _silent
    film = describe(made.plan.film)
    count = len(made.pictures)
    if film.frames_count != count or film.size != made.size or film.variable_rate:
        raise FilmError(f"{made.plan.film} has {film.frames_count} frames of {film.size}, not {count} of {made.size}.")
    lowest = np.inf
    for frame, path in zip(read_frames(made.plan.film), made.pictures, strict=True):
        found = _psnr_db(_read(path, max_pixels).rgb, frame.rgb)
        if found < LOWEST_PSNR_DB:
            raise FilmError(f"Frame {frame.number} of {made.plan.film} is not {path.name}: only {found:.0f} dB alike.")
        lowest = min(lowest, found)
        tell("verifying", frame.number, count)
    return float(lowest)


def _psnr_db(picture: NDArray[np.uint8], frame: NDArray[np.uint8]) -> float:
    """10 log10(255² / mean square error) over the brightness of the part of the frame that is the picture."""
    import cv2

    height, width = picture.shape[:2]
    first, second = (cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY) for rgb in (picture, frame[:height, :width]))
    error = float(np.mean(np.square(first.astype(np.float32) - second)))
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def _silent(_what: str, _done: int, _of: int) -> None:
    return None
