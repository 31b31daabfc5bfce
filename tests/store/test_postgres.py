"""The store on a real Postgres, where one is installed: what SQLite's single writer would hide."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from labelloop.core.cards import ModelCard
from labelloop.core.errors import SettingsError
from labelloop.core.regions import ItemError
from labelloop.core.settings import Settings, read_settings
from labelloop.core.tasks import Event
from labelloop.store import db, schema
from labelloop.store.artifacts import Artifacts
from labelloop.store.events import Events
from labelloop.store.registry import Registry
from labelloop.store.scores import Scores, Seen


@pytest.fixture
def settings(postgres_url: str, tmp_path: Path) -> Settings:
    return read_settings(home=tmp_path / "home", database_url=postgres_url)


@pytest.fixture
def engine(settings: Settings) -> Iterator[sa.Engine]:
    engine = db.open_database(settings)
    yield engine
    engine.dispose()


def registry_of(settings: Settings, engine: sa.Engine) -> Registry:
    return Registry(engine, Artifacts(str(settings.home / "models"), cache=settings.home / "cache"))


def test_all_who_open_a_new_database_at_once_succeed(settings: Settings) -> None:
    together = threading.Barrier(6)

    def open_one(_: int) -> str | None:
        together.wait(60)
        engine = db.open_database(settings)
        with engine.connect() as connection:
            found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        engine.dispose()
        return found

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(open_one, range(6))) == {db.HEAD}


def test_the_migrations_make_the_tables_that_the_code_expects(engine: sa.Engine) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []


def test_a_database_of_a_newer_release_says_so(settings: Settings, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9876'"))
    with pytest.raises(SettingsError, match="newer labelloop"):
        db.open_database(settings)


def test_many_who_move_one_pointer_at_once_all_succeed(settings: Settings, engine: sa.Engine) -> None:
    registry = registry_of(settings, engine)
    registry.add(None, ModelCard(name="cars"))
    together = threading.Barrier(4)

    def move(who: int) -> None:
        for project in range(20):
            together.wait(60)
            registry.bind(project, "cars", reason=str(who))
            registry.save_connection(f"http://ls/{project}", str(who))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(move, range(4)))
    assert set(registry.catalogue().bindings) == set(range(20))
    assert len(registry.connections()) == 20


def test_many_who_add_at_once_lose_nothing(settings: Settings, engine: sa.Engine, tmp_path: Path) -> None:
    registry = registry_of(settings, engine)
    model = tmp_path / "a.onnx"
    model.write_bytes(b"first")
    together = threading.Barrier(4)

    def add(who: int) -> None:
        for number in range(10):
            together.wait(60)
            registry.add(model, ModelCard(name="same", task=str(number)))
            registry.add(model, ModelCard(name="own", task=f"{number} of {who}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    versions = registry.catalogue().versions
    assert sorted(v.number for v in versions if v.name == "same") == list(range(1, 11))
    assert sorted(v.number for v in versions if v.name == "own") == list(range(1, 41))
    assert all(registry.path(version) for version in versions)


def test_what_a_request_may_say_is_kept_or_cut_never_refused(engine: sa.Engine) -> None:
    kept = Events(engine)
    assert kept.record(Event("A\0" * 500, 2**63, (1, 2**63))) == 1
    failed = ItemError(code="media", message="no file \udcff\0.jpg", retry=False)
    kept.record_failures(2**63, "m" * 500, [(-(2**63) - 1, failed)])
    (failure,) = kept.failures()
    assert (failure.project_id, failure.task_id, failure.message) == (None, None, "no file ?.jpg")


def test_what_an_annotator_waits_for_gives_up_soon(engine: sa.Engine) -> None:
    kept = Events(engine)
    with engine.begin() as holder:
        holder.execute(sa.text("LOCK TABLE events IN EXCLUSIVE MODE"))
        begun = time.monotonic()
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
            kept.record(Event("ANNOTATION_CREATED", 1))
        assert time.monotonic() - begun < db.IMPATIENT_S + 1.5
    kept.record(Event("ANNOTATION_CREATED", 1))


def test_predictions_of_the_same_tasks_are_remembered_by_several_at_once(engine: sa.Engine) -> None:
    scores, together = Scores(engine), threading.Barrier(4)

    def remember(writer: int) -> None:
        tasks = [*range(300), *range(300)]  # a task twice
        together.wait(60)
        for _ in range(5):
            scores.put(1, "cars@1", [Seen(task, b"%d" % writer) for task in tasks[:: -1 if writer % 2 else 1]])
            scores.set_embeddings(1, "cars@1", dict.fromkeys(tasks[::-1], b"e"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(remember, range(4)))
    assert [seen.task_id for seen in scores.all(1, "cars@1")] == list(range(300))
    assert scores.forget(1, keep=()) == 300
