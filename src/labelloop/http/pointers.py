"""Which model serves a project: its history, and the way back."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from labelloop.http.edge import reply
from labelloop.http.queries import project_in
from labelloop.serving.projects import Projects
from labelloop.store.registry import Registry

BY = "JSON API"


class PointersApi:
    def __init__(self, projects: Projects, registry: Registry) -> None:
        self._projects = projects
        self._registry = registry

    def routes(self) -> list[Route]:
        project = "/api/projects/{project:int}"
        return [
            Route(f"{project}/rollback", self.rollback, methods=["POST"]),
            Route(f"{project}/history", self.history, methods=["GET"]),
        ]

    async def rollback(self, request: Request) -> Response:
        """`POST`, without a body: what served the project before serves it again."""
        number = project_in(request)
        move = await asyncio.to_thread(self._registry.rollback, number, by=BY)
        await asyncio.to_thread(self._projects.refresh)
        return reply({"project": number, "model": move.target, "instead_of": move.source})

    async def history(self, request: Request) -> Response:
        """Moves of the pointer, newest first."""
        number = project_in(request)
        rows = [
            {"at": m.at, "from": m.source, "to": m.target, "rollback": m.back, "reason": m.reason, "by": m.by}
            for m in await asyncio.to_thread(self._registry.history, number)
        ]
        return reply({"project": number, "history": rows})
