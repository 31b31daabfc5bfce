"""The one file that knows DBOS: workflows that outlive their process, in SQLite or Postgres.

A run of a job is a workflow whose steps are pages. Each queue gives a worker one run at a time; training has a queue of
its own, because it waits for the predictions that it asks for. A workflow whose
worker died is queued again; its finished steps are not repeated, and the step that was cut off begins again: that this
stores nothing twice is the work of jobs/delivery, because no workflow engine can know what arrived in Label Studio.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dbos import DBOS, DBOSClient, DBOSConfig, error

from labelloop.core.errors import JobError

QUEUES = ("jobs", "training")
WORKFLOW = "job"
APP_VERSION = "1"
"""DBOS gives a workflow only to programs of the version that queued it. Change it when a run's steps change meaning."""
_POLL_S = 0.25
_ONE = threading.Lock()
"""Held by the engine of this process: DBOS is a singleton, and a second one would take over the first one's."""


def url_of(database_url: str, home: Path) -> str:
    """Where workflows are kept: in the store's Postgres (a schema of its own), else in a SQLite file of their own, so
    that neither waits for the other's lock."""
    return database_url if database_url.startswith("postgres") else f"sqlite:///{home / 'workflows.db'}"


class Durable:
    """The workflow engine of this process; there can be one. `step(job_id)` does a part of a job and returns whether
    there is more; it is called again after a crash."""

    def __init__(self, url: str, *, worker: str, step: Callable[[str], bool]) -> None:
        if not _ONE.acquire(blocking=False):
            raise JobError("Another worker of this process runs jobs.", hint="One process, one worker.")
        config: DBOSConfig = {
            "name": "labelloop",
            "system_database_url": url,
            "executor_id": worker,
            "application_version": APP_VERSION,
            "log_level": "WARNING",
        }
        DBOS(config=config)

        @DBOS.step(name="page")
        def page(job_id: str) -> bool:
            return step(job_id)

        @DBOS.workflow(name=WORKFLOW, max_recovery_attempts=None)
        def run(job_id: str) -> int:
            pages = 0
            while page(job_id):
                pages += 1
            return pages

        self._url = url
        self._client: DBOSClient | None = None
        # It logs to a handler of its own as well; ours has the redaction.
        logging.getLogger("dbos").propagate = False
        logging.getLogger("dbos").setLevel(logging.WARNING)

    def start(self) -> None:
        DBOS.launch()
        for queue in QUEUES:
            DBOS.register_queue(queue, worker_concurrency=1, polling_interval_sec=_POLL_S)
        self._client = DBOSClient(system_database_url=self._url)

    def stop(self) -> None:
        """Does not wait for runs: they are found again as if this process had died. What DBOS says about those that it
        is taken away from is no news to anybody."""
        logging.getLogger("dbos").setLevel(logging.CRITICAL + 1)
        try:
            if self._client is not None:
                self._client.destroy()
            DBOS.destroy(destroy_registry=True)
        finally:
            _ONE.release()

    def ensure(self, run_id: str, job_id: str, *, queue: str, is_alive: Callable[[str], bool]) -> bool:
        """See to it that a run is in `queue` or runs on a worker that lives. False when it has ended already."""
        assert self._client is not None, "not started"
        status = next(iter(self._client.list_workflows(workflow_ids=[run_id])), None)
        if status is None:
            options = {"queue_name": queue, "workflow_name": WORKFLOW, "workflow_id": run_id}
            self._client.enqueue({**options, "app_version": APP_VERSION}, job_id)  # type: ignore[typeddict-item]
            return True
        if status.status == "PENDING" and not is_alive(status.executor_id or ""):
            with suppress(error.DBOSException):  # another worker was quicker
                self._client.resume_workflow(run_id, queue_name=queue)
        return status.status in ("PENDING", "ENQUEUED", "DELAYED")
