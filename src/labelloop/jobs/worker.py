"""What runs jobs: it says that it lives, finds what waits, and hands it to the workflow engine.

There is no orderly way out that differs from a crash: jobs are left as they are, and whoever comes next goes on. Only
an import in flight is waited for, because its answer saves the next worker from asking.

A store that is away for a while is no reason to end: a server has one of these inside.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Protocol

import sqlalchemy as sa
import structlog

from labelloop.core.errors import JobLost, LabelloopError
from labelloop.jobs.guest import Guest
from labelloop.jobs.kinds import QUEUE_OF, Running
from labelloop.jobs.patience import Cancelled, Interrupted
from labelloop.store.jobs import Job, Jobs, State
from labelloop.store.workers import Workers

log = structlog.get_logger(__name__)

BEAT_S = 0.5
"""How often it says that it lives and looks for jobs."""
LAST_PAGE_S = 4.0
"""How long an import in flight is waited for at the end: `docker stop` kills after 10 s."""
_TROUBLED_S = 5.0
"""The pause between two tries while the store, or the workflow engine, cannot be used."""
_GIVE_UP_S = 60.0


class Opens(Protocol):
    """What jobs/kinds offers."""

    @property
    def shared(self) -> Collection[str]: ...
    def open(self, job: Job, *, worker: str, check: Callable[[], None], guest: bool = False) -> Running: ...


class Engine(Protocol):
    """What jobs/durable offers."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def ensure(self, run_id: str, job_id: str, *, queue: str, is_alive: Callable[[str], bool]) -> bool: ...


