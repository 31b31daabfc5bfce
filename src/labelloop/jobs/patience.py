"""Waiting for a Label Studio that is down, slow, overloaded or does not know us for a while: longer each time, never
for ever, and with few words."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from labelloop.core.errors import LabelStudioAuthError, LabelStudioError, LabelStudioRejected, LabelStudioUnreachable

T = TypeVar("T")

FIRST_S = 0.5
LONGEST_S = 60.0
AUTH_LIMIT_S = 600.0
"""A token that is refused for this long was revoked: no restart of a server takes longer."""
_LOOK_S = 1.0
"""How often a waiting job looks whether it should stop."""


class Interrupted(BaseException):
    """This process ends. Not an Exception: the work did not fail, and nothing must write down that it did."""


class Cancelled(Exception):
    """A person cancelled the job."""


def is_passing(error: LabelStudioError) -> bool:
    """Whether the same call may succeed later. An answer that is no error and cannot be read is a proxy's page."""
    if isinstance(error, LabelStudioRejected):
        return error.status in (408, 425, 429) or error.status >= 500 or error.status < 400
    return isinstance(error, LabelStudioUnreachable | LabelStudioAuthError)


class Patience:
    """Shared by the threads of one job, so that one outage is told once. `check` raises when the job should stop."""

    def __init__(
        self, limit_s: float, *, check: Callable[[], None], tell: Callable[[str, str], None], first_s: float = FIRST_S
    ) -> None:
        self._limit_s = limit_s
        self._check = check
        self._tell = tell
        self._first_s = first_s
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._since: float | None = None
        self._told_until = 0.0
        self._pause_s = first_s

    def another(self) -> Patience:
        """One that counts for itself: a Label Studio that lists tasks may refuse imports for hours."""
        other = Patience(self._limit_s, check=self._check, tell=self._tell, first_s=self._first_s)
        other._ended = self._ended
        return other

    def end(self) -> None:
        """Whoever waits is told with Interrupted: the job has ended for another reason."""
        self._ended.set()

    def __call__(self, call: Callable[[], T]) -> T:
        """The result of a call that may be repeated without harm."""
        while True:
            try:
                result = call()
            except LabelStudioError as error:
                if not is_passing(error):
                    raise
                self.pause(error)
            else:
                self.answered()
                return result

    def pause(self, error: LabelStudioError) -> None:
        """Wait before the next try. Raises `error` when this has gone on for too long."""
        now = time.monotonic()
        with self._lock:
            if self._since is None:
                self._since, self._pause_s, self._told_until = now, self._first_s, now
            limit_s = min(self._limit_s, AUTH_LIMIT_S) if isinstance(error, LabelStudioAuthError) else self._limit_s
            if now - self._since > limit_s:
                raise error
            if now >= self._told_until:  # else another thread has just said so
                self._tell("warning", f"{error.message} Trying again in {self._pause_s:.0f} s.")
                self._told_until = now + self._pause_s
                self._pause_s = min(self._pause_s * 2, LONGEST_S)
            ends = self._told_until + random.uniform(0, self._first_s)  # noqa: S311 - spreads the callers
        self.sleep(ends - now)

    def answered(self) -> None:
        """Label Studio did what was asked."""
        with self._lock:
            since, self._since = self._since, None
        if since is not None:
            self._tell("info", f"Label Studio answers again, after {time.monotonic() - since:.0f} s.")

    def sleep(self, seconds: float) -> None:
        """Wait, looking now and then whether the job should stop."""
        ends = time.monotonic() + seconds
        self._check()
        while (left := ends - time.monotonic()) > 0:
            if self._ended.wait(min(left, _LOOK_S)):
                raise Interrupted
            self._check()
