"""What Label Studio told us, as rows: answered in milliseconds, handled by whoever it concerns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
import sqlalchemy as sa

from labelloop.core.regions import ItemError
from labelloop.core.tasks import Event
from labelloop.store import schema
from labelloop.store.annotations import news_in
from labelloop.store.db import impatient

KEPT_FAILURES = 10_000
KEPT_EVENTS = 1_000_000
"""About 200 MB; somebody who annotates all day makes some thousands."""

_TRIM_EVERY = 1000


class Failure(msgspec.Struct, frozen=True):
    """One task that could not be predicted, and why."""

    at: datetime
    project_id: int | None
    task_id: int | None
    model: str
    code: str
    message: str


class Recorded(msgspec.Struct, frozen=True):
    """One event as a row."""

    id: int
    received_at: datetime
    action: str
    project_id: int | None
    task_ids: tuple[int, ...]
    annotation_ids: tuple[int, ...]


class Events:
    """Rows about what happened. Safe to use from several threads and processes.

    An annotator waits while they are written: a database that somebody else has for himself is an OperationalError
    after half a second (`db.IMPATIENT_S`), not after the patience of the registry. Ids that no database can hold
    (outside 64 bits) are left out.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = impatient(engine)

    def record(self, event: Event, *, seen: bool = False) -> int | None:
        """Keep an event; returns its id. The newest ones stay, handled or not.

        None when it tells only states of annotations that were known: a webhook and a watcher who tell the same change
        make one event. `seen`: Label Studio was just asked, so that its annotations exist.
        """
        with self._engine.begin() as connection:
            news = news_in(connection, _storable(event), revive=seen)
            return None if news is None else self._insert(connection, news)

    def _insert(self, connection: sa.Connection, event: Event) -> int:
        row = {
            "received_at": schema.now(),
            "action": schema.as_text(event.action, limit=100),
            "project_id": schema.as_id(event.project_id),
            "task_ids": list(event.task_ids),
            "annotation_ids": list(event.annotation_ids),
        }
        query = sa.insert(schema.events).values(**row).returning(schema.events.c.id)
        number = int(connection.execute(query).scalar_one())
        if number % _TRIM_EVERY == 0:
            connection.execute(sa.delete(schema.events).where(schema.events.c.id <= number - KEPT_EVENTS))
        return number

    def after(self, number: int, *, project_id: int | None = None, limit: int = 1000) -> list[Recorded]:
        """Events with greater ids, oldest first."""
        query = sa.select(schema.events).where(schema.events.c.id > number).order_by(schema.events.c.id).limit(limit)
        query = query.filter_by(project_id=project_id) if project_id is not None else query
        with self._engine.connect() as connection:
            return [schema.as_struct(row, Recorded) for row in connection.execute(query).mappings()]

    def record_failures(
        self, project_id: int | None, model: str, failed: Sequence[tuple[int | None, ItemError]]
    ) -> None:
        """Keep why tasks failed; the newest ones stay."""
        rows = [
            {
                "at": schema.now(),
                "project_id": schema.as_id(project_id),
                "task_id": schema.as_id(task_id),
                "model": schema.as_text(model, limit=200),
                "code": schema.as_text(error.code, limit=50),
                "message": schema.as_text(error.message, limit=10_000),
            }
            for task_id, error in failed
        ]
        if not rows:
            return
        with self._engine.begin() as connection:
            connection.execute(sa.insert(schema.failures), rows)
            newest = connection.execute(sa.select(sa.func.max(schema.failures.c.id))).scalar() or 0
            connection.execute(sa.delete(schema.failures).where(schema.failures.c.id <= newest - KEPT_FAILURES))

    def failures(self, *, project_id: int | None = None, limit: int = 100) -> list[Failure]:
        """The newest failures first."""
        query = sa.select(schema.failures).order_by(schema.failures.c.id.desc()).limit(limit)
        if project_id is not None:
            if schema.as_id(project_id) is None:
                return []
            query = query.filter_by(project_id=project_id)
        with self._engine.connect() as connection:
            return [schema.as_struct(row, Failure) for row in connection.execute(query).mappings()]


def _storable(event: Event) -> Event:
    """Without ids that no database can hold."""
    moments = event.updated_at or (None,) * len(event.annotation_ids)
    kept = [pair for pair in zip(event.annotation_ids, moments, strict=True) if schema.as_id(pair[0]) is not None]
    return Event(
        event.action,
        schema.as_id(event.project_id),
        tuple(number for number in event.task_ids if schema.as_id(number) is not None),
        tuple(number for number, _ in kept),
        tuple(moment for _, moment in kept) if event.updated_at else (),
    )
