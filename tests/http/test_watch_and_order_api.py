"""Watching projects and putting them into an order, over HTTP: what the commands do, by the same functions."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from starlette.responses import Response

from labelloop.jobs.order import TAB
from labelloop.labelstudio.client import Client
from labelloop.testing import FakeLabelStudio
from labelloop.testing.label_studio.exchange import Ask
from reference.running_server import CONFIG, Backend, Start, jpeg

PICTURE = "data:image/jpeg;base64," + base64.b64encode(jpeg(32, 24)).decode()


@pytest.fixture
def project(studio: FakeLabelStudio) -> int:
    number = studio.add_project("streets", CONFIG)
    studio.add_tasks(number, ({"image": PICTURE} for _ in range(6)))
    return number


@pytest.fixture
def backend(start: Start, studio: FakeLabelStudio) -> Backend:
    """A server that runs jobs and looks at watched projects twice a second."""
    told = {"label_studio_url": studio.url, "label_studio_token": studio.token}
    return start(jobs=True, watch_interval_s=0.5, **told)


def predicted(backend: Backend, project: int) -> None:
    job = backend.http.post("/api/jobs", json={"project": project}).json()["id"]
    backend.wait(lambda: backend.http.get(f"/api/jobs/{job}").json()["finished_at"], seconds=40)


def put(backend: Backend, project: int, **body: Any) -> httpx.Response:
    return backend.http.put(f"/api/projects/{project}/watch", json=body)


def watches(backend: Backend) -> list[dict[str, Any]]:
    return backend.http.get("/api/watches").json()["watches"]


def order(backend: Backend, project: int, **asked: Any) -> httpx.Response:
    return backend.http.post(f"/api/projects/{project}/order", json=asked)


def test_a_watched_project_is_predicted_until_it_is_forgotten(
    backend: Backend, studio: FakeLabelStudio, project: int
) -> None:
    row = put(backend, project).json()
    assert (row["project"], row["label_studio"], row["kept"]) == (project, studio.url, True)
    backend.wait(lambda: all(studio.predictions(task) for task in studio.state.projects[project].task_ids), seconds=40)
    (row,) = watches(backend)
    assert row["watched"]
    assert row["seen_until"]
    forget = f"/api/projects/{project}/watch"
    assert backend.http.delete(forget).json() == {"project": project, "forgotten": True}
    assert backend.http.delete(forget).json() == {"project": project, "forgotten": False}
    assert watches(backend) == []


def test_mistakes_about_watches_are_said(backend: Backend, project: int) -> None:
    assert put(backend, 999).json()["error"] == "label-studio-rejected"
    assert put(backend, project, label_studio="http://elsewhere").json()["error"] == "settings"
    assert put(backend, project, interval=3).json()["error"] == "bad-request"
    plain = backend.http.put(f"/api/projects/{project}/watch", content="{}")
    assert plain.status_code == 400, "a foreign web page could send that"
    assert watches(backend) == []


def test_an_order_is_made_and_made_again_without_a_change(
    backend: Backend, studio: FakeLabelStudio, project: int
) -> None:
    predicted(backend, project)
    answer = order(backend, project, strategy="random", seed=5, diverse=2, flip=True)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert (made["project_id"], made["ranked"], made["unpredicted"], made["unseen"]) == (project, 6, 0, 0)
    assert made["changed"] > 0, "all pictures are the same"
    with Client(studio.url, studio.token) as client:
        assert {tab.id: tab.data["title"] for tab in client.views(project)}[made["tab"]] == TAB
    again = order(backend, project, strategy="random", seed=5, diverse=2, flip=True).json()
    assert again["changed"] == 0


@pytest.mark.parametrize(
    ("asked", "error", "why"),
    [
        ({"strategy": "entropie"}, "acquisition", "no such strategy"),
        ({"first": 0}, "bad-request", "none at all"),
        ({"tab": "mine"}, "bad-request", "no such field"),
        ({"model": "nobody"}, "model-not-found", "no such model"),
        ({}, "job", "nothing is predicted yet"),
    ],
)
def test_an_order_that_cannot_be_made_says_why(
    backend: Backend, project: int, asked: dict[str, Any], error: str, why: str
) -> None:
    answer = order(backend, project, **asked)
    assert (answer.json()["error"], answer.json()["hint"] != "") == (error, True), why


def test_two_orders_of_one_project_do_not_meet(backend: Backend, studio: FakeLabelStudio, project: int) -> None:
    predicted(backend, project)
    reading, go_on = threading.Event(), threading.Event()

    def around(_ask: Ask, path: str, answer: Callable[[], Response]) -> Response:
        if path == "/api/tasks":
            reading.set()
            assert go_on.wait(20)
        return answer()

    studio.around = around
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(order, backend, project, first=2)
        assert reading.wait(20)
        assert order(backend, project, first=3).json()["error"] == "overloaded"
        same = pool.submit(order, backend, project, first=2)
        go_on.set()
        assert first.result(30).json()["tab"] == same.result(30).json()["tab"]
