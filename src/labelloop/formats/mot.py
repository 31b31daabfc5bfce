"""MOTChallenge text: one line per box, `frame, id, left, top, width, height, confidence, class, visibility`.

Ground truth has nine columns and in the seventh a flag, 0 for boxes that are not to be counted; results have ten, the
seventh is a score and the last three are -1. Frames and ids count from 1, sides are pixels (motchallenge.net, "Data
format", and Dendorfer et al., "MOT20", 2020). A sequence is a folder with `gt/gt.txt`, `seqinfo.ini` and, in our own
and CVAT's writing, `gt/labels.txt` with a name per class.
"""

from __future__ import annotations

import configparser
import csv
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from labelloop.core.errors import LabelloopError
from labelloop.core.regions import Size


class MotError(LabelloopError):
    """A file is no MOTChallenge text."""

    code = "mot"


class Row(msgspec.Struct, frozen=True):
    """One box. `category` counts from 1, -1 says nothing; `confidence` is a score, or in ground truth 0 for a box that
    is not to be counted; `visibility` is the share that is seen."""

    frame: int
    id: int
    xyxy: tuple[float, float, float, float]
    confidence: float = 1.0
    category: int = -1
    visibility: float = 1.0


class SequenceInfo(msgspec.Struct, frozen=True):
    """What `seqinfo.ini` says: the name, the number of frames, frames per second, the size."""

    name: str
    frames_count: int
    fps: float
    size: Size


def read(path: Path) -> list[Row]:
    """Rows in file order; lines that are empty or begin with # are passed over. Raises MotError with the number of the
    line that is none."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise MotError(f"{path} cannot be read: {error}.") from error
    rows: list[Row] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip() and not line.startswith("#"):
            rows.append(_row(line, path, number))
    return rows


def _row(line: str, path: Path, number: int) -> Row:
    try:
        fields = [float(part) for part in line.replace(",", " ").split()]
        frame, name, left, top, width, height = fields[:6]
        confidence = fields[6] if len(fields) > 6 else 1.0
        category = int(fields[7]) if len(fields) > 7 else -1
        if not all(map(math.isfinite, fields)) or frame < 1 or frame % 1 or name % 1:
            raise ValueError("frames and ids are whole numbers, frames count from 1")
    except ValueError as error:
        raise MotError(
            f"Line {number} of {path} is no box: {line.strip()[:80]!r} ({error}).",
            hint="A line is: frame, id, left, top, width, height, confidence, class, visibility.",
        ) from error
    visibility = fields[8] if len(fields) == 9 else 1.0
    return Row(int(frame), int(name), (left, top, left + width, top + height), confidence, category, visibility)


def write(path: Path, rows: Iterable[Row]) -> None:
    """Write ground truth, by frame and id."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(_fields(rows))


def _fields(rows: Iterable[Row]) -> Iterator[tuple[str, ...]]:
    for row in sorted(rows, key=lambda row: (row.frame, row.id)):
        left, top, right, bottom = row.xyxy
        numbers = (left, top, right - left, bottom - top, row.confidence)
        yield (str(row.frame), str(row.id), *map(_short, numbers), str(row.category), _short(row.visibility))


def _short(number: float) -> str:
    """Thousandths of a pixel, without zeros at the end."""
    return f"{number:.3f}".rstrip("0").rstrip(".")


def write_sequence(folder: Path, about: SequenceInfo, rows: Iterable[Row], *, labels: Sequence[str]) -> None:
    """Write a sequence: `gt/gt.txt`, `gt/labels.txt` (`labels[0]` is class 1) and `seqinfo.ini`."""
    write(folder / "gt" / "gt.txt", rows)
    (folder / "gt" / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    info = configparser.ConfigParser()
    info.optionxform = str  # type: ignore[assignment,method-assign]  # readers look for imWidth, not imwidth
    info["Sequence"] = {
        "name": about.name,
        "frameRate": _short(about.fps),
        "seqLength": str(about.frames_count),
        "imWidth": str(about.size.width),
        "imHeight": str(about.size.height),
    }
    with (folder / "seqinfo.ini").open("w", encoding="utf-8") as file:
        info.write(file, space_around_delimiters=False)
