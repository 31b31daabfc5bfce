"""The registry on a real SQLite file: adding, finding, binding, removing, and two processes at once."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError, ModelNotFound, SettingsError
from labelloop.core.settings import Settings, read_settings
from labelloop.store import db
from labelloop.store.artifacts import Artifacts
from labelloop.store.registry import Registry, parse_spec


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return read_settings(home=tmp_path / "home")


@pytest.fixture
def registry(settings: Settings) -> Registry:
    return Registry(db.open_database(settings), Artifacts(str(settings.home / "models"), cache=settings.home / "cache"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"first")
    return path


def test_adding_the_same_file_twice_is_one_version(registry: Registry, model: Path) -> None:
    first = registry.add(model, ModelCard(name="cars", labels=("car",)))
    again = registry.add(model, ModelCard(name="cars", labels=("car",), description="only words"))
    assert first.id == again.id == "cars@1"


@pytest.mark.parametrize(
    ("content", "card"),
    [(b"second", ModelCard(name="cars")), (b"first", ModelCard(name="cars", iou_threshold=0.5))],
    ids=["another file", "another card"],
)
def test_what_could_answer_differently_is_a_new_version(
    registry: Registry, model: Path, content: bytes, card: ModelCard
) -> None:
    registry.add(model, ModelCard(name="cars"))
    model.write_bytes(content)
    assert registry.add(model, card).id == "cars@2"


def test_the_stored_file_survives_the_original(registry: Registry, model: Path) -> None:
    version = registry.add(model, ModelCard(name="cars"))
    model.unlink()
    path = registry.path(version)
    assert path is not None
    assert path.read_bytes() == b"first"


def test_a_damaged_file_is_refused(registry: Registry, model: Path) -> None:
    version = registry.add(model, ModelCard(name="cars"))
    path = registry.path(version)
    assert path is not None
    path.write_bytes(b"fir")
    with pytest.raises(ModelError, match="damaged"):
        registry.path(version)


@pytest.mark.parametrize("harm", [lambda path: path.write_bytes(b"fir"), Path.unlink], ids=["damaged", "lost"])
def test_adding_the_model_again_mends_its_file(registry: Registry, model: Path, harm: Callable[[Path], object]) -> None:
    version = registry.add(model, ModelCard(name="cars"))
    path = registry.path(version)
    assert path is not None
    harm(path)
    with pytest.raises(ModelError, match="Add the model again"):
        registry.path(version)
    assert registry.add(model, ModelCard(name="cars")) == version
    assert registry.path(version).read_bytes() == b"first"  # type: ignore[union-attr]


def test_a_file_that_cannot_be_stored_leaves_no_version(registry: Registry, settings: Settings, model: Path) -> None:
    (settings.home / "models").write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="cannot be stored"):
        registry.add(model, ModelCard(name="cars"))
    assert registry.catalogue().versions == ()


def test_a_project_that_cannot_be_is_refused(registry: Registry, model: Path) -> None:
    registry.add(model, ModelCard(name="cars"))
    with pytest.raises(ModelError, match="no project"):
        registry.bind(2**63, "cars")


@pytest.mark.parametrize(
    ("spec", "parsed"),
    [
        ("cars", ("cars", None)),
        ("cars@3", ("cars", 3)),
        ("cars@v3", ("cars", 3)),
        ("cars@3.1a2b3c4d", ("cars", 3)),
        ("cars@", ("cars", None)),
    ],
)
def test_what_a_spec_means(spec: str, parsed: tuple[str, int | None]) -> None:
    assert parse_spec(spec) == parsed


@pytest.mark.parametrize("version", ["²", "٣", "-1", "1e3", "v", ".1", "1" * 19, "1" * 5000], ids=lambda v: v[:20])
def test_a_version_that_is_no_number_is_refused(version: str) -> None:
    with pytest.raises(ModelNotFound, match="NAME@VERSION"):
        parse_spec(f"cars@{version}")


def test_a_missing_model_names_the_near_one(registry: Registry, model: Path) -> None:
    registry.add(model, ModelCard(name="cars"))
    with pytest.raises(ModelNotFound, match="Did you mean cars"):
        registry.catalogue().find("carz")
    with pytest.raises(ModelNotFound, match="Versions of cars: 1"):
        registry.catalogue().find("cars@7")


def test_who_serves_a_project(registry: Registry, model: Path) -> None:
    assert registry.catalogue().of_project(1) is None, "no model at all"
    registry.add(model, ModelCard(name="cars"))
    assert registry.catalogue().of_project(1).id == "cars@1", "the only one"  # type: ignore[union-attr]
    registry.add(model, ModelCard(name="dogs"))
    assert registry.catalogue().of_project(1) is None, "two: nobody said which"
    assert registry.catalogue().of_project(1, default="dogs").id == "dogs@1"  # type: ignore[union-attr]
    registry.bind(1, "cars@1")
    registry.bind(2, "cars")
    registry.add(model, ModelCard(name="cars", task="other"))
    assert registry.catalogue().of_project(1).id == "cars@1", "pinned"  # type: ignore[union-attr]
    assert registry.catalogue().of_project(2).id == "cars@2", "follows the newest"  # type: ignore[union-attr]


def test_a_model_in_use_is_not_removed(registry: Registry, model: Path) -> None:
    registry.add(model, ModelCard(name="cars"))
    registry.bind(7, "cars")
    with pytest.raises(ModelError, match="serves project 7"):
        registry.remove("cars")
    registry.add(model, ModelCard(name="dogs"))
    registry.bind(7, "dogs")
    (gone,) = registry.remove("cars")
    with pytest.raises(ModelError, match="missing"):
        registry.path(gone)


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a@1", "-x"])
def test_a_name_that_would_leave_the_folder_is_refused(registry: Registry, model: Path, name: str) -> None:
    with pytest.raises(ModelError, match="model name"):
        registry.add(model, ModelCard(name=name))


def test_the_store_is_readable_by_its_owner_only(registry: Registry, settings: Settings) -> None:
    assert stat.S_IMODE((settings.home / "labelloop.db").stat().st_mode) == 0o600


def test_connections_are_replaced_not_doubled(registry: Registry) -> None:
    registry.save_connection("http://ls", "old")
    registry.save_connection("http://ls", "new")
    assert registry.connections() == [("http://ls", "new")]


def test_the_database_is_at_the_newest_migration() -> None:
    files = sorted((Path(db.__file__).parent / "migrations" / "versions").glob("[0-9]*.py"))
    assert files[-1].name.startswith(db.HEAD)


def test_the_migrations_make_the_tables_that_the_code_expects(settings: Settings) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    from labelloop.store.schema import metadata

    with db.open_database(settings).connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_an_unusable_database_says_which_setting(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LABELLOOP_DATABASE_URL"):
        db.open_database(read_settings(home=tmp_path, database_url="sqlite:////nowhere/at/all/x.db"))


ADD = """
import sys
from pathlib import Path
from labelloop.core.cards import ModelCard
from labelloop.core.settings import read_settings
from labelloop.store import db
from labelloop.store.artifacts import Artifacts
from labelloop.store.registry import Registry
home, number = Path(sys.argv[1]), sys.argv[2]
registry = Registry(db.open_database(read_settings(home=home)), Artifacts(str(home / "models"), cache=home / "cache"))
file = home / f"{number}.onnx"
file.write_bytes(number.encode())
for n in range(5):
    registry.add(file, ModelCard(name="same", task=f"{number}-{n}"))
