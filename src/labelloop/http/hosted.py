"""What Label Studio's calls mean beyond the usual for models that are other people's code."""

from __future__ import annotations

import asyncio
from typing import Any

from labelloop.core.errors import ModelNotFound
from labelloop.core.tasks import Event
from labelloop.labelstudio import wire
from labelloop.labelstudio.events import SEVERAL_CREATED, SEVERAL_DELETED, deleted_ids, one_by_one
from labelloop.serving.predict import Predictor
from labelloop.serving.projects import Projects, View
from labelloop.store.annotations import Annotations
from labelloop.store.fits import HEARD, Fits
from labelloop.store.values import Values

INTRODUCTION_S = 2.0
"""How long `/setup` waits for such a model: Label Studio waits 3 s in all."""

MOST_MET = 10_000


class HostedCalls:
    """Safe to use from the event loop."""

    def __init__(
        self, values: Values, fits: Fits, annotations: Annotations, projects: Projects, predictor: Predictor
    ) -> None:
        self._values = values
        self._fits = fits
        self._annotations = annotations
        self._projects = projects
        self._predictor = predictor
        self._met: dict[tuple[str, int], str] = {}
        self._extra: dict[tuple[str, int], Any] = {}

    async def introduce(self, view: View, project_id: int, extra_params: Any) -> View:
        """Let the model be built for a project that it does not know, and hear what it calls itself. Only the first
        call waits: `/setup` comes before nearly every page."""
        key = (view.version.id, project_id)
        if extra_params and self._extra.get(key) != extra_params:
            self._extra[key] = extra_params
            await asyncio.to_thread(self._values.set, view.version.name, str(project_id), "extra_params", extra_params)
        if self._met.get(key) == view.config_xml:
            return view
        if len(self._met) >= MOST_MET:
            self._met.clear()
            self._extra.clear()
        self._met[key] = view.config_xml
        await self._predictor.introduce(view, project_id, wait_s=INTRODUCTION_S)
        await asyncio.to_thread(self._projects.refresh)
        return self._projects.view(project_id, view.config_xml) or view

    async def hear(self, event: Event, content: bytes) -> bool:
        """Keep an event for the model of its project, if that learns from such events. Whether it was kept."""
        if event.project_id is None or event.action not in (*HEARD, SEVERAL_CREATED, SEVERAL_DELETED):
            return False
        try:
            version = self._projects.version_of(event.project_id)
        except ModelNotFound:
            return False
        if version is None or version.card.task != "raw":
            return False
        await asyncio.to_thread(self._keep, version.name, event.project_id, event.action, content)
        return True

    def _keep(self, model: str, project_id: int, action: str, content: bytes) -> None:
        payload = wire.decode_object(content)
        if isinstance(project := payload.get("project"), dict):
            project.pop("token", None)  # the project's invitation, a secret
        gone = deleted_ids(payload) if action == SEVERAL_DELETED else []
        owners = self._annotations.owners(project_id, gone) if gone else {}
        self._fits.add(model, project_id, list(one_by_one(action, payload, owners)))
