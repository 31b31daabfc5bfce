"""A stage of the prediction path: many callers, few threads, people first, deadlines, batches.

Two stages make the path: fetching and decoding pictures, and the model. Both are this one class.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from enum import IntEnum
from typing import Any, Generic, TypeVar

from labelloop.core.errors import DeadlineExceeded, ShuttingDown

In = TypeVar("In")
Out = TypeVar("Out")
T = TypeVar("T")
Finish = Callable[[Any], Any]

NICE = 10
"""Of threads that work for batches, beside others that work for people: the system then gives them a tenth of a core
that both want."""


class Priority(IntEnum):
    """Who waits for the answer. The lower one goes first."""

    INTERACTIVE = 0  # a person who clicked with a smart tool and looks at the screen
    PERSON = 1  # a person who opens one task
    BATCH = 2  # many tasks in one request
    BULK = 3  # a background job


class _Work(Generic[In]):
    __slots__ = ("deadline", "finish", "future", "item", "loop", "priority", "queued_at")

    def __init__(
        self, item: In, priority: int, deadline: float, finish: Finish | None, loop: asyncio.AbstractEventLoop | None
    ) -> None:
        self.item = item
        self.priority = priority
        self.deadline = deadline
        self.finish = finish
        self.loop = loop
        self.future: asyncio.Future[Any] | Future[Any] = Future() if loop is None else loop.create_future()
        self.queued_at = time.perf_counter()


class Stage(Generic[In, Out]):
    """`workers` threads that call `run` with up to `max_batch` items at a time.

    `run` returns one result per item; an exception object as a result fails only that item, an exception raised by
    `run` itself makes each item of the batch be tried alone, so that one bad item never fails its neighbours.
    `reserved` of the workers take nothing below Priority.PERSON, so that slow batches never keep a person waiting.
    `nice` makes the workers less urgent than other threads (Linux).
    `observe(name, seconds_or_count)` is told "queue_seconds" per item, "run_seconds" and "batch_size" per call.
    """

    def __init__(
        self,
        run: Callable[[Sequence[In]], Sequence[Out | Exception]],
        *,
        name: str,
        workers: int,
        max_batch: int = 1,
        reserved: int = 0,
        nice: int = 0,
        observe: Callable[[str, float], None] | None = None,
    ) -> None:
        self._run = run
        self._max_batch = max_batch
        self._for_batches = max(1, workers - reserved)
        self._nice = nice
        self._observe = observe or (lambda _name, _value: None)
        self._heap: list[tuple[int, int, _Work[In]]] = []
        self._order = itertools.count()
        self._wake = threading.Condition()
        self._idle = 0
        self._on_batches = 0
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    async def submit(
        self, item: In, *, priority: Priority, deadline: float, finish: Callable[[Out], T] | None = None
    ) -> T:
        """The result for `item`, or `finish(result)` where it is given: computed in the worker's thread too, because
        whatever takes long on the event loop keeps every other caller waiting.

        Not begun by `deadline` (on `time.monotonic`): raises DeadlineExceeded. After `close`: raises ShuttingDown.
        """
        work = _Work(item, priority, deadline, finish, asyncio.get_running_loop())
        self._queue(work)
        assert isinstance(work.future, asyncio.Future)
        result: T = await work.future
        return result

    def put(self, item: In, *, priority: Priority, deadline: float) -> Future[Out]:
        """The same for a caller in a thread of its own: a wake-up of an event loop for each item is what it saves."""
        work = _Work(item, priority, deadline, None, None)
        self._queue(work)
        assert isinstance(work.future, Future)
        return work.future

    def _queue(self, work: _Work[In]) -> None:
        with self._wake:
            if self._closed:
                raise ShuttingDown("labelloop is stopping.")
            heapq.heappush(self._heap, (work.priority, next(self._order), work))
            self._wake.notify()

    def waiting(self) -> int:
        """Items that no thread has taken yet."""
        return len(self._heap)

    def close(self, *, timeout_s: float | None = None) -> None:
        """Finish what was submitted, then end the threads. After `timeout_s` what waits fails with ShuttingDown, and
        a thread that is still at work is left to itself (it is a daemon)."""
        self.refuse()
        self.finish(None if timeout_s is None else time.monotonic() + timeout_s)

    def refuse(self) -> None:
        """Take nothing new; the first part of `close`."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def finish(self, until: float | None) -> None:
        """Wait for the threads, until an instant of `time.monotonic` at most; the second part of `close`."""
        for thread in self._threads:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        with self._wake:
            left = [work for _, _, work in self._heap]
            self._heap.clear()
        _deliver((work, ShuttingDown("labelloop is stopping.")) for work in left)

    def _work(self) -> None:
        if self._nice and sys.platform == "linux":  # elsewhere it would be the whole process
            mine = threading.get_native_id()
            with contextlib.suppress(OSError):  # a sandbox that forbids it; then people share with batches
                os.setpriority(os.PRIO_PROCESS, mine, max(self._nice, os.getpriority(os.PRIO_PROCESS, mine)))
        while batch := self._take():
            begun = time.perf_counter()
            for work in batch:
                self._observe("queue_seconds", begun - work.queued_at)
            outcomes = self._outcomes(batch)
            self._observe("run_seconds", time.perf_counter() - begun)
            self._observe("batch_size", len(batch))
            _deliver(zip(batch, outcomes, strict=True))
            if batch[0].priority >= Priority.BATCH:
                with self._wake:
                    self._on_batches -= 1

    def _take(self) -> list[_Work[In]]:
        """The next batch, or an empty list when the stage is closed and nothing is left."""
        with self._wake:
            while True:
                batch = self._pop()
                if batch or (self._closed and not self._heap):
                    return batch
                self._idle += 1
                self._wake.wait()
                self._idle -= 1

    def _pop(self) -> list[_Work[In]]:
        # What waits is shared with the threads that are free: two threads with two items each beat one with four.
        share = min(-(-len(self._heap) // (self._idle + 1)), self._max_batch)
        batch: list[_Work[In]] = []
        while self._heap and len(batch) < share:
            if not batch and self._heap[0][0] >= Priority.BATCH and self._on_batches >= self._for_batches:
                break  # the workers that are left wait for a person
            _, _, work = heapq.heappop(self._heap)
            if work.future.cancelled():
                continue
            if time.monotonic() > work.deadline:
                _deliver([(work, DeadlineExceeded("The caller stops waiting before this task can be done."))])
                continue
            batch.append(work)
        if batch and batch[0].priority >= Priority.BATCH:
            self._on_batches += 1
        return batch

    def _outcomes(self, batch: Sequence[_Work[In]]) -> list[Any]:
        try:
            results = self._run([work.item for work in batch])
            return [_finish(work, result) for work, result in zip(batch, results, strict=True)]
        except Exception as error:
            # not swallowed: it goes to the callers who wait for these items
            return [error] if len(batch) == 1 else [self._outcomes([work])[0] for work in batch]


class Lanes(Generic[In, Out]):
    """Two stages in one: people are never behind a batch. `run` is called by up to `workers` threads for batches, and
    by up to `urgent` more for people; where both are at work on the same cores, the system gives them to people."""

    def __init__(
        self,
        run: Callable[[Sequence[In]], Sequence[Out | Exception]],
        *,
        name: str,
        workers: int,
        urgent: int,
        max_batch: int = 1,
        observe: Callable[[str, float], None] | None = None,
    ) -> None:
        self._people: Stage[In, Out] = Stage(
            run, name=f"{name}-people", workers=urgent, max_batch=max_batch, observe=observe
        )
        self._batches: Stage[In, Out] = Stage(
            run, name=name, workers=workers, max_batch=max_batch, nice=NICE, observe=observe
        )

    async def submit(
        self, item: In, *, priority: Priority, deadline: float, finish: Callable[[Out], T] | None = None
    ) -> T:
        """As Stage.submit."""
        return await self._lane(priority).submit(item, priority=priority, deadline=deadline, finish=finish)

    def put(self, item: In, *, priority: Priority, deadline: float) -> Future[Out]:
        """As Stage.put."""
        return self._lane(priority).put(item, priority=priority, deadline=deadline)

    def _lane(self, priority: Priority) -> Stage[In, Out]:
        return self._batches if priority >= Priority.BATCH else self._people

    def waiting(self) -> int:
        """Items that no thread has taken yet."""
        return self._people.waiting() + self._batches.waiting()

    def close(self, *, timeout_s: float | None = None) -> None:
        """As Stage.close, for both."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        for lane in (self._people, self._batches):
            lane.refuse()
        for lane in (self._people, self._batches):
            lane.finish(until)


def _finish(work: _Work[Any], result: Any) -> Any:
    if work.finish is None or isinstance(result, Exception):
        return result
    try:
        return work.finish(result)
    except Exception as error:
        return error  # to the one caller whose item it is


def _deliver(done: Iterable[tuple[_Work[Any], Any]]) -> None:
    """Hand results to those that wait for them: one wake-up per event loop, however many results."""
    by_loop: dict[asyncio.AbstractEventLoop | None, list[tuple[asyncio.Future[Any] | Future[Any], Any]]] = {}
    for work, outcome in done:
        by_loop.setdefault(work.loop, []).append((work.future, outcome))
    _resolve(by_loop.pop(None, ()))
    for loop, results in by_loop.items():
        assert loop is not None
        # RuntimeError: the loop was closed while we worked, and nobody is left to tell
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, results)


def _resolve(results: Sequence[tuple[asyncio.Future[Any] | Future[Any], Any]]) -> None:
    for future, outcome in results:
        if future.done():
            continue
        # InvalidStateError: a thread gave up waiting in this very moment
        with contextlib.suppress(InvalidStateError):
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
