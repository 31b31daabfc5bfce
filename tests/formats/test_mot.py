"""MOTChallenge text: written and read back, in the writings that are met, and refused with the number of the line."""

from __future__ import annotations

import configparser
from pathlib import Path

import pytest

from labelloop.core.regions import Size
from labelloop.formats.mot import MotError, Row, SequenceInfo, read, write, write_sequence

ROWS = [
    Row(2, 1, (10.125, -4, 20.5, 30), 1, 2, 0.75),
    Row(1, 2, (0, 0, 5, 5), 0.5, 1, 1.0),
    Row(1, 1, (1234.5, 0, 1300, 720), 1, 1, 1.0),
]


def test_rows_come_back_by_frame_and_id(tmp_path: Path) -> None:
    path = tmp_path / "gt.txt"
    write(path, ROWS)
    assert path.read_text().splitlines()[2] == "2,1,10.125,-4,10.375,34,1,2,0.75"
    assert read(path) == sorted(ROWS, key=lambda row: (row.frame, row.id))


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("1,2,3,4,5,6", Row(1, 2, (3, 4, 8, 10))),
        ("1,-1,3,4,5,6,0.9,-1,-1,-1", Row(1, -1, (3, 4, 8, 10), 0.9)),
        ("1, 2, 3.5, 4, 5, 6, 1, 7, 0.25", Row(1, 2, (3.5, 4, 8.5, 10), 1, 7, 0.25)),
        ("1 2 3 4 5 6", Row(1, 2, (3, 4, 8, 10))),
        ("1.0,2.0,3,4,5,6", Row(1, 2, (3, 4, 8, 10))),
        ("\ufeff1,2,3,4,5,6", Row(1, 2, (3, 4, 8, 10))),
        ("# frame,id\n\n1,2,3,4,5,6\n", Row(1, 2, (3, 4, 8, 10))),
    ],
    ids=["the least", "a result", "ground truth with blanks", "blanks only", "whole numbers with a point", "a mark of order",
         "a comment and an empty line"],
)  # fmt: skip
def test_writings_that_are_met(tmp_path: Path, line: str, row: Row) -> None:
    (tmp_path / "x.txt").write_text(line, encoding="utf-8")
    assert read(tmp_path / "x.txt") == [row]


@pytest.mark.parametrize(
    "line", ["1,2,3,4,5", "0,2,3,4,5,6", "1.5,2,3,4,5,6", "1,car,3,4,5,6", "1,2,nan,4,5,6", "{}"],
    ids=["no height", "frame 0", "half a frame", "a name", "no number", "JSON"],
)  # fmt: skip
def test_a_line_that_is_no_box_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.txt").write_text(f"1,1,1,1,1,1\n{line}\n")
    with pytest.raises(MotError, match=r"Line 2 of .*x.txt is no box"):
        read(tmp_path / "x.txt")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "absent.txt", tmp_path / "x.txt", tmp_path):
        with pytest.raises(MotError, match="cannot be read"):
            read(path)


def test_a_sequence_says_what_it_is(tmp_path: Path) -> None:
    about = SequenceInfo("walk", 289, 30000 / 1001, Size(1280, 720))
    write_sequence(tmp_path / "walk", about, ROWS, labels=["dog", "woman"])
    info = configparser.ConfigParser()
    info.read(tmp_path / "walk/seqinfo.ini")
    assert dict(info["Sequence"]) == {
        "name": "walk", "framerate": "29.97", "seqlength": "289", "imwidth": "1280", "imheight": "720"
    }  # fmt: skip
    assert "imWidth=1280" in (tmp_path / "walk/seqinfo.ini").read_text()
    assert (tmp_path / "walk/gt/labels.txt").read_text() == "dog\nwoman\n"
    assert len(read(tmp_path / "walk/gt/gt.txt")) == 3
