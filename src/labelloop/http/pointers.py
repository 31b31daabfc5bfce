"""Which model serves a project: its history, and the way back."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from labelloop.core.settings import Settings
from labelloop.http.edge import reply
from labelloop.http.queries import project_in
from labelloop.jobs.shown import show_serving
from labelloop.serving.projects import Projects
from labelloop.store.loops import Loops
from labelloop.store.registry import Registry

BY = "JSON API"


class PointersApi:
    def __init__(self, settings: Settings, projects: Projects, registry: Registry, loops: Loops) -> None:
        self._settings = settings
        self._projects = projects
        self._registry = registry
        self._loops = loops

    def routes(self) -> list[Route]:
        project = "/api/projects/{project:int}"
        return [
            Route(f"{project}/rollback", self.rollback, methods=["POST"]),
            Route(f"{project}/history", self.history, methods=["GET"]),
        ]

    async def rollback(self, request: Request) -> Response:
        """`POST`, without a body: what served the project before serves it again, and Label Studio shows
        its predictions if it can be reached: "label_studio" says what came of that."""
        number = project_in(request)
        move = await asyncio.to_thread(self._registry.rollback, number, by=BY)
        await asyncio.to_thread(self._projects.refresh)
        answer: dict[str, object] = {"project": number, "model": move.target, "instead_of": move.source}
        saved = await asyncio.to_thread(self._registry.connections)
        if self._settings.label_studio_url or saved:
            shown = await asyncio.to_thread(show_serving, self._settings, self._registry, self._loops, number)
            answer["label_studio"] = shown
        return reply(answer)

    async def history(self, request: Request) -> Response:
        """Moves of the pointer, newest first."""
        number = project_in(request)
        rows = [
            {"at": m.at, "from": m.source, "to": m.target, "rollback": m.back, "reason": m.reason, "by": m.by}
            for m in await asyncio.to_thread(self._registry.history, number)
        ]
        return reply({"project": number, "history": rows})
