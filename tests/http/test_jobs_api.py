"""Background jobs over HTTP: started, listed, steered, followed live."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from labelloop.http import feed
from labelloop.testing import FakeLabelStudio
from reference.running_server import CONFIG, Backend, Start, jpeg

PICTURE = "data:image/jpeg;base64," + base64.b64encode(jpeg(32, 24)).decode()


@pytest.fixture
def project(studio: FakeLabelStudio) -> int:
    number = studio.add_project("streets", CONFIG)
    studio.add_tasks(number, ({"image": PICTURE if n != 3 else "data:,broken"} for n in range(12)))
    return number


@pytest.fixture
def backend(start: Start, studio: FakeLabelStudio, project: int) -> Backend:
    """A server that runs jobs, five tasks a page."""
    return start(jobs=True, label_studio_url=studio.url, label_studio_token=studio.token, import_size=5)


def begin(backend: Backend, project: int | str, **options: Any) -> dict[str, Any]:
    answer = backend.http.post("/api/jobs", json={"project": project, **options})
    assert answer.status_code in (200, 201), answer.text
    return answer.json()


def ended(backend: Backend, job: str) -> dict[str, Any]:
    backend.wait(lambda: backend.http.get(f"/api/jobs/{job}").json()["finished_at"], seconds=40)
    return backend.http.get(f"/api/jobs/{job}").json()


@contextmanager
def listening(backend: Backend, path: str, last: int | None = None) -> Iterator[Iterator[dict[str, Any]]]:
    """The events of a stream, each with its fields; comments are left out."""
    headers = {} if last is None else {"Last-Event-ID": str(last)}
    with (
        httpx.Client(base_url=backend.url, timeout=30, trust_env=False) as http,
        http.stream("GET", path, headers=headers) as answer,
    ):
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["x-accel-buffering"] == "no"
        yield _events(answer)


def _events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    fields: dict[str, Any] = {}
    for line in answer.iter_lines():
        if not line and fields:
            yield fields
            fields = {}
        name, _, value = line.partition(": ")
        if name:
            fields[name] = json.loads(value) if name in ("data", "id") else value


def test_a_job_is_started_followed_and_its_failures_are_tried_again(
    backend: Backend, studio: FakeLabelStudio, project: int
) -> None:
    job = begin(backend, "streets")
    with listening(backend, f"/api/jobs/{job['id']}/events") as events:
        seen = list(events)
    assert [event["event"] for event in seen][-1] == "end"
    assert {"job", "line", "end"} == {event["event"] for event in seen}
    assert [event["data"]["state"] for event in seen if event["event"] == "job"][-1] == "done"
    lines = [event["data"]["text"] for event in seen if event["event"] == "line"]
    assert "begins on worker" in lines[0]
    assert lines[-1] == "The job is done."

    row = backend.http.get(f"/api/jobs/{job['id']}").json()
    assert {name: row["progress"][name] for name in ("stored", "failed", "done", "total")} == {
        "stored": 11, "failed": 1, "done": 12, "total": 12,
    }  # fmt: skip
    (failure,) = backend.http.get(f"/api/jobs/{job['id']}/failures").json()["failures"]
    assert failure["code"] == "media-undecodable"
    logs = backend.http.get(f"/api/jobs/{job['id']}/logs").json()["lines"]
    assert [line["text"] for line in logs] == lines

    studio.state.tasks[failure["task_id"]].data = {"image": PICTURE}
    assert backend.http.post(f"/api/jobs/{job['id']}/retry").json()["state"] == "queued"
    assert ended(backend, job["id"])["progress"]["stored"] == 12
    assert all(len(studio.predictions(task)) == 1 for task in studio.state.projects[project].task_ids)


def test_jobs_are_listed_cancelled_and_resumed(backend: Backend, project: int) -> None:
    backend.engine.gate.clear()
    job = begin(backend, project, filters=["total_annotations=0"], limit=4)
    assert begin(backend, project, filters=["total_annotations=0"], limit=4)["id"] == job["id"], "the same is one job"
    more = backend.http.post("/api/jobs", json={"project": project})
    assert more.status_code == 409, "four tasks are not all of them"
    assert f"Job {job['id']} makes predictions of" in more.json()["message"]
    assert "(only missing, filtered, at most 4 tasks)" in more.json()["message"]
    assert [row["id"] for row in backend.http.get(f"/api/jobs?project={project}&limit=5").json()["jobs"]] == [job["id"]]
    assert backend.http.get("/api/jobs?project=99").json()["jobs"] == []
    assert backend.http.get("/api/jobs?state=failed").json()["jobs"] == []
    backend.http.post(f"/api/jobs/{job['id']}/cancel").raise_for_status()
    backend.engine.gate.set()
    assert ended(backend, job["id"])["state"] == "cancelled"
    again = backend.http.post(f"/api/jobs/{job['id']}/cancel")
    assert again.status_code == 409
    assert backend.http.post(f"/api/jobs/{job['id']}/resume").json()["run"] == 2
    row = ended(backend, job["id"])
    assert (row["state"], row["progress"]["done"]) == ("done", 4)


def test_who_comes_back_is_told_what_he_missed_and_nothing_twice(
    backend: Backend, studio: FakeLabelStudio, project: int
) -> None:
    studio.state.projects[project].model_version = "theirs"  # or the job would say that it names its own there
    with listening(backend, "/api/events") as events:
        job = begin(backend, project)
        first = next(event for event in events if event["event"] == "line")
    ended(backend, job["id"])
    with listening(backend, "/api/events", last=first["id"]) as events:
        missed = next(event for event in events if event["event"] == "line")
    assert missed["data"]["text"] == "The job is done."
    with listening(backend, f"/api/jobs/{job['id']}/events", last=first["id"]) as events:
        texts = [event["data"]["text"] for event in events if event["event"] == "line"]
    assert texts == ["The job is done."]
    headers = {"Last-Event-ID": str(missed["id"])}
    assert backend.http.get(f"/api/jobs/{job['id']}/events", headers=headers).status_code == 204


def test_listeners_are_let_go_bounded_and_cost_no_thread(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "MAX_LISTENERS", 20)
    before = threading.active_count()
    with httpx.Client(base_url=backend.url, trust_env=False, limits=httpx.Limits(max_connections=50)) as http:
        streams = [http.send(http.build_request("GET", "/api/events"), stream=True) for _ in range(20)]
        assert {stream.status_code for stream in streams} == {200}
        refused = http.get("/api/events")
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert threading.active_count() - before < 10
        for stream in streams:
            stream.close()
        backend.wait(lambda: _answers(http, 200))


def _answers(http: httpx.Client, status: int) -> bool:
    with http.stream("GET", "/api/events") as answer:
        return answer.status_code == status


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({"project": 1, "modle": "cars"}, 400, "modle"),
        ({"project": 1, "limit": 0}, 400, "limit"),
        ({"project": 1, "model": "trucks"}, 404, "There is no model trucks"),
        ({"project": "nowhere"}, 404, "no project 'nowhere'"),
        ({"project": 1, "filters": ["nonsense"]}, 400, "not a filter"),
        ({"project": 1, "filters": ["nonsense=1"]}, 400, "written data.NAME"),
        ({"project": 1, "label_studio": "http://elsewhere"}, 400, "is not connected"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_done_is_said_before_a_job_is_made(
    backend: Backend, body: dict[str, Any], status: int, reason: str
) -> None:
    answer = backend.http.post("/api/jobs", json=body)
    assert (answer.status_code, reason in answer.text) == (status, True), answer.text
    assert backend.http.get("/api/jobs").json()["jobs"] == []


def test_foreign_pages_and_strangers_start_nothing(start: Start, studio: FakeLabelStudio, project: int) -> None:
    backend = start(basic_auth_user="a", basic_auth_pass="b", label_studio_url=studio.url)
    for path in ("/api/jobs", "/api/events"):
        assert backend.http.get(path).status_code == 401
    login = ("a", "b")
    assert backend.http.post("/api/jobs", content=b'{"project": 1}', auth=login).status_code == 400
    foreign = {"Origin": "http://evil.example"}
    assert backend.http.post("/api/jobs/x/cancel", headers=foreign, auth=login).status_code == 403
    assert backend.http.get("/api/jobs/x", auth=login).status_code == 404
    assert backend.http.get("/api/jobs?state=odd", auth=login).status_code == 400


def test_jobs_stand_on_the_page(backend: Backend, project: int) -> None:
    backend.engine.gate.clear()
    job = begin(backend, project)
    page = backend.http.get("/", headers={"Accept": "text/html"}).text
    assert job["id"] in page
    backend.engine.gate.set()
    ended(backend, job["id"])
    page = backend.http.get("/", headers={"Accept": "text/html"}).text
    assert "1 failed" in page


def test_a_server_watches_what_it_was_told_to_and_remembers(
    start: Start, studio: FakeLabelStudio, project: int
) -> None:
    known = {"label_studio_url": studio.url, "label_studio_token": studio.token, "watch_interval_s": 0.5}

    def predicted() -> int:
        return sum(len(studio.predictions(task)) for task in studio.state.projects[project].task_ids)

    first = start(jobs=True, watch=("streets",), **known)
    first.wait(lambda: predicted() == 11, seconds=40)
    (row,) = first.parts.store.watches.all()
    assert (row.project_id, row.kept) == (project, True)
    first.server.stop()
    second = start(jobs=True, **known)
    studio.add_tasks(project, [{"image": PICTURE}] * 2)
    second.wait(lambda: predicted() == 13, seconds=40)
