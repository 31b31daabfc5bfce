"""A worker that has nothing to do helps with a job that another one runs: a second machine makes a bulk job faster.

A guest takes pages of its own, as the owner of the job does, and leaves when no task is left to take or when its worker
gets a job itself. Each help is a worker of its own in the store: with its end, orderly or not, its pages are nobody's
and the owner does them again (see jobs/preannotate). That the job ends, and how, is the owner's affair alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Protocol

import sqlalchemy as sa
import structlog

from labelloop.core.errors import JobLost, LabelloopError
from labelloop.jobs.kinds import Running
from labelloop.jobs.patience import Cancelled, Interrupted
from labelloop.store.jobs import Job, Jobs
from labelloop.store.workers import Workers

log = structlog.get_logger(__name__)

WORTH = 200
"""Tasks that must be left for a guest: to open a job costs it a second, or a model that has to be loaded."""


class OpenAsGuest(Protocol):
    def __call__(self, job: Job, *, worker: str, check: Callable[[], None], guest: bool) -> Running: ...


class Guest:
    """The help that one worker gives. `kinds` are the jobs that take guests."""

    def __init__(self, jobs: Jobs, workers: Workers, open_job: OpenAsGuest, *, kinds: Collection[str]) -> None:
        self._jobs = jobs
        self._workers = workers
        self._open_job = open_job
        self._kinds = kinds
        self._lock = threading.Lock()
        self._leaving = threading.Event()
        self._thread: threading.Thread | None = None
        self._name = ""
        self._finished: set[tuple[str, int]] = set()

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def look(self, worker: str) -> None:
        """Begin to help where help is welcome, in a thread. Returns at once."""
        with self._lock:
            if self.busy:
                return
            found = self._jobs.shared(self._kinds, worker=worker, at_least=WORTH)
            job = next((job for job in found if (job.id, job.run) not in self._finished), None)
            if job is None:
                return
            self._leaving.clear()
            self._name = self._workers.register()
            self._thread = threading.Thread(target=self._help, args=(job, self._name), name="guest", daemon=True)
            self._thread.start()

    def beat(self) -> None:
        """Say that the help lives."""
        if self.busy:
            self._workers.beat(self._name)

    def leave(self, timeout_s: float | None = None) -> None:
        """End the help; waits for an import in flight, at most so long."""
        with self._lock:
            self._leaving.set()
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _help(self, job: Job, name: str) -> None:
        try:
            self._work_on(job, name)
            self._finished.add((job.id, job.run))
        except Interrupted:
            log.info("help ends: there is other work", job=job.id)
        except (sa.exc.OperationalError, sa.exc.InterfaceError) as error:
            log.error("help stops until the store can be used", job=job.id, error=str(error).partition("\n")[0])
        except (Cancelled, JobLost) as error:
            log.info("help is no longer wanted", job=job.id, reason=str(error))
            self._finished.add((job.id, job.run))
        except Exception as error:  # the owner may well be able to do what we cannot: it has other credentials
            known = isinstance(error, LabelloopError)
            log.warning("cannot help with a job", job=job.id, error=str(error), exc_info=not known)
            self._finished.add((job.id, job.run))
        try:
            self._workers.leave(name)
        except sa.exc.SQLAlchemyError as error:  # that nobody beats for it any more says the same, later
            log.warning("the store cannot be told that help ends", job=job.id, error=str(error).partition("\n")[0])

    def _work_on(self, job: Job, name: str) -> None:
        """Until no task is left for us."""
        work = self._open_job(job, worker=name, check=self._check, guest=True)
        try:
            self._jobs.tell(job.id, "info", f"Worker {name} helps.")
            while work.advance():
                self._check()
        finally:
            work.close()

    def _check(self) -> None:
        if self._leaving.is_set():
            raise Interrupted
