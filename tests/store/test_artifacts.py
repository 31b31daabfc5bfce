"""Model files: whole or not there at all, fetched again when a copy is damaged, swept when a process was killed."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError, SettingsError
from labelloop.core.settings import read_settings
from labelloop.serving.models import open_store
from labelloop.store.artifacts import LEFTOVER_S, Artifacts, hash_file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a.onnx"
    path.write_bytes(os.urandom(300_000))
    return path


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """The kernel refuses to write on, in the middle of a file: what a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path, model: Path) -> None:
    artifacts = Artifacts(str(tmp_path / "models"), cache=tmp_path / "cache")
    with files_no_larger_than(100_000), pytest.raises(ModelError, match=r"cannot be stored .* space left"):
        artifacts.put(model, "cars/a.onnx")
    assert files_in(tmp_path / "models") == []


def test_a_disk_that_is_full_keeps_what_was_there(tmp_path: Path, model: Path) -> None:
    artifacts = Artifacts(str(tmp_path / "models"), cache=tmp_path / "cache")
    artifacts.put(model, "cars/a.onnx")
    with files_no_larger_than(100_000), pytest.raises(ModelError):
        artifacts.put(model, "cars/a.onnx")
    assert artifacts.path("cars/a.onnx", sha256=hash_file(model)).is_file()


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path, model: Path) -> None:
    with pytest.raises(ModelError, match="LABELLOOP_ARTIFACTS_URL"):
        Artifacts(str(model / "models"), cache=tmp_path).put(model, "cars/a.onnx")


def test_an_address_that_nobody_knows_says_which_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LABELLOOP_ARTIFACTS_URL"):
        Artifacts("nothing://models", cache=tmp_path)


def test_the_halves_of_killed_processes_are_swept_and_nothing_else(tmp_path: Path) -> None:
    models, cache = tmp_path / "models", tmp_path / "cache"
    ages = {
        models / "cars/a.onnx.1.part": LEFTOVER_S + 60,
        cache / "cars/b.onnx.2.part": LEFTOVER_S + 60,
        models / "cars/c.onnx.3.part": LEFTOVER_S - 60,  # somebody may be writing it
        models / "cars/d.onnx": LEFTOVER_S + 60,
    }
    for path, age in ages.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    Artifacts(str(models), cache=cache).sweep()
    assert files_in(tmp_path) == ["models/cars/c.onnx.3.part", "models/cars/d.onnx"]


def test_removing_twice_is_no_error(tmp_path: Path, model: Path) -> None:
    artifacts = Artifacts(str(tmp_path / "models"), cache=tmp_path / "cache")
    artifacts.put(model, "cars/a.onnx")
    artifacts.remove("cars/a.onnx")
    artifacts.remove("cars/a.onnx")
    assert files_in(tmp_path / "models") == []


class TestElsewhere:
    """A file system that is not this machine's."""

    @pytest.fixture
    def artifacts(self, tmp_path: Path) -> Iterator[Artifacts]:
        url = f"memory://{tmp_path.name}"
        yield Artifacts(url, cache=tmp_path / "cache")
        fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)

    def test_a_damaged_copy_is_fetched_again(self, artifacts: Artifacts, model: Path) -> None:
        artifacts.put(model, "cars/a.onnx")
        sha256 = hash_file(model)
        artifacts.path("cars/a.onnx", sha256=sha256).write_bytes(b"half")
        assert artifacts.path("cars/a.onnx", sha256=sha256).read_bytes() == model.read_bytes()

    def test_what_is_damaged_there_is_refused(self, artifacts: Artifacts, model: Path, tmp_path: Path) -> None:
        artifacts.put(model, "cars/a.onnx")
        fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/cars/a.onnx", b"half")
        with pytest.raises(ModelError, match="damaged"):
            artifacts.path("cars/a.onnx", sha256=hash_file(model))

    def test_what_is_lost_there_is_missing(self, artifacts: Artifacts, model: Path, tmp_path: Path) -> None:
        artifacts.put(model, "cars/other.onnx")
        with pytest.raises(ModelError, match=r"missing.*Add the model again"):
            artifacts.path("cars/a.onnx", sha256=hash_file(model))
        assert files_in(tmp_path / "cache") == []


def test_two_machines_with_one_database_and_no_common_place_for_files(tmp_path: Path, model: Path) -> None:
    """What one of them added is missing on the other, and the error names the setting."""
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    first, second = (open_store(read_settings(home=tmp_path / name, database_url=url)) for name in ("one", "two"))
    version = first.registry.add(model, ModelCard(name="cars"))
    assert first.registry.path(version) is not None
    with pytest.raises(ModelError, match=r"LABELLOOP_ARTIFACTS_URL on all machines.*then add the model again"):
        second.registry.path(second.registry.catalogue().find("cars"))

    place = str(tmp_path / "place")
    settings = [read_settings(home=tmp_path / n, database_url=url, artifacts_url=place) for n in ("one", "two")]
    version = open_store(settings[0]).registry.add(model, ModelCard(name="cars"))
    assert open_store(settings[1]).registry.path(version) is not None, "the advice, followed, helps"


def test_a_file_that_is_lost_on_a_machine_of_its_own(tmp_path: Path, model: Path) -> None:
    registry = open_store(read_settings(home=tmp_path)).registry
    version = registry.add(model, ModelCard(name="cars"))
    (tmp_path / "models" / version.artifact).unlink()
    with pytest.raises(ModelError, match="Add the model again") as found:
        registry.path(version)
    assert "LABELLOOP_ARTIFACTS_URL" not in str(found.value)