class Worker:
    """`start_engine(name, step)` makes the workflow engine that will call `step`; not before there is a job, because
    many servers never have one, and it costs a second and 20 MB. `look` is called at every beat: what begins jobs by
    itself is looked at there, and how many it has begun is what it returns."""

    def __init__(
        self,
        jobs: Jobs,
        workers: Workers,
        kinds: Opens,
        start_engine: Callable[[str, Callable[[str], bool]], Engine],
        *,
        look: Callable[[], int] = lambda: 0,
    ) -> None:
        self._jobs = jobs
        self._workers = workers
        self._kinds = kinds
        self._start_engine = start_engine
        self._look = look
        self._engine: Engine | None = None
        self._stopping = threading.Event()
        self._running: dict[str, Running] = {}
        self._dropped: set[str] = set()
        self._in_step: dict[str, threading.Lock] = defaultdict(threading.Lock)
        """One per queue: their steps are taken side by side."""
        self._guest = Guest(jobs, workers, kinds.open, kinds=kinds.shared)
        self._troubled_since: float | None = None
        self.name = ""

    def run(self, *, until_idle: bool = False) -> None:
        """Work until `stop` is called or, with `until_idle`, until there is no job left that waits for us.

        While the store cannot be used it waits; with `until_idle` for a minute, then the error is raised.
        """
        try:
            while not self._stopping.is_set():
                pause_s = BEAT_S
                try:
                    if self._beat() and until_idle:
                        break
                except Exception as error:  # a database that is away for a moment must not end the worker
                    self._troubled(error, patient=not until_idle)
                    pause_s = _TROUBLED_S
                self._stopping.wait(pause_s)
        finally:
            self._leave()

    def stop(self) -> None:
        """Ask `run` to return; from any thread or a signal handler."""
        self._stopping.set()

    def _beat(self) -> bool:
        """Say that we live and queue what waits. Whether there is nothing to do."""
        if not self.name:
            self.name = self._workers.register()
            log.info("worker is ready", worker=self.name)
        self._workers.beat(self.name)
        self._guest.beat()
        for job_id in list(self._dropped):
            self._jobs.release(job_id, owner=self.name)
            self._dropped.discard(job_id)
        waiting = self._jobs.waiting()
        for job in waiting:
            run, queue = f"{job.id}.{job.run}", queue_of(job)
            if not self._ready_engine().ensure(run, job.id, queue=queue, is_alive=self._workers.is_alive):
                # its workflow has ended without it: two workers took it at the same moment, and one let go
                self._jobs.rerun(job)
        begun = self._look()  # after the jobs that wait: trouble in there keeps none of them
        if self._troubled_since is not None:
            log.info("worker goes on", worker=self.name)
            self._troubled_since = None
        if begun or waiting or self._running or self._dropped or self._is_in_step():
            return False
        self._guest.look(self.name)
        return not self._guest.busy

    def _is_in_step(self) -> bool:
        return any(lock.locked() for lock in list(self._in_step.values()))

    def _ready_engine(self) -> Engine:
        if self._engine is None:
            engine = self._start_engine(self.name, self._step)
            try:
                engine.start()
            except BaseException:
                engine.stop()
                raise
            self._engine = engine
        return self._engine

    def _troubled(self, error: Exception, *, patient: bool) -> None:
        now = time.monotonic()
        if self._troubled_since is None:
            self._troubled_since = now
            log.error("no jobs can be run at the moment; trying again", error=str(error).partition("\n")[0])
        if not patient and now - self._troubled_since > _GIVE_UP_S:
            raise error

    def _leave(self) -> None:
        self._stopping.set()
        until = time.monotonic() + LAST_PAGE_S
        for lock in list(self._in_step.values()):
            if lock.acquire(timeout=max(0.0, until - time.monotonic())):
                lock.release()
        self._guest.leave(max(0.0, until - time.monotonic()))
        for work in list(self._running.values()):
            work.close()
        if self._engine is not None:
            self._engine.stop()
        if self.name:
            try:
                self._workers.leave(self.name)
            except sa.exc.SQLAlchemyError as error:  # that our process is gone says the same
                log.warning("the store cannot be told that this worker ends", error=str(error).partition("\n")[0])

    def _step(self, job_id: str) -> bool:
        """One page. Whether there is more."""
        try:
            queue = queue_of(self._jobs.get(job_id))
        except sa.exc.SQLAlchemyError as error:  # or the job would be ours for ever, and nobody at work on it
            log.error("a job stops until the store can be used", job=job_id, error=str(error).partition("\n")[0])
            self._drop(job_id)
            return False
        self._guest.leave()
        with self._in_step[queue]:
            self._check()
            try:
                work = self._work_on(job_id)
                more = work is not None and work.advance()
                if work is not None and self._jobs.get(job_id).cancelling:
                    raise Cancelled
                if not more and work is not None:
                    self._end(job_id, "done")
                return more
            except Cancelled:
                self._end(job_id, "cancelled")
            except JobLost as error:
                log.warning(str(error), job=job_id)
                self._close(job_id)
            except LabelloopError as error:
                self._end(job_id, "failed", str(error))
            except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
                # our own store is away, or somebody else has it for himself: no failure of the job
                log.error("a job stops until the store can be used", job=job_id, error=str(error).partition("\n")[0])
                self._drop(job_id)
            except Exception as error:
                log.exception("a job failed", job=job_id)
                self._end(job_id, "failed", f"{type(error).__name__}: {error}.")
        return False

    def _work_on(self, job_id: str) -> Running | None:
        """The job opened and ours; None when it is somebody else's."""
        if job_id not in self._running:
            job = self._jobs.get(job_id)
            if job.ended or (job.owner != self.name and self._workers.is_alive(job.owner)):
                return None
            if job.cancelling:
                raise Cancelled
            if job.owner != self.name and not self._jobs.claim(job, self.name):
                return None
            verb = "continues" if job.started_at else "begins"
            self._jobs.tell(job_id, "info", f"Run {job.run} {verb} on worker {self.name}.")
            self._running[job_id] = self._kinds.open(job, worker=self.name, check=self._check)
        return self._running[job_id]

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Interrupted

    def _end(self, job_id: str, state: State, error: str = "") -> None:
        self._close(job_id)
        try:
            if self._jobs.end(job_id, state, owner=self.name, error=error):
                self._jobs.tell(job_id, "error" if error else "info", error or f"The job is {state}.")
                log.info("job ended", job=job_id, state=state)
        except sa.exc.SQLAlchemyError as trouble:
            log.error("how a job ended cannot be stored", job=job_id, error=str(trouble).partition("\n")[0])
            self._drop(job_id)

    def _drop(self, job_id: str) -> None:
        """Let go of a job, and queue it again as soon as the store takes that."""
        self._close(job_id)
        self._dropped.add(job_id)

    def _close(self, job_id: str) -> None:
        work = self._running.pop(job_id, None)
        if work is not None:
            work.close()


def queue_of(job: Job) -> str:
    """The queue that a job waits in."""
    return QUEUE_OF.get(job.kind, "jobs")
