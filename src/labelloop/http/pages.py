"""The page a person sees at `/`: models, projects, and what is wrong. Programs get JSON from the same address."""

from __future__ import annotations

import asyncio

from jinja2 import Environment, PackageLoader, select_autoescape
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from labelloop import __version__
from labelloop.core.settings import Settings
from labelloop.http.api import Api
from labelloop.http.edge import reply
from labelloop.http.jobs import JobsApi
from labelloop.store.events import Events

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


class Pages:
    def __init__(self, settings: Settings, api: Api, jobs: JobsApi, events: Events, *, warnings: list[str]) -> None:
        self._settings = settings
        self._api = api
        self._jobs = jobs
        self._events = events
        self._warnings = warnings
        loader = PackageLoader("labelloop.http")
        self._status = Environment(loader=loader, autoescape=select_autoescape()).get_template("status.html")

    def routes(self) -> list[Route]:
        return [Route("/", self.root, methods=["GET"])]

    async def root(self, request: Request) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return reply({"status": "UP", "model_class": "labelloop", "version": __version__})
        failures = await asyncio.to_thread(self._events.failures, limit=20)
        jobs = await asyncio.to_thread(self._jobs.rows, limit=8)
        page = self._status.render(
            version=__version__,
            models=self._api.list_models(),
            projects=self._api.list_projects(),
            jobs=jobs,
            failures=failures,
            warnings=self._warnings,
            label_studio=self._settings.label_studio_url,
        )
        return HTMLResponse(page, headers=HEADERS)
