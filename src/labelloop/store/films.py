"""What a job has detected in the films that it is at, so that a worker that takes it over goes on at the frame."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import sqlalchemy as sa

from labelloop.core.errors import JobLost
from labelloop.store import schema


class FilmProgress(msgspec.Struct, frozen=True):
    """How far a job is in the film that it is at: `frame` of `frames_count`."""

    task_id: int
    frame: int
    frames_count: int


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
        row = {**self._key, "number": frame, "frames_count": frames_count, "content": content}
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


def film_progress(engine: sa.Engine, job_id: str) -> FilmProgress | None:
    """How far a job is in the film that it is at; None where it is at none."""
    table = schema.film_parts
    query = sa.select(table.c.task_id, table.c.number, table.c.frames_count).filter_by(job_id=job_id)
    with engine.connect() as connection:
        row = connection.execute(query.order_by(table.c.task_id.desc(), table.c.number.desc()).limit(1)).first()
    return FilmProgress(row.task_id, row.number, row.frames_count) if row is not None else None
