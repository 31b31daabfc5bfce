"""A worker that lives in a thread of another program: `labelloop serve` has one."""

from __future__ import annotations

import threading
from collections.abc import Callable

import structlog

from labelloop.jobs.worker import LAST_PAGE_S, Worker

log = structlog.get_logger(__name__)

_STOP_S = LAST_PAGE_S + 2.0
"""A Label Studio that does not answer must not keep the program: the job goes on at its page at the next start."""


class Resident:
    """`make` puts the worker together; it is called in the thread, because that may import for a second."""

    def __init__(self, make: Callable[[], Worker]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._ending = False
        self._worker: Worker | None = None
        self._thread = threading.Thread(target=self._run, name="jobs", daemon=True)

    def start(self) -> None:
        """Begin to run jobs, unless that happened already. Returns at once."""
        with self._lock:
            if self._thread.ident is None:
                self._thread.start()

    def stop(self) -> None:
        """Wait for an import in flight, a few seconds at most; jobs are left as they are."""
        with self._lock:
            self._ending = True
            if self._worker is not None:
                self._worker.stop()
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        try:
            with self._lock:
                if self._ending:
                    return
                self._worker = self._make()
            self._worker.run()
        except Exception:
            log.exception("jobs are not run any more by this process")
