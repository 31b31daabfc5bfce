"""Predicted pages between the thread that predicts and the one that stores them."""

from __future__ import annotations

import threading
import time
from collections import deque

from labelloop.core.errors import LabelloopError
from labelloop.jobs.patience import Interrupted
from labelloop.store.pages import Page


class Backlog:
    """Who adds while there are `most_items` predictions or more waits. One thread adds, one takes; any may close."""

    def __init__(self, most_items: int) -> None:
        self._most_items = most_items
        self._pages: deque[Page] = deque()
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._change = threading.Condition()

    def add(self, page: Page) -> None:
        """Once it is closed, pages are dropped: they are in the store, and whoever takes the job over finds them."""
        with self._change:
            self._change.wait_for(lambda: not self._is_full() or self._closed)
            self._pages.append(page)
            self._change.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing is added any more, because all is done or because of `error`."""
        with self._change:
            self._ended, self._error = True, error
            self._change.notify_all()

    def close(self) -> None:
        """Nothing is taken any more."""
        with self._change:
            self._closed = True
            self._change.notify_all()

    def take(self, *, due_s: float) -> list[Page]:
        """Pages in order, one at least, more as long as they have at most `most_items` together: waits for the first,
        and for others until it is full or the moment `due_s` (of `time.monotonic`) has come. None at the end. An error
        that ended them is raised when all before it were taken, a person's wish at once. Raises Interrupted when
        closed."""
        with self._change:
            while not (self._is_full() or self._closed or self._ended):
                left_s = due_s - time.monotonic()
                if self._pages and left_s <= 0:
                    break
                self._change.wait(left_s if self._pages else None)
            if self._closed:
                raise Interrupted
            if self._error is not None and not (self._pages and isinstance(self._error, LabelloopError)):
                raise self._error
            taken: list[Page] = []
            items = 0
            while self._pages and (not taken or items + len(self._pages[0].items) <= self._most_items):
                taken.append(self._pages.popleft())
                items += len(taken[-1].items)
            self._change.notify_all()
            return taken

    def _is_full(self) -> bool:
        return sum(len(page.items) for page in self._pages) >= self._most_items
