"""Background jobs as rows: who asked for what, who runs it, how it ended. Whoever shares the store shares the jobs.

A job is `queued` (waits for a worker), `running` (has an owner), or has ended: `done`, `failed` (`error` says why),
`cancelled`. An owner that is dead (see store/workers) does not hold its jobs. Other workers may help the owner as
guests: they take pages of their own (see store/pages).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from labelloop.core.errors import JobError, JobNotFound
from labelloop.store import schema
from labelloop.store.films import clear_films
from labelloop.store.pages import progress
from labelloop.store.workers import Workers

State = Literal["queued", "running", "done", "failed", "cancelled"]

KEPT_LINES = 2_000


class Options(msgspec.Struct, frozen=True):
    """Which tasks of the project. `filters` is Label Studio's own filter, `limit` None takes all; `only_missing` leaves
    out tasks that have a prediction of this version, otherwise these predictions are replaced."""

    only_missing: bool = True
    filters: Mapping[str, Any] | None = None
    limit: int | None = None

    def covers(self, other: Options) -> bool:
        """Whether a job with these options does all that one with `other` would."""
        everything = self.only_missing and self.filters is None and self.limit is None
        return self == other or (everything and other.only_missing)


class Work(msgspec.Struct, frozen=True):
    """What a job is about. `model` is "name@number", `version` is the string that its predictions carry."""

    label_studio: str
    project_id: int
    model: str
    version: str
    options: Options = Options()
    kind: str = "prelabel"

    @property
    def key(self) -> str:
        """Two jobs with the same key would do the same work."""
        return f"{self.kind}|{self.label_studio}|{self.project_id}|{self.version}"


class Job(msgspec.Struct, frozen=True):
    id: str
    kind: str
    label_studio: str
    project_id: int
    model: str
    version: str
    options: Options
    state: State
    run: int
    only_failed: bool
    cancelling: bool
    error: str
    owner: str | None
    total: int | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None

    @property
    def ended(self) -> bool:
        return self.state not in ("queued", "running")


class Line(msgspec.Struct, frozen=True):
    """One line of a job's log."""

    id: int
    at: datetime
    level: str
    text: str
    job_id: str = ""


