"""Live events for many listeners: one look at the store per second serves them all, and nobody has a thread.

Server-Sent Events (https://html.spec.whatwg.org/multipage/server-sent-events.html). A `job` event is a whole
snapshot, so missing one does no harm; a `line` is a line of a job's log. Every id is the id of the newest log line at
that moment: lines are rows in the store, so whoever comes back with `Last-Event-ID` misses none, at any server on
the same store.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
import structlog

from labelloop.core.errors import Overloaded
from labelloop.jobs.figures import Figures, figures_of
from labelloop.store import schema
from labelloop.store.jobs import Job, Jobs, Line

log = structlog.get_logger(__name__)

LOOK_S = 1.0
HEARTBEAT_S = 15.0
"""A proxy closes what is silent for long, mostly after 60 s."""
MAX_LISTENERS = 200
_WAITING = 500
"""Messages that a listener may be behind; then it is let go, and comes back where it was."""
_RECENT = timedelta(seconds=30)
"""Jobs that ended this long ago are still looked at: a job may begin and end between two looks."""


class Message(NamedTuple):
    """One event; `job_id` says whom it concerns."""

    job_id: str
    event: str
    number: int
    data: Any

    def encode(self) -> bytes:
        return b"event: %s\nid: %d\ndata: %s\n\n" % (
            self.event.encode(),
            self.number,
            msgspec.json.encode(self.data),
        )


class _Listener(NamedTuple):
    job_id: str | None
    queue: asyncio.Queue[Message | None]


class Feed:
    """Used from one event loop. `close` ends all streams: a server that stops must not wait for its listeners."""

    def __init__(
        self, jobs: Jobs, engine: sa.Engine, *, look_s: float = LOOK_S, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self._jobs = jobs
        self._engine = engine
        self._look_s = look_s
        self._heartbeat_s = heartbeat_s
        self._listeners: set[_Listener] = set()
        self._looking: asyncio.Task[None] | None = None
        self._seen: dict[str, bytes] = {}
        self._line = 0
        self._closed = False

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    def admit(self) -> None:
        """Raises Overloaded when nobody more may listen."""
        if self._closed or len(self._listeners) >= MAX_LISTENERS:
            raise Overloaded(f"{len(self._listeners)} listeners are connected.", retry_after_s=10)

    async def stream(self, *, job_id: str | None = None, after: int | None) -> AsyncIterator[bytes]:
        """The jobs as they are, log lines from `after` on (None: no old ones), then what happens; a stream for one job
        ends with it, after an `end` event."""
        listener = _Listener(job_id, asyncio.Queue(_WAITING))
        self._listeners.add(listener)  # first: what happens while we read the past is in the queue
        try:
            if self._looking is None:
                self._looking = asyncio.create_task(self._look())
            sent = 0
            for message in await asyncio.to_thread(self._past, job_id, after):
                sent = max(sent, message.number)
                yield message.encode()
                if message.event == "end":
                    return
            async for coming in self._coming(listener):
                if coming is None:
                    yield b": still here\n\n"
                elif coming.event != "line" or coming.number > sent:
                    yield coming.encode()
                    if coming.event == "end":
                        return
        finally:
            self._listeners.discard(listener)
            if not self._listeners and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    def close(self) -> None:
        """End every stream. From the event loop."""
        self._closed = True
        for listener in list(self._listeners):
            self._let_go(listener)

    async def _coming(self, listener: _Listener) -> AsyncIterator[Message | None]:
        """Messages as they come; None when it is time for a sign of life."""
        while not self._closed and listener in self._listeners:
            try:
                message = await asyncio.wait_for(listener.queue.get(), self._heartbeat_s)
            except TimeoutError:
                yield None
                continue
            if message is None:
                return
            yield message

    async def _look(self) -> None:
        self._seen, self._line = {}, await asyncio.to_thread(self._jobs.newest_line)
        while True:
            try:
                for message in await asyncio.to_thread(self._news):
                    self._tell(message)
            except Exception as error:  # a database that is away for a moment must not end the streams
                log.error("jobs cannot be looked at", error=str(error).partition("\n")[0])
            await asyncio.sleep(self._look_s)

    def _tell(self, message: Message) -> None:
        for listener in list(self._listeners):
            if listener.job_id in (None, message.job_id) and (listener.job_id or message.event != "end"):
                try:
                    listener.queue.put_nowait(message)
                except asyncio.QueueFull:
                    self._let_go(listener)

    def _let_go(self, listener: _Listener) -> None:
        self._listeners.discard(listener)
        while not listener.queue.empty():
            listener.queue.get_nowait()
        listener.queue.put_nowait(None)

    # --- what happened; in a thread ---------------------------------------------------------------------

    def _past(self, job_id: str | None, after: int | None) -> list[Message]:
        newest = self._jobs.newest_line()
        jobs = self._lively() if job_id is None else [self._jobs.get(job_id)]
        lines = [] if after is None else self._jobs.lines(job_id, after=after)
        # snapshots bear the id from which the lines that follow are not yet told
        told = min(newest, after) if after is not None else newest
        found = [self._snapshot(job, told) for job in jobs] + _of_lines(lines)
        return found + [_end(job, newest) for job in jobs if job_id is not None and job.ended]

    def _news(self) -> list[Message]:
        lines = self._jobs.lines(after=self._line)
        self._line = max([self._line, *(line.id for line in lines)])
        jobs = self._lively()
        found = _of_lines(lines)
        for job in jobs:
            message = self._snapshot(job, self._line)
            content = msgspec.json.encode(message.data)
            if self._seen.get(job.id) != content:
                self._seen[job.id] = content
                found.append(message)
                found += [_end(job, self._line)] if job.ended else []
        alive = {job.id for job in jobs}
        self._seen = {job_id: content for job_id, content in self._seen.items() if job_id in alive}
        return found

    def _lively(self) -> Sequence[Job]:
        return self._jobs.lively(since=schema.now() - _RECENT)

    def _snapshot(self, job: Job, number: int) -> Message:
        return Message(job.id, "job", number, job_row(job, figures_of(self._engine, job)))


def job_row(job: Job, figures: Figures) -> dict[str, Any]:
    """A job as the API shows it: its row, and how far it is."""
    row = {name: getattr(job, name) for name in job.__struct_fields__ if name != "total"}
    return row | {"progress": figures}


def line_row(line: Line) -> dict[str, Any]:
    return {"id": line.id, "job": line.job_id, "at": line.at, "level": line.level, "text": line.text}


def _of_lines(lines: Iterable[Line]) -> list[Message]:
    return [Message(line.job_id, "line", line.id, line_row(line)) for line in lines]


def _end(job: Job, number: int) -> Message:
    return Message(job.id, "end", number, {"id": job.id, "state": job.state})
