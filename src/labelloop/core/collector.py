"""The interpreter's garbage collector, in a process that people wait for.

A full collection looks at every object that lives, and every thread stands still meanwhile: libraries and models are
half a million objects, 50 to 250 ms, every few seconds while a job makes new ones. What was there at such a look and
stayed is nearly all there to stay, so it is put aside, where later looks do not go (`gc.freeze`).
"""

from __future__ import annotations

import gc
import time
from typing import Any

LONGEST_S = 0.01
MOST_TIMES = 20
"""How often something is put aside: cycles that are broken among it later are never found, so this must end."""


class PutAside:
    """A callback of the collector: what a full collection looked at for longer than `longest_s` of processor time is
    put aside after it, at most `most_times`."""

    def __init__(self, *, longest_s: float = LONGEST_S, most_times: int = MOST_TIMES) -> None:
        self._longest_s = longest_s
        self._left = most_times
        self._began_s = 0.0

    def __call__(self, phase: str, info: dict[str, Any]) -> None:
        if info["generation"] < 2 or not self._left:
            return
        if phase == "start":
            self._began_s = time.thread_time()  # collections do not nest, and one is in one thread
        elif time.thread_time() - self._began_s > self._longest_s:
            self.put_aside()

    def put_aside(self) -> None:
        """What is there now, as long as that may still be done."""
        if self._left:
            self._left -= 1
            gc.freeze()


def keep_short() -> None:
    """Put aside what is there now, and see to it that full collections stay short. To be called once, at the end of
    starting, before anybody waits."""
    gc.collect()
    gc.freeze()
    gc.callbacks.append(PutAside())


def has_grown() -> None:
    """Something large was imported a moment ago: put it aside before a collection looks at it. Does nothing where
    `keep_short` was not called."""
    for callback in gc.callbacks:
        if isinstance(callback, PutAside):
            callback.put_aside()
