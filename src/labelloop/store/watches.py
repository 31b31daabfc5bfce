"""Projects that are watched, how far, and by whom: a restart goes on, and of several servers one watches."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa

from labelloop.store import schema
from labelloop.store.db import insert_or


class Key(NamedTuple):
    """One project of one Label Studio."""

    label_studio: str
    project_id: int


class Watch(msgspec.Struct, frozen=True):
    """`kept`: servers go on with it after a restart. `cursor` is Label Studio's moment up to which changes were seen,
    None before the first look; `version` the one that its tasks were last looked at for; `error` why it cannot be
    watched."""

    label_studio: str
    project_id: int
    kept: bool
    cursor: datetime | None
    version: str
    job_id: str | None
    holder: str | None
    held_until_s: float
    error: str

    @property
    def key(self) -> Key:
        return Key(self.label_studio, self.project_id)


class Watches:
    """Safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def add(self, key: Key, *, kept: bool) -> None:
        """Remember a project; one that is there goes on where it is."""
        row = {"kept": kept, "version": "", "held_until_s": 0.0, "error": ""}
        with self._engine.begin() as connection:
            change = {"kept": True} if kept else None
            connection.execute(insert_or(connection, schema.watches, key._asdict(), row, change=change))

    def all(self) -> list[Watch]:
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(schema.watches).order_by(schema.watches.c.project_id)).mappings()
            return [schema.as_struct(row, Watch) for row in rows]

    def get(self, key: Key) -> Watch | None:
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(schema.watches).filter_by(**key._asdict())).mappings().first()
        return schema.as_struct(row, Watch) if row is not None else None

    def forget(self, key: Key) -> bool:
        """Whether it was watched."""
        with self._engine.begin() as connection:
            return bool(connection.execute(sa.delete(schema.watches).filter_by(**key._asdict())).rowcount)

    def save(self, key: Key, **values: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.update(schema.watches).filter_by(**key._asdict()).values(**values))

    def hold(self, key: Key, holder: str, *, seconds: float) -> bool:
        """Take it, or keep it, for a while; False while somebody else has it."""
        table, now = schema.watches.c, time.time()
        query = sa.update(schema.watches).filter_by(**key._asdict())
        query = query.where(table.holder.is_(None) | (table.holder == holder) | (table.held_until_s < now))
        with self._engine.begin() as connection:
            return bool(connection.execute(query.values(holder=holder, held_until_s=now + seconds)).rowcount)

    def release(self, holder: str) -> None:
        """Let others watch what `holder` had."""
        with self._engine.begin() as connection:
            connection.execute(sa.update(schema.watches).filter_by(holder=holder).values(holder=None))
