"""THE prediction path: fetch, decode, submit, in order. HTTP, bulk jobs, evaluation and the command line call this."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple, TypeVar

import msgspec
import structlog

from labelloop.core.errors import (
    DeadlineExceeded,
    FilmTooLong,
    LabelloopError,
    MediaNotFound,
    ModelFailed,
    Overloaded,
    ShuttingDown,
)
from labelloop.core.metrics import Metrics
from labelloop.core.pictures import Picture
from labelloop.core.regions import Interval, ItemError, MediaKey, Prediction, Raw, Region, Size
from labelloop.core.tasks import MediaRef, Prompt, Task, TextRef
from labelloop.engines.base import Engine, Question
from labelloop.labelstudio.config import ObjectTag
from labelloop.labelstudio.video import frame_rate_of, video_results
from labelloop.labelstudio.wire import media_refs
from labelloop.media.load import MediaLoader
from labelloop.media.text import decode_text, plain_text
from labelloop.serving.film_parts import Spool
from labelloop.serving.films import Films, Wanted
from labelloop.serving.media_metrics import MediaMetrics
from labelloop.serving.projects import View, nothing_fits
from labelloop.serving.prompt import marks_on, select
from labelloop.serving.slots import Lease, Slots
from labelloop.serving.stage import Priority, Stage
from labelloop.store.events import Events
from labelloop.store.registry import ModelVersion

log = structlog.get_logger(__name__)

T = TypeVar("T")

WINDOW = 16
"""Pictures of one request between "being fetched" and "answered": enough to keep two cores and a batch busy, and the
bound on the memory that a request with thousands of tasks can hold."""

RESERVED = 1 / 3
"""Part of the fetching threads that takes no batches: a media host that hangs stalls the batches that need it, and no
person."""

REPORT_S = 0.5
"""How long an answer waits for its failures to be written down; the writing goes on without it."""

CLOSE_S = 2.0

INTRODUCE_S = 600.0
"""For a model that loads while a project asks for it; nobody waits that long."""

TRY_LATER = (DeadlineExceeded, ShuttingDown, FilmTooLong)
"""The item was never tried, so asking again may help; or it is a job's."""


Score = Callable[[Sequence[Region], float], float]
"""How little a person needs to look at a task, in [0, 1]: from what is drawn on it and the best score that was not."""

SpoolOf = Callable[[MediaRef], Spool]
"""Where a job keeps what it has detected in a film."""

Work = Callable[[Any, Engine], T]
"""What is done with a Picture, or the str of a text, in the thread that decoded it."""

NO_SIZE = Size(0, 0)
"""Of what is no picture."""


class Look(msgspec.Struct, frozen=True):
    """How to look when the answer is not for an annotator: through `transform`, if there is one, and keeping every
    region whose class the label config knows, whatever its score."""

    transform: Callable[[Picture], Picture] | None = None

    def prepare(self, item: Any, engine: Engine) -> Any:
        """`item` is what the engine wants; texts are never transformed."""
        changed = self.transform is not None and isinstance(item, Picture)
        return engine.prepare(self.transform(item) if self.transform and changed else item)


def _prepare(item: Any, engine: Engine) -> Any:
    return engine.prepare(item)


class _Job(NamedTuple):
    """One picture or text on its way into a model."""

    ref: MediaRef
    engine: Engine
    version: ModelVersion
    work: Work[Any]


class _Found(NamedTuple):
    """What a model drew on one picture: regions above some threshold, and the best score below all of them."""

    key: MediaKey
    size: Size
    regions: tuple[Region, ...]
    missed: float


class _Request(NamedTuple):
    """What the tasks of one request share."""

    view: View
    lease: Lease
    priority: Priority
    deadline: float
    window: asyncio.Semaphore
    prompt: Prompt | None = None
    look: Look | None = None
    spool_of: SpoolOf | None = None


