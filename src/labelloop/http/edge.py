"""The outermost layer: authentication, timing, and every error as JSON that says the next step."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from labelloop.core.errors import (
    JobError,
    JobNotFound,
    LabelloopError,
    LabelStudioError,
    LabelStudioRejected,
    ModelNotFound,
    Overloaded,
    ProjectElsewhere,
)
from labelloop.core.metrics import Metrics
from labelloop.http.auth import BasicAuth, Callers
from labelloop.labelstudio.filters import BadFilter
from labelloop.labelstudio.wire import BadRequest

log = structlog.get_logger(__name__)

EVENTS = b"text/event-stream"

WATCH_AFTER_S = 0.05
"""When a request begins to look whether its caller is still there."""


class Edge:
    """Plain ASGI (Starlette's BaseHTTPMiddleware costs more than our whole empty request)."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        auth: BasicAuth,
        callers: Callers,
        metrics: Metrics,
        paths: frozenset[str],
        end_streams: Callable[[], None] = lambda: None,
    ) -> None:
        self.end_streams = end_streams
        self._app = app
        self._auth = auth
        self._callers = callers
        self._paths = paths
        self._told = bool(log.is_enabled_for(logging.DEBUG))  # making a logger to say nothing costs each request
        # as many as there are addresses and statuses; the library's own look-up costs more
        self._seconds = cache(lambda path, status: metrics.http_seconds.labels(path, str(status)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        status = 500

        streaming = False

        async def observed(message: Message) -> None:
            nonlocal status, streaming
            if message["type"] == "http.response.start":
                status = message["status"]
                streaming = any(name == b"content-type" and EVENTS in value for name, value in message["headers"])
                if streaming:  # it stays open for hours: the time to answer ends here
                    note()
            await send(message)

        def note() -> None:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._seconds(path, status).observe(time.perf_counter() - begun)

        try:
            await self._answer(scope, receive, observed)
        finally:
            if not streaming:
                note()
            if self._told:
                log.debug("request", method=scope["method"], path=scope["path"], status=status)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._auth.allows(scope["path"], scope["headers"]):
            headers = {"WWW-Authenticate": 'Basic realm="labelloop"'}
            body = {"error": "unauthorized", "message": "User name and password are missing or wrong."}
            await reply(body, status=401, headers=headers)(scope, receive, send)
            return
        if (reason := self._callers.refusal(scope["method"], scope["headers"])) is not None:
            log.warning("request refused", method=scope["method"], path=scope["path"], reason=reason)
            await reply({"error": "forbidden", "message": reason}, status=403)(scope, receive, send)
            return
        scope["app"] = self  # makes Starlette's router raise for an unknown address instead of answering plain text
        try:
            await self._app(scope, receive, send)
        except LabelloopError as error:
            # Label Studio never shows the body of an error, so this line is where a person finds the reason
            log.warning(
                "request refused", method=scope["method"], path=scope["path"], code=error.code, reason=str(error)
            )
            await error_reply(error)(scope, receive, send)
        except HTTPException as error:  # no such address, or not with this method
            body = {"error": "not-found" if error.status_code == 404 else "bad-request", "message": error.detail}
            await reply(body, status=error.status_code, headers=dict(error.headers or {}))(scope, receive, send)
        except ClientDisconnect:
            log.info("caller left", method=scope["method"], path=scope["path"])
        except Exception:
            # The traceback belongs in our log, never in an answer.
            log.exception("request failed", method=scope["method"], path=scope["path"])
            body = {"error": "internal", "message": "labelloop failed on this request; its log says why."}
            await reply(body, status=500)(scope, receive, send)


class Answer:
    """A handler as a plain ASGI application, for the address that is asked all the time: around a function Starlette
    puts an error layer of its own, which costs a tenth of an empty request and has nothing to do below `Edge`."""

    def __init__(self, handler: Callable[[Request], Awaitable[Response]]) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._handler(Request(scope, receive, send))
        await response(scope, receive, send)


def reply(content: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer."""
    return Response(msgspec.json.encode(content), status, headers, media_type="application/json")


def error_reply(error: LabelloopError) -> Response:
    """The status and JSON body that an error deserves."""
    body = {"error": error.code, "message": error.message, "hint": error.hint}
    if isinstance(error, Overloaded):
        return reply(body, status=503, headers={"Retry-After": str(math.ceil(error.retry_after_s))})
    return reply(body, status=_status_of(error))


def _status_of(error: LabelloopError) -> int:
    if isinstance(error, ModelNotFound | JobNotFound):
        return 404
    if isinstance(error, JobError | ProjectElsewhere):
        return 409
    if isinstance(error, LabelStudioRejected):
        return 404 if error.status == 404 else 502
    return 502 if isinstance(error, LabelStudioError) and not isinstance(error, BadFilter | BadRequest) else 400


async def read_body(request: Request, *, limit: int) -> bytes:
    """The request's body. Raises BadRequest above `limit` bytes, without reading on."""
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise BadRequest(f"The request body is larger than {limit:,} bytes.")
        chunks.append(chunk)
    return b"".join(chunks)


async def read_json(request: Request, *, limit: int = 10_000) -> bytes:
    """The body of a call that changes something. Raises BadRequest unless it says that it is JSON: a browser sends
    that to a foreign server only after asking."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise BadRequest("Send JSON with Content-Type: application/json.")
    return await read_body(request, limit=limit)


@contextmanager
def while_connected(request: Request) -> Iterator[None]:
    """End the block with ClientDisconnect when the caller leaves; to be used once the body is read, and in a task.

    Watching begins a moment later: it needs an asyncio task of its own, and most requests are over by then.
    """
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    watcher: asyncio.Task[Message] | None = None
    over = left = False

    def leave(watched: asyncio.Task[Message]) -> None:
        nonlocal left
        if not over and not watched.cancelled():  # after the body comes only the end of the connection
            left = True
            task.cancel()

    def watch() -> None:
        nonlocal watcher
        watcher = loop.create_task(request.receive())  # type: ignore[arg-type]
        watcher.add_done_callback(leave)

    timer = loop.call_later(WATCH_AFTER_S, watch)
    try:
        yield
    except asyncio.CancelledError:
        if left and task.uncancel() == 0:
            raise ClientDisconnect from None
        raise
    finally:
        over = True
        timer.cancel()
        if watcher is not None:
            watcher.cancel()
