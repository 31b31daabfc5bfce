"""What Label Studio told us, as rows: answered in milliseconds, handled by whoever it concerns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
import sqlalchemy as sa

from labelloop.core.regions import ItemError
from labelloop.core.tasks import Event
from labelloop.store import schema
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


class Events:
    """Rows about what happened. Safe to use from several threads and processes.

    An annotator waits while they are written: a database that somebody else has for himself is an OperationalError
    after half a second (`db.IMPATIENT_S`), not after the patience of the registry. Ids that no database can hold
    (outside 64 bits) are left out.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = impatient(engine)

    def record(self, event: Event) -> int:
        """Keep an event; returns its id. The newest ones stay, handled or not."""
        row = {
            "received_at": schema.now(),
            "action": schema.as_text(event.action, limit=100),
            "project_id": schema.as_id(event.project_id),
            "task_ids": [number for number in event.task_ids if schema.as_id(number) is not None],
            "annotation_ids": [number for number in event.annotation_ids if schema.as_id(number) is not None],
        }
        with self._engine.begin() as connection:
            query = sa.insert(schema.events).values(**row).returning(schema.events.c.id)
            number = int(connection.execute(query).scalar_one())
            if number % _TRIM_EVERY == 0:
                connection.execute(sa.delete(schema.events).where(schema.events.c.id <= number - KEPT_EVENTS))
        return number

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
