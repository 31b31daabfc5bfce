"""The database: SQLite in the home folder by default, Postgres by URL; brought up to date when it is opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random

from labelloop.core.errors import SettingsError
from labelloop.core.settings import Settings
from labelloop.store import schema

HEAD = "0002"
"""The newest migration; a test keeps it equal to the newest file in `migrations/versions`."""


def open_database(settings: Settings) -> sa.Engine:
    """Connect, create or migrate. Several processes may open the same database at the same time.

    Raises SettingsError when the database cannot be reached, with the reason.
    """
    url = settings.database_url or _sqlite_url(settings.home)
    try:
        engine = sa.create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
        if engine.dialect.name == "sqlite":
            sa.event.listen(engine, "connect", _tune_sqlite)
        with engine.connect():  # a wrong address fails here, at once; what follows may be a race and is tried again
            pass
        _migrate(engine)
    except (sa.exc.SQLAlchemyError, ModuleNotFoundError) as error:
        shown = sa.engine.make_url(url).render_as_string(hide_password=True) if "://" in url else url
        raise SettingsError(
            f"The database {shown} cannot be used: {str(error).splitlines()[0]}.",
            hint="Check LABELLOOP_DATABASE_URL and LABELLOOP_HOME.",
        ) from error
    return engine


def _sqlite_url(home: Path) -> str:
    home.mkdir(parents=True, exist_ok=True)
    path = home / "labelloop.db"
    # The store holds Label Studio tokens: create it readable by its owner only, before SQLite does.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    return f"sqlite:///{path}"


def _tune_sqlite(connection: Any, _record: Any) -> None:
    # WAL: readers never wait for the writer. NORMAL: a commit survives a killed process (not a power cut, where
    # the last commits may be lost but the file stays sound), and costs no fsync in an annotator's request.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "busy_timeout=10000", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _migrate(engine: sa.Engine) -> None:
    for attempt in Retrying(
        # two processes may migrate at once: one wins, the other looks again
        retry=retry_if_exception_type(DBAPIError),
        stop=stop_after_delay(15),
        wait=wait_random(0.05, 0.3),
        reraise=True,
    ):
        with attempt:
            if _revision(engine) != HEAD:
                _upgrade(engine)


def _revision(engine: sa.Engine) -> str | None:
    with engine.connect() as connection:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(engine: sa.Engine) -> None:
    # imported here: alembic costs 0.2 s and most starts find the database up to date
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(schema.__file__).parent / "migrations"))
    config.attributes["engine"] = engine
    command.upgrade(config, "head")
