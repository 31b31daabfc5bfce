"""The database: SQLite in the home folder by default, Postgres by URL; brought up to date when it is opened."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random

from labelloop.core.errors import SettingsError
from labelloop.core.settings import Settings
from labelloop.store import schema

HEAD = "0012"
"""The newest migration; a test keeps it equal to the newest file in `migrations/versions`."""

PATIENT_S = 10.0
"""How long a statement waits for another writer: a model that was just copied is worth it."""

IMPATIENT_S = 0.5
"""The same where somebody waits for an answer."""

CHECKPOINT_PAGES = 10_000
"""Of SQLite's write-ahead log: from here on (40 MB) somebody who waits brings it into the database by himself. That
syncs the disk, 1 to 300 ms, so it is left to the others, who do it from 1,000 pages on."""

_LOCK = 0x1ABE1  # any number that nobody else takes in this database
_INSERTS: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


def open_database(settings: Settings) -> sa.Engine:
    """Connect, create or migrate. Several processes may open the same database at the same time.

    Raises SettingsError when the database cannot be reached or was made by a newer release, with the reason.
    """
    url = settings.database_url or _sqlite_in(settings.home)
    try:
        engine = _connect(sa.engine.make_url(url), wait_s=PATIENT_S)
        if engine.dialect.name not in _INSERTS or engine.url.database in (None, "", ":memory:"):
            raise SettingsError(
                f"The database {_shown(url)} cannot be used: it must be an SQLite file or a Postgres database.",
                hint="Check LABELLOOP_DATABASE_URL.",
            )
        try:
            _bring_up_to_date(engine)
        except BaseException:
            engine.dispose()
            raise
    except (sa.exc.SQLAlchemyError, ModuleNotFoundError) as error:
        raise SettingsError(
            f"The database {_shown(url)} cannot be used: {str(error).splitlines()[0]}.",
            hint="Check LABELLOOP_DATABASE_URL and LABELLOOP_HOME.",
        ) from error
    return engine


def impatient(engine: sa.Engine) -> sa.Engine:
    """Another engine on the same database whose statements give up (OperationalError) after IMPATIENT_S instead of
    waiting for a writer that has the database for itself. Disposed with the first."""
    other = _connect(engine.url, wait_s=IMPATIENT_S, checkpoint_pages=CHECKPOINT_PAGES)
    sa.event.listen(engine, "engine_disposed", lambda _: other.dispose())
    return other


def upsert(connection: sa.Connection, table: sa.Table, key: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Insert a row, or give the row of this key new values, in one statement: nobody comes in between."""
    connection.execute(insert_or(connection, table, key, values, change=values))


def insert_or(
    connection: sa.Connection,
    table: sa.Table,
    key: Mapping[str, Any],
    values: Mapping[str, Any],
    *,
    change: Mapping[str, Any] | None = None,
    where: sa.ColumnElement[bool] | None = None,
) -> Any:
    """A statement: insert a row, or `change` the row of this key where `where` holds of it. `where` alone changes it to
    `values`, and neither leaves it as it is."""
    statement = _INSERTS[connection.dialect.name](table).values(**key, **values)
    if change is None and where is None:
        return statement.on_conflict_do_nothing(index_elements=list(key))
    changed = dict(change if change is not None else values)
    return statement.on_conflict_do_update(index_elements=list(key), set_=changed, where=where)


def upsert_all(
    connection: sa.Connection, table: sa.Table, key: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """`upsert` for many rows, which have the same columns and different keys."""
    if not rows:
        return
    statement = _INSERTS[connection.dialect.name](table)
    values = {name: statement.excluded[name] for name in rows[0] if name not in key}
    connection.execute(statement.on_conflict_do_update(index_elements=list(key), set_=values), list(rows))


def _connect(url: sa.URL, *, wait_s: float, checkpoint_pages: int = 1000) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url)

        def tune(connection: Any, _record: Any) -> None:
            # busy_timeout first, it holds for the others too. WAL: readers never wait for the writer. NORMAL: a commit
            # survives a killed process (not a power cut, where the last commits may be lost but the file stays
            # sound), and costs no fsync in an annotator's request.
            waits = f"busy_timeout={round(wait_s * 1000)}"
            pages = f"wal_autocheckpoint={checkpoint_pages}"
            for pragma in (waits, "journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", pages):
                connection.execute(f"PRAGMA {pragma}")

        sa.event.listen(engine, "connect", tune)
        return engine
    engine = sa.create_engine(url, pool_pre_ping=True, pool_timeout=wait_s)
    if engine.dialect.name == "postgresql":

        def limit(connection: sa.Connection) -> None:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {round(wait_s * 1000)}")

        sa.event.listen(engine, "begin", limit)
    return engine


def _sqlite_in(home: Path) -> str:
    path = home / "labelloop.db"
    try:
        home.mkdir(parents=True, exist_ok=True)
        # The store holds Label Studio tokens: create it readable by its owner only, before SQLite does.
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise SettingsError(
            f"The folder {home} cannot be used: {error.strerror}.",
            hint="Set LABELLOOP_HOME to a folder that can be written.",
        ) from error
    return sa.URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def _shown(url: str) -> str:
    return sa.engine.make_url(url).render_as_string(hide_password=True) if "://" in url else url


def _is_busy(error: BaseException) -> bool:
    name = getattr(getattr(error, "orig", None), "sqlite_errorname", "")
    return isinstance(error, sa.exc.OperationalError) and name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED"))


def _bring_up_to_date(engine: sa.Engine) -> None:
    for attempt in Retrying(
        # SQLite refuses to switch to WAL, without waiting, while another process opens the same new file
        retry=retry_if_exception(_is_busy),
        stop=stop_after_delay(15),
        wait=wait_random(0.05, 0.3),
        reraise=True,
    ):
        with attempt:
            _migrate(engine)


def _migrate(engine: sa.Engine) -> None:
    with engine.connect() as connection:
        if _revision(connection) == HEAD:
            return
    with engine.begin() as connection:
        # One process migrates, in one transaction; the others wait here, look again and find it done.
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        if (revision := _revision(connection)) != HEAD:
            _upgrade(connection, revision)


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: sa.Connection, revision: str | None) -> None:
    # imported here: alembic costs 0.2 s and most starts find the database up to date
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations").replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:  # alembic's word for a revision that it has no file for
        raise SettingsError(
            f"The database {connection.engine.url.render_as_string(hide_password=True)} was made by a newer labelloop: "
            f"it is at {revision}, and this one knows up to {HEAD}.",
            hint="Upgrade labelloop, or set LABELLOOP_HOME to another folder.",
        ) from error
