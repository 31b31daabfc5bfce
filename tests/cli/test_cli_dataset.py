"""`labelloop dataset export` as people type it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from labelloop.cli import app
from labelloop.formats import coco
from labelloop.jobs.folder import read_folder
from labelloop.testing import FakeLabelStudio
from reference.running_server import CONFIG, jpeg


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY", "LABEL_STUDIO_TOKEN", "LABEL_STUDIO_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    """A project with thirty annotated pictures, of which three are empty and one is gone, and a skipped one."""
    with FakeLabelStudio() as server:
        number = server.add_project("Street", CONFIG)
        names = [server.add_upload(number, f"{n}.jpg", jpeg(200, 100, seed=n)) for n in range(31)]
        tasks = server.add_tasks(number, ({"image": name} for name in [*names, "/data/upload/1/gone.jpg"]))
        for task in tasks:
            annotate(server, task, *([] if task in tasks[:3] else [rectangle(task)]))
        (skipped,) = server.add_tasks(number, [{"image": names[0]}])
        annotate(server, skipped, was_cancelled=True)
        yield server


def rectangle(x: float, *, label: str = "Car") -> dict[str, Any]:
    value = {"x": x, "y": 10, "width": 20, "height": 30, "rotation": 0, "rectanglelabels": [label]}
    return {
        "id": "r", "from_name": "box", "to_name": "img", "type": "rectanglelabels",
        "original_width": 200, "original_height": 100, "value": value,
    }  # fmt: skip


def annotate(studio: FakeLabelStudio, task: int, *result: dict[str, Any], **fields: Any) -> None:
    studio.state.add_annotation(studio.state.tasks[task], {"result": list(result), **fields})


def export(studio: FakeLabelStudio, out: Path, *arguments: str) -> Result:
    typed = ["dataset", "export", "street", "-o", str(out), "--url", studio.url, "--token", studio.token, *arguments]
    return CliRunner().invoke(app, typed)


def test_a_project_becomes_a_folder_with_one_command(studio: FakeLabelStudio, tmp_path: Path) -> None:
    done = export(studio, tmp_path / "set")
    assert done.exit_code == 0, done.output
    manifest = read_folder(tmp_path / "set").manifest
    train, val = (coco.read(tmp_path / "set" / f"{side}.json") for side in ("train", "val"))
    lines = done.output.splitlines()
    assert lines[-6:] == [
        f"train {len(train.images)} pictures ({empty(train)} empty), {len(train.annotations)} boxes: Car {len(train.annotations)}",
        f"val   {len(val.images)} pictures ({empty(val)} empty), {len(val.annotations)} boxes: Car {len(val.annotations)}",
        lines[-4],
        "left out: 1 skipped (task 33): everybody passed it on",
        f"manifest {manifest.digest}",
        f"Written to {tmp_path / 'set'}",
    ]
    assert lines[-4].startswith("left out: 1 media-not-found (task 32): ")
    assert (len(train.images) + len(val.images), empty(train) + empty(val)) == (31, 3)
    assert all((tmp_path / "set/images" / image.file_name).is_file() for image in (*train.images, *val.images))
    again = export(studio, tmp_path / "again")
    assert f"manifest {manifest.digest}" in again.output, "the same data"


def empty(dataset: coco.Dataset) -> int:
    return sum(not found for found in dataset.by_image().values())


def test_a_yolo_folder_and_another_split(studio: FakeLabelStudio, tmp_path: Path) -> None:
    done = export(studio, tmp_path / "deep/yolo", "--format", "yolo", "--val-share", "0.5", "--salt", "x")
    assert done.exit_code == 0, done.output
    counts = [len(list((tmp_path / "deep/yolo/labels" / side).iterdir())) for side in ("train", "val")]
    assert sum(counts) == 31
    assert min(counts) > 7
    assert json.loads((tmp_path / "deep/yolo/manifest.json").read_text())["options"] == {
        "val_share": 0.5, "salt": "x", "annotators": "ground_truth",
    }  # fmt: skip
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["yolo"], "nothing else is left"


def test_what_cannot_be_exported_says_why(studio: FakeLabelStudio, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("keep")
    assert "not empty" in str(export(studio, tmp_path / "full").exception)
    studio.add_project("Nothing yet", CONFIG)
    typed = [
        "dataset",
        "export",
        "Nothing yet",
        "-o",
        str(tmp_path / "none"),
        "--url",
        studio.url,
        "--token",
        studio.token,
    ]
    assert "Nothing is annotated in project 2 (Nothing yet)" in str(CliRunner().invoke(app, typed).exception)
    assert not (tmp_path / "none").exists()
    assert CliRunner().invoke(app, [*typed[:5], "--val-share", "1.5"]).exit_code != 0
