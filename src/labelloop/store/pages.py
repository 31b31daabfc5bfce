"""The pages of a job: who has which tasks in hand, what was predicted, what is on its way into Label Studio, what is
there, and what failed.

Several workers can share a job: each takes pages that nobody else has, under numbers that nobody else can have. Every
write about a page is refused with JobLost when somebody else has the page, or the job has ended or found another owner
meanwhile, in the same transaction.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from labelloop.core.decoding import from_json
from labelloop.core.errors import JobLost
from labelloop.store import schema

PageState = Literal["taken", "predicted", "sending", "stored"]


class Failed(msgspec.Struct, frozen=True):
    """A task without a prediction, and why."""

    task_id: int
    code: str
    message: str


class Item(msgspec.Struct, frozen=True):
    """A prediction as Label Studio's import takes it, in JSON: a job may have thousands in hand; dicts are large."""

    task: int
    json: msgspec.Raw


class Page(msgspec.Struct, frozen=True):
    """Some tasks of a job. `taken`: `owner` reads or predicts them; `predicted`: `items` are ready, nothing was sent;
    `sending`: an import was begun at `sent_s`, and whether it arrived is not known; `stored`: all is there.

    `cursor` is the last task id of the listing that was read for it, None for tasks that are tried again. `replaces`
    are predictions of the same version that were there before, by task.
    """

    job_id: str
    number: int
    cursor: int | None
    task_ids: tuple[int, ...]
    state: PageState
    owner: str | None
    replaces: dict[int, list[int]]
    sent_s: float | None
    doubted: bool
    skipped: int
    items: tuple[Item, ...] = ()


class Ended(msgspec.Struct, frozen=True):
    """What became of a page: how many of its tasks are in Label Studio, need nothing any more, or failed. `doubted`:
    the answer to one of its imports was never seen."""

    page: Page
    stored: int
    skipped: int
    failed: Sequence[Failed] = ()
    doubted: bool = False


class Progress(msgspec.Struct, frozen=True):
    """Counts of tasks. `done` have ended one way or the other: `stored`, `failed`, or `skipped`, which are those that
    were deleted, or predicted by others, meanwhile."""

    stored: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def done(self) -> int:
        return self.stored + self.failed + self.skipped


class Mark(msgspec.Struct, frozen=True):
    """How far a job has taken its tasks: the `number` of its newest page, the last task id of the listing that is in a
    page (0 before the first), and how many tasks of the listing are in pages."""

    number: int = 0
    cursor: int = 0
    planned: int = 0


