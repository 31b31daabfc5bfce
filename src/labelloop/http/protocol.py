"""Label Studio's calls. Each is decoded, handed down, encoded; what they mean is in PROTOCOL (docs/http.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from labelloop.core.errors import ProjectElsewhere
from labelloop.core.metrics import Metrics
from labelloop.core.regions import Mask, Prediction
from labelloop.core.settings import Settings
from labelloop.core.tasks import Event, Task
from labelloop.http.edge import Answer, read_body, reply, while_connected
from labelloop.http.hosted import HostedCalls
from labelloop.jobs.training import Training
from labelloop.labelstudio import wire
from labelloop.labelstudio.config import parse_config
from labelloop.serving.origins import Origins
from labelloop.serving.predict import Predictor, failed
from labelloop.serving.projects import NO_MODEL, Projects, View, unassigned
from labelloop.serving.stage import Priority
from labelloop.store.events import Events
from labelloop.store.homes import Homes
from labelloop.store.loops import START

log = structlog.get_logger(__name__)

MAX_BODY = 256 * 10**6
"""Label Studio's own limit for requests; a `/predict` brings all earlier predictions of its tasks along."""

RECORD_S = 0.8

ENCODED_AT_ONCE = 300
"""Regions that the event loop writes itself: a few milliseconds."""

EMPTY_ANSWER: dict[str, Any] = {"result": [], "score": 0.0, "model_version": NO_MODEL}

ACTIONS = frozenset(
    {
        "ANNOTATION_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_CREATED",
        "ANNOTATIONS_DELETED",
        "TASKS_CREATED",
        "TASKS_DELETED",
        "PROJECT_UPDATED",
        START,
    }
)
"""Known actions; others are counted together, so that a stranger cannot grow our metrics without bound."""


Note = Callable[[Sequence[Task], Sequence[Prediction], View], None]