class Predictor:
    """Turns tasks into Predictions, in order, one each, whatever happens to single ones."""

    def __init__(
        self,
        media: MediaLoader,
        films: Films,
        slots: Slots,
        events: Events,
        *,
        score: Score,
        metrics: Metrics,
        media_metrics: MediaMetrics,
        media_workers: int,
        queue_limit: int,
    ) -> None:
        self._media = media
        self._films = films
        self._slots = slots
        self._events = events
        self._score = score
        self._metrics = metrics
        self._media_metrics = media_metrics
        self._limit = queue_limit
        self._in_flight = 0
        self._reports: set[asyncio.Task[None]] = set()
        # as many as there are versions; the library's own look-up costs more
        self._counters = cache(lambda *labels: (metrics.requests.labels(*labels), metrics.tasks.labels(*labels)))
        self._loading: Stage[_Job, tuple[Size, Any]] = Stage(
            self._load, name="media", workers=media_workers, reserved=round(media_workers * RESERVED)
        )

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """A place in the queue, for callers from outside. Raises Overloaded at once when there is none."""
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

    async def predict(
        self,
        tasks: Sequence[Task],
        view: View,
        *,
        priority: Priority,
        deadline_s: float,
        prompt: Prompt | None = None,
        look: Look | None = None,
        spool_of: SpoolOf | None = None,
    ) -> list[Prediction]:
        """One Prediction per task, in the order of `tasks`. Regions that no threshold lets through are left out, unless
        `look` wants them. With `spool_of` films may be of any length.

        What is not done after `deadline_s` has an error with `retry` set.
        """
        deadline = time.monotonic() + deadline_s
        try:
            with await self._slots.lease(view.version, deadline=deadline) as lease:
                request = _Request(view, lease, priority, deadline, asyncio.Semaphore(WINDOW), prompt, look, spool_of)
                predictions = await in_order([self._predict_task(task, request) for task in tasks])
        except LabelloopError as error:  # no warm model: no task was tried
            predictions = [failed(error, view.name, retry=True)] * len(tasks)
        await self._report(tasks, predictions, view)
        return predictions

    async def examine(
        self, tasks: Sequence[Task], view: View, work: Work[T], *, priority: Priority, deadline_s: float
    ) -> list[tuple[T, ...] | LabelloopError]:
        """`work(picture, engine)` of each task's pictures, in order, done in the threads that decode them; or why a
        task has none. Raises LabelloopError when the model cannot be had."""
        deadline = time.monotonic() + deadline_s
        with await self._slots.lease(view.version, deadline=deadline) as lease:
            request = _Request(view, lease, priority, deadline, asyncio.Semaphore(WINDOW))
            return await in_order([self._examine_task(task, work, request) for task in tasks])

    async def _examine_task(self, task: Task, work: Work[T], request: _Request) -> tuple[T, ...] | LabelloopError:
        async def examined(ref: MediaRef) -> T:
            async with request.window:
                done: T = (await self._loaded(ref, request, work))[1]
                return done

        refs = media_refs(task, tuple(tag for tag in request.view.label_map.fields if not tag.shows_films))
        found = await in_order([self._try(examined(ref), request) for ref in refs]) if refs else []
        errors = [one for one in found if isinstance(one, LabelloopError)]
        return errors[0] if errors else tuple(one for one in found if not isinstance(one, LabelloopError))

    def close(self) -> None:
        """End the threads; what was submitted has a moment to finish."""
        self._films.close()
        self._loading.close(timeout_s=CLOSE_S)

    async def _predict_task(self, task: Task, request: _Request) -> Prediction:
        view = request.view
        if request.lease.engine.wants == "task":
            return await self._ask_about(task, request)
        if request.lease.engine.wants == "nothing":
            pictures = [self._infer(None, MediaKey(""), NO_SIZE, request)]
        else:
            refs = media_refs(task, view.label_map.fields)
            if not refs:
                return _no_pictures(view)
            films = {tag.field: tag for tag in view.label_map.fields if tag.shows_films}
            pictures = [
                self._predict_film(ref, task, films[ref.key.field], request)
                if ref.key.field in films
                else self._predict_picture(ref, request)
                for ref in _marked(refs, request.prompt)
            ]
        found = await in_order([self._try(picture, request) for picture in pictures])
        return _combine(found, view.name, self._score)

    async def _ask_about(self, task: Task, request: _Request) -> Prediction:
        """The whole task -> a model that writes results itself."""
        view, context = request.view, request.prompt.context if request.prompt else None
        question = Question(_whole(task), _project_text(task), view.config_xml, context)
        asking: Coroutine[Any, Any, Any] = request.lease.predict(
            question, priority=request.priority, deadline=request.deadline, finish=_as_it_is
        )
        said = await self._try(asking, request)
        if isinstance(said, LabelloopError):
            return failed(said, view.name, retry=isinstance(said, TRY_LATER))
        score = said.score if said.score is not None else self._score(said.regions, 0.0)
        return Prediction(regions=said.regions, model=said.version or view.name, score=score)

    async def introduce(self, view: View, project_id: int, *, wait_s: float) -> None:
        """Let a model that is built for each project be built for this one, and wait a moment for that: what it calls
        itself is not known before. Raises nothing: the first task will say what is wrong."""

        async def build() -> None:
            try:
                with await self._slots.lease(view.version, deadline=time.monotonic() + INTRODUCE_S) as lease:
                    engine: Any = lease.engine
                    await asyncio.to_thread(engine.introduce, str(project_id), view.config_xml)
            except LabelloopError as error:
                log.warning("a model is not ready for a project", project=project_id, reason=str(error))

        building = asyncio.create_task(build())
        self._reports.add(building)
        building.add_done_callback(self._reports.discard)
        await asyncio.wait([building], timeout=wait_s)

    async def _predict_picture(self, ref: MediaRef, request: _Request) -> _Found:
        """fetch -> decode -> submit."""
        async with request.window:
            work = request.look.prepare if request.look else _prepare
            size, prepared = await self._loaded(ref, request, work)
            return await self._infer(prepared, ref.key, size, request)

    async def _predict_film(self, ref: MediaRef, task: Task, tag: ObjectTag, request: _Request) -> _Found:
        """Each thing in the film as a track."""
        if not ref.uri:
            raise _no_reference(ref)
        rate = frame_rate_of(tag, task.data)
        if request.prompt is not None:
            return await self._extend_marks(ref, tag, rate, request)
        spool = request.spool_of(ref) if request.spool_of is not None else None
        sure = _sure(request.view, request.lease.engine.classes)
        wanted = Wanted(ref, rate, request.priority, request.deadline, spool, sure)
        size, regions = await self._films.follow(wanted, request.lease)
        return await asyncio.to_thread(_kept, regions, ref.key, size, request)

    async def _extend_marks(self, ref: MediaRef, tag: ObjectTag, rate: float, request: _Request) -> _Found:
        """The boxes that a person drew on some frame, followed through the film."""
        assert request.prompt is not None
        drawn = [mark.shape.result for mark in request.prompt.include if isinstance(mark.shape, Raw)]
        items = [item for item in video_results(drawn) if item.get("to_name") == tag.name]
        if not items:
            return _Found(ref.key, NO_SIZE, (), 0.0)
        size, found = await self._films.extend(ref, items, frame_rate=rate, deadline=request.deadline)
        return _Found(ref.key, size, tuple(Region(Raw(item), media=ref.key) for item in found), 0.0)

    async def _loaded(self, ref: MediaRef, request: _Request, work: Work[Any]) -> tuple[Size, Any]:
        job = _Job(ref, request.lease.engine, request.lease.version, work)
        return await self._loading.submit(job, priority=request.priority, deadline=request.deadline)

    async def _infer(self, prepared: Any, key: MediaKey, size: Size, request: _Request) -> _Found:
        def finish(regions: tuple[Region, ...]) -> _Found:
            return _kept(regions, key, size, request)

        return await request.lease.predict(
            prepared, priority=request.priority, deadline=request.deadline, finish=finish
        )

    async def _try(self, work: Coroutine[Any, Any, T], request: _Request) -> T | LabelloopError:
        """The result of `work`, or why there is none: a failure belongs to its item."""
        try:
            async with asyncio.timeout(max(0.0, request.deadline - time.monotonic())):
                return await work
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
            raise _no_reference(job.ref)
        if job.engine.wants == "text":
            return [(NO_SIZE, job.work(self._read(job.ref), job.engine))]
        with self._media_metrics.counted_for(job.version):
            picture = self._media.load(job.ref, min_size=job.engine.input_size)
        return [(picture.size, job.work(picture, job.engine))]

    def _read(self, ref: MediaRef) -> str:
        """The plain text that `ref` means."""
        if not isinstance(ref, TextRef):  # a control on a picture, filled by a model that reads
            raise MediaNotFound(f"{ref.key.field!r} is no text.")
        text = decode_text(self._media.fetch(ref)) if ref.by_url else ref.uri
        return plain_text(text) if ref.markup else text

    async def _report(self, tasks: Sequence[Task], predictions: Sequence[Prediction], view: View) -> None:
        """Count, and say why tasks failed: in the log, the metrics and the store."""
        labels = (view.version.name, str(view.version.number))
        requests, answered = self._counters(*labels)
        requests.inc()
        answered.inc(len(tasks))
        lost = [(task, p.error) for task, p in zip(tasks, predictions, strict=True) if p.error is not None]
        if not lost:
            return
        for task, error in lost:
            self._metrics.failures.labels(*labels, error.code).inc()
            log.warning("task failed", project=task.project_id, task=task.id, code=error.code, reason=error.message)
        writing = asyncio.create_task(self._write_down(lost, view))
        self._reports.add(writing)
        writing.add_done_callback(self._reports.discard)
        await asyncio.wait([writing], timeout=REPORT_S)

    async def _write_down(self, lost: Sequence[tuple[Task, ItemError]], view: View) -> None:
        rows = [(task.id, error) for task, error in lost]
        try:
            await asyncio.to_thread(self._events.record_failures, lost[0][0].project_id, view.name, rows)
        except Exception as error:  # a store that is busy or full must not cost the answers that are there
            log.error("failures were not written down", tasks=len(rows), error=f"{type(error).__name__}: {error}")


