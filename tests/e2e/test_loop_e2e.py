"""The learning loop on a real Label Studio: people's annotations through its API, its own webhooks, a real training."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from labelloop.app import assemble, create_app, training_of
from labelloop.connection.connect import connect
from labelloop.core.cards import ModelCard
from labelloop.core.settings import read_settings
from labelloop.jobs.training import Training
from labelloop.labelstudio.client import Client
from labelloop.runtimes.label_studio import LabelStudio
from labelloop.serving.models import add_model
from labelloop.store.loops import LoopOptions
from labelloop.testing import LoopbackServer
from reference.running_server import Backend

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ANNOTATED, UNTOUCHED = 40, 6
BUDGET_S = 10
TAB = "Most uncertain first"
LABELS = ("RBC", "WBC", "Platelets")
CONFIG = (
    '<View><Image name="cells" value="$image"/><RectangleLabels name="cell" toName="cells">'
    + "".join(f'<Label value="{label}"/>' for label in LABELS)
    + "</RectangleLabels></View>"
)


class Loop(NamedTuple):
    """A project of blood cells in Label Studio, connected to a server that begins with a model of street scenes."""

    client: Client
    server: LoopbackServer
    training: Training
    project: int
    tasks: dict[str, int]
    dataset: dict[str, Any]

    def annotate(self, names: list[str]) -> None:
        """What people drew on these pictures, submitted as the editor does."""
        categories = {row["id"]: row["name"] for row in self.dataset["categories"]}
        for name in names:
            picture = next(row for row in self.dataset["images"] if row["file_name"] == name)
            rows = [row for row in self.dataset["annotations"] if row["image_id"] == picture["id"]]
            result = [region(row, picture, categories[row["category_id"]]) for row in rows]
            self.post(f"/api/tasks/{self.tasks[name]}/annotations/", {"result": result})

    def post(self, path: str, body: dict[str, Any]) -> None:
        headers = {"Authorization": f"Token {self.token}"}
        httpx.post(self.client.base_url + path, json=body, headers=headers, timeout=60).raise_for_status()

    @property
    def token(self) -> str:
        return dict(self.training.registry.connections())[self.client.base_url]


def region(row: dict[str, Any], picture: dict[str, Any], label: str) -> dict[str, Any]:
    width, height = picture["width"], picture["height"]
    x, y, w, h = row["bbox"]
    value = {"x": 100 * x / width, "y": 100 * y / height, "width": 100 * w / width, "height": 100 * h / height}
    kind = {"id": f"b{row['id']}", "from_name": "cell", "to_name": "cells", "type": "rectanglelabels"}
    size = {"original_width": width, "original_height": height}
    return kind | size | {"value": value | {"rotation": 0, "rectanglelabels": [label]}}


@pytest.fixture
def loop(label_studio: LabelStudio, shared: Path, tmp_path: Path) -> Iterator[Loop]:
    pytest.importorskip("torch")
    data = shared / "data" / "datasets" / "bccd"
    dataset = json.loads((data / "train.json").read_text())
    names = [row["file_name"] for row in dataset["images"]][: ANNOTATED + UNTOUCHED]
    settings = read_settings(
        home=tmp_path / "home", label_studio_url=label_studio.url, label_studio_token=label_studio.token
    )
    parts = assemble(settings)
    file = shared / "data" / "models" / "yolox_nano_416.onnx"
    street = add_model(parts.store.registry, file, ModelCard(name="cells", labels=tuple("abcdefgh" * 10)), settings)
    parts.store.registry.save_connection(label_studio.url, label_studio.token)
    with (
        LoopbackServer(create_app(settings, parts), lifespan="on") as server,
        Client(label_studio.url, label_studio.token) as client,
    ):
        project = client.create_project(f"loop {time.time_ns()}", CONFIG).id
        parts.store.registry.bind(project, street.id)
        client.upload_files(project, [data / "images" / name for name in names])
        rows = client.tasks(project, page_size=100, include=("id", "data")).tasks
        tasks = {next(name for name in names if row["data"]["image"].endswith(name)): row["id"] for row in rows}
        report = connect(client, project, backend_url=server.url)
        assert report.ok, report.findings
        yield Loop(client, server, training_of(parts.store), project, tasks, dataset)
        client.delete_project(project)


def test_people_correct_and_a_better_model_is_live(loop: Loop) -> None:
    names = list(loop.tasks)
    options = LoopOptions(min_new=20, quiet_s=1, budget_s=BUDGET_S, promotion="always")
    loop.training.loops.set(loop.project, loop.client.base_url, enabled=True, options=options)
    loop.annotate(names[:ANNOTATED])

    Backend.wait(lambda: loop.training.runs.of_project(loop.project), seconds=60)
    run_id = loop.training.runs.of_project(loop.project)[0].job_id
    Backend.wait(lambda: loop.training.jobs.get(run_id).ended, seconds=300)
    log = "\n".join(line.text for line in loop.training.jobs.lines(run_id))
    run = loop.training.runs.find(run_id)
    assert run is not None
    assert (loop.training.jobs.get(run_id).state, run.outcome, run.trainer) == ("done", "promoted", "head"), log
    assert "tasks changed" in run.reason, "Label Studio's own webhooks were counted"
    assert run.metrics["live"]["ap50"] == 0, "street scenes have no blood cells"

    # the version string is the same wherever Label Studio can see it
    setup = httpx.post(loop.server.url + "/setup", json={"project": f"{loop.project}.1", "schema": CONFIG}).json()
    version = setup["model_version"]
    assert version.startswith("cells@2.")
    assert loop.client.project(loop.project).model_version == version
    for name in names[ANNOTATED:]:
        assert [row["model_version"] for row in loop.client.predictions(loop.tasks[name])] == [version]

    # the tab follows the scores of the new version
    headers = {"Authorization": f"Token {loop.token}"}
    with httpx.Client(base_url=loop.client.base_url, headers=headers, timeout=60) as http:
        views = http.get("/api/dm/views/", params={"project": loop.project}).json()
        (view,) = [row for row in views if row["data"]["title"] == TAB]
        shown = http.get("/api/tasks", params={"view": view["id"], "fields": "all", "page_size": 100}).json()["tasks"]
    scores = [row["predictions_score"] for row in shown if row["predictions_score"] is not None]
    assert len(scores) >= UNTOUCHED
    assert scores == sorted(scores)


def test_the_start_training_call_of_label_studio_begins_a_run(loop: Loop) -> None:
    (backend,) = loop.client.backends(loop.project)
    loop.post(f"/api/ml/{backend.id}/train", {})
    Backend.wait(lambda: loop.training.runs.of_project(loop.project), seconds=30)
    run = loop.training.runs.of_project(loop.project)[0]
    assert "Start Training" in run.reason
    Backend.wait(lambda: loop.training.jobs.get(run.job_id).ended, seconds=60)
    run = loop.training.runs.of_project(loop.project)[0]
    assert (run.outcome, "nobody has drawn a box" in run.verdict) == ("declined", True)