class Protocol:
    """The calls that Label Studio makes, of this release and of old ones. `note` is told what was answered for good; it
    returns at once."""

    def __init__(
        self,
        settings: Settings,
        projects: Projects,
        predictor: Predictor,
        origins: Origins,
        events: Events,
        training: Training,
        metrics: Metrics,
        *,
        note: Note,
        hosted: HostedCalls,
        homes: Homes,
    ) -> None:
        self._settings = settings
        self._projects = projects
        self._predictor = predictor
        self._origins = origins
        self._events = events
        self._training = training
        self._metrics = metrics
        self._note = note
        self._hosted = hosted
        self._homes = homes

    def routes(self) -> list[Route]:
        return [
            Route("/predict", Answer(self.predict), methods=["POST"]),  # first: routes are tried in order
            Route("/health", self.health, methods=["GET"]),
            Route("/setup", self.setup, methods=["POST"]),
            Route("/webhook", self.webhook, methods=["POST"]),
            Route("/train", self.train, methods=["POST"]),
            Route("/versions", self.versions, methods=["GET", "POST"]),
            Route("/validate", self.validate, methods=["POST"]),
            Route("/delete", self.delete, methods=["POST"]),
            Route("/duplicate_model", self.duplicate_model, methods=["POST"]),
            Route("/job_status", self.job_status, methods=["GET", "POST"]),
        ]

    async def health(self, _request: Request) -> Response:
        return reply({"status": "UP", "model_class": "labelloop"})

    async def setup(self, request: Request) -> Response:
        body = wire.decode_setup(await read_body(request, limit=MAX_BODY))
        project_id = await self._met(body.project)
        if project_id is not None and body.hostname:
            self._origins.remember(project_id, body.hostname, body.access_token or "")
        view = self._projects.view(project_id, body.schema or "")
        if project_id is not None:
            await self._say_default(project_id)
        if view is not None and view.raw and project_id is not None:
            view = await self._hosted.introduce(view, project_id, body.extra_params)
        return reply({"model_version": view.name if view else NO_MODEL})

    async def predict(self, request: Request) -> Response:
        with self._predictor.admitted():  # before the body is read: a refusal must not wait for it
            content = await read_body(request, limit=MAX_BODY)
            body = wire.decode_predict(content)
            with while_connected(request):
                return await self._predict(body, content)

    async def _predict(self, body: wire.PredictRequest, content: bytes) -> Response:
        project_id = await self._met(body.project)
        tasks = wire.tasks_of(body)
        view = self._projects.view(project_id, body.label_config or "")
        if view is None:
            missing = failed(unassigned(project_id), NO_MODEL, retry=True)
            item = EMPTY_ANSWER if _is_interactive(body) else wire.encode_skip(missing)
            return reply({"results": [item] * len(tasks), "model_version": NO_MODEL})
        if view.raw:
            tasks = wire.with_whole(tasks, content)
        prompt = wire.prompt_of(body, view.config)
        predictions = await self._predictor.predict(
            tasks,
            view,
            priority=Priority.INTERACTIVE if prompt else Priority.PERSON if len(tasks) == 1 else Priority.BATCH,
            deadline_s=self._settings.predict_deadline_s,
            prompt=prompt,
        )
        if prompt is None:  # what a smart tool shows is about its prompt
            self._note(tasks, predictions, view)
        if _is_quick(predictions):
            return self._encode(predictions, view, tasks, interactive=prompt is not None)
        # a large answer takes seconds to write, and the event loop has others to answer meanwhile
        return await asyncio.to_thread(self._encode, predictions, view, tasks, interactive=prompt is not None)

    def _encode(
        self, predictions: Sequence[Prediction], view: View, tasks: Sequence[Task], *, interactive: bool
    ) -> Response:
        items = [
            self._item(prediction, view, task.id, interactive=interactive)
            for task, prediction in zip(tasks, predictions, strict=True)
        ]
        return reply({"results": items, "model_version": view.name})

    def _item(self, prediction: Prediction, view: View, task_id: int | None, *, interactive: bool) -> dict[str, Any]:
        error = prediction.error
        # a smart tool shows its user what it gets, so that always has a `result`
        may_skip = not interactive and not prediction.regions
        if error and may_skip and (error.retry or self._settings.failed_items == "skip"):
            return wire.encode_skip(prediction)
        return wire.encode_prediction(prediction, view.label_map, task_id=task_id)

    async def webhook(self, request: Request) -> Response:
        content = await read_body(request, limit=MAX_BODY)
        return await self._record(wire.decode_event(content), content)

    async def train(self, request: Request) -> Response:
        """Label Studio before webhooks sent all annotations along; we fetch what we need ourselves."""
        content = await read_body(request, limit=MAX_BODY)
        event = wire.decode_event(content)
        return await self._record(msgspec.structs.replace(event, action=START), content)

    async def _record(self, event: Event, content: bytes) -> Response:
        self._metrics.events.labels(event.action if event.action in ACTIONS else "other").inc()
        await self._meet(event.project_id, event.made_s)
        try:
            learns = await asyncio.wait_for(self._hosted.hear(event, content), RECORD_S)
            number = await asyncio.wait_for(asyncio.to_thread(self._events.record, event), RECORD_S)
        except Exception as error:  # busy, full or gone; Label Studio waits one second inside an annotator's click
            log.error("event lost", action=event.action, project=event.project_id, error=f"{type(error).__name__}")
            return reply({"error": "store", "message": "The event could not be stored."}, status=503)
        log.info("event", action=event.action, project=event.project_id, number=number)
        if event.action == START and learns:
            return reply({"status": "accepted", "message": "The model learns.", "job": str(number or "")}, status=201)
        if event.action == START and number:
            return await self._answer_start(event, number)
        return reply({"status": "recorded" if number else "known", "job": str(number or "")}, status=201)

    async def _answer_start(self, event: Event, number: int) -> Response:
        """What comes of a press on Start Training. It is recorded, so training begins even if this answer is late."""
        try:
            asked = await asyncio.wait_for(
                asyncio.to_thread(self._training.ask, event.project_id, event=number), RECORD_S
            )
        except Exception as error:  # a store that is busy; the button must not fail for that
            log.error("start training", project=event.project_id, error=f"{type(error).__name__}: {error}")
            return reply({"status": "recorded", "job": str(number)}, status=201)
        log.info("start training", project=event.project_id, status=asked.status, reason=asked.message)
        return reply({"status": asked.status, "message": asked.message, "job": asked.job or str(number)}, status=201)

    async def versions(self, _request: Request) -> Response:
        served = [view.name for view in self._projects.views().values() if view]
        known = [version.id for version in self._projects.catalogue.versions]
        return reply({"versions": list(dict.fromkeys(served or known))})

    async def validate(self, request: Request) -> Response:
        body = wire.decode_object(await read_body(request, limit=MAX_BODY))
        parse_config(str(body.get("config") or body.get("schema") or ""))
        return reply({"status": "ok"})

    async def delete(self, request: Request) -> Response:
        project_id = await self._met(wire.decode_object(await read_body(request, limit=MAX_BODY)).get("project"))
        if project_id is not None:
            self._projects.forget(project_id)
            self._origins.forget(project_id)
        return reply({"status": "ok"})

    async def duplicate_model(self, request: Request) -> Response:
        body = wire.decode_object(await read_body(request, limit=MAX_BODY))
        source, target = await self._met(body.get("project_src")), await self._met(body.get("project_dst"))
        if source is not None and target is not None:
            await asyncio.to_thread(self._projects.copy_binding, source, target)
        return reply({"status": "ok"})

    async def _say_default(self, project_id: int) -> None:
        """Let commands and workers know what answers here though nothing is assigned."""
        version = self._projects.by_default(project_id)
        if self._homes.says(project_id, version):
            return
        try:
            await asyncio.wait_for(asyncio.to_thread(self._homes.serve, project_id, version), RECORD_S)
        except Exception as error:  # the next `/setup` says it again
            log.warning("the default was not written down", project=project_id, error=type(error).__name__)

    async def _met(self, project: Any) -> int | None:
        """The id of the project that a call is about. Raises ProjectElsewhere when our rows mean another by it."""
        project_id = wire.project_id_of(project)
        await self._meet(project_id, wire.made_s_of(project))
        return project_id

    async def _meet(self, project_id: int | None, made_s: int | None) -> None:
        if self._homes.knows(project_id, made_s):
            return
        try:
            await asyncio.wait_for(asyncio.to_thread(self._homes.meet, project_id, made_s), RECORD_S)
        except ProjectElsewhere:
            raise
        except Exception as error:  # a store that is busy or gone must not cost an answer
            log.error("the store cannot say which project this is", project=project_id, error=type(error).__name__)

    async def job_status(self, _request: Request) -> Response:
        return reply({"job_status": "unknown", "error": "", "log": "See labelloop's own pages."})


def _is_interactive(body: wire.PredictRequest) -> bool:
    return isinstance((body.params or {}).get("context"), dict)


def _is_quick(predictions: Sequence[Prediction]) -> bool:
    """Whether the event loop may write the answer itself. A mask alone takes a brush 5 ms on 1920x1080 pixels."""
    if sum(len(prediction.regions) for prediction in predictions) > ENCODED_AT_ONCE:
        return False
    return not any(type(region.shape) is Mask for prediction in predictions for region in prediction.regions)
