"""What begins a run: enough new annotations and a pause, a schedule, or the Start Training button."""

from __future__ import annotations

import structlog

from labelloop.jobs.pace import Pace
from labelloop.jobs.training import Training
from labelloop.store import schema
from labelloop.store.loops import is_due

log = structlog.get_logger(__name__)

EVERY_S = 1.0
"""How often the loops are looked at: two small queries a loop."""


class Triggers:
    """Looked at by every worker; that two see the same makes one run, because there is one per project."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._pace = Pace(EVERY_S)

    def look(self) -> int:
        """Queue the runs that are due; how many. Does nothing when it was called a moment ago."""
        if not self._pace.is_time():
            return 0
        begun = 0
        for loop in self._training.loops.all():
            news = self._training.loops.news(loop)
            reason = is_due(loop, news, now=schema.now())
            if reason is None or self._training.unfinished(loop.project_id) is not None:
                continue
            # counted as seen from here on, not when the run ends: what comes while it works is for the next one
            job, new = self._training.begin(loop.project_id, loop.label_studio, loop.options, reason=reason)
            if new:
                log.info("a run of the learning loop begins", project=loop.project_id, job=job.id, reason=reason)
                begun += 1
        return begun