class Pages:
    """The pages of one job, in the hands of one worker. Safe to use from several threads.

    `owner` is the worker; it owns the job too, unless it is a `guest` that helps the owner. A page whose owner is not
    `is_alive` can be taken over.
    """

    def __init__(
        self, engine: sa.Engine, job_id: str, *, owner: str, is_alive: Callable[[str], bool], guest: bool = False
    ) -> None:
        self._engine = engine
        self._job_id = job_id
        self._owner = owner
        self._is_alive = is_alive
        self._guest = guest
        self._mark = Mark()

    # --- where to go on -----------------------------------------------------------------------------------

    def mark(self) -> Mark:
        """Only pages that are new since the last call are looked at."""
        table = schema.job_pages
        query = sa.select(table.c.number, table.c.cursor, table.c.task_ids).filter_by(job_id=self._job_id)
        mark = self._mark
        with self._engine.connect() as connection:
            for row in connection.execute(query.where(table.c.number > mark.number).order_by(table.c.number)):
                planned = 0 if row.cursor is None else len(row.task_ids)
                mark = Mark(row.number, max(mark.cursor, row.cursor or 0), mark.planned + planned)
        self._mark = mark
        return mark

    def take_over(self) -> tuple[list[Page], int]:
        """Take what is not stored and in nobody's hands: after a crash these are at most a few pages for each dead
        worker. Returns these, oldest first, and how many pages others have in hand."""
        table = schema.job_pages
        query = sa.select(table).filter_by(job_id=self._job_id).where(table.c.state != "stored")
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(table.c.number)).mappings().all()
        free = [row for row in rows if row["owner"] in (None, self._owner) or not self._is_alive(row["owner"])]
        ours = [row["number"] for row in free if self._grab(row["number"], row["owner"])]
        with self._engine.connect() as connection:
            found = connection.execute(query.where(table.c.number.in_(ours)).order_by(table.c.number)).mappings()
            return [_page(row) for row in found], len(rows) - len(ours)

    def _grab(self, number: int, holder: str | None) -> bool:
        table = schema.job_pages
        same = table.c.owner.is_(None) if holder is None else table.c.owner == holder
        query = sa.update(table).filter_by(job_id=self._job_id, number=number).where(table.c.state != "stored", same)
        with self._engine.begin() as connection:
            self._hold(connection)
            return bool(connection.execute(query.values(owner=self._owner)).rowcount)

    def doubted(self) -> list[Page]:
        """Pages with an import whose answer was never seen."""
        query = sa.select(schema.job_pages).filter_by(job_id=self._job_id, doubted=True)
        with self._engine.connect() as connection:
            return [_page(row) for row in connection.execute(query).mappings()]

    def again(self, *, limit: int) -> list[int]:
        """Tasks that wait to be tried again, by id."""
        table = schema.job_failures
        query = sa.select(table.c.task_id).filter_by(job_id=self._job_id, again=True)
        with self._engine.connect() as connection:
            return list(connection.execute(query.order_by(table.c.task_id).limit(limit)).scalars())

    # --- the life of a page -------------------------------------------------------------------------------

    def take(
        self, task_ids: Sequence[int], *, mark: Mark, cursor: int | None, replaces: Mapping[int, Sequence[int]]
    ) -> Page | None:
        """A new page with these tasks, which were read after `mark`; None when somebody else took a page meanwhile.
        None of the tasks waits to be tried again any more."""
        key = {"job_id": self._job_id, "number": mark.number + 1}
        row = key | {"cursor": cursor, "task_ids": list(task_ids), "state": "taken", "owner": self._owner}
        row |= {"replaces": {str(task): list(ids) for task, ids in replaces.items()}}
        try:
            with self._engine.begin() as connection:
                self._hold(connection)
                connection.execute(sa.insert(schema.job_pages).values(**row, doubted=False, stored=0, skipped=0))
                self._fail(connection, task_ids, ())
                query = sa.select(schema.job_pages).filter_by(**key)
                return _page(connection.execute(query).mappings().one())
        except sa.exc.IntegrityError:
            return None

    def predicted(
        self, page: Page, items: Sequence[Mapping[str, Any]], failed: Sequence[Failed], *, skipped: int = 0
    ) -> Page:
        """Keep what was predicted; `skipped` counts the tasks without item and without failure."""
        bodies = [msgspec.json.encode(item) for item in items]
        with self._engine.begin() as connection:
            self._set(connection, page, state="predicted", items=_pack(bodies), skipped=skipped)
            self._fail(connection, page.task_ids, failed)
            parts = schema.film_parts  # of no use any more: the tracks are in the page
            connection.execute(
                sa.delete(parts).filter_by(job_id=self._job_id).where(parts.c.task_id.in_(page.task_ids))
            )
        ready = tuple(Item(item["task"], msgspec.Raw(body)) for item, body in zip(items, bodies, strict=True))
        return msgspec.structs.replace(page, state="predicted", items=ready, skipped=skipped)

    def sending(self, pages: Sequence[Page], *, doubted: bool) -> float:
        """An import of these begins now; returns the moment, unix seconds."""
        now = time.time()
        with self._engine.begin() as connection:
            for page in pages:
                self._set(connection, page, state="sending", sent_s=now, **({"doubted": True} if doubted else {}))
        return now

    def stored(self, ended: Sequence[Ended]) -> None:
        """All of these pages is in Label Studio, failed, or skipped."""
        with self._engine.begin() as connection:
            for one in ended:
                values = {"stored": one.stored, "skipped": one.skipped, "doubted": one.doubted}
                self._set(connection, one.page, owner=None, state="stored", items=None, **values)
                self._fail(connection, [failure.task_id for failure in one.failed], one.failed)

    def settled(self, page: Page) -> None:
        """The doubts about a stored page were cleared."""
        with self._engine.begin() as connection:
            self._hold(connection)
            query = sa.update(schema.job_pages).filter_by(job_id=self._job_id, number=page.number)
            connection.execute(query.values(doubted=False))

    def _set(self, connection: sa.Connection, page: Page, **values: Any) -> None:
        self._hold(connection)
        query = sa.update(schema.job_pages).filter_by(job_id=self._job_id, number=page.number, owner=self._owner)
        if not connection.execute(query.values(**values)).rowcount:
            raise JobLost(
                f"Page {page.number} of job {self._job_id} was taken over by another worker.",
                hint=f"See: labelloop jobs show {self._job_id}",
            )

    def _hold(self, connection: sa.Connection) -> None:
        # An update that changes nothing: it takes the lock, so that nobody becomes the owner before we commit.
        query = sa.update(schema.jobs).filter_by(id=self._job_id, state="running")
        query = query if self._guest else query.filter_by(owner=self._owner)
        if not connection.execute(query.values(state="running")).rowcount:
            ended = "has ended" if self._guest else "has another owner now"
            raise JobLost(f"Job {self._job_id} {ended}.", hint=f"See: labelloop jobs show {self._job_id}")

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
    later = [row for row in rows if row.sent_s > rows[0].sent_s]
    if not later:
        return None
    tasks, seconds = sum(len(row.task_ids) for row in later), time.time() - float(rows[0].sent_s)
    return tasks / max(seconds, 1e-3)


def failures(engine: sa.Engine, job_id: str, *, limit: int | None = None) -> list[Failed]:
    """The tasks of a job that failed, by id."""
    query = sa.select(schema.job_failures).filter_by(job_id=job_id).order_by(schema.job_failures.c.task_id)
    with engine.connect() as connection:
        return [schema.as_struct(row, Failed) for row in connection.execute(query.limit(limit)).mappings()]


def _pack(bodies: Sequence[bytes]) -> bytes:
    return zlib.compress(b"[" + b",".join(bodies) + b"]", 1)


class _OfTask(msgspec.Struct):
    task: int


def _items(packed: bytes | None) -> tuple[Item, ...]:
    bodies = from_json(zlib.decompress(packed), list[msgspec.Raw]) if packed else []
    return tuple(Item(from_json(body, _OfTask).task, body) for body in bodies)


def _page(row: Mapping[Any, Any]) -> Page:
    page = schema.as_struct({name: value for name, value in row.items() if name != "items"}, Page)
    return msgspec.structs.replace(page, items=_items(row["items"]))
