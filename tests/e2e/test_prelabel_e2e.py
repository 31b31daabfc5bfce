"""Bulk pre-annotation on a real Label Studio: killed on the way, and with a picture that is missing for a while."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.settings import Settings, read_settings
from labelloop.labelstudio.client import Client
from labelloop.runtimes.label_studio import LabelStudio
from labelloop.serving.models import Store, add_model, open_store
from labelloop.store.jobs import Job
from labelloop.store.pages import failures, progress
from reference.running_server import Backend, jpeg
from reference.tiny_models import Thing, build_v8, ultralytics_metadata

pytestmark = [pytest.mark.e2e]

LABELS = ("cat", "dog", "bird")
CONFIG = (
    '<View><Image name="img" value="$image"/><RectangleLabels name="box" toName="img">'
    '<Label value="cat"/><Label value="dog"/><Label value="bird"/></RectangleLabels></View>'
)
SIZE = (64, 64)
TASKS = 500


class Project(NamedTuple):
    """A project in Label Studio, and a labelloop home with a model for it."""

    client: Client
    number: int
    settings: Settings
    store: Store
    environment: dict[str, str]
    uploads: list[str]

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "labelloop", *words]
        return subprocess.run(command, env=self.environment | more, capture_output=True, text=True, timeout=240)

    def worker(self, **more: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "labelloop", "worker"]
        return subprocess.Popen(command, env=self.environment | more, stderr=subprocess.DEVNULL)

    def job(self) -> Job:
        return self.store.jobs.newest(1)[0]

    def stored(self) -> int:
        return progress(self.store.engine, self.job().id).stored

    def versions(self) -> list[list[str]]:
        """The versions of the predictions of every task, as Label Studio has them."""
        pages = self.client.task_pages(self.number, include=("id", "predictions"), everything=True)
        return [[one["model_version"] for one in row["predictions"]] for page in pages for row in page.tasks]


@pytest.fixture
def project(label_studio: LabelStudio, tmp_path: Path) -> Iterator[Project]:
    home = tmp_path / "home"
    told = {"LABELLOOP_HOME": str(home), "LABEL_STUDIO_URL": label_studio.url, "LABELLOOP_LOG_LEVEL": "warning"}
    told |= {"LABEL_STUDIO_API_KEY": label_studio.token}
    settings = read_settings(home=home, label_studio_url=label_studio.url, label_studio_token=label_studio.token)
    store = open_store(settings)
    network = build_v8(
        tmp_path / "cats.onnx",
        [Thing((8, 8, 40, 40), 0, 0.9)],
        size_wh=SIZE,
        metadata=ultralytics_metadata(LABELS, size_wh=SIZE),
    )
    add_model(store.registry, network, ModelCard(name="cats"), settings)
    with Client(label_studio.url, label_studio.token) as client:
        number = client.create_project(f"bulk {time.time_ns()}", CONFIG).id
        pictures = []
        for seed in range(10):
            pictures.append(tmp_path / f"{seed}.jpg")
            pictures[-1].write_bytes(jpeg(*SIZE, seed=seed))
        client.upload_files(number, pictures)
        rows = client.tasks(number, include=("id", "data")).tasks
        uploads = [row["data"]["image"] for row in rows]
        yield Project(client, number, settings, store, os.environ | told, uploads)
        client.delete_project(number)


def add_tasks(project: Project, number: int) -> None:
    """As many tasks in all, on the pictures that are there; each has an address of its own, so no cache helps."""
    have = len(project.uploads)
    tasks: list[dict[str, Any]] = [
        {"data": {"image": f"{project.uploads[n % have]}?n={n}"}} for n in range(number - have)
    ]
    project.client.import_tasks(project.number, tasks)


@pytest.mark.slow
def test_killed_three_times_every_task_has_one_prediction(project: Project) -> None:
    add_tasks(project, TASKS)
    assert project.run("prelabel", str(project.number), "--detach", LABELLOOP_JOBS="0").returncode == 0
    # `--detach` starts a worker where none lives: that one is killed first
    small = {"LABELLOOP_IMPORT_SIZE": "25"}
    Backend.wait(lambda: project.job().owner is not None, seconds=60)
    os.kill(int(str(project.job().owner).split("-")[-2]), signal.SIGKILL)
    for share in (0.2, 0.5):
        worker = project.worker(**small)
        Backend.wait(lambda share=share: project.stored() >= share * TASKS or project.job().ended, seconds=120)
        worker.kill()
        worker.wait()
    worker = project.worker(**small)
    Backend.wait(lambda: project.job().ended, seconds=180)
    worker.terminate()
    worker.wait(30)
    job = project.job()
    log = "\n".join(line.text for line in project.store.jobs.lines(job.id))
    assert (job.state, job.error) == ("done", ""), log
    assert not failures(project.store.engine, job.id)
    assert project.versions() == [[job.version]] * TASKS, log
    assert project.client.project(project.number).model_version == job.version, "annotators get them"


def test_a_picture_that_was_missing_is_tried_again_alone(project: Project) -> None:
    add_tasks(project, 20)
    missing = {"data": {"image": "/data/upload/0/not-there.jpg"}}
    project.client.import_tasks(project.number, [missing])
    done = project.run("prelabel", str(project.number), "--foreground")
    assert done.returncode == 1, "a task failed, and that is no success"
    (failed,) = failures(project.store.engine, project.job().id)
    assert str(failed.task_id) in done.stdout
    version = project.job().version
    assert project.versions().count([version]) == 20

    again = project.run("prelabel", str(project.number), "--foreground", "--only-missing")
    assert project.versions().count([version]) >= 20, again.stdout
    assert max(map(len, project.versions())) == 1, "nothing is stored twice"
