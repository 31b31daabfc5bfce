"""The smallest learning loops on a real Label Studio: messages and pictures are sorted, from no model at all, and a
moment later a model sorts the rest."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import httpx
import pytest

pytest.importorskip("sklearn", reason="needs the extra labelloop[train]")

from labelloop.app import assemble, create_app, training_of
from labelloop.connection.connect import connect
from labelloop.core.settings import read_settings
from labelloop.jobs.training import Training
from labelloop.labelstudio.client import Client
from labelloop.runtimes.label_studio import LabelStudio
from labelloop.store.loops import LoopOptions
from labelloop.store.runs import Run
from labelloop.testing import LoopbackServer
from reference.running_server import Backend
from reference.shapes import SHAPES, draw
from reference.tickets import LABELS, tickets

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TEXTS = (
    '<View><HyperText name="message" value="$body"/><Choices name="about" toName="message">'
    + "".join(f'<Choice value="{label}"/>' for label in LABELS)
    + "</Choices></View>"
)
PICTURES = (
    '<View><Image name="photo" value="$image"/><Choices name="shape" toName="photo">'
    + "".join(f'<Choice value="{label}"/>' for label in SHAPES)
    + "</Choices></View>"
)
KNOWN, NEW = 60, 9


class Desk(NamedTuple):
    """A server without a model, and the Label Studio that its projects are in."""

    server: LoopbackServer
    client: Client
    http: httpx.Client
    training: Training

    def learn(self, project: int, tasks: Sequence[int], said: Sequence[str], *, about: tuple[str, str]) -> Run:
        """Connect, let people choose through the API, and wait for what the webhooks begin."""
        report = connect(self.client, project, backend_url=self.server.url)
        assert report.ok, report.findings
        options = LoopOptions(min_new=len(said), quiet_s=1, budget_s=30)
        self.training.loops.set(project, self.client.base_url, enabled=True, options=options)
        for task, choice in zip(tasks, said, strict=False):
            chosen = {"id": "a", "from_name": about[0], "to_name": about[1], "type": "choices"}
            body = {"result": [chosen | {"value": {"choices": [choice]}}]}
            self.http.post(f"/api/tasks/{task}/annotations/", json=body).raise_for_status()
        Backend.wait(lambda: self.training.runs.of_project(project), seconds=120)
        number = self.training.runs.of_project(project)[0].job_id
        Backend.wait(lambda: self.training.jobs.get(number).ended, seconds=300)
        log = "\n".join(line.text for line in self.training.jobs.lines(number))
        run = self.training.runs.find(number)
        assert run is not None
        assert (self.training.jobs.get(number).state, run.outcome) == ("done", "promoted"), log
        return run

    def right(self, project: int, config: str, tasks: Sequence[int], truth: Sequence[str]) -> int:
        """How many tasks that nobody has touched show the right choice, by the version that Label Studio names."""
        setup = httpx.post(self.server.url + "/setup", json={"project": f"{project}.1", "schema": config}).json()
        version = setup["model_version"]
        assert version.startswith(f"project-{project}@1.")
        assert self.client.project(project).model_version == version
        rows = [row for task in tasks for row in self.client.predictions(task)]
        assert [row["model_version"] for row in rows] == [version] * len(tasks)
        said = [row["result"][0]["value"]["choices"] for row in rows]
        return sum(choices == [label] for choices, label in zip(said, truth, strict=True))


@pytest.fixture(scope="module")
def desk(label_studio: LabelStudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    settings = read_settings(
        home=tmp_path_factory.mktemp("desk"), label_studio_url=label_studio.url, label_studio_token=label_studio.token
    )
    parts = assemble(settings)
    parts.store.registry.save_connection(label_studio.url, label_studio.token)
    headers = {"Authorization": f"Token {label_studio.token}"}
    with (
        LoopbackServer(create_app(settings, parts), lifespan="on") as server,
        Client(label_studio.url, label_studio.token) as client,
        httpx.Client(base_url=label_studio.url, headers=headers, timeout=60) as http,
    ):
        yield Desk(server, client, http, training_of(parts.store))


def test_people_sort_sixty_messages_and_a_model_sorts_the_rest(desk: Desk) -> None:
    known, new = tickets(KNOWN), tickets(NEW, seed=1)
    project = desk.client.create_project(f"texts {time.time_ns()}", TEXTS).id
    rows = [{"body": f"<p><b>Dear shop,</b></p><p>{one.text}</p>"} for one in (*known, *new)]
    tasks = desk.client.import_tasks(project, [{"data": row} for row in rows]).task_ids
    run = desk.learn(project, tasks, [one.label for one in known], about=("about", "message"))
    assert run.trainer == "text"
    assert run.metrics["candidate"]["accuracy"] >= 0.8
    assert desk.right(project, TEXTS, tasks[KNOWN:], [one.label for one in new]) >= NEW - 1
    desk.client.delete_project(project)


def test_people_sort_sixty_pictures_and_a_model_sorts_the_rest(desk: Desk, tmp_path: Path) -> None:
    """Where no model is known, `classify` begins with colours and edges."""
    truth = [SHAPES[number % 2] for number in range(KNOWN + NEW)]
    for number, shape in enumerate(truth):
        cv2.imwrite(str(tmp_path / f"shape{number:03}.png"), draw(shape, number)[..., ::-1])
    project = desk.client.create_project(f"pictures {time.time_ns()}", PICTURES).id
    desk.client.upload_files(project, sorted(tmp_path.iterdir()))
    shown = desk.client.tasks(project, page_size=100, include=("id", "data")).tasks
    tasks = [row["id"] for row in sorted(shown, key=lambda row: row["data"]["image"].rpartition("shape")[2])]
    run = desk.learn(project, tasks, truth[:KNOWN], about=("shape", "photo"))
    assert (run.trainer, run.base) == ("classify", "")
    assert run.metrics["candidate"]["accuracy"] >= 0.8
    number = run.job_id
    assert any("no classifier or detector is known" in line.text for line in desk.training.jobs.lines(number))
    assert desk.right(project, PICTURES, tasks[KNOWN:], truth[KNOWN:]) >= NEW - 1
    desk.client.delete_project(project)
