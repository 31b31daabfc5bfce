"""The smallest learning loop on a real Label Studio: messages are sorted, and a moment later a model sorts the rest."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import pytest

from labelloop.app import assemble, create_app, training_of
from labelloop.connection.connect import connect
from labelloop.core.settings import read_settings
from labelloop.labelstudio.client import Client
from labelloop.runtimes.label_studio import LabelStudio
from labelloop.store.loops import LoopOptions
from labelloop.testing import LoopbackServer
from reference.running_server import Backend
from reference.tickets import LABELS, tickets

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CONFIG = (
    '<View><HyperText name="message" value="$body"/><Choices name="about" toName="message">'
    + "".join(f'<Choice value="{label}"/>' for label in LABELS)
    + "</Choices></View>"
)


def test_people_sort_sixty_messages_and_a_model_sorts_the_rest(label_studio: LabelStudio, tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="needs the extra labelloop[train]")
    settings = read_settings(
        home=tmp_path / "home", label_studio_url=label_studio.url, label_studio_token=label_studio.token
    )
    parts = assemble(settings)
    parts.store.registry.save_connection(label_studio.url, label_studio.token)
    training = training_of(parts.store)
    headers = {"Authorization": f"Token {label_studio.token}"}
    known, new = tickets(60), tickets(9, seed=1)
    with (
        LoopbackServer(create_app(settings, parts), lifespan="on") as server,
        Client(label_studio.url, label_studio.token) as client,
        httpx.Client(base_url=label_studio.url, headers=headers, timeout=60) as http,
    ):
        project = client.create_project(f"texts {time.time_ns()}", CONFIG).id
        rows = [{"body": f"<p><b>Dear shop,</b></p><p>{one.text}</p>"} for one in (*known, *new)]
        tasks = client.import_tasks(project, [{"data": row} for row in rows]).task_ids
        report = connect(client, project, backend_url=server.url)
        assert report.ok, report.findings
        options = LoopOptions(min_new=60, quiet_s=1, budget_s=30)
        training.loops.set(project, label_studio.url, enabled=True, options=options)
        for task, ticket in zip(tasks, known, strict=False):
            said = {"id": "a", "from_name": "about", "to_name": "message", "type": "choices"}
            body = {"result": [said | {"value": {"choices": [ticket.label]}}]}
            http.post(f"/api/tasks/{task}/annotations/", json=body).raise_for_status()

        Backend.wait(lambda: training.runs.of_project(project), seconds=120)
        number = training.runs.of_project(project)[0].job_id
        Backend.wait(lambda: training.jobs.get(number).ended, seconds=300)
        run = training.runs.find(number)
        log = "\n".join(line.text for line in training.jobs.lines(number))
        assert run is not None
        assert (training.jobs.get(number).state, run.outcome, run.trainer) == ("done", "promoted", "text"), log
        assert run.metrics["candidate"]["accuracy"] >= 0.8

        setup = httpx.post(server.url + "/setup", json={"project": f"{project}.1", "schema": CONFIG}).json()
        version = setup["model_version"]
        assert version.startswith(f"project-{project}@1.")
        assert client.project(project).model_version == version
        right = 0
        for task, ticket in zip(tasks[len(known) :], new, strict=True):
            (row,) = client.predictions(task)
            assert row["model_version"] == version
            right += row["result"][0]["value"]["choices"] == [ticket.label]
        assert right >= 8
        client.delete_project(project)
