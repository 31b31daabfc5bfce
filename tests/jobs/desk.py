"""A fake Label Studio, a store with one model, and jobs that are run page by page in the test's own thread."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.responses import JSONResponse, Response

from labelloop.core.cards import ModelCard
from labelloop.core.metrics import Metrics
from labelloop.core.settings import Settings, read_settings
from labelloop.engines.base import Engine
from labelloop.jobs.kinds import Kinds, Running
from labelloop.jobs.open import Loop, Opener
from labelloop.learning.acquisition import Acquisition, scorer
from labelloop.media.load import MediaLoader
from labelloop.serving.films import Films
from labelloop.serving.media_metrics import MediaMetrics
from labelloop.serving.models import add_model, open_store
from labelloop.serving.origins import Origins
from labelloop.serving.predict import Predictor
from labelloop.serving.projects import Lens
from labelloop.serving.slots import Slots
from labelloop.store.films import FilmProgress, films_in_work
from labelloop.store.jobs import Job, Options, Work
from labelloop.store.pages import Failed, Progress, failures, progress
from labelloop.testing import FakeEngine, FakeLabelStudio
from reference.running_server import CONFIG, jpeg

IMPORT = "/import/predictions"


class Desk:
    """`project` has `tasks`; `engine` answers. Everything real but the model and Label Studio."""

    def __init__(
        self,
        studio: FakeLabelStudio,
        home: Path,
        uri: str,
        *,
        config: str = CONFIG,
        field: str = "image",
        labels: tuple[str, ...] = ("car",),
        task: str | None = None,
        **settings: Any,
    ) -> None:
        self.studio = studio
        self.uri = uri
        self.field = field
        self.engine: Engine = FakeEngine()
        self.settings: Settings = read_settings(
            **{
                "home": home,
                "label_studio_url": studio.url,
                "label_studio_token": studio.token,
                "import_settle_s": 0.3,
                "import_size": 10,
                "patience_s": 20.0,
            }
            | settings
        )
        self.store = open_store(self.settings)
        self.project = studio.add_project("streets", config)
        self.tasks: list[int] = []
        card = ModelCard(name="cars", engine="empty", labels=labels, **({"task": task} if task else {}))
        self.model = add_model(self.store.registry, None, card, self.settings)
        self.version = Lens.of(self.settings).view(self.model, config).name

    def add_tasks(self, number: int) -> list[int]:
        added = self.studio.add_tasks(self.project, ({self.field: self.uri} for _ in range(number)))
        self.tasks += added
        return added

    def delete(self, *tasks: int) -> None:
        for task in tasks:
            self.studio.state.remove_task(task)
            self.studio.state.projects[self.project].task_ids.remove(task)

    def work(self, **options: Any) -> Work:
        return Work(self.studio.url, self.project, self.model.id, self.version, Options(**options))

    def job(self, **options: Any) -> Job:
        return self.store.jobs.create(self.work(**options))[0]

    @contextmanager
    def open(self, job: Job, *, check: Callable[[], None] = lambda: None, guest: bool = False) -> Iterator[Running]:
        """The job in the hands of a new worker of this process."""
        metrics = Metrics()
        slots = Slots(lambda _version: self.engine, limit=2, metrics=metrics)
        origins = Origins(self.settings, self.store.registry.connections, trust_setup=True)
        media_metrics = MediaMetrics(metrics)
        media = MediaLoader(self.settings, origins.of, observe=media_metrics.observe)
        predictor = Predictor(
            media,
            Films(media, self.settings, media_metrics),
            slots,
            self.store.events,
            score=scorer(Acquisition()),
            metrics=metrics,
            media_metrics=media_metrics,
            media_workers=2,
            queue_limit=8,
        )
        worker = self.store.workers.register()
        assert guest or self.store.jobs.claim(self.store.jobs.get(job.id), worker)
        store = self.store
        with Loop() as loop:
            opener = Opener(self.settings, store.engine, store.jobs, store.registry, slots, predictor, origins, loop)
            kinds = Kinds(store.jobs, {"prelabel": opener.open})
            work = kinds.open(self.store.jobs.get(job.id), worker=worker, check=check, guest=guest)
            try:
                yield work
            finally:
                work.close()
                self.store.workers.leave(worker)
                predictor.close()
                slots.close()
                media.close()

    def run(self, job: Job) -> Job:
        """To its end."""
        with self.open(job) as work:
            to_the_end(work)
            current = self.store.jobs.get(job.id)
            self.store.jobs.end(job.id, "done", owner=current.owner)
        return self.store.jobs.get(job.id)

    def progress(self, job: Job) -> Progress:
        return progress(self.store.engine, job.id)

    def failures(self, job: Job) -> list[Failed]:
        return failures(self.store.engine, job.id)

    def log(self, job: Job) -> str:
        return "\n".join(line.text for line in self.store.jobs.lines(job.id))

    def versions(self) -> list[list[str]]:
        """The versions of the stored predictions of each task that was not deleted."""
        alive = [task for task in self.tasks if task in self.studio.state.tasks]
        return [[row["model_version"] for row in self.studio.predictions(task)] for task in alive]

    def imports(self) -> int:
        return sum(path.endswith(IMPORT) for path in self.studio.paths())


def to_the_end(work: Running) -> None:
    while work.advance():
        pass


def refusal(status: int, detail: str = "") -> Response:
    return JSONResponse({"status_code": status, "detail": detail or f"trouble {status}"}, status)


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    with FakeLabelStudio() as studio:
        yield studio


@pytest.fixture(scope="session")
def picture() -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(32, 24)).decode()


@pytest.fixture
def desk(studio: FakeLabelStudio, tmp_path: Path, picture: str) -> Desk:
    return Desk(studio, tmp_path / "home", picture)


def film_progress(engine: sa.Engine, job_id: str) -> FilmProgress | None:
    """How far a job is in the last of the films that it is at; None where it is at none."""
    found = films_in_work(engine, job_id, since_s=time.time())
    return found[-1] if found else None