"""


def test_processes_that_start_and_add_at_once_lose_nothing(settings: Settings) -> None:
    settings.home.mkdir()
    runs = [subprocess.Popen([sys.executable, "-c", ADD, str(settings.home), str(n)]) for n in range(3)]
    assert [run.wait(60) for run in runs] == [0, 0, 0]
    registry = Registry(db.open_database(settings), Artifacts(str(settings.home / "models"), cache=settings.home))
    versions = registry.catalogue().versions
    assert [version.number for version in versions] == list(range(1, 16))
    assert all(registry.path(version) for version in versions)


ADD_THE_SAME = """
import multiprocessing, sys
from pathlib import Path
from labelloop.core.cards import ModelCard
from labelloop.core.settings import read_settings
from labelloop.store import db
from labelloop.store.artifacts import Artifacts
from labelloop.store.registry import Registry
home, file = Path(sys.argv[1]), Path(sys.argv[2])
def add_all(together):
    registry = Registry(db.open_database(read_settings(home=home)), Artifacts(str(home / "models"), cache=home / "cache"))
    for number in range(40):
        together.wait(60)
        registry.add(file, ModelCard(name=f"round-{number}"))
context = multiprocessing.get_context("fork")
together = context.Barrier(3)
running = [context.Process(target=add_all, args=(together,)) for _ in range(3)]
for process in running: process.start()
for process in running: process.join()
sys.exit(any(process.exitcode for process in running))
"""


def test_processes_that_add_the_same_at_once_keep_its_file(settings: Settings, model: Path) -> None:
    model.write_bytes(b"x" * 100_000)
    command = [sys.executable, "-c", ADD_THE_SAME, str(settings.home), str(model)]
    assert subprocess.run(command, timeout=60).returncode == 0
    registry = Registry(db.open_database(settings), Artifacts(str(settings.home / "models"), cache=settings.home))
    versions = registry.catalogue().versions
    assert sorted(version.name for version in versions) == sorted(f"round-{number}" for number in range(40))
    assert all(registry.path(version) for version in versions)
    assert len(list((settings.home / "models").rglob("*.*"))) == 40, "who came second took his copy away"
