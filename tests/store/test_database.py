"""Opening a database that is not what we expect, and writing to one that somebody else holds."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sa

from labelloop.core.cards import ModelCard
from labelloop.core.errors import SettingsError
from labelloop.core.regions import ItemError
from labelloop.core.settings import Settings, read_settings
from labelloop.core.tasks import Event
from labelloop.store import db, events, schema
from labelloop.store.artifacts import Artifacts
from labelloop.store.events import Events
from labelloop.store.registry import Registry

FAILED = ItemError(code="media-not-found", message="gone", retry=False)
HUGE = 2**63


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return read_settings(home=tmp_path / "home")


@pytest.fixture
def engine(settings: Settings) -> Iterator[sa.Engine]:
    engine = db.open_database(settings)
    yield engine
    engine.dispose()


@pytest.fixture
def held(settings: Settings, engine: sa.Engine) -> Iterator[sqlite3.Connection]:
    """Somebody else has the database for himself, until he rolls back."""
    connection = sqlite3.connect(settings.home / "labelloop.db", isolation_level=None, check_same_thread=False)
    connection.execute("BEGIN EXCLUSIVE")
    yield connection
    connection.close()


def test_a_database_of_a_newer_release_says_so(settings: Settings, engine: sa.Engine) -> None:
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9876'"))
    with pytest.raises(SettingsError, match=r"newer labelloop: it is at 9876.*Upgrade labelloop"):
        db.open_database(settings)


def test_who_is_waited_for_leaves_the_log_to_others(settings: Settings, engine: sa.Engine) -> None:
    """Bringing SQLite's log into the database syncs the disk."""
    file = settings.home / "labelloop.db"
    before = file.stat().st_size
    long = ItemError(code="media-not-found", message=10_000 * "x", retry=False)
    Events(engine).record_failures(7, "m@1", [(number, long) for number in range(600)])
    assert (settings.home / "labelloop.db-wal").stat().st_size > 1000 * 4096
    assert file.stat().st_size == before
    with engine.begin() as connection:
        connection.execute(sa.delete(schema.failures).where(schema.failures.c.id < 0))
        connection.execute(sa.update(schema.failures).values(code="gone"))
    assert file.stat().st_size > before + 1000 * 4096


def below_a_file(home: Path) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    home.write_text("a file")


def is_garbage(home: Path) -> None:
    home.mkdir()
    (home / "labelloop.db").write_bytes(b"no database at all" * 1000)


def is_a_folder(home: Path) -> None:
    (home / "labelloop.db").mkdir(parents=True)


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (below_a_file, "The folder .* cannot be used: .*LABELLOOP_HOME"),
        (is_a_folder, "The folder .* cannot be used: .*LABELLOOP_HOME"),
        (is_garbage, "not a database.*LABELLOOP_HOME"),
    ],
)
def test_a_home_that_cannot_be_used_says_so_at_once(
    tmp_path: Path, prepare: Callable[[Path], None], words: str
) -> None:
    home = tmp_path / "home"
    prepare(home)
    begun = time.monotonic()
    with pytest.raises(SettingsError, match=words):
        db.open_database(read_settings(home=home / "deeper" if prepare is below_a_file else home))
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://somewhere/db", "no url"])
def test_a_database_that_we_cannot_keep_things_in_says_which_setting(tmp_path: Path, url: str) -> None:
    with pytest.raises(SettingsError, match="LABELLOOP_DATABASE_URL"):
        db.open_database(read_settings(home=tmp_path, database_url=url))


def test_signs_in_the_name_of_the_home_mean_nothing(tmp_path: Path) -> None:
    home = tmp_path / "50% of a?b#c"
    db.open_database(read_settings(home=home)).dispose()
    assert (home / "labelloop.db").stat().st_size > 0


