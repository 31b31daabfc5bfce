"""A small ML backend that does as it is told: the other side of every connection test."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from labelloop.testing.serve import LoopbackServer

Task = dict[str, Any]


class Call(msgspec.Struct, frozen=True):
    """One request that arrived, `body` decoded from JSON (None when there was none)."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


def empty_result(_task: Task) -> dict[str, Any]:
    """The default answer: a prediction without regions."""
    return {"result": [], "score": 0.0}


class FakeBackend:
    """A context manager with a real server. Change the public attributes at any time:

    `model_version` is what /setup says; `predicts_as` is what predictions say when it differs; `basic_auth` is the
    (user, password) asked on everything but /health; `answers[path] = (status, body)` overrides an answer;
    `delays_s[path]` holds it back; `predict(task)` makes one item. `calls` lists what arrived, in order.
    """

    def __init__(
        self,
        *,
        model_version: str = "fake@1",
        basic_auth: tuple[str, str] | None = None,
        predict: Callable[[Task], dict[str, Any]] = empty_result,
        port: int = 0,
    ) -> None:
        self.model_version = model_version
        self.predicts_as: str | None = None
        self.basic_auth = basic_auth
        self.predict = predict
        self.answers: dict[str, tuple[int, Any]] = {}
        self.delays_s: dict[str, float] = {}
        self.calls: list[Call] = []
        self._server = LoopbackServer(
            Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "POST"])]), port=port
        )
        self.url = self._server.url

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()

    def __enter__(self) -> FakeBackend:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def paths(self) -> list[str]:
        """`METHOD /path` of every call so far."""
        return [f"{call.method} {call.path}" for call in self.calls]

    async def _answer(self, request: Request) -> Response:
        raw = await request.body()
        body = msgspec.json.decode(raw) if raw else None
        path = request.url.path
        self.calls.append(Call(request.method, path, dict(request.headers), body))
        if path in self.delays_s:
            await asyncio.sleep(self.delays_s[path])
        if self.basic_auth and path != "/health" and request.headers.get("authorization") != basic(*self.basic_auth):
            return JSONResponse({"error": "authentication required"}, 401, {"WWW-Authenticate": "Basic"})
        if path in self.answers:
            status, answer = self.answers[path]
            return JSONResponse(answer, status)
        return self._usual(path, body)

    def _usual(self, path: str, body: Any) -> Response:
        if path == "/predict":
            version = self.predicts_as or self.model_version
            return JSONResponse(
                {"results": [{**self.predict(task), "model_version": version} for task in body["tasks"]]}
            )
        answers: dict[str, Any] = {
            "/health": {"status": "UP", "model_class": "FakeBackend"},
            "/setup": {"model_version": self.model_version},
            "/versions": {"versions": [self.model_version]},
            "/webhook": {"status": "ok"},
            "/train": {"status": "ok"},
        }
        return JSONResponse(answers.get(path, {"detail": "not found"}), 200 if path in answers else 404)


def basic(user: str, password: str) -> str:
    """The Authorization header of HTTP Basic authentication (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