async def in_order(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all, side by side; one alone needs no asyncio task, which is most of the requests there are."""
    return [await work[0]] if len(work) == 1 else list(await asyncio.gather(*work))


def failed(error: LabelloopError, model: str, *, retry: bool) -> Prediction:
    """The Prediction of a task that has no answer. `retry`: it was never tried, so asking again may help."""
    return Prediction(model=model, error=_item_error(error, retry=retry))


def _as_it_is(said: Any) -> Any:
    return said


def _sure(view: View, classes: Sequence[str]) -> dict[str, float]:
    """The classes whose stretches a label config asks for, and from which score on."""
    targets = {name: view.label_map.targets_for(name, Interval) for name in classes}
    return {name: min(target.threshold for target in found) for name, found in targets.items() if found}


def _project_text(task: Task) -> str:
    return "" if task.project_id is None else str(task.project_id)


def _whole(task: Task) -> Mapping[str, Any]:
    return task.whole if task.whole is not None else {"id": task.id, "data": task.data, "project": task.project_id}


def _kept(regions: tuple[Region, ...], key: MediaKey, size: Size, request: _Request) -> _Found:
    """What is drawn of a picture's regions. In the model's thread: a detector may say hundreds of things a picture."""
    labels = request.view.label_map
    drawn, missed = [], 0.0
    for region in regions:
        if labels.targets_for(region.label, type(region.shape)) if request.look else labels.targets_of(region):
            drawn.append(msgspec.structs.replace(region, media=key))
        elif region.score is not None:
            missed = max(missed, region.score)
    if request.look is None:
        best = labels.best_choices(drawn)
        missed = max([missed, *(r.score or 0.0 for r in drawn if r not in best)]) if len(best) < len(drawn) else missed
        drawn = best
    if request.prompt is not None:
        drawn = list(select(drawn, marks_on(request.prompt, key)))
    return _Found(key, size, tuple(drawn), missed)


def _combine(found: Sequence[_Found | LabelloopError], model: str, score: Score) -> Prediction:
    """One Prediction from what was found on each picture of a task."""
    errors = [outcome for outcome in found if isinstance(outcome, LabelloopError)]
    done = [outcome for outcome in found if not isinstance(outcome, LabelloopError)]
    for error in errors:
        # a task whose other pages are still to be tried is not done, whatever was found on the first ones
        if isinstance(error, TRY_LATER):
            return failed(error, model, retry=True)
    if not done:
        return failed(errors[0], model, retry=False)
    regions = tuple(region for one in done for region in one.regions)
    hidden = min(max(max(one.missed for one in done), 0.0), 1.0)
    return Prediction(
        regions=regions,
        sizes={one.key: one.size for one in done},
        model=model,
        score=score(regions, hidden),
        hidden=hidden,
        error=_item_error(errors[0]) if errors else None,
    )


def _marked(refs: Sequence[MediaRef], prompt: Prompt | None) -> Sequence[MediaRef]:
    """The pictures that a prompt has marks on; all of them without a prompt, or when its marks say no picture."""
    if prompt is None:
        return refs
    marked = {mark.media for mark in (*prompt.include, *prompt.exclude)}
    return [ref for ref in refs if ref.key in marked] or refs


def _no_reference(ref: MediaRef) -> MediaNotFound:
    return MediaNotFound(
        f"The task has no {ref.key.field!r}, which the label config shows.",
        hint="Import the task again with this field, or correct the label config.",
    )


def _item_error(error: LabelloopError, *, retry: bool = False) -> ItemError:
    return ItemError(error.code, str(error), retry)


def _no_pictures(view: View) -> Prediction:
    if view.label_map.fields:
        names = ", ".join(repr(tag.field) for tag in view.label_map.fields)
        return failed(MediaNotFound(f"The task's list of pages {names} is empty."), view.name, retry=False)
    return failed(nothing_fits(view), view.name, retry=True)
