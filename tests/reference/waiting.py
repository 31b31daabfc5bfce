"""Waiting for what a test has set going."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def wait(condition: Callable[[], Any], seconds: float = 180, *, every_s: float = 0.02) -> Any:
    """What `condition` gives as soon as it is true. After `seconds` the test fails."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"the condition did not hold within {seconds:g} s")
        time.sleep(every_s)
    return found
