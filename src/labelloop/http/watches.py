"""Watched projects in the JSON API: which there are, and watching one from now on, or no more."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from labelloop.core.errors import JobError
from labelloop.core.settings import Settings
from labelloop.http.edge import read_json, reply
from labelloop.http.queries import project_in
from labelloop.jobs.submit import address_of, known_project
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.wire import BadRequest, decode_object
from labelloop.serving.models import Store
from labelloop.store.watches import Key, Watch


class WatchesApi:
    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store

    def routes(self) -> list[Route]:
        project = "/api/projects/{project:int}/watch"
        return [
            Route("/api/watches", self.watches, methods=["GET"]),
            Route(project, self.watch, methods=["PUT"]),
            Route(project, self.forget, methods=["DELETE"]),
        ]

    async def watches(self, _request: Request) -> Response:
        return reply({"watches": [_row(watch) for watch in await asyncio.to_thread(self._store.watches.all)]})

    async def watch(self, request: Request) -> Response:
        """`PUT {}`, or with `"label_studio": "http://…"` where several are connected: servers watch it from now on."""
        body, number = decode_object(await read_json(request)), project_in(request)
        return reply(_row(await asyncio.to_thread(self._watch, number, _url_in(body))))

    async def forget(self, request: Request) -> Response:
        """`DELETE`, with `?label_studio=` where several are connected: nobody watches it any more."""
        number, url = project_in(request), request.query_params.get("label_studio", "")
        return reply({"project": number, "forgotten": await asyncio.to_thread(self._forget, number, url)})

    def _watch(self, number: int, url: str) -> Watch:
        address, token = address_of(self._settings, self._store.registry, url=url)
        with Client(address, token, timeout_s=20, attempts=2) as client:  # a mistake is said now, not in a log
            known_project(client, self._store.registry, number)
        self._store.registry.save_connection(address, token)  # jobs need it, and may run elsewhere
        key = Key(address, number)
        self._store.watches.add(key, kept=True)
        watch = self._store.watches.get(key)
        if watch is None:
            raise JobError(f"Project {number} was forgotten again in the same moment.", hint="Ask again.")
        return watch

    def _forget(self, number: int, url: str) -> bool:
        address, _ = address_of(self._settings, self._store.registry, url=url)
        return self._store.watches.forget(Key(address, number))


def _url_in(body: dict[str, Any]) -> str:
    url = body.pop("label_studio", "")
    if body or not isinstance(url, str):
        raise BadRequest("A watch is {} or names its Label Studio.", hint='Send {"label_studio": "http://…"}.')
    return url


def _row(watch: Watch) -> dict[str, Any]:
    """`watched`: somebody looks at it now; `seen_until` is Label Studio's moment up to which changes were seen."""
    return {
        "project": watch.project_id,
        "label_studio": watch.label_studio,
        "kept": watch.kept,
        "watched": watch.holder is not None and watch.held_until_s > time.time(),
        "seen_until": watch.cursor,
        "version": watch.version,
        "job": watch.job_id,
        "error": watch.error,
    }
