"""For operators: /metrics and /ready."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from labelloop.core.metrics import Metrics
from labelloop.http.edge import reply
from labelloop.serving.projects import Projects
from labelloop.serving.slots import Slots


class Ops:
    def __init__(self, projects: Projects, slots: Slots, metrics: Metrics) -> None:
        self._projects = projects
        self._slots = slots
        self._metrics = metrics

    def routes(self) -> list[Route]:
        return [
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
        ]

    async def metrics(self, _request: Request) -> Response:
        return Response(generate_latest(self._metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def ready(self, _request: Request) -> Response:
        """200 when every model that a project needs is warm; 503 with the list of those that are not."""
        needed = self._projects.wanted()
        states = {
            version.id: (slot.state if (slot := self._slots.state_of(version)) else "waiting") for version in needed
        }
        ready = all(state == "ready" for state in states.values())
        return reply({"ready": ready, "models": states}, status=200 if ready else 503)
