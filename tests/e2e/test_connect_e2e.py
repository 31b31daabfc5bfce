"""The client, connect and doctor against the real Label Studio, with a small real backend."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labelloop.connection.backend import basic_header
from labelloop.connection.connect import connect
from labelloop.connection.doctor import diagnose
from labelloop.connection.server_checks import Installation
from labelloop.core.errors import LabelStudioAuthError, LabelStudioRejected
from labelloop.labelstudio.client import ANNOTATION_EVENTS, Client
from labelloop.testing import FakeBackend

pytestmark = pytest.mark.e2e

CONFIG = """<View><Image name="picture" value="$photo"/>
<RectangleLabels name="thing" toName="picture"><Label value="Car"/></RectangleLabels></View>"""
REGION = {
    "id": "r1", "from_name": "thing", "to_name": "picture", "type": "rectanglelabels", "original_width": 640,
    "original_height": 480, "score": 0.9,
    "value": {"x": 1, "y": 2, "width": 3, "height": 4, "rotation": 0, "rectanglelabels": ["Car"]},
}  # fmt: skip


@pytest.fixture(params=["token", "personal_access_token"])
def client(label_studio: Any, request: pytest.FixtureRequest) -> Iterator[Client]:
    with Client(label_studio.url, getattr(label_studio, request.param)) as made:
        yield made


@pytest.fixture
def project(label_studio: Any, shared: Path) -> Iterator[int]:
    """A project with one picture, gone after the test."""
    with Client(label_studio.url, label_studio.token) as made:
        number = made.create_project(f"connect {time.time_ns()}", CONFIG).id
        made.upload_files(number, sorted((shared / "data" / "datasets" / "coco32").rglob("*.jpg"))[:1])
        yield number
        made.delete_project(number)


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    with FakeBackend(model_version="cars@1", predict=lambda task: {"result": [REGION], "score": 0.9}) as server:
        yield server


def test_client(client: Client, project: int) -> None:
    assert client.version()
    assert client.is_at_api()
    assert client.find_project(client.project(project).title).id == project
    task = client.tasks(project, include=("id", "data")).tasks[0]
    assert client.probe_file(task["data"]["photo"], task_id=task["id"]) == 206
    wrong = {**REGION, "value": {**REGION["value"], "rectanglelabels": ["Bus"]}}
    items = [{"task": task["id"], "result": [item], "score": 0.5, "model_version": "v1"} for item in (REGION, wrong)]
    assert client.import_predictions(project, items).dropped == 1
    assert [row["result"] for row in client.predictions(task["id"])] == [[REGION]]
    assert [(row.model_version, row.count) for row in client.model_versions(project)] == [("v1", 1)]
    with pytest.raises(LabelStudioRejected, match="Invalid page"):
        client.tasks(project, page=9)


def test_a_wrong_path_and_a_wrong_token(label_studio: Any) -> None:
    with Client(f"{label_studio.url}/deeper", label_studio.token, attempts=1) as client:
        assert not client.is_at_api()
    with Client(label_studio.url, "wrong", attempts=1) as client, pytest.raises(LabelStudioAuthError):
        client.whoami()


def test_connect_twice_and_predict(client: Client, backend: FakeBackend, project: int) -> None:
    first = connect(client, project, backend_url=backend.url)
    assert first.ok, first.findings
    assert first.changes
    again = connect(client, project, backend_url=backend.url.replace("127.0.0.1", "localhost") + "/")
    assert again.ok, again.findings
    last = connect(client, project, backend_url=backend.url.replace("127.0.0.1", "localhost"))
    assert last.changes == ()
    assert len(client.backends(project)) == 1
    hooks = client.webhooks(project)
    assert [sorted(hook.actions) for hook in hooks] == [sorted(ANNOTATION_EVENTS)]
    client.retrieve_predictions(project)
    task = client.tasks(project, include=("id",)).tasks[0]["id"]
    assert [row["model_version"] for row in client.predictions(task)] == ["cars@1"]


def test_connect_with_a_password_mends_what_is_half_made(client: Client, project: int) -> None:
    login = ("user", "secret")
    with FakeBackend(basic_auth=login) as backend:
        connect(client, project, backend_url=backend.url, basic_auth=login)
        client.delete_webhook(client.webhooks(project)[0].id)
        client.set_project(project, model_version="")
        report = connect(client, project, backend_url=backend.url, basic_auth=login, title="mine")
        assert report.ok, report.findings
        assert report.project.model_version == "mine"
        assert [hook.headers for hook in client.webhooks(project)] == [{"Authorization": basic_header(login)}]
        assert connect(client, project, backend_url=backend.url, basic_auth=login).changes == ()


def test_doctor(label_studio: Any, client: Client, backend: FakeBackend, project: int) -> None:
    connect(client, project, backend_url=backend.url)
    installation = Installation(label_studio.url, label_studio.personal_access_token, backend.url)
    assert [item for item in diagnose(installation, project) if item.status != "ok"] == []
    backend.stop()
    faults = {item.check for item in diagnose(installation, project) if item.status == "fail"}
    assert faults == {"backend", "Label Studio reaches the backend"}


def test_questions_about_addresses_store_nothing(client: Client, project: int) -> None:
    client.check_backend_address("http://127.0.0.1:9")
    client.check_webhook_address("http://127.0.0.1:9/webhook")
    with pytest.raises(LabelStudioRejected, match="network alias"):
        client.check_webhook_address("http://labelloop:9090/webhook")
    with pytest.raises(LabelStudioRejected, match="can resolve"):
        client.check_backend_address("http://nowhere.invalid:9")
    assert client.backends(project) == []
    assert client.webhooks(project) == []
