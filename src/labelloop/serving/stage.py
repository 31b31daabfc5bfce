"""A stage of the prediction path: many callers, few threads, people first, deadlines, batches.

Two stages make the path: fetching and decoding pictures, and the model. Both are this one class.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import Any, Generic, TypeVar

from labelloop.core.errors import DeadlineExceeded

In = TypeVar("In")
Out = TypeVar("Out")


class Priority(IntEnum):
    """Who waits for the answer. The lower one goes first."""

    INTERACTIVE = 0  # a person who clicked with a smart tool and looks at the screen
    PERSON = 1  # a person who opens one task
    BATCH = 2  # many tasks in one request
    BULK = 3  # a background job


class _Work(Generic[In, Out]):
    __slots__ = ("deadline", "future", "item", "loop", "queued_at")

    def __init__(self, item: In, deadline: float, loop: asyncio.AbstractEventLoop) -> None:
        self.item = item
        self.deadline = deadline
        self.loop = loop
        self.future: asyncio.Future[Out] = loop.create_future()
        self.queued_at = time.perf_counter()


class Stage(Generic[In, Out]):
    """`workers` threads that call `run` with up to `max_batch` items at a time.

    `run` returns one result per item; an exception object as a result fails only that item, an exception raised by
    `run` itself makes each item of the batch be tried alone, so that one bad item never fails its neighbours.
    `observe(name, seconds_or_count)` is told "queue_seconds" per item, "run_seconds" and "batch_size" per call.
    """

    def __init__(
        self,
        run: Callable[[Sequence[In]], Sequence[Out | Exception]],
        *,
        name: str,
        workers: int,
        max_batch: int = 1,
        observe: Callable[[str, float], None] | None = None,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._observe = observe or (lambda _name, _value: None)
        self._heap: list[tuple[int, int, _Work[In, Out]]] = []
        self._order = itertools.count()
        self._wake = threading.Condition()
        self._idle = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    async def submit(self, item: In, *, priority: Priority, deadline: float) -> Out:
        """The result for `item`. Not begun by `deadline` (on `time.monotonic`): raises DeadlineExceeded."""
        work: _Work[In, Out] = _Work(item, deadline, asyncio.get_running_loop())
        with self._wake:
            if self._closed:
                raise RuntimeError("this stage is closed")
            heapq.heappush(self._heap, (priority, next(self._order), work))
            self._wake.notify()
        return await work.future

    def waiting(self) -> int:
        """Items that no thread has taken yet."""
        return len(self._heap)

    def close(self) -> None:
        """Finish what was submitted, then end the threads."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while batch := self._take():
            begun = time.perf_counter()
            for work in batch:
                self._observe("queue_seconds", begun - work.queued_at)
            outcomes = self._outcomes([work.item for work in batch])
            self._observe("run_seconds", time.perf_counter() - begun)
            self._observe("batch_size", len(batch))
            _deliver(zip(batch, outcomes, strict=True))

    def _take(self) -> list[_Work[In, Out]]:
        """The next batch, or an empty list when the stage is closed and nothing is left."""
        with self._wake:
            while True:
                batch = self._pop()
                if batch or (self._closed and not self._heap):
                    return batch
                self._idle += 1
                self._wake.wait()
                self._idle -= 1

    def _pop(self) -> list[_Work[In, Out]]:
        # What waits is shared with the threads that are free: two threads with two items each beat one with four.
        share = -(-len(self._heap) // (self._idle + 1))
        batch: list[_Work[In, Out]] = []
        while self._heap and len(batch) < min(share, self._max_batch):
            _, _, work = heapq.heappop(self._heap)
            if work.future.cancelled():
                continue
            if time.monotonic() > work.deadline:
                _deliver([(work, DeadlineExceeded("The caller stops waiting before this task can be done."))])
                continue
            batch.append(work)
        return batch

    def _outcomes(self, items: list[In]) -> Sequence[Out | Exception]:
        try:
            return self._run(items)
        except Exception as error:
            # not swallowed: it goes to the callers who wait for these items
            return [error] if len(items) == 1 else [self._outcomes([item])[0] for item in items]


def _deliver(done: Iterable[tuple[_Work[Any, Any], Any]]) -> None:
    """Hand results to the event loops that wait for them: one wake-up per loop, however many results."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for work, outcome in done:
        by_loop.setdefault(work.loop, []).append((work.future, outcome))
    for loop, results in by_loop.items():
        # RuntimeError: the loop was closed while we worked, and nobody is left to tell
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, results)


def _resolve(results: Sequence[tuple[asyncio.Future[Any], Any]]) -> None:
    for future, outcome in results:
        if future.done():
            continue
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
