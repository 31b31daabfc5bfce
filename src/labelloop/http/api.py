"""Our JSON API, for programs and for the status page: models, projects, what is wrong."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError
from labelloop.http.edge import read_json, reply
from labelloop.http.queries import number_in, project_in
from labelloop.labelstudio import wire
from labelloop.serving.projects import Projects, View
from labelloop.serving.slots import Slots
from labelloop.store.events import Events
from labelloop.store.registry import ModelVersion

MAX_UPLOAD = 4 * 10**9
MAX_SPEC = 200

AddModel = Callable[[Path, ModelCard], ModelVersion]
Assign = Callable[[int, str], ModelVersion | None]


class Api:
    def __init__(
        self, projects: Projects, slots: Slots, events: Events, *, add_model: AddModel, assign: Assign
    ) -> None:
        self._projects = projects
        self._slots = slots
        self._events = events
        self._add_model = add_model
        self._assign = assign

    def routes(self) -> list[Route]:
        return [
            Route("/api/models", self.models, methods=["GET"]),
            Route("/api/models/{name}", self.upload, methods=["PUT"]),
            Route("/api/projects", self.projects, methods=["GET"]),
            Route("/api/projects/{project:int}", self.project, methods=["GET"]),
            Route("/api/projects/{project:int}/model", self.assign, methods=["PUT"]),
            Route("/api/failures", self.failures, methods=["GET"]),
        ]

    async def models(self, _request: Request) -> Response:
        return reply({"models": self.list_models()})

    async def upload(self, request: Request) -> Response:
        """Add an ONNX file: `curl -T model.onnx -H 'Content-Type: application/octet-stream' …/api/models/NAME`.

        The content type is demanded because a browser will not send it to a foreign server without asking first. Only
        ONNX is taken: it is data, while a pickle would be code.
        """
        if request.headers.get("content-type") != "application/octet-stream":
            raise ModelError("Send the file with Content-Type: application/octet-stream.")
        card = ModelCard(name=request.path_params["name"])
        with tempfile.TemporaryDirectory(prefix="labelloop-upload-") as folder:
            path = Path(folder) / "model.onnx"
            await _receive(request, path)
            version = await asyncio.to_thread(self._add_model, path, card)
        await asyncio.to_thread(self._projects.refresh)
        return reply({"model": version.id, "card": version.card}, status=201)

    async def projects(self, _request: Request) -> Response:
        return reply({"projects": self.list_projects()})

    async def project(self, request: Request) -> Response:
        number = project_in(request)
        found = [row for row in self.list_projects() if row["id"] == number]
        if not found:
            return reply(
                {
                    "error": "not-found",
                    "message": f"Project {number} never asked for anything.",
                    "hint": f"Connect it: labelloop connect {number} --url … --token …",
                },
                status=404,
            )
        return reply(found[0])

    async def assign(self, request: Request) -> Response:
        """`PUT {"model": "NAME"}`, `"NAME@VERSION"` or `"none"`."""
        spec = wire.decode_object(await read_json(request)).get("model")
        if not isinstance(spec, str) or not spec:
            raise wire.BadRequest('Send {"model": "NAME"} or {"model": "NAME@VERSION"}.')
        number = project_in(request)
        version = await asyncio.to_thread(self._assign, number, spec[:MAX_SPEC])
        await asyncio.to_thread(self._projects.refresh)
        return reply({"project": number, "model": version.id if version else None})

    async def failures(self, request: Request) -> Response:
        project, limit = (number_in(request, name) for name in ("project", "limit"))
        rows = await asyncio.to_thread(
            self._events.failures, project_id=project, limit=100 if limit is None else min(limit, 1000)
        )
        return reply({"failures": rows})

    def list_models(self) -> list[dict[str, Any]]:
        rows = []
        views = self._projects.views()
        for version in self._projects.catalogue.versions:
            slot = self._slots.state_of(version)
            rows.append(
                {
                    "id": version.id,
                    "task": version.card.task,
                    "engine": version.card.engine,
                    "family": version.card.family,
                    "labels": version.card.labels,
                    "state": slot.state if slot else "not loaded",
                    "error": slot.error if slot else "",
                    "projects": [number for number, view in views.items() if view and view.version.id == version.id],
                }
            )
        return rows

    def list_projects(self) -> list[dict[str, Any]]:
        return [self._project_row(number, view) for number, view in sorted(self._projects.views().items())]

    def _project_row(self, number: int, view: View | None) -> dict[str, Any]:
        binding = self._projects.catalogue.bindings.get(number)
        return {
            "id": number,
            "model": view.version.id if view else (binding.name if binding else None),
            "model_version": view.name if view else None,
            "assigned": binding is not None,
            "classes_without_label": view.label_map.unmapped if view else (),
            "labels_without_class": view.label_map.unfilled if view else (),
        }


async def _receive(request: Request, path: Path) -> None:
    size = 0
    with path.open("wb") as file:
        async for chunk in request.stream():
            size += len(chunk)
            if size > MAX_UPLOAD:
                raise ModelError(
                    f"The file is larger than {MAX_UPLOAD // 10**9} GB.", hint="Use: labelloop models add FILE"
                )
            file.write(chunk)
