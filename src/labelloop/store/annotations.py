"""What is known of each annotation: the last state that anybody told us of. So the same change, told by a webhook and
found by a watcher, counts once, and an annotation that is gone is missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import sqlalchemy as sa

from labelloop.core.tasks import Event
from labelloop.store import schema
from labelloop.store.db import insert_or

DELETED = "ANNOTATIONS_DELETED"
_AT_ONCE = 500
"""Ids in one statement: SQLite of old takes 999 parameters."""


class Known(NamedTuple):
    """The last known state of an annotation that exists. `task_id` None: nobody said."""

    task_id: int | None
    updated_at: datetime | None


class Annotations:
    """Safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def known(self, project_id: int, *, tasks: Sequence[int] | None = None) -> dict[int, Known]:
        """Those that exist as far as we know, of these tasks or of the whole project."""
        table = schema.annotation_states
        query = sa.select(table.c.id, table.c.task_id, table.c.updated_at).filter_by(
            project_id=project_id, deleted=False
        )
        parts = [None] if tasks is None else [tasks[at : at + _AT_ONCE] for at in range(0, len(tasks), _AT_ONCE)]
        found: dict[int, Known] = {}
        with self._engine.connect() as connection:
            for part in parts:
                rows = connection.execute(query if part is None else query.where(table.c.task_id.in_(part)))
                found |= {row.id: Known(row.task_id, row.updated_at) for row in rows}
        return found

    def owners(self, project_id: int, ids: Sequence[int]) -> dict[int, int]:
        """The tasks of annotations, those that are gone too, as far as anybody said."""
        table = schema.annotation_states
        query = sa.select(table.c.id, table.c.task_id).filter_by(project_id=project_id)
        query = query.where(table.c.task_id.is_not(None))
        found: dict[int, int] = {}
        with self._engine.connect() as connection:
            for at in range(0, len(ids), _AT_ONCE):
                rows = connection.execute(query.where(table.c.id.in_(ids[at : at + _AT_ONCE])))
                found |= {row.id: row.task_id for row in rows}
        return found

    def count(self, project_id: int) -> int:
        query = sa.select(sa.func.count()).select_from(schema.annotation_states)
        with self._engine.connect() as connection:
            return int(connection.execute(query.filter_by(project_id=project_id, deleted=False)).scalar() or 0)

    def learn(self, project_id: int, states: Mapping[int, Known]) -> None:
        """Take these as known, without an event: what was there before anybody listened."""
        now = schema.now()
        with self._engine.begin() as connection:
            for number, state in states.items():
                hear(connection, project_id, number, task_id=state.task_id, updated_at=state.updated_at, at=now)


def hear(
    connection: sa.Connection,
    project_id: int,
    annotation_id: int,
    *,
    task_id: int | None,
    updated_at: datetime | None,
    at: datetime,
    deleted: bool = False,
    revive: bool = False,
) -> bool:
    """Keep a state; whether it is news. In one statement, so that of two who say the same one is the first.

    `revive`: it was seen to exist; what we knew to be deleted was another with the same id (see labelstudio/changes).
    """
    table = schema.annotation_states
    values = {"deleted": deleted, "heard_at": at}
    values |= {"task_id": task_id} if task_id is not None else {}
    values |= {"updated_at": updated_at} if updated_at is not None else {}
    news: sa.ColumnElement[bool] = table.c.deleted.is_(False)
    if not deleted:
        newer = table.c.updated_at.is_(None) | (table.c.updated_at < updated_at)
        news = (newer & news) | table.c.deleted.is_(True) if revive else newer & news
    statement = insert_or(connection, table, {"project_id": project_id, "id": annotation_id}, values, where=news)
    return connection.execute(statement.returning(table.c.id)).first() is not None


def news_in(connection: sa.Connection, event: Event, *, revive: bool = False) -> Event | None:
    """The event with the annotations whose state was not known; None when all were. Those without a moment always
    count: nothing tells their states apart."""
    if event.project_id is None or not event.annotation_ids or not event.updated_at:
        return event
    deleted = event.action == DELETED
    owners: Sequence[int | None] = event.task_ids
    if len(owners) != len(event.annotation_ids):
        owners = (event.task_ids[0] if len(event.task_ids) == 1 else None,) * len(event.annotation_ids)
    fresh = []
    for number, updated_at, task_id in zip(event.annotation_ids, event.updated_at, owners, strict=True):
        if (updated_at is None and not deleted) or hear(
            connection,
            event.project_id,
            number,
            task_id=task_id,
            updated_at=updated_at,
            at=schema.now(),
            deleted=deleted,
            revive=revive,
        ):
            fresh.append((number, updated_at))
    if not fresh:
        return None
    return Event(
        event.action,
        event.project_id,
        event.task_ids,
        tuple(number for number, _ in fresh),
        tuple(updated_at for _, updated_at in fresh),
    )
