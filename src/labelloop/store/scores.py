"""What is remembered of predictions, one row per project, version and task: enough to rank a project without its
pictures and without its model.

The rows belong to nobody's job: whoever predicts writes them, the newest wins, and losing them costs only that they
are made again from what Label Studio has stored.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

import msgspec
import sqlalchemy as sa

from labelloop.store import schema
from labelloop.store.db import upsert_all

T = TypeVar("T")

AT_ONCE = 1000
"""Rows of one transaction: 20 ms on SQLite, and nobody else waits for longer than that."""
READ = 10_000
"""Rows that are held at a time while all are read."""


class Seen(msgspec.Struct, frozen=True):
    """One prediction as it is remembered. `content` is opaque here; `inconsistency` in [0, 1] is None where nobody
    looked twice."""

    task_id: int
    content: bytes
    inconsistency: float | None = None


class Scores:
    """The rows. Safe to use from several threads and processes. Tasks whose ids no database can hold are left out."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def put(self, project_id: int, version: str, rows: Sequence[Seen]) -> None:
        """Remember these, instead of all that was known of their tasks."""
        key = _key(project_id, version)
        for part in _parts(_storable(rows)):
            values = [{**key, **msgspec.structs.asdict(row), "embedding": None} for row in part]
            with self._engine.begin() as connection:
                upsert_all(connection, schema.observations, ("project_id", "version", "task_id"), values)

    def all(self, project_id: int, version: str) -> Iterator[Seen]:
        """Everything that is known, by task, read in parts."""
        table, last = schema.observations, -1
        columns = (table.c.task_id, table.c.content, table.c.inconsistency)
        query = sa.select(*columns).filter_by(**_key(project_id, version)).order_by(table.c.task_id).limit(READ)
        while True:
            with self._engine.connect() as connection:
                rows = connection.execute(query.where(table.c.task_id > last)).all()
            if not rows:
                return
            yield from (Seen(*row) for row in rows)
            last = rows[-1].task_id

    def embeddings(self, project_id: int, version: str) -> dict[int, bytes]:
        """By task; only where there is one."""
        table = schema.observations
        query = sa.select(table.c.task_id, table.c.embedding).filter_by(**_key(project_id, version))
        with self._engine.connect() as connection:
            rows = connection.execute(query.where(table.c.embedding.is_not(None)).order_by(table.c.task_id))
            return {row.task_id: row.embedding for row in rows}

    def set_inconsistency(self, project_id: int, version: str, found: Mapping[int, float]) -> None:
        """For tasks that are remembered; others are passed over."""
        self._set(project_id, version, "inconsistency", found)

    def set_embeddings(self, project_id: int, version: str, found: Mapping[int, bytes]) -> None:
        """For tasks that are remembered; others are passed over."""
        self._set(project_id, version, "embedding", found)

    def forget(self, project_id: int, *, keep: Collection[str]) -> int:
        """Delete what is known of the project's other versions; returns the number of rows."""
        query = sa.delete(schema.observations).filter_by(project_id=project_id)
        with self._engine.begin() as connection:
            gone = connection.execute(query.where(schema.observations.c.version.not_in(keep)))
        return int(gone.rowcount)

    def _set(
        self, project_id: int, version: str, column: str, found: Mapping[int, float] | Mapping[int, bytes]
    ) -> None:
        table = schema.observations
        query = sa.update(table).filter_by(**_key(project_id, version))
        query = query.where(table.c.task_id == sa.bindparam("of_task")).values({column: sa.bindparam("found")})
        for part in _parts(sorted(found.items())):
            with self._engine.begin() as connection:
                connection.execute(query, [{"of_task": task, "found": value} for task, value in part])


def _key(project_id: int, version: str) -> dict[str, object]:
    return {"project_id": project_id, "version": schema.as_text(version, limit=200)}


def _parts(values: Iterable[T]) -> Iterator[list[T]]:
    left = iter(values)
    while part := list(islice(left, AT_ONCE)):
        yield part


def _storable(rows: Sequence[Seen]) -> Iterable[Seen]:
    """One row per task, the last one, ascending: Postgres refuses to meet a key twice in one statement, and two writers
    who lock rows in different orders may wait for each other."""
    newest = {row.task_id: row for row in rows if schema.as_id(row.task_id) is not None}
    return [newest[task_id] for task_id in sorted(newest)]
