"""A process that runs jobs: it says that it lives, finds what waits, and hands it to the workflow engine.

There is no orderly way out that differs from a crash: jobs are left as they are, and whoever comes next goes on. Only
an import in flight is waited for, because its answer saves the next worker from asking.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from labelloop.core.errors import JobLost, LabelloopError
from labelloop.jobs.patience import Cancelled, Interrupted
from labelloop.jobs.preannotate import Preannotation
from labelloop.labelstudio.client import Client
from labelloop.store.jobs import Job, Jobs, State
from labelloop.store.workers import Workers

log = structlog.get_logger(__name__)

BEAT_S = 0.5
"""How often it says that it lives and looks for jobs."""
_LAST_PAGE_S = 10.0


class Open(Protocol):
    def __call__(self, job: Job, *, worker: str, check: Callable[[], None]) -> tuple[Preannotation, Client]: ...


class Engine(Protocol):
    """What jobs/durable offers."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def ensure(self, run_id: str, job_id: str, *, is_alive: Callable[[str], bool]) -> bool: ...


class Worker:
    """`start_engine(name, step)` makes the workflow engine that will call `step`."""

    def __init__(
        self,
        jobs: Jobs,
        workers: Workers,
        open_job: Open,
        start_engine: Callable[[str, Callable[[str], bool]], Engine],
    ) -> None:
        self._jobs = jobs
        self._workers = workers
        self._open_job = open_job
        self._start_engine = start_engine
        self._stopping = threading.Event()
        self._running: dict[str, tuple[Preannotation, Client]] = {}
        self._in_step = threading.Lock()
        self.name = ""

    def run(self, *, until_idle: bool = False) -> None:
        """Work until `stop` is called or, with `until_idle`, until there is no job left that waits for us."""
        self.name = self._workers.register()
        engine = self._start_engine(self.name, self._step)
        engine.start()
        log.info("worker is ready", worker=self.name)
        try:
            while not self._stopping.is_set():
                self._workers.beat(self.name)
                waiting = self._look(engine)
                if until_idle and not waiting and not self._running and not self._in_step.locked():
                    break
                self._stopping.wait(BEAT_S)
        finally:
            self._stopping.set()
            if self._in_step.acquire(timeout=_LAST_PAGE_S):
                self._in_step.release()
            for work, client in self._running.values():
                work.close()
                client.close()
            engine.stop()
            self._workers.leave(self.name)

    def stop(self) -> None:
        """Ask `run` to return; from any thread or a signal handler."""
        self._stopping.set()

    def _look(self, engine: Engine) -> int:
        """Queue what waits; returns how many do."""
        waiting = self._jobs.waiting()
        for job in waiting:
            if not engine.ensure(f"{job.id}.{job.run}", job.id, is_alive=self._workers.is_alive):
                # its workflow has ended without it: two workers took it at the same moment, and one let go
                self._jobs.rerun(job)
        return len(waiting)

    def _step(self, job_id: str) -> bool:
        """One page. Whether there is more."""
        with self._in_step:
            self._check()
            try:
                work = self._work_on(job_id)
                more = work is not None and work.advance()
                if work is not None and self._jobs.get(job_id).cancelling:
                    raise Cancelled
            except Cancelled:
                self._end(job_id, "cancelled")
            except JobLost as error:
                log.warning(str(error), job=job_id)
                self._close(job_id)
            except LabelloopError as error:
                self._end(job_id, "failed", str(error))
            except Exception as error:
                log.exception("a job failed", job=job_id)
                self._end(job_id, "failed", f"{type(error).__name__}: {error}.")
            else:
                if not more and work is not None:
                    self._end(job_id, "done")
                return more
        return False

    def _work_on(self, job_id: str) -> Preannotation | None:
        """The job opened and ours; None when it is somebody else's."""
        if job_id not in self._running:
            job = self._jobs.get(job_id)
            if job.ended or (job.owner != self.name and self._workers.is_alive(job.owner)):
                return None
            if job.cancelling:
                raise Cancelled
            if job.owner != self.name and not self._jobs.claim(job, self.name):
                return None
            verb = "goes on" if job.started_at else "begins"
            self._jobs.tell(job_id, "info", f"Run {job.run} {verb} on worker {self.name}.")
            self._running[job_id] = self._open_job(job, worker=self.name, check=self._check)
        return self._running[job_id][0]

    def _check(self) -> None:
        if self._stopping.is_set():
            raise Interrupted

    def _end(self, job_id: str, state: State, error: str = "") -> None:
        self._close(job_id)
        if self._jobs.end(job_id, state, owner=self.name, error=error):
            self._jobs.tell(job_id, "error" if error else "info", error or f"The job is {state}.")
            log.info("job ended", job=job_id, state=state)

    def _close(self, job_id: str) -> None:
        work, client = self._running.pop(job_id, (None, None))
        if work is not None and client is not None:
            work.close()
            client.close()
