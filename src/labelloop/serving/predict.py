"""THE prediction path: fetch, decode, submit, in order. HTTP, bulk jobs, evaluation and the command line call this."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import structlog

from labelloop.core.errors import DeadlineExceeded, LabelloopError, MediaNotFound, ModelFailed, Overloaded
from labelloop.core.metrics import Metrics
from labelloop.core.regions import ItemError, MediaKey, Prediction, Region, Size
from labelloop.core.tasks import MediaRef, Prompt, Task
from labelloop.engines.base import Engine
from labelloop.labelstudio.labelmap import LabelMap
from labelloop.labelstudio.wire import media_refs
from labelloop.media.load import MediaLoader
from labelloop.serving.media_metrics import MediaMetrics
from labelloop.serving.projects import View
from labelloop.serving.prompt import select
from labelloop.serving.slots import Lease, Slots
from labelloop.serving.stage import Priority, Stage
from labelloop.store.events import Events
from labelloop.store.registry import ModelVersion

log = structlog.get_logger(__name__)

T = TypeVar("T")

WINDOW = 16
"""Pictures of one request between "being fetched" and "answered": enough to keep two cores and a batch busy, and the
bound on the memory that a request with thousands of tasks can hold."""


class _Job(msgspec.Struct, frozen=True):
    """One picture on its way into a model."""

    ref: MediaRef
    engine: Engine
    version: ModelVersion


class Predictor:
    """Turns tasks into Predictions, in order, one each, whatever happens to single ones."""

    def __init__(
        self,
        media: MediaLoader,
        slots: Slots,
        events: Events,
        *,
        metrics: Metrics,
        media_metrics: MediaMetrics,
        media_workers: int,
        queue_limit: int,
    ) -> None:
        self._media = media
        self._slots = slots
        self._events = events
        self._metrics = metrics
        self._media_metrics = media_metrics
        self._limit = queue_limit
        self._in_flight = 0
        self._loading: Stage[_Job, tuple[Size, Any]] = Stage(self._load, name="media", workers=media_workers)

    async def predict(
        self, tasks: Sequence[Task], view: View, *, priority: Priority, deadline_s: float, prompt: Prompt | None = None
    ) -> list[Prediction]:
        """One Prediction per task, in the order of `tasks`.

        What is not done after `deadline_s` has an error with `retry` set. Raises Overloaded at once when too many
        requests are in work already.
        """
        with self._admit():
            predictions = await self._predict_tasks(tasks, view, priority, time.monotonic() + deadline_s, prompt)
        await self._report(tasks, predictions, view)
        return predictions

    def close(self) -> None:
        self._loading.close()

    async def _predict_tasks(
        self, tasks: Sequence[Task], view: View, priority: Priority, deadline: float, prompt: Prompt | None
    ) -> list[Prediction]:
        try:
            async with self._slots.lease(view.version, deadline=deadline) as lease:
                request = _Request(view, lease, priority, deadline, prompt)
                return await in_order([self._predict_task(task, request) for task in tasks])
        except LabelloopError as error:  # no warm model: no task was tried
            return [failed(error, view.name, retry=True)] * len(tasks)

    async def _predict_task(self, task: Task, request: _Request) -> Prediction:
        found: list[_Found | LabelloopError]
        if request.lease.engine.wants == "nothing":
            found = [await self._try(self._infer(None, request), request)]
        else:
            refs = media_refs(task, request.view.label_map.fields)
            if not refs:
                return failed(_unmapped(request.view), request.view.name, retry=True)
            found = await in_order([self._try(self._predict_picture(ref, request), request) for ref in refs])
        errors = [outcome for outcome in found if isinstance(outcome, LabelloopError)]
        done = [outcome for outcome in found if not isinstance(outcome, LabelloopError)]
        regions = tuple(region for _, _, regions in done for region in regions)
        if errors and not done:
            return failed(errors[0], request.view.name, retry=isinstance(errors[0], DeadlineExceeded))
        return Prediction(
            regions=regions,
            sizes={key: size for key, size, _ in done},
            model=request.view.name,
            score=certainty(regions, request.view.label_map),
            error=_item_error(errors[0]) if errors else None,
        )

    async def _predict_picture(self, ref: MediaRef, request: _Request) -> _Found:
        """fetch -> decode -> submit."""
        async with request.window:
            size, prepared = await self._loading.submit(
                _Job(ref, request.lease.engine, request.lease.version),
                priority=request.priority,
                deadline=request.deadline,
            )
            _, _, regions = await self._infer(prepared, request)
        placed = tuple(msgspec.structs.replace(region, media=ref.key) for region in regions)
        return ref.key, size, placed if request.prompt is None else select(placed, request.prompt)

    async def _infer(self, prepared: Any, request: _Request) -> _Found:
        regions = await request.lease.predict(prepared, priority=request.priority, deadline=request.deadline)
        return MediaKey(""), Size(0, 0), regions

    async def _try(self, work: Any, request: _Request) -> _Found | LabelloopError:
        """The result of `work`, or why there is none: a failure belongs to its item."""
        try:
            async with asyncio.timeout(max(0.0, request.deadline - time.monotonic())):
                found: _Found = await work
                return found
        except LabelloopError as error:
            return error
        except TimeoutError:
            return DeadlineExceeded("The caller stops waiting before this task can be done.")
        except Exception as error:  # a model may raise anything; the neighbours go on
            log.exception("model failed on an item", model=request.view.version.id)
            return ModelFailed(f"{request.view.version.id} failed on this item: {type(error).__name__}: {error}.")

    def _load(self, jobs: Sequence[_Job]) -> list[tuple[Size, Any] | Exception]:
        """In a thread of the media stage, which takes one job at a time."""
        (job,) = jobs
        if not job.ref.uri:
            raise MediaNotFound(
                f"The task has no {job.ref.key.field!r}, which the label config shows.",
                hint="Import the task again with this field, or correct the label config.",
            )
        with self._media_metrics.counted_for(job.version):
            picture = self._media.load(job.ref, min_size=job.engine.input_size)
        return [(picture.size, job.engine.prepare(picture))]

    async def _report(self, tasks: Sequence[Task], predictions: Sequence[Prediction], view: View) -> None:
        """Count, and say why tasks failed: in the log, the metrics and the store."""
        labels = (view.version.name, str(view.version.number))
        self._metrics.requests.labels(*labels).inc()
        self._metrics.tasks.labels(*labels).inc(len(tasks))
        lost = [(task, p.error) for task, p in zip(tasks, predictions, strict=True) if p.error is not None]
        if not lost:
            return
        for task, error in lost:
            self._metrics.failures.labels(*labels, error.code).inc()
            log.warning("task failed", project=task.project_id, task=task.id, code=error.code, reason=error.message)
        rows = [(task.id, error) for task, error in lost]
        await asyncio.to_thread(self._events.record_failures, lost[0][0].project_id, view.name, rows)

    @contextmanager
    def _admit(self) -> Iterator[None]:
        if self._in_flight >= self._limit:
            self._metrics.overloaded.inc()
            raise Overloaded(
                f"{self._in_flight} requests are in work or waiting.", retry_after_s=1, hint="Ask again in a second."
            )
        self._in_flight += 1
        self._metrics.in_flight.inc()
        try:
            yield
        finally:
            self._in_flight -= 1
            self._metrics.in_flight.dec()


_Found = tuple[MediaKey, Size, tuple[Region, ...]]


class _Request:
    """What the tasks of one request share."""

    __slots__ = ("deadline", "lease", "priority", "prompt", "view", "window")

    def __init__(self, view: View, lease: Lease, priority: Priority, deadline: float, prompt: Prompt | None) -> None:
        self.view = view
        self.lease = lease
        self.priority = priority
        self.deadline = deadline
        self.prompt = prompt
        self.window = asyncio.Semaphore(WINDOW)


async def in_order(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, side by side; one alone needs no asyncio task, which is most of the requests there are."""
    return [await work[0]] if len(work) == 1 else list(await asyncio.gather(*work))


def failed(error: LabelloopError, model: str, *, retry: bool) -> Prediction:
    """The Prediction of a task that has no answer. `retry`: it was never tried, so asking again may help."""
    return Prediction(model=model, error=_item_error(error, retry=retry))


def certainty(regions: Sequence[Region], label_map: LabelMap) -> float:
    """How sure the model is of the picture as a whole, in [0, 1]: the mean score of what it draws.

    Where it draws nothing, one minus the best score it did not dare to draw: an empty street is certain, a street
    with something at 0.28 is not.
    """
    drawn = [region.score for region in regions if region.score is not None and label_map.targets_of(region)]
    if drawn:
        return sum(drawn) / len(drawn)
    return 1.0 - max((region.score for region in regions if region.score is not None), default=0.0)


def _item_error(error: LabelloopError, *, retry: bool = False) -> ItemError:
    return ItemError(error.code, str(error), retry)


def _unmapped(view: View) -> LabelloopError:
    return ModelFailed(
        f"No class of {view.version.id} maps to a label of this project.",
        hint='Add predicted_values="CLASS" to a <Label>, or give a labels file; see labelloop doctor.',
    )
