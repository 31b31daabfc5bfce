"""What Label Studio told us, as rows: answered in milliseconds, handled by whoever it concerns."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
import sqlalchemy as sa

from labelloop.core.regions import ItemError
from labelloop.core.tasks import Event
from labelloop.store import schema

KEPT_FAILURES = 10_000


class Failure(msgspec.Struct, frozen=True):
    """One task that could not be predicted, and why."""

    at: datetime
    project_id: int | None
    task_id: int | None
    model: str
    code: str
    message: str


class Events:
    """Rows about what happened. Safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def record(self, event: Event) -> int:
        """Keep an event; returns its id."""
        row = msgspec.to_builtins(event) | {"received_at": schema.now()}
        with self._engine.begin() as connection:
            query = sa.insert(schema.events).values(**row).returning(schema.events.c.id)
            return int(connection.execute(query).scalar_one())

    def record_failures(
        self, project_id: int | None, model: str, failed: Sequence[tuple[int | None, ItemError]]
    ) -> None:
        """Keep why tasks failed; the newest ones stay."""
        rows = [
            {
                "at": schema.now(),
                "project_id": project_id,
                "task_id": task_id,
                "model": model,
                "code": error.code,
                "message": error.message,
            }
            for task_id, error in failed
        ]
        with self._engine.begin() as connection:
            connection.execute(sa.insert(schema.failures), rows)
            newest = connection.execute(sa.select(sa.func.max(schema.failures.c.id))).scalar() or 0
            connection.execute(sa.delete(schema.failures).where(schema.failures.c.id <= newest - KEPT_FAILURES))

    def failures(self, *, project_id: int | None = None, limit: int = 100) -> list[Failure]:
        """The newest failures first."""
        query = sa.select(schema.failures).order_by(schema.failures.c.id.desc()).limit(limit)
        if project_id is not None:
            query = query.filter_by(project_id=project_id)
        with self._engine.connect() as connection:
            return [schema.as_struct(row, Failure) for row in connection.execute(query).mappings()]
