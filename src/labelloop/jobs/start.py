"""When a watched project gets a job, and which: the one that ran before goes on behind its last task, so that a project
that gets a task now and then does not get a job for each."""

from __future__ import annotations

import structlog

from labelloop.core.errors import JobError, JobNotFound
from labelloop.serving.models import Store
from labelloop.serving.projects import View
from labelloop.store import schema
from labelloop.store.jobs import Job, Work
from labelloop.store.watches import Key

log = structlog.get_logger(__name__)

AGAIN_S = 60.0
"""How long a job that failed or was cancelled is left alone while tasks wait."""


class Starter:
    """Starts prelabel jobs of one project. `view` is the version to predict with, None while there is none."""

    def __init__(self, key: Key, store: Store, *, job_id: str | None) -> None:
        self._key = key
        self._store = store
        self._job_id = job_id
        self._wanted = False
        self._from_the_beginning = False
        self.view: View | None = None

    def want(self, *, from_the_beginning: bool) -> None:
        """There are tasks to predict: behind all that were seen, or anywhere."""
        self._wanted = True
        self._from_the_beginning |= from_the_beginning

    def start_if_wanted(self) -> None:
        """Queue a job. While one is at work it waits: that one may have passed the end of the list already."""
        if not self._wanted or self.view is None:
            return
        work = Work(self._key.label_studio, self._key.project_id, self.view.version.id, self.view.name)
        last = self._last()
        if last is not None and last.state in ("failed", "cancelled") and _age_s(last) < AGAIN_S:
            return
        goes_on = last is not None and last.state == "done" and _work_of(last) == work
        job = self._go_on(last) if last and goes_on and not self._from_the_beginning else self._begin(work)
        if job is None:
            return
        self._wanted = self._from_the_beginning = False
        self._job_id = job.id
        self._store.watches.save(self._key, job_id=job.id)
        log.info("new tasks", project=self._key.project_id, job=job.id, run=job.run)

    def _last(self) -> Job | None:
        try:
            return self._store.jobs.get(self._job_id) if self._job_id else None
        except JobNotFound:
            return None

    def _begin(self, work: Work) -> Job | None:
        job, new = self._store.jobs.create(work)
        return job if new else None

    def _go_on(self, last: Job) -> Job | None:
        try:
            return self._store.jobs.resume(last.id)
        except JobError:  # another does the same work now
            return None


def _age_s(job: Job) -> float:
    return (schema.now() - job.finished_at).total_seconds() if job.finished_at else 0.0


def _work_of(job: Job) -> Work:
    return Work(job.label_studio, job.project_id, job.model, job.version, job.options, job.kind)
