"""From the row of a job to a Preannotation that can run: credentials, the model, the project as it is now."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import sqlalchemy as sa
import structlog

from labelloop.core.errors import JobError, LabelConfigError, ModelFailed, Overloaded, ShuttingDown
from labelloop.core.regions import Prediction
from labelloop.core.settings import Settings
from labelloop.core.tasks import MediaRef, Task
from labelloop.jobs.kinds import Held
from labelloop.jobs.patience import Interrupted, Patience
from labelloop.jobs.preannotate import Preannotation, Predict
from labelloop.labelstudio.client import Client
from labelloop.learning.memory import keep
from labelloop.serving.origins import Origins
from labelloop.serving.predict import Predictor, SpoolOf
from labelloop.serving.projects import Lens, View, nothing_fits
from labelloop.serving.slots import Slots
from labelloop.serving.stage import Priority
from labelloop.store.films import FilmParts
from labelloop.store.jobs import Job, Jobs
from labelloop.store.pages import Pages
from labelloop.store.registry import ModelVersion, Registry
from labelloop.store.scores import Scores

log = structlog.get_logger(__name__)

T = TypeVar("T")

DEADLINE_S = 3600.0
"""For one page. Nobody waits; it only ends what would never end."""
FILM_DEADLINE_S = 30 * 86_400.0
"""For one film, which may last a day and be looked at by a slow model."""
_LOOK_S = 0.2
"""How often somebody who waits for predictions looks whether this process ends."""


class Loop(AbstractContextManager["Loop"]):
    """An event loop in a thread of its own, from the first use on: the prediction path is asynchronous, jobs are
    not."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="jobs-loop", daemon=True)
        self._starting = threading.Lock()

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the thread; who waits for a result on it waits for ever, so whoever uses it ends first."""
        if self._thread.ident is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, T], *, check: Callable[[], None]) -> T:
        """The result of a coroutine; the calling thread waits. What `check` raises meanwhile cancels it."""
        with self._starting:
            if self._thread.ident is None:
                self._thread.start()
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        while True:
            done, _ = concurrent.futures.wait([future], timeout=_LOOK_S)
            if done:
                return future.result()
            try:
                check()
            except BaseException:
                future.cancel()
                raise


class Opener:
    """Makes prelabel jobs runnable with the parts of one process. `needed` are the versions that others in this process
    need in memory."""

    def __init__(
        self,
        settings: Settings,
        engine: sa.Engine,
        jobs: Jobs,
        registry: Registry,
        slots: Slots,
        predictor: Predictor,
        origins: Origins,
        loop: Loop,
        *,
        needed: Callable[[], Sequence[ModelVersion]] = tuple,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._jobs = jobs
        self._registry = registry
        self._slots = slots
        self._predictor = predictor
        self._origins = origins
        self._loop = loop
        self._needed = needed
        self._scores = Scores(engine)

    def open(self, job: Job, held: Held) -> Preannotation:
        """Raises LabelloopError when the job cannot run: no token, another label config, a model that does not load."""
        patience = Patience(self._settings.patience_s, check=held.check, tell=held.tell)
        client = self.client(job)
        try:
            project = patience(lambda: client.project(job.project_id))
            label_config = project.label_config
            version = self._registry.catalogue().find(job.model)
            self.warm(version)
            if version.card.task == "raw":
                job = self._as_called(job, version, label_config, held)
            view = self._view(job, version, label_config)
            if self._wants_pictures(view) and not view.label_map.fields:
                raise nothing_fits(view)
            films = any(tag.shows_films for tag in view.label_map.fields)
            return Preannotation(
                job,
                client=client,
                pages=self._pages(job, held),
                view=view,
                predict=self._follow(job, view, held) if films else self.predict(view, held.check),
                remember=lambda tasks, found: self.remember(tasks, found, view),
                patience=patience,
                expect=lambda total: self._jobs.expect(job.id, total),
                tell=held.tell,
                import_size=self._settings.import_size,
                settle_s=self._settings.import_settle_s,
                guest=held.guest,
                one_by_one=films,
                select=project.show_collab_predictions and not project.model_version,
            )
        except BaseException:
            client.close()
            raise

    def _pages(self, job: Job, held: Held) -> Pages:
        return Pages(self._engine, job.id, owner=held.worker, is_alive=self._jobs.is_alive, guest=held.guest)

    def client(self, job: Job) -> Client:
        """The Label Studio of a job, whose pictures can be fetched from then on. Raises JobError without a token."""
        own = self._settings.label_studio_token.get_secret_value()
        token = own if self._settings.label_studio_url in ("", job.label_studio) else ""
        token = token or dict(reversed(self._registry.connections())).get(job.label_studio, "")
        if not token:
            hint = "Set LABEL_STUDIO_API_KEY, or run labelloop connect; then: labelloop jobs resume " + job.id
            raise JobError(f"There is no token for {job.label_studio}.", hint=hint)
        # The pictures of this project are fetched from the same Label Studio.
        self._origins.reload()
        self._origins.remember(job.project_id, job.label_studio, token)
        return Client(job.label_studio, token)

    def _as_called(self, job: Job, version: ModelVersion, label_config: str, held: Held) -> Job:
        """A hosted model says what it calls itself when it meets the project, which may be now for the first time. What
        it says then is the version of all predictions of the job: by it they are found again after a crash."""
        engine: Any = self._slots.ensure(version).loaded.result()[0]
        engine.introduce(str(job.project_id), label_config)
        called = self._registry.catalogue().called(version, job.project_id)
        if called in ("", job.version):
            return job
        if job.total is None:  # nobody has read a page
            held.tell("info", f"The model calls itself {called}.")
            return self._jobs.rename(job, called)
        held.tell("warning", f"The model calls itself {called} by now; this job goes on as {job.version}.")
        return job

    def _view(self, job: Job, version: ModelVersion, label_config: str) -> View:
        catalogue = self._registry.catalogue()
        called = catalogue.called(version, job.project_id)
        view = Lens.shared(self._settings, catalogue).view(version, label_config, said=job.version if called else "")
        if view.name != job.version:
            raise LabelConfigError(
                f"The label config, the threshold or the labels file changed: predictions would now carry the version "
                f"{view.name}, and this job stores {job.version}.",
                hint=f"Start a new job: labelloop prelabel {job.project_id}. Where that says the same, this worker was "
                "started with another LABELLOOP_SCORE_THRESHOLD or LABELLOOP_LABELS_FILE than the command.",
            )
        return view

    def warm(self, version: ModelVersion) -> None:
        """Load a version, before anybody waits for it: tasks that find no model fail. Raises ModelError."""
        self._slots.ensure(version).loaded.result()
        self._slots.trim([*self._needed(), version])

    def _wants_pictures(self, view: View) -> bool:
        engine, _ = self._slots.ensure(view.version).loaded.result()
        return engine.wants in ("picture", "text")

    def _follow(self, job: Job, view: View, held: Held) -> Predict:
        """The serving path for films: it keeps what it detects, so that another worker goes on at the frame."""

        def spool_of(ref: MediaRef) -> FilmParts:
            return FilmParts(self._engine, job.id, owner=held.worker, task_id=ref.task_id or 0, field=ref.key.field)

        return self.predict(view, held.check, spool_of=spool_of)

    def predict(self, view: View, check: Callable[[], None], *, spool_of: SpoolOf | None = None) -> Predict:
        """The serving path at bulk priority, for one version. What `check` raises ends a page at once. `spool_of` says
        where is kept what was detected in films."""
        deadline_s = DEADLINE_S if spool_of is None else FILM_DEADLINE_S

        async def page(tasks: Sequence[Task]) -> list[Prediction]:
            while True:
                try:
                    return await self._predictor.predict(
                        tasks, view, priority=Priority.BULK, deadline_s=deadline_s, spool_of=spool_of
                    )
                except Overloaded as busy:  # people first
                    await asyncio.sleep(busy.retry_after_s)

        def predict(tasks: Sequence[Task]) -> list[Prediction]:
            begun = time.monotonic()
            found = self._loop.run(page(tasks), check=check)
            if any(one.error and one.error.code == ShuttingDown.code for one in found):
                raise Interrupted  # this process ends, which is no failure of a task
            if all(one.error and one.error.code == ModelFailed.code and one.error.retry for one in found):
                first = found[0].error
                raise ModelFailed(first.message if first else "")  # the model was lost, not the tasks
            log.debug("page predicted", tasks=len(tasks), seconds=round(time.monotonic() - begun, 2))
            return found

        return predict

    def remember(self, tasks: Sequence[Task], found: Sequence[Prediction], view: View) -> None:
        """Write down what `labelloop order` asks for later."""
        keep(self._scores, tasks, found, view)
