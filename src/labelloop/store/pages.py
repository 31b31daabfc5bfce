"""The pages of a job: what was predicted, what is on its way into Label Studio, what is there, and what failed.

Every write is refused with JobLost when the job has another owner meanwhile, in the same transaction.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from labelloop.core.errors import JobLost
from labelloop.store import schema

PageState = Literal["predicted", "sending", "stored"]


class Failed(msgspec.Struct, frozen=True):
    """A task without a prediction, and why."""

    task_id: int
    code: str
    message: str


class Page(msgspec.Struct, frozen=True):
    """Some tasks of a job. `predicted`: `items` (what Label Studio's import takes) are ready and nothing was sent;
    `sending`: an import was begun at `sent_s`, and whether it arrived is not known; `stored`: all is there.

    `cursor` is the last task id of the listing that was read for it, None for tasks that are tried again. `replaces`
    are predictions of the same version that were there before, by task.
    """

    job_id: str
    number: int
    cursor: int | None
    task_ids: tuple[int, ...]
    state: PageState
    replaces: dict[int, list[int]]
    sent_s: float | None
    doubted: bool
    skipped: int
    items: tuple[dict[str, Any], ...] = ()


class Progress(msgspec.Struct, frozen=True):
    """Counts of tasks. `done` have ended one way or the other: `stored`, `failed`, or `skipped`, which are those that
    were deleted, or predicted by others, meanwhile."""

    stored: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def done(self) -> int:
        return self.stored + self.failed + self.skipped


class Pages:
    """The pages of one job, in the hands of `owner`. Safe to use from several threads."""

    def __init__(self, engine: sa.Engine, job_id: str, *, owner: str) -> None:
        self._engine = engine
        self._job_id = job_id
        self._owner = owner

    # --- where to go on -----------------------------------------------------------------------------------

    def cursor(self) -> int:
        """The last task id that is in a page, 0 before the first."""
        with self._engine.connect() as connection:
            query = sa.select(sa.func.max(schema.job_pages.c.cursor)).filter_by(job_id=self._job_id)
            return int(connection.execute(query).scalar() or 0)

    def planned(self) -> int:
        """How many tasks of the listing are in pages."""
        query = sa.select(schema.job_pages.c.task_ids).filter_by(job_id=self._job_id)
        with self._engine.connect() as connection:
            rows = connection.execute(query.where(schema.job_pages.c.cursor.is_not(None)))
            return sum(len(row.task_ids) for row in rows)

    def unfinished(self) -> list[Page]:
        """Pages that are not stored, oldest first: at most those that were in work when the job stopped."""
        query = sa.select(schema.job_pages).filter_by(job_id=self._job_id).where(schema.job_pages.c.state != "stored")
        with self._engine.connect() as connection:
            return [_page(row) for row in connection.execute(query.order_by(schema.job_pages.c.number)).mappings()]

    def doubted(self) -> list[Page]:
        """Pages with an import whose answer was never seen."""
        query = sa.select(schema.job_pages).filter_by(job_id=self._job_id, doubted=True)
        with self._engine.connect() as connection:
            return [_page(row) for row in connection.execute(query).mappings()]

    def again(self, *, after: int, limit: int) -> list[int]:
        """Tasks that wait to be tried again, by id."""
        table = schema.job_failures
        query = sa.select(table.c.task_id).filter_by(job_id=self._job_id, again=True).where(table.c.task_id > after)
        with self._engine.connect() as connection:
            return list(connection.execute(query.order_by(table.c.task_id).limit(limit)).scalars())

    def count_again(self) -> int:
        query = sa.select(sa.func.count()).select_from(schema.job_failures).filter_by(job_id=self._job_id, again=True)
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar() or 0)

    # --- the life of a page -------------------------------------------------------------------------------

    def add(
        self,
        task_ids: Sequence[int],
        items: Sequence[Mapping[str, Any]],
        failed: Sequence[Failed],
        *,
        cursor: int | None,
        replaces: Mapping[int, Sequence[int]],
        skipped: int = 0,
    ) -> Page:
        """Keep what was predicted; `skipped` counts the tasks without item and without failure. None of the tasks waits
        to be tried again any more."""
        with self._engine.begin() as connection:
            self._hold(connection)
            newest = sa.select(sa.func.max(schema.job_pages.c.number)).filter_by(job_id=self._job_id)
            number = int(connection.execute(newest).scalar() or 0) + 1
            row = {"job_id": self._job_id, "number": number, "cursor": cursor, "task_ids": list(task_ids)}
            row |= {"state": "predicted", "items": _pack(items), "doubted": False, "stored": 0, "skipped": skipped}
            row["replaces"] = {str(task): list(ids) for task, ids in replaces.items()}
            connection.execute(sa.insert(schema.job_pages).values(**row))
            self._fail(connection, task_ids, failed)
            parts = schema.film_parts  # of no use any more: the tracks are in the page
            connection.execute(sa.delete(parts).filter_by(job_id=self._job_id).where(parts.c.task_id.in_(task_ids)))
            query = sa.select(schema.job_pages).filter_by(job_id=self._job_id, number=number)
            return _page(connection.execute(query).mappings().one())

    def sending(self, page: Page, *, doubted: bool) -> float:
        """An import begins now; returns the moment, unix seconds."""
        now = time.time()
        self._set(page, state="sending", sent_s=now, **({"doubted": True} if doubted else {}))
        return now

    def stored(self, page: Page, *, stored: int, skipped: int, failed: Sequence[Failed], doubted: bool) -> None:
        """All of it is in Label Studio, failed, or skipped."""
        with self._engine.begin() as connection:
            self._hold(connection)
            query = sa.update(schema.job_pages).filter_by(job_id=self._job_id, number=page.number)
            values = {"state": "stored", "items": None, "stored": stored, "skipped": skipped, "doubted": doubted}
            connection.execute(query.values(**values))
            self._fail(connection, [failure.task_id for failure in failed], failed)

    def settled(self, page: Page) -> None:
        """The doubts about it were cleared."""
        self._set(page, doubted=False)

    def _set(self, page: Page, **values: Any) -> None:
        with self._engine.begin() as connection:
            self._hold(connection)
            query = sa.update(schema.job_pages).filter_by(job_id=self._job_id, number=page.number)
            connection.execute(query.values(**values))

    def _hold(self, connection: sa.Connection) -> None:
        # An update that changes nothing: it takes the lock, so that nobody becomes the owner before we commit.
        query = sa.update(schema.jobs).filter_by(id=self._job_id, owner=self._owner).values(owner=self._owner)
        if not connection.execute(query).rowcount:
            raise JobLost(f"Job {self._job_id} has another owner now.", hint=f"See: labelloop jobs show {self._job_id}")

    def _fail(self, connection: sa.Connection, tried: Sequence[int], failed: Sequence[Failed]) -> None:
        table = schema.job_failures
        if tried:
            connection.execute(sa.delete(table).filter_by(job_id=self._job_id).where(table.c.task_id.in_(tried)))
        if failed:
            rows = [msgspec.to_builtins(failure) | {"job_id": self._job_id, "again": False} for failure in failed]
            connection.execute(sa.insert(table), rows)


def progress(engine: sa.Engine, job_id: str) -> Progress:
    """How far a job is. Two small queries."""
    pages, failures = schema.job_pages, schema.job_failures
    sums = sa.select(sa.func.sum(pages.c.stored), sa.func.sum(pages.c.skipped)).filter_by(job_id=job_id)
    count = sa.select(sa.func.count()).select_from(failures).filter_by(job_id=job_id, again=False)
    with engine.connect() as connection:
        stored, skipped = connection.execute(sums).one()
        return Progress(stored or 0, connection.execute(count).scalar() or 0, skipped or 0)


def pace(engine: sa.Engine, job_id: str, *, since_s: float) -> float | None:
    """Tasks per second from the first import begun after `since_s` (unix seconds) until now; None before there are two,
    because nobody knows how long the first one took to make. Becomes slower while nothing is stored, as it should."""
    pages = schema.job_pages
    query = sa.select(pages.c.sent_s, pages.c.task_ids).filter_by(job_id=job_id, state="stored")
    with engine.connect() as connection:
        rows = connection.execute(query.where(pages.c.sent_s > since_s).order_by(pages.c.sent_s)).all()
    if len(rows) < 2:
        return None
    tasks, seconds = sum(len(row.task_ids) for row in rows[1:]), time.time() - float(rows[0].sent_s)
    return tasks / max(seconds, 1e-3)


def failures(engine: sa.Engine, job_id: str, *, limit: int | None = None) -> list[Failed]:
    """The tasks of a job that failed, by id."""
    query = sa.select(schema.job_failures).filter_by(job_id=job_id).order_by(schema.job_failures.c.task_id)
    with engine.connect() as connection:
        return [schema.as_struct(row, Failed) for row in connection.execute(query.limit(limit)).mappings()]


def _pack(items: Sequence[Mapping[str, Any]]) -> bytes:
    return zlib.compress(msgspec.json.encode(items), 1)


def _page(row: Mapping[Any, Any]) -> Page:
    items = msgspec.json.decode(zlib.decompress(row["items"])) if row["items"] else ()
    return schema.as_struct(dict(row) | {"items": items}, Page)
