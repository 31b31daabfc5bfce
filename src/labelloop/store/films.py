"""What a job has detected in the films that it is at, so that a worker that takes it over goes on at the frame."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta

import msgspec
import sqlalchemy as sa

from labelloop.core.errors import JobLost
from labelloop.store import schema

KEPT = timedelta(days=7)
"""How long a job that failed can be resumed at the frame where it was."""


class FilmProgress(msgspec.Struct, frozen=True):
    """How far a job is in a film that it is at: `frame` of `frames_count`. `frames_per_s` None: nothing to tell it
    from, or not at work."""

    task_id: int
    frame: int
    frames_count: int
    frames_per_s: float | None = None


class FilmParts:
    """The parts of one film of one task, in the hands of the `owner` of its page; follows `Spool` in
    serving/film_parts."""

    def __init__(self, engine: sa.Engine, job_id: str, *, owner: str, task_id: int, field: str) -> None:
        self._engine = engine
        self._key = {"job_id": job_id, "task_id": task_id, "field": field}
        self._owner = owner

    def parts(self) -> Iterator[bytes]:
        """What was kept, in order; one part in memory at a time."""
        table = schema.film_parts
        number = 0
        while True:
            query = sa.select(table.c.number, table.c.content).filter_by(**self._key).where(table.c.number > number)
            with self._engine.connect() as connection:
                row = connection.execute(query.order_by(table.c.number).limit(1)).first()
            if row is None:
                return
            number = row.number
            yield row.content

    def add(self, content: bytes, *, frame: int, frames_count: int) -> None:
        """Keep the next part, which ends with `frame`. Raises JobLost when somebody else has the task now, or the job
        has ended."""
        row = {**self._key, "number": frame, "frames_count": frames_count, "content": content, "kept_s": time.time()}
        with self._engine.begin() as connection:
            self._hold(connection)
            connection.execute(sa.insert(schema.film_parts).values(**row))

    def _hold(self, connection: sa.Connection) -> None:
        job_id, pages = self._key["job_id"], schema.job_pages
        # updates that change nothing: they take the lock, so that nobody takes the page over before we commit
        runs = sa.update(schema.jobs).filter_by(id=job_id, state="running").values(state="running")
        mine = {"job_id": job_id, "owner": self._owner, "state": "taken"}
        held = connection.execute(runs).rowcount
        held = held and connection.execute(sa.update(pages).filter_by(**mine).values(state="taken")).rowcount
        taken = connection.execute(sa.select(pages.c.task_ids).filter_by(**mine)) if held else ()
        if not any(self._key["task_id"] in page.task_ids for page in taken):
            raise JobLost(
                f"The film of task {self._key['task_id']} is in other hands now, or job {job_id} has ended.",
                hint=f"See: labelloop jobs show {job_id}",
            )

    def clear(self) -> None:
        """Forget all parts."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(schema.film_parts).filter_by(**self._key))


def films_in_work(engine: sa.Engine, job_id: str, *, since_s: float) -> list[FilmProgress]:
    """How far a job is in each of the films that it is at, and how fast it was since `since_s` (unix seconds)."""
    table = schema.film_parts.c
    mine = table.job_id == job_id
    film = (table.task_id, table.field)
    newest = sa.select(*film, sa.func.max(table.number).label("number")).where(mine).group_by(*film).subquery()
    same = sa.and_(mine, *(table[name] == newest.c[name] for name in ("task_id", "field", "number")))
    last = sa.select(*film, table.number, table.frames_count, table.kept_s).join(newest, same).order_by(*film)
    first = sa.select(*film, sa.func.min(table.number), sa.func.min(table.kept_s)).where(mine, table.kept_s > since_s)
    with engine.connect() as connection:
        rows = connection.execute(last).all()
        began = {(row[0], row[1]): (row[2], row[3]) for row in connection.execute(first.group_by(*film))}
    return [
        FilmProgress(task_id, number, frames_count, _pace(number, kept_s, began.get((task_id, field))))
        for task_id, field, number, frames_count, kept_s in rows
    ]


def _pace(number: int, kept_s: float, began: tuple[int, float] | None) -> float | None:
    """Frames a second since the first part of those that count."""
    if began is None or number <= began[0] or kept_s <= began[1]:
        return None
    return float(number - began[0]) / float(kept_s - began[1])


def clear_films(connection: sa.Connection) -> None:
    """Forget what was detected for jobs that are done, cancelled or gone, and for those that failed so long ago that
    nobody will go on with them."""
    parts, jobs = schema.film_parts, schema.jobs.c
    failed = (jobs.state == "failed") & (jobs.finished_at > schema.now() - KEPT)
    wanted = sa.select(jobs.id).where(jobs.state.in_(("queued", "running")) | failed)
    connection.execute(sa.delete(parts).where(parts.c.job_id.not_in(wanted)))