class Jobs:
    """Safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine, workers: Workers) -> None:
        self._engine = engine
        self._workers = workers

    # --- for people -------------------------------------------------------------------------------------

    def create(self, work: Work, *, beside: Callable[[sa.Connection, str], None] | None = None) -> tuple[Job, bool]:
        """A queued job, and True; or the unfinished job that does the same work already, and False. `beside` writes, in
        the same transaction, the rows that a job of this id must not be seen without."""
        job_id = secrets.token_hex(4)
        row = {name: getattr(work, name) for name in ("kind", "label_studio", "project_id", "model", "version")}
        row |= {"id": job_id, "options": msgspec.to_builtins(work.options), "state": "queued", "active_key": work.key}
        row |= {"run": 1, "only_failed": False, "cancelling": False, "error": "", "created_at": schema.now()}
        try:
            with self._engine.begin() as connection:
                connection.execute(sa.insert(schema.jobs).values(**row))
                if beside is not None:
                    beside(connection, job_id)
        except sa.exc.IntegrityError:
            with self._engine.connect() as connection:
                found = connection.execute(sa.select(schema.jobs).filter_by(active_key=work.key)).mappings().first()
            return (_job(found), False) if found else self.create(work, beside=beside)  # it has ended in between
        return self.get(job_id), True

    def get(self, job_id: str) -> Job:
        """By id or by the beginning of one. Raises JobNotFound."""
        query = sa.select(schema.jobs).where(schema.jobs.c.id.startswith(job_id, autoescape=True)).limit(2)
        with self._engine.connect() as connection:
            rows = connection.execute(query).mappings().all()
        if len(rows) != 1 or not job_id:
            problem = f"Several jobs begin with {job_id!r}." if rows else f"There is no job {job_id!r}."
            raise JobNotFound(problem, hint="See: labelloop jobs list")
        return _job(rows[0])

    def newest(self, limit: int = 50, *, project_id: int | None = None, state: State | None = None) -> list[Job]:
        query = sa.select(schema.jobs).order_by(schema.jobs.c.created_at.desc(), schema.jobs.c.id).limit(limit)
        for column, value in (("project_id", project_id), ("state", state)):
            query = query.filter_by(**{column: value}) if value is not None else query
        with self._engine.connect() as connection:
            return [_job(row) for row in connection.execute(query).mappings()]

    def lively(self, *, since: datetime) -> list[Job]:
        """Jobs that have not ended, or did after `since`; oldest first."""
        jobs = schema.jobs.c
        query = sa.select(schema.jobs).where(jobs.state.in_(("queued", "running")) | (jobs.finished_at > since))
        with self._engine.connect() as connection:
            return [_job(row) for row in connection.execute(query.order_by(jobs.created_at)).mappings()]

    def cancel(self, job_id: str) -> Job:
        """At once when nobody runs it; else its worker stops in a moment. Raises JobError when it has ended."""
        job = self.get(job_id)
        if job.ended:
            raise JobError(f"Job {job.id} has ended: {job.state}.", hint=f"See: labelloop jobs show {job.id}")
        if job.state == "queued" or not self._workers.is_alive(job.owner):
            self.end(job.id, "cancelled", owner=job.owner)
        else:
            self._update(job.id, cancelling=True)
        return self.get(job.id)

    def resume(self, job_id: str, *, failed: bool = False) -> Job:
        """Queue a job again: where it stopped or, with `failed`, only the tasks that failed. A job that still runs is
        left alone. Raises JobError when there is nothing to do, or when another job does the same work now."""
        job = self.get(job_id)
        if not job.ended:
            return job
        # Writes only: a transaction of SQLite that has read cannot write any more once somebody else has written, and
        # is refused at once, however patient it is.
        with self._engine.begin() as connection:
            if failed:
                query = sa.update(schema.job_failures).filter_by(job_id=job.id).values(again=True)
                if not connection.execute(query).rowcount:
                    raise JobError(f"No task of job {job.id} failed.", hint=f"See: labelloop jobs show {job.id}")
            key = Work(job.label_studio, job.project_id, job.model, job.version, job.options, job.kind).key
            values = {"state": "queued", "run": job.run + 1, "only_failed": failed, "active_key": key}
            values |= {"cancelling": False, "error": "", "finished_at": None, "owner": None}
            try:
                connection.execute(sa.update(schema.jobs).filter_by(id=job.id, state=job.state).values(**values))
            except sa.exc.IntegrityError as error:
                hint = "See: labelloop jobs list"
                raise JobError("Another job does the same work now.", hint=hint) from error
        return self.get(job.id)

    # --- for workers ------------------------------------------------------------------------------------

    def waiting(self) -> list[Job]:
        """Queued jobs, and running ones whose owner is dead; oldest first."""
        query = sa.select(schema.jobs).where(schema.jobs.c.state.in_(("queued", "running")))
        with self._engine.connect() as connection:
            jobs = [_job(row) for row in connection.execute(query.order_by(schema.jobs.c.created_at)).mappings()]
        return [job for job in jobs if job.state == "queued" or not self._workers.is_alive(job.owner)]

    def is_alive(self, worker: str) -> bool:
        """Whether a worker holds what it owns."""
        return self._workers.is_alive(worker)

    def claim(self, job: Job, worker: str) -> bool:
        """Become the owner of what `waiting` returned; False when somebody else was quicker."""
        owner = schema.jobs.c.owner
        same = owner.is_(None) if job.owner is None else owner == job.owner
        query = sa.update(schema.jobs).filter_by(id=job.id, run=job.run, state=job.state).where(same)
        with self._engine.begin() as connection:
            taken = connection.execute(
                query.values(state="running", owner=worker, started_at=job.started_at or schema.now())
            )
        return bool(taken.rowcount)

    def rerun(self, job: Job) -> None:
        """Count one more run of a job that waits, unless somebody else has done so."""
        with self._engine.begin() as connection:
            query = sa.update(schema.jobs).filter_by(id=job.id, run=job.run, state=job.state)
            connection.execute(query.values(run=job.run + 1))

    def release(self, job_id: str, *, owner: str) -> None:
        """Queue a job that `owner` could not go on with, for whoever comes next, himself included."""
        with self._engine.begin() as connection:
            query = sa.update(schema.jobs).filter_by(id=job_id, owner=owner, state="running")
            connection.execute(query.values(state="queued", owner=None, run=schema.jobs.c.run + 1))

    def shared(self, kinds: Collection[str], *, worker: str, at_least: int) -> list[Job]:
        """Jobs that another worker than `worker` runs and that still have so many tasks to do, oldest first."""
        table = schema.jobs
        query = sa.select(table).filter_by(state="running", cancelling=False, only_failed=False)
        query = query.where(table.c.kind.in_(kinds), table.c.owner != worker, table.c.total.is_not(None))
        with self._engine.connect() as connection:
            jobs = [_job(row) for row in connection.execute(query.order_by(table.c.created_at)).mappings()]
        alive = [job for job in jobs if self._workers.is_alive(job.owner)]
        return [job for job in alive if (job.total or 0) - progress(self._engine, job.id).done >= at_least]

    def end(self, job_id: str, state: State, *, owner: str | None, error: str = "") -> bool:
        """Say how it ended; False when it is no longer `owner`'s."""
        holder = schema.jobs.c.owner
        same = holder.is_(None) if owner is None else holder == owner
        values = {"state": state, "error": error, "owner": None, "cancelling": False, "active_key": None}
        with self._engine.begin() as connection:
            query = sa.update(schema.jobs).filter_by(id=job_id).where(same)
            ended = bool(connection.execute(query.values(finished_at=schema.now(), **values)).rowcount)
            clear_films(connection)
            return ended

    def rename(self, job: Job, version: str) -> Job:
        """A job whose predictions carry another version string than was known when it was queued: before its first page
        is read. Raises JobError when another job makes these."""
        key = Work(job.label_studio, job.project_id, job.model, version, job.options, job.kind).key
        try:
            self._update(job.id, version=version, active_key=key)
        except sa.exc.IntegrityError as error:
            raise JobError(
                f"Another job makes the predictions of {version}.", hint="See: labelloop jobs list"
            ) from error
        return self.get(job.id)

    def expect(self, job_id: str, total: int) -> None:
        """How many tasks there are, as far as is known now."""
        self._update(job_id, total=total)

    def _update(self, job_id: str, **values: Any) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.update(schema.jobs).filter_by(id=job_id).values(**values))

    # --- the log ----------------------------------------------------------------------------------------

    def tell(self, job_id: str, level: str, text: str) -> None:
        """Add a line to a job's log; the newest ones stay."""
        with self._engine.begin() as connection:
            query = sa.insert(schema.job_lines).values(job_id=job_id, at=schema.now(), level=level, text=text)
            number = connection.execute(query.returning(schema.job_lines.c.id)).scalar_one()
            old = schema.job_lines.c.id <= number - KEPT_LINES
            connection.execute(sa.delete(schema.job_lines).filter_by(job_id=job_id).where(old))

    def lines(self, job_id: str | None = None, *, after: int = 0) -> Sequence[Line]:
        """The log of a job, or of all jobs, from the line `after` on; oldest first. Ids count through all jobs."""
        query = sa.select(schema.job_lines).where(schema.job_lines.c.id > after)
        query = query.filter_by(job_id=job_id) if job_id is not None else query
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(schema.job_lines.c.id)).mappings()
            return [schema.as_struct(row | {"at": _aware(row["at"])}, Line) for row in map(dict, rows)]

    def newest_line(self) -> int:
        """The id of the newest line of any job, 0 before the first."""
        with self._engine.connect() as connection:
            return int(connection.execute(sa.select(sa.func.max(schema.job_lines.c.id))).scalar() or 0)


def _job(row: Mapping[Any, Any]) -> Job:
    moments = {name: _aware(row[name]) for name in ("created_at", "started_at", "finished_at")}
    return schema.as_struct(dict(row) | moments, Job)


def _aware(moment: datetime | None) -> datetime | None:
    """SQLite forgets the zone; what we store is UTC."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment
