"""One request and its answer inside the fake: handlers are plain functions in a thread, as in Label Studio."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from labelloop.testing.label_studio.rows import error_row
from labelloop.testing.label_studio.tokens import Tokens


class Refused(Exception):
    """Becomes Label Studio's error body."""

    def __init__(self, status: int, detail: str, validation_errors: Any = None) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.validation_errors = validation_errors


@dataclass(frozen=True)
class Ask:
    """The request, read completely."""

    method: str
    ids: dict[str, Any]
    query: dict[str, str]
    headers: dict[str, str]
    raw: bytes

    def json(self) -> Any:
        """The decoded body, {} when there is none. Raises Refused (400)."""
        try:
            return json.loads(self.raw) if self.raw else {}
        except ValueError as error:
            raise Refused(400, f"JSON parse error - {error}") from error

    def files(self) -> list[tuple[str, bytes]]:
        """File names and contents of a multipart body (RFC 7578)."""
        match = re.search(r'boundary="?([^";]+)', self.headers.get("content-type", ""))
        if match is None:
            return []
        found = []
        for part in self.raw.split(b"--" + match[1].encode())[1:-1]:
            head, _, content = part.partition(b"\r\n\r\n")
            if name := re.search(rb'filename="([^"]*)"', head):
                found.append((name[1].decode(), content.removesuffix(b"\r\n")))
        return found


Handler = Callable[[Ask], Any]


@dataclass(frozen=True)
class Call:
    """`METHOD /path/{id:int}` and who answers it. A handler returns a Response, (status, body) or a body for 200."""

    methods: Sequence[str]
    path: str
    handler: Handler
    public: bool = False


Around = Callable[[Ask, str, Callable[[], Response]], Response]
"""Stands between a request (and its path) and its handler; the third argument answers as usual."""


def undisturbed(_ask: Ask, _path: str, answer: Callable[[], Response]) -> Response:
    return answer()


def route(call: Call, tokens: Tokens, log: Callable[[Ask, str], None], around: Callable[[], Around]) -> Route:
    """Authenticate, run, and turn Refused into Label Studio's error body; anything else is its 500."""

    def answer(ask: Ask) -> Response:
        if not call.public and (problem := tokens.problem(ask.headers)):
            return JSONResponse(error_row(401, problem), 401)
        try:
            return _response(call.handler(ask))
        except Refused as error:
            return JSONResponse(error_row(error.status, error.detail, error.validation_errors), error.status)
        except Exception as error:  # the real one also answers 500 to whatever it did not expect
            return JSONResponse(error_row(500, f"{type(error).__name__}: {error}"), 500)

    async def endpoint(request: Request) -> Response:
        ask = Ask(
            request.method, request.path_params, dict(request.query_params), dict(request.headers), await request.body()
        )
        log(ask, request.url.path)
        return await run_in_threadpool(around(), ask, request.url.path, lambda: answer(ask))

    return Route(call.path, endpoint, methods=list(call.methods))


def _response(result: Any) -> Response:
    if isinstance(result, Response):
        return result
    if isinstance(result, tuple):
        status, body = result
        return Response(status_code=status) if body is None else JSONResponse(body, status)
    return JSONResponse(result)
