"""From files in a folder, or named on the command line, to models in the registry."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from labelloop.core.settings import Settings, read_settings
from labelloop.serving.models import add_models_dir, default_model, model_name, open_registry, project_of
from labelloop.store.registry import NAME, Registry
from reference.tiny_models import Thing, build_v8, ultralytics_metadata


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return read_settings(home=tmp_path / "home")


@pytest.fixture
def registry(settings: Settings) -> Registry:
    return open_registry(settings)


def detector(path: Path, *, score: float = 0.9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    size = (64, 64)
    metadata = ultralytics_metadata(("car", "dog", "cat"), size_wh=size)
    return build_v8(path, [Thing((8, 8, 24, 24), 0, score)], size_wh=size, metadata=metadata)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("cars", "cars"),
        ("my model (1)", "my-model--1"),
        (".hidden", "hidden"),
        ("a@2", "a-2"),
        ("Straße", "Stra-e"),
        ("x" * 200, "x" * 80),
    ],
)
def test_a_file_name_becomes_a_model_name(stem: str, name: str) -> None:
    assert model_name(stem) == name


def test_a_name_without_a_letter_we_know_is_still_one_and_its_own() -> None:
    names = {model_name(stem) for stem in ("车辆", "²", "---", "")}
    assert len(names) == 4
    assert all(NAME.fullmatch(name) and name.startswith("model-") for name in names)


@pytest.mark.parametrize(
    ("file", "project"), [("7.onnx", 7), ("²", None), ("٣", None), ("7a", None), ("9" * 30, None), ("-1", None)]
)
def test_which_project_a_file_is_for(file: str, project: int | None) -> None:
    assert project_of(Path(file)) == project


def test_a_file_has_one_name_however_it_is_given(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    file = detector(tmp_path / "files" / "my model.onnx")
    (version,) = add_models_dir(registry, file.parent, settings)
    assert version.id == "my-model@1" == default_model(registry, str(file), settings)


def test_no_file_name_stops_the_others(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    for name in ("²", "9" * 30, "7", "车辆", "good"):
        detector(tmp_path / "files" / f"{name}.onnx")
    (tmp_path / "files" / "bad.onnx").write_bytes(b"not a model")
    with capture_logs() as logs:
        names = {version.name for version in add_models_dir(registry, tmp_path / "files", settings)}
    assert names == {model_name("²"), "9" * 30, "project-7", model_name("车辆"), "good"}
    assert list(registry.catalogue().bindings) == [7]
    assert [Path(line["file"]).name for line in logs] == ["bad.onnx"]


def test_files_whose_names_become_one_stay_two_models(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    for name, score in (("7", 0.9), ("project-7", 0.8), ("my model", 0.7), ("my-model", 0.6)):
        detector(tmp_path / "files" / f"{name}.onnx", score=score)
    for _ in range(2):  # the second start finds the same models under the same names
        versions = add_models_dir(registry, tmp_path / "files", settings)
        assert {version.number for version in versions} == {1}
        shown = sorted(re.sub(r"-[0-9a-f]{8}$", "-HASH", version.name) for version in versions)
        assert shown == ["my-model", "my-model-HASH", "project-7", "project-7-HASH"]


def test_a_card_may_name_the_model_of_a_project(registry: Registry, settings: Settings, tmp_path: Path) -> None:
    detector(tmp_path / "files" / "7.onnx").with_suffix(".yaml").write_text("name: street\n")
    add_models_dir(registry, tmp_path / "files", settings)
    assert registry.catalogue().bindings[7].name == "street"


def test_a_model_whose_file_is_lost_serves_again_after_a_start(
    registry: Registry, settings: Settings, tmp_path: Path
) -> None:
    file = detector(tmp_path / "files" / "cars.onnx")
    (version,) = add_models_dir(registry, file.parent, settings)
    stored = registry.path(version)
    assert stored is not None
    stored.unlink()
    (again,) = add_models_dir(open_registry(settings), file.parent, settings)
    assert registry.path(again) == stored
    assert stored.read_bytes() == file.read_bytes()
