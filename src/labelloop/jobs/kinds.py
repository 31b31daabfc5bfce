"""What a job is to the worker that runs it: its kind says who opens it, and all kinds run alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple, Protocol

import structlog

from labelloop.core.errors import JobError
from labelloop.jobs.patience import Cancelled
from labelloop.store.jobs import Job, Jobs

log = structlog.get_logger(__name__)


QUEUE_OF = {"retrain": "training", "fit": "training"}
"""Kinds whose runs have a queue of their own, beside "jobs": what one worker does side by side."""


class Running(Protocol):
    """A job in the hands of one worker. What `advance` does must be safe to repeat: a worker may be killed anywhere."""

    def advance(self) -> bool:
        """Do the next piece, of seconds rather than minutes. False when nothing is left to do. Errors are
        LabelloopErrors: the job cannot go on."""
        ...

    def close(self) -> None:
        """Let go of everything, at the end or before it."""
        ...


class Held(NamedTuple):
    """What the worker gives a job. `worker` is its name as an owner, or as a `guest` that helps the owner. `stopping`
    raises Interrupted when the process ends; `check` raises that, or Cancelled when a person cancelled the job.
    `tell(level, text)` writes into its log."""

    worker: str
    stopping: Callable[[], None]
    check: Callable[[], None]
    tell: Callable[[str, str], None]
    guest: bool = False


OpenKind = Callable[[Job, Held], Running]
"""Raises LabelloopError when the job cannot run."""


class Kinds:
    """Opens a job by its `kind`. A new kind of job is one entry of `openers`; those in `shared` take guests."""

    def __init__(self, jobs: Jobs, openers: Mapping[str, OpenKind], *, shared: Collection[str] = ()) -> None:
        self._jobs = jobs
        self._openers = openers
        self.shared = frozenset(shared)

    def open(self, job: Job, *, worker: str, check: Callable[[], None], guest: bool = False) -> Running:
        """Raises LabelloopError when the job cannot run. `check` raises when this process ends."""
        opener = self._openers.get(job.kind)
        if opener is None:
            raise JobError(
                f"This worker knows no jobs of the kind {job.kind!r}.",
                hint=f"Upgrade labelloop where the worker runs; then: labelloop jobs resume {job.id}",
            )
        return opener(job, Held(worker, check, self._checker(job, check), self._teller(job), guest))

    def _checker(self, job: Job, stopping: Callable[[], None]) -> Callable[[], None]:
        def check() -> None:
            stopping()
            if self._jobs.get(job.id).cancelling:
                raise Cancelled

        return check

    def _teller(self, job: Job) -> Callable[[str, str], None]:
        def tell(level: str, text: str) -> None:
            getattr(log, level)(text, job=job.id, project=job.project_id)
            self._jobs.tell(job.id, level, text)

        return tell
