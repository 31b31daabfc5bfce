from __future__ import annotations

from pathlib import Path

import pytest

from labelloop.core.errors import ModelError
from labelloop.engines.labels import COCO, COCO91, read_labels


def test_the_two_coco_lists_agree() -> None:
    assert read_labels("coco") is COCO
    assert read_labels("COCO91") is COCO91
    assert (len(COCO), len(set(COCO)), len(COCO91)) == (80, 80, 91)
    assert tuple(name for name in COCO91[1:] if name != "N/A") == COCO
    # spot checks against the category ids of instances_val2017.json
    assert {COCO91[number]: number for number in (1, 13, 44, 64, 67, 90)} == {
        "person": 1,
        "stop sign": 13,
        "bottle": 44,
        "potted plant": 64,
        "dining table": 67,
        "toothbrush": 90,
    }


def test_coco91_has_the_category_ids_of_the_annotations(shared: Path) -> None:
    import json

    categories = json.loads((shared / "data/datasets/coco32/annotations.json").read_text())["categories"]
    by_id = {number: name for number, name in enumerate(COCO91) if number and name != "N/A"}
    named = {entry["id"]: entry["name"] for entry in categories}
    assert set(by_id) == set(named) or set(named) == set(range(1, 81))
    assert [named[number] for number in sorted(named)] == list(COCO)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        pytest.param("names.txt", "cat\n guide dog \n\nbird\n", id="one a line, spaces and empty lines"),
        pytest.param("names.txt", "\ufeffcat\r\nguide dog\r\nbird", id="written on Windows"),
        pytest.param("names.json", '["cat", "guide dog", "bird"]', id="JSON list"),
        pytest.param("names.json", '{"2": "bird", "0": "cat", "1": "guide dog"}', id="JSON mapping in any order"),
        pytest.param("data.yaml", "path: x\nnc: 3\nnames: [cat, guide dog, bird]\n", id="YOLO, a list"),
        pytest.param("data.yml", "names:\n  0: cat\n  1: guide dog\n  2: bird\n", id="YOLO, a mapping"),
    ],
)
def test_names_are_read_from(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / file) == ("cat", "guide dog", "bird")


def test_an_index_that_is_left_out_stays_empty(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('{"0": "cat", "2": "bird"}')
    assert read_labels(str(tmp_path / "names.json")) == ("cat", "N/A", "bird")


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        pytest.param("names.txt", "\n\n", "no list of names", id="an empty file"),
        pytest.param("names.json", '["cat", ', "cannot be read", id="broken JSON"),
        pytest.param("names.json", '{"cat": "0"}', "cannot be read", id="names for keys"),
        pytest.param("names.json", '[{"id": 1}]', "not a text", id="a list of objects"),
        pytest.param("data.yaml", "names: {", "cannot be read", id="broken YAML"),
        pytest.param("data.yaml", "!!python/object/apply:os.getcwd []", "cannot be read", id="YAML that wants to run"),
        pytest.param("names.txt", None, "names.txt", id="no such file"),
    ],
)
def test_what_cannot_be_read_is_an_error_with_a_hint(tmp_path: Path, file: str, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises(ModelError, match=words) as caught:
        read_labels(tmp_path / file)
    assert caught.value.hint
