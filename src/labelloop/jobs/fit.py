"""Hosted models learn here: each event that Label Studio sent is one call of the model's `fit`, in order, as a job.

The events lie in the store (store/fits) until they were heard, so a job may be killed anywhere. An event whose hearing
ended the model's process several times is given up, and the next one has its turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any, Protocol

import structlog

from labelloop.core.errors import JobError, LabelloopError, LabelStudioError, ModelError, ModelNotFound
from labelloop.engines.isolated import Died
from labelloop.jobs.kinds import Held
from labelloop.jobs.pace import Pace
from labelloop.serving.slots import Slots
from labelloop.store import schema
from labelloop.store.fits import Fit, Fits
from labelloop.store.jobs import Job, Jobs, Work
from labelloop.store.registry import Registry

log = structlog.get_logger(__name__)

KIND = "fit"
LOOK_S = 0.5
"""How long one step waits for the model before it says that there is more."""
EVERY_S = 0.5
ATTEMPTS = 3
AGAIN_S = 60.0
"""How long events wait after a job that failed."""


class Learner(Protocol):
    """What an engine offers whose models learn by themselves."""

    first_generation: bool

    def fit(
        self,
        project: str,
        label_config: str,
        *,
        event: str,
        data: Mapping[str, Any],
        completions: Sequence[Mapping[str, Any]],
        workdir: Path,
    ) -> str: ...

    def stop_fit(self) -> None: ...


class Fitting:
    """A job in the hands of one worker: call `advance` until it says False, then `close`."""

    def __init__(
        self,
        job: Job,
        held: Held,
        fits: Fits,
        learner: Learner,
        *,
        model: str,
        folder: Path,
        annotated: Callable[[str], Sequence[Mapping[str, Any]]],
    ) -> None:
        self._job = job
        self._held = held
        self._fits = fits
        self._learner = learner
        self._model = model
        self._folder = folder
        self._annotated = annotated
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=f"fit-{job.id}")
        self._current: tuple[Fit, Future[str], float] | None = None
        self._failed = 0

    def advance(self) -> bool:
        """Wait a moment for the model, or give it the next event. False when it has heard all of them."""
        self._held.check()
        if self._current is None:
            return self._begin()
        fit, learning, begun = self._current
        try:
            version = learning.result(LOOK_S)
        except FutureTimeout:
            return True
        except Died as error:
            self._current = None
            self._died(fit, error)
            return True
        except LabelloopError as error:
            self._current = None
            self._give_up(fit, str(error))
            return True
        self._current = None
        self._fits.heard(fit, all_before=self._learner.first_generation)
        called = f"; it calls itself {version}" if version else ""
        self._held.tell("info", f"{fit.action} heard in {time.monotonic() - begun:.1f} s{called}.")
        return True

    def close(self) -> None:
        """An event that is being heard is heard again by whoever goes on."""
        if self._current is not None:
            self._learner.stop_fit()
        self._threads.shutdown()

    def _begin(self) -> bool:
        fit = self._next()
        if fit is None:
            if self._failed:
                raise JobError(f"The model could not learn from {self._failed} events; the log says why.")
            return False
        self._fits.begin(fit)
        self._held.tell("info", f"{fit.action}: {self._model} learns.")
        self._current = fit, self._threads.submit(self._hear, fit), time.monotonic()
        return True

    def _next(self) -> Fit | None:
        """A model that reads all annotations at every event hears only the newest."""
        fit = self._fits.next(self._model, self._job.project_id)
        while fit is not None and self._learner.first_generation:
            if fit.id == self._fits.newest(self._model, self._job.project_id):
                break
            self._fits.heard(fit)
            fit = self._fits.next(self._model, self._job.project_id)
        return fit

    def _hear(self, fit: Fit) -> str:
        data = {name: value for name, value in fit.payload.items() if name != "action"}
        project = data.get("project")
        config = project.get("label_config") if isinstance(project, dict) else data.get("label_config")
        return self._learner.fit(
            str(fit.project_id),
            config if isinstance(config, str) else "",
            event=fit.action,
            data=data,
            completions=self._completions(fit) if self._learner.first_generation else (),
            workdir=self._folder / "fits" / str(fit.project_id) / str(fit.id),
        )

    def _completions(self, fit: Fit) -> Sequence[Mapping[str, Any]]:
        """The annotated tasks: Label Studio before webhooks sent them along, now they are read from it."""
        sent = fit.payload.get("annotations")
        if isinstance(sent, list) and all(isinstance(one, dict) and "data" in one for one in sent) and sent:
            return sent
        try:
            return self._annotated(str(fit.project_id))
        except LabelStudioError as error:
            self._held.tell("warning", f"The model learns without the annotated tasks: {error}")
            return ()

    def _died(self, fit: Fit, error: Died) -> None:
        if fit.attempts + 1 >= ATTEMPTS:
            self._give_up(fit, f"it died {ATTEMPTS} times over this. {error}")
        else:
            self._held.tell("warning", f"The model's process died while it learned and is started again. {error}")

    def _give_up(self, fit: Fit, why: str) -> None:
        self._failed += 1
        self._fits.heard(fit)
        self._held.tell("error", f"{fit.action} could not be learned from: {why}")


class FitOpener:
    """Makes fit jobs runnable with the parts of one process."""

    def __init__(
        self,
        registry: Registry,
        slots: Slots,
        fits: Fits,
        *,
        folder: Callable[[str], Path],
        annotated: Callable[[str], Sequence[Mapping[str, Any]]],
    ) -> None:
        self._registry = registry
        self._slots = slots
        self._fits = fits
        self._folder = folder
        self._annotated = annotated

    def open(self, job: Job, held: Held) -> Fitting:
        """Raises LabelloopError when the model does not load here."""
        version = self._registry.catalogue().find(job.model)
        engine: Any = self._slots.ensure(version).loaded.result()[0]
        if not hasattr(engine, "fit"):
            raise ModelError(f"{version.id} does not learn by itself.", hint=f"See: labelloop loop {job.project_id}")
        return Fitting(
            job,
            held,
            self._fits,
            engine,
            model=version.name,
            folder=self._folder(version.name),
            annotated=self._annotated,
        )


class FitTriggers:
    """Looked at by every worker: events that wait become a job, one at a time for a model and project."""

    def __init__(self, fits: Fits, jobs: Jobs, registry: Registry) -> None:
        self._fits = fits
        self._jobs = jobs
        self._registry = registry
        self._pace = Pace(EVERY_S)

    def look(self) -> int:
        """Queue the jobs that are due; how many. Does nothing when it was called a moment ago."""
        if not self._pace.is_time():
            return 0
        begun = 0
        for model, project_id in self._fits.waiting():
            if self._failed_lately(project_id):
                continue
            try:
                version = self._registry.catalogue().find(model)
            except ModelNotFound:
                continue  # it was removed; its events go with the next trimming
            job, new = self._jobs.create(Work("", project_id, version.id, "", kind=KIND))
            if new:
                log.info("a hosted model learns", project=project_id, model=version.id, job=job.id)
                begun += 1
        return begun

    def _failed_lately(self, project_id: int) -> bool:
        """A model that does not load today must not make a job twice a second."""
        jobs = self._jobs.newest(10, project_id=project_id, state="failed")
        ends = [job.finished_at for job in jobs if job.kind == KIND and job.finished_at is not None]
        return bool(ends) and (schema.now() - max(ends)).total_seconds() < AGAIN_S
