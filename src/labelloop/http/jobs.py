"""Background jobs over HTTP: start, list, steer, and follow them live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

import msgspec
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from labelloop.core.decoding import from_json
from labelloop.core.settings import Settings
from labelloop.http.edge import read_json, reply
from labelloop.http.feed import Feed, job_row, line_row
from labelloop.http.queries import number_in
from labelloop.jobs.figures import figures_of
from labelloop.jobs.submit import address_of, submit, work_of
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import filters_of
from labelloop.labelstudio.wire import BadRequest
from labelloop.serving.models import Store
from labelloop.store.jobs import Job, Options, State
from labelloop.store.pages import failures

MAX_BODY = 100_000
SHOWN = 50
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would keep events back until its buffer is full
}


class Prelabel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /api/jobs` takes; the same as the options of `labelloop prelabel`."""

    project: int | str
    kind: Literal["prelabel"] = "prelabel"
    model: str | None = None
    only_missing: bool = True
    filters: Sequence[str] | Mapping[str, Any] = ()
    limit: Annotated[int, msgspec.Meta(ge=1)] | None = None
    label_studio: str = ""


class JobsApi:
    """`feed` is what listeners listen to."""

    def __init__(self, settings: Settings, store: Store, feed: Feed) -> None:
        self._settings = settings
        self._store = store
        self._feed = feed

    def routes(self) -> list[Route]:
        job = "/api/jobs/{job}"
        return [
            Route("/api/jobs", self.list_jobs, methods=["GET"]),
            Route("/api/jobs", self.start, methods=["POST"]),
            Route("/api/events", self.all_events, methods=["GET"]),
            Route(job, self.show, methods=["GET"]),
            Route(f"{job}/cancel", self._steer(self._store.jobs.cancel), methods=["POST"]),
            Route(f"{job}/resume", self._steer(self._store.jobs.resume), methods=["POST"]),
            Route(f"{job}/retry", self._steer(self._retry), methods=["POST"]),
            Route(f"{job}/failures", self.failures, methods=["GET"]),
            Route(f"{job}/logs", self.logs, methods=["GET"]),
            Route(f"{job}/events", self.events, methods=["GET"]),
        ]

    async def list_jobs(self, request: Request) -> Response:
        """Newest first; `?project=7&state=running&limit=50`."""
        project, limit = (number_in(request, name) for name in ("project", "limit"))
        state = request.query_params.get("state")
        if state is not None and state not in get_args(State):
            raise BadRequest(f"{state[:40]!r} is not a state: {', '.join(get_args(State))}.")
        rows = await asyncio.to_thread(self.rows, limit=min(limit or SHOWN, 1000), project_id=project, state=state)
        return reply({"jobs": rows})

    async def start(self, request: Request) -> Response:
        """201 with the new job; 200 with the one that does the same work already; 409 where one does only a part of it
        or does it otherwise."""
        body = await read_json(request, limit=MAX_BODY)
        try:
            wish = from_json(body, Prelabel)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            hint = 'Send for instance {"project": 7, "model": "cars", "only_missing": true}.'
            raise BadRequest(f"This job cannot be read: {error}.", hint=hint) from error
        row, new = await asyncio.to_thread(self._create, wish)
        return reply(row, status=201 if new else 200)

    async def show(self, request: Request) -> Response:
        return reply(await asyncio.to_thread(lambda: self._row(self._find(request))))

    async def failures(self, request: Request) -> Response:
        """The failed tasks, by id; `?limit=1000`."""
        limit = min(number_in(request, "limit") or 1000, 100_000)
        engine = self._store.engine
        rows = await asyncio.to_thread(lambda: failures(engine, self._find(request).id, limit=limit))
        return reply({"failures": rows})

    async def logs(self, request: Request) -> Response:
        """The newest 2,000 lines, oldest first; `?after=LINE`."""
        after = number_in(request, "after") or 0
        lines = await asyncio.to_thread(lambda: self._store.jobs.lines(self._find(request).id, after=after))
        return reply({"lines": [line_row(line) for line in lines]})

    async def events(self, request: Request) -> Response:
        job = await asyncio.to_thread(self._find, request)
        last = _last_event(request)
        if job.ended and last is not None and await asyncio.to_thread(self._is_told, job, last):
            return Response(status_code=204)  # tells a browser that there is no use in coming back
        return self._stream(job_id=job.id, after=last or 0)

    async def all_events(self, request: Request) -> Response:
        return self._stream(job_id=None, after=_last_event(request))

    def rows(self, **wanted: Any) -> list[dict[str, Any]]:
        """Jobs with their figures; arguments as `Jobs.newest`. Reads the store: not for the event loop."""
        return [self._row(job) for job in self._store.jobs.newest(**wanted)]

    def _stream(self, *, job_id: str | None, after: int | None) -> Response:
        self._feed.admit()
        events = self._feed.stream(job_id=job_id, after=after)
        return StreamingResponse(events, media_type="text/event-stream", headers=_HEADERS)

    def _create(self, wish: Prelabel) -> tuple[dict[str, Any], bool]:
        url, token = address_of(self._settings, self._store.registry, url=wish.label_studio)
        options = Options(wish.only_missing, filters_of(wish.filters), wish.limit)
        with Client(url, token, timeout_s=20, attempts=2) as client:
            work = work_of(client, self._settings, self._store.registry, wish.project, wish.model, options)
        job, new = submit(self._store.jobs, work)
        return self._row(job), new

    def _steer(self, act: Callable[[str], Job]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            def answer() -> dict[str, Any]:
                return self._row(act(self._find(request).id))

            return reply(await asyncio.to_thread(answer))

        return endpoint

    def _retry(self, job_id: str) -> Job:
        return self._store.jobs.resume(job_id, failed=True)

    def _find(self, request: Request) -> Job:
        return self._store.jobs.get(request.path_params["job"][:40])

    def _row(self, job: Job) -> dict[str, Any]:
        return job_row(job, figures_of(self._store.engine, job))

    def _is_told(self, job: Job, last: int) -> bool:
        return not self._store.jobs.lines(job.id, after=last)


def _last_event(request: Request) -> int | None:
    """Where a listener that comes back was. What is no number of ours counts as none."""
    text = request.headers.get("last-event-id", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