def test_a_migration_that_is_killed_leaves_nothing_half_made(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next start finds an empty database, not one with some of the tables."""
    from alembic.runtime.migration import MigrationContext

    class Killed(BaseException): ...

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MigrationContext, "run_migrations", after(MigrationContext.run_migrations, die))
        with pytest.raises(Killed):
            db.open_database(settings)
    with db.open_database(settings).connect() as connection:
        assert set(schema.metadata.tables) < set(sa.inspect(connection).get_table_names())


def after(function: Callable[..., None], then: Callable[..., None]) -> Callable[..., None]:
    def both(*arguments: object, **named: object) -> None:
        function(*arguments, **named)
        then()

    return both


@pytest.mark.parametrize(
    "write",
    [
        lambda kept: kept.record(Event("ANNOTATION_CREATED", 1, (1,))),
        lambda kept: kept.record_failures(1, "cars@1", [(1, FAILED)]),
    ],
    ids=["event", "failures"],
)
def test_what_an_annotator_waits_for_gives_up_soon(
    engine: sa.Engine, held: sqlite3.Connection, write: Callable[[Events], object]
) -> None:
    kept = Events(engine)
    begun = time.monotonic()
    with pytest.raises(sa.exc.OperationalError, match="locked"):
        write(kept)
    assert time.monotonic() - begun < db.IMPATIENT_S + 1.5
    held.execute("ROLLBACK")
    write(kept)


def test_the_registry_waits_longer(settings: Settings, engine: sa.Engine, held: sqlite3.Connection) -> None:
    registry = Registry(engine, Artifacts(str(settings.home / "models"), cache=settings.home))
    with ThreadPoolExecutor() as pool:
        adding = pool.submit(registry.add, None, ModelCard(name="cars"))
        with pytest.raises(sa.exc.OperationalError, match="locked"):
            Events(engine).record(Event("PROJECT_UPDATED", 1))
        assert not adding.done()
        held.execute("ROLLBACK")
        assert adding.result(timeout=60).id == "cars@1"


def test_ids_that_no_database_can_hold_are_left_out(engine: sa.Engine) -> None:
    kept = Events(engine)
    kept.record(Event("ANNOTATION_CREATED", HUGE, (1, HUGE, -HUGE), (-HUGE - 1, 2)))
    kept.record_failures(-HUGE - 1, "cars@1", [(HUGE, FAILED), (7, FAILED), (None, FAILED)])
    kept.record_failures(HUGE - 1, "cars@1", [(HUGE - 1, FAILED)])
    with engine.connect() as connection:
        (row,) = connection.execute(sa.select(schema.events))
    assert (row.project_id, row.task_ids, row.annotation_ids) == (None, [1, -HUGE], [2])
    found = [(failure.project_id, failure.task_id) for failure in kept.failures()]
    assert found == [(HUGE - 1, HUGE - 1), (None, None), (None, 7), (None, None)]
    assert kept.failures(project_id=HUGE) == []


def test_half_a_character_of_a_file_name_does_not_lose_the_failure(engine: sa.Engine) -> None:
    kept = Events(engine)
    kept.record_failures(1, "cars@1", [(1, ItemError(code="media", message="no file \udcff\0.jpg", retry=False))])
    assert kept.failures()[0].message == "no file ?.jpg"


def test_only_the_newest_rows_stay(engine: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT_EVENTS", 5)
    monkeypatch.setattr(events, "KEPT_FAILURES", 5)
    monkeypatch.setattr(events, "_TRIM_EVERY", 10)
    kept = Events(engine)
    numbers = [kept.record(Event("TASKS_CREATED", 1)) for _ in range(23)]
    kept.record_failures(1, "cars@1", [(n, FAILED) for n in range(23)])
    kept.record_failures(1, "cars@1", [])
    with engine.connect() as connection:
        assert list(connection.scalars(sa.select(schema.events.c.id))) == numbers[15:]
    assert [failure.task_id for failure in kept.failures()] == [22, 21, 20, 19, 18]


def test_many_who_move_one_pointer_at_once_all_succeed(settings: Settings, engine: sa.Engine) -> None:
    registry = Registry(engine, Artifacts(str(settings.home / "models"), cache=settings.home))
    registry.add(None, ModelCard(name="cars"))
    together = threading.Barrier(4)

    def move(who: int) -> None:
        for project in range(10):
            together.wait(60)
            registry.bind(project, "cars", reason=str(who))
            registry.save_connection(f"http://ls/{project}", str(who))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(move, range(4)))
    assert set(registry.catalogue().bindings) == set(range(10))
    assert len(registry.connections()) == 10
