"""What the demo shows for what was asked, and what it says when something is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelloop.core.errors import LabelloopError
from labelloop.core.settings import Settings, read_settings
from labelloop.demo.scenario import MOST_PICTURES, Scenario, boxes_config, plan
from labelloop.labelstudio.config import parse_config
from labelloop.serving.models import open_registry
from labelloop.store.registry import Registry


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return read_settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def registry(settings: Settings) -> Registry:
    return open_registry(settings)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "my pictures"
    folder.mkdir()
    for name in ("b.PNG", "a.jpg", "notes.txt"):
        (folder / name).write_bytes(b"x")
    return folder


def test_nothing_given_reads_text_on_pictures_drawn_here(
    registry: Registry, settings: Settings, tmp_path: Path
) -> None:
    pytest.importorskip("rapidocr")
    scenario = plan(registry, settings, folder=tmp_path / "drawn")
    assert scenario.reads_text
    assert [path.name for path in scenario.pictures] == list(scenario.texts)
    assert all(path.is_file() for path in scenario.pictures)
    tags = {control.tag for control in parse_config(scenario.label_config).controls}
    assert {"Labels", "Rectangle", "TextArea"} <= tags


def test_own_pictures_without_a_model_are_read(
    registry: Registry, settings: Settings, tmp_path: Path, images: Path
) -> None:
    pytest.importorskip("rapidocr")
    scenario = plan(registry, settings, folder=tmp_path, images=images)
    assert scenario.title == "Text in my pictures"
    assert [path.name for path in scenario.pictures] == ["a.jpg", "b.PNG"]
    assert not scenario.texts


def test_a_detector_gets_a_config_with_its_classes(
    registry: Registry, settings: Settings, tmp_path: Path, images: Path, shared: Path
) -> None:
    scenario: Scenario = plan(
        registry,
        settings,
        folder=tmp_path,
        model=shared / "data/models/yolox_nano_416.onnx",
        images=images,
        labels="coco",
    )
    assert scenario.title == "yolox_nano_416: my pictures"
    assert not scenario.reads_text
    (control,) = parse_config(scenario.label_config).controls
    assert [label.value for label in control.labels][:2] == ["person", "bicycle"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"model": "model.onnx"}, "--images DIR"),
        ({"labels": "coco"}, "--model FILE"),
        ({"model": "model.onnx", "images": "."}, "There is no file"),
        ({"images": "nowhere"}, "Check --images"),
        ({"images": "empty"}, "Browsers show jpg"),
    ],
    ids=["no pictures", "labels alone", "no model file", "no folder", "empty folder"],
)
def test_what_is_missing_is_said(
    registry: Registry, settings: Settings, tmp_path: Path, given: dict[str, str], says: str
) -> None:
    pytest.importorskip("rapidocr")
    (tmp_path / "empty").mkdir()
    arguments = {key: value if key == "labels" else tmp_path / value for key, value in given.items()}
    with pytest.raises(LabelloopError, match=says):
        plan(registry, settings, folder=tmp_path / "drawn", **arguments)  # type: ignore[arg-type]


def test_a_great_folder_is_cut_and_a_long_name_too(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    pytest.importorskip("rapidocr")
    folder = tmp_path / ("long name " * 8)
    folder.mkdir()
    for number in range(MOST_PICTURES + 1):
        (folder / f"{number}.jpg").touch()
    scenario = plan(registry, settings, folder=tmp_path, images=folder)
    assert len(scenario.pictures) == MOST_PICTURES
    assert scenario.left_out == 1
    assert len(scenario.title) == 50


def test_class_names_with_signs_survive_and_colours_differ() -> None:
    names = ('a & b <"c">', "d", "d", *map(str, range(30)))
    (control,) = parse_config(boxes_config(names)).controls
    assert [label.value for label in control.labels] == list(dict.fromkeys(names))
    colors = [part.split('"')[1] for part in boxes_config(names).split("background=")[1:]]
    assert len(set(colors)) == len(colors) == 32
