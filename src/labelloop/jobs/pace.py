"""How often the idle work of a worker is done."""

from __future__ import annotations

import time


class Pace:
    """Says once in `every_s` that it is time; what is called in between has nothing to do."""

    def __init__(self, every_s: float) -> None:
        self._every_s = every_s
        self._next = 0.0

    def is_time(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._every_s
        return True
